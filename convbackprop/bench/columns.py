"""Rows of a benchmark in words: what the columns of its tables show, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convbackprop.bench.peers import PEERS
from convbackprop.bench.photograph import PHOTOGRAPHS
from convbackprop.bench.rows import ARITHMETIC, Row, peer_names


def digits(value: float | None, count: int = 3) -> str:
    """Return a number in so many digits, "-" for none."""
    if value is None or value != value:
        return "-"
    return f"{value:,.0f}" if 999.5 <= value < 99999.5 else f"{value:#.{count}g}".rstrip(".")


def rate(row: Row, flops: str = "FLOP/s") -> str:
    """Return the rate of what limits a row: bytes a second, or operations a second."""
    gflops = row.gflops or 0
    if row.floor and row.floor[1] == ARITHMETIC:
        return f"{digits(gflops)} G{flops}" if gflops < 1000 else f"{digits(gflops / 1000)} T{flops}"
    return f"{digits(row.rate(row.ours))} GB/s"


def columns(rows: Sequence[Row], wide: bool = True) -> dict[str, Callable[[Row], str]]:
    """Return the heads of the columns of figures, each with what it shows of a row that has been timed.

    Those of a table that is not wide are shorter, and the peers share one.
    """

    def spread(row: Row) -> str:
        assert row.ours is not None
        low, high = (digits(1e3 * bound, 3 if wide else 2) for bound in row.ours.range)
        return f"{low}-{high}" if len(row.ours.seconds) > 1 else "once"

    def versus(name: str | None) -> Callable[[Row], str]:
        return lambda row: f"{digits(over)}x" if (over := row.over(row.peer(name))) else "-"

    names = peer_names(rows)
    shown: dict[str, Callable[[Row], str]] = {
        "ms": lambda row: digits(1e3 * row.ours.median if row.ours else None),
        "20-80 %": spread,
        "rate": lambda row: rate(row, "FLOP/s" if wide else "F/s"),
        "of floor": lambda row: f"{digits(100 * (row.share_of_floor or 0))} %",
    }
    if wide or len(names) < 2:
        shown |= {f"vs {name}": versus(name) for name in names}
    else:
        shown["vs fastest"] = versus(None)
    return shown


def error(row: Row) -> str:
    """Return the largest error of a row as it is printed."""
    return "<0.01" if row.error < 0.005 else digits(row.error) if row.faults else f"{row.error:.2f}"


def legend_of(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on each thing that the columns mean."""
    copies = [found for row in rows if row.ours and (found := row.rate(row.copy))]
    if not copies:
        return []
    peaks = dict.fromkeys(row.peak_flops for row in rows if row.peak_flops)
    said = [
        "ms: median. rate: the bytes that the pass must move, over the median, where memory is its floor; its "
        "operations, where arithmetic is. of floor: the share that the floor has of the median. The floor is the "
        f"longer of a copy of as many bytes, timed in turn with the fastest rows ({digits(min(copies))} to "
        f"{digits(max(copies))} GB/s), and the operations at the peak rate of multiply-adds, measured here "
        f"({' and '.join(digits(1e-9 * peak) for peak in peaks)} GFLOP/s). A problem that "
        "fits in a cache can be below it: the copy's launch counts, too.",
        *(f"vs {name}: how many times as long it takes: {PEERS[name].about}" for name in peer_names(rows)
          if name in PEERS),
        "error: the largest, as a share of the bound that any order of summation obeys; 1 or less is right.",
    ]  # fmt: skip
    if any(row.label.startswith(tuple(f"{name} " for name in PHOTOGRAPHS)) for row in rows):
        said.append("photographs: scikit-image's, grey values from 0 to 1; other images are random numbers.")
    return said
