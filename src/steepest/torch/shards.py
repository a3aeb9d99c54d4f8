"""Several processes: what each has of the parameters, and what they agree upon at a step.

Under DistributedDataParallel every process has all gradients, so there is nothing to agree upon.
Tensors that are sharded (FSDP2's are DTensors) and those that ZeroRedundancyOptimizer deals out are
stepped by processes that see a part of the gradients each. They form a ``Company``: norms are put
together from those of all, and no process changes anything before all are ready to.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from steepest.core import internal
from steepest.core.group_program import GroupProgram
from steepest.core.norms import Clipping, clips
from steepest.extras import require
from steepest.memory.arrays import Array
from steepest.mpi import RankError
from steepest.options import filters

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["Company", "check_given", "check_gradient", "dealer", "found", "part"]

Groups = Sequence[dict[str, Any]]


def found(groups: Groups, zero: Any) -> "Company | None":
    """Those who step other parts of the parameters of torch's groups; None where there are none.

    `zero` is the ZeroRedundancyOptimizer whose part they are. Raises TypeError for a DTensor that
    is a sum not yet made.
    """
    for group in groups:
        for p in group["params"]:
            if _cuts(p):
                return _Mesh(p.device_mesh)
            if _flat(p):
                return _Flat([], "cpu")
    if zero is not None and zero.world_size > 1:
        return _Dealt(zero)
    return None


def dealer() -> Any:
    """The ZeroRedundancyOptimizer that makes an optimizer just now, which does not tell it so."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame: Any = sys._getframe(1) if module else None
    while frame is not None:
        own = (
            frame.f_locals.get("self") if frame.f_code.co_name == "_init_local_optimizer" else None
        )
        if isinstance(own, module.ZeroRedundancyOptimizer):  # type: ignore[union-attr]
            return own
        frame = frame.f_back
    return None


def check_given(options: Mapping[str, Any]) -> None:
    """Raises ValueError for what makes groups that a ZeroRedundancyOptimizer does not have, and for
    copies, which it does not deal out."""
    if options.get("copies") is not None:
        raise ValueError(
            "copies with ZeroRedundancyOptimizer, of which each process has other parameters: "
            "write them from the parameters after the step"
        )
    for key in ("exclude", "overrides"):
        if options.get(key):
            raise ValueError(
                f"{key} = {options[key]!r} makes groups, which ZeroRedundancyOptimizer does not "
                "follow: give it the groups themselves"
            )


def check_gradient(g: Any, p: Any, what: str) -> None:
    """Raises TypeError for a gradient that lies on its mesh in another way than the parameter."""
    if getattr(g, "placements", None) != getattr(p, "placements", None):
        raise TypeError(
            f"{what} has placements {getattr(g, 'placements', None)}; "
            f"expected those of the parameter, {getattr(p, 'placements', None)}: "
            "use .redistribute()"
        )


def part(p: Any) -> tuple[int, int] | None:
    """How many elements a sharded parameter has on all processes, and how many neighbours stay
    together in each shard: its rows along dimension 0, or single ones. None for one that is not."""
    placements = getattr(p, "placements", None)
    if placements is None or all(x.is_replicate() for x in placements):
        return None
    rows = all(x.is_replicate() or x.is_shard(0) for x in placements) and not p.is_complex()
    return p.numel(), p.shape[1:].numel() if rows else 1


def _cuts(p: Any) -> tuple[int, ...]:
    """The dimensions of the mesh along which a tensor is cut; empty for one that is whole."""
    placements = getattr(p, "placements", None)
    if placements is None:
        return ()
    if any(x.is_partial() for x in placements):
        raise TypeError(f"a parameter has placements {placements}: a sum that has yet to be made")
    return tuple(
        i for i, x in enumerate(placements) if not x.is_replicate() and p.device_mesh.size(i) > 1
    )


def _flat(p: Any) -> bool:
    """Whether a tensor is, or is a part of, a flat parameter of FullyShardedDataParallel."""
    return bool(getattr(p, "_fsdp_flattened", False))


class Company:
    """The processes that step together. Everything is collective but the attributes."""

    size: int

    def __init__(self, groups: Sequence[Any], device: str) -> None:
        self._groups = groups
        """The process groups, one for each dimension of a mesh."""
        self._device = device
        self._inner: Any = None
        self._torch_groups: Groups = ()
        self._committing = False

    # What the torch optimizer calls

    def check(self, inner: Any, groups: Groups) -> None:
        """Raises ValueError for a rule or option that is wrong on parts."""
        raise NotImplementedError

    def rest(self) -> None:
        """The part in a step, once joined, of a process that has no parameters at all."""
        self.ready()

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """What is done inside raises on all processes where it does on one, unless all were ready:
        what fails later, as for lack of memory, cannot be taken back elsewhere."""
        self._committing = False
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            if not self._committing:
                self._agree(error)
            raise
        finally:
            if self._inner is not None:
                internal.set_peers(self._inner, None)
            self._inner, self._torch_groups = None, ()

    def joins(self, inner: Any, groups: Groups) -> None:
        """Lets an optimizer use the norms of all until the step's end."""
        self._inner, self._torch_groups = inner, groups
        internal.set_peers(inner, self)

    # What the optimizer inside calls

    def norms(self, own: Array) -> Array:
        """The norms that each process has measured, a row each."""
        raise NotImplementedError

    def ready(self) -> None:
        """Returns once all processes are ready to change what they step."""
        if self._inner is not None:
            self.check(self._inner, self._torch_groups)
        self._agree(None)
        self._committing = True

    # Messages

    def any(self, bad: bool) -> bool:
        """Whether it is so for one of the processes, which all ask."""
        with _answers():
            found = torch.tensor([bad], dtype=torch.int32, device=self._device)
            for group in self._groups:
                torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=group)
            return bool(found.item())

    def _agree(self, error: Exception | None) -> None:
        """Returns where no process has an error; else raises RankError on those that have none."""
        if not self.any(error is not None):
            return
        with _answers():
            rank = torch.distributed.get_rank()
            told = None if error is None else f"rank {rank}: {type(error).__name__}: {error}"
            for group in self._groups:
                every = [None] * torch.distributed.get_world_size(group)
                torch.distributed.all_gather_object(every, told, group=group)
                told = next((x for x in every if x is not None), None)
        if error is None:
            raise RankError(f"a process failed, so none goes on; {told}")

    def _gathered(self, own: Array, groups: Sequence[Any]) -> Array:
        """The numbers of all, a row each."""
        with _answers():
            rows = torch.tensor(own, dtype=torch.float64, device=self._device).reshape(1, -1)
            for group in groups:
                parts = [
                    torch.empty_like(rows) for _ in range(torch.distributed.get_world_size(group))
                ]
                torch.distributed.all_gather(parts, rows, group=group)
                rows = torch.cat(parts)
            found: Array = rows.cpu().numpy()
        return found


@contextlib.contextmanager
def _answers() -> Iterator[None]:
    """Raises RankError where a message does not come through."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            "a process has ended, or did not come to this step in time; nothing was changed here. "
            f"torch.distributed says: {error}"
        ) from error


class _Mesh(Company):
    """The processes of a mesh, which have shards of the same parameters."""

    def __init__(self, mesh: Any) -> None:
        dims = [i for i in range(mesh.ndim) if mesh.size(i) > 1]
        super().__init__([mesh.get_group(i) for i in dims], mesh.device_type)
        self._mesh = mesh

    def check(self, inner: Any, groups: Groups) -> None:
        _check_parts(inner, groups, _cuts, scales=True)

    def norms(self, own: Array) -> Array:
        self._agree_on_kind()
        cut = next(filter(None, map(_cuts, self._params())))
        return self._gathered(own, [self._mesh.get_group(i) for i in cut])

    def _agree_on_kind(self) -> None:
        """Raises ValueError unless all parameters are cut alike; RankError where one fails."""
        kinds = {(getattr(p, "device_mesh", None), _cuts(p)) for p in self._params()}
        if len(kinds) > 1:
            raise ValueError(
                "some parameters are cut in other ways than others, or not at all, so norms of "
                "several gradients cannot be put together: make an optimizer for each kind, or "
                "do without clip= and nonfinite="
            )
        self._agree(None)

    def _params(self) -> list[Any]:
        return [p for group in self._torch_groups for p in group["params"]]


class _Flat(Company):
    """A process of FullyShardedDataParallel (FSDP1), which does not tell a tensor whose part it is.

    So this one goes alone; what it may do is right on parts.
    """

    def check(self, inner: Any, groups: Groups) -> None:
        _check_parts(inner, groups, _flat)

    def norms(self, own: Array) -> Array:
        raise ValueError(
            "FullyShardedDataParallel does not say what its flat parameters are parts of, so norms "
            "for clip= and nonfinite= cannot be put together: shard with fully_shard (FSDP2), or "
            "clip with the model's clip_grad_norm_"
        )


class _Dealt(Company):
    """The processes of a ZeroRedundancyOptimizer, which have whole parameters, each its own."""

    def __init__(self, zero: Any) -> None:
        super().__init__([zero.process_group], zero._default_device.type)

    def check(self, inner: Any, groups: Groups) -> None:
        for program in internal.group_programs(inner):
            if program.rule.needs == "global":
                raise ValueError(_sums(program))
        clip = groups[0]["clip"]
        for one in clips(clip):
            if one.order is not None and one.parts == "group":
                raise ValueError(_of_groups(one))
        for group in groups:
            if group["clip"] != clip:
                raise ValueError(_of_groups(group["clip"]))

    def rest(self) -> None:
        groups = self._torch_groups
        clipping = Clipping([(group["clip"], 0, i) for i, group in enumerate(groups)])
        if clipping.domains or self._inner.nonfinite != "propagate":
            together = [domain for domain in clipping.domains if domain.clip.parts == "all"]
            self._shared(np.zeros(1 + len(together)))
        self.ready()

    def norms(self, own: Array) -> Array:
        """Only norms of all gradients together are put together: others are this process's own."""
        clipping = internal.clipping_of(self._inner)
        first = 1 + clipping.count
        at = [0]
        for domain in clipping.domains:
            if domain.clip.parts == "all":
                at.append(first)
                first += 1
            else:
                first += len(domain.parts)
        shared = self._shared(own[at])
        rows = np.zeros((len(shared), own.size))
        rows[0] = own
        rows[:, at] = shared
        return rows

    def _shared(self, own: Array) -> Array:
        self._agree(None)
        return self._gathered(own, self._groups)


def _check_parts(
    inner: Any, groups: Groups, cut: Callable[[Any], Any], scales: bool = False
) -> None:
    """Raises ValueError where what is cut would have to be whole; `scales` are allowed where the
    whole that it is cut from is known."""
    full = [group["params"] for group in groups if group["params"]]
    programs = internal.group_programs(inner)
    for params, own, program in zip(full, inner.param_groups, programs, strict=True):
        if program.rule.needs == "global":
            raise ValueError(_sums(program))
        names = [name for name, p in zip(own["param_names"], params, strict=True) if cut(p)]
        what = _whole(program, scales) if names else ""
        if what:
            raise ValueError(
                f"parameter {names[0]!r} is sharded, and {what} needs whole arrays, of which no "
                "process has one: take an element-wise rule and options, leave the parameter whole "
                "(ignored_params= of fully_shard), or use DistributedDataParallel with "
                "ZeroRedundancyOptimizer, which deals out whole parameters"
            )


def _whole(program: GroupProgram, scales: bool) -> str:
    """What of a group needs whole arrays. Norms do not: they are put together."""
    h = program.h
    rule = program.rule
    if rule.needs != "element-wise" or rule.prepares:
        name: str = rule.cls.__name__
        return name
    if program.units:
        return f"one of clip={h['clip']!r}, filter={h['filter']!r}, regularize={h['regularize']!r}"
    if program.scales and not scales:
        return f"state_dtype={h['state_dtype']!r}"
    if program.sums_arrays:
        return f"filter={h['filter']!r}"
    if h["cautious"]:
        return "cautious=True"
    masks = filters.masks(h["filter"])
    return "filter.mask with masks" if masks is not None and masks.masks is not None else ""


def _sums(program: GroupProgram) -> str:
    return (
        f"{program.rule.cls.__name__} needs sums over all parameters, of which no process has "
        "all: take another rule, or DistributedDataParallel alone, where each has all state"
    )


def _of_groups(clip: Any) -> str:
    return (
        f"clip={clip!r} is for some parameters, of which ZeroRedundancyOptimizer gives a process "
        "some only: give all groups the same clip, of each gradient or of all together, or do "
        "without ZeroRedundancyOptimizer"
    )
