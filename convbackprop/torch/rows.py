"""Which rows of an image each rank holds, computes and lacks: the arithmetic of `spatial`, without any tensor.

Rank i holds rows a[i] to a[i+1] - 1 of an image of H rows. With a filter of R rows, dilation d, stride s and `top` and
`bottom` rows of zeros around the whole image, output row p reads rows

    p s - top + d r,    r = 0 .. R-1,    of which the middle one is    m(p) = p s - top + c,    c = d (R-1) // 2.

**The rule: the rank that holds row m(p) computes output row p**; where m(p) lies in the padding, the first or the last
rank does. So rank i computes rows o[i] to o[i+1] - 1 with

    o[i] = min(P, max(0, ceil((a[i] + top - c) / s))),    o[0] = 0,    o[n] = P,
    P = (H + top + bottom - d (R-1) - 1) // s + 1.

With stride 1 and padding "same", o = a: each rank computes the rows that it holds. No rank lacks more than c rows above
its own, and d (R-1) - c below: its halo.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from convbackprop.errors import InvalidArgument


class Piece(NamedTuple):
    """Output rows `first` to `end` - 1 of the whole output, and what they read.

    `low` to `high` - 1 are rows of the whole image; `above` and `below` are rows of zeros around them.
    """

    first: int
    end: int
    low: int
    high: int
    above: int
    below: int


class Halo(NamedTuple):
    """Rows that a rank reads of the ranks above and below it."""

    above: int
    below: int


@dataclass(frozen=True)
class RowSplit:
    """A convolution's rows, split among ranks.

    Parameters
    ----------
    heights : tuple of int
        Rows of the image that each rank holds, from the top.
    filter_height, stride, dilation : int
        Of the convolution, along the height.
    padding : (int, int)
        Rows of zeros above and below the whole image.

    Raises
    ------
    InvalidArgument
        The filter is larger than the padded image, a rank's halo is larger than its neighbour's rows, or a rank would
        compute nothing; the message names the least number of rows.
    """

    heights: tuple[int, ...]
    filter_height: int
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.rows + sum(self.padding) < self.reach + 1:
            raise InvalidArgument(
                f"the image has {self.rows} rows on all ranks together and padding {self.padding}; "
                f"the filter spans {self.reach + 1}"
            )
        for rank in range(len(self.heights)):
            self._check(rank)

    def _check(self, rank: int) -> None:
        needed = (
            f"each rank should have at least {self.least_rows} (the ranks have {', '.join(map(str, self.heights))})"
        )
        if self.heights[rank] < 1:
            raise InvalidArgument(f"rank {rank} has no row of the image; {needed}")
        if self.output_heights[rank] < 1:
            raise InvalidArgument(
                f"rank {rank} has {self.heights[rank]} of the image's rows, which are the middle of no output row; "
                f"{needed}"
            )
        whole = self.piece(*self.output_bounds[rank : rank + 2])
        if whole.low >= whole.high:
            raise InvalidArgument(f"all that rank {rank} would compute reads rows of padding only; {needed}")
        halo = self.halo(rank)
        for rows, peer, where in ((halo.above, rank - 1, "above"), (halo.below, rank + 1, "below")):
            if rows and rows > self.heights[peer]:
                raise InvalidArgument(
                    f"rank {rank} reads {rows} rows {where} its own, but rank {peer} has {self.heights[peer]}; {needed}"
                )

    @property
    def rows(self) -> int:
        """Rows of the whole image."""
        return sum(self.heights)

    @property
    def reach(self) -> int:
        """Rows from a filter's first row to its last, d (R-1)."""
        return self.dilation * (self.filter_height - 1)

    @property
    def middle(self) -> int:
        """Rows from a filter's first row to its middle one."""
        return self.reach // 2

    @property
    def least_rows(self) -> int:
        """How many rows on each rank suffice."""
        (top, bottom), c, after = self.padding, self.middle, self.reach - self.middle
        return max(self.stride, after, c - top + 1, after - bottom + self.stride)

    @functools.cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where the ranks' rows of the image begin, and the last's end: a."""
        return tuple(accumulate(self.heights, initial=0))

    @functools.cached_property
    def output_bounds(self) -> tuple[int, ...]:
        """Where the ranks' rows of the output begin, and the last's end: o."""
        last = (self.rows + sum(self.padding) - self.reach - 1) // self.stride + 1
        inner = (self._output_row_after(a - self.middle) for a in self.bounds[1:-1])
        return (0, *(min(last, max(0, row)) for row in inner), last)

    @functools.cached_property
    def output_heights(self) -> tuple[int, ...]:
        """Rows of the output that each rank computes."""
        return tuple(end - first for first, end in pairwise(self.output_bounds))

    def _output_row_after(self, row: int) -> int:
        """Return the first output row whose window begins at this row of the image or after it."""
        return -((-row - self.padding[0]) // self.stride)

    def piece(self, first: int, end: int) -> Piece:
        """Return what output rows `first` to `end` - 1 read."""
        low = first * self.stride - self.padding[0]
        high = (end - 1) * self.stride - self.padding[0] + self.reach + 1
        return Piece(first, end, max(0, low), min(self.rows, high), max(0, -low), max(0, high - self.rows))

    def halo(self, rank: int) -> Halo:
        """Return how many rows a rank reads above and below its own."""
        whole = self.piece(*self.output_bounds[rank : rank + 2])
        return Halo(max(0, self.bounds[rank] - whole.low), max(0, whole.high - self.bounds[rank + 1]))

    def lent(self, rank: int) -> Halo:
        """Return how many of a rank's own rows, at its top and at its bottom, the ranks above and below it read."""
        return Halo(
            self.halo(rank - 1).below if rank > 0 else 0,
            self.halo(rank + 1).above if rank + 1 < len(self.heights) else 0,
        )

    def pieces(self, rank: int) -> tuple[Piece | None, Piece | None, Piece | None]:
        """Return a rank's output rows in three pieces: those that read the halo above, neither, and that below.

        Where all of them read a halo there is one piece, the first, and it may read both.
        """
        first, end = self.output_bounds[rank : rank + 2]
        halo = self.halo(rank)
        inner_first = self._output_row_after(self.bounds[rank]) if halo.above else first
        inner_end = self._output_row_after(self.bounds[rank + 1] - self.reach) if halo.below else end
        inner = self.piece(inner_first, inner_end)
        if inner_first >= inner_end or inner.low >= inner.high:
            return self.piece(first, end), None, None
        return (
            self.piece(first, inner_first) if first < inner_first else None,
            inner,
            self.piece(inner_end, end) if inner_end < end else None,
        )


@functools.lru_cache(maxsize=256)
def row_split(
    heights: tuple[int, ...], filter_height: int, stride: int, dilation: int, padding: tuple[int, int]
) -> RowSplit:
    """Return a `RowSplit`, the same one for the same arguments."""
    return RowSplit(heights, filter_height, stride, dilation, padding)


def even_heights(rows: int, ranks: int) -> tuple[int, ...]:
    """Return heights that differ by one row at most, the larger ones first."""
    return tuple(rows // ranks + (rank < rows % ranks) for rank in range(ranks))


def check_heights(heights: Sequence[int], rows: int, ranks: int) -> tuple[int, ...]:
    """Return `heights` as a tuple if they split this many rows among this many ranks."""
    if len(heights) != ranks:
        raise InvalidArgument(f"heights has {len(heights)} numbers; it should have {ranks}, one a rank")
    if sum(heights) != rows or min(heights) < 1:
        raise InvalidArgument(
            f"heights is {tuple(heights)}; its numbers should be at least 1 and add up to the image's {rows} rows, "
            f"and they add up to {sum(heights)}"
        )
    return tuple(heights)
