"""Random histories: any rule, format, option and layout, and whatever may happen to an optimizer,
with the bits of the reference, of a contiguous twin, and of one that is saved at every step.

``python tests/long/histories.py --minutes 60`` draws others.
"""

import json
import os

import histories
import history_draws
import history_runs
import numpy as np
import pytest
from shrinking import size

import steepest as st
from steepest.core.optimizer import Optimizer
from steepest.kernels import machine
from steepest.optimizers import RULES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="histories fork")

FEW, MANY, PARTS = 5, 32, 20


def drawn(seeds):
    """Runs the histories of some seeds; AssertionError with what is found, to run it again."""
    for seed in seeds:
        history = history_draws.history(seed)
        found = histories.finding(history, history_runs.check)
        assert found is None, f"{found}\n{histories.program(history)}"


def test_a_few_histories():
    drawn(range(FEW))


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_many_histories(part):
    drawn(range(1000 + MANY * part, 1000 + MANY * (part + 1)))


def test_what_is_drawn_has_everything():
    every = [history_draws.history(seed) for seed in range(1000, 1000 + MANY * PARTS)]
    assert {h["rule"] for h in every} == {*RULES}
    text = json.dumps(every)
    assert every == json.loads(text)
    wanted = [*history_draws.FORMATS, *history_draws.OF_GRADIENTS, *history_draws.MODES, "q8"]
    wanted += ["split16", "kahan", "stochastic", "overrides", "exclude", "fork", "interrupt", "add"]
    wanted += [*history_draws.TURNS, "hessian", "observe", "without", "bad", "state_dir", "errors"]
    for family in (st.clip.CLIPS, st.filters.FILTERS, st.regularize.PENALTIES):
        wanted += [f".{name}(" for name in family]
    assert [word for word in wanted if word not in text] == []


# That each promise's breach is found, and made small: faults that are put in.


def coefficient(monkeypatch):
    cls = next(cls for cls in RULES["adamw"].__mro__ if "coefficients" in vars(cls))
    before = cls.coefficients

    def changed(h, t):
        kernel, numbers = before(h, t)
        return kernel, tuple(
            np.nextafter(x, 2.0).item() if i == 1 else x for i, x in enumerate(numbers)
        )

    changed.__module__, changed.__qualname__ = before.__module__, before.__qualname__  # for pickle
    monkeypatch.setattr(cls, "coefficients", staticmethod(changed))


def stepping(monkeypatch, after):
    """Calls `after` (optimizer, gradients, error or None) behind every step."""
    before = Optimizer.step

    def step(self, grads):
        try:
            before(self, grads)
        except BaseException as error:
            after(self, grads, error)
            raise
        after(self, grads, None)

    monkeypatch.setattr(Optimizer, "step", step)


def params_of(opt):
    return [np.asarray(p) for group in opt.param_groups for p in group["params"] if p.size > 1]


def strided(monkeypatch):
    def after(opt, grads, error):
        for p in params_of(opt):
            if not p.flags.c_contiguous and not p.flags.f_contiguous:
                p.flat[-1] = p.flat[-2]

    stepping(monkeypatch, after)


def beyond(monkeypatch):
    def after(opt, grads, error):
        for p in params_of(opt):
            if p.ndim == 1 and p.strides[0] == 2 * p.itemsize:
                np.ndarray(1, np.uint8, p.base, 64)[0] ^= 1  # the element between two

    stepping(monkeypatch, after)


def half_done(monkeypatch):
    def after(opt, grads, error):
        if isinstance(error, KeyboardInterrupt):
            opt.skipped += 1

    stepping(monkeypatch, after)


def refused(monkeypatch):
    def after(opt, grads, error):
        if isinstance(error, FloatingPointError):
            opt.skipped += 1

    stepping(monkeypatch, after)


def in_children(monkeypatch):
    own = os.getpid()

    def after(opt, grads, error):
        if os.getpid() != own:
            opt.skipped += 1

    stepping(monkeypatch, after)


def gradients(monkeypatch):
    def after(opt, grads, error):
        for tree in grads if isinstance(grads, list) else [grads]:
            for g in tree.values():
                if g is not None and g.dtype == np.float64 and g.flags.writeable:
                    g *= 0.5

    stepping(monkeypatch, after)


def mode(monkeypatch):
    def after(opt, grads, error):
        machine.set_float_mode(machine.float_mode() & ~max(history_runs.MODES.values()))

    stepping(monkeypatch, after)


def state(monkeypatch):
    before = Optimizer.load_state_dict

    def load(self, state_dict):
        for own in state_dict["state"].values():
            if "exp_avg" in own:
                own["exp_avg"][...] = 0
        before(self, state_dict)

    monkeypatch.setattr(Optimizer, "load_state_dict", load)


def pickled(monkeypatch):
    before = Optimizer.__getstate__
    monkeypatch.setattr(Optimizer, "__getstate__", lambda self: before(self) | {"skipped": 0})


FAULTS = {
    coefficient: ["reference"], strided: ["contiguous", "saved"], beyond: ["outside"],
    half_done: ["contiguous"], refused: ["refusal"], in_children: ["fork"],
    gradients: ["gradient"], mode: ["mode"], state: ["saved"], pickled: ["saved"],
}  # fmt: skip


@pytest.mark.parametrize(
    "fault",
    [
        coefficient,
        *(pytest.param(x, marks=pytest.mark.exhaustive) for x in FAULTS if x != coefficient),
    ],
    ids=lambda f: f.__name__,
)
def test_a_fault_is_found_and_made_small(fault, monkeypatch):
    fault(monkeypatch)
    kinds = FAULTS[fault]
    for seed in range(400):
        history = history_draws.history(seed, "adamw")
        found = histories.finding(history, history_runs.check)
        if found is not None:
            break
    assert found is not None and found.kind in kinds, found
    small = histories.smallest(history, found.kind, history_runs.check, 5.0)
    again = histories.finding(json.loads(json.dumps(small)), history_runs.check)
    assert again is not None and again.kind == found.kind
    assert size(small) < size(history) / 2 or len(small["events"]) <= 2
    assert sum(len(group["arrays"]) for group in small["groups"]) == 1


SCRIPT = """
import os, sys, time
sys.path.insert(0, {folder!r})
import histories
from collections import Counter

def draw(seed):
    return {{"seed": seed, "rule": "", "given": {{}}, "groups": [], "events": []}}

def check(history, folder):
    if history["seed"] == 7:
        os.abort()
    return Counter(histories=1)

if __name__ == "__main__":
    sys.exit(histories.run(None, __file__, "", draw, check))
"""


@pytest.mark.exhaustive
def test_a_crash_is_found_and_the_search_goes_on(tmp_path, capsys):
    script = tmp_path / "crashing.py"
    script.write_text(SCRIPT.format(folder=os.path.dirname(histories.__file__)))
    report = tmp_path / "report.md"
    argv = ["--seed", "5", "--count", "6", "--report", str(report)]
    namespace = {"__name__": "crashing", "__file__": str(script)}
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    code = histories.run(argv, str(script), "", namespace["draw"], namespace["check"])
    told = capsys.readouterr().out
    assert code == 1 and "seed 7: crash: the process ended: -6" in told
    assert "| histories | 5 |" in report.read_text() and "| findings of kind crash | 1 |" in told


def test_a_history_runs_again_from_its_text(capsys):
    text = json.dumps(history_draws.history(3))
    assert histories.main(["--replay", text]) == 0
    assert capsys.readouterr().out == "nothing found\n"
