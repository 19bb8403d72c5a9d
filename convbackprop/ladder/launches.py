"""What entries of several techniques share: grids, blocks, and the launches of headers beside the .cu files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from convbackprop.ladder.scratch import taps
from convbackprop.ladder.variant import Constants, Geometry, Launch, Tunable, ceil_div
from convbackprop.problem import ConvProblem


def block(*extents: str) -> Geometry:
    """Return a block whose extents are constants."""
    return lambda p, t: tuple(t[name] for name in extents)


def one_thread_each(count: Callable[[ConvProblem], int]) -> Geometry:
    """Return a grid of a thread for each of so many elements."""
    return lambda p, t: (ceil_div(count(p), t["THREADS"]),)


#: Of pack_mask.cuh, which writes the bits of a ReLU's mask from the output.
PACK_MASK = Launch("pack_mask", ("y", "mask"), one_thread_each(lambda p: math.prod(p.mask_shape)), block("THREADS"),
                   when=lambda p, t: p.mask)  # fmt: skip

#: Of kernel_grad_total.cuh. The most groups of slices, each of whole warps: many where many warps hide the latency of
#: memory, one where threads take turns; these then take many taps each.
TOTAL = {
    "SLICE_GROUPS": Tunable(legal=(1, 4, 16, 32), cuda=32, cpu=1),
    "TAPS_EACH": Tunable(legal=(1, 64), cuda=1, cpu=64),
}


def total(
    slices: Callable[[ConvProblem, Constants], int], when: Callable[[ConvProblem, Constants], bool] = lambda p, t: True
) -> Launch:
    """Return the launch of kernel_grad_total.cuh, which adds up the slices of partial sums."""

    def threads(p: ConvProblem, t: Constants) -> tuple[int, int]:
        """Return no more groups than slices, or than keep a GPU busy; and four warps or more of taps and groups."""
        most, enough = t["SLICE_GROUPS"], ceil_div(1024 * t["multiprocessors"], taps(p))
        groups = max(1, min(most, enough, slices(p, t)))
        return 32 * max(1, min(4, most) // groups), groups

    return Launch("kernel_grad_total", ("scratch", "dw", "db"),
                  lambda p, t: (ceil_div(taps(p), threads(p, t)[0] * t["TAPS_EACH"]),),
                  threads, integers=lambda p, t: (slices(p, t),), when=when)  # fmt: skip


def total_or_scaled(
    slices: Callable[[ConvProblem, Constants], int], when: Callable[[ConvProblem, Constants], bool] = lambda p, t: True
) -> tuple[Launch, Launch]:
    """Return the launch of `total`, and the one in its place of a layer with a scale."""
    plain = total(slices, when=lambda p, t: not p.scale and when(p, t))
    scaled = replace(plain, operands=("scratch", "scale", "dw", "db"), when=lambda p, t: p.scale and when(p, t))
    return plain, scaled
