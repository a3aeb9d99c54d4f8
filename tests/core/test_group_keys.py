"""Keys of parameter groups: each changes something, is another program's, or is refused."""

import numpy as np
import pytest

import steepest as st
from steepest.core.group_keys import check_borrowed
from steepest.optimizers import RULES


def vector():
    return {"b": np.zeros(2)}


def matrix():
    return {"w": np.zeros((3, 3))}


@pytest.mark.parametrize("rule", [st.Muon, st.NorMuon])
def test_a_group_of_vectors_beside_matrices_has_its_own_hyper_parameters(rule):
    b, alone = vector(), vector()
    own = {"lr": 1.0, "weight_decay": 0.5, "betas": (0.5, 0.25), "eps": 0.125}
    opt = rule([{"params": matrix()}, {"params": b, **own}])
    peer = st.AdamW(alone, **own)
    for g in (np.array([2.0, -1.0]), np.array([0.5, 4.0])):
        opt.step([{"w": np.ones((3, 3))}, {"b": g}])
        peer.step({"b": g})
    assert b["b"].tolist() == alone["b"].tolist() != [0.0, 0.0]
    with pytest.raises(ValueError, match=r"lr = -5.0"):
        rule([{"params": matrix()}, {"params": vector(), "lr": -5.0}])


@pytest.mark.parametrize("rule", [st.Muon, st.NorMuon])
def test_a_group_of_both_gives_each_rule_what_only_it_knows(rule):
    given = {"params": matrix() | vector(), "lr": 0.5, "betas": (0.5, 0.25), "momentum": 0.25}
    vectors, matrices = sorted(
        rule([given], adamw={"lr": 0.125}).param_groups, key=lambda g: g.get("rule", "own")
    )
    assert vectors["lr"] == 0.125 and vectors["betas"] == (0.5, 0.25)
    assert matrices["lr"] == 0.5 and matrices["momentum"] == 0.25
    assert "momentum" not in vectors and "betas" not in matrices


def test_overrides_and_exclude_stand_before_what_a_group_of_vectors_says():
    given = [{"params": matrix()}, {"params": vector(), "lr": 1.0, "weight_decay": 0.5}]
    opt = st.Muon(given, overrides={"b": {"lr": 0.25}}, exclude="vectors")
    assert opt.param_groups[1]["lr"] == 0.25 and opt.param_groups[1]["weight_decay"] == 0.0


def test_by_group_takes_what_a_group_says_where_its_table_would_drop_it():
    table = {"vectors": {"rule": "sgd", "lr": 0.1}, "*": {"rule": "lion", "lr": 0.2}}
    opt = st.ByGroup([{"params": matrix() | vector(), "lr": 0.5}], table)
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.5]
    own = {"params": vector(), "rule": "adamw", "lr": 0.5}
    opt.add_param_group(own | {"params": {"c": np.zeros(2)}})
    assert opt.param_groups[-1]["rule"] == "adamw" and opt.param_groups[-1]["lr"] == 0.5


REFUSED = [
    (st.AdamW, {"weight_decy": 0.5}, r"group 1: adamw has no .*'weight_decy'.*mean 'weight_decay'"),
    (st.AdamW, {"momentum": 0.5}, "group 1: adamw has no hyper-parameter 'momentum'"),
    (st.AdamW, {"initial_lr": 0.5}, "group 1: adamw has no hyper-parameter 'initial_lr'"),
    (st.SGD, {"betas": (0.9, 0.99)}, "group 1: sgd has no hyper-parameter 'betas'"),
    (st.SGD, {"nonfinite": "raise"}, "group 1 has a key 'nonfinite'; give it to the constructor"),
    (st.SGD, {"exclude": "vectors"}, "group 1 has a key 'exclude'; give it to the constructor"),
    (st.SGD, {3: 4}, "group 1: sgd has no hyper-parameter 3"),
    (st.SGD, {"rule": "lion", "momentum": 0.5}, "group 1: lion has no hyper-parameter 'momentum'"),
    (st.Muon, {"momentum": 0.5}, "group 1: adamw has no hyper-parameter 'momentum'"),
    (st.Muon, {"adamw": {}}, "group 1 has a key 'adamw'; give it to the constructor"),
    (st.SGD, {"param_names": ["x", "y"]}, r"param_names = \['x', 'y'\]: expected a name for each"),
    (st.SGD, {"param_names": "b"}, "param_names = 'b': expected a name for each"),
    (st.SGD, {"param_names": [3]}, r"param_names = \[3\]: expected a name for each"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "keys", "message"), REFUSED)
def test_a_key_without_effect_is_refused_by_name(rule, keys, message):
    with pytest.raises(ValueError, match=message):
        rule([{"params": matrix()}, {"params": vector(), **keys}])
    opt = rule([{"params": matrix()}])
    before = repr(opt.param_groups)
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": vector(), **keys})
    assert repr(opt.param_groups) == before and list(opt.state) == ["w"]


def test_betas_in_a_group_of_matrices_alone_are_refused():
    with pytest.raises(ValueError, match="muon has no hyper-parameter 'betas'"):
        st.Muon([{"params": matrix(), "betas": (0.5, 0.5)}])
    with pytest.raises(ValueError, match="lbfgs has no hyper-parameter 'momentum'"):
        st.LBFGS([{"params": matrix(), "momentum": 0.5}])


def test_param_names_name_the_parameters():
    opt = st.SGD([{"params": [np.ones(2), np.ones(3)], "param_names": ["w", "b"]}], lr=0.5)
    assert list(opt.state) == ["w", "b"]
    again = st.SGD([{**group} for group in opt.param_groups])
    assert list(again.state) == ["w", "b"] and again.param_groups[0]["lr"] == 0.5
    lbfgs = st.LBFGS([{"params": [np.ones(2)], "param_names": ["w"]}])
    assert list(lbfgs.state_dict()["state"]) == ["w"]


@pytest.mark.parametrize("rule", ["prodigy", "dog", "schedulefreesgd", "muon", "adafactor"])
def test_groups_of_an_optimizer_are_groups_of_another(rule):
    first = RULES[rule](matrix() | vector())
    again = RULES[rule]([{**group} for group in first.param_groups])
    assert repr(again.param_groups) == repr(first.param_groups)


def test_a_state_with_keys_of_its_own_in_a_group_is_loaded():
    opt = st.SGD(matrix(), lr=0.5)
    opt.param_groups[0]["tag"] = "head"
    kept = opt.state_dict()
    again = st.SGD(matrix(), lr=0.25)
    again.load_state_dict(kept)
    assert again.param_groups[0]["tag"] == "head" and again.param_groups[0]["lr"] == 0.5


# In PyTorch's groups

# torch.optim.lr_scheduler and swa_utils; timm; Hugging Face and bitsandbytes; Lightning; fastai;
# DeepSpeed, Apex and Megatron; MMEngine; schedule-free; layer-wise decay; FSDP.
FOREIGN = [
    "initial_lr", "max_lr", "min_lr", "base_lr", "last_lr", "warmup_lr", "target_lr", "swa_lr",
    "base_momentum", "max_momentum", "min_momentum", "initial_momentum", "n_averaged",
    "lr_scale", "fixed_lr", "fix_step", "initial_weight_decay", "initial_betas", "layer_id",
    "no_weight_decay", "name", "names", "group_name", "layer_name", "RMS", "step",
    "relative_step", "warmup_init", "scale_parameter", "optim_bits", "percentile_clipping",
    "block_wise", "max_unorm", "skip_zeros", "mom", "sqr_mom", "wd", "do_wd", "norm_bn",
    "decouple_wd", "l2_reg", "moe", "allreduce", "expert", "use_muon", "is_expert_parallel",
    "is_decoupled_lr", "default_config", "start_wd", "end_wd", "wd_mult", "lr_mult",
    "pre_wd_mult", "pre_lr_mult", "decay_mult", "param_name", "param_scheduler", "bias_lr_mult",
    "k", "train_mode", "weight_sum", "lr_max", "scheduled_lr", "warmup_steps", "weight_decay_",
    "weight_decay_norm", "lr_factor", "lr_factor_func", "lr_multiplier", "wd_multiplier",
    "lr_decay_rate", "layer_decay", "is_last_layer", "flat_param", "fsdp", "fqns", "sharded",
    "d", "d0", "d_max", "beta1", "beta2", "beta3", "momentum", "betas", "nesterov", "dampening",
    "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay",
]  # fmt: skip


@pytest.mark.parametrize("rule", [*RULES.values(), st.ByGroup])
def test_keys_of_schedulers_and_trainers_are_never_refused(rule):
    check_borrowed(rule, {"params": [], 3: "no name", **dict.fromkeys(FOREIGN)})


SLIPS = ["weight_decy", "wieght_decay", "weightdecay", "Weight_Decay", "weight_decays", "maximise",
         "regularizer", "cautions", "decay_mod", "lookahed", "LR"]  # fmt: skip


@pytest.mark.parametrize("key", SLIPS)
def test_what_is_almost_an_argument_is_refused_in_torch_groups(key):
    with pytest.raises(ValueError, match=f"key '{key}' of a group has no effect; .* did you mean"):
        check_borrowed(st.AdamW, {"params": [], key: 0.1})


@pytest.mark.parametrize(
    ("rule", "group"),
    [(st.SGD, {"momentun": 0.5}), (st.SGD, {"nestrov": True}), (st.Muon, {"betass": (0.5, 0.5)}),
     (st.AdamW, {"rule": "sgd", "momentm": 0.5}), (st.AdamW, {"nonfinite": "raise"})],
)  # fmt: skip
def test_slips_of_other_rules_are_refused_in_torch_groups(rule, group):
    with pytest.raises(ValueError, match=f"key '{list(group)[-1]}'"):
        check_borrowed(rule, group)


@pytest.mark.torch
def test_torch_groups_keep_foreign_keys_and_refuse_slips():
    torch = pytest.importorskip("torch")
    import steepest.torch as stt

    def w():
        return torch.nn.Parameter(torch.ones(2))

    foreign = {"lr_scale": 0.5, "name": "head", "initial_lr": 1.0, "momentum": 0.5}
    opt = stt.AdamW([{"params": [w()], **foreign}])
    opt.add_param_group({"params": [w()], **foreign})
    opt.param_groups[0]["max_lr"] = 3.0
    for p in (p for g in opt.param_groups for p in g["params"]):
        p.grad = torch.ones(2)
    opt.step()
    kept = opt.state_dict()["param_groups"]
    for group in kept:
        assert foreign.items() <= group.items()
    assert kept[0]["max_lr"] == 3.0
    with pytest.raises(ValueError, match="did you mean 'weight_decay'"):
        stt.AdamW([{"params": [w()], "weight_decy": 0.5}])
    with pytest.raises(ValueError, match="did you mean 'weight_decay'"):
        opt.add_param_group({"params": [w()], "weight_decy": 0.5})
    assert len(opt.param_groups) == 2
    vectors = stt.Muon([{"params": [w()], "lr": 0.5}, {"params": [torch.nn.Parameter(w()[None])]}])
    assert [g["lr"] for g in vectors.param_groups] == [0.5, 1e-3]
