"""Optimizers in main memory for models elsewhere: the bits of the class, in any order of arrival.

There is no accelerator here: ``Apart`` has twins in other memory, and copies in threads of its own,
as a device does. The tests of CUDA say so, and are skipped where there is none.
"""

import copy
import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import CONFIGURATIONS, MATRICES_ONLY, label
from faults import interrupted_at

import steepest as st
from steepest.optimizers import RULES

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402
from steepest.torch.links import Link  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "offload.py"
ALL = [*CONFIGURATIONS, *((rule, {}) for rule in MATRICES_ONLY)]
SHAPES = [(7, 5), (6, 2), (3, 4, 2), (2, 2)]


class Apart(Link):
    """A device's memory that is here, too: copies are made in a thread for each direction."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.log = []
        self.gate = lambda what, p: None
        self._down, self._up = (ThreadPoolExecutor(1) for _ in range(2))
        self._pending = []
        self._buffers = {}

    def twin(self, p):
        return torch.nn.Parameter(p.detach().clone(), p.requires_grad)

    def _copy(self, what, p, source, target):
        self.gate(what, p)
        time.sleep(self.seconds)
        with torch.no_grad():
            target.copy_(source)
        self.log.append((what, p))

    def fetch(self, grad, p):
        host = self._buffers[p] = torch.full_like(grad, 7.0)
        copied = self._down.submit(self._copy, "grad", p, grad.detach(), host)
        return lambda: (copied.result(), host)[1]

    def send(self, twin, p):
        self._pending.append(self._up.submit(self._copy, "param", p, twin.detach(), p))

    def join(self):
        while self._pending:
            self._pending.pop().result()

    synchronize = join


class OffloadApart(stt.Offload):
    """An Offload whose parameters lie apart from their twins."""

    def _link_to(self, device):
        return Apart()


BOTH = pytest.mark.parametrize("offload", [stt.Offload, OffloadApart], ids=["memory", "apart"])


def cls(rule):
    return getattr(stt, RULES[rule].__name__)


def parameters(dtype=torch.float32):
    rng = np.random.default_rng(1)
    return [torch.nn.Parameter(torch.tensor(rng.standard_normal(s)).to(dtype)) for s in SHAPES]


def loss_of(params, t, leave_out=()):
    """A loss whose gradients are numbers of the step's own."""
    rng = np.random.default_rng(10 + t)
    terms = []
    for i, p in enumerate(params):
        g = torch.tensor(rng.standard_normal(tuple(p.shape))).to(p.dtype)
        if i not in leave_out:
            terms.append((p * g).sum())
    return sum(terms)


def run(params, optimizer, steps=5, leave_out=lambda t: (), before=lambda t, optimizer: None):
    for t in range(steps):
        before(t, optimizer)
        optimizer.zero_grad()
        loss_of(params, t, leave_out(t)).backward()
        optimizer.step()
    return params, optimizer


def both(offload, optimizer, dtype=torch.float32, given=None, **hyper):
    """The class, stepped after each pass, and an Offload of it."""
    params, others = parameters(dtype), parameters(dtype)
    one = optimizer(params, **(given or {}))
    two = offload(others, optimizer, **(given or {}))
    return run(params, one, **hyper), run(others, two, **hyper)


def assert_alike(one, two):
    (params, plain), (others, apart) = one, two
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert plain.state[p].keys() == apart.state[q].keys()
        for key, x in plain.state[p].items():
            assert torch.equal(x, apart.state[q][key]), key
    assert (plain.updates, plain.skipped) == (apart.updates, apart.skipped)
    assert plain.digest() == apart.digest()
    strip = [[{k: x for k, x in g.items() if k != "params"} for g in o.param_groups]
             for o in (plain, apart)]  # fmt: skip
    assert str(strip[0]) == str(strip[1])


@pytest.mark.parametrize("where", ["memory", "apart"])
@pytest.mark.parametrize(("rule", "hyper"), ALL, ids=label)
def test_every_rule_has_the_bits_of_its_class(rule, hyper, where):
    one, two = both({"memory": stt.Offload, "apart": OffloadApart}[where], cls(rule), given=hyper)
    assert_alike(one, two)


FORMATS = [
    {"master": "float32"},
    {"master": "split16", "state_dtype": "bfloat16"},
    {"rounding": "stochastic"},
    {"master": "kahan", "state_dtype": {"exp_avg": "q8"}, "clip": st.clip.norm(0.5)},
]


@BOTH
@pytest.mark.parametrize("given", FORMATS, ids=str)
def test_formats(offload, given):
    assert_alike(*both(offload, stt.AdamW, torch.bfloat16, {"lr": 0.01, **given}))


def test_parameters_of_16_bits_have_masters_unless_said_otherwise():
    for dtype, given, keys in (
        (torch.bfloat16, {}, {"master"}),
        (torch.float32, {}, set()),
        (torch.bfloat16, {"master": None}, set()),
        (torch.bfloat16, {"rounding": "stochastic"}, set()),
    ):
        params = parameters(dtype)
        _, offload = run(params, stt.Offload(params, stt.AdamW, lr=0.01, **given), 1)
        assert offload.state[params[0]].keys() - {"step", "exp_avg", "exp_avg_sq"} == keys


AT_ONCE = [
    ("adamw", {"clip": st.clip.global_norm(0.5)}),
    ("adamw", {"nonfinite": "skip"}),
    ("prodigy", {}),
    ("dowg", {}),
]


@BOTH
@pytest.mark.parametrize(("rule", "given"), AT_ONCE, ids=str)
def test_what_looks_at_all_gradients_is_stepped_at_the_end(offload, rule, given):
    assert_alike(*both(offload, cls(rule), given=given))
    with pytest.raises(ValueError, match="step_in_backward"):
        offload(parameters(), cls(rule), in_backward=True, **given)


@BOTH
def test_the_norm_of_the_step_before(offload):
    params, others = parameters(), parameters()
    given = {"lr": 0.1, "clip": st.clip.previous_norm(0.5)}
    one, two = stt.AdamW(params, **given), offload(others, stt.AdamW, **given)
    with stt.step_in_backward(one):
        for t in range(4):
            loss_of(params, t).backward()
    for t in range(4):
        loss_of(others, t).backward()
        two.step()
        assert all(q.grad is None for q in others)
    assert_alike((params, one), (others, two))
    assert one.clip_history == two.clip_history


@BOTH
def test_some_parameters_have_no_gradient(offload):
    def some(t):
        return {t % 4, 1} if t != 2 else range(4)

    def run_some(params, optimizer):
        for t in range(5):
            if t != 2:
                loss_of(params, t, some(t)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return params, optimizer

    params, others = parameters(), parameters()
    one = run_some(params, stt.AdamW(params, lr=0.1))
    assert_alike(one, run_some(others, offload(others, stt.AdamW, lr=0.1)))


@BOTH
def test_gradients_of_several_passes(offload):
    params, others = parameters(), parameters()
    one, two = stt.AdamW(params, lr=0.1), offload(others, stt.AdamW, lr=0.1)
    for t in range(0, 12, 3):
        one.zero_grad()
        for k in range(3):
            loss_of(params, t + k, {k}).backward()  # the last one has none in the last pass
        one.step()
        with two.no_sync():
            for k in range(2):
                loss_of(others, t + k, {k}).backward()
        loss_of(others, t + 2, {2}).backward()
        two.step()
        assert all(q.grad is None for q in others)
    assert_alike((params, one), (others, two))


def test_a_second_pass_before_step_is_refused():
    params = parameters()
    offload = stt.Offload(params, stt.AdamW, lr=0.1)
    loss_of(params, 0).backward()
    with pytest.raises(RuntimeError, match="no_sync"):
        loss_of(params, 1).backward()
    with pytest.raises(RuntimeError, match="another gradient"):
        offload.step()
    others = parameters()
    one = run(others, stt.AdamW(others, lr=0.1), 1)
    assert_alike(one, (params, offload))
    assert_alike(run(*one), run(params, offload))


@BOTH
def test_in_backward_false_takes_the_sum_of_all_passes(offload):
    params, others = parameters(), parameters()
    one, two = stt.SGD(params, lr=0.1), offload(others, stt.SGD, lr=0.1, in_backward=False)
    for own, optimizer in ((params, one), (others, two)):
        for t in range(3):
            loss_of(own, t).backward()
        torch.nn.utils.clip_grad_norm_(own, 0.25)  # after the copies have begun
        optimizer.step()
    assert_alike((params, one), (others, two))
    assert all(q.grad is not None for q in others)


@BOTH
def test_gradients_that_no_pass_has_made(offload):
    params, others = parameters(), parameters()
    one, two = stt.AdamW(params, lr=0.1), offload(others, stt.AdamW, lr=0.1)
    for own, optimizer in ((params, one), (others, two)):
        for p in own[1:]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert_alike((params, one), (others, two))


@BOTH
def test_a_closure(offload):
    params, others = parameters(), parameters()
    one, two = stt.AdamW(params, lr=0.1), offload(others, stt.AdamW, lr=0.1)
    losses = []
    for own, optimizer in ((params, one), (others, two)):

        def closure(own=own):
            loss = loss_of(own, 0)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure))
    assert torch.equal(*losses)
    assert_alike((params, one), (others, two))


@BOTH
def test_schedulers_groups_and_overrides(offload):
    def build(make, own):
        groups = [{"params": own[:2], "lr": 0.1}, {"params": own[2:3], "betas": (0.5, 0.9)}]
        optimizer = make(groups, lr=st.schedules.linear(0.1, 3, end=0.05), weight_decay=0.1)
        optimizer.add_param_group({"params": own[3:], "lr": 0.05})
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    params, others = parameters(), parameters()
    runs = []
    for own, make in (
        (params, stt.AdamW),
        (others, lambda groups, **given: offload(groups, stt.AdamW, **given)),
    ):
        optimizer, scheduler = build(make, own)
        for t in range(4):
            optimizer.zero_grad()
            loss_of(own, t).backward()
            optimizer.step()
            scheduler.step()
        runs.append((own, optimizer))
    assert_alike(*runs)
    assert [len(g["params"]) for g in runs[1][1].param_groups] == [2, 1, 1]
    assert runs[1][1].param_groups[1]["params"][0] is others[2]


@BOTH
def test_names_choose_parameters_of_a_module(offload):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    given = {"lr": 0.1, "overrides": {"bias": {"lr": 0.5}}}
    one, two = stt.AdamW(model.named_parameters(), **given), offload(twin, stt.AdamW, **given)
    for own, optimizer in ((model, one), (twin, two)):
        for _ in range(3):
            optimizer.zero_grad()
            own(torch.ones(3)).square().sum().backward()
            optimizer.step()
    assert_alike(([*model.parameters()], one), ([*twin.parameters()], two))
    assert two.last_norm is None
    assert [g["param_names"] for g in two.param_groups] == [["weight"], ["bias"]]


def test_frozen_parameters_of_a_module_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    model[0].requires_grad_(False)
    offload = stt.Offload(model, stt.SGD, lr=0.1)
    assert sum(len(g["params"]) for g in offload.param_groups) == 2


@BOTH
def test_the_state_dict_is_that_of_the_class(offload):
    def resumed(make, saved, own):
        optimizer = make(own)
        optimizer.load_state_dict(copy.deepcopy(saved))
        return run(own, optimizer, 7)

    def plain(own):
        return stt.AdamW(own, lr=0.01, master="float32")

    def apart(own):
        return offload(own, stt.AdamW, lr=0.01)

    starts = []
    for make in (plain, apart):
        own = parameters(torch.bfloat16)
        run(own, optimizer := make(own), 3)
        starts.append((own, optimizer.state_dict()))
    assert str(starts[0][1]) == str(starts[1][1])
    ends = []
    for make, (own, saved) in ((plain, starts[1]), (apart, starts[0])):
        others = [torch.nn.Parameter(p.detach().clone()) for p in own]
        ends.append(resumed(make, saved, others))
    assert_alike(*ends)


@BOTH
def test_hooks_of_state_dicts_are_called(offload):
    own = parameters()
    optimizer, seen = offload(own, stt.SGD, lr=0.1), []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append(o))
    optimizer.register_state_dict_post_hook(lambda o, made: made | {"more": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, made: {key: x for key, x in made.items() if key != "more"}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o))
    saved = optimizer.state_dict()
    assert saved["more"] == 1
    optimizer.load_state_dict(saved)
    assert seen == [optimizer, optimizer]


@BOTH
def test_grad_scaler(offload):
    params, others = parameters(), parameters()
    given = {"lr": 0.1, "clip": st.clip.norm(1.0)}
    one, two = stt.SGD(params, **given), offload(others, stt.SGD, in_backward=False, **given)
    for own, optimizer in ((params, one), (others, two)):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for t in range(4):
            optimizer.zero_grad()
            loss = loss_of(own, t) * (torch.inf if t == 1 else 1.0)
            scaler.scale(loss).backward()
            if t == 3:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.skipped == 1
    assert_alike((params, one), (others, two))


def test_a_grad_scaler_comes_too_late_for_steps_in_backward():
    own = parameters()
    optimizer, scaler = stt.Offload(own, stt.SGD, lr=0.1), torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(own, 0)).backward()
    optimizer.found_inf = torch.zeros(())
    with pytest.raises(RuntimeError, match="in_backward=False"):
        optimizer.step()


@BOTH
def test_a_constant_scale(offload):
    params, others = parameters(), parameters()
    one, two = stt.SGD(params, lr=0.1), offload(others, stt.SGD, lr=0.1)
    for own, optimizer in ((params, one), (others, two)):
        optimizer.grad_scale = 8.0
        loss_of(own, 0).backward()
        optimizer.step()
        del optimizer.grad_scale
        optimizer.zero_grad()
        loss_of(own, 1).backward()
        optimizer.step()
    assert_alike((params, one), (others, two))


# What fails


@BOTH
def test_what_a_step_raises_is_raised_at_the_end(offload):
    own = parameters()
    optimizer = offload(own, stt.SGD, lr=1.0, nonfinite="raise")
    before = [p.detach().clone() for p in own]

    def bad(p):
        return torch.full_like(p, torch.nan)

    handle = own[2].register_hook(bad)
    loss_of(own, 0).backward()
    with pytest.raises(FloatingPointError) as caught:
        optimizer.step()
    assert any("parameter '2'" in note for note in caught.value.__notes__)
    assert torch.equal(own[2], before[2])
    handle.remove()
    after = [p.detach().clone() for p in own]
    optimizer.zero_grad()
    loss_of(own, 1).backward()
    optimizer.step()  # goes on
    assert not any(torch.equal(p, q) for p, q in zip(own, after, strict=True))


def test_a_copy_that_fails_is_raised_at_the_end():
    own = parameters()
    optimizer = OffloadApart(own, stt.SGD, lr=1.0)

    def gate(what, p):
        if what == "grad" and p is own[1]:
            raise OSError("the device is gone")

    [link] = optimizer._links.values()
    link.gate = gate
    loss_of(own, 0).backward()
    with pytest.raises(OSError, match="gone"):
        optimizer.synchronize()
    with pytest.raises(OSError, match="gone"):
        optimizer.step()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
def test_an_interrupt_while_step_waits_loses_nothing():
    own, others = parameters(), parameters()
    given = {"lr": st.schedules.linear(0.1, 4)}  # of the update that each step belongs to
    optimizer = OffloadApart(own, stt.AdamW, **given)
    [link] = optimizer._links.values()
    free, waiting = threading.Event(), threading.Event()

    def gate(what, p):
        if p is own[0] and not free.is_set():
            waiting.set()
            assert free.wait(60)

    def interrupt():
        waiting.wait(60)
        time.sleep(0.2)  # until step() waits
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    link.gate = gate
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        loss_of(own, 0).backward()
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
        threading.Timer(0.3, free.set).start()  # in the next pass, which has to wait
    one = run(others, stt.AdamW(others, **given), 3)
    for t in (1, 2):
        optimizer.zero_grad()
        loss_of(own, t).backward()
        optimizer.step()
    assert_alike(one, (own, optimizer))


def test_what_the_pass_still_needs_is_not_changed_in_silence():
    w = torch.nn.Parameter(torch.tensor([2.0]))
    v = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = stt.Offload([w, v], stt.SGD, lr=1.0)
    x = w * v.detach()  # whose gradient needs v after the step of v, which begins the pass
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (x * v).sum().backward()
    optimizer.step()
    assert (w.item(), v.item()) == (2.0, 3.0 - 6.0)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph:UserWarning")
def test_create_graph_is_refused():
    own = parameters()
    optimizer = stt.Offload(own, stt.SGD, lr=1.0)
    before = [p.detach().clone() for p in own]
    with pytest.raises(RuntimeError, match="create_graph"):
        (loss_of(own, 0) ** 2).backward(create_graph=True)
    assert all(torch.equal(p, q) for p, q in zip(own, before, strict=True))
    optimizer.zero_grad()
    run(own, optimizer, 1)


def test_what_is_refused():
    with pytest.raises(TypeError, match="a class of steepest"):
        stt.Offload(parameters(), st.AdamW, lr=0.1)
    with pytest.raises(TypeError, match="a class of steepest"):
        stt.Offload(parameters(), torch.optim.AdamW, lr=0.1)
    with pytest.raises(TypeError, match="weight_decy"):
        stt.Offload(parameters(), stt.AdamW, weight_decy=0.1)
    with pytest.raises(ValueError, match="empty"):
        stt.Offload([], stt.AdamW)
    with pytest.raises(ValueError, match="leaf"):
        stt.Offload([parameters()[0] * 2], stt.AdamW)
    p = parameters()[0]
    with pytest.raises(ValueError, match="0"), pytest.warns(UserWarning, match="duplicate"):
        stt.Offload([p, p], stt.AdamW)
    with pytest.raises(TypeError, match="no streams"):
        stt.Offload([torch.nn.Parameter(torch.zeros(2, device="meta"))], stt.AdamW)
    optimizer = stt.Offload([p], stt.AdamW, in_backward=True)
    with pytest.raises(ValueError, match="step_in_backward"):
        optimizer.add_param_group({"params": parameters()[1:], "clip": st.clip.global_norm(1.0)})
    with pytest.raises(AttributeError, match="momentum"):
        _ = optimizer.momentum
    with pytest.raises(AttributeError, match="load_state_dict"):
        optimizer.state = {}
    with pytest.raises(TypeError, match="load_state_dict"):
        optimizer.state[p] = {}


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused(how):
    with pytest.raises(TypeError, match="state_dict"):
        how(stt.Offload(parameters(), stt.SGD, lr=0.1))


# In the order of arrival


def test_steps_and_copies_go_on_while_the_pass_does():
    w = [torch.nn.Parameter(torch.full((3,), float(i + 1))) for i in range(3)]
    optimizer = OffloadApart(w, stt.SGD, lr=1.0)
    [link] = optimizer._links.values()
    back = [threading.Event() for _ in w]
    link_copy = link._copy

    def copied(what, p, source, target):
        link_copy(what, p, source, target)
        if what == "param":
            next(e for e, x in zip(back, w, strict=True) if x is p).set()

    link._copy = copied
    seen = []

    def waits_for(later):
        """In the pass, until a parameter that came before has been stepped and sent."""

        def hook(g):
            seen.append(back[later].wait(60))
            return g

        return hook

    x = torch.ones(3)
    for i, p in enumerate(w):
        x = x * p
        if i < 2:
            x.register_hook(waits_for(i + 1))
    x.sum().backward()
    optimizer.step()
    assert seen == [True, True]
    order = [(what, next(i for i, x in enumerate(w) if x is p)) for what, p in link.log]
    assert [x for x in order if x[0] == "grad"] == [("grad", 2), ("grad", 1), ("grad", 0)]
    assert order.index(("param", 2)) < order.index(("grad", 1))
    assert order.index(("param", 1)) < order.index(("grad", 0))
    assert [p[0].item() for p in w] == [1.0 - 6.0, 2.0 - 3.0, 3.0 - 2.0]


def test_gradients_are_freed_in_the_pass():
    w = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = stt.Offload(w, stt.SGD, lr=1.0)
    present = []
    x = torch.ones(3)
    for p in w:
        x = x * p
        x.register_hook(lambda g: present.append(sum(q.grad is not None for q in w)))
    x.sum().backward()
    optimizer.step()
    assert present == [0, 0, 0]


def test_what_others_have_written_is_stepped_on():
    own = parameters()
    others = parameters()
    one, two = stt.SGD(own, lr=0.1), OffloadApart(others, stt.SGD, lr=0.1)
    for params, optimizer in ((own, one), (others, two)):
        run(params, optimizer, 2)
        with torch.no_grad():
            params[1].add_(1.0)
        params[0].data = torch.ones_like(params[0])
        run(params, optimizer, 2)
    assert_alike((own, one), (others, two))


def test_a_model_of_another_precision():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    one, two = stt.AdamW(model.parameters(), lr=0.1), OffloadApart(twin, stt.AdamW, lr=0.1)
    for own, optimizer in ((model, one), (twin, two)):
        for dtype in (torch.float32, torch.float64):
            own.to(dtype)
            optimizer.zero_grad()
            own(torch.ones(3, dtype=dtype)).square().sum().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert q.dtype == torch.float64
        assert torch.equal(p, q)


@BOTH
def test_schedule_free_points(offload):
    params, others = parameters(), parameters()
    one = stt.ScheduleFreeAdamW(params, lr=0.1)
    two = offload(others, stt.ScheduleFreeAdamW, lr=0.1)
    for own, optimizer in ((params, one), (others, two)):
        run(own, optimizer, 3)
        optimizer.eval()
    assert all(map(torch.equal, params, others))
    with pytest.raises(RuntimeError, match="train"):
        run(others, two, 1)
    for own, optimizer in ((params, one), (others, two)):
        optimizer.zero_grad()
        optimizer.train()
        run(own, optimizer, 2)
    assert all(map(torch.equal, params, others))
    assert not hasattr(offload(parameters(), stt.SGD, lr=0.1), "eval")


def test_one_that_is_gone_steps_no_more():
    own = parameters()
    optimizer = stt.Offload(own, stt.SGD, lr=0.1)
    run(own, optimizer, 1)
    before = [p.detach().clone() for p in own]
    del optimizer
    gc.collect()
    loss_of(own, 0).backward()
    assert all(p.grad is not None for p in own)
    assert all(torch.equal(p, q) for p, q in zip(own, before, strict=True))
    deadline = time.monotonic() + 60
    while any(x.name.startswith("steepest-offload") for x in threading.enumerate()):
        assert time.monotonic() < deadline  # its thread ends
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_a_thread_of_its_own():
    own = parameters()
    optimizer = stt.Offload(own, stt.SGD, lr=0.1)
    run(own, optimizer, 1)
    torch.set_num_threads(1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        for p in own:
            p.grad = torch.ones_like(p)
        optimizer.step()
        os.write(write, optimizer.digest().encode())
        os._exit(0)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    for p in own:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert os.read(read, 100).decode() == optimizer.digest()
    os.close(read)


def test_what_the_class_has_beside():
    own = parameters()
    optimizer = stt.Offload(own, stt.AdamW, lr=0.1, ema=0.9)
    run(own, optimizer, 2)
    assert optimizer.updates == 2
    assert optimizer.averaged().keys() == {"0", "1", "2", "3"}
    optimizer.verify(1.0)
    run(own, optimizer, 2)
    assert optimizer.defaults["lr"] == 0.1
    assert repr(optimizer).startswith("Offload (")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_an_accelerator():
    here, there = parameters(), [torch.nn.Parameter(p.detach().cuda()) for p in parameters()]
    one, two = stt.AdamW(here, lr=0.1), stt.Offload(there, stt.AdamW, lr=0.1)
    for own, optimizer in ((here, one), (there, two)):
        for t in range(5):
            optimizer.zero_grad()
            rng = np.random.default_rng(t)
            grads = [torch.tensor(rng.standard_normal(p.shape), dtype=p.dtype) for p in own]
            sum((p * g.to(p.device)).sum() for p, g in zip(own, grads, strict=True)).backward()
            optimizer.step()
    assert all(torch.equal(p, q.cpu()) for p, q in zip(here, there, strict=True))


def test_the_example_has_the_bits_of_the_class():
    command = [sys.executable, str(EXAMPLE), "--steps", "2", "--width", "64", "--layers", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    first, second = done.stdout.splitlines()
    assert first == "bits of AdamW on the CPU: True"
    assert "of the shorter hidden" in second


# Norms that are measured as gradients arrive


class Shown(OffloadApart):
    """Says which plan has measured what before a step, and may spoil the copies after that."""

    spoil = False

    def _finish(self):
        self._wait()
        self.seen = dict(self._measured)
        if self.spoil:
            for x in self._link(self.param_groups[0]["params"][0])._buffers.values():
                x.mul_(-1.0).mul_(3.0)
        super()._finish()


CLIPS = [
    {"clip": st.clip.global_norm(0.5)},
    {"clip": st.clip.global_norm(0.5, p=1.0)},
    {"clip": st.clip.global_norm(0.1, p=float("inf"))},
    {"clip": st.clip.global_norm(0.5, p=3.0)},
    {"clip": st.clip.percentile(50, window=3)},
    {"clip": st.clip.group_norm(0.5)},
    {"clip": (st.clip.skip_spikes(3.0), st.clip.global_norm(0.5))},
    {"nonfinite": "skip"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", CLIPS, ids=str)
def test_norms_that_are_measured_on_arrival_are_those_of_the_step(given, dtype):
    one, two = both(
        Shown, stt.AdamW, dtype, {"lr": 0.1, **given}, leave_out=lambda t: [1] if t == 2 else []
    )
    if dtype != torch.bfloat16:
        assert_alike(one, two)
    assert len(two[1].seen) == len(SHAPES)
    assert len(set(two[1].seen.values())) == 1
    if "clip" in given:
        assert one[1].last_norm == two[1].last_norm
        assert one[1].last_norms == two[1].last_norms
        assert one[1].clip_history == two[1].clip_history


@pytest.mark.parametrize("size", [1e-200, 1e200, 1e-160, 1e154])
def test_norms_of_gradients_near_the_ends_of_doubles(size):
    """Each is measured once more, by another scale: the parts have to come together."""
    results = []
    for make in (stt.SGD, lambda params, **given: OffloadApart(params, stt.SGD, **given)):
        params = parameters(torch.float64)
        optimizer = make(params, lr=1.0, clip=st.clip.global_norm(1.0))
        (loss_of(params, 0) * size).backward()
        params[2].grad *= 1e3
        optimizer.step()
        results.append((params, optimizer.last_norm, optimizer.last_norms))
    (params, *norms), (others, *found) = results
    assert norms == found
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


def test_a_step_does_not_measure_again_what_was_measured_on_arrival():
    norms = []
    for spoil in (False, True):
        params = parameters()
        optimizer = Shown(params, stt.AdamW, lr=0.1, clip=st.clip.global_norm(0.5))
        optimizer.spoil = spoil  # after measuring, so that a step which measures finds others
        loss_of(params, 0).backward()
        optimizer.step()
        norms.append((optimizer.last_norm, optimizer.last_norms))
    assert norms[0] == norms[1]


@pytest.mark.parametrize(
    "change", ["scaled", "replaced", "accumulated", "clip", "lr", "weights", "double"]
)
def test_a_step_takes_what_has_changed_after_the_arrival(change):
    def changed(params, optimizer):
        if change == "scaled":
            params[1].grad.mul_(5.0)
        elif change == "replaced":
            params[1].grad = params[1].grad * 5.0
        elif change == "accumulated":
            loss_of(params, 7).backward()
        elif change == "clip":
            optimizer.param_groups[0]["clip"] = st.clip.global_norm(0.1, p=1.0)
        elif change == "lr":
            optimizer.param_groups[0]["lr"] = 0.01
        elif change == "weights":
            with torch.no_grad():
                params[0].add_(1.0)
        else:
            for p in params:
                grad, p.grad = p.grad, None
                p.data = p.data.double()
                p.grad = grad.double()

    given = {"lr": 0.1, "clip": st.clip.global_norm(0.5)}
    results = []
    for make in (stt.AdamW, lambda params, **given: OffloadApart(params, stt.AdamW, **given)):
        params = parameters()
        optimizer = make(params, **given)
        for t in range(3):
            optimizer.zero_grad()
            loss_of(params, t).backward()
            if t == 1:
                changed(params, optimizer)
            optimizer.step()
        results.append((params, optimizer))
    assert_alike(*results)
    assert results[0][1].last_norms == results[1][1].last_norms


def test_nothing_is_measured_on_arrival_without_a_clip_that_needs_it():
    for given in ({}, {"clip": st.clip.value(0.1)}, {"clip": st.clip.norm(1.0)}):
        params = parameters()
        optimizer = Shown(params, stt.AdamW, lr=0.1, in_backward=False, **given)
        loss_of(params, 0).backward()
        optimizer.step()
        assert bool(optimizer.seen) is (given.get("clip") == st.clip.norm(1.0))


# Parameters that are sent while others are still to be stepped


class Sending(OffloadApart):
    """Notes what the twins were when each parameter was sent, and may fail then."""

    def __init__(self, *args, **hyper):
        self.seen = []
        self.fails = {}
        super().__init__(*args, **hyper)

    def _send(self, p):
        place = {q: i for i, q in enumerate(self._twins)}[p]
        self.seen.append((place, [x.detach().flatten()[0].item() for x in self._twins.values()]))
        super()._send(p)
        error = self.fails.get(place)
        if error is not None:
            raise error


def large_parameters(count=3, size=3_000_000):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size)) for _ in range(count)]


@pytest.mark.parametrize(
    "given",
    [{"clip": st.clip.global_norm(1.0)}, {"clip": st.clip.norm(0.5), "state_dtype": "q8"},
     {"in_backward": False, "clip": st.clip.previous_norm(1.0)},
     {"clip": st.clip.global_norm(1.0), "rounding": "stochastic", "dtype": torch.bfloat16}],
    ids=str,
)  # fmt: skip
def test_large_parameters_are_sent_while_others_are_stepped(given):
    """Each before the next is stepped; with the bits of the class."""
    given = dict(given)
    dtype, how = given.pop("dtype", torch.float32), given.pop("in_backward", False)
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p in large_parameters()]
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    before = [p.detach()[0].item() for p in params]
    one = stt.AdamW(params, lr=0.1, **given)
    two = Sending(others, stt.AdamW, lr=0.1, in_backward=how, **given)
    for _ in range(2):
        for ps, optimizer in ((params, one), (others, two)):
            optimizer.zero_grad()
            sum((p * p).sum() for p in ps).backward()
            optimizer.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    assert one.digest() == two.digest()
    assert [k for k, _ in two.seen] == [0, 1, 2, 0, 1, 2]
    for k, values in two.seen[:3]:
        changed = [x != y for x, y in zip(values, before, strict=True)]
        assert changed == [True] * (k + 1) + [False] * (2 - k)


@pytest.mark.parametrize(
    ("rule", "given"),
    [("lamb", {}), ("prodigy", {}), ("adamw", {"regularize": st.regularize.max_norm(1.0)}),
     ("muon", {}), ("adafactor", {}), ("adamw", {"clip": st.clip.global_norm(0.1)})],
    ids=label,
)  # fmt: skip
def test_each_parameter_is_sent_once(rule, given):
    one, two = both(Sending, cls(rule), given=given)
    assert_alike(one, two)
    sent = [k for k, _ in two[1].seen]
    assert sorted(sent) == sorted(list(range(len(SHAPES))) * 5)


@pytest.mark.parametrize("error", [KeyboardInterrupt("now"), ValueError("the device is lost")])
@pytest.mark.parametrize("place", [0, 2])
def test_a_send_that_fails_leaves_a_whole_step(error, place):
    """All twins are stepped, and counted; what was not sent is with the next step."""
    params, others = large_parameters(), large_parameters()
    clip = st.clip.global_norm(1.0)
    one = stt.AdamW(params, lr=0.1, clip=clip)
    two = Sending(others, stt.AdamW, lr=0.1, clip=clip)
    sum((p * p).sum() for p in params).backward()
    one.step()
    sum((p * p).sum() for p in others).backward()
    two.fails = {place: error}
    with pytest.raises(type(error)):
        two.step()
    assert two.updates == 1
    assert (one.last_norm, one.digest()) == (two.last_norm, two.digest())
    two.fails = {}
    for ps, optimizer in ((params, one), (others, two)):
        for p in ps:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert one.digest() == two.digest()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


def test_a_rate_that_is_set_between_the_backward_pass_and_the_step_stays_set():
    p = torch.nn.Parameter(torch.ones(3))
    offload = stt.Offload([p], stt.SGD, lr=0.5)
    p.sum().backward()
    offload.param_groups[0]["lr"] = 0.25
    offload.step()
    assert offload.param_groups[0]["lr"] == 0.25 and p.tolist() == [0.5] * 3
    p.sum().backward()
    offload.step()
    assert p.tolist() == [0.25] * 3


@pytest.mark.parametrize("kind", [stt.ScheduleFreeAdamW, stt.Prodigy])
def test_numbers_of_groups_are_those_of_the_parameters_after_ctrl_c_at_any_line(kind):
    def begun():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(3)) for _ in range(3)]
        groups = [{"params": params[:2]}, {"params": params[2:]}]
        offload = stt.Offload(groups, kind, in_backward=False)
        for turn in range(2):
            sum((p * torch.randn(3)).sum() for p in params).backward()
            if not turn:
                offload.step()
                offload.zero_grad()
        return params, offload

    def seen(params, offload):
        groups = offload.state_dict()["param_groups"]
        return [p.tolist() for p in params], groups, offload.updates

    params, offload = begun()
    before = seen(params, offload)
    offload.step()
    after = seen(params, offload)
    assert before[1] != after[1]
    for n in itertools.count(1):
        params, offload = begun()
        ended = interrupted_at(n, offload.step)
        assert seen(params, offload) == (after if offload.updates == 2 else before), n
        if not ended:
            break
    assert n > 100
