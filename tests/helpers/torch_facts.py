"""What the installed PyTorch can, where its versions differ."""

import torch


def _adagrad_takes_later_groups():
    optimizer = torch.optim.Adagrad([torch.nn.Parameter(torch.ones(1))])
    later = torch.nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [later]})
    return bool(optimizer.state[later])


ADAGRAD_TAKES_LATER_GROUPS = _adagrad_takes_later_groups()
"""Whether PyTorch's Adagrad makes sums for a group that is added later; else its step fails."""
