"""What a group of parameters asks for at a step: numbers, operations, states."""

import contextlib
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import numpy as np

from steepest import codecs, subnormals
from steepest.core.asked import Asked
from steepest.core.hyper_parameters import variable
from steepest.core.norms import clips
from steepest.core.operands import Operands, PlacedOperation, operands
from steepest.core.state_formats import StateFormats
from steepest.fields import scalar
from steepest.kernels.engine import UNIT_OPERATION_LIMIT
from steepest.kernels.sources import ANYTHING, has_only, has_these
from steepest.memory import arrays, formats
from steepest.memory.arrays import Array
from steepest.options import average, decay, filters, regularize
from steepest.options.operations import UnitOperation

__all__ = ["GroupProgram", "states_of_operations"]


_OPERATIONS = frozenset({"clip", "filter", "regularize", "lookahead", "average"})
"""Options that are values with numbers of their own."""


_PARAMETERS = ("params", "param_names")
"""What the plan looks at."""


def states_of_operations(h: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the arrays that operations need, besides the rule's states."""
    return regularize.arrays(h) + filters.arrays(h["filter"])


class GroupProgram:
    """What the engine is told to do for a group's parameters: which states there are, and at each
    step which kernels, with which numbers.

    What comes of a hyper-parameter is computed again only when that was written to, or is a
    schedule.
    """

    h: dict[str, Any]
    """The hyper-parameters at this step, and what follows from them."""
    decay_factor: float
    """What decoupled decay leaves of a parameter before the rule."""
    by_elements: Operands
    by_rows: Operands
    units: list[UnitOperation]
    sign: float
    _averages: bool
    """Whether the group has operations that depend on a parameter's own count of steps."""
    _projects: bool
    """Whether a parameter is whole only after the operations on units."""

    def __init__(self, rule: Any, group: Mapping[str, Any], count: int) -> None:
        self.rule = rule
        """The rule that the group uses."""
        self._own_decay: bool = rule.own_decay
        self._prepares: bool = rule.prepares
        self._coefficients = rule.at_steps()
        self.together = rule.needs == "global"
        """Whether all groups of this rule use the same sums and numbers."""
        self.in_c_order = False
        """Whether arrays are walked in C order, which sums over them depend on."""
        self.shared: tuple[str, ...] = ()
        """The numbers that the rule keeps of the group."""
        self._kept: tuple[float, ...] = ()
        self._seen: tuple[Any, ...] = ()
        """The hyper-parameters as the group has them, that these numbers are of."""
        self._keys: tuple[str, ...] = ()
        self._items: tuple[Any, ...] = ()
        """All that the group has, where it need not be looked at as long as that is the same."""
        self._given: dict[str, Any] = {}
        """The same by name."""
        self._asked: Collection[str] = ()
        """Those that the rule's states depend on."""
        self._read_by_operations: frozenset[str] = frozenset()
        """Those that the numbers of operations depend on."""
        self._moving: list[tuple[str, Any]] = []
        """Those that are schedules."""
        self._moved: frozenset[str] = frozenset()
        """The names of these."""
        self._moved_matters = self._moved_decay = False
        """Whether operations depend on one of these; whether decay does."""
        self._ranges: dict[str, tuple[float, float]] = {}
        """Where a number needs no further check, by name."""
        self._lengths: dict[str, int] = {}
        """How many numbers there are, where there are several."""
        self._varying: list[int] = []
        """The places of those that may have another value at the next step."""
        self._timed = False
        """Whether a clip, filter or penalty has a schedule."""
        self._whole = False
        """Whether one may be changed in place, so that all are taken over at every step."""
        self.states: tuple[str, ...] = ()
        """The state arrays: those of the rule, then those of operations; see ``keys``."""
        self._fixed = (*rule.fixed, "state_dtype", "master", "rounding_seed")
        """The hyper-parameters that cannot change."""
        self._shaping: tuple[Any, ...] | None = None
        """Their values, once there are some."""
        self.operation_states: tuple[str, ...] = ()
        """Those of operations."""
        self._formats = StateFormats(None, ())
        """How states are stored."""
        self._parts: dict[int, tuple[Array, int, int]] = {}
        """Parameters that are parts of larger ones, by id: with what ``set_part`` was told."""
        self.master: codecs.Master | None = None
        """What is kept beside parameters of 16 bits."""
        self.axes: tuple[int | None, ...] = ()
        """The axis of the units of each unit operation."""
        self.makes: tuple[str, ...] = ()
        """The arrays that the first unit operations make, of a number for each unit."""
        self.clip: Any = None
        self.masks: filters.mask | None = None
        """The filter that has masked last, whose masks are in the state."""
        self.other_masks = False
        """Unless it has taken the place of another since the plan was built."""
        self.blocks: str | None = None
        """What shape the states of rows have, where a rule lets that be chosen."""
        self.rounding = "nearest"
        """How parameters of 16 bits are rounded."""
        self.stale = True
        """Whether the group has changed since the plan was built."""
        self.update(group, count)

    @classmethod
    def loaded(cls, rule: Any, group: Mapping[str, Any], count: int) -> Self:
        """What a group asks for that was saved after `count` updates.

        Where a schedule is out of range there, it is what the group asked for one update earlier,
        or at first: the next step says so, and whoever has loaded the group may change it.
        """
        try:
            return cls(rule, group, count)
        except Exception as error:
            for earlier in (count - 1, 0):
                with contextlib.suppress(Exception):
                    return cls(rule, group, max(earlier, 0))
            raise error

    def update(self, group: Mapping[str, Any], count: int) -> None:
        """Takes over the group's hyper-parameters after `count` updates: those that are schedules
        or were written to since, each checked.

        Becomes `stale` if the plan is no longer right: for other arrays, units or clips.
        """
        if has_only(group, self._keys, self._items):  # nothing was written since
            if self._moving or self._timed:
                items, self._items = self._items, ()  # as below
                self._move(count)
                self._items = items
            self.h["updates"] = count + 1
            return
        self._items = ()
        rule = self.rule
        if "rule" in group and group["rule"] != rule.rule:
            raise ValueError(
                f"rule = {group['rule']!r}: the group was made for {rule.rule!r}; "
                "a group's rule cannot change"
            )
        if self.shared:
            self._kept = tuple(self.number(key, group.get(key)) for key in self.shared)
        before = self._seen
        if has_these(group, rule.hyper_names, before):
            seen, same = before, True
        else:
            seen = rule.hyper_values(group)
            try:
                same = seen == before
            except ValueError:  # an array, which does not say whether it equals a number
                same = False
        self._seen = ()  # whatever ends this early, the next step looks again
        for i in self._varying if same else ():
            if seen[i] is not before[i]:  # equal now, and perhaps not later
                same = False
        if self._whole or not (same or self._takes(before, seen, count)):
            self._rebuild(seen, count)
        elif self._moving or self._timed:
            self._move(count)
        self.h["updates"] = count + 1
        self._seen = seen
        if not self._whole and not self.shared:  # whose numbers the step writes
            self._keys = tuple(group)
            self._items = tuple([ANYTHING if x in _PARAMETERS else group[x] for x in self._keys])

    def _rebuild(self, seen: tuple[Any, ...], count: int) -> None:
        """Takes over everything: numbers and structure."""
        rule, names = self.rule, self.rule.hyper_names
        h = {name: rule.checked(name, x, count) for name, x in zip(names, seen, strict=True)}
        given = dict(zip(names, seen, strict=True))
        asked = Asked(given)
        structure = self._structure(asked)
        self._check_fixed(h)
        if not self._formats.chosen and h["state_dtype"] is not None:
            self._formats = StateFormats(h["state_dtype"], rule.points)
        self.master = codecs.MASTERS.get(h["master"])
        if self.master is not None and h["rounding"] != "nearest":
            raise ValueError(
                f"rounding = {h['rounding']!r} with master = {h['master']!r}: the parameter is the "
                'number nearest to the master; leave it at "nearest"'
            )
        # A schedule may be 0 now and not later: what it needs is kept all along.
        h["states"], h["beside"], shared = structure
        h["updates"] = count + 1
        h["terms"] = regularize.terms(h["regularize"], count)
        h["masked"] = filters.masks(h["filter"]) is not None
        self._given, self.shared, self._asked = given, shared, asked.keys_read
        self._set_operations(h, count)
        if self._formats.chosen:
            self._check_formats(h)
        self.h = h
        self.sign = -1.0 if h["maximize"] else 1.0
        self._varying = [i for i, x in enumerate(seen) if variable(x)]
        moving = [(names[i], seen[i]) for i in self._varying]
        self._timed = any(name in _OPERATIONS for name, _ in moving)
        moving = [(name, x) for name, x in moving if name not in _OPERATIONS]
        self._whole = not all(callable(x) or type(x) is tuple for _, x in moving)
        self._moving, self._moved = moving, frozenset(name for name, _ in moving)
        self._note_moved()
        self._ranges = {name: rule.bounds(name) for name in names}
        self._lengths = {name: len(x) for name, x in h.items() if type(x) is tuple}

    def _note_moved(self) -> None:
        """Notes whether operations, or decay, depend on what is scheduled."""
        self._moved_matters = self._timed or not self._read_by_operations.isdisjoint(self._moved)
        self._moved_decay = not decay.NUMBERS.isdisjoint(self._moved)

    def _structure(self, given: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
        """The states of the rule, and the numbers that it keeps of the group. Raises ValueError for
        hyper-parameters that do not go together."""
        rule = self.rule
        if rule.checks_together:
            rule.check(given)
        if not rule.may_be_moved:
            decay.check_movable(rule.rule, given)
        if not rule.additive:
            decay.check_additive(rule.rule, given)
        decay.check_cautious(rule.rule, given, rule.additive)
        if rule.own_decay:
            decay.check_own(rule.rule, given)
        return rule.states(given), rule.beside(given), rule.shared(given)

    def _takes(self, before: tuple[Any, ...], seen: tuple[Any, ...], count: int) -> bool:
        """Takes over numbers that were written in the place of numbers; False, and nothing, where
        more has changed than those."""
        if not before:
            return False
        changed: dict[str, Any] = {}
        for name, old, x in zip(self.rule.hyper_names, before, seen, strict=True):
            if x is not old:
                if not (_is_number(x) and _is_number(old)):
                    return False
                changed[name] = x
        if not changed.keys().isdisjoint(self._fixed):
            return False
        checked = {name: self._checked_number(name, x, count) for name, x in changed.items()}
        if not changed.keys().isdisjoint(self._asked):
            asked = Asked(self._given | changed)
            if self._structure(asked) != (self.h["states"], self.h["beside"], self.shared):
                return False
            self._asked = asked.keys_read
        self.h.update(checked)
        self._given.update(changed)
        self._follow(changed, count)
        return True

    def _checked_number(self, name: str, x: Any, count: int) -> Any:
        """A number or several, checked."""
        low, high = self._ranges[name]
        length = self._lengths.get(name)
        if length is None:
            several: tuple[Any, ...] = (x,)
        else:
            several = x if type(x) is tuple and len(x) == length else (None,)
        for one in several:
            if type(one) is not float or not low <= one < high:
                if callable(one):
                    raise TypeError(f"{name} = {one!r}: expected a number from a schedule")
                return self.rule.checked(name, x, count)
        return x

    def _move(self, count: int) -> None:
        """Evaluates the hyper-parameters that are schedules."""
        h = self.h
        for name, value in self._moving:
            low, high = self._ranges[name]
            if low == math.inf:  # the rule may call it itself
                h[name] = self.rule.checked(name, value, count)
                continue
            if type(value) is tuple:
                x: Any = tuple([part(count) if callable(part) else part for part in value])
            else:
                x = value(count)
            h[name] = (
                x if type(x) is float and low <= x < high else self._checked_number(name, x, count)
            )
        if self._moved_matters:
            self._follow(self._moved, count)
        elif self._moved_decay:
            self._decay(h)

    def _follow(self, changed: Collection[str], count: int) -> None:
        """Takes over what depends on numbers that may have changed."""
        if self._timed:
            self.h["terms"] = regularize.terms(self.h["regularize"], count)
        if self._timed or not self._read_by_operations.isdisjoint(changed):
            self._set_operations(self.h, count)
        elif not decay.NUMBERS.isdisjoint(changed):
            self._decay(self.h)

    def _decay(self, h: dict[str, Any]) -> None:
        """Takes over what decoupled decay comes to."""
        decoupled = h["terms"].get("decoupled", 0.0)
        if self._own_decay:
            self.decay_factor, h["decay"] = 1.0, decay.weight_in_rule(h, decoupled)
        else:
            self.decay_factor = decay.factor(h, decoupled)

    def _check_fixed(self, h: Mapping[str, Any]) -> None:
        """Raises ValueError where a hyper-parameter that gives states their shapes has changed."""
        shaping = tuple(h[key] for key in self._fixed)
        if self._shaping is None:
            self._shaping = shaping
        for key, now, before in zip(self._fixed, shaping, self._shaping, strict=True):
            if now != before:
                raise ValueError(
                    f"{key} = {now!r}: the group's states were made for {before!r}, which cannot "
                    "change; make a new optimizer, or add the parameters as a group with the other"
                )

    def _check_formats(self, h: Mapping[str, Any]) -> None:
        """Raises ValueError for formats of states that have none, or are not there."""
        if self.rule.prepares:
            raise ValueError(
                f"state_dtype = {h['state_dtype']!r}: the states of {self.rule.rule} are matrices "
                "in float32 or float64; leave it at None"
            )
        has = (*h["states"], *h["beside"], *self.operation_states)
        for key, name in self._formats.named.items():
            if name in formats.SCALED and (key in self.rule.points or key in self.operation_states):
                raise ValueError(
                    f"state_dtype = {name!r} for {key!r}: too coarse for what the parameter is "
                    'made from; choose another, such as "bfloat16"'
                )
            if key not in has:
                raise ValueError(
                    f"state_dtype names {key!r}; the states of {self.rule.rule} that have their "
                    f"parameter's shape are {', '.join(dict.fromkeys(has)) or 'none'}"
                )

    def computing_type(self, p: Array) -> np.dtype[Any]:
        """The type in which blocks of the parameter p are computed."""
        return self._formats.blocks(p)

    def state_type(self, key: str, p: Array) -> np.dtype[Any]:
        """The dtype of a state array of the parameter p."""
        if self.master is not None and key in self.master_keys(p):
            return self.master.state_type(p.dtype)
        known = self.scaled(self._state_of(key) or key, p)
        if known is not None:
            return known.dtype
        matrices = self.rule.matrices(p, self.h)
        if matrices is not None and key in matrices.states:
            return self.computing_type(p)
        return self._formats.of(key, p, self.of_rule(key))

    def keys(self, p: Array) -> tuple[str, ...]:
        """The state arrays of the parameter p: those of the rule, then those of operations."""
        return (*self.rule_keys(p), *self.operation_states, *self.keys_beside(p))

    def keys_beside(self, p: Array) -> tuple[str, ...]:
        """The state arrays that codecs store beside the parameter p and its states."""
        return (*self.master_keys(p), *self.scale_keys(p))

    def master_keys(self, p: Array) -> tuple[str, ...]:
        """The state arrays of the master of the parameter p."""
        return () if self.master is None or not self.master.of(p.dtype) else (self.master.key,)

    def scale_keys(self, p: Array) -> tuple[str, ...]:
        """The scales of the states of the parameter p."""
        if not self._formats.scales:
            return ()
        return tuple(self.scale_key(key) for key in self.rule_keys(p) if self.scaled(key, p))

    def scale_key(self, key: str) -> str:
        return key + (formats.ROOT_SCALE if key in self.rule.squares else formats.SCALE)

    def _state_of(self, key: str) -> str | None:
        """The state whose scales an array is; None for any other array."""
        for end in (formats.ROOT_SCALE, formats.SCALE) if self._formats.scales else ():
            state = key.removesuffix(end)
            of_rule = state in self.h["states"] or state in self.h["beside"]
            if state != key and of_rule and self.scale_key(state) == key:
                return state
        return None

    @property
    def scales(self) -> bool:
        """Whether states are asked for whose elements share scales."""
        return self._formats.scales

    def set_part(self, p: Array, size: int, run: int) -> None:
        """Says that the parameter p, this very array, is a part of one of `size` elements, made of
        runs of `run` neighbours in C order.

        So all parts store their states alike: with scales if the whole has enough elements and
        groups do not reach beyond a run.
        """
        self._parts[id(p)] = p, size, run

    def scaled(self, key: str, p: Array) -> formats.Scaled | None:
        """The format of a state of the parameter p, if it is one with scales."""
        if not self._formats.scales:
            return None
        _, size, run = self._parts.get(id(p), (p, p.size, 0))
        known = self._formats.scaled(key, size, self.of_rule(key))
        if known is None or run % known.group:
            return None
        matrices = self.rule.matrices(p, self.h)
        if matrices is None:
            return known
        whole = matrices.count * matrices.rows == 1 or matrices.columns % known.group == 0
        return known if whole and key not in matrices.states else None

    def in_groups(self, key: str, p: Array, begun: Callable[[str], Array]) -> Array | None:
        """The codes or scales of a state of the parameter p as it has `begun`; None for an array
        that is neither."""
        state = self._state_of(key) or key
        known = self.scaled(state, p)
        if known is None:
            return None
        first, square = begun(state), state in self.rule.squares
        if first.any():
            codes, scales = known.encode(first, square)
            return codes if key == state else scales
        codes, scales = known.encode(np.zeros(known.group, np.float32), square)
        groups = -(-first.size // known.group)
        return np.full(first.shape, codes[0]) if key == state else np.full(groups, scales[0])

    def beside(self, p: Array, state: Mapping[str, Any]) -> dict[int, tuple[str, Array | None]]:
        """The codecs of p (0) and its states (from 1) that are not their formats', with what they
        store beside them."""
        found: dict[int, tuple[str, Array | None]] = {}
        if self.master is not None and self.master.of(p.dtype):
            codec = f"{self.h['master']}_{formats.of(p).name}"
            found[0] = codec, state[self.master.key]
        if self.stochastic(p):
            found[0] = f"stochastic_{formats.of(p).name}", None
        if not self._formats.scales:
            return found
        in_matrices = self.rule.matrices(p, self.h) is not None
        first = 1 + self.rule.factors if in_matrices else 1  # behind the factors
        for k, key in enumerate((self.by_rows if in_matrices else self.by_elements).bound, first):
            known = self.scaled(key, p)
            if known is not None:
                codec = known.codec[key in self.rule.squares]
                found[k] = codec, state[self.scale_key(key)]
        return found

    def seed(self, p: Array) -> int | None:
        """The seed of what is rounded stochastically; None where nothing is."""
        return self.h["rounding_seed"] if self.scale_keys(p) or self.stochastic(p) else None

    def stochastic(self, p: Array) -> bool:
        """Whether the parameter p is rounded stochastically."""
        return self.rounding == "stochastic" and codecs.is_short(p.dtype)

    def rule_keys(self, p: Array) -> tuple[str, ...]:
        """The state arrays that the rule has of the parameter p."""
        own: tuple[str, ...] = self.rule.state_names(p, self._given)
        return own

    @property
    def sums_arrays(self) -> bool:
        """Whether there are sums over whole arrays of parameters."""
        return self._sums(self.h)

    def _sums(self, h: Mapping[str, Any]) -> bool:
        return self.rule.needs != "element-wise" or any(x.in_c_order for x in h["filter"])

    def of_rule(self, key: str) -> bool:
        """Whether a state array is the rule's, and not an operation's."""
        masters = () if self.master is None else (self.master.key,)
        if key in self.operation_states or key in masters:
            return False
        return self._state_of(key) is None

    def _set_operations(self, h: dict[str, Any], count: int) -> None:
        """Takes over the operations of filters, clips and penalties."""
        asked = Asked(h)
        work = regularize.work(asked)
        ahead = filters.in_order(h["filter"], clips(h["clip"]))
        before = [operation for x in ahead for operation in x.operations(count)]
        making = [unit for x in ahead for unit in x.units(count)]
        makes = tuple(x.makes for x in ahead if x.makes)
        units = [unit for unit, _ in making] + work.units
        if len(units) > UNIT_OPERATION_LIMIT:
            kinds = ", ".join(kind for kind, _ in units)
            raise ValueError(
                f"clip, filter and regularize use units {len(units)} times ({kinds}); "
                f"expected at most {UNIT_OPERATION_LIMIT} times"
            )
        around = states_of_operations(h)
        states = (*h["states"], *h["beside"], *around)
        axes = (*(axis for _, axis in making), *work.axes)
        masks = filters.masks(h["filter"])
        in_c_order = self._sums(h) or h["master"] is not None or self._formats.scales
        in_c_order = in_c_order or h["rounding"] == "stochastic"
        now = (states, axes, makes, h["clip"], in_c_order, h.get("blocks"), h["rounding"])
        if now != (
            self.states, self.axes, self.makes, self.clip, self.in_c_order, self.blocks,
            self.rounding,
        ):  # fmt: skip
            self.stale = True  # before anything differs, so that Ctrl-C leaves no old plan
        if filters.renewed(self.masks, masks):
            self.stale = self.other_masks = True
        elif masks is not None and masks.masks is None:
            self.other_masks = False
        rule = self.rule
        around_rule = (before + work.prologue, work.epilogue, work.late)
        self.by_elements = (
            operands(2, (), around, makes, around_rule)
            if rule.prepares
            else operands(0, h["states"], around, makes, around_rule)
        )
        self.by_rows = operands(rule.factors, h["beside"], around, makes, around_rule)
        self._decay(h)
        self._read_by_operations = asked.keys_read
        self._note_moved()
        self.operation_states, self._projects = around, bool(work.units)
        self._averages = bool(average.arrays(h))
        self.units = units
        (
            self.states, self.axes, self.makes, self.clip, self.in_c_order, self.blocks,
            self.rounding,
        ) = now  # fmt: skip
        self.masks = masks or self.masks

    def tell(self, plan: Any, row: int, count: int, t: int, domain: int, by_rows: bool) -> None:
        """Tells the plan what to do for the group's parameters at their t-th step; for those that
        the rule takes by elements, or for those that it takes by rows and columns."""
        x = self.by_rows if by_rows else self.by_elements
        self.h["by_rows"] = by_rows
        rule, h = ("take", ()) if self._prepares else self._coefficients(self.h, t)
        after, late = self._closing(x, count, t) if self._averages else (x.after, x.late)
        if t % subnormals.EVERY == 0:
            after, late = self._flushing(x, after, late, t)
        plan.program(
            row, rule, h, self.decay_factor, x.before, after, self.units, late,
            domain, self.together, self._kept, self._prepares,
        )  # fmt: skip

    def number(self, key: str, x: Any, group: int | None = None) -> float:
        """A number that the rule keeps of the group, checked."""
        low = 0.0 if key in self.rule.positive else -math.inf
        if isinstance(x, (float, int)) and not x < low:  # what came of bad gradients may be NaN
            return scalar(x)
        where = "" if group is None else f" of group {group}"
        raise ValueError(f"{key}{where} = {x!r}: expected a number from {low:g}")

    def checked(self, x: Any, p: Array, name: str, key: str) -> Array:
        """x as a state array of the parameter p. Raises TypeError or ValueError if it is not."""
        if self.whole(key, p):
            shape = (self.length(key, p),) if self._state_of(key) else p.shape
            return arrays.shaped(x, self.state_type(key, p), shape, name, key)
        if self.rule.prepares and self.of_rule(key):
            return arrays.like(x, self.rule.initial(key, p, self.h), name, key)
        matrices = self.rule.matrices(p, self.h)
        if matrices is not None and key in matrices.states:
            return arrays.shaped(x, self.computing_type(p), matrices.states[key], name, key)
        return arrays.state(x, p, name, key, self.state_type(key, p))

    def whole(self, key: str, p: Array) -> bool:
        """Whether a state array of the parameter p is in C order, however p lies."""
        return key in self.keys_beside(p) or self.scaled(key, p) is not None

    def length(self, key: str, p: Array) -> int:
        """How many elements a state array that is not made of matrices has."""
        known = self.scaled(self._state_of(key) or "", p)
        return int(p.size) if known is None else -(-p.size // known.group)

    def nbytes(self, p: Array, key: str) -> int:
        """How many bytes a state array of the parameter p has."""
        if self.rule.prepares and self.of_rule(key):
            begun: Array = self.rule.initial(key, p, self.h)
            return int(begun.nbytes)
        matrices = self.rule.matrices(p, self.h)
        if matrices is not None and key in matrices.states:
            return int(math.prod(matrices.states[key]) * self.computing_type(p).itemsize)
        return self.length(key, p) * self.state_type(key, p).itemsize

    def _closing(
        self, x: Operands, count: int, t: int
    ) -> tuple[list[PlacedOperation], list[PlacedOperation]]:
        """The operations after the rule and after those on units, at a parameter's t-th step, where
        some depend on that."""
        last = [
            (operation, numbers, x.place[own])
            for operation, numbers, own in average.operations(self.h, count, t)
        ]
        if self._projects:
            return x.after, x.late + last
        return x.after + last, x.late

    def flushed(self, t: int) -> tuple[str, ...]:
        """The rule's averages whose subnormal numbers become zero at a parameter's t-th step."""
        if t % subnormals.EVERY:
            return ()
        return subnormals.averages_flushed(self.rule.rule, self.h.get("eps"))

    def _flushing(
        self, x: Operands, after: list[PlacedOperation], late: list[PlacedOperation], t: int
    ) -> tuple[list[PlacedOperation], list[PlacedOperation]]:
        """These operations with those that make subnormal numbers zero: of the rule's averages, and
        of the parameter once it is whole."""
        states: list[PlacedOperation] = [
            ("flush", (), x.place[key]) for key in self.flushed(t) if key in x.place
        ]
        last: list[PlacedOperation] = [("flush", (), 0)]
        if self._projects:
            return after + states, late + last
        return after + states + last, late

    def check_axes(self, p: Array, name: str) -> None:
        """Raises ValueError where the rule is not for the parameter, or the parameter lacks an axis
        that a clip or penalty uses."""
        self.rule.check_parameter(p, name)
        for axis in self.axes:
            ordered = [key for key, has in (
                ("master", self.master_keys(p)), ("rounding", self.stochastic(p))
            ) if has]  # fmt: skip
            if axis not in (None, 0) and p.ndim > 1 and ordered:
                raise ValueError(
                    f"parameter {name!r}: a clip or penalty along axis {axis} with {ordered[0]} = "
                    f"{self.h[ordered[0]]!r}: expected axis 0 or None"
                )
            try:
                arrays.units(p, axis)
            except ValueError as error:
                raise ValueError(f"parameter {name!r}: {error}") from None


def _is_number(value: Any) -> bool:
    """Whether a hyper-parameter is a number, or a tuple of numbers, that cannot change in place."""
    if type(value) is tuple:
        return all(type(x) in (float, int) for x in value)
    return type(value) in (float, int) or isinstance(value, (np.floating, np.integer))
