"""Matrix products on tensor cores (the .cu files named tensor_core): implicit_gemm's, 16 x 8 sums of a warp at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from convbackprop.devices.gpus import Target
from convbackprop.ladder.banded import EXACT_GRADS, not_float64
from convbackprop.ladder.channels_last import channels_aside, channels_at_once
from convbackprop.ladder.implicit_gemm import enough, enough_rows, kernel_grad_splits, pack_grid, rows_packed, widths
from convbackprop.ladder.launches import PACK_MASK, TOTAL, block, total_or_scaled
from convbackprop.ladder.matrix_product import RUN, one_tap, phases, product, requires, same, slices, slices_of
from convbackprop.ladder.requirements import unit_stride
from convbackprop.ladder.scratch import most_slices, taps
from convbackprop.ladder.tap_halo import (
    ALL_BYTES,
    BLOCK_BYTES,
    halo_pixels,
    pixel_tiles,
    staged_bytes,
    tap_blocks,
    tap_halo,
    tile_splits,
)
from convbackprop.ladder.tensor_sums import (
    WORDS,
    cut_share,
    image_tiles,
    parts_elements,
    run_integers,
    run_total,
    split_grid,
    split_run,
)
from convbackprop.ladder.variant import (
    ALIGNED,
    Alignment,
    AutoRule,
    Constants,
    Launch,
    Requirement,
    Tunable,
    Variant,
    ceil_div,
)
from convbackprop.layouts import LAYOUTS
from convbackprop.problem import DTYPES, RESULTS, ConvProblem

#: 16-bit channels that come at once.
_CHUNK = 8

#: Words from a row's part of a slice to the next one's.
_PITCH = 20

#: RUN_STEPS where sums are not split (tensor_sums.py): of float32 these steps at most, of others those of so many
#: matrices, each of 8 TF32 numbers or 16 of 16 bits, if the bound has room for them: a sum may be cut by each product
#: of matrices, by two round-offs at most.
_RUN, _RUN_OF_MATRICES = 160, 240

#: Steps that are too few for a run of split sums.
_LEAST_RUN = 64

#: Products of a float32 sum, of which TF32's parts leave out up to 8 round-offs of its bound, and cut sums the rest.
_LEAST_PRODUCTS = 32


# -- the factors -----------------------------------------------------------------------------------------------------
def _parts(pass_name: str, p: ConvProblem) -> tuple[int, int]:
    """Return of how many numbers an element of each factor is the sum: LEFT_PARTS, RIGHT_PARTS.

    2 of float32, and 1 where it may be rounded to TF32. 2 of a g in 16 bits, unless that is dy or 0, a 16-bit number;
    and of a filter that is scaled.
    """
    if p.dtype == "float32":
        return (1, 1) if p.is_tf32 else (2, 2)
    rounded = p.saved is not None and p.activation not in EXACT_GRADS
    return {"forward": (1, 1), "input_grad": (1 + p.scale, 1 + rounded), "kernel_grad": (1 + rounded, 1)}[pass_name]


def _run(pass_name: str, p: ConvProblem, bits: int, products: int) -> int:
    """Return the steps of a run, of as many as the bound has room for; where taps are unrolled, whole rows of them."""
    result = {"forward": "y", "input_grad": "dx", "kernel_grad": "dw"}[pass_name]
    n, steps = RESULTS[result].reduction_length(p), product(pass_name, p)[2]  # type: ignore[misc]
    depth = WORDS * 32 // bits
    unit = 32 if pass_name == "kernel_grad" else depth * p.S if _is_row(p) else depth
    most = _RUN if products == 3 else _RUN_OF_MATRICES * (256 // bits)
    fitting = (run for run in range(most // unit * unit, 0, -unit) if cut_share(n, steps, run, bits, products) <= 1)
    return next(fitting, unit)


def _is_row(p: ConvProblem) -> bool:
    """Return whether a row of taps is unrolled: of unit stride, and few."""
    return p.stride == (1, 1) and p.S in (2, 3)


def _longest(pass_name: str, p: ConvProblem, run: int) -> int:
    """Return how many steps a sum has at most: those of kernel_grad may be split into runs, if that is no float32."""
    steps = product(pass_name, p)[2]
    is_split = pass_name == "kernel_grad" and run > _RUN and ceil_div(steps, run) <= most_slices(p)
    return min(steps, run) if is_split else steps


def _is_tf32(pass_name: str, p: ConvProblem) -> bool:
    """Return whether factors are TF32 numbers, of 32 bits."""
    return p.dtype == "float32" or _parts(pass_name, p) != (1, 1)


def _factors(pass_name: str, p: ConvProblem) -> dict[str, int]:
    """Return the constants of the factors, and how many numbers of each row a slice has."""
    left, right = _parts(pass_name, p)
    bits = 32 if _is_tf32(pass_name, p) else 16
    products = left + right - 1
    run = _run(pass_name, p, bits, products)
    is_whole = _longest(pass_name, p, run) <= run
    may_split = split_run(pass_name, p, bits, products, _LEAST_RUN, is_whole) if pass_name != "kernel_grad" else 0
    run = may_split or run
    return {
        "LEFT_PARTS": left,
        "RIGHT_PARTS": right,
        "LEFT_IS_WHOLE": int(pass_name == "kernel_grad" and p.is_tf32 and p.bias),  # db, its sum, is not rounded
        "FACTOR_BITS": bits,
        "DEPTH": WORDS * 32 // bits,
        "RUN_STEPS": run,
        "LONG_SUMS": int(_longest(pass_name, p, run) > run),
        **({"MAY_SPLIT": int(may_split > 0)} if pass_name != "kernel_grad" else {}),
        "TAPS_AT_ONCE": (p.S if p.S in (2, 3) else 3) if (left, right) == (1, 1) else 1,
    }


# -- the tile --------------------------------------------------------------------------------------------------------
def _tunables(pass_name: str) -> dict[str, Tunable]:
    """Return the tunables of a pass, TILE_M x TILE_N: what a block computes."""

    def rows(p: ConvProblem, target: Target) -> int:
        """Return 32 or 64 where more would leave half idle; 64, too, where a halo of 32-bit numbers has channels.

        Not 32 of kernel_grad's 16-bit numbers: the few threads of such a tile have no registers for what each brings.
        """
        wanted, is_kernel_grad, is_tf32 = product(pass_name, p)[0], pass_name == "kernel_grad", _is_tf32(pass_name, p)
        if wanted <= 32 and (is_tf32 or not is_kernel_grad):
            return 32
        is_halo = is_kernel_grad and is_tf32
        is_halo = is_halo and bool(tap_halo(p, ALIGNED, {"TILE_M": 64, **_factors(pass_name, p)}))
        return 64 if is_halo or wanted <= 64 else 128

    def columns(p: ConvProblem, target: Target) -> int:
        """Return 256 where warps would else be few, or small; 64 where shared memory holds no larger halo.

        64, too, where warps are the same and tiles of 128 would have a fifth more pixels, most of them beyond an image.
        """
        tile_m, is_roomy = rows(p, target), _is_roomy(pass_name, p)
        sizes = (256, 128, 64) if tile_m <= 64 and is_roomy else (128, 64)
        halos = {n: _halo(pass_name, p, ALIGNED, {"TILE_M": tile_m, "TILE_N": n}) for n in sizes}
        if not is_roomy and halos[128] and halos[64]:
            large, small = (n * image_tiles(pass_name, p, halos[n]) for n in (128, 64))
            return 64 if 6 * small <= 5 * large else 128
        return next((n for n in sizes if halos[n]), 128)

    if pass_name == "kernel_grad":
        return {"TILE_M": same((32, 64, 128), rows), "TILE_N": same((64, 128), 128)}
    return {"TILE_M": same((32, 64, 128), rows), "TILE_N": same((64, 128, 256), columns)}


def _is_roomy(pass_name: str, p: ConvProblem) -> bool:
    """Return whether a warp's registers hold 64 x 64 sums: of factors in one part, without totals."""
    factors = _factors(pass_name, p)
    return factors["LEFT_PARTS"] == factors["RIGHT_PARTS"] == 1 and not factors["LONG_SUMS"]


def _warp(pass_name: str, p: ConvProblem, t: Constants, has_halo: bool) -> dict[str, int]:
    """Return WARP_M and WARP_N, and how many threads that makes: of a halo four or eight warps, if a tile is not small.

    Where windows are staged tap by tap they wait in registers, each as many threads' as there are warps.
    """
    if has_halo:
        is_long = (t["TILE_M"], t["TILE_N"]) == (32, 256)  # more threads than a slice of the filter has chunks
        is_large = t["TILE_N"] == 256 or t["TILE_M"] == t["TILE_N"] == 128
        rows, columns = min(64, t["TILE_M"]), 64 if is_long or (is_large and _is_roomy(pass_name, p)) else 32
    else:
        rows, columns = max(32, t["TILE_M"] // 2), 64 if t["TILE_N"] == 256 and t["TILE_M"] > 32 else 32
    return {"WARP_M": rows, "WARP_N": columns, "THREADS": 32 * (t["TILE_M"] // rows) * (t["TILE_N"] // columns)}


#: Warps that a multiprocessor should hold: as many as may have all registers.
_WARPS = 8

#: Shared memory that all blocks of a multiprocessor may have on an H200.
_H200_BYTES = 228 << 10


def _resident(threads: int) -> int:
    """Return how many blocks make the warps that a multiprocessor should hold."""
    return max(1, 32 * _WARPS // threads)


def _seen_beyond(pass_name: str, p: ConvProblem) -> tuple[int, int]:
    """Return how many rows and columns more than a tile has its windows have."""
    reach = [(taps - 1) * dilation for taps, dilation in zip((p.R, p.S), p.dilation, strict=True)]
    if pass_name == "input_grad":  # a phase sees g, whose pixels lie a stride apart
        reach = [rows // stride for rows, stride in zip(reach, p.stride, strict=True)]
    return reach[0], reach[1]


def _halo(pass_name: str, p: ConvProblem, alignment: Alignment, t: Constants) -> dict[str, int]:
    """Return the constants of a tile and its halo; none where windows are staged tap by tap.

    That is where the stride leaves gaps between windows, where there is one tap, where channels do not fill slices, and
    where shared memory is too small.
    """
    t = {**t, **_factors(pass_name, p)}
    taps = p.R * p.S if pass_name == "forward" else product(pass_name, p)[2] // (p.K // p.groups)
    is_small = taps == 1 and p.layout == "nchw"
    if (pass_name == "forward" and unit_stride(p)) or is_small or not one_tap(pass_name, p, t):
        return {}
    down, across = _seen_beyond(pass_name, p)
    (rows, columns), width, aligned = ((p.P, p.Q), p.W, alignment.x) if pass_name == "forward" else (
        (ceil_div(p.H, p.stride_h), ceil_div(p.W, p.stride_w)), p.Q, alignment.y)  # fmt: skip

    def tile(vector: int, tile_p: int, tile_q: int) -> dict[str, int]:
        return {
            "TILE_IMAGES": t["TILE_N"] // tile_p // tile_q,
            "TILE_P": tile_p,
            "TILE_Q": tile_q,
            "HALO_P": tile_p + down,
            "HALO_Q": ceil_div(tile_q + across + vector - 1, vector) * vector,
            "VECTOR": vector,  # pixels that are read at once
        }

    def cost(found: dict[str, int]) -> float:
        tiles = (
            ceil_div(p.N, found["TILE_IMAGES"]) * ceil_div(rows, found["TILE_P"]) * ceil_div(columns, found["TILE_Q"])
        )
        return tiles * (t["TILE_N"] + halo_pixels(found) / 4)

    resident = _resident(_warp(pass_name, p, t, True)["THREADS"])
    limits = [min(BLOCK_BYTES, ALL_BYTES // min(resident, 2) - 1024)]
    if resident > 2:  # small blocks: if they can, so that an H200 holds all that it should
        limits.insert(0, _H200_BYTES // resident - 1024)
    sizes = [1 << i for i in range(9)]
    is_costly = pass_name == "input_grad" and p.saved is not None and p.activation not in EXACT_GRADS
    # What is read at once waits in registers, of which phi' takes many, and so do the sums of three products.
    is_full = pass_name == "forward" and t["LEFT_PARTS"] == t["RIGHT_PARTS"] == 2 and t["TILE_M"] == 64
    vectors = (1,) if p.layout == "nhwc" or is_full else (2, 1) if is_costly else (4, 2, 1)
    for most, vector in itertools.product(limits, vectors):
        if width % vector or aligned < vector * DTYPES[p.dtype]:
            continue
        tiles = [
            tile(vector, tile_p, tile_q) for tile_q in sizes[3:] for tile_p in sizes if tile_p * tile_q <= t["TILE_N"]
        ]
        fitting = [found for found in tiles if _halo_bytes({**t, **found}) <= most]
        if fitting:
            return min(fitting, key=cost)
    return {}


def _halo_bytes(t: Constants) -> int:
    """Return the bytes of two groups of taps of the filter, and of two halos."""
    taps, pixels = t["TAPS_AT_ONCE"], halo_pixels(t)
    return 2 * 4 * (taps * t["LEFT_PARTS"] * t["TILE_M"] * WORDS + t["RIGHT_PARTS"] * pixels * _PITCH)


def _constants(pass_name: str) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for what follows from the tunables."""

    def rule(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        factors = _factors(pass_name, p)
        halo = _halo(pass_name, p, alignment, t) if pass_name != "kernel_grad" else {}
        warp = _warp(pass_name, p, t, bool(halo))
        found = {
            **factors,
            **warp,
            "RESIDENT": _resident(warp["THREADS"]),
            "ONE_TAP": one_tap(pass_name, p, {**t, **factors}),
        }
        if pass_name == "kernel_grad":
            none = {"HALO": 0, "TILE_C": 32, "TILE_IMAGES": 1, "TILE_P": 1, "TILE_Q": t["TILE_N"], "HALO_P": 1,
                    "HALO_Q": t["TILE_N"], "TAPS_DOWN": 1, "TAPS_ACROSS": 1, "COL_STEP": 1, "STEPS_AT_ONCE": 1,
                    "GRADS_AT_ONCE": 1, "ONE_SPLIT": 0}  # fmt: skip
            halo = tap_halo(p, alignment, {**t, **factors})
            chunks = {"CHANNELS_AT_ONCE": channels_at_once(p, min(alignment)), "CHANNELS_ASIDE": 1}
            return {**found, **none, **chunks, **widths(pass_name, p, alignment, 4), **halo}
        if halo:
            pixels = "X_PIXELS" if pass_name == "forward" else "G_PIXELS"
            known = _results(pass_name, p, alignment, {**t, **found, **halo})
            groups = _tap_groups(pass_name, p, {**found, **halo})
            return {**found, "HALO": 1, pixels: halo.pop("VECTOR"), **halo, **known, **groups}
        none = {"HALO": 0, "TILE_IMAGES": 1, "TILE_P": 1, "TILE_Q": t["TILE_N"], "HALO_P": 1, "HALO_Q": t["TILE_N"],
                "ROW_GROUPS": 0, "ROW_TAPS": 1, "COL_STEP": 1, "UNITS_AT_ONCE": 1}  # fmt: skip
        known = _results(pass_name, p, alignment, {**t, **found})
        return {**found, **none, **widths(pass_name, p, alignment, 2), **known}

    return rule


def _tap_groups(pass_name: str, p: ConvProblem, t: Constants) -> dict[str, int]:
    """Return what is known of the groups of taps that are multiplied between two barriers: whether each is a row."""
    is_row = _is_row(p)
    units = halo_pixels(t) // t["VECTOR"]
    own = ceil_div(units, t["THREADS"] // 4)
    return {
        "ROW_GROUPS": int(is_row),
        "ROW_TAPS": p.S if is_row else t["TAPS_AT_ONCE"],
        "COL_STEP": p.dilation_w if pass_name == "forward" else -p.dilation_w,
        "UNITS_AT_ONCE": min(ceil_div(own, p.R), p.S) if is_row else t["TAPS_AT_ONCE"],
    }


def _results(pass_name: str, p: ConvProblem, alignment: Alignment, t: Constants) -> dict[str, int]:
    """Return what is known of the results of forward's and of input_grad's tiles.

    BIAS: whether one is added. RESULTS_TOGETHER: how many neighbouring pixels of a tile one instruction writes.
    WHOLE_TILES: whether no tile passes the last filter, row, column or image.
    """
    m, n, _, _ = product(pass_name, p)
    (rows, columns), (down, across), aligned = (
        ((p.P, p.Q), (1, 1), alignment.y) if pass_name == "forward" else ((p.H, p.W), p.stride, alignment.x)
    )
    ends: tuple[tuple[int, str], ...]
    if "TILE_Q" in t:
        width, ends = columns, ((rows // down, "TILE_P"), (columns // across, "TILE_Q"), (p.N, "TILE_IMAGES"))
    else:
        width, ends = rows * columns, ((n, "TILE_N"),)
    is_pair = down == across == 1 and width % 2 == 0 and aligned >= 2 * DTYPES[p.dtype]
    is_whole = all(size % t[tile] == 0 for size, tile in ((m, "TILE_M"), *ends))
    is_whole &= rows % down == 0 and columns % across == 0
    if pass_name == "forward" and t["WARP_M"] == t["WARP_N"] == 64:
        is_whole = False  # without a branch nvcc has the addresses of too many results at once, and spills some
    seen = alignment.x if pass_name == "forward" else alignment.y
    return {
        **({"BIAS": int(p.bias)} if pass_name == "forward" else {}),
        "CHANNELS_AT_ONCE": channels_at_once(p, seen),
        "CHANNELS_ASIDE": channels_aside(p, (p.K if pass_name == "forward" else p.C) // p.groups, aligned),
        "RESULTS_TOGETHER": 2 if is_pair else 1,
        "WHOLE_TILES": int(is_whole),
    }


# -- the launches ----------------------------------------------------------------------------------------------------
def _scratch(pass_name: str) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for the words of scratch memory: a table of offsets (4 each), the filter, and parts of sums."""

    def rule(p: ConvProblem, t: Constants) -> int:
        offsets = phases(pass_name, p) * slices_of(pass_name, p, t) * t["DEPTH"]
        filters = rows_packed(pass_name, p, t) // t["DEPTH"] * WORDS * t["LEFT_PARTS"]
        return offsets * 4 + filters + parts_elements(pass_name, p, t)

    return rule


def _shared_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the bytes of two slices, or of what a halo takes."""
    if t["HALO"]:
        return _halo_bytes(t)
    return 2 * 4 * (t["LEFT_PARTS"] * t["TILE_M"] * WORDS + t["RIGHT_PARTS"] * t["TILE_N"] * _PITCH)


def _splits(p: ConvProblem, t: Constants) -> int:
    """Return among how many blocks the pixels are split: as implicit_gemm's, and so that runs need no totals."""
    if t["HALO"]:
        return tile_splits(p, t)
    slices = slices_of("kernel_grad", p, t)
    enough = kernel_grad_splits(p, {**t, "RUN_STEPS": RUN})
    least = 1 if t["LONG_SUMS"] else ceil_div(slices * t["DEPTH"], t["RUN_STEPS"])
    return ceil_div(slices, ceil_div(slices, max(enough, least))) if slices else 1


def _slices_of_split(p: ConvProblem, t: Constants) -> int:
    if t["HALO"]:
        return ceil_div(pixel_tiles(p, t), tile_splits(p, t))
    return ceil_div(slices_of("kernel_grad", p, t), _splits(p, t))


def _kernel_grad_grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return the tiles, and the splits."""
    if t["HALO"]:
        return tap_blocks(p, t), _splits(p, t)
    m, n, _, products = product("kernel_grad", p)
    return ceil_div(m, t["TILE_M"]) * ceil_div(n, t["TILE_N"]) * products, _splits(p, t)


def _kernel_grad_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the bytes of two slices, whose rows are staged alike, or of what a halo takes."""
    if t["HALO"]:
        return staged_bytes(t)
    return 2 * 4 * _PITCH * (t["LEFT_PARTS"] * t["TILE_M"] + t["RIGHT_PARTS"] * t["TILE_N"])


# -- the entries -----------------------------------------------------------------------------------------------------
def _enough_products(pass_name: str) -> Requirement:
    """Return the requirement that the bound of a float32 sum has room for what three products leave out."""
    result = {"forward": "y", "input_grad": "dx", "kernel_grad": "dw"}[pass_name]

    def requirement(p: ConvProblem) -> str | None:
        """It multiplies float32 as three TF32 products."""
        n = RESULTS[result].reduction_length(p)  # type: ignore[misc]
        if p.dtype != "float32" or p.is_tf32 or n >= _LEAST_PRODUCTS:
            return None
        return f"a float32 sum has {n} products; its three TF32 products are within the bound from {_LEAST_PRODUCTS} on"

    return requirement


def _staged_by_channels(pass_name: str) -> Requirement:
    """Return the requirement that images whose channels lie side by side are staged with their halo."""

    def requirement(p: ConvProblem) -> str | None:
        """Of layout nhwc it takes 16-bit factors, in halos."""
        if p.layout == "nchw":
            return None
        if _is_tf32(pass_name, p):
            return f"of layout {p.layout} it takes factors that are 16-bit numbers"
        t = {name: tunable.value("cuda", p) for name, tunable in _tunables(pass_name).items()}
        if pass_name == "kernel_grad":
            if (p.K // p.groups) % _CHUNK:
                return f"of layout {p.layout} it takes filters of a group in chunks of {_CHUNK}"
            halo = tap_halo(p, ALIGNED, {**t, **_factors(pass_name, p)})
        else:
            halo = _halo(pass_name, p, ALIGNED, t)
        return None if halo else f"of layout {p.layout} it takes whole slices of channels, at unit stride"

    return requirement


#: How many products of TF32 numbers tensor cores have in the time of one multiply-add outside them: the peak rates of
#: devices/gpus.py, on sm_90 as far as mma.sync reaches them. Other architectures have some as fast as the one.
_TF32_PRODUCTS = {"sm_80": 8, "sm_90": 5, "sm_90a": 5}

#: Filters of a group that fill a slice of input_grad; and output pixels of an image in kernel_grad.
_ENOUGH_FILTERS, _ENOUGH_PIXELS = 16, 32

#: Taps of a filter, of all channels, that fill a tile of kernel_grad, by the bits of what is multiplied: implicit_gemm
#: has tiles for few.
_ENOUGH_TAPS = {16: 28, 32: 96}


def _auto_not(pass_name: str) -> AutoRule:
    """Return the rule of "auto": where it is expected to be no slower than implicit_gemm.

    tools/expected_page.py --rule holds it against the expected times. Nothing in it can hang: it waits for its own
    copies and for its block alone. So "auto" does not wait for a GPU to have run it.
    """
    few_rows = enough_rows(pass_name, enough(pass_name))

    def rule(p: ConvProblem, target: Target) -> str | None:
        if target.generation < 80:
            return f"its products are those of tensor cores from sm_80 on; this GPU is {target.architecture}"
        left, right = _parts(pass_name, p)
        products = left + right - 1
        if products > _TF32_PRODUCTS.get(target.architecture, 1):
            return f"{target.architecture} may take longer for {products} TF32 products than for a multiply-add"
        if reason := few_rows(p, target):
            return reason
        filters, of_filter = p.K // p.groups, p.C // p.groups * p.R * p.S
        if pass_name == "input_grad" and filters < _ENOUGH_FILTERS:
            return f"a group has {filters} filter{'s' * (filters > 1)}; it is the faster one from {_ENOUGH_FILTERS} on"
        bits = 32 if _is_tf32(pass_name, p) else 16
        if pass_name == "kernel_grad" and of_filter < _ENOUGH_TAPS[bits]:
            few = f"{of_filter} tap{'s' * (of_filter > 1)}"
            return f"a filter has {few}; with numbers of {bits} bits it is the faster one from {_ENOUGH_TAPS[bits]} on"
        if pass_name == "kernel_grad" and p.P * p.Q < _ENOUGH_PIXELS:  # not of all images: see _enough_products
            return f"an image has {p.P * p.Q} output pixels; it is the faster one from {_ENOUGH_PIXELS} on"
        return None

    return rule


def _entry(pass_name: str, *launches: Launch, **more: Any) -> Variant:
    return Variant(
        pass_name,
        "tensor_core",
        launches=launches,
        specialise=_constants(pass_name),
        layouts=LAYOUTS,
        requires=(*requires(pass_name), not_float64, _enough_products(pass_name), _staged_by_channels(pass_name)),
        auto_on=("cuda",),
        unproven=True,
        auto_not=_auto_not(pass_name),
        **more,
    )


ENTRIES = (
    _entry(
        "forward",
        Launch("pack", ("w", "scratch"), pack_grid("forward"), block("THREADS"), integers=slices("forward")),
        Launch("forward", ("x", "w", "scratch", "scale", "b", "residual", "y"), split_grid("forward"),
               block("THREADS"), integers=run_integers("forward"), shared_bytes=_shared_bytes),
        run_total("forward", "x", "w", "scratch", "scale", "b", "residual", "y"),
        PACK_MASK,
        tunables=_tunables("forward"),
        scratch=_scratch("forward"),
    ),
    _entry(
        "input_grad",
        Launch("pack", ("w", "scale", "scratch"), pack_grid("input_grad"), block("THREADS"),
               integers=slices("input_grad")),
        Launch("input_grad", ("dy", "saved", "w", "scale", "b", "scratch", "dx"), split_grid("input_grad"),
               block("THREADS"), integers=run_integers("input_grad"), shared_bytes=_shared_bytes),
        run_total("input_grad", "dy", "saved", "w", "scale", "b", "scratch", "dx"),
        tunables=_tunables("input_grad"),
        scratch=_scratch("input_grad"),
    ),
    _entry(
        "kernel_grad",
        Launch("kernel_grad", ("dy", "saved", "x", "scale", "scratch", "dw", "db"), _kernel_grad_grid, block("THREADS"),
               integers=lambda p, t: (int(p.bias), _slices_of_split(p, t)), shared_bytes=_kernel_grad_bytes),
        *total_or_scaled(_splits, when=lambda p, t: not t["ONE_SPLIT"]),
        tunables={**_tunables("kernel_grad"), **TOTAL},
        scratch=lambda p, t: 0 if t["ONE_SPLIT"] else _splits(p, t) * taps(p),
    ),
)  # fmt: skip
