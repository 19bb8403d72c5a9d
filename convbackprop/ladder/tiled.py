"""Tiles in shared memory (the .cu files named tiled)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from convbackprop.devices.gpus import Target
from convbackprop.ladder.launches import PACK_MASK, TOTAL, block, total_or_scaled
from convbackprop.ladder.scratch import most_slices, taps
from convbackprop.ladder.variant import MAX_GRID, Constants, Launch, Requirement, Tunable, Variant, ceil_div
from convbackprop.problem import ConvProblem

#: CUDA's limit on the second and third extent of a grid.
_MAX_GRID_YZ = MAX_GRID[1]

#: The shared memory that every GPU gives a block that does not ask for more.
_SHARED_BYTES = 48 * 1024

#: Of outputs; a thread computes one.
FORWARD = {
    "TILE_P": Tunable(legal=(2, 4, 8, 16), cuda=8, cpu=4),
    "TILE_Q": Tunable(legal=(32, 64), cuda=32, cpu=32),
}

#: Of inputs; a thread computes the gradient of one.
INPUT_GRAD = {
    "TILE_H": Tunable(legal=(2, 4, 8, 16), cuda=8, cpu=4),
    "TILE_W": Tunable(legal=(32, 64), cuda=32, cpu=32),
}

#: Of outputs; a thread adds up one tap over some of the rows. BLOCKS: what the grid should have, if there are as many
#: tiles; two rounds of an H200, and enough for a CPU's cores to be busy to the end.
KERNEL_GRAD = {
    "TILE_P": Tunable(legal=(8, 16, 32), cuda=16, cpu=16),
    "TILE_Q": Tunable(legal=(16, 32, 64), cuda=32, cpu=32),
    "THREADS": Tunable(legal=(32, 64, 128, 256), cuda=64, cpu=32),
    "BLOCKS": Tunable(legal=(64, 512, 4096), cuda=4096, cpu=64),
}


def _accumulators(count: int, p: ConvProblem) -> int:
    """Return the bytes of so many accumulators."""
    return count * p.accumulator_bytes


def _inputs_under_tile(p: ConvProblem, t: Constants) -> tuple[int, int]:
    """Return how many rows and columns of inputs TILE_P x TILE_Q outputs read."""
    (down, across), (high, wide) = p.stride, p.filter_extent
    return (t["TILE_P"] - 1) * down + high, (t["TILE_Q"] - 1) * across + wide


def _outputs_of_tile(p: ConvProblem, t: Constants) -> tuple[int, int]:
    """Return how many rows and columns of outputs read TILE_H x TILE_W inputs."""
    (down, across), (high, wide) = p.stride, p.filter_extent
    return (t["TILE_H"] + high - 2) // down + 1, (t["TILE_W"] + wide - 2) // across + 1


def forward_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the shared memory of a block of forward: the filter of one channel, and the inputs under the tile."""
    return _accumulators(p.R * p.S + math.prod(_inputs_under_tile(p, t)), p)


def input_grad_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the shared memory of a block of input_grad: the filter of one channel, and the outputs of the tile."""
    return _accumulators(p.R * p.S + math.prod(_outputs_of_tile(p, t)), p)


def kernel_grad_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the shared memory of a block of kernel_grad: a sum a thread, the tile, and the inputs under it."""
    rows, cols = _inputs_under_tile(p, t)
    pitch = p.S + ceil_div(cols - p.S, 32) * 32
    return _accumulators(t["THREADS"] + t["TILE_P"] * (t["TILE_Q"] + 1) + rows * pitch, p)


def _fits(tunables: Mapping[str, Tunable], needed: Callable[[ConvProblem, Constants], int],
          staged: Callable[[ConvProblem, Constants], str]) -> Requirement:  # fmt: skip
    """Return the requirement that what a block stages fits in shared memory, with the tunables of every device."""

    def requirement(p: ConvProblem) -> str | None:
        """What a block stages must fit in 48 KiB of shared memory."""
        choices = [{name: each.value(Target(kind), p) for name, each in tunables.items()} for kind in ("cuda", "cpu")]
        t = max(choices, key=lambda t: needed(p, t))
        if needed(p, t) <= _SHARED_BYTES:
            return None
        return (f"its {staged(p, t)} needs {ceil_div(needed(p, t), 1024)} KiB of shared memory; "
                f"at most {_SHARED_BYTES // 1024} KiB fit")  # fmt: skip

    return requirement


forward_fits = _fits(FORWARD, forward_bytes, lambda p, t: "tile of {} x {} inputs".format(*_inputs_under_tile(p, t)))
input_grad_fits = _fits(
    INPUT_GRAD, input_grad_bytes, lambda p, t: "tile of {} x {} outputs".format(*_outputs_of_tile(p, t))
)
kernel_grad_fits = _fits(
    KERNEL_GRAD, kernel_grad_bytes, lambda p, t: "tile of {} x {} inputs".format(*_inputs_under_tile(p, t))
)


def _tiles_of_planes(planes: int, plane: tuple[int, int], tile: tuple[int, int]) -> tuple[int, ...]:
    """Return a grid of the tiles of a plane, and the planes folded over its second and third extent."""
    folded = min(planes, _MAX_GRID_YZ)
    return math.prod(map(ceil_div, plane, tile)), folded, ceil_div(planes, max(1, folded))


def forward_grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return the tiles of an output, and the outputs."""
    return _tiles_of_planes(p.N * p.K, (p.P, p.Q), (t["TILE_P"], t["TILE_Q"]))


def input_grad_grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return the tiles of an input, and the inputs."""
    return _tiles_of_planes(p.N * p.C, (p.H, p.W), (t["TILE_H"], t["TILE_W"]))


def input_grad_steps(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return gcd_h and gcd_w, those of stride and dilation."""
    return math.gcd(p.stride_h, p.dilation_h), math.gcd(p.stride_w, p.dilation_w)


def kernel_grad_slices(p: ConvProblem, t: Constants) -> int:
    """Return into how many slices the tiles of all images go."""
    tiles = p.N * ceil_div(p.P, t["TILE_P"]) * ceil_div(p.Q, t["TILE_Q"])
    pairs = p.K * (p.C // p.groups)
    return max(1, min(tiles, ceil_div(t["BLOCKS"], pairs), most_slices(p)))


def kernel_grad_grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return the pairs (k,c), a block for every THREADS taps (a bias is one more), and the slices."""
    return p.K * (p.C // p.groups) * ceil_div(p.R * p.S + 1, t["THREADS"]), kernel_grad_slices(p, t)


ENTRIES = (
    Variant(
        "forward",
        "tiled",
        launches=(
            Launch("forward", ("x", "w", "b", "y"), forward_grid, block("TILE_Q", "TILE_P"),
                   shared_bytes=forward_bytes),
            PACK_MASK,
        ),
        tunables=FORWARD,
        specialise=lambda p, a, t: {"THREADS": t["TILE_P"] * t["TILE_Q"]},
        requires=(forward_fits,),
        auto_on=("cuda",),  # on a CPU a barrier costs more than the loads that it saves
        unproven=True,
    ),
    Variant(
        "input_grad",
        "tiled",
        launches=(
            Launch("input_grad", ("dy", "saved", "w", "b", "dx"), input_grad_grid, block("TILE_W", "TILE_H"),
                   integers=input_grad_steps, shared_bytes=input_grad_bytes),
        ),
        tunables=INPUT_GRAD,
        requires=(input_grad_fits,),
        auto_on=("cuda",),  # on a CPU a barrier costs more than the loads that it saves
        unproven=True,
    ),
    Variant(
        "kernel_grad",
        "tiled",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "scratch"), kernel_grad_grid, block("THREADS"),
                   shared_bytes=kernel_grad_bytes),
            *total_or_scaled(kernel_grad_slices),
        ),
        tunables={**KERNEL_GRAD, **TOTAL},
        scratch=lambda p, t: kernel_grad_slices(p, t) * taps(p),
        requires=(kernel_grad_fits,),
        auto_on=("cuda",),  # on a CPU a barrier costs more than the loads that it saves
        unproven=True,
    ),
)  # fmt: skip
