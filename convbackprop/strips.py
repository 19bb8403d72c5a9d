"""Strips of columns (cuda_src/strip.cuh): what the registry's entries of variants that march down them share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

from convbackprop.problem import ACCUMULATORS, DTYPES, ConvProblem
from convbackprop.variant import WIDEST, Alignment, Constants, Geometry, Tunable, ceil_div

#: Taps that take more registers than this are in shared memory instead.
_TAP_REGISTERS = 32

#: Larger filters are not known at compile time: the unfinished rows of a strip of 8 would take more registers.
_ROW_REGISTERS = 128

#: How many filter columns are then worked on at a time; a multiple of every vector, so that loads stay aligned.
_TAP_COLUMNS = 8


@functools.cache
def cpu_vector_bytes() -> int:
    """Return how wide the CPU's vector registers are."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return 64 if "avx512f" in flags else 32 if "avx" in flags else 16


def _accumulator_bytes(p: ConvProblem) -> int:
    return DTYPES[ACCUMULATORS[p.dtype]]


def _registers(p: ConvProblem, accumulators: int) -> int:
    """Return how many 32-bit registers so many accumulators take."""
    return accumulators * _accumulator_bytes(p) // 4


def _cpu_columns(vectors: int) -> Callable[[ConvProblem], int]:
    """Return the rule for the columns of a strip on a CPU: at most so many of its vectors.

    The more, the longer the runs of memory that it reads, and the fewer columns that neighbours share. But the last
    strip of a row should not compute for nothing, and a CPU before AVX-512 has too few registers for more than one.
    """

    def columns(p: ConvProblem) -> int:
        vector = max(8, cpu_vector_bytes() // _accumulator_bytes(p))
        width = min(p.Q, p.W)
        for cols in (4 * vector, 2 * vector):
            if cols <= vectors * vector and cpu_vector_bytes() == 64 and 7 * cols * ceil_div(width, cols) <= 8 * width:
                return cols
        return vector

    return columns


#: THREADS: of a block. VECTOR_BYTES: what one instruction of a CUDA thread works on; a GPU's works on one number, as
#: a CPU's vectors do on many. COLS: of a strip. ROWS: of a band.
TUNABLES = {
    "THREADS": Tunable(legal=(32, 64, 128, 256), cuda=128, cpu=32),
    "VECTOR_BYTES": Tunable(legal=(1, 16, 32, 64), cuda=1, cpu=lambda p: cpu_vector_bytes()),
    "COLS": Tunable(legal=(8, 16, 32, 64), cuda=8, cpu=_cpu_columns(4)),
    "ROWS": Tunable(legal=(8, 16, 32), cuda=32, cpu=32),
}


def _vectors(p: ConvProblem, alignment: Alignment, t: Constants) -> dict[str, int]:
    """Return LANES, and how many elements of images of x's and of y's width a load takes."""
    lanes = max(1, min(t["COLS"], t["VECTOR_BYTES"] // _accumulator_bytes(p)))
    if lanes > 1:
        return {"LANES": lanes, "X_VECTOR": lanes, "Y_VECTOR": lanes}
    size = DTYPES[p.dtype]
    return {
        "LANES": 1,
        "X_VECTOR": math.gcd(p.W, max(alignment.x, size) // size, WIDEST // size, t["COLS"]),
        "Y_VECTOR": math.gcd(p.Q, max(alignment.y, size) // size, WIDEST // size, t["COLS"]),
    }


# -- forward and input_grad ------------------------------------------------------------------------------------------
def correlation_constants(is_forward: bool) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for the constants of correlate.cuh."""

    def constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        vectors = _vectors(p, alignment, t)
        sources = p.C // p.groups if is_forward else p.K // p.groups
        known = sources == 1 and p.S <= 2 * _TAP_COLUMNS and _registers(p, 8 * p.R) <= _ROW_REGISTERS
        left, name = (p.pad_left, "X_VECTOR") if is_forward else (p.S - 1 - p.pad_left, "Y_VECTOR")
        return {
            **vectors,
            "LEAD": -left % vectors[name],
            "FILTER_R": p.R if known else 0,
            "FILTER_S": p.S if known else min(p.S, _TAP_COLUMNS),
            "TILE_ROWS": 0 if known else 4 // _registers(p, 1),
            "TAPS_SHARED": int(known and _registers(p, p.R * p.S) > _TAP_REGISTERS),
        }

    return constants


def correlation_grid(is_forward: bool) -> Geometry:
    """Return the grid of correlate.cuh's strip_of_thread."""

    def grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        n, planes, rows, cols = p.y_shape if is_forward else p.x_shape
        units = ceil_div(cols, t["COLS"]) * ceil_div(rows, t["TILE_ROWS"] or t["ROWS"])
        if t["TAPS_SHARED"]:
            return (n * planes * ceil_div(units, t["THREADS"]),)
        return (ceil_div(n * planes * units, t["THREADS"]),)

    return grid


def unit_stride(p: ConvProblem) -> str | None:
    """It works with stride 1 only."""
    if p.stride != (1, 1):
        return f"stride is {p.stride[0]}x{p.stride[1]}; it works with stride 1 only"
    return None


def unit_dilation(p: ConvProblem) -> str | None:
    """It works with dilation 1 only."""
    if p.dilation != (1, 1):
        return f"dilation is {p.dilation[0]}x{p.dilation[1]}; it works with dilation 1 only"
    return None


#: What 32-bit arithmetic is safe for, with as much again for what a strip or a band reaches beyond the image.
_LONGEST = 2**30


def countable(p: ConvProblem) -> str | None:
    """It counts rows and columns in 32 bits."""
    for name, size, padding in (("rows", p.H, p.padding[0]), ("columns", p.W, p.padding[1])):
        if (padded := size + sum(padding)) > _LONGEST:
            return f"the padded image has {padded:,} {name}; it counts up to {_LONGEST:,}"
    return None


# -- kernel_grad -----------------------------------------------------------------------------------------------------
#: What the sums and the ring of rows may take of a thread's 255 registers, by bytes of an accumulator.
_RING_REGISTERS = {4: 205, 8: 170}


def kernel_grad_constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    """Return the constants of kernel_grad/coalesced.cu: how many taps a thread adds up."""
    vectors = _vectors(p, alignment, t)
    cols = ceil_div(p.S, ceil_div(p.S, 2 * _TAP_COLUMNS))
    if cols < p.S:
        cols = 2 * _TAP_COLUMNS  # the parts begin where loads stay aligned
    by_registers = (_RING_REGISTERS[_accumulator_bytes(p)] // _registers(p, 1) - 16) // (8 + cols - 1 + cols)
    rows = max(1, min(p.R, by_registers))
    return {
        **vectors,
        "LEAD": -p.pad_left % vectors["X_VECTOR"],
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


# -- backward --------------------------------------------------------------------------------------------------------
#: The largest filter whose taps' sums and rows of g fit the registers.
_LARGEST_FUSED = 7


def _fused_columns(p: ConvProblem) -> int:
    """Return how wide a strip fits a GPU's registers: less wide where the filter is large."""
    return 4 if _registers(p, p.R * p.S) > 32 else 8


FUSED_TUNABLES = {
    **TUNABLES,
    # As many columns a block, whether its strips are narrow or wide: at its two sides g is read twice.
    "THREADS": Tunable(
        legal=TUNABLES["THREADS"].legal, cuda=lambda p: 512 // _fused_columns(p), cpu=TUNABLES["THREADS"].cpu
    ),
    "COLS": Tunable(legal=(4, 8, 16, 32), cuda=_fused_columns, cpu=_cpu_columns(2)),
}


def backward_constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    """Return the constants of backward/fused.cu.

    RESIDENT is how many blocks a multiprocessor should hold at least: as many as there are without a spill.
    """
    vectors = _vectors(p, alignment, t)
    small = _registers(p, p.R * p.S) <= 9 and vectors["Y_VECTOR"] >= 4
    return {
        **vectors,
        "RESIDENT": 512 // t["THREADS"] if small else 1,
        "LEAD": -(p.S // 2) % vectors["Y_VECTOR"],
        "FILTER_R": p.R,
        "FILTER_S": p.S,
        "NEED_DX": int(p.dx),
        "NEED_DW": int(p.dw),
        "NEED_DB": int(p.bias),
    }


def backward_blocks(p: ConvProblem, t: Constants) -> int:
    """Return how many blocks share the strips of a channel in all images."""
    return max(1, ceil_div(p.N * ceil_div(p.W, t["COLS"]) * ceil_div(p.H, t["ROWS"]), t["THREADS"]))


def depthwise(p: ConvProblem) -> str | None:
    """It has one filter a channel: C = K = groups."""
    if not p.C == p.K == p.groups:
        return f"C, K, groups are {p.C}, {p.K}, {p.groups}; it works where they are equal: one filter a channel"
    return None


def small_odd_filter(p: ConvProblem) -> str | None:
    """It takes filters of 1, 3, 5 or 7 rows and columns."""
    if p.R % 2 == 0 or p.S % 2 == 0 or max(p.R, p.S) > _LARGEST_FUSED:
        return f"the filter is {p.R}x{p.S}; its height and width should be 1, 3, 5 or {_LARGEST_FUSED}"
    return None


def enough_registers(p: ConvProblem) -> str | None:
    """It takes float64 filters of at most 5 x 5."""
    if p.dtype == "float64" and p.R * p.S > 25:
        return f"the filter is {p.R}x{p.S} in float64, whose sums do not fit the registers; at most 25 taps do"
    return None


def same_padding(p: ConvProblem) -> str | None:
    """It works with padding 'same' only."""
    wanted = ((p.R // 2, p.R // 2), (p.S // 2, p.S // 2))
    if p.padding != wanted:
        return f"padding is {p.padding}; it works with 'same' only, here {wanted}"
    return None
