"""What ``st.info`` says of this process, and of where the pages of an optimizer lie."""

import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import steepest as st
from steepest.core import information
from steepest.kernels import pages, threads, topology

TWO_NODES = topology.Topology(
    {0: frozenset({0, 1}), 1: frozenset({2, 3})},
    dict.fromkeys(range(4), 0),
    {k: frozenset({k}) for k in range(4)},
    (frozenset(range(4)),),
)


def stepped(n=1 << 20, **options):
    w = {"w": np.zeros(n, np.float32), "b": np.zeros(3, np.float32)}
    opt = st.AdamW(w, **options)
    opt.step({"w": np.ones(n, np.float32), "b": np.ones(3, np.float32)})
    return opt


class Machine:
    """A machine of two memory nodes, of which pages are told as a test says."""

    def __init__(self, monkeypatch, workers, node):
        self.asked = []
        monkeypatch.setattr(topology, "here", lambda: TWO_NODES)
        monkeypatch.setattr(threads, "team", lambda: self)
        monkeypatch.setattr(threads, "workers", lambda elements: len(workers))
        monkeypatch.setattr(pages, "nodes", self.nodes)
        self.workers, self.node = workers, node

    def nodes(self, addresses):
        self.asked = addresses
        return [self.node(k / len(addresses)) for k in range(len(addresses))]

    def places(self, count):
        assert count == len(self.workers)
        return self.workers

    def bound(self):
        return set()

    threads_of = parts = openmp = max_threads = lambda self: 1


def test_pages_near_their_threads(monkeypatch):
    opt = stepped()
    # Samples are in the order of the parts, of which each thread has one.
    machine = Machine(monkeypatch, [1, 2], lambda place: int(place >= 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = st.info(opt)
    assert found["far"] <= 0.01
    assert list(found["pages"]) == ["parameters", "exp_avg", "exp_avg_sq"]
    for shares in found["pages"].values():  # halves, but for a sample at the border
        assert shares == {0: pytest.approx(0.5, abs=0.02), 1: pytest.approx(0.5, abs=0.02)}
    assert 1000 < len(machine.asked) <= 1.1 * information.SAMPLES


@pytest.mark.parametrize(
    ("node", "far"),
    [(lambda place: 0, 0.5), (lambda place: 1, 0.5), (lambda place: int(place < 0.5), 1.0)],
    ids=["all on the first", "all on the second", "the wrong way round"],
)
def test_pages_far_from_their_threads_are_told(monkeypatch, node, far):
    opt = stepped()
    Machine(monkeypatch, [0, 3], node)
    with pytest.warns(RuntimeWarning, match=r"^(50%|100%) of the optimizer's pages .* OMP_PROC"):
        # Parts are alike but for a chunk, and so are their samples.
        assert st.info(opt)["far"] == pytest.approx(far, abs=0.01)


def test_parameters_that_are_stepped_one_by_one(monkeypatch):
    """Each has parts of its own, and those that were never stepped are nobody's."""
    n = 1 << 20
    w = {key: np.zeros(n, np.float32) for key in "abc"}
    opt = st.AdamW(w)
    for key in "ab":
        opt.step({k: np.ones(n, np.float32) if k == key else None for k in w})
    machine = Machine(monkeypatch, [0, 2], lambda place: int(place * 4) % 2)
    assert st.info(opt)["far"] <= 0.02  # the last stepped first, then the other: two halves each
    bounds = [information.byte_bounds(w[key]) for key in "abc"]
    met = [sum(low <= x < high for x in machine.asked) for low, high in bounds]
    assert met[0] == pytest.approx(met[1], rel=0.01)  # each part has a sample more, or not
    assert met[0] > 100
    assert met[2] == 0


def test_pages_that_nobody_has_written_count_nowhere(monkeypatch):
    opt = stepped()
    Machine(monkeypatch, [0], lambda place: -2 if place < 0.9 else 0)
    assert st.info(opt)["far"] == 0.0
    Machine(monkeypatch, [0], lambda place: -2)
    assert st.info(opt)["far"] is None


def test_where_the_system_does_not_say(monkeypatch):
    opt = stepped()
    monkeypatch.setattr(pages, "nodes", lambda addresses: None)
    assert st.info(opt)["pages"] == {}
    assert st.info(opt)["far"] is None
    Machine(monkeypatch, [-1, 0], lambda place: 0)  # a thread on a processor that is not known
    assert st.info(opt)["far"] is None


def test_before_the_first_step():
    opt = st.AdamW(np.zeros(10))
    assert (st.info(opt)["pages"], st.info(opt)["far"]) == ({}, None)


@pytest.mark.parametrize("options", [{}, {"state_dtype": "q8"}, {"ema": 0.9}])
def test_samples_lie_in_the_arrays(monkeypatch, options):
    """Whatever the layout, and of parameters with and without a gradient."""
    w = [np.zeros((300, 400), np.float32).T, np.zeros((70, 3))[::2], np.zeros(0), np.zeros(())]
    opt = st.AdamW(w, **options)
    opt.step([np.ones((400, 300), np.float32), None, np.zeros(0), 1.0])
    Machine(monkeypatch, [0, 2], lambda place: 0)
    asked = []
    monkeypatch.setattr(pages, "nodes", lambda found: asked.extend(found) or [0] * len(found))
    with pytest.warns(RuntimeWarning):
        st.info(opt)
    own = [w[0], w[3]]
    own += [x for name in ("0", "3") for x in opt.state[name].values()]
    bounds = [information.byte_bounds(x) for x in own]
    assert asked
    for low, high in bounds[:2]:
        assert any(low <= x < high for x in asked)
    assert all(any(low <= x < high for low, high in bounds) for x in asked)


def test_what_is_no_optimizer():
    for x in ([1.0], np.zeros(3), st.models, st.LBFGS(np.ones(2))):
        with pytest.raises(TypeError, match=r"a \w+ has no plan of steps; expected an optimizer"):
            st.info(x)


def test_an_optimizer_inside_another():
    opt = stepped()
    assert st.info(st.SAM(opt, rho=0.1))["pages"] == st.info(opt)["pages"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_this_machine_says_where_pages_lie():
    found = st.info(stepped())
    if found["pages"]:  # a container may forbid to ask
        for shares in found["pages"].values():
            assert math.fsum(shares.values()) == pytest.approx(1.0)  # quotients, each rounded
    if found["memory_nodes"] == 1 and found["pages"]:
        assert found["far"] == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="binds threads as Linux does")
@pytest.mark.parametrize(
    "before", ["", pytest.param("import torch", marks=pytest.mark.torch)], ids=["alone", "torch"]
)
def test_threads_that_are_bound(before):
    """``OMP_PROC_BIND`` keeps each on a processor of its own, and results as they are."""
    if before:
        pytest.importorskip("torch")
    code = (
        "import os, numpy as np\n"
        "cpus = len(os.sched_getaffinity(0))\n"
        f"{before}\n"
        "import steepest as st\n"
        "w = np.ones(1 << 20, np.float32); opt = st.AdamW(w); opt.step(w / 3)\n"
        "st.set_num_threads(cpus)\n"
        "from steepest.kernels import threads\n"
        "n = st.get_num_threads()\n"
        "places = [tuple(threads.team().places(n)) for _ in range(3)]\n"
        "print(st.info()['threads_bound'], len(set(places)), len(set(places[0])) == n == cpus, "
        "opt.digest())"
    )
    told = {}
    for bind in ("close", "false"):
        places = ",".join(f"{{{cpu}}}" for cpu in sorted(os.sched_getaffinity(0)))
        environment = os.environ | {"OMP_PROC_BIND": bind, "OMP_PLACES": places}
        environment.pop("OMP_NUM_THREADS", None)
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        told[bind] = ran.stdout.split()
    assert told["close"][3] == told["false"][3]
    if st.info()["threads_of"] == "OpenMP":
        assert told["close"][:3] == ["True", "1", "True"]
        assert told["false"][0] == "False"
