"""Which states hold squares: the class says it, the kernel's names of them begin with v, and they
are never negative."""

import re
from pathlib import Path

import numpy as np
import pytest
from cases import CONFIGURATIONS, label

from steepest.kernels import stored_loops
from steepest.optimizers import RULES

FOLDER = Path(__file__).parents[2] / "src/steepest/kernels/leveled"
ARGUMENTS = {
    name: re.findall(r"real \*restrict (\w+)", arguments)[2:]
    for path in sorted(FOLDER.glob("*.pyx"))
    for name, arguments in re.findall(r"^cdef void (\w+)\(([^)]*)\)", path.read_text(), re.M)
}
"""The states of each kernel, as it names them."""
BY_ELEMENTS = [
    x for x in CONFIGURATIONS if not RULES[x[0]].prepares and RULES[x[0]].rule != "adammini"
]
"""Rules that use rows and columns take vectors by elements; but for one that has a row of them."""


@pytest.mark.parametrize(("rule", "arguments"), BY_ELEMENTS, ids=label)
def test_class_and_kernel_agree(rule, arguments):
    cls = RULES[rule]
    opt = cls([np.ones(3, np.float32)], **arguments)
    h = opt._groups[0].h | {"by_rows": False}
    kernels = {cls.coefficients(h | {"updates": t}, t)[0] for t in (1, 2, 3, 50)}
    for kernel in kernels:
        names = ARGUMENTS["dog" if kernel in ("ldog", "dowg") else kernel]
        of_class = [state in cls.squares for state in h["states"]]
        of_kernel = [stored_loops.holds_squares(name) for name in names[: len(of_class)]]
        assert of_kernel == of_class, (kernel, names, h["states"])


@pytest.mark.parametrize(("rule", "arguments"), BY_ELEMENTS, ids=label)
def test_squares_are_not_negative(rule, arguments):
    rng = np.random.default_rng(1)
    p = rng.standard_normal(50).astype(np.float32)
    opt = RULES[rule]([p], **arguments)
    for _ in range(20):
        opt.step([rng.standard_normal(50).astype(np.float32)])
        for key in RULES[rule].squares:
            assert (opt.state["0"].get(key, np.zeros(1)) >= 0).all(), key
