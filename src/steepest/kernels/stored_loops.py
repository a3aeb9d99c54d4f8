"""Makes loops over arrays as they are stored out of the loops of rules over blocks of floats.

    python stored_loops.py adam.pyx generated/adam.pyx

A rule's loop is written once, over rows of floats. Where parameter, gradient and states have other
formats, blocks are decoded, updated and encoded in three passes over L1. For the sets of formats
that matter (`SETS`) that is too slow: the roots and divisions of a rule leave the processor time to
convert in between. So the build adds to each file of rules, for each set, the same loops with
``x[i]`` read and written through the conversions of ``stored.pxd``. The results are the same bits:
what is decoded, computed and encoded is the same, one element at a time.

States of 8 bits have a scale for each group of elements, which is known when all of them are. Such
a loop goes over one group, whose states are floats in L1 before and after it, and finds the largest
of each. A state whose name begins with v holds squares, and is stored by its root, which the
compiler takes once where the rule needs it too.

A loop is taken if it is one ``for i in range(n):`` in which arrays appear as ``name[i]`` alone, and
none is read once it has been written. Others, and rules with reductions, keep the three passes.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CODECS", "SETS", "holds_squares", "with_stored_loops"]

SETS = {
    "bfloat16": ("bfloat16", "bfloat16", "float32", "float32"),
    "bfloat16_states": ("bfloat16", "bfloat16", "bfloat16", "bfloat16"),
    "bfloat16_gradient": ("float32", "bfloat16", "float32", "float32"),
    "split16": ("split16", "bfloat16", "float32", "float32"),
    "q8": ("float32", "float32", "q8", "q8_square"),
    "bfloat16_q8": ("bfloat16", "bfloat16", "q8", "q8_square"),
    "split16_q8": ("split16", "bfloat16", "q8", "q8_square"),
    "q8_squares": ("float32", "float32", "float32", "q8_square"),
}
"""Formats of parameter, gradient, states, and those states that hold squares. The engine knows the
sets by their order. The last is that of rules which keep points beside squares: points are never of
8 bits by themselves."""

CODECS = {
    "bfloat16": "bfloat16",
    "split16": "split16_bfloat16",
    "q8": "q8",
    "q8_square": "q8_square",
}
"""The codecs of formats that loops convert themselves."""

_C_TYPES = {
    "float32": "float",
    "bfloat16": "bfloat16",
    "split16": "bfloat16",
    "q8": "uint8_t",
    "q8_square": "uint8_t",
}

_RULE = re.compile(r'^RULES\["(\w+)"\] = rule\((\w+), \2\)$', re.MULTILINE)
_FUNCTION = r"^cdef void {}\(([^)]*)\) noexcept nogil:\n((?:(?:[ ].*)?\n)*)"
_ARRAYS, _FIRST = 6, 2  # of a rule, and the first state among them
_GROUPED = ("q8", "q8_square")

_HEAD = """

# Made by stored_loops.py.

from libc.stdint cimport int16_t, int32_t, uint8_t, uint32_t
from steepest.kernels.contract cimport root as _root
from steepest.kernels.groups cimport Group, Random, code_group, decode_group
from steepest.kernels.stored cimport (
    GROUP, PER_ELEMENT, SIGNED_BITS, SQUARE_BITS, Stored, bfloat16, draw_group, from_bfloat16,
    joined, lowest_of, magnitude_bits, scale_of, split, to_bfloat16, usual_nan,
)
from cpython.pycapsule cimport PyCapsule_New as _capsule

STORED = {}
"""

_TAKES = "Py_ssize_t n, double factor, double keep, const double *h) noexcept nogil:\n"


@dataclass(frozen=True)
class _Array:
    """An array that a loop takes: its name there, its place among the rule's, its format, and the
    index of an element."""

    name: str
    place: int
    format: str
    at: str

    @property
    def kind(self) -> str:
        return "square" if self.format == "q8_square" else "signed"

    def read(self) -> str:
        x = f"{self.name}[{self.at}]"
        return {
            "float32": x,
            "bfloat16": f"from_bfloat16({x})",
            "split16": f"joined({x}, low_[{self.at}])",
            "q8": f"old_{self.name}.x[i]",
            "q8_square": f"old_{self.name}.x[i]",
        }[self.format]

    def written(self, value: str) -> list[str]:
        x = f"{self.name}[{self.at}]"
        if self.format in _GROUPED:
            new, most = f"new_{self.name}.x[i]", f"most_{self.name}"
            return [
                f"{new} = {f'_root({value})' if self.kind == 'square' else value}",
                f"magnitude_ = magnitude_bits({new})",
                f"{most} = magnitude_ if magnitude_ > {most} else {most}",
            ]
        return {
            "float32": [f"{x} = {value}"],
            "bfloat16": [f"{x} = to_bfloat16({value})"],
            "split16": [f"split({value}, &{x}, &low_[{self.at}])"],
        }[self.format]

    @property
    def given(self) -> str:
        const = "const " if self.place == 1 else ""
        return f"{const}{_C_TYPES[self.format]} *restrict {self.name}"

    @property
    def passed(self) -> str:
        return f"<{_C_TYPES[self.format]} *>x.data[{self.place}]"


def holds_squares(name: str) -> bool:
    """Whether a state holds squares, by its name in the kernel."""
    return name.startswith("v")


def with_stored_loops(text: str) -> str:
    """A file of rules, and behind it the loops that could be made of it, in its table STORED."""
    made, table = [], []
    for rule, name in _RULE.findall(text):
        function = re.search(_FUNCTION.format(name), text, re.MULTILINE)
        if function is None:
            continue
        arguments, body = function.groups()
        names = re.findall(r"real \*restrict (\w+)", arguments)
        used = {k: x for k, x in enumerate(names) if f"{x}[i]" in body}
        squares = {k for k, x in used.items() if k >= _FIRST and holds_squares(x)}
        taken = sum(1 << k - _FIRST for k in used if k in squares)
        entries, known = f"{taken}, ", dict[str, str]()
        for which, (of_p, of_g, of_states, of_squares) in SETS.items():
            each = [of_p, of_g]
            each += [of_squares if holds_squares(x) else of_states for x in names[_FIRST:]]
            if {each[k] for k in used} == {"float32"}:
                entries += "None, "  # nothing to convert
                continue
            loop = _loop(f"{name}_{which}", names, each, body)
            if not loop:
                break
            key = loop.replace(f"{name}_{which}", name)  # the same for two where there is no state
            if key not in known:
                known[key] = which
                made.append(loop)
            entries += f'_capsule(<void *>{name}_{known[key]}, "steepest.stored", NULL), '
        else:
            table.append(f'STORED["{rule}"] = ({entries})\n')
    return text + _HEAD + "".join(made) + "\n\n" + "".join(table) if made else text


def _loop(name: str, names: list[str], formats: list[str], body: str) -> str:
    """The loop over arrays of these formats, and what calls it; empty where it cannot be made."""
    before, found, loop = body.partition("    for i in range(n):\n")
    if not found or len(names) != _ARRAYS or "for " in before + loop:
        return ""
    before = re.sub(r'    """.*?"""\n', "", before, flags=re.DOTALL)
    if any(re.search(rf"\b{x}\b", _code(before)) for x in names):
        return ""
    used = [k for k, x in enumerate(names) if f"{x}[i]" in loop]
    grouped = any(formats[k] in _GROUPED for k in used)
    at = "first_ + i" if grouped else "i"
    arrays = {names[k]: _Array(names[k], k, formats[k], at) for k in used}
    lines, written = _body(loop, arrays)
    if not lines:
        return ""
    states = [x for x in arrays.values() if x.format in _GROUPED]
    text = before + (_over_groups(lines, states, written) if grouped else _over_all(lines))
    given, passed = [x.given for x in arrays.values()], [x.passed for x in arrays.values()]
    if "split16" in formats:
        given.append("int16_t *restrict low_")
        passed.append("<int16_t *>x.beside[0]")
    made = (
        f"\n\ncdef inline void {name}_loop(\n        const Stored *all_, {', '.join(given)},\n"
        f"        {_TAKES}{text}"
        f"\n\ncdef void {name}(const Stored *x, {_TAKES}"
        f"    {name}_loop(x, {', '.join(passed)}, n, factor, keep, h)\n"
    )
    return re.sub(r"\breal\b", "float", made)


def _over_all(lines: list[str]) -> str:
    """One loop over all elements."""
    return f"    for i in range(n):\n{''.join(lines)}"


def _over_groups(lines: list[str], states: list[_Array], written: list[str]) -> str:
    """For each group, what decodes its states, a loop over its elements, and what encodes them."""
    new = [x for x in states if x.name in written]
    declared = [f"    cdef Group old_{x.name}\n    cdef uint8_t *scale_{x.name}\n" for x in states]
    # Magnitudes with a sign: of an unsigned number that is not above 0, gcc would make a branch.
    declared += [f"    cdef Group new_{x.name}\n    cdef int32_t most_{x.name}\n" for x in new]
    declared += ["    cdef int32_t magnitude_\n    cdef Random random_\n"]
    parts, kept = _parts(lines, states)
    declared += [f"    cdef Group kept_{x}\n" for x in sorted(kept)]
    before, after = [], []
    for x in states:
        before += [
            f"scale_{x.name} = <uint8_t *>all_.beside[{x.place}] + first_ // GROUP",
            f"decode_group({x.name} + first_, lowest_of(scale_{x.name}[0]), old_{x.name}.x, "
            f"{x.format == 'q8_square'})",
        ]
    before += [f"most_{x.name} = 0" for x in new]
    if new:
        at = f"all_.noise[{new[0].place}] + <uint32_t>first_ * PER_ELEMENT"
        after = [f"draw_group(&random_, {at})"]
    for x in new:
        after += [
            f"usual_nan(&new_{x.name}, most_{x.name}, GROUP)",
            f"scale_{x.name}[0] = scale_of(most_{x.name}, {x.kind.upper()}_BITS)",
            f"code_group(new_{x.name}.x, random_.x, lowest_of(scale_{x.name}[0]), "
            f"{x.name} + first_, {x.format == 'q8_square'})",
        ]
    return (
        f"{''.join(declared)}    cdef Py_ssize_t first_ = 0\n    while first_ < n:\n"
        + "".join(f"        {x}\n" for x in before)
        + "".join(
            "        for i in range(GROUP):\n" + "".join(f"    {x}" for x in part) for part in parts
        )
        + "".join(f"        {x}\n" for x in after)
        + "        first_ += GROUP\n"
    )


_SHORT = {
    "root", "_root", "sign", "larger", "magnitude", "magnitude_bits", "joined", "split",
    "from_bfloat16", "to_bfloat16",
}  # fmt: skip


def _parts(lines: list[str], states: list[_Array]) -> tuple[list[list[str]], set[str]]:
    """The statements of one loop; of two, if a longer function is called when all states are known:
    of two shorter chains of operations the processor has more elements in hand. And the variables
    that the first keeps for the second."""
    calls = [{*re.findall(r"(\w+)\(", x)} - _SHORT for x in lines]
    at = next((k for k, x in enumerate(calls) if x), 0)
    first, second = "".join(lines[:at]), "".join(lines[at:])
    for x in states:  # a root that is stored is not taken again
        if root := re.search(rf"new_{x.name}\.x\[i\] = _root\((\w+)\)\n", first):
            second = re.sub(rf"\broot\({root[1]}\)", f"new_{x.name}.x[i]", second)
    if not at or re.search(r"new_\w+\.x\[i\] = ", second):
        return [lines], set()
    inner = {*re.findall(r"^\s+(\w+) = ", first, re.MULTILINE)}
    kept = {x for x in inner if re.search(rf"\b{x}\b(?! =)", second)}
    read = "".join(f"        {x} = kept_{x}.x[i]\n" for x in sorted(kept))
    keep = [f"        kept_{x}.x[i] = {x}\n" for x in sorted(kept)]
    again = (read + second).splitlines(keepends=True)
    return [[*lines[:at], *keep], again], kept


def _body(loop: str, arrays: dict[str, _Array]) -> tuple[list[str], list[str]]:
    """The statements of a loop, with conversions, and the arrays that are written; none where they
    are not of the kind above."""
    written: list[str] = []
    lines = []
    for statement in _statements(loop):
        if not re.match(r" {8}\w", statement):  # inside an `if`
            return [], []
        assignment = re.fullmatch(r"(\s+)(\w+)\[i\] = (.*)\n", statement, re.DOTALL)
        indent, target, value = assignment.groups() if assignment else ("", None, statement[:-1])
        reads = re.findall(r"(\w+)\[i\]", value)
        left = re.sub(r"\w+\[i\]", "", value)
        if {*reads} & {*written} or any(re.search(rf"\b{x}\b", left) for x in arrays):
            return [], []
        value = re.sub(r"(\w+)\[i\]", lambda x: arrays[x[1]].read(), value)
        if target is None:
            lines.append(f"{value}\n")
            continue
        written.append(target)
        lines += [f"{indent}{x}\n" for x in arrays[target].written(value)]
    return lines, written


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
