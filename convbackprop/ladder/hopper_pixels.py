"""`kernel_grad` of `hopper` in 16 bits: x and g with channels side by side, and boxes (hopper/grad_pixels.cuh)."""

from __future__ import annotations

import functools
from itertools import product as combinations

from convbackprop.devices.mapped import MOST_SPANNED, MOST_STEP, TensorMap
from convbackprop.ladder.hopper_memory import (
    CUTS,
    L2_BYTES,
    PRODUCT_SUMS,
    ROW,
    RUN_OF_16_BITS,
    SLOT_BYTES,
    STAGED_PIXELS,
    depth,
    element,
    is_in_place,
    most_round_offs,
)
from convbackprop.ladder.variant import ALIGNED, Alignment, Constants, ceil_div
from convbackprop.problem import ConvProblem

#: Pixels of a box, and of a product of matrices.
_BOX, _DEEP = 128, 16

#: Boxes of a run.
_RUN_BOXES = RUN_OF_16_BITS // _BOX


def _tile(p: ConvProblem) -> dict[str, int] | None:
    return _tile_of((p.N, p.P, p.Q), p.R, p.stride, p.dilation_h)


@functools.lru_cache(maxsize=4096)
def _tile_of(
    pixels: tuple[int, int, int], taps_down: int, stride: tuple[int, int], dilation: int
) -> dict[str, int] | None:
    """Return the constants of a box of pixels, and of the taps that are multiplied at once; None: there are none."""
    found = []
    sizes = [1 << i for i in range(_BOX.bit_length())]
    one_box = stride[0] == 1
    for aside, tile_q, tile_p in combinations(range(1, min(taps_down, 4) + 1), sizes[3:], sizes):
        images = _BOX // tile_q // tile_p
        rows = tile_p + (aside - 1) * dilation if one_box else tile_p
        x_bytes = rows * tile_q * images * ROW * (1 if one_box else aside)
        slot = 2 * _BOX * ROW + x_bytes
        spans = (tile_q - 1) * stride[1] + 1, (rows - 1) * stride[0] + 1
        if not images or max(spans) > MOST_SPANNED or 2 * slot > SLOT_BYTES:
            continue
        boxes = ceil_div(pixels[0], images) * ceil_div(pixels[1], tile_p) * ceil_div(pixels[2], tile_q)
        products = 2 * _BOX * 64 * aside // PRODUCT_SUMS
        tile = {
            "TILE_P": tile_p, "TILE_Q": tile_q, "TILE_IMAGES": images, "TAPS_ASIDE": aside, "BOX_ROWS": rows,
            "ONE_BOX": int(one_box), "TAP_ROWS": dilation, "BOXES": min(8, SLOT_BYTES // slot),
        }  # fmt: skip
        found.append((boxes * ceil_div(taps_down, aside) * max(products, slot // L2_BYTES), images, -tile_q, tile))
    return min(found, key=lambda each: each[:3])[3] if found else None


def constants(p: ConvProblem, alignment: Alignment) -> dict[str, int]:
    """Return the constants of the kernel, as far as they are of 16 bits."""
    return {
        **(_tile(p) or {}),
        "DEPTH": depth(p),
        "FACTOR_BITS": 16,
        "RUN_STEPS": RUN_OF_16_BITS,
        "X_IN_PLACE": int(is_in_place(p, alignment.x, p.C)),
        "G_IN_PLACE": int(p.saved is None and is_in_place(p, alignment.y, p.K)),
    }


def slot_bytes(t: Constants) -> int:
    """Return the bytes of a slot of shared memory: boxes of g and of x."""
    x = t["BOX_ROWS"] * t["TILE_Q"] * t["TILE_IMAGES"] * (1 if t["ONE_BOX"] else t["TAPS_ASIDE"])
    return (2 * _BOX + x) * ROW


# -- what is turned --------------------------------------------------------------------------------------------------
def _group_bytes(p: ConvProblem, name: str) -> int:
    """Return the bytes of a pixel's channels of one group of x, or filters of g: whole units of 16."""
    return ceil_div((p.C if name == "x" else p.K) // p.groups * element(p), 16) * 16


def words(p: ConvProblem, t: Constants, name: str) -> int:
    """Return the words of scratch memory that x or g takes."""
    if t[f"{name.upper()}_IN_PLACE"]:
        return 0
    rows, cols = (p.H, p.W) if name == "x" else (p.P, p.Q)
    return p.N * rows * cols * p.groups * _group_bytes(p, name) // 4


def runs(p: ConvProblem) -> int:
    """Return how many sums of g a filter has in scratch memory."""
    return p.N * ceil_div(p.P * p.Q, STAGED_PIXELS)


def stage_blocks(p: ConvProblem, name: str) -> int:
    """Return the blocks that turn x or g."""
    channels, pixels = (p.C, p.H * p.W) if name == "x" else (p.K, p.P * p.Q)
    return p.N * ceil_div(pixels, STAGED_PIXELS) * ceil_div(channels // p.groups, depth(p)) * p.groups


def maps(p: ConvProblem, t: Constants) -> tuple[TensorMap, ...]:
    """Return the tensor maps of x and of g: channels, groups, columns, images, rows."""

    def rule(name: str, channels: int, rows: int, cols: int, box_rows: int, steps: tuple[int, int]) -> TensorMap:
        group = _group_bytes(p, name)
        pixel, (down, across) = p.groups * group, steps
        in_place = t[f"{name.upper()}_IN_PLACE"]
        return TensorMap(
            {"x": "x", "g": "dy"}[name] if in_place else "scratch",
            p.dtype,
            sizes=(channels // p.groups, p.groups, cols, p.N, rows),
            strides=(group, pixel, rows * cols * pixel, cols * pixel),
            box=(depth(p), 1, (t["TILE_Q"] - 1) * across + 1, t["TILE_IMAGES"], (box_rows - 1) * down + 1),
            steps=(1, 1, across, 1, down),
            offset=0 if name == "x" or in_place else 4 * words(p, t, "x"),
        )

    return rule("x", p.C, p.H, p.W, t["BOX_ROWS"], p.stride), rule("g", p.K, p.P, p.Q, t["TILE_P"], (1, 1))


# -- parts -----------------------------------------------------------------------------------------------------------
def boxes(p: ConvProblem, t: Constants) -> int:
    """Return how many boxes of g there are."""
    return ceil_div(p.N, t["TILE_IMAGES"]) * ceil_div(p.P, t["TILE_P"]) * ceil_div(p.Q, t["TILE_Q"])


def part_boxes(p: ConvProblem, few: int) -> int:
    """Return the boxes of a part: so few, and no more than a run."""
    return min(_RUN_BOXES, few)


def tap_items(p: ConvProblem, t: Constants) -> int:
    """Return what blocks compute of a part for some filters: a chunk of channels, and taps of a column."""
    return ceil_div(p.C // p.groups, depth(p)) * p.S * ceil_div(p.R, t["TAPS_ASIDE"])


# -- the problems ----------------------------------------------------------------------------------------------------
def no_boxes(p: ConvProblem) -> str | None:
    """Return a sentence where no tensor map can tell what pixels see."""
    if max(p.stride) > MOST_STEP:
        return f"stride is {p.stride[0]}x{p.stride[1]}; a tensor map takes each {MOST_STEP}th pixel at most"
    if _tile(p) is None:
        return f"no box of x for {_BOX} pixels spans at most {MOST_SPANNED} and fits in shared memory"
    return None


def too_many_cuts(p: ConvProblem) -> str | None:
    """Return a sentence where a sum would be cut too often."""
    t = constants(p, ALIGNED)
    n, all_boxes, row = p.N * p.P * p.Q, boxes(p, t), t["TILE_Q"] * t["TILE_IMAGES"]
    of_rows = ceil_div(p.N, t["TILE_IMAGES"]) * ceil_div(p.Q, t["TILE_Q"]) * ceil_div(p.P * row, _DEEP)
    passes, parts = min(of_rows, all_boxes * _BOX // _DEEP), ceil_div(all_boxes, _RUN_BOXES)
    cuts = CUTS * min(passes, RUN_OF_16_BITS // _DEEP) + (parts if parts > 1 else 0)
    if cuts <= (most := most_round_offs(n)):
        return None
    return (
        f"a sum of {n:,} pixels passes {passes:,} products of matrices, each of which may cut it twice; its bound has "
        f"{int(most):,} round-offs: it takes longer rows"
    )
