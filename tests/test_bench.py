"""The benchmarks tell the truth: cases, rivals, arithmetic, files. Their speed is not tested."""

import doctest
import importlib
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest as st
from bench import bars, cases, machine, measure, picture, report, rivals, run
from steepest.optimizers import RULES

ROOT = Path(__file__).resolve().parents[1]

MODULES = (
    "bars", "cases", "convergence", "machine", "measure", "peers", "picture", "report", "rivals",
    "run", "scale",
)  # fmt: skip
TINY = cases.Case("large", ((30, 40),), streams=True)
SMALL = cases.Case("1000x100", ((7,),) * 3, steps=2, fresh=True)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rivals without a pause between them; afterwards the threads as they were."""
    monkeypatch.setattr(measure, "_PAUSE", 0.0)
    yield
    st.set_num_threads(None)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"bench.{name}")).failed == 0


# Cases


@pytest.mark.parametrize("quick", [False, True])
def test_cases_have_the_sizes_of_their_names(quick: bool) -> None:
    found = {case.name: case for case in cases.cases(memory=10**12, quick=quick)}
    assert tuple(found) == cases.CASES
    assert found["1000x100"].shapes == ((100,),) * 1000
    assert found["100x10000"].shapes == ((10_000,),) * 100
    assert found["1x10"].shapes == ((10,),)
    assert [len(found[name].shapes) for name in cases.MODELS] == [161, 199, 148]
    if not quick:
        assert found["large"].parameters == 20_000_000
        assert [found[name].title for name in cases.MODELS] == [
            "ResNet-50: 161 tensors, 25 557 032 parameters",
            "BERT base: 199 tensors, 109 482 240 parameters",
            "GPT-2 small: 148 tensors, 124 439 808 parameters",
        ]
    assert found.pop("matrix").shapes[0] == ((256, 256) if quick else (2048, 2048))
    assert all(case.fresh == (case.steps > 1) == (not case.streams) for case in found.values())


def test_the_shape_list_is_scaled_to_the_memory_and_says_so() -> None:
    [scaled] = [case for case in cases.cases(memory=4 * 10**9) if case.name == "gpt2"]
    assert scaled.shapes == cases.gpt2_small(2)
    assert scaled.parameters * 16 * cases.RIVALS <= 4 * 10**9
    assert scaled.title == "GPT-2 small, axes divided by 2: 148 tensors, 31 140 096 parameters"
    [least] = [case for case in cases.cases(memory=0) if case.name == "gpt2"]
    assert least.shapes == cases.gpt2_small(16)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    # What the architectures say of themselves: blocks of three convolutions and a batch norm each,
    # four of them with one beside; layers of BERT, each with six matrices; of GPT-2, with four.
    [("resnet50", 4, 1 + 3 * 16 + 4), ("resnet50", 1, 2 * 53 + 1),
     ("bert", 2, 3 + 6 * 12 + 1), ("gpt2", 2, 2 + 4 * 12)],
)  # fmt: skip
def test_models_have_the_tensors_of_their_layers(name: str, shape: int, count: int) -> None:
    for divisor in (1, 4):
        shapes = cases.MODELS[name][1](divisor)
        assert sum(len(x) == shape for x in shapes) == count


@pytest.mark.torch
def test_models_have_the_shapes_that_transformers_gives_them() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        bert = transformers.BertModel(transformers.BertConfig())
        gpt2 = transformers.GPT2Model(transformers.GPT2Config())
    assert tuple(tuple(p.shape) for p in bert.parameters()) == cases.bert_base()
    assert tuple(tuple(p.shape) for p in gpt2.parameters()) == cases.gpt2_small()


def test_every_rule_and_case_has_workloads() -> None:
    found = list(cases.workloads(cases.cases(10**12)))
    scheduled = [(w.case.name, w.schedule) for w in found if w.schedule]
    small = ("1x10", "mlp", "50x1000", "1000x100")
    assert sorted(scheduled) == sorted((c, s) for c in small for s in cases.SCHEDULES)
    plain = [(w.rule, w.case.name, w.clip) for w in found if not w.hyper and not w.schedule]
    assert len(plain) == len(set(plain))
    for case in cases.CASES[:-2]:
        assert {("adamw", case, None), ("adamw", case, cases.MAX_NORM)} <= set(plain)
    by_need = {"element-wise": "large", "layer-wise": "large", "global": "large"}
    by_need["matrix"] = "matrix"
    for rule, cls in RULES.items():
        assert (rule, by_need[cls.needs], None) in plain
        assert ((rule, "layers", None) in plain) == (cls.needs == "layer-wise")


def test_workloads_are_selected_by_case_and_rule() -> None:
    every = cases.cases(10**12)
    assert {w.case.name for w in cases.workloads(every, ["1x10"])} == {"1x10"}
    assert {w.rule for w in cases.workloads(every, rules=["lion"])} == {"lion"}
    assert list(cases.workloads(every, ["1x10"], ["lion"])) == []


def test_a_new_rule_has_a_row_without_an_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unheard(st.SGD):
        """Gradient descent by another name."""

    del RULES[Unheard.rule]
    monkeypatch.setitem(RULES, Unheard.rule, Unheard)
    [workload] = cases.workloads([TINY], rules=["unheard"])
    entry = measure.measured(workload, measure.Settings(rounds=2), torch=None)
    assert list(entry["rivals"]) == ["steepest", "stream"]
    assert entry["absent"]["NumPy"] == "the reference has no such rule"


# Rivals


def workload(rule: str, case: cases.Case = SMALL, clip: float | None = None) -> cases.Workload:
    return cases.Workload(case, rule, clip=clip)


@pytest.mark.parametrize("rule", RULES)
def test_the_reference_does_the_same_steps(rule: str) -> None:
    found, _ = rivals.rivals(workload(rule), 1, None)
    ours, other = found
    for _ in range(3):
        for rival in found:
            rival.prepare()
            rival.step()
    assert other.name == "NumPy"
    for p, q in zip(ours.optimizer.param_groups[0]["params"], other.params, strict=True):
        np.testing.assert_array_equal(p, q)
        assert not np.shares_memory(p, q)


def test_the_reference_clips_to_the_same_norm() -> None:
    ours, other = rivals.rivals(workload("sgd", clip=0.01), 1, None)[0]
    for rival in (ours, other):
        rival.step()
    for p, q in zip(ours.optimizer.param_groups[0]["params"], other.params, strict=True):
        # NumPy's norm is summed in float32.
        np.testing.assert_allclose(p, q, rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("rule", RULES)
def test_torch_does_the_same_steps(rule: str, clip: float | None) -> None:
    torch = pytest.importorskip("torch")
    found, absent = rivals.rivals(workload(rule, clip=clip), 1, torch)
    for _ in range(3):
        for rival in found:
            rival.prepare()
            rival.step()
    ours, others = found[0], [r for r in found if r.name in rivals.Torch.FLAGS]
    assert {r.name for r in others} | absent.keys() == set(rivals.Torch.FLAGS)
    assert bool(others) == hasattr(torch.optim, RULES[rule].__name__)
    for other in others:
        for p, q in zip(ours.optimizer.param_groups[0]["params"], other.params, strict=True):
            # Both compute in float32, in another order.
            np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.torch
def test_torch_rivals_are_what_their_names_say() -> None:
    torch = pytest.importorskip("torch")
    found, absent = rivals.rivals(workload("adamw", TINY), 1, torch)
    flags = {r.name: r.optimizer.defaults for r in found if isinstance(r, rivals.Torch)}
    assert {k: (bool(v["foreach"]), bool(v["fused"])) for k, v in flags.items()} == {
        "torch single": (False, False),
        "torch foreach": (True, False),
        "torch fused": (False, True),
    }
    assert not absent
    absent = rivals.rivals(workload("rmsprop", TINY), 1, torch)[1]
    assert absent["torch fused"] == "torch.optim.RMSprop has no fused"


@pytest.mark.torch
@pytest.mark.parametrize("schedule", cases.SCHEDULES)
def test_schedules_are_those_of_torch(schedule: str) -> None:
    """All rivals of a workload with a schedule have the same rates and momenta at every step."""
    torch = pytest.importorskip("torch")
    case = cases.Case("1x10", ((10,),), steps=2, fresh=True)
    scheduled = cases.Workload(case, "adamw", schedule=schedule)
    found, absent = rivals.rivals(scheduled, 1, torch)
    names = ["steepest", "steepest, constant", "torch foreach", "torch fused", "steepest.torch"]
    assert [r.name for r in found] == names and absent.keys() == {"NumPy", "torch single"}
    ours, constant, *others = found
    for _ in range(30):
        for rival in found:
            rival.prepare()
            rival.step()
    for other in others:
        p = ours.optimizer.param_groups[0]["params"][0]
        # PyTorch computes in float32, in another order, and its schedulers by recurrences.
        np.testing.assert_allclose(p, other.params[0].detach().numpy(), rtol=1e-5, atol=1e-6)
        group = other.optimizer.param_groups[0]
        rate = ours.optimizer.param_groups[0]["lr"]
        then = rate(30) if callable(rate) else rivals._RATE * rivals._falling(30)
        assert group["lr"] == pytest.approx(then, rel=1e-9)
    assert constant.optimizer.param_groups[0]["lr"] == 1e-3


MODEL = cases.Case("resnet50", ((30, 40), (7,)), streams=True, model=True)


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A module in the place of DeepSpeed's, with PyTorch's optimizer, which notes its arguments."""
    torch = pytest.importorskip("torch")
    given: dict[str, Any] = {}

    def adam(params: Any, *, adamw_mode: bool, **hyper: Any) -> Any:
        given.update(hyper, adamw_mode=adamw_mode)
        return torch.optim.AdamW(params, **hyper)

    module = types.ModuleType("deepspeed.ops.adam")
    module.DeepSpeedCPUAdam = adam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.ops", types.ModuleType("deepspeed.ops"))
    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", module)
    return given


@pytest.mark.torch
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_rivals_of_a_model_do_the_same_steps(
    clip: float | None, deepspeed: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    found, absent = rivals.rivals(workload("adamw", MODEL, clip), 1, torch)
    names = ["steepest", "torch foreach", "torch fused", "steepest.torch", "DeepSpeed", "stream"]
    assert [r.name for r in found] == names
    assert absent.keys() == {"NumPy", "torch single"}
    assert deepspeed["adamw_mode"] and deepspeed["weight_decay"] == 0.01
    for _ in range(3):
        for rival in found:
            rival.prepare()
            rival.step()
    ours, *others, _ = found
    for other in others:
        assert all((p.grad is None) == (clip is not None) for p in other.params)
        for p, q in zip(ours.optimizer.param_groups[0]["params"], other.params, strict=True):
            if other.name == "steepest.torch":
                np.testing.assert_array_equal(p, q.detach().numpy())
            else:  # PyTorch computes in float32, in another order
                np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.torch
def test_a_clipped_step_of_ours_leaves_the_gradients(deepspeed: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    found = rivals.rivals(workload("adamw", MODEL, 0.5), 1, torch)[0]
    first = rivals.parameters(workload("adamw", MODEL), 2)
    for rival in found[1:-1]:
        rival.step()
        kept = all(np.array_equal(g, x) for g, x in zip(rival.gradients, first, strict=True))
        assert kept == (rival.name == "steepest.torch")


@pytest.mark.torch
def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    torch = pytest.importorskip("torch")
    absent = rivals.rivals(workload("adamw", MODEL), 1, torch)[1]
    assert absent["DeepSpeed"] == "not installed"
    found, absent = rivals.rivals(workload("adamw", MODEL), 1, None)
    assert [r.name for r in found] == ["steepest", "stream"]
    assert absent["steepest.torch"] == absent["DeepSpeed"] == "PyTorch is not installed"


def test_gradients_are_new_arrays_where_the_case_says_so() -> None:
    for case in (SMALL, TINY):
        [ours, *_] = rivals.rivals(workload("sgd", case), 1, None)[0]
        before = ours.gradients
        ours.prepare()
        assert (ours.gradients[0] is not before[0]) == case.fresh
        np.testing.assert_array_equal(ours.gradients[0], before[0])


@pytest.mark.parametrize(
    ("rule", "clip", "expected"),
    [("sgd", None, 12), ("lion", None, 20), ("adamw", None, 28), ("adamw", 1.0, 32)],
)
def test_bytes_moved(rule: str, clip: float | None, expected: int) -> None:
    found = rivals.rivals(workload(rule, TINY, clip), 1, None)[0]
    assert found[0].bytes_moved() == expected * TINY.parameters


@pytest.mark.parametrize("threads", [1, 2])
def test_the_stream_reads_and_writes_the_bytes_it_claims(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    monkeypatch.setattr(rivals, "_multiply", lambda x: moved.append(2 * x.nbytes))
    rivals.Stream(28_000, threads, torch=None).step()
    assert sum(moved) == 28_000 and len(moved) == threads


# Rounds and ratios


def test_ratio_uses_the_rounds_that_both_took() -> None:
    found = measure.ratio([4.0, None, 9.0, 8.0, 6.0], [2.0, 1.0, 3.0, None, 1.0])
    assert (found.low, found.median, found.high) == (2.5, 3.0, 4.5)


def test_turns_are_taken_as_often_as_said() -> None:
    for rounds in range(1, 20):
        for turns in range(1, rounds + 1):
            taken = [measure.takes_part(i, turns, rounds) for i in range(rounds)]
            assert sum(taken) == turns and taken[0]


def test_orders_rotate_and_turn_round() -> None:
    orders = [measure.order(turn, 4) for turn in range(8)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert {order[0] for order in orders} == {0, 1, 2, 3}
    follows = {(a, b) for order in orders for a, b in pairwise(order)}
    assert {b for a, b in follows if a == 0} == {1, 3}


class Recorder:
    """A rival that notes what is asked of it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def prepare(self) -> None:
        self.log.append(f"prepare {self.name}")

    def step(self) -> None:
        self.log.append(f"step {self.name}")


def test_rivals_take_turns_with_new_gradients_for_every_step() -> None:
    log: list[str] = []
    found = [Recorder("a", log), Recorder("b", log)]
    times = measure.interleaved(found, 1, measure.Settings(rounds=2))
    assert [line.split()[1] for line in log[::2]] == ["a", "b", "a", "b", "b", "a"]
    assert all(log[i].replace("prepare", "step") == log[i + 1] for i in range(0, len(log), 2))
    assert all(t is not None and t >= 0 for row in times for t in row)


def test_a_slow_reference_takes_part_less_often() -> None:
    found = rivals.rivals(workload("sgd"), 1, None)[0]
    times = measure.interleaved(found, 1, measure.Settings(rounds=6, budget=0.0))
    assert [sum(t is not None for t in row) for row in times] == [6, 2]
    times = measure.interleaved(found, 1, measure.Settings(rounds=6, budget=9.0, limit=0.0))
    assert [len(row) for row in times] == [3, 3]


# Memory


class Allocator:
    """A rival that needs so many bytes for a moment."""

    name = "allocator"

    def __init__(self, size: int) -> None:
        self.size = size

    def prepare(self) -> None:
        pass

    def step(self) -> None:
        np.ones(self.size, np.uint8)


def test_allocations_are_seen() -> None:
    size = 100_000_000
    found = measure.allocated(Allocator(size))
    assert found["python"] is not None and size <= found["python"] < 1.1 * size
    # The kernel counts pages per thread and adds them up now and then, and a large array of NumPy
    # may lie in huge pages: 2 MB more at each of its ends.
    assert found["process"] is None or 0.9 * size < found["process"] < 1.1 * size
    assert measure.peak(found) >= size


def test_a_step_of_ours_allocates_nothing_of_the_parameters_size() -> None:
    case = cases.Case("large", ((10_000_000,),), streams=True)
    stepped = workload("adamw", case, 1.0)
    ours = rivals.Steepest(stepped, rivals.parameters(stepped, 2))
    ours.step()
    assert measure.peak(measure.allocated(ours)) < 0.2 * 4 * case.parameters


# The runner


def small_results(torch: Any = None) -> dict[str, Any]:
    chosen = [workload("adamw", TINY), workload("adamw", SMALL, 1.0), workload("lion", TINY)]
    return run.run(chosen, measure.Settings(rounds=3), torch, quick=True)


def check_schema(results: dict[str, Any]) -> None:
    assert results == json.loads(json.dumps(results))
    assert results["format"] == run.FORMAT
    assert {
        "cpu", "cpus", "level", "load_average", "numpy", "openmp_runtimes", "python", "steepest",
        "system", "threads", "torch", "transparent_huge_pages", "when",
    } <= results["machine"].keys()  # fmt: skip
    assert {"rounds", "threads", "base", "yardstick", "seconds"} <= results["settings"].keys()
    for entry in results["results"]:
        assert entry["rule"] in RULES and entry["case"] in cases.CASES
        ours = entry["rivals"]["steepest"]
        for row in entry["rivals"].values():
            taken = [s for s in row["seconds"] if s is not None]
            assert row["rounds"] == len(taken) and row["min"] == min(taken)
            assert row["median"] == np.median(taken)
            ratio = measure.ratio(row["seconds"], ours["seconds"])
            assert row["ratio"] == vars(ratio) and ratio.low <= ratio.median <= ratio.high
            assert ("allocated" in row) == ("gigabytes_per_second" in row) == entry["streams"]
        assert ("stream" in entry["rivals"]) == entry["streams"]


def test_results_are_complete_and_agree_with_their_rounds() -> None:
    check_schema(small_results())


@pytest.mark.torch
def test_results_with_torch() -> None:
    results = small_results(pytest.importorskip("torch"))
    check_schema(results)
    assert results["results"][0]["rivals"].keys() == {
        "steepest", "NumPy", "torch single", "torch foreach", "torch fused", "stream",
    }  # fmt: skip
    assert "torch.optim has no Lion" in results["results"][2]["absent"].values()


def test_the_command_writes_a_file_that_the_report_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "load_torch", lambda: None)
    out = tmp_path / "results.json"
    options = ["--quick", "--case", "1x10", "--rounds", "2", "--threads", "1", "--out", str(out)]
    assert run.main(options) == 0
    results = report.load(out)
    check_schema(results)
    assert results["quick"] and results["settings"]["threads"] == 1
    assert [e["case"] for e in results["results"]] == ["1x10"] * (2 + len(cases.SCHEDULES))
    assert "AdamW with clipping, 1 tensor of 10:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [["--case", "2x2"], ["--rule", "adamz"], ["--threads", "0"], ["--rounds", "-1"],
     ["--case", "1x10", "--rule", "lion"], ["--threads", "100000"]],
)  # fmt: skip
def test_the_command_refuses(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "load_torch", lambda: None)
    with pytest.raises(SystemExit) as error:
        run.main(options)
    assert error.value.code == 2
    assert options[0] in capsys.readouterr().err or "no such rule" in options


def test_machine_facts() -> None:
    facts = machine.facts(1, None)
    assert facts["cpu"] and facts["torch"] is None and facts["level"] in st.info()["levels"]
    assert machine.available_memory() > 0


# The report


def row(seconds: list[float | None], base: list[float | None], **more: Any) -> dict[str, Any]:
    taken = [s for s in seconds if s is not None]
    return {
        "seconds": seconds,
        "rounds": len(taken),
        "min": min(taken),
        "median": measure.median(taken),
        "ratio": vars(measure.ratio(seconds, base)),
        **more,
    }


def entry(rule: str, case: str, clip: float | None, times: dict[str, Any]) -> dict[str, Any]:
    """An entry as the runner makes it, of given times."""
    titles = {"large": "1 tensor of 20 000 000", "1x10": "1 tensor of 10", "bert": "BERT base: ..."}
    streams = case != "1x10"
    more: dict[str, Any] = {"allocated": {"python": 4_000, "process": None}} if streams else {}
    return {
        "case": case,
        "case_title": titles[case],
        "title": RULES[rule].__name__ + (" with clipping" if clip else ""),
        "rule": rule,
        "hyper": {},
        "clip": clip,
        "schedule": None,
        "tensors": 1,
        "parameters": 20_000_000,
        "parameter_bytes": 80_000_000,
        "bytes_moved": 560_000_000,
        "streams": streams,
        "rivals": {name: row(t, times["steepest"], **more) for name, t in times.items()},
        "absent": {},
    }


@pytest.fixture
def fixture() -> dict[str, Any]:
    ours = [0.020, 0.020, 0.025]
    large = {
        "steepest": ours,
        "NumPy": [0.4, None, 0.4],
        "torch fused": [0.021, 0.019, 0.026],
        "torch foreach": [0.1, 0.1, 0.1],
        "stream": [0.018, 0.018, 0.0225],
    }
    tiny = {"steepest": [2e-6] * 3, "torch fused": [1e-6] * 3}
    return {
        "format": run.FORMAT,
        "quick": False,
        "machine": {
            "cpu": "A CPU", "system": "Linux x86_64", "steepest": "1.2.3", "level": "v3",
            "numpy": "2.0.0", "torch": "2.13.0", "when": "2026-01-02T03:04:05+00:00",
            "load_average": [0.25, 0.5, 0.5],
        },
        "settings": {"threads": 2, "rounds": 3, "base": "steepest", "yardstick": "mul_"},
        "results": [
            entry("adamw", "large", None, large),
            entry("adamw", "1x10", None, tiny),
            entry("adamax", "large", None, {"steepest": ours, "torch foreach": [0.05] * 3}),
        ],
    }  # fmt: skip


def test_tables(fixture: dict[str, Any]) -> None:
    text = report.markdown(fixture)
    assert (
        "| 1 tensor of 20 000 000 | no | 20 ms (20 ms) | 1.04 (0.99 to 1.04) | 5.00 (4.50 to 5.00) "
        "| – | 18 (17 to 19) | 0.90 (0.90 to 0.90) |" in text
    )
    assert "| Adamax | 28 | 20 ms (20 ms) | 2.50 (2.25 to 2.50) | – | – |" in text
    assert "2 threads; steepest 1.2.3 (level v3), NumPy 2.0.0, PyTorch 2.13.0; 2026-01-02" in text
    assert "at least 3 rounds (NumPy at least 2)" in text
    assert "A quick run" not in text
    assert "A quick run" in report.markdown(fixture | {"quick": True})


def test_the_table_of_models(fixture: dict[str, Any]) -> None:
    times = {
        "steepest": [0.010, 0.010, 0.010],
        "torch fused": [0.030, 0.030, 0.030],
        "torch foreach": [0.060, 0.060, 0.060],
        "steepest.torch": [0.020, 0.020, 0.020],
        "stream": [0.010, 0.010, 0.010],
    }
    model = entry("adamw", "bert", 1.0, times) | {"absent": {"DeepSpeed": "not installed"}}
    text = report.markdown(fixture | {"results": [*fixture["results"], model]})
    assert (
        "| BERT base: ... | clip, step, zero_grad | 20 ms (20 ms) | 1.50 (1.50 to 1.50) "
        "| 3.00 (3.00 to 3.00) | not installed | 0.50 (0.50 to 0.50) |" in text
    )
    assert text.count("BERT base") == 1
    assert "faster in 5 of 7 comparisons" in text
    found = {r.what: r for r in bars.checked([model])}
    shown = {r.what: (r.measured, r.holds) for r in found.values()}
    title = "AdamW with clipping, BERT base: ...:"
    assert shown[f"{title} torch fused / steepest.torch"] == ("1.5", "yes")
    assert shown[f"{title} torch foreach / steepest"] == ("6", "yes")
    assert shown["adamw with clipping, bert: DeepSpeed / steepest.torch"] == ("not measured", "–")


def test_the_table_of_schedules(fixture: dict[str, Any]) -> None:
    times = {
        "steepest": [6e-6] * 3,
        "steepest, constant": [4e-6] * 3,
        "steepest.torch": [10e-6] * 3,
        "torch fused": [30e-6] * 3,
    }
    scheduled = entry("adamw", "1x10", None, times) | {"schedule": "LambdaLR"}
    cosine = scheduled | {"schedule": "cosine"}
    text = report.markdown(fixture | {"results": [*fixture["results"], scheduled]})
    assert "| 1 tensor of 10 | LambdaLR | 6 µs | 4 µs | 10 µs | 3.00 (3.00 to 3.00) | – |" in text
    shown = {(r.what, r.measured, r.holds) for r in bars.checked([scheduled, cosine])}
    assert ("AdamW, 1 tensor of 10: torch fused / steepest.torch", "3", "yes") in shown
    assert ("AdamW, 1 tensor of 10: steepest / steepest, constant", "1.5", "yes") in shown


def test_ties_and_losses_are_said(fixture: dict[str, Any]) -> None:
    text = report.markdown(fixture)
    assert "faster in 3 of 5 comparisons" in text
    assert "slower than: torch fused, AdamW, 1 tensor of 10 (0.50)." in text
    assert "No clear difference, 1 lies between the quartiles: torch fused, AdamW, 1 tensor" in text


def test_tables_of_a_part(fixture: dict[str, Any]) -> None:
    entries = fixture["results"]
    for chosen in (entries[:0], entries[1:2], entries[2:]):
        assert report.markdown(fixture | {"results": chosen})


def test_bars(fixture: dict[str, Any]) -> None:
    found = {row.what: row for row in bars.checked(fixture["results"])}
    assert len(found) == len(bars.BARS) + 1
    shown = {(r.what, r.required, r.measured, r.holds) for r in found.values()}
    large = "AdamW, 1 tensor of 20 000 000"
    assert (f"{large}: steepest / torch fused", "≤ 1.05", "0.9615", "yes") in shown
    assert (f"{large}: NumPy / steepest", "≥ 10", "18", "yes") in shown
    assert (f"{large}: stream / steepest", "≥ 0.85", "0.9", "yes") in shown
    assert ("AdamW, 1 tensor of 10: torch fused / steepest", "≥ 10", "0.5", "no") in shown
    assert ("rmsprop, large: torch foreach / steepest", "≥ 3.5", "not measured", "–") in shown
    assert any(r.measured == "5e-05" and r.holds == "yes" for r in found.values())
    assert "| bar | required | measured | holds |" in list(report.bars_table(fixture))


def test_bars_compare_what_is_measured() -> None:
    names = {"steepest", "steepest.torch", "DeepSpeed", "NumPy", "stream", *rivals.Torch.FLAGS}
    names |= {"steepest, constant"}
    for bar in bars.BARS:
        assert bar.rule in RULES and bar.case in cases.CASES and {bar.over, bar.under} <= names


def test_only_the_text_between_the_markers_is_replaced(
    fixture: dict[str, Any], tmp_path: Path
) -> None:
    source, target = tmp_path / "results.json", tmp_path / "README.md"
    source.write_text(json.dumps(fixture))
    before, after = "# Title\n\nText ⇒ –\n\n", "\n\n## After\nno newline at the end"
    target.write_text(f"{before}{report.BEGIN}\nold\n{report.END}{after}", encoding="utf-8")
    for _ in range(2):
        assert report.main([str(source), "--write", str(target)]) == 0
        text = target.read_text(encoding="utf-8")
        assert text.startswith(before + report.BEGIN) and text.endswith(report.END + after)
        assert "| Adamax |" in text and "old\n" not in text


@pytest.mark.parametrize(
    "old", ["", report.BEGIN, f"{report.END} {report.BEGIN}", 2 * (report.BEGIN + report.END)]
)
def test_a_file_without_its_markers_is_left_alone(
    old: str, fixture: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "results.json", tmp_path / "README.md"
    source.write_text(json.dumps(fixture))
    target.write_text(old)
    assert report.main([str(source), "--write", str(target)]) == 2
    assert target.read_text() == old and report.BEGIN in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', None])
def test_a_file_of_no_results_is_refused(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "results.json"
    if content is not None:
        source.write_text(content)
    assert report.main([str(source)]) == 2
    assert str(source) in capsys.readouterr().err


def test_the_picture_shows_every_workload(fixture: dict[str, Any]) -> None:
    figure = picture.draw(fixture)
    labels = [[tick.get_text() for tick in ax.get_yticklabels()] for ax in figure.axes]
    assert labels == [["1 tensor of 20 000 000", "1 tensor of 10"], ["AdamW", "Adamax"]]
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    assert picture.draw(fixture | {"results": []}) is not None


def test_the_report_refers_to_its_picture(fixture: dict[str, Any], tmp_path: Path) -> None:
    source, target = tmp_path / "results.json", tmp_path / "README.md"
    source.write_text(json.dumps(fixture))
    target.write_text(report.BEGIN + report.END)
    (tmp_path / "bench").mkdir()
    image = tmp_path / "bench" / "speed.png"
    assert report.main([str(source), "--write", str(target), "--picture", str(image)]) == 0
    assert image.stat().st_size > 10_000
    assert "](bench/speed.png)" in target.read_text(encoding="utf-8")


def test_an_excerpt_of_the_tables(
    fixture: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "EXCERPT", (("1 tensor of 20", "no"), ("BERT base", "step")))
    theirs = {"steepest": [0.010] * 3, "steepest.torch": [0.020] * 3, "torch fused": [0.030] * 3}
    model = entry("adamw", "bert", None, theirs)
    tables = tmp_path / "tables.md"
    text = report.markdown(fixture | {"results": [*fixture["results"], model]})
    tables.write_text(text, encoding="utf-8")
    target, image = tmp_path / "README.md", tmp_path / "few.png"
    target.write_text(f"before {report.BEGIN}{report.END} after")
    options = ["--excerpt", str(tables), "--write", str(target), "--picture", str(image)]
    assert report.main(options) == 0
    text = target.read_text(encoding="utf-8")
    assert text.startswith("before ") and text.endswith(" after")
    assert "A CPU, Linux x86_64, 2 threads; steepest 1.2.3" in text and "](few.png)" in text
    assert "| 1 tensor of 20 000 000 | 20 ms | 1.04 | 5.00 | 18 |" in text
    assert "| BERT base: ... | 20 ms | 1.50 | – | – |" in text
    assert (
        "faster in 4 of 6 comparisons, there is no clear difference in 1, and it is slower in 1: "
        "torch fused, AdamW, 1 tensor of 10 (0.50)." in text
    )
    assert image.stat().st_size > 10_000


@pytest.mark.parametrize("missing", ["| 1 tensor of 20", "steepest is faster", "A CPU, "])
def test_an_excerpt_of_other_text_is_refused(
    missing: str,
    fixture: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(report, "EXCERPT", (("1 tensor of 20", "no"),))
    lines = report.markdown(fixture).splitlines()
    tables, target = tmp_path / "tables.md", tmp_path / "README.md"
    kept = [line for line in lines if not line.startswith(missing)]
    tables.write_text("\n".join(kept), encoding="utf-8")
    target.write_text(report.BEGIN + report.END)
    assert report.main(["--excerpt", str(tables), "--write", str(target)]) == 2
    assert target.read_text() == report.BEGIN + report.END
    assert "--excerpt" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["run.py", "report.py"])
def test_scripts_run_as_files(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "usage: bench/" + script in done.stdout


@pytest.mark.torch
@pytest.mark.parametrize("rule", ["lamb", "adafactor", "prodigy"])
def test_peers_step(rule: str) -> None:
    """pytorch_optimizer and optax move their parameters; what they lack is said."""
    torch = pytest.importorskip("torch")
    for module in ("pytorch_optimizer", "optax"):
        pytest.importorskip(module)
    case = cases.Case("large", ((30, 40),))
    stepped = cases.Workload(case, rule)
    found, absent = rivals.rivals(stepped, 1, torch, peers=True)
    others = [r for r in found if r.name in ("pytorch_optimizer", "optax")]
    assert {r.name for r in others} == {"pytorch_optimizer", "optax"}, absent
    for rival in others:
        before = np.array(np.asarray(rival.params[0].tolist()))
        for _ in range(3):
            rival.step()
        after = np.array(np.asarray(rival.params[0].tolist()))
        assert np.isfinite(after).all() and (before != after).any()
    absent = rivals.rivals(cases.Workload(case, "normuon"), 1, torch, peers=True)[1]
    assert absent["optax"] == "LookupError: optax has no NorMuon"


@pytest.mark.torch
def test_offload_and_functions_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    offload = importlib.import_module("bench.offload")
    threads = torch.get_num_threads()
    small = {"small": ((3, 2), (4,))}
    monkeypatch.setattr(offload, "SHAPES", small)
    monkeypatch.setattr(offload, "SAMS", small)
    try:
        offload.functional(2)
        offload.sam(2)
        offload.overlap(2, layers=2, width=8, rows=4)
        offload.clipped(2, layers=2, width=8)
    finally:
        torch.set_num_threads(threads)
    rows = [x for x in capsys.readouterr().out.splitlines() if x.startswith("|")]
    assert len(rows) == 4 * 2 + 1 + 1 + 3 + 3


def test_the_bytes_of_a_step_are_those_of_its_arrays() -> None:
    scale = importlib.import_module("bench.scale")
    expected = {
        "AdamW, float32": 28.0,
        "AdamW, bfloat16 with split16, float32 states": 26.0,  # 2 + 2 * (2 + 2 + 8)
        "AdamW, bfloat16 with split16, q8 states": 10.0 + 4.0 * 129 / 128,
    }
    for name, kind in scale.FORMATS.items():
        opt, grads = scale.made(1 << 14, *kind)
        assert scale.bytes_moved(opt, grads) / (1 << 14) == expected[name], name


def test_scale_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    scale = importlib.import_module("bench.scale")
    scale.by_threads(1 << 16, 2)
    scale.where(1 << 16)
    scale.elsewhere()
    tables = capsys.readouterr().out.strip().split("\n\n")
    if hasattr(os, "sched_setaffinity"):
        scale.in_turn(1 << 16, 2)
        tables.append(capsys.readouterr().out.strip())
    assert len(tables) == 3 + hasattr(os, "sched_setaffinity")
    for table in tables:
        widths = {row.count("|") for row in table.splitlines()}
        assert len(widths) == 1, table
