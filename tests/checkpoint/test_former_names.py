"""Files that name a class by the place that it had before still load."""

import importlib
import pickle

import pytest

import steepest as st
from steepest import schedules
from steepest.checkpoint.former_names import FORMER_MODULES, former_name

VALUES = [
    st.clip.norm(1.0),
    st.filters.grokfast(),
    st.regularize.l1(0.1),
    st.average.tail(3),
    schedules.cosine(0.5, steps=9),
    schedules.plateau(0.5),
    schedules.piecewise((0.5, 0.25, 0.125), (1, 2)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda x: type(x).__name__)
def test_a_pickle_with_the_former_name_loads(value):
    now = type(value).__module__
    written = pickle.dumps(value, protocol=2)
    assert f"c{now}\n".encode() in written
    before = written.replace(f"c{now}\n".encode(), f"c{FORMER_MODULES[now]}\n".encode())
    assert before != written and repr(pickle.loads(before)) == repr(value)


@pytest.mark.parametrize("module", FORMER_MODULES)
def test_a_former_module_is_the_one_of_today(module):
    assert importlib.import_module(FORMER_MODULES[module]) is importlib.import_module(module)


@pytest.mark.torch
@pytest.mark.parametrize("value", VALUES, ids=lambda x: type(x).__name__)
def test_torch_load_knows_the_former_name(value):
    torch = pytest.importorskip("torch")
    importlib.import_module("steepest.torch")
    known = torch.serialization.get_safe_globals()
    assert type(value) in known and (type(value), former_name(type(value))) in known
