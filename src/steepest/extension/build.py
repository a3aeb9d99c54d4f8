"""What packages with rules of their own need to compile them: include path, flags, extensions.

The flags are those that this library's kernels are compiled with, and are part of the promise of
equal bits; see docs/own-rules.md.
"""

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from typing import Any

from steepest.kernels.dispatch import LEVELS

__all__ = ["DIRECTIVES", "compile_args", "extensions", "get_include", "platform_levels"]

DIRECTIVES: dict[str, Any] = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "binding": True,
    "embedsignature": True,
    "autotestdict": False,
    "auto_pickle": False,
}
"""Cython's directives; without ``cdivision`` a loop with a division is not vectorised."""

# No contraction to fused multiply-add: its bits differ between levels. No square root loop is
# vectorised with errno, none of six arrays with gcc's usual number of checks for overlap. Jumps
# that gcc threads through selections become loops that are not vectorised, or compute each way.
_NUMERICS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
_GCC = ["--param=vect-max-version-for-alias-checks=64", "-fno-thread-jumps"]
_LEVELS = {
    "base": [],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}


def get_include() -> str:
    """The folder in which Cython finds ``steepest/kernels/contract.pxd`` and ``rules.pxd``.

    >>> import steepest as st
    >>> from pathlib import Path
    >>> Path(st.get_include(), "steepest", "kernels", "rules.pxd").is_file()
    True
    """
    return str(Path(__file__).parents[2])


def platform_levels() -> tuple[str, ...]:
    """The instruction-set levels that this platform's compiler is asked for."""
    several = platform.machine() in ("x86_64", "AMD64") and sys.platform not in ("win32", "darwin")
    return LEVELS if several else LEVELS[:1]


def compile_args(level: str = "base") -> list[str]:
    """The C compiler's flags for the kernels of a level, for the compiler that setuptools takes.

    Raises ValueError for a level that this platform lacks.
    """
    if level not in platform_levels():
        raise ValueError(
            f"instruction-set level {level!r}: expected one of {', '.join(platform_levels())}"
        )
    if sys.platform == "win32":
        return ["/fp:precise"]
    return [*_NUMERICS, *(_GCC if _is_gcc() else []), *_LEVELS[level]]


def extensions(module: str, source: str | os.PathLike[str], *, levels: bool = True) -> list[Any]:
    """The extensions of a package's rules, for ``setup(ext_modules=...)`` of setuptools.

    `module` is the full name that the package's classes give as ``kernels``, `source` its .pyx
    file. With `levels` there is one extension for each instruction-set level of the platform,
    named ``module_base``, ``module_v3``, ``module_v4``; without, one named ``module`` that any CPU
    runs. What is returned is setuptools' Extension, to be changed further if need be.

    Raises ImportError where setuptools or Cython is missing.
    """
    extension: Any = import_module("setuptools").Extension
    cythonize: Any = import_module("Cython.Build").cythonize
    made: list[Any] = []
    for level in platform_levels() if levels else ("base",):
        name = f"{module}_{level}" if levels else module
        [generated] = cythonize(
            [extension(name, [os.fspath(source)])],
            include_path=[get_include()],
            compiler_directives=DIRECTIVES,
            build_dir=os.path.join("build", "cython", name),  # the levels' C files have one name
        )
        # Not before: cythonize adds the flags of all extensions that have one source.
        generated.extra_compile_args = compile_args(level)
        made.append(generated)
    return made


def _is_gcc() -> bool:
    """Whether the compiler of Python's extensions, or the environment's CC, is gcc."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    try:
        told = subprocess.run(
            [*compiler, "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return False
    return "Free Software Foundation" in told and "clang" not in told
