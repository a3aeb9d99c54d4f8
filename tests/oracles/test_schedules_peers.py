"""Every schedule against PyTorch, optax, Hugging Face and Keras, at t = 0 .. 10 000.

Differences are counted in ulp of the largest value: how far apart two numbers are that were made
from it by a few operations each. Where a peer's operations are the same and in the same order, none
is allowed.
"""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from steepest.schedules import (
    ademamix_beta3,
    constant,
    cosine,
    cosine_cycles,
    cosine_restarts,
    cyclic,
    exponential,
    growing,
    interpolate,
    inverse_sqrt,
    inverse_time,
    linear,
    multi_step,
    one_cycle,
    one_cycle_momentum,
    piecewise,
    plateau,
    polynomial,
    sequence,
    shift,
    step,
    warmup_stable_decay,
)

pytestmark = pytest.mark.torch
N = 10_001


def ulp_apart(schedule, theirs) -> float:
    ours = np.array([schedule(t) for t in range(len(theirs))], float)
    return float(np.abs(ours - theirs).max() / np.spacing(max(np.abs(theirs).max(), ours.max())))


def kind(x):
    return repr(x) if hasattr(x, "warmup") else getattr(x, "__name__", x)


# PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def scheduler_of(torch, make, lr=0.3, **options):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr, **options)
    return optimizer, make(torch.optim.lr_scheduler, optimizer)


def run(torch, make, n=N, key="lr", lr=0.3, **options):
    """The values that the optimizer has at its first n steps."""
    optimizer, scheduler = scheduler_of(torch, make, lr, **options)
    values = []
    for _ in range(n):
        values.append(float(optimizer.param_groups[0][key]))
        optimizer.step()
        scheduler.step()
    return np.array(values)


def closed_form(torch, make):
    _, scheduler = scheduler_of(torch, make)
    values = []
    for scheduler.last_epoch in range(N):
        values += scheduler._get_closed_form_lr()
    return np.array(values)


@pytest.mark.parametrize(
    ("schedule", "make", "allowed"),
    [
        (step(0.3, 70, 0.6), lambda lr, o: lr.StepLR(o, 70, 0.6), 0),
        (
            multi_step(0.3, (30, 30, 800), 0.6),
            lambda lr, o: lr.MultiStepLR(o, [30, 800, 30], 0.6),
            0,
        ),
        (piecewise((0.3 * 0.2, 0.3), (5,)), lambda lr, o: lr.ConstantLR(o, 0.2, 5), 0),
        (exponential(0.3, 0.999), lambda lr, o: lr.ExponentialLR(o, 0.999), 0),
        (polynomial(0.3, 9000, power=1.7), lambda lr, o: lr.PolynomialLR(o, 9000, 1.7), 0),
        # Theirs is lr (a + (b - a) u), ours lr (1 - u) + end u: each rounded three times.
        (linear(0.3, 9000, 0.06), lambda lr, o: lr.LinearLR(o, 1.0, 0.2, 9000), 2),
        (linear(0.06, 9000, 0.3), lambda lr, o: lr.LinearLR(o, 0.2, 1.0, 9000), 2),
        (
            constant(0.3, warmup=9000, warmup_from=0, warmup_start=0.2),
            lambda lr, o: lr.LinearLR(o, 0.2, 1.0, 9000),
            2,
        ),
        (
            constant(0.3, warmup=20),
            lambda lr, o: lr.LinearLR(o, start_factor=1 / 20, total_iters=19),
            2,
        ),
        # Theirs is end + (lr - end) (1 + cos(π t / n)) / 2, ours lr c + end (1 - c).
        (cosine(0.3, 10_000, 0.05), lambda lr, o: lr.CosineAnnealingLR(o, 10_000, 0.05), 2),
        (cosine(0.3, 10_000), lambda lr, o: lr.CosineAnnealingLR(o, 10_000), 2),
    ],
    ids=kind,
)
def test_against_the_closed_forms_of_torch(torch, schedule, make, allowed) -> None:
    assert ulp_apart(schedule, closed_form(torch, make)) <= allowed


def one(lr, o, **options):
    return lr.OneCycleLR(
        o, 0.7, N, div_factor=20.0, final_div_factor=300.0, base_momentum=0.8, max_momentum=0.93,
        **options,
    )  # fmt: skip


OURS = {"div_factor": 20, "final_div_factor": 300}


@pytest.mark.parametrize(
    ("schedule", "make", "allowed"),
    [
        # Theirs multiplies the last value again and again; the errors of 10 000 products add up.
        (step(0.3, 70, 0.6), lambda lr, o: lr.StepLR(o, 70, 0.6), 2),
        (exponential(0.3, 0.999), lambda lr, o: lr.ExponentialLR(o, 0.999), 20),
        (linear(0.3, 9000, 0.06), lambda lr, o: lr.LinearLR(o, 1.0, 0.2, 9000), 1000),
        (cosine(0.3, 10_000, 0.05), lambda lr, o: lr.CosineAnnealingLR(o, 10_000, 0.05), 5000),
        (
            cosine_restarts(0.3, 70, 2, 0.05),
            lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 70, 2, 0.05),
            2,
        ),
        (inverse_time(0.3, 0.07), lambda lr, o: lr.LambdaLR(o, lambda t: 1 / (1 + 0.07 * t)), 1),
        (exponential(0.3, 0.9), lambda lr, o: lr.MultiplicativeLR(o, lambda t: 0.9), 5),
        # Theirs finds the place in the cycle as 1 + t / period - cycle, which loses 10 bits here.
        (
            cyclic(0.1, 0.7, 20, 33),
            lambda lr, o: lr.CyclicLR(o, 0.1, 0.7, 20, 33, cycle_momentum=False),
            1000,
        ),
        (
            cyclic(0.1, 0.7, 20, 33, mode="triangular2"),
            lambda lr, o: lr.CyclicLR(o, 0.1, 0.7, 20, 33, "triangular2", cycle_momentum=False),
            1000,
        ),
        (
            cyclic(0.1, 0.7, 20, mode="exp_range", gamma=0.9995),
            lambda lr, o: lr.CyclicLR(
                o, 0.1, 0.7, 20, mode="exp_range", gamma=0.9995, cycle_momentum=False
            ),
            1000,
        ),
        # The same operations but at the end points, where ours are exact and theirs 1 ulp off.
        (one_cycle(0.7, N, **OURS), one, 1),
        (one_cycle(0.7, N, three_phase=True, **OURS), lambda *a: one(*a, three_phase=True), 1),
        (
            one_cycle(0.7, N, anneal_strategy="linear", pct_start=0.2, **OURS),
            lambda *a: one(*a, anneal_strategy="linear", pct_start=0.2),
            1,
        ),
        (
            one_cycle(0.7, N, anneal_strategy="linear", three_phase=True, **OURS),
            lambda *a: one(*a, anneal_strategy="linear", three_phase=True),
            1,
        ),
        (
            sequence((constant(0.3, warmup=20), multi_step(0.3, (30, 80), 0.5)), (40,)),
            lambda lr, o: lr.SequentialLR(
                o,
                [lr.LinearLR(o, 1 / 20, total_iters=19), lr.MultiStepLR(o, [30, 80], 0.5)],
                [40],
            ),
            20,
        ),
        (
            piecewise((0.1, 1.0), (2,)) * exponential(0.3, 0.9),
            lambda lr, o: lr.ChainedScheduler([lr.ConstantLR(o, 0.1, 2), lr.ExponentialLR(o, 0.9)]),
            5,
        ),
        (
            sequence((exponential(0.3, 0.9), cosine(0.3 * 0.9**5, 10, end=0.05)), (5,)),
            lambda lr, o: lr.SequentialLR(
                o,
                [
                    lr.ExponentialLR(o, 0.9),
                    lr.LambdaLR(o, lambda t: cosine(0.9**5, 10, end=0.05 / 0.3)(t)),
                ],
                [5],
            ),
            2,
        ),
    ],
    ids=kind,
)
def test_against_running_torch(torch, schedule, make, allowed) -> None:
    assert ulp_apart(schedule, run(torch, make)) <= allowed


@pytest.mark.parametrize(
    ("schedule", "make", "allowed"),
    [
        (one_cycle_momentum(N, 0.8, 0.93), one, 0),
        (
            one_cycle_momentum(N, 0.8, 0.93, anneal_strategy="linear", three_phase=True),
            lambda *a: one(*a, anneal_strategy="linear", three_phase=True),
            1,
        ),
        (
            cyclic(0.9, 0.8, 20, 33, mode="triangular2"),
            lambda lr, o: lr.CyclicLR(o, 0.1, 0.7, 20, 33, "triangular2"),
            1000,  # as for the learning rate
        ),
    ],
    ids=kind,
)
def test_momenta_against_torch(torch, schedule, make, allowed) -> None:
    theirs = run(torch, make, key="momentum", momentum=0.9)
    if isinstance(schedule, cyclic):  # their default goes from 0.8 to 0.9
        assert theirs.max() == 0.9
    assert ulp_apart(schedule, theirs) <= allowed


def test_swalr(torch) -> None:
    """Its counterpart is a sequence whose second part begins with the last value of the first."""
    theirs = run(torch, lambda lr, o: torch.optim.swa_utils.SWALR(o, 0.05, 40), n=100)
    # Theirs undoes and redoes the interpolation at each step.
    assert ulp_apart(cosine(0.3, 40, end=0.05), theirs) <= 1000


def rates(torch, make, n, lr=1.0):
    return run(torch, make, n=n, lr=lr).round(6).tolist()


def test_torch_cosine_rises_again(torch) -> None:
    theirs = rates(torch, lambda lr, o: lr.CosineAnnealingLR(o, 4), 9)
    assert theirs == [1.0, 0.853553, 0.5, 0.146447, 0.0, 0.146447, 0.5, 0.853553, 1.0]
    assert [round(cosine(1.0, 4)(t), 6) for t in range(9)] == [*theirs[:5], 0, 0, 0, 0]


def test_torch_linear_warm_up_reaches_the_full_rate_one_update_later(torch) -> None:
    assert rates(torch, lambda lr, o: lr.LinearLR(o, 0.25, total_iters=4), 6) == [
        0.25, 0.4375, 0.625, 0.8125, 1.0, 1.0,
    ]  # fmt: skip
    assert [constant(1.0, warmup=4)(t) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_torch_constant_comes_back_one_ulp_off(torch) -> None:
    make = lambda lr, o: lr.ConstantLR(o, 0.7, 2)  # noqa: E731
    assert run(torch, make, n=3, lr=0.1).tolist()[2] == 0.09999999999999999
    with pytest.raises(ZeroDivisionError):
        run(torch, lambda lr, o: lr.ConstantLR(o, 0.0, 2), n=3)


def test_torch_one_cycle_is_negative_after_its_last_step(torch) -> None:
    make = lambda lr, o: lr.OneCycleLR(  # noqa: E731
        o, 1.0, 10, anneal_strategy="linear", cycle_momentum=False
    )
    assert rates(torch, make, 10)[-1] == 4e-06
    optimizer, scheduler = scheduler_of(torch, make)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] < -0.14
    ours = one_cycle(1.0, 10, anneal_strategy="linear")
    assert ours(10) == ours(9) == 1.0 / 25 / 1e4


@pytest.mark.parametrize(("steps", "pct_start"), [(10, 0.1), (2, 0.5)])
def test_torch_one_cycle_divides_by_0(torch, steps, pct_start) -> None:
    make = lambda lr, o: lr.OneCycleLR(  # noqa: E731
        o, 1.0, steps, pct_start=pct_start, cycle_momentum=False
    )
    with pytest.raises(ZeroDivisionError):
        scheduler_of(torch, make)
    assert one_cycle(1.0, steps, pct_start=pct_start)(0) == 1.0


def test_torch_sequential_starts_a_multiplying_part_where_the_last_one_was(torch) -> None:
    """A part has no start of its own unless it has a closed form."""
    parts = [
        lambda lr, o: lr.MultiplicativeLR(o, lambda t: 0.5),
        lambda lr, o: lr.ExponentialLR(o, 0.5),
    ]
    found = [
        rates(
            torch,
            lambda lr, o, p=p: lr.SequentialLR(o, [lr.ConstantLR(o, 0.5, 9), p(lr, o)], [2]),
            5,
        )
        for p in parts
    ]
    assert found == [[0.5, 0.5, 0.25, 0.125, 0.0625], [0.5, 0.5, 1.0, 0.5, 0.25]]
    assert [sequence((0.5, exponential(1.0, 0.5)), (2,))(t) for t in range(5)] == found[1]


def test_torch_sequential_lets_one_part_change_the_others(torch) -> None:
    """Making a OneCycleLR sets the first rate that the parts before it start from."""
    make = lambda lr, o: lr.SequentialLR(  # noqa: E731
        o, [lr.ConstantLR(o, 0.5, 9), lr.OneCycleLR(o, 1.0, 20, cycle_momentum=False)], [3]
    )
    assert rates(torch, make, 4) == [0.02, 0.02, 0.02, 0.04]
    ours = sequence((0.5, one_cycle(1.0, 20)), (3,))
    assert [ours(t) for t in range(4)] == [0.5, 0.5, 0.5, 0.04]


def test_torch_sequential_skips_parts_without_a_word(torch) -> None:
    make = lambda lr, o: lr.SequentialLR(  # noqa: E731
        o, [lr.ConstantLR(o, 0.5, 9), lr.StepLR(o, 1, 0.5), lr.ConstantLR(o, 0.25, 9)], [2, 2]
    )
    assert rates(torch, make, 4) == [0.5, 0.5, 0.25, 0.25]
    with pytest.raises(ValueError, match="expected each larger than the last"):
        sequence((0.5, step(1.0, 1, 0.5), 0.25), (2, 2))


def test_torch_refuses_a_plateau_in_a_sequence(torch) -> None:
    make = lambda lr, o: lr.SequentialLR(  # noqa: E731
        o, [lr.LinearLR(o), lr.ReduceLROnPlateau(o)], [5]
    )
    with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
        scheduler_of(torch, make)


def test_torch_chained_is_no_product_where_a_part_adds(torch) -> None:
    make = lambda lr, o: lr.ChainedScheduler(  # noqa: E731
        [lr.CosineAnnealingLR(o, 10, 0.1), lr.ExponentialLR(o, 0.9)]
    )
    assert rates(torch, make, 3) == [1.0, 0.880178, 0.741042]
    product = cosine(1.0, 10, 0.1) * exponential(1.0, 0.9)
    assert [round(product(t), 6) for t in range(3)] == [1.0, 0.880178, 0.740387]


def test_torch_goes_on_from_a_rate_set_by_hand(torch) -> None:
    """Chained forms do, LambdaLR does not."""
    for make, expected in (
        (lambda lr, o: lr.ExponentialLR(o, 0.5), 5.0),
        (lambda lr, o: lr.LambdaLR(o, lambda t: 0.5**t), 0.5),
    ):
        optimizer, scheduler = scheduler_of(torch, make, lr=1.0)
        optimizer.param_groups[0]["lr"] = 10.0
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == expected


# Hugging Face

ZERO = {"warmup": 500, "warmup_from": 0}


@pytest.fixture(scope="module")
def get_scheduler():
    return pytest.importorskip("transformers.optimization").get_scheduler


def hugging_face(torch, get_scheduler, name, steps=10_000, warmup=500, n=N, lr=0.3, **options):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    (factor,) = get_scheduler(name, optimizer, warmup, steps, options).lr_lambdas
    return np.array([lr * factor(t) for t in range(n)])


@pytest.mark.parametrize(
    ("schedule", "name", "options", "allowed"),
    [
        (constant(0.3), "constant", {}, 0),
        (constant(0.3, **ZERO), "constant_with_warmup", {}, 0),
        (linear(0.3, 9000, **ZERO), "linear", {"steps": 9000}, 1),
        (cosine(0.3, 10_000, **ZERO), "cosine", {}, 0),
        (cosine(0.3, 10_000, cycles=2.5, **ZERO), "cosine", {"num_cycles": 2.5}, 0),
        # Theirs takes the rest of a rounded product, which is up to 7 here.
        (
            cosine_cycles(0.3, 10_000, cycles=7, **ZERO),
            "cosine_with_restarts",
            {"num_cycles": 7},
            16,
        ),
        (
            polynomial(0.3, 9000, 0.01, 2.0, **ZERO),
            "polynomial",
            {"steps": 9000, "lr_end": 0.01, "power": 2.0},
            1,
        ),
        (inverse_sqrt(0.3, timescale=500, **ZERO), "inverse_sqrt", {}, 1),
        (inverse_sqrt(0.3, timescale=700, **ZERO), "inverse_sqrt", {"timescale": 700}, 1),
        (cosine(0.3, 10_000, 0.03, **ZERO), "cosine_with_min_lr", {"min_lr_rate": 0.1}, 1),
        (cosine(0.3, 10_000, 0.03, **ZERO), "cosine_with_min_lr", {"min_lr": 0.03}, 1),
        # One update early after its warm-up, and rising again at t = steps.
        (
            sequence((constant(0.3, warmup=500), shift(cosine(0.3, 9500, 0.03), -1)), (500,)),
            "cosine_warmup_with_min_lr",
            {"min_lr_rate": 0.1, "n": 10_000},
            1,
        ),
        (
            sequence((linear(0.06, 499, end=0.3), shift(cosine(0.3, 9500, 0.03), -1)), (500,)),
            "cosine_warmup_with_min_lr",
            {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2, "n": 10_000},
            1,
        ),
        *(
            (
                warmup_stable_decay(
                    0.3, 9000, 2000, 0.03, shape=fall, warmup_shape=rise, warmup_start=0.1, **ZERO
                ),
                "warmup_stable_decay",
                {
                    "steps": 9000, "num_decay_steps": 2000, "warmup_type": rise,
                    "decay_type": fall, "min_lr_ratio": 0.1,
                },
                1,
            )
            for rise in ("linear", "cosine", "1-sqrt")
            for fall in ("linear", "cosine", "1-sqrt")
        ),
    ],
    ids=kind,
)  # fmt: skip
def test_against_hugging_face(torch, get_scheduler, schedule, name, options, allowed) -> None:
    if name.startswith("constant"):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        (factor,) = get_scheduler(name, optimizer, 500).lr_lambdas
        theirs = np.array([0.3 * factor(t) for t in range(N)])
    else:
        theirs = hugging_face(torch, get_scheduler, name, **options)
    assert ulp_apart(schedule, theirs) <= allowed


def test_hugging_face_begins_at_0_and_reaches_the_full_rate_at_the_end_of_the_warm_up(
    torch, get_scheduler
) -> None:
    theirs = hugging_face(torch, get_scheduler, "linear", 4, 2, n=6, lr=1.0)
    assert theirs.tolist() == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert [linear(1.0, 4, warmup=2)(t) for t in range(6)] == [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("name", ["cosine", "cosine_with_min_lr", "cosine_warmup_with_min_lr"])
def test_hugging_face_cosines_rise_again(torch, get_scheduler, name) -> None:
    options = {} if name == "cosine" else {"min_lr_rate": 0.1}
    theirs = hugging_face(torch, get_scheduler, name, 4, 0, n=9, lr=1.0, **options)
    low = 3 if "warmup" in name else 4
    assert theirs.argmin() == low
    assert theirs[low + 4] == 1.0


def test_hugging_face_polynomial_does_not_end_at_0(torch, get_scheduler) -> None:
    assert hugging_face(torch, get_scheduler, "polynomial", 4, 0, n=9, lr=1.0)[-1] == 1e-7


# optax and Keras, in processes of their own: they have settings for the whole process


def evaluated(preamble, expressions, n=N, **environment):
    """The values of functions of t, given as Python, at 0 .. n - 1."""
    code = f"""
import json, sys
{preamble}
import numpy as np
t = np.arange({n})
for expression in json.loads(sys.argv[1]):
    print(json.dumps(np.asarray(values(eval(expression), t), float).tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(expressions)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [np.array(json.loads(line)) for line in done.stdout.splitlines()]


OPTAX = """
import jax
jax.config.update("jax_enable_x64", True)
import optax
from optax.contrib import reduce_on_plateau
def scales(metrics, **arguments):
    transform = reduce_on_plateau(**arguments)
    update = jax.jit(lambda state, metric: transform.update(1.0, state, value=metric)[1])
    found = [transform.init(jax.numpy.ones(()))]
    for metric in metrics:
        found.append(update(found[-1], metric))
    return [float(state.scale) for state in found[1:]]
def values(f, t):
    if isinstance(f, list):
        return f
    return jax.jit(jax.vmap(f))(jax.numpy.asarray(t)) * jax.numpy.ones(len(t))
"""
# XLA's cos and pow differ from the C library's by an ulp or two, and it may group operations anew.
OPTAX_CASES = [
    (constant(0.3), "optax.constant_schedule(0.3)", 0),
    (linear(0.3, 9000, 0.05), "optax.linear_schedule(0.3, 0.05, 9000)", 2),
    (
        shift(polynomial(0.3, 8192, 0.05, 1.7), 100),
        "optax.polynomial_schedule(0.3, 0.05, 1.7, 8192, 100)",
        4,
    ),
    (
        piecewise((0.3, 0.3 * 0.5, 0.3 * 0.5 * 0.2), (100, 500)),
        "optax.piecewise_constant_schedule(0.3, {100: 0.5, 500: 0.2})",
        1,
    ),
    (
        multi_step(0.3, (100, 500), 0.5),
        "optax.piecewise_constant_schedule(0.3, {100: 0.5, 500: 0.5})",
        1,
    ),
    *(
        (
            interpolate((0.3, 0.6, 0.12), (4000, 9000), shape=shape),
            f"optax.piecewise_interpolate_schedule({shape!r}, 0.3, {{4000: 2.0, 9000: 0.2}})",
            2,
        )
        for shape in ("linear", "cosine")
    ),
    (
        exponential(0.3, 0.7, period=500, begin=300),
        "optax.exponential_decay(0.3, 500, 0.7, 300)",
        4,
    ),
    (
        exponential(0.3, 0.7, period=500, staircase=True, begin=300, end=0.01),
        "optax.exponential_decay(0.3, 500, 0.7, 300, True, 0.01)",
        4,
    ),
    (
        exponential(0.01, 1.1, period=500, end=0.05),
        "optax.exponential_decay(0.01, 500, 1.1, end_value=0.05)",
        4,
    ),
    (
        cosine(0.3, 9000, 0.03, exponent=1.3),
        "optax.cosine_decay_schedule(0.3, 9000, 0.1, 1.3)",
        4,
    ),
    (
        cosine(0.3, 9000, 0.03, exponent=1.3, warmup=500, warmup_from=0, warmup_start=0.05 / 0.3),
        "optax.warmup_cosine_decay_schedule(0.05, 0.3, 500, 9000, 0.03, 1.3)",
        4,
    ),
    (
        constant(0.3, warmup=500, warmup_from=0, warmup_start=0.05 / 0.3),
        "optax.warmup_constant_schedule(0.05, 0.3, 500)",
        2,
    ),
    (
        exponential(0.3, 0.7, period=500, begin=50, end=0.01, warmup=500, warmup_from=0),
        "optax.warmup_exponential_decay_schedule(0.0, 0.3, 500, 500, 0.7, 50, end_value=0.01)",
        4,
    ),
    (
        sequence(
            tuple(cosine(lr, 3000, warmup=100, warmup_from=0) for lr in (0.3, 0.2, 0.1)),
            (3000, 6000),
        ),
        "optax.sgdr_schedule([dict(init_value=0.0, peak_value=lr, warmup_steps=100,"
        " decay_steps=3000) for lr in (0.3, 0.2, 0.1)])",
        4,
    ),
    (
        interpolate((0.3 / 20, 0.3, 0.3 / 20, 0.3 / 20 / 500), (3000, 8500, 10_000)),
        "optax.linear_onecycle_schedule(10_000, 0.3, div_factor=20.0, final_div_factor=500.0)",
        2,
    ),
    (
        interpolate((0.3 / 20, 0.3, 0.3 / 20 / 500), (3000, 10_000), shape="cosine"),
        "optax.cosine_onecycle_schedule(10_000, 0.3, div_factor=20.0, final_div_factor=500.0)",
        2,
    ),
    (
        sequence((linear(0.0, 400, end=0.3), exponential(0.3, 0.99)), (400,)),
        "optax.join_schedules([optax.linear_schedule(0.0, 0.3, 400),"
        " optax.exponential_decay(0.3, 1, 0.99)], [400])",
        8,
    ),
]


OPTAX_QUIRKS = {
    # transition_steps of 0 mean the first value for ever, not the last
    "optax.linear_schedule(1.0, 0.0, 0)": [1.0, 1.0, 1.0],
    # a rate of 0 means no decay
    "optax.exponential_decay(1.0, 2, 0.0)": [1.0, 1.0, 1.0],
    # a negative begin means 0
    "optax.linear_schedule(1.0, 0.0, 4, -2)": [1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
    # the last value is peak / div_factor / final_div_factor, though the docstring has
    # peak / final_div_factor, and it comes at t = steps
    "optax.linear_onecycle_schedule(5, 1.0, 0.2, 0.8, 4.0, 8.0)": [
        0.25, 1.0, 0.75, 0.5, 0.25, 0.03125, 0.03125,
    ],
    # decay_steps count the warm-up, which begins at the first value and ends after it
    "optax.warmup_cosine_decay_schedule(0.0, 1.0, 2, 4)": [0.0, 0.5, 1.0, 0.5, 0.0, 0.0],
    # no patience: a cut at each improvement
    "scales([3.0, 2.0, 1.0, 1.0, 0.5], factor=0.5, patience=0)": [0.5, 0.25, 0.125, 0.125, 0.0625],
}  # fmt: skip


METRICS = np.exp(np.random.default_rng(7).choice([-0.05, 0.0, 1e-5, 0.02], 200).cumsum()).tolist()
OPTAX_PLATEAUS = {
    f"scales({METRICS}, factor=0.5, patience=2)": {"patience": 1},
    f"scales({METRICS}, factor=0.5, patience=1, cooldown=3, min_scale=0.1)": {
        "patience": 0, "cooldown": 3, "min_lr": 0.1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def from_optax():
    pytest.importorskip("optax")
    expressions = [expression for _, expression, _ in OPTAX_CASES]
    expressions += [*OPTAX_QUIRKS, *OPTAX_PLATEAUS]
    return dict(zip(expressions, evaluated(OPTAX, expressions), strict=True))


@pytest.mark.parametrize(("schedule", "expression", "allowed"), OPTAX_CASES, ids=kind)
def test_against_optax(from_optax, schedule, expression, allowed) -> None:
    assert ulp_apart(schedule, from_optax[expression]) <= allowed


@pytest.mark.parametrize(("expression", "expected"), OPTAX_QUIRKS.items())
def test_optax_differences(from_optax, expression, expected) -> None:
    assert from_optax[expression][: len(expected)].round(12).tolist() == expected


@pytest.mark.parametrize(("expression", "arguments"), OPTAX_PLATEAUS.items(), ids=["", "cooldown"])
def test_optax_counts_patience_from_1(from_optax, expression, arguments) -> None:
    ours, found = plateau(1.0, factor=0.5, eps=0, **arguments), []
    for metric in METRICS:
        ours.observe(metric)
        found.append(ours(0))
    assert found == from_optax[expression].tolist()
    assert len(set(found)) > 3


def test_optax_as_it_is_by_default() -> None:
    """It counts in float32, in which from 2²⁴ on not every update is a number of its own; and
    compiled it divides by multiplying, so that 1 - n/n may be below 0 and its power NaN."""
    pytest.importorskip("optax")
    large, falling = evaluated(
        OPTAX.replace("True", "False"),
        [
            "optax.linear_schedule(2.0**25, 0.0, 2**25)",
            "optax.polynomial_schedule(0.3, 0.05, 1.7, 10)",
        ],
        n=13,
    )
    assert large[:4].tolist() == [2.0**25, 2.0**25, 2.0**25 - 2, 2.0**25 - 4]
    assert [linear(2.0**25, 2**25)(t) for t in range(3)] == [2.0**25, 2.0**25 - 1, 2.0**25 - 2]
    assert np.isnan(falling).tolist() == 10 * [False] + 3 * [True]
    assert polynomial(0.3, 10, 0.05, 1.7)(10) == 0.05


KERAS = """
import keras
keras.backend.set_floatx("float64")
import jax
jax.config.update("jax_enable_x64", True)
S = keras.optimizers.schedules
def values(f, t):
    return jax.vmap(f)(jax.numpy.asarray(t, float)) * jax.numpy.ones(len(t))
"""
# keras.ops.cos gives float32, also for float64: one part in 10⁸.
FLOAT32_COSINE = 2**30
KERAS_CASES = [
    (exponential(0.3, 0.7, period=500), "S.ExponentialDecay(0.3, 500, 0.7)", 4),
    (
        exponential(0.3, 0.7, period=500, staircase=True),
        "S.ExponentialDecay(0.3, 500, 0.7, staircase=True)",
        4,
    ),
    (inverse_time(0.3, 0.7, period=500), "S.InverseTimeDecay(0.3, 500, 0.7)", 2),
    (
        inverse_time(0.3, 0.7, period=500, staircase=True),
        "S.InverseTimeDecay(0.3, 500, 0.7, staircase=True)",
        2,
    ),
    (polynomial(0.3, 700, 0.01, 1.7), "S.PolynomialDecay(0.3, 700, 0.01, 1.7)", 4),
    (
        polynomial(0.3, 700, 0.01, 1.7, cycle=True),
        "S.PolynomialDecay(0.3, 700, 0.01, 1.7, cycle=True)",
        8,
    ),
    (cosine(0.3, 9000, 0.03), "S.CosineDecay(0.3, 9000, 0.1)", FLOAT32_COSINE),
    (  # decay_steps do not count the warm-up
        cosine(0.3, 9500, 0.03, warmup=500, warmup_from=0),
        "S.CosineDecay(0.0, 9000, 0.1, warmup_target=0.3, warmup_steps=500)",
        FLOAT32_COSINE,
    ),
    (cosine_restarts(0.3, 70, 2), "S.CosineDecayRestarts(0.3, 70, 2.0)", FLOAT32_COSINE),
    (
        cosine_restarts(0.3, 70, 2, gamma=0.9),
        "S.CosineDecayRestarts(0.3, 70, 2.0, m_mul=0.9)",
        FLOAT32_COSINE,
    ),
    (  # one update later
        piecewise((0.3, 0.1, 0.01), (101, 501)),
        "S.PiecewiseConstantDecay([100, 500], [0.3, 0.1, 0.01])",
        0,
    ),
]


@pytest.fixture(scope="module")
def from_keras():
    if not all(map(importlib.util.find_spec, ("keras", "jax"))):
        pytest.skip("needs Keras, with JAX under it")
    expressions = [expression for _, expression, _ in KERAS_CASES]
    return dict(zip(expressions, evaluated(KERAS, expressions, KERAS_BACKEND="jax"), strict=True))


@pytest.mark.parametrize(("schedule", "expression", "allowed"), KERAS_CASES, ids=kind)
def test_against_keras(from_keras, schedule, expression, allowed) -> None:
    assert ulp_apart(schedule, from_keras[expression]) <= allowed


# Formulas of which the peers have no schedule class


def authors_beta3(step, end, start, warmup, eps) -> float:
    """As the authors of AdEMAMix compute it: with eps = 1e-8 in the logarithm."""

    def half_life(beta):
        return np.log(0.5) / np.log(beta + eps) - 1

    if step >= warmup:
        return end
    a = step / warmup
    return 0.5 ** (1 / ((1 - a) * half_life(start) + a * half_life(end) + 1))


@pytest.mark.parametrize(
    ("eps", "allowed"),
    [
        (0.0, 1e-15),
        (1e-8, 3e-6),  # which makes the last half-life longer by one in 10 000
    ],
)
def test_beta3_against_its_authors(eps, allowed) -> None:
    beta3 = ademamix_beta3(0.9999, 8000, start=0.9)
    theirs = [authors_beta3(t + 1, 0.9999, 0.9, 8000, eps) for t in range(N)]
    np.testing.assert_allclose([beta3(t) for t in range(N)], theirs, rtol=0, atol=allowed)


def test_growing_is_thincs_compounding() -> None:
    sizes, size = [], 4.0
    for _ in range(3000):
        sizes.append(round(size))
        size = min(size * 1.001, 32.0)
    assert [growing(4, 1.001, 1, 32)(t) for t in range(3000)] == sizes
