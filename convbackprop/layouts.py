"""Layouts: in which order the axes of images lie in memory, whatever the order (N, C, H, W) in which they are named.

    nchw    rows of a channel lie side by side: contiguous arrays
    nhwc    channels of a pixel lie side by side: torch.channels_last

A filter is (K, C/groups, R, S) in memory, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LAYOUTS = ("nchw", "nhwc")


def in_memory(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """Return the extents of an image as they lie in memory, the outermost first; it may lack N, or N and C."""
    if layout == "nchw" or len(shape) < 3:
        return tuple(shape)
    *images, channels, height, width = shape
    return (*images, height, width, channels)


def as_named(array: Any, layout: str) -> Any:
    """Return the numpy array (N, C, H, W) whose memory is this contiguous one, of the shape that `in_memory` tells."""
    if layout == "nchw" or array.ndim < 3:
        return array
    return array.transpose(*range(array.ndim - 3), array.ndim - 1, array.ndim - 3, array.ndim - 2)


def strides(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """Return the distances between neighbours along the axes as they are named, in elements."""
    found: list[int] = []
    step = 1
    for extent in reversed(in_memory(shape, layout)):
        found.insert(0, step)
        step *= extent
    if layout == "nchw" or len(shape) < 3:
        return tuple(found)
    *images, row, col, channel = found
    return (*images, channel, row, col)


def lies(shape: Sequence[int], byte_strides: Sequence[int], element: int, layout: str) -> bool:
    """Return whether an array of these strides fills its memory in a layout; along an axis of 1 they say nothing."""
    if 0 in shape:
        return layout == "nchw"
    wanted = strides(shape, layout)
    return all(n == 1 or step == each * element for n, step, each in zip(shape, byte_strides, wanted, strict=True))


def layout_of(shape: Sequence[int], byte_strides: Sequence[int], element: int) -> str | None:
    """Return the first layout in which an array of these strides fills its memory, or None."""
    return next((layout for layout in LAYOUTS if lies(shape, byte_strides, element, layout)), None)
