"""Large filters of one channel as banded matrices on tensor cores (the .cu files named banded, and band.cuh)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from convbackprop.devices.gpus import Target
from convbackprop.ladder.coalesced import THREADS, lead, one_source, vectors
from convbackprop.ladder.launches import PACK_MASK, block
from convbackprop.ladder.pipelined import grad_bytes, rows_bytes, unseen
from convbackprop.ladder.requirements import countable, tiles_countable, unit_dilation, unit_stride
from convbackprop.ladder.variant import WIDEST, Alignment, Constants, Geometry, Launch, Tunable, Variant, ceil_div
from convbackprop.problem import DTYPES, ConvProblem

#: Rows and columns of a filter. float32's round-offs of smaller ones are not within the bound in every case.
_SMALLEST, _LARGEST = 5, 31

#: What a warp's sums may take of a thread's 255 registers, and its part of a row's left factors.
_SUM_REGISTERS, _LEFT_REGISTERS = 80, 64

#: Activations whose g = dy * phi'(s) is dy or 0, and so a 16-bit number as dy is.
EXACT_GRADS = ("identity", "relu", "relu6")


# -- the factors -----------------------------------------------------------------------------------------------------
def _products(p: ConvProblem, is_forward: bool) -> int:
    """Return PRODUCTS: of two parts of each float32 factor; of g alone, where only the filter is of 16 bits; or one.

    One, too, of float32 factors that may be rounded to TF32.
    """
    if p.dtype == "float32":
        return 1 if p.is_tf32 else 3
    return 1 if is_forward or p.saved is None or p.activation in EXACT_GRADS else 2


def _factor_bits(p: ConvProblem, is_forward: bool) -> int:
    """Return FACTOR_BITS: of an element, or of the word of a TF32 number."""
    return 16 if p.dtype != "float32" and _products(p, is_forward) == 1 else 32


def _result(p: ConvProblem, is_forward: bool) -> tuple[int, int]:
    """Return the rows and columns of the result."""
    return (p.P, p.Q) if is_forward else (p.H, p.W)


def _steps(p: ConvProblem, out_rows: int, is_forward: bool) -> int:
    """Return STEPS of band.cuh."""
    return ceil_div(p.S + 8 // out_rows - 1, 256 // _factor_bits(p, is_forward))


def _groups(p: ConvProblem, out_rows: int) -> int:
    """Return GROUPS of band.cuh."""
    return ceil_div(p.R + out_rows - 1, out_rows)


# -- a warp's tile ---------------------------------------------------------------------------------------------------
def _tunables(is_forward: bool) -> Mapping[str, Tunable]:
    """Return the constants that may be chosen.

    OUT_ROWS: of a group of 8 outputs. TILES: of 16 groups side by side, a warp's. ROWS: of a band. STAGES: rows of a
    ring, all but one under way.
    """

    def out_rows(p: ConvProblem, target: Target) -> int:
        """Return the groups that take the fewest products, of those whose sums fit the registers.

        Not rows of 8 TF32 numbers, whose left factors two lanes each would read from one bank.
        """
        height, width = _result(p, is_forward)

        def products(rows: int) -> int:
            groups = ceil_div(height, rows) * ceil_div(width, _group_cols(rows))
            return groups * (p.R + rows - 1) * _steps(p, rows, is_forward)

        legal = (4, 2) if _factor_bits(p, is_forward) > 16 else (4, 2, 1)
        return min((rows for rows in legal if 4 * _groups(p, rows) <= _SUM_REGISTERS), key=products)

    def tiles(p: ConvProblem, target: Target) -> int:
        """Return as many as the registers hold and the image is wide."""
        rows = out_rows(p, target)
        left = 4 * _steps(p, rows, is_forward) * min(2, _products(p, is_forward))
        by_registers = min(_SUM_REGISTERS // (4 * _groups(p, rows)), _LEFT_REGISTERS // left)
        most = min(by_registers, ceil_div(_result(p, is_forward)[1], _group_cols(rows)))
        return max(count for count in (1, 2, 4) if count <= max(most, 1))

    def rows(p: ConvProblem, target: Target) -> int:
        """Return a band's, of which most of the rows that it sees are its own."""
        return 64 if p.R <= 16 else 128

    def threads(p: ConvProblem, target: Target) -> int:
        """Return the warps of a plane, up to 4."""
        chosen = {"OUT_ROWS": out_rows(p, target), "TILES": tiles(p, target), "ROWS": rows(p, target)}
        warps = _warps(p, chosen, is_forward)
        return 32 * max(count for count in (1, 2, 4) if count <= max(warps, 1))

    return {
        "THREADS": Tunable(THREADS.legal, cuda=threads, cpu=threads),
        "OUT_ROWS": Tunable((1, 2, 4), cuda=out_rows, cpu=out_rows),
        "TILES": Tunable((1, 2, 4), cuda=tiles, cpu=tiles),
        "ROWS": Tunable((16, 32, 64, 128), cuda=rows, cpu=rows),
        "STAGES": Tunable((3, 4, 6, 8), cuda=6, cpu=6),
    }


def _group_cols(out_rows: int) -> int:
    """Return the columns of 16 groups side by side."""
    return 16 * (8 // out_rows)


def _warps(p: ConvProblem, t: Constants, is_forward: bool) -> int:
    """Return the warps of a plane: tiles of all of its bands."""
    height, width = _result(p, is_forward)
    return ceil_div(width, t["TILES"] * _group_cols(t["OUT_ROWS"])) * ceil_div(height, t["ROWS"])


def _constants(is_forward: bool) -> Callable[[ConvProblem, Alignment, Constants], Constants]:
    def constants(p: ConvProblem, alignment: Alignment, t: Constants) -> Constants:
        cols = WIDEST // DTYPES[p.dtype]  # what a lane brings or forms at once
        loads = vectors(p, alignment, {"COLS": cols})
        return {
            **loads,
            "LEAD": lead(p, loads, is_forward),
            "COLS": cols,
            "TILE_LANES": 32,
            "FILTER_R": p.R,
            "FILTER_S": p.S,
            "FACTOR_BITS": _factor_bits(p, is_forward),
            "PRODUCTS": _products(p, is_forward),
        }

    return constants


def _grid(is_forward: bool) -> Geometry:
    def grid(p: ConvProblem, t: Constants) -> tuple[int, ...]:
        n, planes = (p.y_shape if is_forward else p.x_shape)[:2]
        return (n * planes * ceil_div(32 * _warps(p, t, is_forward), t["THREADS"]),)

    return grid


def _shared_bytes(is_forward: bool) -> Callable[[ConvProblem, Constants], int]:
    """Return the rule for the filter between zeros, BandedFilter::BYTES, and a ring for each warp."""

    def shared_bytes(p: ConvProblem, t: Constants) -> int:
        out_cols = 8 // t["OUT_ROWS"]
        band = _steps(p, t["OUT_ROWS"], is_forward) * (256 // t["FACTOR_BITS"])
        run = ceil_div((band + out_cols) * t["FACTOR_BITS"] // 32 - 4, 8) * 8 + 4
        filter_bytes = (p.R + 2 * (t["OUT_ROWS"] - 1)) * 2 * run * 4
        window = t["LEAD"] + t["TILES"] * 16 * out_cols - out_cols + band
        width = ceil_div(window, t["COLS"]) * t["COLS"]
        if is_forward:
            ring = rows_bytes(width, DTYPES[p.dtype], t)
        else:
            ring = grad_bytes(p, width, t["FACTOR_BITS"] // 8, t)
        return filter_bytes + t["THREADS"] // 32 * ring

    return shared_bytes


# -- the entries -----------------------------------------------------------------------------------------------------
def filter_fits(p: ConvProblem) -> str | None:
    """It takes large filters, but not the largest."""
    if min(p.R, p.S) >= _SMALLEST and max(p.R, p.S) <= _LARGEST:
        return None
    return f"the filter is {p.R}x{p.S}; it takes those of {_SMALLEST} to {_LARGEST} rows and columns"


def not_float64(p: ConvProblem) -> str | None:
    """Its sums are float32."""
    return "the dtype is float64; the sums of its tensor cores are float32" if p.dtype == "float64" else None


def _entry(pass_name: str, is_forward: bool, *launches: Launch) -> Variant:
    common: dict[str, Any] = {"auto_on": ("cuda",), "unproven": True, "auto_not": unseen}
    return Variant(
        pass_name,
        "banded",
        launches=launches,
        tunables=_tunables(is_forward),
        specialise=_constants(is_forward),
        requires=(unit_stride, unit_dilation, one_source(is_forward), filter_fits, not_float64, countable,
                  tiles_countable(8)),
        **common,
    )  # fmt: skip


ENTRIES = (
    _entry("forward", True,
           Launch("forward", ("x", "w", "b", "y"), _grid(True), block("THREADS"), shared_bytes=_shared_bytes(True)),
           PACK_MASK),
    _entry("input_grad", False,
           Launch("input_grad", ("dy", "saved", "w", "b", "dx"), _grid(False), block("THREADS"),
                  shared_bytes=_shared_bytes(False))),
)  # fmt: skip
