"""A clip, a filter or a penalty is one class: everything else finds it by its name."""

import math
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import steepest as st
from steepest.checkpoint import json_values
from steepest.cli import syntax
from steepest.fields import Value
from steepest.options import clip, filters, regularize
from steepest.options.operations import Operation

ROOT = Path(__file__).parents[2]
FAMILIES = (clip.CLIPS, filters.FILTERS, regularize.PENALTIES)


@pytest.fixture
def restored():
    """The families are afterwards as they were."""
    before = [dict(family) for family in FAMILIES]
    yield
    for family, known in zip(FAMILIES, before, strict=True):
        family.clear()
        family.update(known)


def worked_clip() -> str:
    """The class in CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Adding a clip")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(block)


@pytest.fixture
def normalize(restored):
    """The worked example, at its place in the module."""
    exec(worked_clip(), vars(clip))
    yield vars(clip)["normalize"]
    del clip.normalize


def test_the_worked_clip_is_short():
    code = worked_clip().split('"""')
    lines = [line for line in (code[0] + code[2]).splitlines() if line.strip()]
    assert len(lines) <= 8, "a clip costs one class of a few lines"


def test_the_worked_clip_clips(normalize):
    w, g = np.zeros(2), np.array([3.0, 4.0])
    opt = st.SGD(w, lr=1.0, clip=normalize(lambda t: 2.0 - t, eps=5.0))
    opt.step(g)
    assert w.tolist() == [-0.6000000000000001, -0.8] and opt.last_norm == 5.0
    opt.step(g)
    # 0.3 and 0.4 are rounded three times on their way.
    np.testing.assert_allclose(w, [-0.9, -1.2], rtol=1e-15)
    with pytest.raises(ValueError, match=r"^clip\.normalize: length = 0\.0: expected a number gr"):
        opt.step(g)
    with pytest.raises(TypeError, match=r"^clip\.normalize: eps = None: expected .*or a schedule"):
        normalize(eps=None)
    with pytest.raises(TypeError, match=r"expected one of .*st\.clip\.normalize, or a tuple"):
        st.SGD(w, clip="normalize")


def test_the_worked_clip_is_saved(normalize, tmp_path):
    made = normalize(st.schedules.linear(1.0, steps=9), 0.5)
    assert pickle.loads(pickle.dumps(made)) == made
    assert json_values.loads(json_values.dumps(made, "clip"), "clip") == made
    w = np.ones(3)
    opt = st.Adam(w, clip=made)
    opt.step(np.array([3.0, 0.0, 4.0]))
    st.checkpoint.save(tmp_path / "c.safetensors", optimizer=opt)
    other = st.Adam(np.ones(3))
    st.checkpoint.load(tmp_path / "c.safetensors", optimizer=other)
    assert other.param_groups[0]["clip"] == made


def test_the_worked_clip_is_in_the_command_line(normalize):
    assert syntax.clipping("normalize:0.5, eps=0.25") == normalize(0.5, 0.25)
    with pytest.raises(syntax.UsageError, match=r"expected a number greater than 0"):
        syntax.clipping("normalize:-1")


@pytest.mark.torch
def test_the_worked_clip_works_with_pytorch(normalize):
    torch = pytest.importorskip("torch")
    import steepest.torch as stt

    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    stt.SGD([p], lr=1.0, clip=normalize(1.0, eps=5.0)).step()
    assert p.tolist() == pytest.approx([-0.3, -0.4])  # in float32


def test_a_filter_of_ones_own(restored):
    @dataclass(frozen=True)
    class lasting(filters.Filter):
        alpha: filters.Share = 0.5
        rank: ClassVar[int] = 9
        arrays: ClassVar[tuple[str, ...]] = ("lasting",)

        def initial(self, p: Any, name: str) -> Any:
            return 8.0

        def operations(self, count: int) -> list[Operation]:
            alpha = self.at("alpha", count)
            return [("grokfast", (alpha, 1.0 - alpha, 1.0), "lasting")]

    w = np.zeros(1)
    opt = st.SGD(w, lr=1.0, filter=lasting())
    opt.step(np.array([2.0]))  # the state becomes 5
    assert w == -7.0 and opt.state["0"]["lasting"] == 5.0
    assert json_values.loads(json_values.dumps(lasting(0.25), "x"), "x") == lasting(0.25)
    with pytest.raises(ValueError, match="grokfast, mask, lasting, in this order"):
        st.SGD(w, filter=(lasting(), filters.mask()))


def test_a_penalty_of_ones_own(restored):
    @dataclass(frozen=True)
    class non_negative_lasso(regularize.Penalty):
        weight: regularize.Weight

        def terms(self, count: int) -> dict[str, Any]:
            return {"proximal_l1": self.at("weight", count), "box": [(0.0, math.inf)]}

    w = np.array([1.0, 0.25, -1.0])
    st.SGD(w, lr=0.5, regularize=non_negative_lasso(1.0)).step(np.zeros(3))
    assert w.tolist() == [0.5, 0.0, 0.0]
    written = json_values.dumps(non_negative_lasso(2), "x")
    assert json_values.loads(written, "x") == non_negative_lasso(2.0)


def test_a_name_is_taken_once(restored):
    with pytest.raises(TypeError, match=r"clip\.norm has this name already: call .* otherwise"):
        type("norm", (clip.Clip,), {"__module__": "elsewhere"})
    assert clip.CLIPS["norm"] is clip.norm
    again = [type("mine", (clip.Clip,), {"__module__": "__main__"}) for _ in range(2)]
    assert clip.CLIPS["mine"] is again[1]  # as when a notebook's cell runs again


def test_bases_are_in_no_family():
    for family, base in zip(FAMILIES, (clip.Clip, filters.Filter, regularize.Penalty), strict=True):
        assert all(issubclass(x, base) and x is not base for x in family.values())
        assert not any(name.startswith("_") for name in family)
    assert Value.family is None and st.average.lookahead.family is None


def test_all_names_are_offered():
    for module, family in zip((clip, filters, regularize), FAMILIES, strict=True):
        assert set(module.__all__) > set(family)


@pytest.mark.parametrize(
    ("page", "family"), list(zip(("clipping", "filters", "regularisation"), FAMILIES, strict=True))
)
def test_the_documentation_has_a_row_for_each(page, family):
    rows = re.findall(r"^\| `(\w+)", (ROOT / f"docs/{page}.md").read_text("utf-8"), re.MULTILINE)
    assert set(family) <= set(rows)
