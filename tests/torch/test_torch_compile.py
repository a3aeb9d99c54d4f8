"""torch.compile around a step: a graph break, and the bits of a run without it."""

import numpy as np
import pytest

import steepest as st

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Backend:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph


def training(make, compiled):
    """Parameter and losses of a few steps; how many graphs there were."""
    w = torch.nn.Parameter(torch.arange(1.0, 7.0).reshape(3, 2))
    opt = make([w])

    def body(x):
        loss = (w * w * x).sum()
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss.detach()

    backend = Backend()
    run = torch.compile(body, backend=backend) if compiled else body
    losses = [run(torch.full((3, 2), 0.5 + t)).item() for t in range(3)]
    return w.detach().numpy(), losses, backend.graphs


def halving(t):
    return float(np.float64(0.1) / (t + 1))


MAKE = {
    "adamw": lambda params: stt.AdamW(params, lr=0.1, clip=st.clip.global_norm(0.7)),
    "muon": lambda params: stt.Muon(params, lr=0.1),
    "schedule": lambda params: stt.SGD(params, lr=halving, momentum=0.9),
}


@pytest.mark.filterwarnings("ignore")  # of what torch.compile says of the functions in between
@pytest.mark.parametrize("name", MAKE)
def test_training_with_a_step_inside(name):
    w, losses, graphs = training(MAKE[name], compiled=True)
    expected, plain, _ = training(MAKE[name], compiled=False)
    np.testing.assert_array_equal(w, expected)
    assert losses == plain
    assert graphs  # of what is before the step


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["the step itself", "a function that calls it"])
def test_the_step_alone(what):
    w = torch.nn.Parameter(torch.ones(3))
    opt = stt.AdamW([w], lr=0.1, weight_decay=0.0)
    backend = Backend()
    step = opt.step if what == "the step itself" else lambda: opt.step()
    run = torch.compile(step, backend=backend)
    for _ in range(2):
        w.grad = torch.ones(3)
        run()
    assert opt.updates == 2 and w.detach().numpy() == pytest.approx(0.8)
    assert backend.graphs == 0


@pytest.mark.filterwarnings("ignore")
def test_what_a_step_calls_is_not_compiled_either():
    frames = []

    def schedule(t):
        frames.append(torch._C._dynamo.eval_frame.get_eval_frame_callback())
        return 0.1

    w = torch.nn.Parameter(torch.ones(3))
    opt = stt.SGD([w], lr=schedule)
    run = torch.compile(lambda: opt.step(), backend=Backend())
    for _ in range(2):
        w.grad = torch.ones(3)
        run()
    assert frames and not any(callable(x) for x in frames), frames
