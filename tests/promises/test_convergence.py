"""Every rule gets somewhere, on a narrow valley and on a small real problem."""

import pytest

import steepest as st
from bench import convergence
from steepest.optimizers import RULES


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_descends_rosenbrock(rule):
    """At one of a few rates; the start is 24.2."""
    assert any(
        convergence.rosenbrock(rule, st.schedules.cosine(lr, steps=500), 500) < 4.0
        for lr in (0.3, 0.03, 0.003, 1.0, 3.0)
    )


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_digits(rule):
    """From 2.4, the loss of guessing, in three epochs at one of a few rates."""
    steps = 3 * 19
    tried = [(st.schedules.cosine(lr, steps=steps), 3) for lr in (0.03, 0.003, 0.3, 1.0, 300.0)]
    tried.append((None, 8))  # those that find their rate need longer, at the rate they have
    assert any(convergence.digits(rule, lr, epochs) < 0.8 for lr, epochs in tried)


def test_the_table(tmp_path):
    out = tmp_path / "table.md"
    arguments = ["--rule", "sgd", "dog", "--steps", "30", "--epochs", "1", "--out", str(out)]
    assert convergence.main(arguments) == 0
    head, rule, *rows = out.read_text(encoding="utf-8").splitlines()
    assert "Rosenbrock, 30 steps" in head and set(rule) == set("|-:")
    assert [row.split(" | ")[0] for row in rows] == ["| SGD", "| DoG"]
    assert all(row.count("|") == 8 for row in rows)
