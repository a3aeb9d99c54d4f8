"""What changes an optimizer of PyTorch's between steps: an interrupt leaves all old or all new."""

import copy
import signal

import pytest
from cases import brief
from faults import interrupted_at, lines_of

import steepest as st

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402


def made():
    """A model and an optimizer of two groups with a schedule and a clip, after two steps."""
    model = torch.nn.Linear(3, 2)
    for p in model.parameters():
        torch.nn.init.constant_(p, 0.5)
    groups = [{"params": [model.weight], "lr": st.schedules.plateau(0.1)}, {"params": [model.bias]}]
    opt = stt.AdamW(groups, clip=st.clip.global_norm(1.0))
    step(model, opt)
    step(model, opt)
    return model, opt


def step(model, opt):
    opt.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    opt.step()


STRIDES = pytest.mark.parametrize("stride", brief([37, 11], [37]))


def places(change, stride):
    """Lines that the change runs, so far apart; the last, where it is made, are all among them."""
    lines = lines_of(change)
    assert lines > 200
    return [*range(1, lines - 40, stride), *range(lines - 40, lines + 1)]


@STRIDES
def test_a_state_is_loaded_wholly_or_not_at_all(stride):
    loaded = copy.deepcopy(made()[1].state_dict())
    loaded["param_groups"][1]["weight_decay"] = 0.5
    loaded["param_groups"][0]["lr"].observe(3.0)
    for state in loaded["state"].values():
        state["exp_avg"] += 1.0
    before, after, fresh = repr(made()[1].state_dict()), made()[1], made()[1]
    after.load_state_dict(loaded)
    after = repr(after.state_dict())
    found = []
    for n in places(lambda: fresh.load_state_dict(loaded), stride):
        model, opt = made()
        state, groups, lr = opt.state, list(opt.param_groups), opt.param_groups[0]["lr"]
        assert interrupted_at(n, lambda opt=opt: opt.load_state_dict(loaded))
        found.append(repr(opt.state_dict()))
        assert opt.state is state and all(map(lambda x, y: x is y, opt.param_groups, groups))
        assert opt.param_groups[0]["lr"] is lr
        step(model, opt)
    assert before in found and set(found) <= {before, after}


@STRIDES
def test_the_states_of_a_first_step_are_all_there_or_none(stride):
    """They are made in the engine, and then shown in torch's state, one parameter after another."""

    def first():
        params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 1, 2, 4)]
        for p in params:
            p.grad = torch.full_like(p, 0.5)
        return params, stt.AdamW(params, lr=0.1)

    _, fresh = first()
    found = set()
    for n in places(fresh.step, stride):
        params, opt = first()
        assert interrupted_at(n, opt.step)
        shown = [sorted(opt.state[p]) for p in params] if opt.state else []
        found.add(repr((opt.updates, shown)))
        saved = copy.deepcopy(opt.state_dict())
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        twin = stt.AdamW(others, lr=0.1)
        twin.load_state_dict(saved)
        for own, optimizer in ((params, opt), (others, twin)):
            for p in own:
                p.grad = torch.full_like(p, -0.25)
            optimizer.step()
        assert opt.digest() == twin.digest()
    assert found == {"(0, [])", repr((1, [["exp_avg", "exp_avg_sq", "step"]] * 4))}


@STRIDES
def test_a_group_is_added_wholly_or_not_at_all(stride):
    def change(opt):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.3})

    fresh = made()[1]
    sizes = set()
    for n in places(lambda: change(fresh), stride):
        model, opt = made()
        assert interrupted_at(n, lambda opt=opt: change(opt))
        sizes.add(len(opt.param_groups))
        step(model, opt)
        opt.load_state_dict(opt.state_dict())
        if len(opt.param_groups) == 2:
            change(opt)
        step(model, opt)
    assert 2 in sizes and sizes <= {2, 3}


def test_a_group_is_added_without_a_trace_of_torchs_own_way():
    """Every line around the call of torch's method: it left a group half filled, and
    no defaults."""
    for n in range(30, 100):
        _, opt = made()
        defaults = dict(opt.defaults)
        group = {"params": [torch.nn.Parameter(torch.ones(2))]}
        assert interrupted_at(n, lambda opt=opt, group=group: opt.add_param_group(group))
        assert len(opt.param_groups) == 2 and opt.defaults == defaults
    opt.add_param_group(group)
    assert opt.param_groups[2]["betas"] == (0.9, 0.999)


class Wrong(Exception):
    pass


def wrong(*_):
    raise Wrong


@pytest.mark.parametrize("where", ["pre hook", "closure", "schedule", "clip", "post hook"])
def test_an_exception_in_what_a_step_calls(where):
    """Nothing has changed; all has, after a hook that is called when the step is done."""
    model, opt = made()
    step(model, opt)
    old = opt.digest()
    twin_model, twin = made()
    step(twin_model, twin)
    step(twin_model, twin)
    closure, handle = None, None
    if where == "pre hook":
        handle = opt.register_step_pre_hook(wrong)
    elif where == "post hook":
        handle = opt.register_step_post_hook(wrong)
    elif where == "closure":
        closure = wrong
    else:
        key = "lr" if where == "schedule" else "clip"
        kept = opt.param_groups[0][key]
        opt.param_groups[0][key] = wrong if key == "lr" else st.clip.global_norm(wrong)
    opt.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(Wrong):
        opt.step(closure)
    assert opt.digest() == (twin.digest() if where == "post hook" else old)
    if handle is not None:
        handle.remove()
    elif closure is None:
        opt.param_groups[0][key] = kept
    if where != "post hook":
        opt.step()
    assert opt.digest() == twin.digest()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda x: x.name)
def test_a_step_is_taken_wholly_or_not_at_all(number):
    found, n = set(), 1
    while True:
        model, opt = made()
        opt.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        old = opt.digest()
        if not interrupted_at(n, opt.step, number):
            break
        found.add(opt.digest())
        opt.state_dict()
        n += 3
    assert found == {old, opt.digest()} and n > 40
