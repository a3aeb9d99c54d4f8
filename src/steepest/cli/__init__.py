"""The command line: ``steepest train``, ``predict``, ``export``, ``compare``, ``tune``, ``list``,
``info``.

A command is a module with a function ``add`` that adds its parser; the parser's ``run`` default
takes the parsed arguments and returns the exit code: 0 done, 1 the training diverged, 2 arguments,
data or files that cannot be used, with one line on the standard error, 130 interrupted.

A run is decided by its ``settings.Settings``; ``runs`` makes data, network and optimizer of them,
and ``folders`` writes the results.
"""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version

from steepest.cli import compare, export, info, listing, predict, train, tune
from steepest.cli.arguments import Parser
from steepest.cli.errors import UsageError, reason
from steepest.data.datasets import DataError
from steepest.extras import MissingExtra

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; argparse's own errors raise SystemExit(2)."""
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except BrokenPipeError:  # the reader, such as head, has had enough
        _close_output()
        return 0
    except (UsageError, DataError, MissingExtra) as error:
        return _failed(str(error))
    except ImportError as error:  # of a package that is there and broken
        return _failed(f"a package cannot be imported: {error}")
    except OSError as error:
        return _failed(f"{error.filename or 'the output'}: {reason(error)}")
    except MemoryError as error:
        return _failed(f"not enough memory: {error}" if str(error) else "not enough memory")


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="steepest", description="Optimizers of machine learning, fused and fast on the CPU."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('steepest')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (train, predict, export, compare, tune, listing, info):
        command.add(commands)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # formulas, where the encoding has no β
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _failed(message: str) -> int:
    _tell(f"steepest: error: {' '.join(message.splitlines())}")
    try:
        sys.stdout.flush()
    except OSError:
        _close_output()
    return 2


def _tell(message: str) -> None:
    with suppress(OSError):  # nobody is there to be told
        print(message, file=sys.stderr)


def _close_output() -> None:
    """Sends the rest of the output nowhere, lest Python fail once more on it at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
