"""A picture of a schedule."""

import textwrap
from collections.abc import Callable
from typing import Any

from steepest.extras import require

__all__ = ["draw", "horizon"]

POINTS = 2000


def horizon(schedule: Any) -> int:
    """How many updates show what a schedule does, by its fields."""
    if hasattr(schedule, "steps"):
        return int(schedule.steps)
    last = [getattr(schedule, name, ())[-1:] for name in ("milestones", "boundaries")]
    periods = [getattr(schedule, x, 0) for x in ("period", "step_size", "step_size_up", "every")]
    lengths = [0, *(t[0] * 5 // 4 + 2 for t in last if t), *(6 * n for n in periods if n > 1)]
    parts = getattr(schedule, "parts", ())
    inside = [*parts, getattr(schedule, "schedule", None), getattr(schedule, "lr", None)]
    lengths += [horizon(part) for part in inside if hasattr(part, "warmup")]
    if parts and hasattr(schedule, "milestones") and hasattr(parts[-1], "warmup"):
        lengths.append(schedule.milestones[-1] + horizon(parts[-1]))
    return (max(lengths) or 1000) + int(schedule.warmup)


def draw(schedule: Callable[[int], float], steps: int | None = None) -> Any:
    """The matplotlib Figure of the values at t = 0 .. steps - 1, of some where there are many."""
    figures = require("matplotlib.figure", "train", "Schedule.plot")
    ticker = require("matplotlib.ticker", "train", "Schedule.plot")
    n = horizon(schedule) if steps is None else steps
    if n < 1:
        raise ValueError(f"steps = {n}: expected 1 or more updates to draw")
    stride = max(-(-n // POINTS), 1)
    updates = sorted({*range(0, n, stride), n - 1})
    figure = figures.Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.subplots()
    marker = "o" if n <= 30 else None
    ax.plot(updates, [schedule(t) for t in updates], color="#1f5fa8", lw=1.8, marker=marker)
    ax.set_title("\n".join(textwrap.wrap(repr(schedule), 76)), fontsize=9, family="monospace")
    ax.set_xlabel("updates done")
    ax.set_ylabel("value")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
