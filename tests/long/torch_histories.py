"""Random histories of ``steepest.torch``, for minutes or hours:

    python tests/long/torch_histories.py --minutes 60 --seed 1 --report torch_histories.md

As ``histories.py``, for the optimizers of tensors: beside the NumPy class, with its bits; beside
torch's own class, near it, where that has the rule and the arguments; and beside a twin that is
saved and loaded at every step. With what happens in PyTorch: schedulers, closures, ``zero_grad``,
``clip_grad_norm_``, frozen parameters, other memory in ``p.data``, ``torch.save``, copies, pickles,
state dicts that go through torch's class and the converters. See ``torch_history_draws`` and
``torch_history_runs`` in ``tests/helpers``.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parent)]

import histories  # noqa: E402
import torch_history_draws  # noqa: E402
import torch_history_runs  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Draws histories; 1 if something was found."""
    return histories.run(
        argv, __file__, "random histories of the optimizers of tensors",
        torch_history_draws.history, torch_history_runs.check,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
