"""The report's tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.report.goals import Verdict, floor_us
from benchmarks.report.rows import Row
from benchmarks.report.worker import Gathered
from convbackprop.cli.common import say


def digits(value: float | None, unit: str = "") -> str:
    """Return a number in three digits, "-" for none."""
    if value is None:
        return "-"
    return (f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}") + unit


def print_rows(gathered: Gathered, out: Any) -> None:
    """Print our rows beside the copy of as many bytes and torch's best."""
    facts = gathered.facts
    if facts:
        say(out, "", f"ceilings: copy {facts['copy_bytes_per_s'] * 1e-12:.3g} TB/s read and written, FFMA "
            f"{facts['ffma_flops_per_s'] * 1e-12:.3g} TFLOP/s; two events with nothing between: "
            f"{facts['empty_us']:.3g} us", "")  # fmt: skip
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("job", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    for name in ("cold us", "20-80 %", "warm us", "floors", "copy us", "torch us", "vs torch", "vs TF32", "error"):
        table.add_column(name, justify="right", no_wrap=True)

    def median(row: Row | None) -> float | None:
        return row.cold["median"] if row and row.cold else None

    for row in gathered.rows:
        if not row.ours or row.part != "rows":
            continue
        beside = [other for other in gathered.rows if other.job == row.job and not other.ours]
        copy = next((other for other in beside if other.who == "copy"), None)
        torch = [t for o in beside if o.who.startswith("torch") and "TF32" not in o.who and (t := median(o))]
        tf32 = [t for o in beside if "TF32" in o.who and (t := median(o))]
        ours = median(row)
        floor = floor_us(row.least_bytes, row.flops, facts)
        cells = ["FAILED"] + [""] * 7 if row.failed else [
            digits(ours),
            f"{digits(row.cold['p20'])}-{digits(row.cold['p80'])}" if row.cold else "-",
            digits(row.warm["median"] if row.warm else None),
            digits(ours / floor if ours and floor else None),
            digits(median(copy)),
            digits(min(torch, default=None)),
            digits(min(torch) / ours if torch and ours else None, "x"),
            digits(min(tf32) / ours if tf32 and ours else None, "x"),
        ]  # fmt: skip
        shares = [share for share in (row.small_share, row.full_share) if share is not None]
        error = max(shares, default=None)
        table.add_row(row.job, row.who, *cells, "-" if error is None else f"{error:.2f}" if error >= 0.005 else "<0.01")
    out.print(table)
    say(out, "floors: how many times the floor by the ceilings above. error: the largest, as a share of its bound.", "")


def print_others(gathered: Gathered, out: Any) -> None:
    """Print the rows of the other parts: how long each way took."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("job", "what"):
        table.add_column(name, no_wrap=True)
    for name in ("us", "20-80 %", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in gathered.rows:
        if row.part != "rows":
            times = row.host or row.cold
            spread = f"{digits(times['p20'])}-{digits(times['p80'])}" if times else ""
            error = "-" if row.full_share is None else f"{row.full_share:.2f}"
            table.add_row(row.job, row.who, digits(times["median"]) if times else "FAILED", spread, error)
    if table.row_count:
        out.print(table)
        say(out, "")


def print_goals(verdicts: Sequence[Verdict], out: Any) -> None:
    """Print the goals."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("#", "goal", "wanted"):
        table.add_column(name, no_wrap=True)
    for name in ("us", "floor us", "floors", "copies", "torch us", "vs torch", "vs TF32"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("met")
    table.add_column("why")
    for v in verdicts:
        table.add_row(
            v.number, v.what, v.wanted, digits(v.figure_us), digits(v.floor_us), digits(v.over_floor),
            digits(v.copies), digits(v.torch_us), digits(v.times_torch, "x"), digits(v.times_torch_tf32, "x"),
            {True: "met", False: "NOT MET", None: "-"}[v.met], v.why,
        )  # fmt: skip
    out.print(table)
