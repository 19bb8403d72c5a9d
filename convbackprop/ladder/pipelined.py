"""Strips of columns whose rows are brought ahead (the .cu files named pipelined); lanes of a warp share a tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from convbackprop.devices.gpus import Target
from convbackprop.ladder import fused
from convbackprop.ladder.coalesced import (
    THREADS,
    filter_fits,
    kernel_grad_constants,
    march_constants,
    one_source,
    vectors,
)
from convbackprop.ladder.launches import PACK_MASK, TOTAL, block, total, total_or_scaled
from convbackprop.ladder.requirements import countable, unit_dilation, unit_stride
from convbackprop.ladder.scratch import taps
from convbackprop.ladder.variant import (
    WIDEST,
    Alignment,
    Choice,
    Constants,
    Geometry,
    Launch,
    Tunable,
    Variant,
    ceil_div,
)
from convbackprop.problem import DTYPES, ConvProblem


def _columns(p: ConvProblem, target: Target) -> int:
    """Return COLS: as many columns as a load of 16 bytes has, but of sums no more than registers hold."""
    return min(8, max(2, WIDEST // DTYPES[p.dtype]))


def _lanes(p: ConvProblem, target: Target) -> int:
    """Return TILE_LANES: as many as leave few strips of a tile beyond a narrow image."""
    strips = ceil_div(min(p.Q, p.W), _columns(p, target))
    return next((lanes for lanes in (4, 8, 16) if strips <= lanes), 32)


#: Blocks a multiprocessor that tall bands leave at least: fewer have too little under way, and no even share.
_BLOCKS_EACH = 3


def _rows(of_y: bool) -> Choice:
    """Return the rule for ROWS, of bands of y or of x.

    A band's first rows meet only a part of the filter: of tall bands they are a smaller part.
    """

    def rows(p: ConvProblem, target: Target) -> int:
        planes, height, width = (p.K * (p.C // p.groups), p.P, p.Q) if of_y else (p.C, p.H, ceil_div(p.W, p.stride_w))
        shape = {"COLS": _columns(p, target), "TILE_LANES": _lanes(p, target), "ROWS": 64}
        threads = _tiles(p.N * planes, height, width, shape) * shape["TILE_LANES"]
        return 64 if threads >= _BLOCKS_EACH * target.multiprocessors * THREADS.value(target, p) else 32

    return rows


def _tunables(of_y: bool) -> dict[str, Tunable]:
    """Return the constants of a pass.

    COLS: of a strip. TILE_LANES: strips of a tile. ROWS: of a band, at most: the rows of an image are divided evenly.
    STAGES: rows of a ring, all but one under way.
    """
    return {
        "THREADS": THREADS,
        "COLS": Tunable((2, 4, 8), cuda=_columns, cpu=_columns),
        "TILE_LANES": Tunable((4, 8, 16, 32), cuda=_lanes, cpu=_lanes),
        "ROWS": Tunable((8, 16, 32, 64), cuda=_rows(of_y), cpu=32),
        "STAGES": Tunable((3, 4, 6, 8), cuda=6, cpu=6),
    }


#: Threads that 32-bit arithmetic is safe for, with as much again for those that fill the last blocks.
_MOST_THREADS = 2**31


def _threads_countable(p: ConvProblem) -> str | None:
    """It counts the strips of all tiles in 32 bits."""
    planes = (p.K, p.P, p.Q), (p.C, p.H, p.W)
    # With the constants that make the most: bands of 8 rows, tiles of 32 strips of 2 columns.
    threads = max(p.N * count * ceil_div(height, 8) * ceil_div(width, 64) * 32 for count, height, width in planes)
    if threads > _MOST_THREADS:
        return f"there are {threads:,} strips of 8 x 2 in tiles of 32; it counts up to {_MOST_THREADS:,}"
    return None


# -- the rings in shared memory: as in row_ring.cuh and grad_ring.cuh --------------------------------------------------
def rows_bytes(width: int, size: int, t: Constants) -> int:
    """Return what rows of one array take: RowRing::BYTES."""
    return t["STAGES"] * ceil_div(width * size, 16) * 16


def grad_bytes(p: ConvProblem, width: int, formed_size: int, t: Constants) -> int:
    """Return what rows of g take, and one that is formed for all lanes, of such elements or 0: GradRing::BYTES."""
    dy = saved = rows_bytes(width, DTYPES[p.dtype], t)
    if p.saved is None:
        return dy
    if p.saved == "mask":
        saved = rows_bytes(width // 8 + 2, 1, t)
    return dy + saved + ceil_div(width * formed_size, 16) * 16


def _grad_element(p: ConvProblem) -> int:
    """Return the bytes of GradElement: of a ReLU g is dy or 0, and takes no more than dy."""
    return DTYPES[p.dtype] if p.activation == "relu" else p.accumulator_bytes


def _tile_width(window: int, step: int, t: Constants) -> int:
    """Return TILE_WIDTH: the columns that the strips of a tile see, each so many, `step` beyond those beside it."""
    return (t["TILE_LANES"] - 1) * step + ceil_div(window, t["COLS"]) * t["COLS"]


def _x_tile_width(p: ConvProblem, taps_across: int, t: Constants) -> int:
    """Return that of rows of x under strips of COLS columns of y."""
    window = t["LEAD"] + (t["COLS"] - 1) * p.stride_w + taps_across
    return _tile_width(window, t["COLS"] * p.stride_w, t)


def _back(p: ConvProblem) -> int:
    """Return BACK: how many columns of g before a strip's own its first taps meet."""
    return max(0, p.S - 1 - p.pad_left % p.stride_w) // p.stride_w


def _g_tile_width(p: ConvProblem, t: Constants) -> int:
    """Return that of rows of g under strips of dx."""
    window = t["LEAD"] + _back(p) + t["COLS"] + (p.stride_w - 1 + p.pad_left % p.stride_w) // p.stride_w
    return _tile_width(window, t["COLS"], t)


def _shared_bytes(of_tile: Callable[[ConvProblem, Constants], int]) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for a block, from that for a tile."""
    return lambda p, t: t["THREADS"] // t["TILE_LANES"] * of_tile(p, t)


def _tiles(planes: int, rows: int, cols: int, t: Constants) -> int:
    return planes * ceil_div(cols, t["TILE_LANES"] * t["COLS"]) * ceil_div(rows, t["ROWS"])


# -- strides ---------------------------------------------------------------------------------------------------------
#: Rows of a filter that input_grad takes with a stride: its strips of dx are so many times as wide.
_ROWS_WITH_STRIDE = 7


def _stride_fits(p: ConvProblem) -> str | None:
    """It takes strides of 1 and 2."""
    if max(p.stride) > 2:
        return f"stride is {p.stride[0]}x{p.stride[1]}; it works with stride 1 and 2 only"
    return None


def _strided_filter_fits(p: ConvProblem) -> str | None:
    """With a stride it takes filters of few rows."""
    if p.stride_w > 1 and p.R > _ROWS_WITH_STRIDE:
        return f"the filter is {p.R}x{p.S}; with stride 2 at most {_ROWS_WITH_STRIDE} rows fit the registers"
    return None


def _strided(
    specialise: Callable[[ConvProblem, Alignment, Constants], Constants],
) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for the constants of a march, with the stride."""

    def constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        return {**specialise(p, alignment, t), "STRIDE_H": p.stride_h, "STRIDE_W": p.stride_w}

    return constants


def _input_grad_constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    constants = march_constants(False)(p, alignment, t)
    lead = (p.pad_left // p.stride_w - _back(p)) % constants["Y_VECTOR"]
    return {**constants, "LEAD": lead, "PHASE": p.pad_left % p.stride_w}


# -- forward and input_grad ------------------------------------------------------------------------------------------
def _march_grid(is_forward: bool) -> Geometry:
    """Return a thread for each strip of each tile; with taps in shared memory, planes of whole blocks."""

    def grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        n, planes, rows, cols = p.y_shape if is_forward else p.x_shape
        threads = _tiles(1, rows, cols if is_forward else ceil_div(cols, p.stride_w), t) * t["TILE_LANES"]
        if t["TAPS_SHARED"]:
            return (n * planes * ceil_div(threads, t["THREADS"]),)
        return (ceil_div(n * planes * threads, t["THREADS"]),)

    return grid


def _forward_tile(p: ConvProblem, t: Constants) -> int:
    return rows_bytes(_x_tile_width(p, p.S, t), DTYPES[p.dtype], t)


def _input_grad_tile(p: ConvProblem, t: Constants) -> int:
    return grad_bytes(p, _g_tile_width(p, t), _grad_element(p), t)


# -- kernel_grad and backward ----------------------------------------------------------------------------------------
def _kernel_grad_tile(p: ConvProblem, t: Constants) -> int:
    x = rows_bytes(_x_tile_width(p, t["TAP_COLS"], t), DTYPES[p.dtype], t)
    return x + grad_bytes(p, t["TILE_LANES"] * t["COLS"], 0, t)


def _kernel_grad_blocks(p: ConvProblem, t: Constants) -> int:
    """Return how many blocks share the tiles of all images, for each filter and each of its parts."""
    return max(1, ceil_div(_tiles(p.N, p.P, p.Q, t) * t["TILE_LANES"], t["THREADS"]))


def _kernel_grad_grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return the grid: the parts of a filter side by side, which read the same rows."""
    parts = ceil_div(p.R, t["TAP_ROWS"]) * ceil_div(p.S, t["TAP_COLS"])
    return (p.K * (p.C // p.groups) * _kernel_grad_blocks(p, t) * parts,)


def _backward_constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    loads = vectors(p, alignment, t)
    return {**loads, "LEAD": -(p.S // 2) % loads["Y_VECTOR"], **fused.filter_and_needs(p)}


def _backward_tile(p: ConvProblem, t: Constants) -> int:
    x = rows_bytes(t["TILE_LANES"] * t["COLS"], DTYPES[p.dtype], t) if p.dw else 0
    return x + grad_bytes(p, _g_tile_width(p, t), _grad_element(p), t)


def _backward_blocks(p: ConvProblem, t: Constants) -> int:
    """Return how many blocks share the tiles of a channel in all images."""
    return max(1, ceil_div(_tiles(p.N, p.H, p.W, t) * t["TILE_LANES"], t["THREADS"]))


# -- the entries -----------------------------------------------------------------------------------------------------
def unseen(p: ConvProblem, target: Target) -> str:
    """Return why "auto" leaves every problem to lower rungs."""
    return "no GPU has run it yet; it is chosen by its name"


def _no_faster(p: ConvProblem, target: Target) -> str | None:
    """Leave a stride of 1 to `coalesced`, which is expected to take about as long.

    With a stride there are `few_channels` and `tiled` below, which are expected to take 1 to 1.7 and 1.4 to 12 times as
    long on MobileNet's layers; and what is waited for here are a thread's own copies, which cannot hang.
    """
    return unseen(p, target) if unit_stride(p) is None else None


_COMMON: dict[str, Any] = {"auto_on": ("cuda",), "unproven": True}
_MARCH = (_stride_fits, unit_dilation)
_COUNTABLE = (countable, _threads_countable)

ENTRIES = (
    Variant(
        "forward",
        "pipelined",
        launches=(
            Launch("forward", ("x", "w", "b", "y", "mask"), _march_grid(True), block("THREADS"),
                   shared_bytes=_shared_bytes(_forward_tile)),
            replace(PACK_MASK, when=lambda p, t: p.mask and t["COLS"] % 8 != 0),  # a byte belongs to two threads
        ),
        tunables=_tunables(of_y=True),
        specialise=_strided(march_constants(True)),
        requires=(*_MARCH, one_source(True), filter_fits, *_COUNTABLE),
        auto_not=_no_faster,
        **_COMMON,
    ),
    Variant(
        "input_grad",
        "pipelined",
        launches=(
            Launch("input_grad", ("dy", "saved", "w", "b", "dx"), _march_grid(False), block("THREADS"),
                   shared_bytes=_shared_bytes(_input_grad_tile)),
        ),
        tunables=_tunables(of_y=False),
        specialise=_strided(_input_grad_constants),
        requires=(*_MARCH, one_source(False), filter_fits, _strided_filter_fits, *_COUNTABLE),
        auto_not=_no_faster,
        all_phases=True,
        **_COMMON,
    ),
    Variant(
        "kernel_grad",
        "pipelined",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "scratch"), _kernel_grad_grid, block("THREADS"),
                   integers=lambda p, t: (_kernel_grad_blocks(p, t),), shared_bytes=_shared_bytes(_kernel_grad_tile)),
            *total_or_scaled(_kernel_grad_blocks),
        ),
        tunables={**_tunables(of_y=True), **TOTAL},
        specialise=_strided(kernel_grad_constants),
        scratch=lambda p, t: _kernel_grad_blocks(p, t) * taps(p),
        requires=(*_MARCH, *_COUNTABLE),
        auto_not=unseen,
        **_COMMON,
    ),
    Variant(
        "backward",
        "pipelined",
        launches=(
            Launch("backward", ("dy", "saved", "x", "w", "dx", "scratch"),
                   lambda p, t: (p.C * _backward_blocks(p, t),), block("THREADS"),
                   integers=lambda p, t: (_backward_blocks(p, t),), shared_bytes=_shared_bytes(_backward_tile)),
            total(_backward_blocks, when=lambda p, t: p.dw or p.bias),
        ),
        tunables={**_tunables(of_y=False), **TOTAL},
        specialise=_backward_constants,
        scratch=lambda p, t: _backward_blocks(p, t) * taps(p) * (p.dw or p.bias),
        requires=(*fused.REQUIRES, _threads_countable),
        auto_not=unseen,
        **_COMMON,
    ),
)  # fmt: skip
