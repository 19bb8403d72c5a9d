"""A folder of hand-ins, each graded in a confined process of its own; what is graded is kept beside the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import convbackprop
from convbackprop._version import __version__
from convbackprop.devices import cache
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.files import check_writable, write_whole
from convbackprop.lab.confinement import Limits, Outcome, bare_environment, run_confined, workshop
from convbackprop.problem import PASSES
from convbackprop.sources import source_root

#: Bytes of a hand-in, at most.
_MOST = 1 << 20

#: What a grade says that the points and the tables are made of, and what it may be: who prints it is not trusted.
_FACTS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("compiled", "right", "clean"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(("coalescing", "bank_conflicts", "expected_us", "cpu_us", "measured_us"),
                    lambda value: value is None or (isinstance(value, int | float) and 0 <= value < 1e30)),
    "said": lambda value: isinstance(value, str),
    "tasks": lambda value: isinstance(value, list) and all(isinstance(each, dict) and "done" in each for each in value),
    "mistake": lambda value: value is None or (isinstance(value, dict) and isinstance(value.get("title"), str)),
    "rank": lambda value: value is None or (
        isinstance(value, dict) and isinstance(value.get("by"), str)
        and all(isinstance(value.get(names), list) for names in ("faster_than", "slower_than"))
    ),
}  # fmt: skip

#: What grades one file: it gets the file as its last word, and prints a grade as JSON.
COMMAND = (sys.executable, "-m", "convbackprop", "grade", "--json")


class HandIn(NamedTuple):
    """A file of the folder: its name there, and its text; or why it is not taken."""

    name: str
    text: bytes
    trouble: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of a hand-in.

    Attributes
    ----------
    name : str
        The file's path in the folder.
    grade : dict or None
        As `Grade.as_json` returns it; None where it came to none.
    trouble : str or None
        Why there is no grade, in words that follow the name.
    seconds, cpu_seconds : float
        That it took.
    digest : str
        Of all that the result depends on.
    """

    name: str
    grade: dict[str, Any] | None
    trouble: str | None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    digest: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """The grade, or that nothing is right."""
        nothing = dict.fromkeys(_FACTS) | {"compiled": False, "right": False, "clean": False, "tasks": []}
        return self.grade or nothing | {"said": f"It {self.trouble}."}


# -- which files -----------------------------------------------------------------------------------------------------
def hand_ins(folder: Path) -> list[HandIn]:
    """Return the hand-ins of a folder: each `student.cu` and `student/*.cu`, by name; hidden ones are left out.

    Raises
    ------
    InvalidArgument
        There is none, or the folder cannot be read.
    """
    try:
        found = [hand_in for entry in os.scandir(folder) for hand_in in _of(folder, entry)]
    except OSError as error:
        raise InvalidArgument(f"{folder} cannot be read: {error.strerror or error}") from None
    if not found:
        raise InvalidArgument(f"{folder} has no hand-in: it should hold files such as student.cu or student/forward.cu")
    return sorted(found, key=lambda hand_in: hand_in.name)


def _of(folder: Path, entry: os.DirEntry[str]) -> list[HandIn]:
    """Return what an entry of the folder stands for: one hand-in, those of a student, or none."""
    if entry.name.startswith("."):
        return []
    if entry.name.endswith(".cu"):
        return [_read(folder, Path(entry.path))]
    if not entry.is_dir():
        return []
    if entry.is_symlink():
        return [HandIn(entry.name, b"", "is a symbolic link; the folder itself should be handed in")]
    try:
        names = [name for name in os.listdir(entry.path) if name.endswith(".cu") and not name.startswith(".")]
    except OSError as error:
        return [HandIn(entry.name, b"", f"cannot be read: {error.strerror}")]
    if not names:
        return [HandIn(entry.name, b"", "has no .cu file")]
    return [_read(folder, Path(entry.path, name)) for name in names]


def _read(folder: Path, path: Path) -> HandIn:
    """Read a file that may be anything; nothing is followed to another place, and nothing is waited for."""
    name = str(path.relative_to(folder))
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            return HandIn(name, b"", "is a symbolic link; the file itself should be handed in")
        return HandIn(name, b"", f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        return HandIn(name, b"", "is no file")
    with open(number, "rb") as file:
        text = file.read(_MOST + 1)
    if len(text) > _MOST:
        return HandIn(name, b"", f"has more than {_MOST:,} bytes; a kernel has a page or two")
    return HandIn(name, text)


# -- one hand-in -----------------------------------------------------------------------------------------------------
def _grade_one(
    hand_in: HandIn, work: Path, shared: Path | None, run: Callable[..., Outcome], command: Sequence[str]
) -> Row:
    """Grade a file in a folder of its own, which is removed again."""
    if hand_in.trouble:
        return Row(hand_in.name, None, hand_in.trouble)
    with workshop(work) as folder:
        place = folder / "hand_in"
        place.mkdir()
        base = hand_in.name.rpartition("/")[2]
        file = place / (base if re.fullmatch(r"[\w.+-]+", base, re.ASCII) else "hand_in.cu")
        file.write_bytes(hand_in.text)
        if shared is not None:
            _share(shared / "cache", folder / "cache")
        outcome = run([*command, str(file)], folder, _environment(folder), also_readable=[shared] if shared else [])
        grade, trouble = _told(outcome._replace(**{  # the folder is of no interest to its reader
            name: getattr(outcome, name).replace(f"{place}/".encode(), b"") for name in ("output", "errors")
        }))  # fmt: skip
        if grade is not None:
            grade["file"] = hand_in.name
    return Row(hand_in.name, grade, trouble, outcome.seconds, outcome.cpu_seconds)


def _environment(folder: Path) -> dict[str, str]:
    return {
        **bare_environment(folder),
        "CONVBACKPROP_CACHE_DIR": str(folder / "cache"),
        "CONVBACKPROP_DEVICE": "cpu",
        "CONVBACKPROP_TUNED": "off",
    }


def _share(shared: Path, own: Path) -> None:
    """Make a kernel cache that has what is in a shared one, which its user can read and not write to.

    What is built anew replaces a link here, and nothing there.
    """
    own.mkdir(mode=0o700)
    for entry in os.scandir(shared):
        if entry.is_file() and not entry.name.endswith(".lock"):
            (own / entry.name).symlink_to(entry.path)


def _told(outcome: Outcome) -> tuple[dict[str, Any] | None, str | None]:
    """Return the grade that a process has printed, or why it has printed none."""
    if outcome.stopped:
        return None, outcome.stopped
    grades = list(_grades(outcome.output.decode(errors="replace")))
    if len(grades) == 1 and outcome.code in (0, 1, 2):
        return grades[0], None
    if len(grades) > 1:
        return None, "prints what looks like a grade"
    code, said = outcome.code or 0, outcome.errors.decode(errors="replace").strip()
    if code < 0:
        return None, f"ended in a crash ({signal.strsignal(-code) or f'signal {-code}'})"
    last = said.splitlines()[-1].removeprefix("convbackprop: error: ") if said else "without a word"
    return None, f"could not be graded: {last[-500:]}"


def _grades(text: str) -> Iterator[dict[str, Any]]:
    """Yield what looks like a grade in what was printed: a kernel may have printed more."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"^\{", text, re.MULTILINE):
        with contextlib.suppress(ValueError, RecursionError):
            value, _ = decoder.raw_decode(text, match.start())
            if _is_grade(value):
                yield value


def _is_grade(value: object) -> bool:
    return isinstance(value, dict) and all(key in value and may_be(value[key]) for key, may_be in _FACTS.items())


def _warmed(work: Path, passes: Sequence[str], run: Callable[..., Outcome], command: Sequence[str]) -> Path:
    """Grade the package's own template of each pass: what it compiles, all others find in the cache.

    Raises
    ------
    EnvironmentProblem
        That cannot be done; no hand-in could be graded then.
    """
    shared = work / "shared"
    shared.mkdir()
    (shared / "cache").mkdir(mode=0o700)
    for name in passes:
        file = shared / f"{name}.cu"
        file.write_bytes((files("convbackprop") / "templates" / f"{name}.cu").read_bytes())
        grade, trouble = _told(run([*command, str(file)], shared, _environment(shared)))
        if grade is None or not grade["right"]:
            reason = trouble or f"is wrong: {grade and grade['said']}"
            raise EnvironmentProblem(f"nothing can be graded here: the package's own {name}.cu {reason}")
    return shared


# -- the class -------------------------------------------------------------------------------------------------------
def results_file(folder: Path) -> Path:
    """Return where the results of a folder are kept: beside it."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.grades.json")


def grade_folder(
    folder: Path,
    *,
    exercise: int | None = None,
    limits: Limits | None = None,
    jobs: int = 1,
    confined: bool = True,
    again: bool = False,
    progress: Callable[[int, int], None] | None = None,
    command: Sequence[str] = COMMAND,
) -> list[Row]:
    """Grade every hand-in of a folder, whatever it does, and keep the results in `results_file`.

    Parameters
    ----------
    folder : Path
        See `hand_ins` for what counts.
    exercise : int, optional
        Whose tasks are looked at; default: as each file says.
    limits : Limits, optional
        What each hand-in may take.
    jobs : int
        Hand-ins at a time. More than one disturb each other's times on the CPU.
    confined : bool
        As in `run_confined`, which tells what is enforced; ask `what_is_missing` before.
    again : bool
        Grade those, too, that have not changed since.
    progress : callable, optional
        Gets how many are done, and how many are to be done.
    command : sequence of str
        What grades one file.

    Returns
    -------
    list of Row
        One a hand-in, by name.

    Raises
    ------
    InvalidArgument
        There is no hand-in, or the results cannot be kept.
    EnvironmentProblem
        Not even the package's own files can be graded here.
    """
    limits = limits or Limits()
    those = hand_ins(folder)
    keeps = results_file(folder)
    check_writable(keeps)
    if exercise is not None:
        command = (*command, "--exercise", str(exercise))
    conditions = _conditions(command, limits, confined)
    digests = {each.name: cache.digest(conditions, each.text.hex(), each.trouble) for each in those}
    kept = {} if again else _kept(keeps)
    rows = {name: kept[name] for name, digest in digests.items() if name in kept and kept[name].digest == digest}
    left = [each for each in those if each.name not in rows]
    tell = progress or (lambda done, of: None)
    tell(0, len(left))
    lifeline, held = os.pipe()
    try:
        with workshop() as work:
            passes = _passes(left)
            run = functools.partial(run_confined, confined=confined)
            shared = _warmed(work, passes, run, command) if passes else None
            run = functools.partial(run, limits=limits, lifeline=lifeline)
            pool = ThreadPoolExecutor(jobs)
            try:
                waiting = [pool.submit(_grade_one, each, work, shared, run, command) for each in left]
                for count, done in enumerate(as_completed(waiting), 1):
                    row = done.result()
                    rows[row.name] = dataclasses.replace(row, digest=digests[row.name])
                    _keep(keeps, rows)
                    tell(count, len(left))
            finally:
                os.close(held)  # ends what still runs
                held = -1
                pool.shutdown(cancel_futures=True)
    finally:
        os.close(lifeline)
        if held >= 0:
            os.close(held)
    _keep(keeps, rows)
    return sorted(rows.values(), key=lambda row: row.name)


def _passes(those: Sequence[HandIn]) -> list[str]:
    """Return the passes that hand-ins say they compute."""
    said = {match.decode() for each in those for match in re.findall(rb"^//@ *pass +(\w+)", each.text, re.MULTILINE)}
    return [name for name in PASSES if name in said]


def _conditions(command: Sequence[str], limits: Limits, confined: bool) -> str:
    """Return a digest of what a result depends on besides the hand-in: the package, how it is run, the machine."""
    code = hashlib.sha256()
    for root in (Path(convbackprop.__file__).parent, source_root()):
        for file in sorted(root.rglob("*")):
            if file.suffix in (".py", ".cu", ".cuh", ".h", ".cpp") and "__pycache__" not in file.parts:
                code.update(file.name.encode() + b"\0" + file.read_bytes())
    return cache.digest(__version__, code.hexdigest(), command[1:], dataclasses.asdict(limits), confined, os.uname()[1])


def _kept(path: Path) -> dict[str, Row]:
    """Return the results of before; none where there is no such file, or it is not understood."""
    try:
        rows = [Row(**entry) for entry in json.loads(path.read_text())["hand_ins"]]
        return {row.name: row for row in rows if row.grade is None or _is_grade(row.grade)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _keep(path: Path, rows: dict[str, Row]) -> None:
    entries = [dataclasses.asdict(row) for _, row in sorted(rows.items())]
    write_whole(path, json.dumps({"hand_ins": entries}, indent=1) + "\n")
