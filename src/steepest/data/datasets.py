"""Data sets for the command line: the handwritten digits, and tables from CSV files.

A data set is split into training (70 %), validation (15 %) and test (15 %) parts, by classes where
there are classes, so that each part has its share of every class. Inputs are shifted and scaled to
mean 0 and standard deviation 1, and so are the targets of a regression; mean and scale are those
of the training part alone.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steepest.data import csv_files, untidy
from steepest.data.csv_files import DataError
from steepest.extras import require
from steepest.fields import count, real
from steepest.memory.arrays import Array
from steepest.models.columns import Columns, NotANumber
from steepest.models.networks import Task, constant

__all__ = ["DataError", "Dataset", "Part", "digits", "split", "table"]

MIN_ROWS = 10
MAX_INTEGER_CLASSES = 20
MIN_ROWS_PER_CLASS = 3

# Scaled inputs are float32, and so are the squares of scaled targets.
MAX_INPUT = float(np.finfo(np.float32).max)
MAX_TARGET = MAX_INPUT**0.5


class Part(NamedTuple):
    """Inputs of shape (samples, features), float32, and the targets of shape (samples,)."""

    x: Array
    y: Array


@dataclass(frozen=True)
class Dataset:
    """Data ready for training.

    ``reason`` says how the task was chosen. ``classes`` are the names of the classes, the target
    being an index into them; empty for regression. ``labels`` are the classes as they are in the
    raw target: numbers, true/false or text. ``scaling`` holds what turns raw inputs into ``x``, and
    ``y`` back into raw targets: x = (raw - x_mean) / x_scale, raw = y y_scale + y_mean.
    ``columns`` says how the columns of an untidy table became inputs, of which ``features`` are the
    names then; it is None where each column is an input. ``decisions`` are lines that tell what was
    done to the table, ``separator`` is what is between its columns, ``left_out`` are those that are
    no inputs.
    """

    name: str
    task: Task
    reason: str
    features: list[str]
    classes: list[str]
    labels: Array
    train: Part
    validation: Part
    test: Part
    scaling: dict[str, Array]
    columns: Columns | None = None
    decisions: Sequence[str] = ()
    separator: str | None = None
    left_out: Sequence[str] = ()

    @property
    def parts(self) -> dict[str, Part]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def digest(self) -> str:
        """Tells these data, split and scaled as they are, from others.

        >>> digits(seed=0).digest == digits(seed=1).digest
        False
        """
        found = hashlib.sha256(repr((self.task, self.features, self.classes)).encode())
        for part in self.parts.values():
            for x in part:
                found.update(f"{x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
        return found.hexdigest()


def split(
    n: int, labels: Array | None = None, *, fraction: float = 0.15, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Shuffled indices of the training, validation and test part of n samples.

    Validation and test get ``fraction`` of the samples each, rounded, at least one. With
    ``labels`` this holds within each class. Raises ValueError if a part would be empty.

    >>> train, validation, test = split(10, fraction=0.2, seed=1)
    >>> train.tolist(), validation.tolist(), test.tolist()
    ([2, 3, 1, 5, 9, 6], [4, 8], [0, 7])
    """
    n = count("n", n, 0)
    real("fraction", fraction, "a number between 0 and 0.5", lambda x: 0 < x < 0.5)
    rng = np.random.default_rng(seed)
    pieces: list[list[Array]] = [[], [], []]
    for label in [None] if labels is None else np.unique(labels):
        members = np.arange(n) if labels is None else np.flatnonzero(labels == label)
        size = max(1, round(fraction * len(members)))
        if len(members) < 2 * size + 1:
            whose = "" if label is None else f" of class {label}"
            raise ValueError(f"{len(members)} samples{whose}: expected at least 3, one per part")
        members = rng.permutation(members)
        cuts = (members[2 * size :], members[:size], members[size : 2 * size])
        for piece, cut in zip(pieces, cuts, strict=True):
            piece.append(cut)
    train, validation, test = (rng.permutation(np.concatenate(piece)) for piece in pieces)
    return train, validation, test


def digits(*, seed: int = 0) -> Dataset:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 pixels, 10 classes.

    All pixels share one mean and one scale. Raises MissingExtra without scikit-learn.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998.
    """
    datasets = require("sklearn.datasets", "train", "the digits data set")
    x, y = datasets.load_digits(return_X_y=True)
    parts = split(len(y), y, seed=seed)
    scaling = {"x_mean": np.full(64, x[parts[0]].mean()), "x_scale": np.full(64, x[parts[0]].std())}
    return _dataset(
        name="digits",
        task="classification",
        reason="10 digits",
        features=[f"pixel {i // 8},{i % 8}" for i in range(64)],
        classes=[str(digit) for digit in range(10)],
        labels=np.arange(10),
        x=x,
        y=y,
        parts=parts,
        scaling=scaling,
    )


@np.errstate(under="ignore")
def table(
    path: str | Path,
    target: str,
    *,
    task: Task | None = None,
    ignore: Sequence[str] = (),
    separator: str | None = None,
    seed: int = 0,
    content: bytes | None = None,
    raw: bool = True,
) -> Dataset:
    """A CSV file with a header line, one column of which is to be predicted from the others.

    The task is classification if the target holds text or true/false, or whole numbers of at most
    20 different values; otherwise regression. ``task`` overrides this. A column is numbers only if
    all of its values are. Equal numbers, as 1 and 1.0, are one class, but codes that begin with 0,
    as 07 and 007, are text. All other columns, but those in ``ignore``, are inputs and must hold
    numbers or true/false. ``separator`` None is a comma. ``content`` is what was read of the file
    already: a pipe can be read only once.

    With ``raw`` False much more is taken, and what was decided is in ``decisions``: files that are
    compressed or in other encodings, and the separator is found, where it is not given; text in
    inputs is categories, dates, or numbers with a decimal comma or thousands apart; missing values
    become medians with a flag of their own; rows without a target are left out, and so are columns
    that are empty, without a name, or of text that is different in most rows. Medians and
    categories are those of the training part.

    Raises DataError for a file that cannot be read or used: no text in UTF-8, no regular table,
    empty, without the target column, with missing, infinite or far too large values, text in
    inputs, doubled or nameless columns, too few rows or too few of a class, a constant target.
    Raises MissingExtra without pandas.
    """
    path = Path(path)
    found = csv_files.content(path) if content is None else content
    decisions: list[str] = []
    if not raw:
        found, decisions = csv_files.plain(path, found)
        if separator is None:
            found, separator = csv_files.separator_of(found, [target])
            decisions += [f"separated by {_named(separator)}"] if separator != "," else []
    separator = "," if separator is None else separator
    if not csv_files.separates(separator):
        raise DataError(f"separator = {separator!r}: expected one ASCII character between columns")
    frame = csv_files.frame(path, found, separator, [target], text=[target])
    if len(frame) == 0:
        raise DataError(f"{path} has a header but no rows; at least {MIN_ROWS} are needed")
    for name in (target, *ignore):
        if name not in frame.columns:
            raise DataError(csv_files.no_column(path, name, list(frame.columns)))
    if target in ignore:
        raise DataError(f"column {target!r} is the target and cannot be ignored")
    frame = frame.drop(columns=list(ignore))
    if len(frame) < MIN_ROWS:
        raise DataError(f"{path} has {len(frame)} rows; at least {MIN_ROWS} are needed")
    if not raw and frame[target].isna().any():
        n = int(frame[target].isna().sum())
        decisions.append(f"{n} row{'s' * (n > 1)} without the target left out")
        frame = frame[frame[target].notna()].reset_index(drop=True)
        if len(frame) < MIN_ROWS:
            raise DataError(f"{path} has {len(frame)} rows with a target; {MIN_ROWS} are needed")
    _check_target(path, frame[target], found, separator)
    inputs = frame.drop(columns=[target])
    x = _inputs(path, inputs, target) if raw else None
    column = _typed(frame[target] if raw else untidy.unmarked(frame[target], separator), task)
    chosen, reason = _task(column, target, task)
    classes: list[str] = []
    y = column.to_numpy()
    labels = y[:0]
    if chosen == "classification":
        labels, y = np.unique(y.astype(str) if y.dtype == object else y, return_inverse=True)
        classes = [str(label) for label in labels]
        _check_classes(path, column, classes, np.bincount(y), forced=task is not None)
    parts = split(len(y), y if classes else None, seed=seed)
    columns, left_out = None, []
    features = [str(name) for name in inputs.columns]
    if x is None:
        columns, x, told = _encoded(path, inputs, target, parts[0], separator)
        decisions += told
        features = columns.inputs
        left_out = [str(x) for x in inputs.columns if x not in columns.names]
        if list(columns.names) == features and not columns.texts and not told:
            columns = None  # each is an input, as it is
    scaling = _scaling(path, np.array(features), x, parts[0])
    if chosen == "regression":
        y = y.astype(np.float64)
        mean, scale = moments(y[parts[0]])
        scaling |= {"y_mean": mean, "y_scale": scale}
        y = _scaled(y, mean, scale)
        if not ((abs(y) < MAX_TARGET).all() and np.isfinite(scale)):
            raise DataError(
                f"the target {target!r} has values far too large compared with the others; "
                "remove them"
            )
    return _dataset(
        name=path.stem.removesuffix(".csv"),
        task=chosen,
        reason=reason,
        features=features,
        classes=classes,
        labels=labels,
        x=x,
        y=y,
        parts=parts,
        scaling=scaling,
        columns=columns,
        decisions=decisions,
        separator=separator,
        left_out=left_out,
    )


def _named(separator: str) -> str:
    return "tabs" if separator == "\t" else repr(separator)


def _encoded(
    path: Path, inputs: Any, target: str, train: Array, separator: str
) -> tuple[Columns, Array, list[str]]:
    """How the columns become inputs, these, and what is said of it. Raises DataError."""
    if not len(inputs.columns):
        raise DataError(f"{path} has no column other than the target {target!r} to predict it from")
    columns, told = untidy.decided(path, inputs, train, separator)
    try:
        x, _ = columns.encoded(inputs)
    except NotANumber as error:
        raise DataError(
            f"{path} has {csv_files.cut(error.value)} in column {error.column!r}, row "
            f"{error.row + 1}; expected {error.expected}; correct it, or leave the column out with "
            "--ignore"
        ) from None
    return columns, x, told


def _dataset(x: Array, y: Array, parts: Sequence[Array], **rest: Any) -> Dataset:
    """Scales the inputs and cuts the data into its parts."""
    scaling = rest["scaling"]
    x = _scaled(x, scaling["x_mean"], scaling["x_scale"]).astype(np.float32)
    train, validation, test = (Part(x[part], y[part]) for part in parts)
    return Dataset(train=train, validation=validation, test=test, **rest)


def _scaling(path: Path, columns: Any, x: Array, train: Array) -> dict[str, Array]:
    """Mean and scale of the inputs. Raises DataError where scaled inputs are beyond float32."""
    mean, scale = moments(x[train])
    beyond = ~((abs(_scaled(x, mean, scale)) < MAX_INPUT).all(axis=0) & np.isfinite(scale))
    if beyond.any():
        raise DataError(
            f"{path} has values far too large compared with the others in column "
            f"{csv_files.listed(columns[beyond])}; remove them"
        )
    return {"x_mean": mean, "x_scale": scale}


@np.errstate(over="ignore", invalid="ignore")
def moments(x: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Mean and standard deviation along the first axis, weighted by sample where there are weights,
    which are more than 0; where a column is constant, one of its values and 1. Its mean is rounded,
    and its deviation is the rounding alone."""
    same = constant(x)
    mean = np.average(x, axis=0, weights=weight)
    deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
    scale = np.where(same | (deviation == 0), 1.0, deviation)  # 0: its square is below double
    return np.where(same, x[0], mean), scale


@np.errstate(over="ignore", invalid="ignore")
def _scaled(x: Array, mean: Array, scale: Array) -> Array:
    scaled: Array = (x - mean) / scale
    return scaled


def _check_target(path: Path, column: Any, found: bytes, separator: str) -> None:
    """Raises DataError for missing values of the target."""
    missing = column.isna()
    if not missing.any():
        return
    words = csv_files.missing_words(found, separator, column.name, missing.to_numpy())
    several = len(words) > 1
    classes = "are classes, give them other names" if several else "is a class, give it another one"
    hint = f"; if {csv_files.listed(words)} {classes}" if words else ""
    raise DataError(
        f"{path} has missing values in column {column.name!r} ({missing.sum()} of {len(column)} "
        f"rows), the target; fill them in, or remove these rows{hint}"
    )


def _check_inputs(path: Path, inputs: Any) -> None:
    """Raises DataError for missing values of the inputs."""
    missing = inputs.isna().sum()
    if missing.any():
        found = [f"{name!r} ({n} of {len(inputs)} rows)" for name, n in missing.items() if n]
        raise DataError(
            f"{path} has missing values in column {csv_files.shortened(found)}; "
            "fill them in, remove these rows, or leave the column out with --ignore"
        )


def _inputs(path: Path, inputs: Any, target: str) -> Array:
    """The inputs as float64. Raises DataError where they are not finite numbers."""
    if not len(inputs.columns):
        raise DataError(f"{path} has no column other than the target {target!r} to predict it from")
    _check_inputs(path, inputs)
    pandas = require("pandas", "train", "reading tables")
    text, commas = [], True
    for name, column in inputs.items():
        if column.dtype.kind not in "fiub":
            # Integers too long for 64 bits are no text.
            numbers = pandas.to_numeric(column, errors="coerce").astype(np.float64)
            inputs = inputs.assign(**{name: numbers})
            if numbers.isna().any():
                words = column[numbers.isna()]
                text.append(f"{name!r} (such as {csv_files.cut(words.iloc[0])!r})")
                commas = commas and csv_files.commas(words)
    if text and commas:
        raise DataError(
            f"{path} has numbers with a comma in column {csv_files.shortened(text)}; "
            "write them with a decimal point, as 1234.5"
        )
    if text:
        raise DataError(
            f"{path} has text in column {csv_files.shortened(text)}; turn it into numbers, "
            "for instance with pandas.get_dummies, or leave the column out with --ignore"
        )
    nameless = [name for name in inputs.columns if str(name).startswith("Unnamed: ")]
    if nameless:
        raise DataError(
            f"{path} has a column without a name, perhaps row numbers; "
            f"name it, or leave it out with --ignore {nameless[0]!r}"
        )
    x: Array = inputs.to_numpy(dtype=np.float64)
    infinite = inputs.columns[~np.isfinite(x).all(axis=0)]
    if len(infinite):
        raise DataError(
            f"{path} has infinite values in column {csv_files.listed(infinite)}; remove them"
        )
    return x


def _typed(text: Any, task: Task | None) -> Any:
    """The target with the type that all of its values have: numbers, true/false or text.

    A few whole numbers of which some begin with 0, as 007, are codes, and stay text: 07 is another
    one.
    """
    pandas = require("pandas", "train", "reading tables")
    lines = io.StringIO(text.to_csv(header=False, index=False))
    typed = pandas.read_csv(lines, header=None, skip_blank_lines=False, low_memory=False)[0]
    typed = typed.rename(text.name)
    codes = typed.dtype.kind in "iu" and text.str.fullmatch(r"\s*[+-]?0\d+\s*").any()
    few = task == "classification" or text.nunique() <= MAX_INTEGER_CLASSES
    if few and task != "regression":
        return text if codes else typed
    return typed if typed.dtype.kind in "fiub" else _long(typed)


def _long(column: Any) -> Any:
    """Whole numbers beyond 64 bits, which pandas leaves as they are, as float64; text as it is.

    Raises DataError where that makes all of them one number.
    """
    pandas = require("pandas", "train", "reading tables")
    numbers = pandas.to_numeric(column, errors="coerce").astype(np.float64)
    if numbers.isna().any():
        return column
    if numbers.nunique() == 1 < column.nunique():
        raise DataError(
            f"the target {column.name!r} holds whole numbers such as "
            f"{csv_files.cut(column.iloc[0])}, which are all the same in double precision; "
            "subtract the smallest from all"
        )
    return numbers


def _task(column: Any, target: str, forced: Task | None) -> tuple[Task, str]:
    """The task and the reason for it. Raises DataError."""
    different = column.nunique()
    if different == 1:
        raise DataError(
            f"the target {target!r} is {csv_files.cut(column.iloc[0])} in every row; "
            "there is nothing to learn"
        )
    numeric = column.dtype.kind in "fiu"
    if numeric and not np.isfinite(column).all():
        raise DataError(f"the target {target!r} has infinite values; remove them")
    if forced == "regression" and not numeric:
        raise DataError(
            f"the target {target!r} holds {csv_files.cut(column.iloc[0])!r}, not numbers; "
            f"regression needs numbers{_decimal(column) or ', use --task classification'}"
        )
    if forced is not None:
        return forced, "as asked"
    if not numeric:
        kind = "true or false" if column.dtype.kind == "b" else "text"
        return "classification", f"{target!r} holds {kind}"
    if (column % 1 == 0).all() and different <= MAX_INTEGER_CLASSES:
        return "classification", f"{target!r} holds {different} different whole numbers"
    return "regression", f"{target!r} holds {different} different numbers"


def _check_classes(
    path: Path, column: Any, classes: list[str], counts: Array, forced: bool
) -> None:
    """Raises DataError if there are too few rows of a class."""
    rare = [f"{name!r}" for name, n in zip(classes, counts, strict=True) if n < MIN_ROWS_PER_CLASS]
    if rare:
        hint = "" if forced else ", or, if the target is a quantity, give --task regression"
        if _decimal(column):
            hint = f", or, if they are numbers, have them{_decimal(column)}"
        raise DataError(
            f"{path} has fewer than {MIN_ROWS_PER_CLASS} rows for the {column.name} "
            f"{csv_files.shortened(rare)}; add rows, or remove these{hint}"
        )


def _decimal(column: Any) -> str:
    """What to do with a target whose numbers have a decimal comma, which makes them text."""
    text = column.dtype.kind not in "fiub" and csv_files.commas(column)
    return " written with a decimal point, as 1234.5" if text else ""
