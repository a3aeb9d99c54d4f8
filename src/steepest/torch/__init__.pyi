from steepest.torch.backward import InBackward as InBackward
from steepest.torch.backward import step_in_backward as step_in_backward
from steepest.torch.offload import Offload as Offload
from steepest.torch.optimizer import Optimizer as Optimizer

def by_name(name: str) -> type[Optimizer]: ...
def __getattr__(name: str) -> type[Optimizer]: ...
