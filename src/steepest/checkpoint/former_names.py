"""Former modules of classes whose objects are in files, so that older files still load."""

FORMER_MODULES = {
    "steepest.options.average": "steepest.average",
    "steepest.options.clip": "steepest.clip",
    "steepest.options.filters": "steepest.filters",
    "steepest.options.regularize": "steepest.regularize",
    "steepest.schedules.annealing": "steepest.schedules.falls",
    "steepest.schedules.metric_driven": "steepest.schedules.watching",
    "steepest.schedules.piecewise": "steepest.schedules.pieces",
}
"""The former name of a module, by its name."""


def former_name(kind: type) -> str | None:
    """What a file of that time calls a class; None if it has no former name.

    >>> from steepest.options import clip
    >>> former_name(clip.value)
    'steepest.clip.value'
    """
    module = FORMER_MODULES.get(kind.__module__)
    return None if module is None else f"{module}.{kind.__qualname__}"
