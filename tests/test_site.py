"""The site has every public name and every page; without Sphinx, which .ci/run builds it with."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import steepest as st
from steepest.optimizers import RULES

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"
sys.path.insert(0, str(SITE))

from steepest_site import links, names, pages  # noqa: E402
from steepest_site.docstrings import rst  # noqa: E402

# The reference


def test_every_public_name_has_an_entry():
    assert names.unclaimed() == [], (
        "give it to a room of docs/site/steepest_site/names.py, by the module that defines it"
    )


def test_every_entry_is_on_one_page():
    made = "\n".join(pages.reference().values())
    shown = re.findall(r"^\.\. (?:auto|py:)(?:class|function|data):: ([\w.]+)", made, re.M)
    assert sorted(shown) == sorted(names.everything())
    assert len(set(shown)) == len(shown)


def test_every_entry_says_what_it_is():
    assert [x for x in names.everything() if ".torch." not in x and not pages.found(x)] == []


def test_a_name_without_a_room_is_noticed(monkeypatch):
    def novel():
        """Something of no room."""

    novel.__module__ = "steepest.novel"
    monkeypatch.setattr(st, "novel", novel, raising=False)
    assert names.unclaimed() == ["steepest.novel"]


def test_a_module_without_a_room_is_noticed(monkeypatch):
    monkeypatch.setattr(st, "novel", re, raising=False)
    assert names.unclaimed() == ["steepest.novel"]


def test_a_new_rule_needs_no_line(monkeypatch):
    monkeypatch.setattr(st, "Novel", type("Novel", (), {"__doc__": "A rule."}), raising=False)
    monkeypatch.setattr(st.Novel, "__module__", "steepest.optimizers.sgd")
    monkeypatch.setitem(RULES, "novel", st.Novel)
    assert names.unclaimed() == []
    assert "steepest.Novel" in names.families()["steepest.optimizers.sgd"]
    assert "steepest.torch.Novel" in names.everything()


@pytest.mark.torch
def test_the_names_for_torch_are_those_of_its_module():
    pytest.importorskip("torch")
    module = importlib.import_module("steepest.torch")
    [room] = [room for room in names.ROOMS if room.name == "torch"]
    assert names.entries(room) == [f"steepest.torch.{name}" for name in module.__all__]


# The guide


def test_the_guide_has_every_page_once():
    listed = re.findall(r"^guide/([\w-]+)$", (SITE / "guide.md").read_text("utf-8"), re.M)
    there = [path.stem for path in (ROOT / "docs").glob("*.md")]
    assert sorted(listed) == sorted([*there, "convergence"])


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_pages_are_plain_markdown(page):
    assert not re.findall(r"^[`:]{3,}\{.*|\{\w+\}`[^`]*`", page.read_text("utf-8"), re.M)


def test_every_link_of_the_guide_leads_to_a_page():
    made = pages.guide()
    sources = {path.relative_to(SITE).as_posix() for path in SITE.glob("*.md")}
    for name, text in made.items():
        here = Path(name).parent if not name.startswith("parts/") else Path()
        prose = re.sub(r"^(`{3,}).*?^\1$|`[^`\n]+`", "", text, flags=re.S | re.M)
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", prose):
            target = (SITE / here / link).resolve()
            inside = target.is_relative_to(SITE) and target.relative_to(SITE).as_posix()
            assert target.is_file() if not inside else inside in made.keys() | sources, link


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[x](clipping.md#order)", "[x](clipping.md#order)"),
        ("[clipping.md](clipping.md)", "[](clipping.md)"),
        ("[x](../bench/convergence.md)", "[x](convergence.md)"),
        ("[x](../CHANGELOG.md)", "[x](../project/changes.md)"),
        ("[x](../README.md)", "[x](../index.md)"),
        ("[x](../examples/trainers)", "[x](../files/examples/trainers.md)"),
        ("![x](../bench/speed.png)", "![x](../../../bench/speed.png)"),
        ("[x](https://example.org/a.md)", "[x](https://example.org/a.md)"),
        ("```\n[x](nothing.md)\n```", "```\n[x](nothing.md)\n```"),
    ],
)
def test_links_from_file_to_file_lead_from_page_to_page(link, expected):
    linked = []
    assert links.rewritten(link, "docs/rules.md", "guide/rules", linked.append) == expected
    assert linked == (["examples/trainers"] if "trainers" in link else [])


def test_a_link_to_nothing_is_an_error():
    with pytest.raises(FileNotFoundError, match=r"docs/rules\.md: link to nothing\.md"):
        links.rewritten("[x](nothing.md)", "docs/rules.md", "guide/rules", print)


# Docstrings


def test_docstrings_keep_formulas_examples_and_signs():
    text = """What |g| and exp_avg* are; see ``Adam``, `t` and docs/formats.md.

    m ← β m + g
    p ← p - lr m

lr: the rate. steps: how many; more
is longer.

>>> 1 + 1
2

Kingma 2014, arXiv:1412.6980."""
    given = {"lr": "a number", "steps": "", "end": "0"}
    assert (
        "\n".join(rst(text.splitlines(), {"Adam": "steepest.Adam"}, given))
        == """\
What \\|g\\| and exp\\_avg\\* are; see :py:class:`~steepest.Adam`, ``t`` and :doc:`/guide/formats`.

.. code-block:: text

    m ← β m + g
    p ← p - lr m

:param lr: the rate. *A number.*
:param steps: how many; more is longer.

>>> 1 + 1
2

Kingma 2014, `arXiv:1412.6980 <https://arxiv.org/abs/1412.6980>`__.

:param end: 0."""
    )


def test_arguments_show_what_their_types_say():
    assert names.ranges(st.AdamW)["betas"] == "a tuple of 2, each a number in [0, 1), or a schedule"
    assert names.ranges(st.AdamW)["convention"] == "one of 'torch', 'optax', 'keras'"
    assert names.ranges(st.schedules.cosine)["steps"] == "an integer of at least 1"
    assert names.ranges(st.fit)["epochs"] == ""
