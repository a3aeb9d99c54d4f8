"""torch's own database of optimizers, driven against the classes here: every configuration that it
lists for the CPU, and every error.

float32 is compared step by step from the same parameters and states, with weights between 1 and 2
in size, so that an ulp is one of the parameter and not of a difference that is nearly nothing;
float64 runs on its own for all steps.
"""

import copy
import functools
import inspect
import re
import sys
import types
import warnings

import numpy as np
import pytest

import steepest as st

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # which the database imports
database = pytest.importorskip("torch.testing._internal.common_optimizers", exc_type=ImportError)

import steepest.torch as stt  # noqa: E402

ABSENT = {
    "LBFGS": "steepest.LBFGS takes a function of arrays, not gradients that are there already",
    "SparseAdam": "steps sparse gradients only, which are refused",
}
REFUSED = {
    "capturable": "for CUDA graphs",
    "differentiable": "for derivatives of the step",
}
FLAGS = ("foreach", "fused", "capturable", "differentiable")

TENSORS = "a tensor is read as its number, and there is one implementation"
WORKS = {
    ("Adam", "lr as Tensor doesn't work with foreach & not capturable"): TENSORS,
    ("Adam", "betas must be either both floats or both Tensors"): TENSORS,
    ("Adam", r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True"): (
        TENSORS
    ),
    ("Muon", "only support 2D parameters"): "the axes behind the first are taken as one",
}
WORKS |= {("AdamW", what): why for (name, what), why in WORKS.items() if name == "Adam"}
WARNED = {"warn on a bare unordered set of params"}
OTHERWISE = {"does not support complex parameters": "TypeError when made, RuntimeError in a step"}

INFOS = {info.optim_cls.__name__: info for info in database.optim_db}
HERE = [name for name in INFOS if name not in ABSENT]
SHAPES = [(7, 5), (6,), (3, 4, 2), (), (33, 17), (5, 2), (4,)]
MATRICES = [(7, 5), (4, 6), (3, 3), (1, 8), (33, 17), (5, 2), (4, 1)]
STEPS = 7
MISSING = {0: (3,), 1: (0, 2, 5)}  # steps without a gradient, by parameter
FROZEN = {2: range(4), 5: range(STEPS)}  # steps at which a layer is frozen


def configurations(name, dtype):
    """What the database gives for the CPU, with each flag that torch has an implementation for."""
    info = INFOS[name]
    found = database._get_optim_inputs_including_global_cliquey_kwargs("cpu", dtype, info)
    if "foreach" in info.supported_impls:  # which the database has for other devices only
        plain = info.optim_inputs_func(device="cpu")
        found += [
            database.OptimizerInput(None, x.kwargs | {"foreach": True}, f"{x.desc} & foreach")
            for x in plain
        ]
    return found


def refused(kwargs):
    return [flag for flag in REFUSED if kwargs.get(flag)]


def reference(name, params, kwargs):
    """torch's class in its single-tensor path."""
    taken = inspect.signature(INFOS[name].optim_cls).parameters
    kwargs = {key: x for key, x in kwargs.items() if key not in FLAGS}
    kwargs |= {key: False for key in ("foreach", "fused") if key in taken}
    return INFOS[name].optim_cls(params, **kwargs)


def parameters(name, dtype, seed, far):
    draw = torch.Generator().manual_seed(seed)
    made = []
    for shape in MATRICES if name == "Muon" else SHAPES:
        x = torch.randn(shape, generator=draw, dtype=dtype)
        if far:
            x = torch.where(x < 0, -1.0, 1.0) * (1 + torch.rand(x.shape, generator=draw))
        made.append(torch.nn.Parameter(x.to(dtype)))
    return made


def give(params, t):
    """Gradients by backward(), as they come in training: some missing, some layers frozen."""
    draw = torch.Generator().manual_seed(1000 + t)
    loss = torch.zeros(())
    for i, p in enumerate(params):
        p.requires_grad_(t not in FROZEN.get(i, ()))
        p.grad = None
        g = torch.randn(p.shape, generator=draw, dtype=p.dtype)
        if p.requires_grad and t not in MISSING.get(i, ()):
            loss = loss + (p * g).sum()
    loss.backward()


def array(x):
    return x.detach().numpy().astype(np.float64)


def ulps(x, y, scale):
    """How far x and y are apart, in float32's ulps of numbers as large as `scale`."""
    unit = np.spacing(np.abs(scale).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(array(x) - array(y)) / unit, initial=0.0))


def steps(name, kwargs, dtype, seed=1, far=True):
    """Both optimizers, parameters, and torch's before the step: after each of seven steps."""
    theirs, ours = parameters(name, dtype, seed, far), parameters(name, dtype, seed, far)
    a = reference(name, theirs, copy.deepcopy(kwargs))
    b = getattr(stt, name)(ours, **copy.deepcopy(kwargs))
    for t in range(STEPS):
        give(theirs, t)
        give(ours, t)
        if dtype == torch.float32:  # so that rounding does not add up
            with torch.no_grad():
                for p, q in zip(theirs, ours, strict=True):
                    q.copy_(p)
                    for key, x in a.state.get(p, {}).items():
                        if key in b.state[q] and key != "step":
                            b.state[q][key].copy_(x)
        before, own = [array(p) for p in theirs], [array(q) for q in ours]
        a.step()
        b.step()
        for p, q, *old in zip(theirs, ours, before, own, strict=True):
            if p.grad is None:
                assert [array(p).tolist(), array(q).tolist()] == [x.tolist() for x in old]
        yield a, b, theirs, ours, before


def alike_outside(a, b):
    """Whether the states have the same parameters, keys, shapes, dtypes and counts."""
    theirs, ours = a.state_dict()["state"], b.state_dict()["state"]
    assert set(theirs) == set(ours)
    for i, state in theirs.items():
        assert set(state) == set(ours[i])
        for key, x in state.items():
            assert (x.shape, x.dtype) == (ours[i][key].shape, ours[i][key].dtype)
            assert key != "step" or x == ours[i][key]


@functools.cache
def run(name, dtype):
    """All configurations of a class: how many there are, ran, are refused; the largest distance."""
    given = configurations(name, dtype)
    ran, no, worst = 0, 0, 0.0
    for given_input in given:
        if refused(given_input.kwargs):
            with pytest.raises(ValueError, match="there are no"):
                getattr(stt, name)(parameters(name, dtype, 1, True), **given_input.kwargs)
            no += 1
            continue
        for a, b, theirs, ours, _ in steps(name, given_input.kwargs, dtype):  # noqa: B007
            for p, q in zip(theirs, ours, strict=True):
                apart = (
                    ulps(p, q, array(p))
                    if dtype == torch.float32
                    else float(np.max(np.abs(array(p) - array(q))))
                )
                worst = max(worst, apart)
        alike_outside(a, b)
        ran += 1
    return len(given), ran, no, worst


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def precise(monkeypatch):
    """torch's Muon uses bfloat16 inside, on any dtype: here its own code in the parameter's."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    if "Muon" in INFOS:  # which says x.bfloat16(), or from 2.15 on x.to(torch.bfloat16)
        same = types.SimpleNamespace(**vars(torch) | {"bfloat16": None})
        monkeypatch.setattr(sys.modules["torch.optim._muon"], "torch", same)


@pytest.fixture
def double():
    """torch keeps single numbers, NAdam's product and ASGD's rate, in its default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_every_class_of_torch_is_here_or_known_to_be_absent():
    own = {
        name
        for name, x in vars(torch.optim).items()
        if inspect.isclass(x) and issubclass(x, torch.optim.Optimizer)
    } - {"Optimizer"}
    assert own <= set(INFOS)
    assert {name for name in INFOS if not hasattr(stt, name)} == set(ABSENT)
    assert all(issubclass(getattr(stt, name), torch.optim.Optimizer) for name in HERE)


@pytest.mark.parametrize("name", HERE)
def test_float32_is_within_two_ulps_of_a_step(name, record_property):
    given, ran, no, worst = run(name, torch.float32)
    record_property("configurations", f"{name}: {ran} ran, {no} refused, of {given}: {worst} ulp")
    assert ran + no == given and ran > 0
    assert worst <= 2.0


@pytest.mark.parametrize("name", HERE)
def test_float64_is_within_1e_12_after_all_steps(name, double):
    given, ran, no, worst = run(name, torch.float64)
    assert ran + no == given and ran > 0
    assert worst <= 1e-12


def test_the_count_of_configurations(capsys, double):
    """Counts what ran, and that no configuration of the database was left out."""
    total = {}
    for dtype in (torch.float32, torch.float64):
        counts = np.array([run(name, dtype)[:3] for name in HERE])
        given, ran, no = (int(x) for x in counts.sum(0))
        assert given == sum(len(configurations(name, dtype)) for name in HERE) == ran + no
        assert given >= (253 if "Muon" in INFOS else 200)  # never fewer by mistake
        total[dtype] = f"{ran} of {given} ran and passed, {no} refused"
    absent = sum(len(configurations(name, torch.float32)) for name in ABSENT)
    with capsys.disabled():
        print("\ntorch's database:", "; ".join(f"{k}: {x}" for k, x in total.items()),
              f"; {absent} of classes that are absent ({', '.join(ABSENT)})")  # fmt: skip


def test_what_is_listed_for_other_devices_is_refused():
    """On CUDA the database adds what is capturable, and nothing else."""
    found = 0
    for name in HERE:
        known = [x.desc for x in INFOS[name].optim_inputs_func(device="cpu")]
        for x in INFOS[name].optim_inputs_func(device="cuda"):
            if x.desc in known and not x.kwargs.get("capturable"):
                continue
            assert refused(x.kwargs) == ["capturable"]
            with pytest.raises(ValueError, match="capturable = True: there are no CUDA graphs"):
                getattr(stt, name)(parameters(name, torch.float32, 1, True), **x.kwargs)
            found += 1
    assert found >= 25


# A weight near nothing is a difference, with the rounding of a step much larger than itself: in
# ulps of the larger of old and new. Steps of 0.1, ten times what others do, double it; Muon's
# iteration multiplies rounding by up to 3.4445⁵; Adafactor's means and norms round once more.
NEAR = {"Adafactor": 16.0, "Adamax": 16.0, "Muon": 256.0}


@pytest.mark.parametrize("name", HERE)
def test_a_weight_near_zero_is_as_near_as_its_step(name):
    worst = 0.0
    for x in INFOS[name].optim_inputs_func(device="cpu"):
        for seed in range(2):
            for _, _, theirs, ours, before in steps(name, x.kwargs, torch.float32, seed, False):
                for p, q, old in zip(theirs, ours, before, strict=True):
                    scale = np.maximum(np.abs(array(p)), np.abs(old))
                    worst = max(worst, ulps(p, q, scale))
    assert worst <= NEAR.get(name, 8.0)


@pytest.mark.parametrize("name", [name for name in HERE if name != "Rprop"])
def test_states_are_within_rounding(name):
    """In ulps of a tensor's largest number; a weight decay that takes the most of a gradient
    leaves rounding of 8. Adadelta's averages of squared steps have it twice over."""
    for x in INFOS[name].optim_inputs_func(device="cpu"):
        old = {}
        for a, b, theirs, ours, _ in steps(name, x.kwargs, torch.float32):
            for p, q in zip(theirs, ours, strict=True):
                for key, mine in b.state[q].items():
                    if key == "step" or mine.numel() < 4:
                        continue
                    now = array(a.state[p][key])
                    scale = max(np.max(np.abs(now)), np.max(np.abs(old.get((p, key), 0.0))))
                    bound = 16.0 if key == "acc_delta" else 8.0
                    assert ulps(a.state[p][key], mine, np.float64(scale)) <= bound, (x.desc, key)
                    old[p, key] = now


def test_rprop_has_the_same_bits():
    for x in INFOS["Rprop"].optim_inputs_func(device="cpu"):
        for a, b, theirs, ours, _ in steps("Rprop", x.kwargs, torch.float32):
            for p, q in zip(theirs, ours, strict=True):
                assert torch.equal(p, q)
                assert all(
                    torch.equal(a.state[p][k], y) for k, y in b.state[q].items() if k != "step"
                )


def test_muon_in_bfloat16_is_as_far_as_bfloat16(monkeypatch):
    """torch's Muon as it is: its iteration rounds to 8 bits, which its own factor multiplies."""
    monkeypatch.undo()
    worst = 0.0
    for _, _, theirs, ours, before in steps("Muon", {"lr": 1e-3}, torch.float32):
        for p, q, old in zip(theirs, ours, before, strict=True):
            if p.grad is not None:
                worst = max(
                    worst, np.linalg.norm(array(p) - array(q)) / np.linalg.norm(array(p) - old)
                )
    assert 1e-3 < worst < 0.05


# Errors


def cases():
    """Every error case of every class that is here, made anew: (name, number, what it is)."""
    return [
        (name, i, x.optimizer_error_input.desc)
        for name in HERE
        for i, x in enumerate(
            INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
        )
    ]


def given_case(name, i):
    case = INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)[i]
    params = case.optimizer_error_input.params
    if params is None:
        params = [torch.nn.Parameter(torch.ones(2, 3))]
        params[0].grad = torch.ones(2, 3)
    return case, params


@pytest.mark.parametrize(("name", "i", "what"), cases(), ids=lambda x: str(x).replace(" ", "-"))
def test_errors_are_errors_here(name, i, what):
    case, params = given_case(name, i)
    kwargs = case.optimizer_error_input.kwargs
    cls = getattr(stt, name)
    if (name, what) in WORKS:
        before = [p.detach().clone() for p in params]
        cls(params, **kwargs).step()
        assert not any(torch.equal(p, x) for p, x in zip(params, before, strict=True))
    elif what in OTHERWISE:
        with pytest.raises(TypeError, match="is complex"):
            cls(params, **kwargs)
    elif issubclass(case.error_type, Warning):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            if what in WARNED:
                cls(params, **kwargs)
            else:
                with pytest.raises(ValueError, match="share memory"):
                    cls(params, **kwargs)
        assert any(re.search(case.error_regex, str(x.message)) for x in seen)
    else:
        assert case.error_on is database.OptimizerErrorEnum.CONSTRUCTION_ERROR
        with pytest.raises(case.error_type):
            cls(params, **kwargs)


def test_the_cases_that_are_known_are_in_the_database():
    known = {(name, what) for name, _, what in cases()}
    assert {x for x in WORKS if x[0] in INFOS} <= known
    assert {what for _, what in known} >= set(OTHERWISE)


def test_adafactors_threshold_below_one_is_allowed_and_nought_is_not():
    """torch asks for 1 or more; smaller ones hold steps back more, 0 would stop them."""
    w = np.ones((2, 2))
    st.Adafactor(w, d=0.5).step(np.ones((2, 2)))
    assert (w < 1.0).all()
    with pytest.raises(ValueError, match=r"d = 0\.0: expected a number above 0"):
        st.Adafactor(w, d=0.0)
