"""How each column of an untidy table becomes inputs: numbers, dates, categories, or nothing."""

import re
from typing import Any

import numpy as np

from steepest.data import csv_files
from steepest.data.csv_files import DataError
from steepest.extras import require
from steepest.memory.arrays import Array
from steepest.models.columns import DATE_FORMATS, Column, Columns, Marks

__all__ = ["decided", "unmarked"]

# Text of more different values than this is one input, the place in their order.
MOST_CATEGORIES = 20

# Text of which so many values are different is a name or a number of the row, and is left out.
NAMES = 0.5

# Numbers in text: 0,5 and 1.234,56; 1,234 and 1,234.5. Where both fit, as 1,234, a file with
# semicolons, which leave the comma free, has decimal commas, another one thousands.
MARKS: dict[Marks, str] = {
    "1.234,5": r"\s*[+-]?(\d+|\d{1,3}([. '\u00a0\u202f]\d{3})+)(,\d+)?([eE][+-]?\d+)?\s*",
    "1,234.5": r"\s*[+-]?(\d+|[1-9]\d{0,2}([, '\u00a0\u202f]\d{3})+)(\.\d+)?([eE][+-]?\d+)?\s*",
}


def decided(
    path: Any, inputs: Any, train: Array, separator: str = ","
) -> tuple[Columns, list[str]]:
    """What the columns of a DataFrame become, and a line for each that is more than a number.

    Medians and categories are those of the rows ``train``. Raises DataError where nothing is left.
    """
    found: list[Column] = []
    lines = []
    for name in inputs.columns:
        column, line = _column(str(name), inputs[name], train, separator)
        if column is not None:
            found.append(column)
        if line:
            lines.append(f"column {csv_files.cut(name)}: {line}")
    if not found:
        raise DataError(f"{path} has no column that can be an input: {'; '.join(lines)}")
    return Columns(tuple(found)), lines


def unmarked(column: Any, separator: str = ",") -> Any:
    """A column of text as text of numbers with a decimal point, if all of it are such numbers."""
    marks = _marks(column.dropna().astype(str), separator)
    if not marks:
        return column
    return column.map(Column("", "number", marks=marks).unmarked, na_action="ignore")


def _column(name: str, column: Any, train: Array, separator: str) -> tuple[Column | None, str]:
    """What a column becomes, None if it is left out, and what is said of it."""
    if re.fullmatch(r"Unnamed: \d+", name):
        return None, "left out, since it has no name; perhaps row numbers"
    missing = column.isna().to_numpy()
    there = column[~missing]
    if missing[train].all():
        return None, "left out, since it is empty"
    flag = bool(missing.any())
    gaps = f"{int(missing.sum())} of {len(column)} values missing" if flag else ""
    if column.dtype.kind in "fiub" or _numeric(there):
        return _filled(Column(name, "number", flag=flag), column, train, gaps, "")
    text = there.astype(object).astype(str)
    marks = _marks(text, separator)
    if marks:
        told = f"numbers as {marks}"
        return _filled(Column(name, "number", flag=flag, marks=marks), column, train, gaps, told)
    dates = _dates(text)
    if dates:
        how = "2026-11-29" if dates == "ISO8601" else dates
        told = f"dates as {how}, in days since 1970"
        return _filled(Column(name, "date", flag=flag, format=dates), column, train, gaps, told)
    return _categories(name, column, train, flag, gaps)


def _categories(
    name: str, column: Any, train: Array, flag: bool, gaps: str
) -> tuple[Column | None, str]:
    """A column of text."""
    text = column.iloc[train].dropna().astype(object).astype(str)
    values = tuple(sorted(text.unique()))
    many = len(values) > MOST_CATEGORIES
    if many and len(values) > NAMES * len(text):
        return None, f"left out, {len(values)} different texts in {len(text)} rows"
    how = "in their order" if many else "one-hot"
    told = f"{len(values)} categories, {how}" + (f"; {gaps}: a flag" if flag else "")
    return Column(name, "order" if many else "categories", 0.0, flag, values), told


def _filled(column: Column, cells: Any, train: Array, gaps: str, told: str) -> tuple[Column, str]:
    """The column with the median of the training part for what is missing."""
    read = column.numbers(cells) if column.kind == "number" else column.days(cells)
    part = read[train]
    part = part[np.isfinite(part)]
    if len(part):
        column = Column(**vars(column) | {"fill": float(np.median(part))})
    gaps = f"{gaps}: the median and a flag" if gaps else ""
    return column, "; ".join(one for one in (told, gaps) if one)


def _numeric(there: Any) -> bool:
    """Whether cells that pandas has not read as numbers are some: whole ones beyond 64 bits, or
    true and false beside missing values."""
    pandas = require("pandas", "train", "reading tables")
    return bool(pandas.to_numeric(there, errors="coerce").notna().all())


def _marks(text: Any, separator: str) -> Marks:
    """How numbers are written in a column of text, empty if these are none, or need no marks."""
    order = MARKS if separator == ";" else reversed(MARKS)
    for marks, pattern in [(marks, MARKS[marks]) for marks in order]:
        if text.str.fullmatch(pattern).all() and text.str.contains(r"\d[,. '\u00a0\u202f]\d").any():
            return marks
    return ""


def _dates(text: Any) -> str:
    """The format that all of a column of text are dates in, empty if there is none."""
    pandas = require("pandas", "train", "reading tables")
    if not text.str.match(r"\s*\d{1,4}[-/.]?\d").all():
        return ""
    for form in DATE_FORMATS:
        try:
            pandas.to_datetime(text, format=form, utc=True)
        except (ValueError, TypeError, OverflowError):
            continue
        return form
    return ""
