"""Layouts of DeepSpeed and bitsandbytes, written down here as their packages write them: neither
package runs where these tests do. What goes on is compared with PyTorch's class of the same
formula."""

import ml_dtypes
import numpy as np
import pytest

import steepest as st

SHAPES = {"a": (4, 3), "b": (3,)}


def tree(seed, shapes=None):
    random = np.random.default_rng(seed)
    return {k: random.normal(size=s) for k, s in (shapes or SHAPES).items()}


def state_dict(step=3, **group):
    """Of DeepSpeedCPUAdam: PyTorch's layout, the step a Python int."""
    m, v = tree(1), tree(2)
    state = {
        i: {"step": step, "exp_avg": m[k].astype("f4"), "exp_avg_sq": (v[k] ** 2).astype("f4")}
        for i, k in enumerate(SHAPES)
    }
    group = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1,
             "bias_correction": True, "amsgrad": False, "params": [0, 1]} | group  # fmt: skip
    return {"state": state, "param_groups": [group]}


# DeepSpeed


@pytest.mark.torch
@pytest.mark.parametrize("rule", ["Adam", "AdamW"])
def test_training_goes_on_from_deepspeed_as_in_torch(rule):
    """The formula is PyTorch's; what comes after a state of DeepSpeed's layout must be, too."""
    torch = pytest.importorskip("torch")
    p = tree(0)
    opt = getattr(st, rule)(p)
    st.convert.from_deepspeed(state_dict(), opt)
    twin = {k: torch.nn.Parameter(torch.tensor(x)) for k, x in tree(0).items()}
    peer = getattr(torch.optim, rule)(
        twin.values(), lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1
    )
    for i, (k, q) in enumerate(twin.items()):
        own = state_dict()["state"][i]
        peer.state[q] = {
            "step": torch.tensor(3.0),
            "exp_avg": torch.tensor(own["exp_avg"].astype("f8")),
            "exp_avg_sq": torch.tensor(own["exp_avg_sq"].astype("f8")),
        }
        q.grad = torch.tensor(tree(4)[k])
    for _ in range(3):
        peer.step()
        opt.step(tree(4))
    for k, q in twin.items():
        np.testing.assert_allclose(p[k], q.detach().numpy(), rtol=1e-12)


def test_there_and_back_is_the_same():
    opt = st.AdamW(tree(0))
    given = state_dict()
    st.convert.from_deepspeed(given, opt)
    back = st.convert.to_deepspeed(opt, tensors=False)
    assert back["param_groups"] == given["param_groups"]
    for i, state in given["state"].items():
        assert type(back["state"][i]["step"]) is int
        for key, x in state.items():
            np.testing.assert_array_equal(back["state"][i][key], x)
            assert key == "step" or back["state"][i][key].dtype == np.float32


def test_without_bias_correction_and_for_lion():
    opt = st.Adam(tree(0))
    st.convert.from_deepspeed(state_dict(bias_correction=False), opt)
    assert opt.param_groups[0]["bias_correction"] is False
    assert not st.convert.to_deepspeed(opt, tensors=False)["param_groups"][0]["bias_correction"]
    lion = state_dict()
    for own in lion["state"].values():
        del own["exp_avg_sq"]
    opt = st.Lion(tree(0))
    st.convert.from_deepspeed(lion, opt)
    assert opt.param_groups[0]["betas"] == (0.8, 0.9)
    assert "eps" not in st.convert.to_deepspeed(opt, tensors=False)["param_groups"][0]


@pytest.mark.torch
def test_tensors_are_what_deepspeed_loads():
    torch = pytest.importorskip("torch")
    opt = st.Adam(tree(0))
    opt.step(tree(1))
    state = st.convert.to_deepspeed(opt)["state"][0]
    assert (state["step"], state["exp_avg"].dtype) == (1, torch.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer_state_dict": {"zero_stage": 2}}, "of ZeRO, with 'zero_stage': merge the"),
        ({"base_optimizer_state": {}}, "of ZeRO, with 'base_optimizer_state': merge"),
        (state_dict(amsgrad=True), "amsgrad of group 0 is set"),
        ({"state": {}}, "not a state dict of torch.optim"),
    ],
)
def test_what_cannot_be_taken_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        st.convert.from_deepspeed(given, st.Adam(tree(0)))


def test_flat_partitions_are_refused_by_name():
    given = state_dict()
    given["state"][0]["exp_avg"] = np.zeros(12, np.float32)
    with pytest.raises(ValueError, match=r"'exp_avg' of parameter 'a' is flat.*ds_to_universal"):
        st.convert.from_deepspeed(given, st.Adam(tree(0)))


@pytest.mark.parametrize("option", ["amsgrad", "maximize"])
def test_what_deepspeed_lacks_is_refused(option):
    with pytest.raises(ValueError, match=f"DeepSpeed has no {option}"):
        st.convert.to_deepspeed(st.Adam(tree(0), **{option: True}))


def test_other_rules_are_refused():
    with pytest.raises(ValueError, match=r"DeepSpeed has no sgd"):
        st.convert.from_deepspeed(state_dict(), st.SGD(tree(0)))


# bitsandbytes


def quantised(x, table, block):
    """The nearest code of each number divided by the largest of its block, one by one."""
    flat = x.reshape(-1)
    codes, largest = np.empty(flat.size, np.uint8), []
    for first in range(0, flat.size, block):
        part = flat[first : first + block]
        largest.append(np.abs(part).max())
        for i, value in enumerate(part):
            codes[first + i] = np.abs(table - value / largest[-1]).argmin()
    return codes.reshape(x.shape), np.array(largest, np.float32)


def plain(codes, table, largest, block):
    """The documented formula, one number at a time."""
    found = np.empty(codes.shape)
    for i, place in enumerate(np.ndindex(*codes.shape)):
        found[place] = table[codes[place]] * largest[i // block]
    return found


SIGNED = np.sort(np.random.default_rng(7).uniform(-1, 1, 256)).astype("f4")
UNSIGNED = np.sort(np.random.default_rng(8).uniform(0, 1, 256)).astype("f4")
LARGE = {"a": (37, 71), "b": (3,)}  # 2627 numbers: no whole number of blocks


def bits(block, wrapped):
    """A state dict of bitsandbytes: the large parameter of 8 bits, the small one of 32."""
    m, v = tree(1, LARGE), {k: x**2 for k, x in tree(2, LARGE).items()}
    state1, absmax1 = quantised(m["a"], SIGNED, block)
    state2, absmax2 = quantised(v["a"], UNSIGNED, block)
    own = {
        "state1": state1, "qmap1": SIGNED, "absmax1": absmax1,
        "state2": state2, "qmap2": UNSIGNED, "absmax2": absmax2,
    }  # fmt: skip
    small = {"state1": m["b"].astype("f4"), "state2": v["b"].astype("f4")}
    states = [
        {"step": 4, "__bnb_optimizer_quant_state__": x} if wrapped else {"step": 4} | x
        for x in (own, small)
    ]
    group = {"lr": 0.1, "betas": (0.8, 0.9, 0.0), "eps": 1e-6, "weight_decay": 0.1, "alpha": 0.0}
    return {"state": dict(enumerate(states)), "param_groups": [group | {"params": [0, 1]}]}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("block", [256, 2048])
def test_states_of_8_bits_become_what_the_formula_says(block, wrapped):
    given = bits(block, wrapped)
    opt = st.AdamW(tree(0, LARGE), decay_mode="decoupled_after")
    st.convert.from_bitsandbytes(given, opt)
    own = bits(block, False)["state"][0]
    for key, i in (("exp_avg", "1"), ("exp_avg_sq", "2")):
        expected = plain(own["state" + i], own["qmap" + i], own["absmax" + i], block)
        np.testing.assert_allclose(opt.state["a"][key], expected, rtol=1e-7)  # in single precision
    np.testing.assert_array_equal(opt.state["b"]["exp_avg"], tree(1, LARGE)["b"].astype("f4"))
    group = opt.param_groups[0]
    assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-6, 0.1)
    assert group["decay_mode"] == "decoupled_after"
    assert opt.updates == 4


def test_lion_has_one_state():
    given = bits(256, False)
    for own in given["state"].values():
        for key in ("state2", "qmap2", "absmax2"):
            own.pop(key, None)
    opt = st.Lion(tree(0, LARGE))
    st.convert.from_bitsandbytes(given, opt)
    np.testing.assert_array_equal(opt.state["b"]["exp_avg"], tree(1, LARGE)["b"].astype("f4"))


def test_another_formula_is_refused():
    opt = st.Adam(tree(0, LARGE), bias_correction=False)
    with pytest.raises(ValueError, match="has no bias_correction of adam"):
        st.convert.from_bitsandbytes(bits(256, False), opt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("state2"), "parameter 'a' has no 'state2'"),
        (lambda s: s.pop("step"), "parameter 'a' has no step"),
        (lambda s: s.pop("absmax1"), "'state1' of parameter 'a' is quantised as a whole"),
        (lambda s: s.update(absmax1=np.zeros(7, "f4")), "a factor for each 256 or 2048 of 2627"),
        (lambda s: s.update(qmap2=np.zeros(16, "f4")), r"'state2' .* qmap has shape \(16,\)"),
        (lambda s: s.update(other=np.zeros(2)), r"parameter 'a' has \['other'\], which adam"),
        (lambda s: s.update(state1=s["state1"][1:]), "'state1' of parameter 'a'|absmax"),
    ],
)
def test_states_that_do_not_fit_are_refused_by_name(change, message):
    given = bits(256, False)
    change(given["state"][0])
    opt = st.Adam(tree(0, LARGE))
    with pytest.raises(ValueError, match=message):
        st.convert.from_bitsandbytes(given, opt)
    assert opt.updates == 0


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("Adam", {"weight_decay": 0.1}, "no weight_decay with decay_mode = 'l2'"),
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "decay_mode": "decoupled"}, "decay_mode"),
        ("SGD", {}, "has no momentum = 0"),
        ("SGD", {"momentum": 0.9, "nesterov": True}, "no nesterov; here it is True"),
        ("SGD", {"momentum": 0.9, "dampening": 0.1}, "no dampening"),
        ("RMSprop", {"momentum": 0.9}, "no momentum"),
        ("RMSprop", {"centered": True}, "no centered"),
        ("AdamW", {"amsgrad": True}, "no amsgrad"),
        ("Adagrad", {"lr_decay": 0.1}, "no lr_decay"),
        ("Lion", {"maximize": True}, "no maximize"),
        ("LAMB", {}, "bitsandbytes has no lamb"),
    ],
)
def test_what_bitsandbytes_lacks_is_refused(rule, options, message):
    opt = getattr(st, rule)(tree(0), **options)
    with pytest.raises(ValueError, match=message):
        st.convert.to_bitsandbytes(opt, tensors=False)


def test_codes_are_of_finite_numbers_in_8_or_32_bits():
    opt = st.Lion({"w": np.zeros(4096)})
    opt.step({"w": np.ones(4096)})
    with pytest.raises(ValueError, match="bits = 4: expected 8 or 32"):
        st.convert.to_bitsandbytes(opt, bits=4)
    opt.state["w"]["exp_avg"][77] = np.inf
    with pytest.raises(ValueError, match="'exp_avg' of parameter 'w' has numbers that are not fin"):
        st.convert.to_bitsandbytes(opt, tensors=False)
    [own] = st.convert.to_bitsandbytes(opt, bits=32, tensors=False)["state"].values()
    assert own["__bnb_optimizer_quant_state__"]["state1"][77] == np.inf


@pytest.mark.parametrize(
    ("made", "decay_mode"),
    [
        (lambda p: st.Adam(p), "decoupled"),
        (lambda p: st.Adam(p, decay_mode="decoupled_after"), "decoupled_after"),
        (lambda p: st.AdamW(p), "decoupled"),
    ],
)
def test_decay_is_decoupled_in_adam_of_bitsandbytes_too(made, decay_mode):
    opt = made(tree(0, LARGE))
    st.convert.from_bitsandbytes(bits(256, True), opt)
    group = opt.param_groups[0]
    assert (group["decay_mode"], group["weight_decay"]) == (decay_mode, 0.1)


def test_a_warm_up_of_ademamix_is_a_schedule_here():
    group = {"lr": 0.1, "betas": (0.9, 0.99, 0.999), "alpha": 5.0, "t_alpha": 9, "t_beta3": 9}
    given = {"state": {}, "param_groups": [group | {"params": [0]}]}
    with pytest.raises(ValueError, match=r"t_alpha of group 0 = 9.*ademamix_alpha, or keep=\['alp"):
        st.convert.from_bitsandbytes(given, st.AdEMAMix([np.ones(2)]))
    alpha = st.schedules.ademamix_alpha(5.0, steps=9)
    opt = st.AdEMAMix([np.ones(2)], alpha=alpha)
    with pytest.raises(ValueError, match=r"t_beta3 of group 0 = 9"):
        st.convert.from_bitsandbytes(given, opt)
    st.convert.from_bitsandbytes(given, opt, keep=["betas"])
    assert opt.param_groups[0]["alpha"] is alpha
    assert opt.param_groups[0]["betas"] == (0.9, 0.999, 0.9999)


# However states are stored here

WIDE = {"w": (50, 100), "b": (3,)}
TO = {
    "torch": st.convert.to_torch,
    "deepspeed": st.convert.to_deepspeed,
    "bitsandbytes": st.convert.to_bitsandbytes,
    "flashoptim": st.convert.to_flashoptim,
}


def single(seed):
    return {k: x.astype(np.float32) for k, x in tree(seed, WIDE).items()}


def assert_same_state(one, other):
    for name, own in one.state.items():
        assert own.keys() == other.state[name].keys()
        for key, x in own.items():
            again = other.state[name][key]
            assert (again.dtype, again.tobytes()) == (x.dtype, x.tobytes()), (name, key)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "q8", {"exp_avg": "float16"}])
@pytest.mark.parametrize("package", TO)
def test_states_are_converted_however_they_are_stored(package, state_dtype):
    """Out as numbers, or as codes of these; in as numbers, stored as all others are."""
    p = single(0)
    opt = st.AdamW(p, state_dtype=state_dtype)
    for seed in range(3):
        opt.step(single(seed))
    given = TO[package](opt, tensors=False)
    take = getattr(st.convert, f"from_{package}")
    plain = st.AdamW(p)
    take(given, plain)
    assert plain.state["w"]["exp_avg"].dtype == np.float32
    again = st.AdamW(p, state_dtype=state_dtype)
    take(given, again)
    if package in (
        "torch",
        "deepspeed",
    ):  # the same numbers; a scale of 8 bits may be a smaller one
        for i, own in st.convert.to_torch(opt, tensors=False)["state"].items():
            for key, x in st.convert.to_torch(again, tensors=False)["state"][i].items():
                np.testing.assert_array_equal(x, own[key])
    expected = st.AdamW(p, state_dtype=state_dtype)
    st.convert.from_torch(st.convert.to_torch(plain, tensors=False), expected)
    assert_same_state(expected, again)


def test_a_state_of_8_bits_goes_through_another_package_without_other_steps():
    p, q = single(0), single(0)
    opt, other = (st.AdamW(x, state_dtype="q8", rounding_seed=5) for x in (p, q))
    for seed in range(3):
        opt.step(single(seed))
        other.step(single(seed))
    again = st.AdamW(q, state_dtype="q8", rounding_seed=5)
    st.convert.from_deepspeed(st.convert.to_deepspeed(other, tensors=False), again)
    for seed in range(3, 6):
        opt.step(single(seed))
        again.step(single(seed))
    for k, x in p.items():
        np.testing.assert_array_equal(q[k], x)


def test_masters_begin_anew_and_are_left_out():
    p = {k: x.astype(ml_dtypes.bfloat16) for k, x in single(0).items()}
    opt = st.AdamW(p, master="split16")
    opt.step(single(1))
    assert opt.state["w"]["remainder"].any()
    given = st.convert.to_torch(opt, tensors=False)
    assert set(given["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    st.convert.from_torch(given, opt)
    assert not opt.state["w"]["remainder"].any()
