"""`kernel_grad` of `hopper` in TF32: x and g as planes of one pitch, and boxes of them (hopper/grad_planes.cuh)."""

from __future__ import annotations

import functools
from typing import NamedTuple

from convbackprop.devices.mapped import TensorMap
from convbackprop.ladder.hopper_memory import (
    CUTS,
    L2_BYTES,
    PRODUCT_SUMS,
    ROW,
    SLOT_BYTES,
    STAGED_PIXELS,
    most_round_offs,
)
from convbackprop.ladder.variant import Alignment, Constants, ceil_div
from convbackprop.problem import ConvProblem

#: Positions of a box, of a product of matrices, and of a unit of 16 bytes.
_BOX, _DEEP, _UNIT = 32, 8, 4

#: Channels of a chunk of `stage_x` and `stage_g`.
_STAGED_CHANNELS = 32

#: Filters of a box of g.
_FILTERS = 128

#: Round-offs of what LongSum (long_sum.cuh) adds up, at most.
_LONG_SUM = 67


# -- what is multiplied ----------------------------------------------------------------------------------------------
def constants(p: ConvProblem, alignment: Alignment) -> dict[str, int]:
    """Return the constants of the kernel, as far as they are of TF32."""
    return {**_tile_of(p.C // p.groups, p.R * p.S), "FACTOR_BITS": 32, "X_IN_PLACE": 0, "G_IN_PLACE": 0}


@functools.lru_cache(maxsize=4096)
def _tile_of(channels: int, taps: int) -> dict[str, int]:
    """Return so many channels at so many taps that blocks have least work, and of those the fewest boxes."""
    found = []
    for columns in (64, 128, 192, 256):
        for chunk in (8, 16, 32, 64, 128, 256):
            if columns % chunk:
                continue
            aside, slot = columns // chunk, _slot_bytes(columns)
            items = ceil_div(channels, chunk) * ceil_div(taps, aside)
            clocks = max(_FILTERS * columns // PRODUCT_SUMS, slot // L2_BYTES)
            made = {"CHUNK_CHANNELS": chunk, "TAPS_ASIDE": aside, "BOXES": min(8, SLOT_BYTES // slot)}
            found.append((items * clocks, aside, made))
    return min(found, key=lambda each: each[:2])[2]


def _slot_bytes(columns: int) -> int:
    return (_FILTERS + columns) * ROW


def slot_bytes(t: Constants) -> int:
    """Return the bytes of a slot of shared memory: a box of g, and one of x for each tap."""
    return _slot_bytes(t["CHUNK_CHANNELS"] * t["TAPS_ASIDE"])


# -- what is turned --------------------------------------------------------------------------------------------------
class _Planes(NamedTuple):
    """What x or g is turned to: of each channel the phases of the stride that taps see."""

    channels: int
    phases: int
    rows: int
    pitch: int

    @property
    def positions(self) -> int:
        """Of a plane."""
        return self.rows * self.pitch


def _pitch(p: ConvProblem) -> int:
    """Return the positions of a row, of x and of g: see row_pitch of the header."""
    first, last = ((s * p.dilation_w - p.pad_left) // p.stride_w for s in (0, p.S - 1))
    return ceil_div(max(p.Q + max(last, 0), ceil_div(p.W, p.stride_w) - min(first, 0)), _UNIT) * _UNIT


def _planes(p: ConvProblem, name: str) -> _Planes:
    if name == "g":
        return _Planes(p.K, 1, p.P, _pitch(p))
    phases = min(p.stride_h, p.R) * min(p.stride_w, p.S)
    return _Planes(p.C, phases, ceil_div(p.H, p.stride_h), _pitch(p))


def words(p: ConvProblem, t: Constants, name: str) -> int:
    """Return the words of scratch memory that x or g takes."""
    planes = _planes(p, name)
    return p.N * planes.phases * planes.channels * planes.positions


def runs(p: ConvProblem) -> int:
    """Return how many sums of g a filter has in scratch memory."""
    return p.N * ceil_div(_planes(p, "g").positions, STAGED_PIXELS)


def stage_blocks(p: ConvProblem, name: str) -> int:
    """Return the blocks that turn x or g."""
    planes = _planes(p, name)
    chunks = p.groups * ceil_div(planes.channels // p.groups, _STAGED_CHANNELS)
    return p.N * planes.phases * chunks * ceil_div(planes.positions, STAGED_PIXELS)


def maps(p: ConvProblem, t: Constants) -> tuple[TensorMap, ...]:
    """Return the tensor maps of x and of g: positions, channels, groups, phases, images."""

    def rule(name: str, rows: int) -> TensorMap:
        planes = _planes(p, name)
        plane, of_group = 4 * planes.positions, planes.channels // p.groups
        return TensorMap(
            "scratch",
            "float32",
            sizes=(planes.positions, of_group, p.groups, planes.phases, p.N),
            strides=(plane, of_group * plane, planes.channels * plane, planes.phases * planes.channels * plane),
            box=(_BOX, rows, 1, 1, 1),
            steps=(1, 1, 1, 1, 1),
            offset=0 if name == "x" else 4 * words(p, t, "x"),
        )

    return rule("x", t["CHUNK_CHANNELS"]), rule("g", _FILTERS)


# -- parts -----------------------------------------------------------------------------------------------------------
def boxes(p: ConvProblem, t: Constants) -> int:
    """Return how many boxes of g there are."""
    return _boxes(p)


def _boxes(p: ConvProblem) -> int:
    return p.N * ceil_div(_planes(p, "g").positions, _BOX)


def _round_offs(p: ConvProblem, part: int) -> int:
    """Return how many round-offs a sum in parts of so many boxes has at most.

    A product of matrices in which g is zero cuts nothing.
    """
    of_image = ceil_div(_planes(p, "g").positions, _DEEP)
    products = min(p.N * of_image, part * min(of_image, _BOX // _DEEP))
    parts = ceil_div(_boxes(p), part)
    return CUTS * products + (min(parts, _LONG_SUM) if parts > 1 else 0)


def _is_within_bound(p: ConvProblem, part: int) -> bool:
    return _round_offs(p, part) <= most_round_offs(p.N * p.P * p.Q)


@functools.lru_cache(maxsize=256)
def _most_part_boxes(p: ConvProblem) -> int | None:
    """Return the boxes of the longest parts with which a sum is within its bound; None: of no parts it is."""
    most_parts = min(_boxes(p), int(most_round_offs(p.N * p.P * p.Q)))
    lengths = (ceil_div(_boxes(p), parts) for parts in range(1, most_parts + 1))
    return next((part for part in lengths if _is_within_bound(p, part)), None)


def part_boxes(p: ConvProblem, few: int) -> int:
    """Return the boxes of a part: so few, or what its bound has room for."""
    most = _most_part_boxes(p) or 1
    return few if few < most and _is_within_bound(p, few) else most


def tap_items(p: ConvProblem, t: Constants) -> int:
    """Return what blocks compute of a part for some filters: a chunk of channels, and taps."""
    return ceil_div(p.C // p.groups, t["CHUNK_CHANNELS"]) * ceil_div(p.R * p.S, t["TAPS_ASIDE"])


# -- the problems ----------------------------------------------------------------------------------------------------
def no_boxes(p: ConvProblem) -> str | None:
    """Return None: tensor maps know each box of a plane."""
    return None


def too_many_cuts(p: ConvProblem) -> str | None:
    """Return a sentence where a sum would be cut too often."""
    if _most_part_boxes(p):
        return None
    n = p.N * p.P * p.Q
    return (
        f"a sum of {n:,} pixels passes products of matrices, each of which may cut it twice; its bound has "
        f"{int(most_round_offs(n)):,} round-offs: it takes longer rows"
    )
