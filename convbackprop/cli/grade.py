"""Grade a .cu file of your own: what is wrong first, what it asks of memory, and its rank in the ladder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from convbackprop.cli import grade_class
from convbackprop.cli.common import add_device, compile_ahead, console, grid, print_json, progress, say
from convbackprop.cli.shield import ENDLESS, Shielded
from convbackprop.devices import Device, choice_of_device
from convbackprop.errors import InvalidArgument
from convbackprop.files import check_writable, write_whole
from convbackprop.lab import exercises, grade_report, progress as progress_of_lab
from convbackprop.lab.grade import Grade
from convbackprop.lab.grading import grade
from convbackprop.lab.verdict import first_wrong
from convbackprop.ladder.variant import Variant
from convbackprop.problem import ConvProblem

HELP = "grade a .cu file of your own, or a folder of hand-ins: what is wrong first, and its rank in the ladder"
EPILOG = """\
The file is compiled, checked on curated problems (those of the exercise: every
one in float32 with ReLU, a third of them also with tanh, with the logistic
function and in float16; 'convbackprop check FILE' checks all, also with NaN and
infinities), and looked at by the sanitizer on eight small ones. If it is right
its addresses are replayed and it is timed beside rungs of the ladder. Then the
first thing that is wrong is told: what, where, why, what to look at.

Whether a task is done follows from what was counted, never from a clock. The
rank is by times: a GPU's where there is one, else those that are expected of a
GPU where there are nvcc and cuobjdump, else the CPU's.

Which exercise it is says the file's name ('convbackprop lab' writes them), or
--exercise; a file of no exercise is asked to be right and clean. A file holds
device code and nothing else: host code is refused. A launch that does not end
within 30 seconds is ended.

examples:
  convbackprop grade 1_forward.cu
  convbackprop grade mine.cu --exercise 5
  convbackprop grade mine.cu --html report.html

exit code: 0 all is done; 1 something is wrong, or to do; 2 it is no kernel

JSON keys: file, exercise, pass, variant, device, compiled, error, right,
checks, wrong_checks, clean, findings [kind, line, sentence], mistake {kind,
title, why, look_at}, said, coalescing (sectors asked for over those needed),
bank_conflicts (wavefronts over the fewest), cpu_us, expected_us, measured_us,
rank {by, faster_than [name], slower_than [name]}, limit, tasks [task, done].
What is not known is null.
"""

EPILOG += f"\n{grade_class.CLASS_EPILOG}"

#: Seconds after which a launch is taken for endless.
LONGEST = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("target", nargs="?", metavar="FILE.cu | FOLDER", help="the file, or the hand-ins of a class")
    parser.add_argument("--exercise", type=int, metavar="N", help="which exercise it is judged by: 1 to "
                        f"{len(exercises.EXERCISES)}; default: the one whose file is named so")  # fmt: skip
    add_device(parser)
    parser.add_argument("--html", metavar="FILE", help="write the report as one self-contained page")
    parser.add_argument("--json", action="store_true", help="print JSON")
    grade_class.add_class_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Grade the file in a child process, tell the verdict, and return 0 if all is done; or grade a class."""
    if arguments.rubric_example:
        return grade_class.print_rubric_example()
    if arguments.target is None:
        raise InvalidArgument("nothing is named that could be graded; it should be a .cu file, or a folder of hand-ins")
    path = Path(arguments.target)
    if path.is_dir():
        return grade_class.run_class(path, arguments)
    grade_class.refuse_for_a_file(arguments)
    device, _ = choice_of_device(arguments.device)
    if arguments.html is not None:
        check_writable(Path(arguments.html))
    shield = Shielded(LONGEST)

    def command(crash: str | None = None) -> int:
        with progress() as bar:
            task = bar.add_task(f"grading {path.name}", total=None)

            def doing(what: str) -> None:
                shield.doing(what)
                bar.update(task, advance=1, refresh=True)

            def ahead(pairs: Sequence[tuple[Variant, ConvProblem]], on: Device) -> None:
                compile_ahead(pairs, on, "cuda" if on is not device else device.target, bar)

            try:
                digest = progress_of_lab.digest_of(path) if exercises.of_file(path.name) and path.is_file() else ""
                found = grade(path, arguments.exercise, device, doing, ahead, crash)
            except InvalidArgument as error:
                if arguments.json:
                    print_json(_unfinished(arguments, device.name, error=str(error)).as_json())
                raise
        if found.exercise.file == path.name:
            progress_of_lab.remember(path, digest, found.done, found.said)
        return _tell(found, arguments)

    def crashed(_: str, sentence: str) -> None:
        """Once more, with the sanitizer alone, which looks at each access before it is made."""

        def again(*_: str) -> None:
            _tell(_unfinished(arguments, device.name, compiled=True, crashed=sentence), arguments)

        if sentence.startswith(ENDLESS):
            again()
        else:
            shield.run(lambda: command(sentence), again)

    return shield.run(command, crashed)


def _unfinished(arguments: argparse.Namespace, device: str, **what: Any) -> Grade:
    """Return the grade of a file that came to no end."""
    asked = arguments.exercise and exercises.exercise(arguments.exercise)
    asked = asked or exercises.of_file(Path(arguments.target).name) or exercises.without_exercise("forward")
    return Grade(arguments.target, asked, device, **what)


def _tell(found: Grade, arguments: argparse.Namespace) -> int:
    if arguments.html is not None:
        write_whole(Path(arguments.html), grade_report.html(found))
    if arguments.json:
        print_json(found.as_json())
    else:
        _print(found)
        if arguments.html is not None:
            say(console(), "", f"wrote {arguments.html}")
    return int(not found.done)


def _print(found: Grade) -> None:
    out = console()
    out.print(Text(grade_report.verdict(found), "bold green" if found.done else "bold red"))
    say(out, *first_wrong(found), "")
    cells: list[list[str | Text]] = []
    for row in grade_report.rows(found):
        style = "" if row.good is None else "green" if row.good else "red"
        cells.append([row.what, Text(row.text, style)])
    out.print(grid(("what", "found"), cells, ("found",)))
    if found.times:
        out.print()
        out.print(grid(*grade_report.ladder(found)))
        say(out, grade_report.rank(found), grade_report.about(found))
    if found.limit:
        say(out, found.limit)
