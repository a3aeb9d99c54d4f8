"""A step costs what has changed: only what was written to, or is a schedule, is looked at again."""

import dataclasses
import sys
from collections.abc import Callable

import numpy as np
import pytest
from cases import same_bits

import steepest as st
from steepest import schedules
from steepest.core.asked import Asked
from steepest.optimizers import RULES

G = np.array([0.5, -1.0, 2.0])


def looked_up(opt, names: list[str], monkeypatch) -> list[str]:
    """Notes the name of every hyper-parameter whose value is looked at from here on."""
    [live] = opt._groups
    check_number, check = live._checked_number, live.rule.checked

    def noted(name, *rest):
        names.append(name)
        return check_number(name, *rest)

    def checked(name, *rest):
        names.append(name)
        return check(name, *rest)

    monkeypatch.setattr(live, "_checked_number", noted)
    monkeypatch.setattr(live.rule, "checked", checked, raising=False)
    return names


@pytest.mark.parametrize(
    ("written", "looked_at"),
    [
        ({}, []),
        ({"lr": 0.25}, ["lr"]),
        ({"betas": (0.8, 0.9), "eps": 1e-6}, ["betas", "eps"]),
        ({"weight_decay": 0.5}, ["weight_decay"]),
    ],
    ids=str,
)
def test_only_what_was_written_is_looked_at(monkeypatch, written, looked_at) -> None:
    opt = st.AdamW(np.ones(3), lr=0.5)
    opt.step(G)
    names = looked_up(opt, [], monkeypatch)
    for _ in range(3):
        opt.param_groups[0].update(written)
        opt.step(G)
    assert names == looked_at


def test_a_schedule_alone_is_evaluated_at_every_step(monkeypatch) -> None:
    cosine, seen = schedules.cosine(0.5, steps=9), []

    def lr(count):
        seen.append(count)
        return cosine(count)

    opt = st.AdamW(np.ones(3), lr=lr)
    opt.step(G)
    names = looked_up(opt, [], monkeypatch)
    del seen[:]
    for _ in range(3):
        opt.step(G)
    assert seen == [1, 2, 3] and names == []
    assert opt._groups[0].h["lr"] == cosine(3)


def calls(function: Callable[[], object]) -> int:
    """How many functions written in Python it calls."""
    count = 0

    def note(_frame, event, _argument) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_a_step_calls_few_functions() -> None:
    """17 and 153 when every step looked at everything."""
    constant, cosine = st.AdamW(np.ones(3)), st.AdamW(np.ones(3), schedules.cosine(0.5, steps=9))
    for opt in (constant, cosine):
        opt.step(G)
    assert calls(lambda: constant.step(G)) <= 14
    assert calls(lambda: cosine.step(G)) <= 24


# What a changed number may change, with the value written before and after a step.
CHANGES = {
    "sgd": [
        {"momentum": 0.9}, {"momentum": 0.0}, {"lr": 0.0}, {"weight_decay": 0.25}, {"l1": 0.5},
        {"weight_decay": 0.0, "decay_mode": "decoupled"}, {"weight_decay": 0.5},
    ],
    "adamw": [
        {"lr": 0.25}, {"weight_decay": 0.0}, {"weight_decay": 0.5}, {"betas": (0.5, 0.75)},
        {"decay_mode": "lr_relative", "peak_lr": 1.0}, {"peak_lr": 2.0}, {"lr": np.float64(0.125)},
        {"lr": schedules.linear(0.5, steps=20)}, {"lr": 0.75}, {"l1": 0.125}, {"ema": 0.5},
        {"clip": st.clip.value(0.5)}, {"clip": None}, {"maximize": True}, {"lr": 1},
    ],
    "rmsprop": [{"momentum": 0.5}, {"alpha": 0.5}, {"centered": True}, {"eps": 1e-3}],
    "lamb": [{"lr": 0.5}, {"weight_decay": 0.25}, {"betas": (0.5, 0.5)}],
    "schedulefreeadamw": [{"lr": 0.125}, {"weight_decay": 0.5}],
    "adafactor": [{"lr": 0.5}, {"weight_decay": 0.25}, {"decay_mode": "decoupled"}],
}  # fmt: skip


@pytest.mark.parametrize("rule", CHANGES)
def test_changes_have_the_bits_of_an_optimizer_that_looks_at_everything(rule) -> None:
    """The twin is copied before every step, and what a copy has is made anew."""
    p, q = np.linspace(-1, 1, 12).reshape(3, 4), np.linspace(-1, 1, 12).reshape(3, 4)
    opt, twin = RULES[rule](p), RULES[rule](q)
    rng = np.random.default_rng(0)
    for change in [{}, *CHANGES[rule], {}]:
        for _ in range(2):
            g = rng.standard_normal((3, 4))
            opt.param_groups[0].update(change)
            twin.param_groups[0].update(change)
            for live in twin._groups:
                live._seen = ()
            opt.step(g)
            twin.step(g)
            same_bits(p, q, f"{change}")
            for key, x in opt.state["0"].items():
                same_bits(np.asarray(x), np.asarray(twin.state["0"][key]), f"{change}: {key}")


def test_a_number_that_is_refused_is_refused_again_and_then_forgotten() -> None:
    w, other = np.ones(3), np.ones(3)
    opt, twin = st.AdamW(w, lr=0.5), st.AdamW(other, lr=0.5)
    for each in (opt, twin):
        each.step(G)
    opt.param_groups[0].update(lr=-1.0, weight_decay=0.25)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"lr = -1\.0"):
            opt.step(G)
    opt.param_groups[0].update(lr=0.5, weight_decay=1e-2)
    for each in (opt, twin):
        each.step(G)
    same_bits(w, other)


def test_numbers_that_do_not_go_together_are_refused_when_one_is_written() -> None:
    opt = st.Rprop(np.ones(3))
    opt.step(G)
    opt.param_groups[0]["step_sizes"] = (2.0, 1.0)
    with pytest.raises(ValueError, match="step_sizes"):
        opt.step(G)


@dataclasses.dataclass
class Halving:
    """A schedule that remembers what it was told, and is equal to one that was told the same."""

    lr: float
    told: list = dataclasses.field(default_factory=list)

    def __call__(self, t: int) -> float:
        return self.lr * 0.5 ** len(self.told)


def in_numpy(**hyper):
    w = np.ones(3)
    opt = st.SGD(w, **hyper)
    return opt.param_groups[0], lambda: opt.step(np.ones(3)), w


def in_torch(**hyper):
    torch = pytest.importorskip("torch")
    import steepest.torch as stt

    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    p.grad = torch.ones(3, dtype=torch.float64)
    opt = stt.SGD([p], **hyper)
    return opt.param_groups[0], opt.step, p.detach().numpy()


@pytest.mark.parametrize("door", [in_numpy, pytest.param(in_torch, marks=pytest.mark.torch)])
@pytest.mark.parametrize(
    ("key", "put", "left"),
    [
        ("lr", lambda x: x, [0.5, 0.0, -0.25]),
        ("clip", lambda x: st.clip.value(x), [0.5, 0.0, -0.25]),
        ("filter", lambda x: (st.filters.grokfast(alpha=1.0, lamb=x),), [-0.5, -2.0, -3.25]),
    ],
    ids=["lr", "clip", "filter"],
)
def test_an_equal_object_in_the_place_of_another_is_the_one_that_is_heard(door, key, put, left):
    hyper = {"lr": 1.0, key: put(Halving(0.5))}
    group, step, w = door(**hyper)
    step()
    found = [w[0]]
    other = Halving(0.5)
    group[key] = put(other)
    step()
    found.append(w[0])
    other.told.append(1)
    step()
    assert [*found, w[0]] == left


def test_a_mapping_remembers_what_was_read() -> None:
    asked = Asked({"a": 1, "b": 2, "c": 3})
    assert asked["a"] == 1 and asked.get("b") == 2 and "x" not in asked
    assert asked.keys_read == {"a", "b", "x"}
    assert {**asked} == {"a": 1, "b": 2, "c": 3} and asked.keys_read == {"a", "b", "c", "x"}
