"""What variants of several techniques ask of a problem: each says in one sentence why one is refused, or nothing."""

from __future__ import annotations

from convbackprop.ladder.variant import Requirement, ceil_div
from convbackprop.problem import ConvProblem


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


def tiles_countable(rows: int) -> Requirement:
    """Return the requirement that tiles of so many rows and 4 columns, the smallest there are, fit in 32 bits."""

    def requirement(p: ConvProblem) -> str | None:
        """It counts the tiles of all planes in 32 bits."""
        planes = (p.K, p.P, p.Q), (p.C, p.H, p.W)
        tiles = max(p.N * count * ceil_div(height, rows) * ceil_div(width, 4) for count, height, width in planes)
        if tiles > _MOST_TILES:
            return f"there are {tiles:,} tiles of {rows} x 4; it counts up to {_MOST_TILES:,}"
        return None

    return requirement


#: With as much again for threads that fill the last blocks.
_MOST_TILES = 2**31

#: What 32-bit arithmetic is safe for, with as much again for what a variant reaches beyond an image.
LARGEST = 2**30


def countable(p: ConvProblem) -> str | None:
    """It counts rows and columns in 32 bits."""
    for name, size, padding in (("rows", p.H, p.padding[0]), ("columns", p.W, p.padding[1])):
        if (padded := size + sum(padding)) > LARGEST:
            return f"the padded image has {padded:,} {name}; it counts up to {LARGEST:,}"
    return None
