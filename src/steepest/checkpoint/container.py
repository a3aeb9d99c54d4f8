"""The file: named arrays and a map of strings, in the safetensors format, with digests.

    8 bytes         n, the length of the header, an unsigned little-endian integer
    n bytes         the header, JSON in UTF-8, padded with spaces:
                    {"__metadata__": {string: string},
                     name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
    all the rest    the arrays' bytes, little-endian, in C order, without gaps

(https://huggingface.co/docs/safetensors, section "Format".) Every reader of safetensors reads
these files. Two entries of the metadata make them notice damage: ``sha256``, the digest of each
array as JSON, and ``sha256_metadata``, that of all other entries.

The bytes are written and read here and not by the ``safetensors`` package, which is what the tests
compare with. That one (0.8) syncs nothing to the disk, leaves files with other permissions and,
when killed, temporary files; it maps the file into memory, so that a file that is cut short by
another process while it is read ends this process, too; and of two entries with one name it takes
the last.

A reader must not trust a file: every number is checked against the file's own length before
anything is allocated, and nothing in a file can name code.
"""

import hashlib
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from steepest import nesting
from steepest.checkpoint import atomic
from steepest.checkpoint.error import CheckpointError
from steepest.memory import formats
from steepest.memory.arrays import Array
from steepest.memory.files import Scratch

_FURTHER: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "C64": np.dtype("<c8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""What further arrays may be, by the names that safetensors has for it."""


def stored_types() -> dict[str, np.dtype[Any]]:
    """What can be stored, by name: what formats of parameters are stored as, and others."""
    largest_first = sorted(formats.FORMATS.values(), key=lambda x: -x.dtype.itemsize)
    stored = {x.code: formats.named(x.name).newbyteorder("<") for x in largest_first}
    return stored | {code: dtype for code, dtype in _FURTHER.items() if code not in stored}


def _codes() -> dict[np.dtype[Any], str]:
    codes = {dtype: code for code, dtype in stored_types().items()}
    return codes | {dtype: x.code for dtype, x in formats.FORMATS.items()}


MAX_HEADER = 100_000_000
"""The longest header in bytes; other readers have the same limit."""

_PART = 1 << 20  # bytes that are copied and written at a time

# What people mistake for a checkpoint, by its first bytes.
_OTHERS = {
    b"\x80": "a pickle, which is never loaded: it could run any program",
    b"PK\x03\x04": "a zip archive, as numpy.savez and torch.save write",
    b"\x93NUMPY": "a NumPy .npy file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed by gzip; decompress it first",
}


# Writing


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """Writes arrays and strings with their digests, atomically.

    Takes the memory of one part of an array, or of one array that is not in C order: a digest is of
    the very bytes that are written, whatever another thread does meanwhile, and the header, whose
    length is known before, is written last.

    Raises CheckpointError for a dtype or name that the format does not have, OSError.
    """
    for name, x in arrays.items():
        _storable(name, x)
    # Wide elements first: every array begins at a multiple of its element's size.
    ordered = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    digests = dict.fromkeys(arrays, "0" * 64)

    def header() -> memoryview:
        return memoryview(_header(ordered, _sealed(metadata, digests)))

    def chunks() -> Iterator[memoryview]:
        yield header()
        room = np.empty(_PART, np.uint8)
        for name, x in ordered.items():
            h = _typed(x)
            for part in _parts(x, room):
                h.update(part)
                yield part
            digests[name] = h.hexdigest()

    atomic.write(path, chunks(), header)


def _parts(x: Array, room: Array) -> Iterator[memoryview]:
    """The bytes of x in C order: copies in `room`, each good until the next is asked for."""
    flat = np.asarray(x, order="C").reshape(-1).view(np.uint8)
    for start in range(0, flat.size, room.size):
        part = flat[start : start + room.size]
        room[: part.size] = part
        yield room.data[: part.size]


def _storable(name: str, x: Array) -> None:
    if x.dtype not in _codes():
        raise CheckpointError(
            f"array {name!r} has dtype {x.dtype}, which cannot be stored; expected one of "
            f"{', '.join(map(str, _codes()))}, little-endian: convert it with .astype"
        )
    if not isinstance(name, str) or name == "__metadata__":
        raise CheckpointError(f"an array cannot have the name {name!r}; rename it")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise CheckpointError(f"the array name {name!r} is not valid Unicode; rename it") from None


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, x in arrays.items():
        begin, end = end, end + x.nbytes
        entries[name] = {
            "dtype": _codes()[x.dtype], "shape": x.shape, "data_offsets": [begin, end]
        }  # fmt: skip
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise CheckpointError(
            f"names and metadata take {len(text):,} bytes; the format allows {MAX_HEADER:,}: "
            "give large values as arrays"
        )
    return len(text).to_bytes(8, "little") + text


def _bytes(x: Array) -> memoryview:
    return memoryview(x.reshape(-1).view(np.uint8).data)


# Digests


def digest(x: Array) -> str:
    """SHA-256 of type, shape and values: of, say, ``b"F32[2, 3]"`` and the bytes in C order."""
    h = _typed(x)
    h.update(_bytes(x))
    return h.hexdigest()


def _typed(x: Array) -> "hashlib._Hash":
    """The digest as it begins: of type and shape."""
    return hashlib.sha256(f"{_codes()[x.dtype]}{list(x.shape)}".encode())


def _seal(metadata: Mapping[str, str]) -> str:
    """SHA-256 of the metadata, as JSON with sorted keys, but for this digest itself."""
    rest = {key: text for key, text in metadata.items() if key != "sha256_metadata"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sealed(metadata: Mapping[str, str], digests: Mapping[str, str]) -> dict[str, str]:
    sealed = dict(metadata) | {"sha256": json.dumps(digests)}
    return sealed | {"sha256_metadata": _seal(sealed)}


# Reading


def read(
    path: str | os.PathLike[str], files: Scratch | None = None
) -> tuple[dict[str, Array], dict[str, str]]:
    """All arrays, in the order in which they were given, and the metadata of a file.

    files: where to put the arrays, instead of in memory.

    Raises FileNotFoundError, or CheckpointError for whatever else is wrong with the file.
    """
    try:
        with open(path, "rb", opener=_opener) as file:
            return _read(file, os.fsdecode(path), files)
    except FileNotFoundError:
        raise
    except OSError as error:
        if files is not None and error.filename == files.folder:
            raise
        raise CheckpointError(f"{os.fsdecode(path)} cannot be read: {error.strerror}") from error


def _opener(path: str, flags: int) -> int:
    """Opens without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(
    file: IO[bytes], path: str, files: Scratch | None
) -> tuple[dict[str, Array], dict[str, str]]:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is no regular file")
    entries = _entries(_header_text(file, status.st_size, path), path)
    metadata = _metadata(entries.pop("__metadata__", None), path)
    spans = _spans(entries, status.st_size - file.tell(), path)
    digests = parse(metadata["sha256"], f"{path}: the list of digests")
    if not isinstance(digests, dict) or digests.keys() != spans.keys():
        raise CheckpointError(f"{path} is damaged: arrays and digests have different names")
    arrays: dict[str, Array] = {}
    if files is not None:
        files.reserve(nbytes for _, _, nbytes in spans.values())
    for name, (dtype, shape, nbytes) in spans.items():
        what = f"array {_short(name)}"
        arrays[name] = x = _empty(dtype, shape, f"{path}: {what}", files)
        if file.readinto(_bytes(x)) != nbytes:  # type: ignore[attr-defined]
            raise CheckpointError(f"{path} was cut short while it was read")
        if digest(x) != digests[name]:
            raise CheckpointError(f"{path} is damaged: {what} does not have its digest")
        if dtype == np.bool_ and x.size and x.view(np.uint8).max() > 1:
            raise CheckpointError(f"{path}: {what} has booleans other than 0 and 1")
    return {name: arrays[name] for name in digests}, metadata


def _header_text(file: IO[bytes], size: int, path: str) -> str:
    first = file.read(8)
    for start, what in _OTHERS.items():
        if first.startswith(start) and int.from_bytes(first, "little") > size - 8:
            raise CheckpointError(f"{path} is not a checkpoint: it looks like {what}")
    n = int.from_bytes(first, "little")
    if size < 8 or n > size - 8 or n > MAX_HEADER:
        raise CheckpointError(
            f"{path} is cut short, or is not a safetensors file: it has {size:,} bytes"
            + (f" and claims a header of {n:,}" if len(first) == 8 else "")
        )
    try:
        return file.read(n).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: the header is not UTF-8: {error}") from None


_ORDINARY = 3000
"""Up to this limit of recursion, Python reads what is nested in JSON without harm to the stack."""

_DEEPEST = 4 * nesting.DEEPEST
"""A dict with keys that are no text is three levels of JSON, the most that a container is."""


def _depth(text: str) -> int:
    """How deeply the lists and objects of a JSON text are nested."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def parse(text: str, what: str) -> Any:
    """The value of a JSON text without duplicate keys, NaN or infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(f"{what} has the key {_short(key)} twice")
            found[key] = value
        return found

    def refuse(constant: str) -> None:
        raise CheckpointError(f"{what} has {constant}, which JSON does not have")

    try:
        if sys.getrecursionlimit() > _ORDINARY and _depth(text) > _DEEPEST:
            raise RecursionError
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply") from None
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{what} is no JSON: {error}") from None


def _entries(text: str, path: str) -> dict[str, Any]:
    if not text.startswith("{"):
        raise CheckpointError(
            f"{path} is not a safetensors file: the header does not begin with {{"
        )
    entries = parse(text, f"{path}: the header")
    assert isinstance(entries, dict)
    return entries


def _metadata(given: Any, path: str) -> dict[str, str]:
    if given is None:
        raise CheckpointError(f"{path} is a safetensors file without metadata, not a checkpoint")
    if not isinstance(given, dict) or not all(isinstance(x, str) for x in given.values()):
        raise CheckpointError(f"{path}: the metadata is not a map of strings")
    if "sha256" not in given or "sha256_metadata" not in given:
        raise CheckpointError(f"{path} is a safetensors file without digests, not a checkpoint")
    if _seal(given) != given["sha256_metadata"]:
        raise CheckpointError(f"{path} is damaged: the metadata does not have its digest")
    return given


def _spans(
    entries: Mapping[str, Any], room: int, path: str
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]:
    """Type, shape and bytes of each array, in the order of the file, which they fill exactly."""
    spans = {}
    types = stored_types()
    for name, entry in entries.items():
        what = f"{path}: array {_short(name)}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"{what}: expected dtype, shape and data_offsets alone")
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(code, str) or code not in types:
            raise CheckpointError(
                f"{what} has dtype {_short(code)}; expected one of {', '.join(types)}"
            )
        if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
            raise CheckpointError(
                f"{what}: shape {_short(shape)}, data_offsets {_short(offsets)}: "
                "expected lists of counts"
            )
        begin, end = offsets
        if math.prod(shape) * types[code].itemsize != end - begin:
            raise CheckpointError(
                f"{what}: {code} of shape {_short(shape)} does not take {end - begin:,} bytes"
            )
        spans[name] = (begin, end, types[code], tuple(shape))
    ordered = sorted(spans.items(), key=lambda item: item[1][:2])
    at = 0
    for name, (begin, end, _, _) in ordered:
        if begin != at:
            kind = "overlaps another" if begin < at else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: array {_short(name)} {kind}: it begins at byte {begin:,}"
            )
        at = end
    if at != room:
        raise CheckpointError(
            f"{path} is cut short or has bytes too many: arrays of {at:,} bytes in {room:,}"
        )
    return {name: (dtype, shape, end - begin) for name, (begin, end, dtype, shape) in ordered}


def _sizes(given: Any) -> bool:
    """Whether it is a list of counts, of a length and size that no overflow can come from."""
    return (
        isinstance(given, list)
        and len(given) <= 64
        and all(type(n) is int and 0 <= n < 2**63 for n in given)
    )


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else text[:57] + "..."


def _empty(dtype: np.dtype[Any], shape: tuple[int, ...], what: str, files: Scratch | None) -> Array:
    try:
        return np.empty(shape, dtype) if files is None else files.zeros(shape, dtype)
    except ValueError as error:  # empty, but with axes too long for NumPy
        raise CheckpointError(f"{what} of shape {shape}: {error}") from None
