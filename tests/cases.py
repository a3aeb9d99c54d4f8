"""What the tests loop over: every rule of the registry, each with non-default hyper-parameters.

A rule without an entry of its own here is tested with its defaults times odd factors, so that a
new rule is covered before anyone writes a line; ``VARIANTS`` adds the flags that change the kernel.
"""

import inspect
from typing import Any

import numpy as np

import steepest as st
from steepest.kernels import dispatch, threads
from steepest.optimizers import RULES

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
    ],
    "adagrad": [
        {"lr_decay": 0.013, "initial_accumulator_value": 0.07},
        {"lr_decay": 0.013, "initial_accumulator_value": 0.07, "eps_inside_sqrt": True},
    ],
    "rmsprop": [
        {"alpha": 0.91},
        {"alpha": 0.91, "centered": True},
        {"alpha": 0.91, "momentum": 0.77},
        {"alpha": 0.91, "momentum": 0.77, "centered": True},
    ],
    "adadelta": [{"lr": 0.83, "rho": 0.87, "eps": 1e-4}],
    "rprop": [{"etas": (0.43, 1.31), "step_sizes": (1e-3, 0.9)}],
    "asgd": [{"lambd": 0.31, "alpha": 0.6, "t0": 7.0}],
    "schedulefreesgd": [{"momentum": 0.83, "r": 0.7, "weight_lr_power": 1.3}],
    "schedulefreeadamw": [{"r": 0.7, "weight_lr_power": 1.3}],
    "madgrad": [{"momentum": 0.87}, {"momentum": 0.0}],
    "ftrl": [
        {"lambda1": 0.31, "lambda2": 0.17, "beta": 0.7, "initial_accumulator_value": 0.07},
        {"initial_accumulator_value": 0.0},
        {"lr": 0.0},
    ],
    "signum": [{"momentum": 0.87}],
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
    "adam": [{}, {"amsgrad": True}, {"bias_correction": False}, {"decoupled_weight_decay": True}],
    "adamw": [{}, {"amsgrad": True}, {"bias_correction": False}],
    "nadam": [{"momentum_decay": 0.0113}, {"decoupled_weight_decay": True}],
    "yogi": [
        {"initial_accumulator_value": 0.013},
        {"initial_accumulator_value": 0.013, "bias_correction": False},
    ],
    "adopt": [{}, {"use_clipping": False}],
    "ademamix": [{"alpha": 3.7}],
    "adamatan2": [{"a": 1.37, "b": 0.83}],
    "radam": [{}, {"decoupled_weight_decay": True}],
}


def hyper(rule: str, variant: dict[str, Any]) -> dict[str, Any]:
    """Non-default arguments for a rule: the odd values it has a name for, then the variant's."""
    names = inspect.signature(RULES[rule].__init__).parameters
    odd = {name: value for name, value in _ODD.items() if name in names}
    if "betas" in names:
        odd["betas"] = odd["betas"][: len(names["betas"].default)]
    if "eps" in names and isinstance(names["eps"].default, tuple):
        odd["eps"] = (odd["eps"], 0.017)
    return odd | variant


CONFIGURATIONS = [
    (rule, hyper(rule, variant)) for rule in RULES for variant in VARIANTS.get(rule, [{}])
]


def label(value: Any) -> str | None:
    """Readable test ids: the flags of a variant rather than a dictionary."""
    if isinstance(value, dict):
        shown = {k: v for k, v in value.items() if k not in _ODD}
        return "-".join(f"{k}={v}" for k, v in shown.items()) or "plain"
    if isinstance(value, type):
        return value.__name__
    return None


def same_bits(actual: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    """Equality to the last bit, the sign of zero included; NaN equals NaN whatever its payload."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    np.testing.assert_array_equal(actual, expected, err_msg=what)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(
        np.signbit(actual)[numbers], np.signbit(expected)[numbers], err_msg=f"{what}: sign of zero"
    )


def reference_hyper(opt: st.Optimizer, group: int = 0) -> dict[str, Any]:
    """A group's hyper-parameters as ``reference.step`` takes them."""
    return {k: opt.param_groups[group][k] for k in opt.defaults}


def misaligned(values: np.ndarray, shift: int) -> np.ndarray:
    """A copy that begins `shift` elements behind a 64-byte boundary."""
    room = np.empty(values.size + 64, values.dtype)
    start = -room.__array_interface__["data"][0] // values.itemsize % (64 // values.itemsize)
    copy = room[start + shift : start + shift + values.size]
    copy[...] = values
    return copy


def use_threads(n: int) -> None:
    """n threads even where the machine has fewer CPUs."""
    st.set_num_threads(n)
    threads._limit = n
