"""The parts of the command line that need no run: syntax, settings, folders."""

import dataclasses
import doctest
import errno
import json
import os
import re
import shlex

import numpy as np
import pytest

from steepest import cli, tuning
from steepest.cli import (
    errors,
    folders,
    runs,
    search_settings,
    search_space,
    settings,
    syntax,
    train,
)
from steepest.cli.errors import UsageError
from steepest.cli.settings import Settings
from steepest.optimizers import RULES


@pytest.mark.parametrize(
    "module",
    [syntax, settings, runs, errors, search_space, search_settings],
    ids=lambda module: module.__name__,
)
def test_examples(module) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sgd", ["sgd"]),
        ("sgd,adam", ["sgd", "adam"]),
        (" sgd ; adam ", ["sgd", "adam"]),
        ("sgd:momentum=0.9,adam", ["sgd:momentum=0.9", "adam"]),
        ("sgd:momentum=0.9,nesterov=True,adam", ["sgd:momentum=0.9,nesterov=True", "adam"]),
        ("sgd:0.1,True,adam", ["sgd:0.1,True", "adam"]),
        ("adam:betas=(0.8,0.99),eps=1e-6,lion", ["adam:betas=(0.8,0.99),eps=1e-6", "lion"]),
        ("adam:betas=[0.8,0.99];lion", ["adam:betas=[0.8,0.99]", "lion"]),
        ("sgd:momentum=0.9,adam:eps=1e-7", ["sgd:momentum=0.9", "adam:eps=1e-7"]),
        ("sgd,momentum=0.9", ["sgd", "momentum=0.9"]),
        ("sgd:momentum=0.9;nesterov=True", ["sgd:momentum=0.9", "nesterov=True"]),
        ("sgd,", ["sgd", ""]),
    ],
)
def test_lists_of_optimizers(text, expected) -> None:
    assert syntax.several(text) == expected


@pytest.mark.parametrize("inside", ["(" * 500 + ")" * 500, "lr=1,lr=2", "**{'a': 1}", "*[1]", "x"])
def test_what_is_no_argument(inside) -> None:
    with pytest.raises(UsageError, match=r"--optimizer sgd:.*: expected sgd, or sgd:arguments"):
        syntax.call("--optimizer", f"sgd:{inside}", RULES)


# Settings

FULL = Settings(
    os.path.abspath("t.csv"), target="y", task="regression", ignore=("a", "b"), separator=";",
    raw=True, optimizer="sgd:0.1", lr=0.5, schedule="linear", epochs=3, batch_size=None,
    clip="norm:1", weight_decay=0.1, hidden=(), init="orthogonal", loss="huber:delta=2.0",
    accumulate=3, ema=0.5, patience=2, seed=9,
)  # fmt: skip


@pytest.mark.parametrize("given", [Settings("digits"), FULL], ids=["default", "full"])
def test_settings_come_back_from_json(given) -> None:
    assert Settings.from_json(json.loads(json.dumps(given.to_json()))) == given


def test_every_setting_of_the_full_one_differs_from_its_default() -> None:
    for field in dataclasses.fields(Settings):
        assert getattr(FULL, field.name) != field.default


def test_a_file_is_recorded_with_its_whole_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings("t.csv").to_json()["data"] == str(tmp_path / "t.csv")


@pytest.mark.parametrize("given", [Settings("digits"), FULL], ids=["default", "full"])
def test_the_command_makes_the_settings(given, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(train, "load", lambda settings: seen.append(settings) or 1 / 0)
    program, *arguments = shlex.split(given.command())
    with pytest.raises(ZeroDivisionError):
        cli.main(arguments)
    assert (program, seen) == ("steepest", [given])


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": "3"}, {"epochs": True}, {"epochs": 1.5}, {"lr": "0.1"}, {"hidden": [1.5]},
        {"hidden": 3}, {"task": "guess"}, {"target": 3}, {"raw": 1}, {"unknown": 1}, {"data": None},
    ],
    ids=str,
)  # fmt: skip
def test_other_records_are_refused(change) -> None:
    with pytest.raises(ValueError, match="expected"):
        Settings.from_json(Settings("digits").to_json() | change)


@pytest.mark.parametrize("record", [None, [], {}, {"data": "digits"}])
def test_what_is_no_record_is_refused(record) -> None:
    with pytest.raises(ValueError, match="expected exactly the settings of a run"):
        Settings.from_json(record)


# Folders


def test_runs_of_the_same_second_have_folders_of_their_own(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folders.time, "strftime", lambda form: "now")
    names = [folders.new(None, "digits").name for _ in range(3)]
    assert names == ["digits-now", "digits-now-2", "digits-now-3"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def change(failure):
        with folders.replacing(path) as part:
            part.write_text("new")
            if failure is not None:
                raise failure

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UsageError, match=r"file\.txt cannot be written: No space left on device"):
        change(full)
    for failure in (KeyboardInterrupt(), ValueError("other")):
        with pytest.raises(type(failure)):
            change(failure)
    assert path.read_text() == "old"
    assert [x.name for x in tmp_path.iterdir()] == ["file.txt"]
    change(None)
    assert path.read_text() == "new"


def test_json_has_no_word_for_infinity(tmp_path) -> None:
    path = tmp_path / "config.json"
    folders.write_json(path, {"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": (1, None)}})
    assert folders.read_json(path) == {"a": None, "b": [None, 1.5], "c": {"d": [1, None]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not the JSON of a run"), (b"\xff", "is not the JSON of a run"), (None, "No such")],
)
def test_unreadable_json(tmp_path, content, message) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        folders.read_json(path)


# The space of a search


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lr", "1e-4..1e-1 log", tuning.log_uniform(1e-4, 1e-1)),
        ("lr", " 1 .. 2".replace(" .. ", ".."), tuning.uniform(1.0, 2.0)),
        ("lr", "0.1..0.2 points=3", tuning.uniform(0.1, 0.2, points=3)),
        ("lr", "1..100 points=3 log", tuning.log_uniform(1.0, 100.0, points=3)),
        ("momentum", "0..1", tuning.uniform(0.0, 1.0)),
        ("weight_decay", "0, 1e-3", tuning.choice([0.0, 1e-3])),
        ("batch_size", "16,full", tuning.choice([16, None])),
        ("batch_size", "1..8", tuning.integer(1, 8)),
        ("hidden", "16..512 log points=4", tuning.integer(16, 512, log=True, points=4)),
        ("hidden", "16,32-16,none", tuning.choice([(16,), (32, 16), ()])),
        ("accumulate", "1..4", tuning.integer(1, 4)),
        ("schedule", "linear,cosine:warmup=5", tuning.choice(["linear", "cosine:warmup=5"])),
        ("nesterov", "True,False", tuning.choice([True, False])),
        ("betas", "(0.9, 0.99),(0.8, 0.9)", tuning.choice([(0.9, 0.99), (0.8, 0.9)])),
    ],
)
def test_what_is_searched(name, text, expected) -> None:
    assert repr(search_space.distribution(name, text, "sgd")) == repr(expected)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("lr", "1e-4..x", "lr=1e-4..x: 'x': expected a number, 0 or more; expected LOW..HIGH"),
        ("lr", "2..1", "lr=2..1: the range is empty"),
        ("lr", "0..1 log", "the range is empty on a log scale"),
        ("lr", "-1..1", "'-1': expected a number, 0 or more"),
        ("lr", "1..2 lin", "unknown word 'lin'"),
        ("lr", "1..2 points=x", "'x': expected an integer"),
        ("lr", "fast", "'fast': expected a number"),
        ("lr", "", "'': expected a number"),
        ("eps", "nan..1", "nan is not finite"),
        ("eps", "a,b", "'a' is not a Python value"),
        ("hidden", "1.5..3", "'1.5': expected an integer"),
        ("hidden", "none..3", "'none': expected an integer"),
        ("batch_size", "full..3", "'full': expected an integer"),
        ("schedule", "a..b", "schedule is no number"),
    ],
)
def test_what_cannot_be_searched(name, text, message) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        search_space.distribution(name, text, "adam")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_space_that_its_constructor_takes(rule) -> None:
    spaces = search_space.default(rule)
    assert {"lr", "weight_decay", "batch_size", "hidden"} <= spaces.keys()
    found = {name: search_space.distribution(name, text, rule) for name, text in spaces.items()}
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = {name: x.decode(x.draw(rng)) for name, x in found.items()}
        settings = search_space.candidate(Settings("digits", optimizer=rule), values)
        made = syntax.optimizer(settings.optimizer, np.zeros((3, 2)), {"lr": settings.lr})
        group = made.param_groups[0]
        assert group["lr"] == values["lr"]
        for name, key, i in (("beta1", "betas", 0), ("beta2", "betas", 1), ("momentum", None, 0)):
            if name in values:
                assert (group[key][i] if key in group else group[name]) == values[name]


def test_the_arguments_of_a_candidate() -> None:
    base = Settings("digits", optimizer="sgd:nesterov=True", epochs=3)
    found = search_space.candidate(base, {"momentum": 0.9, "hidden": 7, "batch_size": None})
    assert found.optimizer == "sgd:nesterov=True, momentum=0.9"
    assert (found.hidden, found.batch_size, found.epochs) == ((7,), None, 3)


def test_a_candidate_keeps_the_third_beta() -> None:
    found = search_space.candidate(Settings("digits", optimizer="adan"), {"beta1": 0.5})
    assert found.optimizer == "adan:betas=(0.5, 0.92, 0.99)"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["momentm=0..1"], "expected NAME=VALUES with one of lr, .*; did you mean momentum?"),
        (["momentum"], "momentum: expected NAME=VALUES"),
        (["epochs=1..2"], "expected NAME=VALUES"),
        (["lr=1,2", "lr=3"], "lr is given already; search it or fix it, once"),
        (["seed=1,2"], "expected NAME=VALUES"),
        (["nesterov=True"], "nesterov is given already"),
        (["clip=norm:1"], "clip is given already"),
    ],
)
def test_names_of_a_space(texts, message) -> None:
    base = Settings("digits", optimizer="sgd:nesterov=True")
    with pytest.raises(UsageError, match=message):
        search_space.given(texts, base, ["clip"])
