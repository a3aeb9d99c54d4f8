"""Copy-out: the new parameter is also written to an array of the caller, encoded."""

import copy
import pickle
import threading

import numpy as np
import pytest
from cases import BY_RULE, LEVELS, brief, label, same_bits, use_threads
from layouts import laid_out

import steepest as st
from steepest import checkpoint, codecs
from steepest.extension.testing import misaligned, special, wide
from steepest.kernels import dispatch
from steepest.kernels.engine import BLOCK_SIZE, CHUNK_SIZE
from steepest.memory import formats
from steepest.optimizers import RULES

SHAPES = [
    (0,), (1,), (7,), (BLOCK_SIZE + 1,), (CHUNK_SIZE + 300,), (33, 17), (3, 20, 30), (70, 999)
]  # fmt: skip
NUMBERED = [pytest.param(i, *x.values, marks=x.marks) for i, x in enumerate(BY_RULE)]
NAMES = ("bfloat16", "float16", "float32", "float64")
DTYPES = [formats.named(name) for name in NAMES]


def empty(shape, dtype):
    """An array whose numbers are no parameter's."""
    return codecs.encoded(np.full(shape, 123.0), np.dtype(dtype))


def expected(p, dtype):
    """The parameter as it is stored, in another format."""
    return codecs.encoded(formats.decoded(p), np.dtype(dtype))


def is_copy(x, p, where=""):
    same_bits(np.ascontiguousarray(x), np.ascontiguousarray(expected(p, x.dtype)), where)


def drawn(rng, shapes, dtype):
    return [codecs.encoded(rng.standard_normal(s), np.dtype(dtype)) for s in shapes]


def stepped_beside(make, params, copies, steps=4, of_gradients=np.float32):
    """Steps with copies and without; AssertionError where copies or parameters are others than
    they must be."""
    twins = [p.copy() for p in params]
    opt, other = make(params, copies=copies), make(twins)
    rng = np.random.default_rng(7)
    for t in range(1, steps + 1):
        grads = drawn(rng, [p.shape for p in params], of_gradients)
        opt.step(grads)
        other.step(grads)
        for i, (p, x, twin) in enumerate(zip(params, copies, twins, strict=True)):
            where = f"step {t}, parameter {i} of shape {p.shape}"
            same_bits(p, twin, where)
            if x is not None:
                is_copy(x, p, where)
    return opt


@pytest.mark.parametrize(("number", "rule", "arguments"), NUMBERED, ids=label)
def test_every_rule_has_copies(number, rule, arguments):
    dispatch.use(LEVELS[number % len(LEVELS)])
    use_threads(1 + number % 3)
    rng = np.random.default_rng(number)
    params = drawn(rng, SHAPES, DTYPES[(1, 2, 2, 3, 0)[number % 5]])
    copies = [empty(s, DTYPES[(i + number) % 4]) for i, s in enumerate(SHAPES)]
    stepped_beside(lambda p, **more: RULES[rule](p, **arguments, **more), params, copies)


@pytest.mark.parametrize("of_p", range(4), ids=NAMES)
@pytest.mark.parametrize("of_g", range(4), ids=NAMES)
@pytest.mark.parametrize("of_states", [None, "bfloat16", "float64"])
@pytest.mark.parametrize("turn", brief(range(3), [0]))
def test_every_format(of_p, of_g, of_states, turn):
    """Also where rules have loops of their own for the formats of parameter, gradient, states."""
    rng = np.random.default_rng(1)
    dispatch.use(LEVELS[(of_p + of_g + turn) % len(LEVELS)])
    for workers, rule in ((1, "adamw"), (3, "lion")):
        use_threads(workers)
        for dtype in DTYPES:
            params = drawn(rng, SHAPES[2:], DTYPES[of_p])
            copies = [empty(p.shape, dtype) for p in params]
            stepped_beside(
                lambda p, r=rule, **more: RULES[r](p, lr=0.1, state_dtype=of_states, **more),
                params, copies, 2, DTYPES[of_g],
            )  # fmt: skip


@pytest.mark.parametrize("draw", [wide, special], ids=lambda f: f.__name__)
@pytest.mark.parametrize("of_p", [np.float32, np.float64])
def test_all_numbers_are_rounded_once(draw, of_p):
    rng = np.random.default_rng(2)
    params = [draw(rng, 5000).astype(of_p) for _ in DTYPES]
    copies = [empty(p.shape, dtype) for p, dtype in zip(params, DTYPES, strict=True)]
    for level in LEVELS:
        dispatch.use(level)
        stepped_beside(lambda p, **more: st.SGD(p, lr=0.0, **more), params, copies, 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_layout(name):
    rng = np.random.default_rng(3)
    for kind in ("C", "F", "reversed", "strided"):
        for of_copy in ("C", "F", "reversed", "strided"):
            for workers, shape in ((1, (6, 5)), (3, (4, 301, 31))):
                use_threads(workers)
                params = [laid_out(rng.standard_normal(shape).astype(np.float32), kind)]
                copies = [laid_out(empty(shape, formats.named(name)), of_copy)]
                opt = st.AdamW(params, lr=0.1, copies=copies)
                for _ in range(2):
                    opt.step([rng.standard_normal(shape).astype(np.float32)])
                    is_copy(copies[0], params[0], f"{kind}, copy {of_copy}")
                    opt.step([np.asfortranarray(rng.standard_normal(shape))])
                    is_copy(copies[0], params[0], f"{kind}, copy {of_copy}, other gradient")


@pytest.mark.parametrize("name", NAMES)
def test_copies_begin_anywhere_and_end_there(name):
    """No number beside a copy is written."""
    rng = np.random.default_rng(4)
    dtype = formats.named(name)
    for shift in range(1, 9):
        for n in (1, 31, BLOCK_SIZE, CHUNK_SIZE + 77, 3 * CHUNK_SIZE + 5):
            use_threads(1 + shift % 3)
            room = empty(n + 24, dtype)
            x = room[shift : shift + n]
            p = misaligned(rng.standard_normal(n).astype(np.float32), shift // 2)
            st.AdamW(p, lr=0.1, copies=x).step(rng.standard_normal(n))
            is_copy(x, p)
            same_bits(room[:shift], empty(shift, dtype))
            same_bits(room[shift + n :], empty(24 - shift, dtype))


@pytest.mark.parametrize("workers", [1, 3])
def test_copies_that_are_kept_out_of_the_caches(workers):
    """Those of a step over more than four million elements, which go past the caches."""
    use_threads(workers)
    rng = np.random.default_rng(12)
    sizes = (1, 63, BLOCK_SIZE + 1, 1_500_001, 2_700_003)
    params = [misaligned(rng.standard_normal(n, np.float32), i) for i, n in enumerate(sizes)]
    grads = [p[::-1].copy() for p in params]
    for k in range(4):
        rooms = [empty(n + 40, DTYPES[(i + k) % 4]) for i, n in enumerate(sizes)]
        copies = [x[i + 1 : i + 1 + n] for i, (x, n) in enumerate(zip(rooms, sizes, strict=True))]
        before = [x.copy() for x in rooms]
        opt = st.SGD(params, lr=0.1, copies=copies)
        for g in (grads, [g.astype(np.float16) for g in grads]):
            opt.step(g)
            for i, (p, x, room, was) in enumerate(zip(params, copies, rooms, before, strict=True)):
                is_copy(x, p, f"of {x.dtype}")
                same_bits(room[: i + 1], was[: i + 1])
                same_bits(room[i + 1 + p.size :], was[i + 1 + p.size :])


OPERATIONS = [
    {"l1": 0.031, "maximize": True, "ema": 0.93},
    {"clip": (st.clip.adaptive(0.05), st.clip.value(0.7)), "average": st.average.tail(1)},
    {"clip": st.clip.global_norm(0.5), "decay_mode": "cautious"},
    {"clip": st.clip.previous_norm(0.5)},
    {"regularize": (st.regularize.toward_initial(0.1), st.regularize.max_norm(1.0, axis=0))},
    {"regularize": st.regularize.simplex(1.0, axis=None), "ema": 0.9},
    {"regularize": st.regularize.unit_norm(axis=None), "lookahead": st.average.lookahead(2, 0.37)},
    {"regularize": st.regularize.group_lasso(0.3), "average": st.average.tail(1)},
    {"regularize": st.regularize.elastic_net(0.3, proximal=True)},
    {"lookahead": st.average.lookahead(2, 0.37), "filter": st.filters.mars(0.3)},
    {"cautious": True, "decay_mode": "decoupled", "filter": st.filters.centralize()},
    {"filter": st.filters.mask(), "regularize": st.regularize.max_norm(0.5)},
]


@pytest.mark.parametrize("options", OPERATIONS, ids="+".join)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_operations_around(name, options):
    """The copy has the parameter after the last of them."""
    rng = np.random.default_rng(5)
    for rule in ("adamw", "lamb", "adafactor"):
        if rule != "adamw" and "cautious" in (*options, options.get("decay_mode")):
            continue
        use_threads(3)
        params = drawn(rng, [(7,), (40, 30), (70, 999)], formats.named(name))
        if "filter" in options and isinstance(options["filter"], st.filters.mask):
            params[1][::2] = codecs.encoded(np.zeros((20, 30)), params[1].dtype)
        copies = [empty(p.shape, DTYPES[i]) for i, p in enumerate(params)]
        stepped_beside(
            lambda p, r=rule, **more: RULES[r](p, lr=0.1, **options, **more), params, copies, 5
        )


@pytest.mark.parametrize(
    ("master", "name"), [("split16", "bfloat16"), ("float32", "bfloat16"), ("float32", "float16")]
)
def test_a_copy_is_of_the_master(master, name):
    rng = np.random.default_rng(6)
    dtype = formats.named(name)
    params = drawn(rng, SHAPES, dtype)
    twins = [codecs.decoded(p, np.float32) for p in params]
    copies = [empty(s, DTYPES[i % 4]) for i, s in enumerate(SHAPES)]
    options = {"lr": 1e-3, "regularize": st.regularize.max_norm(3.0, axis=0)}
    opt, other = (
        st.AdamW(params, master=master, copies=copies, **options),
        st.AdamW(twins, **options),
    )
    for _ in range(4):
        grads = drawn(rng, SHAPES, dtype)
        opt.step(grads)
        other.step(grads)
        for x, twin in zip(copies, twins, strict=True):
            is_copy(x, twin)


def test_structures_are_those_of_params():
    rng = np.random.default_rng(8)
    a, b, c = drawn(rng, [(3,), (4, 2), (5,)], np.float32)
    x, y, z = (empty(p.shape, np.float16) for p in (a, b, c))
    g = [np.ones_like(p) for p in (a, b, c)]
    opt = st.SGD({"one": [a, b], "two": c}, lr=0.1, copies={"one": [x, None], "two": z})
    opt.step({"one": g[:2], "two": g[2]})
    is_copy(x, a)
    is_copy(z, c)
    same_bits(y, empty(b.shape, np.float16))
    opt = st.SGD([("a", a), ("b", b)], lr=0.1, copies=iter([("a", x), ("b", y)]))
    opt.step({"a": g[0], "b": g[1]})
    is_copy(y, b)
    st.SGD((p for p in (a, b, c)), lr=0.1, copies=(q for q in (x, y, z))).step(g)
    is_copy(x, a)
    st.SGD({"u": {"v": a}, "w": b}, lr=0.1, copies={"u": None, "w": y}).step(
        {"u": {"v": g[0]}, "w": g[1]}
    )
    is_copy(y, b)
    for wrong, error, said in (
        ([x], ValueError, "copies has 1 entries; expected 3, as params"),
        ({"0": x}, TypeError, "copies is a dict; expected a list of 3, as params"),
        (x, TypeError, "copies is a ndarray; expected a list of 3"),
        ([x, y, 0.5], TypeError, "copy of parameter '2' is a float, not an array"),
        ([x, y, [z]], TypeError, "copy of parameter '2' is a list"),
    ):
        with pytest.raises(error, match=said):
            st.SGD([a, b, c], lr=0.1, copies=wrong)
    with pytest.raises(ValueError, match=r"copies has other keys than params: missing \['two'\]"):
        st.SGD({"one": a, "two": c}, lr=0.1, copies={"one": x, "three": z})


def test_groups():
    rng = np.random.default_rng(9)
    p = drawn(rng, [(3, 4), (4,), (2, 2), (6,)], np.float32)
    q = [empty(x.shape, DTYPES[i]) for i, x in enumerate(p)]
    groups = [{"params": p[:2]}, {"params": {"w": p[2]}, "lr": 0.3, "copies": {"w": q[2]}}]
    opt = st.AdamW(groups, copies=[q[:2], None], exclude="vectors", overrides={"0": {"lr": 0.5}})
    assert len(opt.param_groups) == 3
    assert not any("copies" in group for group in opt.param_groups) and "copies" in groups[1]
    opt.add_param_group({"params": [p[3]], "copies": [q[3]], "rule": "lion"})
    g = drawn(rng, [x.shape for x in p], np.float32)
    opt.step([g[:2], {"w": g[2]}, g[3:]])
    for x, copied in zip(p, q, strict=True):
        is_copy(copied, x)
    with pytest.raises(ValueError, match="copies of group 1 are given twice"):
        st.AdamW(groups, copies=[None, {"w": q[2]}])
    with pytest.raises(ValueError, match="copies has 1 entries; expected 2"):
        st.AdamW(groups, copies=[q[:2]])
    kept = (len(opt.param_groups), list(opt.state))
    with pytest.raises(
        ValueError, match=r"copy of parameter '4' has shape \(2,\); expected the par"
    ):
        opt.add_param_group({"params": np.ones(3), "copies": np.ones(2)})
    with pytest.raises(
        ValueError, match="copy of parameter '0' and copy of parameter '4' share mem"
    ):
        opt.add_param_group({"params": np.ones((3, 4)), "copies": q[0]})
    assert kept == (len(opt.param_groups), list(opt.state))
    opt.step([g[:2], {"w": g[2]}, g[3:]])
    is_copy(q[3], p[3])


def test_rules_by_group_and_of_python():
    rng = np.random.default_rng(10)
    p = drawn(rng, [(8, 6), (6,), (5, 5)], np.float32)
    q = [empty(x.shape, DTYPES[i]) for i, x in enumerate(p)]
    opt = st.ByGroup(p, {"0": {"rule": "muon"}, "1": {"rule": "sgd", "lr": 0.1},
                         "*": {"rule": "adafactor"}}, copies=q)  # fmt: skip
    opt.step(drawn(rng, [x.shape for x in p], np.float32))
    for x, copied in zip(p, q, strict=True):
        is_copy(copied, x)

    @st.rule
    def down(p, g, state, t, *, lr=0.5):
        p -= lr * g

    down(p, copies=q).step(drawn(rng, [x.shape for x in p], np.float32))
    for x, copied in zip(p, q, strict=True):
        is_copy(copied, x)


def test_bits_of_bfloat16():
    p, bits = np.linspace(-1, 1, 50, dtype=np.float32), np.zeros(50, np.uint16)
    with pytest.raises(TypeError, match=r"copy of parameter '0' has dtype uint16; .*bits of bfl"):
        st.SGD(p, copies=bits)
    st.SGD(p, lr=0.1, copies=bits, dtype="bfloat16").step(np.ones(50))
    np.testing.assert_array_equal(bits, codecs.to_bfloat16(p).view(np.uint16))
    st.SGD(p, lr=0.1, copies=bits.view(codecs.BFLOAT16)).step(np.ones(50))
    np.testing.assert_array_equal(bits, codecs.to_bfloat16(p).view(np.uint16))


def test_what_is_not_stepped_keeps_its_copy():
    a, b = np.ones(3, np.float32), np.ones(3, np.float32)
    x, y = empty(3, np.float16), empty(3, np.float16)
    opt = st.AdamW([a, b], lr=0.1, copies=[x, y], nonfinite="skip")
    same_bits(x, empty(3, np.float16))
    opt.step([np.ones(3), None])
    is_copy(x, a)
    same_bits(y, empty(3, np.float16))
    before = x.copy()
    a += 1.0
    opt.step([np.array([1.0, np.nan, 1.0]), np.ones(3)])
    assert opt.skipped == 1
    same_bits(x, before)
    same_bits(y, empty(3, np.float16))
    with pytest.raises(ValueError, match="expected the parameter's"):
        opt.step([np.ones(3), np.ones(2)])
    same_bits(x, before)
    opt.step([None, np.ones(3)])
    same_bits(x, before)
    is_copy(y, b)


def test_arrays_that_are_no_copies():
    p = np.zeros((4, 6), np.float32)
    locked = np.zeros((4, 6), np.float16)
    locked.flags.writeable = False
    for wrong, error, said in (
        (locked, ValueError, "copy of parameter 'w' is read-only"),
        (np.broadcast_to(np.zeros(6, np.float16), (4, 6)), ValueError, "read-only"),
        (np.lib.stride_tricks.as_strided(np.zeros(9), (4, 6), (8, 8)), ValueError, "elements that"),
        (np.zeros((6, 4)), ValueError, r"has shape \(6, 4\); expected the parameter's \(4, 6\)"),
        (np.zeros((4, 6), int), TypeError, "copy of parameter 'w' has dtype int64; expected fl"),
        (np.zeros((4, 6), ">f4"), TypeError, "has dtype >f4"),
        (p, ValueError, "parameter 'w' and copy of parameter 'w' share memory"),
        (p[::-1], ValueError, "share memory"),
        (p.view(np.float16)[:, ::2], ValueError, "share memory"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            st.AdamW({"w": p}, copies={"w": wrong})
    x = np.zeros((4, 6), np.float16)
    with pytest.raises(
        ValueError, match="copy of parameter '0' and copy of parameter '1' share mem"
    ):
        st.AdamW([p, p.copy()], copies=[x, x])
    with pytest.raises(ValueError, match="overrides of '0': there is no hyper-parameter 'copies'"):
        st.AdamW([p], overrides={"0": {"copies": x}})


def test_what_changes_later_is_looked_at():
    """A step raises and changes nothing, as where a parameter is no longer as it was."""
    p, x = np.ones(300, np.float32), np.zeros(300, np.float16)
    opt = st.AdamW(p, lr=0.1, copies=x)
    opt.step(np.ones(300))
    before = p.copy(), x.copy(), opt.state_dict()
    x.flags.writeable = False
    with pytest.raises(ValueError, match="copy of parameter '0' is read-only"):
        opt.step(np.ones(300))
    x.flags.writeable = True
    with pytest.raises(
        ValueError, match="gradient of parameter '0' shares memory with copy of para"
    ):
        opt.step(x)
    opt.state["0"]["exp_avg"] = state = np.zeros(600, np.float32)[::2]
    opt.step(np.ones(300))
    opt.param_groups[0]["params"][0] = q = p.copy()
    opt.step(np.ones(300))
    is_copy(x, q)
    opt.state["0"]["exp_avg"] = x
    with pytest.raises(ValueError, match="exp_avg"):
        opt.step(np.ones(300))
    opt.state["0"]["exp_avg"] = state
    opt.param_groups[0]["params"][0] = p
    p[...], x[...] = before[:2]
    opt.load_state_dict(before[2])
    opt.step(np.ones(300))
    is_copy(x, p)


def test_a_state_on_a_copy_is_refused():
    p, room = np.ones(8, np.float32), np.zeros(8, np.float32)
    opt = st.AdamW(p, lr=0.1, copies=room)
    opt.state["0"]["exp_avg"] = room
    with pytest.raises(
        ValueError, match="copy of parameter '0' and state 'exp_avg' of parameter '0'"
    ):
        opt.step(np.ones(8))
    assert (p == 1.0).all()


def test_copies_are_not_saved(tmp_path):
    p, x = np.ones(8, np.float32), np.zeros(8, np.float16)
    opt = st.AdamW({"w": p}, lr=0.1, copies={"w": x}, state_dir=tmp_path / "states")
    opt.step({"w": np.ones(8)})
    kept = opt.state_dict()
    plain = st.AdamW({"w": p.copy()}, lr=0.1)
    plain.step({"w": np.ones(8)})
    assert repr(kept["param_groups"]) == repr(plain.state_dict()["param_groups"])
    assert kept["state"]["w"].keys() == plain.state_dict()["state"]["w"].keys()
    checkpoint.save(tmp_path / "x", opt, {"w": p})
    again, y = np.zeros(8, np.float32), empty(8, np.float64)
    other = st.AdamW({"w": again}, lr=0.5, copies={"w": y})
    checkpoint.load(tmp_path / "x", other, {"w": again})
    same_bits(y, empty(8, np.float64))  # the next step writes it
    opt.step({"w": np.ones(8)})
    other.step({"w": np.ones(8)})
    same_bits(again, p)
    is_copy(x, p)
    is_copy(y, p)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_the_optimizer_have_copies_of_their_own(twin_of):
    p, x = np.ones(8, np.float32), np.zeros(8, np.float16)
    opt = st.AdamW(p, lr=0.1, copies=x)
    opt.step(np.ones(8))
    q, y, other = twin_of((p, x, opt))
    before = x.copy()
    other.step(np.ones(8))
    same_bits(x, before)
    is_copy(y, q)
    assert not (p == q).any()


def test_a_subclass_and_a_sharpness_aware_step():
    p, x = np.ones(8, np.float32), np.zeros(8, np.float16).view(np.memmap)
    opt = st.SAM(st.SGD(p, lr=0.1, copies=x), rho=0.1)
    for _ in range(3):
        opt.step(lambda: (float(p @ p), p.copy()))
        is_copy(np.asarray(x), p)


def test_threads_that_step_different_optimizers():
    rng = np.random.default_rng(11)
    params = [rng.standard_normal(50_000).astype(np.float32) for _ in range(3)]
    copies = [empty(50_000, np.float16) for _ in params]
    opts = [st.AdamW(p, lr=0.1, copies=x) for p, x in zip(params, copies, strict=True)]
    g = rng.standard_normal(50_000).astype(np.float32)
    each = [threading.Thread(target=lambda o=o: [o.step(g) for _ in range(20)]) for o in opts]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()
    for p, x in zip(params, copies, strict=True):
        is_copy(x, p)
