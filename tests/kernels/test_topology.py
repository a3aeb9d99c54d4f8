"""What the files of Linux say of processors and memory, as machines of many kinds have them."""

import sys
from pathlib import Path

import pytest

from steepest.kernels import threads, topology


def tree(root: Path, files: dict[str, object]) -> Path:
    """Files with their texts below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def processors(cpus, *, socket, siblings=lambda k: str(k)):
    """The files of processors: of their sockets and cores."""
    found = {}
    for k in cpus:
        place = f"system/cpu/cpu{k}/topology"
        found[f"{place}/physical_package_id"] = socket(k)
        found[f"{place}/thread_siblings_list"] = siblings(k)
    return found


def nodes(lists):
    return {f"system/node/node{n}/cpulist": text for n, text in lists.items()}


def two_sockets():
    """128 processors: two sockets of 32 cores with two threads each, the second after all first
    ones."""
    files = processors(
        range(128), socket=lambda k: k // 32 % 2, siblings=lambda k: f"{k % 64},{k % 64 + 64}"
    )
    return files | nodes({0: "0-31,64-95", 1: "32-63,96-127"})


def clusters_of_a_socket():
    """Sub-NUMA clustering: one socket of 48 cores, as four memory nodes."""
    files = processors(range(48), socket=lambda k: 0)
    return files | nodes({n: f"{12 * n}-{12 * n + 11}" for n in range(4)})


def hybrid():
    """Six fast cores with two threads each, and eight slow ones."""
    files = processors(
        range(20),
        socket=lambda k: 0,
        siblings=lambda k: f"{k // 2 * 2}-{k // 2 * 2 + 1}" if k < 12 else str(k),
    )
    return files | nodes({0: "0-19"})


def hybrid_by_type():
    return hybrid() | {"cpu_core/cpus": "0-11", "cpu_atom/cpus": "12-19"}


def hybrid_by_frequency():
    return hybrid() | {
        # two of the fast cores are a little faster than the others
        f"system/cpu/cpu{k}/cpufreq/cpuinfo_max_freq": (
            5_200_000 if k < 4 else 5_000_000 if k < 12 else 3_900_000
        )
        for k in range(20)
    }


def arm():
    """Ten cores of each of two kinds, whose capacities differ a little; no memory nodes."""
    files = processors(range(20), socket=lambda k: 0)
    capacities = [718, 718, 718, 718, 718, 1017, 1017, 1017, 1017, 997] * 2
    return files | {f"system/cpu/cpu{k}/cpu_capacity": value for k, value in enumerate(capacities)}


def arm_server():
    """Two sockets with two memory nodes each, and all cores alike."""
    files = processors(range(128), socket=lambda k: k // 64)
    files |= {f"system/cpu/cpu{k}/cpu_capacity": 1024 for k in range(128)}
    return files | nodes({n: f"{32 * n}-{32 * n + 31}\n\0" for n in range(4)})


def numbers_with_gaps():
    """Nodes and sockets are numbered as the firmware likes; masks in place of lists; one node has
    memory alone, and one processor is offline."""
    files = processors(range(1, 8), socket=lambda k: 36 * (k // 4))
    for k in range(1, 8):
        del files[f"system/cpu/cpu{k}/topology/thread_siblings_list"]
        files[f"system/cpu/cpu{k}/topology/thread_siblings"] = f"00000000,{1 << k:08x}"
    files |= {"system/node/node3/cpumap": "0000000f", "system/node/node40/cpumap": "000000f0"}
    files |= {"system/node/node72/cpumap": "00000000", "system/node/has_cpu": "3,40"}
    return files | {"system/cpu/cpu0/online": 0, "system/cpu/cpufreq/boost": 1}


@pytest.mark.parametrize(
    ("files", "counted", "kinds"),
    [
        (two_sockets, (2, 2, 64), [128]),
        (clusters_of_a_socket, (4, 1, 48), [48]),
        (hybrid, (1, 1, 14), [20]),
        (hybrid_by_type, (1, 1, 14), [12, 8]),
        (hybrid_by_frequency, (1, 1, 14), [12, 8]),
        (arm, (0, 1, 20), [10, 10]),
        (arm_server, (4, 2, 128), [128]),
        (numbers_with_gaps, (2, 2, 7), [7]),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_machines(tmp_path, files, counted, kinds):
    found = topology.read(tree(tmp_path, files()))
    every = frozenset(found.cores)
    assert tuple(found.counted(every).values()) == counted
    assert [len(kind) for kind in found.kinds] == kinds
    assert frozenset().union(*found.kinds) == every
    for cpu, together in found.cores.items():
        assert cpu in together
    homes = [found.node_of(cpu) for cpu in sorted(every)]
    assert None not in homes or not found.nodes


def test_the_nodes_of_processors(tmp_path):
    found = topology.read(tree(tmp_path, two_sockets()))
    assert [found.node_of(cpu) for cpu in (0, 31, 32, 64, 127, 128)] == [0, 0, 1, 0, 1, None]
    assert found.counted(frozenset({0, 64, 1})) == {"memory_nodes": 1, "sockets": 1, "cores": 2}
    found = topology.read(tree(tmp_path / "gaps", numbers_with_gaps()))
    assert found.nodes == {3: frozenset({1, 2, 3}), 40: frozenset({4, 5, 6, 7})}


@pytest.mark.parametrize(
    ("files", "cpus", "expected"),
    [
        (hybrid_by_type, range(20), True),
        (hybrid_by_frequency, range(20), True),
        (hybrid_by_type, range(12), False),  # a process that is bound to the fast ones
        (hybrid_by_type, range(12, 20), False),
        (arm, range(20), True),
        (two_sockets, range(128), False),
        (clusters_of_a_socket, range(48), False),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_parts_are_taken_in_turn_where_cores_are_unequal(tmp_path, files, cpus, expected):
    machine = topology.read(tree(tmp_path, files()))
    assert threads.in_turn(machine, frozenset(cpus)) is expected


def test_unequal_cores_near_several_memory_nodes_keep_their_parts(tmp_path):
    files = hybrid_by_type() | nodes({0: "0-9", 1: "10-19"})
    machine = topology.read(tree(tmp_path, files))
    assert not threads.in_turn(machine, frozenset(range(20)))
    assert threads.in_turn(machine, frozenset(range(2, 10))) is False
    assert not threads.in_turn(machine, frozenset(range(10, 20)) | {0})


def test_a_system_that_says_nothing(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        found = topology.read(root)
        assert found == topology.Topology({}, {}, {}, ())
        assert not threads.in_turn(found, frozenset({0, 1}))
        assert set(found.counted(frozenset({0})).values()) == {0}


def test_files_that_make_no_sense(tmp_path):
    files = processors(range(2), socket=lambda k: "none", siblings=lambda k: "many")
    files |= {"system/node/node0/cpulist": "0-x", "system/cpu/cpu0/cpu_capacity": "?"}
    found = topology.read(tree(tmp_path, files))
    assert found.nodes == {}
    assert found.sockets == {0: 0, 1: 0}
    assert found.cores == {0: frozenset({0}), 1: frozenset({1})}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such files")
def test_this_machine():
    found = topology.here()
    own = threads.limited_to()
    assert own <= found.cores.keys() or not found.cores
