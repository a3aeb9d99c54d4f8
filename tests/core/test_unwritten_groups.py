"""A group that nothing was written to is recognised by its objects; anything else is looked at."""

import numpy as np
import pytest

import steepest as st
from steepest.kernels.sources import ANYTHING, has_only


def test_only_the_very_objects_in_their_order():
    rate = 0.001
    keys, values = ("a", "lr"), (ANYTHING, rate)
    assert has_only({"a": 1, "lr": rate}, keys, values)
    for other in (
        {"lr": rate, "a": 1}, {"a": 1}, {"a": 1, "lr": rate, "b": 2}, {"b": 1, "lr": rate},
        {"a": 1, "lr": float("0.001")},
    ):  # fmt: skip
        assert not has_only(other, keys, values)
    assert not has_only({"a": 1, "lr": rate}, keys, ())
    assert not has_only(type("Group", (dict,), {})(a=1, lr=rate), keys, values)


def test_whatever_is_written_is_seen_at_the_next_step():
    p = np.zeros(3, np.float32)
    opt = st.SGD(p, lr=1.0)
    group, g = opt.param_groups[0], np.ones(3, np.float32)
    for _ in range(3):
        opt.step(g)
    group["lr"] = 0.5
    opt.step(g)
    group["maximize"] = True
    opt.step(g)
    group["maximize"] = False
    group |= {"lr": lambda t: 0.25 * t}  # five updates were done
    opt.step(g)
    np.testing.assert_array_equal(p, np.full(3, -3 - 0.5 + 0.5 - 1.25, np.float32))
    group["lr"] = "fast"
    with pytest.raises(TypeError, match="lr = 'fast'"):
        opt.step(g)
    with pytest.raises(TypeError, match="lr = 'fast'"):
        opt.step(g)
    del group["lr"]
    with pytest.raises(KeyError):
        opt.step(g)
    group["lr"], group["rule"] = 1.0, "lion"
    with pytest.raises(ValueError, match="a group's rule cannot change"):
        opt.step(g)
