"""
States of 8 bits
================

AdamW keeps two numbers for each weight. With ``state_dtype="q8"`` each takes a byte in place of
four. The same network, trained from three seeds with both. Needs ``pip install ".[train]"``.
"""

import matplotlib.pyplot as plt
import numpy as np

import steepest as st
from steepest.data import digits

data = digits()
net = st.models.MLP((64, 128, 64, 10), "classification")
losses, size = {}, {}
for states in "float32", "q8":
    for seed in range(3):
        params = net.initial(seed=seed)
        optimizer = st.AdamW(params, lr=0.003, state_dtype=states)
        history = st.fit(
            net.loss,
            params,
            data.train,
            optimizer,
            value_and_grad=net.value_and_grad,
            epochs=8,
            batch_size=64,
            validation=data.validation,
            seed=seed,
        )
        losses[states, seed] = history["val_loss"]
    size[states] = sum(x.nbytes for state in optimizer.state.values() for x in state.values())

# %%
# The pairs of curves lie upon each other: what a seed changes is larger than what the format does.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 4.2), width_ratios=(3, 1), layout="constrained"
)
for (states, seed), loss in losses.items():
    style = {"float32": "-", "q8": "--"}[states]
    epochs = range(1, len(loss) + 1)
    left.plot(epochs, loss, style, color=f"C{seed}", label=f"{states}, seed {seed}")
left.set(xlabel="epoch", title="loss on held-out digits")
left.legend(ncols=2)
right.bar(list(size), [n / 1000 for n in size.values()], color=["C0", "C1"])
right.set(title="states, kB")
plt.show()

# %%
# Arrays of fewer than 4096 elements, such as the biases, keep states of float32: they do not
# matter.

print(f"bytes of the states: {size['float32']} as float32, {size['q8']} with 8 bits")
last = {key: loss[-1] for key, loss in losses.items()}
for states in size:
    print(f"{states:8} losses at the end:", *(f"{last[states, seed]:.4f}" for seed in range(3)))
format_ = max(abs(last["q8", seed] - last["float32", seed]) for seed in range(3))
seeds = np.ptp([last["float32", seed] for seed in range(3)])
print(f"the format changes the loss by {format_:.4f} at most, the seed by {seeds:.4f}")
