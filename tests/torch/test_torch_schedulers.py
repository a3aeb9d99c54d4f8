"""torch's learning rate schedulers, all of them, on the optimizers here and on torch's own."""

import copy
import inspect
import io
import math

import numpy as np
import pytest

pytestmark = [
    pytest.mark.torch,
    # PyTorch 2.6's SequentialLR does itself what it warns of.
    pytest.mark.filterwarnings("ignore:The epoch parameter in .scheduler.step:UserWarning"),
]

torch = pytest.importorskip("torch")

from torch.optim import lr_scheduler as schedulers  # noqa: E402
from torch.optim import swa_utils  # noqa: E402

import steepest.torch as stt  # noqa: E402
from steepest.schedules import constant  # noqa: E402

STEPS = 24
HALF = 11


def sequential(optimizer):
    parts = [schedulers.LinearLR(optimizer, 0.1, total_iters=5), schedulers.ExponentialLR(
        optimizer, 0.9), schedulers.CosineAnnealingLR(optimizer, 9)]  # fmt: skip
    return schedulers.SequentialLR(optimizer, parts, milestones=[6, 13])


def chained(optimizer):
    parts = [
        schedulers.ConstantLR(optimizer, 0.3, total_iters=7),
        schedulers.ExponentialLR(optimizer, 0.93),
    ]
    return schedulers.ChainedScheduler(parts, optimizer=optimizer)


MADE = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9 + 0.05 * (t % 2)),
    "StepLR": lambda o: schedulers.StepLR(o, 4, gamma=0.3),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [3, 5, 17], gamma=0.4),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.3, total_iters=7),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, total_iters=13),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.87),
    "SequentialLR": sequential,
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=1e-3),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.3, patience=2),
    "CyclicLR": lambda o: schedulers.CyclicLR(
        o, [1e-3, 2e-3], [0.03, 0.07], step_size_up=5, mode="exp_range", gamma=0.97
    ),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(
        o, 3, T_mult=2, eta_min=1e-4
    ),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, [0.05, 0.1], total_steps=STEPS + 1),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 20, power=1.7),
    "SWALR": lambda o: swa_utils.SWALR(o, [0.003, 0.005], anneal_epochs=8),
}
OPTIMIZERS = {
    "sgd": ("SGD", {"lr": 0.05, "momentum": 0.87, "nesterov": True, "weight_decay": 0.01}),
    "adamw": ("AdamW", {"lr": 0.05, "betas": (0.83, 0.987), "weight_decay": 0.1}),
    "adamw, lr as tensor": ("AdamW", {"lr": torch.tensor(0.05, dtype=torch.float64)}),
    "rmsprop": ("RMSprop", {"lr": 0.05, "momentum": 0.7, "centered": True}),
}


class Training:
    """Two groups, stepped with gradients of the step's number, and a scheduler."""

    def __init__(self, module, optimizer, scheduler):
        rng = np.random.default_rng(1)
        self.params = [
            torch.nn.Parameter(torch.tensor(rng.standard_normal(s))) for s in ((4, 3), (3,))
        ]
        name, hyper = OPTIMIZERS[optimizer]
        second = {"params": [self.params[1]], "lr": copy.deepcopy(hyper["lr"]) * 0.5}
        groups = [{"params": [self.params[0]]}, second]
        self.optimizer = getattr(module, name)(groups, **copy.deepcopy(hyper))
        self.scheduler = MADE[scheduler](self.optimizer)
        self.t = 0

    def step(self):
        rng = np.random.default_rng(100 + self.t)
        for p in self.params:
            p.grad = torch.tensor(rng.standard_normal(p.shape))
        self.optimizer.step()
        if isinstance(self.scheduler, schedulers.ReduceLROnPlateau):
            self.scheduler.step(1.0 if self.t > 4 else 2.0 - 0.1 * self.t)
        else:
            self.scheduler.step()
        self.t += 1

    def seen(self):
        """What schedulers write to: learning rates and momentums, as numbers."""
        return [
            (float(g["lr"]), g.get("momentum"), g.get("betas"), g.get("initial_lr") is not None)
            for g in self.optimizer.param_groups
        ]

    def saved(self):
        state = self.params, self.optimizer.state_dict(), self.scheduler.state_dict(), self.t
        return copy.deepcopy(state)

    def load(self, saved):
        params, optimizer, scheduler, self.t = saved
        for p, x in zip(self.params, params, strict=True):
            p.data.copy_(x.data)
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(scheduler)


def assert_alike(a, b):
    assert a.seen() == b.seen()
    assert a.scheduler.get_last_lr() == b.scheduler.get_last_lr()
    for p, q in zip(a.params, b.params, strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-12)


def test_every_scheduler_of_torch_is_here():
    found = {
        name
        for module in (schedulers, swa_utils)
        for name, x in vars(module).items()
        if inspect.isclass(x) and issubclass(x, schedulers.LRScheduler)
    }
    assert found - {"LRScheduler", "_LRScheduler"} == set(MADE)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MADE)
def test_learning_rates_and_parameters_are_those_of_torch(name, optimizer):
    ours, theirs = Training(stt, optimizer, name), Training(torch.optim, optimizer, name)
    rates = set()
    for _ in range(STEPS):
        assert_alike(ours, theirs)
        ours.step()
        theirs.step()
        rates.add(ours.seen()[0][0])
    assert_alike(ours, theirs)
    assert len(rates) > 1
    if name in ("CyclicLR", "OneCycleLR"):
        group, usual = ours.optimizer.param_groups[0], OPTIMIZERS[optimizer][1]
        key = "betas" if "betas" in group else "momentum"
        assert group[key] != usual.get(key)


@pytest.mark.parametrize(("before", "after"), [(stt, stt), (torch.optim, stt), (stt, torch.optim)],
                         ids=["ours", "from torch", "to torch"])  # fmt: skip
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", MADE)
def test_a_checkpoint_goes_on(name, optimizer, before, after):
    through, first = (Training(before, optimizer, name) for _ in range(2))
    for _ in range(HALF):
        through.step()
        first.step()
    second = Training(after, optimizer, name)
    second.load(first.saved())
    for _ in range(STEPS - HALF):
        assert_alike(through, second)
        through.step()
        second.step()
    assert_alike(through, second)


ALL = sorted(
    name
    for name, x in vars(torch.optim).items()
    if inspect.isclass(x) and issubclass(x, torch.optim.Optimizer) and hasattr(stt, name)
    if name not in ("Optimizer", "Muon", "ASGD")  # Muon is in bfloat16 there; ASGD: below
)


@pytest.fixture
def double():
    """torch keeps NAdam's product and ASGD's rate in its default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("scheduler", ["ExponentialLR", "OneCycleLR"])
@pytest.mark.parametrize("name", ALL)
def test_every_class_is_driven(name, scheduler, monkeypatch, double):
    monkeypatch.setitem(OPTIMIZERS, name, (name, {"lr": 0.05}))
    cycles = {"Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD"}
    if scheduler == "OneCycleLR" and name not in cycles - {"NAdam"}:  # NAdam: below
        monkeypatch.setitem(
            MADE,
            scheduler,
            lambda o: schedulers.OneCycleLR(
                o, [0.05, 0.1], total_steps=STEPS + 1, cycle_momentum=False
            ),
        )
    ours, theirs = Training(stt, name, scheduler), Training(torch.optim, name, scheduler)
    for _ in range(STEPS):
        ours.step()
        theirs.step()
        assert_alike(ours, theirs)


def test_where_two_rules_differ_from_torchs_under_a_scheduler(monkeypatch, double):
    """NAdam's product of momentums is that of the present β₁, torch's of all that there were; ASGD
    uses a new rate at once, torch's one step later."""
    monkeypatch.setitem(OPTIMIZERS, "NAdam", ("NAdam", {"lr": 0.05}))
    monkeypatch.setitem(OPTIMIZERS, "ASGD", ("ASGD", {"lr": 0.05, "lambd": 0.0}))
    runs = [Training(module, "NAdam", "OneCycleLR") for module in (stt, torch.optim)]
    for _ in range(STEPS):
        for run in runs:
            run.step()
    assert runs[0].seen() == runs[1].seen()
    params = zip(runs[0].params, runs[1].params, strict=True)
    apart = max((p - q).abs().max().item() for p, q in params)
    assert 1e-6 < apart < 1e-3

    ours, theirs = (Training(module, "ASGD", "StepLR") for module in (stt, torch.optim))
    for t in range(2 * 4 + 1):
        if t == 4:
            assert_alike(ours, theirs)
        ours.step()
        theirs.step()
    assert ours.seen() == theirs.seen()
    assert not torch.allclose(ours.params[0], theirs.params[0])


def test_a_tensor_stays_the_same_tensor():
    """Schedulers write into a learning rate that is a tensor, in place."""
    run = Training(stt, "adamw, lr as tensor", "StepLR")
    held = run.optimizer.param_groups[0]["lr"]
    for _ in range(5):
        run.step()
    assert run.optimizer.param_groups[0]["lr"] is held
    assert math.isclose(held.item(), 0.05 * 0.3)


def test_averaged_models_follow():
    """torch's averaged model and SWALR, as in its recipe for SWA."""
    means = []
    for module in (stt, torch.optim):
        torch.manual_seed(3)
        model = torch.nn.Linear(3, 2, dtype=torch.float64)
        mean = swa_utils.AveragedModel(model)
        optimizer = module.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = swa_utils.SWALR(optimizer, 0.01, anneal_epochs=3)
        x = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(4, 3)
        for _ in range(6):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            mean.update_parameters(model)
            scheduler.step()
        means.append([p.detach() for p in mean.parameters()])
    torch.testing.assert_close(*means, rtol=0.0, atol=1e-12)


def test_a_schedule_of_ours_and_a_scheduler_of_torchs():
    """A schedule in a group is a function: torch's schedulers write over it only what they know."""
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = stt.AdamW([p], lr=0.1, weight_decay=lambda t: 0.1 / (1 + t))
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        p.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.0125
    assert callable(optimizer.param_groups[0]["weight_decay"])


FACTORS = {  # those that go on from the present rate, for many steps
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.99),
    "StepLR": lambda o: schedulers.StepLR(o, 1, gamma=0.99),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.99),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, total_iters=250),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 250, power=2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 40, eta_min=0.1),
    "CosineAnnealingLR, short": lambda o: schedulers.CosineAnnealingLR(o, 1),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 7),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda t: 0.99**t),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.1, anneal_epochs=250),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=20), schedulers.ExponentialLR(o, 0.99)], [20]
    ),
    "ChainedScheduler": chained,
}


@pytest.mark.parametrize("make", FACTORS.values(), ids=FACTORS)
def test_a_scheduler_multiplies_a_schedule_for_as_long_as_one_likes(make):
    """The rate is the schedule's times what the scheduler would make of 1."""
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    inside = constant(1.0, warmup=100)
    optimizer, theirs = stt.SGD([p], lr=inside), torch.optim.SGD([q], lr=1.0)
    scheduler, control = make(optimizer), make(theirs)
    for _ in range(300):
        for o, s in ((optimizer, scheduler), (theirs, control)):
            o.param_groups[0]["params"][0].grad = torch.ones(2)
            o.step()
            s.step()
        lr, factor = optimizer.param_groups[0]["lr"], theirs.param_groups[0]["lr"]
        if callable(lr):  # SWALR ends at a number
            assert len(repr(lr)) < 500
            lr = lr(100)
        # A few roundings at each of 300 steps, as there.
        assert math.isclose(lr, factor, rel_tol=1e-11, abs_tol=1e-14)
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    loaded = torch.load(file)["param_groups"][0]["lr"]
    assert loaded == optimizer.param_groups[0]["lr"]


def test_reduce_on_plateau_over_a_schedule_says_what_to_take():
    p = torch.nn.Parameter(torch.ones(2))
    scheduler = schedulers.ReduceLROnPlateau(stt.SGD([p], lr=constant(0.1)), patience=0)
    scheduler.step(1.0)
    with pytest.raises(TypeError, match=r"constant\(lr=0.1\) is a schedule.* schedules.plateau"):
        scheduler.step(1.0)
