"""Checks that any optimizer can be put through: ``check_optimizer``; see docs/conformance.md.

A check is a short function of one ``Subject``, in one of the modules ``arithmetic``, ``layouts``,
``states``, ``refusals`` and ``processes``; its docstring says what it demands, and why. What a
library is told and asked stands in its adapter.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from steepest.extension.conformance.adapters import (
    Adapter,
    Candidate,
    adapted,
    optax_transformation,
    torch_optimizer,
)
from steepest.extension.conformance.subject import CHECKS, SHAPES, DoesNotApply, Subject

for _module in ("arithmetic", "layouts", "states", "refusals", "processes"):
    import_module(f"{__name__}.{_module}")  # whose checks come in this order

__all__ = [
    "Adapter", "Candidate", "DoesNotApply", "Outcome", "check_optimizer", "described_checks",
    "optax_transformation", "optimizer_checks", "torch_optimizer",
]  # fmt: skip


class Outcome(NamedTuple):
    """What became of a check: "passed", "skipped" (with why it does not apply), "expected" (a
    failure that was declared, with its reason), or "failed" (with what was found)."""

    check: str
    how: str
    why: str


def check_optimizer(
    factory: Any,
    *,
    expected_failures: Mapping[str, str] | None = None,
    generate_only: bool = False,
    needs: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> Any:
    """Puts an optimizer through all checks; returns what became of each, as a list of ``Outcome``.

    `factory` is a class with the interface of this library's optimizers, or a function that makes
    one of a dict of arrays; a class of ``torch.optim``; a transformation of optax; or what
    ``torch_optimizer``, ``optax_transformation`` or an ``Adapter`` of your own makes of another.
    `expected_failures` has, by the name of a check, why the optimizer is meant to fail it: then it
    must. `needs` says what an element's update looks at, if the optimizer does not say it itself:
    "element-wise" (the default), "layer-wise", "global" or "matrix". `shapes` are those of the
    parameters. With `generate_only` nothing is run: ``optimizer_checks`` is returned.

    Raises AssertionError with the name of each check that fails, or that passes though it was
    declared to fail; KeyError for a declared check that there is not. A check that does not apply
    is "skipped", with the reason.

    >>> import steepest as st
    >>> from steepest.testing import check_optimizer
    >>> found = check_optimizer(lambda params: st.Lion(params, lr=0.01))
    >>> [outcome.check for outcome in found if outcome.how == "skipped"]
    ['unknown_arguments_are_refused', 'bad_values_are_refused']
    """
    if generate_only:
        return optimizer_checks(
            factory, expected_failures=expected_failures, needs=needs, shapes=shapes
        )
    outcomes = run_checks(factory, expected_failures, needs, shapes)
    failed = [f"{x.check}: {x.why}" for x in outcomes if x.how == "failed"]
    if failed:
        raise AssertionError("\n".join(failed))
    return outcomes


def optimizer_checks(
    factory: Any,
    *,
    expected_failures: Mapping[str, str] | None = None,
    needs: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks as pairs of name and function, to parametrize a test with.

    A function raises AssertionError where the check fails, or passes though declared to fail, and
    DoesNotApply, which pytest and unittest take for a skip, where it does not apply or fails as
    declared. Arguments are those of ``check_optimizer``.

    >>> import steepest as st
    >>> from steepest.testing import optimizer_checks
    >>> checks = dict(optimizer_checks(st.SGD))
    >>> checks["repeats"]()
    """
    declared = dict(expected_failures or {})
    unknown = [name for name in declared if name not in CHECKS]
    if unknown:
        raise KeyError(f"expected_failures has {unknown[0]!r}, which is no check")
    adapter = adapted(factory, needs)
    for name in CHECKS:
        yield name, partial(_run_one, name, adapter, declared.get(name), shapes)


def run_checks(
    factory: Any,
    expected_failures: Mapping[str, str] | None = None,
    needs: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> list[Outcome]:
    """What becomes of every check; raises nothing of theirs."""
    declared, outcomes = expected_failures or {}, []
    for name, function in optimizer_checks(
        factory, expected_failures=expected_failures, needs=needs, shapes=shapes
    ):
        try:
            function()
        except DoesNotApply as reason:
            how = "expected" if name in declared else "skipped"
            outcomes.append(Outcome(name, how, str(reason)))
        except AssertionError as error:
            outcomes.append(Outcome(name, "failed", str(error)))
        else:
            outcomes.append(Outcome(name, "passed", ""))
    return outcomes


def _run_one(
    name: str, adapter: Adapter, declared: str | None, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """One check; AssertionError where it fails, whatever it raised."""
    try:
        CHECKS[name](Subject(adapter, shapes))
    except DoesNotApply as reason:
        if declared is not None:
            raise AssertionError(
                f"declared to fail ({declared}), but does not apply: {reason}"
            ) from reason
        raise
    except Exception as error:
        if declared is not None:
            raise DoesNotApply(declared) from error
        if isinstance(error, AssertionError):
            raise
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    if declared is not None:
        raise AssertionError(f"declared to fail ({declared}), but passes")


def described_checks() -> Iterator[tuple[str, str]]:
    """Every check's name, and what it demands and why, in the order in which they run.

    >>> from steepest.testing import described_checks
    >>> dict(described_checks())["repeats"]
    'Two runs from the same numbers give the same bits: else no result can be looked into.'
    """
    for name, function in CHECKS.items():
        yield name, " ".join(inspect.cleandoc(function.__doc__ or "").split())
