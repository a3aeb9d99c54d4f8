"""Rules of other packages: pytorch_optimizer, and optax under jit.

They are found by name, whatever its capitals, and step with their own defaults and the learning
rate of this library's: dialects differ in formula, but hardly in the work of a step.
"""

import importlib
from types import ModuleType
from typing import Any

from bench.cases import Workload
from steepest.memory.arrays import Array
from steepest.optimizers import RULES

RATE = 1e-3


def twin(rule: str, modules: list[ModuleType | None]) -> Any | None:
    """What a package calls the rule, or None."""
    wanted = RULES[rule].__name__.lower()
    for module in modules:
        for name, found in vars(module).items() if module is not None else ():
            if name.lower().replace("_", "") == wanted and callable(found):
                return found
    return None


def load(name: str) -> ModuleType | None:
    """A module, or None where its package is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


class PytorchOptimizer:
    """pytorch_optimizer's, in foreach form where it has one."""

    name = "pytorch_optimizer"

    def __init__(self, workload: Workload, gradients: list[Array], params: list[Array]) -> None:
        torch = importlib.import_module("torch")
        made = twin(workload.rule, [load("pytorch_optimizer")])
        if made is None:
            raise LookupError(f"pytorch_optimizer has no {RULES[workload.rule].__name__}")
        self.params = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = torch.from_numpy(g.copy())
        self.optimizer = made(self.params, lr=RATE)

    def prepare(self) -> None:
        pass

    def step(self) -> None:
        self.optimizer.step()


class Optax:
    """optax's, update and application in one jitted function whose arguments are given away."""

    name = "optax"

    def __init__(self, workload: Workload, gradients: list[Array], params: list[Array]) -> None:
        optax, jax = load("optax"), load("jax")
        made = twin(workload.rule, [optax, load("optax.contrib")])
        if made is None or jax is None or optax is None:
            raise LookupError(f"optax has no {RULES[workload.rule].__name__}")
        rule = made(RATE)
        self.params = [jax.numpy.asarray(p.copy()) for p in params]
        self.gradients = [jax.numpy.asarray(g.copy()) for g in gradients]
        # Its own copies: the first state may share memory with the parameters.
        self.state = jax.tree.map(jax.numpy.array, rule.init(self.params))

        def stepped(params: Any, state: Any, grads: Any) -> Any:
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.stepped = jax.jit(stepped, donate_argnums=(0, 1))
        self.jax = jax
        self.step()  # compiles, and says what it cannot do

    def prepare(self) -> None:
        pass

    def step(self) -> None:
        self.params, self.state = self.stepped(self.params, self.state, self.gradients)
        self.jax.block_until_ready(self.params)
