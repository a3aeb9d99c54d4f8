"""Makes tables, the check of the speed bars, and a picture of what ``bench/run.py`` measured.

    python bench/report.py [RESULTS] [--bars] [--write docs/benchmarks.md] [--picture FILE]
    python bench/report.py --excerpt docs/benchmarks.md [--write README.md] [--picture FILE]

Prints Markdown. ``--write`` puts the tables between the lines ``<!-- bench:begin -->`` and
``<!-- bench:end -->`` of a file instead, and leaves the rest of it alone. ``--excerpt`` makes a
table of few rows from the tables that are in a file, without results.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the directory above is the one to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.bars import checked
from bench.cases import MODELS, grouped
from bench.measure import peak, ratio
from bench.picture import draw
from bench.run import FORMAT, RESULTS
from steepest.extras import MissingExtra

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TORCH = ("torch fused", "torch foreach", "torch single")
OURS = ("steepest", "steepest.torch")

_RULES_ON = {
    "large": "Every rule but those for matrices on",
    "layers": "Rules with sums over layers, on",
    "matrix": "Rules for matrices on",
}

# The rows of an excerpt: how a title begins, and what stands beside it, in the tables of AdamW.
EXCERPT = (
    ("1 tensor of 20 000 000", "no"),
    ("1000 tensors of 100", "no"),
    ("a small perceptron", "no"),
    ("GPT-2 small", "step"),
)
_SHOWN = (*TORCH[:2], "NumPy")

_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))

Entry = dict[str, Any]


class ReportError(ValueError):
    """Results or a file that cannot be used; the message says which and why."""


def main(argv: Sequence[str] | None = None) -> int:
    purpose = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="bench/report.py", description=purpose)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--bars", action="store_true", help="print the table of bars only")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this file")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw, and refer to, a PNG")
    parser.add_argument("--excerpt", type=Path, metavar="FILE", help="few rows of these tables")
    arguments = parser.parse_args(argv)
    try:
        shown = None
        if arguments.picture is not None:
            beside = arguments.write.parent if arguments.write is not None else Path()
            shown = Path(os.path.relpath(arguments.picture, beside)).as_posix()
        if arguments.excerpt is not None:
            tables = arguments.excerpt.read_text(encoding="utf-8")
            text = excerpt(tables, shown)
            drawn = {"results": [_redrawn(row) for row in _excerpt_rows(tables)]}
        else:
            drawn = load(arguments.results)
            if arguments.bars:
                print("\n".join(bars_table(drawn)))
                return 0
            text = markdown(drawn, shown)
        if arguments.picture is not None:
            figure = draw(drawn)
            figure.set_figwidth(max(9.0, figure.get_figwidth()))  # the title's, at least
            figure.savefig(arguments.picture, dpi=150)
        if arguments.write is None:
            print(text)
        else:
            old = arguments.write.read_text(encoding="utf-8")
            arguments.write.write_text(replaced(old, text), encoding="utf-8")
    except (OSError, ReportError, MissingExtra) as error:
        print(f"bench/report.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def load(path: Path) -> dict[str, Any]:
    """The results in a file. Raises OSError, or ReportError for what ``run.py`` has not written."""
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = results["format"]
    except (ValueError, KeyError, TypeError):
        raise ReportError(f"{path}: not written by bench/run.py") from None
    if found != FORMAT:
        raise ReportError(f"{path}: format {found}, this report reads {FORMAT}; measure again")
    return results


def replaced(old: str, text: str) -> str:
    """`old` with `text` between its two markers. Raises ReportError unless each is there once."""
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ReportError(f"expected one line {BEGIN} and, after it, one line {END}")
    before, _, rest = old.partition(BEGIN)
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{rest.partition(END)[2]}"


# Tables


def markdown(results: dict[str, Any], picture: str | None = None) -> str:
    """All tables with the words that explain them."""
    entries: list[Entry] = results["results"]
    scheduled = [e for e in entries if e["schedule"]]
    models = [e for e in entries if e["case"] in MODELS and OURS[1] in e["rivals"]]
    adamw = [e for e in entries if e["rule"] == "adamw" and e not in models + scheduled]
    lines = [*_conditions(results), ""]
    if adamw:
        lines += [*_adamw_table(adamw), ""]
    if models:
        lines += [*_models_table(models), ""]
    if scheduled:
        lines += [*_schedules_table(scheduled), ""]
    for case, words in _RULES_ON.items():
        rules = [e for e in entries if e["case"] == case and e["clip"] is None]
        if rules:
            lines += [f"{words} {rules[0]['case_title']}:", "", *_rules_table(rules), ""]
    lines += [*_verdicts(entries), ""]
    lines += _memory(entries)
    if picture is not None:
        lines += ["", f"![Time of a step as a multiple of steepest's]({picture})"]
    return "\n".join(lines).strip()


def _conditions(results: dict[str, Any]) -> Iterator[str]:
    facts, settings = results["machine"], results["settings"]
    versions = [f"steepest {facts['steepest']} (level {facts['level']})", f"NumPy {facts['numpy']}"]
    if facts["torch"]:
        versions.append(f"PyTorch {facts['torch']}")
    if facts.get("deepspeed"):
        versions.append(f"DeepSpeed {facts['deepspeed']}")
    yield (
        f"{facts['cpu']}, {facts['system']}, {_threads(settings['threads'])}; "
        f"{', '.join(versions)}; {facts['when'][:10]}; {_rounds(results)}{_load(facts)}."
    )
    if results["quick"]:
        yield ""
        yield "A quick run: smaller sizes and fewer rounds, to see that all works, not to be cited."
    yield ""
    yield (
        "A ratio is a rival's time for a step divided by steepest's in the same round: above 1 "
        "steepest is faster, below 1 the rival. Given are the median over the rounds and, in "
        "brackets, the first and third quartile. All rivals take turns in one process, with "
        "float32 parameters; times of steepest are the median and, in brackets, the shortest. "
        f"The stream ({settings['yardstick']}) moves the bytes that the rule must move and "
        "computes nothing: its column is the share of its bandwidth that steepest reaches. "
        "NumPy is steepest's own readable reference. Clipping is to a global norm, in PyTorch by "
        "`clip_grad_norm_` before the step."
    )


def _rounds(results: dict[str, Any]) -> str:
    taken: dict[bool, list[int]] = {True: [], False: []}
    for entry in results["results"]:
        for name, row in entry["rivals"].items():
            taken[name == "NumPy"].append(row["rounds"])
    text = f"at least {min(taken[False], default=0)} rounds"
    return text + (f" (NumPy at least {min(taken[True])})" if taken[True] else "")


def _load(facts: dict[str, Any]) -> str:
    load = facts["load_average"]
    return f"; load average {load[0]:.2g} before" if load else ""


def _threads(n: int) -> str:
    return f"{n} thread{'s' * (n > 1)}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, its first column to the left and all others to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def _adamw_table(entries: Sequence[Entry]) -> list[str]:
    header = ["AdamW", "clipping", "steepest", *TORCH, "NumPy", "of the stream"]
    rows = [
        [
            entry["case_title"],
            "yes" if entry["clip"] is not None else "no",
            _time(entry),
            *(_ratio(entry, name) for name in (*TORCH, "NumPy", "stream")),
        ]
        for entry in entries
    ]
    return table(header, rows)


def _models_table(entries: Sequence[Entry]) -> Iterator[str]:
    """The parameters of real models, with ratios to our optimizer for PyTorch."""
    yield (
        "The parameters of real models, in PyTorch. Ratios are to `steepest.torch.AdamW`, which "
        "clips within the step; all others call `clip_grad_norm_` first. DeepSpeed is its "
        "DeepSpeedCPUAdam; the last column is `steepest.AdamW` over NumPy arrays, which has no "
        "`zero_grad`."
    )
    yield ""
    names = (*TORCH[:2], "DeepSpeed", "steepest")
    yield from table(
        ["AdamW", "timed", "steepest.torch", *names[:-1], "over NumPy"],
        [
            [
                entry["case_title"],
                "step" if entry["clip"] is None else "clip, step, zero_grad",
                _time(entry),
                *(_ratio(entry, name) for name in names),
            ]
            for entry in entries
        ],
    )


def _schedules_table(entries: Sequence[Entry]) -> Iterator[str]:
    """Small steps with a rate that changes, with PyTorch's ratios to our optimizer for PyTorch."""
    yield (
        "A learning rate that changes at every step, on small cases. `steepest` has a schedule "
        "(with LambdaLR, the rate is written into `param_groups`), and the time beside is that of "
        "a constant rate; the others are stepped with PyTorch's scheduler, whose own time is "
        "included. PyTorch's ratios are to `steepest.torch`."
    )
    yield ""
    yield from table(
        ["AdamW", "schedule", OURS[0], "at a constant rate", OURS[1], *TORCH[:2]],
        [
            [
                entry["case_title"],
                entry["schedule"],
                *(_median(entry, name) for name in (OURS[0], "steepest, constant", OURS[1])),
                *(_ratio(entry, name) for name in TORCH[:2]),
            ]
            for entry in entries
        ],
    )


def _median(entry: Entry, name: str) -> str:
    rows = entry["rivals"]
    return duration(rows[name]["median"]) if name in rows else "–"


def _rules_table(entries: Sequence[Entry]) -> list[str]:
    peers = [name for name in TORCH if any(name in e["rivals"] for e in entries if _own(e))]
    header = ["rule", "bytes per parameter", "steepest", *peers, "NumPy", "of the stream"]
    rows = [
        [
            entry["title"],
            f"{entry['bytes_moved'] / entry['parameters']:.3g}",
            _time(entry),
            *(_ratio(entry, name) for name in (*peers, "NumPy", "stream")),
        ]
        for entry in entries
    ]
    return table(header, rows)


def _own(entry: Entry) -> bool:
    """Whether a rule has no other table in which PyTorch's slowest way is shown."""
    return bool(entry["rule"] != "adamw")


def duration(seconds: float) -> str:
    """A time with three digits and its unit.

    >>> duration(0.0123456), duration(2.5e-6)
    ('12.3 ms', '2.5 µs')
    """
    unit, size = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    return f"{_digits(seconds / size)} {unit}"


def _digits(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 99.95 else f"{x:.3g}"


def _base(entry: Entry) -> str:
    """Whose time the ratios in a table are to: our optimizer for PyTorch, where others are
    PyTorch's in what they do."""
    theirs = entry["case"] in MODELS or entry["schedule"]
    return OURS[1] if theirs and OURS[1] in entry["rivals"] else OURS[0]


def _time(entry: Entry) -> str:
    row = entry["rivals"][_base(entry)]
    return f"{duration(row['median'])} ({duration(row['min'])})"


def _to_base(entry: Entry, name: str) -> dict[str, float]:
    rows = entry["rivals"]
    return vars(ratio(rows[name]["seconds"], rows[_base(entry)]["seconds"]))


def _ratio(entry: Entry, name: str) -> str:
    if name not in entry["rivals"]:
        reason = entry["absent"].get(name, "")
        return reason if reason == "not installed" else "–"
    found = _to_base(entry, name)
    middle, low, high = (_places(found[key]) for key in ("median", "low", "high"))
    return f"{middle} ({low} to {high})"


def _places(x: float) -> str:
    """Two decimals below 10, where a tie must be told from a loss; then fewer."""
    return f"{x:.2f}" if x < 9.995 else _digits(x)


# What the numbers say


def verdict(found: dict[str, float]) -> str:
    """Whether steepest is "faster", "slower" or, with 1 between the quartiles, in a "tie"."""
    if found["low"] > 1:
        return "faster"
    return "slower" if found["high"] < 1 else "tie"


def _verdicts(entries: Sequence[Entry]) -> Iterator[str]:
    found: dict[str, list[str]] = {"faster": [], "slower": [], "tie": []}
    for entry in entries:
        for name in entry["rivals"]:
            if name in (*OURS, "steepest, constant", "stream"):
                continue
            against = _to_base(entry, name)
            where = (
                f"{name}, {entry['title']}, {entry['case_title']} ({_places(against['median'])})"
            )
            found[verdict(against)].append(where)
    count = sum(map(len, found.values()))
    yield f"steepest is faster in {len(found['faster'])} of {count} comparisons."
    if found["tie"]:
        yield f"No clear difference, 1 lies between the quartiles: {'; '.join(found['tie'])}."
    if found["slower"]:
        yield f"steepest is slower than: {'; '.join(found['slower'])}."


def _memory(entries: Sequence[Entry]) -> Iterator[str]:
    measured = [e for e in entries if "allocated" in e["rivals"]["steepest"]]
    if not measured:
        return
    names = ["steepest", *TORCH, "NumPy"]
    large = [e for e in measured if e["case"] == "large" and e["rule"] == "adamw"]
    if large:
        parameters = f"{grouped(large[0]['parameter_bytes'] // 10**6)} MB of parameters"
        yield f"What a step allocates at its peak beyond {parameters}, gradients and state:"
        yield ""
        yield from table(
            ["", *names],
            [[e["title"], *(_allocated(e, name) for name in names)] for e in large],
        )
        yield ""
    most = max(
        peak(e["rivals"][name]["allocated"])
        for e in measured
        for name in OURS
        if name in e["rivals"]
    )
    yield (
        f"Over all {len(measured)} workloads with that measurement, no step of steepest allocated "
        f"more than {most / 1000:.0f} kB."
    )


def _allocated(entry: Entry, name: str) -> str:
    if name not in entry["rivals"]:
        return "–"
    size = peak(entry["rivals"][name]["allocated"])
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1000:.0f} kB"


# A part of the tables, for a page that has no room for all


def excerpt(text: str, picture: str | None = None) -> str:
    """Few rows of the tables in `text`, medians only, and in how many comparisons who is faster.

    Raises ReportError if `text`, as ``--write`` made it, has not all of these.
    """
    rows = _excerpt_rows(text)
    lines = [_found(text, r"^(.+); at least \d+ rounds", "line of the machine") + ":", ""]
    if picture is not None:
        lines += [f"![Time of a step as a multiple of steepest's]({picture})", ""]
    lines += table(
        ["AdamW", OURS[0], *_SHOWN],
        [
            [row["AdamW"], *(_middle(row.get(name, "–")) for name in (_ours(row), *_SHOWN))]
            for row in rows
        ],
    )
    return "\n".join([*lines, "", _counted(text)])


def _counted(text: str) -> str:
    """The lines of `_verdicts` as one sentence: comparisons that are even are only counted."""
    faster = _found(text, r"^steepest is faster in (\d+ of \d+ comparisons)\.$", "count")
    parts = [f"steepest is faster in {faster}"]
    if ties := re.search(r"^No clear difference, [^:]+: (.+)\.$", text, re.MULTILINE):
        parts.append(f"there is no clear difference in {ties[1].count('; ') + 1}")
    if slower := re.search(r"^steepest is slower than: (.+)\.$", text, re.MULTILINE):
        parts.append(f"and it is slower in {slower[1].count('; ') + 1}: {slower[1]}")
    return ", ".join(parts) + "."


def _found(text: str, pattern: str, what: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise ReportError(f"no {what} of bench/report.py --write in the file of --excerpt")
    return found[1]


def _excerpt_rows(text: str) -> list[dict[str, str]]:
    rows = []
    for title, beside in EXCERPT:
        fits = (
            row
            for row in _read(text)
            if row.get("AdamW", "").startswith(title)
            and beside in (row.get("clipping"), row.get("timed"))
        )
        row = next(fits, None)
        if row is None:
            raise ReportError(f"no row {title!r}, {beside!r} in the tables of the --excerpt's file")
        rows.append(row)
    return rows


def _read(text: str) -> Iterator[dict[str, str]]:
    """The rows of all tables in `text`, each with its cells by the names of their columns."""
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells:
            header = []
        elif not header:
            header = cells
        elif cells[0] != "---":
            yield dict(zip(header, cells, strict=True))


def _ours(row: dict[str, str]) -> str:
    return OURS[0] if OURS[0] in row else OURS[1]


def _middle(cell: str) -> str:
    return cell.partition(" (")[0]


def _redrawn(row: dict[str, str]) -> Entry:
    """What `draw` needs of an entry, from its row."""
    rivals = {}
    for name in _SHOWN:
        if ratios := re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", row.get(name, "")):
            median, low, high = map(float, ratios.groups())
            rivals[name] = {"ratio": {"median": median, "low": low, "high": high}}
    title = row["AdamW"]
    return {"rule": "adamw", "case": "", "case_title": title, "clip": None, "schedule": None,
            "title": title, "rivals": rivals}  # fmt: skip


def bars_table(results: dict[str, Any]) -> Iterator[str]:
    """The speeds that were promised, and whether these results keep them."""
    yield f"{_threads(results['settings']['threads'])}, float32, median of per-round ratios."
    if results["quick"]:
        yield ""
        yield "A quick run: its sizes are smaller than the bars', which it therefore cannot decide."
    yield ""
    yield from table(
        ["bar", "required", "measured", "holds"],
        [[row.what, row.required, row.measured, row.holds] for row in checked(results["results"])],
    )


if __name__ == "__main__":
    sys.exit(main())
