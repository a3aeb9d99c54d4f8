"""The matrix rules as data for their tests: names, functions, hyper-parameters off the defaults."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from steepest.matrix import kron, low_rank, muon, shampoo, soap


@dataclass(frozen=True)
class Rule:
    name: str
    states: Callable[..., dict[str, Any]]
    direction: Callable[..., tuple[Any, dict[str, Any]]]
    hyper: dict[str, Any] = field(default_factory=dict)
    shaping: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters that initial_states takes too."""

    def start(self, shape, dtype):
        return self.states(shape, dtype, **self.shaping)

    def __call__(self, g, state, t):
        return self.direction(g, state, t, **self.hyper)


def rule(name, states, direction, shaping=None, own=None, **hyper):
    """own: what initial_states alone takes."""
    shaping = shaping or {}
    return Rule(name, states, direction, shaping | hyper, shaping | (own or {}))


APOLLO = partial(rule, states=low_rank.apollo_states, direction=low_rank.apollo_direction)
GALORE = partial(rule, states=low_rank.galore_states, direction=low_rank.galore_direction)

MUONS = [
    rule("muon", muon.initial_states, muon.direction, momentum=0.8),
    rule(
        "muon plain",
        muon.initial_states,
        muon.direction,
        momentum=0.9,
        nesterov=False,
        adjust_lr_fn="match_rms_adamw",
    ),
    rule("muon polar", muon.initial_states, muon.direction, coefficients="polar_express"),
    rule("normuon", muon.normuon_states, muon.normuon_direction, beta2=0.8),
    rule(
        "normuon rms",
        muon.normuon_states,
        muon.normuon_direction,
        beta2=0.9,
        adjust_lr_fn="match_rms_adamw",
    ),
]

OTHERS = [
    rule(
        "soap",
        soap.initial_states,
        soap.direction,
        shaping={"precondition_1d": True},
        betas=(0.8, 0.9),
        shampoo_beta=0.7,
        precondition_frequency=2,
        eps=1e-6,
    ),
    rule(
        "soap one side",
        soap.initial_states,
        soap.direction,
        shaping={"max_precondition_dim": 5},
        normalize_gradient=True,
        correct_bias=False,
    ),
    rule(
        "shampoo",
        shampoo.initial_states,
        shampoo.direction,
        shaping={"momentum": 0.7, "matrix_eps": 1e-2},
        preconditioning_compute_steps=2,
    ),
    rule(
        "shampoo grafted",
        shampoo.initial_states,
        shampoo.direction,
        shaping={"grafting": "adagrad", "max_precondition_dim": 5, "matrix_eps": 1e-3},
    ),
    rule(
        "psgdkron",
        kron.initial_states,
        kron.direction,
        own={"precond_init_scale": 0.5},
        momentum=0.8,
        balance_interval=3,
        seed=3,
    ),
    rule(
        "psgdkron diagonal",
        kron.initial_states,
        kron.direction,
        own={"memory_save_mode": "one_diag"},
        preconditioner_update_probability=0.5,
        momentum_into_precondition_update=False,
    ),
    GALORE("galore", shaping={"rank": 3}, update_proj_gap=4, betas=(0.8, 0.9)),
    APOLLO("apollo", shaping={"rank": 3}, update_proj_gap=4, betas=(0.8, 0.9), scale=2.0),
    APOLLO("apollo mini", shaping={"rank": 1}, scale=128.0, scale_type="tensor", seed=5),
]

RULES = MUONS + OTHERS


def gradients(shape, count, dtype=np.float64, seed=0):
    """Gradients with a part in common, as those of a training run have."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(shape)
    return [np.asarray(shared + rng.standard_normal(shape), dtype) for _ in range(count)]


def run(rule, grads, dtype=None):
    """The direction and the state after every step."""
    dtype = dtype or grads[0].dtype
    state = rule.start(grads[0].shape, dtype)
    history = []
    for t, g in enumerate(grads, 1):
        d, new = rule(g.astype(dtype), state, t)
        state = state | new
        history.append((d, state))
    return history


CLOSE = {"rtol": 1e-10, "atol": 1e-12}
"""In float64, for the rounding of some steps, which rotations and the iteration of Muon amplify."""


def path(states, direction, grads, start, lr, decay=0.0, shaping=None, **hyper):
    """The parameter after every step: p ← (1 - lr · decay) p - lr · d."""
    shaping = shaping or {}
    p, state, found = start.copy(), states(start.shape, start.dtype, **shaping), []
    for t, g in enumerate(grads, 1):
        d, new = direction(g, state, t, **hyper)
        p = (1 - lr * decay) * p - lr * d
        state |= new
        found.append(p)
    return np.array(found)


def torch_path(make, grads, start, before=None):
    """By a class of torch's or pytorch_optimizer's; `before(t, state)` runs ahead of each step."""
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    opt, found = make(p), []
    for t, g in enumerate(grads, 1):
        p.grad = torch.from_numpy(g.copy())
        if before is not None:
            before(t, opt.state[p])
        opt.step()
        found.append(p.detach().numpy().copy())
    return np.array(found)


def start(shape, dtype=np.float64):
    return np.asarray(np.random.default_rng(9).standard_normal(shape), dtype)
