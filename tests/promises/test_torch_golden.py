"""State dicts that an earlier version wrote are loaded, and go on with the same bits.

``python tests/promises/test_torch_golden.py`` writes the file anew, for a layout that is meant to
change.
"""

from pathlib import Path

import pytest
from cases import CONFIGURATIONS, MATRICES_ONLY
from golden import numbers

from steepest.optimizers import RULES

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402

FILE = Path(__file__).parents[1] / "data" / "torch_states_version_1.pt"
FIRST = dict(reversed([*CONFIGURATIONS, *((rule, {}) for rule in MATRICES_ONLY)]))
BEFORE, AFTER = 4, 3


def parameters():
    return [
        torch.nn.Parameter(torch.tensor(numbers(shape, k, "float32")))
        for k, shape in enumerate([(6, 5), (4,)])
    ]


def optimizer(rule, params):
    return getattr(stt, RULES[rule].__name__)(params, **FIRST[rule])


def step(opt, params, t):
    for k, p in enumerate(params):
        noise = torch.from_numpy(numbers(tuple(p.shape), 31 * t + k, "float32"))
        p.grad = noise + p.detach().clamp(-1, 1) / 4
    opt.step()


def made(rule):
    params = parameters()
    opt = optimizer(rule, params)
    for t in range(BEFORE):
        step(opt, params, t)
    begun = [p.detach().clone() for p in params]
    state = opt.state_dict()
    torch.save({"state": state}, FILE)  # a copy: the steps below go on in the tensors of `state`
    state = torch.load(FILE)["state"]
    for t in range(BEFORE, BEFORE + AFTER):
        step(opt, params, t)
    return {"params": begun, "state": state, "after": [p.detach().clone() for p in params]}


@pytest.mark.parametrize("rule", RULES)
def test_an_earlier_state_dict_goes_on(rule):
    known = torch.load(FILE)[rule]
    params = parameters()
    opt = optimizer(rule, params)
    for p, x in zip(params, known["params"], strict=True):
        p.data.copy_(x)
    opt.load_state_dict(known["state"])
    for t in range(BEFORE, BEFORE + AFTER):
        step(opt, params, t)
    for p, x in zip(params, known["after"], strict=True):
        if RULES[rule].needs == "matrix":  # whose bits are those of one machine's BLAS
            torch.testing.assert_close(p.detach(), x)
        else:
            assert p.detach().numpy().tobytes() == x.numpy().tobytes()


if __name__ == "__main__":
    torch.save({rule: made(rule) for rule in RULES}, FILE)
