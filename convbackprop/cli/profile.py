"""Look into kernels: what limits them, by their machine code and their addresses. No GPU is needed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from convbackprop.arguments import known
from convbackprop.cli import profile_report
from convbackprop.cli.common import (
    add_device,
    add_target,
    console,
    distinct,
    print_json,
    progress,
    say,
    variants_of,
)
from convbackprop.devices.compiler import compiler_version, find_nvcc
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.problem import DTYPES
from convbackprop.profile.machine_code import FILTERS, Configuration, Kernel, kernels
from convbackprop.profile.occupancy import LIMITS
from convbackprop.profile.sass import WIDTHS, Mix, find_cuobjdump

HELP = "what limits a kernel, and what to change first"
EPILOG = """\
The report is of one variant, or each of a pass, on one problem and one GPU: the
problem's floor (its bytes at the speed of memory, its operations at that of the
arithmetic), and the limits that follow from the kernel itself. Two things tell
of them: with nvcc (and cuobjdump) its registers, spills, occupancy and the
instructions of its hot loop; and its addresses, which are replayed on the cpu
device: the sectors that blocks ask for, the sectors or wavefronts a request of
each line of source, and bank conflicts. Of a large grid some blocks are
replayed, and the rest taken to be like them; the report says how many. Each
limit is a bound: it takes at least so long. Beside the bounds stands the time
that is expected, with what the kernel loses by waiting: how long a warp's turn
of the hot loop takes alone, how many turns, warps and rounds of blocks there
are, and five constants that were fitted to an H200. On a GPU the kernel is also
checked and timed, and the expected time scored; --ncu runs Nsight Compute there
and shows its counters beside the model's figures.

--what-if ROWS=16,COLS=4 compares with other values of a variant's tunables
(convbackprop list VARIANT names them): both times, and what they consist of.

--machine-code compiles each variant with nvcc for a layer of one channel on
4096 x 4096 numbers (or, if it refuses that, of 64 channels to 128 on 112 x 112
and 32 images; with ReLU, bias, padding that keeps the size), in each dtype and
filter size and for each architecture, and prints what ptxas says of its main
kernel, and how many of its blocks a multiprocessor can hold. A spill, a number
that finds no register and goes through memory, is red and makes the exit code
1. A first run takes minutes; what has been compiled is kept in the cache.

Where cuobjdump is found, a second table tells of the instructions: how many
global loads and stores there are of each width, in the kernel and in its hot
loop (the innermost one with the most multiply-adds), and which share of the hot
loop's instructions are multiply-adds (FFMA, DFMA, HFMA2): about what a kernel
can reach of the GPU's peak. Code for an image's border counts, too, though most
threads skip it.

examples:
  convbackprop profile forward/coalesced
  convbackprop profile forward --problem 32,64,56,56,64,3,3,padding=1 --gpu A100
  convbackprop profile forward/coalesced --what-if ROWS=8
  convbackprop profile mine.cu --annotate
  convbackprop profile forward/tiled --html tiled.html
  convbackprop profile forward/coalesced --ncu
  convbackprop profile forward/tiled --emit sass -o tiled.sass
  convbackprop profile --machine-code
  convbackprop profile forward/coalesced --machine-code --filter 5 --arch sm_90a
  convbackprop profile backward --machine-code --dtype float32 float16 --json
  convbackprop profile mine.cu --machine-code

JSON keys of a report: ok, gpu, problem, notes, reports [variant, flops,
least_bytes, own_bytes, floor_us, predicted_us (the greatest bound),
expected_us, expected_parts {limit: us}, expected_with {change: us}, limited_by,
share, advice, verdict, bounds [limit, us, what], launches [kernel, main, grid,
block, code {registers...}, hot_loop {is_loop, instructions, multiply_adds,
share, bytes, kinds}, traffic {blocks, of_blocks, arrays, lines}], remarks,
measured_us, ratio (measured over predicted), with --ncu ncu [quantity, unit,
counted, model], and with --annotate source [file, line, instructions,
multiply_adds, accesses]], and with --what-if what_if {tunables {NAME: {now,
what_if}}, report}. code, hot_loop, traffic, own_bytes, expected_us and the
like, measured_us and ratio are null where not known. arrays and lines are of as
many blocks as were replayed.

JSON keys of --machine-code: ok, nvcc, cuobjdump, configurations, spilling
[configuration], refused [variant, dtype, filter, reason], rows [variant,
kernel, main, dtype, filter, arch, threads, registers, static_shared_bytes,
dynamic_shared_bytes, stack_bytes, spill_store_bytes, spill_load_bytes,
blocks_per_sm, warps_per_sm, max_warps_per_sm, limited_by [name], whole, loop].
A row is a kernel; main: the one in the tables. whole and loop, null without
cuobjdump, are {instructions, multiply_adds, share, global_loads {bits: count},
global_stores {bits: count},
local_loads, local_stores}.
"""

#: Columns that a table should have at most.
_WIDTH = 100

#: Ampere, Hopper and Blackwell, as in data centres.
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_target(parser)
    profile_report.add_arguments(parser)
    add_device(parser)
    parser.add_argument("--machine-code", action="store_true", help="what nvcc makes of the variants; needs nvcc")
    parser.add_argument("--arch", nargs="+", metavar="SM", help=f"of --machine-code and --emit: {', '.join(LIMITS)}; "
                        f"default: {' '.join(ARCHITECTURES)}")  # fmt: skip
    parser.add_argument("--dtype", nargs="+", metavar="D", help=f"{', '.join(DTYPES)}; default: float32, with "
                        "--machine-code all")  # fmt: skip
    parser.add_argument("--filter", nargs="+", metavar="R", help="heights (and widths) of the filter; default: 5, with "
                        f"--machine-code {' '.join(map(str, FILTERS))}")  # fmt: skip
    parser.add_argument("--sass", action="store_true", help="fail where the instructions cannot be looked at for want "
                        "of cuobjdump")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


# -- what is compiled ------------------------------------------------------------------------------------------------
def configurations(arguments: argparse.Namespace) -> tuple[Configuration, ...]:
    """Return what the arguments ask for."""
    variants = variants_of(arguments.target, arguments.pass_name)
    architectures = distinct(known(word, tuple(LIMITS), "--arch") for word in arguments.arch or ARCHITECTURES)
    dtypes = distinct(known(word, tuple(DTYPES), "--dtype") for word in arguments.dtype or DTYPES)
    sizes = arguments.filter or FILTERS
    for word in sizes:
        if not str(word).isdecimal() or not 1 <= int(word) < 10_000:
            raise InvalidArgument(f"--filter is {word!r}; it should be an integer from 1 to 9999")
    filters = distinct(int(word) for word in sizes)
    return tuple(
        Configuration(variant, dtype, size, architecture)
        for variant in variants
        for architecture in filter(variant.is_for, architectures)
        for dtype in dtypes
        for size in filters
    )


def examine(wanted: Iterable[Configuration], cuobjdump: Path | None) -> list[Kernel]:
    """Compile on every core, and return what is known of the kernels."""
    # Neighbours have the same source where the filter is no constant of it: one would wait for the other.
    work = sorted(wanted, key=lambda configuration: configuration.filter)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with progress() as bar:
            task = bar.add_task("compiling", total=len(work))
            jobs = {pool.submit(kernels, configuration, cuobjdump): configuration for configuration in work}
            found = {}
            for job in as_completed(jobs):
                found[jobs[job]] = job.result()
                bar.update(task, advance=1, description=str(jobs[job]), refresh=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return [kernel for configuration in wanted for kernel in found[configuration]]


def run(arguments: argparse.Namespace) -> int:
    """Print the report, or with --machine-code the tables of all kernels."""
    if arguments.machine_code:
        return machine_code(arguments)
    return profile_report.run(arguments)


def machine_code(arguments: argparse.Namespace) -> int:
    """Compile, print the tables, and return 0 if nothing spills."""
    for option in ("problem", "gpu", "annotate", "html", "what_if", "ncu", "emit", "output", "device"):
        if getattr(arguments, option) not in (None, False):
            raise InvalidArgument(
                f"--{option.replace('_', '-')} goes with a report on one problem; leave it or --machine-code out"
            )
    asked = configurations(arguments)
    nvcc = find_nvcc()
    cuobjdump, why_not = None, ""
    try:
        cuobjdump = find_cuobjdump()
    except EnvironmentProblem as error:
        if arguments.sass:
            raise
        why_not = str(error)
    refused = {each: sentence for each in asked if (sentence := each.refusal)}
    wanted = [each for each in asked if each not in refused]
    found = examine(wanted, cuobjdump)
    spilling = distinct(str(kernel.configuration) for kernel in found if kernel.spill_bytes)
    if arguments.json:
        print_json({
            "ok": bool(wanted) and not spilling,
            "nvcc": str(nvcc),
            "cuobjdump": str(cuobjdump) if cuobjdump else None,
            "configurations": len(wanted),
            "spilling": spilling,
            "refused": [
                {"variant": each.variant.title, "dtype": each.dtype, "filter": each.filter, "reason": sentence}
                for each, sentence in refused.items()
                if each.architecture == asked[0].architecture
            ],
            "rows": [_json(kernel) for kernel in found],
        })  # fmt: skip
    else:
        out = console()
        release = next((line for line in compiler_version(nvcc).splitlines() if "release" in line), "")
        say(out, f"{nvcc}: {release}")
        _print_tables(found, out)
        for sentence in distinct(
            f"{each.variant.title} refuses {each.filter}x{each.filter}: {sentence}"
            for each, sentence in refused.items()
        ):
            say(out, sentence)
        if why_not:
            say(out, f"The instructions are left out: {why_not}.")
        out.print(f"\n{len(wanted):,} configurations, {len(spilling):,} spill", style="red" if spilling else None)
    return int(bool(spilling) or not wanted)


# -- printing --------------------------------------------------------------------------------------------------------
def _json(kernel: Kernel) -> dict[str, Any]:
    made = kernel.configuration
    code = kernel.instructions
    return {
        "variant": made.variant.title,
        "kernel": kernel.entry,
        "main": kernel.is_main,
        "dtype": made.dtype,
        "filter": made.filter,
        "arch": made.architecture,
        "threads": kernel.threads,
        "dynamic_shared_bytes": kernel.dynamic_shared_bytes,
        **kernel.usage._asdict(),
        "blocks_per_sm": kernel.occupancy.blocks,
        "warps_per_sm": kernel.occupancy.warps,
        "max_warps_per_sm": LIMITS[made.architecture].warps,
        "limited_by": kernel.occupancy.limited_by,
        "whole": _mix(code.whole) if code else None,
        "loop": _mix(code.loop) if code and code.loop else None,
    }


def _mix(mix: Mix) -> dict[str, Any]:
    return {**vars(mix), "share": mix.share}


def _print_tables(found: Sequence[Kernel], out: Console) -> None:
    main = [kernel for kernel in found if kernel.is_main]
    if not main:
        return
    shown = [kernel for kernel in found if kernel.is_main or kernel.spill_bytes]
    out.print()
    _print_grid(out, shown, ("threads", "regs", "shared", "spill", "stack", "blocks", "warps", "limited by"), _usage)
    say(
        out,
        "\nregs: of a thread. shared, spill, stack: bytes of a block's shared memory, of a thread's spill stores and "
        "loads, and of its stack. blocks, warps: that a multiprocessor holds at once, and what limits them.",
    )
    if main[0].instructions:
        heads = ("loads", "stores", "local", "loop: loads", "stores", "instr", "FMA")
        out.print()
        _print_grid(out, main, heads, _instructions)
        say(
            out,
            f"\nloads, stores: global ones of {'/'.join(map(str, WIDTHS))} bits. local: loads and stores of local "
            "memory. loop: what the hot loop has of them, its instructions, and the share of multiply-adds.",
        )
    others = distinct(kernel.entry for kernel in found if not kernel.is_main)
    if others:
        say(out, f"Smaller kernels are in --json: {', '.join(others)}.")


def _usage(kernel: Kernel) -> list[str | Text]:
    spill, stack = kernel.spill_bytes, kernel.usage.stack_bytes
    fits = kernel.occupancy
    return [
        str(kernel.threads),
        str(kernel.usage.registers),
        f"{kernel.shared_bytes:,}",
        Text(f"{spill:,}", "red") if spill else "0",
        Text(f"{stack:,}", "yellow") if stack else "0",
        str(fits.blocks),
        f"{fits.warps}/{LIMITS[kernel.configuration.architecture].warps}",
        fits.limited_by[0],
    ]


def _instructions(kernel: Kernel) -> list[str | Text]:
    if kernel.instructions is None:
        return ["-"] * 7
    whole, loop = kernel.instructions.whole, kernel.instructions.loop
    local = whole.local_loads + whole.local_stores
    return [
        _widths(whole.global_loads),
        _widths(whole.global_stores),
        Text(f"{local:,}", "red") if local else "0",
        _widths(loop.global_loads) if loop else "-",
        _widths(loop.global_stores) if loop else "-",
        f"{loop.instructions:,}" if loop else "-",
        f"{100 * loop.share:.0f} %" if loop else "-",
    ]


def _widths(counts: dict[int, int]) -> str:
    """Return how many there are of each width; wider ones than 128 bits are counted with these."""
    wide = {width: counts.get(width, 0) for width in WIDTHS}
    wide[WIDTHS[0]] += sum(count for width, count in counts.items() if width > WIDTHS[0])
    return "/".join(map(str, wide.values())) if counts else "0"


def _print_grid(out: Console, shown: Sequence[Kernel], heads: Sequence[str], cells_of: Any) -> None:
    """Print a table with a heading for each variant; filter sizes with the same cells share a row."""
    groups: dict[str, dict[tuple, list[str]]] = {}
    styled: dict[tuple, list[str | Text]] = {}
    for kernel in shown:
        made = kernel.configuration
        cells = cells_of(kernel)
        heading = made.variant.title
        if not kernel.is_main:
            heading += f": {kernel.entry}"
        key = (heading, made.dtype, made.architecture, *map(str, cells))
        styled[key] = cells
        groups.setdefault(heading, {}).setdefault(key, []).append(str(made.filter))
    rows = {
        heading: [[key[1], key[2], " ".join(sizes), *styled[key]] for key, sizes in group.items()]
        for heading, group in groups.items()
    }
    names = ["dtype", "arch", "filter", *heads]
    widths = [
        max(len(cells[i]) for cells in [names, *(row for group in rows.values() for row in group)])
        for i in range(len(names))
    ]
    gap = "  " if sum(widths) + 2 * len(widths) <= _WIDTH else " "

    def line(cells: Sequence[str | Text]) -> Text:
        padded = []
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            space = " " * (width - len(cell))
            left = i < 3 or names[i] == "limited by"
            padded.append(Text.assemble(cell, space) if left else Text.assemble(space, cell))
        joined = Text(gap).join(padded)
        joined.rstrip()
        return joined

    head = line(names)
    head.stylize("bold")
    out.print(head, soft_wrap=True)
    for heading, group in rows.items():
        out.print(Text(heading, "cyan"), soft_wrap=True)
        for cells in group:
            out.print(line(cells), soft_wrap=True)
