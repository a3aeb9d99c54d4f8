"""The examples of the gallery, run whole, and what each of them says of its numbers."""

import runpy
import shutil
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "gallery"


def paths(x):
    """Gradient descent is the slowest in the valley; only momentum leaves its hollow."""
    valley, hills = ({name: both[k] for name, both in x["heights"].items()} for k in (0, 1))
    assert max(valley, key=valley.get) == "SGD" and min(valley.values()) > 0
    stay = {round(hills.pop(name), 3) for name in ("SGD", "Adam", "Rprop")}
    assert len(stay) == 1 and 0 < hills["SGD with momentum"] < min(stay)


def schedules(x):
    """Rates that fall to 0 end lower, and settle."""
    last = {name: loss[-1] for name, loss in x["losses"].items()}
    jumps = {name: max(loss[-3:]) - min(loss[-3:]) for name, loss in x["losses"].items()}
    constant, jump = last.pop("constant"), jumps.pop("constant")
    assert all(loss < 0.6 * constant for loss in last.values())
    assert all(size < 0.5 * jump for size in jumps.values())


def clipping(x):
    """Without a clip it grows by orders; with one it ends within three percent."""
    curves = {name: curve[-1] for name, curve in x["curves"].items()}
    assert curves.pop("no clip") > 1e10
    reached = x["model"].loss(x["params"], x["x"][x["good"]], x["y"][x["good"]])
    assert all(reached < loss < 1.03 * reached for loss in curves.values())


def sparse(x):
    """Most weights of FTRL are 0, and none of AdamW's; the ten are found."""
    count = {name: np.count_nonzero(w) for name, w in x["weights"].items()}
    assert count["FTRL, lambda1"] < 50 and count["AdamW"] == count["AdamW, l1"] == 500
    assert np.count_nonzero(x["weights"]["FTRL, lambda1"][:10]) == 10


def eight_bits(x):
    """A seed changes the loss by more than the format does."""
    assert x["format_"] < 0.2 * x["seeds"] and x["size"]["q8"] < 0.3 * x["size"]["float32"]


def own_rule(x):
    """Below gradient descent at both rates."""
    last = {name: curve[-1] for name, curve in x["curves"].items()}
    assert last.pop("PowerSign") < min(last.values())


def transformer(x):
    """Both learn, and are one curve."""
    assert x["difference"] < 0.01 and fmean(x["ours"][-10:]) < 0.6 * x["ours"][0]


def resuming(x):
    """The bits of a run in one go."""
    assert x["epochs"] == [5, 6, 7, 8, 9, 10]
    assert x["same"] and x["history"]["loss"] == x["continued"]["loss"]
    assert x["saved"].state_dict["updates"] == 160 and len(x["history"]) == 10


def mpi(x):
    """State in proportion; losses equal up to rounding."""
    sizes = {ranks: result["bytes"] for ranks, result in x["found"].items()}
    assert {ranks: len(size) for ranks, size in sizes.items()} == {1: 1, 2: 2, 4: 4}
    assert all(max(size) < 1.1 * sizes[1][0] / ranks for ranks, size in sizes.items())
    assert [result["samples"] for result in x["found"].values()] == [[3200], [1600] * 2, [800] * 4]
    losses = [result["loss"] for result in x["found"].values()]
    assert max(losses) - min(losses) < 1e-9 * losses[0]


def tuning(x):
    """The best of 40 is better than the default, also on samples it was not chosen by."""
    assert len(x["tuned"]) == 40 and len(x["done"]) + len(x["pruned"]) == 40 and x["pruned"]
    test = [
        x["net"].loss(x["fit"](values)[0], x["x_test"], x["y_test"])
        for values in (x["best"], x["default"])
    ]
    assert test[0] < test[1]


CLAIMS = [
    paths,
    schedules,
    clipping,
    sparse,
    eight_bits,
    own_rule,
    transformer,
    resuming,
    mpi,
    tuning,
]


def test_every_example_has_its_claim():
    names = [f"plot_{k:02}_{claim.__name__}.py" for k, claim in enumerate(CLAIMS, 1)]
    assert names == [path.name for path in sorted(FOLDER.glob("plot_*.py"))]


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(x, marks=[pytest.mark.torch] * (x is transformer), id=x.__name__)
        for x in CLAIMS
    ],
)
def test_an_example_ends_with_what_it_says(claim, capsys):
    plt = pytest.importorskip("matplotlib.pyplot")
    threads = pytest.importorskip("torch").get_num_threads() if claim is transformer else 0
    if claim is mpi:
        pytest.importorskip("mpi4py")
        if not shutil.which("mpiexec"):
            pytest.skip("there is no mpiexec")
    [path] = FOLDER.glob(f"plot_*_{claim.__name__}.py")
    plt.switch_backend("agg")
    try:
        claim(runpy.run_path(str(path)))
        assert plt.get_fignums() and capsys.readouterr().out.strip()
    finally:
        plt.close("all")
        if threads:
            pytest.importorskip("torch").set_num_threads(threads)
