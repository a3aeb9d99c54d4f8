"""Training on several processes or machines over MPI, for NumPy: ``pip install ".[mpi]"``.

``Sharded`` spreads an optimizer's state over the ranks; ``mean`` averages gradients for optimizers
that every rank has whole. mpi4py is imported when one of them is first used. See docs/mpi.md.
"""

from steepest.mpi.mean_gradients import mean as mean
from steepest.mpi.process_group import RankError as RankError
from steepest.mpi.sharded import Sharded as Sharded

__all__ = ["RankError", "Sharded", "mean"]
