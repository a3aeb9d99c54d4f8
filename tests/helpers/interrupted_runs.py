"""Runs of ``fit`` that tests interrupt and resume."""

import math

import numpy as np

import steepest as st
from steepest import schedules
from steepest.training import fit

TIMES = ("seconds", "optimizer_seconds")


def data(n=23, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, x @ np.array([1.0, -2.0, 0.5]) + 0.3 + rng.normal(0, 0.5, n)


def start(dtype=np.float64):
    return {"net": {"w": np.full(3, 0.5, dtype)}, "b": np.zeros((), dtype)}


def loss(p, x, y):
    return ((x @ p["net"]["w"] + p["b"] - y) ** 2).mean()


def value_and_grad(p, x, y):
    error = x @ p["net"]["w"] + p["b"] - y
    dtype = p["b"].dtype
    w, b = (2 / len(x) * (x.T @ error)).astype(dtype), np.array(2 * error.mean(), dtype)
    return (error**2).mean(), {"net": {"w": w}, "b": b}


class Stop(Exception):
    """The process ends here; nothing of it is left but its files."""


class Train:
    """fit over the same problem, with arguments changed; parameters and history stay readable."""

    def __init__(self, make, dtype=np.float64, **arguments):
        self.params = start(dtype)
        self.optimizer = make(self.params)
        self.calls = 0
        self.stop_at, self.how = None, Stop
        self.arguments = {"epochs": 4, "value_and_grad": self.gradient, "seed": 3} | arguments
        self.history = None

    def gradient(self, p, x, y):
        self.calls += 1
        if self.calls == self.stop_at:
            raise self.how
        return value_and_grad(p, x, y)

    def run(self, **arguments):
        self.history = fit(
            loss, self.params, data(), self.optimizer, **(self.arguments | arguments)
        )
        return self

    def outcome(self):
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in self.history.rows]
        told = (self.history.stopped, self.history.message, self.history.best_epoch)
        state = self.optimizer.state_dict()
        arrays = [self.params["net"]["w"], self.params["b"]]
        arrays += [x for own in state["state"].values() for x in own.values()]
        return (
            repr(rows),  # repr, not ==: NaN equals NaN here, and 1 is not 1.0
            [list(row) for row in self.history.rows],
            told,
            [(x.dtype, x.shape, x.tobytes()) for x in arrays],
            state["updates"],
            state["skipped"],
            repr(state["param_groups"]),
        )


def adamw(p):
    lr = schedules.cosine(0.05, steps=40, warmup=3)
    return st.AdamW(p, lr=lr, weight_decay=0.1, ema=0.8, clip=st.clip.global_norm(1.0))


def momentum(p):
    return st.SGD(p, lr=0.03, momentum=0.9)


def ragged(p):
    groups = [{"params": {"net": p["net"]}, "lr": 0.02}, {"params": {"b": p["b"]}, "l1": 0.01}]
    return st.RMSprop(groups, lr=0.01)


HELD_OUT = data(9, seed=5)
METRICS = {"size": lambda p, x, y: np.abs(p["net"]["w"]).sum(), "odd": lambda p, x, y: math.nan}
CASES = {
    "full batch": (momentum, {}),
    "mini-batch": (adamw, {"batch_size": 5}),
    "float32": (adamw, {"batch_size": 5, "dtype": np.float32}),
    "unshuffled": (momentum, {"batch_size": 7, "shuffle": False}),
    "growing batch": (momentum, {"batch_size": schedules.linear(2, steps=15, end=9)}),
    "accumulated": (adamw, {"batch_size": 3, "accumulate": 3}),
    "noise scale": (momentum, {"batch_size": 3, "accumulate": 2, "noise_scale": True}),
    "validation": (adamw, {"batch_size": 6, "validation": HELD_OUT, "metrics": METRICS}),
    "averaged": (adamw, {"batch_size": 6, "validation": HELD_OUT, "use_ema": True, "patience": 9}),
    "best": (momentum, {"batch_size": 2, "validation": HELD_OUT, "patience": 2, "epochs": 9}),
}
