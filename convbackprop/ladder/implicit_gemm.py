"""Matrix products (the .cu files named implicit_gemm): a block computes a tile of one whose matrices are not stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from convbackprop.devices.gpus import Target
from convbackprop.ladder import coalesced, pipelined
from convbackprop.ladder.launches import PACK_MASK, TOTAL, block, total_or_scaled
from convbackprop.ladder.matrix_product import (
    RUN,
    best_splits,
    grid,
    one_tap,
    phases,
    product,
    requires,
    runs,
    same,
    slices,
    slices_of,
    tiles,
)
from convbackprop.ladder.requirements import unit_dilation, unit_stride
from convbackprop.ladder.scratch import most_slices, taps
from convbackprop.ladder.variant import (
    WIDEST,
    Alignment,
    AutoRule,
    Constants,
    Geometry,
    Launch,
    Tunable,
    Variant,
    ceil_div,
)
from convbackprop.problem import DTYPES, ConvProblem

#: The CUDA threads that the registers of a GPU's multiprocessor hold, where what is staged waits in registers.
_RESIDENT_THREADS = 384


# -- the constants ---------------------------------------------------------------------------------------------------
def _tile(pass_name: str) -> Callable[[ConvProblem, Target], int]:
    """Return the rule for TILE_M: 128 where that keeps all multiprocessors as busy as 64 would.

    A tile of 128 rows stages its columns half as often; one of 64 leaves fewer rows and multiprocessors idle, and of
    float64 it is what fits in the shared memory of every GPU.
    """

    def rows(p: ConvProblem, target: Target) -> int:
        if p.accumulator_bytes == 8:
            return 64
        m, n, depth, products = product(pass_name, p)
        others = {"TILE_N": 64, "REG_M": 8, "REG_N": 8, "DEPTH": _depth(pass_name)(p, target)}

        def time(tile: int) -> float:
            tiles = ceil_div(m, tile) * ceil_div(n, 64) * products
            if pass_name != "kernel_grad":
                t = {"TILE_M": tile, **others, "multiprocessors": target.multiprocessors}
                return _best_splits(pass_name, p, t)[0]
            splits = max(1, ceil_div(depth, 8 * RUN))
            return ceil_div(tiles * splits, target.multiprocessors) / splits * tile * (1.0 if tile == 128 else 1.15)

        return min((64, 128), key=time)

    return rows


def _depth(pass_name: str) -> Callable[[ConvProblem, Target], int]:
    """Return the rule for DEPTH: what comes with a slice is shared by 16 steps, if registers hold what they stage.

    It follows from the problem alone, not from the tile: in which order the terms of a sum are added depends on it.
    """

    def steps(p: ConvProblem, target: Target) -> int:
        crowded = {
            "forward": False,
            # phi' itself takes many registers, and so do addresses at several taps,
            "input_grad": p.saved == "pre_activation" or p.K // p.groups % 16 > 0,
            # and a mask's bits beside elements that are converted.
            "kernel_grad": p.saved == "pre_activation" or (p.mask and DTYPES[p.dtype] == 2),
        }[pass_name]
        return 16 if p.accumulator_bytes == 4 and not crowded else 8

    return steps


def _tunables(pass_name: str) -> dict[str, Tunable]:
    """Return the tunables of a pass.

    TILE_M x TILE_N: what a block computes. REG_M x REG_N: a thread's sums, half as many of float64. DEPTH: steps of the
    sum that are staged at once.
    """
    found = {
        "TILE_M": same((64, 128), _tile(pass_name)),
        "TILE_N": same((64, 128), 64),
        "REG_M": same((4, 8), lambda p, target: 32 // p.accumulator_bytes),
        "REG_N": same((4, 8), 8),
        "DEPTH": same((8, 16), _depth(pass_name)),
    }
    if pass_name == "kernel_grad":  # the taps of few channels; REG_N follows, for a warp is 8 threads wide
        found["TILE_N"] = same((32, 64, 128), lambda p, target: 32 if product(pass_name, p)[1] <= 32 else 64)
        del found["REG_N"]
    return found


def _resident_threads(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return how many threads a multiprocessor should hold: the more, the fewer of their registers are taken.

    More of a large tile that is staged past the registers, at one tap; fewer where phi or phi' takes many, and of
    kernel_grad, whose threads stage two matrices, but for large tiles of a ReLU's vectors.
    """
    threads, is_large = _RESIDENT_THREADS, t["TILE_M"] == 128 and one_tap(pass_name, p, t) and p.dtype == "float32"
    if pass_name == "kernel_grad":
        threads = threads if is_large and t["G_PIXELS"] > 1 and p.activation == "relu" and not p.mask else 256
    elif p.saved == "pre_activation":
        threads = 256 if pass_name == "input_grad" else threads
    elif is_large and (pass_name == "forward" or p.saved is None):
        threads = 512
    return threads * 4 // p.accumulator_bytes


def _pointwise(p: ConvProblem) -> bool:
    """Return whether a pixel sees itself and nothing else, in planes of one size."""
    return p.R == p.S == 1 and unit_stride(p) is None and not any(map(sum, p.padding))


def _pixels_at_once(p: ConvProblem, multiple: int, alignment: int, most: int = 0) -> int:
    """Return how many pixels a thread reads at once: `most`, or 16 bytes of accumulators, if `multiple` is one."""
    most = most or WIDEST // p.accumulator_bytes
    return most if multiple % most == 0 and alignment >= most * DTYPES[p.dtype] else 1


def _constants(pass_name: str) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for what follows from the tunables.

    RESIDENT is how many blocks a multiprocessor should hold. X_PIXELS and G_PIXELS, those that a thread reads at once,
    lie in one plane; if g comes with a bit mask, in one byte of it. RESULTS_TOGETHER: see `_results_together`.
    """

    def rule(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        reg_n = t.get("REG_N", min(8, t["TILE_N"] // 8))
        threads = t["TILE_M"] // t["REG_M"] * (t["TILE_N"] // reg_n)
        at_once = widths(pass_name, p, alignment)
        return {
            "REG_N": reg_n,
            "THREADS": threads,
            "RESIDENT": max(1, _resident_threads(pass_name, p, {**t, **at_once}) // threads),
            "RUN_STEPS": RUN,
            "ONE_TAP": one_tap(pass_name, p, t),
            **at_once,
            **({} if pass_name == "kernel_grad" else {"RESULTS_TOGETHER": _results_together(pass_name, p, alignment)}),
        }

    return rule


def _results_together(pass_name: str, p: ConvProblem, alignment: Alignment) -> int:
    """Return how many neighbouring pixels of a tile one instruction writes: of strided phases one."""
    is_forward = pass_name == "forward"
    pixels, aligned = (p.P * p.Q, alignment.y) if is_forward else (p.H * p.W, alignment.x)
    sizes = (4, 2) if p.accumulator_bytes == 4 else (2,)
    if not is_forward and p.stride != (1, 1):
        return 1
    return next((n for n in sizes if pixels % n == 0 and aligned >= n * DTYPES[p.dtype]), 1)


def widths(pass_name: str, p: ConvProblem, alignment: Alignment, most: int = 0) -> Constants:
    """Return X_PIXELS and G_PIXELS of a pass: `most`, or 16 bytes of accumulators, if they are side by side."""
    found = {}
    if pass_name != "input_grad":
        found["X_PIXELS"] = _pixels_at_once(p, p.H * p.W, alignment.x, most) if _pointwise(p) else 1
    if pass_name != "forward":
        multiple = p.Q if p.mask else p.P * p.Q
        side_by_side = _pointwise(p) or pass_name == "kernel_grad"
        found["G_PIXELS"] = _pixels_at_once(p, multiple, alignment.y, most) if side_by_side else 1
    return found


# -- how sums are split among blocks ---------------------------------------------------------------------------------
def _parts_elements(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the sums of all runs of all tiles."""
    return tiles(pass_name, p, t) * runs(pass_name, p) * t["TILE_M"] * t["TILE_N"]


def _best_splits(pass_name: str, p: ConvProblem, t: Constants) -> tuple[float, int]:
    """Return the clocks that the product takes at best, and among how many blocks each sum is split then.

    A multiprocessor's blocks take the time of their multiply-adds, and each round of them once more what a block waits.
    """
    steps = product(pass_name, p)[2]
    threads = t["TILE_M"] // t["REG_M"] * (t["TILE_N"] // t["REG_N"])

    def clocks(blocks: int, rounds: int, block_runs: int) -> float:
        each = min(steps, block_runs * RUN) / RUN
        staged = 1.0 if t["TILE_M"] == 128 else 1.15
        work, wait = (1.4 * each + 0.25) * staged * blocks * threads / 128, (2.3 * each + 0.3) * rounds
        return math.hypot(work, wait) * t["REG_M"] * t["REG_N"] * RUN

    moved = _parts_elements(pass_name, p, t) * p.accumulator_bytes
    resident = max(1, _resident_threads(pass_name, p, t) // threads)
    return best_splits(tiles(pass_name, p, t), runs(pass_name, p), moved, resident, t["multiprocessors"], clocks)


def splits(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return among how many blocks each sum of forward or input_grad is split."""
    return _best_splits(pass_name, p, t)[1]


def _slices_in_a_split(pass_name: str) -> Geometry:
    """Return the rule for the slices of a sum, and how many of them a block adds up: whole runs."""

    def rule(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        split_runs = ceil_div(runs(pass_name, p), splits(pass_name, p, t))
        return slices_of(pass_name, p, t), split_runs * (RUN // t["DEPTH"])

    return rule


# -- the launches of forward and input_grad --------------------------------------------------------------------------
def rows_packed(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the elements of the packed filter."""
    m, _, _, products = product(pass_name, p)
    return products * ceil_div(m, t["TILE_M"]) * t["TILE_M"] * slices_of(pass_name, p, t) * t["DEPTH"]


def packed_elements(pass_name: str) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for the accumulators of scratch memory: the table of offsets (16 bytes each), then the filter."""

    def rule(p: ConvProblem, t: Constants) -> int:
        offsets = phases(pass_name, p) * slices_of(pass_name, p, t) * t["DEPTH"]
        return offsets * 16 // p.accumulator_bytes + rows_packed(pass_name, p, t)

    return rule


def pack_grid(pass_name: str) -> Geometry:
    """Return a thread for each row of each slice of the packed filter."""
    return lambda p, t: (ceil_div(rows_packed(pass_name, p, t) // t["DEPTH"], t["THREADS"]),)


def _split_grid(pass_name: str) -> Geometry:
    """Return the tiles, and the splits."""
    return lambda p, t: (tiles(pass_name, p, t), splits(pass_name, p, t))


def _shared_bytes(pass_name: str, may_split: bool) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for two slices, and the totals of sums of more than a run, if one block forms all of it."""

    def rule(p: ConvProblem, t: Constants) -> int:
        staged = 2 * t["DEPTH"] * (t["TILE_M"] + t["TILE_N"])
        has_totals = runs(pass_name, p) > 1 and not (may_split and splits(pass_name, p, t) > 1)
        return (staged + has_totals * t["TILE_M"] * t["TILE_N"]) * p.accumulator_bytes

    return rule


def _scratch(pass_name: str) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for the accumulators of scratch memory: the packed filter, and the parts of split sums."""

    def rule(p: ConvProblem, t: Constants) -> int:
        parts = _parts_elements(pass_name, p, t) if splits(pass_name, p, t) > 1 else 0
        return packed_elements(pass_name)(p, t) + parts

    return rule


def _run_total(pass_name: str, *operands: str) -> Launch:
    """Return the launch that adds up the parts of split sums: a block for each row of a thread's."""
    return Launch(f"{pass_name}_total", operands, lambda p, t: (tiles(pass_name, p, t), t["REG_M"]), block("THREADS"),
                  integers=slices(pass_name), when=lambda p, t: splits(pass_name, p, t) > 1)  # fmt: skip


def whole_sums(entry: Variant) -> Variant:
    """Return an entry whose sums of forward and input_grad are not split."""
    name = entry.pass_name
    if name == "kernel_grad":
        return entry
    launches = (
        replace(launch, grid=grid(name), integers=slices(name), shared_bytes=_shared_bytes(name, False))
        if launch.entry == name
        else launch
        for launch in entry.launches
        if launch.entry != f"{name}_total"
    )
    return replace(entry, launches=tuple(launches), scratch=packed_elements(name))


# -- the launches of kernel_grad -------------------------------------------------------------------------------------
def kernel_grad_splits(p: ConvProblem, t: Constants) -> int:
    """Return among how many blocks the pixels are split: enough for two rounds of a GPU, none for too little work."""
    m, n, _, products = product("kernel_grad", p)
    tiles = ceil_div(m, t["TILE_M"]) * ceil_div(n, t["TILE_N"]) * products
    slices = slices_of("kernel_grad", p, t)
    enough = ceil_div(2 * t["multiprocessors"] * _RESIDENT_THREADS // t["THREADS"], tiles)
    run = t["RUN_STEPS"] // t["DEPTH"]
    splits = max(1, min(enough, ceil_div(slices, run), most_slices(p)))
    return ceil_div(slices, ceil_div(slices, splits)) if slices else 1


def _slices_of_split(p: ConvProblem, t: Constants) -> int:
    return ceil_div(slices_of("kernel_grad", p, t), kernel_grad_splits(p, t))


def _kernel_grad_grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return the tiles, and the splits."""
    m, n, _, products = product("kernel_grad", p)
    return ceil_div(m, t["TILE_M"]) * ceil_div(n, t["TILE_N"]) * products, kernel_grad_splits(p, t)


def _kernel_grad_integers(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return whether a bias is wanted, and the slices of a split."""
    return int(p.bias), _slices_of_split(p, t)


def _kernel_grad_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the shared memory of two slices, 16 bytes or a vector longer in each step, and of splits' totals."""
    element = t.get("LANES", 1) * p.accumulator_bytes  # a step of vectorised_gemm is a vector of pixels
    steps = t["DEPTH"] // t.get("LANES", 1)
    staged = 2 * steps * ((t["TILE_M"] + t["TILE_N"]) * element + 2 * max(16, element))
    has_totals = _slices_of_split(p, t) * t["DEPTH"] > t["RUN_STEPS"]
    return staged + (t["TILE_M"] * t["TILE_N"] * element if has_totals else 0)


#: The forward passes of one channel a filter.
_MARCHES = (coalesced.ENTRIES[0], pipelined.ENTRIES[0])


def enough_rows(pass_name: str, least: Callable[[ConvProblem], int]) -> AutoRule:
    """Return the rule of "auto": few rows are left to lower rungs, which waste nothing on a tile.

    So is a forward pass of one channel a group, on a GPU: its sums are as short as the filter, which a product of
    matrices pads, and it is marched down strips of columns, by `coalesced` or `pipelined`, at about memory's speed.
    """

    def rule(p: ConvProblem, target: Target) -> str | None:
        rows, enough = product(pass_name, p)[0], least(p)
        if rows >= enough:
            is_marched = any(march.refusal(p, "cuda") is None for march in _MARCHES)
            if target.kind == "cuda" and pass_name == "forward" and is_marched:
                return "a filter sees one channel; strips of columns are the faster ones"
            return None
        what = "channel" if pass_name == "input_grad" else "filter"
        return f"a group has {rows} {what}{'s' * (rows > 1)}; it is the faster one from {enough} on"

    return rule


def enough(pass_name: str) -> Callable[[ConvProblem], int]:
    """Return the rule from how many rows on it beats tiles in registers, tiled, or naive, as each refuses more."""

    def rule(p: ConvProblem) -> int:
        if pass_name != "kernel_grad" and (p.scale or (p.residual and pass_name == "forward")):
            return 4
        return 8 if unit_stride(p) or unit_dilation(p) else 16

    return rule


def _entry(pass_name: str, *launches: Launch, **more: Any) -> Variant:
    return Variant(
        pass_name,
        "implicit_gemm",
        launches=launches,
        specialise=_constants(pass_name),
        requires=requires(pass_name),
        auto_on=("cuda",),
        unproven=True,
        auto_not=enough_rows(pass_name, enough(pass_name)),
        **more,
    )


ENTRIES = (
    _entry(
        "forward",
        Launch("pack", ("w", "scratch"), pack_grid("forward"), block("THREADS"), integers=slices("forward")),
        Launch("forward", ("x", "w", "scratch", "scale", "b", "residual", "y"), _split_grid("forward"),
               block("THREADS"), integers=_slices_in_a_split("forward"), shared_bytes=_shared_bytes("forward", True)),
        _run_total("forward", "x", "w", "scratch", "scale", "b", "residual", "y"),
        PACK_MASK,
        tunables=_tunables("forward"),
        scratch=_scratch("forward"),
    ),
    _entry(
        "input_grad",
        Launch("pack", ("w", "scale", "scratch"), pack_grid("input_grad"), block("THREADS"),
               integers=slices("input_grad")),
        Launch("input_grad", ("dy", "saved", "w", "scale", "b", "scratch", "dx"), _split_grid("input_grad"),
               block("THREADS"), integers=_slices_in_a_split("input_grad"),
               shared_bytes=_shared_bytes("input_grad", True)),
        _run_total("input_grad", "dy", "saved", "w", "scale", "b", "scratch", "dx"),
        tunables=_tunables("input_grad"),
        scratch=_scratch("input_grad"),
    ),
    _entry(
        "kernel_grad",
        Launch("kernel_grad", ("dy", "saved", "x", "scratch"), _kernel_grad_grid, block("THREADS"),
               integers=_kernel_grad_integers, shared_bytes=_kernel_grad_bytes),
        *total_or_scaled(kernel_grad_splits),
        tunables={**_tunables("kernel_grad"), **TOTAL},
        scratch=lambda p, t: kernel_grad_splits(p, t) * taps(p),
    ),
)  # fmt: skip
