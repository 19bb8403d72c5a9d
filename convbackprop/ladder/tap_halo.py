"""Tiles of pixels and groups of taps in kernel_grad/tensor_core.cu, where images with their halo serve many taps."""

from __future__ import annotations

import math

from convbackprop.devices.gpus import GPUS
from convbackprop.ladder.matrix_product import RUN
from convbackprop.ladder.requirements import unit_stride
from convbackprop.ladder.scratch import most_slices
from convbackprop.ladder.variant import Alignment, Constants, ceil_div
from convbackprop.problem import DTYPES, ConvProblem

#: Of shared memory: what a block may have on every GPU since sm_80, and all blocks of a multiprocessor on an A100.
BLOCK_BYTES, ALL_BYTES = 99 << 10, 164 << 10

#: Warps that a multiprocessor should hold, of whose registers a warp's sums and totals take two thirds.
_TAP_WARPS = 12


def tap_halo(p: ConvProblem, alignment: Alignment, t: Constants) -> dict[str, int]:
    """Return the constants of kernel_grad's tiles of pixels and taps; none where windows are staged tap by tap.

    That is where the stride is not 1, where there is one tap, where channels do not fill slices, and where so few of
    a tile's pixels exist that zeros would cost digits. The order of a sum follows from its tiles: these do not depend
    on where arrays lie, which only decides how many pixels are read at once.
    """
    is_small = p.R * p.S == 1 and p.layout == "nchw"
    if unit_stride(p) or is_small or (p.C // p.groups) % t["DEPTH"]:
        return {}
    down, across = (min((1, 2, 3), key=lambda each: ceil_div(taps, each) * (2 * each + 1))
                    for taps in (p.R, p.S))  # fmt: skip
    tile_c = 32 if (p.C // p.groups) % 32 == 0 else 16
    warps = tile_c // 16 * down  # beside one another
    # A row's sum has a thread.
    warp_m = 64 if t["TILE_M"] >= 64 and not t["LONG_SUMS"] and 32 * warps >= 64 else 32
    threads = 32 * (t["TILE_M"] // warp_m) * warps
    resident = max(1, 32 * _TAP_WARPS // threads)
    is_split = t["RIGHT_PARTS"] == 2
    has_few = is_split and t["TILE_M"] == tile_c == 32  # threads, which have more of a tile each
    has_saved = p.saved is not None and not p.mask
    # What is read at once waits in registers: as much as nvcc finds beside the sums, spilling none.
    is_tight = is_split or (p.mask and t["FACTOR_BITS"] == 16)
    most = 2 if is_tight else 4
    g_pixels = next(n for n in (4, 2, 1) if n <= most and p.Q % n == 0 and alignment.y >= n * DTYPES[p.dtype])
    found = {
        "HALO": 1,
        "TILE_C": tile_c,
        "WARP_M": warp_m,
        "THREADS": threads,
        "RESIDENT": resident,
        "TAPS_DOWN": down,
        "TAPS_ACROSS": across,
        "COL_STEP": p.dilation_w,
        "STEPS_AT_ONCE": 1 if is_split and g_pixels == 1 else _steps_at_once(p, t, tile_c),
        "GRADS_AT_ONCE": 2 if t["LEFT_PARTS"] == 1 and has_saved else 1,
        "G_PIXELS": g_pixels,
    }

    def tile(x_pixels: int, images: int, tile_p: int, tile_q: int) -> dict[str, int]:
        seen = tile_q + (across - 1) * p.dilation_w + x_pixels - 1
        return {
            **found,
            "X_PIXELS": x_pixels,
            "TILE_IMAGES": images,
            "TILE_P": tile_p,
            "TILE_Q": tile_q,
            "HALO_P": tile_p + (down - 1) * p.dilation_h,
            "HALO_Q": ceil_div(seen, x_pixels) * x_pixels,
        }

    def cost(t: dict[str, int]) -> float:
        return pixel_tiles(p, t) * (_tile_pixels(t) + halo_pixels(t) / 4 * (1 + 1 / t["X_PIXELS"]) + 8)

    vectors = (1,) if p.layout == "nhwc" or has_few else (2, 1) if is_split else (4, 2, 1)
    least = 4 * t["DEPTH"] // 2  # pixels of 4 steps
    most_bytes = min(BLOCK_BYTES, ALL_BYTES // min(resident, 2) - 1024)
    fitting = [
        found
        for x_pixels in vectors
        if p.W % x_pixels == 0
        for pixels in (least, 2 * least, 4 * least)
        for tile_q in (8, 16, 32, 64)
        for tile_p in (1, 2, 4, 8, 16)
        if tile_p * tile_q <= pixels <= threads
        for found in [tile(x_pixels, pixels // tile_p // tile_q, tile_p, tile_q)]
        if staged_bytes({**t, **found}) <= most_bytes and 0 < _least_splits(p, {**t, **found}) <= most_slices(p)
    ]
    if not fitting:
        return {}
    best = min(fitting, key=cost)
    x_pixels = min(best["X_PIXELS"], alignment.x // DTYPES[p.dtype])
    if t["FACTOR_BITS"] == 16 and g_pixels == 2 and (x_pixels == 2 or p.mask):
        x_pixels = 1  # beside pairs of g
    chosen = tile(x_pixels, best["TILE_IMAGES"], best["TILE_P"], best["TILE_Q"])
    return {**chosen, "ONE_SPLIT": int(_splits(p, {**t, **chosen}, GPUS[0].sms) == 1)}


def _steps_at_once(p: ConvProblem, t: Constants, tile_c: int) -> int:
    """Return how many steps are unrolled: as many as nvcc finds registers for beside what is read of g meanwhile."""
    if t["FACTOR_BITS"] == 16:
        return 2
    if p.mask or tile_c == 16:
        return 1
    of_three = 2 if p.W % 2 == 0 else 1  # pixels one by one take more
    return {1: 4, 2: 1, 3: of_three}[t["LEFT_PARTS"] + t["RIGHT_PARTS"] - 1]


def _tile_pixels(t: Constants) -> int:
    """Return the pixels of a tile."""
    return t["TILE_IMAGES"] * t["TILE_P"] * t["TILE_Q"]


def pixel_tiles(p: ConvProblem, t: Constants) -> int:
    """Return the tiles of kernel_grad's pixels."""
    return ceil_div(p.N, t["TILE_IMAGES"]) * ceil_div(p.P, t["TILE_P"]) * ceil_div(p.Q, t["TILE_Q"])


def staged_bytes(t: Constants) -> int:
    """Return the bytes of two tiles of g and of two halos."""
    chunks, pixels = _tile_pixels(t) // (t["DEPTH"] // 4) + 1, halo_pixels(t)
    # Of 16 bits a pixel's chunks and a gap, of 32 bits planes, each four banks beside the one before.
    halo = 5 * 16 * pixels if t["FACTOR_BITS"] == 16 else 4 * t["TILE_C"] * (pixels + (4 - pixels) % 8)
    return 2 * (16 * t["LEFT_PARTS"] * t["TILE_M"] * chunks + t["RIGHT_PARTS"] * halo)


def _least_splits(p: ConvProblem, t: Constants) -> int:
    """Return among how many blocks tiles have to be split; 0 if no number is enough.

    Sums that are cut at each product of matrices are to be within the bound, though zeros fill up tiles.
    """
    steps, n = pixel_tiles(p, t) * _tile_pixels(t), p.N * p.P * p.Q
    run = min(steps, t["RUN_STEPS"])
    products = t["LEFT_PARTS"] + t["RIGHT_PARTS"] - 1
    cut = 2 * (products * ceil_div(run, t["DEPTH"] // 2) - (products - 1))
    left_out = 8 if products == 3 else 0
    additions = int(min(n + 3, 8 * math.sqrt(n + 2)) - cut - left_out)  # that there is room for
    if not steps or additions < t["LONG_SUMS"]:
        return 0
    return ceil_div(steps, run * additions if t["LONG_SUMS"] else run)


def halo_pixels(t: Constants) -> int:
    """Return the pixels of a halo."""
    return t["TILE_IMAGES"] * t["HALO_P"] * t["HALO_Q"]


def tap_blocks(p: ConvProblem, t: Constants) -> int:
    """Return the blocks of a split, of tiles of filters, channels and taps."""
    taps = ceil_div(p.R, t["TAPS_DOWN"]) * ceil_div(p.S, t["TAPS_ACROSS"])
    return ceil_div(p.K // p.groups, t["TILE_M"]) * (p.C // t["TILE_C"]) * taps


def _splits(p: ConvProblem, t: Constants, multiprocessors: int) -> int:
    """Return among how many blocks the tiles are split: that all rounds of a GPU are full, and runs need no totals."""
    tiles, at_once, blocks = pixel_tiles(p, t), multiprocessors * t["RESIDENT"], tap_blocks(p, t)
    steps = tiles * _tile_pixels(t)
    least = _least_splits(p, t)
    full = ceil_div(blocks * least, at_once) * at_once // blocks
    splits = min(max(least, min(full, ceil_div(steps, RUN))), tiles, most_slices(p))
    return ceil_div(tiles, ceil_div(tiles, splits)) if tiles else 1


def tile_splits(p: ConvProblem, t: Constants) -> int:
    """Return among how many blocks the tiles are split: on every GPU not at all if they are not on an H200."""
    return 1 if t["ONE_SPLIT"] else max(2, _splits(p, t, t["multiprocessors"]))
