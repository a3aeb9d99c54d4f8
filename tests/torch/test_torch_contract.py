"""What torch asks of all its optimizers (its test_optim.py): of ours, beside its own."""

import collections
import copy
import gc
import inspect
import io
import pickle
import weakref

import numpy as np
import pytest

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import torch.optim.optimizer as torch_optimizer  # noqa: E402
from torch_facts import ADAGRAD_TAKES_LATER_GROUPS  # noqa: E402

import steepest as st  # noqa: E402
import steepest.torch as stt  # noqa: E402

NAMES = sorted(
    name
    for name, x in vars(torch.optim).items()
    if inspect.isclass(x) and issubclass(x, torch.optim.Optimizer) and hasattr(stt, name)
    if name not in ("Optimizer", "Muon")  # Muon's own iteration is in bfloat16 there
)
HYPER = {
    "SGD": {"lr": 0.03, "momentum": 0.87, "dampening": 0.3, "weight_decay": 0.07},
    "RMSprop": {"lr": 0.03, "momentum": 0.7, "centered": True, "weight_decay": 0.07},
    "Adagrad": {"lr": 0.03, "lr_decay": 0.01, "weight_decay": 0.07},
    "Rprop": {"lr": 0.03},
    "Adam": {"lr": 0.03, "amsgrad": True, "weight_decay": 0.07},
}
COMPLEX = [name for name in NAMES if name != "Adafactor"]
# The flags that came after a class's first release, which older checkpoints lack.
LATER = ("foreach", "differentiable", "maximize", "capturable", "fused")


@pytest.fixture(autouse=True)
def double():
    """torch keeps single numbers, NAdam's product and ASGD's rate, in its default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def hyper(name):
    return HYPER.get(name, {"lr": 0.03, "weight_decay": 0.07})


def random(shape, seed, dtype=None):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=dtype or torch.get_default_dtype())


def parameters(*shapes, dtype=None):
    shapes = shapes or ((4, 3), (3,))
    return [torch.nn.Parameter(random(s, i, dtype)) for i, s in enumerate(shapes)]


def step(params, optimizer, seeds):
    for seed in seeds:
        for i, p in enumerate(params):
            p.grad = random(p.shape, 50 * seed + i, p.dtype)
        optimizer.step()


def both(name, given=None, **options):
    """(parameters, optimizer) of ours and of torch's; `given` makes groups of parameters."""
    for module in (stt, torch.optim):
        params = parameters()
        groups = params if given is None else given(params)
        yield params, getattr(module, name)(groups, **(hyper(name) | options))


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def assert_states(a, b):
    """Whether two state dicts are the same, tensors by bits."""
    assert set(a["state"]) == set(b["state"])
    for i, state in a["state"].items():
        assert set(state) == set(b["state"][i])
        assert all(torch.equal(x, b["state"][i][key]) for key, x in state.items())
    assert a["param_groups"] == b["param_groups"]


# What an optimizer shows


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_groups_have_torchs_keys(name):
    (_, ours), (_, theirs) = both(name)
    for a, b in (
        (ours.defaults, theirs.defaults),
        (ours.param_groups[0], theirs.param_groups[0]),
        (ours.state_dict()["param_groups"][0], theirs.state_dict()["param_groups"][0]),
    ):
        shared = set(b) - {"params"}
        assert shared <= set(a)
        assert {key: a[key] for key in shared} == {key: b[key] for key in shared}
    saved = theirs.state_dict()["param_groups"][0]
    assert set(saved) <= set(ours.state_dict()["param_groups"][0])
    assert isinstance(ours.state, collections.defaultdict) and not isinstance(ours, torch.nn.Module)


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_a_state_does_not_make_one(name):
    (params, ours), (others, theirs) = both(name)
    kept = []
    for ps, optimizer in ((params, ours), (others, theirs)):
        early = len(optimizer.state[ps[1]])  # Adagrad's are made with the parameters
        ps[0].grad = random((4, 3), 1)
        optimizer.step()
        assert len(optimizer.state[ps[1]]) == early and optimizer.state[ps[0]]
        kept.append({i for i, state in optimizer.state_dict()["state"].items() if state})
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_text_names_class_and_groups(name):
    for _, optimizer in both(name, lambda ps: [{"params": [p]} for p in ps]):
        text = repr(optimizer)
        assert text.startswith(f"{name} (") and "Parameter Group 1" in text
        assert "    lr: 0.03\n" in text


@pytest.mark.parametrize(("params", "error", "message"), [
    ([], ValueError, "optimizer got an empty parameter list"),
    (["w"], TypeError, "optimizer can only optimize Tensors"),
    ([3.0], TypeError, "optimizer can only optimize Tensors"),
    ([{"params": {torch.ones(2)}}], TypeError, "organized in ordered collections"),
    ([torch.ones(2, requires_grad=True) * 2], ValueError, "can't optimize a non-leaf Tensor"),
])  # fmt: skip
@pytest.mark.parametrize("module", [stt, torch.optim], ids=["ours", "torch"])
def test_wrong_parameters_are_refused_in_torchs_words(module, params, error, message):
    with pytest.raises(error, match=message):
        module.AdamW(params)


@pytest.mark.parametrize("kind", ["generator", "named", "dict of names", "tuple", "not required"])
def test_parameters_come_in_many_ways(kind):
    for module in (stt, torch.optim):
        model = torch.nn.Linear(3, 2)
        given = {
            "generator": model.parameters(),
            "named": model.named_parameters(),
            "dict of names": [{"params": list(model.named_parameters()), "lr": 0.1}],
            "tuple": tuple(model.parameters()),
            "not required": [p.detach() for p in model.parameters()],
        }[kind]
        group = module.SGD(given).param_groups[0]
        assert len(group["params"]) == 2
        assert ("param_names" in group) == (kind in ("named", "dict of names"))


# Groups


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_their_own_rates_and_decays(name):
    other = {"lr": 0.007} | ({} if name == "Rprop" else {"weight_decay": 0.2})

    def groups(params):
        return [{"params": params[:1]}, {"params": params[1:], **other}]

    (p, ours), (q, theirs) = both(name, groups)
    for params, optimizer in ((p, ours), (q, theirs)):
        step(params, optimizer, range(3))
        if name != "ASGD":
            optimizer.param_groups[0]["lr"] = 0.011
        step(params, optimizer, range(3, 6))
    assert_close(p, q)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name != "Adagrad" or ADAGRAD_TAKES_LATER_GROUPS]
)
def test_a_group_added_later(name):
    found = []
    for module in (stt, torch.optim):
        params = parameters()
        optimizer = getattr(module, name)(params[:1], **hyper(name))
        step(params[:1], optimizer, range(2))
        optimizer.add_param_group({"params": params[1], "lr": 0.2})
        step(params, optimizer, range(2, 4))
        found.append((params, [g["lr"] for g in optimizer.param_groups]))
        with pytest.raises(ValueError, match="appear in more than one parameter group"):
            optimizer.add_param_group({"params": [params[0]]})
        with pytest.raises(TypeError, match="param_group must be a dict"):
            optimizer.add_param_group([params[0]])
        assert len(optimizer.param_groups) == 2
    assert_close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == [0.03, 0.2]


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_that_is_a_tensor(name):
    found = []
    for module in (stt, torch.optim):
        params = parameters()
        given = hyper(name) | {"lr": torch.tensor(0.03), "foreach": False}
        optimizer = getattr(module, name)(params, **given)
        step(params, optimizer, range(2))
        held = optimizer.param_groups[0]["lr"]
        assert held is given["lr"]
        if name != "ASGD":
            held.mul_(0.5)  # seen at the next step
        step(params, optimizer, range(2, 4))
        assert optimizer.param_groups[0]["lr"] is held
        found.append(params)
    assert_close(*found)


def test_asgd_goes_by_its_rate_at_once():
    """torch's uses the rate that there was at the end of the step before: one step later."""
    (p, ours), (q, theirs) = both("ASGD", lambd=0.0, weight_decay=0.0)
    for params, optimizer in ((p, ours), (q, theirs)):
        step(params, optimizer, range(2))
        optimizer.param_groups[0]["lr"] = 0.0
    assert_close(p, q)
    before = copy.deepcopy(p)
    step(p, ours, [2])
    step(q, theirs, [2])
    assert all(torch.equal(x, y) for x, y in zip(p, before, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(q, before, strict=True))
    after = copy.deepcopy(q)
    step(q, theirs, [3])
    assert all(torch.equal(x, y) for x, y in zip(q, after, strict=True))


# Names


def test_names_go_into_state_dicts_and_out_of_them():
    """As in torch: the names that are loaded stand, and without any those that there were."""
    found = []
    for module in (stt, torch.optim):
        model = torch.nn.Linear(3, 2)
        named, plain = module.Adam(model.named_parameters()), module.Adam(model.parameters())
        saved = named.state_dict()["param_groups"][0]["param_names"]
        other = [(f"x.{name}", p) for name, p in model.named_parameters()]
        renamed = module.Adam(other)
        bare = plain.state_dict()
        renamed.load_state_dict(bare)
        kept = renamed.param_groups[0]["param_names"]
        renamed.load_state_dict(named.state_dict())
        plain.load_state_dict(named.state_dict())
        found.append([
            saved, kept, renamed.param_groups[0]["param_names"],
            plain.param_groups[0].get("param_names"), bare["param_groups"][0].get("param_names"),
        ])  # fmt: skip
    assert found[0] == found[1]
    assert found[0][:3] == [["weight", "bias"], ["x.weight", "x.bias"], ["weight", "bias"]]


def test_states_can_be_reordered_by_names_in_a_hook():
    """The example of torch's documentation: a pre-hook that adapts a checkpoint by name."""
    model = torch.nn.Linear(3, 2)
    first = stt.AdamW(model.named_parameters())
    step(list(model.parameters()), first, range(2))
    saved = first.state_dict()

    def by_name(optimizer, state_dict):
        places = {n: i for g in state_dict["param_groups"] for n, i in
                  zip(g["param_names"], g["params"], strict=True)}  # fmt: skip
        group = copy.deepcopy(state_dict["param_groups"][0])
        names = optimizer.param_groups[0]["param_names"]
        group |= {"param_names": names, "params": list(range(len(names)))}
        state = {i: state_dict["state"][places[n]] for i, n in enumerate(names)}
        return {"state": state, "param_groups": [group]}

    second = stt.AdamW(reversed(list(model.named_parameters())))
    second.register_load_state_dict_pre_hook(by_name)
    second.load_state_dict(saved)
    for p in model.parameters():
        assert torch.equal(second.state[p]["exp_avg"], first.state[p]["exp_avg"])


# Gradients that are not there, or nothing


@pytest.mark.parametrize("name", NAMES)
def test_nothing_happens_without_gradients(name):
    for params, optimizer in both(name):
        before = [p.detach().clone() for p in params]
        early = copy.deepcopy(optimizer.state_dict()["state"])
        optimizer.step()
        assert all(torch.equal(p, x) for p, x in zip(params, before, strict=True))
        assert str(optimizer.state_dict()["state"]) == str(early)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_zero_do_what_they_do_in_torch(name):
    """Without decay, nothing; ASGD's own decay stays. Momentum that was there goes on."""
    decay = {} if name == "Rprop" else {"weight_decay": 0.0}
    runs = list(both(name, **decay))
    moved = []
    for params, optimizer in runs:
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        moved.append([torch.equal(p, x) for p, x in zip(params, before, strict=True)])
        step(params, optimizer, range(2))
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad is not None and not p.grad.any() for p in params)
        optimizer.step()
    assert moved[0] == moved[1] == [name != "ASGD"] * 2
    assert_close(runs[0][0], runs[1][0])


@pytest.mark.parametrize("name", NAMES)
def test_zero_grad_keeps_or_drops_the_tensor(name):
    for params, optimizer in both(name):
        step(params, optimizer, range(1))
        held = [p.grad for p in params]
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad is g and not g.any() for p, g in zip(params, held, strict=True))
        optimizer.zero_grad()
        assert all(p.grad is None for p in params)


# Closures and hooks


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_a_closure_is_called_once_with_gradients(name, context):
    runs = list(both(name))
    for params, optimizer in runs:
        calls = []

        def closure(params=params, optimizer=optimizer, calls=calls):
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in params)
            loss.backward()
            calls.append(loss)
            return loss

        with context():
            for _ in range(3):
                assert optimizer.step(closure) is calls[-1]
            enabled = torch.is_grad_enabled()
        assert len(calls) == 3 and enabled == (context is torch.enable_grad)
        optimizer.zero_grad()
        assert optimizer.step() is None
    assert_close(runs[0][0], runs[1][0])


def test_an_error_in_a_closure_leaves_everything():
    (params, ours), _ = both("AdamW")
    before = copy.deepcopy(params)

    def closure():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        ours.step(closure)
    assert all(torch.equal(p, x) for p, x in zip(params, before, strict=True))
    assert not ours.state and torch.is_grad_enabled()


@pytest.mark.parametrize("name", NAMES)
def test_step_hooks_in_their_order_with_the_arguments(name):
    logs = []
    for params, optimizer in both(name):
        log = []

        def note(what, log=log):
            return lambda opt, args, kwargs: log.append((what, len(args), sorted(kwargs)))

        handles = [
            optimizer.register_step_pre_hook(note("pre")),
            optimizer.register_step_post_hook(note("post")),
            torch_optimizer.register_optimizer_step_pre_hook(note("all pre")),
            torch_optimizer.register_optimizer_step_post_hook(note("all post")),
        ]
        step(params, optimizer, range(1))
        optimizer.step(closure=lambda log=log: log.append("closure"))
        changed = optimizer.register_step_pre_hook(
            lambda opt, args, kwargs, log=log: (args, {"closure": lambda: log.append("other")})
        )
        optimizer.step()
        for handle in (*handles, changed):
            handle.remove()
        optimizer.step()
        logs.append(log)
    assert logs[0] == logs[1]
    whats = [x if isinstance(x, str) else x[0] for x in logs[0]]
    assert whats[:4] == ["all pre", "pre", "post", "all post"] and whats.count("other") == 1


def test_a_step_hook_that_answers_nonsense_is_an_error():
    for params, optimizer in both("SGD"):
        optimizer.register_step_pre_hook(lambda *_: 3)
        with pytest.raises(RuntimeError, match="must return None or a tuple"):
            step(params, optimizer, range(1))


def test_hooks_of_saving_and_loading():
    logs = []
    for params, optimizer in both("Adam"):
        log = []

        def first(opt, *_, log=log):
            log.append("first")

        def second(opt, *_, log=log):
            log.append("second")

        def marked(opt, state_dict, log=log):
            log.append("marked")
            return {**state_dict, "mark": 3}

        def slower(opt, state_dict, log=log):
            log.append(state_dict.get("mark"))
            loaded = copy.deepcopy(state_dict)
            loaded["param_groups"][0]["lr"] = 0.5
            return loaded

        step(params, optimizer, range(1))
        handles = [
            optimizer.register_state_dict_pre_hook(second),
            optimizer.register_state_dict_pre_hook(first, prepend=True),
            optimizer.register_state_dict_post_hook(second),
            optimizer.register_state_dict_post_hook(marked, prepend=True),
            optimizer.register_load_state_dict_pre_hook(slower),
            optimizer.register_load_state_dict_pre_hook(second, prepend=True),
            optimizer.register_load_state_dict_post_hook(second),
            optimizer.register_load_state_dict_post_hook(first, prepend=True),
        ]
        saved = optimizer.state_dict()
        assert saved["mark"] == 3
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert saved["param_groups"][0]["lr"] == 0.03
        for handle in handles:
            handle.remove()
        optimizer.load_state_dict(optimizer.state_dict())
        logs.append(log)
    assert logs[0] == logs[1] == [
        "first", "second", "marked", "second", "second", 3, "first", "second"
    ]  # fmt: skip


# Saving and loading


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_loads_into_the_same_run(name):
    (params, ours), _ = both(name)
    step(params, ours, range(3))
    others = copy.deepcopy(params)
    second = getattr(stt, name)(others, **hyper(name))
    second.load_state_dict(ours.state_dict())
    second.load_state_dict(second.state_dict())
    assert_states(ours.state_dict(), second.state_dict())
    for ps, optimizer in ((params, ours), (others, second)):
        step(ps, optimizer, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert_states(ours.state_dict(), second.state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [int, float, torch.tensor, lambda t: torch.tensor([t])],
                         ids=["int", "float", "tensor", "of one"])  # fmt: skip
def test_an_older_checkpoint_goes_on(name, count):
    """Counts were numbers once, and groups lacked the flags of later releases."""
    (p, ours), (q, theirs) = both(name)
    step(q, theirs, range(3))
    saved = copy.deepcopy(theirs.state_dict())
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = count(int(state["step"]))
    for group in saved["param_groups"]:
        for key in LATER:
            group.pop(key, None)
    for x, y in zip(p, q, strict=True):
        x.data.copy_(y.data)
    ours.load_state_dict(saved)
    for params, optimizer in ((p, ours), (q, theirs)):
        step(params, optimizer, range(3, 6))
    assert_close(p, q)
    counted = any("step" in state for state in saved["state"].values())
    assert ours.updates == (6 if counted else 4)  # SGD's checkpoints have no count
    assert set(LATER) & set(ours.defaults) <= set(ours.param_groups[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights_only", [True, False])
def test_saved_to_a_file_it_is_the_same(name, weights_only):
    (params, ours), (_, theirs) = both(name)
    step(params, ours, range(2))
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=weights_only)
    assert_states(ours.state_dict(), loaded)
    theirs.load_state_dict(loaded)
    again = getattr(stt, name)(parameters(), **hyper(name))
    again.load_state_dict(theirs.state_dict())
    a, b = ours.state_dict()["state"], again.state_dict()["state"]
    assert all(torch.equal(x, b[i][key]) for i, state in a.items() for key, x in state.items())


@pytest.mark.parametrize("name", NAMES)
def test_copies_have_all_public_attributes(name):
    (params, ours), _ = both(name)
    step(params, ours, range(2))
    public = {key for key in vars(ours) if not key.startswith("_")}
    for made in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert {key for key in vars(made) if not key.startswith("_")} == public
        assert made.defaults == ours.defaults
        assert_states(made.state_dict(), ours.state_dict())


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_kind_of_decay_is_loaded(name, decoupled):
    """As every hyper-parameter of a group, whatever the optimizer was made with."""
    (_, first), (_, theirs) = both(name, decoupled_weight_decay=decoupled)
    saved = theirs.state_dict(), first.state_dict()
    for state_dict in saved:
        (p, ours), (q, other) = both(name, decoupled_weight_decay=not decoupled)
        for params, optimizer in ((p, ours), (q, other)):
            optimizer.load_state_dict(state_dict)
            step(params, optimizer, range(3))
        assert_close(p, q)
        assert ours.param_groups[0]["decay_mode"] == ("decoupled" if decoupled else "l2")


def test_a_wrong_number_of_groups_or_parameters_is_refused():
    for params, optimizer in both("Adam"):
        saved = optimizer.state_dict()
        saved["param_groups"][0]["params"] = [0]
        with pytest.raises(ValueError, match="parameter"):
            optimizer.load_state_dict(saved)
        saved["param_groups"] = []
        with pytest.raises(ValueError, match="parameter"):
            optimizer.load_state_dict(saved)
        step(params, optimizer, range(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_of_states_are_torchs_under_any_default(name, dtype):
    torch.set_default_dtype(dtype)  # undone by the fixture
    kinds = []
    for module in (stt, torch.optim):
        params = parameters((3, 2), dtype=torch.float32)
        optimizer = getattr(module, name)(params, **hyper(name))
        step(params, optimizer, range(2))
        state = optimizer.state_dict()["state"][0]
        kinds.append({key: (x.dtype, x.shape) for key, x in state.items()})
    assert kinds[0] == kinds[1]


# Memory


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["transposed", "sliced", "expanded", "column"])
def test_strides_of_parameters_and_gradients(name, kind):
    """As torch's single-tensor path, whichever way the numbers lie."""

    def laid(x):
        if kind == "transposed":
            return x.t().contiguous().t()
        if kind == "sliced":
            return torch.zeros(2 * x.shape[0], 3 * x.shape[1])[::2, ::3].copy_(x)
        if kind == "column":
            return torch.zeros(*x.shape, 2)[..., 1].copy_(x)
        return x

    found = []
    for module in (stt, torch.optim):
        p = torch.nn.Parameter(laid(random((4, 3), 1)))
        optimizer = getattr(module, name)([p], **hyper(name))
        address = p.data_ptr()
        for t in range(4):
            g = random((4, 3), 10 + t)
            p.grad = random((1, 1), t).expand(4, 3) if kind == "expanded" else None
            if kind != "expanded":
                p.grad = laid(g) if t % 2 else g
            optimizer.step()
        assert p.data_ptr() == address
        found.append(p)
    assert_close(*found)


@pytest.mark.parametrize("name", COMPLEX)
@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_complex_numbers_are_pairs_of_real_ones(name, shape):
    def numbers(seed):
        return torch.complex(random(shape, seed), random(shape, seed + 50))

    params = [torch.nn.Parameter(numbers(1)) for _ in range(2)]
    pair = torch.nn.Parameter(torch.view_as_real(numbers(1)))
    ours, theirs, real = (
        getattr(module, name)([p], **hyper(name))
        for module, p in ((stt, params[0]), (torch.optim, params[1]), (stt, pair))
    )
    for t in range(4):
        g = numbers(10 + t)
        params[0].grad, params[1].grad, pair.grad = g.clone(), g.clone(), torch.view_as_real(g)
        for optimizer in (ours, theirs, real):
            optimizer.step()
    assert torch.equal(torch.view_as_real(params[0]), pair)
    assert_close(*params)


@pytest.mark.parametrize("name", NAMES)
def test_autograd_hears_of_a_step(name):
    """backward() through a graph of older values is torch's error, not a wrong gradient."""
    for params, optimizer in both(name):
        loss = sum(p.pow(3).sum() for p in params)
        versions = [p._version for p in params]
        loss.backward(retain_graph=True)
        params[1].grad = None
        optimizer.step()
        assert params[0]._version > versions[0] and params[1]._version == versions[1]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_inference_mode(name):
    with torch.inference_mode():
        runs = list(both(name))
        for params, optimizer in runs:
            for t in range(2):
                for i, p in enumerate(params):
                    p.grad = random(p.shape, 50 * t + i)
                optimizer.step()
        assert_close(runs[0][0], runs[1][0])


def test_nothing_is_kept_alive():
    params = parameters()
    optimizer = stt.AdamW(params)
    step(params, optimizer, range(2))
    optimizer.state_dict()
    seen = [weakref.ref(params[0]), weakref.ref(optimizer)]
    del params, optimizer
    gc.collect()
    assert [x() for x in seen] == [None, None]


def test_training_of_a_part_of_a_model():
    """Frozen layers, later thawed; a shared layer with one gradient; torch's own clipping."""
    found = []
    for module in (stt, torch.optim):
        torch.manual_seed(0)
        first, last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
        model = torch.nn.Sequential(first, torch.nn.Tanh(), first, torch.nn.Tanh(), last)
        last.requires_grad_(False)
        optimizer = module.NAdam(model.parameters(), lr=0.02)
        frozen = last.weight.detach().clone()
        for t in range(8):
            if t == 4:
                assert torch.equal(last.weight, frozen)
                last.requires_grad_(True)
            optimizer.zero_grad()
            model(random((5, 4), t)).square().sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        assert not torch.equal(last.weight, frozen)
        found.append(list(model.parameters()))
    assert_close(*found)


def test_swapped_in_parameters_want_the_same_keys():
    """torch's experiment for tracing takes a state dict's groups for the live ones; here they have
    more. It says so, and nothing is left changed."""
    if not hasattr(torch.optim, "swap_in_optimizer_params_and_state"):
        pytest.skip("this torch has none")
    (params, ours), _ = both("AdamW")
    step(params, ours, range(1))
    before = copy.deepcopy(ours.state_dict())
    swapped = {str(i): p.detach().clone() for i, p in enumerate(params)}
    with (
        pytest.raises(RuntimeError, match="param group keys"),
        torch.optim.swap_in_optimizer_params_and_state(ours, swapped, ours.state_dict()),
    ):
        pass
    assert_states(ours.state_dict(), before)


def test_numpy_numbers_as_hyperparameters():
    (p, ours), (q, theirs) = both("SGD", lr=np.float64(0.03), momentum=np.float64(0.5))
    for params, optimizer in ((p, ours), (q, theirs)):
        step(params, optimizer, range(3))
    assert_close(p, q)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Prodigy", "Muon", "AdamMini"])
@pytest.mark.parametrize(
    ("dtype", "master"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "split16")],
)
def test_the_digest_is_that_of_the_class_without_torch(name, dtype, master):
    p = parameters((6, 5), (6, 2), dtype=dtype)
    given = {"dtype": "bfloat16"} if dtype == torch.bfloat16 else {}
    twins = [x.detach().clone() for x in p]
    arrays = [x.view(torch.int16).numpy().view(np.uint16) if given else x.numpy() for x in twins]
    hyper = {"lr": 0.03, "master": master}
    opt, one = getattr(stt, name)(p, **hyper), getattr(st, name)(arrays, **hyper, **given)
    assert opt.digest() == one.digest() and not opt.state
    for t in range(3):
        grads = [random(x.shape, 10 * t + k, dtype) for k, x in enumerate(p)]
        for x, g in zip(p, grads, strict=True):
            x.grad = g
        opt.step()
        one.step([g.view(torch.int16).numpy().view(np.uint16) if given else g for g in grads])
    assert opt.digest() == one.digest()
    with torch.no_grad():
        p[0][0, 0] += 1
    assert opt.digest() != one.digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verified_steps(dtype):
    p = parameters((60, 50), (6, 2), dtype=dtype)
    opt = stt.AdamW([p[0]], lr=0.03, clip=st.clip.global_norm(1.0))
    check = opt.verify(1.0)

    def step(seed):
        for k, x in enumerate(p):
            x.grad = random(x.shape, seed + k, dtype)
        opt.step()

    step(0)
    opt.add_param_group({"params": [p[1]], "maximize": True})
    step(2)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.param_groups[0]["lr"] = torch.tensor(0.01)
    step(4)
    assert check.elements == 3 * 3000 + 2 * 12
    opt.register_step_post_hook(lambda *_: None)
    inner = opt._inner
    held, go = inner._go.args

    def damaged(optimizer, flat, count):
        go(optimizer, flat, count)
        opt.state[p[0]]["exp_avg"][3, 4] += 1

    inner._go = type(inner._go)(inner._go.func, held, damaged)
    with pytest.raises(st.CorruptionError, match=r"'exp_avg' of parameter '0' .* at .3, 4."):
        step(6)
