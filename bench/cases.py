"""What is measured: shapes, rules, clipping.

A case is a list of shapes; a workload is a case stepped by one rule, with or without clipping by
the global norm. Most cases are stepped by AdamW, and the case ``large`` by every rule of the
registry but those for matrices, which have their own: a new rule has its row without a line written
here. Three cases are the parameters of real models, which are stepped as in a training loop of
PyTorch; those of the first are also the case ``layers``, for the rules with sums over layers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steepest.optimizers import RULES

Shape = tuple[int, ...]

RIVALS = 6
"""The most rivals that hold arrays at a time."""

MAX_NORM = 1.0
"""The global norm that clipped workloads are clipped to; the gradients start above it."""

SCHEDULES = ("cosine", "LambdaLR", "OneCycleLR")
"""Schedules of the learning rate. NumPy's optimizers have the first and the last as values, and the
rate of the second is written into ``param_groups``; PyTorch's are stepped by a scheduler."""

# The parameters of a perceptron of two hidden layers.
_MLP: tuple[Shape, ...] = ((64, 128), (128,), (128, 64), (64,), (64, 10), (10,))

# Hyper-parameters that change which arrays a rule keeps, measured besides the defaults.
_VARIANTS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"momentum": 0.9}],
    "muon": [{"ns_dtype": "bfloat16"}],  # as PyTorch's own, by its products
}


@dataclass(frozen=True)
class Case:
    """Parameters of these shapes, float32.

    steps: how many steps are timed in a round. fresh: gradients are new arrays at every step.
    streams: too large for the caches, so that memory is the limit, the yardstick is measured, and
    one visit to the gradient is far from the next. model: the parameters of a real model, where
    more optimizers take part, and a clipped step ends with ``zero_grad``. note: what differs from
    the name's promise.
    """

    name: str
    shapes: tuple[Shape, ...]
    steps: int = 1
    fresh: bool = False
    streams: bool = False
    model: bool = False
    note: str = ""

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes))

    @property
    def title(self) -> str:
        """The case in words, with the sizes that were used."""
        count = f"{len(self.shapes)} tensor{'s' * (len(self.shapes) > 1)}"
        if len(set(self.shapes)) == 1:
            return f"{count} of {grouped(math.prod(self.shapes[0]))}"
        return f"{self.note or self.name}: {count}, {grouped(self.parameters)} parameters"


def grouped(n: int) -> str:
    """A number with its digits in threes.

    >>> grouped(20_000_000)
    '20 000 000'
    """
    return f"{n:,}".replace(",", " ")


@dataclass(frozen=True)
class Workload:
    """A case, stepped by a rule with these hyper-parameters; clip is a global norm or None.

    schedule: what changes the learning rate at every step, one of SCHEDULES, or None.
    """

    case: Case
    rule: str
    hyper: Mapping[str, Any] = field(default_factory=dict)
    clip: float | None = None
    schedule: str | None = None

    @property
    def title(self) -> str:
        shown = [RULES[self.rule].__name__, *(f"{k} {v}" for k, v in self.hyper.items())]
        clipped = " with clipping" if self.clip is not None else ""
        return " ".join(shown) + clipped + (f" with {self.schedule}" if self.schedule else "")


def gpt2_small(divisor: int = 1) -> tuple[Shape, ...]:
    """The shapes of GPT-2 small's parameters, its axes divided by `divisor`.

    The axes are the width, the vocabulary and the positions.

    >>> sum(map(math.prod, gpt2_small()))
    124439808
    """
    width, words, positions = 768 // divisor, 50257 // divisor, 1024 // divisor
    norm: list[Shape] = [(width,), (width,)]

    def dense(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    layer = [
        *norm, *dense(width, 3 * width), *dense(width, width),
        *norm, *dense(width, 4 * width), *dense(4 * width, width),
    ]  # fmt: skip
    return ((words, width), (positions, width), *(12 * layer), *norm)


def bert_base(divisor: int = 1) -> tuple[Shape, ...]:
    """The shapes of BERT base's parameters, uncased and with its pooler.

    The width, the vocabulary and the positions are divided by `divisor`.

    >>> sum(map(math.prod, bert_base()))
    109482240
    """
    width, words, positions = 768 // divisor, 30522 // divisor, 512 // divisor
    norm: list[Shape] = [(width,), (width,)]

    def dense(inputs: int, outputs: int) -> list[Shape]:
        return [(outputs, inputs), (outputs,)]

    layer = [
        *(4 * dense(width, width)), *norm,
        *dense(width, 4 * width), *dense(4 * width, width), *norm,
    ]  # fmt: skip
    embeddings = [(words, width), (positions, width), (2, width), *norm]
    return (*embeddings, *(12 * layer), *dense(width, width))


def resnet50(divisor: int = 1) -> tuple[Shape, ...]:
    """The shapes of ResNet-50's parameters: convolutions, batch norms and the last layer.

    The numbers of channels and classes are divided by `divisor`.

    >>> sum(map(math.prod, resnet50()))
    25557032
    """

    def convolution(inputs: int, outputs: int, size: int) -> list[Shape]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # with its batch norm

    channels = 64 // divisor
    shapes = convolution(3, channels, 7)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage // divisor
        for block in range(blocks):
            shapes += convolution(channels, width, 1)
            shapes += convolution(width, width, 3)
            shapes += convolution(width, 4 * width, 1)
            if block == 0:
                shapes += convolution(channels, 4 * width, 1)  # beside the block
            channels = 4 * width
    classes = 1000 // divisor
    return (*shapes, (classes, channels), (classes,))


MODELS: dict[str, tuple[str, Callable[[int], tuple[Shape, ...]]]] = {
    "resnet50": ("ResNet-50", resnet50),
    "bert": ("BERT base", bert_base),
    "gpt2": ("GPT-2 small", gpt2_small),
}
"""Real models: what they are called, and their shapes."""


def _model(name: str, smallest_divisor: int, memory: int) -> Case:
    """The shape list as large as 16 bytes a parameter and rival fit into `memory` bytes."""
    called, shapes = MODELS[name]
    divisor = smallest_divisor
    while True:
        note = called + (f", axes divided by {divisor}" if divisor > 1 else "")
        case = Case(name, shapes(divisor), streams=True, model=True, note=note)
        if case.parameters * 16 * RIVALS <= memory or divisor == 16:
            return case
        divisor *= 2


def cases(memory: int, quick: bool = False) -> list[Case]:
    """All cases, those of many parameters within `memory` bytes; smaller and fewer steps if quick.

    The large tensor has two axes, so that rules for matrices can step it.
    """
    models = [_model(name, 4 if quick else 1, memory) for name in MODELS]
    layers = replace(models[0], name="layers", model=False)
    if quick:
        return [
            Case("large", ((2000, 2000),), streams=True),
            *models,
            Case("1000x100", ((100,),) * 1000, steps=2, fresh=True),
            Case("100x10000", ((10_000,),) * 100, steps=2, fresh=True),
            Case("1x10", ((10,),), steps=50, fresh=True),
            Case("mlp", _MLP, steps=20, fresh=True, note="a small perceptron"),
            Case("50x1000", ((1000,),) * 50, steps=10, fresh=True),
            layers,
            Case("matrix", ((256, 256),)),
        ]
    return [
        Case("large", ((4000, 5000),), streams=True),
        *models,
        Case("1000x100", ((100,),) * 1000, steps=10, fresh=True),
        Case("100x10000", ((10_000,),) * 100, steps=5, fresh=True),
        Case("1x10", ((10,),), steps=200, fresh=True),
        Case("mlp", _MLP, steps=100, fresh=True, note="a small perceptron"),
        Case("50x1000", ((1000,),) * 50, steps=50, fresh=True),
        layers,
        Case("matrix", ((2048, 2048),)),
    ]


# What the rules of a case need, if it is not AdamW's alone.
_MADE_FOR = {
    "large": ("element-wise", "layer-wise", "global"),
    "layers": ("layer-wise",),
    "matrix": ("matrix",),
}

SCHEDULED = ("1x10", "mlp", "50x1000", "1000x100")
"""Cases whose steps are short, so that the cost of a changed rate, and of PyTorch's door, shows."""

CASES = ("large", *MODELS, "1000x100", "100x10000", "1x10", "mlp", "50x1000", "layers", "matrix")


def workloads(
    chosen: Sequence[Case], names: Sequence[str] = (), rules: Sequence[str] = ()
) -> Iterator[Workload]:
    """AdamW on every case but the last two, clipped and not, and on small ones with schedules; then
    every rule on the cases made for it.

    `names` of cases and `rules`, where given, select.
    """
    chosen = [case for case in chosen if not names or case.name in names]
    for case in chosen:
        if case.name not in ("layers", "matrix") and (not rules or "adamw" in rules):
            yield Workload(case, "adamw")
            yield Workload(case, "adamw", clip=MAX_NORM)
        if case.name in SCHEDULED and (not rules or "adamw" in rules):
            for schedule in SCHEDULES:
                yield Workload(case, "adamw", schedule=schedule)
    for case in chosen:
        for rule, cls in RULES.items():
            if (rules and rule not in rules) or cls.needs not in _MADE_FOR.get(case.name, ()):
                continue
            if rule != "adamw":
                yield Workload(case, rule)
            for hyper in _VARIANTS.get(rule, []):
                yield Workload(case, rule, hyper)
