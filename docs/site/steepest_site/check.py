"""Links of the built site: each leads to a file and an anchor that are there, and to every page.

``problems`` is called when a build ends, and each of its lines is a warning, hence an error.
"""

import posixpath
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BEGIN = "guide.html"
"""From where all pages are to be found, by links in texts."""

ASIDE = {"genindex.html", "search.html", "py-modindex.html"}
"""Pages that Sphinx adds; the theme's menus lead to them."""


class Page(HTMLParser):
    """The anchors of a page, and its links: all of them, and those of its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.text: list[str] = []
        self.inside = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.inside += tag == "article"
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        for key in ("href", "src"):
            link = given.get(key)
            if link and not urlsplit(link).scheme and not link.startswith("//"):
                self.links.append(link)
                if self.inside and tag == "a":
                    self.text.append(link)

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag == "article"


def pages(folder: Path) -> dict[str, Page]:
    """The pages of a built site by their paths in it."""
    found = sorted(folder.rglob("*.html"))
    found = [path for path in found if "_static" not in path.relative_to(folder).parts]
    return {path.relative_to(folder).as_posix(): Page(path.read_text("utf-8")) for path in found}


def target(page: str, link: str) -> tuple[str, str]:
    """Where a link on a page leads: a path in the site, and an anchor."""
    parts = urlsplit(link)
    path, anchor = unquote(parts.path), unquote(parts.fragment)
    there = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
    return there, anchor


def broken(site: Mapping[str, Page], folder: Path) -> Iterator[str]:
    """Links to nothing, each as a line: on which page, to what."""
    for name, page in site.items():
        for link in sorted(set(page.links)):
            path, anchor = target(name, link)
            if not (folder / path).is_file():
                yield f"{name}: link to {link}, where there is no file"
            elif anchor and path in site and anchor not in site[path].anchors:
                yield f"{name}: link to {link}, where there is no such anchor"


def lost(site: Mapping[str, Page]) -> list[str]:
    """Pages to which no chain of links leads, in the texts of pages."""
    seen: set[str] = set()
    new = [BEGIN]
    while new:
        name = new.pop()
        seen.add(name)
        linked = {target(name, link)[0] for link in site[name].text}
        new += [path for path in linked if path in site and path not in seen and path not in new]
    return sorted(set(site) - seen - ASIDE)


def problems(folder: Path) -> list[str]:
    """What is wrong with the links of a built site, in lines."""
    site = pages(folder)
    return [
        *broken(site, folder),
        *(f"{name}: no link of a text leads to it" for name in lost(site)),
    ]
