"""What of the lab is done: each file's grade, remembered by the file's digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from convbackprop._version import __version__
from convbackprop.errors import InvalidArgument
from convbackprop.files import write_whole
from convbackprop.lab.exercises import EXERCISES, Exercise

#: In the folder of the exercises: what was graded, and how that came out.
REMEMBERED = Path(".convbackprop/lab.json")


@dataclass(frozen=True)
class State:
    """How an exercise stands.

    Attributes
    ----------
    digest : str
        Of the file that was graded.
    done : bool
        Whether all its tasks are.
    said : str
        The first thing that is wrong.
    """

    digest: str
    done: bool
    said: str


def write_exercises(folder: Path) -> tuple[list[str], list[str]]:
    """Write the exercises into a folder; a file that is there stays as it is.

    Returns
    -------
    tuple of two lists of str
        The names of the files that were written, and of those that were there.

    Raises
    ------
    InvalidArgument
        The folder cannot be made, or a file cannot be written.
    """
    written, kept = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in EXERCISES:
            try:
                with (folder / each.file).open("x", encoding="utf-8") as file:
                    file.write(each.text())
                written.append(each.file)
            except FileExistsError:
                kept.append(each.file)
        _remember(folder, {})
    except OSError as error:
        raise InvalidArgument(f"{folder} cannot be written: {error.strerror or error}") from None
    return written, kept


def states(folder: Path, grade: Callable[[Exercise, Path], tuple[bool, str]]) -> dict[Exercise, State | None]:
    """Return how each exercise of a folder stands; None: its file is not there.

    What was graded before, or is as it was handed out, is not graded.


    Parameters
    ----------
    folder : Path
        Where the exercises are.
    grade : callable
        (exercise, file) -> whether it is done, and what is said of it.
    """
    before = _remembered(folder)
    found: dict[Exercise, State | None] = {}
    for each in EXERCISES:
        path = folder / each.file
        if not path.is_file():
            found[each] = None
            continue
        digest = digest_of(path)
        known = before.get(each.file)
        if known and known.digest == digest:
            found[each] = known
        elif path.read_bytes() == each.text().encode():
            found[each] = State(digest, False, "It is as it was handed out: its first lines say what to change.")
        else:
            found[each] = State(digest, *grade(each, path))
        _remember(folder, {each.file: state for each, state in found.items() if state})
    return found


def digest_of(path: Path) -> str:
    """Return what a file's grade depends on, besides the machine."""
    return hashlib.sha256(__version__.encode() + path.read_bytes()).hexdigest()


def remember(path: Path, digest: str, done: bool, said: str) -> None:
    """Remember the grade of an exercise's file, if it lies in a folder of the lab that can be written."""
    if (path.parent / REMEMBERED).is_file():
        with contextlib.suppress(InvalidArgument):
            _remember(path.parent, {path.name: State(digest, done, said)})


def _remembered(folder: Path) -> dict[str, State]:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        kept = json.loads((folder / REMEMBERED).read_text(encoding="utf-8"))
        return {name: State(str(of["digest"]), of["done"] is True, str(of["said"])) for name, of in kept.items()}
    return {}


def _remember(folder: Path, found: Mapping[str, State]) -> None:
    kept = {name: asdict(state) for name, state in {**_remembered(folder), **found}.items()}
    write_whole(folder / REMEMBERED, json.dumps(kept, indent=1) + "\n")
