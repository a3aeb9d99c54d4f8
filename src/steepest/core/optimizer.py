"""The atomic step, which all optimizers share.

A step first plans: gradients are resolved, every array, hyper-parameter and norm is checked, and
all that is needed is allocated. Nothing of the caller's is written meanwhile, so any exception
leaves parameters, state and counters as they were. Then one call of ``Plan.commit``, which cannot
fail, does the whole update and advances the counters.

``Optimizer`` is the top of four layers: ``rule`` has what a rule says of itself, ``groups`` its
parameters in groups, ``planning`` the plan, ``state_dicts`` state dicts and copies. What the rest
of the library asks of it, beside users, is in ``internal``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from steepest import subnormals
from steepest.core import digests, trees
from steepest.core.common_options import CommonOptions
from steepest.core.constructor import KW_ONLY, Argument
from steepest.core.hyper_parameters import Number, Schedule
from steepest.core.norms import Norms
from steepest.core.rule import RULES
from steepest.core.standstill import Look
from steepest.core.state_dicts import WithStateDict
from steepest.core.verification import Verification, attach
from steepest.fields import Range, scalar
from steepest.kernels import machine, threads
from steepest.kernels.engine import Plan
from steepest.memory import arrays, formats
from steepest.memory.arrays import Array
from steepest.options import average as averages
from steepest.options.clip import Clip

__all__ = ["KW_ONLY", "RULES", "Argument", "Number", "Optimizer", "Schedule"]


_SHARE = Range(scalar, 0, 1)

_MISSING: Any = type("_Missing", (), {"__repr__": lambda _: "<required>"})()


class Optimizer(WithStateDict, CommonOptions, registered=False):
    """Base of all optimizers; see ``AdamW`` or ``SGD`` for one to use."""

    def averaged(self) -> dict[str, Array]:
        """The averaged parameters by name: copies, nothing is changed.

        They are the rule's own where it keeps an average; else those of ``average=``, else of
        ``ema=``. Raises ValueError where a group has neither.
        """
        points = {}
        self._follow_tensors()
        for number, group in enumerate(self.param_groups):
            for name, p in zip(group["param_names"], group["params"], strict=True):
                state = self._state.get(name, {})
                try:
                    key = averages.kept(group, int(state.get("step", 0)))
                except LookupError:
                    raise ValueError(
                        f"group {number} keeps no averaged parameters; make the optimizer with "
                        "ema=0.999 or average=st.average.tail(start=1000), or take a rule that "
                        "averages, such as ScheduleFreeAdamW"
                    ) from None
                points[name] = arrays.zeros_like(p)
                points[name][...] = formats.decoded(p if key is None else state.get(key, p))
        return points

    def digest(self) -> str:
        """SHA-256 of all the bits that the steps have come to, as 64 hexadecimal digits.

        Of the parameters and their states, names, formats and shapes, of the counts, the norms that
        clips remember, and the numbers that rules keep of groups; not of hyper-parameters, which
        are yours. Where all bits are alike, so are digests: for any memory layout, number of
        threads, level, system, and order of the parameters. NaN is NaN, whatever its payload.
        Nothing is changed.

        >>> import numpy as np, steepest as st
        >>> w = np.array([1.0, -2.0], np.float32)
        >>> opt = st.AdamW({"w": w}, lr=0.25)
        >>> opt.step({"w": w / 2})
        >>> opt.digest()[:16]
        '061dcb2fbd1187a1'
        """
        self._follow_tensors()
        params = {
            name: arrays.parameter(p, name)
            for group in self.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }
        return digests.digest(params, self._state_dict(np.asarray), self._kept_numbers())

    def verify(self, share: float = 0.001, *, seed: int = 0) -> Verification:
        """From now on, a part of each step is computed again by the reference, and compared.

        share: the part of all elements, from 0 to 1, that is drawn anew in each step: blocks of
        neighbours; all of a parameter whose elements depend on each other; or all parameters, in as
        many steps, where the rule sums over them in one group. 0 ends it. A step of AdamW over 20
        million elements takes 1.07 times as long at 0.001, and 1.5 times at 0.01. Rules in Python,
        and those for matrices, are left out: they have no reference but themselves.

        Returns what counts the elements that were compared. A step that has given another bit
        raises ``CorruptionError``, and has been done: memory, processor, or the kernel has erred;
        go back to a checkpoint. Raises TypeError or ValueError for a share that is none.

        >>> import numpy as np, steepest as st
        >>> w = np.ones(10_000, np.float32)
        >>> opt = st.AdamW(w, lr=1e-3)
        >>> check = opt.verify(0.5)
        >>> for _ in range(20):
        ...     opt.step(w / 2)
        >>> check.elements > 50_000  # of 200 000
        True
        """
        part = _SHARE.check(share, "", "share")
        self._verification = Verification(part, int(seed)) if part else None
        vars(self).pop("_go", None)
        if self._verification is None:
            return Verification(0.0, int(seed))
        attach(self)
        return self._verification

    def _kept_numbers(self) -> list[tuple[str, float]]:
        """The numbers that rules keep of groups, by name."""
        return [
            (f"{key} of group {number}", group[key])
            for number, group in enumerate(self.param_groups)
            for key in self._groups[number].shared
        ]

    @property
    def last_norms(self) -> dict[str, float]:
        """The norm of each gradient of the last step that measured them, by parameter."""
        return dict(zip(self._names, self._last_norms, strict=False))

    # To type checkers these three are fields of CommonOptions, and no properties.

    @property  # type: ignore[misc]
    def clip(self) -> Clip | tuple[Clip, ...] | None:  # type: ignore[override]
        """How gradients are clipped, where a group has no ``clip`` of its own."""
        return self.defaults["clip"]  # type: ignore[no-any-return]

    @property  # type: ignore[misc]
    def nonfinite(self) -> str:  # type: ignore[override]
        """What non-finite gradients do; fixed at construction."""
        return self._nonfinite

    @property  # type: ignore[misc]
    def state_dir(self) -> str | None:  # type: ignore[override]
        """The folder of the files that state arrays lie in; None if they lie in memory."""
        return None if self._files is None else self._files.folder

    # The step

    def step(self, grads: Any = _MISSING) -> None:
        """Updates all parameters in place with gradients of the same structure as ``params``.

        A gradient (or a whole subtree) that is None leaves its parameters, their state and their
        counters alone. After an exception everything is as it was before the call. Raises
        TypeError or ValueError for gradients that do not fit, FloatingPointError for non-finite
        ones if so asked, RuntimeError when called while another thread steps this optimizer.
        """
        if grads is _MISSING:
            raise TypeError(f"step() without gradients: {self._torch_is_beside()}")
        machine.alone(self._lock, self._step, grads, "step() of this optimizer")

    def _step(self, grads: Any) -> None:
        if self._files is not None:
            self._files.check_process()
        flat = [grads] if self._shape is None else trees.take(self._shape, grads)
        if self._bits is not None:
            flat = [arrays.of_bits(g, self._bits) for g in flat]
        self._flat_step(flat if self._in_order else [flat[i] for i in self._order])

    def _flat_step(self, flat: list[Any]) -> None:
        """A step with the gradients in the order of the groups."""
        count = self._updates.item()
        for number, program in enumerate(self._groups):  # as _take_hyper, without its call
            program.update(self.param_groups[number], count)
            if program.stale:
                self._plan = None
        self._go(flat, count)

    def _take_hyper(self, count: int) -> None:
        """Takes over what the groups say after `count` updates."""
        for number, program in enumerate(self._groups):
            program.update(self.param_groups[number], count)
            if program.stale:
                self._plan = None

    def _go(self, flat: list[Any], count: int) -> None:
        """The rest of a step, once the hyper-parameters are those after `count` updates."""
        plan = self._resolved(flat)
        if self._sharing:
            self._check_shared()
        climbing, rows = False, plan.rows()
        for row, (number, t, by_rows) in enumerate(rows):
            program = self._groups[number]
            program.tell(plan, row, count, t, self._domains[number], by_rows)
            if program.sign < 0:
                climbing = True
        workers = 1 if plan.cost < threads.SMALL else threads.workers(plan.elements())
        looks: Sequence[Look] = ()
        if self._rounded:
            looks = self._standstill.begin(plan, rows, flat, self._rounded, self._places)
        if self._measured:
            self._clipped_step(plan, workers, count, climbing)
        else:
            if climbing:
                plan.rescale(self._climbing(self._unscale))
            elif self._unscale != 1.0:
                plan.rescale(self._unscale)
            if plan.has_factors:
                plan.factors(workers)
            if self._joins or self._peers is not None:
                self._join_in(plan, workers)
            else:
                plan.commit(workers)
        if looks:
            self._standstill.end(looks, self._state)
        if self._left:
            self._forget()

    def _join_in(self, plan: Plan, workers: int) -> None:
        """The end of a step in which Python, other processes, or the groups' numbers take part."""
        if self._preparing:
            self._prepare(plan)
        if self._peers is not None:
            self._peers.ready()
        plan.commit(workers, keeping=self._keeping)

    def _check_process(self) -> None:
        """Raises RuntimeError where a step would change the state of another process, too."""
        if self._files is not None:
            self._files.check_process()

    def _prepare(self, plan: Plan) -> None:
        """Computes the steps that rules in Python prepare; nothing of the caller's changes."""
        plan.prepare()
        copies: list[tuple[Array, Array]] = []
        known = self._to_prepare
        for i, t in plan.steps():
            if i not in known:
                known[i] = self._preparation(plan, i)
            preparation = known[i]
            if preparation is not None:
                program, name, in_place, g, p, state = preparation
                fresh = given(state, in_place)
                before = dict(fresh)
                try:
                    with np.errstate(under="ignore"):  # whatever the caller wants raised
                        program.rule.cls.prepare(name, p, g, fresh, t, program.h)
                except Exception as error:
                    error.add_note(f"in the step of parameter {name!r}; nothing was changed")
                    raise
                for key in program.flushed(t):
                    if key in fresh:
                        fresh[key] = fresh[key].copy()
                        subnormals.flush(fresh[key])
                for key, x in state.items():
                    if in_place or fresh[key] is not before[key]:
                        copies.append((x, fresh[key]))
        plan.replace(copies)

    def _preparation(self, plan: Plan, i: int) -> Any:
        """What a rule in Python prepares a step of a parameter from, for as long as there is this
        plan; None for other rules."""
        program, name = self._places[i]
        if not program.rule.prepares:
            return None
        g, p = plan.arrays(i)[1:3]
        state = {key: self._state[name][key] for key in program.rule_keys(p)}
        return program, name, program.rule.in_place, g, p, state

    def _clipped_step(self, plan: Plan, workers: int, count: int, climbing: bool) -> None:
        """The rest of a step that uses norms."""
        clipping, history = self._clipping, self.clip_history
        norms: Norms | None = None
        fresh: dict[str, list[float]] = {}
        asked = clipping.sweeps or self._nonfinite != "propagate" or self._peers is not None
        scaled = self._unscale != 1.0  # what a commit measures on the way is remembered as it is
        if asked or clipping.first_step(history) or (scaled and clipping.following):
            norms = clipping.measure(plan, workers, self._peers, self._measured_ahead is plan)
            if scaled:
                norms = norms.times(self._unscale)
            self.last_norm, self._last_norms = norms.total, norms.each
            reason = self._nonfinite_gradient(norms) if self._nonfinite != "propagate" else ""
            if clipping.watching and not reason:
                reason = clipping.spike(norms, history, count)
            if clipping.memories:
                fresh = clipping.remembered(norms, history, skipped=reason != "")
            if reason:
                self._ready()
                history.update(fresh)
                self.skipped += 1
                self.last_skip = reason
                return
        factors = clipping.factors(norms, history, count)
        if scaled:
            factors = self._unscaled(factors)
        if climbing:
            factors = self._climbing(1.0 if factors is None else factors)
        if factors is not None:
            plan.rescale(factors)
        plan.factors(workers)
        if self._preparing:
            self._prepare(plan)
        self._ready()
        for domain in clipping.memories:  # so that the commit only replaces
            history.setdefault(domain.key, [])
        if norms is not None or not clipping.following:
            plan.commit(workers, history, fresh, keeping=self._keeping)
            return
        measured = plan.commit(workers, history, fresh, clipping.following, self._keeping)
        if measured is not None:
            self.last_norm, self._last_norms = measured

    # Clipping

    def _nonfinite_gradient(self, norms: Norms) -> str:
        """Why the step is to be skipped; FloatingPointError if so asked; empty for finite norms."""
        if math.isfinite(norms.total):
            return ""
        each = zip(self._names, norms.each, strict=True)
        bad = next((f" of parameter {name!r}" for name, x in each if not math.isfinite(x)), None)
        reason = f"gradient{bad or ' of another process'} has an infinite or NaN element"
        if self._nonfinite == "skip":
            return reason
        raise FloatingPointError(
            f'{reason}; nothing was changed (nonfinite="skip" skips such steps)'
        )

    def _unscaled(self, factors: float | list[float] | None) -> float | list[float]:
        """The factors of gradients as they are, from those of gradients as they are meant."""
        if isinstance(factors, list):
            return [self._unscale * x for x in factors]
        return self._unscale * (1.0 if factors is None else factors)

    def _climbing(self, factors: float | list[float]) -> list[float]:
        """The factors with the signs of the groups that maximize."""
        if isinstance(factors, float):
            factors = [factors] * len(self._names)
        signs = [
            program.sign
            for program, group in zip(self._groups, self.param_groups, strict=True)
            for _ in group["params"]
        ]
        return [sign * x for sign, x in zip(signs, factors, strict=True)]

    @property
    def zero_grad(self) -> NoReturn:
        """Not here: gradients are arguments, and not kept."""
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute 'zero_grad': "
            f"{self._torch_is_beside()}"
        )

    def _torch_is_beside(self) -> str:
        """What helps who has taken this for an optimizer of PyTorch's."""
        theirs = f".{type(self).__name__}" if self.rule in RULES else ""
        return (
            "gradients are given as step(grads), in the structure of the parameters; for a PyTorch "
            f"model take steepest.torch{theirs}, which reads p.grad"
        )

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self.param_groups):
            rule = self._rule_of(group)
            shown = ", ".join(f"{name}={group[name]!r}" for name in rule.hyper_names)
            if rule.rule != self.rule:
                shown = f"rule={rule.rule!r}, {shown}"
            lines.append(f"  group {i}: {len(group['params'])} parameters, {shown}")
        return "\n".join([*lines, ")"])


def given(state: Mapping[str, Array], copies: bool) -> dict[str, Array]:
    """The state as a rule in Python gets it: copies, or views that cannot be written."""
    if copies:
        return {key: x.copy() for key, x in state.items()}
    views = {key: x.view() for key, x in state.items()}
    for view in views.values():
        view.flags.writeable = False
    return views
