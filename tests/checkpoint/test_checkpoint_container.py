"""The files of checkpoints: any damage is noticed, none is dangerous, and none is left by a crash.

The ``safetensors`` package is the judge of what is a safetensors file.
"""

import errno
import hashlib
import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
from cases import same_bits
from hypothesis import given, settings
from hypothesis import strategies as hs
from safetensors.numpy import load_file, save_file

import steepest as st
from steepest.checkpoint import CheckpointError, container, read, save

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and modes of POSIX")


def small():
    opt = st.SGD({"w": np.array([1, 2, 3], np.float32)}, lr=0.1)
    opt.step({"w": np.array([1, 0, -1], np.float32)})
    return opt


def digests(arrays):
    return {name: container.digest(x) for name, x in arrays.items()}


# What is written


ARRAYS = {
    "all": np.arange(-5, 55).reshape(3, 4, 5),
    "0-d": np.array(7),
    "empty": np.zeros((2, 0, 3)),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(40.0)[::-3],
    "broadcast": np.broadcast_to(np.arange(3.0), (4, 3)),
}


@pytest.mark.parametrize("dtype", list(container.stored_types().values()), ids=str)
def test_arrays_of_every_type_and_layout_come_back(tmp_path, dtype):
    given = {k: x.astype(dtype, copy=k not in ("strided", "broadcast")) for k, x in ARRAYS.items()}
    ready = {k: np.array(x, order="C") for k, x in given.items()}
    container.write(tmp_path / "x", ready, {"said": "é"})
    back, metadata = container.read(tmp_path / "x")
    judged = load_file(tmp_path / "x")
    assert list(back) == list(given) and judged.keys() == given.keys()
    for name, x in given.items():
        for found in (back[name], judged[name]):
            assert (found.dtype, found.shape) == (x.dtype, x.shape), name
            assert found.tobytes() == x.tobytes(), name
        assert back[name].flags.writeable and back[name].flags.c_contiguous
    with safetensors.safe_open(tmp_path / "x", "np") as file:
        assert file.metadata() == metadata
    assert metadata["said"] == "é"


def test_every_array_begins_at_a_multiple_of_its_elements_size(tmp_path):
    arrays = {
        str(i): np.zeros(3, dtype) for i, dtype in enumerate(container.stored_types().values())
    }
    container.write(tmp_path / "x", dict(reversed(arrays.items())), {})
    data = (tmp_path / "x").read_bytes()
    n = int.from_bytes(data[:8], "little")
    assert n % 8 == 0
    for name, entry in json.loads(data[8 : 8 + n]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % arrays[name].itemsize == 0


def test_digests_are_as_documented(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    container.write(tmp_path / "x", {"x": x}, {"b": "2", "a": "é"})
    with safetensors.safe_open(tmp_path / "x", "np") as file:
        metadata = file.metadata()
    expected = hashlib.sha256(b"F32[2, 3]" + x.tobytes()).hexdigest()
    assert json.loads(metadata["sha256"]) == {"x": expected}
    of_all = metadata.pop("sha256_metadata")
    text = json.dumps(metadata, sort_keys=True)
    assert of_all == hashlib.sha256(text.encode()).hexdigest()


def test_another_tool_may_write_the_file_again(tmp_path):
    """In another order, with other spaces: what was stored is the same."""
    save(tmp_path / "x", small())
    stored, metadata = container.read(tmp_path / "x")
    save_file(stored, tmp_path / "y", metadata)
    assert (tmp_path / "x").read_bytes() != (tmp_path / "y").read_bytes()
    same_bits(read(tmp_path / "y").params["w"], read(tmp_path / "x").params["w"])


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(2, ">f8"), np.zeros(2, ">i4"), np.zeros(2, np.complex128),
        np.array([None]), np.array(["a"]), np.zeros(2, "M8[s]"), np.zeros(2, "f4,f4"),
    ],
    ids=lambda x: str(x.dtype),
)  # fmt: skip
def test_types_that_the_format_does_not_have_are_refused(tmp_path, x):
    with pytest.raises(CheckpointError, match=r"array 'arrays/x' has dtype .* convert it"):
        save(tmp_path / "x", small(), arrays={"x": x})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_the_format_does_not_have_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="rename it"):
        save(tmp_path / "x", st.SGD({name: np.zeros(1)}, lr=0.1))
    assert not list(tmp_path.iterdir())


def test_a_header_that_other_readers_would_refuse_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "MAX_HEADER", 1000)
    with pytest.raises(CheckpointError, match=r"the format allows 1,000: give large values as"):
        save(tmp_path / "x", small(), extra={"text": "x" * 1000})


# Damage


def unharmed(path, original):
    """Whether a changed file is refused; if it is not, what it says must be the same."""
    try:
        found = read(path)
    except CheckpointError:
        return False
    assert found.state_dict["param_groups"] == original.state_dict["param_groups"]
    assert found.extra == original.extra
    same_bits(found.params["w"], original.params["w"])
    same_bits(found.state_dict["state"]["w"]["step"], original.state_dict["state"]["w"]["step"])
    return True


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    save(tmp_path / "x", small())
    original, data = read(tmp_path / "x"), (tmp_path / "x").read_bytes()
    for n in range(len(data)):
        (tmp_path / "x").write_bytes(data[:n])
        assert not unharmed(tmp_path / "x", original), n


def test_every_flipped_bit_is_noticed(tmp_path):
    save(tmp_path / "x", small())
    original, data = read(tmp_path / "x"), (tmp_path / "x").read_bytes()
    for n in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[n] ^= 1 << bit
            (tmp_path / "x").write_bytes(changed)
            assert not unharmed(tmp_path / "x", original), (n, bit)


def test_bytes_put_in_or_taken_out_are_noticed(tmp_path):
    save(tmp_path / "x", small())
    original, data = read(tmp_path / "x"), (tmp_path / "x").read_bytes()
    for n in range(0, len(data) + 1, 3):
        for changed in (data[:n] + data[n + 1 :], data[:n] + b" " + data[n:], data[:n] + data):
            (tmp_path / "x").write_bytes(changed)
            assert unharmed(tmp_path / "x", original) == (changed == data), n


def refused(path, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1000


def lookalikes():
    npz, torch = io.BytesIO(), io.BytesIO()
    np.savez(npz, x=np.zeros(3))
    with zipfile.ZipFile(torch, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    npy = io.BytesIO()
    np.save(npy, np.zeros(3))
    return {
        "pickle": (pickle.dumps({"w": 1.0}), "a pickle, which is never loaded"),
        "old pickle": (pickle.dumps({"w": 1.0}, 0), "not a safetensors file"),
        "npz": (npz.getvalue(), "a zip archive"),
        "torch": (torch.getvalue(), "a zip archive"),
        "npy": (npy.getvalue(), "a NumPy .npy file"),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(99), "gzip"),
        "text": (b"a text that is no checkpoint\n", "claims a header of"),
        "empty": (b"", "it has 0 bytes$"),
        "zeros": (bytes(100), "does not begin with {"),
    }


@pytest.mark.parametrize("kind", lookalikes())
def test_files_of_another_kind_are_refused(tmp_path, kind):
    data, message = lookalikes()[kind]
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x", message)


class Bomb:
    def __reduce__(self):
        return os.abort, ()


def test_a_pickle_is_not_run(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path / "x", "a pickle, which is never loaded: it could run any program")


def test_a_safetensors_file_that_is_no_checkpoint_is_refused(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "x")
    refused(tmp_path / "x", "without metadata, not a checkpoint")
    save_file({"x": np.zeros(3)}, tmp_path / "x", {"format": "pt"})
    refused(tmp_path / "x", "without digests, not a checkpoint")
    container.write(tmp_path / "x", {"x": np.zeros(3)}, {"format": "pt"})
    refused(tmp_path / "x", "not a checkpoint of steepest")


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "x")


@POSIX
def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is no regular file")
    refused(tmp_path, "cannot be read: Is a directory")
    refused(Path("/dev/zero"), "is no regular file")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(OSError, match=r"Is a directory|Not a regular file"):
            save(path, small())


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def denied(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    save(tmp_path / "x", small())
    monkeypatch.setattr(container, "_opener", denied)
    refused(tmp_path / "x", "cannot be read: Permission denied")


# Files made to do harm


def forge(path, header, data=b"", length=None):
    """A file with this header, and with digests that are right if it has metadata."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    n = len(text) if length is None else length
    path.write_bytes(n.to_bytes(8, "little") + text + data)


def sealed(entries, digests=None):
    metadata = {"sha256": json.dumps(dict.fromkeys(entries, "") if digests is None else digests)}
    metadata["sha256_metadata"] = container._seal(metadata)
    return {"__metadata__": metadata} | entries


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"x": entry(offsets=(0, 8))}, "does not take 8 bytes"),
        ({"x": entry(offsets=(4, 0))}, "does not take -4 bytes"),
        ({"x": entry(offsets=(4, 8))}, "leaves a gap before it: it begins at byte 4"),
        ({"x": entry(), "y": entry()}, "overlaps another"),
        ({"x": entry(), "y": entry(shape=(0,), offsets=(2, 2))}, "overlaps|gap"),
        ({"x": entry(shape=(2,), offsets=(0, 8))}, "cut short .* arrays of 8 bytes in 4"),
        ({}, "bytes too many: arrays of 0 bytes in 4"),
        ({"x": entry(shape=(2**40,), offsets=(0, 2**42))}, "arrays of 4,398,046,511,104 bytes"),
        ({"x": entry(shape=(2**32, 2**32))}, "does not take 4 bytes"),
        ({"x": entry(shape=(2**62, 4))}, "does not take 4 bytes"),
        ({"x": entry(shape=(2**63,))}, "expected lists of counts"),
        ({"x": entry(shape=(10**30,))}, "expected lists of counts"),
        ({"x": entry(shape=(0, 2**62), offsets=(0, 0)), "y": entry()}, "dimension|too big"),
        ({"x": entry(shape=(1,) * 65)}, "expected lists of counts"),
        ({"x": entry(shape=(-1, -1))}, "expected lists of counts"),
        ({"x": entry(shape=(1.0,))}, "expected lists of counts"),
        ({"x": entry(shape=(True,))}, "expected lists of counts"),
        ({"x": entry(shape=("1",))}, "expected lists of counts"),
        ({"x": entry() | {"shape": 1}}, "expected lists of counts"),
        ({"x": entry(offsets=(0, 4, 4))}, "expected lists of counts"),
        ({"x": entry(offsets=(0, 4.0))}, "expected lists of counts"),
        ({"x": entry(dtype="F4", shape=(2,))}, "has dtype 'F4'; expected one of F64, F32"),
        ({"x": entry(dtype="|O")}, r"has dtype '\|O'"),
        ({"x": entry(dtype=None)}, "has dtype None"),
        ({"x": entry(dtype=[])}, r"has dtype \[\]"),
        ({"x": entry(code="import os")}, "expected dtype, shape and data_offsets alone"),
        ({"x": {"dtype": "F32", "shape": [1]}}, "expected dtype, shape and data_offsets alone"),
        ({"x": None}, "expected dtype, shape and data_offsets alone"),
        ({"x" * 5000: []}, r"array 'xxx.*\.\.\.: expected"),
        ({"x": entry()}, "damaged: array 'x' does not have its digest"),
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(tmp_path, entries, message):
    forge(tmp_path / "x", sealed(entries), bytes(4))
    refused(tmp_path / "x", message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "does not begin with {"),
        (b" {}", "does not begin with {"),
        (b"", "does not begin with {"),
        (b"{", "is no JSON"),
        (b"{}x", "is no JSON"),
        (b'{"\xff": 1}', "is not UTF-8"),
        (b'{"a": 1, "a": 1}', "has the key 'a' twice"),
        (b'{"a": {"dtype": 1, "dtype": 1}}', "has the key 'dtype' twice"),
        (b'{"a": NaN}', "has NaN"),
        (b'{"a": -Infinity}', "has -Infinity"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is no JSON: .* digits"),
        (b'{"a": ' + b"[" * 200_000, "is nested too deeply"),
        (b'{"a":' * 200_000, "is nested too deeply"),
        (b"{}", "without metadata"),
        (b'{"__metadata__": null}', "without metadata"),
        (b'{"__metadata__": []}', "not a map of strings"),
        (b'{"__metadata__": {"a": 1}}', "not a map of strings"),
        (b'{"__metadata__": {"sha256": "{}"}}', "without digests"),
        (b'{"__metadata__": {"sha256": "{}", "sha256_metadata": ""}}', "does not have its digest"),
    ],
)  # fmt: skip
def test_headers_that_are_none_are_refused(tmp_path, header, message):
    forge(tmp_path / "x", header)
    refused(tmp_path / "x", message)


@pytest.mark.parametrize("length", [3, 10**8, 10**8 + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(tmp_path, length):
    forge(tmp_path / "x", {}, length=length)
    refused(tmp_path / "x", f"claims a header of {length:,}")


def test_a_header_longer_than_the_format_allows_is_refused(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.write((10**8 + 8).to_bytes(8, "little") + b"{}")
        file.truncate(2 * 10**8)  # no blocks on the disk
    refused(tmp_path / "x", "claims a header of 100,000,008")


@pytest.mark.parametrize("digests", [[], {}, {"x": "", "y": ""}, {"y": ""}, None, {"x": 1}])
def test_digests_of_other_arrays_are_refused(tmp_path, digests):
    header = sealed({"x": entry()}, digests="null" if digests is None else digests)
    forge(tmp_path / "x", header, bytes(4))
    refused(tmp_path / "x", "different names|does not have its digest")


def test_names_of_sixty_characters_are_shown_whole_and_longer_ones_are_not(tmp_path):
    for n, shown in ((58, repr("x" * 58)), (59, repr("x" * 59)[:57] + "...")):
        forge(tmp_path / "c", sealed({"x" * n: entry(dtype="Q7")}))
        with pytest.raises(CheckpointError, match=re.escape(f"array {shown} has dtype")):
            read(tmp_path / "c")


def test_booleans_other_than_0_and_1_are_refused(tmp_path):
    x = np.array([0, 1, 2], np.uint8).view(np.bool_)
    container.write(tmp_path / "x", {"x": x}, {})
    with pytest.raises(CheckpointError, match="booleans other than 0 and 1"):
        container.read(tmp_path / "x")


sizes = hs.integers(0, 6) | hs.sampled_from([-1, 2**31, 2**32, 2**62, 2**63, 2**64, 1.0, "1", None])
entries = hs.fixed_dictionaries(
    {
        "dtype": hs.sampled_from([*container.stored_types(), "BF16", "F8_E4M3", "f4", "", None]),
        "shape": hs.lists(sizes, max_size=3) | sizes,
        "data_offsets": hs.lists(sizes, max_size=3) | hs.tuples(sizes, sizes) | sizes,
    },
    optional={"more": sizes},
)
headers = hs.dictionaries(hs.text(max_size=3), entries | sizes, max_size=3)


@settings(max_examples=400)
@given(headers, hs.binary(max_size=24))
def test_whatever_is_accepted_the_judge_accepts_with_the_same_arrays(tmp_path_factory, made, data):
    path = tmp_path_factory.getbasetemp() / "made"
    with_digests = {}
    for name, e in made.items():
        try:
            begin, end = e["data_offsets"]
            x = np.frombuffer(data[begin:end], container.stored_types()[e["dtype"]]).reshape(
                e["shape"]
            )
            with_digests[name] = container.digest(x)
        except Exception:
            with_digests[name] = ""
    forge(path, sealed(made, with_digests), data)
    try:
        arrays, _ = container.read(path)
    except CheckpointError:
        return
    judged = load_file(path)
    assert arrays.keys() == judged.keys()
    for name, x in arrays.items():
        assert x.tobytes() == judged[name].tobytes()
        assert (x.dtype, x.shape) == (judged[name].dtype, judged[name].shape)


layouts = hs.lists(
    hs.tuples(
        hs.sampled_from(list(container.stored_types())), hs.lists(hs.integers(0, 3), max_size=3)
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=200)
@given(layouts, hs.randoms(use_true_random=False))
def test_whatever_the_judge_writes_is_read(tmp_path_factory, made, random):
    path = tmp_path_factory.getbasetemp() / "judged"
    arrays = {}
    for i, (code, shape) in enumerate(made):
        n = int(np.prod(shape)) * container.stored_types()[code].itemsize
        raw = bytes(random.randrange(2 if code == "BOOL" else 256) for _ in range(n))
        arrays[str(i)] = np.frombuffer(raw, container.stored_types()[code]).reshape(shape)
    save_file(arrays, path, container._sealed({}, digests(arrays)))
    found, _ = container.read(path)
    assert list(found) == list(arrays)
    for name, x in arrays.items():
        assert found[name].tobytes() == x.tobytes()


@settings(max_examples=300)
@given(hs.binary(max_size=200) | hs.binary(max_size=100).map(lambda x: b"\x64" + bytes(7) + x))
def test_any_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        read(path)
