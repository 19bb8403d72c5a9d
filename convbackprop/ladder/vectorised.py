"""Strips of columns with a CPU's vectors (the .cu files named vectorised, and cuda_src/cpu): the CPU's own rungs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convbackprop.devices.cpu_level import cpu_vector_bytes
from convbackprop.devices.gpus import Target
from convbackprop.ladder import fused
from convbackprop.ladder.coalesced import kernel_grad_blocks, kernel_grad_grid, registers
from convbackprop.ladder.launches import TOTAL, block, total_or_scaled
from convbackprop.ladder.requirements import countable, unit_dilation, unit_stride
from convbackprop.ladder.scratch import taps
from convbackprop.ladder.variant import Alignment, Constants, Geometry, Launch, Tunable, Variant, ceil_div
from convbackprop.problem import ConvProblem

#: Taps that take more registers than this are in shared memory instead.
_TAP_REGISTERS = 32

#: Larger filters are not known at compile time: the unfinished rows of a strip of 8 would take more registers.
_ROW_REGISTERS = 128

#: How many filter columns are then worked on at a time; a multiple of every vector, so that loads stay aligned.
_TAP_COLUMNS = 8


def _columns(vectors: int) -> Callable[[ConvProblem, Target], int]:
    """Return the rule for the columns of a strip on a CPU: at most so many of its vectors.

    The more, the longer the runs of memory that it reads, and the fewer columns that neighbours share. But the last
    strip of a row should not compute for nothing, and a CPU before AVX-512 has too few registers for more than one.
    """

    def columns(p: ConvProblem, target: Target) -> int:
        vector = max(8, cpu_vector_bytes() // p.accumulator_bytes)
        width = min(p.Q, p.W)
        for cols in (4 * vector, 2 * vector):
            if cols <= vectors * vector and cpu_vector_bytes() == 64 and 7 * cols * ceil_div(width, cols) <= 8 * width:
                return cols
        return vector

    return columns


#: THREADS: of a block. VECTOR_BYTES: of a Lane. COLS: of a strip. ROWS: of a band.
TUNABLES = {
    "THREADS": Tunable(legal=(32, 64, 128, 256), cpu=32),
    "VECTOR_BYTES": Tunable(legal=(16, 32, 64), cpu=lambda p, _: cpu_vector_bytes()),
    "COLS": Tunable(legal=(8, 16, 32, 64), cpu=_columns(4)),
    "ROWS": Tunable(legal=(8, 16, 32), cpu=32),
}
BACKWARD_TUNABLES = {**TUNABLES, "COLS": Tunable(legal=(4, 8, 16, 32), cpu=_columns(2))}


def lanes(p: ConvProblem, t: Constants) -> int:
    """Return LANES, the accumulators of a vector; no more than a strip has columns."""
    return min(t["COLS"], t["VECTOR_BYTES"] // p.accumulator_bytes)


# -- forward and input_grad ------------------------------------------------------------------------------------------
def correlation_constants(is_forward: bool) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for the constants of cpu/correlate.cuh."""

    def constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        sources = p.C // p.groups if is_forward else p.K // p.groups
        known = sources == 1 and p.S <= 2 * _TAP_COLUMNS and registers(p, 8 * p.R) <= _ROW_REGISTERS
        left = p.pad_left if is_forward else p.S - 1 - p.pad_left
        return {
            "LANES": lanes(p, t),
            "LEAD": -left % lanes(p, t),
            "FILTER_R": p.R if known else 0,
            "FILTER_S": p.S if known else min(p.S, _TAP_COLUMNS),
            "TILE_ROWS": 0 if known else 4 // registers(p, 1),
            "TAPS_SHARED": int(known and registers(p, p.R * p.S) > _TAP_REGISTERS),
        }

    return constants


def correlation_grid(is_forward: bool) -> Geometry:
    """Return the grid of cpu/correlate.cuh's strip_of_thread."""

    def grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        n, planes, rows, cols = p.y_shape if is_forward else p.x_shape
        units = ceil_div(cols, t["COLS"]) * ceil_div(rows, t["TILE_ROWS"] or t["ROWS"])
        if t["TAPS_SHARED"]:
            return (n * planes * ceil_div(units, t["THREADS"]),)
        return (ceil_div(n * planes * units, t["THREADS"]),)

    return grid


# -- kernel_grad -----------------------------------------------------------------------------------------------------
#: What the sums and the ring of rows may take of a thread's 255 registers, by bytes of an accumulator.
_RING_REGISTERS = {4: 205, 8: 170}


def kernel_grad_constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    """Return the constants of kernel_grad/vectorised.cu: how many taps a thread adds up."""
    cols = ceil_div(p.S, ceil_div(p.S, 2 * _TAP_COLUMNS))
    if cols < p.S:
        cols = 2 * _TAP_COLUMNS  # the parts begin where loads stay aligned
    by_registers = (_RING_REGISTERS[p.accumulator_bytes] // registers(p, 1) - 16) // (8 + cols - 1 + cols)
    rows = max(1, min(p.R, by_registers))
    return {
        "LANES": lanes(p, t),
        "LEAD": -p.pad_left % lanes(p, t),
        "TAP_ROWS": ceil_div(p.R, ceil_div(p.R, rows)),
        "TAP_COLS": cols,
    }


# -- backward --------------------------------------------------------------------------------------------------------
def backward_constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    """Return the constants of backward/vectorised.cu."""
    return {
        "LANES": lanes(p, t),
        "LEAD": -(p.S // 2) % lanes(p, t),
        **fused.filter_and_needs(p),
    }


_CPU_ONLY: dict[str, Any] = {"runs_on": ("cpu",), "auto_on": ("cpu",)}

ENTRIES = (
    Variant(
        "forward",
        "vectorised",
        launches=(
            Launch("forward", ("x", "w", "scale", "b", "residual", "y", "mask"), correlation_grid(True),
                   block("THREADS")),
        ),
        tunables=TUNABLES,
        specialise=correlation_constants(True),
        requires=(unit_stride, unit_dilation, countable),
        **_CPU_ONLY,
    ),
    Variant(
        "input_grad",
        "vectorised",
        launches=(Launch("input_grad", ("dy", "saved", "w", "b", "dx"), correlation_grid(False), block("THREADS")),),
        tunables=TUNABLES,
        specialise=correlation_constants(False),
        requires=(unit_stride, unit_dilation, countable),
        **_CPU_ONLY,
    ),
    Variant(
        "kernel_grad",
        "vectorised",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "scratch"), kernel_grad_grid, block("THREADS"),
                   integers=lambda p, t: (kernel_grad_blocks(p, t),)),
            *total_or_scaled(kernel_grad_blocks),
        ),
        tunables={**TUNABLES, **TOTAL},
        specialise=kernel_grad_constants,
        scratch=lambda p, t: kernel_grad_blocks(p, t) * taps(p),
        requires=(unit_stride, unit_dilation, countable),
        **_CPU_ONLY,
    ),
    Variant(
        "backward",
        "vectorised",
        launches=fused.LAUNCHES,
        tunables={**BACKWARD_TUNABLES, **TOTAL},
        specialise=backward_constants,
        scratch=fused.scratch,
        requires=fused.REQUIRES,
        **_CPU_ONLY,
    ),
)  # fmt: skip
