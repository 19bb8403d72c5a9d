"""Strips of columns (the .cu files named coalesced): a thread marches down one; its filter is a constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from convbackprop.devices.gpus import Target
from convbackprop.ladder.launches import PACK_MASK, TOTAL, block, total_or_scaled
from convbackprop.ladder.requirements import countable, tiles_countable, unit_dilation, unit_stride
from convbackprop.ladder.scratch import taps
from convbackprop.ladder.variant import WIDEST, Alignment, Constants, Geometry, Launch, Tunable, Variant, ceil_div
from convbackprop.problem import DTYPES, ConvProblem

#: Taps that take more registers than this are in shared memory instead.
_TAP_REGISTERS = 50

#: The unfinished rows of the result take at most so many registers; a filter is at most so many columns wide.
_ROW_REGISTERS, _WIDEST_FILTER = 120, 16


def registers(p: ConvProblem, accumulators: int) -> int:
    """Return how many 32-bit registers so many accumulators take."""
    return accumulators * p.accumulator_bytes // 4


def rows_of_band(p: ConvProblem, target: Target) -> int:
    """Return ROWS: as few as leave at most a quarter of the work to rows outside the band. Short bands are many."""
    return next((rows for rows in (16, 32) if rows >= 4 * (p.R - 1)), 64)


#: THREADS: of a block. COLS: of a strip, one or two vectors of 16 bytes in float32. ROWS: of a band.
THREADS = Tunable(legal=(32, 64, 128, 256), cuda=128, cpu=128)
COLS = Tunable((4, 8), cuda=lambda p, _: 32 // p.accumulator_bytes, cpu=lambda p, _: 32 // p.accumulator_bytes)
ROWS = Tunable(legal=(8, 16, 32, 64), cuda=rows_of_band, cpu=rows_of_band)
TUNABLES = {"THREADS": THREADS, "COLS": COLS, "ROWS": ROWS}


def vectors(p: ConvProblem, alignment: Alignment, t: Constants) -> dict[str, int]:
    """Return how many elements of rows of x's and of y's width a load takes: 16 bytes, where rows are so aligned."""
    size = DTYPES[p.dtype]
    return {
        "X_VECTOR": math.gcd(p.W, max(alignment.x, size) // size, WIDEST // size, t["COLS"]),
        "Y_VECTOR": math.gcd(p.Q, max(alignment.y, size) // size, WIDEST // size, t["COLS"]),
    }


def lead(p: ConvProblem, loads: Constants, is_forward: bool) -> int:
    """Return LEAD: by how many columns a vector may begin before what forward or input_grad reads first."""
    return -p.pad_left % loads["X_VECTOR"] if is_forward else (p.pad_left + 1 - p.S) % loads["Y_VECTOR"]


# -- forward and input_grad ------------------------------------------------------------------------------------------
def march_constants(is_forward: bool) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for the constants of forward and input_grad."""

    def constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        loads = vectors(p, alignment, t)
        return {
            **loads,
            "LEAD": lead(p, loads, is_forward),
            "FILTER_R": p.R,
            "FILTER_S": p.S,
            "TAPS_SHARED": int(registers(p, p.R * p.S) > _TAP_REGISTERS),
        }

    return constants


def march_grid(is_forward: bool) -> Geometry:
    """Return a thread for each strip of each band; with taps in shared memory, planes of whole blocks."""

    def grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        n, planes, rows, cols = p.y_shape if is_forward else p.x_shape
        units = ceil_div(cols, t["COLS"]) * ceil_div(rows, t["ROWS"])
        if t["TAPS_SHARED"]:
            return (n * planes * ceil_div(units, t["THREADS"]),)
        return (ceil_div(n * planes * units, t["THREADS"]),)

    return grid


def one_source(is_forward: bool) -> Callable[[ConvProblem], str | None]:
    """Return the requirement that each plane of the result is made from one plane."""

    def requirement(p: ConvProblem) -> str | None:
        """It takes one channel a filter (input_grad: one filter a channel)."""
        count, what, each = (p.C, "channels", "filter") if is_forward else (p.K, "filters", "channel")
        if count == p.groups:
            return None
        return f"a {each} sees {count // p.groups} {what}; it works where that is one"

    return requirement


def filter_fits(p: ConvProblem) -> str | None:
    """It takes filters whose unfinished rows fit the registers."""
    most = _ROW_REGISTERS // registers(p, 8)
    if most < p.R or p.S > _WIDEST_FILTER:
        return f"the filter is {p.R}x{p.S}; at most {most}x{_WIDEST_FILTER} fits the registers in {p.dtype}"
    return None


# -- kernel_grad -----------------------------------------------------------------------------------------------------
#: What the arrays of a thread may take of its 255 registers.
_ARRAY_REGISTERS = 189


def kernel_grad_constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    """Return the constants of kernel_grad/coalesced.cu: how many taps a thread adds up."""
    loads = vectors(p, alignment, t)
    cols = ceil_div(p.S, ceil_div(p.S, _WIDEST_FILTER))
    if cols < p.S:
        cols = _WIDEST_FILTER  # the parts begin where loads stay aligned
    window = (t["COLS"] - 1) * p.stride_w + cols
    # A bias, the next row of x with its LEAD, g and the next rows of dy and y; and for each row of taps a row of x.
    others = 1 + window + 3 + 3 * t["COLS"]
    # Columns that are read one by one are inside one by one, or not, which takes registers, too.
    most = _ARRAY_REGISTERS - 10 * (loads["X_VECTOR"] == loads["Y_VECTOR"] == 1)
    fit = (most // registers(p, 1) - others) // (window + cols)
    rows = max(1, min(p.R, fit))
    return {
        **loads,
        "LEAD": -p.pad_left % loads["X_VECTOR"],
        "TAP_ROWS": ceil_div(p.R, ceil_div(p.R, rows)),
        "TAP_COLS": cols,
    }


def kernel_grad_blocks(p: ConvProblem, t: Constants) -> int:
    """Return how many blocks share the strips of all images, for each filter and each of its parts."""
    return max(1, ceil_div(p.N * ceil_div(p.Q, t["COLS"]) * ceil_div(p.P, t["ROWS"]), t["THREADS"]))


def kernel_grad_grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return the grid: the parts of a filter side by side, which read the same rows."""
    filters = p.K * (p.C // p.groups)
    parts = ceil_div(p.R, t["TAP_ROWS"]) * ceil_div(p.S, t["TAP_COLS"])
    return (filters * kernel_grad_blocks(p, t) * parts,)


ENTRIES = (
    Variant(
        "forward",
        "coalesced",
        launches=(
            Launch("forward", ("x", "w", "b", "y", "mask"), march_grid(True), block("THREADS")),
            replace(PACK_MASK, when=lambda p, t: p.mask and t["COLS"] % 8 != 0),  # a byte belongs to two threads
        ),
        tunables=TUNABLES,
        specialise=march_constants(True),
        requires=(unit_stride, unit_dilation, one_source(True), filter_fits, countable, tiles_countable(8)),
        auto_on=("cuda",),
        unproven=True,
    ),
    Variant(
        "input_grad",
        "coalesced",
        launches=(Launch("input_grad", ("dy", "saved", "w", "b", "dx"), march_grid(False), block("THREADS")),),
        tunables=TUNABLES,
        specialise=march_constants(False),
        requires=(unit_stride, unit_dilation, one_source(False), filter_fits, countable, tiles_countable(8)),
        auto_on=("cuda",),
        unproven=True,
    ),
    Variant(
        "kernel_grad",
        "coalesced",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "scratch"), kernel_grad_grid, block("THREADS"),
                   integers=lambda p, t: (kernel_grad_blocks(p, t),)),
            *total_or_scaled(kernel_grad_blocks),
        ),
        tunables={**TUNABLES, "ROWS": replace(ROWS, cuda=32, cpu=32), **TOTAL},
        specialise=kernel_grad_constants,
        scratch=lambda p, t: kernel_grad_blocks(p, t) * taps(p),
        requires=(unit_stride, unit_dilation, countable, tiles_countable(8)),
        auto_on=("cuda",),
        unproven=True,
    ),
)  # fmt: skip
