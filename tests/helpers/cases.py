"""What the tests loop over: every rule of the registry, each with non-default hyper-parameters.

A rule without an entry of its own here is tested with its defaults times odd factors, so that a
new rule is covered before anyone writes a line; ``VARIANTS`` adds the flags that change the kernel.
"""

import inspect
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pytest

import steepest as st
from steepest.extension.testing import misaligned as misaligned
from steepest.extension.testing import reference_hyper as reference_hyper
from steepest.extension.testing import same_bits as same_bits
from steepest.kernels import dispatch, threads
from steepest.optimizers import RULES
from steepest.options import decay

LEVELS = dispatch.available()
DTYPES = (np.float32, np.float64)

_ODD: dict[str, Any] = {
    "lr": 0.0137,
    "betas": (0.83, 0.9871, 0.9713),
    "eps": 3.1e-5,
    "weight_decay": 0.0731,
}

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "sgd": [
        {"momentum": 0.0},
        {"momentum": 0.87, "dampening": 0.31},
        {"momentum": 0.87, "nesterov": True},
        {"momentum": 0.87, "convention": "optax"},
        {"momentum": 0.87, "convention": "keras"},
        {"momentum": 0.87, "nesterov": True, "convention": "keras"},
        {"momentum": 0.87, "convention": "paper"},
    ],
    "adagrad": [
        {"lr_decay": 0.013, "initial_accumulator_value": 0.07},
        {"lr_decay": 0.013, "initial_accumulator_value": 0.07, "eps_inside_sqrt": True},
        {"lr_decay": 0.013, "initial_accumulator_value": 0.07, "convention": "keras"},
        {"initial_accumulator_value": 0.0, "eps": 0.0, "convention": "optax"},
        {"convention": "paper"},
    ],
    "rmsprop": [
        {"alpha": 0.91},
        {"alpha": 0.91, "centered": True},
        {"alpha": 0.91, "momentum": 0.77},
        {"alpha": 0.91, "momentum": 0.77, "centered": True},
        {"alpha": 0.91, "convention": "keras"},
        {"alpha": 0.91, "centered": True, "convention": "optax"},
        {"alpha": 0.91, "momentum": 0.77, "convention": "keras"},
        {"alpha": 0.91, "momentum": 0.77, "centered": True, "convention": "paper"},
    ],
    "adadelta": [{"lr": 0.83, "rho": 0.87, "eps": 1e-4}],
    "rprop": [{"etas": (0.43, 1.31), "step_sizes": (1e-3, 0.9)}],
    "asgd": [{"lambd": 0.31, "alpha": 0.6, "t0": 7.0}],
    "schedulefreesgd": [{"momentum": 0.83, "r": 0.7, "weight_lr_power": 1.3}],
    "schedulefreeadamw": [{"r": 0.7, "weight_lr_power": 1.3}],
    "madgrad": [{"momentum": 0.87}, {"momentum": 0.0}, {"momentum": 0.87, "convention": "optax"}],
    "ftrl": [
        {"lambda1": 0.31, "lambda2": 0.17, "beta": 0.7, "initial_accumulator_value": 0.07},
        {"initial_accumulator_value": 0.0},
        {"lr": 0.0},
        {"lambda1": 0.31, "lambda2": 0.17, "beta": 0.7, "convention": "keras"},
    ],
    "signum": [{"momentum": 0.87}],
    "qhm": [{"momentum": 0.87, "nu": 0.37}],
    "lamb": [
        {},
        {"norm_bounds": (0.7, 3.1), "bias_correction": False},
        {"adapt": False},
    ],
    "lars": [
        {"lr": 0.71, "momentum": 0.87, "trust_coefficient": 0.013},
        {"lr": 0.71, "momentum": 0.87, "trust_coefficient": 0.013, "nesterov": True},
        {"lr": 0.71, "momentum": 0.0, "trust_coefficient": 0.013},
        {"momentum": 0.87, "trust_coefficient": 0.13, "trust_clip": True},
        {"momentum": 0.87, "adapt": False, "eps": 1e-8},  # which has an effect only with adapt
    ],
    "novograd": [{}, {"grad_averaging": True}],
    "stableadamw": [{}, {"clip_threshold": 1.31}],
    "dog": [{"reps_rel": 0.013, "lr": 0.83}],
    "adafactor": [
        {"lr": 0.3, "eps": (0.3, 0.7), "d": 0.9, "beta2_decay": -0.7},
        {"eps": (None, 0.01), "beta1": 0.83},
        {"eps": (1e-20, 0.01), "form": "paper", "warmup_init": True},
        {
            "eps": (None, 0.3),
            "form": "paper",
            "beta1": 0.83,
            "relative_step": False,
            "scale_parameter": False,
        },
    ],
    "came": [{"eps": (1e-7, 1e-5), "clip_threshold": 0.7}, {"eps": (1e-30, 1e-16)}],
    "sm3": [{"momentum": 0.87}, {"momentum": 0.0}, {"momentum": 0.87, "beta": 0.93}],
    "adammini": [{}, {"blocks": "arrays"}],
    "ldog": [{"reps_rel": 0.013, "lr": 0.83}],
    "dowg": [{"lr": 0.83}, {"lr": 0.83, "init_estim_sq_dist": 0.0013}],
    "prodigy": [
        {"lr": 1.3, "d0": 0.013},
        {"lr": 1.3, "d0": 0.013, "beta3": 0.93, "d_coef": 1.7, "growth_rate": 1.07},
        {"lr": 1.3, "d0": 0.013, "use_bias_correction": True, "safeguard_warmup": True},
    ],
    "dadaptadam": [
        {"lr": 1.3, "d0": 0.013},
        {"lr": 1.3, "d0": 0.013, "use_bias_correction": True, "growth_rate": 1.07},
    ],
    "adam": [
        {},
        {"amsgrad": True},
        {"bias_correction": False},
        {"decoupled_weight_decay": True},
        {"convention": "optax"},
        {"convention": "optax", "amsgrad": True},
        {"convention": "keras"},
        {"convention": "keras", "amsgrad": True},
        {"convention": "paper"},
    ],
    "adamw": [
        {},
        {"amsgrad": True},
        {"bias_correction": False},
        {"convention": "optax", "amsgrad": True},
        {"convention": "keras"},
    ],
    "adamax": [{}, {"convention": "optax"}, {"convention": "keras"}],
    "nadam": [
        {"momentum_decay": 0.0113},
        {"decoupled_weight_decay": True},
        {"convention": "optax"},
        {"convention": "keras"},
        {"momentum_decay": 0.0113, "convention": "paper"},
    ],
    "adan": [{}, {"convention": "optax"}],
    "yogi": [
        {"initial_accumulator_value": 0.013},
        {"initial_accumulator_value": 0.013, "bias_correction": False},
        {"initial_accumulator_value": 0.013, "convention": "optax"},
    ],
    "adopt": [{}, {"use_clipping": False}],
    "ademamix": [{"alpha": 3.7}],
    "adamatan2": [{"a": 1.37, "b": 0.83}],
    "soap": [
        {"precondition_1d": True, "max_precondition_dim": 40, "precondition_frequency": 3},
        {
            "shampoo_beta": 0.7,
            "normalize_gradient": True,
            "correct_bias": False,
            "max_precondition_dim": 80,
        },
    ],
    "shampoo": [
        {
            "momentum": 0.87,
            "matrix_eps": 0.013,
            "preconditioning_compute_steps": 2,
            "max_precondition_dim": 80,
        },
        {"grafting": "adagrad", "max_precondition_dim": 5},
    ],
    "psgdkron": [
        {
            "momentum": 0.83,
            "preconditioner_update_probability": 0.5,
            "balance_interval": 3,
            "max_size_triangular": 80,
        },
        {
            "preconditioner_update_probability": 0.4,
            "memory_save_mode": "one_diag",
            "momentum_into_precondition_update": False,
            "precond_init_scale": 0.7,
            "seed": 5,
        },
    ],
    "galore": [{"rank": 3, "update_proj_gap": 2, "proj_type": "left", "scale": 0.7}],
    "apollo": [
        {"rank": 3, "update_proj_gap": 2, "scale": 3.0, "growth": 1.3, "seed": 5},
        {"rank": 1, "scale_type": "tensor", "correct_bias": False},
    ],
    "radam": [
        {},
        {"decoupled_weight_decay": True},
        {"convention": "optax"},
        {"convention": "paper"},
    ],
    "sophia": [{"rho": 0.37}],
}


def hyper(rule: str, variant: dict[str, Any]) -> dict[str, Any]:
    """Non-default arguments for a rule: the odd values it has a name for, then the variant's."""
    names = inspect.signature(RULES[rule]).parameters
    odd = {name: value for name, value in _ODD.items() if name in names}
    if "betas" in names:
        odd["betas"] = odd["betas"][: len(names["betas"].default)]
    if "eps" in names and isinstance(names["eps"].default, tuple):
        odd["eps"] = (odd["eps"], 0.017)
    return odd | variant


STAGES: list[dict[str, Any]] = [
    {"l1": 0.031},
    {"maximize": True},
    {"ema": 0.93},
    {"decay_mode": "l2", "l1": 0.01},
    {"decay_mode": "decoupled", "ema": 0.5},
    {"clip": st.clip.value(0.7)},
    {"clip": (st.clip.adaptive(0.05), st.clip.value(0.7)), "l1": 0.02, "maximize": True},
    {"regularize": (st.regularize.toward_initial(0.1), st.regularize.l1(0.1, proximal=True))},
    {"lookahead": st.average.lookahead(2, 0.37)},
    {"cautious": True, "clip": st.clip.value(0.7), "ema": 0.5},
    {"cautious": True, "decay_mode": "decoupled", "filter": st.filters.mars(0.3)},
    {"average": st.average.tail(1), "ema": 0.93, "regularize": st.regularize.toward_initial(0.1)},
    {"lookahead": st.average.lookahead(3, 0.8), "average": st.average.tail(0, 2), "ema": 0.5},
    {"decay_mode": "independent", "regularize": st.regularize.decoupled(0.3)},
    {"decay_mode": "lr_relative", "peak_lr": 0.31},
    {"decay_mode": "corrected", "regularize": st.regularize.decoupled(0.3)},
    {"decay_mode": "palm"},
    {"decay_mode": "cautious", "regularize": st.regularize.decoupled(0.3), "l1": 0.1},
    {"decay_mode": "cautious", "clip": (st.clip.adaptive(0.05), st.clip.value(0.7)), "ema": 0.5},
    {"decay_mode": "decoupled_after", "lookahead": st.average.lookahead(1, 0.8)},
    {"decay_mode": "proximal", "regularize": st.regularize.l1(0.1, proximal=True)},
    {
        "filter": (st.filters.mars(0.3), st.filters.grokfast(0.7), st.filters.mask()),
        "regularize": st.regularize.box(-1, 1),
    },
]
"""Options around a rule."""


def fitting(rule: str, arguments: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Both together, without what the rule refuses: see test_average, test_cautious, test_decay."""
    cls, mode, refused = RULES[rule], options.get("decay_mode"), set()
    if "decoupled_weight_decay" in arguments and mode:
        arguments = {k: v for k, v in arguments.items() if k != "decoupled_weight_decay"}
    if not cls.may_be_moved:
        refused |= {"lookahead"} | ({"decay_mode"} if mode in decay.AFTER else set())
    if not cls.additive:
        refused |= {"cautious"} | ({"decay_mode"} if mode == "cautious" else set())
    if cls.own_decay and mode not in decay.OWN:
        refused |= {"decay_mode", "peak_lr"}
    return arguments | {k: v for k, v in options.items() if k not in refused}


MATRICES_ONLY = tuple(rule for rule, cls in RULES.items() if cls.least_axes > 1)
"""Rules that leave vectors to AdamW, and have tests of their own for that reason."""

CONFIGURATIONS = [
    (rule, hyper(rule, variant))
    for rule in RULES
    if rule not in MATRICES_ONLY
    for variant in VARIANTS.get(rule, [{}])
]


def brief(values: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """For parametrize: the values that are not kept run only where CI adds exhaustive tests.

    For axes that many tests repeat and one runs whole every time: levels and configurations in
    test_exactness.py's fifty steps, rules in test_convergence.py. A tuple is the values of several
    arguments, as in parametrize.
    """
    mark = pytest.mark.exhaustive
    rows = [x if isinstance(x, tuple) else (x,) for x in values]
    return [
        pytest.param(*row, marks=() if x in kept else mark)
        for x, row in zip(values, rows, strict=True)
    ]


EACH_LEVEL = brief(LEVELS, LEVELS[-1:])
LESSER, BEST = [*LEVELS[:-1]], [*LEVELS[-1:]]
SETS_OF_LEVELS = brief([x for x in (LESSER, BEST) if x], [BEST])
"""For a test that loops over levels: the lesser ones, and the best of this machine."""

BY_RULE = brief(CONFIGURATIONS, list({r: (r, a) for r, a in reversed(CONFIGURATIONS)}.values()))
"""The first configuration of each rule, and the others."""

A_RULE_OF_EACH_KIND = tuple({cls.needs: rule for rule, cls in RULES.items()}.values())


def label(value: Any) -> str | None:
    """Readable test ids: the flags of a variant rather than a dictionary."""
    if isinstance(value, dict):
        shown = {k: v for k, v in value.items() if k not in _ODD}
        names = {k: getattr(v, "__name__", v) for k, v in shown.items()}
        return "-".join(f"{k}={v}" for k, v in names.items()) or "plain"
    if isinstance(value, type):
        return value.__name__
    return None


def use_threads(n: int) -> None:
    """n threads even where the machine has fewer CPUs."""
    st.set_num_threads(n)
    threads._limit = n
    threads._least = threads._AWAKE
