from steepest.torch.backward import InBackward as InBackward
from steepest.torch.backward import step_in_backward as step_in_backward
from steepest.torch.optimizer import Optimizer as Optimizer

def __getattr__(name: str) -> type[Optimizer]: ...
