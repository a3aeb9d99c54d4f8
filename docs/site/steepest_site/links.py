"""Links of the Markdown pages, which lead from file to file, as links from page to page.

In the site a page of ``docs/`` is in ``guide/``, some files of the root are in ``project/``, a
program of the gallery is in ``gallery/``, reports of long tests are in ``reports/``, and any other
file or folder that a page links to becomes a page that shows it, in ``files/``.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[3]

MOVED = {
    "README.md": "index",
    "CHANGELOG.md": "project/changes",
    "CONTRIBUTING.md": "project/contributing",
    "CODE_OF_CONDUCT.md": "project/conduct",
    "SECURITY.md": "project/security",
    "bench/convergence.md": "guide/convergence",
    "bench/defaults.md": "guide/defaults",
    "examples/gallery": "gallery/index",
}
"""Pages of other folders than ``docs/``: file or folder, page."""

GALLERY = PurePosixPath("examples/gallery")
"""Whose programs become pages by sphinx-gallery."""

REPORTS = PurePosixPath("tests/long/reports")
"""Whose files become pages in ``reports/``."""

_BLOCK = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def page_of(file: str) -> str:
    """The page of a file or folder, both without a leading slash; pages without a suffix."""
    path = PurePosixPath(file)
    if file in MOVED:
        return MOVED[file]
    if path.parent == GALLERY and path.suffix == ".py":
        return f"gallery/{path.stem}"
    if path.parent == PurePosixPath("docs") and path.suffix == ".md":
        return f"guide/{path.stem}"
    if path.parent == REPORTS:
        return f"reports/{path.stem}"
    return f"files/{file}"


def rewritten(text: str, file: str, page: str, linked: Callable[[str], None]) -> str:
    """The text of a file with the links that it needs as a page.

    linked: called with each file that becomes a page in ``files/``. Raises FileNotFoundError for a
    link to nothing.
    """

    def one(found: re.Match[str]) -> str:
        image, name, link = found.groups()
        if re.match(r"[a-z]+:|#", link):
            return found[0]
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(PurePosixPath(file).parent / path)
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{file}: link to {link}, which is not there")
        here = PurePosixPath("docs/site", page).parent
        if image:
            return f"![{name}]({posixpath.relpath(target, here)})"
        goal = page_of(target)
        if goal.startswith("files/"):
            linked(target)
        suffix = "rst" if goal.startswith("gallery/") else "md"
        relative = posixpath.relpath(f"{goal}.{suffix}", PurePosixPath(page).parent)
        if path.endswith(".md") and path.endswith(name):
            name = ""  # the page's title
        return f"[{name}]({relative}{'#' + anchor if anchor else ''})"

    parts = _BLOCK.split(text)
    parts[::2] = [_LINK.sub(one, prose) for prose in parts[::2]]
    # An example ends with an empty line, for doctest.
    parts[1::2] = [re.sub(r"\n+```$", "\n```", block) for block in parts[1::2]]
    return "".join(parts)
