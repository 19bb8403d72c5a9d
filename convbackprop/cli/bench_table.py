"""The table of `bench` on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from convbackprop.bench.columns import columns, error, legend_of
from convbackprop.bench.rows import Row
from convbackprop.cli.common import counted, distinct, say

#: Narrower than this, the problems are headings of the table instead of a column, and peers share one.
_WIDE = 112


def print_rows(rows: Sequence[Row], out: Any) -> None:
    """Print the table, what is wrong, and what the columns mean."""
    wide = out.width >= _WIDE
    shown = columns(rows, wide)
    heads = ["pass/variant", *(["problem"] if wide else []), *shown, "error"]
    groups: dict[tuple[str, str], list[list[Any]]] = {}
    for row in rows:
        if row.ours:
            cells: list[Any] = [cell(row) for cell in shown.values()]
        else:
            cells = [Text("refused") if row.refusal else Text("WRONG", "red"), *[""] * (len(shown) - 1)]
        line = [row.name, *([_title(row, rows)] if wide else []), *cells, "-" if row.refusal else error(row)]
        groups.setdefault(row.case, []).append(line)
    if wide:
        _print_table(heads, [line for group in groups.values() for line in (*group, [])][:-1], out)
    else:
        lines = [heads, *(line for group in groups.values() for line in group)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        _print_table(heads, [], out, widths)
        titles = {row.case: _title(row, rows) for row in rows}
        for case, group in groups.items():
            out.print(Text(f"\n{titles[case]}", "bold"))
            _print_table(None, group, out, widths)
    for row in rows:
        for fault in row.faults:
            say(out, f"{row.name} on {row.problem} is WRONG: {fault}")
    refused: dict[str, tuple[list[str], list[str]]] = {}
    for row in rows:
        if row.refusal:
            names, labels = refused.setdefault(row.refusal, ([], []))
            names.append(row.name)
            labels.append(row.label)
    for sentence, (names, labels) in refused.items():
        first, *others = distinct(labels)
        more = f" and {counted(len(others), 'other')}" if others else ""
        say(out, f"{' and '.join(distinct(names))} refuse{'s' * (len(distinct(names)) == 1)} {first}{more}: {sentence}")
    legend = legend_of(rows)
    if legend:
        say(out, "", *legend)


def _print_table(heads: Sequence[str] | None, lines: Sequence[Sequence[Any]], out: Any,
                 widths: Sequence[int] | None = None) -> None:  # fmt: skip
    """Print lines of cells; tables with the same widths stand under each other as one."""
    table = Table(box=None, pad_edge=False, padding=(0, 1 if widths else 2, 0, 0), show_header=heads is not None)
    for i, head in enumerate(heads or [""] * len(widths or ())):
        words = i == 0 or head == "problem"
        table.add_column(head, justify="left" if words else "right", no_wrap=head != "problem", overflow="fold",
                         min_width=widths[i] if widths else None)  # fmt: skip
    for line in lines:
        table.add_row(*line)
    out.print(table)


def _title(row: Row, rows: Sequence[Row]) -> str:
    """Return the label of a row, with its problem where other problems have the same label."""
    if len({str(other.problem) for other in rows if other.label == row.label}) == 1:
        return row.label
    return f"{row.label} {str(row.problem).split(',activation')[0]}"
