"""State dicts in torch's layout: against torch's own classes, both ways."""

import copy
import inspect
import io
import warnings

import numpy as np
import pytest

import steepest as st

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402


@pytest.fixture(autouse=True)
def double():
    """torch keeps single numbers in its default dtype: NAdam's product, ASGD's rate."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


COMMON = {"lr": 0.0137, "weight_decay": 0.0731}
CASES = [
    ("SGD", COMMON),
    ("SGD", COMMON | {"momentum": 0.87, "dampening": 0.31}),
    ("SGD", COMMON | {"momentum": 0.87, "nesterov": True, "maximize": True}),
    ("Adam", COMMON | {"betas": (0.83, 0.987), "eps": 3e-5}),
    ("Adam", COMMON | {"amsgrad": True, "decoupled_weight_decay": True}),
    ("AdamW", COMMON | {"betas": (0.83, 0.987), "eps": 3e-5, "maximize": True}),
    ("AdamW", COMMON | {"amsgrad": True, "betas": (0.83, 0.987)}),
    ("Adamax", COMMON | {"betas": (0.83, 0.987), "eps": 3e-5}),
    ("NAdam", COMMON | {"momentum_decay": 0.0113, "betas": (0.83, 0.987)}),
    ("NAdam", COMMON | {"decoupled_weight_decay": True}),
    ("RAdam", COMMON | {"betas": (0.83, 0.987), "eps": 3e-5}),
    ("RAdam", COMMON | {"betas": (0.83, 0.7), "decoupled_weight_decay": True}),
    ("RMSprop", COMMON | {"alpha": 0.91}),
    ("RMSprop", COMMON | {"alpha": 0.91, "centered": True, "momentum": 0.77}),
    ("Rprop", {"lr": 0.0137, "etas": (0.43, 1.31), "step_sizes": (1e-3, 0.9)}),
    ("Adadelta", COMMON | {"rho": 0.87, "eps": 1e-4}),
    ("Adagrad", COMMON | {"lr_decay": 0.013, "initial_accumulator_value": 0.07}),
    ("ASGD", COMMON | {"lambd": 0.31, "alpha": 0.6, "t0": 3.0}),
    ("Adafactor", COMMON | {"eps": (1e-3, 0.7), "d": 1.1, "beta2_decay": -0.7}),
]
CASES = [
    (name, hyper)
    for name, hyper in CASES
    if hyper.keys() <= inspect.signature(getattr(torch.optim, name)).parameters.keys()
]  # PyTorch's Adam has decoupled_weight_decay from 2.7 on
SHAPES = [(4, 3), (3,), (2, 4, 3)]


def made(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [torch.tensor(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]


def run(params, optimizer, seeds):
    for seed in seeds:
        for i, (p, g) in enumerate(zip(params, made(seed, params[0].detach().numpy().dtype),
                                       strict=True)):  # fmt: skip
            p.grad = None if (seed % 3 == 1 and i == 1) else g
        optimizer.step()


def started(module, name, hyper, dtype=np.float64):
    params = [torch.nn.Parameter(x) for x in made(1, dtype)]
    return params, getattr(module, name)(params, **hyper)


def close(params, others):
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def kinds(state_dict):
    return {
        i: {key: (x.dtype, tuple(x.shape)) for key, x in state.items() if x is not None}
        for i, state in state_dict["state"].items()
        if any(x is not None for x in state.values())
    }


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_the_steps_and_the_state_are_those_of_torchs_class(name, hyper):
    params, ours = started(stt, name, hyper)
    others, theirs = started(torch.optim, name, hyper)
    run(params, ours, range(8))
    run(others, theirs, range(8))
    close(params, others)
    mine, its = ours.state_dict(), theirs.state_dict()
    assert kinds(mine) == kinds(its)
    for i, state in mine["state"].items():
        for key, x in state.items():
            torch.testing.assert_close(x, its["state"][i][key], rtol=1e-11, atol=1e-12)
    torch.set_default_dtype(torch.float32)
    single = started(torch.optim, name, hyper)
    run(*single, range(8))
    assert kinds(ours.state_dict()) == kinds(single[1].state_dict())
    assert mine["param_groups"][0].keys() >= its["param_groups"][0].keys() - {"initial_lr"}


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_training_goes_on_from_torchs_checkpoint_and_back(name, hyper):
    reference, one = started(torch.optim, name, hyper)
    params, theirs = started(torch.optim, name, hyper)
    run(reference, one, range(15))
    run(params, theirs, range(5))
    saved = io.BytesIO()
    torch.save(theirs.state_dict(), saved)
    saved.seek(0)
    ours = getattr(stt, name)(params)
    ours.load_state_dict(torch.load(saved, weights_only=True))
    assert ours.updates == (5 if name != "SGD" else 1 if "momentum" in hyper else 0)
    run(params, ours, range(5, 10))
    saved = io.BytesIO()
    torch.save(ours.state_dict(), saved)
    saved.seek(0)
    again = getattr(torch.optim, name)(params)
    again.load_state_dict(torch.load(saved, weights_only=True))
    run(params, again, range(10, 15))
    close(params, reference)


def test_adagrads_state_is_made_with_the_parameters():
    hyper = {"initial_accumulator_value": 0.7}
    params, ours = started(stt, "Adagrad", hyper)
    others, theirs = started(torch.optim, "Adagrad", hyper)
    assert kinds(ours.state_dict()) == kinds(theirs.state_dict())
    assert ours.state[params[0]]["sum"].eq(0.7).all()
    more = torch.nn.Parameter(torch.ones(2))
    ours.add_param_group({"params": [more], "initial_accumulator_value": 0.3})
    assert ours.state[more]["sum"].eq(0.3).all()
    theirs.add_param_group({"params": [more]})
    theirs.load_state_dict(ours.state_dict())
    more.grad = torch.ones(2)
    run(others, theirs, [1, 2])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9 has no Muon")
def test_muon_has_torchs_layout():
    params, ours = ([torch.nn.Parameter(torch.eye(3))], None)
    ours, theirs = stt.Muon(params, lr=0.1), torch.optim.Muon([torch.nn.Parameter(torch.eye(3))])
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["params"][0].grad = torch.full((3, 3), 0.5).tril()
        optimizer.step()
    assert kinds(ours.state_dict()) == kinds(theirs.state_dict())
    mine = ours.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(mine, theirs.state_dict()["state"][0]["momentum_buffer"])
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_whole_numbers_and_older_counts_are_read():
    params, ours = started(stt, "Adam", {})
    run(params, ours, range(3))
    old = copy.deepcopy(ours.state_dict())
    for state in old["state"].values():
        state["step"] = int(state["step"])
    del old["param_groups"][0]["steepest"]
    ours.load_state_dict(old)
    assert ours.updates == 3 and ours.state[params[0]]["step"] == 3
    old["state"][0]["step"] = 2.5
    with pytest.raises(ValueError, match=r"step of parameter '0' = 2.5"):
        ours.load_state_dict(old)


def test_a_count_beyond_float32_is_whole():
    params, ours = started(stt, "AdamW", {})
    run(params, ours, range(1))
    ours.state[params[0]]["step"].fill_(2**24 + 1)
    step = ours.state_dict()["state"][0]["step"]
    assert step == 2**24 + 1 and step.dtype == torch.float64
    ours.load_state_dict(ours.state_dict())
    assert ours.state[params[0]]["step"] == 2**24 + 1


def test_what_torch_has_no_place_for_goes_along():
    hyper = {"momentum": 0.8, "ema": 0.9, "clip": st.clip.percentile(50.0), "lr": 0.1}
    params, ours = started(stt, "SGD", hyper)
    run(params, ours, range(4))
    saved = copy.deepcopy(ours.state_dict())
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    loaded = stt.SGD(others)
    loaded.load_state_dict(saved)
    assert loaded.updates == 4 and loaded.clip_history == ours.clip_history
    run(params, ours, range(4, 8))
    run(others, loaded, range(4, 8))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    theirs = torch.optim.SGD(others)
    theirs.load_state_dict(saved)
    theirs.step()


def test_group_numbers_are_in_param_groups():
    params, ours = started(stt, "DAdaptAdam", {"d0": 0.01})
    run(params, ours, range(4))
    saved = copy.deepcopy(ours.state_dict())
    assert saved["param_groups"][0]["d"] == ours.param_groups[0]["d"] > 0.01
    assert saved["param_groups"][0]["numerator_weighted"] != 0.0


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d["state"][1].update(exp_avg=torch.zeros(4, dtype=torch.float64)),
     r"'exp_avg' of parameter '1' is float64 of shape \(4,\)"),
    (lambda d: d["state"][0].update(exp_avg=torch.zeros(4, 3).float()),
     "'exp_avg' of parameter '0'"),
    (lambda d: d["state"][0].pop("exp_avg_sq"), "state of parameter '0' has keys"),
    (lambda d: d["state"][2].update(step=torch.zeros(2)), "step of parameter '2'"),
    (lambda d: d["state"].update({1: [1]}), "state of parameter '1' is a list"),
    (lambda d: d["param_groups"].pop(), "expected"),
    (lambda d: d["param_groups"][0].update(lr="high"), "lr = 'high'"),
    (lambda d: d["param_groups"][0].update(params=[0, 1]), "expected"),
])  # fmt: skip
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    params, ours = started(stt, "AdamW", {"lr": 0.3})
    run(params, ours, range(3))
    bad = copy.deepcopy(ours.state_dict())
    change(bad)
    before = copy.deepcopy(ours.state_dict())
    groups, tensors = ours.param_groups, dict(ours.state[params[0]])
    with pytest.raises((TypeError, ValueError), match=message):
        ours.load_state_dict(bad)
    assert ours.param_groups is groups and dict(ours.state[params[0]]).keys() == tensors.keys()
    after = ours.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, state in before["state"].items():
        assert all(torch.equal(x, after["state"][i][key]) for key, x in state.items())


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_a_state_dict_has_numbers_whatever_the_default_device(name, hyper):
    p = torch.nn.Parameter(torch.ones(4, 3))
    opt = getattr(stt, name)([p], **hyper)
    p.grad = torch.ones(4, 3)
    opt.step()
    expected = opt.state_dict()
    with torch.device("meta"):
        found = opt.state_dict()
        opt.load_state_dict(found)
        opt.step()
    for key, x in expected["state"].get(0, {}).items():
        assert torch.equal(found["state"][0][key], x), key
    assert all(x.device.type == "cpu" for x in opt.state[p].values())


def test_loading_copies():
    params, ours = started(stt, "Adam", {})
    run(params, ours, range(2))
    saved = copy.deepcopy(ours.state_dict())
    kept = copy.deepcopy(saved)
    ours.load_state_dict(saved)
    run(params, ours, range(2))
    for i, state in saved["state"].items():
        assert all(torch.equal(x, kept["state"][i][key]) for key, x in state.items())


def test_a_state_dict_loads_without_running_code():
    params, ours = started(stt, "AdamW", {"clip": st.clip.global_norm(1.0)})
    run(params, ours, range(2))
    saved = io.BytesIO()
    torch.save(ours.state_dict(), saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    assert loaded["param_groups"][0]["clip"] == st.clip.global_norm(1.0)


def test_torchs_schedulers_keep_what_they_keep():
    params, ours = started(stt, "SGD", {"lr": 1.0})
    scheduler = torch.optim.lr_scheduler.StepLR(ours, 1, 0.5)
    run(params, ours, range(1))
    scheduler.step()
    saved = copy.deepcopy(ours.state_dict())
    assert saved["param_groups"][0]["initial_lr"] == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.load_state_dict(saved)
    assert ours.param_groups[0]["lr"] == 0.5
