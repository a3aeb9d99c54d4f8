"""Accelerate: a training loop of one's own, with accumulated gradients, clipping and checkpoints.

pip install "steepest[torch]" accelerate
python accelerate_loop.py          # or: accelerate launch --cpu accelerate_loop.py
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from steepest.torch import Lion


class Loop:
    """Fits a small network to a wave, in batches of 16 of which 4 make a step."""

    def __init__(self, folder: str | Path, optimizer: type = Lion, **options: Any) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=4,
            project_config=ProjectConfiguration(str(folder), automatic_checkpoint_naming=True),
        )  # fmt: skip
        net = torch.nn.Sequential(
            torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(),
            torch.nn.Linear(64, 1),
        )  # fmt: skip
        stepped = optimizer(net.parameters(), **({"lr": 1e-2, "weight_decay": 1e-2} | options))
        x = torch.linspace(-1, 1, 256)[torch.randperm(256)].unsqueeze(1)
        data = torch.utils.data.TensorDataset(x, torch.sin(3 * x))
        rates = torch.optim.lr_scheduler.ExponentialLR(stepped, 0.99)
        # prepare() reads our state dict and loads it again, so that it lies on the right device.
        self.net, self.optimizer, self.data, self.rates = self.accelerator.prepare(
            net, stepped, torch.utils.data.DataLoader(data, batch_size=16), rates
        )
        self.losses: list[float] = []

    def run(self, epochs: int) -> None:
        for _ in range(epochs):
            total = 0.0
            for x, y in self.data:
                # Within this, the optimizer and the scheduler do nothing but at every fourth batch.
                with self.accelerator.accumulate(self.net):
                    loss = torch.nn.functional.mse_loss(self.net(x), y)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
                    self.optimizer.step()
                    self.rates.step()
                    self.optimizer.zero_grad()
                total += float(loss.detach())
            self.losses.append(total / len(self.data))

    def save(self) -> str:
        return str(self.accelerator.save_state())

    def load(self, path: str) -> None:
        self.accelerator.load_state(path)

    @property
    def weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.net.parameters()]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Loop(folder)
        whole.run(20)
        path = whole.save()
        whole.run(20)
        print(f"loss {whole.losses[0]:.4f}, after 160 steps {whole.losses[-1]:.4f}")

        resumed = Loop(folder)
        resumed.load(path)
        resumed.run(20)
        same = all(map(torch.equal, resumed.weights, whole.weights))
        print(f"from the state at half: {'the same bits' if same else 'other numbers'}")


if __name__ == "__main__":
    main()
