"""The matrix product that a pass is, whose matrices are not stored: its size, its tiles, and how its sums are split."""

from __future__ import annotations

import math
from collections.abc import Callable

from convbackprop.ladder.requirements import LARGEST
from convbackprop.ladder.scratch import limit
from convbackprop.ladder.variant import Choice, Constants, Geometry, Requirement, Tunable, ceil_div
from convbackprop.problem import ConvProblem

#: RUN_STEPS, additions before a sum starts anew: of n terms none passes through more than these and one for each run.
#: Of 20,800, the most in layers.py's forward passes, that is 256 + 82, where the bound allows 8 * sqrt(n) = 1,153.
RUN = 256


# -- the product -----------------------------------------------------------------------------------------------------
def _taps_of_phase(p: ConvProblem) -> int:
    """Return how many taps at most meet an input pixel."""
    return math.prod(
        ceil_div(taps, stride // math.gcd(stride, dilation))
        for taps, stride, dilation in zip((p.R, p.S), p.stride, p.dilation, strict=True)
    )


def phases(pass_name: str, p: ConvProblem) -> int:
    """Return into how many phases the pixels go: by their row and column modulo the stride."""
    return min(p.stride_h, p.H) * min(p.stride_w, p.W) if pass_name == "input_grad" else 1


def product(pass_name: str, p: ConvProblem) -> tuple[int, int, int, int]:
    """Return the rows, columns and steps of the matrix product of one group, and how many such products there are."""
    channels, filters = p.C // p.groups, p.K // p.groups
    if pass_name == "forward":
        return filters, p.N * p.P * p.Q, channels * p.R * p.S, p.groups
    if pass_name == "input_grad":
        pixels = p.N * ceil_div(p.H, p.stride_h) * ceil_div(p.W, p.stride_w)
        return channels, pixels, filters * _taps_of_phase(p), p.groups * phases(pass_name, p)
    return filters, channels * p.R * p.S, p.N * p.P * p.Q, p.groups


def one_tap(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return whether planes are so many that what is staged together is planes at one tap, and nothing is missing."""
    channels, filters = p.C // p.groups, p.K // p.groups
    if pass_name == "kernel_grad":
        return int(channels % t["TILE_N"] == 0 and filters % t["TILE_M"] == 0)
    return int((channels if pass_name == "forward" else filters) % t["DEPTH"] == 0)


# -- its tiles -------------------------------------------------------------------------------------------------------
def same(legal: tuple[int, ...], choice: Choice) -> Tunable:
    """Return a constant that is the same on a CPU, where the result is all that is wanted of a GPU's kernel."""
    return Tunable(legal, cuda=choice, cpu=choice)


def tiles(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return how many tiles the products have."""
    m, n, _, products = product(pass_name, p)
    return ceil_div(m, t["TILE_M"]) * ceil_div(n, t["TILE_N"]) * products


def runs(pass_name: str, p: ConvProblem) -> int:
    """Return the runs of a sum."""
    return ceil_div(product(pass_name, p)[2], RUN)


def slices_of(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the slices of a sum."""
    return ceil_div(product(pass_name, p)[2], t["DEPTH"])


def slices(pass_name: str) -> Geometry:
    """Return the rule for the slices of a sum."""
    return lambda p, t: (slices_of(pass_name, p, t),)


def grid(pass_name: str) -> Geometry:
    """Return the tiles, those that share their pixels side by side."""
    return lambda p, t: (tiles(pass_name, p, t),)


# -- how its sums are split among blocks -----------------------------------------------------------------------------
#: Clocks that a second launch takes: to begin and to end, and to wait for memory twice.
_SECOND_LAUNCH = 8000

#: Bytes that a multiprocessor moves to or from the second-level cache in a clock.
_CACHE_BYTES = 32


def best_splits(
    tiles: int, runs: int, moved: int, resident: int, multiprocessors: int, clocks: Callable[[int, int, int], float]
) -> tuple[float, int]:
    """Return the clocks that a product takes at best, and among how many blocks each sum is split then.

    `moved`: bytes of the sums of all runs; if they do not fit in the workspace, nothing is split: fewer parts than runs
    would have other bits. `clocks`: (blocks of a multiprocessor, rounds of them, runs of a block) -> those of a launch.
    """

    def time(splits: int) -> float:
        blocks = ceil_div(tiles * splits, multiprocessors)
        added = _SECOND_LAUNCH + 2 * moved / (multiprocessors * _CACHE_BYTES) if splits > 1 else 0
        return clocks(blocks, ceil_div(blocks, resident), ceil_div(runs, splits)) + added

    enough = ceil_div(4 * resident * multiprocessors, max(1, tiles))  # four rounds of blocks
    most = min(runs, enough) if moved <= limit() else 1
    return min((time(splits), splits) for splits in range(1, max(most, 1) + 1))


# -- the problems ----------------------------------------------------------------------------------------------------
def _several_filters(p: ConvProblem) -> str | None:
    """It works on several filters and channels at once."""
    channels, filters = p.C // p.groups, p.K // p.groups
    if channels == filters == 1:
        return "a group has one channel and one filter; it works on tiles of several of them"
    return None


def requires(pass_name: str) -> tuple[Requirement, ...]:
    """Return the requirements of a pass."""

    def countable(p: ConvProblem) -> str | None:
        """It counts pixels, the elements of neighbouring images and those of the packed filter in 32 bits."""
        height, width = p.H + sum(p.padding[0]), p.W + sum(p.padding[1])
        images = 2 + 16 // min(p.P * p.Q, p.H * p.W)  # that 16 neighbouring pixels may lie in
        m, _, depth, products = product(pass_name, p)
        counts = {
            "pixels": p.N * max(p.H * p.W, p.P * p.Q),
            "elements of neighbouring images": images * max(p.C * height * width, p.K * p.P * p.Q),
            "elements of the packed filter": products * m * depth if pass_name != "kernel_grad" else 0,
        }
        name, largest = max(counts.items(), key=lambda item: item[1])
        return f"there are {largest:,} {name}; it counts up to {LARGEST:,}" if largest > LARGEST else None

    return _several_filters, countable
