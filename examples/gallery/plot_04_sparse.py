"""
A sparse linear model by FTRL
=============================

Ten of 500 features tell two classes apart. FTRL-proximal makes all weights exactly 0 whose
gradients do not insist, while samples come one batch after the other. Needs ``pip install
".[train]"``.
"""

import matplotlib.pyplot as plt
import numpy as np

import steepest as st

rng = np.random.default_rng(0)
true = np.zeros(500)
true[:10] = [3, -3, 2.5, -2.5, 2, -2, 2, -2, 1.5, -1.5]
x = (rng.random((6000, 500)) < 0.2).astype(float)  # features that are there, or not
y = (rng.random(6000) < 1 / (1 + np.exp(-x @ true))).astype(float)
train, test = slice(0, 5000), slice(5000, 6000)

# %%
# One pass over the samples, in batches of 20, by three optimizers: FTRL with an L1 penalty, AdamW
# without one, and AdamW with the same penalty in its gradient.

optimizers = {
    "FTRL, lambda1": lambda w: st.FTRL(w, lr=0.5, lambda1=1.0),
    "AdamW": lambda w: st.AdamW(w, lr=0.02, weight_decay=0.0),
    "AdamW, l1": lambda w: st.AdamW(w, lr=0.02, weight_decay=0.0, l1=0.01),
}
weights = {}
for name, make in optimizers.items():
    w = np.zeros(500)
    optimizer = make(w)
    for first in range(0, 5000, 20):
        rows, labels = x[first : first + 20], y[first : first + 20]
        optimizer.step(rows.T @ (1 / (1 + np.exp(-rows @ w)) - labels) / 20)
    weights[name] = w

figure, axes = plt.subplots(3, 1, figsize=(8, 5.4), sharex=True, sharey=True, layout="constrained")
for ax, (name, w) in zip(axes, weights.items(), strict=True):
    ax.vlines(np.arange(500), 0, w, linewidth=1)
    ax.set(title=f"{name}: {np.count_nonzero(w)} of 500 weights are not 0")
    ax.axvspan(-0.5, 9.5, color="tab:orange", alpha=0.25)
axes[-1].set(xlabel="feature; the ten that matter are shaded")
plt.show()

# %%
# A penalty in the gradient makes weights small, but not 0: a step of AdamW overshoots, and comes
# back from the other side.

for name, w in weights.items():
    right = np.mean((x[test] @ w > 0) == (y[test] > 0.5))
    found = np.count_nonzero(w[:10])
    print(f"{name:13}  weights not 0: {np.count_nonzero(w):3}, {found} of the ten that matter")
    print(f"{'':13}  right on new samples: {right:.1%}")
