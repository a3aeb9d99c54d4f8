"""A small transformer trained by our AdamW and by torch's: the same loss curves."""

import copy

import pytest

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest as st  # noqa: E402
import steepest.torch as stt  # noqa: E402

STEPS, HALF = 200, 100
TOKENS, LENGTH, BATCH = 11, 8, 16


class Transformer(torch.nn.Module):
    """Two encoder layers over tokens and places, and a head for the next number."""

    def __init__(self):
        super().__init__()
        self.tokens = torch.nn.Embedding(TOKENS, 16)
        self.places = torch.nn.Parameter(0.1 * torch.randn(LENGTH, 16))
        layer = torch.nn.TransformerEncoderLayer(
            16, 2, 32, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(16, TOKENS)

    def forward(self, x):
        return self.head(self.encoder(self.tokens(x) + self.places).mean(1))


class Training:
    """The larger of a sequence's first and last token."""

    def __init__(self, module, **options):
        torch.manual_seed(7)
        self.model = Transformer()
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = module.AdamW(groups, lr=3e-3, weight_decay=0.05, **options)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, 3e-3, total_steps=STEPS
        )
        self.t = 0

    def run(self, count):
        losses = []
        for _ in range(count):
            torch.manual_seed(1000 + self.t)  # the batch, and what is dropped
            x = torch.randint(TOKENS, (BATCH, LENGTH))
            y = torch.maximum(x[:, 0], x[:, -1])
            self.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            if self.t < STEPS - 1:
                self.scheduler.step()
            self.t += 1
            losses.append(loss.item())
        return torch.tensor(losses, dtype=torch.float64)

    def checkpoint(self):
        parts = self.model, self.optimizer, self.scheduler
        return copy.deepcopy([part.state_dict() for part in parts]), self.t

    def resume(self, checkpoint):
        states, self.t = copy.deepcopy(checkpoint)  # torch goes on in the tensors it is given
        for part, state in zip((self.model, self.optimizer, self.scheduler), states, strict=True):
            part.load_state_dict(state)
        return self


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in one order, and the machine left to others."""
    before, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(exact)


@pytest.fixture(scope="module")
def curves():
    """Loss curves of both, and their checkpoints half way."""
    found = {}
    for name, module in (("ours", stt), ("theirs", torch.optim)):
        training = Training(module)
        first = training.run(HALF)
        checkpoint = training.checkpoint()
        found[name] = torch.cat([first, training.run(STEPS - HALF)]), checkpoint
    return found


def apart(x, y):
    return (x - y).abs().max().item()


def test_the_loss_curves_agree(curves):
    ours, theirs = curves["ours"][0], curves["theirs"][0]
    assert apart(ours, theirs) <= 1e-4
    assert len(ours) == STEPS and ours[-20:].mean() < 0.9 * ours[:20].mean()  # and it learns


def test_torchs_checkpoint_continues_here(curves):
    curve, checkpoint = curves["theirs"]
    losses = Training(stt).resume(checkpoint).run(STEPS - HALF)
    assert apart(losses, curve[HALF:]) <= 1e-4


def test_our_checkpoint_continues_in_torch(curves):
    curve, checkpoint = curves["ours"]
    losses = Training(torch.optim).resume(checkpoint).run(STEPS - HALF)
    assert apart(losses, curve[HALF:]) <= 1e-4


def test_our_checkpoint_continues_here_with_the_same_bits(curves):
    curve, checkpoint = curves["ours"]
    assert torch.equal(Training(stt).resume(checkpoint).run(20), curve[HALF : HALF + 20])


def test_a_lost_state_is_seen(curves):
    """What the checks above would say of a checkpoint whose averages are lost."""
    curve, checkpoint = curves["theirs"]
    (model, optimizer, scheduler), t = copy.deepcopy(checkpoint)
    for state in optimizer["state"].values():
        state["exp_avg"].zero_()
    losses = Training(stt).resume(((model, optimizer, scheduler), t)).run(20)
    assert apart(losses, curve[HALF : HALF + 20]) > 1e-4


def test_clipping_inside_the_step_is_as_clipping_before_it(curves):
    class Inside(Training):
        def run(self, count):
            torch.nn.utils.clip_grad_norm_, kept = lambda *_: None, torch.nn.utils.clip_grad_norm_
            try:
                return super().run(count)
            finally:
                torch.nn.utils.clip_grad_norm_ = kept

    losses = Inside(stt, clip=st.clip.global_norm(1.0)).run(HALF)
    assert apart(losses, curves["theirs"][0][:HALF]) <= 1e-4
