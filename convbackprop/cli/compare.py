"""Compare two saved runs row by row: whether the second is faster, slower, or no different."""

from __future__ import annotations

import argparse

from rich.table import Table
from rich.text import Text

from convbackprop.bench import gpu_reports, runs
from convbackprop.bench.columns import digits
from convbackprop.bench.comparison import FASTER, LEAST, SAME_SPEED, SLOWER, Comparison, cells, compare, summary
from convbackprop.bench.gpu_reports import GpuReport
from convbackprop.cli.common import console, grid, print_json, say
from convbackprop.errors import InvalidArgument

HELP = "two saved runs, row by row"
EPILOG = """\
A run is a name that 'convbackprop bench --save NAME' was given, or a file.
Two files that 'make gpu-report' wrote are compared, too: their rows that moved.

Each row is judged by a Mann-Whitney U test of its repetitions, which do not
pair between two runs, corrected for the number of rows (Benjamini-Hochberg: at
most 5 % of the rows called faster or slower are expected not to be). All rows
together, which do pair, are judged by a Wilcoxon signed-rank test. A difference
below --least is none.
Runs of another version, machine or device are compared with a note.

examples:
  convbackprop bench --save before
  convbackprop bench --save after
  convbackprop compare before after
  convbackprop compare benchmarks/results/A.json benchmarks/results/B.json

JSON keys: a, b, notes, rows [variant, problem, label, a_ms, b_ms,
a_repetitions, b_repetitions, ratio, machine (the copies' ratio, where it is
not about 1), p, q, verdict], overall {ratio, p,
verdict}, only_a, only_b [variant, problem]
JSON keys of two GPU reports: a, b, notes, rows [part, job, who, a_us, b_us,
ratio, machine, verdict], overall {ratio}, goals [what, a, b (true: met)],
only_a, only_b [job, who]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("a", metavar="A", help="the first run: a name, or a path that ends in .json")
    parser.add_argument("b", metavar="B", help="the second, of which the verdicts speak")
    parser.add_argument("--least", type=float, default=100 * LEAST, metavar="PERCENT", help="differences up to this "
                        f"are none; default: {100 * LEAST:g}")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print how the runs compare; return 0."""
    if not 0 <= arguments.least < 1000:
        raise InvalidArgument(f"--least is {arguments.least:g}; it should be a percentage from 0 to below 1000")
    reports = [gpu_reports.read(name) for name in (arguments.a, arguments.b)]
    if reports[0] and reports[1]:
        return _gpu_reports(reports[0], reports[1], arguments)
    if reports[0] or reports[1]:
        one, other = (arguments.a, arguments.b) if reports[0] else (arguments.b, arguments.a)
        raise InvalidArgument(f"{one} is a GPU report and {other} is none; compare two reports, or two saved runs")
    a, b = runs.read(arguments.a), runs.read(arguments.b)
    found = compare(a, b, arguments.least / 100)
    if not found.pairs:
        raise InvalidArgument(f"{arguments.a} and {arguments.b} have no row in common, so nothing can be compared")
    if arguments.json:
        print_json({
            "a": a.name, "b": b.name, "notes": found.notes, "rows": [pair.as_json() for pair in found.pairs],
            "overall": {"ratio": found.ratio, "p": found.p, "verdict": found.verdict},
            "only_a": [{"variant": row.name, "problem": str(row.problem)} for row in found.only_a],
            "only_b": [{"variant": row.name, "problem": str(row.problem)} for row in found.only_b],
        })  # fmt: skip
        return 0
    out = console()
    say(out, *found.notes)
    out.print(_table(found, a.name, b.name))
    say(out, "", *summary(found, a.name, b.name, arguments.least / 100))
    return 0


def _gpu_reports(a: GpuReport, b: GpuReport, arguments: argparse.Namespace) -> int:
    """Print what moved between two GPU reports; return 0."""
    found = gpu_reports.compare(a, b, arguments.least / 100)
    if not found.rows:
        raise InvalidArgument(f"{arguments.a} and {arguments.b} have no row in common, so nothing can be compared")
    if arguments.json:
        print_json({
            "a": a.name, "b": b.name, "notes": found.notes, "rows": [row.as_json() for row in found.rows],
            "overall": {"ratio": found.ratio},
            "goals": [{"what": what, "a": before, "b": after} for what, before, after in found.goals],
            "only_a": [{"job": job, "who": who} for job, who in found.only_a],
            "only_b": [{"job": job, "who": who} for job, who in found.only_b],
        })  # fmt: skip
        return 0
    out = console()
    say(out, *found.notes)
    rows: list[list[str | Text]] = [
        [row.job, row.who, digits(row.a_us), digits(row.b_us), f"{row.ratio:.3f}", _shown(row.verdict)]
        for row in found.rows
        if row.verdict != SAME_SPEED
    ]
    if rows:
        said = f"{b.name} is"
        out.print(grid(("job", "row", f"{a.name} us", f"{b.name} us", "ratio", said), rows, ("row", said)))
    say(out, "", *gpu_reports.summary(found, a.name, b.name, arguments.least / 100))
    return 0


def _shown(verdict: str) -> Text:
    return Text(verdict, {FASTER: "green", SLOWER: "red"}.get(verdict, ""))


def _table(found: Comparison, a: str, b: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("pass/variant", no_wrap=True)
    table.add_column("problem", overflow="fold")
    for head in (f"{a} ms", f"{b} ms", "ratio", "q"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column(f"{b} is", no_wrap=True)
    before = None
    for pair in found.pairs:
        if before not in (None, pair.a.label):
            table.add_row()
        before = pair.a.label
        table.add_row(pair.a.name, pair.a.label, *cells(pair.as_json()), _shown(pair.verdict))
    return table
