"""The small regression that tests of training use: a line through exact or noisy points."""

import numpy as np

import steepest as st

RULES = {
    "sgd": lambda p, lr: st.SGD(p, lr=lr),
    "adagrad": lambda p, lr: st.Adagrad(p, lr=5 * lr),
    "rmsprop": lambda p, lr: st.RMSprop(p, lr=lr, alpha=0.9),
    "adam": lambda p, lr: st.Adam(p, lr=lr, betas=(0.8, 0.99)),
}
BATCH_SIZES = {"full-batch": None, "single-sample": 1, "mini-batch": 8}


def line(p, x, y):
    return ((p["w"] * x + p["b"] - y) ** 2).mean()


def line_and_grad(p, x, y):
    error = p["w"] * x + p["b"] - y
    grads = {"w": np.array(2 * (error * x).mean()), "b": np.array(2 * error.mean())}
    return (error**2).mean(), grads


def start(w=0.0, b=0.0):
    return {"w": np.array(w), "b": np.array(b)}


def exact():
    x = np.linspace(-1, 2, 40)
    return x, 2 * x + 1


def noisy():
    rng = np.random.default_rng(11)
    x = rng.uniform(-1, 2, 400)
    return x, 1.5 * x + 0.8 + rng.normal(0, 0.1, 400)
