"""Every test starts from, and leaves, the same level, thread count and floating-point mode."""

import signal

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


@pytest.fixture(autouse=True)
def usual_ctrl_c():
    """Tests that press Ctrl-C hold where it is ignored, too, as in a process that a script puts
    behind with ``&``; so do the programs that they start, which inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)
