"""Matrix products on tensor cores (the .cu files named tensor_core): implicit_gemm's, 16 x 8 sums of a warp at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convbackprop.devices.gpus import Target
from convbackprop.ladder.banded import EXACT_GRADS, not_float64
from convbackprop.ladder.implicit_gemm import (
    grid,
    kernel_grad_grid,
    kernel_grad_integers,
    kernel_grad_splits,
    one_tap,
    pack_grid,
    phases,
    product,
    requires,
    rows_packed,
    same,
    slices,
    slices_of,
    widths,
)
from convbackprop.ladder.launches import PACK_MASK, TOTAL, block, total
from convbackprop.ladder.pipelined import unseen
from convbackprop.ladder.scratch import taps
from convbackprop.ladder.variant import Alignment, Constants, Launch, Requirement, Tunable, Variant, ceil_div
from convbackprop.problem import RESULTS, ConvProblem

#: Words of a row's part of a slice, and those from one row to the next.
_WORDS, _PITCH = 16, 20

#: RUN_STEPS of float32's three products and of others: of 64 steps each sum passes 24 of them, and each may be cut.
_RUN, _RUN_OF_16_BITS = 64, 256

#: Products of a float32 sum, of which TF32's parts leave out up to 8 round-offs of its bound, and cut sums the rest.
_LEAST_PRODUCTS = 32


# -- the factors -----------------------------------------------------------------------------------------------------
def _parts(pass_name: str, p: ConvProblem) -> tuple[int, int]:
    """Return of how many numbers an element of the filter or of x is the sum, and one of x or g (LEFT, RIGHT_PARTS).

    2 of float32; and of g in 16 bits, unless that is dy or 0, a 16-bit number.
    """
    if p.dtype == "float32":
        return 2, 2
    rounded = p.saved is not None and p.activation not in EXACT_GRADS
    return {"forward": (1, 1), "input_grad": (1, 1 + rounded), "kernel_grad": (1 + rounded, 1)}[pass_name]


def _factors(pass_name: str, p: ConvProblem) -> dict[str, int]:
    """Return the constants of the factors, and how many numbers of each row a slice has."""
    left, right = _parts(pass_name, p)
    bits = 16 if (left, right) == (1, 1) else 32
    return {
        "LEFT_PARTS": left,
        "RIGHT_PARTS": right,
        "FACTOR_BITS": bits,
        "DEPTH": _WORDS * 32 // bits,
        "RUN_STEPS": _RUN_OF_16_BITS if bits == 16 else _RUN,
    }


# -- the tile --------------------------------------------------------------------------------------------------------
def _tunables(pass_name: str) -> dict[str, Tunable]:
    """Return the tunables of a pass.

    TILE_M x TILE_N: what a block computes. WARP_M: rows of a warp, at 32 columns.
    """

    def rows(p: ConvProblem, target: Target) -> int:
        """Return 64 where 128 would leave half of them idle."""
        return 64 if product(pass_name, p)[0] <= 64 else 128

    return {
        "TILE_M": same((64, 128), rows),
        "TILE_N": same((64, 128), 128),
        "WARP_M": same((32, 64), lambda p, target: rows(p, target) // 2),
    }


#: Columns of a warp, and warps that a multiprocessor should hold: as many as may have all registers.
_WARP_N, _WARPS = 32, 8


def _constants(pass_name: str) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    """Return the rule for what follows from the tunables."""

    def rule(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        factors = _factors(pass_name, p)
        threads = 32 * (t["TILE_M"] // t["WARP_M"]) * (t["TILE_N"] // _WARP_N)
        return {
            **factors,
            "WARP_N": _WARP_N,
            "THREADS": threads,
            "RESIDENT": max(1, 32 * _WARPS // threads),
            "ONE_TAP": one_tap(pass_name, p, {**t, **factors}),
            **widths(pass_name, p, alignment, 4 if pass_name == "kernel_grad" else 2),
        }

    return rule


# -- the launches ----------------------------------------------------------------------------------------------------
def _packed_elements(pass_name: str) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for the words of scratch memory: the table of offsets (4 each), then the filter."""

    def rule(p: ConvProblem, t: Constants) -> int:
        offsets = phases(pass_name, p) * slices_of(pass_name, p, t) * t["DEPTH"]
        return offsets * 4 + rows_packed(pass_name, p, t) // t["DEPTH"] * _WORDS * t["LEFT_PARTS"]

    return rule


def _shared_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the bytes of two slices."""
    return 2 * 4 * (t["LEFT_PARTS"] * t["TILE_M"] * _WORDS + t["RIGHT_PARTS"] * t["TILE_N"] * _PITCH)


def _kernel_grad_bytes(p: ConvProblem, t: Constants) -> int:
    """Return the bytes of two slices, whose rows are staged alike."""
    return 2 * 4 * _PITCH * (t["LEFT_PARTS"] * t["TILE_M"] + t["RIGHT_PARTS"] * t["TILE_N"])


# -- the entries -----------------------------------------------------------------------------------------------------
def _enough_products(pass_name: str) -> Requirement:
    """Return the requirement that the bound of a float32 sum has room for what three products leave out."""
    result = {"forward": "y", "input_grad": "dx", "kernel_grad": "dw"}[pass_name]

    def requirement(p: ConvProblem) -> str | None:
        """It multiplies float32 as three TF32 products."""
        n = RESULTS[result].reduction_length(p)  # type: ignore[misc]
        if p.dtype != "float32" or n >= _LEAST_PRODUCTS:
            return None
        return f"a float32 sum has {n} products; its three TF32 products are within the bound from {_LEAST_PRODUCTS} on"

    return requirement


def _entry(pass_name: str, *launches: Launch, **more: Any) -> Variant:
    return Variant(
        pass_name,
        "tensor_core",
        launches=launches,
        specialise=_constants(pass_name),
        requires=(*requires(pass_name), not_float64, _enough_products(pass_name)),
        auto_on=("cuda",),
        unproven=True,
        auto_not=unseen,
        **more,
    )


ENTRIES = (
    _entry(
        "forward",
        Launch("pack", ("w", "scratch"), pack_grid("forward"), block("THREADS"), integers=slices("forward")),
        Launch("forward", ("x", "w", "scratch", "b", "y"), grid("forward"), block("THREADS"),
               integers=slices("forward"), shared_bytes=_shared_bytes),
        PACK_MASK,
        tunables=_tunables("forward"),
        scratch=_packed_elements("forward"),
    ),
    _entry(
        "input_grad",
        Launch("pack", ("w", "scratch"), pack_grid("input_grad"), block("THREADS"), integers=slices("input_grad")),
        Launch("input_grad", ("dy", "saved", "w", "b", "scratch", "dx"), grid("input_grad"), block("THREADS"),
               integers=slices("input_grad"), shared_bytes=_shared_bytes),
        tunables=_tunables("input_grad"),
        scratch=_packed_elements("input_grad"),
    ),
    _entry(
        "kernel_grad",
        Launch("kernel_grad", ("dy", "saved", "x", "scratch"), kernel_grad_grid, block("THREADS"),
               integers=kernel_grad_integers, shared_bytes=_kernel_grad_bytes),
        total(kernel_grad_splits),
        tunables={**_tunables("kernel_grad"), **TOTAL},
        scratch=lambda p, t: kernel_grad_splits(p, t) * taps(p),
    ),
)  # fmt: skip
