"""Mistakes in where a tap looks, and in which taps count."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from convbackprop.lab.mistakes.hypothesis import AXES, SUMS_OVER_TAPS, of
from convbackprop.lab.mistakes.layer import Array, Layer, Looks, outer


# -- the filter ------------------------------------------------------------------------------------------------------
def _with_filter(layer: Layer, change: Callable[[Array], Array]) -> Layer:
    """Exchange taps: of the filter, or of its gradient."""
    if layer.filters is None:
        return layer.with_(after=change)
    return layer.with_(filters=change(layer.filters))


@of("y", "dw")
def _filter_turned(layer: Layer) -> Iterator[Layer]:
    yield _with_filter(layer, lambda w: w[..., ::-1, ::-1])


@of("dx", "dw")
def _filter_not_turned(layer: Layer) -> Iterator[Layer]:
    p = layer.problem
    if layer.result == "dx" or "w" in layer.given:  # in one kernel with dx, one index of a tap may serve both
        yield _with_filter(layer, lambda w: w[..., ::-1, ::-1])
    if layer.result != "dx" or p.stride != (1, 1):
        return

    def as_forward(layer: Layer, looks: Looks) -> Looks:
        rows, cols = (
            np.arange(sites)[:, None] - pad + np.arange(taps) * dilation
            for sites, pad, taps, dilation in zip(layer.sites, layer.pad, (p.R, p.S), layer.dilation, strict=True)
        )
        return _looking(layer, looks, rows, cols)

    yield layer.bent(as_forward)


@of(*SUMS_OVER_TAPS)
def _filter_mirrored(layer: Layer) -> Iterator[Layer]:
    yield _with_filter(layer, lambda w: w[..., ::-1, :])
    yield _with_filter(layer, lambda w: w[..., ::-1])


@of(*SUMS_OVER_TAPS)
def _filter_transposed(layer: Layer) -> Iterator[Layer]:
    R, S = layer.problem.R, layer.problem.S

    def at_s_R_r(w: Array) -> Array:  # what lies at s * R + r
        return w.reshape(*w.shape[:2], S, R).swapaxes(-1, -2)

    def to_s_R_r(dw: Array) -> Array:
        return dw.swapaxes(-1, -2).reshape(dw.shape)

    yield _with_filter(layer, to_s_R_r if layer.result == "dw" else at_s_R_r)


@of("y", "dx")
def _filter_of_another_channel(layer: Layer) -> Iterator[Layer]:
    w = layer.filters
    yield layer.with_(filters=np.repeat(w[:, :1], w.shape[1], axis=1))
    yield layer.with_(filters=np.repeat(w[:1], len(w), axis=0))


@of("y", "dx")
def _filter_channels_swapped(layer: Layer) -> Iterator[Layer]:
    w = layer.filters
    if layer.problem.groups == 1:  # what lies at (c * K + k) in place of (k * C + c)
        of_k = w if layer.result == "y" else w.swapaxes(0, 1)
        swapped = of_k.reshape(of_k.shape[1], of_k.shape[0], *of_k.shape[2:]).swapaxes(0, 1)
        yield layer.with_(filters=swapped if layer.result == "y" else swapped.swapaxes(0, 1))


# -- where a tap looks -----------------------------------------------------------------------------------------------
def _looking(layer: Layer, looks: Looks, rows: Array, cols: Array) -> Looks:
    """Return looks at these rows and columns, of which those inside count."""
    height, width = layer.image.shape[2:]
    return looks.with_(rows=rows, cols=cols, counts=outer((rows >= 0) & (rows < height), (cols >= 0) & (cols < width)))


def _shifted(layer: Layer, down: int, across: int) -> Layer:
    return layer.with_(pad=(layer.pad[0] + down, layer.pad[1] + across))


@of(*SUMS_OVER_TAPS)
def _padding_off_by_one(layer: Layer) -> Iterator[Layer]:
    for step in (1, -1):
        for down, across in AXES:
            yield _shifted(layer, step * down, step * across)


@of(*SUMS_OVER_TAPS)
def _padding_ignored(layer: Layer) -> Iterator[Layer]:
    yield layer.with_(pad=(0, 0))


@of(*SUMS_OVER_TAPS)
def _padding_sides_swapped(layer: Layer) -> Iterator[Layer]:
    (_, bottom), (_, right) = layer.problem.padding
    for down, across in AXES:
        yield layer.with_(pad=(bottom if down else layer.pad[0], right if across else layer.pad[1]))
    for down, across in AXES:  # what the input gradient wants as a correlation, or does not want otherwise
        turned = layer.problem.R - 1 - layer.pad[0], layer.problem.S - 1 - layer.pad[1]
        yield layer.with_(pad=(turned[0] if down else layer.pad[0], turned[1] if across else layer.pad[1]))


@of(*SUMS_OVER_TAPS)
def _axes_swapped(layer: Layer) -> Iterator[Layer]:
    """Rows take what is meant for columns: the padding, the stride, or the dilation."""
    for name in ("pad", "stride", "dilation"):
        yield layer.with_(**{name: getattr(layer, name)[::-1]})


@of(*SUMS_OVER_TAPS)
def _stride_ignored(layer: Layer) -> Iterator[Layer]:
    for down, across in AXES:
        yield layer.with_(stride=(1 if down else layer.stride[0], 1 if across else layer.stride[1]))


@of(*SUMS_OVER_TAPS)
def _dilation_ignored(layer: Layer) -> Iterator[Layer]:
    for down, across in AXES:
        yield layer.with_(dilation=(1 if down else layer.dilation[0], 1 if across else layer.dilation[1]))


@of(*SUMS_OVER_TAPS)
def _stride_and_dilation_swapped(layer: Layer) -> Iterator[Layer]:
    for axes in AXES:
        pairs = zip(axes, layer.stride, layer.dilation, strict=True)
        stride, dilation = zip(*((d, s) if swap else (s, d) for swap, s, d in pairs), strict=True)
        yield layer.with_(stride=stride, dilation=dilation)


@of("dx")
def _stride_remainder_ignored(layer: Layer) -> Iterator[Layer]:
    for down, across in AXES:

        def keep(layer: Layer, looks: Looks, down: bool = down, across: bool = across) -> Looks:
            all_of = _looking(layer, looks, looks.rows, looks.cols)
            whole = outer(looks.counts.any(axis=(2, 3)) | down, looks.counts.any(axis=(0, 1)) | across)
            return looks.with_(counts=all_of.counts & whole)

        yield layer.bent(keep)


@of(*SUMS_OVER_TAPS)
def _row_pitch_of_result(layer: Layer) -> Iterator[Layer]:
    width = layer.problem.W if layer.result == "dx" else layer.problem.Q
    yield layer.bent(lambda layer, looks: looks.with_(pitch=width))
    yield layer.bent(lambda layer, looks: looks.with_(pitch=width, plane=layer.image.shape[2] * width))


# -- the border of the image -----------------------------------------------------------------------------------------
@of(*SUMS_OVER_TAPS)
def _border_clamped(layer: Layer) -> Iterator[Layer]:
    def clamp(layer: Layer, looks: Looks) -> Looks:
        height, width = layer.image.shape[2:]
        return _looking(layer, looks, np.clip(looks.rows, 0, height - 1), np.clip(looks.cols, 0, width - 1))

    yield layer.bent(clamp)


@of(*SUMS_OVER_TAPS)
def _border_wrapped(layer: Layer) -> Iterator[Layer]:
    def wrap(layer: Layer, looks: Looks) -> Looks:
        height, width = layer.image.shape[2:]
        return _looking(layer, looks, looks.rows % height, looks.cols % width)

    yield layer.bent(wrap)


@of(*SUMS_OVER_TAPS)
def _border_reads_neighbour_row(layer: Layer) -> Iterator[Layer]:
    def columns_unchecked(layer: Layer, looks: Looks) -> Looks:
        rows, height = looks.rows, layer.image.shape[2]
        counts = outer((rows >= 0) & (rows < height), np.ones(looks.cols.shape, bool))
        return looks.with_(counts=counts)

    def inside_the_plane(layer: Layer, looks: Looks) -> Looks:
        flat = looks.rows[:, :, None, None] * looks.pitch + looks.cols
        height, width = layer.image.shape[2:]
        return looks.with_(counts=(flat >= 0) & (flat < height * width))

    if layer.problem.stride == (1, 1):
        yield layer.bent(columns_unchecked)
        yield layer.bent(columns_unchecked).with_(beyond=0)
        yield layer.bent(inside_the_plane)


@of(*SUMS_OVER_TAPS)
def _border_not_checked(layer: Layer) -> Iterator[Layer]:
    if layer.problem.stride == (1, 1):
        yield layer.bent(lambda layer, looks: looks.with_(counts=np.ones_like(looks.counts)))


def _where(layer: Layer, keep: Callable[[Layer, Looks], Array]) -> Layer:
    """Count those taps only that are kept: sites x taps, down x across."""
    return layer.bent(lambda layer, looks: looks.with_(counts=looks.counts & keep(layer, looks)))


def _edge(layer: Layer, down: bool, across: bool, last: bool) -> Layer:
    def keep(layer: Layer, looks: Looks) -> Array:
        height, width = layer.image.shape[2:]
        rows, cols = looks.rows != (height - 1) * last, looks.cols != (width - 1) * last
        return outer(rows | (not down), cols | (not across))

    return _where(layer, keep)


@of(*SUMS_OVER_TAPS)
def _first_pixels_missing(layer: Layer) -> Iterator[Layer]:
    for down, across in AXES:
        yield _edge(layer, down, across, last=False)


@of(*SUMS_OVER_TAPS)
def _last_pixels_missing(layer: Layer) -> Iterator[Layer]:
    for down, across in AXES:
        yield _edge(layer, down, across, last=True)


# -- taps left out -----------
def _without_tap(layer: Layer, down: bool, across: bool, tap: int) -> Layer:
    def keep(layer: Layer, looks: Looks) -> Array:
        rows, cols = np.ones(looks.rows.shape, bool), np.ones(looks.cols.shape, bool)
        rows[:, tap] &= not down
        cols[:, tap] &= not across
        return outer(rows, cols)

    return _where(layer, keep)


@of(*SUMS_OVER_TAPS)
def _first_tap_missing(layer: Layer) -> Iterator[Layer]:
    for down, across in AXES:
        yield _without_tap(layer, down, across, 0)


@of(*SUMS_OVER_TAPS)
def _last_tap_missing(layer: Layer) -> Iterator[Layer]:
    for down, across in AXES:
        yield _without_tap(layer, down, across, -1)


# -- tiles in shared memory ------------------------------------------------------------------------------------------
#: Rows and columns of outputs that a block of threads often computes.
TILES = ((8, 8), (16, 16), (32, 32), (8, 16), (4, 32), (8, 32), (16, 32), (4, 64), (1, 32), (1, 64), (1, 128))


def _in_halo(layer: Layer, tile: int, axis: int, side: str) -> Array:
    """Return which taps, (sites, taps), lie in the halo of the tile that a site is in: before, after, or around it."""
    taps = (layer.problem.R, layer.problem.S)[axis]
    pad = layer.pad[axis] if layer.result != "dx" else taps - 1 - layer.pad[axis]
    tap = np.arange(taps)
    place = np.arange(layer.sites[axis])[:, None] % tile + (tap[::-1] if layer.result == "dx" else tap)
    return {
        "before": place < pad,
        "after": place >= tile + pad,
        "around": (place < pad) | (place >= tile + pad),
        "beyond": place >= tile,  # where the first of the tile's rows is the halo's
    }[side]


def _tiled(layer: Layer, missing: Callable[[Array, Array], Array], side: str) -> Iterator[Layer]:
    """Leave taps out in the halos of tiles of each size; only where filters step pixel by pixel."""
    if layer.stride != (1, 1) or layer.dilation != (1, 1):
        return
    for tile_rows, tile_cols in TILES:
        rows, cols = _in_halo(layer, tile_rows, 0, side), _in_halo(layer, tile_cols, 1, side)
        yield _where(layer, lambda _layer, _looks, rows=rows, cols=cols: ~missing(rows, cols))  # type: ignore[misc]


def _corner(rows: Array, cols: Array) -> Array:
    return outer(rows, cols)


def _any(rows: Array, cols: Array) -> Array:
    return np.asarray(rows)[:, :, None, None] | cols


def _rows(rows: Array, cols: Array) -> Array:
    return np.broadcast_to(rows[:, :, None, None], (*rows.shape, *cols.shape))


def _cols(rows: Array, cols: Array) -> Array:
    return np.broadcast_to(cols, (*rows.shape, *cols.shape))


@of(*SUMS_OVER_TAPS)
def _halo_missing(layer: Layer) -> Iterator[Layer]:
    yield from _tiled(layer, _any, "around")


@of(*SUMS_OVER_TAPS)
def _halo_corners_missing(layer: Layer) -> Iterator[Layer]:
    yield from _tiled(layer, _corner, "around")


@of(*SUMS_OVER_TAPS)
def _halo_side_missing(layer: Layer) -> Iterator[Layer]:
    for missing in (_rows, _cols, _any):
        for side in ("before", "after", "beyond"):
            yield from _tiled(layer, missing, side)
