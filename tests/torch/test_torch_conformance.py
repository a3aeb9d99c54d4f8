"""The checks of optimizers through the adapters for PyTorch and optax: they say what is known."""

import pytest

from steepest.extension.conformance.subject import CHECKS
from steepest.testing import DoesNotApply, optax_transformation, optimizer_checks, torch_optimizer

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


def how(factory, name, **more):
    """What becomes of a check, and why."""
    try:
        dict(optimizer_checks(factory, **more))[name]()
    except DoesNotApply as reason:
        return "skipped", str(reason)
    except AssertionError as error:
        return "failed", str(error)
    return "passed", ""


PASSED = (
    "repeats", "partition", "groups", "maximize", "counts_from_one", "hyper_parameters_are_heard",
    "none_leaves_all_alone", "in_place", "strided", "empty_arrays", "gradients_are_not_written",
    "state_dict_round_trip", "deep_copies", "pickles", "groups_may_come_later",
    "unknown_arguments_are_refused",
)  # fmt: skip


@pytest.mark.parametrize("name", PASSED)
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adagrad])
def test_classes_of_torch(cls, name):
    assert how(cls, name) == ("passed", "")


def test_what_torch_does_otherwise():
    """Its state dicts hold the tensors of the state themselves, and its counts are float32."""
    found, why = how(torch.optim.AdamW, "state_dict_is_a_snapshot")
    assert found == "failed" and why.startswith("state.0.step of a state dict, after later steps")
    assert how(torch.optim.AdamW, "counts_beyond_24_bits") == (
        "failed", "state.0.step is 16777216 after the step behind 16777216")  # fmt: skip
    found, why = how(torch.optim.AdamW, "wrong_shapes_are_refused")
    assert found == "failed" and "refused after matrix had moved" in why


def test_functions_that_make_one():
    made = torch_optimizer(lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    assert how(made, "repeats") == ("passed", "")
    assert how(made, "bad_values_are_refused")[0] == "skipped"
    assert how(made, "negative_strides")[1] == "PyTorch's tensors have no negative strides"
    other = torch_optimizer(torch.optim.Adafactor, needs="layer-wise")
    assert how(other, "nan_stays_in_its_element")[0] == "skipped"
    assert how(other, "nan_stays_in_its_parameter") == ("passed", "")


@pytest.mark.exhaustive
def test_every_check_ends_for_optax():
    """Those that ask for nothing of NumPy's or of files; each of JAX's operations is compiled."""
    optax = pytest.importorskip("optax")
    made = optax_transformation(optax.sgd(0.01, momentum=0.9))
    for name in ("repeats", "partition", "state_dict_round_trip", "counts_from_one"):
        assert how(made, name)[0] == ("skipped" if name == "counts_from_one" else "passed"), name
    assert how(made, "in_place") == ("skipped", "JAX's arrays do not change")
    assert how(optax.sgd(0.01), "fork")[0] == "skipped"
    assert {*made.lacks} >= {"fork", "in place", "set"} and len(CHECKS) > 50
