"""Rules of every kind in one optimizer with every kind of option around them."""

import copy
import pickle

import numpy as np
import pytest
from cases import same_bits, use_threads
from faults import interrupted_at

import steepest as st

SHAPES = {
    "embedding": (50, 12), "hidden": (12, 20), "kernel": (4, 3, 3, 3), "bias": (20,), "scale": (),
    "empty": (0, 5), "row": (1, 7),
}  # fmt: skip
RULES = {
    "embedding": {"rule": "adafactor", "lr": 0.01},
    "vectors": {"rule": "prodigy"},
    "hidden": {"rule": "muon", "lr": 0.01},
    "kernel": {"rule": "soap", "lr": 0.01},
    "*": {"rule": "came", "lr": 0.01},
}
OPTIONS = {
    "clip": (st.clip.global_norm(1.0), st.clip.adaptive(0.1), st.clip.value(0.5)),
    "filter": (st.filters.centralize(), st.filters.mars(0.1), st.filters.grokfast()),
    "ema": 0.9,
    "average": st.average.tail(2),
    "lookahead": st.average.lookahead(2),
    "regularize": (
        st.regularize.toward_initial(0.1, decoupled=True),
        st.regularize.l1(0.01, proximal=True),
        st.regularize.max_norm(2.0),
    ),
    "nonfinite": "skip",
}


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {name: np.asfortranarray(rng.standard_normal(s)) for name, s in SHAPES.items()}


def gradients(step):
    grads = arrays(100 + step)
    if step == 2:
        grads["kernel"] = None
    if step == 3:
        grads["bias"][0] = np.nan
    return grads


def stepped(count, **more):
    params = arrays(1)
    opt = st.ByGroup(params, RULES, **OPTIONS, **more)
    for step in range(count):
        opt.step(gradients(step))
    return params, opt


def by_dict(params, opt, path):
    other = st.ByGroup(params, RULES, **OPTIONS, state_dir=opt.state_dir)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    return other


def by_file(params, opt, path):
    st.save(path, opt, params)
    other = st.ByGroup(params, RULES, **OPTIONS, state_dir=opt.state_dir)
    st.load(path, other, params)
    return other


def by_pickle(params, opt, path):
    return pickle.loads(pickle.dumps(opt))


def by_copy(params, opt, path):
    return copy.deepcopy(opt)


def same(opt, other):
    np.testing.assert_equal(opt.state_dict(), other.state_dict())
    for group, twin in zip(opt.param_groups, other.param_groups, strict=True):
        for name, p, q in zip(group["param_names"], group["params"], twin["params"], strict=True):
            same_bits(p, q, name)


@pytest.mark.parametrize("folder", [None, "states"])
@pytest.mark.parametrize("way", [by_dict, by_file, by_pickle, by_copy], ids=lambda f: f.__name__)
def test_a_run_goes_on_with_the_same_bits(way, folder, tmp_path):
    _, whole = stepped(8)
    folder = folder and str(tmp_path / folder)
    params, opt = stepped(5, state_dir=folder)
    assert opt.skipped == 1
    other = way(params, opt, tmp_path / "x.safetensors")
    assert other.state_dir == folder
    for step in range(5, 8):
        other.step(gradients(step))
    same(other, whole)


def test_any_number_of_threads():
    use_threads(1)
    _, whole = stepped(6)
    use_threads(3)
    _, opt = stepped(6)
    same(opt, whole)


def test_ctrl_c_at_any_line_leaves_the_old_or_the_new():
    states = {}
    for count in (4, 5, 6):
        _, states[count] = stepped(count)
    finished, n = False, 1
    while not finished:
        _, opt = stepped(4)
        finished = not interrupted_at(n, lambda opt=opt: opt.step(gradients(4)))
        done = opt.updates - states[4].updates
        same(opt, states[4 + done])
        for step in range(4 + done, 6):
            opt.step(gradients(step))
        same(opt, states[6])
        n += 7  # there are many lines, and the next run begins at another
    assert n > 500


@pytest.mark.parametrize(
    "bad", [None, "x", np.zeros(3), np.zeros((2, 2))], ids=lambda x: type(x).__name__
)
def test_a_number_of_the_state_that_is_none_is_refused(bad):
    w = np.ones((6, 4))
    opt = st.NovoGrad({"w": w}, lr=0.01)
    opt.step({"w": np.ones((6, 4))})
    before = w.copy()
    opt.state["w"]["exp_avg_sq"] = bad
    with pytest.raises(ValueError, match=r"(?s)state .exp_avg_sq. of parameter .w. = .*one number"):
        opt.step({"w": np.ones((6, 4))})
    same_bits(w, before)
