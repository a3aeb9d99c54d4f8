"""
Tuning a learning rate and a penalty
====================================

A search over two hyper-parameters of a network that predicts the progress of diabetes, judged by
samples that it is not trained on. Needs ``pip install ".[tune]"``.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

import steepest as st

x, y = load_diabetes(return_X_y=True)
x, x_test, y, y_test = train_test_split(scale(x), scale(y), test_size=0.25, random_state=0)
x, x_held, y, y_held = train_test_split(x, y, test_size=0.3, random_state=0)
net = st.models.MLP((10, 32, 1), "regression")

# %%
# An objective trains one candidate, from fresh parameters, and returns its history.
# ``trial.callback`` ends candidates early that are worse than the median of the others.


def fit(values, callbacks=()):
    params = net.initial(seed=0, dtype=np.float64)
    optimizer = st.AdamW(params, lr=values["lr"], weight_decay=values["weight_decay"])
    history = st.fit(
        net.loss,
        params,
        (x, y),
        optimizer,
        value_and_grad=net.value_and_grad,
        epochs=20,
        batch_size=32,
        validation=(x_held, y_held),
        callbacks=callbacks,
    )
    return params, history


def objective(values, trial):
    return fit(values, [trial.callback])[1]


space = {
    "lr": st.tuning.log_uniform(1e-4, 1),
    "weight_decay": st.tuning.log_uniform(1e-3, 10),
}
tuned = st.tune(objective, space, trials=40, seed=0)

# %%
# Each point is a candidate; those that were ended early are hollow.

figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
done = [trial for trial in tuned.trials if trial.state == "done"]
pruned = [trial for trial in tuned.trials if trial.state == "pruned"]
rates, decays = ([t.values[name] for t in done] for name in space)
points = ax.scatter(rates, decays, c=[t.loss for t in done], cmap="viridis_r", s=50)
rates, decays = ([t.values[name] for t in pruned] for name in space)
ax.scatter(rates, decays, facecolors="none", edgecolors="grey", label="ended early")
best = tuned.best
ax.plot(best["lr"], best["weight_decay"], "r*", markersize=16, label="best")
ax.set(xscale="log", yscale="log", xlabel="lr", ylabel="weight_decay")
figure.colorbar(points, label="loss on held-out samples")
ax.legend()
plt.show()

# %%
# The best of 40 looks a little better on the held-out samples than it is, because it was chosen by
# them. What counts is a third part of the data.

default = {"lr": 1e-3, "weight_decay": 0.01}
print(f"{len(done)} candidates trained to the end, {len(pruned)} ended early")
for name, values in {"default": default, "best": best}.items():
    params, history = fit(values)
    text = f"lr {values['lr']:.2g}, weight_decay {values['weight_decay']:.2g}"
    held = min(history["val_loss"])
    print(f"{name:8} {text:36} held-out {held:.3f}, test {net.loss(params, x_test, y_test):.3f}")
