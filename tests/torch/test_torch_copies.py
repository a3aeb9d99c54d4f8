"""Copy-out of torch optimizers: a model in 16 bits beside float32 masters that are stepped."""

import copy
import io

import pytest

import steepest as st

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402

SHORT = (torch.bfloat16, torch.float16)


def made(dtype=torch.bfloat16):
    """A model of 16 bits, and float32 masters of its parameters."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 33), torch.nn.Tanh(), torch.nn.Linear(33, 2)
    ).to(dtype)
    return model, [torch.nn.Parameter(q.detach().float()) for q in model.parameters()]


def backward(model, masters, t):
    source = torch.Generator().manual_seed(t)
    x = torch.randn(8, 20, generator=source).to(next(model.parameters()).dtype)
    model.zero_grad()
    model(x).float().square().sum().backward()
    for p, q in zip(masters, model.parameters(), strict=True):
        p.grad = q.grad.float()


def are_copies(model, masters):
    for p, q in zip(masters, model.parameters(), strict=True):
        assert torch.equal(q, p.detach().to(q.dtype))


OPTIONS = [
    {},
    {"clip": st.clip.global_norm(0.5), "ema": 0.9},
    {"regularize": st.regularize.max_norm(0.5)},
    {"lookahead": st.average.lookahead(2)},
]


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("rule", ["SGD", "AdamW", "Lion", "Muon", "Adafactor", "ScheduleFreeAdamW"])
def test_a_model_has_the_rounded_masters(rule, dtype):
    for options in OPTIONS[: 3 if rule.startswith("Sch") else 4]:
        model, masters = made(dtype)
        twin, others = made(dtype)
        opt = getattr(stt, rule)(masters, lr=0.01, copies=model.parameters(), **options)
        plain = getattr(stt, rule)(others, lr=0.01, **options)
        for t in range(4):
            backward(model, masters, t)
            backward(twin, others, t)
            opt.step()
            plain.step()
            with torch.no_grad():
                for p, q in zip(others, twin.parameters(), strict=True):
                    q.copy_(p)
            are_copies(model, masters)
            for p, other in zip(masters, others, strict=True):
                assert torch.equal(p, other)
        assert sorted(opt.state_dict()["param_groups"][0]) == sorted(
            plain.state_dict()["param_groups"][0]
        )


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="needs Tensor.grad_dtype")
def test_gradients_of_the_model_itself():
    model, masters = made()
    opt = stt.AdamW(masters, lr=0.01, copies=list(model.parameters()))
    for p in masters:
        p.grad_dtype = torch.bfloat16
    for t in range(3):
        model(torch.ones(4, 20, dtype=torch.bfloat16) * t).sum().backward()
        for p, q in zip(masters, model.parameters(), strict=True):
            p.grad, q.grad = q.grad, None
        opt.step()
        are_copies(model, masters)


def test_a_backward_pass_over_an_old_copy_raises():
    """As where the step has changed what the graph has kept."""
    w = torch.nn.Parameter(torch.ones(3))
    q = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    opt = stt.SGD([w], lr=0.1, copies=[q])
    loss = (q * q).sum()
    w.grad = torch.ones(3)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_copies_made_for_inference():
    w = torch.nn.Parameter(torch.ones(3))
    with torch.inference_mode():
        q = w.to(torch.bfloat16)
    opt = stt.SGD([w], lr=0.25, copies=[q])
    w.grad = torch.ones(3)
    opt.step()
    assert torch.equal(q, torch.full((3,), 0.75, dtype=torch.bfloat16))


def test_groups_names_and_none():
    model, masters = made()
    names = [name for name, _ in model.named_parameters()]
    named = dict(model.named_parameters())
    pairs = list(zip(names, masters, strict=True))
    kept = named.pop("0.bias")
    before = kept.detach().clone()
    opt = stt.AdamW(pairs, lr=0.01, copies=named | {"0.bias": None}, exclude="vectors",
                    weight_decay=0.5)  # fmt: skip
    assert len(opt.param_groups) == 2
    backward(model, masters, 0)
    opt.step()
    assert torch.equal(kept, before)
    for p, q in [(masters[0], model[0].weight), (masters[2], model[2].weight)]:
        assert torch.equal(q, p.to(q.dtype))
    for copies in (model.named_parameters(), model.parameters()):
        stt.AdamW(pairs, lr=0.01, copies=copies).step()
        are_copies(model, masters)
    qs = list(model.parameters())
    given = {"params": masters[:2], "copies": qs[:2]}
    opt = stt.AdamW([given, {"params": masters[2:3]}], lr=0.01, copies=[None, [qs[2]]])
    assert given["copies"] == qs[:2] and "copies" not in opt.param_groups[0]
    opt.add_param_group({"params": masters[3], "copies": qs[3], "lr": 0.5})
    backward(model, masters, 1)
    opt.step()
    are_copies(model, masters)
    with pytest.raises(ValueError, match="copies of a parameter are given twice"):
        stt.AdamW([given], copies=[qs[:2]])
    extra = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="copy of parameter '3' and copy of parameter '4' share"):
        opt.add_param_group({"params": extra, "copies": qs[3]})
    with pytest.raises(TypeError, match="copy of parameter '4' is a list; expected a tensor"):
        opt.add_param_group({"params": extra, "copies": [[1.0, 2.0]]})
    assert len(opt.param_groups) == 3
    opt.add_param_group({"params": extra})
    backward(model, masters, 2)
    opt.step()
    are_copies(model, masters)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (torch.zeros(4), ValueError, r"copy of parameter '0' has shape \(4,\); expected the param"),
        (torch.zeros(3, dtype=torch.int32), TypeError, "copy of parameter '0' has dtype torch.in"),
        (torch.zeros(1).expand(3), ValueError, "copy of parameter '0' has elements that share mem"),
        (torch.zeros(3, device="meta"), TypeError, "lies on device meta"),
        (torch.zeros(3).to_sparse(), TypeError, "has layout torch.sparse_coo"),
        ([torch.zeros(3), torch.zeros(3)], ValueError, "copies has 2 entries; expected 1"),
        ({"w": torch.zeros(3)}, TypeError, "copies is a dict; expected a list of 1"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_copies(wrong, error, said):
    with pytest.raises(error, match=said):
        stt.AdamW([torch.nn.Parameter(torch.ones(3))], copies=wrong)
    w = torch.nn.Parameter(torch.ones(3))
    for same in (w, w.detach(), w.data[::1]):
        with pytest.raises(ValueError, match="share memory"):
            stt.AdamW([w], copies=[same])


def test_a_copy_that_moves_is_followed():
    w = torch.nn.Parameter(torch.ones(3))
    q = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    opt = stt.AdamW([w], lr=0.1, copies=[q])
    for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float64):
        q.data = torch.zeros(3, dtype=dtype)
        w.grad = torch.ones(3)
        opt.step()
        assert torch.equal(q, w.to(dtype))
    q.data = torch.zeros(4)
    before = w.detach().clone()
    with pytest.raises(ValueError, match=r"copy of parameter '0' has shape \(4,\)"):
        opt.step()
    assert torch.equal(w, before)
    q.data = torch.zeros(3)
    w.data = w.data.clone()
    opt.step()
    assert torch.equal(q, w)


def test_complex_numbers():
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    q = torch.zeros(3, dtype=torch.complex128)
    opt = stt.AdamW([w], lr=0.1, copies=[q])
    w.grad = torch.ones(3, dtype=torch.complex64)
    for _ in range(2):
        opt.step()
        assert torch.equal(q, w.to(q.dtype))
        q.data = torch.zeros(3, dtype=torch.complex128)


def test_masters_of_a_copied_parameter():
    """The copy of a bfloat16 parameter with a master is of the master."""
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    q = torch.zeros(3)
    opt = stt.AdamW([w], lr=1e-3, master="float32", copies=[q])
    w.grad = torch.ones(3, dtype=torch.bfloat16)
    opt.step()
    assert torch.equal(q, opt.state[w]["master"]) and not torch.equal(q, w.float())


def test_saved_states_and_copied_optimizers():
    model, masters = made()
    opt = stt.AdamW(masters, lr=0.01, copies=model.parameters())
    backward(model, masters, 0)
    opt.step()
    twin, others, other = copy.deepcopy((model, masters, opt))
    file = io.BytesIO()
    torch.save((model, masters, opt), file)
    file.seek(0)
    third, thirds, loaded = torch.load(file, weights_only=False)
    fresh, own = made()
    last = stt.AdamW(own, lr=0.5, copies=fresh.parameters())
    last.load_state_dict(copy.deepcopy(opt.state_dict()))
    with torch.no_grad():
        for p, x in zip([*own, *fresh.parameters()], [*masters, *model.parameters()], strict=True):
            p.copy_(x)
    cases = [
        (model, masters, opt),
        (twin, others, other),
        (third, thirds, loaded),
        (fresh, own, last),
    ]
    for m, own, o in cases:
        backward(m, own, 1)
        o.step()
        are_copies(m, own)
        for p, q in zip(own, masters, strict=True):
            assert torch.equal(p, q)


def test_steps_in_the_backward_pass():
    w = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
    q = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    opt = stt.AdamW(w, lr=0.1, copies=[q, None])
    with stt.step_in_backward(opt):
        old = (q * q).sum()
        for _ in range(2):
            sum((x * x).sum() for x in w).backward()
            assert torch.equal(q, w[0].to(q.dtype))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        old.backward()
