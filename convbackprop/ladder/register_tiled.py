"""Tiles in registers (the .cu files named register_tiled): of any number of channels, and of filters of any size."""

from __future__ import annotations

from collections.abc import Callable

from convbackprop.devices.gpus import Target
from convbackprop.ladder.coalesced import COLS, THREADS, lead, registers, vectors
from convbackprop.ladder.launches import PACK_MASK, block
from convbackprop.ladder.requirements import countable, tiles_countable, unit_dilation, unit_stride
from convbackprop.ladder.variant import Alignment, Constants, Geometry, Launch, Tunable, Variant, ceil_div
from convbackprop.problem import ConvProblem

#: How many columns of the filter are worked on at a time; a multiple of every vector, so that loads stay aligned.
_TAP_COLUMNS = 8


def _rows(p: ConvProblem, target: Target) -> int:
    return 4 // registers(p, 1)


#: TILE_ROWS x COLS: outputs (input_grad: inputs) of a thread.
TUNABLES = {"THREADS": THREADS, "COLS": COLS, "TILE_ROWS": Tunable(legal=(1, 2, 4), cuda=_rows, cpu=_rows)}


def constants(is_forward: bool) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for what follows from the tunables."""

    def rule(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        loads = vectors(p, alignment, t)
        return {**loads, "LEAD": lead(p, loads, is_forward), "TAP_COLS": min(p.S, _TAP_COLUMNS)}

    return rule


def grid(is_forward: bool) -> Geometry:
    """Return a thread for each tile of each plane."""

    def rule(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        n, planes, rows, cols = p.y_shape if is_forward else p.x_shape
        return (ceil_div(n * planes * ceil_div(cols, t["COLS"]) * ceil_div(rows, t["TILE_ROWS"]), t["THREADS"]),)

    return rule


ENTRIES = (
    Variant(
        "forward",
        "register_tiled",
        launches=(Launch("forward", ("x", "w", "b", "y"), grid(True), block("THREADS")), PACK_MASK),
        tunables=TUNABLES,
        specialise=constants(True),
        requires=(unit_stride, unit_dilation, countable, tiles_countable(1)),
        auto_on=("cuda",),
        unproven=True,
    ),
    Variant(
        "input_grad",
        "register_tiled",
        launches=(Launch("input_grad", ("dy", "saved", "w", "b", "dx"), grid(False), block("THREADS")),),
        tunables=TUNABLES,
        specialise=constants(False),
        requires=(unit_stride, unit_dilation, countable, tiles_countable(1)),
        auto_on=("cuda",),
        unproven=True,
    ),
)
