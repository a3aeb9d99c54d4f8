"""States of 8 and 4 bits of bitsandbytes and torchao: theirs here, ours there, and trained on in
both, on the CPU."""

import warnings

import numpy as np
import pytest

import steepest as st
from steepest.convert import block_codecs
from steepest.optimizers import RULES

pytestmark = pytest.mark.torch

SHAPES = {"w": (80, 65), "b": (7,)}  # 5200 numbers: 20 blocks of 256 and a part; and few
WHOLE = {"w": (64, 96), "b": (7,)}  # 24 blocks: torchao has no parts


@pytest.fixture(autouse=True, scope="module")
def torch_there():
    global torch
    torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def bnb():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def ao():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao")
        import torchao.optim

        return torchao.optim


def start(shapes, seed=0):
    random = np.random.default_rng(seed)
    return {k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def gradients(shapes, steps, seed=1):
    """Of sizes that differ by decades within a block."""
    random = np.random.default_rng(seed)
    return [
        {
            k: (random.normal(size=s) * 10.0 ** random.uniform(-3, 0, s)).astype(np.float32)
            for k, s in shapes.items()
        }
        for _ in range(steps)
    ]


class Peer:
    """An optimizer of another package, stepped with gradients by name; in eager mode."""

    def __init__(self, made, values, **hyper):
        self.params = {k: torch.nn.Parameter(torch.tensor(x)) for k, x in values.items()}
        self.opt = made(list(self.params.values()), **hyper)

    def step(self, grads):
        for k, p in self.params.items():
            p.grad = torch.tensor(grads[k])
        with torch.compiler.set_stance("force_eager"):
            self.opt.step()

    def values(self):
        return {k: p.detach().numpy().copy() for k, p in self.params.items()}

    def state(self, name):
        return self.opt.state[self.params[name]]


def ours(rule, values, **hyper):
    p = {k: x.copy() for k, x in values.items()}
    return RULES[rule](p, **hyper), p


def assert_close(p, q, **close):
    for k in p:
        np.testing.assert_allclose(p[k], q[k], **close, err_msg=k)


# bitsandbytes

BETAS = {"betas": (0.8, 0.95), "lr": 0.01, "weight_decay": 0.1}
BITS = {
    "sgd": ("SGD", {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1}, {}),
    "adagrad": ("Adagrad", {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-6}, {}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "weight_decay": 0.1, "eps": 1e-4}, {}),
    "adam": ("Adam", BETAS | {"eps": 1e-4}, {"decay_mode": "decoupled"}),
    "adamw": ("AdamW", BETAS | {"eps": 1e-4}, {}),
    "ademamix": ("AdEMAMix", {**BETAS, "betas": (0.8, 0.95, 0.9), "alpha": 3.0, "eps": 1e-4}, {}),
    "lion": ("Lion", BETAS, {}),
}
STATES = {
    "sgd": [("momentum_buffer",)],
    "adagrad": [("sum",)],
    "rmsprop": [("square_avg",)],
    "ademamix": [("exp_avg_fast", "exp_avg_slow"), ("exp_avg_sq",)],
    "lion": [("exp_avg",)],
}
each_rule = pytest.mark.parametrize("rule", BITS)


def bits_peer(bnb, rule, values, bits=8):
    made, hyper, _ = BITS[rule]
    if (made, bits) == ("AdEMAMix", 32):  # its AdEMAMix32bit makes one momentum, and cannot step
        return Peer(bnb.optim.AdEMAMix, values, **hyper)
    return Peer(getattr(bnb.optim, f"{made}{bits}bit"), values, **hyper)


def bits_twin(rule, values, **more):
    """One of here with the same steps; made with other numbers where these are converted."""
    flags = {"momentum": 0.5} if rule == "sgd" else {}
    return ours(rule, values, **(flags | more))


def numbers(bnb, state, rule):
    """What bitsandbytes computes with, by our names."""
    found = {}
    for i, keys in enumerate(STATES.get(rule, [("exp_avg",), ("exp_avg_sq",)]), 1):
        codes = state[f"state{i}"]
        several = len(keys) > 1
        for j, key in enumerate(keys):
            x = codes[j] if several else codes
            if codes.dtype == torch.uint8:
                scale = state[f"absmax{i}"]
                x = bnb.functional.dequantize_blockwise(
                    x.contiguous(), absmax=scale[j] if several else scale,
                    code=state[f"qmap{i}"], blocksize=256,
                )  # fmt: skip
            found[key] = x.numpy()
    return found


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("bits", [8, 32])
@each_rule
def test_training_goes_on_from_bitsandbytes(bnb, rule, bits, flat):
    """The numbers are those that it computes with, and so is the next step."""
    grads = gradients(SHAPES, 6)
    peer = bits_peer(bnb, rule, start(SHAPES), bits)
    for g in grads[:5]:
        peer.step(g)
    state_dict = peer.opt.state_dict()
    if flat:
        for own in state_dict["state"].values():
            own.update(own.pop("__bnb_optimizer_quant_state__"))
    opt, p = bits_twin(rule, peer.values())
    st.convert.from_bitsandbytes(state_dict, opt)
    for k in SHAPES:
        for key, x in numbers(bnb, peer.state(k), rule).items():
            np.testing.assert_array_equal(opt.state[k][key], x, err_msg=key)
    peer.step(grads[5])
    opt.step(grads[5])
    assert_close(p, peer.values(), rtol=1e-5, atol=1e-6)  # single precision, in another order


@pytest.mark.parametrize("bits", [8, 32])
@each_rule
def test_training_goes_on_in_bitsandbytes(bnb, rule, bits):
    """It computes with the numbers that we wrote, and its next step is ours from these."""
    grads = gradients(SHAPES, 8)
    _, hyper, more = BITS[rule]
    opt, p = ours(rule, start(SHAPES), **hyper, **more)
    for g in grads[:5]:
        opt.step(g)
    peer = bits_peer(bnb, rule, p, bits)
    peer.opt.load_state_dict(st.convert.to_bitsandbytes(opt, bits=bits))
    again, q = bits_twin(rule, p)
    st.convert.from_bitsandbytes(peer.opt.state_dict(), again)
    for k in SHAPES:
        for key, x in numbers(bnb, peer.state(k), rule).items():
            np.testing.assert_array_equal(again.state[k][key], x, err_msg=key)
            if bits == 32 or k == "b":
                np.testing.assert_array_equal(x, opt.state[k][key], err_msg=key)
            assert peer.state(k)["step"] == 5
    for g in grads[5:6]:
        peer.step(g)
        again.step(g)
    assert_close(q, peer.values(), rtol=1e-5, atol=1e-6)
    for g in grads[6:]:
        peer.step(g)
    assert all(np.isfinite(x).all() for x in peer.values().values())


@each_rule
def test_codes_that_came_from_bitsandbytes_go_back(bnb, rule):
    peer = bits_peer(bnb, rule, start(SHAPES))
    for g in gradients(SHAPES, 5):
        peer.step(g)
    given = peer.opt.state_dict()
    opt, _ = bits_twin(rule, peer.values())
    st.convert.from_bitsandbytes(given, opt)
    back = st.convert.to_bitsandbytes(opt)
    assert back["state"][0].keys() == given["state"][0].keys()
    for i, own in given["state"].items():
        own, again = (
            own["__bnb_optimizer_quant_state__"],
            back["state"][i]["__bnb_optimizer_quant_state__"],
        )
        assert again.keys() == own.keys()
        for key, x in own.items():
            assert (again[key].dtype, again[key].shape) == (x.dtype, x.shape)
            ulp = 1 if key.startswith("absmax") else 0
            if x.dtype == torch.uint8:
                np.testing.assert_array_equal(again[key], x, err_msg=key)
            else:
                np.testing.assert_array_max_ulp(again[key].numpy(), x.numpy(), ulp)
    for key, x in given["param_groups"][0].items():
        theirs = tuple(x) if isinstance(x, (tuple, list)) and key != "params" else x
        if key == "betas" and rule in ("sgd", "rmsprop"):
            theirs = (theirs[0], 0.0)  # dampening and momentum, which it does not use
        assert back["param_groups"][0][key] == theirs, key


@pytest.mark.parametrize("signed", [False, True])
def test_codes_are_those_of_bitsandbytes(bnb, signed):
    """But where the largest of a block is negative, which it gives a code that is too small, and
    which decodes to another. Its tables are ours."""
    codec = block_codecs.BITSANDBYTES[signed]
    table = bnb.functional.create_dynamic_map(signed=signed)
    np.testing.assert_array_equal(codec.numbers, table)
    random = np.random.default_rng(3)
    x = (random.normal(size=(200, 256)) * 10.0 ** random.uniform(-6, 0, (200, 256))).astype("f4")
    x[:, 3] = np.abs(x).max(axis=1) * 2
    x = x if signed else x**2
    codes, factors = codec.encoded(x)
    given = torch.tensor(x, dtype=torch.float64)  # whose codes it takes from its table, as on GPUs
    theirs, absmax = torch.ops.bitsandbytes.quantize_blockwise(given, table, 256)
    np.testing.assert_array_equal(factors, absmax)
    differ = codes != theirs.numpy()
    assert differ.mean() < 1e-4  # it multiplies by 1 / absmax, which is rounded
    half = (codec.numbers[1:] + codec.numbers[:-1]) / 2
    at = (x / factors[:, None])[differ]
    assert (np.abs(at[:, None] - half).min(axis=1) < 1e-6 * np.abs(at)).all()


@pytest.mark.parametrize("signed", [False, True])
def test_numbers_are_no_farther_off_than_those_of_bitsandbytes(bnb, signed):
    """On the CPU it looks codes up in 65536 places between -1 and 1, so that small ones, also 0,
    become others."""
    codec = block_codecs.BITSANDBYTES[signed]
    x = gradients({"w": (64, 256)}, 1)[0]["w"]
    x = x if signed else x**2
    own = np.abs(codec.decoded(*codec.encoded(x)) - x)
    codes, state = bnb.functional.quantize_blockwise(
        torch.tensor(x), code=torch.tensor(codec.numbers), blocksize=256
    )
    theirs = np.abs(bnb.functional.dequantize_blockwise(codes, state).numpy() - x)
    size = np.abs(x).max(axis=1, keepdims=True)
    assert (own <= theirs + 1e-7 * size).all()
    assert (theirs <= own + 4e-5 * size).all()


def test_states_of_16_bits_are_within_half_a_code(bnb):
    grads = gradients(SHAPES, 3)
    opt, p = ours("adamw", start(SHAPES), state_dtype="bfloat16")
    for g in grads:
        opt.step(g)
    peer = bits_peer(bnb, "adamw", p)
    peer.opt.load_state_dict(st.convert.to_bitsandbytes(opt))
    found = numbers(bnb, peer.state("w"), "adamw")
    for key, x in found.items():
        stored = opt.state["w"][key].astype(np.float32)
        assert np.abs(x - stored).max() <= 0.008 * np.abs(stored).max()
    again, _ = ours("adamw", p, state_dtype="bfloat16")
    st.convert.from_bitsandbytes(peer.opt.state_dict(), again)
    assert again.state["w"]["exp_avg"].dtype == opt.state["w"]["exp_avg"].dtype
    np.testing.assert_array_equal(
        again.state["b"]["exp_avg"].astype("f4"), opt.state["b"]["exp_avg"].astype("f4")
    )


# torchao

KINDS = ["8bit", "4bit", "fp8"]
each_kind = pytest.mark.parametrize("kind", KINDS)
HYPER = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}


def ao_peer(ao, rule, kind, values, **more):
    name = {"adam": "Adam", "adamw": "AdamW"}[rule] + kind.replace("fp8", "Fp8")
    return Peer(getattr(ao, name), values, **(HYPER | more))


@pytest.mark.parametrize("rule", ["adam", "adamw"])
@each_kind
def test_training_goes_on_from_torchao_and_back(ao, rule, kind):
    """Codes that came from it go back, and its next step is ours."""
    grads = gradients(WHOLE, 8)
    peer = ao_peer(ao, rule, kind, start(WHOLE))
    for g in grads[:5]:
        peer.step(g)
    given = peer.opt.state_dict()
    opt, p = ours(rule, peer.values())
    st.convert.from_torch(given, opt)
    other = ao_peer(ao, rule, kind, peer.values(), lr=7.0)
    other.opt.load_state_dict(st.convert.to_torchao(opt, states=kind))
    for k in WHOLE:
        for key, x in peer.state(k).items():
            again = other.state(k)[key]
            assert type(again) is type(x)
            if not hasattr(x, "codes"):
                np.testing.assert_array_equal(again, x, err_msg=key)
                continue
            assert k == "w"
            np.testing.assert_array_equal(
                again.codes.view(torch.uint8), x.codes.view(torch.uint8), err_msg=key
            )
            np.testing.assert_array_max_ulp(again.scale.numpy(), x.scale.numpy(), 1)
            np.testing.assert_array_equal(again.dequantize(), x.dequantize())
            np.testing.assert_array_equal(opt.state[k][key], x.dequantize())
            assert (again.shape, again.dtype) == (x.shape, x.dtype)
            assert getattr(again, "signed", None) == getattr(x, "signed", None)
    for one in (peer, other, opt):
        one.step(grads[5])
    assert_close(p, peer.values(), rtol=1e-5, atol=1e-6)
    assert_close(other.values(), peer.values(), rtol=0, atol=0)
    for g in grads[6:]:
        other.step(g)
    assert all(np.isfinite(x).all() for x in other.values().values())


@each_kind
def test_amsgrad_goes_to_torchao_and_comes_back(ao, kind):
    """It is not stepped there: torchao 0.18 has no maximum of its tensors in eager mode."""
    opt, p = ours("adamw", start(WHOLE), amsgrad=True)
    for g in gradients(WHOLE, 3):
        opt.step(g)
    peer = ao_peer(ao, "adamw", kind, p, amsgrad=True)
    peer.opt.load_state_dict(st.convert.to_torchao(opt, states=kind))
    again, _ = ours("adamw", p)
    st.convert.from_torch(peer.opt.state_dict(), again)
    assert again.param_groups[0]["amsgrad"]
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        x = peer.state("w")[key]
        np.testing.assert_array_equal(again.state["w"][key], x.dequantize())
        size = np.abs(opt.state["w"][key]).max()
        assert np.abs(again.state["w"][key] - opt.state["w"][key]).max() < 0.15 * size


@pytest.mark.parametrize("signed", [False, True])
@each_kind
def test_codes_are_those_of_torchao(ao, kind, signed):
    """But where the largest of a block is negative, as for bitsandbytes."""
    from torchao.optim import subclass_4bit, subclass_8bit, subclass_fp8

    random = np.random.default_rng(4)
    x = (random.normal(size=(100, 256)) * 10.0 ** random.uniform(-4, 0, (100, 256))).astype("f4")
    x[:, [3, 200]] = np.abs(x).max(axis=1, keepdims=True) * 2
    x[7] = 0
    x = x if signed else x**2
    made = {
        "8bit": lambda: subclass_8bit.OptimState8bit.zeros(x.shape, signed),
        "4bit": lambda: subclass_4bit.OptimState4bit.zeros(x.shape, signed),
        "fp8": lambda: subclass_fp8.OptimStateFp8.zeros(x.shape),
    }[kind]()
    made.copy_(torch.tensor(x))
    codec = getattr(block_codecs, f"TORCHAO_{kind.upper()}")[signed]
    codes, factors = codec.encoded(x)
    np.testing.assert_array_equal(factors, made.scale)
    codes = block_codecs.packed(codes) if kind == "4bit" else codes
    np.testing.assert_array_equal(codes, made.codes.view(torch.uint8))
    if kind != "fp8":
        np.testing.assert_array_equal(codec.numbers, made.qmap)


def test_small_and_odd_parameters_are_plain_tensors_in_torchao(ao):
    opt, p = ours("adamw", start({"small": (4095,), "odd": (4100,), "even": (4096,)}))
    opt.step({k: np.ones_like(x) for k, x in p.items()})
    state = st.convert.to_torchao(opt)["state"]
    assert [hasattr(own["exp_avg"], "codes") for own in state.values()] == [False, False, True]


def test_bfloat16_parameters_of_torchao_have_states_here_and_there(ao):
    values = {k: torch.tensor(x).bfloat16() for k, x in start(WHOLE).items()}
    params = [torch.nn.Parameter(x.clone()) for x in values.values()]
    peer = ao.AdamW8bit(params, **HYPER)
    grads = gradients(WHOLE, 3)
    with torch.compiler.set_stance("force_eager"):
        for g in grads:
            for p, x in zip(params, g.values(), strict=True):
                p.grad = torch.tensor(x).bfloat16()
            peer.step()
    stored = {k: p.detach().view(torch.int16).numpy().view(np.uint16).copy()
              for k, p in zip(WHOLE, params, strict=True)}  # fmt: skip
    opt = st.AdamW(stored, dtype="bfloat16", master="split16")
    st.convert.from_torch(peer.state_dict(), opt)
    assert opt.state["w"]["exp_avg"].dtype == np.float32
    assert not opt.state["w"]["remainder"].any()
    peer.load_state_dict(st.convert.to_torchao(opt))
    np.testing.assert_array_equal(
        peer.state[params[0]]["exp_avg"].dequantize(), opt.state["w"]["exp_avg"]
    )
