"""Parameters, gradients and states of 16 bits: a step has the bits of ``steepest.reference``."""

import copy
import io
import math

import numpy as np
import pytest

import steepest as st
from steepest.codecs import BFLOAT16, decoded, joined
from steepest.extension.testing import reference_hyper, reference_step, same_bits

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402

SHORT = [torch.bfloat16, torch.float16]
SIZES = [(7, 5), (6,), (), (0, 3), (3000,)]
RULES = {
    "AdamW": {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-5},
    "Lion": {"lr": 0.02, "betas": (0.7, 0.9), "weight_decay": 0.2},
    "SGD": {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.03},
}

types = pytest.mark.parametrize("dtype", SHORT, ids=str)
rules = pytest.mark.parametrize("rule", RULES)


def array(x):
    """A NumPy array over the same memory."""
    x = x.detach()
    return x.view(torch.int16).numpy().view(BFLOAT16) if x.dtype == torch.bfloat16 else x.numpy()


def network(dtype):
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
    return torch.nn.Sequential(*layers).to(dtype)


def backward(model, t, scale=1.0):
    """Leaves gradients of the model's own dtype."""
    dtype = next(model.parameters()).dtype
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(t)).to(dtype)
    model.zero_grad()
    (scale * model(x).square().sum()).backward()


def parameters(dtype, sizes=SIZES):
    source = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(n, generator=source).to(dtype)) for n in sizes]


def give(params, t, dtype):
    source = torch.Generator().manual_seed(100 + t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source).to(dtype)


class Twin:
    """The reference on arrays of its own, with the gradients that the parameters have."""

    def __init__(self, rule, params, **options):
        self.params = list(params)
        self.arrays = [array(p).copy() for p in self.params]
        self.names = getattr(st, rule)(self.arrays, **options)
        self.states = [
            {key: x.copy() for key, x in state.items() if key != "step"}
            for state in self.names.state.values()
        ]
        self.t = 0

    def step(self, **more):
        self.t += 1
        grads = [array(p.grad) for p in self.params]
        hyper = reference_hyper(self.names) | more
        reference_step(self.names, self.arrays, grads, self.states, self.t, {}, **hyper)

    def check(self, optimizer):
        """Every bit of parameters and states, and the formats in which they are."""
        for p, mine, state in zip(self.params, self.arrays, self.states, strict=True):
            same(array(p), mine)
            live = {key: x for key, x in optimizer.state[p].items() if key != "step"}
            assert live.keys() == state.keys()
            for key, x in live.items():
                same(array(x), state[key])


def same(one, other):
    if one.dtype != other.dtype:  # of ml_dtypes
        other = other.view(one.dtype)
    np.testing.assert_array_equal(decoded(one, np.float64), decoded(other, np.float64))


def equal(params, others):
    return all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def saved(value):
    """What torch.load gives of what torch.save wrote."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


# Steps


@types
@rules
def test_a_model_trains_with_the_bits_of_the_reference(rule, dtype):
    model = network(dtype)
    params = list(model.parameters())
    places = [p.data_ptr() for p in params]
    optimizer = getattr(stt, rule)(params, **RULES[rule])
    twin = Twin(rule, params, **RULES[rule])
    for t in range(5):
        backward(model, t)
        assert params[0].grad.dtype == dtype
        optimizer.step()
        twin.step()
        twin.check(optimizer)
    assert all(map(torch.Tensor.is_set_to, params, model.parameters()))
    assert [p.data_ptr() for p in params] == places
    assert [p.dtype for p in params] == [dtype] * 4
    states = [x for s in optimizer.state.values() for key, x in s.items() if key != "step"]
    assert {x.dtype for x in states} == {torch.float32}
    assert not equal(params, network(dtype).parameters())


OPTIONS = [
    {"state_dtype": "bfloat16"},
    {"state_dtype": "float16"},
    {"state_dtype": "float64"},
    {"ema": 0.9, "clip": st.clip.value(0.5), "maximize": True},
    {"ema": 0.9, "state_dtype": {"exp_avg": "bfloat16", "ema": "float16"}},
    {"lookahead": st.average.lookahead(2, 0.37), "cautious": True},
]


@types
@rules
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_formats_of_states_and_options(rule, dtype, options):
    if rule == "SGD" and isinstance(options.get("state_dtype"), dict):
        options = options | {"state_dtype": {"momentum_buffer": "bfloat16", "ema": "float16"}}
    params = parameters(dtype)
    optimizer = getattr(stt, rule)(params, **RULES[rule], **options)
    twin = Twin(rule, params, **RULES[rule], **options)
    for t in range(4):
        give(params, t, dtype)
        optimizer.step()
        twin.step()
        twin.check(optimizer)


@types
def test_a_format_for_all_states_is_none_for_averages(dtype):
    [p] = parameters(dtype, [(7, 5)])
    optimizer = stt.AdamW([p], ema=0.9, state_dtype="bfloat16")
    give([p], 0, dtype)
    optimizer.step()
    found = {key: x.dtype for key, x in optimizer.state[p].items() if key != "step"}
    short = dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.bfloat16)
    assert found == {"ema": torch.float32, **short}


@types
def test_a_state_that_is_put_there_is_used(dtype):
    """In its own memory, if it is of the state's format."""
    [p] = parameters(dtype, [(7, 5)])
    optimizer = stt.Lion([p], betas=(0.9, 0.5), state_dtype=dtype)
    give([p], 0, dtype)
    optimizer.step()
    mine = torch.zeros_like(p)
    place = mine.data_ptr()
    optimizer.state[p]["exp_avg"] = mine
    optimizer.step()
    assert optimizer.state[p]["exp_avg"] is mine and mine.data_ptr() == place
    assert torch.equal(mine, 0.5 * p.grad)


@types
def test_strided_parameters_and_gradients(dtype):
    """Transposed, every other row, and memory that begins anywhere."""

    def laid(x):
        room = torch.zeros(2 * x.shape[1] + 1, x.shape[0] + 3, dtype=x.dtype)[1::2, 3:].t()
        return room.copy_(x)

    [p] = parameters(dtype, [(70, 50)])
    q = torch.nn.Parameter(laid(p.detach()))
    one, other = stt.AdamW([p], lr=0.1), stt.AdamW([q], lr=0.1)
    for t in range(3):
        give([p], t, dtype)
        q.grad = laid(p.grad) if t != 1 else p.grad.clone()
        one.step()
        other.step()
    assert torch.equal(p, q) and not q.is_contiguous()


@types
def test_gradients_that_are_marked_as_negative(dtype):
    [p], [q] = parameters(dtype, [(70,)]), parameters(dtype, [(70,)])
    give([p], 0, dtype)
    q.grad = torch._neg_view(p.grad.neg())
    assert q.grad.is_neg()
    for x in p, q:
        stt.AdamW([x], lr=0.1).step()
    assert torch.equal(p, q)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="needs Tensor.grad_dtype")
@types
@rules
def test_gradients_of_a_dtype_of_their_own(rule, dtype):
    """float32 parameters with gradients of 16 bits."""
    params = parameters(torch.float32)
    for p in params:
        p.grad_dtype = dtype
    optimizer, twin = getattr(stt, rule)(params, **RULES[rule]), Twin(rule, params, **RULES[rule])
    for t in range(3):
        give(params, t, dtype)
        optimizer.step()
        twin.step()
    twin.check(optimizer)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="needs Tensor.grad_dtype")
def test_a_backward_pass_makes_gradients_of_their_dtype():
    model = network(torch.float32)
    for p in model.parameters():
        p.grad_dtype = torch.bfloat16
    optimizer, twin = stt.AdamW(model.parameters()), Twin("AdamW", model.parameters())
    for t in range(3):
        backward(model, t)
        assert model[0].weight.grad.dtype == torch.bfloat16
        optimizer.step()
        twin.step()
    twin.check(optimizer)


@types
def test_global_norms_of_gradients_of_sixteen_bits(dtype):
    """The clip is of the factor that the norm of their numbers gives."""
    params = parameters(dtype)
    optimizer = stt.AdamW(params, clip=st.clip.global_norm(0.5), **RULES["AdamW"])
    twin = Twin("AdamW", params, **RULES["AdamW"])
    for t in range(3):
        give(params, t, dtype)
        optimizer.step()
        norm = math.sqrt(math.fsum(p.grad.double().square().sum().item() for p in params))
        assert optimizer.last_norm == pytest.approx(norm, rel=1e-12)  # summed in another order
        assert norm > 10
        [factor] = st.clip.global_norm(0.5).factors([optimizer.last_norm], [], t)
        twin.step(factor=factor)
        twin.check(optimizer)


@types
def test_averages_are_float32(dtype):
    model = network(dtype)
    optimizer = stt.SGD(model.named_parameters(), lr=0.01, ema=0.999)
    for t in range(3):
        backward(model, t)
        optimizer.step()
    averages = optimizer.averaged()
    for name, p in model.named_parameters():
        assert optimizer.state[p]["ema"].dtype == averages[name].dtype == torch.float32
    assert not equal([x.to(dtype).float() for x in averages.values()], averages.values())
    model.load_state_dict(averages)
    assert equal([x.to(dtype) for x in averages.values()], model.parameters())


@pytest.mark.parametrize("formats", [
    (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float64),
    (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16),
    (torch.bfloat16, torch.bfloat16), (torch.complex64, torch.bfloat16),
], ids=str)  # fmt: skip
def test_schedule_free_points(formats):
    """eval() and train() go to points that are computed in the wider format, and rounded once."""
    dtype, of_z = formats
    [p] = parameters(dtype, [(40, 2)])
    optimizer = stt.ScheduleFreeAdamW([p], lr=0.05, betas=(0.9, 0.99), state_dtype={"z": of_z})
    for t in range(6):
        give([p], t, dtype)
        optimizer.step()
    y, z = p.detach().clone(), optimizer.state[p]["z"]
    assert z.dtype == of_z
    optimizer.eval()
    if dtype.is_complex:
        z = torch.view_as_complex(z.float())
    double = torch.complex128 if dtype.is_complex else torch.float64
    x = (y.to(double) - (1 - 0.9) * z.to(double)) / 0.9
    eps = torch.finfo(dtype).eps
    # The point x is rounded once to the parameter's format, and the way back once more.
    torch.testing.assert_close(p.detach().to(double), x, rtol=eps, atol=eps)
    assert not torch.equal(p, y)
    optimizer.train()
    torch.testing.assert_close(p.detach(), y, rtol=2 * eps, atol=2 * eps)
    give([p], 6, dtype)
    optimizer.step()
    assert optimizer.updates == 7


@types
def test_steps_in_the_backward_pass(dtype):
    model, other = network(dtype), network(dtype)
    one, two = (stt.AdamW(m.parameters(), **RULES["AdamW"]) for m in (model, other))
    with stt.step_in_backward(one):
        for t in range(4):
            backward(model, t)
            assert all(p.grad is None for p in model.parameters())
            backward(other, t)
            two.step()
    assert equal(model.parameters(), other.parameters())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert equal(one.state[p].values(), two.state[q].values())


# Loss scaling


@types
@pytest.mark.parametrize("scale", [256.0, 1000.0])
def test_a_scaled_loss(dtype, scale):
    """The gradient is multiplied in float32 by the inverse of the scale, and a step of which a
    gradient is infinite is left out."""
    params = parameters(dtype)
    optimizer, twin = stt.AdamW(params, **RULES["AdamW"]), Twin("AdamW", params, **RULES["AdamW"])
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
    for t in range(5):
        scaler.scale(torch.ones(()))  # makes the scale
        give(params, t, dtype)
        if t == 2:
            params[1].grad[3] = math.inf
        now = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if t != 2:
            twin.step(factor=float(np.float32(1.0 / now)))
        twin.check(optimizer)
    assert optimizer.skipped == 1 and scaler.get_scale() == scale / 2


def test_a_scaler_trains_a_model_in_float16():
    """The scale, which has fewer bits than a float16 has, changes no bit of the larger ones."""
    model, other = network(torch.float16), network(torch.float16)
    one, two = (stt.AdamW(m.parameters(), **RULES["AdamW"]) for m in (model, other))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for t in range(4):
        backward(model, t, scaler.scale(torch.ones((), dtype=torch.float16)))
        scaler.step(one)
        scaler.update()
        backward(other, t)
        two.step()
    assert equal(model.parameters(), other.parameters()) and one.updates == 4


# State dicts


@types
@pytest.mark.parametrize("states", [None, "bfloat16", "float16"])
def test_what_torchs_own_has_saved_goes_on(dtype, states):
    """Its states have the dtype of the parameters; here they are widened, without rounding."""
    model = network(dtype)
    theirs = torch.optim.AdamW(model.parameters(), **RULES["AdamW"])
    for t in range(3):
        backward(model, t)
        theirs.step()
    ours = stt.AdamW(model.parameters(), state_dtype=states, **RULES["AdamW"])
    ours.load_state_dict(saved(theirs.state_dict()))
    twin = Twin("AdamW", model.parameters(), state_dtype=states, **RULES["AdamW"])
    twin.t = 3
    wanted = torch.float32 if states is None else getattr(torch, states)
    for p, state in zip(model.parameters(), twin.states, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            x, y = ours.state[p][key], theirs.state[p][key]
            assert y.dtype == dtype and x.dtype == wanted
            assert torch.equal(x, y.to(wanted))
            state[key] = array(x).copy().view(state[key].dtype)
    backward(model, 3)
    ours.step()
    twin.step()
    twin.check(ours)


@types
@pytest.mark.parametrize("options", [
    {}, {"state_dtype": "bfloat16"}, {"state_dtype": {"exp_avg": "float16"}, "ema": 0.9},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_a_run_goes_on(dtype, options, how):
    def run(model, optimizer, steps):
        for t in steps:
            backward(model, t)
            optimizer.step()

    def types_of(optimizer):
        return [{key: x.dtype for key, x in s.items()} for s in optimizer.state.values()]

    whole = network(dtype)
    optimizer = stt.AdamW(whole.parameters(), **RULES["AdamW"], **options)
    run(whole, optimizer, range(3))
    if how == "state_dict":
        model = network(dtype)
        model.load_state_dict(saved(whole.state_dict()))
        again = stt.AdamW(model.parameters(), **RULES["AdamW"], **options)
        again.load_state_dict(saved(optimizer.state_dict()))
    elif how == "deepcopy":
        model, again = copy.deepcopy((whole, optimizer))
    else:
        file = io.BytesIO()
        torch.save((whole, optimizer), file)
        file.seek(0)
        model, again = torch.load(file, weights_only=False)
    assert types_of(again) == types_of(optimizer)
    run(whole, optimizer, range(3, 6))
    run(model, again, range(3, 6))
    assert equal(whole.parameters(), model.parameters())


@types
def test_torchs_own_goes_on_from_ours(dtype):
    """It casts states to the dtype of their parameters."""
    model = network(dtype)
    ours = stt.AdamW(model.parameters())
    backward(model, 0)
    ours.step()
    theirs = torch.optim.AdamW(model.parameters())
    theirs.load_state_dict(saved(ours.state_dict()))
    for p in model.parameters():
        assert torch.equal(theirs.state[p]["exp_avg"], ours.state[p]["exp_avg"].to(dtype))
    theirs.step()


@types
@rules
def test_a_model_that_is_cast_goes_on(rule, dtype):
    """model.bfloat16() and model.float() between steps: states stay float32, bit for bit."""
    model = network(torch.float32)
    optimizer = getattr(stt, rule)(model.parameters(), ema=0.9, **RULES[rule])
    twin = Twin(rule, model.parameters(), ema=0.9, **RULES[rule])
    for t in range(6):
        if t in (2, 4):
            model.to(dtype if t == 2 else torch.float32)
            twin.arrays = [array(p).copy() for p in model.parameters()]
        backward(model, t)
        optimizer.step()
        twin.step()
        twin.check(optimizer)
    states = [x for s in optimizer.state.values() for key, x in s.items() if key != "step"]
    assert {x.dtype for x in states} == {torch.float32}


def test_a_model_that_is_cast_to_double_and_back():
    """States follow a parameter into float64, and are float32 again with 16 bits."""
    model = network(torch.bfloat16)
    optimizer = stt.AdamW(model.parameters(), lr=0.1)
    for dtype in (torch.bfloat16, torch.float64, torch.float16, torch.float32):
        model.to(dtype)
        backward(model, 0)
        optimizer.step()
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert optimizer.state[model[0].weight]["exp_avg"].dtype == wanted


# Refused


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_what_is_refused():
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float8_e5m2))
    with pytest.raises(TypeError, match=r"'0' has dtype torch\.float8_e5m2; expected float32, f"):
        stt.AdamW([p])
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex32))
    with pytest.raises(TypeError, match=r"complex32; expected .*, or complex numbers of the first"):
        stt.AdamW([p])
    p = torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="the states of muon are matrices"):
        stt.Muon([p], state_dtype=torch.bfloat16)
    assert stt.AdamW([p], state_dtype=torch.bfloat16).param_groups[0]["state_dtype"] == "bfloat16"


# Masters


def trained_beside(params, twins, opt, other, steps):
    """Steps parameters of 16 bits with a master, and float32 ones, with the same gradients."""
    for t in range(steps):
        give(params, t, params[0].dtype)
        for p, twin in zip(params, twins, strict=True):
            twin.grad = p.grad.float()
        opt.step()
        other.step()


def whole(p, state):
    """The parameter as float32."""
    if "master" in state:
        return state["master"]
    return torch.from_numpy(np.asarray(joined(array(p), state["remainder"].numpy())))


@pytest.mark.parametrize(
    ("master", "dtype"), [("split16", SHORT[0]), *(("float32", x) for x in SHORT)]
)
@rules
def test_a_master_is_trained_as_float32(rule, master, dtype):
    params = parameters(dtype)
    twins = [torch.nn.Parameter(p.detach().float()) for p in params]
    opt = getattr(stt, rule)(params, **RULES[rule], master=master)
    other = getattr(stt, rule)(twins, **RULES[rule])
    trained_beside(params, twins, opt, other, 3)
    saved = copy.deepcopy(opt.state_dict())
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    third = getattr(stt, rule)(again, **RULES[rule], master=master)
    third.load_state_dict(saved)
    trained_beside(params, twins, opt, other, 3)
    for t in range(3):
        give(again, t, dtype)
        third.step()
    for p, twin, q in zip(params, twins, again, strict=True):
        assert torch.equal(whole(p, opt.state[p]), twin)
        assert torch.equal(q, p) and torch.equal(whole(q, third.state[q]), twin)
        nearest = twin.detach().to(dtype).float() - twin
        assert torch.equal((p.float() - twin).abs(), nearest.abs())


@pytest.mark.parametrize(
    ("master", "dtype"), [("split8", SHORT[0]), *(("kahan", x) for x in SHORT)]
)
@rules
def test_a_rounded_master_is_that_of_numpy(rule, master, dtype):
    params = parameters(dtype)
    twins = [array(p).copy() for p in params]
    opt = getattr(stt, rule)(params, **RULES[rule], master=master)
    other = getattr(st, rule)(twins, **RULES[rule], master=master)
    for t in range(6):
        give(params, t, dtype)
        if t == 3:  # goes on in another one
            saved = copy.deepcopy(opt.state_dict())
            opt = getattr(stt, rule)(params, **RULES[rule], master=master)
            opt.load_state_dict(saved)
        opt.step()
        other.step([array(p.grad) for p in params])
    [key] = {"remainder", "compensation"} & opt.state[params[0]].keys()
    for i, (p, twin) in enumerate(zip(params, twins, strict=True)):
        state = opt.state[p][key]
        assert state.dtype == (torch.int8 if master == "split8" else dtype)
        np.testing.assert_array_equal(array(p).view(np.uint16), twin.view(np.uint16))
        same_bits(decoded(array(state), np.float32), decoded(other.state[str(i)][key], np.float32))


@types
@rules
def test_stochastic_rounding_is_that_of_numpy(rule, dtype):
    given = RULES[rule] | {"rounding": "stochastic", "rounding_seed": 3}
    params = parameters(dtype)
    twins = [array(p).copy() for p in params]
    opt, other = getattr(stt, rule)(params, **given), getattr(st, rule)(twins, **given)
    for t in range(6):
        give(params, t, dtype)
        if t == 3:  # goes on in another one, whose rounding is that of the state dict
            saved = copy.deepcopy(opt.state_dict())
            opt = getattr(stt, rule)(params, **RULES[rule])
            opt.load_state_dict(saved)
        opt.step()
        other.step([array(p.grad) for p in params])
    for p, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(array(p).view(np.uint16), twin.view(np.uint16))


def test_a_checkpoint_without_masters_begins_them():
    """torch's own has none: the parameters are what it has left them at."""
    params = parameters(torch.bfloat16)
    theirs = torch.optim.AdamW(params, lr=0.05)
    give(params, 0, torch.bfloat16)
    theirs.step()
    opt = stt.AdamW(params, lr=0.05, master="split16")
    opt.load_state_dict(theirs.state_dict())
    twins = [torch.nn.Parameter(p.detach().float()) for p in params]
    other = stt.AdamW(twins, lr=0.05)
    other.load_state_dict(theirs.state_dict())
    trained_beside(params, twins, opt, other, 3)
    for p, twin in zip(params, twins, strict=True):
        assert torch.equal(whole(p, opt.state[p]), twin)
