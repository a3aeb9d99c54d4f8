"""What is said of a rule is what it does."""

import numpy as np
import pytest
from cases import CONFIGURATIONS, label

import steepest as st
from steepest.core.description import bytes_moved, bytes_stored, facts
from steepest.memory import formats
from steepest.optimizers import RULES


@pytest.mark.parametrize(("rule", "arguments"), CONFIGURATIONS, ids=label)
def test_exactly_the_states_that_are_read_only_stay_as_they_are(rule, arguments):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 8))
    opt = RULES[rule](w, **arguments)
    states = {key: x for key, x in opt.state["0"].items() if key != "step"}
    assert set(opt.read_only) <= set(states)
    changed = dict.fromkeys(states, False)
    for _ in range(5):
        before = {key: x.copy() for key, x in states.items()}
        opt.step(rng.standard_normal((8, 8)))
        for key, x in states.items():
            changed[key] |= not np.array_equal(x, before[key])
    if arguments["lr"] > 0:
        assert {key for key, moved in changed.items() if not moved} == set(opt.read_only)


@pytest.mark.parametrize(
    ("make", "read", "written"),
    [
        (st.SGD, 8, 4),
        (st.Lion, 12, 8),
        (st.AdamW, 16, 12),
        (lambda p: st.SGD(p, momentum=0.9), 12, 8),
        (lambda p: st.SGD(p, ema=0.9), 12, 8),
        (lambda p: st.SGD(p, regularize=st.regularize.toward_initial(0.1)), 12, 4),
        (st.MADGRAD, 20, 12),
        (st.Adan, 24, 20),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes(make, read, written, dtype):
    params = [np.zeros((3, 5), dtype), np.zeros(7, dtype)]
    size = 22 * np.dtype(dtype).itemsize // 4
    assert bytes_moved(make(params)) == (read * size, written * size)


@pytest.mark.parametrize(
    ("gradient", "options", "stored", "moved"),
    [
        (None, {}, (44, 44, 176), (264, 220)),
        ("float32", {"state_dtype": {"exp_avg": "bfloat16"}}, (44, 88, 132), (264, 176)),
        ("float16", {"master": "split16"}, (44, 44, 220), (308, 264)),
        (None, {"ema": 0.9}, (44, 44, 264), (352, 308)),
    ],
)
def test_bytes_of_formats(gradient, options, stored, moved):
    """Those of the arrays that there are."""
    kind = formats.named("bfloat16")
    opt = st.AdamW([np.zeros((3, 5), kind), np.zeros(7, kind)], **options)
    gradient = None if gradient is None else formats.named(gradient)
    assert bytes_stored(opt, gradient) == stored
    assert bytes_moved(opt, gradient) == moved


@pytest.mark.parametrize("rule", RULES)
def test_facts_of_every_rule(rule):
    found = facts(RULES[rule])
    assert found.rule == rule and RULES[rule].__name__ == found.name
    assert found.summary.endswith(".") and "←" in found.formula
    assert found.needs in ("element-wise", "layer-wise", "global", "matrix")
    assert found.read + found.written >= 12
    assert found.source.startswith(found.paper.partition(" ")[0]) and len(found.paper) < 80


@pytest.mark.parametrize(
    ("rule", "paper"),
    [
        ("adam", "Kingma and Ba 2014, arXiv:1412.6980"),
        ("sgd", "Robbins and Monro 1951"),
        ("nadam", "Dozat 2016"),
        ("asgd", "Polyak and Juditsky 1992"),
    ],
)
def test_the_paper_is_the_first_work_of_the_source(rule, paper):
    assert facts(RULES[rule]).paper == paper


def test_a_source_without_a_year_is_shown_as_it_is(monkeypatch):
    monkeypatch.setattr(st.SGD, "source", "As everyone knows; nobody wrote it down")
    assert facts(st.SGD).paper == "As everyone knows"
