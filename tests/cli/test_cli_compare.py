import csv
import io
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cases import brief

import steepest as st
from steepest import cli
from steepest.cli import pictures, result_pictures, runs
from steepest.extras import require

FILES = {"compare.png", "compare.csv", "curves.csv", "config.json", "outcomes.json"}
QUICK = ["--epochs", "3", "--hidden", "20", "--quiet"]


def compared(tmp_path, *arguments, code=0, data="digits"):
    """The rows of compare.csv, those of curves.csv, and the folder."""
    out = tmp_path / "compared"
    assert cli.main(["compare", data, *QUICK, *arguments, "--out", str(out)]) == code
    return rows(out / "compare.csv"), rows(out / "curves.csv"), out


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_run_is_that_of_train(monkeypatch, tmp_path) -> None:
    """To the last bit; so all begin with the same parameters and see the same batches."""
    monkeypatch.setattr(st.History, "plot", lambda self, path, title: path.touch())  # slow
    monkeypatch.setattr(result_pictures, "confusion", lambda *arguments: arguments[-1].touch())
    options = ["--batch-size", "100", "--schedule", "linear", "--clip", "norm:1.0"]
    found, curves, out = compared(
        tmp_path, "--optimizers", "sgd,adam", "--lrs", "1e-3,1e-2", "--seeds", "3,4", *options
    )
    assert {path.name for path in out.iterdir()} == FILES
    assert [(row["optimizer"], float(row["lr"]), int(row["seed"])) for row in found] == [
        (rule, lr, seed) for rule in ("sgd", "adam") for lr in (1e-3, 1e-2) for seed in (3, 4)
    ]
    for row in found:
        folder = tmp_path / "-".join([row["optimizer"], row["lr"], row["seed"]])
        one = ["--optimizer", row["optimizer"], "--lr", row["lr"], "--seed", row["seed"]]
        assert cli.main(["train", "digits", *QUICK, *options, *one, "--out", str(folder)]) == 0
        config = json.loads((folder / "config.json").read_text())
        assert float(row["val_loss"]) == config["results"]["validation"]["loss"]
        assert float(row["test_accuracy"]) == config["results"]["test"]["accuracy"]
        assert float(row["test_loss"]) == config["results"]["test"]["loss"]
        assert (int(row["best_epoch"]), row["stopped"]) == (config["best_epoch"], "epochs")
        mine = [x for x in curves if all(x[k] == row[k] for k in ("optimizer", "lr", "seed"))]
        history = rows(folder / "history.csv")
        for column in ("epoch", "loss", "val_loss", "accuracy", "val_accuracy"):
            assert [x[column] for x in mine] == [x[column] for x in history]
        assert [x["rate"] for x in mine] == [x["lr"] for x in history]


def test_the_table_has_the_best_first(tmp_path, capsys) -> None:
    found, _, _ = compared(tmp_path, "--optimizers", "sgd,adam,lion", "--lrs", "1e-4,1e-2")
    shown = capsys.readouterr().out
    lines = shown[shown.index("\noptimizer ") :].splitlines()[2:]
    best = sorted(found, key=lambda row: float(row["val_loss"]))
    for line, row in zip(lines, best, strict=False):
        optimizer, lr, loss, epoch, test, percent, seconds, s = line.split()
        assert (optimizer, float(lr)) == (row["optimizer"], float(row["lr"]))
        assert (loss, epoch) == (f"{float(row['val_loss']):.5f}", row["best_epoch"])
        assert (test, percent) == (f"{100 * float(row['test_accuracy']):.2f}", "%")
        assert (seconds, s) == (f"{float(row['optimizer_seconds']):.4f}", "s")
    assert lines[len(best)] == ""


def test_columns_of_large_numbers_do_not_touch(monkeypatch, tmp_path, capsys) -> None:
    """As where the target's unit is small, or a model is worse than the mean by far."""
    worse = {"loss": 3e200, "r2": -1.25e208, "rmse": 7e100}
    parts = dict.fromkeys(["train", "validation", "test"], worse)
    monkeypatch.setattr(runs.Run, "results", lambda self: parts)
    path = tmp_path / "line.csv"
    path.write_text("a,y\n" + "".join(f"{i % 7},{i / 2}\n" for i in range(40)))
    options = ["--target", "y", *QUICK, "--lr", "1e-300", "--out", str(tmp_path / "run")]
    assert cli.main(["train", str(path), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(("train  ", "test "))] == [
        [part, "3.0000e+200", "-1.2500e+208", "7.0000e+100"] for part in ("train", "test")
    ]
    name = "sgd:momentum=0.9, dampening=0.1, exclude='vectors'"
    compared(tmp_path, "--target", "y", "--optimizers", name, data=str(path))
    *_, header, row, _, _ = capsys.readouterr().out.splitlines()
    assert row.startswith(f"{name}  ") and row.index(" -1.2500e+208") < len(header)
    assert len(row) == len(header)


def test_means_over_seeds(tmp_path, capsys) -> None:
    found, _, _ = compared(tmp_path, "--optimizers", "adam", "--seeds", "0,1,2")
    mean = np.mean([float(row["val_loss"]) for row in found])
    shown = capsys.readouterr().out
    assert f" {mean:.5f} " in shown
    assert "runs       1 combination of optimizer and learning rate, 3 seeds\n" in shown


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="this system has no /dev/stdin")
def test_a_pipe_is_read_once_for_all_seeds(tmp_path) -> None:
    rows = "".join(f"{i % 7},{i % 5},{i % 7 - i % 5 + 0.5}\n" for i in range(40))
    words = ["compare", "/dev/stdin", "--target", "y", *QUICK, "--optimizers", "sgd"]
    done = subprocess.run(
        [sys.executable, "-m", "steepest.cli", *words, "--seeds", "0,1", "--out", tmp_path / "out"],
        input=f"a,b,y\n{rows}", capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_default_rates_and_a_table_of_numbers(tmp_path, capsys) -> None:
    path = tmp_path / "line.csv"
    a, b = np.random.default_rng(1).normal(size=(2, 80))
    path.write_text("a,b,y\n" + "".join(f"{x},{y},{x - y}\n" for x, y in zip(a, b, strict=True)))
    optimizers = ["--optimizers", "sgd:momentum=0.5, nesterov=True; adagrad, adamw"]
    found, _, out = compared(tmp_path, "--target", "y", *optimizers, data=str(path))
    assert [row["optimizer"] for row in found] == [
        "sgd:momentum=0.5, nesterov=True", "adagrad", "adamw"
    ]  # fmt: skip
    assert [float(row["lr"]) for row in found] == [0.01, 0.01, 0.003]
    assert {"test_loss", "test_r2", "test_rmse"} <= found[0].keys()
    assert "test r2" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert (config["lrs"], config["settings"]["target"]) == (None, "y")


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path, capsys) -> None:
    found, curves, out = compared(tmp_path, "--optimizers", "sgd,adamw", "--lrs", "1e30,0.01")
    assert [row["stopped"] for row in found] == ["diverged", "epochs", "diverged", "epochs"]
    assert [row["val_loss"] == "" for row in found] == [True, False, True, False]
    assert {row["lr"] for row in curves} == {"0.01"}
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("diverged in epoch 1") for line in lines[-6:-2]] == [False] * 2 + [
        True
    ] * 2
    assert (out / "compare.png").exists()


def test_all_runs_diverge(tmp_path, capsys) -> None:
    out = tmp_path / "compared"
    arguments = ["--optimizers", "sgd", "--lrs", "1e30", "--seeds", "0,1", "--out", str(out)]
    assert cli.main(["compare", "digits", *QUICK, *arguments]) == 1
    assert {path.name for path in out.iterdir()} == FILES - {"compare.png"}
    assert "2 of 2 diverged" in capsys.readouterr().out


@pytest.mark.parametrize("run", [1, 3])
def test_interrupt_keeps_what_is_done(monkeypatch, tmp_path, capsys, run) -> None:
    steps = 0
    step = st.Adam.step

    def interrupted(self, grads):
        nonlocal steps
        steps += 1
        if steps == 60 * (run - 1) + 25:  # 60 updates a run: in its second epoch
            raise KeyboardInterrupt
        step(self, grads)

    notes, drawn = [], []
    draw = pictures.compare

    def drawing(curves, name, note):
        notes.append(note)
        drawn.extend(curves)
        return draw(curves, name, note)

    monkeypatch.setattr(pictures, "compare", drawing)
    monkeypatch.setattr(st.Adam, "step", interrupted)
    found, curves, out = compared(
        tmp_path, "--optimizers", "adam", "--lrs", "0.1,0.2,0.3,0.4", code=130
    )
    assert {path.name for path in out.iterdir()} == FILES
    assert [row["stopped"] for row in found] == ["epochs"] * (run - 1) + ["interrupted"]
    assert [row["epochs"] for row in found] == ["3"] * (run - 1) + ["1"]
    assert len(curves) == 3 * (run - 1) + 1
    shown = capsys.readouterr()
    assert shown.err == (
        f"interrupted: {run - 1} of 4 runs are done and kept; "
        f"continue with  steepest compare --resume {out}\n"
    )
    assert notes == [f"interrupted: {run - 1} of 4 runs are done"]
    assert drawn[-1].interrupted and not any(one.interrupted for one in drawn[:-1])
    assert shown.out.splitlines()[-3].endswith("interrupted")


# Resuming


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A table of 80 rows: y = 2 a - b."""
    a, b = np.random.default_rng(1).normal(size=(2, 80))
    path = tmp_path_factory.mktemp("data") / "line.csv"
    rows = zip(a, b, 2 * a - b, strict=True)
    path.write_text("a,b,y\n" + "".join(f"{x},{y},{z}\n" for x, y, z in rows))
    return path


@pytest.fixture(scope="module")
def finished(line, tmp_path_factory):
    """A comparison that is done."""
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "compare", lambda *_: Picture())
        assert cli.main(["compare", str(line), *OPTIONS, "--out", str(out)]) == 0
    return out


OPTIONS = ["--target", "y", "--hidden", "4", "--epochs", "3", "--batch-size", "16", "--quiet"]
OPTIONS += ["--optimizers", "adam,sgd", "--lrs", "0.1,1e30", "--seeds", "0,1"]


def timeless(out):
    """The tables, without what a clock has put there."""
    tables = [rows(out / name) for name in ("compare.csv", "curves.csv")]
    return [[{k: x for k, x in row.items() if "seconds" not in k} for row in t] for t in tables]


def test_a_comparison_goes_on(line, finished, tmp_path, monkeypatch, capsys) -> None:
    """With the runs that are missing, to the same tables."""
    monkeypatch.setattr(pictures, "compare", lambda *_: Picture())
    step, steps = st.SGD.step, []

    def interrupted(self, grads):
        steps.append(1)
        if len(steps) == 5:  # in the second epoch of the fifth run
            raise KeyboardInterrupt
        step(self, grads)

    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(st.SGD, "step", interrupted)
        assert cli.main(["compare", str(line), *OPTIONS, "--resume", "--out", str(out)]) == 130
    assert len(json.loads((out / "outcomes.json").read_text())) == 4
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(st.Adam, "step", None)  # its runs are done
        assert cli.main(["compare", "--quiet", "--resume", str(out)]) == 0
    assert "done       4 of 8 runs\n" in capsys.readouterr().out
    assert timeless(out) == timeless(finished)
    monkeypatch.setattr(st.SGD, "step", None)  # and now all are
    assert cli.main(["compare", str(line), *OPTIONS, "--resume", str(out)]) == 0
    assert timeless(out) == timeless(finished)


class Picture:
    """Drawing takes most of the time of such small runs."""

    def savefig(self, path, dpi) -> None:
        path.touch()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lrs", "0.2"], "--lrs [0.2]: the run in OUT was begun with [0.1, 1e+30]"),
        (["--optimizers", "adam"], "--optimizers ['adam']: the run in OUT was begun with ['adam',"),
        (["--seeds", "2"], "--seeds [2]: the run in OUT was begun with [0, 1], and keeps its"),
        (["--epochs", "5"], "--epochs 5: the run in OUT was begun with 3, and keeps its settings"),
        (["OTHER"], "OTHER is not what the run in OUT began with"),
        (["--out", "x"], "--resume OUT --out x: a run continues in its own folder"),
    ],
)
def test_other_comparisons_are_refused(line, finished, tmp_path, capsys, options, message) -> None:
    out, other = finished, tmp_path / "other.csv"
    other.write_text(line.read_text().replace("0.", "1.", 1))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    options = [x.replace("OTHER", str(other)) for x in options]
    message = message.replace("OUT", str(out)).replace("OTHER", str(other))
    capsys.readouterr()
    assert cli.main(["compare", "--resume", str(out), *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("content", ["", "[1]", '[{"optimizer": "adam"}]', "{}x", "7"])
def test_damaged_outcomes_are_told(finished, tmp_path, capsys, content) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "outcomes.json").write_text(content)
    capsys.readouterr()
    assert cli.main(["compare", "--resume", str(out)]) == 2
    shown = capsys.readouterr().err
    assert "outcomes.json is" in shown and shown.count("\n") == 1


def test_a_comparison_needs_optimizers(capsys, tmp_path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "digits"])
    assert "the following arguments are required: --optimizers" in capsys.readouterr().err
    assert cli.main(["compare", "--resume", str(tmp_path / "none")]) == 2
    assert "there is no run in this folder" in capsys.readouterr().err


def test_interrupt_before_the_first_run(monkeypatch, tmp_path, capsys) -> None:
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("steepest.cli.compare._outcome", interrupted)
    out = tmp_path / "compared"
    arguments = ["--optimizers", "sgd", *QUICK, "--out", str(out)]
    assert cli.main(["compare", "digits", *arguments]) == 130
    assert {path.name for path in out.iterdir()} == {"config.json"}
    assert "interrupted: 0 of 1 runs are done and kept; con" in capsys.readouterr().err


def test_a_table_is_kept_after_each_run(monkeypatch, tmp_path) -> None:
    """So a killed comparison has lost only the run that was under way."""
    out = tmp_path / "compared"
    seen = []
    prepare = runs.prepare

    def watched(settings, dataset, *option):
        if not option:  # a run, not a check
            seen.append(len(rows(out / "compare.csv")) if (out / "compare.csv").exists() else 0)
        return prepare(settings, dataset, *option)

    monkeypatch.setattr(runs, "prepare", watched)
    compared(tmp_path, "--optimizers", "sgd,adam,lion")
    assert seen == [0, 1, 2]


def test_the_bar_counts_epochs(tmp_path, capsys) -> None:
    out = tmp_path / "compared"
    arguments = ["--optimizers", "sgd", "--lrs", "0.1,1e30", *QUICK[:-1], "--out", str(out)]
    assert cli.main(["compare", "digits", *arguments]) == 0
    assert "6/6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "sgd,adamv"], "--optimizers adamv: expected one of sgd, "),
        (["--optimizers", "sgd:lr=1,adam"], "--optimizers sgd:lr=1: give lr as --lrs"),
        (["--optimizers", "sgd:speed=1,adam"], "--optimizers sgd:speed=1: SGD has no argument"),
        (["--optimizers", "sgd,,adam"], "--optimizers : expected one of"),
        (["--optimizers", "adam", "--schedule", "cosin"], "--schedule cosin: expected one of"),
        (["--optimizers", "adam", "--target", "y"], "--target is for CSV files"),
    ],
)
def test_errors_come_before_the_first_run(tmp_path, capsys, arguments, message) -> None:
    out = tmp_path / "compared"
    assert cli.main(["compare", "digits", *arguments, "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"steepest: error: {message}")
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert not out.exists()


@pytest.mark.parametrize("option", ["--lrs=fast", "--seeds=0,-1", "--lrs=", "--seeds=1.5"])
def test_lists_are_checked(capsys, option) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", "digits", "--optimizers", "sgd", option])
    assert caught.value.code == 2
    assert "expected a" in capsys.readouterr().err


# The picture


def curve(optimizer, lr, *seeds, untrained=2.0, diverged=False):
    return pictures.Curve(optimizer, lr, seeds, untrained, diverged)


def labels(figure):
    return [text.get_text().strip() for text in figure.legends[0].get_texts()]


def test_colors_are_optimizers_and_dashes_are_rates() -> None:
    falling = [2.0, 1.0, 0.1]
    curves = [curve(rule, lr, falling) for rule in ("sgd", "adam") for lr in (0.1, 0.01, 0.001)]
    figure = pictures.compare(curves, "digits")
    lines = figure.axes[0].get_lines()
    assert len({line.get_color() for line in lines[:3]}) == 1
    assert len({line.get_color() for line in lines}) == 2
    styles = [str(line._unscaled_dash_pattern) for line in lines]
    assert styles[:3] == styles[3:] and len(set(styles)) == 3
    assert labels(figure) == ["sgd", "adam", "", "lr 0.001", "lr 0.01", "lr 0.1"]
    assert figure.axes[0].get_yscale() == "log"


def test_forty_eight_curves_all_differ() -> None:
    curves = [curve(f"o{i}", 10.0**-j, [1.0, 0.5]) for i in range(8) for j in range(6)]
    lines = pictures.compare(curves, "digits").axes[0].get_lines()
    looks = {(x.get_color(), str(x._unscaled_dash_pattern), x.get_marker()) for x in lines}
    assert len(looks) == 48


def looks(figure):
    lines = figure.axes[0].get_lines()
    return [(x.get_color(), str(x._unscaled_dash_pattern), x.get_marker()) for x in lines]


@pytest.mark.parametrize(("optimizers", "rates"), [(9, 1), (49, 1), (13, 3), (20, 7), (9, 9)])
def test_more_optimizers_than_colors_all_differ(optimizers, rates) -> None:
    curves = [curve(f"o{i}", 10.0**-j, [1.0, 0.5]) for i in range(optimizers) for j in range(rates)]
    found = looks(pictures.compare(curves, "digits"))
    assert len(set(found)) == len(found) == optimizers * rates


def names_at_ends(figure):
    """The boxes of the names at the ends of the curves, as they are drawn; without the strokes."""
    box = require("matplotlib.text", "train", "this test").Text.get_window_extent
    figure.savefig(io.BytesIO())
    texts = [x for x in figure.axes[0].texts if x.get_text()]
    return {x.get_text(): (box(x), x) for x in texts}


@pytest.mark.parametrize("n", brief([9, 49], [9]))
@pytest.mark.parametrize("end", [lambda i: 0.1, lambda i: 0.1 + i, lambda i: 1e9])
def test_names_at_the_ends_of_many_curves(n, end) -> None:
    """Within the picture, in the colour of the curve, none over another, in the curves' order."""
    curves = [curve(f"o{i}", 0.5, [2.0, 1.0, end(i)]) for i in range(n)]
    figure = pictures.compare(curves, "digits")
    found = names_at_ends(figure)
    assert list(found) == [f"o{i}, lr 0.5" for i in range(n)]
    assert figure.legends == []
    for (box, text), line in zip(found.values(), figure.axes[0].get_lines(), strict=True):
        assert text.get_color() == line.get_color()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
    boxes = sorted((box for box, _ in found.values()), key=lambda box: box.y0)
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    assert min(np.diff(middles)) > 0.9 * pictures.LINE * figure.dpi
    if end(1) != end(0) and n == 9:
        assert [box for box, _ in found.values()] == boxes


def test_few_curves_have_no_names_at_their_ends() -> None:
    figure = pictures.compare([curve(f"o{i}", 0.5, [2.0, 1.0]) for i in range(8)], "digits")
    assert names_at_ends(figure) == {} and len(labels(figure)) == 8


def test_an_interrupted_comparison_says_so() -> None:
    whole = curve("sgd", 0.1, [2.0, 1.0, 0.5])
    part = pictures.Curve("adam", 0.1, ([2.0, 1.0],), 2.0, diverged=False, interrupted=True)
    none = pictures.Curve("lion", 0.1, ([],), 2.0, diverged=False, interrupted=True)
    figure = pictures.compare([whole, part, none], "digits", "interrupted: 1 of 4 runs are done")
    title = figure.axes[0].get_title(loc="left")
    assert title == "digits: validation loss (interrupted: 1 of 4 runs are done)"
    assert labels(figure)[-3:] == ["interrupted", "adam, lr 0.1", "lion, lr 0.1"]
    ring = figure.axes[0].get_lines()[2]
    assert (ring.get_marker(), ring.get_xydata().tolist()) == ("o", [[2.0, 1.0]])


@pytest.mark.parametrize("heights", [[0.5], [0.2, 0.9], [0.5] * 4, [0.0, 0.0], [1.0, 1.0, 0.99]])
def test_heights_are_kept_or_moved_apart(heights) -> None:
    found = pictures.apart(heights, 0.1)
    assert all(0 <= x <= 1 for x in found)
    assert all(b - a > 0.1 - 1e-12 for a, b in itertools.pairwise(sorted(found)))
    if len(set(heights)) == len(heights) and min(np.diff(sorted(heights)), default=1) > 0.1:
        assert found == pytest.approx(heights, abs=1e-12)  # the sums round


def test_one_rate_each_stands_beside_the_name() -> None:
    figure = pictures.compare([curve("sgd", 0.1, [1.0, 0.5]), curve("adam", 0.01, [1.0])], "digits")
    assert labels(figure) == ["sgd, lr 0.1", "adam, lr 0.01"]
    assert figure.axes[0].get_yscale() == "linear"


def test_what_flies_off_does_not_flatten_the_others() -> None:
    curves = [curve("sgd", 9.0, [3.0, 1e9], diverged=True), curve("sgd", 0.1, [2.0, 0.1])]
    figure = pictures.compare([*curves, curve("sgd", 99.0, [], diverged=True)], "digits")
    figure.savefig(io.BytesIO())  # warns where there is no room for the axes
    low, high = figure.axes[0].get_ylim()
    assert (round(low, 3), high) == (round(0.1 / 1.15, 3), 6.0)
    assert labels(figure)[-3:] == ["diverged", "sgd, lr 9", "sgd, lr 99"]


def test_all_fly_off() -> None:
    figure = pictures.compare([curve("sgd", 9.0, [1e30, 1e38], diverged=True)], "digits")
    figure.savefig(io.BytesIO())
    assert figure.axes[0].get_ylim()[1] == 6.0


def test_bands_of_seeds_where_there_are_few() -> None:
    few = [curve("sgd", lr, [2.0, 1.0], [4.0, 3.0, 1.0]) for lr in (1.0, 2.0)]
    ax = pictures.compare(few, "digits").axes[0]
    assert ax.get_lines()[0].get_ydata().tolist() == [3.0, 2.0]
    assert ax.get_ylabel() == "validation loss, mean of 2 seeds"
    assert len(ax.collections) == 2
    many = [curve("sgd", float(lr), [2.0, 1.0], [4.0, 3.0]) for lr in range(1, 9)]
    assert len(pictures.compare(many, "digits").axes[0].collections) == 0
