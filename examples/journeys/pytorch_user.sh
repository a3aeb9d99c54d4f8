#!/usr/bin/env bash
# Somebody with a script for PyTorch: one import is changed, then the model goes to bfloat16.
#     pytorch_user.sh steepest        or a wheel in place of the name
# PyTorch is installed, too, unless the folder TORCH_SITE has it already.
set -euo pipefail
package=$(realpath -q "$1" || echo "$1")
[ -e "$package" ] || package=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
if [ -n "${TORCH_SITE:-}" ]; then
  echo "$TORCH_SITE" > "$(env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
  env/bin/pip install -q --no-deps "$package"
else
  env/bin/pip install -q "$package[torch]"
fi
echo "installed after $SECONDS s"

cat > script.py << 'CODE'
import sys

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

torch.manual_seed(0)
torch.use_deterministic_algorithms(True)
x = torch.randn(512, 32)
y = (x @ torch.randn(32, 5)).argmax(1)
model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 5))
optimizer = AdamW(model.parameters(), lr=0.01)
scheduler = CosineAnnealingLR(optimizer, T_max=200)
for step in range(200):
    batch = slice(step % 8 * 64, step % 8 * 64 + 64)
    loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
print(type(optimizer).__module__, f"{loss.item():.6f}")
torch.save({"loss": loss.item(), "model": model.state_dict(), "optimizer": optimizer.state_dict()},
           sys.argv[1])
CODE

env/bin/python script.py theirs.pt
sed -i 's/^from torch.optim import AdamW$/from steepest.torch import AdamW/' script.py
env/bin/python script.py ours.pt

# The same loss, and either's checkpoint in the other; then 16-bit weights and 8-bit states.
env/bin/python - << 'CODE'
import torch

import steepest.torch

theirs, ours = torch.load("theirs.pt"), torch.load("ours.pt")
print("losses:", theirs["loss"], ours["loss"])
assert abs(theirs["loss"] - ours["loss"]) < 1e-3
weights = [torch.nn.Parameter(w.clone()) for w in theirs["model"].values()]
for cls, saved in (steepest.torch.AdamW, theirs), (torch.optim.AdamW, ours):
    optimizer = cls(weights, lr=0.01)
    optimizer.load_state_dict(saved["optimizer"])

torch.manual_seed(0)
model = torch.nn.Linear(256, 256, dtype=torch.bfloat16)
optimizer = steepest.torch.AdamW(
    model.parameters(), lr=1e-3, master="split16", state_dtype="q8"
)
x = torch.randn(64, 256, dtype=torch.bfloat16)
losses = []
for _ in range(300):
    loss = (model(x) - x).float().square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"bfloat16 with 8-bit states: {losses[0]:.4f} to {losses[-1]:.4f}")
assert losses[-1] < losses[0] / 20
CODE
echo "a PyTorch user: from install to result in $SECONDS s"
