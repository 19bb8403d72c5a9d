"""What the commands share: how they print, and read a target and a problem."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from convbackprop.devices import Device
from convbackprop.devices.compiler import Source, cubin
from convbackprop.devices.gpus import Target
from convbackprop.errors import CompileError, InvalidArgument, ProblemTooLarge
from convbackprop.ladder.registry import VARIANTS, select
from convbackprop.ladder.variant import Variant
from convbackprop.launch.arrays import free_host_bytes
from convbackprop.launch.plan import constants_of
from convbackprop.problem import PASSES, PRECISIONS, ConvProblem

#: Columns of a table that goes to a file or a pipe.
_PIPE_WIDTH = 160


# -- printing --------------------------------------------------------------------------------------------------------
def console() -> Console:
    """Return a console on standard output: plain and wide where that is no terminal."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def say(out: Console, *lines: str) -> None:
    """Print sentences: wrapped between words on a terminal, each in one line elsewhere."""
    for line in lines:
        out.print(line, soft_wrap=not out.is_terminal)


def grid(heads: Sequence[str], rows: Iterable[Sequence[str | Text]], left: Sequence[str] = ()) -> Table:
    """Return a table without lines: its first column and those named `left` are text, and the others figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(heads):
        at_left = i == 0 or name in left
        table.add_column(name, no_wrap=name != "what", justify="left" if at_left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_json(value: Any) -> None:
    """Print JSON on standard output; an infinite number, which JSON lacks, is null."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: finite(item) for name, item in part.items()}
        if isinstance(part, list | tuple):
            return [finite(item) for item in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    print(json.dumps(finite(value), indent=2, allow_nan=False))


def progress() -> Progress:
    """Return a progress bar on standard error, empty where that is no terminal.

    It is drawn only when it advances: a thread that draws would take time from what is being timed.
    """
    err = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, disable=not err.is_terminal, auto_refresh=False, transient=True)


# -- arguments -------------------------------------------------------------------------------------------------------
def add_target(parser: argparse.ArgumentParser) -> None:
    """Add what `check` and `bench` work on."""
    parser.add_argument(
        "target",
        nargs="?",
        metavar="PASS[/VARIANT] | FILE.cu",
        help="a pass, one of its variants, or a .cu file of your own; default: every variant",
    )
    parser.add_argument("--pass", dest="pass_name", metavar="PASS", help="the pass that FILE.cu computes, where it has "
                        f"no line '//@ pass PASS': {', '.join(PASSES)}")  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", metavar="D", help="cpu, cuda or cuda:1; default: CONVBACKPROP_DEVICE, else a GPU "
                        "that is usable, else cpu")  # fmt: skip


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision, where a problem's text does not say it."""
    parser.add_argument("--precision", default="ieee", choices=PRECISIONS, help="tf32 lets variants round float32 "
                        "factors to TF32; default: ieee")  # fmt: skip


def is_file(target: str | None) -> bool:
    """Return whether a target names a file, not a pass."""
    return target is not None and (target.endswith(".cu") or Path(target).is_file())


def variants_of(target: str | None, pass_name: str | None) -> tuple[Variant, ...]:
    """Return the variants that the target names; a file is a variant of `pass_name`."""
    if not is_file(target):
        if pass_name is not None:
            raise InvalidArgument("--pass says what a FILE.cu computes; name the file, or name the pass without --pass")
        if target is not None and target.partition("/")[0] not in PASSES:
            raise InvalidArgument(
                f"target is {target!r}; it should be one of {', '.join(PASSES)}, a variant such as {VARIANTS[0]}, or a "
                "file that ends in .cu"
            )
        return select(target)
    path = Path(str(target))
    if path.suffix != ".cu":
        raise InvalidArgument(f"{path} is no CUDA source; its name should end in .cu")
    if not path.is_file():
        raise InvalidArgument(f"{path} {'is a directory' if path.is_dir() else 'does not exist'}; "
                              "it should be a .cu file ('convbackprop new forward/mine' writes one)")  # fmt: skip
    from convbackprop.ladder.own_file import variant_from_file

    return (variant_from_file(path.absolute(), pass_name),)


def counted(number: int, what: str) -> str:
    """Return "1 case" or "1,234 cases"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def distinct(items: Iterable[Any]) -> tuple[Any, ...]:
    """Return the items without repetition, in their order."""
    return tuple(dict.fromkeys(items))


def check_memory(problem: ConvProblem) -> None:
    """Raise ProblemTooLarge unless the arrays and the float64 reference fit this machine's memory."""
    elements = math.prod(problem.x_shape) + math.prod(problem.y_shape) + math.prod(problem.w_shape)
    needed, free = 6 * 8 * elements, free_host_bytes()
    if needed > free:
        raise ProblemTooLarge(
            f"problem {problem} needs about {needed:,} bytes with its float64 reference; {free:,} are free"
        )


# -- compiling ahead -------------------------------------------------------------------------------------------------
def compile_ahead(
    wanted: Iterable[tuple[Variant, ConvProblem]], device: Device, target: Target | str, bar: Progress
) -> None:
    """Compile all that variants need for problems that they do not refuse, on every core, with a progress bar.

    A source that does not compile is left for its first use to report.
    """
    sources = distinct(Source.of(v.path, constants_of(v, problem, target)) for v, problem in wanted)

    def build(source: Source) -> None:
        try:
            if device.kind == "cpu":
                device.compile(source)  # type: ignore[attr-defined]
            else:
                cubin(source, device.architecture)  # type: ignore[attr-defined]
        except CompileError:
            pass

    task = bar.add_task("compiling", total=len(sources))
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for done in as_completed([pool.submit(build, source) for source in sources]):
            done.result()
            bar.update(task, advance=1, refresh=True)
    finally:
        pool.shutdown(cancel_futures=True)
    bar.remove_task(task)
