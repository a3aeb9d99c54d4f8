"""The short share of tests/long/soak.py: 20 000 steps, and the digest that they have everywhere."""

import ast
import sys

import own_process
import pytest
import soak


@pytest.fixture(autouse=True)
def few_marks(monkeypatch):
    """Each collects garbage, of which a process of tests has much."""
    monkeypatch.setattr(soak, "MARKS", 4)


@pytest.mark.exhaustive
def test_thousands_of_steps():
    found = soak.soak(steps=20_000, every=250)
    assert found.wrong == [] and found.events == 80
    assert found.straight[-1].digest == "36156749214ca939"


@pytest.mark.exhaustive
def test_what_goes_wrong_is_seen(monkeypatch):
    """A copy that loses a bit, a count that is not advanced."""
    found = soak.soak(steps=100, every=10)
    assert found.wrong == [] and len(found.straight) == soak.MARKS

    def losing(self):
        self.params["matrix"][0, 0] *= 1.0001

    monkeypatch.setattr(soak.Run, "unused", losing)
    assert soak.soak(steps=100, every=10).wrong[0].startswith("digests differ after ")
    monkeypatch.undo()

    def forgetful(self):
        self.opt.state["vector"]["step"] = self.opt.state["vector"]["step"] - 1

    monkeypatch.setattr(soak.Run, "unused", forgetful)
    assert any("step of vector is" in said for said in soak.soak(steps=100, every=10).wrong)
    monkeypatch.undo()


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_is_kept_is_seen():
    """32 MB after the third of four marks, from which on memory must not grow; and not without."""
    out = own_process.run("""
import numpy as np
import soak
soak.MARKS, kept = 4, []
print(soak.soak(steps=100, every=15).wrong)
soak.Run.unused = lambda self: kept.append(np.ones(1 << 22))
print(soak.soak(steps=100, every=15).wrong)
""")
    plain, growing = map(ast.literal_eval, out.splitlines())
    assert plain == [] and len(growing) == 1 and growing[0].startswith("memory grew")
