"""Mutants of a text: one small change each, as a slip of the pen would make it.

For Python, Cython, and the C that a `cdef extern` holds. A text is cut into tokens and logical
lines; nothing is parsed, so a few mutants do not compile. Not changed are comments, docstrings,
messages of exceptions, annotations, signatures and declarations without a value.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_TOKEN = r"""
    (?P<string>[rbfuRBFU]{0,2}(?:'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"
        |"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<comment>COMMENT)
    |(?P<number>0[xX][\da-fA-F]+[uUlL]*|(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<name>[^\W\d]\w*)
    |(?P<newline>\n)
    |(?P<space>[ \t]+|\\\n)
    |(?P<mark>\*\*=?|//=?|>>=?|<<=?|->|:=|[<>=!+\-*/%&|^]=|&&|\|\||.)
"""
_PYTHON = re.compile(_TOKEN.replace("COMMENT", r"\#[^\n]*"), re.VERBOSE | re.DOTALL)
_C = re.compile(
    _TOKEN.replace("COMMENT", r"/\*.*?\*/").replace("->", r"->|\+\+|--"), re.VERBOSE | re.DOTALL
)

_SWAPS = {
    "sign": {"+": "-", "-": "+", "+=": "-=", "-=": "+="},
    "product": {"*": "/", "/": "*", "*=": "/=", "/=": "*=", "//": "*", "%": "//", "**": "*"},
    "bits": {"<<": ">>", ">>": "<<", "&": "|", "|": "&", "^": "|", "|=": "&=", "&=": "|="},
    "comparison": {"<": "<=", "<=": "<", ">": ">=", ">=": ">"},
    "equality": {"==": "!=", "!=": "==", "is": "is not", "in": "not in"},
    "logic": {"and": "or", "or": "and", "&&": "||", "||": "&&", "not": ""},
    "choice": {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum",
               "any": "all", "all": "any", "True": "False", "False": "True"},
}  # fmt: skip
_ROOTS = {"root", "sqrt", "abs", "fabs", "magnitude"}
_WORDS = {
    "if", "elif", "else", "and", "or", "not", "in", "is", "return", "lambda", "yield", "for",
    "while", "assert", "del", "raise", "from", "import", "with", "as", "sizeof",
}  # fmt: skip
_TYPES = re.compile(r"(const|void|char|int|float|double|real|bint|\w+_t|[A-Z][A-Za-z]*[a-z]\w*)$")
_SKIPPED = {
    "import", "from", "cimport", "@", "global", "nonlocal", "class", "raise", "assert", "pass",
    "ctypedef", "except", "#",
}  # fmt: skip
_SIGNATURES = {"def", "cdef", "cpdef", "async"}


@dataclass(frozen=True)
class Mutant:
    """A text with `new` between `start` and `stop`."""

    operator: str
    start: int
    stop: int
    new: str

    def applied(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.stop :]

    def line(self, text: str) -> int:
        return text.count("\n", 0, self.start) + 1

    def shown(self, text: str) -> str:
        """The line before and after, where it differs: ``b1 * m[i] → b2 * m[i]``."""
        low, high = max(self.start - 24, 0), min(self.stop + 24, len(text))
        low = max(text.rfind("\n", low, self.start) + 1, low)
        end = text.find("\n", self.stop, high)
        high = high if end < 0 else end
        new = text[low : self.start] + self.new + text[self.stop : high]
        old, new = (" ".join(x.split()) for x in (text[low:high], new))
        return f"`{old}` → `{new}`"


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    stop: int


def mutants(text: str) -> list[Mutant]:
    """Every mutant of a Python or Cython text, in its order."""
    lines = list(_lines(text, 0, len(text), _PYTHON))
    found: list[Mutant] = []
    inside: list[tuple[int, int]] = []  # indents and starts of the functions around a line
    skipped: int | None = None  # the indent of a block whose lines are declarations
    for line, after in pairwise([*lines, []]):
        first, indent = line[0], _indent(text, line[0].start)
        if skipped is not None and indent > skipped:
            if first.kind == "string":  # the C of a cdef extern
                found += _of_c(text, first)
            continue
        skipped = None
        inside = [x for x in inside if x[0] < indent]
        words = [token.text for token in line]
        if words[-1] == ":" and first.text in {"cdef", "ctypedef"} and "(" not in words:
            if first.text == "ctypedef" or {"struct", "extern", "enum"} & set(words[:3]):
                skipped = indent
            continue
        if first.text in _SIGNATURES and words[-1] == ":":
            inside.append((indent, first.start))
            continue
        if first.text in _SKIPPED or first.kind == "string":
            continue
        start = inside[-1][1] if inside else 0
        found += _of_line(text, line, after, text[start : first.start])
    return found


def _of_c(text: str, token: _Token) -> list[Mutant]:
    found = []
    for line in _lines(text, token.start + 3, token.stop - 3, _C, joined=False):
        words = [x.text for x in line]
        if words[:2] in (["#", "if"], ["#", "ifdef"], ["#", "include"], ["#", "elif"]):
            continue
        found += _of_tokens(text, line, "", c=True)
    return found


def _of_line(text: str, line: list[_Token], after: list[_Token], before: str) -> list[Mutant]:
    found = []
    words = [token.text for token in line]
    assigned = _assignment(words)
    if words[0] in {"cdef", "cpdef"} or (len(words) > 2 and words[1] == ":" and assigned != 1):
        if not assigned:
            return []
        found += _of_tokens(text, line[assigned + 1 :], before)  # a declaration or annotation
        return found
    if words[0] in {"if", "elif"} and after and after[0].text in {"raise", "return", "continue"}:
        check = line[1:-1]
        found.append(Mutant("check", check[0].start, check[-1].stop, "False"))
    known = words[0] in re.findall(r"\w+", before)
    if assigned and (assigned > 1 or known or words[assigned] != "="):
        found.append(Mutant("statement", line[0].start, line[-1].stop, "pass"))
    found += _of_tokens(text, line, before)
    return found


def _assignment(words: list[str]) -> int:
    """The place of the first assignment sign outside brackets, 0 if there is none."""
    depth = 0
    for i, word in enumerate(words):
        depth += (word in "([{") - (word in ")]}")
        if depth == 0 and (word == "=" or re.fullmatch(r"(\+|-|\*|/|//|%|&|\||\^|<<|>>)=", word)):
            return i
    return 0


def _of_tokens(text: str, line: list[_Token], before: str, c: bool = False) -> Iterator[Mutant]:
    words = [token.text for token in line]
    casts = _casts(line)
    earlier = set(re.findall(r"\w+", before)) | set(words)
    brackets: list[str] = []
    for i, token in enumerate(line):
        last, following = line[i - 1] if i else None, words[i + 1] if i + 1 < len(words) else ""
        word = token.text
        if word in "([{":
            brackets.append(f"{words[i - 1] if i else ''}{word}")
        if word in ")]}" and brackets:
            brackets.pop()
        if token.kind == "number":
            yield from _numbers(token, "[" in brackets[-1] if brackets else False)
        elif word in _ROOTS and following == "(":
            start = line[i - 2].start if last and last.text == "." else token.start
            yield Mutant("root", start, token.stop, "")
        elif word in {"is", "in"} and ("for" in words or following == "not" or last is None
                                       or last.text == "not"):  # fmt: skip
            continue
        elif token.kind == "name" and (twin := _twin(word, earlier)):
            yield Mutant("neighbour", token.start, token.stop, twin)
        if brackets and brackets[-1] == "range(" and token.kind in {"name", "number"}:
            if following == ")" and last and last.text in "(,":
                yield Mutant("bound", token.stop, token.stop, " - 1")
            elif following == "," and last and last.text == "(":
                yield Mutant("bound", token.stop, token.stop, " + 1")
        if i in casts or (token.kind == "mark" and not _binary(last, following, c)):
            continue
        for operator, swaps in _SWAPS.items():
            if word in swaps and not (operator in {"choice"} and last and last.text == "."
                                      and word in {"min", "max", "any", "all"} and c):  # fmt: skip
                yield Mutant(operator, token.start, token.stop, swaps[word])
    yield from _arguments(text, line)


def _numbers(token: _Token, index: bool) -> Iterator[Mutant]:
    word = token.text
    if index and word.isdigit():
        yield Mutant("index", token.start, token.stop, str(int(word) + 1))
        if int(word):
            yield Mutant("index", token.start, token.stop, str(int(word) - 1))
    elif re.fullmatch(r"[01](\.0*)?", word):
        new = {"0": "1", "1": "0"}[word[0]] + word[1:]
        yield Mutant("constant", token.start, token.stop, new)
    elif re.match(r"0[xX]", word):
        digits, ending = re.fullmatch(r"(0[xX][\da-fA-F]+)([uUlL]*)", word).groups()
        yield Mutant("constant", token.start, token.stop, hex(int(digits, 16) ^ 1) + ending)
    else:
        yield Mutant("constant", token.start, token.stop, f"(2 * {word})")
        if word.isdigit():
            yield Mutant("constant", token.start, token.stop, f"({word} + 1)")


def _twin(word: str, names: set[str]) -> str | None:
    """b2 for b1, fresh1 for fresh2: where both are names here."""
    if not word[-1:].isdigit() or len(word) < 2:
        return None
    other = word[:-1] + {"0": "1", "1": "2", "2": "1", "3": "2"}.get(word[-1], "1")
    return other if other in names and other != word else None


def _arguments(text: str, line: list[_Token]) -> Iterator[Mutant]:
    """f(a, b) becomes f(b, a): names or numbers, the first two."""
    for i in range(len(line) - 5):
        f, opened, a, comma, b, closed = line[i : i + 6]
        if (
            f.kind == "name" and f.text not in _WORDS and (opened.text, comma.text) == ("(", ",")
            and closed.text in ",)" and {a.kind, b.kind} <= {"name", "number"} and a.text != b.text
        ):  # fmt: skip
            yield Mutant("arguments", a.start, b.stop, f"{b.text}, {a.text}")


def _casts(line: list[_Token]) -> set[int]:
    """The places of < and > that are brackets around a type."""
    found, opened = set(), None
    for i, token in enumerate(line):
        if token.text == "<" and not _binary(line[i - 1] if i else None, "", False):
            opened = i
        elif token.text == ">" and opened is not None:
            found |= {opened, i}
            opened = None
    return found


def _binary(last: _Token | None, following: str, c: bool) -> bool:
    """Whether a mark has an operand at its left, and no bracket of a type at its right."""
    if last is None or following in {">", ")", ","}:
        return False
    if last.kind == "name":
        return last.text not in _WORDS and not (c and _TYPES.match(last.text))
    return last.kind in {"number", "string"} or last.text in ")]}"


def _lines(
    text: str, start: int, stop: int, lexer: re.Pattern[str], joined: bool = True
) -> Iterator[list[_Token]]:
    """Logical lines, without space and comments; brackets join lines where `joined`."""
    line: list[_Token] = []
    depth = 0
    for match in lexer.finditer(text, start, stop):
        kind, word = match.lastgroup or "", match.group()
        if kind == "newline" and (depth == 0 or not joined):
            if line:
                yield line
            line = []
        if kind in {"newline", "space", "comment"}:
            continue
        if kind == "mark":
            depth += (word in "([{") - (word in ")]}")
        line.append(_Token(kind, word, match.start(), match.end()))
    if line:
        yield line


def _indent(text: str, at: int) -> int:
    return at - text.rfind("\n", 0, at) - 1
