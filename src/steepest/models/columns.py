"""How the columns of a table become the inputs of a model: numbers, dates and categories.

What was decided at training is data, written to JSON: no code comes from the folder of a run.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from steepest.extras import require
from steepest.memory.arrays import Array

__all__ = ["Column", "Columns", "DATE_FORMATS", "NotANumber"]

Kind = Literal["number", "date", "categories", "order"]
Marks = Literal["", "1.234,5", "1,234.5"]

# In this order: where all dates of a column fit two of them, as 03/04/2020, the first is taken.
DATE_FORMATS = (
    "ISO8601",
    "%d.%m.%Y",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y %H:%M:%S",
    "%m/%d/%Y",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y",
    "%d/%m/%Y %H:%M",
    "%d/%m/%Y %H:%M:%S",
    "%Y/%m/%d",
    "%Y/%m/%d %H:%M:%S",
)


class NotANumber(ValueError):
    """A cell that is neither missing nor what its column holds; row counts from 0."""

    def __init__(self, row: int, column: str, value: Any, expected: str) -> None:
        super().__init__(row, column, value, expected)
        self.row, self.column, self.value, self.expected = row, column, value, expected

    def __str__(self) -> str:
        return f"x[{self.row}, {self.column!r}] is {self.value!r}, where {self.expected} is needed"


@dataclass(frozen=True)
class Column:
    """One column of a table, and the inputs that it becomes.

    name: in the header. kind: "number" and "date" become one input, a date the days since 1970;
    "categories" one for each of ``values``, or a single one for the second of two; "order" the
    index in ``values``. fill: what a missing number or date becomes. flag: whether a further input
    is 1 where the value is missing, else 0; of categories a missing value is 0 in all others.
    marks: how numbers are written that have a decimal comma, or thousands apart. format: of dates,
    one of ``DATE_FORMATS``.

    >>> column = Column("city", "categories", flag=True, values=("Oslo", "Rome", "Lima"))
    >>> column.inputs
    ['city = Oslo', 'city = Rome', 'city = Lima', 'city missing']
    >>> column.encoded(["Rome", None, "Bonn"])[0].tolist()
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    """

    name: str
    kind: Kind
    fill: float = 0.0
    flag: bool = False
    values: tuple[str, ...] = ()
    marks: Marks = ""
    format: str = ""

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs."""
        named = [f"{self.name} = {value}" for value in self.values]
        own = named[len(named) == 2 :] if self.kind == "categories" else [self.name]
        return [*own, *([f"{self.name} missing"] if self.flag else [])]

    def encoded(self, cells: Any) -> tuple[Array, list[str]]:
        """The inputs of these cells, of shape (cells, inputs), and the values that are not known.

        Raises NotANumber for a cell that is none.
        """
        pandas = require("pandas", "train", "columns of a table")
        column = pandas.Series(np.asarray(cells, object) if _plain(cells) else cells)
        missing = column.isna().to_numpy()
        unknown: list[str] = []
        if self.kind in ("number", "date"):
            read = self.numbers(column) if self.kind == "number" else self.days(column)
            self._check(column, read, missing)
            found = np.where(missing, self.fill, read)[:, None]
        else:
            words = column.astype(object).where(~missing, "").astype(str).to_numpy(object)
            index = pandas.Index(self.values).get_indexer(words)
            known = (index >= 0) & ~missing
            unknown = list(dict.fromkeys(words[~known & ~missing]))
            if self.kind == "order":
                found = np.where(known, index, -1.0)[:, None]
            else:
                found = (index[:, None] == np.arange(len(self.values))) & known[:, None]
                found = found[:, len(self.values) == 2 :]
        parts = [found, missing[:, None]] if self.flag else [found]
        return np.concatenate([part.astype(np.float64) for part in parts], axis=1), unknown

    def numbers(self, column: Any) -> Array:
        """A pandas Series as float64, with NaN for what is no number."""
        pandas = require("pandas", "train", "columns of a table")
        if column.dtype.kind not in "fiub":
            if self.marks:
                column = column.map(self.unmarked, na_action="ignore")
            column = pandas.to_numeric(column, errors="coerce")
        found: Array = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return found

    def unmarked(self, cell: Any) -> Any:
        """A number as Python writes it."""
        if not isinstance(cell, str):
            return cell
        point, comma = (",", ".") if self.marks == "1.234,5" else (".", ",")
        for mark in (comma, " ", "'", "\u00a0", "\u202f"):
            cell = cell.replace(mark, "")
        return cell.replace(point, ".")

    def days(self, column: Any) -> Array:
        """A pandas Series of dates as days since 1970, with NaN for what is no date."""
        pandas = require("pandas", "train", "columns of a table")
        dates = pandas.to_datetime(column, format=self.format, errors="coerce", utc=True)
        since = (dates - pandas.Timestamp(0, tz="UTC")) / pandas.Timedelta(days=1)
        found: Array = since.to_numpy(dtype=np.float64, na_value=np.nan)
        return found

    def _check(self, column: Any, read: Array, missing: Array) -> None:
        """Raises NotANumber where there is something that was not read."""
        wrong = np.flatnonzero(~np.isfinite(read) & ~missing)
        if len(wrong):
            row = int(wrong[0])
            expected = "a finite number" if self.kind == "number" else f"a date as {self._dates}"
            raise NotANumber(row, self.name, column.iloc[row], expected)

    @property
    def _dates(self) -> str:
        return "2026-11-29" if self.format == "ISO8601" else self.format

    @classmethod
    def from_json(cls, record: Any) -> "Column":
        """The column that was recorded. Raises ValueError or TypeError for anything else."""
        found = cls(**record | {"values": tuple(record["values"])})
        texts = (found.name, found.format, *found.values)
        if (
            found.kind not in get_args(Kind)
            or not all(isinstance(x, str) for x in texts)
            or not isinstance(found.flag, bool)
            or found.marks not in get_args(Marks)
            or not (isinstance(found.fill, (int, float)) and math.isfinite(found.fill))
            or found.format not in (DATE_FORMATS if found.kind == "date" else ("",))
        ):
            raise ValueError(f"column {record}: expected one of a run")
        return found


def _plain(cells: Any) -> bool:
    """Whether these are a list of anything, whose types pandas had better not guess."""
    return isinstance(cells, (list, tuple))


@dataclass(frozen=True)
class Columns:
    """All columns of a table that a model is trained on, in their order.

    >>> columns = Columns((Column("age", "number", 30.0, True), Column("ill", "number")))
    >>> columns.inputs
    ['age', 'age missing', 'ill']
    >>> columns.encoded({"ill": [True, False], "age": [None, 4]})
    (array([[30.,  1.,  1.],
           [ 4.,  0.,  0.]]), [])
    """

    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Those in the header."""
        return tuple(column.name for column in self.columns)

    @property
    def texts(self) -> list[str]:
        """The columns whose cells are taken as they are written."""
        return [x.name for x in self.columns if x.kind != "number" or x.marks]

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs of the model."""
        return [name for column in self.columns for name in column.inputs]

    @property
    def origins(self) -> list[str]:
        """The name of the column that each input comes from."""
        return [column.name for column in self.columns for _ in column.inputs]

    def encoded(self, table: Any) -> tuple[Array, list[str]]:
        """The inputs, of shape (rows, inputs), and what there is to say of the table: columns that
        it lacks, which count as missing in every row, and values that are not known.

        Raises NotANumber for a cell that is none, ValueError where no column is there, or columns
        have different lengths.
        """
        there = [name for name in self.names if name in table]
        if not there:
            raise ValueError("there is none of the columns that the model was trained on")
        n = len(table[there[0]])
        found, notes = [], []
        for column in self.columns:
            if column.name not in there:
                notes.append(f"there is no column {column.name!r}; it counts as missing")
            cells = table[column.name] if column.name in there else [None] * n
            if len(cells) != n:
                raise ValueError(
                    f"column {column.name!r} has {len(cells)} values, {there[0]!r} has {n}"
                )
            part, unknown = column.encoded(cells)
            found.append(part)
            if unknown:
                shown = ", ".join(repr(value[:40]) for value in unknown[:5])
                more = ", …" if len(unknown) > 5 else ""
                notes.append(
                    f"column {column.name!r} has values that the training had not: {shown}{more}"
                )
        return np.concatenate(found, axis=1), notes

    def to_json(self) -> list[dict[str, Any]]:
        """As JSON has it."""
        return [asdict(column) | {"values": list(column.values)} for column in self.columns]

    @classmethod
    def from_json(cls, record: Sequence[Any]) -> "Columns":
        """The columns that were recorded. Raises ValueError, TypeError or KeyError."""
        return cls(tuple(Column.from_json(one) for one in record))
