"""Makes loops over arrays as they are stored out of the loops of rules over blocks of floats.

    python stored_loops.py adam.pyx generated/adam.pyx

A rule's loop is written once, over rows of floats. Where parameter, gradient and states have other
formats, blocks are decoded, updated and encoded in three passes over L1. For the sets of formats
that matter (`SETS`) that is too slow: the roots and divisions of a rule leave the processor time to
convert in between. So the build adds to each file of rules, for each set, the same loops with
``x[i]`` read through ``from_bfloat16`` and written through ``to_bfloat16``. The results are the
same bits: what is decoded, computed and encoded is the same, one element at a time.

A loop is taken if it is one ``for i in range(n):`` in which arrays appear as ``name[i]`` alone, and
none is read once it has been written. Others, and rules with reductions, keep the three passes.
"""

import re
import sys
from pathlib import Path

__all__ = ["SETS", "with_stored_loops"]

SETS = {
    "bfloat16": ("bfloat16", "bfloat16", "float32"),
    "bfloat16_states": ("bfloat16", "bfloat16", "bfloat16"),
    "bfloat16_gradient": ("float32", "bfloat16", "float32"),
}
"""Formats of parameter, gradient and states. The engine knows the sets by their order."""

_C_TYPES = {"float32": "float", "bfloat16": "bfloat16"}

_RULE = re.compile(r'^RULES\["(\w+)"\] = rule\((\w+), \2\)$', re.MULTILINE)
_FUNCTION = r"^cdef void {}\(([^)]*)\) noexcept nogil:\n((?:(?:[ ].*)?\n)*)"
_POINTERS = ("p", "g", "a", "b", "c", "d")

_HEAD = """

# Made by stored_loops.py.

from steepest.kernels.stored cimport bfloat16, from_bfloat16, to_bfloat16
from cpython.pycapsule cimport PyCapsule_New as _capsule

STORED = {}
"""

_WRAPPER = """

cdef void {name}_{which}(void *p, const void *g, void *a, void *b, void *c, void *d, Py_ssize_t n,
                         double factor, double keep, const double *h) noexcept nogil:
    {name}_{which}_loop({casts}, n, factor, keep, h)
"""


def with_stored_loops(text: str) -> str:
    """A file of rules, and behind it the loops that could be made of it, in its table STORED."""
    made, table = [], []
    for rule, name in _RULE.findall(text):
        function = re.search(_FUNCTION.format(name), text, re.MULTILINE)
        if function is None:
            continue
        entries, known = "", dict[str, str]()
        for which, (of_p, of_g, _) in SETS.items():
            statements, loop = _loop(name, which, *function.groups())
            if not loop:
                break
            key = f"{of_p} {of_g} {statements}"  # a rule without states has the same loop for two
            if key not in known:
                known[key] = which
                made.append(loop)
            entries += f'_capsule(<void *>{name}_{known[key]}, "steepest.stored", NULL), '
        else:
            table.append(f'STORED["{rule}"] = ({entries})\n')
    return text + _HEAD + "".join(made) + "\n\n" + "".join(table) if made else text


def _loop(name: str, which: str, arguments: str, body: str) -> tuple[str, str]:
    """The statements of the loop for a set of formats, and the loop with what calls it; empty where
    it cannot be made."""
    arrays = re.findall(r"real \*restrict (\w+)", arguments)
    before, found, loop = body.partition("    for i in range(n):\n")
    if not found or len(arrays) != len(_POINTERS) or "for " in before + loop:
        return "", ""
    of_p, of_g, of_states = SETS[which]
    stored = dict(zip(arrays, (of_p, of_g, *[of_states] * 4), strict=True))
    changed = _body(loop, stored)
    before = re.sub(r'    """.*?"""\n', "", before, flags=re.DOTALL)
    if not changed or any(re.search(rf"\b{x}\b", _code(before)) for x in arrays):
        return "", ""
    types = [f"{_C_TYPES[x]} *" for x in stored.values()]
    types[1] = "const " + types[1]
    casts = ", ".join(f"<{t}>{x}" for t, x in zip(types, _POINTERS, strict=True))
    given = ", ".join(f"{t}restrict {x}" for t, x in zip(types, arrays, strict=True))
    head = (
        f"\n\ncdef inline void {name}_{which}_loop(\n        {given},\n"
        "        Py_ssize_t n, double factor, double keep, const double *h) noexcept nogil:\n"
    )
    text = head + re.sub(r"\breal\b", "float", before + found + changed).rstrip() + "\n"
    return changed, text + _WRAPPER.format(name=name, which=which, casts=casts)


def _body(loop: str, stored: dict[str, str]) -> str:
    """The statements of a loop, with conversions; empty where they are not of the kind above."""
    written: set[str] = set()
    lines = []
    for statement in _statements(loop):
        if not re.match(r" {8}\w", statement):  # inside an `if`
            return ""
        assignment = re.fullmatch(r"(\s+)(\w+)\[i\] = (.*)\n", statement, re.DOTALL)
        indent, target, value = assignment.groups() if assignment else ("", None, statement[:-1])
        reads = re.findall(r"(\w+)\[i\]", value)
        left = re.sub(r"\w+\[i\]", "", value)
        if set(reads) & written or any(re.search(rf"\b{x}\b", left) for x in stored):
            return ""
        value = re.sub(r"(\w+)\[i\]", lambda x: _read(x[1], stored), value)
        if target is not None:
            written.add(target)
            if stored[target] != "float32":
                value = f"to_{stored[target]}({value})"
            value = f"{target}[i] = {value}"
        lines.append(f"{indent}{value}\n")
    return "".join(lines)


def _read(name: str, stored: dict[str, str]) -> str:
    format_ = stored.get(name, "float32")
    return f"{name}[i]" if format_ == "float32" else f"from_{format_}({name}[i])"


def _code(text: str) -> str:
    """The text without comments."""
    return re.sub(r"#.*", "", text)


def _statements(loop: str) -> list[str]:
    """The statements, each with its continuation lines; comments left away."""
    found: list[str] = []
    for line in loop.splitlines():
        code = _code(line).rstrip()
        if not code:
            continue
        if found and found[-1].count("(") > found[-1].count(")"):
            found[-1] = found[-1].rstrip("\n") + "\n" + code + "\n"
        else:
            found.append(code + "\n")
    return found


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(with_stored_loops(source.read_text(encoding="utf-8")), encoding="utf-8")
