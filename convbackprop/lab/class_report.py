"""The table of a class: points a criterion, the rank in the ladder, the first thing that is wrong; CSV and HTML too."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from html import escape
from textwrap import shorten
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from convbackprop.lab.hand_ins import Row
from convbackprop.lab.page import page
from convbackprop.lab.rubric import Rubric

#: Figures of a grade that a CSV file has as they are.
_FIGURES = ("coalescing", "bank_conflicts", "expected_us", "cpu_us", "measured_us")

#: Letters of the first thing that is wrong, in a table that people read.
_BRIEF = 160

#: What the times are that a rank is by.
_BY = {"gpu": "measured on a GPU", "expected": "expected on a GPU, which none has measured", "cpu": "on this CPU"}


def plain(text: str) -> str:
    """Return a stranger's text on one line, without what a terminal would obey."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in " ".join(text.split()))


class Scored(NamedTuple):
    """A hand-in with its points, one number a criterion."""

    row: Row
    points: tuple[float, ...]

    @property
    def name(self) -> str:
        """Its name; what is no UTF-8 in it is written as a number."""
        return plain(self.row.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))

    @property
    def total(self) -> float:
        """All its points."""
        return sum(self.points)

    @property
    def rank(self) -> tuple[int, int] | None:
        """Its place among the rungs of the ladder that it was timed beside, and how many they are with it."""
        if (rank := self.row.facts["rank"]) is None:
            return None
        slower, faster = len(rank["slower_than"]), len(rank["faster_than"])
        return slower + 1, slower + faster + 1

    @property
    def said(self) -> str:
        """The first thing that is wrong, in full."""
        return plain(str(self.row.facts["said"]))

    @property
    def brief(self) -> str:
        """The first thing that is wrong: the mistake, if it was recognised."""
        if mistake := self.row.facts["mistake"]:
            return plain(mistake["title"])
        return shorten(self.said, _BRIEF, placeholder=" ...") or self.said[:_BRIEF]


def scored(rows: Iterable[Row], rubric: Rubric) -> list[Scored]:
    """Return the hand-ins with their points, sorted by name."""
    those = [Scored(row, tuple(c.earned(row.facts) for c in rubric.criteria)) for row in rows]
    return sorted(those, key=lambda each: each.name)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _rank(each: Scored) -> str:
    return "{} of {}".format(*each.rank) if each.rank else ""


def table(those: Sequence[Scored], rubric: Rubric) -> Table:
    """Return the table as the command prints it."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column("hand-in", overflow="fold")
    for criterion in rubric.criteria:
        title = criterion.title.replace(" ", "\n")  # narrow
        made.add_column(f"{title}\n{_number(criterion.points)}", justify="right")
    made.add_column(f"points\n{_number(rubric.points)}", justify="right")
    made.add_column("rank", no_wrap=True)
    made.add_column("first thing wrong", overflow="fold", ratio=1)
    for each in those:
        points = map(_number, each.points)
        made.add_row(*map(Text, (each.name, *points, _number(each.total), _rank(each), each.brief)))
    return made


def ranked_by(those: Sequence[Scored]) -> list[str]:
    """Return a sentence for each kind of time that ranks are by."""
    kinds = dict.fromkeys(each.row.facts["rank"]["by"] for each in those if each.rank)
    return [f"rank: the place among the ladder's rungs, by the time {_BY.get(by, by)}" for by in kinds]


def mistakes(those: Sequence[Scored]) -> list[tuple[str, list[str]]]:
    """Return the mistakes that were recognised, the most frequent first, and who made them."""
    made: dict[str, list[str]] = {}
    for each in those:
        if mistake := each.row.facts["mistake"]:
            made.setdefault(plain(mistake["title"]), []).append(each.name)
    return sorted(made.items(), key=lambda item: -len(item[1]))


def as_json(those: Sequence[Scored], rubric: Rubric) -> dict[str, Any]:
    """Return all of it, the grades included."""
    return {
        "points": rubric.points,
        "hand_ins": [
            {
                "name": each.name,
                "points": each.total,
                "criteria": {c.title: points for c, points in zip(rubric.criteria, each.points, strict=True)},
                "trouble": each.row.trouble,
                "seconds": each.row.seconds,
                "cpu_seconds": each.row.cpu_seconds,
                "grade": each.row.grade,
            }
            for each in those
        ],
    }


# -- CSV -------------------------------------------------------------------------------------------------------------
def as_csv(those: Sequence[Scored], rubric: Rubric) -> str:
    """Return the table as CSV, with the figures that the points come of."""
    out = io.StringIO()
    write = csv.writer(out).writerow
    titles = [criterion.title for criterion in rubric.criteria]
    write(["hand-in", *titles, "points", "of", "rank", "rungs", "rank by", "first thing wrong", *_FIGURES])
    for each in those:
        facts = each.row.facts
        place, rungs = each.rank or ("", "")
        by = facts["rank"]["by"] if facts["rank"] else ""
        figures = ["" if facts[name] is None else f"{facts[name]:.6g}" for name in _FIGURES]
        points = [*map(_number, each.points), _number(each.total), _number(rubric.points)]
        write([_harmless(each.name), *points, place, rungs, by, _harmless(each.said), *figures])
    return out.getvalue()


def _harmless(text: str) -> str:
    """Return a cell that a spreadsheet does not take for a formula: a student chose its text."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


# -- HTML ------------------------------------------------------------------------------------------------------------
_STYLE = """<style>
body { max-width: 80rem; } .class td, .class th { padding-right: .7rem; }
.class th { vertical-align: bottom; } .class .none { color: var(--bad); }
.class td:first-child { overflow-wrap: anywhere; min-width: 10rem; } .class td:last-child { min-width: 18rem; }
@media print { @page { size: A4 landscape; } .class { font-size: 8.5pt; } }
</style>"""


def as_html(those: Sequence[Scored], rubric: Rubric, title: str) -> str:
    """Return the table as a page, with what was wrong most often."""
    heads = [f"{escape(c.title).replace(' ', '<br>')}<br>{_number(c.points)}" for c in rubric.criteria]
    heads.append(f"points<br>{_number(rubric.points)}")
    numbers = "".join(f'<th class="number">{head}</th>' for head in heads)
    lines = [f"<tr><th>hand-in</th>{numbers}<th>rank</th><th>first thing wrong</th></tr>"]
    body = "\n".join(_html_row(each, rubric) for each in those)
    right = sum(bool(each.row.facts["right"]) for each in those)
    mean = sum(each.total for each in those) / len(those)
    intro = f"{len(those)} hand-in{'s' * (len(those) != 1)}, {right} of them right; {_number(mean)} of "
    intro += f"{_number(rubric.points)} points on average."
    parts = [_STYLE, f"<p>{intro}</p>", f'<table class="class">\n<thead>{lines[0]}</thead>\n<tbody>\n{body}\n</tbody>']
    parts += ["</table>", *(f'<p class="soft">{escape(line)}.</p>' for line in ranked_by(those))]
    if made := mistakes(those):
        parts.append("<h2>Mistakes</h2>\n<table>")
        for what, names in made:
            parts.append(f'<tr><td class="number">{len(names)}</td><td>{escape(what)}</td>'
                         f'<td class="soft">{escape(", ".join(names))}</td></tr>')  # fmt: skip
        parts.append("</table>")
    return page(title, "\n".join(parts))


def _html_row(each: Scored, rubric: Rubric) -> str:
    def cell(earned: float, possible: float) -> str:
        return f'<td class="number{" none" if earned < possible else ""}">{_number(earned)}</td>'

    points = "".join(cell(earned, c.points) for earned, c in zip(each.points, rubric.criteria, strict=True))
    return (
        f"<tr><td>{escape(each.name)}</td>{points}"
        f'<td class="number"><b>{_number(each.total)}</b></td><td class="number">{_rank(each)}</td>'
        f"<td>{escape(each.brief)}</td></tr>"
    )
