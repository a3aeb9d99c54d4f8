"""What states take and what a step needs for a moment, measured on the process."""

import sys
from typing import Any

import numpy as np
import own_process
import pytest
from cases import brief, use_threads

import steepest as st
from bench import measure
from steepest import codecs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")

MEGABYTE = 1_000_000
SLACK = 5 * MEGABYTE
"""For what the kernel does not count exactly, and huge pages of 2 MB."""

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "float64": ("float64", {}),
    "bfloat16": ("bfloat16", {}),
    "float16": ("float16", {"state_dtype": "float16"}),
    "all bfloat16": ("bfloat16", {"state_dtype": "bfloat16"}),
    "stochastic": ("bfloat16", {"rounding": "stochastic"}),
    "q8": ("float32", {"state_dtype": "q8"}),
    "bfloat16 and q8": ("bfloat16", {"state_dtype": "q8"}),
    **{
        f"{master} and q8": ("bfloat16", {"state_dtype": "q8", "master": master})
        for master in codecs.MASTERS
    },
    "copies": ("float32", {"copies": "bfloat16"}),
    "clipped": ("bfloat16", {"state_dtype": "q8", "clip": st.clip.global_norm(1e-3)}),
}


def zeros(n: int, name: str) -> np.ndarray:
    """Zeros of a format, in memory that has been written to."""
    x = np.empty(n, codecs.BFLOAT16 if name == "bfloat16" else name)
    x.view(np.uint8)[...] = 0
    return x


class Stepped:
    """An optimizer and gradients, as ``measure.allocated`` takes them."""

    name = "steepest"

    def __init__(self, n: int, name: str, options: dict[str, Any]) -> None:
        self.params, self.gradient = zeros(n, name), zeros(n, name)
        self.gradient.view(np.uint8)[...] = 1  # a small number in any format
        if "copies" in options:
            options = options | {"copies": zeros(n, options["copies"])}
        self.optimizer = st.AdamW(self.params, **options)

    def prepare(self) -> None:
        pass

    def step(self) -> None:
        self.optimizer.step(self.gradient)


@pytest.mark.parametrize("threads", brief([1, 3], [3]))
@pytest.mark.parametrize("which", FORMATS)
def test_a_step_needs_no_memory_of_the_parameters_size(which: str, threads: int) -> None:
    n = 16 * MEGABYTE
    use_threads(threads)
    stepped = Stepped(n, *FORMATS[which])
    stepped.step()  # states are read and written for the first time
    assert measure.peak(measure.allocated(stepped)) < SLACK < n / 3


def test_eight_bits_take_two_bytes() -> None:
    taken = own_process.run("""
import numpy as np
import steepest as st
from bench import measure
from steepest.memory import formats
n = 128_000_000  # so many that a few huge pages do not matter
params, gradient = (np.empty(n, formats.named("bfloat16")) for _ in range(2))
params[...] = gradient[...] = 0
before = measure._status("VmRSS")
optimizer = st.AdamW(params, state_dtype="q8")
optimizer.step(gradient)
print(measure._status("VmRSS") - before)
""")
    assert 1.9 * 128 * MEGABYTE < int(taken) < 2.1 * 128 * MEGABYTE
