"""Parameters stepped in the backward pass: the bits of backward() and step(), and less memory."""

import copy
import gc
import math
import threading
import weakref

import numpy as np
import pytest
from cases import CONFIGURATIONS, MATRICES_ONLY, label

import steepest as st
from steepest.optimizers import RULES

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402

ALL = [*CONFIGURATIONS, *((rule, {}) for rule in MATRICES_ONLY)]
LOCAL = [(rule, h) for rule, h in ALL if RULES[rule].needs != "global"]
SHAPES = [(7, 5), (6, 2), (3, 4, 2), (2, 2)]


def cls(rule):
    return getattr(stt, RULES[rule].__name__)


def parameters(dtype=np.float32):
    rng = np.random.default_rng(1)
    return [torch.nn.Parameter(torch.tensor(rng.standard_normal(s).astype(dtype))) for s in SHAPES]


def loss_of(params, t, leave_out=()):
    """A loss whose gradients are numbers of the step's own."""
    rng = np.random.default_rng(10 + t)
    terms = []
    for i, p in enumerate(params):
        g = torch.tensor(rng.standard_normal(tuple(p.shape)).astype(p.detach().numpy().dtype))
        if i not in leave_out:
            terms.append((p * g).sum())
    return sum(terms)


def falling(t):
    return 0.1 / (t + 1)


def both(make, steps=5, before=lambda t, optimizer: None, leave_out=lambda t: ()):
    """Two runs of the same: (params, optimizer) stepped at the end, and in the backward pass."""
    runs = []
    for inside in (False, True):
        params = parameters()
        optimizer = make(params)
        handle = stt.step_in_backward(optimizer) if inside else None
        for t in range(steps):
            before(t, optimizer)
            loss_of(params, t, leave_out(t)).backward()
            if not inside:
                optimizer.step()
                optimizer.zero_grad()
            assert all(p.grad is None for p in params)
        if handle:
            handle.remove()
        runs.append((params, optimizer))
    return runs


def assert_alike(runs):
    (params, one), (others, two) = runs
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert one.state[p].keys() == two.state[q].keys()
        for key, x in one.state[p].items():
            assert torch.equal(x, two.state[q][key]), key
    assert (one.updates, one.skipped) == (two.updates, two.skipped)
    strip = [[{k: x for k, x in g.items() if k != "params"} for g in o.param_groups]
             for o in (one, two)]  # fmt: skip
    assert strip[0] == strip[1]


def model():
    torch.manual_seed(0)
    layers = []
    for _ in range(4):
        layers += [torch.nn.Linear(6, 6), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers)


X = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 10


def train(net, optimizer, steps=4):
    for _ in range(steps):
        net(X).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


# The same bits


@pytest.mark.parametrize(("rule", "hyper"), LOCAL, ids=label)
def test_every_local_rule_steps_as_with_step(rule, hyper):
    def skip_one(t):
        return (0, 3) if t == 2 else ()

    assert_alike(both(lambda ps: cls(rule)(ps, **hyper), leave_out=skip_one))


OPTIONS = [
    {"clip": st.clip.value(0.3)},
    {"clip": st.clip.norm(0.5)},
    {"clip": st.clip.norm(0.5, p=math.inf)},
    {"clip": st.clip.adaptive(0.05)},
    {"clip": (st.clip.norm(2.0), st.clip.adaptive(0.05), st.clip.value(0.3))},
    {"clip": st.clip.norm(falling)},
    {"lr": falling},
    {"ema": 0.9, "maximize": True},
    {"average": st.average.tail(start=2), "lookahead": st.average.lookahead(k=2)},
    {"nonfinite": "raise"},
    {"l1": 0.01, "exclude": ("1",), "overrides": {"2": {"lr": 0.01, "clip": st.clip.norm(0.1)}}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["-".join(x) for x in OPTIONS])
def test_options(options):
    runs = both(lambda ps: stt.SGD(ps, **({"lr": 0.1, "momentum": 0.9} | options)))
    assert_alike(runs)
    one, two = (optimizer for _, optimizer in runs)
    assert one.last_norms == two.last_norms
    assert one.last_norm == two.last_norm


@pytest.mark.parametrize("clip", [
    st.clip.previous_norm(1.0), (st.clip.previous_norm(1.0), st.clip.value(0.2)),
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("nonfinite", ["propagate", "raise"])
def test_the_norm_of_the_step_before(clip, nonfinite):
    def make(ps):
        groups = [{"params": ps[:2]}, {"params": ps[2:], "lr": 0.2}]
        return stt.SGD(groups, lr=0.1, clip=clip, nonfinite=nonfinite)

    (params, one), (others, two) = both(make)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    assert two.clip_history == one.clip_history != {}
    assert two.last_norms == one.last_norms
    assert two.last_norm == one.last_norm
    assert two.updates == one.updates == 5


@pytest.mark.parametrize("seed", range(12))
def test_the_norm_of_the_step_before_has_the_bits_of_steps(seed):
    """Of doubles, in any order of arrival, with groups that share a clip or not, and a scale."""
    clip = st.clip.previous_norm(0.5)
    other = [clip, None, st.clip.norm(0.3, p=1.0)][seed % 3]

    def made():
        rng = np.random.default_rng(seed)
        ps = [
            torch.nn.Parameter(torch.tensor(rng.standard_normal(s)))
            for s in ((7, 5), (64,), (33, 3), (2, 2))
        ]
        return ps, stt.SGD(
            [{"params": ps[:3]}, {"params": ps[3:], "clip": other}], lr=0.1, clip=clip
        )

    (params, one), (others, two) = made(), made()
    if seed % 4 == 1:
        one.grad_scale = two.grad_scale = torch.tensor(3.0)
    with stt.step_in_backward(two):
        for t in range(6):
            rng = np.random.default_rng(100 * seed + t)
            gradients = [torch.tensor(rng.standard_normal(tuple(p.shape))) for p in params]
            order = rng.permutation(4)
            one.zero_grad()
            sum((params[i] * gradients[i]).sum() for i in order).backward()
            one.step()
            sum((others[i] * gradients[i]).sum() for i in order).backward()
            assert two.clip_history == one.clip_history
            assert two.last_norms == one.last_norms
            assert two.last_norm == one.last_norm
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_a_norm_that_is_not_finite_is_passed_over():
    params = parameters()
    optimizer = stt.SGD(params, lr=0.1, clip=st.clip.previous_norm(1.0))
    with stt.step_in_backward(optimizer):
        loss_of(params, 0).backward()
        known = dict(optimizer.clip_history)
        (loss_of(params, 1) + params[1].sum() * math.inf).backward()
        assert optimizer.clip_history == known
        loss_of(params, 2, leave_out=(1,)).backward()
        assert optimizer.clip_history != known


def test_the_first_pass_without_a_norm_steps_at_its_end():
    params, others = parameters(), parameters()
    optimizer = stt.SGD(params, lr=0.1, clip=st.clip.previous_norm(0.5))
    stt.step_in_backward(optimizer)
    loss_of(params, 0).backward()
    plain = stt.SGD(others, lr=0.1, clip=st.clip.global_norm(0.5))
    loss_of(others, 0).backward()
    plain.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert all(p.grad is None for p in params) and optimizer.updates == 1


def test_a_first_pass_that_fails_at_its_end_changes_nothing():
    params = parameters()
    optimizer = stt.SGD(params, lr=0.1, clip=st.clip.previous_norm(1.0), nonfinite="raise")
    stt.step_in_backward(optimizer)
    with pytest.raises(FloatingPointError, match="'1'"):
        (loss_of(params, 0) + params[1].sum() * math.nan).backward()
    assert all(torch.equal(p, q) for p, q in zip(params, parameters(), strict=True))
    assert optimizer.updates == 0
    optimizer.zero_grad()
    loss_of(params, 0).backward()
    assert optimizer.updates == 1 and all(p.grad is None for p in params)


def test_numbers_that_rules_keep_of_groups_move_once():
    def make(ps):
        groups = [{"params": ps[:2]}, {"params": ps[2:], "lr": 0.02}]
        return stt.ScheduleFreeAdamW(groups, lr=falling)

    runs = both(make, leave_out=lambda t: (0, 1) if t == 2 else (t % 4,))
    assert_alike(runs)
    assert runs[1][1].param_groups[0]["weight_sum"] > 0


def test_learning_rates_are_read_in_every_pass_and_schedulers_find_their_step():
    def make(ps):
        optimizer = stt.AdamW(ps, lr=0.1)
        optimizer.scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return optimizer

    runs = both(make, before=lambda t, o: t and o.scheduler.step())
    assert_alike(runs)
    assert runs[1][1].param_groups[0]["lr"] == 0.1 * 0.5**4


def test_a_state_dict_between_two_passes():
    params, others = parameters(), parameters()
    one, two = stt.AdamW(params), stt.AdamW(others)
    with stt.step_in_backward(one), stt.step_in_backward(two):
        for t in range(3):
            loss_of(params, t).backward()
        two.load_state_dict(one.state_dict())
        for p, q in zip(params, others, strict=True):
            q.data.copy_(p.data)
        for ps in (params, others):
            loss_of(ps, 3).backward()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert one.updates == two.updates == 4


def test_complex_parameters_and_strides():
    def make():
        return [
            torch.nn.Parameter(torch.full((3, 2), 1 + 2j)),
            torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t()),
        ]

    def loss(ps):
        return (ps[0] * ps[0].conj()).real.sum() + (ps[1] ** 2).sum()

    params, others = make(), make()
    one, two = stt.AdamW(params), stt.AdamW(others)
    with stt.step_in_backward(one):
        for _ in range(3):
            loss(params).backward()
            loss(others).backward()
            two.step()
            two.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_a_scale_of_ones_own_is_taken_out():
    params, others = parameters(), parameters()
    one, two = stt.SGD(params, lr=0.1), stt.SGD(others, lr=0.1)
    one.grad_scale = torch.tensor(4.0)
    with stt.step_in_backward(one):
        (4.0 * loss_of(params, 0)).backward()
    loss_of(others, 0).backward()
    two.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


# Memory


def test_gradients_are_freed_as_they_are_used():
    net = model()
    optimizer = stt.AdamW(net.parameters(), lr=0.1)
    living, most = [], []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):  # between two layers
            most.append(sum(p.grad is not None for p in net.parameters()))
            most.append(sum(x() is not None for x in living))
            return g

    def note(p):
        living.append(weakref.ref(p.grad))
        most.append(sum(x() is not None for x in living) - 1)

    for p in net.parameters():  # goes before the hook that steps
        p.register_post_accumulate_grad_hook(note)
    stt.step_in_backward(optimizer)
    for _ in range(3):
        x = X
        for layer in net:
            x = Watch.apply(layer(x))
        x.square().sum().backward()
    assert len(living) == 24 and len(most) == 24 + 3 * 16
    assert max(most) == 0


# What a pass is


def test_tied_parameters_are_stepped_once():
    w, v = torch.nn.Parameter(torch.eye(3)), torch.nn.Parameter(torch.eye(3))
    one, two = stt.AdamW([w]), stt.AdamW([v])
    x = torch.arange(3.0)
    with stt.step_in_backward(one):
        (w @ torch.tanh(w @ x)).square().sum().backward()
    (v @ torch.tanh(v @ x)).square().sum().backward()
    two.step()
    assert torch.equal(w, v) and one.updates == one.state[w]["step"] == 1


def test_every_pass_is_an_update_even_over_one_graph():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = stt.SGD([w], lr=1.0)
    stt.step_in_backward(optimizer)
    loss = w.sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert optimizer.updates == 2 and w.tolist() == [-1.0, -1.0]


def test_frozen_parameters_are_left_alone_until_they_are_not():
    w, frozen = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    frozen.requires_grad_(False)
    optimizer = stt.SGD([w, frozen], lr=1.0)
    stt.step_in_backward(optimizer)
    assert not frozen.requires_grad
    (w * frozen).sum().backward()
    assert frozen.tolist() == [1.0, 1.0]
    frozen.requires_grad_(True)
    (w + frozen).sum().backward()
    assert frozen.tolist() == [0.0, 0.0] and frozen.grad is None


def test_groups_that_come_later():
    params, others = parameters(), parameters()
    one, two = stt.AdamW(params[:2]), stt.AdamW(others[:2])
    stt.step_in_backward(one)
    for t in range(4):
        if t == 2:
            one.add_param_group({"params": params[2:], "lr": 0.1})
            two.add_param_group({"params": others[2:], "lr": 0.1})
        n = 2 if t < 2 else 4
        loss_of(params[:n], t).backward()
        loss_of(others[:n], t).backward()
        two.step()
        two.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    with pytest.raises(ValueError, match="global_norm"):
        one.add_param_group({"params": parameters()[:1], "clip": st.clip.global_norm(1.0)})
    assert len(one.param_groups) == 2


def test_groups_changed_by_hand():
    w, v = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = stt.SGD([w], lr=1.0)
    stt.step_in_backward(optimizer)
    optimizer.param_groups[0]["params"].append(v)
    for _ in range(2):  # the first pass finds v
        w.sum().backward()
    (w + v).sum().backward()
    assert v.tolist() == [0.0, 0.0] and w.tolist() == [-2.0, -2.0]
    optimizer.param_groups[0]["params"].remove(w)
    (v + w).sum().backward()
    assert w.tolist() == [-2.0, -2.0] and w.grad is not None and v.tolist() == [-1.0, -1.0]


def test_step_calls_its_closure_and_nothing_else():
    net, other = model(), model()
    one, two = stt.AdamW(net.parameters()), stt.AdamW(other.parameters())
    stt.step_in_backward(one)

    def closure():
        loss = net(X).square().sum()
        loss.backward()
        return loss

    first = one.step(closure).item()
    assert first == net.__class__(*model()).forward(X).square().sum().item()
    train(net, one, steps=2)
    train(other, two, steps=3)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    assert one.updates == 3


def test_remove_puts_everything_back():
    net, other = model(), model()
    one, two = stt.AdamW(net.parameters()), stt.AdamW(other.parameters())
    handle = stt.step_in_backward(one)
    with handle as same:
        assert same is handle
        net(X).square().sum().backward()
    handle.remove()  # once more changes nothing
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
    net(X).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    one.step()
    one.zero_grad()
    train(net, one, steps=1)
    train(other, two, steps=3)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    with stt.step_in_backward(one):
        pass


def test_copies_step_in_step():
    params = parameters()
    optimizer = stt.AdamW(params)
    stt.step_in_backward(optimizer)
    loss_of(params, 0).backward()
    others, copied = copy.deepcopy((params, optimizer))
    loss_of(others, 1).backward()
    assert all(p.grad is not None for p in others)
    copied.step()
    loss_of(params, 1).backward()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_nothing_is_kept_alive():
    net = model()
    optimizer = stt.AdamW(net.parameters())
    stt.step_in_backward(optimizer)
    net(X).square().sum().backward()
    gone, weight = weakref.ref(optimizer), weakref.ref(net[0].weight)
    del optimizer, net
    gc.collect()
    assert gone() is None and weight() is None


def test_an_optimizer_that_was_not_kept_is_missed_once():
    net = model()
    stt.step_in_backward(stt.AdamW(net.parameters()))
    gc.collect()
    with pytest.raises(RuntimeError, match="gone"):
        net(X).square().sum().backward()
    net.zero_grad()
    net(X).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_passes_of_different_threads_follow_each_other():
    params, others = parameters(), parameters()
    one, two = stt.AdamW(params), stt.AdamW(others)
    stt.step_in_backward(one)
    for t in range(3):
        worker = threading.Thread(target=lambda t=t: loss_of(params, t).backward())
        worker.start()
        worker.join()
        loss_of(others, t).backward()
        two.step()
        two.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert one.updates == 3


# Errors


def test_an_error_names_the_parameter_and_leaves_it_as_it_was():
    torch.manual_seed(0)
    net = model()
    optimizer = stt.AdamW(net.named_parameters(), lr=0.1, nonfinite="raise")
    before = [p.detach().clone() for p in net.parameters()]
    with stt.step_in_backward(optimizer):
        y = net[4:](net[:4](X).clone())
        net[4].weight.register_hook(lambda g: g * math.nan)
        with pytest.raises(FloatingPointError, match=r"4\.weight") as caught:
            y.square().sum().backward()
        assert any("4.weight" in note for note in caught.value.__notes__)
        moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
        assert moved == [False] * 4 + [False, moved[5]] + [True] * 2
        assert optimizer.updates == 1
        assert not optimizer.state[net[4].weight]
        assert optimizer.state[net[6].weight]["step"] == 1
        optimizer.zero_grad()
        net[4].weight._backward_hooks.clear()
        net(X).square().sum().backward()  # the next pass is one of its own
        assert optimizer.updates == 2
        assert optimizer.state[net[6].weight]["step"] == 2
        assert optimizer.state[net[0].weight]["step"] == 1


def test_a_pass_that_fails_elsewhere_is_an_update_if_it_has_stepped():
    class Fail(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise OSError("elsewhere")

    net = model()
    optimizer = stt.AdamW(net.parameters(), clip=st.clip.norm(1.0))
    with stt.step_in_backward(optimizer):
        with pytest.raises(OSError, match="elsewhere"):
            net[4:](Fail.apply(net[:4](X))).square().sum().backward()
        assert optimizer.updates == 1 and len(optimizer.state) == 4
        assert optimizer.last_norm is None and optimizer.last_norms == {}
        net(X).square().sum().backward()
        assert optimizer.updates == 2 and len(optimizer.state) == 8


REFUSED = [
    (lambda ps: stt.SGD(ps, lr=0.1, clip=st.clip.global_norm(1.0)), "global_norm"),
    (lambda ps: stt.SGD(ps, lr=0.1, clip=st.clip.group_norm(1.0)), "group_norm"),
    (lambda ps: stt.SGD(ps, lr=0.1, clip=st.clip.percentile(10)), "percentile"),
    (lambda ps: stt.SGD(ps, lr=0.1, clip=(st.clip.skip_spikes(), st.clip.value(1))), "skip_spikes"),
    (lambda ps: stt.SGD(ps, lr=0.1, nonfinite="skip"), "nonfinite"),
    (
        lambda ps: stt.SGD(ps, lr=0.1, overrides={"1": {"clip": st.clip.global_norm(1.0)}}),
        "global_norm",
    ),
    *(
        (lambda ps, rule=rule: cls(rule)(ps), RULES[rule].__name__)
        for rule in RULES
        if RULES[rule].needs == "global"
    ),
]


@pytest.mark.parametrize(("make", "what"), REFUSED, ids=[what for _, what in REFUSED])
def test_what_needs_all_gradients_is_refused(make, what):
    params = parameters()
    with pytest.raises(ValueError, match=what):
        stt.step_in_backward(make(params))
    assert not any(p._post_accumulate_grad_hooks for p in params)


def test_what_comes_to_need_all_gradients_is_refused():
    params = parameters()
    optimizer = stt.SGD(params, lr=0.1)
    stt.step_in_backward(optimizer)
    optimizer.param_groups[0]["clip"] = st.clip.global_norm(1.0)
    with pytest.raises(ValueError, match="global_norm"):
        loss_of(params, 0).backward()
    assert optimizer.updates == 0


def test_gradients_from_elsewhere_are_errors():
    params = parameters()
    optimizer = stt.SGD(params, lr=0.1)
    params[1].grad = torch.ones(6, 2)
    with pytest.raises(ValueError, match="'1' has a gradient"):
        stt.step_in_backward(optimizer)
    optimizer.zero_grad()
    stt.step_in_backward(optimizer)
    params[1].grad = torch.ones(6, 2)
    with pytest.raises(ValueError, match="'1' has a gradient"):
        optimizer.step()


def test_a_scaler_that_comes_too_late_is_an_error():
    params = parameters()
    optimizer = stt.SGD(params, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with stt.step_in_backward(optimizer):
        scaler.scale(loss_of(params, 0)).backward()
        with pytest.raises(RuntimeError, match="GradScaler"):
            scaler.step(optimizer)


def test_other_optimizers_and_a_second_time_are_errors():
    params = parameters()
    with pytest.raises(TypeError, match="SGD"):
        stt.step_in_backward(torch.optim.SGD(params, lr=0.1))
    optimizer = stt.SGD(params, lr=0.1)
    stt.step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="already"):
        stt.step_in_backward(optimizer)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_graphs_of_derivatives_and_passes_within_passes_are_errors():
    params = parameters()
    optimizer = stt.SGD(params, lr=0.1)
    stt.step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="create_graph"):
        loss_of(params, 0).backward(create_graph=True)
    optimizer.zero_grad()
    x = torch.ones((), requires_grad=True)
    checkpoint = torch.utils.checkpoint.checkpoint
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        checkpoint(lambda y: y * loss_of(params, 0), x, use_reentrant=True).backward()
    optimizer.zero_grad()
    checkpoint(lambda y: y * loss_of(params, 0), x, use_reentrant=False).backward()
    assert optimizer.updates == 1


def test_a_second_derivative_by_grad():
    w, v = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    one, two = stt.SGD([w], lr=0.1), stt.SGD([v], lr=0.1)
    stt.step_in_backward(one)
    for p in (w, v):
        (g,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
        (g * g).sum().backward()
    two.step()
    assert torch.equal(w, v)


def test_torch_notices_that_a_parameter_has_changed():
    w, a = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    stt.step_in_backward(stt.SGD([w, a], lr=0.1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ((a * w.detach()) * w).sum().backward()
