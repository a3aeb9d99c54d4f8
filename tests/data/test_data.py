import bz2
import csv
import doctest
import gzip
import io
import lzma
import os
import re
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from steepest.data import csv_files, datasets, inputs
from steepest.data.datasets import DataError, digits, split, table
from steepest.extras import MissingExtra


def write(folder, header, rows, name="table.csv", separator=","):
    path = folder / name
    lines = [header, *rows]
    path.write_text("".join(separator.join(map(str, line)) + "\n" for line in lines))
    return path


def numbers(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return [[round(float(v), 6) for v in row] for row in rng.normal([5, -2, 0], [3, 1, 9], (n, 3))]


# Splits


@pytest.mark.parametrize("n", [3, 10, 11, 97])
@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.3])
def test_split_is_a_partition(n, fraction) -> None:
    train, validation, test = split(n, fraction=fraction, seed=2)
    assert sorted([*train, *validation, *test]) == list(range(n))
    assert len(validation) == len(test) == max(1, round(fraction * n))


def test_split_keeps_the_shares_of_classes() -> None:
    labels = np.repeat(["a", "b", "c"], [100, 20, 3])
    parts = split(123, labels, fraction=0.2, seed=5)
    assert sorted(np.concatenate(parts)) == list(range(123))
    counts = [[int((labels[part] == label).sum()) for label in "abc"] for part in parts]
    assert counts == [[60, 12, 1], [20, 4, 1], [20, 4, 1]]
    assert labels[parts[0]].tolist() != sorted(labels[parts[0]])


def test_seed_decides_the_split() -> None:
    def first(seed):
        return split(50, seed=seed)[2].tolist()

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 2}, "2 samples: expected at least 3, one per part"),
        (
            {"n": 5, "labels": np.array([0, 0, 0, 1, 1])},
            "2 samples of class 1: expected at least 3",
        ),
        ({"n": 9, "fraction": 0.5}, "fraction = 0.5: expected a number between 0 and 0.5"),
        ({"n": 9, "fraction": 0.0}, "fraction = 0.0"),
    ],
)
def test_split_refuses(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        split(**arguments)


# Digits


def test_digits() -> None:
    found = digits(seed=3)
    sizes = {name: len(part.y) for name, part in found.parts.items()}
    assert sum(sizes.values()) == 1797
    assert sizes["validation"] == sizes["test"] == 269
    for x, y in found.parts.values():
        assert (x.shape, x.dtype) == ((len(y), 64), np.float32)
        assert set(y) == set(range(10))
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    x = np.concatenate([part.x for part in found.parts.values()])
    back = x * found.scaling["x_scale"] + found.scaling["x_mean"]
    # Pixels are 0 to 16; what is left is float32 rounding.
    np.testing.assert_allclose(back, np.round(back), atol=1e-5)
    y = np.concatenate([part.y for part in found.parts.values()])
    assert sorted(map(tuple, np.column_stack([y, np.round(back)]).astype(int).tolist())) == sorted(
        map(tuple, np.column_stack([labels, raw]).astype(int).tolist())
    )


def test_no_sample_is_in_two_parts() -> None:
    found = digits()
    train = {row.tobytes() for row in found.train.x}
    assert not train & {row.tobytes() for row in found.test.x}


# Tables


def test_regression_table(tmp_path) -> None:
    rows = numbers()
    found = table(write(tmp_path, ["a", "b", "y"], rows), "y", seed=4)
    assert (found.name, found.task, found.classes) == ("table", "regression", [])
    assert found.reason == "'y' holds 40 different numbers"
    assert found.features == ["a", "b"]
    assert [len(part.y) for part in found.parts.values()] == [28, 6, 6]
    # Only the training part decides mean and scale; float32 keeps seven digits.
    np.testing.assert_allclose(found.train.x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.train.x.std(axis=0), 1, atol=1e-6)
    assert abs(found.test.x.mean()) > 1e-3
    np.testing.assert_allclose([found.train.y.mean(), found.train.y.std()], [0, 1], atol=1e-14)
    s = found.scaling
    x = np.concatenate([part.x for part in found.parts.values()]) * s["x_scale"] + s["x_mean"]
    y = np.concatenate([part.y for part in found.parts.values()]) * s["y_scale"] + s["y_mean"]
    order = np.argsort(y)
    np.testing.assert_allclose(
        np.column_stack([x, y])[order], sorted(rows, key=lambda row: row[2]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("values", "task", "reason", "classes"),
    [
        (["no", "yes"], "classification", "'y' holds text", ["no", "yes"]),
        (["False", "True"], "classification", "'y' holds true or false", ["False", "True"]),
        ([3, 1, 2], "classification", "'y' holds 3 different whole numbers", ["1", "2", "3"]),
        ([2.0, 1.0], "classification", "'y' holds 2 different whole numbers", ["1.0", "2.0"]),
        (range(20), "classification", "'y' holds 20 different whole numbers", None),
        (range(21), "regression", "'y' holds 21 different numbers", []),
        ([0.5, 1.0], "regression", "'y' holds 2 different numbers", []),
    ],
)
def test_the_task_is_detected(tmp_path, values, task, reason, classes) -> None:
    values = list(values)
    rows = [[i * 0.5, values[i % len(values)]] for i in range(84)]
    found = table(write(tmp_path, ["a", "y"], rows), "y")
    assert (found.task, found.reason) == (task, reason)
    assert found.classes == ([str(i) for i in range(20)] if classes is None else classes)
    if task == "classification":
        x = np.concatenate([part.x[:, 0] for part in found.parts.values()])
        raw = np.round(2 * (x * found.scaling["x_scale"] + found.scaling["x_mean"])).astype(int)
        named = [found.classes[y] for part in found.parts.values() for y in part.y]
        assert named == [str(values[i % len(values)]) for i in raw]


@pytest.mark.parametrize(
    ("values", "last"), [(["01", "02", "10"], "X1"), (["1.1", "1.10", "2", "TRUE"], "dev")]
)
@pytest.mark.parametrize("rows", [60, 6000])
def test_classes_do_not_depend_on_the_size_of_the_file(tmp_path, values, last, rows) -> None:
    """pandas reads large files in blocks, of which each may have a type of its own."""
    path = tmp_path / "table.csv"
    inputs = ["0,"] * 200
    lines = [*inputs[:-1], "0.5,"], inputs
    with open(path, "w") as file:
        file.write("".join(f"c{i}," for i in range(200)) + "y\n")
        for i in range(rows):
            y = values[i % len(values)] if i < rows - 10 else last
            file.write("".join(lines[i % 2]) + y + "\n")
    found = table(path, "y")
    assert found.classes == sorted([*values, last])
    counts = np.bincount(np.concatenate([part.y for part in found.parts.values()]))
    assert counts[found.classes.index(last)] == 10


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["007", "07", "7"], None, ["007", "07", "7"]),
        (["01", "02", "10"], None, ["01", "02", "10"]),
        (["02134", "90210"], "classification", ["02134", "90210"]),
        ([f"{i:03}" for i in range(25)], "classification", [f"{i:03}" for i in range(25)]),
        ([f"{i:03}" for i in range(25)], None, []),
        (["01", "02", "10"], "regression", []),
        (["0", "1", "10"], None, ["0", "1", "10"]),
        (["1", "1.0", "2"], None, ["1.0", "2.0"]),
        (["true", "TRUE", "False"], None, ["False", "True"]),
        (["true", "TRUE", "maybe"], None, ["TRUE", "maybe", "true"]),
        (['a "b"', "c, d", "e\nf"], None, ['a "b"', "c, d", "e\nf"]),
    ],
)
def test_what_the_classes_are(tmp_path, values, task, classes) -> None:
    with open(tmp_path / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["a", "y"], *([i, values[i % len(values)]] for i in range(120))]
        )
    assert table(tmp_path / "table.csv", "y", task=task).classes == classes


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_task_may_be_given(tmp_path, task) -> None:
    path = write(tmp_path, ["a", "y"], [[i, i % 4] for i in range(40)])
    found = table(path, "y", task=task)
    assert (found.task, found.reason) == (task, "as asked")


def test_ignored_columns_may_hold_anything(tmp_path) -> None:
    rows = [[f"name {i}", i, "", i * 0.3] for i in range(20)]
    path = write(tmp_path, ["who", "a", "empty", "y"], rows)
    assert table(path, "y", ignore=["who", "empty"]).features == ["a"]


def test_true_and_false_are_inputs(tmp_path) -> None:
    path = write(tmp_path, ["a", "y"], [[i % 3 == 0, i * 0.1] for i in range(30)])
    assert len(np.unique(table(path, "y").train.x)) == 2


def test_separator_mark_quotes_and_blank_lines(tmp_path) -> None:
    path = tmp_path / "table.csv"
    rows = "".join(f'{i};"{i * 0.5}"\n\n' for i in range(30))
    path.write_text('\n"a;b";y\n' + rows, encoding="utf-8-sig")
    found = table(path, "y", separator=";")
    assert (found.features, found.task) == (["a;b"], "regression")


def test_a_constant_input_becomes_zero(tmp_path) -> None:
    path = write(tmp_path, ["a", "b", "y"], [[i, 4, i * 0.1] for i in range(20)])
    found = table(path, "y")
    assert {float(v) for part in found.parts.values() for v in part.x[:, 1]} == {0.0}
    assert found.scaling["x_scale"][1] == 1


@pytest.mark.parametrize("value", ["0.1", "0.7", "123456.789", "1e-300", "1e300"])
def test_a_constant_column_is_not_scaled_by_its_rounding(tmp_path, value) -> None:
    """One row of the test part has another value."""
    other = split(150, seed=0)[2][0]
    rows = [[i % 7, value, i * 0.1] for i in range(150)]
    rows[other][1] = repr(2 * float(value)) if float(value) < 1e38 else value
    found = table(write(tmp_path, ["a", "b", "y"], rows), "y")
    assert found.scaling["x_scale"][1] == 1
    assert found.scaling["x_mean"][1] == float(value)
    assert set(found.train.x[:, 1]) == {0.0}
    assert sorted(set(found.test.x[:, 1])) == sorted(
        {np.float32(0), np.float32(float(rows[other][1]) - float(value))}
    )


def test_a_column_that_varies_by_its_rounding_alone_is_constant(tmp_path) -> None:
    rows = [[i % 7, 0.1 + 0.2 if i % 2 else 0.3, i * 0.1] for i in range(50)]
    found = table(write(tmp_path, ["a", "b", "y"], rows), "y")
    assert found.scaling["x_scale"][1] == 1
    assert max(abs(part.x[:, 1]).max() for part in found.parts.values()) < 1e-15


def test_a_target_that_is_constant_in_the_training_part_is_not_scaled(tmp_path) -> None:
    held_out = split(150, seed=0)[2][0]
    rows = [[i, 0.1] for i in range(150)]
    rows[held_out][1] = 0.2
    found = table(write(tmp_path, ["a", "y"], rows), "y", task="regression")
    assert (found.scaling["y_mean"], found.scaling["y_scale"]) == (0.1, 1)
    assert abs(found.test.y).max() == 0.1


def test_small_spreads_are_scaled(tmp_path) -> None:
    """What differs by more than rounding is no constant."""
    rows = [[1e6 + i * 1e-6, i * 1e-150, i * 1e-300, i * 0.1] for i in range(50)]
    found = table(write(tmp_path, ["a", "b", "c", "y"], rows), "y")
    np.testing.assert_allclose(found.train.x.std(axis=0)[:2], 1, atol=1e-3)
    assert found.scaling["x_scale"][2] == 1  # its variance is below double


GOOD = [[i, i * 0.5, i * 0.25] for i in range(20)]
HEADER = ["a", "b", "y"]


@pytest.mark.parametrize(
    ("header", "rows", "arguments", "message"),
    [
        (HEADER, GOOD, {"target": "z"}, "has no column 'z'; it has 'a', 'b', 'y'"),
        (["height", "y"], [r[1:] for r in GOOD], {"target": "heigth"}, "did you mean 'height'?"),
        (HEADER, GOOD, {"ignore": ["q"]}, "has no column 'q'"),
        (HEADER, GOOD, {"ignore": ["y"]}, "'y' is the target and cannot be ignored"),
        (HEADER, GOOD, {"ignore": ["a", "b"]}, "has no column other than the target 'y'"),
        (HEADER, GOOD[:9], {}, "has 9 rows; at least 10 are needed"),
        (HEADER, [], {}, "has a header but no rows"),
        ([], [], {}, "is empty; expected a header line"),
        (HEADER, [*GOOD, ["", 1, 2]], {}, "missing values in column 'a' (1 of 21 rows); fill"),
        (HEADER, [*GOOD, [1, 2, "nan"]], {}, "missing values in column 'y' (1 of 21 rows)"),
        (HEADER, [*GOOD, [1, 2]], {}, "missing values in column 'y'"),
        (HEADER, [["x1", *r[1:]] for r in GOOD], {}, "has text in column 'a' (such as 'x1')"),
        (HEADER, [*GOOD, [1, "n/k", 2]], {}, "has text in column 'b' (such as 'n/k')"),
        (HEADER, [*GOOD, ["inf", 1, 2]], {}, "has infinite values in column 'a'"),
        (HEADER, [*GOOD, [1, 1, "-inf"]], {}, "the target 'y' has infinite values"),
        (HEADER, [[*r[:2], 7] for r in GOOD], {}, "the target 'y' is 7 in every row"),
        (HEADER, [[*r[:2], "no"] for r in GOOD], {}, "the target 'y' is no in every row"),
        (["a", "a", "y"], GOOD, {}, "has more than one column named 'a'; rename"),
        (["", "b", "y"], GOOD, {}, "leave it out with --ignore 'Unnamed: 0'"),
        (HEADER, [*GOOD, [1, 2, 3, 4]], {}, "is not a regular table"),
        (HEADER, [[*r, 4] for r in GOOD], {}, "is not a regular table"),
        (HEADER, [[i, i, "ab"[i > 17]] for i in range(20)], {},
         "has fewer than 3 rows for the y 'b'; add rows, or remove these, or, if the target"),
        (HEADER, GOOD, {"task": "classification"}, "has fewer than 3 rows for the y '0.0'"),
        (HEADER, [[i, i, "ab"[i % 2]] for i in range(20)], {"task": "regression"},
         "the target 'y' holds 'a', not numbers; regression needs numbers"),
        (["a;b;y"], [["1;2;3"]] * 20, {}, "give --separator ';'"),
        (["a;b;y"], [["1;0,5;3"]] * 20, {}, "has one column, named 'a;b;y'; if ';' separates its"),
        (["a, in m;b;y"], [["1;2;3"]] * 20, {}, "its columns, give --separator ';'"),
        (["sep=;"], [["a;b;y"], *[["1;2;3"]] * 20], {},
         "the line 'sep=;', which only Excel reads; remove it, and give --separator ';'"),
        (["sep=;"], [["a;b;y"], *[["1;2;3"]] * 20], {"separator": ";"}, "with the line 'sep=;'"),
        (["sep="], [HEADER, *GOOD], {}, "with the line 'sep=,', which only Excel reads"),
        (HEADER, [[i, f'"{i},5"', i] for i in range(20)], {},
         "has numbers with a comma in column 'b' (such as '0,5'); write them with a decimal point"),
        (HEADER, [[i, '"1,234.5"', i] for i in range(20)], {}, "numbers with a comma in column"),
        (HEADER, [[i, '"0,5"', i] for i in range(19)] + [[1, "x", 2]], {}, "text in column 'b'"),
        (HEADER, [[i, i, f'"{i},5"'] for i in range(20)], {},
         "these, or, if they are numbers, have them written with a decimal point, as 1234.5"),
        (HEADER, [[i, i, f'"{i},5"'] for i in range(20)], {"task": "regression"},
         "holds '0,5', not numbers; regression needs numbers written with a decimal point, as"),
        (HEADER, [[i, i, ("None", "NA", "x", "")[i % 4]] for i in range(20)], {},
         "missing values in column 'y' (15 of 20 rows), the target; fill them in, or remove these "
         "rows; if 'None', 'NA' are classes, give them other names"),
        (HEADER, [[i, i, ("null", "x")[i % 2]] for i in range(20)], {}, "'null' is a class, give"),
        (HEADER, [[i, i, 10**30 + i] for i in range(30)], {},
         "the target 'y' holds whole numbers such as 1000000000000000000000000000000, which are"),
        (HEADER, GOOD, {"separator": "\n"}, "separator = '\\n': expected one ASCII character betw"),
        (HEADER, GOOD, {"separator": '"'}, "separator = '\"': expected one ASCII character"),
        (HEADER, GOOD, {"separator": "é"}, "separator = 'é': expected one ASCII character between"),
    ],
)  # fmt: skip
def test_unusable_tables(tmp_path, header, rows, arguments, message) -> None:
    path = write(tmp_path, header, rows)
    if not header:
        path.write_text("")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        table(path, **{"target": "y", **arguments})
    assert "\n" not in str(caught.value)
    if not message.startswith(("'y'", "the target", "separator", "holds")):
        assert str(path) in str(caught.value)


def test_a_missing_target_cannot_be_ignored(tmp_path) -> None:
    path = write(tmp_path, HEADER, [*GOOD, [1, 2, ""]])
    with pytest.raises(DataError) as caught:
        table(path, "y")
    assert "--ignore" not in str(caught.value)


NFD = unicodedata.normalize("NFD", "größe")


@pytest.mark.parametrize(
    ("column", "target", "message"),
    [
        ("Y", "y", "did you mean 'Y'? Case matters"),
        ("y ", "y", "did you mean 'y '? Spaces count"),
        ("net  price", "Net price", "did you mean 'net  price'? Spaces count"),
        (NFD, "größe", r"did you mean 'gro\u0308\xdfe'? It looks like 'gr\xf6\xdfe' and has other"),
        ("größe", NFD, r"did you mean 'gr\xf6\xdfe'? It looks like 'gro\u0308\xdfe' and has other"),
        ("net\xa0price", "net price", r"did you mean 'net\xa0price'? It looks like 'net price'"),
        ("net price", "net\xa0price", "did you mean 'net price'? Spaces count"),
        ("y\u200b", "y", r"did you mean 'y\u200b'? It looks like 'y' and has other characters"),
        ("\uff59", "y", r"did you mean '\uff59'? It looks like 'y' and has other characters"),
    ],
)
def test_columns_that_look_alike(tmp_path, column, target, message) -> None:
    path = write(tmp_path, ["a", column], [r[1:] for r in GOOD])
    with pytest.raises(DataError, match=re.escape(f"; {message}")):
        table(path, target)
    with pytest.raises(DataError, match=re.escape(f"; {message}")):
        table(path, "a", ignore=[target])


def test_many_bad_columns_are_not_all_listed(tmp_path) -> None:
    header = [f"c{i}" for i in range(12)] + ["y"]
    path = write(tmp_path, header, [["t"] * 12 + [i] for i in range(30)])
    with pytest.raises(DataError, match=r"'c7' \(such as 't'\), and 4 more; turn"):
        table(path, "y")


LATIN = "größe,y\n1,2\n".encode("latin-1")


def test_unreadable_files(tmp_path) -> None:
    with pytest.raises(DataError, match=r"none.csv: there is no such file"):
        table(tmp_path / "none.csv", "y")
    with pytest.raises(DataError, match=r"cannot be read: "):
        table(tmp_path, "y")
    for content in (b"a,y\n\xff\xfe\x00,1\n", b"\0" * 100, "a,y\n1,2\n".encode("utf-16"), LATIN):
        (tmp_path / "binary.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"binary.csv is not text in UTF-8"):
            table(tmp_path / "binary.csv", "y")


TEXT = "a,b,y\n" + "".join(f"{i},{i * 0.5},{i * 0.25}\n" for i in range(20))


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("table.csv", content)
    return file.getvalue()


def tarred(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("table.csv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (gzip.compress, "is compressed with gzip; decompress it"),
        (bz2.compress, "is compressed with bzip2; decompress it"),
        (lzma.compress, "is compressed with xz; decompress it"),
        (zipped, "is a zip archive or a spreadsheet; unpack it, or save it as CSV"),
        (tarred, "is a tar archive; unpack it"),
        (lambda content: b"\x28\xb5\x2f\xfd" + bytes(9) + content, "is compressed with zstd;"),
        (lambda content: b"PAR1" + bytes(9) + content, "is a Parquet file; save it as CSV"),
    ],
)
def test_packed_files_are_told_from_text(tmp_path, pack, message) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(pack(TEXT.encode()))
    with pytest.raises(DataError, match=re.escape(f"{path} {message}")):
        table(path, "y")


@pytest.mark.parametrize("end", ["gz", "bz2", "xz", "zip", "zst", "tar", "tar.gz"])
def test_text_is_text_whatever_its_name_ends_in(tmp_path, end) -> None:
    path = tmp_path / f"table.csv.{end}"
    path.write_text(TEXT)
    assert table(path, "y").features == ["a", "b"]


def test_a_column_named_like_the_start_of_a_packed_file(tmp_path) -> None:
    assert table(write(tmp_path, ["PAR1", "b", "y"], GOOD), "y").features == ["PAR1", "b"]


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="this system has no /dev/fd")
def test_a_pipe_is_read_once() -> None:
    read, write = os.pipe()
    os.write(write, TEXT.encode())
    os.close(write)
    try:
        assert table(f"/dev/fd/{read}", "y").features == ["a", "b"]
    finally:
        os.close(read)


def lines(rows, header="a,b,y"):
    return header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (" \n \n", "is empty; expected a header line"),
        ("\n\n", "is empty; expected a header line"),
        (lines([*GOOD, ['"1', 2, 3]]), "is not a regular table: .* EOF inside string"),
        (lines([*GOOD, ["1+2j", 2, 3]]), r"has text in column 'a' \(such as '1\+2j'\)"),
        (lines([*GOOD, ["x" * 99_999, 2, 3]]), r"column 'a' \(such as 'x{39}…'\)"),
        (lines([*GOOD, ["1e400", 2, 3]]), "has infinite values in column 'a'"),
        (lines([*GOOD, [1, 2, "9" * 999]]), "the target 'y' has infinite values"),
        (lines([*GOOD, *[["1e308", 2, 3], ["-1e308", 2, 3]] * 9]), "far too large .* column 'a'"),
        (lines([*GOOD, *[[1, 2, "1e308"], [1, 2, "-1e308"]] * 9]), "target 'y' has values far"),
        (lines([*GOOD * 9, *[[1, "1e60", 3]]]), ""),
    ],
)  # fmt: skip
def test_malformed_files(tmp_path, content, message) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    if message:
        with pytest.raises(DataError, match=message) as caught:
            table(path, "y")
        assert "\n" not in str(caught.value)
    else:
        assert np.isfinite(table(path, "y").test.x).all()


@pytest.mark.parametrize(
    ("column", "message"),
    [(0, "compared with the others in column 'a'"), (2, "the target 'y' has val")],
)
def test_an_outlier_beyond_float32(tmp_path, column, message) -> None:
    """Refused where it is not in the part that decides the scale."""
    messages = []
    for i in range(60):
        rows = [[i % 7, i % 5 * 0.5, i * 0.25] for i in range(60)]
        rows[i][column] = 1e60
        found, refusal = loaded(write(tmp_path, HEADER, rows))
        messages.append(refusal)
        assert refusal or max(abs(part[column // 2]).max() for part in found.parts.values()) < 60
    assert sum(message in refusal for refusal in messages) == 18  # nine rows in each other part


def loaded(path):
    """The data, or the message of the refusal."""
    try:
        return table(path, "y"), ""
    except DataError as error:
        return None, str(error)


@pytest.mark.parametrize("task", [None, "regression"])
def test_whole_numbers_beyond_64_bits_are_a_quantity(tmp_path, task) -> None:
    found = table(write(tmp_path, HEADER, [[i, -i, i * 10**20] for i in range(30)]), "y", task=task)
    assert (found.task, found.classes) == ("regression", [])
    y = np.concatenate([part.y for part in found.parts.values()])
    y = y * found.scaling["y_scale"] + found.scaling["y_mean"]
    np.testing.assert_allclose(np.sort(y) / 1e20, range(30), atol=1e-12)


def test_a_few_codes_beyond_64_bits_are_classes(tmp_path) -> None:
    codes = [10**30, 10**30 + 1]
    found = table(write(tmp_path, HEADER, [[i, -i, codes[i % 2]] for i in range(30)]), "y")
    assert found.classes == [str(code) for code in codes]


def test_integers_beyond_64_bits_are_numbers(tmp_path) -> None:
    found = table(write(tmp_path, HEADER, [*GOOD, [10**30, 1, 2]]), "y")
    assert found.features == ["a", "b"]


CELLS = strategies.sampled_from(["1", "2.5", "-3e9", "1e300", "x", "", '"', "nan", " 7 "])
ROWS = strategies.lists(CELLS, min_size=1, max_size=4).map(",".join)


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    strategies.binary(max_size=200)
    | strategies.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | strategies.lists(ROWS, min_size=9, max_size=30).map(lambda x: "\n".join(["a,y", *x]).encode())
)
def test_any_file_is_data_or_is_refused_in_one_line(content) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.csv"
        path.write_bytes(content)
        found, refusal = loaded(path)
    assert len(refusal.splitlines()) == (found is None)
    if found is not None:
        assert all(np.isfinite(part.x).all() for part in found.parts.values())


@pytest.mark.parametrize(
    ("module", "load"),
    [("pandas", lambda p: table(p / "t.csv", "y")), ("sklearn.datasets", lambda p: digits())],
)
def test_missing_packages(monkeypatch, tmp_path, module, load) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"run  pip install \S+, or .* its extra \[train\]"):
        load(tmp_path)


def test_examples() -> None:
    for module in (csv_files, datasets, inputs):
        assert doctest.testmod(module).failed == 0
