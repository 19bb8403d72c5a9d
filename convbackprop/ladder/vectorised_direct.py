"""Images laid out as a signal, for a CPU's vectors (the .cu files named vectorised_direct): the CPU's own rungs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from convbackprop.devices.cpu_level import cpu_vector_bytes
from convbackprop.devices.gpus import Target
from convbackprop.ladder.launches import PACK_MASK, TOTAL, block, total
from convbackprop.ladder.requirements import LARGEST, unit_stride
from convbackprop.ladder.scratch import most_slices, taps
from convbackprop.ladder.variant import (
    ALIGNED,
    Alignment,
    AutoRule,
    Constants,
    Geometry,
    Launch,
    Tunable,
    Variant,
    ceil_div,
)
from convbackprop.ladder.vectorised_gemm import NARROW
from convbackprop.problem import ConvProblem

#: Terms that are added up plainly, at most: a chunk of planes has no more taps, as in implicit_gemm's runs.
_RUN = 256

#: Bytes of shared memory that a block should use, half of a CPU's second-level cache where that is small; and may.
_BYTES, _MOST_BYTES = 128 << 10, 227 << 10

#: Rows of a tile, at most: beyond them images are laid out again.
_TILE_ROWS = {"forward": 32, "input_grad": 32, "kernel_grad": 16}

#: Pixels of a tile, about: the more, the fewer lines are laid out twice, and the fewer vectors of sums are added up.
_PIXELS = {"forward": 512, "input_grad": 512, "kernel_grad": 1024}

#: Planes that should be laid out at once; where there are fewer, all of them.
_PLANES = 16

#: Pairs of a filter and a channel that there should be, where rows of an image are narrow; four times as many if not.
_FEW = 4

#: Blocks that there should be, for the threads of a CPU, and the parts of a kernel gradient's sums at most.
_BLOCKS, _PARTS = 16, 64


class Signal(NamedTuple):
    """How images are laid out: see cpu/signal.cuh."""

    lines: int  # of all images
    pitch: int
    reach: int  # lines that a window reaches further down
    across: int  # and elements to the right


def signal(pass_name: str, p: ConvProblem) -> Signal:
    """Return how the images that a pass reads are laid out."""
    reach, across = (p.R - 1) * p.dilation_h, (p.S - 1) * p.dilation_w
    (top, bottom), (left, right) = p.padding
    if pass_name == "input_grad":
        height, width = p.P + reach - min(top, bottom), p.Q + across - min(left, right)
    else:
        height, width = p.H + max(top, bottom), p.W + max(left, right)
    return Signal(p.N * height, width, reach, across)


def rows_and_planes(pass_name: str, p: ConvProblem) -> tuple[int, int]:
    """Return the rows of a group, and the planes that each of them is summed over; of kernel_grad, that it is for."""
    filters, channels = p.K // p.groups, p.C // p.groups
    return (channels, filters) if pass_name == "input_grad" else (filters, channels)


# -- what a block computes -------------------------------------------------------------------------------------------
class Tile(NamedTuple):
    """What a block computes, the integers that its kernel is given, and the bytes that this takes."""

    rows: int
    lines: int
    chunk: int
    size: int
    bytes: int


def tile(pass_name: str, p: ConvProblem, t: Constants) -> Tile:
    """Return the tile of a pass.

    It has as many lines as have enough pixels, unless there would be too few blocks; and fewer lines, and then rows,
    until enough planes fit beside what the block keeps: all results of its tile, or of kernel_grad the signals of g.
    """
    laid, (rows, planes) = signal(pass_name, p), rows_and_planes(pass_name, p)
    lanes, is_kernel_grad = t["LANES"], pass_name == "kernel_grad"
    columns = lanes * (1 if is_kernel_grad else t["REG_N"])
    tile_rows = min(_TILE_ROWS[pass_name], ceil_div(rows, t["REG_M"]) * t["REG_M"])
    busy = laid.lines * ceil_div(rows, tile_rows) * p.groups // _BLOCKS
    wanted = max(_PIXELS[pass_name] // laid.pitch, 2 * laid.reach)
    lines = max(1, min(wanted, max(busy, columns // laid.pitch), laid.lines))
    run = planes if is_kernel_grad else max(1, _RUN // (p.R * p.S))
    enough = min(planes, _PLANES if is_kernel_grad else max(1, run // 4))

    while True:
        # With what is read beyond the last line, by its windows and by a thread's last columns. An odd number of
        # vectors: signals that lie whole pages apart would share few lines of the cache.
        size = (lines + laid.reach) * laid.pitch + laid.across + columns + 4 * lanes
        size = (size // lanes | 1) * lanes
        kept = tile_rows * size
        if not is_kernel_grad:
            kept = ceil_div(tile_rows, t["REG_M"]) * t["REG_M"] * (lines * laid.pitch // columns + 2) * columns
        fit = (_BYTES // p.accumulator_bytes - kept) // size
        if fit >= enough or (lines == 1 and tile_rows <= t["REG_M"]):
            break
        if lines > 1:
            lines = ceil_div(3 * lines, 4) - (lines < 4)
        else:
            tile_rows = max(t["REG_M"], tile_rows // 2)
    lines = ceil_div(laid.lines, max(1, ceil_div(laid.lines, lines))) or 1
    chunk = ceil_div(planes, ceil_div(planes, max(1, min(planes, fit, run))))
    return Tile(tile_rows, lines, chunk, size, (kept + chunk * size) * p.accumulator_bytes)


def tiles(pass_name: str, p: ConvProblem, t: Constants) -> tuple[int, int, int]:
    """Return how many tiles there are: of rows in all groups, of planes, and of lines."""
    chosen, (rows, planes) = tile(pass_name, p, t), rows_and_planes(pass_name, p)
    return (
        ceil_div(rows, chosen.rows) * p.groups,
        ceil_div(planes, chosen.chunk),
        max(1, ceil_div(signal(pass_name, p).lines, chosen.lines)),
    )


def _integers(pass_name: str) -> Geometry:
    return lambda p, t: tile(pass_name, p, t)[:4]


def _shared_bytes(pass_name: str) -> Callable[[ConvProblem, Constants], int]:
    return lambda p, t: tile(pass_name, p, t).bytes


def _grid(pass_name: str) -> Geometry:
    def grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        rows, _, lines = tiles(pass_name, p, t)
        return (rows * lines if p.N else 0,)

    return grid


def parts(p: ConvProblem, t: Constants) -> int:
    """Return among how many blocks the lines of a kernel gradient are split."""
    _, _, ranges = tiles("kernel_grad", p, t)
    return ceil_div(ranges, _ranges(p, t))


def _ranges(p: ConvProblem, t: Constants) -> int:
    """Return how many ranges of lines a part has."""
    _, _, ranges = tiles("kernel_grad", p, t)
    return ceil_div(ranges, min(ranges, _PARTS, most_slices(p)))


def _kernel_grad_grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    rows, chunks, _ = tiles("kernel_grad", p, t)
    return rows * chunks, parts(p, t)


# -- the constants ---------------------------------------------------------------------------------------------------
def _rows(pass_name: str) -> Callable[[ConvProblem, Target], int]:
    """Return the rule for REG_M: as many rows as there are, up to what a CPU's registers hold."""

    def rows(p: ConvProblem, target: Target) -> int:
        most = 8 if cpu_vector_bytes() == 64 else 4
        return next(rows for rows in (1, 2, 4, 8) if rows >= min(most, rows_and_planes(pass_name, p)[0]))

    return rows


def _columns(pass_name: str) -> Callable[[ConvProblem, Target], int]:
    """Return the rule for REG_N: sums that hide the time that a multiply-add takes, in three quarters of registers."""

    def columns(p: ConvProblem, target: Target) -> int:
        sums = {64: 24, 32: 12, 16: 8}[cpu_vector_bytes()]
        return min(6, sums // _rows(pass_name)(p, target))

    return columns


def _tunables(pass_name: str) -> dict[str, Tunable]:
    """Return the tunables. REG_M x REG_N: a thread's sums, in vectors. VECTOR_BYTES: of a Lane."""
    return {
        "THREADS": Tunable(legal=(1, 2, 4, 8, 16), cpu=4),
        "VECTOR_BYTES": Tunable(legal=(16, 32, 64), cpu=lambda p, target: cpu_vector_bytes()),
        "REG_M": Tunable(legal=(1, 2, 4, 8), cpu=_rows(pass_name)),
        "REG_N": Tunable(legal=(1, 2, 3, 4, 6), cpu=_columns(pass_name)),
        **(TOTAL if pass_name == "kernel_grad" else {}),
    }


def _constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    return {"LANES": t["VECTOR_BYTES"] // p.accumulator_bytes}


# -- the problems ----------------------------------------------------------------------------------------------------
def _short_filter(p: ConvProblem) -> str | None:
    """It adds up the taps of a plane plainly."""
    if p.R * p.S > _RUN:
        return f"a filter has {p.R * p.S} taps a channel; it adds up at most {_RUN} of them"
    return None


def _inner_padding(p: ConvProblem) -> str | None:
    """Padding between lines is there once."""
    reach = (p.R - 1) * p.dilation_h, (p.S - 1) * p.dilation_w
    if any(max(sides) > most for sides, most in zip(p.padding, reach, strict=True)):
        most = f"{reach[0]} rows and {reach[1]} columns, a window's but one"
        return f"padding is {p.padding}; it works with at most {most}"
    return None


def _fits(pass_name: str) -> Callable[[ConvProblem], str | None]:
    """Return the requirement that lines fit in shared memory, and that they are countable."""

    def requirement(p: ConvProblem) -> str | None:
        laid = signal(pass_name, p)
        if (count := laid.lines * laid.pitch) > LARGEST:
            return f"the images are laid out in {count:,} elements; it counts up to {LARGEST:,}"
        t = {name: max(tunable.legal) for name, tunable in _tunables(pass_name).items()}  # whoever chooses them
        needed = tile(pass_name, p, {**t, **_constants(p, ALIGNED, t)}).bytes
        if needed > _MOST_BYTES:
            return f"a line of {laid.pitch} pixels takes {needed:,} bytes of shared memory; a block has {_MOST_BYTES:,}"
        return None

    return requirement


def _auto_not(pass_name: str) -> AutoRule:
    """Return the rule of "auto": what it is faster at than vectorised and vectorised_gemm, as measured.

    A tap of every pixel is to be used for several rows, and a laid out pixel by several taps. Of one plane, vectorised
    marches down an image with all unfinished rows in registers; of few planes and rows, it is the faster one where the
    image's rows fill a CPU's registers.
    """

    def rule(p: ConvProblem, target: Target) -> str | None:
        rows, planes = rows_and_planes(pass_name, p)
        columns = p.W if pass_name == "input_grad" else p.Q
        if p.R * p.S == 1:
            return "a filter has one tap a channel; it lays out an image to read each pixel several times"
        if rows == 1 or (planes == 1 and pass_name != "kernel_grad"):
            return f"a group has {p.C // p.groups} x {p.K // p.groups} channels and filters; it is for several of both"
        enough = _FEW if columns < NARROW else 4 * _FEW
        if rows * planes < enough:
            return f"a group has {rows * planes} pairs of a filter and a channel; it is the faster one from {enough} on"
        return None

    return rule


def _entry(pass_name: str, launches: Sequence[Launch], **more: Any) -> Variant:
    return Variant(
        pass_name,
        "vectorised_direct",
        launches=tuple(launches),
        tunables=_tunables(pass_name),
        specialise=_constants,
        requires=(unit_stride, _short_filter, _inner_padding, _fits(pass_name)),
        runs_on=("cpu",),
        auto_on=("cpu",),
        auto_not=_auto_not(pass_name),
        **more,
    )


def _launch(pass_name: str, *operands: str) -> Launch:
    return Launch(pass_name, operands, _grid(pass_name), block("THREADS"), integers=_integers(pass_name),
                  shared_bytes=_shared_bytes(pass_name))  # fmt: skip


ENTRIES = (
    _entry("forward", [_launch("forward", "x", "w", "scale", "b", "residual", "y"), PACK_MASK]),
    _entry("input_grad", [_launch("input_grad", "dy", "saved", "w", "b", "dx")]),
    _entry(
        "kernel_grad",
        [
            Launch("kernel_grad", ("dy", "saved", "x", "scratch"), _kernel_grad_grid, block("THREADS"),
                   integers=lambda p, t: (*tile("kernel_grad", p, t)[:4], _ranges(p, t)),
                   shared_bytes=_shared_bytes("kernel_grad")),
            total(parts),
        ],
        scratch=lambda p, t: parts(p, t) * taps(p),
    ),
)  # fmt: skip
