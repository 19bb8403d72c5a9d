"""Winograd's F(2x2, 3x3) (the .cu files named winograd): 16 multiplications for the 36 of 2 x 2 results."""

from __future__ import annotations

from convbackprop.ladder.banded import not_float64
from convbackprop.ladder.launches import PACK_MASK, block
from convbackprop.ladder.matrix_product import requires
from convbackprop.ladder.requirements import LARGEST, unit_dilation, unit_stride
from convbackprop.ladder.variant import (
    Alignment,
    Constants,
    Geometry,
    Launch,
    Requirement,
    Transforms,
    Variant,
    ceil_div,
)
from convbackprop.problem import ConvProblem

#: A^T, G and B^T (arXiv:1509.09308, section 4.1). The kernels have 2 G and A / 2 in the middle, the same but for powers
#: of 2.
_TRANSFORMS = Transforms(
    results=((1, 1, 1, 0), (0, 1, -1, -1)),
    filter=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    pixels=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
)

#: Multiplications of a tile and a channel.
_ELEMENTS = 16

#: Floats of a row of a tile's elements that meet at the end, and their rows: WinogradProduct::Meeting, two of them.
_MEETING = 2 * _ELEMENTS * 8 * 40


def _constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    """Return what a block computes, TILE_M rows of TILE_N tiles, of DEPTH channels at once.

    Of 16 elements so many sums fill the registers of 256 threads, and staged they are 48 KB, which every GPU has.
    ONE_TAP is packed_filter.cuh's: slices are of channels.
    """
    return {"TILE_M": 64, "TILE_N": 32, "DEPTH": 8, "THREADS": 256, "ONE_TAP": 1}


def _sizes(pass_name: str, p: ConvProblem) -> tuple[int, int, int, int]:
    """Return the rows of a result, the channels of its sums, both of a group, and its pixels down and across."""
    channels, filters = p.C // p.groups, p.K // p.groups
    return (filters, channels, p.P, p.Q) if pass_name == "forward" else (channels, filters, p.H, p.W)


def _slices(pass_name: str) -> Geometry:
    return lambda p, t: (ceil_div(_sizes(pass_name, p)[1], t["DEPTH"]),)


def _filters(pass_name: str, p: ConvProblem, depth: int, tile_m: int) -> int:
    """Return how many filters of one channel are packed, those that fill tiles and slices with them."""
    rows, channels, _, _ = _sizes(pass_name, p)
    return p.groups * ceil_div(rows, tile_m) * tile_m * ceil_div(channels, depth) * depth


def _grid(pass_name: str) -> Geometry:
    """Return the tiles of rows and of pixels, those that share their pixels side by side."""

    def grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        rows, _, down, across = _sizes(pass_name, p)
        tiles = p.N * ceil_div(down, 2) * ceil_div(across, 2)
        return (p.groups * ceil_div(rows, t["TILE_M"]) * ceil_div(tiles, t["TILE_N"]),)

    return grid


def _shared_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the bytes of a slice, or of two times eight rows whose elements meet."""
    return 4 * max(_ELEMENTS * t["DEPTH"] * (t["TILE_M"] + t["TILE_N"]), _MEETING)


# -- the problems ----------------------------------------------------------------------------------------------------
def _three_by_three(p: ConvProblem) -> str | None:
    """It works with filters of 3 x 3 taps only."""
    return None if (p.R, p.S) == (3, 3) else f"the filter is {p.R}x{p.S}; it works with 3x3 only"


def _packable(pass_name: str) -> Requirement:
    def requirement(p: ConvProblem) -> str | None:
        """It counts the numbers of the transformed filter in 32 bits."""
        numbers = _ELEMENTS * _filters(pass_name, p, 8, 64)
        if numbers > LARGEST:
            return f"there are {numbers:,} numbers of the transformed filter; it counts up to {LARGEST:,}"
        return None

    return requirement


def _entry(pass_name: str, launch: Launch, *more: Launch) -> Variant:
    taken = ("w", "scratch") if pass_name == "forward" else ("w", "scale", "scratch")
    pack = Launch("pack", taken,
                  lambda p, t: (ceil_div(_filters(pass_name, p, t["DEPTH"], t["TILE_M"]), t["THREADS"]),),
                  block("THREADS"), integers=_slices(pass_name))  # fmt: skip
    return Variant(
        pass_name,
        "winograd",
        launches=(pack, launch, *more),
        specialise=_constants,
        scratch=lambda p, t: _ELEMENTS * _filters(pass_name, p, t["DEPTH"], t["TILE_M"]),
        requires=(_three_by_three, unit_stride, unit_dilation, not_float64, *requires(pass_name), _packable(pass_name)),
        auto_on=("cuda",),
        unproven=True,
        transforms=_TRANSFORMS,
    )


ENTRIES = (
    _entry(
        "forward",
        Launch("forward", ("x", "w", "scratch", "scale", "b", "residual", "y"), _grid("forward"), block("THREADS"),
               integers=_slices("forward"), shared_bytes=_shared_bytes),
        PACK_MASK,
    ),
    _entry(
        "input_grad",
        Launch("input_grad", ("dy", "saved", "w", "scale", "b", "scratch", "dx"), _grid("input_grad"), block("THREADS"),
               integers=_slices("input_grad"), shared_bytes=_shared_bytes),
    ),
)  # fmt: skip
