"""The package as a whole: what it ships, what it imports, and what it leaves alone."""

import ast
import hashlib
import inspect
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from graphlib import TopologicalSorter
from importlib import import_module, metadata, resources
from pathlib import Path

import numpy as np
import pytest

import steepest as st
from steepest.kernels import dispatch, machine

SOURCE = Path(__file__).parents[1] / "src" / "steepest"
X86 = platform.machine() in ("x86_64", "AMD64")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter of its own, with further environment variables."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def answer(code: str, **environment: str) -> object:
    """What the code printed last, read as JSON."""
    done = python(code, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# What is shipped


def test_version_is_that_of_the_distribution():
    assert st.__version__ == metadata.version("steepest")


def test_numpy_is_all_the_core_needs():
    required = [r for r in metadata.requires("steepest") or [] if "extra ==" not in r]
    assert [re.match(r"[\w-]+", r)[0] for r in required] == ["numpy"]


def test_types_are_shipped():
    assert resources.files("steepest").joinpath("py.typed").is_file()


ONCE = sorted([*SOURCE.glob("kernels/*.pyx"), *SOURCE.glob("kernels/engine/*.pyx")])


@pytest.mark.parametrize("source", ONCE, ids=lambda p: p.stem)
def test_a_module_is_built_once_with_a_stub(source):
    """What has nothing for Python needs no stub."""
    package = ".".join(source.relative_to(SOURCE.parent).parts[:-1])
    module = import_module(f"{package}.{source.stem}")
    offered = [x for x in vars(module).items() if not x[0].startswith("_")]
    stub = resources.files(package).joinpath(f"{source.stem}.pyi")
    assert stub.is_file() or all(inspect.ismodule(x) for _, x in offered)


def test_every_file_of_one_folder_is_built_and_found_for_each_level():
    """By its place: neither CMake nor dispatch has a list."""
    there = sorted(path.stem for path in SOURCE.glob("kernels/leveled/*.pyx"))
    assert [level for level in dispatch.LEVELS if dispatch.sources(level)] == expected_levels()
    for level in expected_levels():
        assert dispatch.sources(level) == there


def test_leveled_files_offer_names_of_their_own():
    found: dict[tuple[str, str], str] = {}
    for source in dispatch.sources("base"):
        module = import_module(f"steepest.kernels.leveled.{source}_base")
        tables = {table: getattr(module, table, {}) for table in ("RULES", *dispatch.TABLES)}
        assert any(tables.values()), source
        for entry in [(table, name) for table, names in tables.items() for name in names]:
            assert found.setdefault(entry, source) == source, entry


def test_what_is_compiled_against_and_typed_is_shipped():
    for folder in ("kernels", "kernels/engine", "kernels/leveled"):
        shipped = resources.files("steepest." + folder.replace("/", "."))
        for path in [*SOURCE.joinpath(folder).glob("*.pxd"), *SOURCE.glob(f"{folder}/*.pyi")]:
            assert shipped.joinpath(path.name).is_file(), path


def expected_levels() -> list[str]:
    several = X86 and sys.platform not in ("darwin", "win32")
    return ["base", "v3", "v4"] if several else ["base"]


# What is imported


def test_importing_brings_in_nothing_but_numpy():
    code = """
import json, sys, numpy
before = {name.partition(".")[0] for name in sys.modules}
import steepest
after = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(after - before - set(sys.stdlib_module_names))))
"""
    # Cython keeps modules of its own for what its extension modules share.
    assert [x for x in answer(code) if not re.match("_?cy(thon|utility)", x)] == ["steepest"]


# From top to bottom: a module or package imports only what stands further down, or its own parts.
FLOORS = [
    "testing",
    "extension",
    "__main__",
    "cli",
    "tuning",
    "sklearn",
    "training",
    "data",
    "models",
    "torch",
    "mpi",
    "checkpoint",
    "convert",
    "functional",
    "optimizers",
    "core",
    "options",
    "schedules",
    "fields",
    "memory",
    "kernels",
    "extras",
    "reference",
    "matrix",
    "codecs",
    "subnormals",
    "nesting",
]
LEAVES = {"reference", "kernels", "extras", "codecs", "matrix", "subnormals", "nesting"}
LEANING = {
    ("reference", x) for x in ("matrix", "codecs", "subnormals")
}  # plain NumPy, as the reference is


def modules() -> dict[str, Path]:
    """Every source file but the face of the package, by its path below ``steepest``."""
    files = [p for p in SOURCE.rglob("*") if p.suffix in (".py", ".pyi", ".pyx", ".pxd")]
    return {str(p.relative_to(SOURCE)): p for p in sorted(files) if p != SOURCE / "__init__.py"}


def floor(name: str) -> str:
    return Path(name).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """What a file imports of this package, as dotted names below ``steepest``."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".pyx", ".pxd"):
        return set(re.findall(r"^\s*(?:from|c?import)\s+steepest\.([\w.]+)", text, re.MULTILINE))
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else node.module for name in inside]
        else:
            continue
        found |= {name.partition(".")[2] for name in names if name.split(".")[0] == "steepest"}
    return found


def is_module(name: str) -> bool:
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.is_dir() or any(path.with_suffix(s).is_file() for s in (".py", ".pyi"))


def test_the_floor_plan_lists_what_there_is():
    assert {floor(name) for name in modules()} == set(FLOORS)


@pytest.mark.parametrize("name", modules())
def test_imports_point_down(name):
    here = floor(name)
    for target in imported(SOURCE / name):
        assert target, f"{name} imports the face of the package"
        there = target.partition(".")[0]
        if there != here:
            leaning = (here, there) in LEANING
            assert here not in LEAVES or leaning, f"{name} imports {target}: {here} imports nothing"
            assert FLOORS.index(there) > FLOORS.index(here), f"{name} imports {target}, above it"


def test_imports_make_no_circle():
    graph = {
        name.removesuffix(".py").replace(os.sep, "."): imported(path)
        for name, path in modules().items()
        if path.suffix == ".py" and path.name != "__init__.py"
    }
    TopologicalSorter(graph).prepare()


FAMILY = """
from typing import Any, ClassVar
import numpy as np
from steepest.core.hyper_parameters import Rate, Weight
from steepest.core.optimizer import Optimizer

class Unheard(Optimizer):
    \"\"\"Gradient descent by another name.

        p ← p - lr · g
    \"\"\"
    lr: Rate = 1.0
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h): return ()

    @staticmethod
    def coefficients(h, t): return "sgd", (h["lr"],)
"""
TWIN = """
def unheard(p, g, state, t, *, lr, weight_decay):
    p[...] = p - p.dtype.type(lr) * g
"""


def test_a_new_family_is_found_by_its_place(tmp_path):
    """One file in the package of classes and one in that of references, and no list."""
    for package, source in (("optimizers", FAMILY), ("reference", TWIN)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "unheard_of.py").write_text(source, encoding="utf-8")
    code = f"""
import json, sys
class Finder:  # as if the files lay in the packages
    def find_spec(self, name, path=None, target=None):
        found = (x.find_spec(name, path, target) for x in sys.meta_path if x is not self)
        spec = next((x for x in found if x is not None), None)
        if name in ("steepest.optimizers", "steepest.reference"):
            spec.submodule_search_locations.append({str(tmp_path)!r} + "/" + name.split(".")[1])
        return spec
sys.meta_path.insert(0, Finder())
import numpy as np, steepest
from steepest import reference
w = np.ones(2)
steepest.Unheard(w, lr=0.5).step(np.ones(2))
print(json.dumps([w.tolist(), "unheard" in reference.RULES]))
"""
    assert answer(code) == [[0.5, 0.5], True]


# Who touches what


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def of_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def made_by(definition: ast.ClassDef) -> set[str]:
    """The private names that the body of a class gives to it or to its objects."""
    names = {node.name for node in definition.body if isinstance(node, ast.FunctionDef)}
    for node in definition.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {x.id for x in targets if isinstance(x, ast.Name)}
    for node in ast.walk(definition):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if of_self(node.value) else set()
    return {name for name in names if private(name)}


def touched(tree: ast.AST) -> list[tuple[ast.expr, str, str]]:
    """The private attributes that are read, written or asked for: (of what, name, as written)."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            found.append((node.value, node.attr, ast.unparse(node)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "getattr", "setattr", "hasattr", "delattr"
        ):  # fmt: skip
            name = node.args[1]
            if isinstance(name, ast.Constant) and private(str(name.value)):
                found.append((node.args[0], str(name.value), ast.unparse(node)))
    return found


class Rooms:
    """The private names of all sources, and who makes them."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.trees = {name: ast.parse(text) for name, text in sources.items()}
        self.classes = [
            (name, node) for name, tree in self.trees.items() for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        ]  # fmt: skip
        self.makers: dict[str, set[str]] = {}
        for name, definition in self.classes:
            for made in made_by(definition):
                self.makers.setdefault(made, set()).add(floor(name))

    def bases(self, name: str, definition: ast.ClassDef) -> list[tuple[str, ast.ClassDef]]:
        """The bases of a class in a source, and their bases, each with its source."""
        imports = {
            alias.asname or alias.name: node.module.split(".")[1:] or [alias.name]
            for node in ast.walk(self.trees[name])
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "steepest"
            for alias in node.names
        }
        found = []
        for base in definition.bases:
            parts = ast.unparse(base).split("[")[0].split(".")
            where = imports.get(parts[0], [])
            for other, node in self.classes:
                if node.name == parts[-1] and node is not definition:
                    # A package may offer what a room below it makes.
                    near = other == name if not where else floor(other) == where[0]
                    below = where and FLOORS.index(floor(other)) > FLOORS.index(where[0])
                    if near or below:
                        found += [(other, node), *self.bases(other, node)]
        return found

    def reaches(self) -> list[str]:
        """Where a source names something private of another room.

        What is an object's own is what its class makes, or a base in the same room. Of another
        object, whose class is not told, the name has to be one that this room makes, and none that
        is made below: so a room's private names differ from those of rooms that it may import.
        """
        found = []
        for name, tree in self.trees.items():
            here = floor(name)
            below = set(FLOORS[FLOORS.index(here) + 1 :])
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("steepest."):
                    away = floor(node.module.split(".")[1]) != here
                    found += [f"{name}: {x.name}" for x in node.names if away and private(x.name)]
            for owner, attribute, written in touched(tree):
                by = self.makers.get(attribute, set())
                if by and not of_self(owner) and (here not in by or by & below):
                    found.append(f"{name}: {written}")
        for name, definition in self.classes:
            bases = self.bases(name, definition)
            away = [made_by(x) for other, x in bases if floor(other) != floor(name)]
            own = made_by(definition) | {x for of, x, _ in touched(definition) if of_self(of)}
            known = [made_by(x) for other, x in bases if floor(other) == floor(name)]
            reached = own.intersection(set().union(*away)).difference(*known)
            found += [f"{name}: {definition.name}.{x}" for x in sorted(reached)]
        return found


def python_sources() -> dict[str, str]:
    return {
        str(p.relative_to(SOURCE).as_posix()): p.read_text(encoding="utf-8")
        for p in SOURCE.rglob("*.py")
        if p != SOURCE / "__init__.py"
    }


def test_what_a_reach_is():
    made = "class A:\n    _x = 1\n    def _f(self): self._y = 2"
    own = "class C:\n    def g(self, c): self._z, c._z = self._v, c._v"
    sub = """
from steepest.core.a import A
class B(A):
    def f(self): self._y
    def _f(self): pass
"""
    other = """
from steepest.core.a import _h
def g(a): a._x; getattr(a, "_y"); a.__dict__; a._of_another_library
"""
    sources = {"core/a.py": made, "torch/c.py": own, "mpi/b.py": sub, "data/o.py": other}
    assert Rooms(sources).reaches() == [
        "data/o.py: _h", "data/o.py: a._x", "data/o.py: getattr(a, '_y')",
        "mpi/b.py: B._f", "mpi/b.py: B._y",
    ]  # fmt: skip


def test_no_room_touches_what_is_private_to_another():
    """``core.internal`` has what others need of an optimizer."""
    assert Rooms(python_sources()).reaches() == []


def test_only_one_file_starts_threads():
    for path in SOURCE.rglob("*.p[yx][xd]"):
        found = re.search(r"cython\.parallel|prange|#pragma omp", path.read_text(encoding="utf-8"))
        assert not found or path.name == "team.pyx", path


# What can be chosen


@pytest.mark.parametrize("level", dispatch.available())
def test_a_level_can_be_forced(level):
    code = "import json, steepest; print(json.dumps(steepest.info()['level']))"
    assert answer(code, STEEPEST_ISA=level) == level


def test_an_unknown_level_is_refused():
    done = python("import steepest", STEEPEST_ISA="v9")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ValueError: instruction-set level 'v9': expected one of base, v3, v4"


def test_a_level_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "runs", lambda level: level == "base")
    with pytest.raises(ValueError, match=r"'v4' cannot be used: .* have base; unset STEEPEST_ISA"):
        dispatch.load("v4")


@pytest.mark.parametrize("level", dispatch.LEVELS)
def test_levels_come_from_the_same_sources(level):
    if level in dispatch.available():
        kernels, base = dispatch.load(level), dispatch.load("base")
        assert kernels.level == level
        for table in ("rules", *(name.lower() for name in dispatch.TABLES)):
            assert getattr(kernels, table).keys() == getattr(base, table).keys()
    else:
        with pytest.raises(ValueError, match="cannot be used"):
            dispatch.load(level)


@pytest.mark.parametrize("asked", [1, 2, 1000])
def test_the_number_of_threads_can_be_chosen(asked):
    code = """
import json, steepest
from steepest.kernels import threads
print(json.dumps([steepest.get_num_threads(), threads.limit()]))
"""
    given, limit = answer(code, STEEPEST_NUM_THREADS=str(asked))
    assert given == min(asked, limit)


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_threads_is_refused(asked):
    done = python("import steepest", STEEPEST_NUM_THREADS=asked)
    assert done.returncode != 0
    assert "ValueError: STEEPEST_NUM_THREADS = " in done.stderr.splitlines()[-1]


# What every Python computes alike

# The built-in sum compensates from Python 3.12 on: what it adds up is here, and is whole numbers.
# A sum of comparisons or of ones counts by its form and need not be here.
WHOLE = {
    "kernels/stored_loops.py": {"(1 << k - _FIRST for k in used if k in squares)"},
    "memory/arrays.py": {"((x.shape[axis] - 1) * x.strides[axis] for axis in flips)"},
    "models/networks.py": {"((a + 1) * b for a, b in pairwise(self.sizes))"},
    "mpi/exchange.py": {"r.counts", "counts[:i]", "(s.stop - s.start for s in some)"},
    "mpi/layout.py": {"low[:k]", "(sizes[i] for i in cut)"},
    "core/verification.py": {"(p.size for p in self.params)"},
    "core/information.py": {"(x.nbytes for own in arrays.values() for x in own.values())"},
    "core/norms.py": {"(count for _, count, _ in groups)"},
    "core/description.py": {"(p.nbytes for p in params)", "gradients", "states"},
    "optimizers/lbfgs/__init__.py": {"(p.size for p in params)"},
    "schedules/base.py": {"(line.operations for line in lines)"},
    "memory/files.py": {"(_lines(size) for size in sizes)"},
}


def sums(source: str) -> list[str]:
    """What the built-in sum is given in a source; its own name where it is handed on."""
    tree = ast.parse(source)
    calls = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sum", "builtins.sum")
    ]  # fmt: skip
    called = {id(node.func) for node in calls}
    handed = [
        node.id for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "sum" and id(node) not in called
    ]  # fmt: skip
    return [ast.unparse(call.args[0]) for call in calls if not counts(call.args[0])] + handed


def counts(summed: ast.expr) -> bool:
    return isinstance(summed, ast.GeneratorExp) and (
        isinstance(summed.elt, ast.Compare | ast.BoolOp) or ast.unparse(summed.elt) == "1"
    )


def test_the_forms_of_sums():
    assert sums("sum(x > 0 for x in y); sum(1 for x in y if x); np.sum(y); y.sum()") == []
    assert sums("sum(y); sum(x * x for x in y)") == ["y", "(x * x for x in y)"]
    assert sums("add(y, how=sum); builtins.sum(y)") == ["y", "sum"]


def test_dir_and_star_have_public_names_only():
    code = """
import steepest as st
import steepest.cli, steepest.data
assert [x for x in dir(st) if x[0] == "_"] == ["__doc__", "__version__"], dir(st)
hidden = {"cli", "core", "extras", "fields", "kernels", "matrix", "memory", "options"}
assert not hidden & {*dir(st)}
assert {"AdamW", "by_name", "clip", "data", "fit", "models", "schedules", "tuning"} <= {*dir(st)}
before = {*globals()}
from steepest import *
new = {*globals()} - before - {"before"}
assert new == {*st.__all__}, new ^ {*st.__all__}
assert new <= {*dir(st)}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_built_in_sum_adds_up_whole_numbers_alone():
    """Floats are added by functools.reduce(operator.add, ...), as before Python 3.12."""
    sources = {str(p.relative_to(SOURCE).as_posix()): p for p in SOURCE.rglob("*.py")}
    found = {name: set(sums(p.read_text(encoding="utf-8"))) for name, p in sources.items()}
    assert {name: summed for name, summed in found.items() if summed} == WHOLE


def test_kernels_do_not_use_the_built_in_sum():
    for path in SOURCE.rglob("*.p[yx][xd]"):
        assert not re.search(r"(?<![\w.])sum\(", path.read_text(encoding="utf-8")), path


def digest(values: Iterable[float]) -> str:
    text = " ".join(float(x).hex() for x in values)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_what_others_compute_is_what_it_was():
    """Results rest on these: math.hypot (SAM, zscore) and math.fsum (zscore) of Python, sums (SAM)
    and running sums (the references) of NumPy, and the order that its generators shuffle in."""
    x = np.array([math.ldexp(k * 7919 % 10007 - 5003, k % 40 - 60) for k in range(4000)])
    rows = x.reshape(-1, 8).tolist()
    assert digest(math.hypot(*row) for row in rows) == "9417d0b8f620"
    assert digest(math.fsum(row) for row in rows) == "97d53927adef"
    assert digest([x[:n].sum() for n in (7, 8, 9, 127, 128, 129, 4000)]) == "bc4335836b33"
    assert digest(np.cumsum(x)) == "737c534da394"
    assert np.random.default_rng((3, 1)).permutation(8).tolist() == [2, 1, 4, 0, 5, 7, 6, 3]
    bits = np.random.Philox(key=np.array([1, 2], np.uint64))
    assert digest(np.random.Generator(bits).standard_normal(100)) == "048efe62c453"


# What is left alone

STEPS = """
import numpy as np, steepest as st
from steepest.kernels import dispatch, machine, threads

st.set_num_threads(2)
threads._limit = 2  # even where the machine has one processor
params = np.linspace(-1.0, 1.0, 200_000)
opt = st.AdamW(params, lr=0.01)

def step():
    opt.step(np.cos(params))
"""


def test_importing_and_stepping_leave_the_floating_point_mode_alone():
    """Linking with -ffast-math, for one, makes a mere import flush denormal numbers to zero."""
    code = f"""
import json, numpy as np

def denormals():
    return [bool(x * x.dtype.type(0.5)) for x in (np.float32([1e-40]), np.float64([1e-310]))]

seen = [denormals()]
{STEPS}
seen.append(denormals())
sticky = 0x3F  # x86: which exceptions have occurred; any floating-point operation may set these
default = machine.float_mode() & ~sticky
flushing = default | {0x8040 if X86 else 1 << 24}
modes = []
for mode in (default, flushing):
    machine.set_float_mode(mode)
    for level in dispatch.available():
        dispatch.use(level)
        step()
    modes.append((machine.float_mode() & ~sticky) == (mode & ~sticky))
machine.set_float_mode(default)
print(json.dumps([seen, modes]))
"""
    seen, modes = answer(code)
    assert seen == [[True, True], [True, True]]
    assert modes == [True, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_of_a_process_that_used_threads_can_step():
    code = f"""
import hashlib, json, os, signal
{STEPS}
step()
reading, writing = os.pipe()
child = os.fork()
signal.alarm(60)  # a child that waits for threads it has not inherited ends here
step()
result = [hashlib.sha256(params).hexdigest(), st.get_num_threads()]
if child == 0:
    os.write(writing, json.dumps(result).encode())
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, "the child did not come back"
print(json.dumps([result, json.loads(os.read(reading, 1000))]))
"""
    parent, child = answer(code)
    assert parent[0] == child[0]
    assert child[1] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("rule", ["SGD", "LBFGS"])
def test_a_fork_while_another_thread_steps_leaves_the_child_free_to_step(rule):
    code = f"""
import os, threading
import numpy as np, steepest as st
inside, go = threading.Event(), threading.Event()
w = np.ones(2)
closure = lambda: (float(w @ w), 2.0 * w)
given = closure if "{rule}" == "LBFGS" else np.ones(2)

def lr(t):
    if threading.current_thread() is not threading.main_thread():
        inside.set()
        go.wait()
    return 0.5

opt = st.{rule}(w, lr=lr)
thread = threading.Thread(target=opt.step, args=(given,))
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    opt.step(given)
    os._exit(0 if opt.updates == 1 else 2)
_, status = os.waitpid(child, 0)
go.set()
thread.join()
assert opt.updates == 1
print(status)
"""
    assert answer(code) == 0


@pytest.mark.torch
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("order", [("torch", "steepest"), ("steepest", "torch")], ids="-".join)
def test_one_openmp_runtime_beside_pytorch(order):
    pytest.importorskip("torch")
    code = f"""
import json
import {order[0]}
import {order[1]}
{STEPS}
step()
torch.ones(1_000_000).add_(1)
print(json.dumps(st.info()["openmp_runtimes"]))
"""
    runtimes = answer(code)
    assert len(runtimes) == 1, runtimes
    assert Path(runtimes[0]).name.startswith("libgomp.so.1")
