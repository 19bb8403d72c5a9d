"""How sums of tensor_core's forward and input_grad are split among blocks, where its tiles are few: run_parts.cuh."""

from __future__ import annotations

import math

from convbackprop.ladder.launches import block
from convbackprop.ladder.matrix_product import best_splits, grid, one_tap, product, slices_of
from convbackprop.ladder.variant import Constants, Geometry, Launch, ceil_div
from convbackprop.problem import ConvProblem

#: Words of a row's part of a slice.
WORDS = 16

#: Steps of the runs that sums may be split into, at most; and how much of their bound cut sums may take then: more
#: where one block of channels has more steps already.
_SPLIT_RUN, _CUT_SHARE, _LONG_BLOCK_SHARE = 320, 0.5, 0.6

#: Results of an image, up to which sums are made of such runs that could be one: of 16 images there are half as many
#: tiles as an H200 has multiprocessors. Totals take registers, so that warps of larger images would be smaller.
_FEW_RESULTS = 1 << 17

#: Of 16 x 8 sums: clocks that a multiprocessor takes to issue what a step of them wants, at 8 TF32 or 16 16-bit
#: numbers; how many times as long a block of 8 warps waits for each; and what a block takes besides, to begin and to
#: write. What the profile expects of an H200.
_STEP_CLOCKS, _STEP_WAITS, _BLOCK_CLOCKS = 1.6, 1.5, 3000


def cut_share(n: int, steps: int, run: int, bits: int, products: int) -> float:
    """Return which share of its bound a sum in such runs may be out by.

    What low parts leave out and the additions of runs count, too.

    Parameters
    ----------
    n, steps : int
        The products of the longest sum that the bound knows of, and those of the sum.
    run : int
        Steps of a run.
    bits, products : int
        Of a factor, and how many products of matrices there are for each of the sum's.
    """
    # The first low ones are too small to be cut.
    matrices = products * ceil_div(min(run, steps), 256 // bits) - (products - 1)
    cut = 2 * matrices + 8 * (products == 3) + (steps / run if run < steps else 0)
    return cut / min(n + 3, 8 * math.sqrt(n + 2))


def split_run(pass_name: str, p: ConvProblem, bits: int, products: int, least: int, is_whole: bool) -> int:
    """Return the steps of a run that a sum of several may be split into, 0 if its bound or its tiles forbid it.

    They are whole blocks of channels, all taps of them, so that a block of a split sum stages what it multiplies alone.
    How many there are follows from an image alone, and from no GPU: an order of additions depends on it.

    Parameters
    ----------
    bits, products : int
        Of a factor, and how many products of matrices there are for each of the sum's.
    least : int
        Steps that are too few for a run.
    is_whole : bool
        Whether the sum may as well be one run.
    """
    is_forward = pass_name == "forward"
    if is_whole and (p.K * p.P * p.Q if is_forward else p.C * p.H * p.W) > _FEW_RESULTS:
        return 0
    depth, steps, planes = WORDS * 32 // bits, product(pass_name, p)[2], (p.C if is_forward else p.K) // p.groups
    block = depth * (steps // planes if one_tap(pass_name, p, {"DEPTH": depth}) else 1)
    n = planes * p.R * p.S
    share = _CUT_SHARE if block <= _SPLIT_RUN else _LONG_BLOCK_SHARE
    fitting = (run for run in range(max(1, _SPLIT_RUN // block) * block, 0, -block) if least <= run < steps)
    return next((run for run in fitting if cut_share(n, steps, run, bits, products) <= share), 0)


def image_tiles(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the tiles of images, or of a phase of them, that are staged with a halo."""
    strides = p.stride if pass_name == "input_grad" else (1, 1)
    height, width = (p.H, p.W) if pass_name == "input_grad" else (p.P, p.Q)
    return (
        ceil_div(p.N, t["TILE_IMAGES"])
        * ceil_div(ceil_div(height, strides[0]), t["TILE_P"])
        * ceil_div(ceil_div(width, strides[1]), t["TILE_Q"])
    )


def _tiles(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the tiles of all products: of pixels numbered one after the other, or of images with a halo."""
    if not t["HALO"]:
        return grid(pass_name)(p, t)[0]
    m, _, _, products = product(pass_name, p)
    return ceil_div(m, t["TILE_M"]) * image_tiles(pass_name, p, t) * products


def _runs(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the runs of the longest sums."""
    return ceil_div(slices_of(pass_name, p, t) * t["DEPTH"], t["RUN_STEPS"])


def _elements(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the sums of all runs of all tiles."""
    return _tiles(pass_name, p, t) * _runs(pass_name, p, t) * t["TILE_M"] * t["TILE_N"]


def _splits(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return among how many blocks each sum is split."""
    if not t["MAY_SPLIT"]:
        return 1
    products = t["LEFT_PARTS"] + t["RIGHT_PARTS"] - 1
    steps = t["TILE_M"] * t["TILE_N"] // 128 * products * t["RUN_STEPS"] / (256 // t["FACTOR_BITS"])  # of a run
    waits = _STEP_WAITS * 8 * 32 / t["THREADS"]

    def clocks(blocks: int, rounds: int, block_runs: int) -> float:
        return math.hypot(blocks, waits * rounds) * (block_runs * steps * _STEP_CLOCKS + _BLOCK_CLOCKS)

    tiles, runs, moved = _tiles(pass_name, p, t), _runs(pass_name, p, t), 4 * _elements(pass_name, p, t)
    return best_splits(tiles, runs, moved, t["RESIDENT"], t["multiprocessors"], clocks)[1]


def parts_elements(pass_name: str, p: ConvProblem, t: Constants) -> int:
    """Return the numbers of scratch memory for parts of sums."""
    return _elements(pass_name, p, t) if _splits(pass_name, p, t) > 1 else 0


def split_grid(pass_name: str) -> Geometry:
    """Return the tiles, those that share their pixels side by side, and the splits."""
    return lambda p, t: (_tiles(pass_name, p, t), _splits(pass_name, p, t))


def run_integers(pass_name: str) -> Geometry:
    """Return the rule for the slices and runs of the longest sums, and how many runs a block adds up."""

    def rule(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        runs = _runs(pass_name, p, t)
        return slices_of(pass_name, p, t), runs, ceil_div(runs, _splits(pass_name, p, t))

    return rule


def run_total(pass_name: str, *operands: str) -> Launch:
    """Return the launch that adds up the parts of split sums: a block for each two rows of a lane's."""
    return Launch(f"{pass_name}_total", operands,
                  lambda p, t: (_tiles(pass_name, p, t), t["WARP_M"] // 16), block("THREADS"),
                  integers=lambda p, t: (slices_of(pass_name, p, t), _runs(pass_name, p, t)),
                  when=lambda p, t: _splits(pass_name, p, t) > 1)  # fmt: skip
