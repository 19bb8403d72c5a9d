"""What a grade says in plain words: the first thing that is wrong, where, why, and what to look at."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from convbackprop.check.curated import CURATED
from convbackprop.check.sanitize import WRONG, Finding
from convbackprop.lab.mistakes import KINDS, recognise_finding
from convbackprop.problem import ConvProblem

if TYPE_CHECKING:
    from convbackprop.lab.grade import Grade


def first_wrong(grade: Grade) -> tuple[str, ...]:
    """Return the first thing that is wrong as sentences: what, where, why, what to look at; or that nothing is."""
    if grade.error:
        return (f"It does not compile: {grade.error}" if grade.pass_name else f"It is no kernel: {grade.error}",)
    if grade.crashed:
        return (f"It {grade.crashed}.", *(_finding_in_words(grade.findings[0]) if grade.findings else ()))
    if not grade.checks:
        return ("It computes none of the problems that it is judged by.",)
    if grade.mistake:
        of_it = [each for each in grade.findings if recognise_finding(each) is grade.mistake]
        shown = [_finding_in_words(each)[0] for each in (of_it or grade.findings)[:1]] or _wrong_in_words(grade)
        return (grade.mistake.title, *shown, grade.mistake.why, f"Look at {grade.mistake.look_at}.")
    if grade.findings:
        return _finding_in_words(grade.findings[0])
    if grade.wrong:
        return _wrong_in_words(grade)
    if lacking := next((task for task in grade.exercise.tasks if not task.done(grade)), None):
        figure = lacking.figure(grade.counts) if lacking.figure and grade.counts else None
        more = [] if figure is None else [f"It is {figure:.2f} now."]
        if lacking.mistake:
            more += [KINDS[lacking.mistake].why, f"Look at {KINDS[lacking.mistake].look_at}."]
        return (f"It is right, and not yet what the exercise asks: {lacking.text}.", *more)
    return ("All is done: right, clean, and what the exercise asks." if grade.exercise.number else
            "Nothing is wrong: every result is right, and the sanitizer finds nothing.",)  # fmt: skip


_WHY = {
    "out of bounds": "On a GPU that ends in an error, or in whatever lies there.",
    "uninitialised read": "What it finds there is left over from before: right by luck at best.",
    "race": "Which of the two comes first is not said: on a GPU the result changes from run to run.",
    "race between blocks": "Blocks run in any order and side by side: the result changes from run to run.",
    "divergent barrier": "All threads of a block must come to the same barrier, or a GPU waits for ever.",
    "barrier without all threads": "A thread that has returned never comes to the barrier.",
}


def _finding_in_words(finding: Finding) -> tuple[str, ...]:
    who = f"thread {finding.thread} of block {finding.block} " if finding.thread and finding.kind != WRONG else ""
    where = f"Line {line_of(finding)}" if finding.lines else finding.kind.capitalize()
    if finding.lines and (text := _text_of(*finding.lines[0])):
        where += f', "{text}"'
    why = _WHY.get(finding.kind, "")
    return (f"{where}: {who}{finding.sentence}.", why) if why else (f"{where}: {who}{finding.sentence}.",)


def _text_of(path: Path, line: int) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError, IndexError):
        return path.read_text(encoding="utf-8").splitlines()[line - 1].strip()
    return ""


def _wrong_in_words(grade: Grade) -> tuple[str, ...]:
    first = grade.wrong[0]  # the curated problems begin with the simple ones
    reasons = (curated.reason for curated in CURATED if _shape(curated.problem()) == _shape(first.problem))
    reason = next(reasons, "")
    share = f"{len(grade.wrong)} of {grade.checks} checks are wrong"
    return (f"{share}; the first one is of {first.problem}{f' ({reason})' if reason else ''}:",
            f"{first.faults[0]}.")  # fmt: skip


def line_of(finding: Finding) -> int | None:
    """Return the line of the file where a finding was seen first."""
    return finding.lines[0][1] if finding.lines else None


def _shape(problem: ConvProblem) -> ConvProblem:
    return problem.with_(activation="identity", dtype="float32", mask=False, bias=True)
