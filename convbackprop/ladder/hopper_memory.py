"""What the entries of `hopper` know of sm_90, of what they turn before, and of what their sums may lose."""

from __future__ import annotations

import math

from convbackprop.problem import DTYPES, ConvProblem

#: Three warpgroups, of which the first moves.
THREADS = 384

#: A row of shared memory, and a pattern of eight of them.
ROW, PATTERN = 128, 1024

#: Shared memory that a block may have for slots: all but an alignment and the barriers.
SLOT_BYTES = (227 << 10) - PATTERN - 512

#: In one clock: sums that a multiprocessor forms of rows of two factors, and bytes that it gets from the L2 cache.
PRODUCT_SUMS, L2_BYTES = 32, 36

#: Pixels that a block turns.
STAGED_PIXELS = 64

#: RUN_STEPS: a sum passes a product of matrices for each 8 TF32 numbers or 16 of 16 bits, and may be cut each time, by
#: two round-offs at most. Of 960 and 3,840 steps these are 240 and 480, where the bound has 248 and 496.
RUN, RUN_OF_16_BITS, CUTS = 960, 3840, 2


def element(p: ConvProblem) -> int:
    """Return the bytes of an element: of float32 a TF32 word."""
    return DTYPES[p.dtype]


def depth(p: ConvProblem) -> int:
    """Return the channels of a row."""
    return ROW // element(p)


def is_in_place(p: ConvProblem, alignment: int, channels: int) -> bool:
    """Return whether a tensor map can be of an image as it lies: whole units of 16-bit channels side by side."""
    return p.layout == "nhwc" and element(p) == 2 and channels // p.groups % 8 == 0 and alignment >= 16


def most_round_offs(n: int) -> float:
    """Return how many round-offs the bound of a sum of n products has."""
    return min(n + 2, 8 * math.sqrt(n + 2))
