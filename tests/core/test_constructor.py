"""Constructors made of fields: order, defaults, checks, and what type checkers see of them."""

import ast
import copy
import inspect
import pickle
import re
import statistics
from dataclasses import KW_ONLY
from typing import Annotated, ClassVar

import numpy as np
import pytest

import steepest as st
from steepest.core.common_options import GROUP_OPTIONS, OPTIONS
from steepest.core.constructor import Argument, WithFields
from steepest.core.hyper_parameters import Flag, Number, Rate, Weight, within
from steepest.optimizers import RULES

EVERY = pytest.mark.parametrize("rule", RULES)


def test_fields_are_as_in_dataclasses():
    class Base(WithFields):
        x: Argument[object]
        lr: Rate = 0.5
        weight_decay: Weight = 0.0
        known: ClassVar = 3
        _: KW_ONLY
        flag: Flag = True

    class Derived(Base):
        weight_decay: Weight = 0.25
        nu: Annotated[Number, within(0, 1)] = 0.75
        _: KW_ONLY
        other: Flag = False

    shown = inspect.signature(Derived).parameters.values()
    assert [(x.name, x.default, x.kind.name) for x in shown][:-1] == [
        ("x", inspect.Parameter.empty, "POSITIONAL_OR_KEYWORD"),
        ("lr", 0.5, "POSITIONAL_OR_KEYWORD"),
        ("weight_decay", 0.25, "POSITIONAL_OR_KEYWORD"),
        ("nu", 0.75, "POSITIONAL_OR_KEYWORD"),
        ("flag", True, "KEYWORD_ONLY"),
        ("other", False, "KEYWORD_ONLY"),
    ]
    assert Base.fields["weight_decay"].default == 0.0
    assert Base.known == 3


def test_a_field_without_a_range_is_refused():
    with pytest.raises(TypeError, match=r"Lost\.rate: expected a type with a range, such as Rate"):

        class Lost(WithFields):
            rate: float = 0.1


def test_a_method_that_takes_self_is_refused():
    with pytest.raises(TypeError, match=r"Mine\.states takes no self: write @staticmethod"):

        class Mine(st.SGD, registered=False):
            def states(self, h):
                return ()


@EVERY
def test_an_optimizer_has_its_hyper_parameters_in_its_groups_only(rule):
    cls = RULES[rule]
    opt = cls(np.ones((2, 2)))
    own = [x for x in inspect.signature(cls).parameters if x not in ("params", "options")]
    for name in own:
        assert not hasattr(cls, name)
        with pytest.raises(AttributeError, match=name):
            getattr(opt, name)
    known = [name for name in own if cls.fields[name].check]
    assert list(opt.defaults) == [*known, *GROUP_OPTIONS]
    assert opt.defaults.keys() <= opt.param_groups[0].keys()


@EVERY
def test_arguments_by_position_and_by_name_are_the_same(rule):
    cls = RULES[rule]
    shown = inspect.signature(cls).parameters.values()
    chosen = {
        x.name: x.default for x in shown if x.kind is x.POSITIONAL_OR_KEYWORD and x.name != "params"
    }
    p = np.ones((2, 2))
    assert repr(cls(p, *chosen.values())) == repr(cls(p, **chosen)) == repr(cls(params=p))


@pytest.mark.parametrize(
    ("args", "keywords", "message"),
    [
        ((), {}, "AdamW needs params"),
        ((1, 2, 3, 4, 5, 6, 7), {}, "AdamW takes 6 positional arguments, params, lr, betas, "),
        ((1, 2), {"lr": 3}, "AdamW got 'lr' by position and by name"),
        ((1,), {"nonsense": 3}, "AdamW has no argument 'nonsense'; it takes lr, betas, eps"),
        ((1,), {"decoupled_weight_decay": True}, "AdamW has no argument 'decoupled_weight_decay'"),
    ],
)
def test_arguments_that_do_not_fit(args, keywords, message):
    with pytest.raises(TypeError, match=message):
        st.AdamW(*args, **keywords)


def test_an_option_is_no_positional_argument():
    assert all(x.keyword_only for x in st.AdamW.fields.values() if x.name in OPTIONS)
    assert {"clip", "nonfinite", "state_dir"} < set(OPTIONS)


@pytest.mark.parametrize("other", ["adam", "lion", "muon", "scheduledfree"])
def test_copies_of_an_optimizer_hold_the_same_rules(other):
    groups = [{"params": np.ones((2, 2))}, {"params": np.ones((2, 2)), "rule": other}]
    if other not in RULES:
        with pytest.raises(ValueError, match="rule 'scheduledfree' of a group: expected one of"):
            st.SGD(groups)
        return
    opt = st.SGD(groups, lr=0.25)
    for made in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert repr(made) == repr(opt)
        made.step([np.ones((2, 2))] * 2)
    assert RULES[other].fields["lr"].default == opt.param_groups[1]["lr"]


def test_adam_and_what_is_schedule_free_are_still_kinds_of_one_another():
    assert issubclass(st.AdamW, st.Adam)
    assert issubclass(st.ScheduleFreeAdamW, st.ScheduleFreeSGD)


def lines_of_code(cls):
    """The lines of a class that are neither its docstring nor empty nor a comment."""
    source = inspect.getsource(cls)
    (node,) = ast.parse(source).body
    documented = range(node.body[0].lineno - 1, node.body[0].end_lineno)
    lines = [line for i, line in enumerate(source.splitlines()) if i not in documented]
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def test_a_rule_is_short():
    """Half of the element-wise rules say all they are in 25 lines beside their docstrings."""
    simple = [cls for cls in RULES.values() if cls.needs == "element-wise"]
    assert len(simple) > 20
    assert statistics.median(map(lines_of_code, simple)) <= 25


SNIPPET = """
import numpy as np
import steepest as st

w = np.ones(3)
st.AdamW(w, 1e-3, clip=st.clip.norm(1.0))
st.AdamW(w, st.schedules.cosine(1e-3, steps=9), (0.9, 0.99), 1e-8, 0.1, True, convention="keras")
st.ByGroup(w, {"*": {"rule": "sgd"}}, exclude="vectors")
st.Muon(w, adamw={"lr": 0.1})
st.AdamW(w, lr="x")  # arg-type
st.AdamW(w, nonsense=1)  # call-arg
st.AdamW(w, 1e-3, (0.9, 0.99), 1e-8, 0.1, True, 2)  # call-arg
st.AdamW(w, decoupled_weight_decay=True)  # call-arg
st.AdamW()  # call-arg
st.SGD(w, nesterov=1.5)  # arg-type
st.SGD(w, decay_mode="other")  # arg-type
st.AdEMAMix(w, betas=(0.9, 0.999))  # arg-type
"""


@pytest.mark.torch  # where CI has what checks types
def test_what_a_type_checker_sees(tmp_path):
    api = pytest.importorskip("mypy.api")
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET + "reveal_type(st.AdamW.__init__)\n", encoding="utf-8")
    out, errors, _ = api.run(["--config-file=", f"--cache-dir={tmp_path}", str(file)])
    assert not errors
    said = re.findall(r":(\d+): error: .*\[([\w-]+)\]", out)
    expected = [
        (str(i), line.partition("  # ")[2])
        for i, line in enumerate(SNIPPET.splitlines(), 1)
        if "  # " in line
    ]
    assert sorted(set(said)) == sorted(expected), out
    (revealed,) = [line for line in out.splitlines() if "Revealed type" in line]
    order = ["params", "lr", "betas", "eps", "weight_decay", "amsgrad", "*, ", "clip", "convention"]
    at = [revealed.index(f" {name}:" if name.isidentifier() else name) for name in order]
    assert at == sorted(at), revealed


def test_a_rule_without_the_fields_that_all_have_is_refused():
    known = dict(RULES)
    with pytest.raises(TypeError, match="Bare has no weight_decay: every rule has both fields"):

        class Bare(st.Optimizer):
            lr: Rate = 1.0

    assert known == RULES
