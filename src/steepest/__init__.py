"""Every optimizer of machine learning as a fused, multi-threaded update loop on the CPU.

>>> import numpy as np, steepest as st
>>> w = np.zeros(3)
>>> opt = st.AdamW(w, lr=0.1)
>>> opt.step(np.array([1.0, -2.0, 0.0]))
>>> w.round(6)
array([-0.1,  0.1,  0. ])
"""

from steepest import average as average
from steepest import checkpoint as checkpoint
from steepest import clip as clip
from steepest import convert as convert
from steepest import filters as filters
from steepest import initializers as initializers
from steepest import logs as logs
from steepest import losses as losses
from steepest import models as models
from steepest import mpi as mpi
from steepest import optimizers as optimizers
from steepest import regularize as regularize
from steepest import schedules as schedules
from steepest import tuning as tuning
from steepest.accumulate import Accumulator as Accumulator
from steepest.building import get_include as get_include
from steepest.checkpoint import load as load
from steepest.checkpoint import save as save
from steepest.history import History as History
from steepest.information import info as info
from steepest.kernels.threads import get_num_threads as get_num_threads
from steepest.kernels.threads import set_num_threads as set_num_threads
from steepest.lr_finder import find_lr as find_lr
from steepest.minimize import scipy_method as scipy_method
from steepest.noise import NoiseScale as NoiseScale
from steepest.optimizers import Optimizer as Optimizer
from steepest.optimizers.adam import *
from steepest.optimizers.adam_variants import *
from steepest.optimizers.adaptive import *
from steepest.optimizers.averaged import *
from steepest.optimizers.by_group import *
from steepest.optimizers.factored import *
from steepest.optimizers.layerwise import *
from steepest.optimizers.lbfgs import LBFGS as LBFGS
from steepest.optimizers.low_rank import *
from steepest.optimizers.matrix_rules import *
from steepest.optimizers.muon import *
from steepest.optimizers.own import *
from steepest.optimizers.parameter_free import *
from steepest.optimizers.sgd import *
from steepest.optimizers.sign import *
from steepest.sam import SAM as SAM
from steepest.training import find_batch_size as find_batch_size
from steepest.training import fit as fit
from steepest.tuning import tune as tune

__version__ = "0.1.0"
