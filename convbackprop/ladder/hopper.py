"""Matrix products that sm_90's warpgroups multiply and its copy engine feeds (the .cu files named hopper)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import product as combinations
from types import ModuleType
from typing import Any, NamedTuple

from convbackprop.devices.gpus import Target
from convbackprop.devices.mapped import MOST_SPANNED, MOST_STEP, TensorMap
from convbackprop.ladder import hopper_pixels, hopper_planes
from convbackprop.ladder.banded import EXACT_GRADS, not_float64
from convbackprop.ladder.channels_last import channels_aside
from convbackprop.ladder.hopper_memory import (
    CUTS,
    L2_BYTES,
    PATTERN,
    PRODUCT_SUMS,
    ROW,
    RUN,
    RUN_OF_16_BITS,
    SLOT_BYTES,
    STAGED_PIXELS,
    THREADS,
    depth,
    element,
    is_in_place,
    most_round_offs,
)
from convbackprop.ladder.launches import PACK_MASK, block
from convbackprop.ladder.matrix_product import phases, requires, same
from convbackprop.ladder.pipelined import unseen
from convbackprop.ladder.scratch import most_slices
from convbackprop.ladder.variant import ALIGNED, Alignment, Constants, Launch, Requirement, Tunable, Variant, ceil_div
from convbackprop.layouts import LAYOUTS
from convbackprop.problem import DTYPES, ConvProblem

#: What one product of matrices takes of a row of shared memory, which is a chunk of channels.
_DEEP = 32

#: Slots of taps at most: more are no further ahead of the products.
_MOST_TAPS = 8


# -- what is multiplied ----------------------------------------------------------------------------------------------
class _Image(NamedTuple):
    """What boxes are cut from, x or g, and the pixels of results that see it.

    Attributes
    ----------
    channels, rows, cols : int
        Of the image; channels of a group.
    results : int
        Rows of the product: filters, or channels of a group.
    pixel_rows, pixel_cols : int
        Of results, in the largest phase.
    stride : (int, int)
        From what a pixel sees to what its neighbour sees.
    taps : (int, int)
        That a pixel meets at most.
    dilation : (int, int)
        From what it sees through a tap to what it sees through the next one.
    """

    channels: int
    rows: int
    cols: int
    results: int
    pixel_rows: int
    pixel_cols: int
    stride: tuple[int, int]
    taps: tuple[int, int]
    dilation: tuple[int, int]


def _image(pass_name: str, p: ConvProblem) -> _Image:
    channels, filters = p.C // p.groups, p.K // p.groups
    if pass_name == "forward":
        return _Image(channels, p.H, p.W, filters, p.P, p.Q, p.stride, (p.R, p.S), p.dilation)
    common = [math.gcd(stride, dilation) for stride, dilation in zip(p.stride, p.dilation, strict=True)]
    taps = [ceil_div(taps, stride // gcd) for taps, stride, gcd in zip((p.R, p.S), p.stride, common, strict=True)]
    return _Image(
        filters, p.P, p.Q, channels, ceil_div(p.H, p.stride_h), ceil_div(p.W, p.stride_w), (1, 1),
        (taps[0], taps[1]), (p.dilation_h // common[0], p.dilation_w // common[1]),
    )  # fmt: skip


def _run(p: ConvProblem) -> int:
    return RUN_OF_16_BITS if element(p) == 2 else RUN


def _taps(pass_name: str, p: ConvProblem) -> int:
    """Return the taps of all chunks of channels, that is the steps of a sum in chunks."""
    image = _image(pass_name, p)
    return ceil_div(image.channels, depth(p)) * math.prod(image.taps)


def _is_long(pass_name: str, p: ConvProblem) -> bool:
    return _taps(pass_name, p) * depth(p) > _run(p)


# -- the tile --------------------------------------------------------------------------------------------------------
def _tunables(pass_name: str) -> dict[str, Tunable]:
    """Return the tunables of a pass, TILE_M x TILE_N: what a block computes."""

    def rows(p: ConvProblem, target: Target) -> int:
        """Return 64 where 128 would leave half of them idle."""
        return 64 if _image(pass_name, p).results <= 64 else 128

    def columns(p: ConvProblem, target: Target) -> int:
        """Return 128 where tiles of 256 would be fewer than multiprocessors."""
        image = _image(pass_name, p)
        tiles = ceil_div(image.results, rows(p, target)) * ceil_div(p.N * image.pixel_rows * image.pixel_cols, 256)
        return 256 if tiles * p.groups * phases(pass_name, p) >= target.multiprocessors else 128

    return {"TILE_M": same((64, 128), rows), "TILE_N": same((128, 256), columns)}


class _Slots(NamedTuple):
    """What shared memory holds: slots of boxes and of taps, and how many of a column's taps a box serves."""

    boxes: int
    taps: int
    taps_down: int

    @property
    def ahead(self) -> int:
        """How many taps the copies are ahead of the products."""
        return min(self.boxes * self.taps_down, self.taps)


def _slots(box: int, tap: int, taps_down: int) -> _Slots:
    """Return the slots with which copies are furthest ahead."""
    found = [_Slots(n, min(_MOST_TAPS, (SLOT_BYTES - n * box) // tap), taps_down) for n in range(2, _MOST_TAPS + 1)]
    return max(found, key=lambda slots: slots.ahead)


#: So many taps ahead are enough to hide where copies come from.
_AHEAD = 3

#: Instructions that write eight pixels of a row, or find where they lie.
_WRITE = 40


def _tile(pass_name: str, p: ConvProblem, tile_m: int, columns: int) -> dict[str, int] | None:
    return _tile_of(_image(pass_name, p), p.N, depth(p), tile_m, columns)


@functools.lru_cache(maxsize=4096)
def _tile_of(image: _Image, count: int, depth: int, tile_m: int, columns: int) -> dict[str, int] | None:
    """Return the constants of a tile and of its box, that of least work; None: there is none.

    A box serves all taps of a column where pixels below each other see rows that follow each other, and shared memory
    is large enough.
    """
    sizes = [1 << i for i in range(columns.bit_length())]
    column_steps = ceil_div(image.channels, depth) * image.taps[1]
    found = []
    # With a thread's sums in fewer columns of a row, where rows begin takes all registers.
    for tile_q, tile_p in combinations(sizes[4 if tile_m * columns == 128 * 256 else 3 :], sizes):
        images = columns // tile_q // tile_p
        if not images:
            continue
        for taps_down in {1, image.taps[0] if image.stride[0] == 1 else 1}:
            rows = tile_p + (taps_down - 1) * image.dilation[0]
            spans = (tile_q - 1) * image.stride[1] + 1, (rows - 1) * image.stride[0] + 1
            box, tap = rows * images * tile_q * ROW, tile_m * ROW
            slots = _slots(box, tap, taps_down)
            if max(*spans, images) > MOST_SPANNED or slots.ahead < _AHEAD:
                continue
            tiles = ceil_div(image.pixel_rows, tile_p) * ceil_div(image.pixel_cols, tile_q) * ceil_div(count, images)
            copied = box * image.taps[0] // taps_down + tap * image.taps[0]
            products = image.taps[0] * columns * tile_m // PRODUCT_SUMS
            written = _WRITE * (columns // tile_q) * (2 + tile_q // 8) * tile_m // 128
            tile = {
                "TILE_P": tile_p, "TILE_Q": tile_q, "TILE_IMAGES": images, "BOX_ROWS": rows, "TAPS_DOWN": taps_down,
                "BOXES": slots.boxes, "TAPS": slots.taps,
            }  # fmt: skip
            cost = tiles * (column_steps * max(products, copied // L2_BYTES) + written)
            found.append((cost, tiles * copied, -tile_q, tile))
    return min(found, key=lambda each: each[:3])[3] if found else None


def _constants(pass_name: str) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for what follows from the tunables."""

    def rule(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        image, is_long = _image(pass_name, p), _is_long(pass_name, p)
        # Registers hold no totals beside all sums of 128 x 256.
        columns = 128 if is_long and t["TILE_M"] == 128 else t["TILE_N"]
        step = 1 if pass_name == "forward" else p.stride_w
        width, aligned = (p.Q, alignment.y) if pass_name == "forward" else (p.W, alignment.x)
        in_place = (
            is_in_place(p, alignment.x, p.C)
            if pass_name == "forward"
            else p.saved is None and is_in_place(p, alignment.y, p.K)
        )
        tile = _tile(pass_name, p, t["TILE_M"], columns) or dict.fromkeys(_TILE, 1)
        return {
            **tile,
            "TILE_N": columns,
            "THREADS": THREADS,
            "DEPTH": depth(p),
            "FACTOR_BITS": 16 if element(p) == 2 else 32,
            "K_STEPS": ceil_div(min(image.channels, depth(p)) * element(p), _DEEP),
            "RUN_STEPS": _run(p),
            "LONG_SUMS": int(is_long),
            "STRIDE_H": image.stride[0],
            "STRIDE_W": image.stride[1],
            "PIXEL_STEP": step,
            "IN_PLACE": int(in_place),
            "PIXELS_ASIDE": _aside(p, width if step == 1 else 1, aligned, tile["TILE_Q"]),
            "CHANNELS_ASIDE": channels_aside(p, image.results, aligned),
            "ONE_TAP": 1,
        }

    return rule


def _aside(p: ConvProblem, width: int, aligned: int, tile_q: int) -> int:
    """Return how many pixels are stored at once: rows of 16-bit ones are exchanged for whole sectors."""
    if p.layout == "nhwc":
        return 1
    fitting = (4, 2) if element(p) == 2 and tile_q >= 16 else (2,)
    return next((n for n in fitting if width % n == 0 and aligned >= n * DTYPES[p.dtype]), 1)


_TILE = ("TILE_P", "TILE_Q", "TILE_IMAGES", "BOX_ROWS", "TAPS_DOWN", "BOXES", "TAPS")


# -- the launches ----------------------------------------------------------------------------------------------------
def _pixel_bytes(pass_name: str, p: ConvProblem) -> int:
    """Return the bytes of a pixel's channels of one group in the staged image: whole units of 16."""
    return ceil_div(_image(pass_name, p).channels * element(p), 16) * 16


def _row_tiles(pass_name: str, p: ConvProblem, t: Constants) -> int:
    return ceil_div(_image(pass_name, p).results, t["TILE_M"])


def _packed_rows(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the rows of 128 bytes of the packed filter."""
    tiles = phases(pass_name, p) * p.groups * _row_tiles(pass_name, p, t)
    return tiles * _taps(pass_name, p) * t["TILE_M"]


def _scratch(pass_name: str) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for the words of scratch memory: the staged image, and the packed filter."""

    def rule(p: ConvProblem, t: Constants) -> int:
        image = _image(pass_name, p)
        staged = 0 if t["IN_PLACE"] else p.N * image.rows * image.cols * p.groups * _pixel_bytes(pass_name, p)
        return (staged + _packed_rows(pass_name, p, t) * ROW) // 4

    return rule


def _stage_grid(pass_name: str) -> Callable[[ConvProblem, Constants], tuple[int, ...]]:
    """Return a block for each chunk of channels of some pixels."""

    def rule(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        image = _image(pass_name, p)
        chunks = ceil_div(image.channels, t["DEPTH"]) * p.groups
        return (p.N * ceil_div(image.rows * image.cols, STAGED_PIXELS) * chunks,)

    return rule


def _pack_grid(pass_name: str) -> Callable[[ConvProblem, Constants], tuple[int, ...]]:
    """Return a thread for each row of the packed filter."""
    return lambda p, t: (ceil_div(_packed_rows(pass_name, p, t), t["THREADS"]),)


def _tiles(pass_name: str, p: ConvProblem, t: Constants) -> int:
    image = _image(pass_name, p)
    pixels = (
        ceil_div(p.N, t["TILE_IMAGES"])
        * ceil_div(image.pixel_rows, t["TILE_P"])
        * ceil_div(image.pixel_cols, t["TILE_Q"])
    )
    return _row_tiles(pass_name, p, t) * pixels * p.groups * phases(pass_name, p)


def _shared_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the bytes of all slots, of their barriers, and for an alignment."""
    box = t["BOX_ROWS"] * t["TILE_IMAGES"] * t["TILE_Q"] * ROW
    slots = t["BOXES"] * box + t["TAPS"] * t["TILE_M"] * ROW
    return slots + 16 * (t["BOXES"] + t["TAPS"]) + PATTERN


def _map(pass_name: str) -> Callable[[ConvProblem, Constants], tuple[TensorMap, ...]]:
    """Return the rule for the tensor map of the image: channels, groups, columns, images, rows."""
    in_place = "x" if pass_name == "forward" else "dy"

    def rule(p: ConvProblem, t: Constants) -> tuple[TensorMap, ...]:
        image, group = _image(pass_name, p), _pixel_bytes(pass_name, p)
        pixel = p.groups * group
        across, down = image.stride[1], image.stride[0]
        return (
            TensorMap(
                in_place if t["IN_PLACE"] else "scratch",
                p.dtype,
                sizes=(image.channels, p.groups, image.cols, p.N, image.rows),
                strides=(group, pixel, image.rows * image.cols * pixel, image.cols * pixel),
                box=(t["DEPTH"], 1, (t["TILE_Q"] - 1) * across + 1, t["TILE_IMAGES"], (t["BOX_ROWS"] - 1) * down + 1),
                steps=(1, 1, across, 1, down),
            ),
        )

    return rule


def _launches(pass_name: str, image: tuple[str, ...], operands: tuple[str, ...]) -> tuple[Launch, ...]:
    threads = block("THREADS")
    return (
        Launch("stage", (*image, "scratch"), _stage_grid(pass_name), threads, when=lambda p, t: not t["IN_PLACE"]),
        Launch("pack", ("w", "scratch"), _pack_grid(pass_name), threads, lambda p, t: (_taps(pass_name, p),)),
        Launch(pass_name, operands, lambda p, t: (min(_tiles(pass_name, p, t), t["multiprocessors"]),), threads,
               lambda p, t: (_taps(pass_name, p), _tiles(pass_name, p, t)), _shared_bytes, maps=_map(pass_name)),
    )  # fmt: skip


# -- kernel_grad -----------------------------------------------------------------------------------------------------
def _turned(p: ConvProblem) -> ModuleType:
    """Return the module that knows how x and g are turned and which boxes are multiplied."""
    return hopper_planes if p.dtype == "float32" else hopper_pixels


def _grad_constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
    return {**_turned(p).constants(p, alignment), "THREADS": THREADS}


def _part_items(p: ConvProblem, t: Constants) -> int:
    """Return what blocks compute of a part: filters, a chunk of channels, and taps."""
    return int(p.groups * ceil_div(p.K // p.groups, t["TILE_M"]) * _turned(p).tap_items(p, t))


def _part_boxes(p: ConvProblem, t: Constants) -> int:
    """Return the boxes of a part: no more than its bound has room for, and few enough for all multiprocessors."""
    enough = min(ceil_div(t["multiprocessors"], _part_items(p, t)), most_slices(p))
    return int(_turned(p).part_boxes(p, max(1, ceil_div(_turned(p).boxes(p, t), enough))))


def _parts(p: ConvProblem, t: Constants) -> int:
    return ceil_div(_turned(p).boxes(p, t), _part_boxes(p, t))


def _items(p: ConvProblem, t: Constants) -> int:
    return _parts(p, t) * _part_items(p, t)


def _grad_scratch(p: ConvProblem, t: Constants) -> int:
    turned = _turned(p)
    parts, biases = _parts(p, t) * math.prod(p.w_shape), p.K * turned.runs(p) * p.bias
    return int(turned.words(p, t, "x") + turned.words(p, t, "g") + parts + biases)


_GRAD_LAUNCHES = (
    Launch("stage_x", ("x", "scratch"), lambda p, t: (_turned(p).stage_blocks(p, "x"),), block("THREADS"),
           when=lambda p, t: not t["X_IN_PLACE"]),
    Launch("stage_g", ("dy", "saved", "scratch"), lambda p, t: (_turned(p).stage_blocks(p, "g"),), block("THREADS"),
           lambda p, t: (int(p.bias), _parts(p, t)), when=lambda p, t: p.bias or not t["G_IN_PLACE"]),
    Launch("kernel_grad", ("x", "dy", "scratch"), lambda p, t: (min(_items(p, t), t["multiprocessors"]),),
           block("THREADS"), lambda p, t: (_items(p, t), _part_boxes(p, t)),
           lambda p, t: t["BOXES"] * (_turned(p).slot_bytes(t) + 16) + PATTERN,
           maps=lambda p, t: _turned(p).maps(p, t)),
    Launch("add_parts", ("scratch", "dy", "saved", "x", "dw"),
           lambda p, t: (ceil_div(math.prod(p.w_shape), t["THREADS"]),), block("THREADS"),
           lambda p, t: (_parts(p, t),)),
    Launch("add_biases", ("scratch", "db"), lambda p, t: (ceil_div(p.K, 32),), lambda p, t: (32, 32),
           lambda p, t: (_parts(p, t), _turned(p).runs(p)), when=lambda p, t: p.bias),
)  # fmt: skip


# -- the problems ----------------------------------------------------------------------------------------------------
def _exact_factors(pass_name: str) -> Requirement:
    """Return the requirement that factors are 16-bit numbers as they are, or may be rounded to TF32."""

    def requirement(p: ConvProblem) -> str | None:
        """It multiplies 16-bit numbers and TF32 alone."""
        if p.dtype == "float32" and not p.is_tf32:
            return "float32 factors may not be rounded; it multiplies them as TF32 (precision='tf32'), or 16-bit types"
        if pass_name != "forward" and element(p) == 2 and p.saved is not None and p.activation not in EXACT_GRADS:
            return f"g = dy * phi' of {p.activation} would be rounded to {p.dtype}; it multiplies it as it is"
        return None

    return requirement


def _sum_within_bound(pass_name: str) -> Requirement:
    """Return the requirement that a sum may be cut as often as it is."""

    def requirement(p: ConvProblem) -> str | None:
        """It sums a few products of many channels at once."""
        image = _image(pass_name, p)
        taps = math.prod(image.taps)
        n = image.channels * taps
        passes = ceil_div(image.channels * element(p), _DEEP) * taps
        runs = ceil_div(_taps(pass_name, p) * depth(p), _run(p))
        cuts = CUTS * min(passes, _run(p) * element(p) // _DEEP) + (runs if runs > 1 else 0)
        most = most_round_offs(n)
        if cuts <= most:
            return None
        return (
            f"a sum of {n:,} products passes {passes:,} products of matrices, each of which may cut it twice; its "
            f"bound has {int(most):,} round-offs: it takes more channels for so many taps"
        )

    return requirement


def _boxes_exist(pass_name: str) -> Requirement:
    """Return the requirement that a tensor map can tell what a tile sees."""

    @functools.lru_cache(maxsize=256)
    def requirement(p: ConvProblem) -> str | None:
        """Its tiles see boxes of the image."""
        stride = _image(pass_name, p).stride
        if max(stride) > MOST_STEP:
            return f"stride is {stride[0]}x{stride[1]}; a tensor map takes each {MOST_STEP}th pixel at most"
        image = _image(pass_name, p)
        for rows, columns in combinations((64, 128), (128, 256)):
            if _tile(pass_name, p, rows, columns) is None:
                return f"no tile of {columns} pixels sees a box of {MOST_SPANNED} x {MOST_SPANNED} pixels: {image}"
        return None

    return requirement


def _grad_boxes_exist(p: ConvProblem) -> str | None:
    """Its parts are boxes of pixels."""
    sentence: str | None = _turned(p).no_boxes(p)
    return sentence


def _grad_sum_within_bound(p: ConvProblem) -> str | None:
    """It sums many pixels of a row at once, in parts that scratch memory holds."""
    sentence: str | None = _turned(p).too_many_cuts(p)
    if sentence is not None:
        return sentence
    t = {**_grad_constants(p, ALIGNED, {}), "TILE_M": 128, "multiprocessors": 1}
    if (parts := _parts(p, t)) > most_slices(p):
        return f"its sums have {parts} parts; scratch memory holds {most_slices(p)} (CONVBACKPROP_WORKSPACE_LIMIT)"
    return None


def _entry(pass_name: str, *launches: Launch, **more: Any) -> Variant:
    of_boxes: tuple[Requirement, ...] = (_boxes_exist(pass_name), _sum_within_bound(pass_name))
    if pass_name == "kernel_grad":
        of_boxes = (_grad_boxes_exist, _grad_sum_within_bound)
    return Variant(
        pass_name,
        "hopper",
        launches=launches,
        layouts=LAYOUTS,
        requires=(not_float64, _exact_factors(pass_name), *requires(pass_name), *of_boxes),
        architectures=("sm_90a",),
        auto_on=("cuda",),
        unproven=True,
        auto_not=unseen,
        **more,
    )  # fmt: skip


ENTRIES = (
    _entry(
        "forward",
        *_launches("forward", ("x",), ("x", "w", "scratch", "scale", "b", "residual", "y")),
        PACK_MASK,
        tunables=_tunables("forward"),
        specialise=_constants("forward"),
        scratch=_scratch("forward"),
    ),
    _entry(
        "input_grad",
        *_launches("input_grad", ("dy", "saved"), ("dy", "saved", "w", "b", "scratch", "dx")),
        tunables=_tunables("input_grad"),
        specialise=_constants("input_grad"),
        scratch=_scratch("input_grad"),
    ),
    _entry(
        "kernel_grad",
        *_GRAD_LAUNCHES,
        tunables={"TILE_M": same((128,), 128)},
        specialise=_grad_constants,
        scratch=_grad_scratch,
    ),
)
