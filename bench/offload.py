"""Steps over lists beside the optimizer object, SAM, and what Offload hides.

    python -m bench.offload [--rounds 15] [--threads 2]

Prints four tables in Markdown, each figure a median over rounds in which all take turns, with
quartiles where it is a ratio:

``steepest.functional`` beside ``opt.step`` over the same shapes, bound at each step and before.

A step of SAM beside SGD's: SAM's two passes move 28 bytes an element, SGD's one 12.

A model on the CPU under ``steepest.torch.Offload`` with a link whose copies, in threads that sleep,
take as long as the steps: the backward pass and the steps alone, and both together, each with one
thread. The backward pass sleeps, as one on an accelerator does for the CPU, or is one here.

What is left for ``step()`` when all gradients have arrived, with a clip by the norm of all, which
is measured by the step, or as they arrive; and with copies back beside.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

import steepest as st
import steepest.torch as stt
from bench.cases import bert_base
from steepest.torch.links import Link

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "BERT base, 199 tensors": bert_base(),
    "six tensors of 784 x 128 and less": (
        (784, 128), (128,), (128, 128), (128,), (128, 10), (10,),
    ),
    "1000 of 100": ((100,),) * 1000,
    "one of 10": ((10,),),
}  # fmt: skip
SAMS: dict[str, tuple[tuple[int, ...], ...]] = {
    "one of 20 000 000": ((20_000_000,),),
    "six tensors of 784 x 128 and less": SHAPES["six tensors of 784 x 128 and less"],
    "1000 of 100": SHAPES["1000 of 100"],
}


def in_turns(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The times of each in rounds: in an order that rotates, several calls where they are short."""
    calls = {}
    for name, step in steps.items():
        step()
        start = time.perf_counter()
        step()
        calls[name] = max(1, int(2e-3 / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            for _ in range(calls[name]):
                steps[name]()
            times[name].append((time.perf_counter() - start) / calls[name])
    return times


def ratio(times: list[float], base: list[float]) -> str:
    low, middle, high = statistics.quantiles((x / y for x, y in zip(times, base, strict=True)), n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def arrays(shapes: tuple[tuple[int, ...], ...]) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(2))
    return params, grads


def functional(rounds: int) -> None:
    print("\n| AdamW, float32 | object | bound | bound, new lr | `functional.step` |")
    print("|---|---|---|---|---|")
    for name, shapes in SHAPES.items():
        times = in_turns(_doors(shapes), rounds)
        base = times["object"]
        cells = [ratio(own, base) for key, own in times.items() if key != "object"]
        print(f"| {name} | {1e6 * statistics.median(base):.1f} us | {' | '.join(cells)} |")


def _doors(shapes: tuple[tuple[int, ...], ...]) -> dict[str, Callable[[], Any]]:
    params, grads = arrays(shapes)
    twins, others = ([x.copy() for x in params] for _ in range(2))
    opt = st.AdamW(params)
    bound = st.functional.prepare("adamw", twins, *st.functional.new_states("adamw", twins))
    states, counts = st.functional.new_states("adamw", others)
    rates = iter(np.linspace(1e-3, 1e-4, 10**6).tolist())
    return {
        "object": lambda: opt.step(grads),
        "bound": lambda: bound.step(grads),
        "new lr": lambda: bound.step(grads, lr=next(rates)),
        "step": lambda: st.functional.step("adamw", others, grads, states, counts),
    }


def sam(rounds: int) -> None:
    print("\n| SAM over SGD | SGD alone | SAM: both passes and SGD's step | per byte of SGD's |")
    print("|---|---|---|---|")
    for name, shapes in SAMS.items():
        times = in_turns(_with_sam(shapes), rounds)
        each = [(x - y) / 28 / (y / 12) for x, y in zip(times["sam"], times["sgd"], strict=True)]
        sizes = (1e6 * statistics.median(own) for own in times.values())
        print("|", name, *(f"| {x:.1f} us" for x in sizes), f"| {statistics.median(each):.2f} |")


def _with_sam(shapes: tuple[tuple[int, ...], ...]) -> dict[str, Callable[[], Any]]:
    params, grads = arrays(shapes)
    twins = [x.copy() for x in params]
    sgd, over = st.SGD(params, lr=1e-3), st.SAM(st.SGD(twins, lr=1e-3), rho=0.05)

    def both() -> None:
        over.perturb(grads)
        over.step(grads)

    return {"sgd": lambda: sgd.step(grads), "sam": both}


class Slow(Link):
    """Copies beside all else, as by a device, that take so many seconds for each element."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._down, self._up = (ThreadPoolExecutor(1) for _ in range(2))
        self._hosts: dict[Any, Any] = {}
        self._sent: list[Any] = []

    def twin(self, p: Any) -> Any:
        return torch.nn.Parameter(p.detach().clone())

    def _copy(self, source: Any, target: Any) -> None:
        start = time.perf_counter()
        with torch.no_grad():
            target.copy_(source)
        time.sleep(max(0.0, self.seconds * source.numel() - (time.perf_counter() - start)))

    def fetch(self, grad: Any, p: Any) -> Callable[[], Any]:
        host = self._hosts.get(p)
        if host is None:
            host = self._hosts[p] = torch.empty_like(grad)
        done = self._down.submit(self._copy, grad, host)
        return lambda: (done.result(), host)[1]

    def send(self, twin: Any, p: Any) -> None:
        self._sent.append(self._up.submit(self._copy, twin.detach(), p))

    def join(self) -> None:
        while self._sent:
            self._sent.pop().result()


class SlowOffload(stt.Offload):
    def _link_to(self, device: Any) -> Link:
        return Slow()


class OnDevice(torch.autograd.Function):
    """A layer whose backward pass takes its time elsewhere, as on an accelerator."""

    seconds = 0.0
    value: float | None = None

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.save_for_backward(w)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        time.sleep(OnDevice.seconds)
        [w] = ctx.saved_tensors
        return g, torch.empty_like(w) if OnDevice.value is None else torch.full_like(
            w, OnDevice.value
        )


def overlap(rounds: int, layers: int = 64, width: int = 1024, rows: int = 256) -> None:
    torch.set_num_threads(1)
    st.set_num_threads(1)
    torch.manual_seed(0)
    each = [torch.nn.Linear(width, width, bias=False).bfloat16() for _ in range(layers)]
    model = torch.nn.Sequential(*each)
    optimizer = SlowOffload(model, stt.AdamW, lr=1e-4)
    [link] = optimizer._links.values()
    held = {p: torch.randn_like(p) for p in model.parameters()}
    elements = sum(p.numel() for p in held)
    x = torch.randn(rows, width).bfloat16()

    def steps() -> None:
        for p, g in held.items():
            p.grad = g
        optimizer.step()

    def here() -> Any:
        return model(x).square().mean()

    def there() -> Any:
        y = torch.ones(1)
        for layer in each:
            y = OnDevice.apply(y, layer.weight)
        return y.sum()

    def backward(loss: Any) -> None:
        with optimizer.no_sync():
            loss.backward()

    def both(loss: Any) -> None:
        loss.backward()
        optimizer.step()

    def timed(function: Callable[..., Any], *given: Any) -> float:
        start = time.perf_counter()
        function(*given)
        seconds = time.perf_counter() - start
        optimizer.zero_grad()
        return seconds

    steps()
    alone = statistics.median(timed(steps) for _ in range(7))
    OnDevice.seconds = alone / layers
    print(
        f"\n| {layers} layers, {elements / 1e6:.1f} million bfloat16 parameters, float32 masters | "
        "backward | steps | together | of the larger |"
    )
    print("|---|---|---|---|---|")
    for name, loss, delay in (
        ("backward elsewhere, copies as fast as they are", there, 0.0),
        ("backward elsewhere, copies as long as steps", there, alone),
        (f"backward on a core of its own, batch {rows}, copies as long as steps", here, alone),
    ):
        times: dict[str, list[float]] = {"backward": [], "steps": [], "both": []}
        for _ in range(rounds):
            link.seconds = 0.0
            times["backward"].append(timed(backward, loss()))
            times["steps"].append(timed(steps))
            link.seconds = delay / elements
            times["both"].append(timed(both, loss()))
        larger = [max(a, b) for a, b in zip(times["backward"], times["steps"], strict=True)]
        cells = [f"{1e3 * statistics.median(own):.1f} ms" for own in times.values()]
        print(f"| {name} | {' | '.join(cells)} | {ratio(times['both'], larger)} |")


class Measuring(SlowOffload):
    on_arrival = True

    def _to_measure(self) -> dict[Any, int] | None:
        return super()._to_measure() if self.on_arrival else None


def clipped(rounds: int, layers: int = 64, width: int = 1024) -> None:
    torch.set_num_threads(1)
    st.set_num_threads(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
    optimizer = Measuring(model, stt.AdamW, lr=1e-4, clip=st.clip.global_norm(1.0))
    [link] = optimizer._links.values()
    elements = sum(p.numel() for p in model.parameters())
    last = 0.0
    times: dict[str, list[float]] = {
        "measured in the step": [],
        "measured as gradients arrive": [],
        "the same, and copies back half as long as that": [],
    }
    for _ in range(rounds + 1):
        for k, own in enumerate(times.values()):
            optimizer.on_arrival = k > 0
            link.seconds = 0.5 * last / elements if k > 1 else 0.0
            last = _left(model, optimizer)
            own.append(last)
    print("\n| norms, 67 million float32 | step() | ratio |\n|---|---|---|")
    base = times["measured in the step"][1:]
    for name, own in times.items():
        cells = f"{1e3 * statistics.median(own[1:]):.1f} ms | {ratio(own[1:], base)}"
        print(f"| {name} | {cells} |")


def _left(model: Any, optimizer: Any) -> float:
    """The time of a step when all gradients have arrived."""
    optimizer.zero_grad()
    y = torch.ones(1)
    for layer in model:
        y = OnDevice.apply(y, layer.weight)
    OnDevice.seconds, OnDevice.value = 0.0, 1e-3
    y.sum().backward()
    OnDevice.value = None
    optimizer.synchronize()
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    st.set_num_threads(given.threads)
    functional(given.rounds)
    sam(given.rounds)
    clipped(given.rounds)
    overlap(given.rounds)
    print(f"\n{st.info()['level']}, {given.threads} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
