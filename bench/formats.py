"""Steps with formats of 16 and 8 bits, as multiples of the time of torch's fused AdamW in float32.

    python bench/formats.py [--rounds 9] [--size 20000000] [--threads 2]
                            [--rules | --peers]

One tensor, through steepest.torch. Every round steps each once, so that all meet the same load of
the machine; the figure is the median over the rounds of the ratio to torch's step of that round,
with the quartiles. Prints a table in Markdown. With ``--rules`` the cases are all element-wise
rules with states of 8 bits; with ``--peers`` 8 bits here, in bitsandbytes and in torchao, where
these are installed.
"""

import argparse
import contextlib
import importlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

import steepest as st
import steepest.torch as stt
from steepest.optimizers import RULES

SHORT, FULL, HALF = torch.bfloat16, torch.float32, torch.float16

Make = Callable[[Any, Any], Any]


def ours(rule: str = "AdamW", **options: Any) -> Make:
    return lambda params, lr: getattr(stt, rule)(params, lr=lr, **options)


def copied(params: Any, lr: float) -> Any:
    return stt.AdamW(params, lr=lr, copies=[p.detach().to(SHORT) for p in params])


def theirs(params: Any, lr: float) -> Any:
    return torch.optim.AdamW(params, lr=lr, fused=True)


CASES: dict[str, tuple[Any, Any, Make]] = {
    # what: parameter, gradient, optimizer
    "torch fused AdamW, float32": (FULL, FULL, theirs),
    "torch fused AdamW, all bfloat16": (SHORT, SHORT, theirs),
    "AdamW, float32": (FULL, FULL, ours()),
    "AdamW, float32, bfloat16 gradient": (FULL, SHORT, ours()),
    "AdamW, float32, bfloat16 copies": (FULL, FULL, copied),
    "AdamW, float32, bfloat16 gradient and copies": (FULL, SHORT, copied),
    "AdamW, float32, bfloat16 states": (FULL, FULL, ours(state_dtype="bfloat16")),
    "AdamW, bfloat16, float32 states": (SHORT, SHORT, ours()),
    "AdamW, bfloat16 with split16, float32 states": (SHORT, SHORT, ours(master="split16")),
    "AdamW, all bfloat16": (SHORT, SHORT, ours(state_dtype="bfloat16")),
    "AdamW, float16, float32 states": (HALF, HALF, ours()),
    "AdamW, bfloat16, float32 states, clipped": (
        SHORT, SHORT, ours(clip=st.clip.global_norm(1.0)),
    ),
    "AdamW, float32, q8 states": (FULL, FULL, ours(state_dtype="q8")),
    "AdamW, bfloat16, q8 states": (SHORT, SHORT, ours(state_dtype="q8")),
    "AdamW, bfloat16 with split16, q8 states": (
        SHORT, SHORT, ours(master="split16", state_dtype="q8"),
    ),
    "Lion, float32, q8 states": (FULL, FULL, ours("Lion", state_dtype="q8")),
    "Lion, bfloat16, float32 states": (SHORT, SHORT, ours("Lion")),
    "Lion, all bfloat16": (SHORT, SHORT, ours("Lion", state_dtype="bfloat16")),
    "SGD with momentum, all bfloat16": (
        SHORT, SHORT, ours("SGD", momentum=0.9, state_dtype="bfloat16"),
    ),
}  # fmt: skip


def of_rules() -> dict[str, tuple[Any, Any, Make]]:
    """All element-wise rules that have states which may have 8 bits."""
    found = dict(list(CASES.items())[:1])
    for rule in RULES.values():
        if rule.needs == "element-wise" and not rule.prepares:
            name = rule.__name__
            try:
                rule(np.ones(1 << 12, np.float32), state_dtype="q8")
            except ValueError:
                continue  # has no states, or none but copies of the parameter
            found[f"{name}, q8 states"] = (FULL, FULL, ours(name, state_dtype="q8"))
    return found


def of_peers() -> dict[str, tuple[Any, Any, Make]]:
    """AdamW with states of 8 bits, here and elsewhere."""
    chosen = "torch fused AdamW, float32", "AdamW, float32, q8 states"
    found = {what: CASES[what] for what in chosen}
    for module in ("bitsandbytes", "torchao"):
        with contextlib.suppress(ImportError):
            optimizer = importlib.import_module(f"{module}.optim").AdamW8bit
            found[f"{module} AdamW8bit"] = (FULL, FULL, partial(_of_peer, optimizer))
    return found


def _of_peer(optimizer: Any, params: Any, lr: float) -> Any:
    return optimizer(params, lr=lr)


def made(size: int, of_p: Any, of_g: Any, make: Make) -> Any:
    p = torch.nn.Parameter(torch.randn(size).to(of_p))
    if of_g != of_p:
        p.grad_dtype = of_g
    p.grad = (0.01 * torch.randn(size)).to(of_g)
    optimizer = make([p], 1e-4)
    for _ in range(2):
        optimizer.step()
    return optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=20_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rules", action="store_true", help="all element-wise rules, 8 bits")
    parser.add_argument("--peers", action="store_true", help="8 bits in other libraries")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    st.set_num_threads(given.threads)
    torch.manual_seed(0)
    cases = of_rules() if given.rules else of_peers() if given.peers else CASES
    optimizers = {what: made(given.size, *case) for what, case in cases.items()}
    times: dict[str, list[float]] = {what: [] for what in cases}
    for _ in range(given.rounds):
        for what, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            times[what].append(time.perf_counter() - start)
    base = times[next(iter(cases))]
    print("| parameter and gradient, states | time, torch fused AdamW in float32 = 1 |\n|---|---|")
    for what, own in times.items():
        ratios = sorted(x / y for x, y in zip(own, base, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {what} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    print(f"\n{st.info()['level']}, {given.threads} threads, {given.size} parameters, "
          f"{given.rounds} rounds, torch {torch.__version__}; "
          f"1 is {statistics.median(base) * 1e3:.2f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
