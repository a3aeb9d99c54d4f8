"""The tables of docs/migrating.md: what is named on both sides exists, and arrives at one place."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import steepest as st
import steepest.sklearn
from steepest.core.common_options import CommonOptions

PAGE = (Path(__file__).parents[1] / "docs" / "migrating.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## From (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
MODULES = ("torch", "optax", "keras", "bitsandbytes", "sklearn")


def rows(section):
    """Of a section the code of each row: (theirs, ours), lists of texts."""
    for line in re.findall(r"^\| (`.*) \|$", SECTIONS[section], re.M):
        theirs, ours = (re.findall(r"`([^`]+)`", cell) for cell in line.split(" | ")[:2])
        yield theirs, ours


def fresh():
    return np.random.default_rng(0).standard_normal((64, 64))


def dotted(code):
    """The name that a text begins with, and whether the text is a call of it."""
    call = isinstance(ast.parse(code, mode="eval").body, ast.Call)
    return code.partition("(")[0], call


def found(path):
    """What a dotted name means; imports modules on the way."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return getattr(found(module), name)


def test_the_sections_are_those_of_the_peers():
    assert list(SECTIONS) == ["torch.optim", "optax", "Keras", "bitsandbytes", "scikit-learn"]
    assert [sum(1 for _ in rows(name)) >= 10 for name in SECTIONS] == [True] * 5


def known(word, section):
    """Whether a word without a value is an argument, a method or an attribute here."""
    word = word.removesuffix("()").removesuffix("=")
    if section == "scikit-learn":
        return word in inspect.signature(steepest.sklearn.Classifier).parameters
    arguments = {*inspect.signature(st.fit).parameters, *inspect.signature(st.SGD).parameters}
    return word in arguments | {*CommonOptions.fields} or hasattr(st.SGD(fresh()), word)


def checked(code, section):
    """Raises unless this text of a column "here" can be written as it stands."""
    code = code.replace("steepest.torch.", "st.")  # whose classes take what those for NumPy take
    names = {"st": st, "steepest": steepest, "params": fresh()}
    option = re.match(r"(\w+)=(.*)", code)
    if option and option[2] and section != "scikit-learn":
        names["params"] = [fresh(), np.zeros(3)]
        if "embedding" in code:
            names["params"] = {"embedding": {"weight": fresh()}, "other": fresh()}
            code += ', state_dtype="q8"'
        eval(f"st.SGD(params, momentum=0.5, {code})", names)
    elif option and option[2]:
        assert known(option[1], section)
    elif code.startswith(("st.", "steepest.")):
        code = re.sub(r", (fused|foreach)=True", "", code)
        name, call = dotted(code)
        assert found(name.replace("st.", "steepest.", 1) if name[:3] == "st." else name)
        if call:
            eval(code, names)
    else:
        assert code in ("fused", "foreach") or known(code, section), code


@pytest.mark.parametrize("section", list(SECTIONS))
def test_what_is_named_here_exists(section):
    for _, ours in rows(section):
        for code in ours:
            checked(code, section)
        values = ", ".join(code for code in ours if re.match(r"\w+=.", code))
        if section == "scikit-learn" and values:
            rule = "adam" if "betas" in values else "sgd"
            estimator = eval(f"steepest.sklearn.Classifier(optimizer=rule, epochs=1, {values})",
                             globals() | {"rule": rule})  # fmt: skip
            estimator.fit(fresh(), [0, 1] * 32)


@pytest.mark.parametrize(
    "code", ["st.Adan2(params)", "st.SGD(params, moment=1)", "patienc=", "lrs"]
)
def test_a_wrong_name_is_noticed(code):
    with pytest.raises((AssertionError, AttributeError, TypeError)):
        checked(code, "optax")


# The peers

PEERS = r"""
import importlib, inspect, json, sys, warnings
import numpy as np
import steepest as st
warnings.simplefilter("ignore")
package, rows = json.load(sys.stdin)
rng = np.random.default_rng(0)
start = rng.standard_normal((6, 4))
grads = [rng.standard_normal((6, 4)) * size for size in (1, 0.5, 2, 0.1, 1, 0.3, 1.5, 1)]

def ours(code):
    params = start.copy()
    opt = eval(code, {"st": st, "params": params})
    for g in grads:
        opt.step(g)
    return params

if package == "optax":
    import jax, optax, optax.contrib
    jax.config.update("jax_enable_x64", True)
    def theirs(code):
        tx = eval(code, {"optax": optax})
        p = jax.numpy.array(start)
        state = tx.init(p)
        for g in grads:
            updates, state = tx.update(jax.numpy.array(g), state, p)
            p = optax.apply_updates(p, updates)
        return np.array(p)
elif package == "keras":
    import jax, keras
    jax.config.update("jax_enable_x64", True)
    keras.backend.set_floatx("float64")
    def theirs(code):
        opt = eval(code, {"keras": keras})
        v = keras.Variable(start, dtype="float64")
        opt.build([v])
        for g in grads:
            opt.apply([jax.numpy.array(g)], [v])
        return np.array(v)
else:
    import torch, steepest.torch
    def theirs(code):
        p = torch.nn.Parameter(torch.from_numpy(start.copy()))
        opt = eval(code, {"torch": torch, "steepest": steepest, "params": [p]})
        for g in grads:
            p.grad = torch.from_numpy(g.copy())
            opt.step()
        return p.detach().numpy()
    ours = theirs

for one, other in rows:
    a, b = theirs(one), ours(other)
    print(json.dumps([one, float(np.abs(a - b).max() / np.abs(a - start).max())]))
"""


@pytest.mark.torch
@pytest.mark.parametrize(
    ("section", "package", "count"),
    [("torch.optim", "torch", 13), ("optax", "optax", 34), ("Keras", "keras", 20)],
)
def test_both_columns_arrive_at_one_place(section, package, count, monkeypatch):
    """After eight steps in double, in a process of its own, for which jax and keras are set.

    Of the way gone, they differ by less than 1e-6: what clips by norms (1e-6 beside the norm),
    optax's eps_root and constants of float32 leave. PyTorch's Muon iterates in bfloat16.
    """
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip(package)
    start = re.compile(r"(optax|keras\.optimizers|torch\.optim)\.\w+[\w.]*\(.*\)$")
    pairs = [(a[0], b[0]) for a, b in rows(section) if start.match(a[0]) and "params" in b[0]]
    pairs = [(a, b) for a, b in pairs if "lr_scheduler" not in a and "swa_utils" not in a]
    assert len(pairs) == count
    done = subprocess.run(
        [sys.executable, "-c", PEERS], input=json.dumps([package, pairs]), text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    differences = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(differences) == count
    assert [x for x in differences if x[1] > (0.05 if "Muon" in x[0] else 1e-6)] == []


@pytest.mark.torch
@pytest.mark.parametrize(("section", "package"), list(zip(SECTIONS, MODULES, strict=True)))
def test_what_is_named_there_exists(section, package, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip(package)
    torch = pytest.importorskip("torch")
    if package == "optax":
        importlib.import_module("optax.contrib")
    for theirs, _ in rows(section):
        for code in theirs:
            if code.startswith(f"{package}."):
                name, call = dotted(code)
                thing = found(name)
                if call:
                    x = torch.nn.Parameter(torch.ones(2))
                    names = {package: importlib.import_module(package), "params": [x]}
                    arguments = eval(f"(lambda *a, **k: (a, k)){code[len(name) :]}", names)
                    inspect.signature(thing).bind(*arguments[0], **arguments[1])
            else:
                assert word_of(package, code), code


def word_of(package, code):
    """Whether an argument, or a name without its module, is one of the package's."""
    word = re.match(r"[\w.]+", code)[0]
    places = {
        "keras": lambda: [found("keras.optimizers.Adam")],
        "bitsandbytes": lambda: [found("bitsandbytes.optim.Adam8bit"), found("bitsandbytes.optim")],
        "sklearn": lambda: [
            found("sklearn.neural_network.MLPClassifier"),
            found("sklearn.linear_model.SGDClassifier"),
        ],
    }[package]()
    first, _, rest = word.partition(".")
    for place in places:
        if rest and hasattr(place, first):
            return hasattr(getattr(place, first), rest)
        if hasattr(place, word) or (
            callable(place) and word in inspect.signature(place).parameters
        ):
            return True
    return False
