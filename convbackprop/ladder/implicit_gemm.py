"""Matrix products (the .cu files named implicit_gemm): a block computes a tile of one."""

from __future__ import annotations

import math
from collections.abc import Callable

from convbackprop.devices.cpu_level import cpu_vector_bytes
from convbackprop.ladder.launches import PACK_MASK, TOTAL, block, total
from convbackprop.ladder.requirements import LARGEST, unit_dilation, unit_stride
from convbackprop.ladder.scratch import most_slices, taps
from convbackprop.ladder.variant import (
    WIDEST,
    Alignment,
    Constants,
    Geometry,
    Launch,
    Requirement,
    Tunable,
    Variant,
    ceil_div,
)
from convbackprop.problem import DTYPES, ConvProblem

#: Additions before a sum starts anew: of n terms none passes through more than these and one for each run. Of 20,800,
#: the most in layers.py's forward passes, that is 256 + 82, where the bound allows 8 * sqrt(n) = 1,153.
_RUN = 256

#: An H200's multiprocessors, and the CUDA threads that the registers of one hold.
_MULTIPROCESSORS, _RESIDENT_THREADS = 132, 384

#: Rows of fewer columns leave most of a CPU's vector registers empty in a strip: measured, one and a half registers.
_NARROW = 24


def _taps_of_phase(p: ConvProblem) -> int:
    """Return how many taps at most meet an input pixel."""
    return math.prod(
        ceil_div(taps, stride // math.gcd(stride, dilation))
        for taps, stride, dilation in zip((p.R, p.S), p.stride, p.dilation, strict=True)
    )


def _phases(pass_name: str, p: ConvProblem) -> int:
    """Return into how many phases the pixels go: by their row and column modulo the stride."""
    return min(p.stride_h, p.H) * min(p.stride_w, p.W) if pass_name == "input_grad" else 1


def _product(pass_name: str, p: ConvProblem) -> tuple[int, int, int, int]:
    """Return the rows, columns and steps of the matrix product of one group, and how many such products there are."""
    channels, filters = p.C // p.groups, p.K // p.groups
    if pass_name == "forward":
        return filters, p.N * p.P * p.Q, channels * p.R * p.S, p.groups
    if pass_name == "input_grad":
        pixels = p.N * ceil_div(p.H, p.stride_h) * ceil_div(p.W, p.stride_w)
        return channels, pixels, filters * _taps_of_phase(p), p.groups * _phases(pass_name, p)
    return filters, channels * p.R * p.S, p.N * p.P * p.Q, p.groups


def _tile(pass_name: str) -> Callable[[ConvProblem], int]:
    """Return the rule for TILE_M on a GPU: 128 where that keeps all multiprocessors as busy as 64 would.

    A tile of 128 rows stages its columns half as often; one of 64 leaves fewer rows and multiprocessors idle, and of
    float64 it is what fits in the shared memory of every GPU.
    """

    def rows(p: ConvProblem) -> int:
        if p.accumulator_bytes == 8:
            return 64
        m, n, depth, products = _product(pass_name, p)

        def time(tile: int) -> float:
            tiles = ceil_div(m, tile) * ceil_div(n, 64) * products
            splits = max(1, ceil_div(depth, 8 * _RUN)) if pass_name == "kernel_grad" else 1
            return ceil_div(tiles * splits, _MULTIPROCESSORS) / splits * tile * (1.0 if tile == 128 else 1.15)

        return min((64, 128), key=time)

    return rows


def _cpu_rows(pass_name: str) -> Callable[[ConvProblem], int]:
    """Return the rule for TILE_M on a CPU: the larger tile, unless it computes more rows that are not there."""
    return lambda p: min((128, 64), key=lambda tile: ceil_div(_product(pass_name, p)[0], tile) * tile)


def _cpu_sums(many: int, few: int) -> Callable[[ConvProblem], int]:
    """Return the rule for a CPU: before AVX-512 it has few vector registers."""
    return lambda p: many if cpu_vector_bytes() == 64 else few


def _cpu_pixels(p: ConvProblem) -> int:
    """Return DEPTH of kernel_grad on a CPU: eight vectors of pixels, or four where there are no more."""
    most = 512 // p.accumulator_bytes
    return max(64, most // 2) if most // 2 >= p.N * p.P * p.Q else most


#: A GPU's registers hold half as many sums of float64.
_REG_M = Tunable(legal=(4, 8), cuda=lambda p: 32 // p.accumulator_bytes, cpu=_cpu_sums(8, 4))
_REG_N = Tunable(legal=(2, 4, 8), cuda=8, cpu=_cpu_sums(4, 2))


def _depth(pass_name: str) -> Tunable:
    """Return the rule for DEPTH: what comes with a slice is shared by 16 steps, if registers hold what they stage."""

    def steps(p: ConvProblem) -> int:
        fits = p.accumulator_bytes == 4 and (pass_name == "forward" or _tile(pass_name)(p) == 128)
        return 16 if fits else 8

    return Tunable(legal=(8, 16, 32, 64), cuda=steps, cpu=lambda p: 256 // p.accumulator_bytes)


#: TILE_M x TILE_N: what a block computes. REG_M x REG_N: a thread's sums, REG_N of them being vectors of a CPU.
#: DEPTH: steps of the sum that are staged at once. VECTOR_BYTES: see coalesced.py.
_FILTERS = {
    "TILE_N": Tunable(legal=(64, 128), cuda=64, cpu=64),
    "REG_M": _REG_M,
    "REG_N": _REG_N,
    "VECTOR_BYTES": Tunable(legal=(1, 16, 32, 64), cuda=1, cpu=lambda p: cpu_vector_bytes()),
}
TUNABLES = {
    "forward": {
        "TILE_M": Tunable(legal=(64, 128), cuda=_tile("forward"), cpu=_cpu_rows("forward")),
        "DEPTH": _depth("forward"),
        **_FILTERS,
    },
    "input_grad": {
        "TILE_M": Tunable(legal=(64, 128), cuda=_tile("input_grad"), cpu=_cpu_rows("input_grad")),
        "DEPTH": _depth("input_grad"),
        **_FILTERS,
    },
    "kernel_grad": {
        "TILE_M": Tunable(legal=(32, 64, 128), cuda=_tile("kernel_grad"), cpu=64),
        "TILE_N": Tunable(legal=(32, 64), cuda=64, cpu=32),
        "REG_M": _REG_M,
        "REG_N": _REG_N,
        "DEPTH": Tunable(legal=(8, 16, 64, 128, 256), cuda=lambda p: 64 // p.accumulator_bytes, cpu=_cpu_pixels),
        "VECTOR_BYTES": Tunable(legal=(1, 16, 32, 64), cuda=1, cpu=lambda p: cpu_vector_bytes()),
    },
}


def _pointwise(p: ConvProblem) -> bool:
    """Return whether a pixel sees itself and nothing else, in planes of one size."""
    return p.R == p.S == 1 and unit_stride(p) is None and not any(map(sum, p.padding))


def _pixels_at_once(p: ConvProblem, plane: int, alignment: int) -> int:
    """Return how many pixels a GPU's thread reads at once: 16 bytes of accumulators, if all lie in one plane."""
    most = WIDEST // p.accumulator_bytes
    return most if plane % most == 0 and alignment >= most * DTYPES[p.dtype] else 1


def _one_tap(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return whether planes are so many that what is staged together is planes at one tap, and nothing is missing."""
    channels, filters = p.C // p.groups, p.K // p.groups
    if pass_name == "kernel_grad":
        return int(channels % t["TILE_N"] == 0 and filters % t["TILE_M"] == 0)
    return int((channels if pass_name == "forward" else filters) % t["DEPTH"] == 0)


def constants(pass_name: str) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for what follows from the tunables."""

    def rule(p: ConvProblem, alignment: Alignment, t: Constants) -> dict[str, int]:
        vector = max(1, t["VECTOR_BYTES"] // p.accumulator_bytes)
        widths = {"ONE_TAP": _one_tap(pass_name, p, t)}
        if pass_name != "input_grad":
            widths["X_PIXELS"] = _pixels_at_once(p, p.H * p.W, alignment.x) if vector == 1 and _pointwise(p) else 1
        if pass_name != "forward":
            is_one = vector == 1 and (_pointwise(p) or pass_name == "kernel_grad")
            widths["G_PIXELS"] = _pixels_at_once(p, p.P * p.Q, alignment.y) if is_one else 1
        if pass_name == "kernel_grad":
            # Two matrices are staged element by element, which wait in registers.
            threads = _threads(p, t, t["REG_N"], 256)
            each = t["DEPTH"] / threads["THREADS"]  # a thread has one step, of the fewer rows or taps at least one
            lanes = int(max(1, 4 * each, min(vector, t["DEPTH"], each * min(t["TILE_M"], t["TILE_N"]))))
            return {"RUN_STEPS": _RUN * lanes, "LANES": lanes, **threads, **widths}
        lanes = min(vector, t["TILE_N"] // t["REG_N"])
        return {"RUN_STEPS": _RUN, "LANES": lanes, **_threads(p, t, t["REG_N"] * lanes, _RESIDENT_THREADS), **widths}

    return rule


def _threads(p: ConvProblem, t: Constants, columns: int, resident: int) -> dict[str, int]:
    """Return THREADS, and how many blocks' registers a multiprocessor should hold; a double takes two."""
    threads = t["TILE_M"] // t["REG_M"] * (t["TILE_N"] // columns)
    registers = p.accumulator_bytes // 4
    return {"THREADS": threads, "RESIDENT": max(1, resident // registers // threads)}


def _slices(pass_name: str, p: ConvProblem, t: Constants) -> int:
    return ceil_div(_product(pass_name, p)[2], t["DEPTH"])


def slices(pass_name: str) -> Geometry:
    """Return the rule for the slices of a sum."""
    return lambda p, t: (_slices(pass_name, p, t),)


def _rows_packed(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the elements of the packed filter."""
    m, _, _, products = _product(pass_name, p)
    return products * ceil_div(m, t["TILE_M"]) * t["TILE_M"] * _slices(pass_name, p, t) * t["DEPTH"]


def packed_elements(pass_name: str) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for the scratch memory, in accumulators: the table of steps (16 bytes each), then the filter."""

    def rule(p: ConvProblem, t: Constants) -> int:
        steps = _phases(pass_name, p) * _slices(pass_name, p, t) * t["DEPTH"]
        return steps * 16 // p.accumulator_bytes + _rows_packed(pass_name, p, t)

    return rule


def pack_grid(pass_name: str) -> Geometry:
    """Return a thread for each row of each slice of the packed filter."""
    return lambda p, t: (ceil_div(_rows_packed(pass_name, p, t) // t["DEPTH"], t["THREADS"]),)


def grid(pass_name: str) -> Geometry:
    """Return the tiles, those that share their pixels side by side."""

    def rule(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        m, n, _, products = _product(pass_name, p)
        return (ceil_div(m, t["TILE_M"]) * ceil_div(n, t["TILE_N"]) * products,)

    return rule


def shared_bytes(pass_name: str) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for two slices, and the totals of sums of more than a run."""

    def rule(p: ConvProblem, t: Constants) -> int:
        staged = 2 * t["DEPTH"] * (t["TILE_M"] + t["TILE_N"])
        totals = t["TILE_M"] * t["TILE_N"] if _product(pass_name, p)[2] > t["RUN_STEPS"] else 0
        return (staged + totals) * p.accumulator_bytes

    return rule


def kernel_grad_splits(p: ConvProblem, t: Constants) -> int:
    """Return among how many blocks the pixels are split: enough for two rounds of a GPU, none for too little work."""
    m, n, _, products = _product("kernel_grad", p)
    tiles = ceil_div(m, t["TILE_M"]) * ceil_div(n, t["TILE_N"]) * products
    slices = _slices("kernel_grad", p, t)
    enough = ceil_div(2 * _MULTIPROCESSORS * _RESIDENT_THREADS // t["THREADS"], tiles)
    run = t["RUN_STEPS"] // t["DEPTH"]
    splits = max(1, min(enough, ceil_div(slices, run), most_slices(p)))
    return ceil_div(slices, ceil_div(slices, splits)) if slices else 1


def kernel_grad_grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return the tiles, and the splits."""
    m, n, _, products = _product("kernel_grad", p)
    return ceil_div(m, t["TILE_M"]) * ceil_div(n, t["TILE_N"]) * products, kernel_grad_splits(p, t)


def kernel_grad_integers(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    """Return whether a bias is wanted, and the slices of a split."""
    return int(p.bias), ceil_div(_slices("kernel_grad", p, t), kernel_grad_splits(p, t))


def kernel_grad_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the shared memory of two slices, a piece longer in each step, and of the totals."""
    lane = t["LANES"] * p.accumulator_bytes
    piece = max(lane, 16)
    staged = 2 * (t["DEPTH"] // t["LANES"]) * ((t["TILE_M"] + t["TILE_N"]) * lane + 2 * piece)
    per_split = ceil_div(_slices("kernel_grad", p, t), kernel_grad_splits(p, t)) * t["DEPTH"]
    return staged + (t["TILE_M"] * t["TILE_N"] * lane if per_split > t["RUN_STEPS"] else 0)


def several_filters(p: ConvProblem) -> str | None:
    """It works on several filters and channels at once."""
    channels, filters = p.C // p.groups, p.K // p.groups
    if channels == filters == 1:
        return "a group has one channel and one filter; it works on tiles of several of them"
    return None


def requires(pass_name: str) -> tuple[Requirement, ...]:
    """Return the requirements of a pass."""

    def countable(p: ConvProblem) -> str | None:
        """It counts pixels, the elements of neighbouring images and those of the packed filter in 32 bits."""
        height, width = p.H + sum(p.padding[0]), p.W + sum(p.padding[1])
        images = 2 + 16 // min(p.P * p.Q, p.H * p.W)  # that 16 neighbouring pixels may lie in
        m, _, depth, products = _product(pass_name, p)
        counts = {
            "pixels": p.N * max(p.H * p.W, p.P * p.Q),
            "elements of neighbouring images": images * max(p.C * height * width, p.K * p.P * p.Q),
            "elements of the packed filter": products * m * depth if pass_name != "kernel_grad" else 0,
        }
        name, largest = max(counts.items(), key=lambda item: item[1])
        return f"there are {largest:,} {name}; it counts up to {LARGEST:,}" if largest > LARGEST else None

    return several_filters, countable


def enough_rows(pass_name: str) -> Callable[[ConvProblem, str], str | None]:
    """Return the rule of "auto": few rows are left to lower rungs, which waste nothing on a tile.

    With unit strides these are strips of columns. They read all channels anew for each row; but on a CPU, whose caches
    hold what is read again, they are the faster ones for longer: as long as a row of the image fills its registers.
    """

    def rule(p: ConvProblem, device_kind: str) -> str | None:
        if unit_stride(p) or unit_dilation(p):
            # A GPU's next rung is tiled, a CPU's naive: a tile that is nearly empty beats its input_grad.
            enough = 8 if device_kind == "cuda" else 1 if pass_name == "input_grad" else 4
        elif device_kind == "cuda":
            enough = 16
        else:
            enough = 32 if pass_name == "kernel_grad" or p.R * p.S == 1 else 64
            columns = p.W if pass_name == "input_grad" else p.Q
            if columns < _NARROW:
                enough = min(enough, columns)
        rows = _product(pass_name, p)[0]
        if rows >= enough:
            return None
        what = "channel" if pass_name == "input_grad" else "filter"
        return f"a group has {rows} {what}{'s' * (rows > 1)}; it is the faster one from {enough} on"

    return rule


ENTRIES = (
    Variant(
        "forward",
        "implicit_gemm",
        launches=(
            Launch("pack", ("w", "scratch"), pack_grid("forward"), block("THREADS"), integers=slices("forward")),
            Launch("forward", ("x", "scratch", "b", "y"), grid("forward"), block("THREADS"),
                   integers=slices("forward"), shared_bytes=shared_bytes("forward")),
            PACK_MASK,
        ),
        tunables=TUNABLES["forward"],
        specialise=constants("forward"),
        scratch=packed_elements("forward"),
        requires=requires("forward"),
        auto_not=enough_rows("forward"),
    ),
    Variant(
        "input_grad",
        "implicit_gemm",
        launches=(
            Launch("pack", ("w", "scratch"), pack_grid("input_grad"), block("THREADS"),
                   integers=slices("input_grad")),
            Launch("input_grad", ("dy", "saved", "scratch", "dx"), grid("input_grad"), block("THREADS"),
                   integers=slices("input_grad"), shared_bytes=shared_bytes("input_grad")),
        ),
        tunables=TUNABLES["input_grad"],
        specialise=constants("input_grad"),
        scratch=packed_elements("input_grad"),
        requires=requires("input_grad"),
        auto_not=enough_rows("input_grad"),
    ),
    Variant(
        "kernel_grad",
        "implicit_gemm",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "scratch"), kernel_grad_grid, block("THREADS"),
                   integers=kernel_grad_integers, shared_bytes=kernel_grad_bytes),
            total(kernel_grad_splits),
        ),
        tunables={**TUNABLES["kernel_grad"], **TOTAL},
        specialise=constants("kernel_grad"),
        scratch=lambda p, t: kernel_grad_splits(p, t) * taps(p),
        requires=requires("kernel_grad"),
        auto_not=enough_rows("kernel_grad"),
    ),
)  # fmt: skip
