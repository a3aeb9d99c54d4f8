"""Untidy tables: what is decided, and what the columns become."""

import bz2
import doctest
import io
import json
import lzma
import zipfile

import numpy as np
import pandas
import pytest
import untidy_tables
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from steepest.data import csv_files, split, untidy
from steepest.data.datasets import DataError, table
from steepest.models import columns
from steepest.models.columns import Column, Columns, NotANumber


def dataset(name, folder):
    path, (_, target) = untidy_tables.TABLES[name](folder)
    return path, target, table(path, target, raw=False)


def raw_inputs(found):
    """The inputs before they were scaled, of all parts."""
    x = np.concatenate([part.x for part in found.parts.values()])
    return x * found.scaling["x_scale"] + found.scaling["x_mean"]


def test_examples() -> None:
    for module in (columns, untidy, csv_files):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("name", "decisions", "inputs"),
    [
        (
            "passengers",
            [
                "column Unnamed: 0: left out, since it has no name; perhaps row numbers",
                "column Name: left out, 62 different texts in 62 rows",
                "column Sex: 2 categories, one-hot",
                "column Age: 11 of 90 values missing: the median and a flag",
                "column Port: 3 categories, one-hot; 25 of 90 values missing: a flag",
                "column Paid: 28 of 90 values missing: the median and a flag",
                "column Note: left out, since it is empty",
            ],
            ["Sex = male", "Age", "Age missing", "Port = C", "Port = Q", "Port = S", "Port missing",
             "Paid", "Paid missing"],
        ),
        (
            "flats",
            [
                "unpacked (gzip)",
                "decoded from Windows-1252, since it is no UTF-8",
                "separated by ';'",
                "2 rows without the target left out",
                "column Straße: left out, 62 different texts in 62 rows",
                "column Stadt: 3 categories, one-hot",
                "column Fläche: numbers as 1.234,5",
                "column gebaut: dates as %d.%m.%Y, in days since 1970",
                "column Balkon: 2 categories, one-hot",
            ],
            ["Stadt = Bonn", "Stadt = Köln", "Stadt = München", "Fläche", "gebaut",
             "Balkon = nein"],
        ),
        (
            "sales",
            [
                "decoded from UTF-16",
                "separated by tabs",
                "column day: dates as 2026-11-29, in days since 1970; 9 of 90 values missing: "
                "the median and a flag",
                "column product: 22 categories, in their order",
                "column views: numbers as 1,234.5",
                "column region: 2 categories, one-hot",
            ],
            ["day", "day missing", "product", "views", "region = south"],
        ),
    ],
)  # fmt: skip
def test_what_is_decided(tmp_path, name, decisions, inputs) -> None:
    _, _, found = dataset(name, tmp_path)
    assert list(found.decisions) == decisions
    assert found.features == inputs
    assert all(np.isfinite(part.x).all() for part in found.parts.values())


def test_the_inputs_are_those_of_scikit_learn(tmp_path) -> None:
    """Fitted on the training part, as ColumnTransformer does."""
    path, _, found = dataset("passengers", tmp_path)
    frame = pandas.read_csv(path)
    frame["Paid"] = frame["Paid"].map({True: 1.0, False: 0.0})
    y = frame["Alive"].to_numpy(str)
    parts = split(len(y), np.unique(y, return_inverse=True)[1])
    transformer = ColumnTransformer(
        [
            ("Sex", OneHotEncoder(drop="if_binary", sparse_output=False), ["Sex"]),
            ("Age", SimpleImputer(strategy="median", add_indicator=True), ["Age"]),
            (
                "Port",
                make_pipeline(
                    SimpleImputer(strategy="constant", fill_value="~"),
                    OneHotEncoder(sparse_output=False),
                ),
                ["Port"],
            ),
            ("Paid", SimpleImputer(strategy="median", add_indicator=True), ["Paid"]),
        ]
    )
    transformer.fit(frame.iloc[parts[0]])
    expected = transformer.transform(frame.iloc[np.concatenate(parts)])
    mine, _ = found.columns.encoded(pandas.read_csv(path).iloc[np.concatenate(parts)])
    np.testing.assert_array_equal(mine, expected)
    # The data set has them scaled, as float32: scaled back they are rounded.
    np.testing.assert_allclose(raw_inputs(found), expected, atol=1e-5)


def test_an_order_is_that_of_scikit_learn(tmp_path) -> None:
    path, _, found = dataset("sales", tmp_path)
    text = pandas.read_csv(path, sep="\t", encoding="utf-16")
    train = split(len(text))[0]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    encoder.fit(text[["product"]].iloc[train])
    expected = encoder.transform(text[["product"]])[:, 0]
    mine, notes = found.columns.encoded(text)
    assert mine[:, 2].tolist() == expected.tolist()
    assert notes == [] and min(expected) == 0
    new = text.assign(product="P99").iloc[:1]
    mine, [note] = found.columns.encoded(new)
    assert mine[0, 2] == encoder.transform(new[["product"]])[0, 0] == -1
    assert note == "column 'product' has values that the training had not: 'P99'"
    mine, _ = found.columns.encoded(text)
    assert mine[0, 0] == (pandas.Timestamp("2026-01-01") - pandas.Timestamp(0)).days


def test_numbers_alone_are_as_with_raw(tmp_path) -> None:
    rows = "".join(f"{i % 7},{i / 8},{i * 1.5}\n" for i in range(40))
    content = ("a,b,y\n" + rows).encode()
    strict, found = (table("t.csv", "y", content=content, raw=raw) for raw in (True, False))
    assert (found.columns, list(found.decisions)) == (None, [])
    assert found.digest == strict.digest


@pytest.mark.parametrize(
    ("pack", "note"),
    [
        (bz2.compress, "unpacked (bzip2)"),
        (lzma.compress, "unpacked (xz)"),
        (lambda text: zipped({"a/t.csv": text}), "unpacked (zip)"),
    ],
)
def test_packed_files(pack, note) -> None:
    text = ("a,y\n" + "".join(f"{i},{i * 1.5}\n" for i in range(40))).encode()
    found = table("t.csv", "y", content=pack(text), raw=False)
    assert list(found.decisions) == [note] and found.features == ["a"]


def zipped(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


LINES = [f"{i % 7},{i * 1.5}" for i in range(40)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8bno gzip", "is compressed with gzip and damaged: "),
        (b"PK\x03\x04no zip", "is compressed with zip and damaged: File is not a zip file"),
        (zipped({"a": "x", "b": "y"}), "is a zip archive of 'a', 'b'; expected one CSV file"),
        (zipped({"[Content_Types].xml": ""}), "is a spreadsheet; save it as CSV"),
        (b"a,y\0\n", "is not text in UTF-8"),
        (b"PAR1\xff\0\0", "is a Parquet file; save it as CSV"),
        ("\n".join(["a,z", *LINES]).encode(), "has no column 'y'"),
        ("\n".join(["a,y", *["inf,1.5"] * 3, *LINES]).encode(),
         "has inf in column 'a', row 1; expected a finite number; correct it, or leave the col"),
        ("\n".join(["y,", *[f"{i * 1.5},{i}" for i in range(40)]]).encode(),
         "has no column that can be an input: column Unnamed: 1: left out"),
        ("\n".join(["y", *map(str, range(40))]).encode(), "has no column other than the target"),
        ("\n".join(["a,y", *["1,"] * 40, *LINES[:9]]).encode(), "has 9 rows with a target; 10 are"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_in_a_line(content, message) -> None:
    with pytest.raises(DataError, match=r"t\.csv ") as caught:
        table("t.csv", "y", content=content, raw=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_line_of_excel_tells_the_separator() -> None:
    text = "sep=|\n" + "\n".join(["a|y", *[f"{i % 7}|{i * 1.5}" for i in range(40)]])
    found = table("t.csv", "y", content=text.encode(), raw=False)
    assert (found.separator, found.features) == ("|", ["a"])


@pytest.mark.parametrize(
    ("words", "kind", "format"),
    [
        (["2026-01-02", "2026-12-31 10:30"], "date", "ISO8601"),
        (["31.12.2020", "01.02.2021"], "date", "%d.%m.%Y"),
        (["12/31/2020", "01/02/2021"], "date", "%m/%d/%Y"),
        (["31/12/2020", "01/02/2021"], "date", "%d/%m/%Y"),
        (["01/02/2021", "01/02/2021"], "date", "%m/%d/%Y"),
        (["31/12/2020", "12/31/2020"], "categories", ""),
        (["1.2.3", "1.2.4"], "categories", ""),
        (["12a", "13a"], "categories", ""),
    ],
)
def test_what_dates_are(words, kind, format) -> None:
    frame = pandas.DataFrame({"a": words * 6})
    [column] = untidy.decided("t.csv", frame, np.arange(12))[0].columns
    assert (column.kind, column.format) == (kind, format)


@pytest.mark.parametrize(
    ("words", "marks", "value"),
    [
        (["1,5", "2"], "1.234,5", 1.5),
        (["1.234.567,5", "-3"], "1.234,5", 1234567.5),
        (["1 234,5", "3,1e3"], "1.234,5", 1234.5),
        (["1,234.5", "0.5"], "1,234.5", 1234.5),
        (["1,234,567", "1"], "1,234.5", 1234567.0),
        (["1,234", "0,500"], "1.234,5", 1.234),
        (["1,234", "500"], "1,234.5", 1234.0),
    ],
)
def test_numbers_with_marks(words, marks, value) -> None:
    frame = pandas.DataFrame({"a": words * 6})
    found, [line] = untidy.decided("t.csv", frame, np.arange(12))
    assert found.columns[0].marks == marks and line == f"column a: numbers as {marks}"
    assert found.encoded(frame)[0][0, 0] == value


def test_a_comma_before_three_digits_depends_on_the_separator() -> None:
    frame = pandas.DataFrame({"a": ["1,234", "500"] * 6})
    found, _ = untidy.decided("t.csv", frame, np.arange(12), ";")
    assert found.encoded(frame)[0][0, 0] == 1.234


def test_what_a_run_says_of_its_columns_is_checked() -> None:
    good = Columns((Column("a", "categories", values=("x", "y", "z"), flag=True),))
    [record] = json.loads(json.dumps(good.to_json()))
    assert Columns.from_json([record]) == good
    for change in (
        {"kind": "code"},
        {"values": [1]},
        {"name": 3},
        {"flag": 1},
        {"fill": float("nan")},
        {"fill": "x"},
        {"format": "%Y"},
        {"marks": ";"},
        {"further": 1},
        {"kind": "date"},
    ):
        with pytest.raises((ValueError, TypeError)):
            Columns.from_json([record | change])


def test_cells_that_do_not_fit() -> None:
    number, date = Column("n", "number"), Column("d", "date", format="%d.%m.%Y")
    with pytest.raises(NotANumber, match=r"x\[1, 'n'\] is 'x', where a finite number is needed"):
        number.encoded([1, "x"])
    with pytest.raises(NotANumber, match=r"x\[0, 'd'\] is '1/2/03', where a date as %d"):
        date.encoded(["1/2/03"])
    with pytest.raises(ValueError, match="there is none of the columns"):
        Columns((number,)).encoded({"m": [1]})
    with pytest.raises(ValueError, match="column 'd' has 2 values, 'n' has 1"):
        Columns((number, date)).encoded({"n": [1], "d": ["01.01.1970"] * 2})
