"""How much scratch memory a call may use for partial sums, and those of a kernel gradient."""

from __future__ import annotations

import functools
import math
import os

from convbackprop.errors import InvalidArgument
from convbackprop.problem import ConvProblem

_DEFAULT = 64 << 20


@functools.cache
def limit() -> int:
    """Return the bytes of partial sums that a call may keep: CONVBACKPROP_WORKSPACE_LIMIT, else 64 MiB.

    It is asked for once a process: how sums are split follows from it, and so do their last bits.
    """
    text = os.environ.get("CONVBACKPROP_WORKSPACE_LIMIT")
    if not text:
        return _DEFAULT
    if not text.isdecimal() or int(text) < 1:
        raise InvalidArgument(
            f"CONVBACKPROP_WORKSPACE_LIMIT is {text!r}; it should be a number of bytes, such as {_DEFAULT} (64 MiB)"
        )
    return int(text)


def taps(problem: ConvProblem) -> int:
    """Return how many sums a kernel gradient has: one for each tap of each filter, and one for each bias."""
    return math.prod(problem.w_shape) + problem.K


def most_slices(problem: ConvProblem) -> int:
    """Return how many slices of partial sums, each of all taps, fit in the limit: at least the one that has to."""
    return max(1, limit() // (taps(problem) * problem.accumulator_bytes))
