"""The site: ``sphinx-build -W --keep-going docs/site build/site``."""

import inspect
import sys
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sphinx.util import logging
from steepest_site import check, docstrings, gallery, names, pages

import steepest as st
from steepest.core.common_options import CommonOptions

pages.write()
gallery.tidy(Path(__file__).parent / "gallery")

project = "steepest"
author = copyright = "The steepest developers"
version = release = st.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["parts/*", "README.md"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "none"
maximum_signature_line_length = 80
default_role = "code"
highlight_language = "none"
add_module_names = True
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\.(?: |$)"
copybutton_prompt_is_regexp = True
copybutton_selector = "div.highlight pre:not(.sphx-glr-script-out pre)"  # not what was printed

sphinx_gallery_conf = {
    "examples_dirs": str(gallery.FOLDER),
    "gallery_dirs": "gallery",
    "filename_pattern": gallery.executed(),
    "within_subsection_order": "FileNameSortKey",
    "copyfile_regex": "",
    "download_all_examples": False,
    "notebook_extensions": set(),
    "write_computation_times": False,
    "show_signature": False,
    "thumbnail_size": (400, 240),
}

html_theme = "pydata_sphinx_theme"
html_title = f"steepest {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_nav_level": 1,
    "navigation_depth": 3,
}

RULES = {path.rpartition(".")[2]: path for path in names.everything() if path.count(".") == 1}


def written(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """A docstring in reStructuredText, with what the types of arguments say."""
    text = list(lines)
    source = value
    if name == "steepest.Optimizer":
        source = CommonOptions
    elif what == "class" and name.startswith("steepest.sklearn."):
        [source] = [cls for cls in value.__mro__ if cls.__name__ == "Network"]
    if source is not value:  # where the arguments are explained
        text += ["", *inspect.cleandoc(source.__doc__ or "").splitlines()]
    classes = {k: v for k, v in RULES.items() if k[:1].isupper() and v != name}
    lines[:] = docstrings.rst(text, classes, names.ranges(source))
    if what == "class" and issubclass(value, st.Optimizer) and value is not st.Optimizer:
        lines.append(":param options: What :doc:`all optimizers share </reference/optimizer>`.")


def left_out(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """What is not for users: what a rule says of itself, and what other libraries' classes have."""
    value = getattr(value, "fget", value)
    home, module = getattr(value, "__qualname__", ""), getattr(value, "__module__", "") or ""
    if home.startswith(("Rule.", "WithFields.")) or module.startswith("sklearn."):
        return True
    return None


def checked(app: Any, error: Exception | None) -> None:
    """Warns of links that lead nowhere, and of pages that nothing leads to."""
    if error is None and app.builder.name == "html":
        for line in check.problems(Path(app.outdir)):
            logging.getLogger(__name__).warning("%s", line)


def setup(app: Any) -> None:
    # A change of these files changes every page.
    texts = [path.read_text("utf-8") for path in sorted(Path(__file__).parent.rglob("*.py"))]
    app.add_config_value("texts", zlib.crc32("".join(texts).encode()), "env")
    app.connect("autodoc-process-docstring", written)
    app.connect("autodoc-skip-member", left_out)
    app.connect("source-read", gallery.said)
    app.connect("build-finished", checked)
