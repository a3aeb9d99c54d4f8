"""Arrays of more than 2^31 elements, stepped once: every index is 64 bits wide.

    python tests/long/large.py                all cases, up to 9 GB of memory, one at a time
    python tests/long/large.py --case sgd

A number of 32 bits overflows at 2^31, and one that is multiplied by an element's size does before.
The elements around 2^31, at the end and some others are compared with the same step of small arrays
that hold just these; so are states of 8 bits, and the scales of their groups.
"""

import argparse
import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import steepest as st

N = 2**31 + 4096 * 3 + 7
GROUP = 4096  # elements, compared together
SCALED = 128  # elements that have one scale of q8
STARTS = (0, 2**30 - GROUP, 2**31 - 2 * GROUP, 2**31 - GROUP, 2**31, 2**31 + GROUP)


def spans() -> list[slice]:
    """What is compared: groups at the start, around 2^30 and 2^31, and all up to the end."""
    return [slice(start, start + GROUP) for start in STARTS] + [slice(2**31 + 2 * GROUP, N)]


def filled(x: np.ndarray, start: float) -> None:
    """Numbers that tell the elements of a group apart, and the groups that are compared."""
    pattern = np.linspace(start, start + 1.0, GROUP).astype(x.dtype)
    whole = x.size // GROUP * GROUP
    x[:whole].reshape(-1, GROUP)[...] = pattern
    x[whole:] = pattern[: x.size - whole]
    for k, span in enumerate(spans()):
        x[span] = np.linspace(start - k, start + k + 0.5, x[span].size).astype(x.dtype)


CASES: dict[str, tuple[bool, Callable[[Any], Any]]] = {
    "sgd": (True, lambda p: st.SGD(p, lr=0.125)),
    "clipped": (True, lambda p: st.SGD(p, lr=0.125, clip=st.clip.value(0.75))),
    "momentum in q8": (False, lambda p: st.SGD(p, lr=0.125, momentum=0.5, state_dtype="q8")),
}
"""Whether the gradient is an array of 4.3 GB, as the parameter is, or one number for all elements;
and what makes the optimizer. All are float16."""


def checked(name: str) -> tuple[int, float, float]:
    """How many elements were compared, the seconds of the step, and gigabytes in use at most."""
    whole, make = CASES[name]
    p = np.empty(N, np.float16)
    filled(p, -1.0)
    kept = [p[span].copy() for span in spans()]
    g = np.empty(N, np.float16) if whole else np.broadcast_to(np.float16(0.5), N)
    if whole:
        filled(g, 2.0)
    opt = make(p)
    began = time.monotonic()
    opt.step(g)
    seconds = time.monotonic() - began
    compared = 0
    for span, before in zip(spans(), kept, strict=True):
        twin = make(before)
        twin.step(np.ascontiguousarray(g[span]))
        assert p[span].tobytes() == before.tobytes(), f"{name}: {span} differs"
        for key, x in twin.state["0"].items():
            if np.shape(x):
                each = 1 if x.size == before.size else SCALED
                found = opt.state["0"][key][span.start // each :][: x.size]
                assert found.tobytes() == x.tobytes(), f"{name}: {key} of {span} differs"
        compared += before.size
    assert opt.updates == 1
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return compared, seconds, most


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=tuple(CASES), action="append")
    parser.add_argument("--report", type=Path, help="a file for the report")
    arguments = parser.parse_args(argv)
    lines, wrong = [], 0
    for name in arguments.case or CASES:
        gc.collect()  # the arrays of the case before
        try:
            compared, seconds, most = checked(name)
            lines.append(f"| {name} | {N:,} | {compared:,} | {seconds:.1f} | {most:.1f} |")
        except AssertionError as error:
            wrong += 1
            lines.append(f"| {name} | {N:,} | {error} | | |")
        print(lines[-1], flush=True)
    given = " ".join(sys.argv[1:] if argv is None else argv)
    text = "\n".join([
        "# Arrays of more than 2^31 elements", "",
        f"`python tests/long/large.py {given}`".replace(" `", "`"), "",
        "| case | elements | compared, all equal | seconds of the step | GB at most so far |",
        "|---|---|---|---|---|", *lines, "",
    ])  # fmt: skip
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
