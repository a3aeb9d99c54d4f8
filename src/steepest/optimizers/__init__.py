"""Every optimizer, from simple to elaborate; ``RULES`` is the one list of them.

A family is a module here. One that is not imported by name is found all the same, after the others.
"""

import importlib
import pkgutil
import sys

# The order of these imports is the order of RULES.
from steepest.core.optimizer import RULES as RULES
from steepest.core.optimizer import Optimizer as Optimizer
from steepest.optimizers.sgd import *  # isort: skip
from steepest.optimizers.adaptive import *  # isort: skip
from steepest.optimizers.adam import *  # isort: skip
from steepest.optimizers.adam_variants import *  # isort: skip
from steepest.optimizers.sign import *  # isort: skip
from steepest.optimizers.averaged import *  # isort: skip
from steepest.optimizers.layerwise import *  # isort: skip
from steepest.optimizers.parameter_free import *  # isort: skip
from steepest.optimizers.factored import *  # isort: skip
from steepest.optimizers.muon import *  # isort: skip
from steepest.optimizers.matrix_rules import *  # isort: skip
from steepest.optimizers.low_rank import *  # isort: skip
from steepest.optimizers.python_rule import *
from steepest.optimizers.by_group import *  # isort: skip

from steepest.optimizers.lookup import by_name as by_name  # isort: skip

# It evaluates the function itself, so it is no Optimizer and not in RULES.
from steepest.optimizers.lbfgs import LBFGS as LBFGS  # isort: skip

for _found in pkgutil.iter_modules(sys.modules[__name__].__path__, f"{__name__}."):
    importlib.import_module(_found.name)
for _rule in RULES.values():
    globals().setdefault(_rule.__name__, _rule)
