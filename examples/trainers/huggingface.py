"""Hugging Face's Trainer: a small GPT-2, made on the spot, learns to count in steps.

    pip install "steepest[torch]" transformers accelerate
    python huggingface.py

The Trainer makes the groups (no weight decay for biases and norms), the schedule and the
checkpoints, as with any optimizer of PyTorch.
"""

import tempfile
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import steepest as st
from steepest.torch import AdamW

# Here clipping is a part of the step, of any kind in st.clip; max_grad_norm works too.
OURS = {"lr": 3e-3, "betas": (0.9, 0.98), "clip": st.clip.global_norm(1.0)}


class Counting(torch.utils.data.Dataset):
    """Sequences a, a + d, a + 2 d, ... modulo 20."""

    def __len__(self) -> int:
        return 20 * 5

    def __getitem__(self, i: int) -> dict[str, Any]:
        numbers = (i % 20 + (1 + i // 20) * torch.arange(12)) % 20
        return {"input_ids": numbers, "labels": numbers}


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_positions=12, n_embd=32, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def trainer(
    folder: str, optimizer: type = AdamW, options: dict[str, Any] = OURS, **arguments: Any
) -> Trainer:
    usual: dict[str, Any] = {
        "max_grad_norm": 0.0,  # none of its own
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "max_steps": 60,
        "save_steps": 30,
        "per_device_train_batch_size": 20,
        "logging_steps": 5,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return Trainer(
        model=model(),
        args=TrainingArguments(output_dir=folder, **(usual | arguments)),
        train_dataset=Counting(),
        optimizer_cls_and_kwargs=(optimizer, options),
    )


def losses(trained: Trainer) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = trainer(folder)
        whole.train()
        print(f"loss {losses(whole)[0]:.3f}, after 60 steps {losses(whole)[-1]:.3f}")

        resumed = trainer(folder)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-30")
        same = all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))
        print(f"from the checkpoint at 30 to 60: {'the same bits' if same else 'other numbers'}")


if __name__ == "__main__":
    main()
