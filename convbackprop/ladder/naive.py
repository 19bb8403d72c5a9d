"""One thread an element of the result (the .cu files named naive)."""

from __future__ import annotations

import math

from convbackprop.ladder.launches import PACK_MASK, TOTAL, block, one_thread_each, total_or_scaled
from convbackprop.ladder.scratch import most_slices, taps
from convbackprop.ladder.variant import MAX_GRID, Constants, Launch, Tunable, Variant, ceil_div
from convbackprop.problem import ConvProblem

TUNABLES = {"THREADS": Tunable(legal=(32, 64, 128, 256, 512, 1024), cuda=128, cpu=128)}


def kernel_grad_slices(p: ConvProblem, t: Constants) -> int:
    """Return into how many slices the rows of all images go: one a row, while the partial sums fit in the limit."""
    return max(1, min(p.N * p.P, MAX_GRID[1], most_slices(p)))


ENTRIES = (
    Variant(
        "forward",
        "naive",
        launches=(
            Launch("forward", ("x", "w", "scale", "b", "residual", "y"),
                   one_thread_each(lambda p: math.prod(p.y_shape)), block("THREADS")),
            PACK_MASK,
        ),
        tunables=TUNABLES,
        unproven=True,
    ),
    Variant(
        "input_grad",
        "naive",
        launches=(
            Launch("input_grad", ("dy", "saved", "w", "scale", "b", "dx"),
                   one_thread_each(lambda p: math.prod(p.x_shape)), block("THREADS")),
        ),
        tunables=TUNABLES,
        unproven=True,
    ),
    Variant(
        "kernel_grad",
        "naive",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "scratch"),
                   lambda p, t: (ceil_div(taps(p), t["THREADS"]), kernel_grad_slices(p, t)), block("THREADS")),
            *total_or_scaled(kernel_grad_slices),
        ),
        tunables={**TUNABLES, **TOTAL},
        scratch=lambda p, t: kernel_grad_slices(p, t) * taps(p),
        unproven=True,
    ),
)  # fmt: skip
