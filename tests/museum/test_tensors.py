"""Bugs of tensors that are taken over: sparse gradients, DLPack, the order of imports."""

import subprocess
import sys

import numpy as np
import pytest
from museum import fails_with

import steepest as st

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


@fails_with(
    "memory/arrays.py",
    '    if layout is not None and str(layout) != "torch.strided":\n',
    "    if False:\n",
)
def test_pytorch_82486_a_sparse_gradient_is_refused_by_name():
    """SparseAdam failed on a sparse gradient without elements, with an error about sizes
    (pytorch/pytorch#82486). Here sparse gradients are refused by name."""
    w = np.ones((3, 2))
    for g in (torch.ones(3, 2).to_sparse(), torch.zeros(3, 2).to_sparse()):
        with pytest.raises(TypeError, match=r"layout torch\.sparse_coo"):
            st.SGD(w).step(g)
    assert (w == 1).all()


@fails_with(
    "memory/arrays.py",
    "        address = x.data_ptr()\n",
    "        x = x.new_ones(x.shape)\n        address = 1\n",
)
def test_pytorch_88082_memory_that_was_freed_is_not_read():
    """An array that PyTorch had taken over by DLPack crashed the process when it was let go
    (pytorch/pytorch#88082). A relative: here a gradient's memory was given back before the step."""
    w = np.ones(1000)
    opt = st.SGD(w, lr=0.5)
    g = torch.ones(1000, dtype=torch.float64)
    opt.step(g)
    g.untyped_storage().resize_(0)
    with pytest.raises((TypeError, ValueError)):
        opt.step(g)
    assert (w == 0.5).all()


@fails_with(
    "memory/arrays.py", "    return np.from_dlpack(x)\n", "    return np.array(np.from_dlpack(x))\n"
)
def test_dlpack_136_a_tensor_is_stepped_in_its_own_memory():
    """Who took an array by DLPack could not tell whether it was a copy, until a flag for it was
    added (dmlc/dlpack#136). A step in a copy would be lost."""
    p = torch.ones(5, dtype=torch.float64)
    st.SGD(p, lr=0.5).step(torch.ones(5, dtype=torch.float64))
    assert p.tolist() == [0.5] * 5


IMPORTS = """
import numpy
{0}
{1}
from steepest.kernels import threads
with threads.forced(2):
    opt = steepest.AdamW(numpy.ones(200_000))
    opt.step(numpy.ones(200_000))
    torch.ones(300, 300) @ torch.ones(300, 300)
    opt.step(numpy.ones(200_000))
maps = {{line.split()[-1].rpartition("/")[2] for line in open("/proc/self/maps") if "omp" in line}}
print(opt.updates, len({{name for name in maps if name.startswith(("libgomp", "libomp", "libiomp"))}}))
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@fails_with(
    "kernels/threads.py",
    '            _team = importlib.import_module("steepest.kernels.team")\n',
    "            import ctypes.util\n            _team = ctypes.CDLL('libgomp-other.so')\n",
)
@pytest.mark.parametrize(
    "order",
    [("import torch", "import steepest"), ("import steepest", "import torch")],
    ids=" ".join,
)
def test_pytorch_98836_one_openmp_in_either_order(order):
    """Packages that bring their own OpenMP slow one another, by the order of their imports
    (pytorch/pytorch#98836); two kinds in one process may crash or hang
    (joblib/threadpoolctl#49)."""
    done = subprocess.run([sys.executable, "-c", IMPORTS.format(*order)], capture_output=True,
                          text=True, timeout=120, check=False)  # fmt: skip
    assert done.stdout.split() == ["2", "1"], done.stderr
