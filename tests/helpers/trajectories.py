"""The path of a parameter under the reference and under optimizers of others."""

import numpy as np
import pytest
from cases import reference_hyper

from steepest import reference
from steepest.optimizers import RULES

STEPS = 100


def trajectory(rule, arguments, options, grads, start):
    """The parameter after each step of the reference, through an optimizer's hyper-parameters."""
    p = start.copy()
    opt = RULES[rule](p, **arguments, **options)
    state = {key: x.copy() for key, x in opt.state["0"].items()}
    h = reference_hyper(opt)
    path = []
    for t, g in enumerate(grads, 1):
        reference.step(rule, p, g, state, t, **h)
        path.append(p.copy())
    return np.array(path)


def gradients(seed=3, n=57):
    """Gradients of changing size, some exactly zero."""
    rng = np.random.default_rng(seed)
    grads = rng.standard_normal((STEPS, n)) * 10.0 ** rng.uniform(-3, 1, (STEPS, n))
    grads[rng.random((STEPS, n)) < 0.05] = 0.0
    return grads, rng.standard_normal(n)


def torch_path(make, grads, start):
    """The parameter after each step of a torch optimizer, and the optimizer."""
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    opt = make([p])
    path = []
    for g in grads:
        p.grad = torch.from_numpy(g.copy())
        opt.step()
        path.append(p.detach().numpy().copy())
    return np.array(path), opt


def optax_path(transform, grads, start):
    """The parameter after each step of an optax transformation."""
    optax = pytest.importorskip("optax")
    import jax

    jax.config.update("jax_enable_x64", True)
    p = jax.numpy.asarray(start)
    state, path = transform.init(p), []
    for g in grads:
        updates, state = transform.update(jax.numpy.asarray(g), state, p)
        p = optax.apply_updates(p, updates)
        path.append(np.asarray(p))
    return np.array(path)


def assert_close(path, other, rtol=1e-12):
    """Equality but for the roundings of 100 steps in float64, done in another order."""
    for t, (p, q) in enumerate(zip(path, other, strict=True), 1):
        np.testing.assert_allclose(p, q, rtol=rtol, atol=1e-14, err_msg=f"step {t}")


def rosenbrock(p):
    x, y = p
    return 100.0 * (y - x * x) ** 2 + (1.0 - x) ** 2


def slope(p):
    x, y = p
    return np.array([-400.0 * x * (y - x * x) - 2.0 * (1.0 - x), 200.0 * (y - x * x)])
