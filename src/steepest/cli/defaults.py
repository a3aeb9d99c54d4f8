"""What a run is made of where its options do not say: ``bench/defaults.py`` measures the choice.

The number of epochs follows the size of the data, so that few rows get as many updates as they
need; rate and weight decay are those at which the rule did well on the tables of
``bench/defaults.md``; between a network and a linear model the lower validation loss decides.
"""

import math
from dataclasses import replace

from steepest.cli import runs, syntax
from steepest.cli.settings import Settings
from steepest.data.datasets import Dataset
from steepest.models.networks import Task
from steepest.optimizers import RULES

# A run has as many epochs as make so many updates, and not fewer than these.
UPDATES = 2000
LEAST_EPOCHS = 20

HIDDEN = (256,)

# With fewer rows to train on than the first, the validation part is too small to tell and a linear
# model is taken; with more than the second, a network, which has enough to learn from.
LEAST_TRIED, MOST_TRIED = 50, 20_000

# Of networks with hidden layers.
WEIGHT_DECAYS = {"sgd": 0.01, "adamw": 1.0}


def filled(settings: Settings, dataset: Dataset, option: str = "--optimizer") -> Settings:
    """The settings with the defaults of this data and rule in place of None, but for what may stay
    so; ``option`` is what errors are told of. Raises UsageError."""
    rule = syntax.call(option, settings.optimizer, RULES)[0]
    hidden = HIDDEN if settings.hidden is None else settings.hidden
    decay = settings.weight_decay
    return replace(
        settings,
        hidden=hidden,
        separator=settings.separator or (None if dataset.separator == "," else dataset.separator),
        epochs=settings.epochs or epochs(settings, len(dataset.train.y)),
        lr=settings.lr if settings.lr is not None else rate(rule, dataset.task, hidden),
        weight_decay=WEIGHT_DECAYS.get(rule) if decay is None and hidden else decay,
    )


def epochs(settings: Settings, samples: int) -> int:
    """The number of epochs for so many samples.

    >>> epochs(Settings("a.csv"), 104), epochs(Settings("a.csv"), 10**6)
    (1000, 20)
    """
    each = min(settings.batch_size or samples, samples) * settings.accumulate
    return max(LEAST_EPOCHS, math.ceil(UPDATES / math.ceil(samples / each)))


def rate(rule: str, task: Task, hidden: tuple[int, ...]) -> float:
    """The learning rate of a rule for this kind of model.

    The curvature of a squared error grows with the width of a network, and plain descent diverges
    at the rate that a linear model needs.

    >>> rate("sgd", "regression", ()), rate("sgd", "regression", (256,))
    (0.1, 0.01)
    """
    if rule == "sgd" and task == "regression" and hidden:
        return 0.01
    if rule == "adamw" and not hidden:
        return 0.01
    return syntax.rate(rule, None)


def chosen(settings: Settings, dataset: Dataset) -> tuple[Settings, str]:
    """The settings without gaps, and what decided between a network and a linear model, if that
    was open. Raises UsageError, and KeyboardInterrupt at Ctrl-C."""
    samples, units = len(dataset.train.y), HIDDEN[0]
    if settings.hidden is not None or samples > MOST_TRIED:
        return filled(settings, dataset), ""
    if samples < LEAST_TRIED:
        told = f"linear, with fewer than {LEAST_TRIED} samples to train on (or --hidden {units})"
        return filled(replace(settings, hidden=()), dataset), told
    network, linear = (filled(replace(settings, hidden=hidden), dataset) for hidden in (HIDDEN, ()))
    of_network, of_linear = _lowest(network, dataset), _lowest(linear, dataset)
    if not (math.isfinite(of_network) and math.isfinite(of_linear)):
        return network, ""  # whatever is wrong, such as the rate, will be told
    if of_linear < of_network:
        told = f"linear, validation loss {of_linear:.4g}; {units} hidden units: {of_network:.4g}"
        return linear, f"{told} (--hidden {units})"
    return (
        network,
        f"{units} hidden units, validation loss {of_network:.4g}; linear: {of_linear:.4g}",
    )


def _lowest(settings: Settings, dataset: Dataset) -> float:
    """The lowest validation loss of a run, infinite where it diverges."""
    run = runs.prepare(settings, dataset)
    run.train()
    if run.interrupted:
        raise KeyboardInterrupt
    losses = [row["val_loss"] for row in run.history.rows]
    return math.inf if run.diverged else min(losses, default=math.inf)
