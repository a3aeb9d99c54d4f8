"""``report.md`` in the folder of a run: data, model, command, results, baselines, pictures."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from steepest.cli.runs import Results, Run, digits, percent

NAME = "report.md"


def text(
    trained: Run,
    results: Results,
    others: Mapping[str, Results],
    hints: Sequence[str],
    pictures: Mapping[str, str],
) -> str:
    """The report in Markdown. ``others`` are the results of baselines, ``pictures`` the names of
    files and what they show."""
    return "\n".join(
        [
            *_head(trained, results),
            *_data(trained),
            *_model(trained),
            *_result(trained, results, others, hints),
            *(line for name, shown in pictures.items() for line in (f"![{shown}]({name})", "")),
            f"Written by steepest {version('steepest')}.",
            "",
        ]
    )


def _head(trained: Run, results: Results) -> list[str]:
    score = percent(trained.score, results["test"][trained.score])
    command = trained.settings.command()
    return [
        f"# {trained.dataset.name}: test {trained.score} {score}",
        "",
        "```sh",
        command,
        "```",
        "",
    ]


def _data(trained: Run) -> list[str]:
    dataset, settings = trained.dataset, trained.settings
    target = f"The target is {_code(settings.target)}: " if settings.target else ""
    kinds = f" of {len(dataset.classes)} classes" if dataset.classes else ""
    samples = ", ".join(f"{len(part.y)} {name}" for name, part in dataset.parts.items())
    names = [_code(name) for name in dataset.features[:20]]
    more = f" and {len(dataset.features) - 20} more" * (len(dataset.features) > 20)
    return [
        "## Data",
        "",
        f"{_code(settings.data)}, split with seed {settings.seed} into {samples} samples.",
        f"{target}{dataset.task}{kinds} ({dataset.reason}).",
        "",
        f"{len(dataset.features)} inputs: {', '.join(names)}{more}.",
        "",
        *(f"* {line}" for line in dataset.decisions),
        *([""] if dataset.decisions else []),
    ]


def _model(trained: Run) -> list[str]:
    net = trained.net
    sizes = " - ".join(map(str, net.sizes))
    decay = trained.optimizer.param_groups[0]["weight_decay"]
    stopped = trained.history.message
    batch = trained.batch_size or "all samples"
    clip = f", clipped by {trained.settings.clip}" if trained.settings.clip else ""
    return [
        "## Model and training",
        "",
        f"* {'Linear model' if len(net.sizes) == 2 else 'Network'} {sizes}: {net.size} parameters",
        f"* Loss: {net.objective}; batches of {batch}{clip}",
        f"* {trained.rule}, learning rate {_code(repr(trained.schedule))}, weight decay {decay:g}",
        f"* Ended: {stopped}",
        "",
    ]


def _result(
    trained: Run, results: Results, others: Mapping[str, Results], hints: Sequence[str]
) -> list[str]:
    names = list(results["test"])
    rows = [["", *names], ["---", *["--:"] * len(names)]]
    rows += [[part, *_cells(names, row)] for part, row in results.items()]
    rows += [[f"{name}, test", *_cells(names, parts["test"])] for name, parts in others.items()]
    table = [f"| {' | '.join(row)} |" for row in rows]
    return ["## Result", "", *table, "", *(f"* {hint}" for hint in hints), *([""] if hints else [])]


def _cells(names: Sequence[str], row: Mapping[str, float]) -> list[str]:
    shown = {name: digits(x) if name == "loss" else percent(name, x) for name, x in row.items()}
    return [shown.get(name, "") for name in names]


def _code(value: object) -> str:
    """Text as Markdown's code, whatever characters it has."""
    words = " ".join(str(value).split())
    return f"`` {words} ``" if "`" in words else f"`{words}`"
