"""What `grade` does with a folder: the hand-ins of a class, confined, and their table."""

from __future__ import annotations

import argparse
import math
import textwrap
from pathlib import Path

from convbackprop.arguments import shown
from convbackprop.cli.common import console, counted, print_json, progress, say
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.files import check_writable, write_whole
from convbackprop.lab.confinement import Limits, what_is_missing
from convbackprop.lab.exercises import exercise
from convbackprop.lab.rubric import example, read_rubric

_ENFORCED = (
    "writes and makes files in a folder of its own alone, which is removed afterwards, and reads there and what "
    "Python, the C++ compiler and this package consist of: no other hand-in, and nothing of yours",
    "has no network and no sockets, no terminal, no GPU, and of your environment variables those of compilers",
    "can neither signal nor trace nor slow down processes of yours, and sudo gives it nothing; of root's it becomes "
    "nobody's",
    "is ended, with all that it has started, after --minutes of CPU time, or three times as many by the clock",
    f"has {Limits.memory >> 30} GiB of memory, 64 processes and 8 more for each core, {Limits.files >> 30} GiB of "
    f"files, and prints {Limits.output >> 20} MiB at most",
)

#: For the help of `grade`.
CLASS_EPILOG = f"""\
Of a folder each student.cu and student/*.cu is a hand-in. It is graded on the
CPU in a process of its own; one that crashes or never ends costs its own row
only. What is enforced, by Linux from 6.2 on, and tried before anything is run:
such a process

{
    chr(10).join(
        textwrap.fill(line, 80, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
        for line in _ENFORCED
    )
}

Where that cannot be had the command refuses, and says what is missing;
--unconfined leaves the limits alone and nothing else. A kernel runs in the
grader's process: one made to forge its own grade may succeed.

The results are kept in FOLDER.grades.json: run again, the command grades what
has changed since. Points are given by a rubric; --rubric-example prints one.

  convbackprop grade hand_ins --csv points.csv --html points.html
  convbackprop grade --rubric-example > rubric.toml
  convbackprop grade hand_ins --rubric rubric.toml --exercise 5 --jobs 4

JSON keys of a folder: points, hand_ins [name, points, criteria, trouble,
seconds, cpu_seconds, grade]
"""


def add_class_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a folder takes; --exercise, --html and --json it has in common with a file."""
    group = parser.add_argument_group("for a folder")
    group.add_argument(
        "--rubric", metavar="FILE.toml", help="what gives points; default: as --rubric-example prints it"
    )
    group.add_argument("--rubric-example", action="store_true", help="print a rubric and do nothing else")
    group.add_argument("--csv", metavar="FILE", help="write the table as CSV")
    group.add_argument("--minutes", type=float, default=Limits.cpu_seconds / 60, metavar="M",
                       help="CPU time of each hand-in; default: %(default)g")  # fmt: skip
    group.add_argument("--jobs", type=int, default=1, metavar="N", help="hand-ins at a time; default: 1, as they "
                       "disturb each other's CPU times")  # fmt: skip
    group.add_argument("--again", action="store_true", help="grade those, too, that have not changed")
    group.add_argument("--unconfined", action="store_true", help="run hand-ins that you trust without protection")


def print_rubric_example() -> int:
    """Print what can be changed and given to --rubric."""
    print(example(), end="")
    return 0


def refuse_for_a_file(arguments: argparse.Namespace) -> None:
    """Refuse what means nothing for a single file."""
    default = argparse.ArgumentParser()
    add_class_arguments(default)
    for name, value in vars(default.parse_args([])).items():
        if getattr(arguments, name) != value:
            raise InvalidArgument(f"--{name.replace('_', '-')} is for a folder of hand-ins; {arguments.target} is none")


def run_class(folder: Path, arguments: argparse.Namespace) -> int:
    """Grade the hand-ins of a folder and print their table; return 0 when there is one, whatever is wrong in it."""
    from convbackprop.lab import class_report
    from convbackprop.lab.hand_ins import grade_folder, hand_ins, results_file

    rubric = read_rubric(Path(arguments.rubric) if arguments.rubric else None)
    if not (math.isfinite(arguments.minutes) and arguments.minutes > 0):
        raise InvalidArgument(f"--minutes is {shown(arguments.minutes)}; it should be more than 0")
    if arguments.jobs < 1:
        raise InvalidArgument(f"--jobs is {arguments.jobs}; it should be at least 1")
    if arguments.device not in (None, "cpu"):
        raise InvalidArgument(f"--device is {arguments.device}; a folder is graded on cpu, where it can be confined")
    if arguments.exercise is not None:
        exercise(arguments.exercise)  # there is one of that number
    hand_ins(folder)  # there are some
    reports = [Path(name) for name in (arguments.csv, arguments.html) if name]
    for path in reports:
        check_writable(path)
    if not arguments.unconfined and (missing := what_is_missing(folder)):
        raise EnvironmentProblem(
            "hand-ins cannot be confined on this machine, and none was run: " + "; ".join(missing) + ". --unconfined "
            "runs them without protection, as you would run them yourself"
        )
    seconds = max(1, round(60 * arguments.minutes))
    limits = Limits(cpu_seconds=seconds, seconds=3 * seconds)
    with progress() as bar:
        task = bar.add_task("preparing", total=None)

        def tell(done: int, of: int) -> None:
            bar.update(task, description="grading" if done else "preparing", completed=done, total=of, refresh=True)

        rows = grade_folder(
            folder,
            exercise=arguments.exercise,
            limits=limits,
            jobs=arguments.jobs,
            confined=not arguments.unconfined,
            again=arguments.again,
            progress=tell,
        )
    those = class_report.scored(rows, rubric)
    if arguments.csv:
        write_whole(Path(arguments.csv), class_report.as_csv(those, rubric))
    if arguments.html:
        write_whole(Path(arguments.html), class_report.as_html(those, rubric, f"Hand-ins: {folder.absolute().name}"))
    if arguments.json:
        print_json(class_report.as_json(those, rubric))
        return 0
    out = console()
    out.print(class_report.table(those, rubric))
    say(out, "", *class_report.ranked_by(those))
    right = sum(bool(row.facts["right"]) for row in rows)
    say(out, f"{counted(len(rows), 'hand-in')}, {right} right; results are kept in {results_file(folder)}")
    return 0
