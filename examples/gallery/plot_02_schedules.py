"""
Learning rates that fall
========================

The same network on the same handwritten digits, ten epochs of SGD with momentum, with four learning
rates that are functions of the number of updates. Needs ``pip install ".[train]"``.
"""

import matplotlib.pyplot as plt

import steepest as st
from steepest.data import digits

data = digits()
net = st.models.MLP((64, 32, 10), "classification")
EPOCHS, BATCH = 10, 32
steps = EPOCHS * -(-len(data.train.x) // BATCH)  # updates of the whole run

# %%
# A schedule goes where the number would. It has no state, so there is nothing to call after a step,
# and it knows its own value at any update: that is what the left picture shows.

rates = {
    "constant": st.schedules.constant(0.2),
    "cosine": st.schedules.cosine(0.2, steps=steps, warmup=20),
    "stable, then decay": st.schedules.warmup_stable_decay(0.2, steps=steps, decay=steps // 4),
    "one cycle": st.schedules.one_cycle(0.2, steps),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
losses = {}
for name, lr in rates.items():
    params = net.initial(seed=0)
    optimizer = st.SGD(params, lr=lr, momentum=0.9)
    history = st.fit(
        net.loss,
        params,
        data.train,
        optimizer,
        value_and_grad=net.value_and_grad,
        epochs=EPOCHS,
        batch_size=BATCH,
        metrics={"whole": net.loss},
        validation=data.validation,
    )
    losses[name] = history["whole"]
    left.plot([lr(t) for t in range(steps)])
    right.semilogy(history["epoch"], history["whole"], label=name)
left.set(xlabel="update", title="learning rate")
right.set(xlabel="epoch", title="loss on the training data", ylim=(0.008, 1.2))
figure.legend(loc="outside lower center", ncols=4)
plt.show()

# %%
# At a constant rate the loss keeps jumping; where the rate falls to 0, it settles. That is why a
# rate that falls is the usual choice.

for name, loss in losses.items():
    print(
        f"{name:18}  at the end {loss[-1]:.4f}, the largest of the last three {max(loss[-3:]):.4f}"
    )
