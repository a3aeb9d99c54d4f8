"""Lightning's Trainer: automatic optimisation, its clipping, a scheduler of PyTorch's, resuming.

pip install "steepest[torch]" lightning
python lightning_trainer.py
"""

import tempfile
from typing import Any

import lightning
import torch

import steepest.torch


class Spirals(lightning.LightningModule):
    """Tells two spirals apart. The optimizer is an argument, to try others."""

    def __init__(self, optimizer: type = steepest.torch.AdamW) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(),
            torch.nn.Linear(32, 1),
        )  # fmt: skip
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.binary_cross_entropy_with_logits(self.net(x).squeeze(1), y)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer(self.parameters(), lr=1e-2, weight_decay=1e-3)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=160)
        # By default Lightning advances a scheduler once per epoch.
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cosine, "interval": "step"},
        }


def batches() -> torch.utils.data.DataLoader:
    t = torch.linspace(0.3, 3.0, 100)
    arm = torch.stack([t * torch.cos(2 * t), t * torch.sin(2 * t)], 1)
    x, y = torch.cat([arm, -arm]), torch.cat([torch.zeros(100), torch.ones(100)])
    data = torch.utils.data.TensorDataset(x, y)
    # Each of the batches is half of both spirals: the same ones in every epoch, so that a resumed
    # run sees what an uninterrupted one would have seen.
    sampler = torch.utils.data.BatchSampler([*range(0, 200, 2), *range(1, 200, 2)], 100, False)
    return torch.utils.data.DataLoader(data, batch_sampler=sampler)


def train(
    epochs: int, *, resume: str | None = None, **arguments: Any
) -> tuple[Spirals, lightning.Trainer]:
    torch.manual_seed(0)
    module = Spirals(**arguments)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        gradient_clip_val=1.0,  # by norm, of all gradients together, before our step
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, batches(), ckpt_path=resume, weights_only=resume is not None)
    return module, trainer


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, _ = train(80)
        print(f"loss {whole.losses[0]:.3f}, after 160 steps {whole.losses[-1]:.3f}")

        path = f"{folder}/half.ckpt"
        train(40)[1].save_checkpoint(path)
        resumed, _ = train(80, resume=path)
        same = all(map(torch.equal, resumed.parameters(), whole.parameters()))
        print(f"from a checkpoint at half: {'the same bits' if same else 'other numbers'}")


if __name__ == "__main__":
    main()
