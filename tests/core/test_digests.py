"""The digest of an optimizer: equal where all bits are, and only there."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from cases import LEVELS, use_threads

import steepest as st
from steepest.kernels import dispatch

RNG = np.random.default_rng(0)
P = {"w": RNG.standard_normal((40, 30)), "b": RNG.standard_normal(5), "n": RNG.standard_normal(())}
G = [{k: RNG.standard_normal(p.shape) for k, p in P.items()} for _ in range(3)]
KINDS = [
    (st.AdamW, {"clip": st.clip.percentile(50)}),
    (st.Prodigy, {}),
    (st.NovoGrad, {"lr": 0.01}),
    (st.SGD, {"momentum": 0.9, "filter": st.filters.mask()}),
]
KIND = pytest.mark.parametrize(("cls", "options"), KINDS, ids=lambda x: getattr(x, "__name__", ""))


def made(cls=st.AdamW, options=None, dtype=np.float32, order="C", names=("w", "b", "n")):
    params = {k: np.array(P[k], dtype, order=order) for k in names}
    opt = cls(params, **(options or {}))
    for grads in G:
        opt.step({k: grads[k].astype(dtype) for k in names})
    return opt


@KIND
def test_equal_bits_have_equal_digests(cls, options, tmp_path):
    opt = made(cls, options)
    found = {opt.digest(), opt.digest(), copy.deepcopy(opt).digest()}
    found.add(pickle.loads(pickle.dumps(opt)).digest())
    found.add(made(cls, options, order="F").digest())
    if cls is not st.Prodigy:  # which sums over parameters in their order
        found.add(made(cls, options, names=("n", "w", "b")).digest())
    use_threads(3)
    for level in LEVELS:
        dispatch.use(level)
        found.add(made(cls, options).digest())
    st.save(tmp_path / "x.safetensors", opt)
    other = cls(
        {k: np.zeros_like(p) for k, p in zip("wbn", opt.param_groups[0]["params"], strict=True)},
        **options,
    )
    st.load(tmp_path / "x.safetensors", other)
    found.add(other.digest())
    assert len(found) == 1 and len(found.pop()) == 64


@KIND
def test_any_other_bit_has_another_digest(cls, options):
    opt = made(cls, options)
    found = [opt.digest()]
    arrays = [*opt.param_groups[0]["params"]]
    arrays += [x for state in opt.state.values() for x in state.values()]
    for x in arrays:
        if x.size:
            bits = x.view(f"u{x.itemsize}")
            place = (-1,) * x.ndim
            bits[place] ^= 1
            found.append(opt.digest())
            bits[place] ^= 1
    assert opt.digest() == found[0]
    assert len(set(found)) == len(found) > 3


def test_counts_norms_and_numbers_of_rules_are_in_it():
    opt = made(st.AdamW, {"clip": st.clip.percentile(50), "nonfinite": "skip"})
    found = [opt.digest()]
    [key] = opt.clip_history
    opt.clip_history[key][0] *= 2
    found.append(opt.digest())
    opt.step({k: np.full(p.shape, np.nan, np.float32) for k, p in P.items()})
    found.append(opt.digest())
    opt = made(st.Prodigy)
    found.append(opt.digest())
    opt.param_groups[0]["d"] *= 2
    found.append(opt.digest())
    assert len(set(found)) == len(found)


def test_names_formats_and_shapes_are_in_it():
    one = [made(dtype=x).digest() for x in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
    zeros = [
        {"w": np.zeros(6)},
        {"v": np.zeros(6)},
        {"w": np.zeros((2, 3))},
        {"w": np.zeros((3, 2))},
    ]
    zeros += [{"w": np.zeros(6, np.float32)}, {"w": np.zeros(3)}, {"w": np.zeros((0, 3))}]
    found = [*one, *(st.SGD(p).digest() for p in zeros)]
    assert len(set(found)) == len(found)


def test_hyper_parameters_are_not():
    opt = made()
    before = opt.digest()
    opt.param_groups[0]["lr"] = 0.5
    opt.param_groups[0]["weight_decay"] = st.schedules.constant(0.5)
    assert opt.digest() == before


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_is_nan_and_zeros_have_signs(dtype):
    def of(*values):
        return st.SGD(np.array(values, dtype)).digest()

    quiet = np.array([np.nan, 1], dtype)
    bits = quiet.view(f"u{quiet.itemsize}")
    bits[0] ^= 1
    assert np.isnan(quiet.astype(float)[0]) and st.SGD(quiet).digest() == of(np.nan, 1)
    assert of(-np.nan, 1) == of(np.nan, 1) != of(np.inf, 1) != of(-np.inf, 1)
    assert of(0, 1) != of(-0.0, 1)


def test_both_ways_to_hold_bfloat16_are_one():
    bits = np.array([16256, 16384], np.uint16)
    one = st.SGD(bits, dtype="bfloat16")
    assert one.digest() == st.SGD(bits.view(ml_dtypes.bfloat16).copy()).digest()


def test_more_elements_than_are_hashed_at_a_time():
    p = RNG.standard_normal((300, 700)).astype(np.float32)
    first = st.SGD(p.copy()).digest()
    assert st.SGD(np.asfortranarray(p)).digest() == first
    room = np.zeros((600, 1400), np.float32)
    view = room[::-2, ::2]
    view[...] = p
    assert st.SGD(view).digest() == first
    view[-1, -1] = 7
    assert st.SGD(view).digest() != first


def test_a_fresh_optimizer_and_one_that_has_loaded_it():
    """States that a rule makes at the first step count as they begin."""
    opt = st.NovoGrad({"w": np.ones(3)})
    other = st.NovoGrad({"w": np.ones(3)})
    other.load_state_dict(opt.state_dict())
    assert opt.digest() == other.digest()


def test_lbfgs():
    def run(steps):
        w = np.array([1.0, 2.0])
        opt = st.LBFGS(w, lr=0.1)
        for _ in range(steps):
            opt.step(lambda: (float(w @ w), 2 * w))
        return opt.digest()

    assert run(2) == run(2) != run(3)
