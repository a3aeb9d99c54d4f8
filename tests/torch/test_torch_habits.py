"""What programs written for torch do with its optimizers: torch's own class does it beside ours."""

import collections
import copy
import io
import math
import pickle

import pytest

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

from torch_facts import ADAGRAD_TAKES_LATER_GROUPS  # noqa: E402

import steepest.torch as stt  # noqa: E402
from steepest.torch import inner as module_of_inner  # noqa: E402
from steepest.torch import state_dicts  # noqa: E402

BOTH = (stt, torch.optim)
NUMBERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1},
    "Adam": {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.1},
    "AdamW": {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.1},
    "Adamax": {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.1},
    "NAdam": {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.1},
    "RAdam": {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.1},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.01, "eps": 1e-3, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.5},
    "Adadelta": {"lr": 0.1, "rho": 0.9, "weight_decay": 0.1},
    "Adafactor": {"lr": 0.1, "weight_decay": 0.1},
    "ASGD": {"weight_decay": 0.1},
}
STATES = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {"lr": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.1},
    "RMSprop": {"lr": 0.1, "centered": True, "momentum": 0.5},
    "Adagrad": {"lr": 0.1},
    "Adadelta": {"lr": 0.5},
    "Rprop": {"lr": 0.1},
    "Adafactor": {"lr": 0.1},
}


@pytest.fixture(autouse=True)
def double():
    """torch keeps single numbers, such as NAdam's product, in its default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def made(module, name, dtype=torch.float64, **hyper):
    """Parameters and an optimizer of them."""
    draw = torch.Generator().manual_seed(1)
    params = [
        torch.nn.Parameter(torch.randn(shape, generator=draw, dtype=dtype))
        for shape in ((3, 2), (4,))
    ]
    if hasattr(torch.optim, name):
        hyper["foreach"] = False
    return params, getattr(module, name)(params, **hyper)


def step(params, optimizer, seeds):
    for seed in seeds:
        draw = torch.Generator().manual_seed(100 + seed)
        for p in params:
            p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)
        optimizer.step()


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


# What stands in a group later is stepped


@pytest.mark.parametrize("value", [-0.3, math.nan, math.inf, 0.0])
@pytest.mark.parametrize(("name", "key"), [(n, k) for n, h in NUMBERS.items() for k in h])
def test_a_number_in_a_group_is_stepped_as_torch_steps_it(name, key, value):
    found = []
    for module in BOTH:
        params, optimizer = made(module, name, **NUMBERS[name])
        step(params, optimizer, range(2))
        optimizer.param_groups[0][key] = value
        step(params, optimizer, range(2, 5))
        found.append(params)
    assert_close(*found)


def test_momentum_that_goes_to_0_with_nesterov_is_none():
    found = []
    for module in BOTH:
        params, optimizer = made(module, "SGD", lr=0.1, momentum=0.9, nesterov=True)
        step(params, optimizer, range(2))
        optimizer.param_groups[0]["momentum"] = 0.0
        step(params, optimizer, range(2, 4))
        optimizer.param_groups[0].update(momentum=0.5)
        step(params, optimizer, range(4, 6))
        found.append((params, optimizer))
    assert_close(found[0][0], found[1][0])
    params, ours = found[0]
    ours.param_groups[0]["dampening"] = 0.25  # which torch knows; there is no kernel for it
    with pytest.raises(ValueError, match="nesterov needs dampening = 0"):
        step(params, ours, [6])


def test_a_schedule_that_runs_below_0():
    """stable-baselines3 writes a linear rate that ends below 0; LambdaLR goes on past its end."""
    found = []
    for module in BOTH:
        params, optimizer = made(module, "Adam", lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / 3)
        for t in range(6):
            step(params, optimizer, [t])
            scheduler.step()
        optimizer.param_groups[0]["lr"] = -0.01
        step(params, optimizer, [6])
        saved = copy.deepcopy(optimizer.state_dict())
        others, other = made(module, "Adam")
        other.load_state_dict(saved)
        assert other.param_groups[0]["lr"] == -0.01
        step(others, other, range(7, 9))
        optimizer.add_param_group({"params": torch.nn.Parameter(torch.ones(1))})
        step(params, optimizer, range(7, 9))
        found.append(params + others)
    assert_close(*found)


def test_the_constructor_and_new_groups_stay_strict():
    w = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="lr = -1"):
        stt.AdamW([w], lr=-1.0)
    with pytest.raises(ValueError, match="lr = -1"):
        stt.AdamW([{"params": [w], "lr": -1.0}])
    optimizer = stt.SGD([w], lr=0.1)
    optimizer.param_groups[0]["lr"] = -0.5
    step([w], optimizer, [0])
    v = torch.nn.Parameter(torch.ones(2))
    wrong = {"params": v, "lr": -1.0}, {"params": v, "nesterov": True}, {"params": [], "lr": -1.0}
    for group in wrong:
        with pytest.raises(ValueError, match=r"lr = -1|nesterov needs"):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    step([w], optimizer, [1])
    optimizer.param_groups[0]["lr"] = "high"
    with pytest.raises(TypeError, match="lr = 'high'"):
        optimizer.step()


# One state, one list of groups, one dict for each


@pytest.mark.parametrize("name", STATES)
def test_state_groups_and_tensors_are_the_same_objects_for_life(name):
    for module in BOTH if name != "Adagrad" or ADAGRAD_TAKES_LATER_GROUPS else [stt]:
        params, optimizer = made(module, name, **STATES[name])
        whole, groups, group = optimizer.state, optimizer.param_groups, optimizer.param_groups[0]
        own = whole[params[0]]
        step(params, optimizer, [0])
        tensors = {key: x for key, x in own.items() if isinstance(x, torch.Tensor)}
        assert tensors
        whole["more"] = {}  # not of a parameter
        own["mine"] = torch.ones(1)
        step(params, optimizer, range(1, 3))
        del whole["more"]
        more = torch.nn.Parameter(torch.ones(2))
        optimizer.add_param_group({"params": [more]})
        step([*params, more], optimizer, [3])
        optimizer.state_dict()
        assert optimizer.state is whole and optimizer.state[params[0]] is own
        assert whole.default_factory is dict and set(whole) == {*params, more}
        assert optimizer.param_groups is groups and groups[0] is group
        if name != "Adagrad":  # torch's sums on in a tensor of its own
            assert all(own[key] is x for key, x in tensors.items())
        assert torch.equal(own["mine"], torch.ones(1))


@pytest.mark.parametrize("name", STATES)
def test_who_holds_a_state_writes_into_it(name):
    """After steps that make the optimizer inside anew, the tensors that were held are still it."""
    found = []
    for module in BOTH:
        params, optimizer = made(module, name, **STATES[name])
        step(params, optimizer, range(2))
        held = [dict(optimizer.state[p]) for p in params]
        optimizer.state[params[1]]["mine"] = 1
        step(params, optimizer, [2])
        for own in held:
            for x in own.values():
                if isinstance(x, torch.Tensor) and x.dim():
                    x.mul_(0.5)
        step(params, optimizer, range(3, 5))
        found.append(params)
    assert_close(*found)


@pytest.mark.parametrize("how", ["whole", "plain dict", "of a parameter", "a shallow copy"])
def test_what_is_put_in_place_of_a_state_is_the_state(how):
    """A dict of another kind is not watched but compared: it stays the object that it is."""
    found = []
    for module in BOTH:
        params, optimizer = made(module, "SGD", lr=0.1, momentum=0.9)
        step(params, optimizer, range(2))
        first = copy.deepcopy(dict(optimizer.state[params[0]]))
        if how == "of a parameter":
            whole, optimizer.state[params[0]] = optimizer.state, first
        else:
            whole = copy.copy(optimizer.state)
            if how == "whole":
                whole = collections.defaultdict(dict, {params[0]: first})
            elif how == "plain dict":
                whole = {params[0]: first, params[1]: {}}
            first = whole[params[0]]
            optimizer.state = whole
        step(params, optimizer, [2])
        assert optimizer.state is whole and optimizer.state[params[0]] is first
        assert "momentum_buffer" in optimizer.state[params[1]]
        first["momentum_buffer"] = torch.full((3, 2), 7.0)
        step(params, optimizer, [3])
        first["momentum_buffer"].data = torch.full((3, 2), 5.0)
        step(params, optimizer, [4])
        other = optimizer.state[params[1]] = {"momentum_buffer": torch.full((4,), 3.0)}
        step(params, optimizer, [5])
        assert optimizer.state[params[1]] is other
        optimizer.state[params[1]] = {}
        step(params, optimizer, range(6, 8))
        found.append((params, [optimizer.state[p]["momentum_buffer"] for p in params]))
    assert_close(*found)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_keep_who_holds_the_state(how):
    """SAM of pytorch_optimizer holds the state and the groups of the optimizer that it wraps."""
    found = []
    for module in BOTH:
        params, optimizer = made(module, "Adam", lr=0.1)
        step(params, optimizer, range(2))
        both = params, optimizer, optimizer.state, optimizer.state[params[0]]
        if how == "deepcopy":
            params, other, whole, own = copy.deepcopy(both)
        elif how == "pickle":
            params, other, whole, own = pickle.loads(pickle.dumps(both))
        else:
            file = io.BytesIO()
            torch.save(both, file)
            params, other, whole, own = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        assert other.state is whole
        assert (module is stt and how != "deepcopy") or whole[params[0]] is own
        own = whole[params[0]]  # a pickle of ours brings a plain dict, which is not watched
        own["exp_avg"].mul_(2.0)
        step(params, other, [2])
        own["exp_avg"] = torch.ones(3, 2)
        step(params, other, [3])
        assert other.state is whole and whole[params[0]] is own
        found.append(params)
    assert_close(*found)


def test_a_state_is_a_dict_like_any_other():
    params, optimizer = made(stt, "Adam", lr=0.1)
    step(params, optimizer, range(2))
    own, whole = optimizer.state[params[0]], optimizer.state
    assert isinstance(whole, collections.defaultdict) and isinstance(own, dict)
    for plain in (dict(own), {**own}, own.copy(), own | {}, {} | own):
        assert type(plain) is dict and all(plain[key] is x for key, x in own.items())
    for other in (copy.copy(whole), whole | {}, whole.copy()):
        assert type(other) is collections.defaultdict and other[params[0]] is own
    assert not whole[torch.ones(1)]


# The same tensor, other memory

MOVES = {
    "data": lambda x: setattr(x, "data", torch.full_like(x, 0.25)),
    "set_": lambda x: x.set_(torch.full_like(x, 0.25)),
    "share_memory_": lambda x: x.share_memory_().fill_(0.25),
    "swap_tensors": lambda x: torch.utils.swap_tensors(x, torch.full_like(x, 0.25)),
    "other strides": lambda x: setattr(x, "data", torch.full((2, 3), 0.25).t()),
    "storage": lambda x: x.untyped_storage().share_memory_() and x.fill_(0.25),
}
READS = {
    "[]": lambda own, key: own[key],
    "get": lambda own, key: own.get(key),
    "values": lambda own, key: dict(zip(list(own), own.values(), strict=True))[key],
    "items": lambda own, key: next(x for k, x in own.items() if k == key),
    "dict": lambda own, key: dict(own)[key],
    "**": lambda own, key: {**own}[key],
    "|": lambda own, key: (own | {})[key],
    "r|": lambda own, key: ({} | own)[key],
    "copy": lambda own, key: own.copy()[key],
    "copy.copy": lambda own, key: copy.copy(own)[key],
    "keywords": lambda own, key: (lambda **x: x)(**own)[key],
    "setdefault": lambda own, key: own.setdefault(key),
    "pop": lambda own, key: own.setdefault(key, own.pop(key)),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(("name", "key"), [
    ("SGD", "momentum_buffer"), ("Adam", "exp_avg"), ("AdamW", "exp_avg_sq"), ("Adagrad", "sum"),
])  # fmt: skip
def test_a_tensor_that_gets_other_memory_is_gone_on_with(name, key, move):
    found = []
    for module in BOTH:
        params, optimizer = made(module, name, **STATES[name])
        if name != "Adagrad":  # whose states are there before its first step
            step(params, optimizer, range(2))
        x = optimizer.state[params[0]][key]
        MOVES[move](x)
        step(params, optimizer, range(2, 4))
        assert optimizer.state[params[0]][key] is x
        held = x.clone(), optimizer.state_dict()["state"][0][key].clone()
        found.append((params, held))
    assert_close(*found)


@pytest.mark.parametrize("read", READS)
def test_memory_is_looked_at_however_the_tensor_was_read(read):
    found = []
    for module in BOTH:
        params, optimizer = made(module, "SGD", lr=0.1, momentum=0.9)
        step(params, optimizer, range(3))
        READS[read](optimizer.state[params[0]], "momentum_buffer").data = torch.ones(3, 2)
        step(params, optimizer, range(3, 5))
        found.append(params)
    assert_close(*found)


def test_memory_is_looked_at_as_long_as_a_tensor_is_held():
    found = []
    for module in BOTH:
        params, optimizer = made(module, "SGD", lr=0.1, momentum=0.9)
        step(params, optimizer, [0])
        held = [optimizer.state[p]["momentum_buffer"] for p in params]
        kept = optimizer.state_dict()
        for t in range(1, 4):
            step(params, optimizer, [t])
        held[1].data = torch.ones(4)
        step(params, optimizer, [4])
        del held
        step(params, optimizer, [5])
        kept["state"][0]["momentum_buffer"].data = torch.ones(3, 2)
        step(params, optimizer, [6])
        found.append((params, kept["state"][0]["momentum_buffer"]))
    assert_close(*found)


def test_memory_is_looked_at_only_where_a_tensor_may_be_held(monkeypatch):
    """To look costs as much as a step of small tensors."""
    looks = []
    own = module_of_inner.lie_as
    monkeypatch.setattr(module_of_inner, "lie_as", lambda *x: looks.append(1) or own(*x))
    params, optimizer = made(stt, "Adam", lr=0.1)
    step(params, optimizer, range(3))
    looks.clear()
    step(params, optimizer, range(3, 6))
    assert not looks
    saved = optimizer.state_dict()
    step(params, optimizer, range(6, 9))
    assert len(looks) == 3
    del saved
    step(params, optimizer, range(9, 12))
    assert len(looks) == 4


@pytest.mark.parametrize("write", ["fill_", "data", "entry", "float entry", "set_"])
def test_the_count_is_what_was_written_into_it(write):
    found = []
    for module in BOTH:
        params, optimizer = made(module, "Adam", lr=0.1)
        step(params, optimizer, range(2))
        own = optimizer.state[params[0]]
        count = own["step"]
        if write == "fill_":
            count.fill_(7)
        elif write == "data":
            count.data = torch.full_like(count, 7)
        elif write == "set_":
            count.set_(torch.full_like(count, 7))
        else:
            own["step"] = torch.tensor(7.0) if write == "float entry" else torch.full_like(count, 7)
        step(params, optimizer, range(2, 4))
        found.append((params, float(own["step"]), float(optimizer.state[params[1]]["step"])))
        assert write.endswith("entry") or own["step"] is count
    assert_close(*found)


def test_two_tensors_of_the_state_are_swapped():
    found = []
    for module in BOTH:
        params, optimizer = made(module, "Adam", lr=0.1)
        step(params, optimizer, range(2))
        own = optimizer.state[params[0]]
        torch.utils.swap_tensors(own["exp_avg"], own["exp_avg_sq"])
        own["exp_avg_sq"].abs_()
        step(params, optimizer, range(2, 4))
        found.append((params, own["exp_avg"], own["exp_avg_sq"]))
    assert_close(*found)


def test_adagrad_shares_its_sums():
    found = []
    for module in BOTH:
        params, optimizer = made(module, "Adagrad", lr=0.1)
        optimizer.share_memory()
        sums = [optimizer.state[p]["sum"] for p in params]
        assert all(x.is_shared() for x in sums)
        step(params, optimizer, range(3))
        assert all(x.is_shared() and x.any() for x in sums)
        found.append((params, sums))
    assert_close(*found)
    assert not hasattr(stt.SGD, "share_memory")


def test_every_method_of_torchs_classes_is_there():
    for name in STATES:
        theirs = {x for x in dir(getattr(torch.optim, name)) if not x.startswith("_")}
        assert theirs <= set(dir(getattr(stt, name))), name


# What others keep in a state


@pytest.mark.parametrize("when", ["before the first step", "after steps"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad"])
def test_what_others_put_into_a_state_is_carried(name, when):
    """Before its first step torch's Adam takes a state that is not empty for one that has begun."""
    found = []
    for module in BOTH:
        params, optimizer = made(module, name, **STATES[name])
        late = when == "after steps" or (module is torch.optim and name == "Adam")
        more = {
            "slow": torch.full((3, 2), 2.0), "single": torch.ones(5, dtype=torch.float32),
            "count": 3, "none": None, "deep": {"x": [torch.ones(1), 2]},
        }  # fmt: skip
        if not late:
            optimizer.state[params[0]].update(more)
        step(params, optimizer, range(2))
        if late:
            optimizer.state[params[0]].update(more)
        step(params, optimizer, range(2, 4))
        assert all(optimizer.state[params[0]][key] is x for key, x in more.items())
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        others, other = made(module, name)
        other.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
        own = other.state[others[0]]
        assert torch.equal(own["slow"], more["slow"]) and own["slow"] is not more["slow"]
        assert own["single"].tolist() == [1.0] * 5 and own["count"] == 3
        assert own["deep"]["x"][0].tolist() == [1.0]
        step(others, other, range(4, 6))
        saved = other.state_dict()["state"][0]
        assert more.keys() - {"none"} <= saved.keys()
        found.append((params, others))
    assert_close(*found)


def test_a_state_of_others_alone_is_one_that_has_not_begun():
    """schedulefree's wrapper keeps z there before the first step, timm's Lookahead a slow copy."""
    params, ours = made(stt, "Adam", lr=0.1)
    same, plain = made(stt, "Adam", lr=0.1)
    ours.state[params[0]]["kept"] = torch.ones(3, 2)
    assert set(ours.state_dict()["state"][0]) == {"kept"}
    others, loaded = made(stt, "Adam", lr=0.1)
    loaded.load_state_dict(ours.state_dict())
    assert set(loaded.state[others[0]]) == {"kept"} and loaded.updates == 0
    for ps, optimizer in ((params, ours), (same, plain), (others, loaded)):
        step(ps, optimizer, range(3))
        assert optimizer.state[ps[0]]["step"] == 3 == optimizer.updates
    assert_close(params, same)
    assert_close(others, same)
    with pytest.raises(ValueError, match="state of parameter '0' has keys"):
        loaded.load_state_dict({
            **ours.state_dict(), "state": {0: {"step": 3, "kept": torch.ones(1)}},
        })  # fmt: skip


def test_a_wrapper_that_keeps_its_copy_in_the_state_resumes():
    """As Lookahead of timm does it."""
    found = []
    for module in BOTH:
        params, optimizer = made(module, "AdamW", lr=0.1)

        def run(params, optimizer, seeds):
            for seed in seeds:
                step(params, optimizer, [seed])
                if seed % 2:
                    with torch.no_grad():
                        for p in params:
                            state = optimizer.state[p]
                            if "slow" not in state:
                                state["slow"] = torch.empty_like(p).copy_(p)
                            state["slow"].add_(p - state["slow"], alpha=0.5)
                            p.copy_(state["slow"])

        run(params, optimizer, range(4))
        others, other = made(module, "AdamW")
        with torch.no_grad():
            for p, q in zip(params, others, strict=True):
                q.copy_(p)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        run(params, optimizer, range(4, 8))
        run(others, other, range(4, 8))
        assert_close(params, others)
        found.append(params)
    assert_close(*found)


def test_who_holds_state_and_groups_hears_of_a_load():
    """As SAM of pytorch_optimizer does it: torch's base class loads, and hands the result over."""
    found = []
    for module in BOTH:
        params, base = made(module, "AdamW", lr=0.1)
        holder = torch.optim.SGD(params, lr=0.1)
        holder.param_groups, holder.state = base.param_groups, base.state
        step(params, base, range(3))
        saved = copy.deepcopy(holder.state_dict())
        assert set(saved["state"][0]) >= {"step", "exp_avg", "exp_avg_sq"}
        others, other = made(module, "AdamW")
        with torch.no_grad():
            for p, q in zip(params, others, strict=True):
                q.copy_(p)
        outer = torch.optim.SGD(others, lr=0.1)
        outer.load_state_dict(saved)
        other.param_groups, other.state = outer.param_groups, outer.state
        step(params, base, range(3, 6))
        step(others, other, range(3, 6))
        assert outer.state is other.state
        assert outer.state[others[0]]["exp_avg"] is other.state_dict()["state"][0]["exp_avg"]
        assert_close(params, others)
        found.append(params)
    assert_close(*found)


def test_a_load_leaves_the_objects_that_others_hold():
    params, ours = made(stt, "Adam", lr=0.1)
    step(params, ours, range(2))
    saved = copy.deepcopy(ours.state_dict())
    step(params, ours, range(2, 4))
    whole, groups, group = ours.state, ours.param_groups, ours.param_groups[0]
    group["lr"] = 0.7
    ours.load_state_dict(saved)
    assert ours.state is whole and ours.param_groups is groups and groups[0] is group
    assert group["lr"] == 0.1 and whole[params[0]]["step"] == 2
    assert torch.equal(whole[params[0]]["exp_avg"], saved["state"][0]["exp_avg"])


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_load_that_is_interrupted_changes_nothing(at, monkeypatch):
    params, ours = made(stt, "Adam", lr=0.1)
    step(params, ours, range(2))
    saved = copy.deepcopy(ours.state_dict())
    step(params, ours, range(2, 4))
    before = copy.deepcopy((ours.state_dict(), params))
    fill = state_dicts._fill

    def interrupted(dicts, contents):
        monkeypatch.undo()
        fill(dicts[:at], contents[:at])
        raise KeyboardInterrupt

    monkeypatch.setattr(state_dicts, "_fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ours.load_state_dict(saved)
    assert str((ours.state_dict(), params)) == str(before)
    step(params, ours, [4])
    assert ours.updates == 5


# Groups


def test_the_groups_that_are_given_are_the_groups():
    found = []
    for module in BOTH:
        (a, b), _ = made(module, "SGD", lr=0.1)
        given = [{"params": [a], "lr": 0.5, "tag": "first"}, {"params": iter([b])}]
        optimizer = module.SGD(given, lr=0.1)
        c = torch.nn.Parameter(torch.ones(2))
        later, empty = {"params": c, "lr": 0.2}, {"params": [], "lr": 0.3}
        optimizer.add_param_group(later)
        optimizer.add_param_group(empty)
        groups = [*given, later, empty]
        assert all(x is y for x, y in zip(optimizer.param_groups, groups, strict=True))
        assert given[1]["lr"] == 0.1 and given[0]["tag"] == "first" and later["params"][0] is c
        step([a, b, c], optimizer, range(2))
        given[0]["lr"], later["momentum"] = 0.05, 0.9
        step([a, b, c], optimizer, range(2, 5))
        empty["params"].append(torch.nn.Parameter(torch.ones(1)))
        step([a, b, c, *empty["params"]], optimizer, [5])
        found.append([a, b, c, *empty["params"]])
    assert_close(*found)


def test_a_wrapper_gives_its_own_groups():
    """As SAM of pytorch_optimizer does it: with keys of its own in them."""
    for module in BOTH:
        params = [torch.nn.Parameter(torch.ones(2))]
        outer = torch.optim.SGD(params, lr=0.1)
        outer.param_groups[0]["rho"] = 0.05
        inner = module.AdamW(outer.param_groups, lr=0.2)
        assert inner.param_groups[0] is outer.param_groups[0]
        outer.param_groups[0]["lr"] = 1.0
        step(params, inner, [0])
        assert (params[0] - 1.0).abs().min() > 0.9
        assert inner.state_dict()["param_groups"][0]["rho"] == 0.05


def test_a_group_that_is_split_stays_as_it_was_given():
    a, b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    given = {"params": [("a", a), ("b", b)], "lr": 0.5}
    optimizer = stt.AdamW([given], exclude="b")
    assert [g["param_names"] for g in optimizer.param_groups] == [["a"], ["b"]]
    assert given["params"] == [a, b] and given["lr"] == 0.5
    assert not any(g is given for g in optimizer.param_groups)


def test_one_flat_tensor_in_the_place_of_named_ones():
    """As DeepSpeed does it; the group still has the names of those that there were."""
    found = []
    for module in BOTH:
        runs = []
        for _ in range(2):
            named = [(name, torch.nn.Parameter(torch.ones(2))) for name in "abc"]
            groups = [{"params": named[:1]}, {"params": named[1:], "weight_decay": 0.1}]
            optimizer = module.AdamW(groups, lr=0.1)
            params = [named[0][1], torch.nn.Parameter(torch.linspace(-1.0, 1.0, 4))]
            optimizer.param_groups[1]["params"] = params[1:]
            runs.append((params, optimizer))
        (params, whole), (others, resumed) = runs
        step(params, whole, range(3))
        for p, q in zip(others, params, strict=True):
            p.data.copy_(q.data)
        resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        for each, optimizer in runs:
            step(each, optimizer, range(3, 5))
        assert all(map(torch.equal, params, others))
        found.append([*params, *(whole.state[p]["exp_avg_sq"] for p in params)])
    assert_close(*found)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam"])
def test_torchs_flag_of_decoupled_decay_is_there_and_heard(name):
    key, found = "decoupled_weight_decay", []
    for module in BOTH:
        (a, b), plain = made(module, name, weight_decay=0.5)
        assert key in plain.defaults and plain.defaults[key] is (name == "AdamW")
        assert plain.param_groups[0][key] is plain.state_dict()["param_groups"][0][key]
        given = [{"params": [a], key: name != "AdamW"}, {"params": [b]}]
        optimizer = getattr(module, name)(given, lr=0.1, weight_decay=0.5, foreach=False)
        step([a, b], optimizer, range(2))
        optimizer.param_groups[1][key] = name != "AdamW"
        step([a, b], optimizer, [2])
        optimizer.param_groups[0][key] = name == "AdamW"
        optimizer.state[a]["mine"] = 1  # makes the optimizer inside anew
        step([a, b], optimizer, range(3, 5))
        flags = [g[key] for g in optimizer.param_groups]
        found.append(([a, b], flags, optimizer.state_dict()))
    assert_close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == [name == "AdamW", name != "AdamW"]
    assert [g["decay_mode"] == "decoupled" for g in found[0][2]["param_groups"]] == found[0][1]
    for _, _, saved in found:
        other = getattr(stt, name)([{"params": [p]} for p in found[0][0]])
        other.load_state_dict(saved)
        assert [g[key] for g in other.param_groups] == found[0][1]
        assert [g["decay_mode"] == "decoupled" for g in other.param_groups] == found[0][1]


def test_the_flag_and_our_mode_say_the_same():
    (a, b), optimizer = made(stt, "Adam", weight_decay=0.5)
    group = optimizer.param_groups[0]
    for mode in ("decoupled", "palm", "l2"):
        group["decay_mode"] = mode
        step([a, b], optimizer, [0])
        assert group["decoupled_weight_decay"] is (mode == "decoupled")
    group["decoupled_weight_decay"] = True
    optimizer.add_param_group({"params": torch.nn.Parameter(torch.ones(1)), "decay_mode": "palm"})
    assert group["decay_mode"] == "decoupled"
    assert optimizer.param_groups[1]["decoupled_weight_decay"] is False
    for where in (stt.Adam, optimizer.add_param_group):
        wrong = {"params": [torch.nn.Parameter(torch.ones(1))], "decay_mode": "palm"}
        wrong["decoupled_weight_decay"] = True
        with pytest.raises(ValueError, match="decoupled_weight_decay = True and decay_mode"):
            where([wrong] if where is stt.Adam else wrong)
    mixed = stt.Adam([{"params": [torch.nn.Parameter(torch.ones(1))], "rule": "lamb"}])
    assert "decoupled_weight_decay" not in mixed.param_groups[0]


# Precision


def test_a_model_that_becomes_double_is_stepped_in_the_backward_pass():
    found = []
    for inside in (False, True):
        params, optimizer = made(stt, "Adam", torch.float32, lr=0.1)
        handle = stt.step_in_backward(optimizer) if inside else None
        for dtype in (torch.float32, torch.float64, torch.float32):
            for p in params:
                p.data = p.data.to(dtype)
                p.grad = None
            sum((p**2).sum() for p in params).backward()
            if not inside:
                optimizer.step()
        if handle:
            handle.remove()
        found.append(params)
    for p, q in zip(*found, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad"])
def test_a_model_that_becomes_double_is_gone_on_with(name):
    """torch's Adam refuses it, for its running means would have to be of the same precision."""
    found = []
    for module in BOTH:
        params, optimizer = made(module, name, torch.float32, **STATES[name])
        step(params, optimizer, range(3))
        held = [x for x in optimizer.state[params[0]].values() if isinstance(x, torch.Tensor)]
        for p in params:
            p.data = p.data.double()
            p.grad = None
        if name == "SGD" or module is stt:
            step(params, optimizer, range(3, 6))
        if module is stt:
            own = optimizer.state[params[0]]
            assert all(x.dtype in (torch.float64, torch.int64) for x in own.values())
            assert list(own.values())[-1] is held[-1]
        for p in params:
            p.data = p.data.float()
            p.grad = None
        step(params, optimizer, range(6, 8))
        assert params[0].dtype == torch.float32
        found.append(params)
    if name == "SGD":
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


# Schedule-free


@pytest.mark.parametrize(("name", "hyper"), [
    ("ScheduleFreeSGD", {"lr": 0.5, "momentum": 0.8}),
    ("ScheduleFreeAdamW", {"lr": 0.1, "betas": (0.8, 0.99)}),
])  # fmt: skip
def test_schedule_free_parameters_are_put_and_put_back(name, hyper):
    """As in the package schedulefree, which begins in evaluation, so that train() does nothing."""
    params, optimizer = made(stt, name, **hyper)
    same, plain = made(stt, name, **hyper)
    optimizer.train()
    for t in range(3):
        step(params, optimizer, [2 * t, 2 * t + 1])
        step(same, plain, [2 * t, 2 * t + 1])
        averages = optimizer.averaged()
        optimizer.eval()
        optimizer.eval()
        assert_close(params, list(averages.values()))
        assert_close(list(optimizer.averaged().values()), list(averages.values()))
        with pytest.raises(RuntimeError, match="call train"):
            optimizer.step()
        for p in params:
            p.grad = None
        loss = params[0].sum()
        with stt.step_in_backward(optimizer), pytest.raises(RuntimeError, match="call train"):
            loss.backward()
        params[0].grad = None
        saved = copy.deepcopy(optimizer.state_dict())
        assert saved["param_groups"][0]["train_mode"] is False
        params = [torch.nn.Parameter(p.detach().clone()) for p in params]
        optimizer = getattr(stt, name)(params)
        optimizer.load_state_dict(saved)
        optimizer.train()
        assert_close(params, same)
    assert not hasattr(stt.AdamW, "eval")


# torch.compile


@pytest.mark.parametrize("backend", [
    "eager", pytest.param("inductor", marks=pytest.mark.exhaustive),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_compiled_programs_step_without_being_compiled_here(backend):
    found = []
    for compiled in (True, False):
        params, optimizer = made(stt, "Adam", lr=0.1)
        wrap = torch.compile if compiled else lambda f, **_: f
        single = wrap(optimizer.step, backend=backend)
        for p in params:
            p.grad = torch.ones_like(p)
        single()
        single()

        def train(x, params=params, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (params[0] * x).square().sum() + params[1].sum()
            loss.backward()
            optimizer.step()
            return loss

        whole = wrap(train, backend=backend)
        losses = [whole(torch.full((3, 2), 2.0)).detach() for _ in range(3)]
        assert optimizer.updates == 5
        found.append((params, losses))
    assert_close(*found)


def test_a_state_in_a_file_needs_no_class_of_ours():
    """As torch's base class packs it, for wrappers that hold the state: dicts of tensors."""
    params, optimizer = made(stt, "Adam", lr=0.1)
    step(params, optimizer, range(2))
    file = io.BytesIO()
    torch.save(torch.optim.Optimizer.state_dict(optimizer)["state"], file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert isinstance(loaded[0], dict) and loaded[0]["step"] == 2
    assert torch.equal(loaded[0]["exp_avg"], optimizer.state[params[0]]["exp_avg"])
    _, other = pickle.loads(pickle.dumps((params, optimizer)))
    assert not other._current() or not other._unwatched
