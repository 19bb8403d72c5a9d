"""Images whose channels lie side by side: what rungs of both layouts know at compile time (`CHANNELS_...`)."""

from __future__ import annotations

from convbackprop.problem import DTYPES, ConvProblem


def channels_aside(p: ConvProblem, results: int, aligned: int) -> int:
    """Return how many 16-bit channels of a pixel are stored at once: four, of a group with so many `results`."""
    return 4 if p.layout == "nhwc" and DTYPES[p.dtype] == 2 and results % 4 == 0 and aligned >= 8 else 1


def channels_at_once(p: ConvProblem, aligned: int) -> int:
    """Return how many 16-bit channels of a pixel are read at once, of eight that lie at such addresses."""
    return min(8, aligned // 2) if p.layout == "nhwc" else 1
