"""Several rules in one optimizer equal several optimizers."""

import copy

import numpy as np
import pytest
from cases import same_bits

import steepest as st

RULES = {
    "vectors": {"rule": "sgd", "lr": 0.1, "momentum": 0.9},
    "head.*": {"rule": "lamb", "lr": 0.02},
    "free.*": {"rule": "dog", "reps_rel": 0.01},
    "*": {"rule": "adamw", "lr": 0.01, "weight_decay": 0.1},
}
SHAPES = {"a.w": (30, 40), "a.b": (40,), "head.w": (40, 3), "head.b": (3,), "free.w": (5, 5)}


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def alone(params):
    """The same as separate optimizers: (optimizer, names)."""
    part = [["a.b", "head.b"], ["head.w"], ["free.w"], ["a.w"]]
    made = [st.SGD, st.LAMB, st.DoG, st.AdamW]
    return [
        (cls({n: params[n] for n in names}, **{k: x for k, x in own.items() if k != "rule"}), names)
        for cls, names, own in zip(made, part, RULES.values(), strict=True)
    ]


def test_it_equals_separate_optimizers(tmp_path):
    params, twins = arrays(1), arrays(1)
    opt, others = st.ByGroup(params, RULES), alone(twins)
    for seed in range(5):
        grads = arrays(seed)
        if seed == 2:
            grads["head.w"] = None
        opt.step(grads)
        for other, names in others:
            other.step({name: grads[name] for name in names})
        if seed == 3:  # saved, and gone on with
            st.save(tmp_path / "x.safetensors", opt, params)
            params = arrays(9)
            opt = st.ByGroup(params, RULES)
            st.load(tmp_path / "x.safetensors", opt, params)
    for name, p in params.items():
        same_bits(p, twins[name], name)
    assert opt.param_groups[3]["rbar"] == others[2][0].param_groups[0]["rbar"] > 0.0


def test_options_hold_for_all():
    params, twins = arrays(1), arrays(1)
    opt = st.ByGroup(params, RULES, clip=st.clip.global_norm(1.0), exclude="vectors", ema=0.9)
    grads = arrays(2)
    opt.step(grads)
    together = np.sqrt(sum((g * g).sum() for g in grads.values()))
    np.testing.assert_allclose(opt.last_norm, together, rtol=1e-14)
    sgd = st.SGD({"a.b": twins["a.b"]}, lr=0.1, momentum=0.9)
    sgd.step({"a.b": grads["a.b"] * (1.0 / (opt.last_norm + 1e-6))})
    np.testing.assert_allclose(params["a.b"], twins["a.b"], rtol=1e-14)
    assert all("ema" in state for state in opt.state.values())


def test_masks_reach_every_rule():
    params = arrays(1)
    kept = {"a.b": np.arange(40) % 2 == 0, "head.w": np.eye(40, 3, dtype=bool)}
    opt = st.ByGroup(params, RULES, filter=st.filters.mask(kept))
    opt.step(arrays(2))
    for name, mask in kept.items():
        assert not params[name][~mask].any() and params[name][mask].all()


def test_a_group_with_a_rule_in_any_optimizer():
    a, b, c, d = np.ones(2), np.ones(2), np.ones(2), np.ones(2)
    opt = st.AdamW([{"params": [a]}, {"params": [b], "rule": "lion", "lr": 0.25}], lr=0.5)
    opt.step([[np.ones(2)], [np.ones(2)]])
    st.AdamW(c, lr=0.5).step(np.ones(2))
    st.Lion(d, lr=0.25).step(np.ones(2))
    same_bits(a, c)
    same_bits(b, d)
    assert "rule='lion'" in repr(opt)
    saved = copy.deepcopy(opt.state_dict())
    other = st.AdamW([{"params": [c]}, {"params": [d], "rule": "sgd"}])
    with pytest.raises(ValueError, match="state of rule 'lion' given to 'sgd'"):
        other.load_state_dict(saved)
    opt.param_groups[1]["rule"] = "sgd"
    with pytest.raises(ValueError, match="a group's rule cannot change"):
        opt.step([[np.ones(2)], [np.ones(2)]])


def test_groups_of_a_global_rule_share_what_it_keeps():
    one, two = arrays(1), arrays(1)
    whole = st.DoG(one, reps_rel=0.01)
    parts = st.DoG(
        [{"params": {n: two[n] for n in ("a.w", "a.b")}},
         {"params": {n: two[n] for n in ("head.w", "head.b", "free.w")}}], reps_rel=0.01,
    )  # fmt: skip
    for seed in range(3):
        grads = arrays(seed)
        whole.step(grads)
        parts.step([{n: grads[n] for n in ("a.w", "a.b")},
                    {n: grads[n] for n in ("head.w", "head.b", "free.w")}])  # fmt: skip
    for name in one:
        same_bits(one[name], two[name], name)
    assert parts.param_groups[0]["rbar"] == parts.param_groups[1]["rbar"]
    parts.param_groups[1]["rbar"] = 7.0
    with pytest.raises(ValueError, match=r"rbar of group 1 = 7\.0: expected"):
        parts.step([{n: one[n] for n in ("a.w", "a.b")},
                    {n: one[n] for n in ("head.w", "head.b", "free.w")}])  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"*": {"lr": 0.1}}, TypeError, "each with a rule"),
        ([("*", "sgd")], TypeError, "expected a dict of patterns"),
        ({"*": {"rule": "sdg"}}, ValueError, "rule 'sdg' of a group: expected one of sgd"),
        ({"*": {"rule": "sgd", "betas": (0.9, 0.9)}}, ValueError, "sgd has no hyper-parameter"),
        ({"head.*": {"rule": "sgd"}}, ValueError, "no rule for parameter 'a.w'"),
        ({"*": {"rule": "sgd"}, "x": {"rule": "sgd"}}, ValueError, "rules.'x'. has no parameter"),
        ({"*": {"rule": "sgd", "lr": -1.0}}, ValueError, "lr = -1.0"),
    ],
)
def test_wrong_tables(rules, error, message):
    with pytest.raises(error, match=message):
        st.ByGroup(arrays(0), rules)


def test_numbers_of_a_group_without_gradients_stay_as_they_are_set():
    a, b = np.ones(2), np.ones(2)
    groups = [{"params": [a]}, {"params": [b]}]
    opt = st.ScheduleFreeSGD(groups, lr=0.5)
    opt.step([[np.ones(2)], [np.ones(2)]])
    opt.param_groups[1]["weight_sum"] = 7.0
    opt.step([[np.ones(2)], None])
    assert opt.param_groups[1]["weight_sum"] == 7.0
    opt.param_groups[0]["weight_sum"] = 3.0
    opt.step([None, None])
    assert [g["weight_sum"] for g in opt.param_groups] == [3.0, 7.0]
