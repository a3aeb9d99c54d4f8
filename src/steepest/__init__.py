"""Every optimizer of machine learning as a fused, multi-threaded update loop on the CPU.

>>> import numpy as np, steepest as st
>>> w = np.zeros(3)
>>> opt = st.AdamW(w, lr=0.1)
>>> opt.step(np.array([1.0, -2.0, 0.0]))
>>> w.round(6)
array([-0.1,  0.1,  0. ])
"""

import sys as _sys

from steepest import checkpoint as checkpoint
from steepest import convert as convert
from steepest import functional as functional
from steepest import models as models
from steepest import mpi as mpi
from steepest import optimizers as optimizers
from steepest import schedules as schedules
from steepest import tuning as tuning
from steepest.checkpoint import load as load
from steepest.checkpoint import save as save
from steepest.checkpoint.former_names import FORMER_MODULES as _FORMER_MODULES
from steepest.core.information import info as info
from steepest.core.verification import CorruptionError as CorruptionError
from steepest.extension.build import get_include as get_include
from steepest.kernels.threads import get_num_threads as get_num_threads
from steepest.kernels.threads import set_num_threads as set_num_threads
from steepest.models import initializers as initializers
from steepest.models import losses as losses
from steepest.optimizers import Optimizer as Optimizer
from steepest.optimizers.adam import *
from steepest.optimizers.adam_variants import *
from steepest.optimizers.adaptive import *
from steepest.optimizers.averaged import *
from steepest.optimizers.by_group import *
from steepest.optimizers.factored import *
from steepest.optimizers.layerwise import *
from steepest.optimizers.lbfgs import LBFGS as LBFGS
from steepest.optimizers.lookup import by_name as by_name
from steepest.optimizers.low_rank import *
from steepest.optimizers.matrix_rules import *
from steepest.optimizers.muon import *
from steepest.optimizers.parameter_free import *
from steepest.optimizers.python_rule import *
from steepest.optimizers.sam import SAM as SAM
from steepest.optimizers.sgd import *
from steepest.optimizers.sign import *
from steepest.options import average as average
from steepest.options import clip as clip
from steepest.options import filters as filters
from steepest.options import regularize as regularize
from steepest.training import find_batch_size as find_batch_size
from steepest.training import fit as fit
from steepest.training import logs as logs
from steepest.training.accumulation import Accumulator as Accumulator
from steepest.training.history import History as History
from steepest.training.lr_finder import find_lr as find_lr
from steepest.training.noise_scale import NoiseScale as NoiseScale
from steepest.training.scipy_method import scipy_method as scipy_method
from steepest.tuning import tune as tune

__version__ = "0.1.0"

for _module in (initializers, logs, losses):  # so that ``import steepest.losses`` finds them
    _sys.modules[f"steepest.{_module.__name__.rpartition('.')[2]}"] = _module
for _now, _before in _FORMER_MODULES.items():  # and so do files that were written then
    _sys.modules[_before] = _sys.modules[_now]
for _rule in optimizers.RULES.values():  # of families that are found by their place
    globals().setdefault(_rule.__name__, _rule)

# Parts of the machinery, which their names alone would put among what is for users.
_INTERNAL = {
    "cli", "core", "extras", "fields", "kernels", "matrix", "memory", "nesting", "options",
    "subnormals",
}  # fmt: skip


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted(
        name
        for name in globals()
        if name not in _INTERNAL and (name[0] != "_" or name in ("__doc__", "__version__"))
    )


# Not as ``__all__ = ...``, which type checkers would take for all there is: they read the imports.
globals()["__all__"] = [name for name in __dir__() if name[0] != "_"]
