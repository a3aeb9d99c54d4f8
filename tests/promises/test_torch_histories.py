"""Random histories of ``steepest.torch``: the bits of the NumPy class, near torch's own, and the
same whether saved or not.

``python tests/long/torch_histories.py --minutes 60`` draws others.
"""

import json

import pytest

pytest.importorskip("torch")

import histories
import torch
import torch_history_draws
import torch_history_runs
from shrinking import size

import steepest.torch as stt
from steepest.optimizers import RULES

pytestmark = pytest.mark.torch

FEW, MANY, PARTS = 2, 16, 20


def drawn(seeds):
    """Runs the histories of some seeds; AssertionError with what is found, to run it again."""
    for seed in seeds:
        history = torch_history_draws.history(seed)
        found = histories.finding(history, torch_history_runs.check)
        told = histories.program(history, "tests/long/torch_histories.py")
        assert found is None, f"{found}\n{told}"


def test_a_few_histories():
    drawn(range(FEW))


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_many_histories(part):
    drawn(range(1000 + MANY * part, 1000 + MANY * (part + 1)))


def test_what_is_drawn_has_everything():
    every = [torch_history_draws.history(seed) for seed in range(1000, 1600)]
    assert {h["rule"] for h in every} == {*RULES}
    text = json.dumps(every)
    wanted = [*torch_history_draws.FORMATS, *torch_history_draws.LAYOUTS, "interrupt", "spread"]
    wanted += [*torch_history_draws.TURNS, "closure", "clipped", "zero", "data", "freeze", "thaw"]
    wanted += [f'"scheduler": "{x.partition("(")[0]}' for x in torch_history_draws.SCHEDULERS]
    assert [word for word in wanted if word not in text] == []


# Faults that are put in are found, and made small.


def coefficient(monkeypatch):
    cls = next(cls for cls in RULES["adamw"].__mro__ if "coefficients" in vars(cls))
    before = cls.coefficients

    def changed(h, t):
        return before({**h, "lr": h["lr"] * 1.001}, t)

    changed.__module__, changed.__qualname__ = before.__module__, before.__qualname__  # for pickle
    monkeypatch.setattr(cls, "coefficients", staticmethod(changed))


def after_steps(monkeypatch, after):
    before = stt.AdamW.step

    def step(self, closure=None):
        loss = before(self, closure)
        after(self)
        return loss

    monkeypatch.setattr(stt.AdamW, "step", step)


def strided(monkeypatch):
    def after(opt):
        for group in opt.param_groups:
            for p in group["params"]:
                if not p.is_contiguous():
                    p.data[..., -1] = 0.0

    after_steps(monkeypatch, after)


def gradients(monkeypatch):
    def after(opt):
        for group in opt.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_contiguous():
                    p.grad *= 0.5

    after_steps(monkeypatch, after)


def state(monkeypatch):
    before = stt.AdamW.load_state_dict

    def load(self, state_dict):
        for own in state_dict["state"].values():
            own["exp_avg"] = torch.zeros_like(own["exp_avg"])
        before(self, state_dict)

    monkeypatch.setattr(stt.AdamW, "load_state_dict", load)


FAULTS = {
    coefficient: ["torch"], strided: ["numpy"], gradients: ["gradient"], state: ["saved"]
}  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_is_found_and_made_small(fault, monkeypatch):
    fault(monkeypatch)
    kinds = FAULTS[fault]
    for seed in range(300):
        history = torch_history_draws.history(seed, "adamw")
        found = histories.finding(history, torch_history_runs.check)
        if found is not None:
            break
    assert found is not None and found.kind in kinds, found
    small = histories.smallest(history, found.kind, torch_history_runs.check, 5.0)
    again = histories.finding(json.loads(json.dumps(small)), torch_history_runs.check)
    assert again is not None and again.kind == found.kind
    assert size(small) < size(history) / 2 or len(small["events"]) <= 2
