"""Docstrings as they are written here, plain text, as reStructuredText.

What is indented is a formula or a table, and keeps its lines; names stand in one or two backticks;
everything else is prose, in which * and | mean themselves.
"""

import re

_LITERAL = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_ARXIV = re.compile(r"arXiv:([\w.\-]+(?:/\d+)?\d)")
_PAGE = re.compile(r"docs/([\w-]+)\.md")


def rst(lines: list[str], classes: dict[str, str] | None = None) -> list[str]:
    """The lines of a docstring as lines of reStructuredText; classes: paths by name, for links."""
    out: list[str] = []
    for kind, block in _blocks(lines):
        if kind == "formula":
            out += [".. code-block:: text", "", *block, ""]
        elif kind == "example":
            out += [*block, ""]
        else:
            out += [*_prose("\n".join(block), classes or {}).split("\n"), ""]
    return out


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
            kind = "formula"
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


def _prose(text: str, classes: dict[str, str]) -> str:
    parts = []
    for part in _LITERAL.split(text):
        if _LITERAL.fullmatch(part):
            name = part.strip("`")
            parts.append(
                f":py:class:`~{classes[name]}`" if name in classes else f"``{' '.join(name.split())}``"
            )
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
