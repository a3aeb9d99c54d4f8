"""Converters: the state of other packages' optimizers to ours and back.

Training continues with the same steps up to rounding: names, counts and arrays are matched and
checked, and formulas that differ are refused. See docs/converting.md.

>>> import numpy as np, steepest as st
>>> opt = st.AdamW({"w": np.ones((2, 3))}, lr=0.01)
>>> opt.step({"w": np.ones((2, 3))})
>>> state_dict = st.convert.to_torch(opt, tensors=False)
>>> again = st.AdamW({"w": np.ones((2, 3))})
>>> st.convert.from_torch(state_dict, again)
>>> again.updates, again.param_groups[0]["lr"]
(1, 0.01)
"""

from steepest.convert.bitsandbytes import from_bitsandbytes as from_bitsandbytes
from steepest.convert.bitsandbytes import to_bitsandbytes as to_bitsandbytes
from steepest.convert.deepspeed import from_deepspeed as from_deepspeed
from steepest.convert.deepspeed import to_deepspeed as to_deepspeed
from steepest.convert.flashoptim import from_flashoptim as from_flashoptim
from steepest.convert.flashoptim import to_flashoptim as to_flashoptim
from steepest.convert.keras import from_keras as from_keras
from steepest.convert.keras import to_keras as to_keras
from steepest.convert.optax import from_optax as from_optax
from steepest.convert.optax import to_optax as to_optax
from steepest.convert.torch import from_torch as from_torch
from steepest.convert.torch import to_torch as to_torch
from steepest.convert.torchao import to_torchao as to_torchao

__all__ = [
    "from_bitsandbytes",
    "from_deepspeed",
    "from_flashoptim",
    "from_keras",
    "from_optax",
    "from_torch",
    "to_bitsandbytes",
    "to_deepspeed",
    "to_flashoptim",
    "to_keras",
    "to_optax",
    "to_torch",
    "to_torchao",
]
