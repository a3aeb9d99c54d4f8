"""Mutation testing: a small fault is put into the code, and the tests must see it.

    python tests/long/mutants.py --area kernels --count 100 --seed 1 --minutes 30

Mutants (see ``tests/helpers/mutator.py``) are drawn by file, and in a file by operator. Each is run
in a copy of the package against the tests that belong to its file, the cheapest first. It is killed
where they fail, die or hang. One of compiled code is compiled, at the level ``base``; where the
object code is the very same it is equivalent. What does not compile is not counted.

    python tests/long/mutants.py --museum

tries the slips of the museum's exhibits (``tests/museum/``) that are in compiled code, which
``pytest -m exhaustive tests/museum`` leaves out.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT)]

from mutator import Mutant, mutants  # noqa: E402
from package_copy import SOURCE, PackageCopy, Run  # noqa: E402

EXACT = "tests/promises/test_exactness.py"
FAMILIES = ("sgd", "adaptive", "adam", "adam_variants", "sign", "averaged", "parameter_free",
            "layerwise", "factored")  # fmt: skip
# The tests of exactness called by hand: pytest takes ten seconds to collect their products.
_BEGUN = """
sys.path.insert(0, "tests/promises")
import test_exactness as tests
chosen = [x for x in tests.CONFIGURATIONS if CHOSEN]
tests.dispatch.use("base")
tests.use_threads(3)
"""
_BRIEF = """
for draw in (tests.normal, tests.special):
    for rule, given in chosen:
        for dtype in tests.DTYPES:
            tests.run(rule, given, dtype, (0, 1, 7, 331), 3, draw)
"""
_WHOLE = """
for rule, given in chosen:
    for dtype in tests.DTYPES:
        steps = 9 if tests.RULES[rule].needs == "matrix" else 50
        tests.run(rule, given, dtype, tests.SIZES, steps, tests.normal)
        for draw in (tests.special, tests.wide):
            tests.run(rule, given, dtype, (0, 1, 7, 331), 6, draw)
    if (rule, given) in tests.SHAPED:
        tests.test_shapes(rule, given, tests.DTYPES[0], "base")
        tests.test_large_shapes(rule, given, tests.DTYPES[0], 3)
"""


Tests = Sequence[str] | str
"""What is given to pytest, or code."""


def _exactly(chosen: str) -> tuple[str, str]:
    """The tests of exactness for some configurations: a few steps of few elements, and all."""
    begun = _BEGUN.replace("CHOSEN", chosen)
    return begun + _BRIEF, begun + _WHOLE


_ENGINE = """
import steepest as st
shapes = ((), (0,), (7,), (3, 5), (700, 1), (5, 700), (40, tests.BLOCK_SIZE + 1), (3, 4, 3, 3))
options = ({}, {"clip": (st.clip.adaptive(0.05), st.clip.value(0.7)), "maximize": True},
           {"lookahead": st.average.lookahead(2, 0.4), "average": st.average.tail(0), "ema": 0.5})
for rule, given in chosen:
    for around in options:
        both = tests.fitting(rule, given, around)
        for dtype in (*tests.DTYPES, (tests.DTYPES[0], tests.DTYPES[1])):
            tests.run(rule, both, dtype, shapes, 3, tests.normal, layouts=4)
"""
SOME = ("sgd", "adamw", "lamb", "novograd", "adafactor", "sm3", "ldog", "prodigy", "shampoo")


def _sweeps() -> str:
    """Rules of every kind over arrays of many layouts, with options around them."""
    first = f"x[0] in {SOME} and dict(reversed(tests.CONFIGURATIONS))[x[0]] is x[1]"
    return _BEGUN.replace("CHOSEN", first) + _ENGINE


def _of_family(family: str) -> list[Tests]:
    of_module = f'tests.RULES[x[0]].__module__ == "steepest.optimizers.{family}"'
    around = "(fifty or special or around or tail)"
    return [
        *_exactly(of_module),
        [
            EXACT,
            "-m",
            "",
            "-k",
            f"{around} and ({_rules(family)}) or not exactness",
            "tests/optimizers",
            "tests/kernels/test_kernels.py",
        ],
    ]


def _rules(family: str) -> str:
    """For -k: the rules of a family, each of which begins a test's axes."""
    from steepest.optimizers import RULES

    own = [rule for rule, cls in RULES.items() if cls.__module__.endswith(f".{family}")]
    return " or ".join(f"{rule}-" for rule in own)


CORE_TESTS = ("tests/core/test_optimizers.py", "tests/options/test_clip.py",
              "tests/promises/test_refused.py", "tests/promises/test_memory.py",
              "tests/promises/test_copies.py")  # fmt: skip
CODED: list[Tests] = [
    ["tests/promises/test_exactness_of_formats.py", "tests/memory/test_formats.py"],
    ["tests/promises/test_masters.py", "tests/promises/test_stochastic_rounding.py",
     "tests/promises/test_q8.py"],
]  # fmt: skip
ENGINE: list[Tests] = [_sweeps(), CORE_TESTS, *CODED, _exactly(f"x[0] in {SOME}")[1],
                       [EXACT, "tests/promises", "tests/options", "tests/memory"]]  # fmt: skip
CORE: list[Tests] = [
    _sweeps(),
    ["tests/core/test_optimizers.py", "tests/core/test_group_program.py"],
    ["tests/core", "tests/options/test_clip.py", "tests/memory/test_arrays.py",
     "tests/promises/test_refused.py", "tests/promises/test_memory.py",
     "tests/promises/test_copies.py", "tests/promises/test_masters.py",
     "tests/promises/test_all_at_once.py", "tests/promises/test_values_with_state.py"],
    ["tests/options", "tests/memory", "tests/optimizers", "tests/promises"],
]  # fmt: skip
OPTIONS: list[Tests] = [["tests/options"], ["tests/core", EXACT, "-k", "not fifty"]]
MEMORY: list[Tests] = [
    ["tests/memory/test_arrays.py", "tests/memory/test_formats.py", "tests/core/test_optimizers.py",
     "tests/promises/test_memory.py", "tests/promises/test_refused.py"],
    ["tests/memory"], *CORE[1:],
]  # fmt: skip


def _of_checkpoint(name: str) -> list[Tests]:
    own = {"container": "_container", "json_values": "_json_values", "atomic": "_atomic"}
    first = f"tests/checkpoint/test_checkpoint{own.get(name, '')}.py"
    return [[first], ["tests/checkpoint", "tests/training/test_resuming.py"]]


@dataclass(frozen=True)
class Subject:
    """A file, the tests that must notice its mutants, and what is compiled from it."""

    file: str
    tests: Sequence[Tests]
    modules: Sequence[tuple[str, str | None]] = ()
    loops: bool = True
    """Whether its tests use rules over arrays of other formats."""


def _python(pattern: str, tests: Sequence[Tests]) -> list[Subject]:
    """The files of a folder, each with the tests of its own name before those of the folder."""
    found = []
    for path in sorted(SOURCE.glob(pattern)):
        file = path.relative_to(SOURCE)
        own = ROOT / "tests" / file.with_name(f"test_{path.stem}.py")
        first = [[str(own.relative_to(ROOT))]] if own.exists() else []
        found.append(Subject(file.as_posix(), [*first, *tests]))
    return found


def _kernels() -> list[Subject]:
    found = [
        Subject(f"kernels/leveled/{x}.pyx", _of_family(x), [(f"leveled/{x}", "base")], loops=False)
        for x in FAMILIES
    ]
    axes = 'tests.RULES[x[0]].factors or x[0] in ("novograd", "adammini")'
    rest = {
        "operations": [ENGINE[0], ["tests/options"], *ENGINE[4:]],
        "axis_reductions": [*_exactly(axes), *ENGINE],
        "codecs": CODED,
    }
    found += [
        Subject(f"kernels/leveled/{x}.pyx", tests, [(f"leveled/{x}", "base")])
        for x, tests in rest.items()
    ]
    coded = [("leveled/codecs", "base"), ("leveled/adam", "base")]
    every = [(x, level) for x, _ in coded for level in ("base", "v3", "v4")]
    return [
        *found,
        Subject("kernels/leveled/arctan.pxd", _of_family("adam_variants"),
                [("leveled/adam_variants", "base")], loops=False),
        Subject("kernels/stored.pxd", CODED, coded),
        Subject("kernels/groups.pxd", CODED, every),
        Subject("kernels/scalars.pyx", [["tests/kernels/test_kernels.py"], *ENGINE],
                [("scalars", None)]),
    ]  # fmt: skip


def _engine() -> list[Subject]:
    names = ("blocks", "bounds", "entries", "norms", "plan", "programs", "reductions", "sweeps",
             "tiles", "units")  # fmt: skip
    return [
        *(Subject(f"kernels/engine/{x}.pyx", ENGINE, [(f"engine/{x}", None)]) for x in names),
        Subject("kernels/sources.pyx", MEMORY, [("sources", None)]),
    ]


AREAS = {
    "reference": lambda: [
        *(Subject(f"reference/{x}.py", _of_family(x)) for x in FAMILIES),
        Subject("reference/operations.py", [["tests/options"], [EXACT, "-k", "around"]]),
        Subject("reference/operation_order.py", [["tests/options"], [EXACT, "-k", "around"]]),
        Subject("reference/reductions.py", [ENGINE[0], ["tests/options/test_clip.py"], ENGINE[4]]),
        Subject("reference/stored.py", CODED),
        Subject("codecs.py", CODED),
    ],
    "kernels": _kernels,
    "engine": _engine,
    "planning": lambda: [
        *_python("core/*.py", CORE), *_python("memory/*.py", MEMORY),
        *_python("options/*.py", OPTIONS),
    ],
    "checkpoint": lambda: [
        Subject(x.file, _of_checkpoint(Path(x.file).stem)) for x in _python("checkpoint/*.py", [])
    ],
}  # fmt: skip
"""What is mutated together."""


@dataclass
class Outcome:
    subject: Subject
    mutant: Mutant
    result: str
    """``killed``, ``survived``, ``equivalent`` or ``stillborn``."""
    seconds: float

    def row(self) -> str:
        text = (SOURCE / self.subject.file).read_text(encoding="utf-8")
        return (
            f"| {self.subject.file}:{self.mutant.line(text)} | {self.mutant.operator} | "
            f"{self.mutant.shown(text).replace('|', '¦')} |"
        )


def drawn(subjects: Sequence[Subject], seed: int) -> Iterator[tuple[Subject, Mutant]]:
    """Mutants of the subjects in turn; of each, of its operators in turn; without repetition."""
    rng = random.Random(seed)
    queues: list[tuple[Subject, list[Mutant]]] = []
    for subject in subjects:
        text = (SOURCE / subject.file).read_text(encoding="utf-8")
        kinds: dict[str, list[Mutant]] = {}
        for mutant in mutants(text):
            kinds.setdefault(mutant.operator, []).append(mutant)
        for each in kinds.values():
            rng.shuffle(each)
        order = sorted(kinds, key=lambda _: rng.random())
        deepest = max((len(x) for x in kinds.values()), default=0)
        queue = [kinds[k][n] for n in range(deepest) for k in order if n < len(kinds[k])]
        queues.append((subject, queue))
    while any(queue for _, queue in queues):
        for subject, queue in queues:
            if queue:
                yield subject, queue.pop(0)


class Laboratory:
    """Copies of the package, in which mutants are tried."""

    def __init__(self, folder: Path, most: int | None = None) -> None:
        self.folder, self.most = folder, most
        self.copies: dict[bool, PackageCopy] = {}
        self.objects: dict[tuple[str, str | None, bool], bytes | str] = {}
        self.whole: dict[tuple[PackageCopy, tuple[str, str | None]], bytes] = {}
        self.limits: dict[str, float] = {}

    def copy(self, subject: Subject) -> PackageCopy:
        """One with the level base alone, but where other levels are compiled."""
        every = any(level not in (None, "base") for _, level in subject.modules)
        if every not in self.copies:
            place = self.folder / ("every" if every else "base")
            self.copies[every] = PackageCopy(place, None if every else ["base"])
        return self.copies[every]

    def run(self, copy: PackageCopy, tests: Tests, seconds: float = 1200) -> Run:
        if isinstance(tests, str):
            return copy.run_code(tests, seconds, STEEPEST_ISA="base")
        return copy.run(tests, seconds, STEEPEST_ISA="base")

    def limit(self, copy: PackageCopy, tests: Tests) -> float:
        """The seconds that the tests may take: they are run once without a fault, and pass."""
        key = f"{copy.folder} {tests}"
        if key not in self.limits:
            run = self.run(copy, tests)
            if not run.passed:
                raise RuntimeError(
                    f"without a fault, {tests} end in {run.code}:\n{run.text[-3000:]}"
                )
            self.limits[key] = 4 * run.seconds + 20
        return self.limits[key]

    def built(self, copy: PackageCopy, subject: Subject) -> list[bytes | str]:
        """The object code without a fault, to compare with; the modules are kept to be put back."""
        found = []
        for module in subject.modules:
            if (copy, module) not in self.whole:
                self.whole[copy, module] = copy.place(*module).read_bytes()
            key = (*module, subject.loops)
            if key not in self.objects:
                self.objects[key] = copy.built(*module, loops=subject.loops)
                _replaced(copy.place(*module), self.whole[copy, module])
            found.append(self.objects[key])
        said = [x for x in found if isinstance(x, str)]
        if said:
            raise RuntimeError(f"{subject.file} does not compile: {said[0]}")
        return found

    def tried(self, subject: Subject, mutant: Mutant) -> Outcome:
        copy, started = self.copy(subject), time.monotonic()
        text = copy.read(subject.file)

        def outcome(result: str) -> Outcome:
            return Outcome(subject, mutant, result, time.monotonic() - started)

        whole = self.built(copy, subject)
        mutated = mutant.applied(text)
        if not subject.modules:
            try:
                compile(mutated, subject.file, "exec")
            except SyntaxError:
                return outcome("stillborn")
        try:
            copy.write(subject.file, mutated)
            built = [copy.built(*module, loops=subject.loops) for module in subject.modules]
            if any(isinstance(x, str) for x in built):
                return outcome("stillborn")
            if built and built == whole:
                return outcome("equivalent")
            for tests in subject.tests[: self.most]:
                if self.killed(subject, mutated, copy, tests):
                    return outcome("killed")
            return outcome("survived")
        finally:
            self.restored(subject, copy, text)

    def killed(self, subject: Subject, mutated: str, copy: PackageCopy, tests: Tests) -> bool:
        if f"{copy.folder} {tests}" in self.limits:
            return self.run(copy, tests, self.limit(copy, tests)).failed
        # How long do they take without a fault? It is put back for that.
        spoilt = {x: copy.place(*x).read_bytes() for x in subject.modules}
        text = (SOURCE / subject.file).read_text(encoding="utf-8")
        self.restored(subject, copy, text)
        seconds = self.limit(copy, tests)
        copy.write(subject.file, mutated)
        for module, x in spoilt.items():
            _replaced(copy.place(*module), x)
        return self.run(copy, tests, seconds).failed

    def restored(self, subject: Subject, copy: PackageCopy, text: str) -> None:
        copy.write(subject.file, text)
        for module in subject.modules:
            _replaced(copy.place(*module), self.whole[copy, module])


def _replaced(place: Path, data: bytes) -> None:
    """By a new file: the old one may be mapped by a process."""
    place.unlink(missing_ok=True)
    place.write_bytes(data)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--area", choices=AREAS, nargs="+", default=[*AREAS])
    parser.add_argument(
        "--file", default="", help="only files, or exhibits, with this in their name"
    )
    parser.add_argument("--count", type=int, default=100, help="mutants of each area")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="how many of them to leave out")
    parser.add_argument("--minutes", type=float, default=60, help="of each area")
    parser.add_argument("--tests", type=int, help="at most so many of a file's lists of tests")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--museum", action="store_true", help="try the museum's slips instead")
    given = parser.parse_args(argv)
    if given.museum:
        return _museum(given.report, given.file)
    outcomes: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(Path(folder), given.tests)
        for area in given.area:
            ended = time.monotonic() + 60 * given.minutes
            subjects = [x for x in AREAS[area]() if given.file in x.file]
            for number, (subject, mutant) in enumerate(drawn(subjects, given.seed)):
                if number < given.skip:
                    continue
                if number >= given.skip + given.count or time.monotonic() > ended:
                    break
                outcome = laboratory.tried(subject, mutant)
                outcomes.setdefault(area, []).append(outcome)
                print(f"{outcome.result:10} {outcome.seconds:5.1f} s {outcome.row()}", flush=True)
    text = report(outcomes, f"seed {given.seed}")
    print(text)
    if given.report:
        given.report.write_text(text, encoding="utf-8")
    return int(any(x.result == "survived" for found in outcomes.values() for x in found))


def _museum(place: Path | None, part: str) -> int:
    """Whether each exhibit whose slip is in compiled code fails with it."""
    from museum import exhibits, run_with_slip

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = PackageCopy(Path(folder), ["base"])
        for name, test in exhibits().items():
            if test.slip.modules and part in name:
                failed = run_with_slip(copy, name, test.slip).code == 1
                compiled = ", ".join(module for module, _ in test.slip.modules)
                rows.append((name, compiled, "fails, as it must" if failed else "PASSES"))
                print(*rows[-1], flush=True)
    seen = len([row for row in rows if row[2] != "PASSES"])
    text = "\n".join(
        [f"Exhibits with slips in compiled code: {len(rows)}, of which {seen} fail with them.\n",
         "| exhibit | compiled | with its slip |", "|---|---|---|",
         *(f"| {' | '.join(row)} |" for row in rows)]
    )  # fmt: skip
    if place:
        place.write_text(text + "\n", encoding="utf-8")
    return int(seen < len(rows))


def report(outcomes: dict[str, list[Outcome]], what: str) -> str:
    """Counts by area, and the survivors."""
    rows = ["| area | made | equivalent by object code | killed | survived | score |",
            "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for area, found in outcomes.items():
        counts = {k: len([x for x in found if x.result == k])
                  for k in ("equivalent", "killed", "survived")}  # fmt: skip
        tried = counts["killed"] + counts["survived"]
        score = f"{100 * counts['killed'] / tried:.1f} %" if tried else ""
        rows.append(
            f"| {area} | {tried + counts['equivalent']} | {counts['equivalent']} | "
            f"{counts['killed']} | {counts['survived']} | {score} |"
        )
    survivors = [x.row() for found in outcomes.values() for x in found if x.result == "survived"]
    if survivors:
        rows += ["", "| survivor | operator | change |", "|---|---|---|", *survivors]
    return f"Mutants, {what}:\n\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
