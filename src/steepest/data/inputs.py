"""The inputs of a model, read from a CSV file whose columns are found by their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steepest.data import csv_files
from steepest.data.csv_files import DataError
from steepest.extras import require
from steepest.memory.arrays import Array
from steepest.models.columns import Columns

__all__ = ["inputs", "untidy_inputs"]


def inputs(
    path: str | Path,
    columns: Sequence[str],
    *,
    separator: str = ",",
    others: Sequence[str] | None = None,
    raw: bool = True,
) -> Array:
    """These columns of a CSV file as float64, of shape (rows, columns), in the order that is given.

    columns: their names in the header line. others: the further columns that there may be; None
    for any. All cells of ``columns`` must hold numbers, or true/false in a whole column; no other
    cell is looked at. raw: whether a file has to be text in UTF-8; else it may be compressed, or in
    another encoding. A file is read once, so it may be a pipe.

    Raises DataError for a file that cannot be read, is empty, is no text in UTF-8 or no regular
    table, has no rows, lacks a column or has one that it may not have, or holds a cell that is no
    finite number: the message names file, row and column, the first row after the header being 1.
    Raises MissingExtra without pandas.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "new.csv"
    >>> _ = path.write_text("b,name,a\\n2,x,1\\n4,y,3\\n", encoding="utf-8")
    >>> inputs(path, ["a", "b"])
    array([[1., 2.],
           [3., 4.]])
    """
    path = Path(path)
    found = csv_files.content(path)
    if not raw:
        found, _ = csv_files.plain(path, found)
    frame = _frame(path, found, columns, columns, separator, others)
    x = np.stack([_numbers(frame[name]) for name in columns], axis=1)
    wrong = np.argwhere(~np.isfinite(x))
    if len(wrong):
        row, i = wrong[0]
        cell = _cell(frame[columns[i]].iloc[row], x[row, i])
        raise DataError(f"{place(path, row, columns[i])} {cell}; expected a finite number")
    return x


def untidy_inputs(
    path: str | Path,
    columns: Columns,
    *,
    separator: str | None = None,
    usual: str = ",",
    others: Sequence[str] | None = None,
) -> Any:
    """These columns of a CSV file as a pandas DataFrame, for a model with an encoder.

    The file may be compressed or in another encoding, as that of the training. ``separator`` None
    is found, and ``usual`` where it could be several. A column may be absent, unless its name looks
    like that of another one, or ``others`` are given. Arguments and errors are those of ``inputs``;
    no cell is looked at.
    """
    path = Path(path)
    found, _ = csv_files.plain(path, csv_files.content(path))
    if separator is None:
        found, separator = csv_files.separator_of(found, columns.names, usual)
    frame = _frame(path, found, [], columns.names, separator, others, columns.texts)
    there = [name for name in columns.names if name in frame.columns]
    for name in columns.names:
        if name not in there:
            told = csv_files.no_column(path, name, list(frame.columns))
            if "did you mean" in told or others is not None or not there:
                raise DataError(told)
    return frame[there]


def _frame(
    path: Path,
    found: bytes,
    needed: Sequence[str],
    columns: Sequence[str],
    separator: str,
    others: Sequence[str] | None,
    text: Sequence[str] = (),
) -> Any:
    """A CSV file as a DataFrame with at least one row. Raises DataError."""
    if not csv_files.separates(separator):
        raise DataError(f"separator = {separator!r}: expected one ASCII character between columns")
    frame = csv_files.frame(path, found, separator, needed, text)
    further = [x for x in frame.columns if others is not None and x not in {*columns, *others}]
    if further:
        raise DataError(
            f"{path} has columns that the model does not know: {csv_files.listed(further)}; remove "
            "them"
        )
    if len(frame) == 0:
        raise DataError(f"{path} has a header but no rows; there is nothing to predict")
    return frame


def place(path: Path, row: int, column: str | None = None) -> str:
    """Where something is in a file, the first row after the header being row 0 here, and 1 there.

    >>> place(Path("new.csv"), 0, "a")
    "new.csv, row 1, column 'a':"
    """
    where = "" if column is None else f", column {csv_files.cut(column)!r}"
    return f"{path}, row {row + 1}{where}:"


def _numbers(column: Any) -> Array:
    """A column as float64, with NaN for what is no number."""
    if column.dtype.kind not in "fiub":
        pandas = require("pandas", "train", "reading tables")
        column = pandas.to_numeric(column, errors="coerce")
    numbers: Array = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


def _cell(cell: Any, number: float) -> str:
    """What is wrong with a cell."""
    if not isinstance(cell, str):
        return "the value is missing" if np.isnan(number) else f"the value is {number}"
    return f"the value is {csv_files.cut(cell)!r}"
