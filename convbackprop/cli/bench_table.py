"""The table of `bench` on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from convbackprop.bench.columns import columns, error, legend_of
from convbackprop.bench.rows import Row
from convbackprop.cli.common import distinct, say

#: Narrower than this, the problems are headings of the table instead of a column, and peers share one.
_WIDE = 112


def print_rows(rows: Sequence[Row], out: Any) -> None:
    """Print the table, what is wrong, and what the columns mean."""
    wide = out.width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    # A problem that is a heading is folded, rather than that it makes the column wider than the variants need.
    longest = max((len(row.name) for row in rows), default=0)
    table.add_column("pass/variant", no_wrap=wide, overflow="fold", max_width=None if wide else longest)
    if wide:
        table.add_column("problem", overflow="fold")
    shown = columns(rows, wide)
    for head in (*shown, "error"):
        table.add_column(head, justify="right", no_wrap=True)
    before = None
    for row in rows:
        if row.case != before:
            if before is not None or not wide:
                table.add_row()
            before = row.case
            if not wide:
                table.add_row(Text(_title(row, rows), "bold", overflow="fold"))
        if row.ours:
            cells: list[Any] = [cell(row) for cell in shown.values()]
        else:
            cells = [Text("refused") if row.refusal else Text("WRONG", "red"), *[""] * (len(shown) - 1)]
        table.add_row(row.name, *([_title(row, rows)] if wide else []), *cells, "-" if row.refusal else error(row))
    out.print(table)
    for row in rows:
        for fault in row.faults:
            say(out, f"{row.name} on {row.problem} is WRONG: {fault}")
    for sentence in distinct(f"{row.name} refuses {row.label}: {row.refusal}" for row in rows if row.refusal):
        say(out, sentence)
    legend = legend_of(rows)
    if legend:
        say(out, "", *legend)


def _title(row: Row, rows: Sequence[Row]) -> str:
    """Return the label of a row, with its problem where other problems have the same label."""
    if len({str(other.problem) for other in rows if other.label == row.label}) == 1:
        return row.label
    return f"{row.label} {str(row.problem).split(',activation')[0]}"
