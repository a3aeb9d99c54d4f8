"""Rules of other packages: found at every level, refused where they do not fit."""

import ctypes
import hashlib
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import LEVELS

import steepest as st
from steepest.kernels import capsules, dispatch
from steepest.optimizers import RULES

CONTRACT = Path(__file__).parents[2] / "src" / "steepest" / "kernels" / "contract.pxd"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes modules of a package ``others``, and forgets them and their rules afterwards."""
    registered, rules = list(dispatch._registered), dict(RULES)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "others"
    folder.mkdir()
    (folder / "__init__.py").touch()

    def add(**modules):
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    yield add
    dispatch._registered[:] = registered
    RULES.clear()
    RULES.update(rules)
    for name in [name for name in sys.modules if name.partition(".")[0] == "others"]:
        del sys.modules[name]
    dispatch.use(dispatch.current.level)


def lent(name, rule="signsgd"):
    """The text of a module whose one rule is one of this library's, compiled for the baseline."""
    return (
        "from steepest.kernels.leveled.sign_base import RULES as found\n"
        f"RULES = {{{name!r}: found[{rule!r}]}}"
    )


def optimizer(kernel, module="others.kernels"):
    class Mine(st.SignSGD):
        """Mine."""

        kernels = module

        @staticmethod
        def coefficients(h, t):
            return kernel, (h["lr"],)

    return Mine


@pytest.mark.parametrize("level", LEVELS)
def test_a_module_for_all_levels(package, level):
    package(kernels=lent("mine"))
    dispatch.use(level)
    w = np.array([1.0, -2.0])
    opt = optimizer("mine")(w, lr=0.5)
    for other in LEVELS:
        dispatch.use(other)
        opt.step(np.array([3.0, -4.0]))
        assert dispatch.current.rules.modules["mine"] == "others.kernels"
    np.testing.assert_array_equal(w, [1 - 0.5 * len(LEVELS), -2 + 0.5 * len(LEVELS)])
    assert RULES["mine"].kernels == "others.kernels"


def test_each_level_takes_the_best_module_that_it_may(package):
    package(kernels=lent("mine"), kernels_base=lent("mine"), kernels_v3=lent("mine"))
    dispatch.register("others.kernels")
    found = {level: dispatch.load(level).rules.modules["mine"] for level in LEVELS}
    expected = {"base": "others.kernels_base", "v3": "others.kernels_v3", "v4": "others.kernels_v3"}
    assert found == {level: expected[level] for level in LEVELS}


def test_modules_above_the_level_are_not_imported(package):
    package(kernels_base=lent("mine"), kernels_v3="raise ImportError", kernels_v4="1 / 0")
    dispatch.use("base")
    dispatch.register("others.kernels")
    assert "mine" in dispatch.current.rules


def test_registering_again_does_nothing(package):
    package(kernels=lent("mine"))
    for _ in range(2):
        optimizer("mine")
    assert dispatch._registered.count("others.kernels") == 1


def test_plans_made_before_go_on(package):
    w = np.zeros(3)
    opt = st.SGD(w, lr=1.0)
    opt.step(np.ones(3))
    plan = opt._plan
    package(kernels=lent("mine"))
    dispatch.register("others.kernels")
    opt.step(np.ones(3))
    assert opt._plan is plan


# What is refused


def refused(error, match, module="others.kernels"):
    """Refused when the class is made; nothing is registered then."""
    before, rules = dict(dispatch.current.rules), dict(RULES)
    with pytest.raises(error, match=match):
        optimizer("mine", module)
    assert dispatch.current.rules == before and rules == RULES
    assert module not in dispatch._registered


def test_a_package_that_is_not_there():
    refused(ModuleNotFoundError, "No module named 'nobody'", "nobody.kernels")


def test_a_module_that_was_not_built(package):
    package()
    dispatch.use("base")
    refused(ModuleNotFoundError, "looked for others.kernels_base, others.kernels; is the package")


def test_a_module_that_cannot_be_imported(package):
    package(kernels="raise ImportError('undefined symbol')")
    refused(ImportError, "undefined symbol")


@pytest.mark.parametrize("text", ["", "RULES = {}", "RULES = []"])
def test_a_module_without_rules(package, text):
    package(kernels=text)
    refused(TypeError, re.escape('others.kernels has no rules: expected RULES = {"name": rule'))


@pytest.mark.parametrize("entry", ["None", "()", "found['lion'][:1]", "found['lion'][0]"])
def test_an_entry_that_is_no_pair(package, entry):
    package(kernels=f"{lent('good')}\nRULES['mine'] = {entry}")
    refused(TypeError, r"others.kernels: rule 'mine' is .*: expected what rule\(f, f\)")


@pytest.mark.parametrize("entry", ["(None, None, ())", "(found['lion'][0], 1, ())"])
def test_an_entry_without_capsules(package, entry):
    package(kernels=f"{lent('good')}\nRULES['mine'] = {entry}")
    refused(
        TypeError, r"rule 'mine' has (None|1) where a capsule 'steepest.rule.\w+.1' was expected"
    )


@pytest.mark.parametrize(
    "surveys", ["None", "(1,)", "((None, None),)", "((None, None, None),)", "(lamb[2][0][::-1],)"]
)
def test_surveys_that_are_none(package, surveys):
    package(kernels=f"{lent('good')}\n"
            "from steepest.kernels.leveled.layerwise_base import RULES as more\n"
            f"lamb = more['lamb']\nRULES['mine'] = (*lamb[:2], {surveys})")  # fmt: skip
    refused(TypeError, "rule 'mine'")


def test_types_the_wrong_way_round(package):
    package(kernels=f"{lent('good')}\nRULES['mine'] = found['lion'][1::-1] + ((),)")
    refused(
        TypeError, "has a capsule 'steepest.rule.double.1' where a capsule 'steepest.rule.float"
    )


def test_capsules_of_another_kind(package):
    package(kernels="from steepest.kernels.leveled.operations_base import OPERATIONS\n"
            "RULES = {'mine': OPERATIONS['scale'][:2] + ((),)}")  # fmt: skip
    refused(
        TypeError, "has a capsule 'steepest.operation' where a capsule 'steepest.rule.float.1' was"
    )


def capsule(name):
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    return make(1, name, None)


_NAMES = [b"steepest.rule.float.0", b"steepest.rule.double.0"]  # capsules do not copy their names


def test_another_contract(package, monkeypatch):
    entry = (*map(capsule, _NAMES), ())
    monkeypatch.setattr(capsules, "_test", entry, raising=False)
    package(kernels="from steepest.kernels.capsules import _test\nRULES = {'mine': _test}")
    refused(
        TypeError, "rule 'mine' was compiled for contract 0; this steepest has contract 1: build"
    )


def test_a_capsule_without_a_name(package, monkeypatch):
    monkeypatch.setattr(capsules, "_test", (capsule(None), capsule(None), ()), raising=False)
    package(kernels="from steepest.kernels.capsules import _test\nRULES = {'mine': _test}")
    refused(TypeError, "has a capsule '' where")


def test_the_engine_itself_takes_no_other_capsule(monkeypatch):
    """What is put into the table behind its back."""
    w = np.zeros(3)
    opt = st.SGD(w)
    monkeypatch.setitem(dispatch.current.rules, "sgd", (*map(capsule, _NAMES), ()))
    with pytest.raises(ValueError, match="incorrect name"):
        opt.step(np.ones(3))
    np.testing.assert_array_equal(w, 0.0)


def test_a_name_that_is_taken(package):
    package(kernels=lent("adam"))
    refused(
        ValueError, r"others.kernels has a rule 'adam', which steepest.kernels.leveled.adam_\w+"
    )


def test_a_rule_that_no_module_has(monkeypatch):
    w = np.zeros(3)
    monkeypatch.setattr(st.SignSGD, "coefficients", staticmethod(lambda h, t: ("nothing", ())))
    opt = st.SignSGD(w)
    level = dispatch.current.level
    with pytest.raises(
        LookupError, match=rf"no compiled rule 'nothing' at level '{level}'.*kernels"
    ):
        opt.step(np.ones(3))
    np.testing.assert_array_equal(w, 0.0)
    assert opt.updates == 0


@pytest.mark.skipif(len(LEVELS) == 1, reason="this machine has one level")
def test_a_level_that_lacks_a_rule(package):
    package(kernels_base=lent("mine"), kernels_v3=lent("other"))
    dispatch.use("base")
    opt = optimizer("mine")(np.zeros(3))
    dispatch.use("v3")
    with pytest.raises(LookupError, match=r"'mine' at level 'v3'; looked in .*others.kernels_v3"):
        opt.step(np.ones(3))


# The contract


def test_a_change_of_the_contract_has_a_new_number():
    """Raise STEEPEST_CONTRACT where code compiled against the file as it was would go wrong; then
    put both of what this prints here."""
    text = CONTRACT.read_text(encoding="utf-8")
    number = re.search(r"#define STEEPEST_CONTRACT (\d+)", text).group(1)
    rules = re.findall(
        r"ctypedef void \(\*(?:rule_\w+|reduction_\w+|finalize_\w+)\)\([^)]*\) noexcept nogil", text
    )
    digest = hashlib.sha256(" ".join(" ".join(rules).split()).encode()).hexdigest()[:12]
    assert len(rules) == 5
    assert (f"steepest.rule.float.{number}", f"steepest.rule.double.{number}") == capsules.RULE
    assert (number, digest) == ("1", "8817ce81511b")
