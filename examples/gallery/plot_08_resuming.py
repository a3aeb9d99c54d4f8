"""
Resuming a run
==============

A training that is interrupted and started again ends with the bits of one that was not: not nearly
the same numbers, the same. Needs ``pip install ".[train]"``.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import steepest as st
from steepest.data import digits

data = digits()
net = st.models.MLP((64, 32, 10), "classification")
folder = tempfile.TemporaryDirectory()


def job(callbacks=(), **files):
    """A whole training, as a script would have it. files: where to save it, whether to resume."""
    params = net.initial(seed=0)
    optimizer = st.AdamW(params, lr=st.schedules.cosine(0.01, steps=400), ema=0.99)
    history = st.fit(
        net.loss,
        params,
        data.train,
        optimizer,
        value_and_grad=net.value_and_grad,
        epochs=10,
        batch_size=32,
        callbacks=callbacks,
        **files,
    )
    return params, history


# %%
# The first run goes through. The second one is to fail in its fifth epoch, and is then started
# again by the same call: ``resume=True`` begins at the start if there is no file.


def power_cut(epoch):
    if epoch.epoch == 5:
        raise RuntimeError("a power cut")


whole, history = job()
files = {"checkpoint": Path(folder.name) / "run.safetensors", "resume": True}
try:
    job(callbacks=[power_cut], **files)
except RuntimeError as error:
    print("The run ended:", error)
saved = st.checkpoint.read(files["checkpoint"])
print(f"updates in the file: {saved.state_dict['updates']}")
epochs = []
resumed, continued = job(callbacks=[lambda epoch: epochs.append(epoch.epoch)], **files)
print(f"epochs of the second start: {epochs}")

# %%
# The file has parameters, states, counts, the history and the place in the order of the samples.
# The schedule is a function of the number of updates, so it is where it was.

figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
ax.plot(history["epoch"], history["loss"], linewidth=5, alpha=0.4, label="in one go")
ax.plot(continued["epoch"], continued["loss"], "k.-", label="interrupted and resumed")
ax.axvline(4.5, color="grey", linestyle=":", label="power cut")
ax.set(xlabel="epoch", title="loss on handwritten digits")
ax.legend()
plt.show()

layers = [(name, key) for name, layer in whole.items() for key in layer]
same = all(np.array_equal(whole[name][key], resumed[name][key]) for name, key in layers)
print(f"{len(layers)} arrays of parameters have the same bits: {same}")
print(f"the losses of all {len(history)} epochs are equal: {history['loss'] == continued['loss']}")
folder.cleanup()
