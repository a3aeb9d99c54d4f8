"""Every test starts from, and leaves, the same level, thread count and floating-point mode."""

import signal

import hypothesis
import pytest

import steepest as st
from steepest.kernels import dispatch, machine

# A busy machine is no fault, and a gate asks the same of every change. New examples are looked for
# by hand: pytest --hypothesis-profile=search.
hypothesis.settings.register_profile("gate", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("gate")


def pytest_make_parametrize_id(config, val, argname):
    """Bytes are named by their argument: what they hold, as the time in an archive's headers, may
    differ between the processes that collect."""
    return argname if isinstance(val, bytes) else None


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
