"""Draw a saved run: the ladder, the roofline, and time against size."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

from convbackprop.arguments import known
from convbackprop.bench import plots, runs
from convbackprop.bench.runs import Run
from convbackprop.cli.common import console, print_json, say
from convbackprop.errors import InvalidArgument
from convbackprop.files import write_whole

HELP = "pictures of a saved run"
EPILOG = """\
ladder    a bar for each variant and peer, with the floor as a line
roofline  GFLOP/s against operations a byte, under the run's fastest copy and
          its peak rate of multiply-adds
size      time against the size of the input, both logarithmic

Without KIND all three are drawn, but for size where there is one size only.
pip install 'convbackprop[plot]' brings matplotlib, which this needs.

examples:
  convbackprop bench --suite sizes --save sizes
  convbackprop plot sizes
  convbackprop plot sizes size --output growth.svg
  convbackprop plot before ladder --only '1024x1024 5x5'

JSON keys: pictures, left_out
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run_name", metavar="RUN", help="a name that bench --save was given, or a .json file")
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"{', '.join(plots.KINDS)}; default: all")
    parser.add_argument("--only", metavar="REGEX", help="the rows in whose 'pass/variant label problem' it is found")
    parser.add_argument("--output", metavar="FILE", help="where to write one KIND, by its ending as PNG or SVG; "
                        "default: RUN-KIND.png in this directory")  # fmt: skip
    parser.add_argument("--format", metavar="F", help=f"{' or '.join(plots.FORMATS)}; default: png")
    parser.add_argument("--json", action="store_true", help="print JSON")


def only(run: Run, pattern: str | None) -> Run:
    """Return a run with those rows in whose name, label and problem a regular expression is found."""
    try:
        wanted = re.compile(pattern or "")
    except re.error as error:
        raise InvalidArgument(f"--only is {pattern!r}, which is no regular expression: {error}") from None
    rows = [row for row in run.rows if wanted.search(f"{row.name} {row.label} {row.problem}")]
    if not rows:
        raise InvalidArgument(f"--only is {pattern!r}, which is found in no row of run {run.name}")
    return dataclasses.replace(run, rows=rows)


def run(arguments: argparse.Namespace) -> int:
    """Draw and write the pictures; return 0."""
    kinds = [known(arguments.kind, tuple(plots.KINDS), "kind")] if arguments.kind else list(plots.KINDS)
    form = known(arguments.format, plots.FORMATS, "--format") if arguments.format else "png"
    if arguments.output is not None:
        ending = Path(arguments.output).suffix[1:]
        if not arguments.kind:
            raise InvalidArgument(f"--output is one file; say which KIND goes there: {', '.join(plots.KINDS)}")
        if ending not in plots.FORMATS:
            raise InvalidArgument(f"--output is {arguments.output}; its name should end in .png or .svg")
        if arguments.format not in (None, ending):
            raise InvalidArgument(f"--format is {form}, but --output ends in .{ending}")
        form = ending
    saved = only(runs.read(arguments.run_name), arguments.only)
    written, left_out = [], []
    for kind in kinds:
        try:
            drawing = plots.KINDS[kind](saved)
        except InvalidArgument as error:
            if arguments.kind:
                raise
            left_out.append(f"{kind} is left out: {error}")
            continue
        path = Path(arguments.output or f"{saved.name}-{kind}.{form}")
        write_whole(path, plots.rendered(drawing, form))
        written.append(str(path))
    if arguments.json:
        print_json({"pictures": written, "left_out": left_out})
    else:
        say(console(), *(f"wrote {path}" for path in written), *left_out)
    return 0
