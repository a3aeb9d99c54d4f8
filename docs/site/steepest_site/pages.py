"""The pages of the site that are made of other files: the guide, the reference, files linked to.

``write`` writes them below ``docs/site/``, where git ignores them, and removes those of before that
are no longer made. A file whose text is as it was is left alone, so that a second build is short.
"""

import ast
import copy
import functools
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from steepest.optimizers import RULES
from steepest_site import links, names
from steepest_site.docstrings import rst

HERE = Path(__file__).parents[1]
MADE = ("guide", "reference", "project", "reports", "files", "parts")
"""Folders whose files are all made by ``write``."""

LANGUAGES = {".py": "python", ".pyx": "cython", ".toml": "toml", ".cff": "yaml", ".md": "markdown"}


def write() -> None:
    """Writes all of them."""
    missing = names.unclaimed()
    if missing:
        raise LookupError(f"public names without a room in steepest_site/names.py: {missing}")
    pages = guide() | reference()
    for folder in MADE:
        for old in (HERE / folder).rglob("*"):
            if old.is_file() and old.relative_to(HERE).as_posix() not in pages:
                old.unlink()
    for name, text in pages.items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


# The guide


def guide() -> dict[str, str]:
    """The Markdown pages, parts of the README for the home page, and the files they link to."""
    pages: dict[str, str] = {}
    linked: set[str] = set()
    sources = [f"docs/{path.name}" for path in sorted((links.ROOT / "docs").glob("*.md"))]
    reports = [f"{links.REPORTS}/{x.name}" for x in (links.ROOT / links.REPORTS).glob("*.md")]
    for file in (*sources, *reports, *links.MOVED):
        if file.endswith(".md") and file != "README.md":
            page = links.page_of(file)
            text = (links.ROOT / file).read_text("utf-8")
            pages[f"{page}.md"] = links.rewritten(text, file, page, linked.add)
    readme = (links.ROOT / "README.md").read_text("utf-8")
    readme = links.rewritten(readme, "README.md", "index", linked.add)
    for title in ("Install", "Three ways to begin", "Promises", "Which optimizer", "Documentation"):
        part = readme.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        pages[f"parts/{title.lower().replace(' ', '-')}.md"] = part.strip() + "\n"
    pages["parts/head.md"] = readme.partition("\n## ")[0] + "\n"
    listed = "\n".join(sorted(links.page_of(file).removeprefix("reports/") for file in reports))
    pages["reports/index.md"] = f"""# Reports of long tests

```{{toctree}}
:maxdepth: 1

{listed}
```
"""
    for file in linked:
        pages[f"{links.page_of(file)}.md"] = shown(file)
    listed = "\n".join(f"files/{file}" for file in sorted(linked))
    pages["files/index.md"] = f"""# Files that pages link to

```{{toctree}}
:maxdepth: 1

{listed.replace("files/", "")}
```
"""
    return pages


def shown(file: str) -> str:
    """A page that shows a file, or all files of a folder."""
    path = links.ROOT / file
    files = [path] if path.is_file() else tracked(path)
    parts = [f"# {file}\n"]
    for each in files:
        if path.is_dir():
            parts.append(f"## {each.relative_to(path).as_posix()}\n")
        language = LANGUAGES.get(each.suffix, "text")
        parts.append(f"``````{language}\n{each.read_text('utf-8').rstrip()}\n``````\n")
    return "\n".join(parts)


def tracked(folder: Path) -> list[Path]:
    """The files of a folder, without what a build has left there."""
    found = sorted(x for x in folder.rglob("*") if x.is_file())
    left = {"build", "__pycache__", "dist"}
    return [
        x
        for x in found
        if x.suffix in (*LANGUAGES, ".txt")
        and not left & set(x.relative_to(folder).parts)
        and ".egg-info" not in str(x)
    ]


# The reference


def reference() -> dict[str, str]:
    """A page for each rule, for each family of them, and for each room."""
    pages = {}
    families = []
    for module, rules in names.families().items():
        family = module.rpartition(".")[2]
        families.append(f"{family}")
        for rule in rules:
            pages[f"reference/{rule}.rst"] = titled(rule.rpartition(".")[2]) + entry(rule)
        pages[f"reference/{family}.rst"] = "\n".join(
            [
                titled(TITLES.get(family, family.replace("_", " ").capitalize())),
                module_text(module),
                table(
                    [(f":doc:`{rule.rpartition('.')[2]} <{rule}>`", found(rule)) for rule in rules]
                ),
                tree(rules),
            ]
        )
    base, *others = names.beside()
    pages["reference/optimizer.rst"] = titled("What all optimizers share") + entry(base)
    pages["reference/beside.rst"] = titled("Beside the rules") + contents(others)
    rooms = []
    for room in names.ROOMS:
        page = room.name or "process"
        rooms.append(f"{room.title} <{page}>")
        pages[f"reference/{page}.rst"] = room_page(room)
    pages["reference/index.rst"] = (
        titled("API reference")
        + f"""
Every public name of ``import steepest as st``, with its docstring. What is called
``steepest.clip.norm`` here is ``st.clip.norm`` in the guide.

.. toctree::
   :caption: Optimizers
   :maxdepth: 2
   :includehidden:

   optimizer
{indented(families)}
   beside

.. toctree::
   :caption: Everything else
   :maxdepth: 1

{indented(rooms)}
"""
    )
    return pages


def module_text(module: str) -> str:
    """The docstring of a module, which need not be importable."""
    name = importlib.util.find_spec(module)
    text = ast.get_docstring(ast.parse(Path(name.origin).read_text("utf-8"))) if name else ""
    return "\n".join(rst((text or "").splitlines())) + "\n"


TITLES = {
    "sgd": "Gradient descent and momentum",
    "adam": "Adam",
    "adam_variants": "Variants of Adam",
    "averaged": "Averaged rules",
    "sign": "Sign rules",
    "adaptive": "Adaptive rules",
    "layerwise": "Layer-wise rules",
    "parameter_free": "Parameter-free rules",
    "factored": "Factored rules",
    "low_rank": "Low-rank rules",
}
"""Of families whose module's name is not one."""


def room_page(room: names.Room) -> str:
    """A room: its module's docstring, a table of its names, and an entry for each."""
    title = f"{room.title}: ``steepest.{room.name}``" if room.name else room.title
    text = module_text(f"steepest.{room.name}") if room.name else room.text
    listed = names.entries(room)
    if room.name == "torch":
        return titled(title) + text + torch_contents(listed)
    elsewhere = ""
    module = names.module_of(room)
    if module is not None:
        also = [
            x
            for x in names.public(module)
            if f"steepest.{room.name}.{x}" not in listed and f"steepest.{x}" not in listed
        ]
        if also:
            elsewhere = "\n\nAlso here: " + ", ".join(f":py:obj:`steepest.{x}`" for x in also) + "."
    return titled(title) + text + elsewhere + "\n\n" + contents(sorted(listed, key=bases(listed)))


def bases(listed: list[str]) -> Callable[[str], bool]:
    """Whether a name is for who adds to a room: a registry, or a class that others there extend."""
    values = {path: resolved(path) for path in listed}

    def key(path: str) -> bool:
        value = values[path]
        others = [x for x in values.values() if inspect.isclass(x) and x is not value]
        extended = inspect.isclass(value) and any(value in x.__mro__ for x in others)
        return extended or isinstance(value, dict)

    return key


def torch_contents(listed: list[str]) -> str:
    """The room of torch: its own classes, and those of the rules, with the rules' arguments."""
    own, rules = listed[: -len(RULES)], listed[-len(RULES) :]
    out = [contents(own), "The rules\n---------\n"]
    out.append(
        "Each rule is a ``torch.optim.Optimizer`` here, with the arguments of the rule for NumPy, "
        "and ``foreach``, ``fused``, ``capturable`` and ``differentiable`` where the class of "
        "PyTorch has them.\n"
    )
    for path in rules:
        name = path.rpartition(".")[2]
        rule = resolved(f"steepest.{name}")
        said = f":py:class:`steepest.{name}`: {found(f'steepest.{name}')}"
        out.append(f".. py:class:: {path}{plain_signature(rule)}\n\n   {said}\n")
    return "\n".join(out)


def contents(listed: list[str]) -> str:
    """A table of names, and an entry for each."""
    rows = [(f":py:obj:`{short(path)} <{path}>`", found(path)) for path in listed]
    return "\n".join([table(rows), *(entry(path) for path in listed)])


def entry(path: str) -> str:
    """The directive for a name."""
    value = resolved(path)
    if isinstance(value, ast.AST):
        return "\n" + "\n".join(of_source(path, value)) + "\n"
    if kind(value) == "class":
        options = ["members:"]
        if path == "steepest.Optimizer" or path.startswith("steepest.sklearn."):
            options.append("inherited-members:")
        return f"\n.. autoclass:: {path}\n" + "".join(f"   :{x}\n" for x in options)
    if kind(value) == "function":
        return f"\n.. autofunction:: {path}\n"
    return f"\n.. py:data:: {path}\n\n{indented(data(path, value).splitlines())}\n"


def of_source(path: str, node: Any) -> list[str]:
    """A class or function as its definition has it, for what cannot be imported here."""
    public = [
        x
        for x in (node.body if isinstance(node, ast.ClassDef) else ())
        if isinstance(x, ast.FunctionDef) and not x.name.startswith("_") and ast.get_docstring(x)
    ]
    text = rst((ast.get_docstring(node) or "").splitlines())
    if isinstance(node, ast.ClassDef):
        made = [x for x in node.body if getattr(x, "name", "") == "__init__"]
        head = f".. py:class:: {path}({bare(made[0]) if made else ''})"
    elif "property" in [getattr(x, "id", "") for x in node.decorator_list]:
        head = f".. py:property:: {path}"
    else:
        head = f".. py:{'function' if '.' in path else 'method'}:: {path}({bare(node)})"
    inside = [line for x in public for line in ("", *of_source(x.name, x))]
    return [head, "", *indented([*text, *inside]).split("\n")]


def bare(node: ast.FunctionDef) -> str:
    """The arguments of a definition, without types and without ``self``."""
    arguments = copy.deepcopy(node.args)
    for x in ast.walk(arguments):
        if isinstance(x, ast.arg):
            x.annotation = None
    return ast.unparse(arguments).removeprefix("self").removeprefix(", ")


def kind(value: Any) -> str:
    """What a name stands for: a class, a function or data."""
    if inspect.isclass(value) or isinstance(value, ast.ClassDef):
        return "class"
    return "function" if inspect.isroutine(value) or isinstance(value, ast.FunctionDef) else "data"


def data(path: str, value: Any) -> str:
    """What a constant or an alias of a type is: what stands below it in the source, or its type."""
    owner, _, name = path.rpartition(".")
    for module in (import_module(owner).__name__, getattr(value, "__module__", "")):
        if module in sys.modules and name in (said := below(module)):
            return " ".join(rst(said[name].splitlines())).strip()
    for check in getattr(value, "__metadata__", ())[:1]:
        text = names.in_words(check)
        return f"The type of a field: {text}." if text else "The type of a field."
    if isinstance(value, dict):
        return "By name: " + ", ".join(f"``{key}``" for key in value) + "."
    if type(value) in (int, float, str) or getattr(value, "__args__", None):
        text = str(value).replace("typing.", "").replace("collections.abc.", "")
        return f"``{text}``"
    return f"As ``{type(value).__module__}.{type(value).__name__.strip('_')}``."


@functools.cache
def below(module: str) -> dict[str, str]:
    """The strings that stand below assignments of a module, by the name assigned to."""
    try:
        body = ast.parse(inspect.getsource(sys.modules[module])).body
    except (OSError, TypeError):  # compiled
        return {}
    texts = {}
    for one, after in itertools.pairwise(body):
        goals = [one.target] if isinstance(one, ast.AnnAssign) else getattr(one, "targets", [])
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts |= {x.id: inspect.cleandoc(str(after.value.value))
                      for x in goals if isinstance(x, ast.Name)}  # fmt: skip
    return texts


def found(path: str) -> str:
    """The first line of what is said of a name, as reStructuredText."""
    value = resolved(path)
    if kind(value) == "data":
        return data(path, value)
    text = ast.get_docstring(value) if isinstance(value, ast.AST) else value.__doc__
    lines = inspect.cleandoc(text or "").splitlines()
    if lines and lines[0].startswith(f"{path.rpartition('.')[2]}("):  # a compiled one's signature
        lines = "\n".join(lines[1:]).strip().splitlines()
    return " ".join(rst(list(itertools.takewhile(bool, lines)))).strip()


def resolved(path: str) -> Any:
    """The object of a name; its definition in the source where a package is absent."""
    owner, _, name = path.rpartition(".")
    try:
        return getattr(import_module(owner), name)
    except ImportError:
        origin = Path(importlib.util.find_spec(owner).origin)
        for file in sorted(origin.parent.glob("*.py")) if origin.stem == "__init__" else [origin]:
            for node in ast.parse(file.read_text("utf-8")).body:
                if getattr(node, "name", None) == name:
                    return node
        raise


def short(path: str) -> str:
    """A name as one writes it after its room's: without ``steepest`` before the room."""
    return path.removeprefix("steepest.")


def plain_signature(value: Any) -> str:
    """A signature without types."""
    signature = inspect.signature(value)
    bare = [x.replace(annotation=inspect.Parameter.empty) for x in signature.parameters.values()]
    return str(inspect.Signature(bare))


def titled(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n\n"


def table(rows: list[tuple[str, str]]) -> str:
    """A table of names and what they are."""
    lines = [".. list-table::", "   :class: names", "   :widths: auto", ""]
    for name, text in rows:
        lines += [f"   * - {name}", f"     - {text}"]
    return "\n".join([*lines, ""])


def tree(pages: list[str]) -> str:
    """The pages as those below this one, which shows them in a table."""
    named = [f"{page.rpartition('.')[2]} <{page}>" for page in pages]
    return f"\n.. toctree::\n   :hidden:\n\n{indented(named)}\n"


def indented(lines: list[str]) -> str:
    return "\n".join(f"   {line}" if line else "" for line in lines)
