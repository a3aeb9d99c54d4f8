"""A run that ends at any line, or in any function of the caller's: optimizer and file are those of
an update, never between, and a resumed run has the bits of an uninterrupted one."""

import numpy as np
import pytest
from faults import interrupted_at, lines_of

import steepest as st

X = np.random.default_rng(0).standard_normal((12, 3))
Y = X @ np.array([1.0, -2.0, 0.5])
STRIDES = [pytest.param(first, stride, marks=mark) for first, stride, mark in [
    (1, 400, ()), *((k, 97, pytest.mark.exhaustive) for k in (2, 33, 65))
]]  # fmt: skip


def made():
    params = {"w": np.zeros(3), "b": np.zeros(())}
    lr, clip = st.schedules.cosine(0.1, steps=9), st.clip.percentile(50)
    return params, st.AdamW(params, lr=lr, clip=clip, average=st.average.tail(1))


def gradient(params, x, y):
    error = x @ params["w"] + params["b"] - y
    return float((error**2).mean()), {"w": 2 * x.T @ error / len(y), "b": 2 * error.mean()}


def run(params, opt, path, watch=None, **more):
    """Four updates, a checkpoint after each second one."""

    def loss_and_gradient(params, *batch):
        if watch is not None:
            watch(opt)
        return gradient(params, *batch)

    return st.fit(
        lambda *given: gradient(*given)[0], params, (X, Y), opt, value_and_grad=loss_and_gradient,
        epochs=2, batch_size=6, seed=3, checkpoint=path, **more,
    )  # fmt: skip


def boundaries(tmp_path):
    """The digest at each update of an uninterrupted run, the last included."""
    seen = []
    params, opt = made()
    run(params, opt, tmp_path / "whole", lambda opt: seen.append(opt.digest()))
    return [*dict.fromkeys([*seen, opt.digest()])]


def whole_again(tmp_path, path, last, **more):
    """Resumes what a run has left."""
    params, opt = made()
    run(params, opt, path, resume=True, **more)
    assert opt.digest() == last
    assert [x.name for x in tmp_path.iterdir() if x.name not in ("whole", path.name)] == []


@pytest.mark.parametrize(("first", "stride"), STRIDES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_line(first, stride, tmp_path):
    known = boundaries(tmp_path)
    assert len(known) == 5
    path, fresh = tmp_path / "run", made()
    lines = lines_of(lambda: run(*fresh, tmp_path / "whole"))
    assert lines > 1500
    found = set()
    for n in range(first, lines, stride):
        params, opt = made()
        interrupted_at(n, lambda args=(params, opt): run(*args, path))
        found.add(opt.digest())
        if path.exists():
            st.load(path, made()[1])
            whole_again(tmp_path, path, known[-1])
            path.unlink()
    assert found <= set(known)


class Wrong(Exception):
    pass


def with_functions(where, path, at=None):
    """A run with a function of the caller's that raises when it is called for the at-th time; the
    optimizer, its digests before each update, and whether it was ended so."""
    calls, before = [], []

    def wrong(value):
        calls.append(0)
        if len(calls) - 1 == at:
            raise Wrong
        return value

    params, opt = made()
    more = {
        "callback": {"callbacks": [lambda _: wrong(False)]},
        "metric": {"validation": (X, Y), "metrics": {"m": lambda *_: wrong(1.0)}},
    }.get(where, {})
    options = {
        "schedule": {"lr": lambda t: wrong(0.1)},
        "clip": {"clip": st.clip.global_norm(lambda t: wrong(1.0))},
        "penalty": {"regularize": st.regularize.l1(lambda t: wrong(0.1))},
    }.get(where, {})
    opt.param_groups[0].update(options)

    def watch(opt):
        before.append(opt.digest())
        if where == "loss":
            wrong(None)

    try:  # a function of the caller's own cannot be saved
        run(params, opt, None if options else path, watch, **more)
    except Wrong:
        return opt, before, True
    return opt, before, False


@pytest.mark.parametrize("where", ["loss", "callback", "metric", "schedule", "clip", "penalty"])
def test_an_exception_in_any_function_of_the_callers(where, tmp_path):
    """It is raised, the update that was under way has not happened, and the next run goes on after
    the last epoch."""
    path = tmp_path / "run"
    opt, before, ended = with_functions(where, tmp_path / "whole")
    known, at = {*before, opt.digest()}, 0
    assert len(known) == 5 and not ended
    while True:
        opt, _, ended = with_functions(where, path, at)
        assert opt.digest() in known
        if not ended:
            break
        if path.exists():
            metric = {"validation": (X, Y), "metrics": {"m": lambda *_: 1.0}}
            more = metric if where == "metric" else {}
            whole_again(tmp_path, path, boundaries(tmp_path)[-1], **more)
            path.unlink()
        at += 1
    assert at >= (2 if where in ("callback", "metric") else 4)
