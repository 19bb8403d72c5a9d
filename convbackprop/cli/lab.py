"""The lab: eight exercises in a folder, each a .cu that compiles and is wrong or slow in one instructive way."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.text import Text

from convbackprop.cli.common import console, grid, print_json, say
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.lab import progress
from convbackprop.lab.exercises import EXERCISES, Exercise
from convbackprop.lab.progress import State

HELP = "exercises: a folder of .cu files to mend, and what of them is done"
EPILOG = """\
Each exercise says in its head comment what is given, what to change and how one
sees that it is done, and at its end which rung of the ladder does it. A file
that is there is not overwritten.

--next grades what has changed since it was graded last, and says what comes.

examples:
  convbackprop lab
  convbackprop lab course/lab
  convbackprop lab --next course/lab

exit code: 0 all is done (without --next: the files are there); 1 there is more
to do; 2 the folder cannot be used

JSON keys: folder, written, kept, exercises [number, file, title, solution,
done, said]; done and said are null where nothing was graded.
"""

_FOLDER = "lab"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("folder", nargs="?", metavar="DIR", help=f"the folder; default: {_FOLDER}, with --next this "
                        "folder, if it has exercises")  # fmt: skip
    parser.add_argument("--next", action="store_true", help="say what is done, and what comes next")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the exercises, or tell how they stand."""
    return _next(arguments) if arguments.next else _write(arguments)


def _write(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder or _FOLDER)
    written, kept = progress.write_exercises(folder)
    if arguments.json:
        print_json(_as_json(folder, {}, written, kept))
        return 0
    out = console()
    if kept:
        say(out, f"left as they are: {', '.join(kept)} (to begin one anew, move it away first)")
    if written:
        say(out, f"wrote {', '.join(written)} into {folder}")
    rows = [[each.file, each.title, each.solution] for each in EXERCISES]
    out.print(grid(("file", "exercise", "the ladder's rung"), rows, ("exercise", "the ladder's rung")))
    first = folder / EXERCISES[0].file
    say(out, "", f"Read {first}, change it, and after each change:", f"  convbackprop grade {shlex.quote(str(first))}",
        "What is done, and what comes next:", f"  convbackprop lab --next {shlex.quote(str(folder))}")  # fmt: skip
    return 0


def _folder(arguments: argparse.Namespace) -> Path:
    """Return the folder with the exercises."""
    asked = [Path(arguments.folder)] if arguments.folder else [Path(), Path(_FOLDER)]
    for folder in asked:
        if any((folder / each.file).is_file() for each in EXERCISES):
            return folder
    raise InvalidArgument(
        f"there is no exercise in {arguments.folder or 'this folder'}; 'convbackprop lab"
        f"{' ' + shlex.quote(arguments.folder) if arguments.folder else ''}' writes them"
    )


def _grade(each: Exercise, path: Path) -> tuple[bool, str]:
    """Grade a file in a process of its own, whose output is the grade whatever the kernel does."""
    command = [sys.executable, "-m", "convbackprop", "grade", str(path), "--exercise", str(each.number), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise EnvironmentProblem(f"{path} cannot be graded: {done.stderr.strip()}") from None
    return all(task["done"] for task in found["tasks"]), found["said"]


def _next(arguments: argparse.Namespace) -> int:
    folder = _folder(arguments)
    found = progress.states(folder, _grade)
    left = [each for each, state in found.items() if not (state and state.done)]
    if arguments.json:
        print_json(_as_json(folder, found, [], []))
        return int(bool(left))
    out = console()
    rows: list[list[str | Text]] = [[each.file, _mark(state), each.title] for each, state in found.items()]
    out.print(grid(("file", "", "exercise"), rows, ("", "exercise")))
    if not left:
        say(out, "", "All is done. What is left is to beat the ladder: convbackprop bench FILE.cu --ladder")
        return 0
    first = left[0]
    state = found[first]
    path = folder / first.file
    say(out, "", f"Next is exercise {first.number} ({first.title}): {path}")
    if state:
        say(out, state.said, f"  convbackprop grade {shlex.quote(str(path))}")
    else:
        say(out, f"Its file is not there; 'convbackprop lab {shlex.quote(str(folder))}' writes it anew.")
    return 1


def _mark(state: State | None) -> Text:
    if state is None:
        return Text("no file")
    return Text("done", "green") if state.done else Text("to do", "red")


def _as_json(
    folder: Path, found: Mapping[Exercise, State | None], written: list[str], kept: list[str]
) -> dict[str, object]:
    return {
        "folder": str(folder),
        "written": written,
        "kept": kept,
        "exercises": [
            {"number": each.number, "file": each.file, "title": each.title, "solution": each.solution,
             "done": state.done if state else None, "said": state.said if state else None}
            for each, state in ((each, found.get(each)) for each in EXERCISES)
        ],
    }  # fmt: skip
