"""How much scratch memory a call may use."""

from __future__ import annotations

import functools
import os

from convbackprop.errors import InvalidArgument
from convbackprop.problem import ACCUMULATORS, DTYPES, ConvProblem

_DEFAULT = 64 << 20


@functools.cache
def limit() -> int:
    """Return the bytes of scratch memory that a call may use: CONVBACKPROP_WORKSPACE_LIMIT, else 64 MiB.

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


def most_slices(problem: ConvProblem, sums: int) -> int:
    """Return how many slices of so many partial sums fit in the limit, at least the one that has to."""
    return max(1, limit() // (sums * DTYPES[ACCUMULATORS[problem.dtype]]))
