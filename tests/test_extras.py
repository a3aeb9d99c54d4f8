import math
import sys

import pytest

from steepest.extras import MissingExtra, require


def test_an_installed_module_is_returned() -> None:
    assert require("math", extra="train", purpose="counting") is math


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.part"])
def test_a_missing_package_says_what_to_install(module) -> None:
    with pytest.raises(MissingExtra) as caught:
        require(module, extra="train", purpose="drawing")
    assert str(caught.value) == (
        "drawing needs the package no_such_package: run  pip install no_such_package, "
        "or install steepest with its extra [train]"
    )
    assert isinstance(caught.value, ImportError)


def test_a_package_whose_module_has_another_name(monkeypatch) -> None:
    for module in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"package sklearn: run  pip install scikit-learn, or"):
        require("sklearn.datasets", extra="train", purpose="drawing")


def test_a_package_that_misses_another_is_not_called_missing(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_package.py").write_text("import something_else_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_else_missing") as caught:
        require("broken_package", extra="train", purpose="drawing")
    assert not isinstance(caught.value, MissingExtra)
