"""A page made of saved runs: what was timed on, the tables, the pictures, and how the runs compare.

A page is a list of parts, which are written as Markdown with its pictures beside it, or as one HTML file.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from convbackprop.bench import layer_goals, plots
from convbackprop.bench.columns import columns, error, legend_of
from convbackprop.bench.comparison import LEAST, cells, compare, summary
from convbackprop.bench.rows import Row
from convbackprop.bench.runs import Run
from convbackprop.errors import InvalidArgument


@dataclass(frozen=True)
class Heading:
    """A heading; the page's own has level 1."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph, or a list of sentences."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; the first `left` columns are words, the others figures."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True)
class Picture:
    """A picture: its file's name without an ending, its text for who does not see it, and the file."""

    name: str
    text: str
    content: bytes


Part = Heading | Text | Table | Picture


# -- what is on the page ---------------------------------------------------------------------------------------------
def page_of(runs: Sequence[Run], title: str, picture_format: str) -> list[Part]:
    """Return the page on some runs; runs after the first are compared with it."""
    parts: list[Part] = [Heading(1, title)]
    for run in runs:
        parts += [Heading(2, f"Run {run.name}"), *_of_run(run, picture_format)]
    for run in runs[1:]:
        parts += [Heading(2, f"{runs[0].name} and {run.name}"), *_compared(runs[0], run)]
    return parts


def _of_run(run: Run, picture_format: str) -> Iterator[Part]:
    yield Table(("", ""), [(name, str(value)) for name, value in _facts(run)], left=2)
    if run.noise["noisy"]:
        yield Text([
            f"This machine was noisy (load {run.noise.get('load_before')} before timing, spread of the rows "
            f"{100 * (run.noise.get('spread') or 0):.0f} %): differences of that size mean nothing."
        ])  # fmt: skip
    if run.rows:
        yield table_of(run.rows)
        yield Text([*legend_of(run.rows), *run.notes])
        yield from _pictures(run, picture_format)
    if run.layers:
        missed = [f"{r['variant']} on {r['layer']} {r['problem']}: {'; '.join(r['misses'])}"
                  for r in run.layers if r["misses"]]  # fmt: skip
        met = f"{len(run.layers) - len(missed)} of {len(run.layers)} meet them."
        yield Text([f"{layer_goals.WANTED} {met}", *(f"Not: {line}" for line in missed)])
    if run.goals:
        yield Heading(3, "Goals")
        yield Table(
            ("public function", "beside", "ms", "its ms", "times", "goal", ""),
            [(g["function"], g["peer"], f"{g['ours_ms']:.3g}", f"{g['peer_ms']:.3g}", f"{g['ratio']:.1f}x",
              f"{g['goal']:g}x", "met" if g["met"] else "not met") for g in run.goals],
            left=2,
        )  # fmt: skip


def _facts(run: Run) -> Iterator[tuple[str, Any]]:
    yield "date", run.date
    yield from run.environment.items()
    for name, value in run.settings.items():
        if value is not None:
            yield name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else value


def table_of(rows: Sequence[Row]) -> Table:
    """Return the rows as a table."""
    shown = columns(rows)
    lines = []
    for row in rows:
        state = "refused" if row.refusal else "WRONG"
        figures = [cell(row) for cell in shown.values()] if row.ours else [state, *[""] * (len(shown) - 1)]
        problem = str(row.problem).split(",activation")[0]
        lines.append((row.name, row.label, problem, *figures, "-" if row.refusal else error(row)))
    return Table(("pass/variant", "on", "problem", *shown, "error"), lines, left=3)


def _pictures(run: Run, picture_format: str) -> Iterator[Part]:
    for kind, draw in plots.KINDS.items():
        try:
            drawing = draw(run)
        except InvalidArgument:  # nothing to draw, such as one size only
            continue
        yield Picture(f"{run.name}-{kind}", f"{kind} of run {run.name}", plots.rendered(drawing, picture_format))


def _compared(a: Run, b: Run) -> Iterator[Part]:
    found = compare(a, b)
    if found.notes:
        yield Text(found.notes)
    if not found.pairs:
        yield Text([f"{a.name} and {b.name} have no row in common."])
        return
    yield Table(("pass/variant", "on", f"{a.name} ms", f"{b.name} ms", "ratio", "q", f"{b.name} is"),
                [(p.a.name, p.a.label, *cells(p.as_json()), p.verdict) for p in found.pairs], left=2)  # fmt: skip
    yield Text(summary(found, a.name, b.name, LEAST))


# -- how it is written -----------------------------------------------------------------------------------------------
def as_markdown(page: Sequence[Part], picture_format: str) -> tuple[str, dict[str, bytes]]:
    """Return a page as Markdown, and the pictures that lie beside it, by file name."""
    files: dict[str, bytes] = {}
    return "\n\n".join(_markdown(part, picture_format, files) for part in page) + "\n", files


def _markdown(part: Part, picture_format: str, files: dict[str, bytes]) -> str:
    if isinstance(part, Heading):
        return f"{'#' * part.level} {_escaped(part.text)}"
    if isinstance(part, Text):
        return "\n".join(f"- {_escaped(line)}" for line in part.lines)
    if isinstance(part, Picture):
        name = f"{part.name}.{picture_format}"
        files[name] = part.content
        return f"![{_escaped(part.text)}]({name})"
    lines = [part.heads, ["---" if i < part.left else "---:" for i in range(len(part.heads))]]
    body = ([_escaped(cell) for cell in row] for row in part.rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (*lines, *body))


def _escaped(text: str) -> str:
    """Return a text in which nothing is Markdown's or HTML's: names in a saved run are anybody's."""
    for sign in "\\`*_[]|#~":
        text = text.replace(sign, f"\\{sign}")
    return html.escape(text, quote=False).replace("\n", " ")


_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: 2px 10px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th.word, td.word { text-align: left; white-space: normal }
img { max-width: 100% }
.scroll { overflow-x: auto }
"""


def as_html(page: Sequence[Part], picture_format: str) -> str:
    """Return a page as one HTML file, pictures inside."""
    title = next((part.text for part in page if isinstance(part, Heading)), "")
    body = "\n".join(_html(part, picture_format) for part in page)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(part: Part, picture_format: str) -> str:
    if isinstance(part, Heading):
        return f"<h{part.level}>{html.escape(part.text)}</h{part.level}>"
    if isinstance(part, Text):
        return "<ul>\n" + "\n".join(f"<li>{html.escape(line)}</li>" for line in part.lines) + "\n</ul>"
    if isinstance(part, Picture):
        kind = "svg+xml" if picture_format == "svg" else picture_format
        data = base64.b64encode(part.content).decode()
        return f'<p><img src="data:image/{kind};base64,{data}" alt="{html.escape(part.text)}"></p>'

    def line(row: Sequence[str], tag: str) -> str:
        cells = (
            f"<{tag}{' class=word' if i < part.left else ''}>{html.escape(cell)}</{tag}>" for i, cell in enumerate(row)
        )
        return f"<tr>{''.join(cells)}</tr>"

    head = f"<thead>{line(part.heads, 'th')}</thead>\n" if any(part.heads) else ""
    rows = "\n".join(line(row, "td") for row in part.rows)
    return f'<div class="scroll"><table>\n{head}<tbody>\n{rows}\n</tbody>\n</table></div>'
