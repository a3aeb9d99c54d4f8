"""What the system says of its processors and memory: nodes, sockets, cores, and cores of two kinds.

Linux says it in files below /sys/devices; of other systems nothing is known here.
"""

import functools
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import NamedTuple

ALIKE = 0.85
"""A core is of another kind than the fastest of a kind if it is less than so many times as fast."""

_PLACE = re.compile(r"(?:cpu|node)(\d+)")
_CORE_TYPES = ("cpu_core", "cpu_atom", "cpu_lowpower")
"""What Linux calls the counters of Intel's kinds of cores, the fastest first."""


class Topology(NamedTuple):
    """Processors are given by their numbers, as the system counts them."""

    nodes: Mapping[int, frozenset[int]]
    """The processors of each memory node that has some."""
    sockets: Mapping[int, int]
    """For each processor, its socket."""
    cores: Mapping[int, frozenset[int]]
    """For each processor, those of the same core."""
    kinds: tuple[frozenset[int], ...]
    """The processors by kinds of cores, the fastest kind first."""

    def node_of(self, cpu: int) -> int | None:
        """The memory node of a processor, if that is known."""
        return next((node for node, cpus in self.nodes.items() if cpu in cpus), None)

    def unequal(self, cpus: Set[int]) -> bool:
        """Whether these processors are of more than one kind."""
        return sum(1 for kind in self.kinds if kind & cpus) > 1

    def counted(self, cpus: Set[int]) -> dict[str, int]:
        """How many memory nodes, sockets and cores these processors are on; 0 for what is not
        known."""
        return {
            "memory_nodes": sum(1 for own in self.nodes.values() if own & cpus),
            "sockets": len({self.sockets[cpu] for cpu in cpus & self.sockets.keys()}),
            "cores": len({self.cores[cpu] for cpu in cpus & self.cores.keys()}),
        }


def listed(text: str) -> frozenset[int]:
    """The numbers of a list such as "0-3,8".

    >>> sorted(listed("0-2,8"))
    [0, 1, 2, 8]
    """
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def masked(text: str) -> frozenset[int]:
    """The numbers of the bits of a mask, in words of 32 bits with the last one first.

    >>> sorted(masked("1,80000001"))
    [0, 31, 32]
    """
    bits = int("".join(word.rjust(8, "0") for word in text.split(",")), 16)
    return frozenset(k for k in range(bits.bit_length()) if bits >> k & 1)


def read(devices: Path = Path("/sys/devices")) -> Topology:
    """What is found below a folder; all is empty where nothing is."""
    cpus = {
        number: place
        for number, place in _numbered(devices / "system/cpu", "cpu")
        if (place / "topology").is_dir()  # those that are offline have none
    }
    nodes = {}
    for number, place in _numbered(devices / "system/node", "node"):
        own = _processors(place / "cpulist", place / "cpumap") & cpus.keys()
        if own:
            nodes[number] = own
    cores, sockets = {}, {}
    for number, place in cpus.items():
        topology = place / "topology"
        together = _processors(topology / "thread_siblings_list", topology / "thread_siblings")
        cores[number] = together or frozenset({number})
        sockets[number] = int(_number(topology / "physical_package_id") or 0)
    return Topology(nodes, sockets, cores, _kinds(devices, cpus))


@functools.cache
def here() -> Topology:
    """The machine that this is."""
    return read()


def _numbered(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The folders of a name and a number."""
    try:
        places = [place for place in folder.iterdir() if place.name.startswith(name)]
    except OSError:
        return []
    found = ((_PLACE.fullmatch(place.name), place) for place in places)
    return sorted((int(match[1]), place) for match, place in found if match)


def _processors(as_list: Path, as_mask: Path) -> frozenset[int]:
    """Those of a list, or of a mask, which older systems have alone."""
    for path, reading in ((as_list, listed), (as_mask, masked)):
        try:
            return reading(_text(path))
        except (OSError, ValueError):
            pass
    return frozenset()


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip("\0\n ")  # some systems add what ends a string


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except (OSError, ValueError):
        return None


def _kinds(devices: Path, cpus: Mapping[int, Path]) -> tuple[frozenset[int], ...]:
    """By the types that the system tells; else by capacities, else by the highest frequencies."""
    types = [_processors(devices / name / "cpus", devices / "none") for name in _CORE_TYPES]
    types = [own for each in types if (own := each & cpus.keys())]
    if len(types) > 1:
        return tuple(types)
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = {cpu: speed for cpu, place in cpus.items() if (speed := _number(place / name))}
        if len(speeds) == len(cpus):
            break
    else:
        return (frozenset(cpus),) if cpus else ()
    kinds: list[set[int]] = []
    fastest = 0.0
    for cpu in sorted(speeds, key=lambda cpu: (-speeds[cpu], cpu)):
        if not kinds or speeds[cpu] < ALIKE * fastest:
            kinds.append(set())
            fastest = speeds[cpu]
        kinds[-1].add(cpu)
    return tuple(map(frozenset, kinds))
