"""All gradients of a depthwise layer in one (backward/fused.cu), on strips as those of `coalesced`."""

from __future__ import annotations

from dataclasses import replace

from convbackprop.devices.gpus import Target
from convbackprop.ladder import coalesced
from convbackprop.ladder.coalesced import registers, vectors
from convbackprop.ladder.launches import TOTAL, block, total
from convbackprop.ladder.requirements import countable, tiles_countable, unit_dilation, unit_stride
from convbackprop.ladder.scratch import taps
from convbackprop.ladder.variant import Alignment, Constants, Launch, Tunable, Variant, ceil_div
from convbackprop.problem import ConvProblem

#: The largest filter whose taps' sums and rows of g fit the registers.
_LARGEST = 7


def _columns(p: ConvProblem, target: Target) -> int:
    """Return how wide a strip fits the registers: less wide where the filter is large."""
    most = 36 if p.saved == "pre_activation" else 49  # there phi' itself takes many
    by_taps = 8 if registers(p, p.R * p.S) <= 25 else 4 if registers(p, p.R * p.S) <= most else 2
    return min(by_taps, 32 // p.accumulator_bytes)


def _threads(p: ConvProblem, target: Target) -> int:
    """Return as many columns a block, whether its strips are narrow or wide: at its two sides g is read twice."""
    return 512 // _columns(p, target)


TUNABLES = {
    "THREADS": replace(coalesced.THREADS, cuda=_threads, cpu=_threads),
    "COLS": Tunable(legal=(2, 4, 8), cuda=_columns, cpu=_columns),
    "ROWS": replace(coalesced.ROWS, cuda=32, cpu=32),
}


def filter_and_needs(p: ConvProblem) -> dict[str, int]:
    """Return the constants that say what is computed."""
    return {
        "FILTER_R": p.R,
        "FILTER_S": p.S,
        "NEED_DX": int(p.dx),
        "NEED_DW": int(p.dw),
        "NEED_DB": int(p.bias),
    }


def constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    """Return the constants of backward/fused.cu."""
    loads = vectors(p, alignment, t)
    if registers(p, p.R * p.S) > 49:  # what they load at once takes more registers than are left
        loads = {"X_VECTOR": 1, "Y_VECTOR": 1}
    return {**loads, "LEAD": -(p.S // 2) % loads["Y_VECTOR"], **filter_and_needs(p)}


def blocks(p: ConvProblem, t: Constants) -> int:
    """Return how many blocks share the strips of a channel in all images."""
    return max(1, ceil_div(p.N * ceil_div(p.W, t["COLS"]) * ceil_div(p.H, t["ROWS"]), t["THREADS"]))


def depthwise(p: ConvProblem) -> str | None:
    """It has one filter a channel: C = K = groups."""
    if not p.C == p.K == p.groups:
        return f"C, K, groups are {p.C}, {p.K}, {p.groups}; it works where they are equal: one filter a channel"
    return None


def small_odd_filter(p: ConvProblem) -> str | None:
    """It takes filters of 1, 3, 5 or 7 rows and columns."""
    if p.R % 2 == 0 or p.S % 2 == 0 or max(p.R, p.S) > _LARGEST:
        return f"the filter is {p.R}x{p.S}; its height and width should be 1, 3, 5 or {_LARGEST}"
    return None


def enough_registers(p: ConvProblem) -> str | None:
    """It takes float64 filters of at most 5 x 5."""
    if p.dtype == "float64" and p.R * p.S > 25:
        return f"the filter is {p.R}x{p.S} in float64, whose sums do not fit the registers; at most 25 taps do"
    return None


def same_padding(p: ConvProblem) -> str | None:
    """It works with padding 'same' only."""
    wanted = ((p.R // 2, p.R // 2), (p.S // 2, p.S // 2))
    if p.padding != wanted:
        return f"padding is {p.padding}; it works with 'same' only, here {wanted}"
    return None


def scratch(p: ConvProblem, t: Constants) -> int:
    """Return the partial sums, where dw or db is wanted."""
    return blocks(p, t) * taps(p) * (p.dw or p.bias)


LAUNCHES = (
    Launch("backward", ("dy", "saved", "x", "w", "dx", "scratch"), lambda p, t: (p.C * blocks(p, t),), block("THREADS"),
           integers=lambda p, t: (blocks(p, t),)),
    total(blocks, when=lambda p, t: p.dw or p.bias),
)  # fmt: skip
REQUIRES = (
    unit_stride,
    unit_dilation,
    depthwise,
    small_odd_filter,
    enough_registers,
    same_padding,
    countable,
    tiles_countable(8),
)

ENTRIES = (
    Variant(
        "backward",
        "fused",
        launches=LAUNCHES,
        tunables={**TUNABLES, **TOTAL},
        specialise=constants,
        scratch=scratch,
        requires=REQUIRES,
        auto_on=("cuda",),
        unproven=True,
    ),
)
