"""Matrix products with a CPU's vectors (the .cu files named vectorised_gemm, and cuda_src/cpu): the CPU's own rungs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from convbackprop.devices.cpu_level import cpu_vector_bytes
from convbackprop.devices.gpus import Target
from convbackprop.ladder import implicit_gemm
from convbackprop.ladder.implicit_gemm import enough_rows
from convbackprop.ladder.launches import TOTAL
from convbackprop.ladder.matrix_product import RUN, one_tap, product
from convbackprop.ladder.requirements import unit_dilation, unit_stride
from convbackprop.ladder.variant import Alignment, Constants, Tunable, ceil_div
from convbackprop.problem import ConvProblem

#: Rows of fewer columns leave most of a CPU's vector registers empty in a strip: measured, one and a half registers.
NARROW = 24


def _rows(pass_name: str) -> Callable[[ConvProblem, Target], int]:
    """Return the rule for TILE_M: the larger tile, unless it computes more rows that are not there."""
    tiles = (64, 32) if pass_name == "kernel_grad" else (128, 64, 32)

    def rows(p: ConvProblem, target: Target) -> int:
        there = product(pass_name, p)[0]
        return min(tiles if there <= 32 else tiles[:-1], key=lambda tile: ceil_div(there, tile) * tile)

    return rows


def _sums(many: int, few: int) -> Callable[[ConvProblem, Target], int]:
    """Return the rule for a thread's sums: before AVX-512 there are few vector registers."""
    return lambda p, target: many if cpu_vector_bytes() == 64 else few


def _pixels(p: ConvProblem, target: Target) -> int:
    """Return DEPTH of kernel_grad: eight vectors of pixels, or four where there are no more."""
    most = 512 // p.accumulator_bytes
    return max(64, most // 2) if most // 2 >= p.N * p.P * p.Q else most


#: REG_M x REG_N: a thread's sums, in vectors. VECTOR_BYTES: of a Lane.
_ALL = {
    "REG_M": Tunable(legal=(4, 8), cpu=_sums(8, 4)),
    "REG_N": Tunable(legal=(2, 4), cpu=_sums(4, 2)),
    "VECTOR_BYTES": Tunable(legal=(16, 32, 64), cpu=lambda p, target: cpu_vector_bytes()),
}


def _tunables(pass_name: str) -> dict[str, Tunable]:
    """Return the tunables of a pass. TILE_M x TILE_N: what a block computes. DEPTH: steps that are staged at once."""
    if pass_name == "kernel_grad":
        return {
            "TILE_M": Tunable(legal=(32, 64, 128), cpu=_rows(pass_name)),
            "TILE_N": Tunable(legal=(32, 64), cpu=32),
            "DEPTH": Tunable(legal=(64, 128, 256), cpu=_pixels),
            **_ALL,
            **TOTAL,
        }
    return {
        "TILE_M": Tunable(legal=(32, 64, 128), cpu=_rows(pass_name)),
        "TILE_N": Tunable(legal=(64, 128), cpu=64),
        "DEPTH": Tunable(legal=(16, 32, 64), cpu=lambda p, target: 256 // p.accumulator_bytes),
        **_ALL,
    }


def _constants(pass_name: str) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for what follows from the tunables."""

    def rule(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        vector = t["VECTOR_BYTES"] // p.accumulator_bytes
        if pass_name == "kernel_grad":
            threads = t["TILE_M"] // t["REG_M"] * (t["TILE_N"] // t["REG_N"])
            # A thread has one step, and of the fewer of rows and taps at least one.
            each = t["DEPTH"] / threads
            lanes = int(max(each, min(vector, each * min(t["TILE_M"], t["TILE_N"]))))
        else:
            lanes = min(vector, t["TILE_N"] // t["REG_N"])
            threads = t["TILE_M"] // t["REG_M"] * (t["TILE_N"] // t["REG_N"] // lanes)
        return {
            "THREADS": threads,
            "LANES": lanes,
            "RUN_STEPS": RUN * lanes if pass_name == "kernel_grad" else RUN,
            "ONE_TAP": one_tap(pass_name, p, t),
        }

    return rule


def _enough(pass_name: str) -> Callable[[ConvProblem], int]:
    """Return the rule from how many rows on it beats vectorised, or naive, where that refuses the problem.

    Strips read all channels anew for each row; but a CPU's caches hold what is read again, so they are the faster ones
    as long as a row of the image fills a CPU's registers. A tile that is nearly empty beats naive's input_grad.
    """

    def rule(p: ConvProblem) -> int:
        if unit_stride(p) or unit_dilation(p) or (pass_name == "input_grad" and p.scale):
            return 1 if pass_name == "input_grad" else 4
        enough = 32 if pass_name == "kernel_grad" or p.R * p.S == 1 else 64
        columns = p.W if pass_name == "input_grad" else p.Q
        return min(enough, columns) if columns < NARROW else enough

    return rule


ENTRIES = tuple(
    replace(
        entry,
        name="vectorised_gemm",
        tunables=_tunables(entry.pass_name),
        specialise=_constants(entry.pass_name),
        runs_on=("cpu",),
        auto_on=("cpu",),
        unproven=False,
        auto_not=enough_rows(entry.pass_name, _enough(entry.pass_name)),
    )
    for entry in map(implicit_gemm.whole_sums, implicit_gemm.ENTRIES)
)
