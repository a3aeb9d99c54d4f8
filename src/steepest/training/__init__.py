"""Training: batches, the loop, its stopping rules, and resuming after an interruption.

``fit`` minimises a loss written in NumPy. It reads like the loop one would write by hand:

    for epoch in 1 .. epochs:
        for window in batches(data):
            value, gradients = value_and_grad(params, *window)
            optimizer.step(gradients)
        evaluate, record, decide whether to stop, call the callbacks, save

Everything random comes from (seed, epoch), so the order of the samples in any epoch is the same
in every run and does not depend on the epochs before it. The epoch and the number of its samples
that are done say how far a run is; a run that is stopped between two updates can resume there.
"""

from steepest.training.batch_size_search import BatchSize as BatchSize
from steepest.training.batch_size_search import find_batch_size as find_batch_size
from steepest.training.loop import Callback as Callback
from steepest.training.loop import Epoch as Epoch
from steepest.training.loop import fit as fit
from steepest.training.sampling import batches as batches

__all__ = ["BatchSize", "Callback", "Epoch", "batches", "find_batch_size", "fit"]
