"""What changes an optimizer between steps: an interrupt leaves all old or all new."""

import signal

import numpy as np
import pytest
from cases import brief
from faults import interrupted_at, lines_of

import steepest as st
from steepest import schedules

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda x: x.name)
STRIDES = pytest.mark.parametrize("stride", brief([19, 5], [19]))
"""Between lines that are tried; all of the last 40 are. ``tests/long/failures.py`` tries all."""


def made(*steps, lr=0.1):
    """An optimizer of two groups with a schedule, a clip and a state, after some steps."""
    p = {"a": np.ones(3), "b": np.ones((2, 2), np.float32)}
    groups = [{"params": {"a": p["a"]}}, {"params": {"b": p["b"]}, "lr": schedules.plateau(lr)}]
    opt = st.AdamW(groups, lr=lr, clip=st.clip.percentile(50))
    for x in steps or (1.0, 2.0):
        opt.step([{"a": np.full(3, x)}, {"b": np.full((2, 2), x, np.float32)}])
    return opt


def seen(opt):
    """Everything that a step uses, as text."""
    names = [group["param_names"] for group in opt.param_groups]
    plateau = opt.param_groups[1]["lr"].state
    return repr((names, opt._order, opt._given, plateau, opt.state_dict()))


@SIGNALS
@STRIDES
def test_a_state_is_loaded_wholly_or_not_at_all(number, stride):
    loaded = made(3.0, 4.0, 5.0, lr=0.2).state_dict()
    loaded["param_groups"][1]["lr"].observe(3.0)
    loaded["param_groups"][0]["note"] = 1

    def change(opt):
        opt.load_state_dict(loaded)

    before, after, fresh = seen(made()), made(), made()
    change(after)
    after = seen(after)
    lines = lines_of(lambda: change(fresh))
    assert lines > 200
    found = []
    for n in (*range(1, lines - 40, stride), *range(lines - 40, lines + 1)):
        opt = made()
        assert interrupted_at(n, lambda opt=opt: change(opt), number)
        found.append(seen(opt))
        opt.step([{"a": np.ones(3)}, None])
    assert before in found and set(found) <= {before, after}


@SIGNALS
@STRIDES
def test_a_group_is_added_wholly_or_not_at_all(number, stride):
    def change(opt):
        opt.add_param_group({"params": {"c": np.ones(2), "d": np.ones(1)}, "lr": 0.5})

    before, after, fresh = seen(made()), made(), made()
    change(after)
    after = seen(after)
    lines = lines_of(lambda: change(fresh))
    assert lines > 200
    found = []
    for n in (*range(1, lines - 40, stride), *range(lines - 40, lines + 1)):
        opt = made()
        assert interrupted_at(n, lambda opt=opt: change(opt), number)
        found.append(seen(opt))
        grads = [None, {"b": np.ones((2, 2), np.float32)}]
        opt.step(grads if found[-1] == before else [*grads, {"c": np.ones(2), "d": None}])
    assert before in found and set(found) <= {before, after}
