"""A grade for people: its verdict, its tables, and both as a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from convbackprop._version import __version__
from convbackprop.lab.grading import Grade, first_wrong, line_of
from convbackprop.lab.page import page
from convbackprop.profile.roofline import duration

_BY = {"gpu": "measured on the GPU", "expected": "by the time expected on a GPU, which no GPU has measured",
       "cpu": "by the time on this CPU, which says little of a GPU"}  # fmt: skip

LADDER_HEADS = ("variant", "expected", "on a GPU", "on this CPU")


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
        return f"Exercise {grade.exercise.number}, {grade.exercise.title}: {state}."
    return f"{grade.variant or grade.file}: {'right and clean' if grade.done else 'something is wrong'}."


def rows(grade: Grade) -> list[Row]:
    """Return what was looked at."""
    found = [Row(task.text, task.done(grade), "done" if task.done(grade) else "to do") for task in grade.exercise.tasks]
    checks = f"{grade.checks} checks" + (f", {len(grade.wrong)} wrong" if grade.wrong else ", all right")
    found.append(Row("results", grade.right if grade.checks else None, checks if grade.checks else "not looked at"))
    kinds = ", ".join(f"{each.kind} in line {line_of(each)}" for each in grade.findings[:3])
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


def ladder(grade: Grade) -> list[tuple[str, ...]]:
    """Return the times of the ladder's rungs and, last, of the file."""

    def cell(us: float | None) -> str:
        return "-" if us is None else duration(us * 1e-6)

    return [(each.name, cell(each.expected), cell(each.measured), cell(each.cpu)) for each in grade.times]


def rank(grade: Grade) -> str:
    """Return where the file stands in the ladder, in a sentence."""
    found = grade.rank
    if found is None:
        return "It is not timed until it is right."
    faster, slower = (", ".join(found[key]) or "none" for key in ("faster_than", "slower_than"))
    return f"Rank, {_BY[found['by']]}: faster than {faster}; slower than {slower}."


def about(grade: Grade) -> str:
    """Return on which problems the times are."""
    return (
        f"Expected and measured times are on {grade.exercise.profiled}, those of the CPU on {grade.exercise.timed}, "
        "in float32; the addresses were replayed on a CPU."
    )


def html(grade: Grade) -> str:
    """Return all of it as one page."""
    good = "good" if grade.done else "bad"
    parts = [
        f'<p class="soft">{escape(grade.file)}, on {escape(grade.device)}. convbackprop {__version__}.</p>',
        f'<div class="verdict {good}">' + "".join(f"<p>{escape(each)}</p>" for each in first_wrong(grade)) + "</div>",
        "<h2>What was looked at</h2>",
        _table(("", "", ""), [(row.what, _mark(row.good), row.text) for row in rows(grade)], rows(grade)),
    ]
    if grade.times:
        body = ladder(grade)
        cells = "".join(
            f"<tr{' class=own' if i == len(body) - 1 else ''}><td>{escape(row[0])}</td>"
            + "".join(f'<td class="number">{escape(cell)}</td>' for cell in row[1:])
            + "</tr>\n"
            for i, row in enumerate(body)
        )
        head = f"<th>{LADDER_HEADS[0]}</th>" + "".join(f'<th class="number">{name}</th>' for name in LADDER_HEADS[1:])
        parts += ["<h2>Beside the ladder</h2>", f"<table>\n<thead><tr>{head}</tr></thead>\n{cells}</table>",
                  f"<p>{escape(rank(grade))}</p>", f'<p class="soft">{escape(about(grade))}</p>']  # fmt: skip
    if grade.limit:
        parts += ["<h2>What limits it</h2>", f"<p>{escape(grade.limit)}</p>"]
    if grade.findings:
        items = "".join(
            f"<li>{escape(f'line {line_of(each)}: {each.kind}: {each.sentence}')}</li>" for each in grade.findings
        )
        parts += ["<h2>What the sanitizer found</h2>", f"<ul>{items}</ul>"]
    if grade.wrong:
        items = "".join(
            f"<li><code>{escape(str(each.problem))}</code>: {escape(each.faults[0])}</li>" for each in grade.wrong[:10]
        )
        more = f"<p>... and {len(grade.wrong) - 10} more.</p>" if len(grade.wrong) > 10 else ""
        parts += ["<h2>Wrong results</h2>", f"<ul>{items}</ul>{more}"]
    return page(verdict(grade), "\n".join(parts))


def _mark(good: bool | None) -> str:
    return "" if good is None else "yes" if good else "no"


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]], judged: Sequence[Row]) -> str:
    body = "".join(
        f'<tr><td>{escape(what)}</td><td class="{"good" if row.good else "bad" if row.good is False else ""}">'
        f"{mark}</td><td>{escape(text)}</td></tr>\n"
        for (what, mark, text), row in zip(cells, judged, strict=True)
    )
    return f"<table>\n{body}</table>"
