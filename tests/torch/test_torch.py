"""The optimizers behind torch.optim.Optimizer: every rule, and what torch promises of each."""

import copy
import inspect
import itertools
import pickle

import numpy as np
import pytest
from cases import CONFIGURATIONS, MATRICES_ONLY, label
from faults import interrupted_at

import steepest as st
from steepest.optimizers import RULES

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402
from steepest.torch import views  # noqa: E402

ALL = [*CONFIGURATIONS, *((rule, {}) for rule in MATRICES_ONLY)]
SHAPES = [(7, 5), (6,), (3, 4, 2), (1,)]


def cls(rule):
    return getattr(stt, RULES[rule].__name__)


def values(seed, dtype=np.float32, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def parameters(arrays):
    return [torch.nn.Parameter(torch.tensor(x)) for x in arrays]


def give(params, arrays):
    for p, g in zip(params, arrays, strict=True):
        p.grad = None if g is None else torch.tensor(g)


def same(params, arrays):
    return all(
        p.detach().numpy().tobytes() == np.ascontiguousarray(x).tobytes()
        for p, x in zip(params, arrays, strict=True)
    )


# Every rule


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rule", "hyper"), ALL, ids=label)
def test_tensors_step_as_arrays_do(rule, hyper, dtype):
    arrays = values(1, dtype)
    params = parameters(arrays)
    ours = RULES[rule](arrays, **hyper)
    theirs = cls(rule)(params, **hyper)
    for t in range(5):
        grads = values(10 + t, dtype)
        if t == 2:
            grads[0] = grads[3] = None
        ours.step(grads)
        give(params, grads)
        theirs.step()
    assert same(params, arrays)
    assert theirs.updates == 5
    for i, p in enumerate(params):
        for key, x in ours.state[str(i)].items():
            assert theirs.state[p][key].numpy().tobytes() == np.ascontiguousarray(x).tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_names_order_and_defaults_are_those_of_our_class(rule):
    own = inspect.signature(RULES[rule]).parameters
    face = inspect.signature(cls(rule)).parameters
    assert {k: x.default for k, x in own.items()} == {
        k: x.default for k, x in face.items() if k in own
    }
    positional = [k for k, x in face.items() if x.kind is x.POSITIONAL_OR_KEYWORD]
    assert positional[: len(own)][: sum(k in own for k in positional)] == [
        k for k, x in own.items() if x.kind is x.POSITIONAL_OR_KEYWORD
    ]


@pytest.mark.parametrize("rule", [r for r, c in RULES.items() if hasattr(torch.optim, c.__name__)])
def test_everything_that_torchs_class_takes_is_taken_in_its_place(rule):
    theirs = inspect.signature(getattr(torch.optim, RULES[rule].__name__)).parameters
    face = inspect.signature(cls(rule)).parameters
    positional = [k for k, x in theirs.items() if x.kind is x.POSITIONAL_OR_KEYWORD]
    ours = [k for k, x in face.items() if x.kind is x.POSITIONAL_OR_KEYWORD]
    if rule == "rprop":  # torch's has no weight decay, and nothing positional behind
        ours.remove("weight_decay")
    assert ours[: len(positional)] == positional
    usual = {k: x.default for k, x in theirs.items() if x.default is not x.empty}
    group = cls(rule)(parameters([np.ones((2, 2), np.float32)])).param_groups[0]
    for name, default in usual.items():
        if name == "decoupled_weight_decay":
            assert (group["decay_mode"] == "decoupled") == default
        else:
            assert group[name] == default, name


@pytest.mark.parametrize("rule", RULES)
def test_pickle_and_deepcopy_go_on_alike(rule):
    model = [torch.nn.Parameter(torch.tensor(x)) for x in values(2)[:2]]
    optimizer = cls(rule)(model)
    give(model, values(3)[:2])
    optimizer.step()
    copies = [pickle.loads(pickle.dumps((model, optimizer))), copy.deepcopy((model, optimizer))]
    for params, opt in [(model, optimizer), *copies]:
        for t in range(2):
            give(params, values(4 + t)[:2])
            opt.step()
    for params, opt in copies:
        assert all(torch.equal(p, q) for p, q in zip(params, model, strict=True))
        assert opt.updates == 3 and type(opt) is cls(rule)


@pytest.mark.parametrize(("rule", "hyper"), ALL, ids=label)
def test_a_state_dict_goes_on_alike(rule, hyper):
    params = parameters(values(2))
    optimizer = cls(rule)(params, **hyper)
    for t in range(3):
        give(params, values(3 + t))
        optimizer.step()
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    loaded = cls(rule)(others)
    loaded.load_state_dict(optimizer.state_dict())
    for t in range(3):
        for ps, opt in ((params, optimizer), (others, loaded)):
            give(ps, values(13 + t))
            opt.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert loaded.updates == 6


def test_torch_notices_that_a_step_has_changed_what_a_graph_needs():
    w, still = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = stt.SGD([w, still], lr=0.1)
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    alone = (still * still).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    alone.backward()  # without a gradient it has not changed
    assert still.grad.tolist() == [2.0, 2.0]


# What the module offers


def test_the_module_offers_all_rules():
    names = {rule.__name__ for rule in RULES.values()}
    assert names <= set(stt.__all__) and names <= set(dir(stt))
    assert stt.AdamW.__module__ == "steepest.torch" and stt.AdamW is stt.AdamW
    assert pickle.loads(pickle.dumps(stt.Lion)) is stt.Lion
    with pytest.raises(AttributeError, match="Nothing"):
        stt.Nothing  # noqa: B018


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="PyTorch before 2.10 has no API"
)
def test_tensors_are_looked_at_without_python():
    assert set(views._LEARNT) == {torch.Tensor, torch.nn.Parameter}


def test_without_the_exchange_api_the_bits_are_the_same(monkeypatch):
    monkeypatch.setattr(views, "_LEARNT", ())
    params, others = parameters(values(1)), parameters(values(1))
    slow = stt.AdamW(params)
    for t in range(3):
        give(params, values(t + 5))
        slow.step()
    params[0].data = params[0].data.clone()  # which is noticed
    give(params, values(9))
    slow.step()
    monkeypatch.undo()
    fast = stt.AdamW(others)
    for t in (5, 6, 7, 9):
        give(others, values(t))
        fast.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


# Arguments


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_what_there_is_not_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} = True"):
        stt.Adam(parameters(values(1)), **{name: True})
    with pytest.raises(ValueError, match=f"{name} = True"):
        stt.Adam([{"params": parameters(values(1)), name: True}])


@pytest.mark.parametrize("face", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_implementations_change_nothing(face):
    optimizer = stt.SGD(parameters(values(1)), 0.1, **face)
    assert optimizer.param_groups[0].items() >= face.items()
    give(optimizer.param_groups[0]["params"], values(2))
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in optimizer.param_groups[0]["params"])


def test_unknown_arguments_and_bad_values_are_refused():
    with pytest.raises(TypeError, match="'learning_rate'"):
        stt.AdamW(parameters(values(1)), learning_rate=0.1)
    with pytest.raises(ValueError, match="lr = -1"):
        stt.AdamW(parameters(values(1)), lr=-1.0)
    with pytest.raises(TypeError, match="iterable of Tensors"):
        stt.AdamW(torch.ones(3))
    with pytest.raises(ValueError, match="empty parameter list"):
        stt.AdamW([])


def test_hyperparameters_are_read_at_every_step():
    params = parameters([np.zeros(3)])
    optimizer = stt.SGD(params, lr=torch.tensor(0.5))
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    give(params, [np.ones(3)])
    optimizer.step()
    optimizer.param_groups[0]["lr"].fill_(0.25)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = lambda count: 1.0 * count
    optimizer.step()
    optimizer.param_groups[0]["maximize"] = True
    optimizer.step()
    assert params[0].tolist() == [-0.75 - 2.0 + 3.0] * 3
    optimizer.param_groups[0]["lr"] = -1.0  # as torch's, which checks in the constructor only
    optimizer.step()
    assert params[0].tolist() == [-0.75] * 3 and optimizer.updates == 5


def test_one_cycle_drives_betas():
    params, others = parameters(values(1, np.float64)), parameters(values(1, np.float64))
    pair = []
    for ps, make in ((params, stt.Adam), (others, torch.optim.Adam)):
        optimizer = make(ps)
        pair.append((ps, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 8)))
    for t in range(8):
        for ps, optimizer, scheduler in pair:
            give(ps, values(t, np.float64))
            optimizer.step()
            scheduler.step() if t < 7 else None
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_groups_have_their_own():
    a, b = parameters(values(1)[:2])
    empty = {"params": [], "tag": "none"}
    optimizer = stt.SGD(
        [{"params": [a], "lr": 0.5, "tag": "first"}, empty, {"params": [b]}], lr=1.0
    )
    x, y = a.detach().clone(), b.detach().clone()
    give([a, b], values(2)[:2])
    optimizer.step()
    assert torch.equal(a, x - 0.5 * a.grad) and torch.equal(b, y - b.grad)
    assert [g.get("tag") for g in optimizer.param_groups] == ["first", "none", None]
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 1.0, 1.0]
    assert sorted(optimizer.state_dict()["param_groups"][0]["params"]) == [0]


def test_a_group_can_be_added_later():
    a, b = parameters(values(1)[:2])
    optimizer = stt.Adam([a], lr=0.5)
    give([a], values(2)[:1])
    optimizer.step()
    optimizer.add_param_group({"params": [b], "lr": 0.25})
    give([a, b], values(3)[:2])
    optimizer.step()
    arrays = values(1)[:2]
    ours = st.Adam(arrays[0], lr=0.5)
    ours.step(values(2)[0])
    ours.add_param_group({"params": arrays[1], "lr": 0.25})
    ours.step(values(3)[:2])
    assert same([a, b], arrays)
    assert optimizer.state[a]["step"] == 2 and optimizer.state[b]["step"] == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [a]})
    assert len(optimizer.param_groups) == 2


def test_names_are_in_errors_and_states():
    model = torch.nn.Linear(3, 2)
    optimizer = stt.AdamW(model.named_parameters(), exclude="*bias", clip=st.clip.global_norm(1.0))
    assert [g["param_names"] for g in optimizer.param_groups] == [["weight"], ["bias"]]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    assert set(optimizer.last_norms) == {"weight", "bias"}
    with torch.no_grad():
        model.bias.data = model.bias.data.to(torch.float8_e5m2)
    model.bias.grad = None
    model.bias.grad = torch.ones(2).to(torch.float8_e5m2)
    with pytest.raises(TypeError, match=r"'bias' has dtype torch\.float8_e5m2"):
        optimizer.step()


# Options of ours


def test_clip_goes_over_all_groups():
    a, b = parameters([np.zeros(2), np.zeros(2)])
    optimizer = stt.SGD([{"params": [a]}, {"params": [b]}], 1.0, clip=st.clip.global_norm(1.0))
    give([a, b], [np.array([3.0, 0.0]), np.array([0.0, 4.0])])
    optimizer.step()
    ours = np.zeros(4)
    st.SGD(ours, 1.0, clip=st.clip.global_norm(1.0)).step(np.array([3.0, 0.0, 0.0, 4.0]))
    assert [*a.tolist(), *b.tolist()] == ours.tolist() and optimizer.last_norm == 5.0


def test_averages_are_tensors_by_name():
    params = parameters(values(1))
    arrays = values(1)
    optimizer = stt.ScheduleFreeAdamW(params)
    ours = st.ScheduleFreeAdamW(arrays)
    with pytest.raises(ValueError, match="keeps no averaged"):
        stt.SGD(params).averaged()
    for t in range(3):
        give(params, values(t + 2))
        optimizer.step()
        ours.step(values(t + 2))
    for name, x in ours.averaged().items():
        assert optimizer.averaged()[name].numpy().tobytes() == x.tobytes()
    assert optimizer.param_groups[0]["lr_max"] == ours.param_groups[0]["lr_max"] > 0


def test_sophia_takes_estimates():
    params, arrays = parameters(values(1)), values(1)
    optimizer, ours = stt.Sophia(params, lr=0.1), st.Sophia(arrays, lr=0.1)
    for t in range(3):
        give(params, values(t + 2))
        ours.update_hessian([g * g for g in values(t + 2)])
        optimizer.update_hessian([p.grad * p.grad for p in params])
        optimizer.step()
        ours.step(values(t + 2))
    assert same(params, arrays)


def test_an_estimate_before_the_first_step_is_saved():
    """Also of a parameter that has no gradient yet; one without an estimate has no state."""
    params, others = parameters(values(0)), parameters(values(0))
    ours, loaded = stt.Sophia(params, lr=0.1), stt.Sophia(others, lr=0.1)
    ours.update_hessian([None, *(torch.ones_like(p) for p in params[1:])])
    assert params[0] not in ours.state and bool((ours.state[params[1]]["hessian"] > 0).all())
    loaded.load_state_dict(ours.state_dict())
    for each, own in ((params, ours), (others, loaded)):
        give(each, values(1))
        own.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q) and torch.equal(
            ours.state[p]["hessian"], loaded.state[q]["hessian"]
        )


def test_nonfinite_gradients_can_be_skipped():
    params = parameters([np.ones(2)])
    optimizer = stt.SGD(params, 1.0, nonfinite="skip")
    give(params, [np.array([np.nan, 1.0])])
    optimizer.step()
    assert params[0].tolist() == [1.0, 1.0]
    assert optimizer.skipped == 1 and optimizer.updates == 0 and "'0'" in optimizer.last_skip


# torch's contracts


def test_a_closure_has_gradients_and_its_loss_is_returned():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = stt.SGD([w], 0.5)

    def closure():
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 2.0
    assert w.tolist() == [0.0, 0.0] and optimizer.step() is None


def test_hooks_are_called():
    calls = []
    params = parameters(values(1))
    optimizer = stt.AdamW(params)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("state pre"))
    optimizer.register_state_dict_post_hook(lambda _, d: {**d, "more": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, d: calls.append(d["more"]))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    give(params, values(2))
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre", "post", "state pre", 1, "loaded"]


def test_the_state_is_made_at_the_first_step_and_shares_memory():
    params = parameters(values(1))
    optimizer = stt.Adam(params)
    assert not optimizer.state
    give(params, [values(2)[0], None, None, None])
    optimizer.step()
    assert list(optimizer.state) == [params[0]]
    state = optimizer.state[params[0]]
    assert state["step"].dtype == torch.int64
    state["exp_avg"].zero_()  # in place: the next step uses it
    g = values(2)[0]
    optimizer.step()
    expected = np.float32(1.0 - 0.9) * g
    assert np.array_equal(state["exp_avg"].numpy(), expected)
    give(params, values(2))
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [3, 1, 1, 1]


def test_a_replaced_state_is_used():
    params, others = parameters(values(1)), parameters(values(1))
    optimizer, other = stt.Adam(params), stt.Adam(others)
    for ps, opt in ((params, optimizer), (others, other)):
        give(ps, values(2))
        opt.step()
    fresh = torch.ones_like(params[0])
    optimizer.state[params[0]]["exp_avg"] = fresh
    other.state[others[0]]["exp_avg"].fill_(1.0)
    for ps, opt in ((params, optimizer), (others, other)):
        give(ps, values(3))
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert fresh.data_ptr() == optimizer.state[params[0]]["exp_avg"].data_ptr()
    optimizer.state.clear()
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 1
    optimizer.state[params[1]]["exp_avg"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"'exp_avg' of parameter '1'"):
        optimizer.step()


def test_moved_data_is_followed():
    params, others = parameters(values(1)), parameters(values(1))
    optimizer, other = stt.Adam(params), stt.Adam(others)
    for t in range(4):
        for ps, opt in ((params, optimizer), (others, other)):
            give(ps, values(t + 2))
            opt.step()
        old = [p.data for p in params]
        kept = [x.clone() for x in old]
        for p in params:
            p.data = p.data.clone()
        give(params, values(t + 20))
        give(others, values(t + 20))
        optimizer.step()
        other.step()
        assert all(torch.equal(x, y) for x, y in zip(old, kept, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_the_same_memory_with_other_axes_is_noticed():
    p = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    q = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer, other = stt.SGD([p], 1.0), torch.optim.SGD([q], 1.0)
    for x in (p, q):
        x.grad = torch.ones(2, 3)
    optimizer.step()
    other.step()
    for x in (p, q):
        x.grad = None
        x.data = x.data.t()
        x.grad = torch.arange(6.0).reshape(3, 2)
    optimizer.step()
    other.step()
    assert torch.equal(p, q)


def test_a_replaced_parameter_starts_anew():
    params = parameters(values(1))
    optimizer = stt.Adam(params)
    give(params, values(2))
    optimizer.step()
    new = torch.nn.Parameter(torch.zeros(7, 5))
    optimizer.param_groups[0]["params"][0] = new
    new.grad = torch.ones(7, 5)
    optimizer.step()
    assert optimizer.state[new]["step"] == 1 and optimizer.state[params[1]]["step"] == 2


def strided(kind, x):
    if kind == "transposed":
        return x.t().contiguous().t()
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "sliced":
        return torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x)
    return x.contiguous()


@pytest.mark.parametrize(("of_p", "of_g"), [
    ("transposed", "contiguous"), ("contiguous", "transposed"), ("sliced", "contiguous"),
    ("contiguous", "sliced"), ("channels_last", "contiguous"), ("contiguous", "channels_last"),
    ("channels_last", "channels_last"),
])  # fmt: skip
def test_any_strides_give_the_same_bits(of_p, of_g):
    shape = (3, 4, 5, 2) if "channels_last" in (of_p, of_g) else (3, 4)
    x = torch.tensor(np.random.default_rng(1).standard_normal(shape))
    p, q = torch.nn.Parameter(strided(of_p, x)), torch.nn.Parameter(x.clone())
    strides, address = p.stride(), p.data_ptr()
    a, b = stt.AdamW([p]), stt.AdamW([q])
    for t in range(3):
        g = torch.tensor(np.random.default_rng(t + 2).standard_normal(shape))
        q.grad, p.grad = g.clone(), None
        p.grad = strided(of_g, g)
        a.step()
        b.step()
    assert torch.equal(p, q) and (p.stride(), p.data_ptr()) == (strides, address)


def test_negative_views_are_told_apart():
    z = torch.arange(6.0, dtype=torch.float64) * (1 + 2j)
    plain, negative = z.imag.clone(), z.conj().imag
    assert negative.is_neg()
    p = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = stt.SGD([p], 1.0)
    p.grad = z.imag  # laid out as the negative one
    optimizer.step()
    p.grad = negative
    optimizer.step()
    assert p.tolist() == [0.0] * 6 and plain.any()


def test_precisions_and_empty_tensors_mix():
    params = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(0, 3)),
              torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))]  # fmt: skip
    optimizer = stt.SGD(params, 0.5)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert params[0].tolist() == [0.5, 0.5] and params[2].item() == 0.5


@pytest.mark.parametrize(("name", "hyper"), [
    ("SGD", {"momentum": 0.8}), ("Adam", {"weight_decay": 0.1}), ("AdamW", {"amsgrad": True}),
    ("RMSprop", {"centered": True, "momentum": 0.7}), ("Adagrad", {"lr_decay": 0.1}),
])  # fmt: skip
@pytest.mark.parametrize("scalar", [False, True])
def test_complex_parameters_are_pairs(name, hyper, scalar):
    def made(seed):
        rng = np.random.default_rng(seed)
        shape = () if scalar else (3, 2)
        return torch.tensor(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))

    p, q = torch.nn.Parameter(made(1)), torch.nn.Parameter(made(1))
    ours, theirs = getattr(stt, name)([p], **hyper), getattr(torch.optim, name)([q], **hyper)
    for t in range(4):
        p.grad, q.grad = made(t + 2), made(t + 2)
        if t == 3:
            p.grad, q.grad = p.grad.conj(), q.grad.conj().resolve_conj()  # theirs refuses it
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    for key, x in theirs.state_dict()["state"][0].items():
        mine = ours.state_dict()["state"][0][key]
        assert mine.dtype == x.dtype and mine.shape == x.shape


@pytest.mark.parametrize("rule", ["Muon", "Adafactor", "SOAP"])
def test_rules_of_matrices_refuse_complex_parameters(rule):
    p = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))
    with pytest.raises(TypeError, match="'0' is complex"):
        getattr(stt, rule)([p])


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e5m2])
def test_other_formats_are_refused(dtype):
    with pytest.raises(TypeError, match=f"'1' has dtype {dtype}"):
        stt.AdamW([torch.ones(2), torch.ones(2, dtype=dtype)])


def test_other_devices_and_layouts_are_refused():
    with pytest.raises(TypeError, match="'0' lies on device meta"):
        stt.AdamW([torch.nn.Parameter(torch.ones(2, device="meta"))])
    layer = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = stt.SGD(layer.parameters())
    layer(torch.tensor([1, 3])).sum().backward()
    before = layer.weight.detach().clone()
    with pytest.raises(TypeError, match=r"'0' has layout torch.sparse_coo.*to_dense"):
        optimizer.step()
    assert torch.equal(layer.weight, before)


def test_tied_memory_is_refused():
    x = torch.ones(4)
    with pytest.raises(ValueError, match="share memory"):
        stt.AdamW([torch.nn.Parameter(x), torch.nn.Parameter(x)])
    p = torch.nn.Parameter(x)
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(ValueError, match="share"):
        stt.AdamW([p, p])
    a, b = parameters([np.ones(2), np.ones(2)])
    optimizer = stt.SGD([a, b])
    b.data = a.data
    give([a, b], [np.ones(2), np.ones(2)])
    with pytest.raises(ValueError, match="share memory"):
        optimizer.step()
    assert a.tolist() == [1.0, 1.0]


def test_a_gradient_on_the_parameters_memory_is_refused():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = stt.SGD([p])
    p.grad = torch.ones(3)
    optimizer.step()
    p.grad = p.data
    with pytest.raises(ValueError, match="shares memory"):
        optimizer.step()


def test_after_an_exception_nothing_has_changed():
    params = parameters(values(1))
    optimizer = stt.AdamW(params, nonfinite="raise")
    give(params, values(2))
    optimizer.step()
    before = copy.deepcopy(([p.detach() for p in params], optimizer.state_dict()))
    params[3].grad = torch.full((1,), torch.nan)
    with pytest.raises(FloatingPointError, match="'3'"):
        optimizer.step()
    after = ([p.detach() for p in params], optimizer.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(before[0], after[0], strict=True))
    for i, state in before[1]["state"].items():
        assert all(torch.equal(x, after[1]["state"][i][key]) for key, x in state.items())


def test_a_program_of_torchs_is_told_where_its_optimizers_are():
    model = torch.nn.Linear(3, 2)
    optimizer = st.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    with pytest.raises(AttributeError, match=r"'zero_grad'.*steepest\.torch\.AdamW"):
        optimizer.zero_grad()
    with pytest.raises(TypeError, match=r"step\(\) without gradients.*steepest\.torch\.AdamW"):
        optimizer.step()
    assert not hasattr(optimizer, "nothing") and optimizer.updates == 0
    optimizer.step([p.grad for p in model.parameters()])
    assert optimizer.updates == 1


def test_a_gradient_of_another_kind_is_not_said_to_be_used_in_place():
    for optimizer, wrong in (
        (st.SGD(np.zeros(2)), [1.0, 2.0]),
        (st.SGD([np.zeros(2)]), [(1.0, 2.0)]),
    ):
        with pytest.raises(
            TypeError, match=r"gradient of parameter '0' is a .*, not an array"
        ) as e:
            optimizer.step(wrong)
        assert "used in place" not in str(e.value)
    with pytest.raises(TypeError, match="since it is used in place"):
        st.SGD([[1.0]])


def test_arrays_step_with_gradients_of_torch():
    arrays, others = values(1), values(1)
    ours, same_too = st.AdamW(arrays), st.AdamW(others)
    for t in range(3):
        grads = [torch.tensor(g, requires_grad=True) for g in values(t + 2)]
        ours.step(grads)
        same_too.step(values(t + 2))
    assert all(np.array_equal(x, y) for x, y in zip(arrays, others, strict=True))


def test_a_group_may_go_by_a_rule_that_lacks_the_others_convention():
    arrays = values(1, shapes=[(3, 2), (4,)])
    params = parameters(arrays)
    groups = [{"params": [arrays[0]]}, {"params": [arrays[1]], "rule": "lamb"}]
    ours = RULES["adamw"](groups)
    theirs = stt.AdamW([dict(g, params=[p]) for g, p in zip(groups, params, strict=True)])
    for t in range(2):
        grads = values(2 + t, shapes=[(3, 2), (4,)])
        ours.step([[g] for g in grads])
        give(params, grads)
        theirs.step()
    assert same(params, arrays)


@pytest.mark.parametrize("kind", [stt.ScheduleFreeAdamW, stt.Prodigy, stt.DAdaptAdam])
def test_numbers_of_groups_are_those_of_the_parameters_after_ctrl_c_at_any_line(kind):
    """Those that the rule keeps come into torch's groups after the step: late, where that ends
    early, but before anything else uses them."""

    def begun():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(3)) for _ in range(3)]
        opt = kind([{"params": params[:2]}, {"params": params[2:]}])
        for turn in range(2):
            for p in params:
                p.grad = torch.randn(3)
            if not turn:
                opt.step()
        return params, opt

    def seen(params, opt):
        groups = opt.state_dict()["param_groups"]
        return [p.tolist() for p in params], groups, opt.updates

    params, opt = begun()
    before = seen(params, opt)
    opt.step()
    after = seen(params, opt)
    assert before[1] != after[1]
    for n in itertools.count(1):
        params, opt = begun()
        ended = interrupted_at(n, opt.step)
        assert seen(params, opt) == (after if opt.updates == 2 else before), n
        if not ended:
            break
    assert n > 100


def test_a_number_of_a_group_that_is_set_after_a_step_that_failed_stays_set():
    p = torch.nn.Parameter(torch.ones(3))
    opt = stt.Prodigy([p])
    p.grad = torch.ones(3)
    opt.step()
    p.grad = torch.ones(4)[:3].to_sparse()
    with pytest.raises(TypeError, match="layout"):
        opt.step()
    opt.param_groups[0]["d"] = 0.125
    assert opt.state_dict()["param_groups"][0]["d"] == 0.125
