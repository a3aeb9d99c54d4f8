"""Bugs of schedules, plateaus and gradient accumulation."""

import gc
import math
import weakref
from fractions import Fraction

import numpy as np
import pytest
from museum import fails_with

import steepest as st
from steepest import schedules


@fails_with(
    "schedules/combine.py",
    "        n = bisect_right(self.milestones, t)\n",
    "        n = bisect_right(self.milestones, t - 1)\n",
)
def test_pytorch_185872_the_second_part_begins_at_its_milestone():
    """With a milestone of 0 SequentialLR began with the rate of the first schedule, whose turn was
    over (pytorch/pytorch#185872)."""
    lr = schedules.sequence((schedules.constant(1.0), schedules.exponential(8.0, 0.5)), (3,))
    assert [lr(t) for t in range(6)] == [1.0, 1.0, 1.0, 8.0, 4.0, 2.0]


@fails_with(
    "core/optimizer.py",
    "        count = self._updates.item()\n        for number, program in "
    "enumerate(self._groups):  # as",
    "        count = self._updates.item() + 1\n        for "
    "number, program in enumerate(self._groups):  # as",
)
def test_pytorch_22107_the_first_step_takes_the_first_rate():
    """The rate that a scheduler told was not the one in use: asked, it computed one from the last
    (pytorch/pytorch#22107)."""
    w = np.zeros(1)
    rates = [1.0, 0.5, 0.25]
    opt = st.SGD(w, lr=schedules.exponential(1.0, 0.5))
    for lr in rates:
        before = w.copy()
        opt.step(np.ones(1))
        assert before - w == lr


@fails_with(
    "schedules/annealing.py",
    "math.cos(math.pi * self.cycles * 2.0 * (t / n))",
    "math.cos(math.pi * self.cycles * 2.0 * ((t + 1e-9) / n))",
)
def test_pytorch_60265_a_rate_follows_from_the_step_alone():
    """A cosine schedule that was made anew in the middle of a run did not begin with the rate of
    that epoch (pytorch/pytorch#60265)."""
    lr = schedules.cosine(0.5, steps=100)
    forwards = [lr(t) for t in range(120)]
    assert [lr(t) for t in reversed(range(120))] == forwards[::-1]
    for t in range(100):
        exact = 0.25 * (1 + math.cos(math.pi * float(Fraction(t, 100))))
        assert forwards[t] == pytest.approx(exact, rel=1e-14, abs=1e-17)  # of one cosine


@fails_with(
    "core/groups.py",
    "        return filled | decay.with_peak(hyper)\n",
    '        return filled | decay.with_peak(hyper) | {"lr": given.get("lr", filled["lr"])}\n',
)
def test_pytorch_126854_a_rate_in_an_array_is_not_shared():
    """With a rate given as a tensor, LambdaLR multiplied the last rate and not the first, which it
    had changed in place (pytorch/pytorch#126854)."""
    w, rate = np.zeros(1), np.array(0.5)
    opt = st.SGD([{"params": w, "lr": rate}])
    rate[...] = 8.0
    opt.step([np.ones(1)])
    assert w == -0.5


@fails_with(
    "schedules/base.py",
    "        return math.prod(at(part, t) for part in self.parts)\n",
    "        return math.prod(at(part, max(t - i, 0)) for i, part in enumerate(self.parts))\n",
)
def test_pytorch_63457_schedules_that_are_chained_see_the_same_step():
    """Of two chained schedulers the second set the first rate anew at epoch 0, and that of the
    first was lost (pytorch/pytorch#63457)."""
    s = schedules.exponential(0.5, 0.5)
    assert [(s * schedules.constant(1.0))(t) for t in range(6)] == [s(t) for t in range(6)]
    assert [(schedules.constant(2.0) * s)(t) for t in range(6)] == [2 * s(t) for t in range(6)]
    both = s * schedules.step(1.0, step_size=2, gamma=0.5)
    assert [both(t) for t in range(4)] == [0.5, 0.25, 0.0625, 0.03125]


@fails_with(
    "schedules/metric_driven.py",
    "        if best is None or not math.isfinite(metric):\n"
    "            return math.isfinite(metric)\n",
    "        if best is None:\n            return True\n",
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_lightning_2636_a_metric_that_is_not_finite_is_no_best(bad):
    """A metric that was NaN at first stayed the best, as nothing compares better than NaN
    (Lightning-AI/pytorch-lightning#2636, of checkpoints). Here of a plateau, and one at -∞, too."""
    lr = schedules.plateau(1.0, factor=0.5, patience=0)
    lr.observe(bad)
    assert lr.state.best is None and lr(0) == 0.5
    lr.observe(3.0)
    lr.observe(2.0)
    assert lr.state.best == 2.0 and lr(0) == 0.5


@fails_with(
    "core/groups.py",
    "        self._lock = machine.Lock()\n",
    "        self._lock = machine.Lock()\n        self._me = self\n",
)
def test_pytorch_85410_an_optimizer_is_freed_at_once():
    """Stepping a scheduler made cycles of references, which only the collector frees
    (pytorch/pytorch#85410)."""
    gc.collect()
    gc.disable()
    try:
        w = np.ones(3)
        opt = st.Adam(w, lr=schedules.cosine(0.5, steps=9), clip=st.clip.global_norm(1.0))
        opt.step(np.ones(3))
        gone = weakref.ref(opt)
        del opt
        assert gone() is None
    finally:
        gc.enable()


@fails_with(
    "training/accumulation.py",
    '        self._mean.param_groups[0]["lr"] = share\n',
    '        self._mean.param_groups[0]["lr"] = 1.0 / (len(weights) + 1)\n',
)
def test_transformers_38872_the_last_window_is_shorter():
    """The loss of the last micro-batches was divided by the number that a full window has
    (huggingface/transformers#38872, huggingface/transformers#39659)."""
    w = np.zeros(2)
    accumulator = st.Accumulator(w)
    accumulator.add(np.array([4.0, 8.0]), weight=3)
    accumulator.add(np.array([8.0, 0.0]), weight=1)
    st.SGD(w, lr=1.0).step(accumulator.take())
    assert w.tolist() == [-5.0, -6.0]


@fails_with(
    "training/accumulation.py",
    "        internal.change_alone(self._mean, self._add, (grads, "
    'weight), "add() of this accumulator")\n',
    "        internal.change_alone(self._mean, "
    'self._add, (grads, weight), "add() of this accumulator")\n        for buffer in '
    "self._buffers:\n            buffer *= 0.5\n",
)
def test_keras_19990_decay_comes_once_for_each_update():
    """Weight decay was applied for each micro-batch, and not for each update
    (keras-team/keras#19990). Two equal micro-batches are one."""
    g = np.array([0.5, -2.0])
    once, twice = np.ones(2), np.ones(2)
    for w, parts in ((once, 1), (twice, 2)):
        opt, accumulator = st.AdamW(w, lr=0.125, weight_decay=0.5), st.Accumulator(w)
        for _ in range(5):
            for _ in range(parts):
                accumulator.add(g)
            opt.step(accumulator.take())
        assert opt.updates == 5
    assert np.array_equal(once, twice)
