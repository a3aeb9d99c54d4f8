"""Every test starts from, and leaves, the same level, thread count and floating-point mode."""

import pytest

import steepest as st
from steepest.kernels import dispatch, machine


@pytest.fixture(autouse=True)
def unchanged_process():
    level, mode = dispatch.current.level, machine.float_mode() & ~0x3F  # without the sticky flags
    yield
    dispatch.use(level)
    st.set_num_threads(None)
    assert machine.float_mode() & ~0x3F == mode, "the floating-point mode was changed"
