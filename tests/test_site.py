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

from steepest_site import check, gallery, links, names, pages  # noqa: E402
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
    assert sorted(listed) == sorted([*there, "convergence", "defaults"])


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_pages_are_plain_markdown(page):
    assert not re.findall(r"^[`:]{3,}\{.*|\{\w+\}`[^`]*`", page.read_text("utf-8"), re.M)


def test_every_link_of_the_guide_leads_to_a_page():
    made = pages.guide()
    sources = {path.relative_to(SITE).as_posix() for path in SITE.glob("*.md")}
    sources |= {f"gallery/{x}.rst" for x in ("index", *(e.stem for e in gallery.examples()))}
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
        ("[x](../examples/gallery/plot_03_clipping.py)", "[x](../gallery/plot_03_clipping.rst)"),
        ("[x](../examples/gallery)", "[x](../gallery/index.rst)"),
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


# The gallery


def test_the_gallery_has_ten_examples_that_say_what_they_need():
    assert len(gallery.examples()) == 10
    for example in gallery.examples():
        head = example.read_text("utf-8").split('"""')[1]
        assert re.search(r"\n={3,}\n", head) and "Needs" in " ".join(head.split()), example
        assert "pip install" in head, example


def test_an_example_whose_package_is_absent_is_not_executed_and_says_so(monkeypatch):
    found = gallery.importlib.util.find_spec
    absent = lambda name: None if name == "torch" else found(name)  # noqa: E731
    monkeypatch.setattr(gallery.importlib.util, "find_spec", absent)
    assert not re.search(gallery.executed(), "/x/plot_07_transformer.py")
    assert re.search(gallery.executed(), "/x/plot_01_paths.py")
    text = ["A title\n=======\n\nText.\n"]
    gallery.said(None, "gallery/plot_07_transformer", text)
    assert "A title\n=======\n\n.. note:: Not executed" in text[0] and "torch" in text[0]
    gallery.said(None, "gallery/plot_01_paths", text)
    assert text[0].count("note::") == 1


def test_what_an_example_starts_is_known_to_be_needed():
    needs = {example.stem: gallery.needed(example) for example in gallery.examples()}
    assert {"mpi4py", "mpiexec"} <= set(needs["plot_09_mpi"])
    assert "optuna" in needs["plot_10_tuning"] and "torch" in needs["plot_07_transformer"]
    started = [x.stem for x in gallery.examples() if "subprocess" in x.read_text("utf-8")]
    assert started == list(gallery.PROGRAMS)


def test_pages_of_examples_that_are_gone_are_removed(tmp_path):
    for name in ("plot_01_paths.rst", "plot_99_gone.rst", "plot_99_gone.py.md5", "index.rst"):
        (tmp_path / name).touch()
    gallery.tidy(tmp_path)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["index.rst", "plot_01_paths.rst"]


# The links of the built site, which a build checks when it ends


def built(folder, **pages):
    """A site of these pages: the text of each is an article, below a menu that links to all."""
    menu = "".join(f'<a href="{name}.html"></a>' for name in pages)
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(f"<nav>{menu}</nav><article>{text}</article>")
    return check.problems(folder)


def test_links_that_lead_somewhere_are_in_order(tmp_path):
    (tmp_path / "picture.png").touch()
    guide = (
        '<h2 id="top"></h2><a href="a.html#there">x</a><a href="#top">x</a><img src="picture.png">'
    )
    page = '<b id="there"></b><a href="https://example.org/nothing">x</a><a href="guide.html">x</a>'
    assert built(tmp_path, guide=guide, a=page) == []


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ('<a href="b.html">', "guide.html: link to b.html, where there is no file"),
        ('<img src="b.png">', "guide.html: link to b.png, where there is no file"),
        ('<a href="a.html#b">', "guide.html: link to a.html#b, where there is no such anchor"),
        ('<a href="#b">', "guide.html: link to #b, where there is no such anchor"),
    ],
)
def test_links_that_lead_nowhere_are_noticed(tmp_path, link, expected):
    assert built(tmp_path, guide=f'<a href="a.html"></a>{link}', a="") == [expected]


def test_a_page_that_only_the_menu_leads_to_is_noticed(tmp_path):
    assert built(tmp_path, guide="", a="") == ["a.html: no link of a text leads to it"]
    assert built(tmp_path, guide='<a href="a.html">x</a>', a='<a href="b.html">x</a>', b="") == []
