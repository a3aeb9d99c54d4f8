"""States of FlashOptim. Its kernels need a GPU, so its layout is written down here, a number at a
time; where it is installed, its own classes load, write and train what fits a CPU, and Triton's
interpreter runs its kernels."""

import math
import os
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest

import steepest as st
from steepest import codecs
from steepest.convert import block_codecs

BRAIN = np.dtype(ml_dtypes.bfloat16)
LARGE = {"w": (13, 10), "b": (3,)}  # 130 numbers: four blocks of 32 and two more


def tree(seed, dtype=np.float32):
    random = np.random.default_rng(seed)
    return {k: random.normal(size=s).astype(dtype) for k, s in LARGE.items()}


def momentum(code, scale):
    y = code / 127
    return y / (2 - abs(y)) * scale


def second_moment(code, scale):
    return (code / 255 * scale) ** 2


def whole_of(opt, k):
    """A parameter and what its master adds."""
    group = opt.param_groups[0]
    master = codecs.MASTERS[group["master"]]
    p = group["params"][group["param_names"].index(k)]
    return master.joined(p, opt.state[k][master.key])


def half_a_unit(x):
    """Of a bfloat16, in the last of its 8 bits."""
    exponent = math.frexp(float(x))[1] - 1 if x else -126
    return 2.0 ** (max(exponent, -126) - 7 - 1)


def state_dict(dtype=np.float32, width=3, seed=0):
    """Of FlashAdamW, compressed, with all codes in it."""
    random = np.random.default_rng(seed)
    state = {}
    for i, shape in enumerate(LARGE.values()):
        n = math.prod(shape)
        m = random.permutation(np.resize(np.arange(-127, 128), n)).astype(np.int8).reshape(shape)
        v = random.permutation(np.resize(np.arange(256), n)).astype(np.uint8).reshape(shape)
        m.flat[::32], v.flat[::32] = -127, 255  # each block has its largest
        scales = [(10.0 ** random.uniform(-5, 2, -(-n // 32))).astype(np.float16) for _ in "mv"]
        if dtype == BRAIN:  # PyTorch would round them
            scales = [x.view(BRAIN) for x in scales]
        own = {
            "step": np.array(4),
            "exp_avg::quantized": m, "exp_avg::scales": scales[0],
            "exp_avg_sq::quantized": v, "exp_avg_sq::scales": scales[1],
        }  # fmt: skip
        if dtype == BRAIN and width:
            most = {3: 127, 4: 32767}[width]
            errors = random.integers(-most, most + 1, shape)
            own["error_bits"] = (
                errors.astype(BRAIN) if width == 3 else errors.astype(np.int16).view(BRAIN)
            )
        state[i] = own
    group = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1, "initial_lr": 0.1}
    group |= {"master_bytewidth": width, "quantize": True, "params": [0, 1]}
    return {"state": state, "param_groups": [group]}


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BRAIN])
def test_numbers_are_what_the_formula_says(dtype):
    given = state_dict(dtype, width=0)
    opt = st.AdamW(tree(0, dtype))
    st.convert.from_flashoptim(given, opt)
    assert opt.updates == 4
    assert (opt.param_groups[0]["betas"], opt.param_groups[0]["lr"]) == ((0.8, 0.9), 0.1)
    for own, k in zip(given["state"].values(), LARGE, strict=True):
        for key, number in (("exp_avg", momentum), ("exp_avg_sq", second_moment)):
            codes = own[f"{key}::quantized"].reshape(-1)
            scales = own[f"{key}::scales"].view(np.float16)
            expected = [number(int(c), float(scales[i // 32])) for i, c in enumerate(codes)]
            found = opt.state[k][key].reshape(-1)
            np.testing.assert_allclose(found, expected, rtol=1e-6)  # in single precision


@pytest.mark.parametrize("width", [0, 3, 4])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BRAIN])
def test_codes_and_error_bits_that_came_from_flashoptim_go_back(dtype, width):
    given = state_dict(dtype, width)
    opt = st.AdamW(tree(0, dtype), master="float32" if dtype == BRAIN else None)
    st.convert.from_flashoptim(given, opt)
    bits = {0: None, 3: 24, 4: 32}[width]
    back = st.convert.to_flashoptim(opt, master_weight_bits=bits, tensors=False)
    assert back["param_groups"] == given["param_groups"]
    for i, own in given["state"].items():
        assert back["state"][i].keys() == own.keys()
        for key, x in own.items():
            again = back["state"][i][key]
            assert (again.dtype, again.shape) == (x.dtype, x.shape), key
            assert again.tobytes() == x.tobytes(), key


@pytest.mark.parametrize("width", [3, 4])
def test_error_bits_become_masters(width):
    """p + error · half a unit in its last place / 127 or 32767, in either master."""
    given, params = state_dict(BRAIN, width), tree(0, BRAIN)
    params["w"][0, :4] = np.array([0.0, 2.0, -2.0, 1e-39]).astype(BRAIN)
    most = {3: 127, 4: 32767}[width]
    whole = {}
    for own, (k, p) in zip(given["state"].values(), params.items(), strict=True):
        errors = own["error_bits"].astype(int) if width == 3 else own["error_bits"].view(np.int16)
        # Below a power of 2 numbers are denser, so that it lacks half as much at most.
        power = p.view(np.uint16) & 0x7F == 0
        errors = np.where(power, (errors / 2).astype(int), errors)
        own["error_bits"] = (
            errors.astype(BRAIN) if width == 3 else errors.astype(np.int16).view(BRAIN)
        )
        numbers = [
            float(x) + half_a_unit(x) * int(e) / most
            for x, e in zip(p.reshape(-1), errors.reshape(-1), strict=True)
        ]
        whole[k] = np.array(numbers).reshape(p.shape)
    kept = {k: p.tobytes() for k, p in params.items()}
    opt = st.AdamW(params, master="float32")
    st.convert.from_flashoptim(given, opt)
    for k, x in whole.items():
        # A unit in the last place: their error bits are multiplied in another order.
        np.testing.assert_allclose(opt.state[k]["master"], x, rtol=2e-7, atol=1e-45)
    for name in ("split16", "split8", "kahan"):
        other = st.AdamW(params, master=name)
        st.convert.from_flashoptim(given, other)
        for k, x in whole.items():
            p = params[k].astype(np.float32)
            same = np.signbit(x) == np.signbit(p)
            seen = same & ((name != "kahan") | (np.abs(p) > 1e-30))  # it has no smaller numbers
            unit = np.spacing(np.abs(p))
            if name != "split16":  # 8 bits of what is at most half a unit
                half = np.array([half_a_unit(x) for x in p.reshape(-1)]).reshape(p.shape)
                unit = unit + half / 128
            found = whole_of(other, k)
            assert (np.abs(found - opt.state[k]["master"])[seen] <= unit[seen]).all(), name
            np.testing.assert_array_equal(found[~same], 0)  # which has no sign but its own
    assert {k: p.tobytes() for k, p in params.items()} == kept


@pytest.mark.parametrize("master", codecs.MASTERS)
@pytest.mark.parametrize("bits", [24, 32])
def test_masters_become_error_bits(master, bits):
    """Within half a code, which with 16 bits is about a unit in float32's last place."""
    params = tree(0, BRAIN)
    opt = st.AdamW(params, lr=0.01, master=master)
    for seed in range(5):
        opt.step(tree(seed))
    given = st.convert.to_flashoptim(opt, master_weight_bits=bits, tensors=False)
    for own, (k, p) in zip(given["state"].values(), params.items(), strict=True):
        whole = whole_of(opt, k)
        most = {24: 127, 32: 32767}[bits]
        errors = own["error_bits"].astype(int) if bits == 24 else own["error_bits"].view(np.int16)
        assert own["error_bits"].dtype == BRAIN and errors.any()
        for x, e, w in zip(p.reshape(-1), errors.reshape(-1), whole.reshape(-1), strict=True):
            lacks = (float(w) - float(x)) / half_a_unit(x)
            assert abs(lacks) <= 1
            assert abs(lacks * most - int(e)) <= 0.5 + 1e-3  # the product is of single precision
    again = st.AdamW(params, master="float32")
    st.convert.from_flashoptim(given, again)
    for k, p in params.items():
        whole = whole_of(opt, k)
        unit = np.array([half_a_unit(x) for x in p.reshape(-1)]).reshape(p.shape) / most
        unit = 0.51 * unit + 0.51 * np.spacing(np.abs(whole))  # of the code, and of the sum
        assert (np.abs(again.state[k]["master"] - whole) <= unit).all()


def test_error_bits_go_back_but_where_two_stand_for_one_number():
    """16 of them, around half of the largest: those of 24 of 16384 numbers."""
    errors = np.arange(-32767, 32768)
    p = np.full(errors.size, 1.5, BRAIN)
    given = state_dict()["param_groups"][0] | {"master_bytewidth": 4, "params": [0]}
    own = {"momentum_buffer": np.zeros(p.size), "error_bits": errors.astype(np.int16).view(BRAIN)}
    opt = st.SGD(p, momentum=0.9, master="float32")
    st.convert.from_flashoptim({"state": {0: own}, "param_groups": [given]}, opt, keep=True)
    back = st.convert.to_flashoptim(opt, master_weight_bits=32, tensors=False)
    again = back["state"][0]["error_bits"].view(np.int16)
    assert (again != errors).sum() < 50
    assert np.abs(again - errors).max() == 1
    assert np.abs(errors[again != errors]).min() > 16300
    assert np.abs(errors[again != errors]).max() < 16450


def test_states_that_are_not_compressed_are_taken():
    given = state_dict()
    for own in given["state"].values():
        for key in ("exp_avg", "exp_avg_sq"):
            own[key] = own.pop(f"{key}::quantized").astype(np.float32)
            del own[f"{key}::scales"]
    opt = st.AdamW(tree(0))
    st.convert.from_flashoptim(given, opt)
    np.testing.assert_array_equal(opt.state["w"]["exp_avg"], given["state"][0]["exp_avg"])
    back = st.convert.to_flashoptim(opt, quantize=False, tensors=False)
    np.testing.assert_array_equal(back["state"][0]["exp_avg"], given["state"][0]["exp_avg"])
    assert back["param_groups"][0]["quantize"] is False


@pytest.mark.parametrize("rule", ["sgd", "lion"])
def test_rules_that_count_no_steps(rule):
    key = {"sgd": "momentum_buffer", "lion": "exp_avg"}[rule]
    given = state_dict()
    for own in given["state"].values():
        for part in ("quantized", "scales"):
            own[f"{key}::{part}"] = own.pop(f"exp_avg::{part}")
            del own[f"exp_avg_sq::{part}"]
        del own["step"]
    hyper = {"lr": 0.1, "weight_decay": 0.1}
    hyper |= {"momentum": 0.8, "dampening": 0.0} if rule == "sgd" else {"betas": (0.8, 0.9)}
    given["param_groups"][0] = hyper | {
        "initial_lr": 0.1, "master_bytewidth": 3, "quantize": True, "params": [0, 1]
    }  # fmt: skip
    opt = {"sgd": st.SGD, "lion": st.Lion}[rule](tree(0))
    st.convert.from_flashoptim(given, opt, step=9)
    assert opt.updates == 9
    back = st.convert.to_flashoptim(opt, tensors=False)
    assert back["param_groups"] == given["param_groups"]
    for i, own in given["state"].items():
        assert back["state"][i].keys() == own.keys()
        for part, x in own.items():
            np.testing.assert_array_equal(back["state"][i][part], x)


@pytest.mark.parametrize(
    ("change", "master", "message"),
    [
        (lambda s: None, None, "error_bits of parameter 'w': make the optimizer with a mas"),
        (lambda s: s.pop("exp_avg::scales"), "float32", "needs both 'exp_avg::quantized' and"),
        (lambda s: s.update({"exp_avg::scales": np.zeros(4, "f2")}), "float32", r"\(4,\) scales"),
        (lambda s: s.update({"exp_avg::quantized": np.full((13, 10), 0.5)}), "float32", "of 8 bit"),
        (lambda s: [s.pop(f"exp_avg_sq::{x}") for x in ("quantized", "scales")], "float32",
         r"'w' has the states \['exp_avg'\] there"),
        (lambda s: s.update(error_bits=np.zeros(2, np.int8)), "float32", r"shape \(2,\)"),
        (lambda s: s.update(error_bits=np.full((13, 10), 300.0)), "float32", "expected 8 or 16"),
        (lambda s: s.update(other=np.zeros((13, 10))), "float32", "the states .*'other'"),
        (lambda s: s.pop("step"), "float32", "parameter 'w' has no step"),
    ],
)  # fmt: skip
def test_states_that_do_not_fit_are_refused_by_name(change, master, message):
    given = state_dict(BRAIN)
    change(given["state"][0])
    opt = st.AdamW(tree(0, BRAIN), master=master)
    with pytest.raises(ValueError, match=message):
        st.convert.from_flashoptim(given, opt)
    assert opt.updates == 0


def test_a_float32_parameter_here_has_the_error_in_it():
    opt = st.AdamW(tree(0))
    st.convert.from_flashoptim(state_dict(BRAIN), opt)
    assert set(opt.state["w"]) == {"step", "exp_avg", "exp_avg_sq"}


def test_what_flashoptim_lacks_is_refused():
    for options, message in (
        ({"amsgrad": True}, "FlashOptim's adamw .* has no amsgrad"),
        ({"weight_decay": 0.1, "decay_mode": "l2"}, "no weight_decay with decay_mode = 'l2'"),
    ):
        with pytest.raises(ValueError, match=message):
            st.convert.to_flashoptim(st.AdamW(tree(0), **options), tensors=False)
    opt = st.AdamW(tree(0))
    with pytest.raises(ValueError, match="master_weight_bits = 16: expected None, 24 or 32"):
        st.convert.to_flashoptim(opt, master_weight_bits=16)
    opt.step(tree(1))
    opt.state["w"]["exp_avg"][0, 0] = 1e6
    with pytest.raises(ValueError, match="'exp_avg' of parameter 'w' has numbers beyond float16"):
        st.convert.to_flashoptim(opt, tensors=False)


# Where FlashOptim is


@pytest.fixture
def flash(monkeypatch):
    """FlashOptim, told that there is a GPU: what it then loads needs none."""
    global torch
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("flashoptim")


@pytest.mark.torch
@pytest.mark.parametrize("rule", ["adam", "adamw", "lion", "sgd"])
def test_training_goes_on_from_flashoptim_and_back_without_a_gpu(flash, rule):
    """States of float32, as it has them there."""
    name = {"adam": "FlashAdam", "adamw": "FlashAdamW", "lion": "FlashLion", "sgd": "FlashSGD"}[
        rule
    ]
    hyper = {"lr": 0.01, "weight_decay": 0.1}
    hyper |= {"momentum": 0.8, "dampening": 0.0} if rule == "sgd" else {"betas": (0.8, 0.95)}
    plain = {"quantize": False, "master_weight_bits": None, "fused": False}

    def peer_of(values):
        params = [torch.nn.Parameter(torch.tensor(x)) for x in values.values()]
        return params, getattr(flash, name)(params, **hyper, **plain)

    def step(params, opt, grads):
        for p, g in zip(params, grads.values(), strict=True):
            p.grad = torch.tensor(g)
        opt.step()

    params, peer = peer_of(tree(0))
    for seed in range(5):
        step(params, peer, tree(seed))
    here = {k: p.detach().numpy().copy() for k, p in zip(LARGE, params, strict=True)}
    opt = {"adam": st.Adam, "adamw": st.AdamW, "lion": st.Lion, "sgd": st.SGD}[rule](here)
    st.convert.from_flashoptim(peer.state_dict(), opt)
    again, other = peer_of(here)
    other.load_state_dict(st.convert.to_flashoptim(opt, quantize=False, master_weight_bits=None))
    for seed in range(5, 8):
        step(params, peer, tree(seed))
        step(again, other, tree(seed))
        opt.step(tree(seed))
    for p, q, x in zip(params, again, here.values(), strict=True):
        np.testing.assert_array_equal(p.detach(), q.detach())
        # Single precision, in another order.
        np.testing.assert_allclose(x, p.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flashoptim_loads_codes_and_error_bits_and_writes_the_same(flash, monkeypatch, dtype, bits):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # codes are loaded as they are
    monkeypatch.setenv("FLASHOPTIM_ALLOW_INEFFECTIVE_MASTER_WEIGHT_BITS", "1")
    values = tree(0, BRAIN if dtype == "bfloat16" else np.float32)
    master = "split16" if dtype == "bfloat16" else None
    opt = st.AdamW(values, master=master)
    for seed in range(5):
        opt.step(tree(seed))
    params = [
        torch.nn.Parameter(torch.tensor(x.astype(np.float32)).to(getattr(torch, dtype)))
        for x in values.values()
    ]
    peer = flash.FlashAdamW(params, master_weight_bits=bits)
    given = st.convert.to_flashoptim(opt, master_weight_bits=bits)
    peer.load_state_dict(given)
    if dtype == "bfloat16":
        kept = peer.state[params[0]]["error_bits"]
        assert kept.dtype == {24: torch.int8, 32: torch.int16}[bits] and kept.any()
    written = peer.state_dict()
    for i, own in given["state"].items():
        assert written["state"][i].keys() == own.keys()
        for key, x in own.items():
            again = written["state"][i][key]
            assert again.dtype == x.dtype, key
            assert (
                again.numpy(force=True).tobytes() == x.numpy().tobytes()
                if (x.dtype != torch.bfloat16)
                else torch.equal(again.view(torch.int16), x.view(torch.int16))
            ), key
    again = st.AdamW(values, master=master)
    st.convert.from_flashoptim(written, again)
    assert again.updates == 5


# Its kernels, each in Triton's interpreter; what has no meaning there is put in their place.
KERNELS = """
import sys, types
import numpy as np
import torch
import triton.language as tl
from flashoptim import FlashAdamW, optimizers

torch.cuda.is_available = lambda: True
optimizers._get_sm_count = lambda device=None: 1
optimizers.libdevice = types.SimpleNamespace(
    copysign=lambda x, sign: tl.where(sign < 0, -x, x),
    pow=lambda x, y: tl.exp2(tl.log2(x) * y),
)
for kernel in (optimizers._triton_quantize_kernel, optimizers._triton_dequantize_kernel):
    kernel.configs = kernel.configs[:1]  # there is no time to measure

given = torch.load(sys.argv[1])
found = {}
for key, kind in (("m", {}), ("v", {"signed": False, "sqrt": True, "softsign": False})):
    codes, scales = optimizers.quantize(given[key], **kind)
    numbers = optimizers.dequantize(codes, scales, **kind)
    found[key] = codes, scales, numbers
short = given["whole"].bfloat16()
for width in (3, 4):
    bits = optimizers.compute_ecc_bits(given["whole"], short, width)
    found[width] = bits, optimizers.reconstruct_fp32_param(short, bits)
p = torch.nn.Parameter(given["p"])
opt = FlashAdamW([p], master_weight_bits=32)
opt.load_state_dict(given["state_dict"])
p.grad = given["g"]
opt.step()
found["stepped"] = p.detach(), opt.state_dict()
torch.save(found, sys.argv[2])
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """What they were given and what they made of it."""
    global torch
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    pytest.importorskip("flashoptim")
    random = np.random.default_rng(5)
    x = random.normal(size=(3, 1000)) * 10.0 ** random.uniform(-4, 0, (3, 1000))
    x[0, 64:96] = 0
    m, v, whole = (torch.tensor(x.astype(np.float32)) for x in (x[0], x[1] ** 2, x[2]))
    p = x[2].astype(np.float16)  # the interpreter does not round to bfloat16, but cuts off
    opt = st.AdamW(p, lr=0.01, master="float32", betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1)
    for scale in (1.0, 0.1, -0.3):
        opt.step(x[1] * scale)
    given = {
        "m": m, "v": v, "whole": whole, "g": torch.tensor(x[1].astype(np.float16)),
        "p": torch.tensor(p),
        "state_dict": st.convert.to_flashoptim(opt, master_weight_bits=32),
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("kernels")
    torch.save(given, folder / "given.pt")
    done = subprocess.run(
        [sys.executable, "-P", "-c", KERNELS, folder / "given.pt", folder / "found.pt"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return given, torch.load(folder / "found.pt"), p


@pytest.mark.torch
@pytest.mark.parametrize("key", ["m", "v"])
def test_codes_are_those_of_flashoptims_kernels(kernels, key):
    given, found, _ = kernels
    codes, scales, numbers = (x.numpy() for x in found[key])
    codec = block_codecs.FLASHOPTIM[key == "m"]
    again, factors = codec.encoded(given[key].numpy())
    np.testing.assert_array_equal(again.view(codes.dtype), codes)
    np.testing.assert_array_equal(factors.astype(np.float16), scales)
    np.testing.assert_array_equal(codec.decoded(again, scales.astype(np.float32)), numbers)


@pytest.mark.torch
@pytest.mark.parametrize("width", [3, 4])
def test_error_bits_are_those_of_flashoptims_kernels(kernels, width):
    given, found, _ = kernels
    bits, numbers = (x.numpy() for x in found[width])
    whole = given["whole"].numpy()
    p = whole.astype(BRAIN)
    opt = st.SGD(p, lr=0.1, momentum=0.9, master="float32")
    opt.step(np.zeros(1000))
    opt.state["0"]["master"][...] = whole
    back = st.convert.to_flashoptim(opt, master_weight_bits=8 * width, tensors=False)
    errors = back["state"][0]["error_bits"]
    errors = errors.astype(np.int8) if width == 3 else errors.view(np.int16)
    st.convert.from_flashoptim(back, opt)
    np.testing.assert_array_equal(errors, bits)
    np.testing.assert_array_equal(opt.state["0"]["master"], numbers)


@pytest.mark.torch
def test_a_step_of_flashoptims_kernels_is_that_of_here(kernels):
    """From the same codes and error bits."""
    given, found, p = kernels
    opt = st.AdamW(p.copy(), lr=7.0, master="float32")
    st.convert.from_flashoptim(given["state_dict"], opt)
    opt.step(given["g"].numpy())
    stepped, state_dict = found["stepped"]
    ours, theirs = opt.state["0"], st.AdamW(
        stepped.numpy(), lr=7.0, master="float32"
    )  # fmt: skip
    st.convert.from_flashoptim(state_dict, theirs)
    assert theirs.updates == opt.updates == 4
    close = {"rtol": 1e-5, "atol": 1e-6}  # single precision, and a power by logarithms
    np.testing.assert_allclose(ours["master"], theirs.state["0"]["master"], **close)
    back = st.convert.to_flashoptim(opt, master_weight_bits=32)["state"][0]
    for key in ("exp_avg", "exp_avg_sq"):
        codes, expected = (
            x[f"{key}::quantized"].numpy().astype(int) for x in (back, state_dict["state"][0])
        )
        assert np.abs(codes - expected).max() <= 1 and (codes != expected).mean() < 0.01
