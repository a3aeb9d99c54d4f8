"""An optimizer whose state is sharded over the ranks of a process group."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from steepest.core import digests, given_tensors, internal, trees
from steepest.core.group_program import GroupProgram
from steepest.core.state import counter
from steepest.core.state_formats import bits_of
from steepest.fields import Call
from steepest.memory import arrays, formats
from steepest.memory.arrays import Array
from steepest.mpi.checks import (
    check_copies,
    check_masks,
    check_rules,
    checked,
    needs_whole,
    settings_of,
)
from steepest.mpi.exchange import BUCKET, Exchange, check_bucket
from steepest.mpi.layout import Piece, empty, layout
from steepest.mpi.process_group import ProcessGroup
from steepest.mpi.unsharded import UnshardedGroup, UnshardedOptimizer
from steepest.optimizers import Optimizer

__all__ = ["Sharded"]


class Sharded:
    """Any optimizer, with its state spread over the ranks of an MPI communicator.

        g ← (((g₀ + g₁) + g₂) + ...) / n      each rank gets the mean of its own part
        p, state ← the optimizer's step       each rank steps that part
        p ← the parts of all ranks            so that all have the same parameters again

    make: the optimizer's class, such as ``st.AdamW``, followed by what it is made with; a function
    that makes one will do. comm: a communicator of mpi4py, by default all processes. bucket_bytes:
    the size of each of the two message buffers. The parameters become those of rank 0.

    All ranks make it and call its methods together, in the same order, with parameters, hyper-
    parameters and groups that are the same everywhere. Element-wise rules have about 1/n of all
    state on each rank, in parts cut to a row; what needs whole arrays (layer-wise and matrix rules,
    clips, filters and penalties by units, ``filters.mars``, ``cautious=True``, states of 8 bits)
    goes whole to one rank each, balanced by bytes.

    Raises MissingExtra without mpi4py; on all ranks what the optimizer's class raises, ValueError
    for ``copies``, where ranks differ in names, shapes, types or hyper-parameters, and where there
    is more than one rank, for global rules and for masks given at construction; RankError where
    another rank fails.

    >>> import numpy as np, steepest as st
    >>> from mpi4py import MPI
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.mpi.Sharded(st.AdamW, w, lr=0.5, comm=MPI.COMM_SELF)
    >>> opt.step(np.array([0.25, -8.0]))
    >>> w.round(4)
    array([ 0.495, -1.49 ])

    Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO), stage 2.
    """

    def __init__(
        self,
        make: Callable[..., Optimizer],
        params: Any,
        *arguments: Any,
        comm: Any = None,
        bucket_bytes: int = BUCKET,
        **hyper: Any,
    ) -> None:
        self._ranks = ranks = ProcessGroup(comm)
        with ranks.together():
            check_bucket(bucket_bytes)
            self._bits = bits_of(hyper.get("dtype"))
            groups = self._flattened(params)
            check_copies(hyper, groups)

            def made(part: Callable[[int, Array], Array]) -> Optimizer:
                parts = [part(i, p) for i, p in enumerate(self._params)]
                return checked(make(self._tree(parts, groups), *arguments, **hyper))

            whole = [True] * len(self._params)
            probe = None
            if ranks.size > 1:
                check_masks((arguments, hyper, groups))
                probe = made(lambda _, p: empty(p))
                check_rules(probe)
                whole = self._whole(probe)
        ranks.check_same([f"bucket_bytes={bucket_bytes}", *self._facts(make, probe)])
        for p in self._params if ranks.size > 1 else ():
            there = np.ascontiguousarray(p)
            ranks.comm.Bcast(there.view(f"u{p.itemsize}"), root=0)
            if ranks.rank != 0:
                p[...] = there.reshape(p.shape)
        with ranks.together():
            self._pieces = layout(self._params, whole, ranks.size)
            self._cut = [len(pieces) > 1 for pieces in self._pieces]
            self._mine = [
                next((x for x in pieces if x.rank == ranks.rank), None) for pieces in self._pieces
            ]
            self.optimizer = made(self._part)
            self._shares = [arrays.zeros_like(self._part(i, p)) for i, p in enumerate(self._params)]
            self._exchange = Exchange(ranks, self._params, self._pieces, bucket_bytes)
        internal.set_peers(self.optimizer, _Peers(self))

    # What is where

    def _flattened(self, params: Any) -> list[dict[str, Any]]:
        """Takes the parameters over, and gives the groups' other keys."""
        self._grouped = trees.is_groups(params)
        groups = [dict(g) for g in params] if self._grouped else [{"params": params}]
        self._names: list[str] = []
        self._params: list[Array] = []
        self._sizes: list[int] = []
        shapes: list[trees.Shape] = []
        every_leaf: list[Any] = []
        for group in groups:
            shape, names, leaves = trees.flatten(group.pop("params"), len(self._names))
            names = trees.own_names(group, names)
            self._params += [
                arrays.parameter(x, name, self._bits) for x, name in zip(leaves, names, strict=True)
            ]
            self._names += names
            every_leaf += leaves
            self._sizes.append(len(names))
            shapes.append(shape)
        self._given_tensors = given_tensors.given(None, self._names, every_leaf, self._params)
        every = zip(self._names, self._params, strict=True)
        arrays.disjoint_bounds([(f"parameter {name!r}", p) for name, p in every])
        self._shape = (
            trees.Node(False, list(range(len(shapes))), shapes) if self._grouped else shapes[0]
        )
        self._number = {name: i for i, name in enumerate(self._names)}
        for i, name in enumerate(self._names):
            if self._number[name] != i:
                raise ValueError(f"parameter name {name!r} is given twice; names must differ")
        return groups

    def _tree(self, parts: Sequence[Any], groups: Sequence[Mapping[str, Any]] | None) -> Any:
        """Something for each parameter as the optimizer takes it; with `groups`, as params."""
        every = iter(zip(self._names, parts, strict=True))
        dicts = [dict(next(every) for _ in range(n)) for n in self._sizes]
        if not self._grouped:
            return dicts[0]
        if groups is None:
            return dicts
        return [{**group, "params": own} for group, own in zip(groups, dicts, strict=True)]

    def _part(self, i: int, x: Array) -> Array:
        """What this rank has of an array of the shape of the parameter."""
        piece = self._mine[i]
        return empty(x) if piece is None else piece.of(x)

    def _whole(self, optimizer: Optimizer) -> list[bool]:
        """Which parameters must not be cut."""
        whole = [False] * len(self._names)
        programs = internal.group_programs(optimizer)
        for group, program in zip(optimizer.param_groups, programs, strict=True):
            for name in group["param_names"]:
                whole[self._number[name]] = needs_whole(program)
        return whole

    def _facts(self, make: Any, probe: Optimizer | None) -> list[str]:
        """Everything in which the ranks must not differ."""
        every = zip(self._names, self._params, strict=True)
        facts = [f"the optimizer {getattr(make, '__name__', 'of a function')}"]
        facts += [
            f"parameter {name!r}, {formats.of(p).name} of shape {p.shape}" for name, p in every
        ]
        for i, group in enumerate(probe.param_groups if probe else ()):
            facts.append(f"group {i} with {', '.join(group['param_names'])}")
        return facts if probe is None else facts + settings_of(probe)

    # The step

    def step(self, grads: Any) -> None:
        """Updates all parameters in place, with this rank's gradients: the mean over the ranks
        counts.

        A gradient that is None on all ranks leaves its parameter, state and counter alone; one
        that is None on some counts there as zeros. Raises what the optimizer's step raises;
        ValueError on all ranks where groups have come to differ; RankError where another rank
        failed. After any of these, parameters and state are as they were, on all ranks.
        """
        ranks = self._ranks
        with ranks.together():
            if self._given_tensors is not None:
                self._given_tensors.check()
            given = self._checked_gradients(grads)
            digest = zlib.crc32("\n".join(settings_of(self.optimizer)).encode())
        seen = ranks.largest(np.array([digest, -digest, *(g is not None for g in given)], np.int64))
        if seen[0] != -seen[1]:
            ranks.check_same(settings_of(self.optimizer))
        self._exchange.mean(given, self._shares)
        before = self.updates
        with ranks.stepping():
            self.optimizer.step(self._tree(self._own_gradients(seen[2:].tolist()), None))
        if self.updates > before:  # not skipped
            self._exchange.gather(self._params)

    def _checked_gradients(self, grads: Any) -> list[Array | None]:
        flat = trees.take(self._shape, grads)
        every = zip(flat, self._params, self._names, strict=True)
        return [None if g is None else _gradient(g, p, name, self._bits) for g, p, name in every]

    def _own_gradients(self, given: Sequence[int]) -> list[Array | None]:
        """Of element-wise rules every rank steps every parameter, even one without elements, so
        that counters, and the numbers that depend on them, are the same everywhere."""
        own: list[Array | None] = [None] * len(given)
        programs = internal.group_programs(self.optimizer)
        for group, program in zip(self.optimizer.param_groups, programs, strict=True):
            everywhere = program.rule.needs == "element-wise" and not program.rule.prepares
            for i in (self._number[name] for name in group["param_names"]):
                if given[i] and (everywhere or self._mine[i]):
                    own[i] = self._shares[i]
        return own

    def _check_cuts(self, programs: Sequence[GroupProgram]) -> None:
        """Raises ValueError where a group now needs whole a parameter that is cut."""
        for group, program in zip(self.optimizer.param_groups, programs, strict=True):
            bad = [name for name in group["param_names"] if self._cut[self._number[name]]]
            if bad and needs_whole(program):
                raise ValueError(
                    f"parameter {bad[0]!r} is cut between ranks, and its group now has an option "
                    "that needs it whole: make a new optimizer with that option"
                )

    # What an optimizer has

    @property
    def param_groups(self) -> list[UnshardedGroup]:
        """The groups, with the whole parameters, and with hyper-parameters to be changed in place,
        in the same way on all ranks."""
        return [UnshardedGroup(group, self._of(group)) for group in self.optimizer.param_groups]

    def _of(self, group: Mapping[str, Any]) -> list[Array]:
        return [self._params[self._number[name]] for name in group["param_names"]]

    @property
    def rule(self) -> str:
        """The optimizer's rule."""
        return self.optimizer.rule

    @property
    def updates(self) -> int:
        """The number of steps done so far."""
        return self.optimizer.updates

    @property
    def skipped(self) -> int:
        """The number of steps left out."""
        return self.optimizer.skipped

    @property
    def last_skip(self) -> str:
        """Why the last of them was."""
        return self.optimizer.last_skip

    @property
    def last_norm(self) -> float | None:
        """The norm of the mean gradients of the last step that measured it, over all ranks."""
        return self.optimizer.last_norm

    @property
    def last_norms(self) -> dict[str, float]:
        """Those of each whole gradient."""
        return self.optimizer.last_norms

    @property
    def state(self) -> dict[str, dict[str, Array]]:
        """This rank's part of the state, by name: parts of arrays, without elements where another
        rank has the parameter."""
        return self.optimizer.state

    def averaged(self) -> dict[str, Array]:
        """The averaged parameters by name, whole, on every rank. Collective."""
        with self._ranks.together():
            own = self.optimizer.averaged()
        parts = self._gathered({name: {"": x} for name, x in own.items()}, None)
        return {name: part[""] for name, part in parts.items()}

    def __repr__(self) -> str:
        return f"Sharded({self.optimizer!r}, rank {self._ranks.rank} of {self._ranks.size})"

    # State in and out

    def state_dict(self, *, gather: bool = True) -> dict[str, Any]:
        """A copy of the state, whole, on every rank: what the optimizer's own class would give.

        Collective. With gather=False, at once, only what this rank has.
        """
        if not gather:
            return self.optimizer.state_dict()
        return self._state_dict(None)

    def _state_dict(self, root: int | None) -> dict[str, Any]:
        with self._ranks.together():
            own = self.optimizer.state_dict()
        return own | {"state": self._gathered(own["state"], root)}

    def _gathered(
        self, own: Mapping[str, dict[str, Any]], root: int | None
    ) -> dict[str, dict[str, Any]]:
        """The arrays of all ranks by name and key, whole: on all ranks, or on one."""
        found = {}
        for name in own:
            i = self._number[name]
            parts = [self._sent(own[name], piece, root) for piece in self._pieces[i]]
            if root in (None, self._ranks.rank):
                found[name] = self._joined(i, parts)
        return found

    def _sent(self, own: dict[str, Any], piece: Piece, root: int | None) -> Any:
        ranks = self._ranks
        if root is None:
            return ranks.comm.bcast(own if ranks.rank == piece.rank else None, root=piece.rank)
        if piece.rank == root or ranks.rank not in (piece.rank, root):
            return own
        if ranks.rank == root:
            return ranks.comm.recv(source=piece.rank)
        ranks.comm.send(own, dest=root)
        return None

    def _joined(self, i: int, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The whole arrays from the parts of a parameter."""
        axis = self._pieces[i][0].axis
        return {
            key: np.concatenate([part[key] for part in parts], axis) if np.ndim(x) else x
            for key, x in parts[0].items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *, gather: bool = True) -> None:
        """Takes over a state as ``state_dict`` gave it, here, in the optimizer's own class or with
        another number of ranks; each rank copies its part.

        Raises on all ranks what the optimizer's raises, and nothing is changed. With gather=False,
        this rank's own part, for the same number of ranks.
        """
        self._load_parts(state_dict, [], gather)

    def _load_parts(
        self, state_dict: Mapping[str, Any], also: Sequence[Call], gather: bool = True
    ) -> None:
        """``load_state_dict``, and calls that are made in the same moment."""
        with self._ranks.stepping():
            names = [group["param_names"] for group in self.optimizer.param_groups]
            loaded = [group["param_names"] for group in state_dict["param_groups"]]
            # Where they differ, the optimizer itself refuses the state.
            if gather and state_dict["rule"] == self.rule and loaded == names:
                state_dict = {**state_dict, "state": self._parts(state_dict)}
            internal.load_with(self.optimizer, state_dict, also)

    def _parts(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """This rank's part of a whole state."""
        optimizer = self.optimizer
        found: dict[str, Any] = {}
        updates = int(counter(np.array(state_dict["updates"]), "all"))
        programs = internal.loaded_programs(optimizer, state_dict["param_groups"], updates)
        self._check_cuts(programs)
        for group, program in zip(optimizer.param_groups, programs, strict=True):
            for name, part in zip(group["param_names"], group["params"], strict=True):
                i = self._number[name]
                whole, piece = state_dict["state"][name], self._mine[i]
                if piece is None:
                    step = counter(np.array(whole["step"]), name)
                    found[name] = internal.new_state(optimizer, program, name, part) | {
                        "step": step
                    }
                else:
                    found[name] = {key: self._slice(i, key, x) for key, x in whole.items()}
        return found

    def _slice(self, i: int, key: str, x: Any) -> Any:
        piece, p, name = self._mine[i], self._params[i], self._names[i]
        if piece is None or piece.whole or np.ndim(x) == 0:
            return x
        if np.shape(x) != p.shape:
            raise ValueError(
                f"state {key!r} of parameter {name!r} has shape {np.shape(x)}; expected {p.shape}"
            )
        return piece.of(np.asarray(x))

    def digest(self) -> str:
        """SHA-256 of parameters, state and counts, as one process would have it; see
        ``Optimizer.digest``. All ranks call it together, and all get it."""
        found = ""

        def work(whole: UnshardedOptimizer) -> None:
            nonlocal found
            params = {
                name: p
                for group in whole.param_groups
                for name, p in zip(group["param_names"], group["params"], strict=True)
            }
            found = digests.digest(
                params, whole.state_dict(), internal.kept_numbers(self.optimizer)
            )

        self.as_one(work)
        return str(self._ranks.comm.bcast(found, root=0))

    # What checkpoints call

    def as_one(self, work: Callable[[Any], None]) -> None:
        """Calls work on rank 0 with what has the whole state. Raises on all ranks what it raises.

        ``st.save`` uses it: only rank 0 writes, and all go on once the file is there.
        """
        state_dict = self._state_dict(0)
        with self._ranks.together():
            if self._ranks.rank == 0:
                work(UnshardedOptimizer(self.param_groups, state_dict))

    def together(self) -> AbstractContextManager[None]:
        """A block that raises on all ranks where it raises on one."""
        return self._ranks.together()


class _Peers:
    """The other ranks, as an optimizer sees them."""

    def __init__(self, whole: Sharded) -> None:
        self._whole = whole

    def norms(self, own: Array) -> Array:
        return self._whole._ranks.norms(own)

    def ready(self) -> None:
        self._whole._check_cuts(internal.group_programs(self._whole.optimizer))
        self._whole._ranks.ready()


@internal.load_with.register
def _load_sharded(optimizer: Sharded, state_dict: Mapping[str, Any], also: Sequence[Call]) -> None:
    optimizer._load_parts(state_dict, also)


def _gradient(x: Any, p: Array, name: str, bits: str | None) -> Array:
    """x as a gradient whose numbers are also of the parameter's format, in which they are sent."""
    g = arrays.gradient(x if bits is None else arrays.of_bits(x, bits), p, name)
    if formats.alike(g.dtype, p.dtype):
        return g.view(p.dtype)
    given, own = formats.of(g), formats.of(p)
    if not formats.borrowed(p) or formats.wider([g.dtype, p.dtype]) != p.dtype:
        raise TypeError(
            f"gradient of parameter {name!r} has dtype {given.name}; expected the parameter's "
            f"{own.name}, in which gradients are sent to other ranks"
        )
    return g
