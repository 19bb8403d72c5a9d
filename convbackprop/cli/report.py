"""Write a page on saved runs: what they were timed on, their tables and pictures, and how they compare."""

from __future__ import annotations

import argparse
from pathlib import Path

from convbackprop.arguments import known
from convbackprop.bench import plots, runs
from convbackprop.bench.report import as_html, as_markdown, page_of
from convbackprop.cli.common import console, print_json, say
from convbackprop.cli.plot import only
from convbackprop.errors import InvalidArgument
from convbackprop.files import write_whole

HELP = "a page on saved runs"
EPILOG = """\
By the ending of --output: .html is one file with the pictures inside, .md has
its pictures beside it. With several runs each is compared with the first.
pip install 'convbackprop[plot]' brings matplotlib, which the pictures need.

examples:
  convbackprop bench --save before
  convbackprop report before
  convbackprop report before after --output change.md --format png

JSON keys: page, pictures
"""

_ENDINGS = (".html", ".md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run_names", nargs="+", metavar="RUN", help="names that bench --save was given, or .json files")
    parser.add_argument("--output", metavar="FILE", help="the page; default: report.html in this directory")
    parser.add_argument("--title", default="Benchmarks of convbackprop", metavar="TEXT", help="the page's heading")
    parser.add_argument("--only", metavar="REGEX", help="the rows in whose 'pass/variant label problem' it is found")
    parser.add_argument("--format", default="svg", metavar="F", help=f"of the pictures: {' or '.join(plots.FORMATS)}; "
                        "default: svg")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the page; return 0."""
    form = known(arguments.format, plots.FORMATS, "--format")
    path = Path(arguments.output or "report.html")
    if path.suffix not in _ENDINGS:
        raise InvalidArgument(f"--output is {path}; its name should end in {' or '.join(_ENDINGS)}")
    saved = [only(runs.read(name), arguments.only) for name in arguments.run_names]
    if len({each.name for each in saved}) < len(saved):
        raise InvalidArgument("two runs have the same name; save or copy one under another name")
    page = page_of(saved, arguments.title, form)
    pictures: dict[str, bytes] = {}
    if path.suffix == ".html":
        text = as_html(page, form)
    else:
        text, pictures = as_markdown(page, form)
    for name, content in pictures.items():
        write_whole(path.parent / name, content)
    write_whole(path, text)  # last: what it shows is there
    if arguments.json:
        print_json({"page": str(path), "pictures": [str(path.parent / name) for name in pictures]})
    else:
        say(console(), *(f"wrote {path.parent / name}" for name in pictures), f"wrote {path}")
    return 0
