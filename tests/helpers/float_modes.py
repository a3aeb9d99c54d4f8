"""Floating-point modes that a caller may have set: bits to add to the usual control word."""

import platform

_MACHINE = platform.machine().lower()
X86 = _MACHINE in ("x86_64", "amd64", "i386", "i686")
ARM = _MACHINE in ("aarch64", "arm64")

if X86:  # MXCSR
    MODES = {"upward": 0x4000, "downward": 0x2000, "toward zero": 0x6000, "flushing": 0x8040}
elif ARM:  # FPCR
    MODES = {"upward": 1 << 22, "downward": 2 << 22, "toward zero": 3 << 22, "flushing": 1 << 24}
else:
    MODES = {}
