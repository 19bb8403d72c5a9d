"""Draw what a rung does: who owns which results, what a warp loads, tiles, rings of rows, the fragments of an mma."""

from __future__ import annotations

import argparse
from pathlib import Path

from convbackprop.arguments import known
from convbackprop.cli.common import console, grid, is_file, print_json, progress, say, variants_of
from convbackprop.cli.shield import Shielded
from convbackprop.errors import InvalidArgument
from convbackprop.explain.drawing import FORMATS, rendered
from convbackprop.explain.picture import Picture
from convbackprop.explain.terminal import show
from convbackprop.explain.topics import TOPICS, explain, topics_of
from convbackprop.files import write_whole
from convbackprop.ladder.registry import VARIANTS
from convbackprop.ladder.variant import Variant
from convbackprop.problem import PASSES, ConvProblem

HELP = "what a rung does, drawn"
EPILOG = """\
WHAT is a topic, a rung, or both; of a rung alone all its topics are drawn.
Without WHAT the topics are listed. The kernel runs on the CPU with a GPU's
constants on a small problem, and each access to memory is recorded with its
thread and its line: what is drawn is what the threads have touched, and
changes with the code. In the terminal; or with -o as PNG or SVG, which needs
matplotlib: pip install 'convbackprop[plot]'.

examples:
  convbackprop explain
  convbackprop explain chain-rule
  convbackprop explain tile
  convbackprop explain forward/coalesced -o coalesced.png
  convbackprop explain loads forward/naive --problem 1,1,24,40,1,3,3,stride=2
  convbackprop explain threads mine.cu

JSON keys: pictures [topic, title, sentences, panels [title, down, across,
rows, first_column, legend {class: what}, classes (by row and column; -2:
nothing is there, -1: it is nobody's), words, frames [row, col, rows, cols],
framed]]; without WHAT topics [topic, what, rungs]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("what", nargs="*", metavar="TOPIC | PASS/VARIANT | FILE.cu",
                        help=f"{', '.join(TOPICS)}; and of which rung, or file of your own")  # fmt: skip
    parser.add_argument("--pass", dest="pass_name", metavar="PASS", help="the pass that FILE.cu computes, where it has "
                        f"no line '//@ pass PASS': {', '.join(PASSES)}")  # fmt: skip
    parser.add_argument("--problem", metavar="TEXT", help="N,C,H,W,K,R,S and options; default: a small one that shows "
                        "it well")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", help="draw to a file, by its ending PNG or SVG")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _wanted(arguments: argparse.Namespace) -> tuple[tuple[str, ...], Variant | None]:
    """Return the topics, and of which rung."""
    topics = [word for word in arguments.what if word in TOPICS]
    targets = [word for word in arguments.what if word not in TOPICS]
    if len(topics) > 1 or len(targets) > 1:
        raise InvalidArgument(f"WHAT is {' '.join(arguments.what)!r}; it should be a topic, a rung, or one of each")
    if not targets:
        return tuple(topics), None
    (target,) = targets
    if not is_file(target) and target.partition("/")[0] not in PASSES:
        known(target, (*TOPICS, *PASSES), "WHAT")
    variants = variants_of(target, arguments.pass_name)
    if len(variants) != 1:
        raise InvalidArgument(f"WHAT is {target!r}; name one rung of it, such as {variants[0]}")
    return tuple(topics) or topics_of(variants[0]), variants[0]


def drawn(arguments: argparse.Namespace) -> list[Picture]:
    """Return the pictures that the arguments ask for."""
    topics, variant = _wanted(arguments)
    problem = ConvProblem.parse(arguments.problem) if arguments.problem else None
    pictures = []
    with progress() as bar:
        task = bar.add_task("drawing", total=len(topics))
        for topic in topics:
            bar.update(task, description=topic, refresh=True)
            pictures.append(explain(topic, variant, problem))
            bar.update(task, advance=1, refresh=True)
    return pictures


def run(arguments: argparse.Namespace) -> int:
    """Draw, in the terminal or to a file; return 0."""
    ending = Path(arguments.output or ".png").suffix[1:] if arguments.output else ""
    if arguments.output and ending not in FORMATS:
        raise InvalidArgument(f"--output is {arguments.output}; its name should end in .png or .svg")
    if not arguments.what:
        for option in ("output", "problem", "pass_name"):
            if getattr(arguments, option):
                raise InvalidArgument(
                    "WHAT is missing; it should be a topic or a rung ('convbackprop explain' lists them)"
                )
        return _list(arguments.json)
    shield = Shielded()

    def command() -> int:
        shield.doing(" ".join(arguments.what))
        return _draw(arguments, ending)

    return shield.run(command) if any(map(is_file, arguments.what)) else command()


def _draw(arguments: argparse.Namespace, ending: str) -> int:
    pictures = drawn(arguments)
    if arguments.output:
        write_whole(Path(arguments.output), rendered(pictures, ending))
    if arguments.json:
        print_json({"pictures": [picture.as_json() for picture in pictures]})
    elif arguments.output:
        say(console(), f"wrote {arguments.output}", *(s for picture in pictures for s in picture.sentences))
    else:
        for picture in pictures:
            show(picture, console())
    return 0


def _list(as_json: bool) -> int:
    """Print the topics, and the rungs that each is of."""
    rungs = {topic: [str(v) for v in VARIANTS if topic in topics_of(v)] for topic in TOPICS}
    if as_json:
        print_json({"topics": [{"topic": t, "what": each.what, "rungs": rungs[t]} for t, each in TOPICS.items()]})
        return 0
    out = console()
    rows = []
    for topic, each in TOPICS.items():
        own = list(dict.fromkeys(str(v).partition("/")[2] for v in VARIANTS if topic in topics_of(v)))
        of = "the layer" if not own else "every rung" if len(own) > 6 else ", ".join(own)
        rows.append((topic, each.what, of))
    out.print(grid(("topic", "what is shown", "of"), rows, left=("what is shown", "of")))
    return 0
