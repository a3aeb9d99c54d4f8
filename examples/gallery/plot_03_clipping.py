"""
Clipping saves a run
====================

Three of 442 rows of a table are a thousand times too large, as when somebody has typed grams for
kilograms. A step on such a row throws the weights far away. ``clip=`` limits the gradient inside
the step. Needs ``pip install ".[train]"``.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

import steepest as st

x, y = load_diabetes(return_X_y=True)
x, y = scale(x), scale(y)
wrong = [50, 200, 350]
typed = x.copy()
typed[wrong] *= 1000

# %%
# The model is a line, trained on the table as it was typed, and judged by the rows that are right.

model = st.models.linear_regression(10)
good = np.setdiff1d(np.arange(len(x)), wrong)
clips = {
    "no clip": None,
    "global_norm(1)": st.clip.global_norm(1.0),
    "value(1)": st.clip.value(1.0),
    "percentile(50)": st.clip.percentile(50, 32),
}
curves = {}
for name, clip in clips.items():
    params = model.initial(seed=0, dtype=np.float64)
    optimizer = st.SGD(params, lr=0.01, clip=clip)
    curve = []
    for epoch in range(3):
        for batch in st.training.batches((typed, y), 8, seed=0, epoch=epoch):
            optimizer.step(model.value_and_grad(params, *batch)[1])
            curve.append(model.loss(params, x[good], y[good]))
    curves[name] = curve

figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
for name, curve in curves.items():
    ax.semilogy(curve, label=name)
ax.axhline(1, color="grey", linestyle=":", label="predicting the mean")
ax.set(xlabel="update", title="loss on the rows that are right", ylim=(0.3, 1e4))
ax.legend()
plt.show()

# %%
# Without a clip, the first such row is the end of the training: the loss grows with each of them,
# by orders of magnitude. ``global_norm`` and ``value`` limit what a step may do to a number that is
# given, ``percentile`` to the median of the last 32 norms. All three end within three percent of
# where the loss would be without the three rows, which is in the last line.

params = model.initial(seed=0, dtype=np.float64)
optimizer = st.SGD(params, lr=0.01)
for epoch in range(3):
    for batch in st.training.batches((x[good], y[good]), 8, seed=0, epoch=epoch):
        optimizer.step(model.value_and_grad(params, *batch)[1])

for name, curve in curves.items():
    print(f"{name:20}  {curve[-1]:9.3g}")
print(f"{'without these rows':20}  {model.loss(params, x[good], y[good]):9.3g}")
