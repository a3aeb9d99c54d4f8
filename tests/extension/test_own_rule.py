"""The example of a package with a rule of its own, built in an environment of its own."""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from steepest import reference
from steepest.extension import build as building
from steepest.kernels import dispatch

pytestmark = pytest.mark.exhaustive  # compiles for half a minute

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_rule"


def command(*words, **options):
    """Runs a command without this environment's variables; what it printed."""
    kept = {k: x for k, x in os.environ.items() if not k.startswith(("PYTHON", "STEEPEST", "PIP"))}
    done = subprocess.run(
        list(map(str, words)), env=kept, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A new environment with the built package: its Python, and the folder it was built in.

    It is clean but for what the build and the tests need, which it finds where this process does,
    so that no network is needed.
    """
    tools = ("steepest", "numpy", "setuptools", "Cython", "pip", "pytest")
    for tool in tools:
        pytest.importorskip(tool)
    top = tmp_path_factory.mktemp("own")
    venv.create(top / "venv")
    scripts = top / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / ("python.exe" if sys.platform == "win32" else "python")
    site = Path(
        command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    homes = dict.fromkeys(str(Path(find_spec(tool).origin).parents[1]) for tool in tools)
    (site / "tools.pth").write_text(
        "".join(f"import site; site.addsitedir({home!r})\n" for home in homes)
    )
    shutil.copytree(
        EXAMPLE, top / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "*cache*")
    )
    install = ("-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "--no-deps")
    command(python, *install, top / "source")
    return python, top / "source"


def test_it_passes_its_own_tests(built):
    """Which compare its kernels with its reference, to the last bit."""
    python, folder = built
    shown = command(
        python, "-m", "pytest", "-q", "--doctest-modules", "--pyargs", "qhadam", "tests", cwd=folder
    )
    assert re.search(r"[1-9]\d* passed", shown)
    assert not re.search("failed|skipped|error", shown)


def test_it_is_installed_for_every_level(built):
    python, _ = built
    code = "import qhadam, os; print(os.path.dirname(qhadam.__file__))"
    files = [
        path.name.partition(".")[0] for path in Path(command(python, "-c", code).strip()).iterdir()
    ]
    levels = {f"kernels_{level}" for level in building.platform_levels()}
    assert {name for name in files if name.startswith("kernels")} == levels
    code = (
        "import qhadam; from steepest.kernels import dispatch as d\n"
        "print(*(d.load(level).rules.modules['qhadam'] for level in d.available()))"
    )
    used = command(python, "-c", code).split()
    assert used == [f"qhadam.kernels_{level}" for level in dispatch.available()]


REGISTERS = {"base": "xmm", "v3": "ymm", "v4": "zmm"}


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="reads code of x86-64"
)
@pytest.mark.parametrize("level", REGISTERS)
def test_its_loops_are_vectorised(built, level):
    """Both its square root and its division, for float and double, in the level's full width."""
    python, _ = built
    code = f"import importlib.util as u; print(u.find_spec('qhadam.kernels_{level}').origin)"
    path = command(python, "-c", code).strip()
    listing = command("objdump", "-d", "--no-show-raw-insn", path)
    for operation in ("sqrtps", "sqrtpd", "divps", "divpd"):
        assert re.search(rf"\bv?{operation}\b.*%{REGISTERS[level]}\d+", listing), operation


def test_it_takes_part_in_what_steepest_offers(built, tmp_path):
    """Clipping, decay, schedules, groups, checkpoints, the list."""
    python, _ = built
    code = """
import numpy as np, qhadam, steepest as st
from steepest import cli

def made():
    params = {"w": np.ones((3, 4), np.float32), "b": np.zeros(4, np.float32)}
    return params, qhadam.QHAdam(
        params, lr=st.schedules.cosine(0.1, steps=20), weight_decay=0.1, exclude="vectors",
        decay_mode="decoupled", clip=st.clip.global_norm(1.0), ema=0.9,
    )

def step(opt, t):
    opt.step({"w": np.full((3, 4), np.cos(t), np.float32), "b": np.full(4, 0.5, np.float32)})

params, opt = made()
for t in range(10):
    step(opt, t)
    if t == 4:
        st.save("half.safetensors", opt, params)
again, resumed = made()
st.load("half.safetensors", resumed, again)
for t in range(5, 10):
    step(resumed, t)
for name in params:
    np.testing.assert_array_equal(again[name], params[name])
cli.main(["list"])
"""
    pytest.importorskip("safetensors")
    shown = command(python, "-c", code, cwd=tmp_path)
    assert re.search(r"\nqhadam +QHAdam: Adam whose moments", shown)
    assert shown.count("28 (16 read, 12 written)") >= 2


@pytest.mark.torch
@pytest.mark.parametrize("decoupled", [False, True])
def test_its_reference_is_what_another_package_computes(monkeypatch, decoupled):
    """pytorch_optimizer's QHAdam, which corrects its moments by a running count of weights."""
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("pytorch_optimizer").QHAdam
    monkeypatch.setattr(reference, "RULES", dict(reference.RULES))
    runpy.run_path(str(EXAMPLE / "src" / "qhadam" / "reference.py"))
    rng = np.random.default_rng(0)
    p = rng.standard_normal(50)
    state = {"exp_avg": np.zeros(50), "exp_avg_sq": np.zeros(50)}
    hyper = {"lr": 0.0137, "betas": (0.83, 0.9871), "nus": (0.61, 0.87), "eps": 3e-3}
    twin = torch.nn.Parameter(torch.tensor(p))
    theirs = peer([twin], weight_decay=0.07, weight_decouple=decoupled, **hyper)
    mode = "decoupled" if decoupled else "l2"
    for t in range(1, 101):
        g = rng.standard_normal(50)
        twin.grad = torch.tensor(g)
        theirs.init_group(theirs.param_groups[0])
        weights = theirs.state[twin]  # kept in float32, which costs it seven digits
        for name in ("beta1_weight", "beta2_weight"):
            weights[name] = weights[name].double()
        theirs.step()
        reference.step("qhadam", p, g, state, t, weight_decay=0.07, decay_mode=mode, **hyper)
    np.testing.assert_allclose(p, twin.detach().numpy(), rtol=1e-12)
