"""
A small transformer in PyTorch
==============================

A character model learns the text that comes with scikit-learn's table of breast cancers, once with
``torch.optim.AdamW`` and once with ``steepest.torch.AdamW``: one line of the program differs. Needs
``pip install ".[train,torch]"``.
"""

from statistics import fmean

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer

import steepest.torch

text = load_breast_cancer().DESCR
letters = sorted(set(text))
codes = torch.tensor([letters.index(letter) for letter in text])
WIDTH, LENGTH = 32, 32
torch.set_num_threads(1)  # so small a model is faster without sharing work


class Transformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.letter = torch.nn.Embedding(len(letters), WIDTH)
        self.place = torch.nn.Embedding(LENGTH, WIDTH)
        self.layer = torch.nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.out = torch.nn.Linear(WIDTH, len(letters))
        self.mask = torch.nn.Transformer.generate_square_subsequent_mask(LENGTH)

    def forward(self, x):
        h = self.letter(x) + self.place.weight
        return self.out(self.layer(h, src_mask=self.mask, is_causal=True))


def train(optimizer_class, steps=120):
    """The loss of each step, in nats per letter."""
    torch.manual_seed(0)
    model = Transformer()
    optimizer = optimizer_class(model.parameters(), lr=0.01, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        first = torch.randint(len(codes) - LENGTH, (16, 1))
        window = codes[first + torch.arange(LENGTH + 1)]
        logits = model(window[:, :-1]).transpose(1, 2)  # each letter is predicted from those before
        loss = torch.nn.functional.cross_entropy(logits, window[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


theirs = train(torch.optim.AdamW)
ours = train(steepest.torch.AdamW)

# %%
# The scheduler is PyTorch's, and works with both. The curves are one: steps are the same up to
# rounding, which training enlarges slowly.

figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
ax.plot(theirs, linewidth=5, alpha=0.4, label="torch.optim.AdamW")
ax.plot(ours, color="black", linewidth=1, label="steepest.torch.AdamW")
ax.set(xlabel="step", title="loss, nats per letter")
ax.legend()
plt.show()

difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
print(f"loss at the start {ours[0]:.2f}, mean of the last ten {fmean(ours[-10:]):.2f}")
print(f"the largest difference between the two runs: {difference:.1g}")
