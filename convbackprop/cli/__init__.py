"""The command line: `convbackprop`, or `python -m convbackprop`. One module a command; `main` reads the arguments."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import convbackprop
from convbackprop.errors import ConvBackpropError, InvalidArgument, InvalidType

#: Each is a module of this package with `add_arguments(parser)`, `run(arguments)`, HELP and EPILOG.
COMMANDS = (
    "doctor", "list", "check", "fuzz", "sanitize", "bench", "tune", "compare", "plot", "report", "demo", "profile",
    "run", "new", "lab", "grade", "explain",
)  # fmt: skip

_EXAMPLES = """\
examples:
  convbackprop doctor                          what this machine can run, and what is missing
  convbackprop list                            every pass and variant
  convbackprop check forward                   hold the forward variants against the float64 reference
  convbackprop fuzz                            random problems and arguments for ten minutes
  convbackprop sanitize forward                find invalid accesses and races, by line of source
  convbackprop bench                           time every variant beside torch
  convbackprop tune                            find what is fastest here, and keep it for "auto"
  convbackprop profile forward/coalesced       what limits a kernel, and what to change first, without a GPU
  convbackprop profile --machine-code          registers, spills and occupancy of every kernel, without a GPU
  convbackprop run forward/coalesced           launch it and nothing else, for ncu and nsys
  convbackprop new forward/mine                a CUDA kernel of your own: writes mine.cu
  convbackprop bench mine.cu                   ... checked and timed beside the others
  convbackprop lab                             eight exercises in a folder, from one thread a pixel to the ladder's top
  convbackprop grade 1_forward.cu              what is wrong first, and its rank in the ladder
  convbackprop explain forward/tiled           what a rung does, drawn: threads, loads, tiles, rings

exit code: 0 all is well; 1 something is wrong or missing; 2 the command was not understood
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"convbackprop: error: {message} (see '{self.prog} --help')\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="convbackprop",
        description="Hand-written CUDA kernels for a convolutional layer and its backpropagation: list, check and time "
        "them, on a GPU or on the CPU.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"convbackprop {convbackprop.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"convbackprop.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=(module.__doc__ or "").strip(),
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, in place of those of the process.

    Returns
    -------
    int
        The exit code: 0 only when all is well.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # --help, --version, or what argparse does not understand
        return int(stop.code or 0)
    return guarded(lambda: arguments.run(arguments))


def guarded(command: Callable[[], int]) -> int:
    """Run a command; turn what goes wrong on the user's side into a sentence and an exit code."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = command()
            sys.stdout.flush()
            return code
        except ConvBackpropError as error:
            sys.stdout.flush()
            print(f"convbackprop: error: {error}", file=sys.stderr)
            return 2 if isinstance(error, InvalidArgument | InvalidType) else 1
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"convbackprop: warning: {message}", file=sys.stderr)
