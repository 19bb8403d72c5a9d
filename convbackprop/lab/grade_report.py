"""A grade for people: its verdict, its tables, and both as a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from convbackprop._version import __version__
from convbackprop.check.sanitize import Finding
from convbackprop.lab.grade import Grade
from convbackprop.lab.page import page, table
from convbackprop.lab.verdict import first_wrong, line_of
from convbackprop.profile.roofline import duration

_BY = {"gpu": "measured on the GPU", "expected": "by the time expected on a GPU, which was not measured",
       "cpu": "by the time on this CPU, which says little of a GPU"}  # fmt: skip

#: Findings and wrong results on the page.
_SHOWN = 10

#: Columns of times: the name of what `Times` has, and the column's.
_TIMES = (("expected", "expected"), ("measured", "on the GPU"), ("cpu", "on this CPU"))


class Row(NamedTuple):
    """A line of the table: what was looked at, whether that is well (None: it is no judgement), and in words."""

    what: str
    good: bool | None
    text: str


def verdict(grade: Grade) -> str:
    """Return the first sentence."""
    if grade.exercise.number:
        done = sum(task.done(grade) for task in grade.exercise.tasks)
        state = "done" if grade.done else f"{done} of {len(grade.exercise.tasks)} tasks done"
        return f"Exercise {grade.exercise.number} ({grade.exercise.title}): {state}."
    return f"{grade.variant or grade.file}: {'right and clean' if grade.done else 'something is wrong'}."


def rows(grade: Grade) -> list[Row]:
    """Return what was looked at."""
    found = [Row(task.text, task.done(grade), "done" if task.done(grade) else "to do") for task in grade.exercise.tasks]
    checks = f"{grade.checks} checks" + (f", {len(grade.wrong)} wrong" if grade.wrong else ", all right")
    found.append(Row("results", grade.right if grade.checks else None, checks if grade.checks else "not looked at"))
    kinds = "; ".join(f"{_where(each)}{each.kind}" for each in grade.findings[:3])
    text = kinds or f"nothing, on {grade.sanitized} problems"
    found.append(Row("sanitizer", grade.clean if grade.sanitized else None, text if grade.sanitized else "not run"))
    if counts := grade.counts:
        found += [
            Row("sectors of global memory", None, f"{counts.coalescing:.2f} times those that the numbers would fill"),
            Row("bank conflicts", None, "no shared memory is used" if counts.bank_conflicts is None else
                f"{counts.bank_conflicts:.2f} times the fewest passes over the banks"),
            Row("pixels from global memory", None, f"{counts.pixels:.2f} for each multiply-add"),
            Row("numbers loaded", None, f"{counts.loads:.2f} for each multiply-add"),
            Row("bytes moved", None, f"{counts.moved:.2f} times those that must be"),
        ]  # fmt: skip
    return found


def ladder(grade: Grade) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of a table: the times of the ladder's rungs and, last, of the file."""
    known = [(key, head) for key, head in _TIMES if any(getattr(each, key) is not None for each in grade.times)]

    def cell(us: float | None) -> str:
        return "-" if us is None else duration(us * 1e-6)

    rows = [[each.name, *(cell(getattr(each, key)) for key, _ in known)] for each in grade.times]
    return ["variant", *(head for _, head in known)], rows


def rank(grade: Grade) -> str:
    """Return where the file stands in the ladder, in a sentence."""
    found = grade.rank
    if found is None:
        return "It is not timed until it is right."
    faster, slower = (", ".join(found[key]) or "none" for key in ("faster_than", "slower_than"))
    return f"Rank, {_BY[found['by']]}: faster than {faster}; slower than {slower}."


def about(grade: Grade) -> str:
    """Return on which problems the times are."""
    gpu = any(each.expected or each.measured for each in grade.times)
    times = (
        f"on {grade.exercise.profiled}, those of the CPU "
        if gpu and grade.exercise.profiled != grade.exercise.timed
        else ""
    )
    return (
        f"Times are {times}on {grade.exercise.timed}, in float32. What is counted was replayed on a CPU, on "
        f"{grade.exercise.profiled}."
    )


def html(grade: Grade) -> str:
    """Return all of it as one page."""
    sentences = "".join(f"<p>{escape(each)}</p>" for each in first_wrong(grade))
    looked_at = [(escape(row.what), _coloured(row)) for row in rows(grade)]
    parts = [
        f'<p class="soft">{escape(grade.file)}, on {escape(grade.device)}. convbackprop {__version__}.</p>',
        f'<div class="verdict {"good" if grade.done else "bad"}">{sentences}</div>',
        "<h2>What was looked at</h2>",
        table((), looked_at),
    ]
    if grade.times:
        heads, cells = ladder(grade)
        parts += ["<h2>Beside the ladder</h2>", table(heads, [[escape(cell) for cell in row] for row in cells], own=-1),
                  f"<p>{escape(rank(grade))}</p>", f'<p class="soft">{escape(about(grade))}</p>']  # fmt: skip
    if grade.limit:
        parts += ["<h2>What limits it</h2>", f"<p>{escape(grade.limit)}</p>"]
    if grade.findings:
        found = [f"{_where(each)}{each.kind}: {each.sentence}" for each in grade.findings]
        parts += ["<h2>What the sanitizer found</h2>", _list(found)]
    if grade.wrong:
        parts += ["<h2>Wrong results</h2>", _list([f"{each.problem}: {each.faults[0]}" for each in grade.wrong])]
    return page(verdict(grade), "\n".join(parts))


def _coloured(row: Row) -> str:
    name = {True: "good", False: "bad", None: ""}[row.good]
    return f'<span class="{name}">{escape(row.text)}</span>'


def _where(finding: Finding) -> str:
    return f"line {line_of(finding)}: " if finding.lines else ""


def _list(lines: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines[:_SHOWN])
    more = f"<p>... and {len(lines) - _SHOWN} more.</p>" if len(lines) > _SHOWN else ""
    return f"<ul>\n{items}\n</ul>{more}"
