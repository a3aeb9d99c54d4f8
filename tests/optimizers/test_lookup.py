import numpy as np
import pytest

import steepest as st
from steepest.optimizers import RULES


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_found_by_all_its_names(name) -> None:
    cls = RULES[name]
    for text in (name, cls.__name__, name.upper(), f" {name} "):
        assert st.by_name(text) is cls
    assert name == "".join(x for x in cls.__name__.lower() if x.isalnum())


def test_words_may_be_joined() -> None:
    for text in ("schedule-free-adamw", "Schedule_Free_AdamW"):
        assert st.by_name(text) is st.ScheduleFreeAdamW
    p = np.ones(2)
    assert st.by_name("sgd")(p, lr=0.5).step(np.ones(2)) is None and p.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("adamv", ValueError, r"optimizer 'adamv': there is no such rule; did you mean adam"),
        ("qqq", ValueError, "optimizer 'qqq': there is no such rule; steepest list has all"),
        ("", ValueError, "optimizer '': there is no such rule"),
        (None, TypeError, "optimizer None: expected the name of a rule"),
    ],
)
def test_what_is_no_name(name, error, message) -> None:
    with pytest.raises(error, match=message):
        st.by_name(name)


def test_a_rule_of_others_is_found(monkeypatch) -> None:
    novel = type("Novel_One", (), {})
    monkeypatch.setitem(RULES, "novel", novel)
    assert st.by_name("Novel") is st.by_name("novelone") is novel


@pytest.mark.torch
def test_classes_for_torch() -> None:
    torch = pytest.importorskip("torch")
    from steepest import torch as doors

    assert doors.by_name("ademamix") is doors.AdEMAMix
    assert isinstance(
        doors.by_name("Lion")([torch.nn.Parameter(torch.ones(2))]), torch.optim.Optimizer
    )
    with pytest.raises(ValueError, match="did you mean"):
        doors.by_name("lyon")


def test_an_argument_that_is_spelled_wrong() -> None:
    with pytest.raises(
        TypeError, match=r"no argument 'momentun'; it takes .*; did you mean mom.*m\?"
    ):
        st.SGD(np.ones(2), momentun=0.9)
    with pytest.raises(TypeError, match=r"no argument 'params_'; it takes lr, [^;]*$"):
        st.SGD(np.ones(2), params_=0.9)
