"""What lies where: every array of a step is looked at as it is now, not as it was or says it is."""

import array

import numpy as np
import pytest
from cases import hyper

import steepest as st
from steepest.memory import arrays, formats
from steepest.optimizers import RULES

PREPARED = [rule for rule, cls in RULES.items() if cls.prepares]


def prepared(rule):
    """An optimizer of a rule prepared in Python, for one matrix."""
    return RULES[rule]({"w": np.ones((4, 4), np.float32)}, **hyper(rule, {}))


def states_of(opt, name="w"):
    return {key: x for key, x in opt.state[name].items() if key != "step"}


# Arrays that share memory


@pytest.mark.parametrize("rule", PREPARED)
def test_a_gradient_in_a_prepared_rules_state_is_refused(rule):
    opt = prepared(rule)
    opt.step({"w": np.ones((4, 4), np.float32)})
    fit = {k: x for k, x in states_of(opt).items() if x.shape == (4, 4) and x.dtype == np.float32}
    assert fit
    for key, x in fit.items():
        before = x.copy()
        with pytest.raises(ValueError, match=f"'w' shares memory with state '{key}' of parameter"):
            opt.step({"w": x})
        np.testing.assert_array_equal(x, before)


def test_a_gradient_in_the_state_of_a_rule_of_ones_own_is_refused():
    @st.rule(states=("buffer",))
    def memory(p, g, state, t, *, lr=0.1):
        state["buffer"] += g
        p -= lr * state["buffer"]

    opt = memory({"w": np.zeros(3)})
    opt.step({"w": np.ones(3)})
    with pytest.raises(ValueError, match="state 'buffer' of parameter 'w'"):
        opt.step({"w": opt.state["w"]["buffer"]})


def test_two_parameters_do_not_share_a_counter():
    opt = st.AdamW({"a": np.ones(3), "b": np.ones(3)})
    opt.state["b"]["step"] = opt.state["a"]["step"]
    with pytest.raises(ValueError, match="state 'step' of parameter 'a' and state 'step' of"):
        opt.step({"a": np.ones(3), "b": np.ones(3)})
    assert opt.state["a"]["step"] == 0


def test_a_counter_does_not_lie_in_a_parameter():
    w = np.ones(3)
    opt = st.AdamW(w)
    opt.state["0"]["step"] = np.ndarray((), np.int64, w.data)
    opt.state["0"]["step"][...] = 7
    with pytest.raises(ValueError, match="parameter '0' and state 'step' of parameter '0' share"):
        opt.step(np.ones(3))


def test_a_number_does_not_lie_in_a_gradient():
    opt = st.NovoGrad({"w": np.ones(1)})
    opt.step({"w": np.ones(1)})
    (key,) = RULES["novograd"].scalars(opt._groups[0].h)
    g = np.full(1, 4.0)
    opt.state["w"][key] = g.reshape(())
    with pytest.raises(ValueError, match=f"shares memory with state '{key}' of parameter 'w'"):
        opt.step({"w": g})
    assert g == 4.0


# Arrays that are changed in place between two steps


def test_a_parameter_that_was_resized_in_place_is_looked_at_anew():
    p = np.ones(12)
    opt = st.SGD(p, lr=0.5)
    opt.step(np.ones(12))
    p.resize(10, refcheck=False)  # so few that it stays where it is
    with pytest.raises(ValueError, match=r"has shape \(12,\); expected the parameter's \(10,\)"):
        opt.step(np.ones(12))
    opt.step(np.ones(10))
    np.testing.assert_array_equal(p, np.zeros(10))


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_a_parameter_that_was_reshaped_in_place_takes_gradients_of_its_shape():
    p = np.ones((2, 3))
    opt = st.SGD(p, lr=0.5)
    opt.step(np.ones((2, 3)))
    p.shape = (3, 2)
    with pytest.raises(ValueError, match=r"has shape \(2, 3\); expected the parameter's \(3, 2\)"):
        opt.step(np.ones((2, 3)))
    opt.step(np.ones((3, 2)))
    np.testing.assert_array_equal(p, np.zeros((3, 2)))


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize(
    ("attribute", "value"), [("strides", (8, 16)), ("dtype", np.dtype(np.int64))]
)
def test_a_parameter_whose_elements_mean_others_is_looked_at_anew(attribute, value):
    p = np.arange(4.0).reshape(2, 2)
    opt = st.SGD(p, lr=1.0)
    opt.step(np.zeros((2, 2)))
    setattr(p, attribute, value)
    if attribute == "dtype":
        with pytest.raises(TypeError, match="parameter '0' has dtype int64"):
            opt.step(np.ones((2, 2)))
        return
    opt.step(np.array([[0.0, 5.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(p, [[0.0, -3.0], [1.0, 3.0]])


def broken(state, key, how):
    x = state[key]
    if how == "read-only":
        x.flags.writeable = False
    elif how == "reshaped":
        x.shape = (3, 2)
    else:
        x.resize((1, 1), refcheck=False)


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize("how", ["read-only", "reshaped", "resized"])
def test_a_state_that_was_changed_in_place_is_looked_at_anew(how):
    p, own = np.ones((2, 3)), np.zeros((2, 3))
    opt = st.SGD({"w": p}, momentum=0.5)
    opt.step({"w": np.ones((2, 3))})
    opt.state["w"]["momentum_buffer"] = own
    opt.step({"w": np.ones((2, 3))})
    broken(opt.state["w"], "momentum_buffer", how)
    before = p.copy(), own.copy()
    with pytest.raises(ValueError, match="state 'momentum_buffer' of parameter 'w' is"):
        opt.step({"w": np.ones((2, 3))})
    np.testing.assert_array_equal(p, before[0])
    np.testing.assert_array_equal(own, before[1])


def test_a_state_that_someone_holds_is_looked_at_although_the_dict_is_not_read_again():
    p, g = np.ones(3), np.ones(3)
    opt = st.SGD({"w": p}, momentum=0.5)
    held = opt.state["w"]["momentum_buffer"]
    for _ in range(3):
        opt.step({"w": g})
    held.flags.writeable = False
    with pytest.raises(ValueError, match="state 'momentum_buffer' of parameter 'w' is read-only"):
        opt.step({"w": g})


def test_a_counter_or_number_made_read_only_is_not_written():
    opt = st.NovoGrad({"w": np.ones(3)}, lr=0.1)
    opt.step({"w": np.ones(3)})
    for x in opt.state["w"].values():
        if x.ndim == 0:
            x.flags.writeable = False
    held = {key: (x, x.copy()) for key, x in opt.state["w"].items() if x.ndim == 0}
    assert len(held) > 1
    opt.step({"w": np.full(3, 2.0)})
    for x, before in held.values():
        assert x == before
    assert opt.state["w"]["step"] == 2


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_a_mean_that_was_reshaped_in_place_is_measured():
    accumulator = st.Accumulator({"w": np.zeros(12)})
    accumulator.add({"w": np.ones(12)})
    assert accumulator.norm() == 12**0.5
    accumulator.grads["w"].shape = (3, 4)
    assert accumulator.norm() == 12**0.5


def test_a_state_of_sophia_that_was_made_read_only_takes_no_estimate():
    opt = st.Sophia({"w": np.ones(3)})
    opt.update_hessian({"w": np.ones(3)})
    h = opt.state["w"]["hessian"]
    h.flags.writeable = False
    with pytest.raises(ValueError, match="state 'hessian' of parameter 'w' is read-only"):
        opt.update_hessian({"w": np.ones(3)})


# Objects that are no plain arrays


def test_memory_that_can_move_is_held_during_the_step():
    g = array.array("d", [1.0, 2.0])
    refused = []

    def schedule(count):
        if watching:
            try:
                g.append(0.0)
            except BufferError:
                refused.append(count)
        return 1.0

    watching = False
    p = np.zeros(2)
    opt = st.SGD(p, lr=1.0, clip=st.clip.global_norm(schedule))
    opt.step(g)
    watching = True
    opt.step(g)
    watching = False
    assert refused
    g.append(3.0)  # and not after it


class Lying(np.ndarray):
    """An array whose attributes say what is not so."""

    shape = property(lambda self: (2,))
    strides = property(lambda self: (0,))
    size = property(lambda self: 0)
    ndim = property(lambda self: 1)
    dtype = property(lambda self: np.dtype(np.float64))
    itemsize = property(lambda self: 1)
    __array_interface__ = property(lambda self: {"data": (8, False)})

    def view(self, *arguments):
        return self

    def __getitem__(self, key):
        raise AssertionError("looked at through its own eyes")


def lying(values):
    return np.asarray(values, np.float64).view(Lying)


@pytest.mark.parametrize("warm", [False, True])
def test_a_subclass_that_lies_is_not_believed(warm):
    p = np.zeros(3)
    opt = st.SGD(p, lr=1.0)
    if warm:
        opt.step(np.zeros(3))
    opt.step(np.repeat([1.0, 2.0, 3.0], 2)[::2].view(Lying))
    np.testing.assert_array_equal(p, [-1.0, -2.0, -3.0])


def test_a_subclass_that_lies_is_stepped_as_what_it_is():
    p = lying([1.0, 2.0, 3.0])
    opt = st.SGD({"w": p}, lr=1.0, momentum=0.5)
    assert opt.param_groups[0]["params"][0] is p
    for _ in range(2):
        opt.step({"w": np.ones(3)})
    np.testing.assert_array_equal(np.ndarray.view(p, np.ndarray), [-1.5, -0.5, 0.5])


def test_a_state_that_lies_is_stepped_as_what_it_is():
    opt = st.SGD({"w": np.zeros(2)}, lr=1.0, momentum=0.5)
    opt.state["w"]["momentum_buffer"] = lying([1.0])
    with pytest.raises(ValueError, match=r"is float64 of shape \(1,\); expected float64 of shape"):
        opt.step({"w": np.ones(2)})


MASKED = np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0])


@pytest.mark.parametrize("warm", [False, True])
def test_masks_are_not_dropped(warm):
    opt = st.SGD({"w": np.zeros(3)}, momentum=0.5)
    if warm:
        opt.step({"w": np.zeros(3)})
    with pytest.raises(TypeError, match="gradient of parameter 'w' is a MaskedArray"):
        opt.step({"w": MASKED})
    opt.state["w"]["momentum_buffer"] = MASKED
    with pytest.raises(TypeError, match="state 'momentum_buffer' of parameter 'w' is a MaskedArr"):
        opt.step({"w": np.zeros(3)})
    with pytest.raises(TypeError, match="parameter 'w' is a MaskedArray"):
        st.SGD({"w": MASKED})
    with pytest.raises(TypeError, match="gradient of parameter 'w' is a MaskedArray"):
        st.Accumulator({"w": np.zeros(3)}).add({"w": MASKED})


def test_an_array_over_a_null_pointer_is_refused():
    class Nowhere:
        def __dlpack_device__(self):
            return (1, 0)

        def __dlpack__(self, **options):
            return null_capsule()

    with pytest.raises(TypeError, match="gradient of parameter '0' is a Nowhere without memory"):
        arrays.gradient(Nowhere(), np.zeros(3, np.float32), "0")


def null_capsule():
    """A DLPack capsule of three float32 whose data is NULL."""
    import ctypes

    class Tensor(ctypes.Structure):
        _fields_ = (
            ("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
            ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
            ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("offset", ctypes.c_uint64),
            ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
        )  # fmt: skip

    shape = (ctypes.c_int64 * 1)(3)
    tensor = Tensor(None, (1, 0), 1, 2, 32, 1, ctypes.addressof(shape), None, 0, None, None)
    null_capsule.kept = shape, tensor
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    return new(ctypes.addressof(tensor), b"dltensor", None)


def test_arrays_of_subclasses_may_have_any_format():
    """Found by a mutant: by DLPack, as tensors, NumPy shares no bfloat16 of its own."""

    class Own(np.ndarray):
        pass

    def own(values):
        return np.array(values, formats.named("bfloat16")).view(Own)

    w, b, copies = own([1, 1, 1]), own([2, 2]), [own([0, 0, 0]), own([0, 0])]
    opt = st.SGD([w, b], lr=0.5, momentum=0.5, copies=copies)
    for _ in range(2):
        opt.step([own([1, 1, 1]), np.ones(2, np.float32)])
    np.testing.assert_array_equal(w.astype(np.float32), -0.25)
    np.testing.assert_array_equal(copies[1].astype(np.float32), 0.75)
