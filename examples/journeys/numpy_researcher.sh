#!/usr/bin/env bash
# Somebody who writes in NumPy: a model with gradients by hand, rules compared, a rule of their own,
# a run that is saved and resumed.
#     numpy_researcher.sh steepest        or a wheel in place of the name
set -euo pipefail
package=$(realpath -q "$1" || echo "$1")
[ -e "$package" ] || package=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install -q "$package[checkpoint]"
echo "installed after $SECONDS s"

env/bin/python - << 'CODE'
import numpy as np

import steepest as st

rng = np.random.default_rng(0)
x = rng.standard_normal((500, 20)).astype(np.float32)
y = np.tanh(x @ rng.standard_normal((20, 1)).astype(np.float32))


def begin():
    draw = np.random.default_rng(1)
    return {"w1": 0.3 * draw.standard_normal((20, 32)).astype(np.float32),
            "w2": 0.3 * draw.standard_normal((32, 1)).astype(np.float32)}


def loss_and_gradient(w):
    h = np.tanh(x @ w["w1"])
    error = h @ w["w2"] - y
    back = error * (2 / len(x))
    return float(np.mean(error**2)), {
        "w1": x.T @ (back @ w["w2"].T * (1 - h * h)), "w2": h.T @ back
    }


@st.rule(states=("momentum_buffer",))
def powersign(p, g, state, t, *, lr=0.01, momentum=0.9):
    m = state["momentum_buffer"]
    m[...] = momentum * m + (1 - momentum) * g
    p -= lr * np.exp(np.sign(g) * np.sign(m)) * g


losses = {}
for rule, lr in (st.SGD, 0.3), (st.AdamW, 0.01), (st.Muon, 0.03), (powersign, 0.1):
    w = begin()
    opt = rule(w, lr=st.schedules.cosine(lr, steps=200), clip=st.clip.global_norm(1.0))
    for _ in range(200):
        loss, gradient = loss_and_gradient(w)
        opt.step(gradient)
    losses[getattr(rule, "__name__", str(rule))] = loss
    print(f"{type(opt).__name__:10} {loss:.5f}")
assert all(loss < 0.1 for loss in losses.values()), losses

# Half of a run, a file, and the other half: the same bits as in one go.
w = begin()
opt = st.AdamW(w, lr=st.schedules.cosine(0.01, steps=100))
for t in range(100):
    if t == 50:
        st.save("run.safetensors", opt)
        w = begin()
        opt = st.AdamW(w, lr=st.schedules.cosine(0.01, steps=100))
        st.load("run.safetensors", opt)
    opt.step(loss_and_gradient(w)[1])
whole = begin()
other = st.AdamW(whole, lr=st.schedules.cosine(0.01, steps=100))
for _ in range(100):
    other.step(loss_and_gradient(whole)[1])
assert all(np.array_equal(w[name], whole[name]) for name in w)
print("resumed to the same bits")
CODE
echo "a NumPy researcher: from install to result in $SECONDS s"
