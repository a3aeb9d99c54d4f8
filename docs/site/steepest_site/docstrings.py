"""Docstrings as they are written here, plain text, as reStructuredText.

What is indented is a formula or a table, and keeps its lines; names stand in one or two backticks;
everything else is prose, in which * and | mean themselves.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

_LITERAL = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_ARXIV = re.compile(r"arXiv:([\w.\-]+(?:/\d+)?\d)")
_PAGE = re.compile(r"docs/([\w-]+)\.md")


def rst(
    lines: list[str],
    classes: Mapping[str, str] = MappingProxyType({}),
    ranges: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """The lines of a docstring as lines of reStructuredText.

    classes: paths by name, for links. ranges: what each argument may be, "" where its type does not
    say. A paragraph "name: what it is. other: what that is" of arguments becomes a list of them;
    arguments with a range that no paragraph explains are listed at the end.
    """
    out: list[str] = []
    left = dict(ranges)
    for kind, block in _blocks(lines):
        if kind == "formula":
            out += [".. code-block:: text", "", *block]
        elif kind == "example":
            out += block
        else:
            text = "\n".join(block)
            explained = _arguments(text, ranges)
            for name, what in explained:
                more = left.pop(name, "")
                said = _prose(" ".join(what.split()).rstrip(".;"), classes) + "."
                out.append(f":param {name}: {said}" + (f" *{_sentence(more)}*" if more else ""))
            if not explained:
                out += _prose(text, classes).split("\n")
        out.append("")
    return out + [f":param {name}: {_sentence(text)}" for name, text in left.items() if text]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _arguments(text: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """The arguments that a paragraph explains, if it begins with one: (name, text)."""
    one = "|".join(map(re.escape, names))
    several = rf"((?:{one})(?:, (?:{one}))*)"
    if not one or not re.match(rf"{several}:\s", text):
        return []
    parts = re.split(rf"(?:^|(?<=[.;])\s+){several}:\s", text)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [(name, what) for names, what in pairs for name in names.split(", ")]


def _blocks(lines: list[str]) -> list[tuple[str, list[str]]]:
    """The docstring in parts: examples, formulas and prose."""
    blocks: list[tuple[str, list[str]]] = []
    blank = True
    for line in lines:
        if not line.strip():
            blank = True
            if blocks and blocks[-1][0] == "formula":
                blocks[-1][1].append("")
            continue
        last = blocks[-1][0] if blocks else ""
        indented = line.startswith("  ")
        if last == "example" and not blank:
            kind = last
        elif line.startswith(">>> "):
            kind = "example"
        elif indented and last == "list" and not line.startswith("      "):
            kind = last
        elif indented:
            kind = "prose" if last == "prose" and not blank else "formula"
        elif re.match(r"([*-]|\d+\.) ", line) or (last == "list" and not blank):
            kind = "list"
        else:
            kind = "prose"
        if kind == last and (not blank or kind == "formula"):
            blocks[-1][1].append(line)
        else:
            blocks.append((kind, [line]))
        blank = False
    return [(kind, _stripped(block)) for kind, block in blocks]


def _stripped(block: list[str]) -> list[str]:
    while block and not block[-1]:
        block.pop()
    return block


def _prose(text: str, classes: Mapping[str, str]) -> str:
    parts = []
    for part in _LITERAL.split(text):
        if _LITERAL.fullmatch(part):
            name = " ".join(part.strip("`").split())
            parts.append(f":py:class:`~{classes[name]}`" if name in classes else f"``{name}``")
        else:
            parts.append(_escaped(part))
    return "".join(
        # What touches a literal must be separated from it by something that is not shown.
        f"{left}\\ " if left.endswith("`") and right[:1].isalnum() else left
        for left, right in zip(parts, [*parts[1:], ""], strict=True)
    )


def _escaped(text: str) -> str:
    text = re.sub(r"[\\|_*]", r"\\\g<0>", text)
    text = re.sub(r"(?m)^\\\* ", "* ", text)  # at the start of a line it is a list's
    text = _ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", text)
    return _PAGE.sub(r":doc:`/guide/\1`", text)
