"""Training goes on: k steps in optax, k here from its state, and the reverse; float64.

The tolerance 1e-12 is for differently ordered roundings.
"""

import numpy as np
import pytest

import steepest as st
from steepest.optimizers import RULES

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True, scope="module")
def peers():
    global optax, jax
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)


CLOSE = {"rtol": 1e-12, "atol": 1e-13}
B = {"b1": 0.8, "b2": 0.95}
OURS = {"betas": (0.8, 0.95)}
O = {"convention": "optax"}  # noqa: E741

# rule, optax's transformation for a rate, our arguments
CASES = {
    "sgd": ("sgd", lambda lr: optax.sgd(lr), {}),
    "sgd_momentum": ("sgd", lambda lr: optax.sgd(lr, 0.9), {"momentum": 0.9}),
    "sgd_nesterov": (
        "sgd", lambda lr: optax.sgd(lr, 0.9, nesterov=True), {"momentum": 0.9, "nesterov": True},
    ),
    "sgd_keras": ("sgd", lambda lr: optax.sgd(lr, 0.9), {"momentum": 0.9, "convention": "keras"}),
    "adagrad": ("adagrad", lambda lr: optax.adagrad(lr, eps=1e-3), {"eps": 1e-3, **O}),
    "rmsprop": (
        "rmsprop", lambda lr: optax.rmsprop(lr, 0.8, 1e-4), {"alpha": 0.8, "eps": 1e-4, **O},
    ),
    "rmsprop_centered": (
        "rmsprop", lambda lr: optax.rmsprop(lr, 0.8, 1e-4, centered=True, momentum=0.7),
        {"alpha": 0.8, "eps": 1e-4, "centered": True, "momentum": 0.7, **O},
    ),
    "adadelta": (
        "adadelta", lambda lr: optax.adadelta(lr, 0.8, 1e-4), {"rho": 0.8, "eps": 1e-4},
    ),
    "adam": ("adam", lambda lr: optax.adam(lr, **B), {**OURS, **O}),
    "adam_as_torch": ("adam", lambda lr: optax.adam(lr, **B), OURS),
    "amsgrad": ("adam", lambda lr: optax.amsgrad(lr, **B), {**OURS, **O, "amsgrad": True}),
    "adamw": (
        "adamw", lambda lr: optax.adamw(lr, **B, weight_decay=0.1), {**OURS, "weight_decay": 0.1},
    ),
    "adamax": ("adamax", lambda lr: optax.adamax(lr, **B), OURS),
    "nadam": ("nadam", lambda lr: optax.nadam(lr, **B), {**OURS, **O}),
    "radam": ("radam", lambda lr: optax.radam(lr, **B), {**OURS, **O}),
    "adabelief": (
        "adabelief", lambda lr: optax.adabelief(lr, **B, eps=1e-8, eps_root=1e-8),
        {**OURS, "eps": 1e-8},
    ),
    "yogi": ("yogi", lambda lr: optax.yogi(lr, **B), {**OURS, "eps": 1e-3}),
    "adan": (
        "adan",
        lambda lr: optax.adan(lr, b1=0.9, b2=0.8, b3=0.95, eps=1e-8, eps_root=0.0),
        {"betas": (0.9, 0.8, 0.95), **O},
    ),
    "lion": ("lion", lambda lr: optax.lion(lr, 0.8, 0.9, weight_decay=0.1),
             {"betas": (0.8, 0.9), "weight_decay": 0.1}),
    "lamb": ("lamb", lambda lr: optax.lamb(lr, **B, weight_decay=0.1),
             {**OURS, "weight_decay": 0.1}),
    "novograd": ("novograd", lambda lr: optax.novograd(lr, b1=0.9, b2=0.5, eps=1e-8),
                 {"betas": (0.9, 0.5)}),
}  # fmt: skip
RATE = 0.05


def tree(seed, steps=None):
    """Parameters or gradients: a dict of dicts and lists."""
    random = np.random.default_rng(seed)
    return {
        "out": {"w": random.normal(size=(4, 3)), "b": random.normal(size=3)},
        "layers": [random.normal(size=(2, 3)), random.normal(size=())],
    }


def arrays(x):
    return jax.tree.map(jax.numpy.asarray, x)


class Peer:
    def __init__(self, tx, params):
        self.tx, self.params = tx, arrays(params)
        self.state = tx.init(self.params)

    def step(self, grads):
        updates, self.state = self.tx.update(arrays(grads), self.state, self.params)
        self.params = optax.apply_updates(self.params, updates)

    def values(self):
        return jax.tree.map(np.array, self.params)


def here(case, params, **more):
    rule, _, ours = CASES[case]
    p = jax.tree.map(np.array, params)
    return RULES[rule](p, **({"lr": RATE} | ours | more)), p


def assert_close(p, q):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), p, q)


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_from_optax(case):
    peer = Peer(CASES[case][1](RATE), tree(0))
    for t in range(5):
        peer.step(tree(10 + t))
    opt, p = here(case, peer.values())
    st.convert.from_optax(peer.state, opt)
    for t in range(5, 10):
        peer.step(tree(10 + t))
        opt.step(tree(10 + t))
    assert_close(p, peer.values())


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_in_optax(case):
    opt, p = here(case, tree(0))
    for t in range(5):
        opt.step(tree(10 + t))
    peer = Peer(CASES[case][1](RATE), p)
    before = peer.state
    peer.state = st.convert.to_optax(opt, peer.state)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(peer.state), strict=True):
        assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape)
    assert jax.tree.structure(before) == jax.tree.structure(peer.state)
    for t in range(5, 10):
        peer.step(tree(10 + t))
        opt.step(tree(10 + t))
    assert_close(p, peer.values())


def chain(rate):
    """Clipping, masked decay, a schedule and an injected number about Adam."""
    return optax.chain(
        optax.clip_by_global_norm(1e6),
        optax.scale_by_adam(**B),
        optax.masked(optax.add_decayed_weights(0.0), {"out": {"w": True, "b": False},
                                                      "layers": [True, False]}),
        optax.scale_by_learning_rate(rate),
    )  # fmt: skip


def injected(rate):
    return optax.inject_hyperparams(optax.adam)(learning_rate=rate, **B)


@pytest.mark.parametrize("made", [chain, injected])
def test_schedules_and_what_has_no_state_go_along(made):
    """The schedules of both sides depend on the counts that were converted."""
    rate = optax.linear_schedule(0.1, 0.02, 8)
    ours = st.schedules.linear(0.1, steps=8, end=0.02)
    assert all(float(rate(t)) == pytest.approx(ours(t), rel=1e-6) for t in range(10))
    peer = Peer(made(rate), tree(0))
    for t in range(4):
        peer.step(tree(10 + t))
    opt, p = here("adam", peer.values(), lr=ours)
    st.convert.from_optax(peer.state, opt)
    assert opt.updates == 4
    for t in range(4, 8):
        peer.step(tree(10 + t))
        opt.step(tree(10 + t))
    close = {"rtol": 1e-6, "atol": 1e-7}  # optax computes the rate in single precision
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), p, peer.values())
    back = Peer(made(rate), p)
    back.state = st.convert.to_optax(opt, back.state)
    for t in range(8, 10):
        back.step(tree(10 + t))
        opt.step(tree(10 + t))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), p, back.values())


def test_a_single_precision_state_is_filled_in_single_precision():
    opt, p = here("adam", tree(0))
    opt.step(tree(1))
    tx = optax.adam(RATE, mu_dtype=jax.numpy.bfloat16)
    state = st.convert.to_optax(opt, tx.init(jax.tree.map(np.float32, p)))
    assert state[0].mu["out"]["w"].dtype == jax.numpy.bfloat16
    assert state[0].nu["out"]["w"].dtype == np.float32
    again, _ = here("adam", p)
    st.convert.from_optax(state, again)
    assert again.state["out.w"]["exp_avg"].dtype == np.float64


def test_a_state_of_numpy_arrays_stays_one():
    opt, p = here("lion", tree(0))
    opt.step(tree(1))
    template = jax.tree.map(np.asarray, CASES["lion"][1](RATE).init(p))
    state = st.convert.to_optax(opt, template)
    assert isinstance(state[0].mu["out"]["b"], np.ndarray)
    assert int(state[0].count) == 1


def test_a_schedule_needs_the_step_that_optax_does_not_store():
    peer = Peer(optax.sgd(RATE, 0.9), tree(0))
    opt, _ = here("sgd_momentum", peer.values(), lr=st.schedules.cosine(0.1, steps=9))
    with pytest.raises(ValueError, match=r"optax does not store how many steps sgd.*step="):
        st.convert.from_optax(peer.state, opt)
    st.convert.from_optax(peer.state, opt, step=4)
    assert opt.updates == 4


def test_the_count_of_a_schedule_is_that_of_rules_without_one():
    peer = Peer(optax.sgd(optax.constant_schedule(RATE), 0.9), tree(0))
    for t in range(3):
        peer.step(tree(10 + t))
    opt, p = here("sgd_momentum", peer.values(), lr=st.schedules.cosine(0.1, steps=9))
    st.convert.from_optax(peer.state, opt)
    assert (opt.updates, int(opt.state["out.b"]["step"])) == (3, 3)
    state = st.convert.to_optax(opt, peer.tx.init(p))
    assert int(state[1].count) == 3


# What is refused


def refused(tx, case, message, params=None, **more):
    opt, _ = here(case, tree(0), **more)
    opt.step(tree(1))
    before = opt.state_dict()
    state = tx.init(arrays(tree(0) if params is None else params))
    for convert in (
        lambda: st.convert.from_optax(state, opt), lambda: st.convert.to_optax(opt, state)
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=message):
            convert()
    after = opt.state_dict()
    assert after["updates"] == before["updates"] == 1
    for name, own in before["state"].items():
        for key, x in own.items():
            np.testing.assert_array_equal(after["state"][name][key], x)


@pytest.mark.parametrize(
    ("tx", "case", "message"),
    [
        (lambda: optax.lion(1.0), "adam", "has a ScaleByLionState; adam .* is ScaleByAdamState"),
        (lambda: optax.amsgrad(1.0), "adam", "has a ScaleByAmsgradState"),
        (lambda: optax.adam(1.0), "amsgrad", "has a ScaleByAdamState"),
        (lambda: optax.sgd(1.0), "sgd_momentum", "has no parts with a state; expected"),
        (lambda: optax.sgd(1.0, 0.9), "sgd", "has a TraceState; sgd .* is no state"),
        (lambda: optax.rmsprop(1.0, bias_correction=True), "rmsprop", "ScaleByRmsWithCountState"),
        (lambda: optax.chain(optax.adam(1.0), optax.ema(0.9)), "adam", "has a EmaState"),
        (lambda: optax.chain(optax.adam(1.0), optax.adam(1.0)), "adam", "each once"),
        (lambda: optax.MultiSteps(optax.adam(1.0), 2), "adam", "has a MultiStepsState"),
    ],
)
def test_other_parts_are_refused(tx, case, message):
    refused(tx(), case, message)


def test_other_parameters_are_refused_by_name():
    params = tree(0)
    params["out"]["c"] = params["out"].pop("b")
    refused(optax.adam(1.0), "adam", r"mu: missing \['out.b'\], unknown \['out.c'\]", params)


def test_other_shapes_are_refused_by_name():
    params = tree(0)
    params["out"]["b"] = np.ones(4)
    refused(optax.adam(1.0), "adam", r"'exp_avg' of parameter 'out.b' has shape", params)


def test_another_convention_is_refused():
    refused(optax.nadam(1.0), "nadam", "optax has another formula of nadam",
            convention="torch")  # fmt: skip
    refused(optax.amsgrad(1.0), "amsgrad", "optax has another formula of adam",
            convention="torch")  # fmt: skip


@pytest.mark.parametrize(
    ("case", "option"),
    [
        ("adam", {"bias_correction": False}),
        ("adam", {"maximize": True}),
        ("adagrad", {"lr_decay": 0.1}),
        ("sgd_momentum", {"dampening": 0.1}),
        ("lamb", {"adapt": False}),
        ("lamb", {"norm_bounds": (0.0, 10.0)}),
        ("novograd", {"grad_averaging": True}),
    ],
)
def test_what_optax_lacks_is_refused(case, option):
    refused(CASES[case][1](1.0), case, f"optax has no {next(iter(option))} of", **option)


def test_rules_whose_steps_differ_are_refused():
    """Rprop of optax takes each step one gradient late."""
    opt = st.Rprop(np.ones(2))
    with pytest.raises(ValueError, match=r"optax has no rprop"):
        st.convert.from_optax(optax.rprop(0.1).init(np.ones(2)), opt)


def test_counts_that_differ_are_refused():
    opt, p = here("adam", tree(0))
    opt.step(tree(1) | {"layers": None})
    with pytest.raises(ValueError, match=r"have done \[0, 1\] steps; optax has one"):
        st.convert.to_optax(opt, optax.adam(1.0).init(p))
    peer = Peer(optax.adam(optax.constant_schedule(0.1)), tree(0))
    peer.step(tree(1))
    state = (peer.state[0]._replace(count=np.int32(5)), peer.state[1])
    with pytest.raises(ValueError, match=r"counts \[1, 5\] steps"):
        st.convert.from_optax(state, opt)


@pytest.mark.parametrize("state", [5, np.ones(2), {"a": np.ones(2)}, None])
def test_what_is_no_state_is_refused(state):
    opt, _ = here("adam", tree(0))
    with pytest.raises(TypeError, match=r"not a state of optax"):
        st.convert.from_optax(state, opt)
