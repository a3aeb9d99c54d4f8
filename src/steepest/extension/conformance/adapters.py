"""How the checks speak with an optimizer of any library: two small protocols, and three adapters.

PyTorch and JAX are imported when an adapter for them is made.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from steepest.core.optimizer import Optimizer
from steepest.kernels import threads
from steepest.memory.arrays import Array

__all__ = ["Adapter", "Candidate", "adapted", "optax_transformation", "torch_optimizer"]

Grads = Mapping[str, Array | None]


class Candidate(Protocol):
    """One optimizer with its parameters, which have names here, whether it knows them or not."""

    object: Any
    """The library's own optimizer."""

    def step(self, grads: Grads) -> None:
        """One step; a gradient that is None is one that is missing."""

    def params(self) -> dict[str, Array]:
        """Copies of the parameters as they are now."""

    def state(self) -> dict[str, dict[str, Array]]:
        """Copies of all arrays and numbers of the state, by parameter; what belongs to none has
        the name ``""``."""

    def state_dict(self) -> Any:
        """What the library gives to be saved."""

    def load_state_dict(self, given: Any) -> None:
        """Takes over what ``state_dict`` gave."""

    def groups(self) -> list[Any]:
        """The mappings of the hyper-parameters of each group, which users write to between
        steps."""

    def add(self, params: Mapping[str, Array]) -> None:
        """Adds a group of parameters."""


class Adapter(Protocol):
    """What makes candidates."""

    @property
    def needs(self) -> str:
        """What an element's update looks at: ``"element-wise"``, ``"layer-wise"`` (its array),
        ``"global"`` (all arrays) or ``"matrix"``."""

    @property
    def lacks(self) -> Mapping[str, str]:
        """What the library has not, and why: checks that need it do not apply. The names are "add",
        "fork", "groups", "in place", "keywords", "levels", "load", "names" (of gradients),
        "negative strides", "None", "object", "pickle", "read-only", "set", "shared memory",
        "strides" and "threads"."""

    def make(
        self,
        params: Mapping[str, Array],
        groups: Sequence[Sequence[str]] | None = None,
        **arguments: Any,
    ) -> Candidate:
        """An optimizer of these arrays (which it shares where the library can), in one group or in
        several."""

    def threads(self, count: int) -> AbstractContextManager[Any]:
        """Steps inside use so many threads."""

    def array(self, leaf: Any) -> Array | None:
        """A leaf of a state dict as an array of NumPy; None for what is neither array nor
        number."""

    def leaf(self, array: Array, like: Any) -> Any:
        """The reverse, for the place of `like`."""


def adapted(factory: Any, needs: str | None = None) -> Adapter:
    """The adapter for what ``check_optimizer`` was given: an adapter, a class of ``torch.optim``,
    a transformation of optax, or anything with the interface of this library's optimizers.

    Raises TypeError for what is none of these.
    """
    if all(hasattr(factory, name) for name in ("make", "lacks", "needs")):
        adapter: Adapter = factory
        return adapter
    if isinstance(factory, type) and any(
        base.__module__ == "torch.optim.optimizer" and base.__name__ == "Optimizer"
        for base in factory.__mro__
    ):
        return torch_optimizer(factory, needs or "element-wise")
    if hasattr(factory, "init") and hasattr(factory, "update"):
        return optax_transformation(factory, needs or "element-wise")
    if not callable(factory):
        raise TypeError(
            f"factory = {factory!r}: expected an optimizer's class, a function of params that "
            "makes one, a transformation of optax, or an adapter (steepest.testing.Adapter)"
        )
    return Steepest(factory, needs)


def number(leaf: Any) -> Array | None:
    """A plain number as an array."""
    return np.array(leaf) if isinstance(leaf, int | float) and not isinstance(leaf, bool) else None


# This library, and all that has its interface


class SteepestCandidate:
    """An optimizer with ``step(grads)``, ``param_groups``, ``state`` and ``state_dict``."""

    def __init__(self, opt: Any) -> None:
        self.object = opt
        self.shape: Callable[[Grads], Any] = _as_given
        """Gradients in the structure in which the parameters were given."""

    def step(self, grads: Grads) -> None:
        self.object.step(self.shape(grads))

    def params(self) -> dict[str, Array]:
        return {
            name: p.copy()
            for group in self.object.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }

    def state(self) -> dict[str, dict[str, Array]]:
        found: dict[str, dict[str, Array]] = {
            name: {key: np.array(x) for key, x in state.items()}
            for name, state in self.object.state.items()
        }
        return found

    def state_dict(self) -> Any:
        return self.object.state_dict()

    def load_state_dict(self, given: Any) -> None:
        self.object.load_state_dict(given)

    def groups(self) -> list[Any]:
        return list(self.object.param_groups)

    def add(self, params: Mapping[str, Array]) -> None:
        self.object.add_param_group({"params": dict(params)})
        before = self.shape

        def grown(grads: Grads) -> Any:
            old = {name: g for name, g in grads.items() if name not in params}
            first = before(old)
            new = {name: grads[name] for name in params}
            return [*first, new] if isinstance(first, list) else [first, new]

        self.shape = grown


def _as_given(grads: Grads) -> Grads:
    return grads


class Steepest:
    """For this library's classes and functions that make one of params."""

    def __init__(self, factory: Callable[..., Any], needs: str | None = None) -> None:
        self.factory = factory
        of_class = isinstance(factory, type)
        self.needs = needs or str(getattr(self.probe(), "needs", "element-wise"))
        self.lacks: dict[str, str] = {}
        if not of_class:
            self.lacks["keywords"] = "the factory is a function; give the class to check arguments"

    def probe(self) -> Any:
        """An optimizer of one small matrix, to be asked what it is."""
        return self.factory({"w": np.ones((3, 2), np.float32)})

    def make(
        self,
        params: Mapping[str, Array],
        groups: Sequence[Sequence[str]] | None = None,
        **arguments: Any,
    ) -> SteepestCandidate:
        if groups is None:
            return SteepestCandidate(self.factory(params, **arguments))
        named = [{"params": {name: params[name] for name in names}} for names in groups]
        made = SteepestCandidate(self.factory(named, **arguments))
        made.shape = lambda grads: [{name: grads[name] for name in names} for names in groups]
        return made

    def threads(self, count: int) -> AbstractContextManager[Any]:
        return threads.forced(count)

    def array(self, leaf: Any) -> Array | None:
        return leaf if isinstance(leaf, np.ndarray) else number(leaf)

    def leaf(self, array: Array, like: Any) -> Any:
        return array if isinstance(like, np.ndarray) else type(like)(array)


# PyTorch


class TorchCandidate:
    """An optimizer of ``torch.optim``'s interface, over tensors that share the arrays' memory."""

    def __init__(self, torch: Any, opt: Any, names: Mapping[str, Any]) -> None:
        self.torch, self.object, self.tensors = torch, opt, dict(names)

    def step(self, grads: Grads) -> None:
        for name, p in self.tensors.items():
            g = grads[name]
            p.grad = None if g is None else self.torch.from_numpy(g)
        self.object.step()

    def params(self) -> dict[str, Array]:
        return {name: p.detach().numpy().copy() for name, p in self.tensors.items()}

    def state(self) -> dict[str, dict[str, Array]]:
        return {
            name: {
                key: x.detach().numpy().copy() if self.torch.is_tensor(x) else np.array(x)
                for key, x in self.object.state.get(p, {}).items()
                if self.torch.is_tensor(x) or number(x) is not None
            }
            for name, p in self.tensors.items()
        }

    def state_dict(self) -> Any:
        return self.object.state_dict()

    def load_state_dict(self, given: Any) -> None:
        self.object.load_state_dict(given)

    def groups(self) -> list[Any]:
        return list(self.object.param_groups)

    def add(self, params: Mapping[str, Array]) -> None:
        new = {name: self.parameter(p) for name, p in params.items()}
        self.object.add_param_group({"params": list(new.values())})
        self.tensors |= new

    def parameter(self, p: Array) -> Any:
        return self.torch.nn.Parameter(self.torch.from_numpy(p))

    def __deepcopy__(self, memo: dict[int, Any]) -> "TorchCandidate":
        return self.like(copy.deepcopy(self.object, memo))

    def like(self, opt: Any) -> "TorchCandidate":
        """A copy of the optimizer, with its parameters in the order of this one's."""
        order = [p for group in self.object.param_groups for p in group["params"]]
        copied = [p for group in opt.param_groups for p in group["params"]]
        at = {id(p): k for k, p in enumerate(order)}
        names = {name: copied[at[id(p)]] for name, p in self.tensors.items()}
        return TorchCandidate(self.torch, opt, names)

    def __reduce__(self) -> Any:
        names = list(self.tensors)
        order = [p for group in self.object.param_groups for p in group["params"]]
        at = {id(p): k for k, p in enumerate(order)}
        return _torch_again, (self.object, {name: at[id(self.tensors[name])] for name in names})


def _torch_again(opt: Any, places: Mapping[str, int]) -> TorchCandidate:
    order = [p for group in opt.param_groups for p in group["params"]]
    names = {name: order[k] for name, k in places.items()}
    return TorchCandidate(import_module("torch"), opt, names)


class Torch:
    """For classes of ``torch.optim``'s interface, and functions that make one of params."""

    def __init__(self, factory: Callable[..., Any], needs: str) -> None:
        self.torch: Any = import_module("torch")
        self.factory, self.needs = factory, needs
        self.lacks = {
            "levels": "the level is chosen when PyTorch is loaded",
            "negative strides": "PyTorch's tensors have no negative strides",
            "read-only": "PyTorch's tensors cannot be read-only",
            "names": "gradients are attributes of the parameters",
        }
        if not isinstance(factory, type):
            self.lacks["keywords"] = "the factory is a function; give the class to check arguments"

    def make(
        self,
        params: Mapping[str, Array],
        groups: Sequence[Sequence[str]] | None = None,
        **arguments: Any,
    ) -> TorchCandidate:
        tensors: dict[int, Any] = {}  # the same array twice is the same tensor twice
        for p in params.values():
            tensors.setdefault(id(p), self.torch.nn.Parameter(self.torch.from_numpy(p)))
        named = {name: tensors[id(p)] for name, p in params.items()}
        given: Any = list(named.values())
        if groups is not None:
            given = [{"params": [named[name] for name in names]} for names in groups]
        return TorchCandidate(self.torch, self.factory(given, **arguments), named)

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(count)
        try:
            yield
        finally:
            self.torch.set_num_threads(before)

    def array(self, leaf: Any) -> Array | None:
        if self.torch.is_tensor(leaf):
            found: Array = leaf.detach().numpy()
            return found
        return number(leaf)

    def leaf(self, array: Array, like: Any) -> Any:
        if self.torch.is_tensor(like):
            return self.torch.from_numpy(np.array(array, order="C"))
        return type(like)(array)


def torch_optimizer(factory: Callable[..., Any], needs: str = "element-wise") -> Adapter:
    """An adapter for optimizers with the interface of ``torch.optim``.

    `factory` is a class, or a function of a list of parameters (or of groups) that makes an
    optimizer: ``lambda params: torch.optim.AdamW(params, lr=0.01, fused=True)``. Raises ImportError
    without PyTorch.
    """
    return Torch(factory, needs)


# optax


class OptaxCandidate:
    """A transformation of optax with the parameters and the state that it is given."""

    def __init__(self, owner: "Optax", params: Mapping[str, Array]) -> None:
        self.owner, self.object = owner, owner.transformation
        with owner.wide():
            self.now = {name: owner.jax.numpy.asarray(p.copy()) for name, p in params.items()}
            self.held = owner.transformation.init(self.now)

    def step(self, grads: Grads) -> None:
        jax, optax = self.owner.jax, self.owner.optax
        with self.owner.wide():
            given = {name: jax.numpy.asarray(g) for name, g in grads.items()}
            updates, held = self.owner.transformation.update(given, self.held, self.now)
            self.now, self.held = optax.apply_updates(self.now, updates), held

    def params(self) -> dict[str, Array]:
        return {name: np.array(p) for name, p in self.now.items()}

    def state(self) -> dict[str, dict[str, Array]]:
        found: dict[str, dict[str, Array]] = {"": {}, **{name: {} for name in self.now}}
        for path, leaf in self.owner.jax.tree_util.tree_leaves_with_path(self.held):
            names = [getattr(part, "key", getattr(part, "name", part)) for part in path]
            mine = next((name for name in names if name in self.now), "")
            found[mine][".".join(str(name) for name in names if name != mine)] = np.array(leaf)
        return found

    def state_dict(self) -> Any:
        return self.held

    def load_state_dict(self, given: Any) -> None:
        self.held = given

    def groups(self) -> list[Any]:
        return [{}]

    def add(self, params: Mapping[str, Array]) -> None:
        raise NotImplementedError


class Optax:
    """For transformations of optax, step by step, without ``jax.jit``."""

    def __init__(self, transformation: Any, needs: str) -> None:
        self.jax: Any = import_module("jax")
        self.optax: Any = import_module("optax")
        self.transformation, self.needs = transformation, needs
        none = "a transformation has no hyper-parameters but by inject_hyperparams"
        self.lacks = {
            "add": "a tree of parameters does not grow",
            "fork": "JAX documents that its threads do not survive a fork",
            "groups": "optax has multi_transform in the place of groups",
            "in place": "JAX's arrays do not change",
            "keywords": none,
            "levels": "XLA chooses the level",
            "load": "the state is an argument of each update",
            "negative strides": "JAX's arrays have no strides",
            "None": "optax leaves parameters out by masked and multi_transform",
            "object": "a transformation holds nothing",
            "pickle": "a transformation is made of functions; its state is a tree of arrays",
            "read-only": "JAX's arrays do not change",
            "set": none,
            "shared memory": "JAX's arrays do not change, so that none shares what is written",
            "strides": "JAX's arrays have no strides",
            "threads": "XLA chooses the number of threads when it is loaded",
        }

    def wide(self) -> AbstractContextManager[Any]:
        """Inside, arrays of 64 bits stay what they are."""
        found: AbstractContextManager[Any] = self.jax.enable_x64(True)
        return found

    def make(
        self,
        params: Mapping[str, Array],
        groups: Sequence[Sequence[str]] | None = None,
        **arguments: Any,
    ) -> OptaxCandidate:
        return OptaxCandidate(self, params)

    def threads(self, count: int) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def array(self, leaf: Any) -> Array | None:
        return np.array(leaf) if isinstance(leaf, self.jax.Array) else number(leaf)

    def leaf(self, array: Array, like: Any) -> Any:
        if isinstance(like, self.jax.Array):
            with self.wide():
                return self.jax.numpy.asarray(array)
        return type(like)(array)


def optax_transformation(transformation: Any, needs: str = "element-wise") -> Adapter:
    """An adapter for transformations of optax, such as ``optax.adamw(0.01)``. Raises ImportError
    without JAX and optax."""
    return Optax(transformation, needs)


def is_ours(adapter: Adapter) -> bool:
    """Whether it makes optimizers of this library's classes."""
    probe = getattr(adapter, "probe", None)
    return probe is not None and isinstance(probe(), Optimizer)
