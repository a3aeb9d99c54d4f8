"""Damaged and hostile input: a share of tests/long/fuzz.py, and what it has found."""

import copy

import fuzz
import numpy as np
import own_process
import pytest

import steepest as st
from steepest import nesting


@pytest.mark.parametrize("name", ["files", "state_dicts", "converters"])
def test_cases_of_one_seed(tmp_path, name):
    some(tmp_path, name, 40)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["files", "state_dicts", "converters", "runs"])
def test_more_cases_of_one_seed(tmp_path, name):
    some(tmp_path, name, 400)


@pytest.mark.torch
def test_cases_for_tensors(tmp_path):
    pytest.importorskip("torch")
    some(tmp_path, "torch", 100)


def some(folder, name, most):
    target = fuzz.TARGETS[name](folder)
    outcomes = set()
    with np.errstate(all="ignore"):
        for number in range(most):
            outcome, fault = fuzz.tried(target, name, 1, number)
            assert not fault, f"{name} --seed 1 --only {number}: {fault}"
            outcomes.add(outcome)
    assert len(outcomes) > 1  # some are taken over, some refused


# Found, and mended

WRONG_PARTS = {
    "nothing": lambda d: None,
    "an array": lambda d: np.zeros(3),
    "groups of a scalar": lambda d: d | {"param_groups": [np.float64(1)]},
    "groups of an array": lambda d: d | {"param_groups": np.zeros((2, 2))},
    "names of an array": lambda d: d | {"param_groups": [{"param_names": np.zeros(2)}]},
    "state of an array": lambda d: d | {"state": np.zeros(3)},
    "state of a parameter": lambda d: d | {"state": {"w": np.zeros(3)}},
}


@pytest.mark.parametrize("change", WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_a_state_dict_with_other_parts_is_refused(change):
    """It raised IndexError or AttributeError."""
    opt = st.SGD({"w": np.ones(2)}, momentum=0.9)
    given = change(opt.state_dict())
    before = fuzz.seen(opt)
    with pytest.raises(TypeError, match=r"expected a (dict|list)"):
        opt.load_state_dict(given)
    assert fuzz.seen(opt) == before


def test_a_hyper_parameter_that_contains_itself_is_refused():
    """It raised RecursionError."""
    opt = st.AdamW({"w": np.ones(2)})
    given = st.convert.to_torch(opt, tensors=False)
    given["param_groups"][0]["betas"] = fuzz.circle()
    with pytest.raises(ValueError, match=r"betas of group 0 = .*: expected numbers"):
        st.convert.from_torch(given, opt)


@pytest.mark.parametrize("codes", [np.full(64, 2**70, object), np.full(64, 1j)], ids=["O", "c"])
def test_codes_that_are_no_numbers_are_refused(codes):
    """They raised OverflowError, and ComplexWarning where that is an error."""
    opt = st.AdamW({"w": np.ones(64, np.float32)})
    opt.step({"w": np.ones(64, np.float32)})
    given = st.convert.to_flashoptim(opt, tensors=False)
    given["state"][0]["exp_avg::quantized"] = codes
    with pytest.raises((TypeError, ValueError), match=r"not of numbers|not of 8 bits"):
        st.convert.from_flashoptim(given, opt)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (lambda mu: {"w": 10**400}, "of Python's objects, not of numbers"),
        (lambda mu: fuzz.circle(), "nested too deeply, or contains itself"),
    ],
    ids=["a large number", "a circle"],
)
def test_a_part_of_optax_that_has_no_numbers_is_refused(put, message):
    """They raised OverflowError and RecursionError."""
    opt = st.Adam({"w": np.ones(2)})
    good = {"w": np.ones(2)}
    given = fuzz.ScaleByAdamState(np.array(1), put(good), good)
    with pytest.raises((TypeError, ValueError), match=message):
        st.convert.from_optax((given, ()), opt)
    if "itself" in message:
        with pytest.raises(ValueError, match=message):
            st.convert.from_optax(fuzz.circle(), opt)


LARGE = 10**400


@pytest.mark.parametrize("number", [LARGE, np.complex128(1 + 1j)], ids=["large", "complex"])
def test_numbers_that_no_float_holds_are_refused(number):
    """They raised OverflowError, or lost their imaginary part."""
    opt = st.LDoG({"w": np.ones(2)})
    given = opt.state_dict()
    given["state"]["w"]["rbar"] = number
    with pytest.raises(ValueError, match=r"rbar(?s:.)*: expected one number"):
        opt.load_state_dict(given)
    given = opt.state_dict() | {"clip_history": {"a": [number]}}
    with pytest.raises((TypeError, ValueError), match=r"expected (lists of|finite) norms"):
        opt.load_state_dict(given)
    with pytest.raises(ValueError, match="three finite numbers"):
        st.Muon(np.ones((2, 2)), ns_coefficients=[number, 1, 1])


def test_complex_coefficients_are_refused():
    """Their imaginary parts were discarded."""
    with pytest.raises(ValueError, match="three finite numbers"):
        st.Muon(np.ones((2, 2)), ns_coefficients=np.full(3, 1 + 1j))


def test_an_array_is_no_list_of_variables():
    """A list of the rows of one that repeats a number took all memory."""
    opt = st.SGD({"w": np.ones(2)}, momentum=0.9, convention="keras")
    with pytest.raises(TypeError, match="variables is an array; expected a list of arrays"):
        st.convert.from_keras(np.broadcast_to(np.zeros(()), (2**30, 2**20)), opt)


@pytest.mark.parametrize(
    "take",
    [lambda tree: st.SGD(tree), lambda tree: st.save("x", st.SGD(np.ones(2)), tree)],
    ids=["optimizer", "save"],
)
def test_params_that_contain_themselves_are_refused(take):
    """They raised RecursionError, as did what a converter was given."""
    with pytest.raises(ValueError, match="params is nested too deeply, or contains itself"):
        take(fuzz.circle())


WRONG_RECORDS = {
    "a number": lambda r: 1,
    "steps": lambda r: r | {"steps": [1]},
    "a step": lambda r: r | {"steps": {0: "one"}},
    "updates": lambda r: r | {"updates": float("inf")},
    "large": lambda r: r | {"updates": 2**63},
    "skipped": lambda r: r | {"skipped": 0.5},
    "norms": lambda r: r | {"clip_history": "abc"},
}


@pytest.mark.torch
@pytest.mark.parametrize("change", WRONG_RECORDS.values(), ids=WRONG_RECORDS)
def test_a_record_of_other_kinds_is_refused(change):
    """It raised AttributeError or OverflowError."""
    opt = stepped_tensors()
    given = opt.state_dict()
    group = given["param_groups"][0]
    [key] = [key for key, x in group.items() if isinstance(x, dict) and "updates" in x]
    group[key] = change(group[key])
    before = fuzz.Torch.seen(opt)
    with pytest.raises((TypeError, ValueError), match=r"expected (a dict|a count|lists)"):
        opt.load_state_dict(given)
    assert fuzz.Torch.seen(opt) == before


@pytest.mark.torch
@pytest.mark.parametrize("wrong", ["tensor", "circle", "circular betas"])
def test_states_and_groups_of_other_kinds_are_refused(wrong):
    """They raised RuntimeError or RecursionError."""
    opt = stepped_tensors()
    given = copy.deepcopy(opt.state_dict())
    if wrong == "tensor":
        given["state"][0] = opt.param_groups[0]["params"][0].detach()
    elif wrong == "circle":
        given["state"][0]["exp_avg"] = fuzz.circle()
    else:
        given["param_groups"][0]["betas"] = fuzz.circle()
    before = fuzz.Torch.seen(opt)
    with pytest.raises((TypeError, ValueError), match=r"expected a dict|contains itself|betas"):
        opt.load_state_dict(given)
    assert fuzz.Torch.seen(opt) == before


def stepped_tensors():
    torch = pytest.importorskip("torch")
    stt = pytest.importorskip("steepest.torch")
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    opt = stt.AdamW([p])
    opt.step()
    return opt


@pytest.mark.parametrize("step", [np.array([3]), np.ones((1, 1)), [3]], ids=repr)
def test_a_count_has_no_axes(step):
    """An array of one number is a number to some versions of NumPy, and to others not."""
    opt = st.AdamW(np.ones(3))
    opt.step(np.ones(3))
    given = opt.state_dict()
    given["state"]["0"]["step"] = step
    with pytest.raises(ValueError, match="expected a count"):
        opt.load_state_dict(given)
    assert opt.updates == 1


@pytest.mark.parametrize("bad", [np.zeros(0), np.array("adamw"), None, 3], ids=repr)
def test_names_in_a_state_dict_are_text(bad):
    opt = st.AdamW(np.ones(3))
    for change in (
        lambda given: given.update(rule=bad),
        lambda given: given["param_groups"][0].update(rule=bad),
        lambda given: given["param_groups"][0].update(param_names=[bad]),
    ):
        given = opt.state_dict()
        change(given)
        with pytest.raises(TypeError, match="expected a name"):
            opt.load_state_dict(given)


# Of what lies in itself, where a program has raised the limit of recursion for a purpose of its own

_DEEP = """
sys.setrecursionlimit(1_000_000)
import fuzz
import numpy as np
import steepest as st
from steepest.checkpoint import json_values
deep = []
for _ in range(100_000):
    deep = [deep]

def refused(take, *given):
    try:
        take(*given)
    except (TypeError, ValueError) as error:
        assert "nested too deeply" in str(error), error
    else:
        raise AssertionError(f"taken: {take}")

opt = st.Adam({"w": np.ones(2)})
for hostile in (fuzz.circle(), deep):
    TAKES
del deep[:]
"""
_TAKES = {
    "parameters": "refused(st.SGD, hostile)",
    "json": "refused(json_values.dumps, hostile, 'x')",
    "text": "refused(json_values.loads, '[' * 100_000 + ']' * 100_000, 'x')",
    "optax": "refused(st.convert.from_optax, hostile, opt); opt.step({'w': np.ones(2)})",
}


@pytest.mark.parametrize("takes", _TAKES.values(), ids=_TAKES)
def test_what_is_nested_too_deeply_does_not_end_the_process(takes):
    own_process.run(_DEEP.replace("TAKES", takes))


@pytest.mark.torch
@pytest.mark.parametrize(
    "takes",
    [
        "given['state'][0]['exp_avg'] = hostile; refused(stt.load_state_dict, given)",
        "refused(views.numbers, hostile)",
    ],
    ids=["state", "number"],
)
def test_what_is_nested_too_deeply_does_not_end_the_process_with_tensors(takes):
    pytest.importorskip("torch")
    begun = """
import torch, steepest.torch
from steepest.torch import views
p = torch.ones(3, requires_grad=True)
p.grad = torch.ones(3)
stt = steepest.torch.AdamW([p])
stt.step()
given = stt.state_dict()
for hostile in"""
    code = _DEEP.replace("\nfor hostile in", begun)
    own_process.run(code.replace("TAKES", takes))


def test_what_lies_in_two_places_is_no_circle():
    """However often the same dicts are met, they are walked once."""
    found = {"w": 1.0}
    for _ in range(150):
        found = {"a": found, "b": found}
    nesting.check(found)
    for _ in range(nesting.DEEPEST - 152):
        found = [found]
    nesting.check([found])
    with pytest.raises(RecursionError):
        nesting.check([[[found], found]])


def test_what_is_saved_is_read_however_deep_programs_may_call_themselves():
    """A tuple is two levels of JSON: where the limit had been raised, 150 of them were refused."""
    own_process.run("""
from steepest.checkpoint import json_values
value = 1
for _ in range(150):
    value = {(value, 0): (value,)} if value == 1 else (value,)
text = json_values.dumps(value, "x")
for limit in (sys.getrecursionlimit(), 5000):
    sys.setrecursionlimit(limit)
    assert json_values.loads(text, "x") == value
""")
