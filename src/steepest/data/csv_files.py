"""CSV files as pandas DataFrames, and what to say of files and columns that cannot be used."""

import bz2
import csv
import difflib
import gzip
import io
import lzma
import re
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from steepest.extras import require

__all__ = [
    "DataError",
    "content",
    "cut",
    "frame",
    "listed",
    "no_column",
    "plain",
    "separates",
    "separator_of",
    "shortened",
]

SEPARATORS = (",", ";", "\t", "|")

# What files begin with that are no text.
PACKED = {
    b"\x1f\x8b": "compressed with gzip; decompress it",
    b"BZh": "compressed with bzip2; decompress it",
    b"\xfd7zXZ\x00": "compressed with xz; decompress it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it",
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save it as CSV",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"\xd0\xcf\x11\xe0": "a spreadsheet; save it as CSV",
    b"PAR1": "a Parquet file; save it as CSV",
}

# Numbers as other languages write them: 0,5 and 1.234,56, and thousands apart.
COMMAS = r"\s*[+-]?[\d. \u00a0\u202f']*\d?,\d+(,\d{3})*(\.\d+)?([eE][+-]?\d+)?\s*"


class DataError(ValueError):
    """Data that cannot be trained on; the message says what is wrong and what to do."""


def content(path: Path) -> bytes:
    """What is in a file, read once: a pipe cannot be read again. Raises DataError."""
    require("pandas", "train", "reading tables")  # told before anything is read
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def plain(path: Path, found: bytes) -> tuple[bytes, list[str]]:
    """The content of a file as text in UTF-8, and what was done to it: unpacked, decoded.

    Raises DataError for an archive of several files, and for a damaged one.
    """
    notes = []
    for start, name, unpack in (
        (b"\x1f\x8b", "gzip", gzip.decompress),
        (b"BZh", "bzip2", bz2.decompress),
        (b"\xfd7zXZ\x00", "xz", lzma.decompress),
        (b"PK\x03\x04", "zip", lambda packed: _unzipped(path, packed)),
    ):
        if found.startswith(start):
            try:
                found = unpack(found)
            except (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
                reason = " ".join(str(error).split())
                raise DataError(f"{path} is compressed with {name} and damaged: {reason}") from None
            notes.append(f"unpacked ({name})")
            break
    for start, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if found.startswith(start):
            with suppress(UnicodeDecodeError):
                return found.decode(encoding).encode(), [*notes, "decoded from UTF-16"]
    try:
        found.decode("utf-8")
    except UnicodeDecodeError:
        if b"\0" in found or _packed(found):
            return found, notes  # which no text has
        try:
            found = found.decode("cp1252").encode()
            notes.append("decoded from Windows-1252, since it is no UTF-8")
        except UnicodeDecodeError:
            found = found.decode("latin-1").encode()
            notes.append("decoded from Latin-1, since it is no UTF-8")
    return found, notes


def _unzipped(path: Path, packed: bytes) -> bytes:
    """The one file in a zip archive. Raises DataError for others."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]
        if "[Content_Types].xml" in files:
            raise DataError(f"{path} is a spreadsheet; save it as CSV")
        if len(files) != 1:
            raise DataError(f"{path} is a zip archive of {listed(files)}; expected one CSV file")
        try:
            return archive.read(files[0])
        except RuntimeError as error:  # encrypted
            raise DataError(f"{path} cannot be unpacked: {error}") from None


def separator_of(found: bytes, needed: Sequence[str], usual: str = ",") -> tuple[bytes, str]:
    """The character between the columns, and the content without a first line that tells it to
    Excel: the one that makes most columns, those that are ``needed`` among them; where several do,
    the ``usual`` one.

    >>> separator_of(b"a;b;c\\n1;2,5;3\\n", ["b"])[1]
    ';'
    """
    start = found.removeprefix(b"\xef\xbb\xbf")
    excel = re.match(rb"\s*\"?sep=([^\r\n\"])\"?\r?\n", start)
    if excel:
        return start[excel.end() :], excel[1].decode("latin-1")

    def columns(separator: str) -> tuple[int, int]:
        try:
            header = _header(found, separator)
        except (csv.Error, UnicodeDecodeError):  # told when it is read as a table
            return 0, 0
        return sum(name in header for name in needed), len(header)

    return found, max((usual, *SEPARATORS), key=columns)


def separates(separator: str) -> bool:
    """Whether this can separate columns: one character without another meaning.

    >>> separates(";"), separates("\\n"), separates("::")
    (True, False, False)
    """
    return len(separator) == 1 and separator.isascii() and separator not in '\n\r"\0'


def frame(
    path: Path, found: bytes, separator: str, needed: Sequence[str], text: Sequence[str] = ()
) -> Any:
    """The content of a file as a pandas DataFrame, some columns as text. Raises DataError, also
    where one of the ``needed`` columns is missing.

    Other columns get the type that all of their values have (``low_memory``: of each block).
    """
    pandas = require("pandas", "train", "reading tables")
    try:
        _check_header(path, found, separator, needed)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            dtype = dict.fromkeys(text, str)
            table: Any = _parsed(found, separator, dtype, low_memory=False)
    except UnicodeDecodeError:
        raise DataError(_no_text(path, found)) from None
    except (csv.Error, pandas.errors.ParserError, pandas.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not a regular table: {reason}") from None
    return table


def _no_text(path: Path, found: bytes) -> str:
    """What a file is that is no text, as far as its first bytes tell."""
    packed = _packed(found)
    return f"{path} is {packed[0] if packed else 'not text in UTF-8; save it as CSV in UTF-8'}"


def _packed(found: bytes) -> list[str]:
    """What a file is and what to do, if it is packed."""
    packed = [advice for start, advice in PACKED.items() if found.startswith(start)]
    return ["a tar archive; unpack it"] if found[257:262] == b"ustar" else packed


def _parsed(found: bytes, separator: str, dtype: Any, **options: Any) -> Any:
    pandas = require("pandas", "train", "reading tables")
    return pandas.read_csv(
        io.BytesIO(found),
        sep=separator,
        encoding="utf-8-sig",
        index_col=False,
        dtype=dtype,
        **options,
    )


def missing_words(found: bytes, separator: str, column: str, missing: Any) -> list[str]:
    """The text in a column that was read as missing values, such as NA."""
    text = _parsed(found, separator, str, keep_default_na=False)[column][missing]
    return [word for word in text.dropna().unique() if word]


def _check_header(path: Path, found: bytes, separator: str, needed: Sequence[str]) -> None:
    """Raises DataError for a header that lacks a column, or has one twice."""
    if b"\0" in found:  # at which a parser of text may stop without a word
        raise DataError(_no_text(path, found))
    header = _header(found, separator)
    if not header:
        raise DataError(f"{path} is empty; expected a header line and rows of numbers")
    excel = re.fullmatch(r"sep=(.)?", header[0])
    if excel and not any(header[1:]):
        raise DataError(
            f"{path} begins with the line {f'sep={excel[1] or separator}'!r}, which only Excel "
            f"reads; remove it, and give --separator {excel[1] or separator!r}"
        )
    missing = [name for name in needed if name not in header]
    if missing:
        wrong = _separated(path, found, separator, missing[0])
        raise DataError(wrong or no_column(path, missing[0], header))
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise DataError(f"{path} has more than one column named {listed(doubled)}; rename them")


def _separated(path: Path, found: bytes, separator: str, target: str) -> str:
    """That another character separates the columns, if one does."""
    header = _header(found, separator)
    for other in (";", "\t", "|", ","):
        names = _header(found, other)
        if target in names or (len(header) == 1 and len(names) > 1):
            has = "columns" if header[1:] else "one column, named"
            advice = f"if {other!r} separates its columns, give --separator {other!r}"
            return f"{path} has {has} {listed(header)}; {advice}"
    return ""


def _header(found: bytes, separator: str) -> list[str]:
    """The names in the first line that is not blank."""
    lines = io.TextIOWrapper(io.BytesIO(found), newline="", encoding="utf-8-sig")
    rows = csv.reader(lines, delimiter=separator)
    for row in rows:  # no generator: Ctrl-C while one is dropped would be lost
        if len(row) > 1 or "".join(row).strip():
            return row
    return []


def no_column(path: Path, name: str, columns: Sequence[str]) -> str:
    """That there is no column of this name, and which one may have been meant."""
    message = f"{path} has no column {name!r}; it has {listed(columns)}"
    for other in columns:
        if _look(other) == _look(name):
            return f"{message}; {_difference(name, other)}"
    near = difflib.get_close_matches(name, columns, n=1)
    return f"{message}; did you mean {near[0]!r}?" if near else message


def _look(name: str) -> str:
    """What is left of a name where letters of different case, spaces of different kinds and
    accents that are characters of their own count as the same."""
    whole = unicodedata.normalize("NFKC", name).casefold()
    return " ".join("".join(x for x in whole if unicodedata.category(x) != "Cf").split())


def _difference(name: str, other: str) -> str:
    """How the name of a column differs from one that looks like it."""
    if name.casefold() == other.casefold():
        return f"did you mean {other!r}? Case matters"
    if other.isascii():
        return f"did you mean {other!r}? Spaces count"
    return (
        f"did you mean {other!a}? It looks like {name!a} and has other characters, such "
        "as another kind of space or accents apart from their letters; rename it"
    )


def commas(text: Any) -> bool:
    """Whether all of a column of text are numbers with a comma, as 0,5."""
    return bool(text.astype(str).str.fullmatch(COMMAS).all())


def cut(value: Any, most: int = 40) -> str:
    """A value in one line that is not too long."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(names: Sequence[Any]) -> str:
    """Names in quotes, not too many."""
    return shortened([repr(cut(name)) for name in names])


def shortened(items: Sequence[str], most: int = 8) -> str:
    """The first of a list, and how many more there are."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return ", ".join([*items[:most], *more])
