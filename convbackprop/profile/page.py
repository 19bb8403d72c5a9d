"""The report as one self-contained page: nothing is fetched, no script runs, and it prints on paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from convbackprop._version import __version__
from convbackprop.devices.gpus import GPUS
from convbackprop.profile import annotate, plot
from convbackprop.profile.occupancy import LIMITS
from convbackprop.profile.report import Report
from convbackprop.profile.roofline import SECTOR, amount, duration, percent
from convbackprop.profile.tables import (
    array_rows,
    bound_rows,
    cache_sentence,
    kernel_rows,
    measured_sentence,
    mix_rows,
    replay_sentence,
    score_sentence,
    share_sentence,
    times_expected,
)

#: Rows of the table of lines.
_LINES = 12

#: Columns of words.
_WORDS = ("limited by", "line", "access", "of")

_STYLE = """
:root { --ink: #1c2126; --soft: #5b6670; --rule: #d5dbe0; --shade: #f4f6f8; --accent: #b3261e; --good: #1a6b3c;
        --blue: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1.25rem; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .4rem; }
p { margin: .4rem 0; } .soft, caption { color: var(--soft); } .strong { font-weight: 600; }
code, pre, .source { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.verdict { border-left: 4px solid var(--blue); background: var(--shade); padding: .7rem 1rem; margin: .8rem 0; }
.remark { border-left: 4px solid var(--accent); padding: .2rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
th, td { white-space: nowrap; } td.wide { white-space: normal; text-align: left; }
th.left, td.left, th.wide { text-align: left; } td.bad { color: var(--accent); font-weight: 600; }
tr.binding td { font-weight: 600; background: #fdf3e7; }
.bar { display: inline-block; height: .7em; background: var(--blue); vertical-align: baseline; min-width: 1px; }
tr.binding .bar { background: #c77700; }
svg.roofline { width: 100%; max-width: 46rem; height: auto; display: block; font: 12px system-ui, Arial, sans-serif; }
svg .grid { stroke: #e6eaed; } svg .axis { fill: none; stroke: #8a949c; }
svg .roof { fill: none; stroke: var(--ink); stroke-width: 2; } svg text { fill: var(--ink); }
svg .limit { stroke: #8a949c; stroke-dasharray: 4 4; } svg .binding { stroke: #c77700; stroke-width: 2; }
svg .floor { fill: #fff; stroke: var(--ink); stroke-width: 2; } svg .point { fill: #c77700; stroke: #fff; }
svg .measured { fill: var(--good); stroke: #fff; }
.source { border-collapse: collapse; font-size: 11px; line-height: 1.35; width: 100%; }
.source th, .source td { padding: 0 .45rem; border: 0; white-space: nowrap; }
.source th { position: sticky; top: 0; background: #fff; border-bottom: 1px solid var(--rule); font-size: 10px; }
.source td.text { white-space: pre-wrap; overflow-wrap: anywhere; text-align: left; width: 100%; }
.source td.number { color: var(--soft); }
.source tr.figures { background: var(--shade); } .source tr.costly { background: #fdf3e7; }
.source tr.gap td { color: var(--soft); text-align: left; }
@media print {
  @page { size: A4; margin: 14mm; }
  body { margin: 0; padding: 0; max-width: none; font-size: 10pt; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } h2.next { break-before: page; }
  .verdict, svg.roofline, table:not(.source), tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  .source { font-size: 6.5pt; } .source th { position: static; font-size: 6pt; }
}
"""


def page(reports: Sequence[Report], notes: Sequence[str] = ()) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    reports : sequence of Report
        Of one problem on one GPU.
    notes : sequence of str
        Sentences that hold for all of them.
    """
    first = reports[0]
    title = f"{first.variant if len(reports) == 1 else first.variant.pass_name} on the {first.gpu}"
    measured = "" if first.measured else " It was not timed: these are limits that follow from its code."
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Problem <code>{escape(str(first.problem))}</code>: {amount(first.flops, "FLOP")}, at least '
        f"{amount(first.least_bytes, 'B')}. convbackprop {__version__}.{measured}</p>",
        *(f"<p>{escape(note)}</p>" for note in notes),
    ]
    if len(reports) > 1:
        parts.append(_overview(reports))
    for i, report in enumerate(reports):
        parts += _section(report, with_heading=len(reports) > 1, first=i == 0)
    parts.append(_about(first))
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n'
        "</body>\n</html>\n"
    )


# -- parts -----------------------------------------------------------------------------------------------------------
def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], binding: int | None = None) -> str:
    """Return a table; the first column, and those of words, stand at the left."""

    def cell(tag: str, i: int, text: str) -> str:
        name = "wide" if heads[i] in ("", "what") else "left" if i == 0 or heads[i] in _WORDS else ""
        return f"<{tag}{f' class={name}' if name else ''}>{text}</{tag}>"

    head = "".join(cell("th", i, escape(name)) for i, name in enumerate(heads))
    body = "".join(
        f"<tr{' class=binding' if n == binding else ''}>"
        + "".join(cell("td", i, text) for i, text in enumerate(row))
        + "</tr>\n"
        for n, row in enumerate(rows)
    )
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}</table></div>'


def _bar(share: float, most: float = 12.0) -> str:
    return "" if not share else f'<span class="bar" style="width:{most * min(1.0, share):.2f}em"></span>'


def _overview(reports: Sequence[Report]) -> str:
    heads = ["variant", "limited by", "at least", "of the floor", "expected"]
    measured = any(report.measured for report in reports)
    heads += ["measured", "times expected"] if measured else []
    rows = []
    for report in reports:
        expected = duration(report.expected.seconds) if report.expected else "-"
        row = [f"{escape(str(report.variant))}", escape(report.verdict.binding.limit), duration(report.predicted),
               percent(report.verdict.share), expected]  # fmt: skip
        if measured:
            row += list(times_expected(report))
        rows.append(row)
    sentence = score_sentence(reports)
    return "<h2>Overview</h2>" + _table(heads, rows) + (f"<p>{escape(sentence)}</p>" if sentence else "")


def _section(report: Report, with_heading: bool, first: bool) -> list[str]:
    name = str(report.variant)
    parts = []
    if with_heading:
        parts.append(f"<h2{'' if first else ' class=next'}>{escape(name)}</h2>")
    parts.append(f'<p class="verdict">{escape(report.verdict.sentence(name, report.gpu))}</p>')
    if report.expected:
        parts.append(f"<p>{escape(report.expected.sentence(report.verdict.floor.seconds))}</p>")
    if report.measured:
        parts.append(f"<p>{escape(measured_sentence(report))}</p>")
    parts += [f'<p class="remark">{escape(sentence)}</p>' for sentence in report.remarks]
    if report.flops and report.least_bytes:
        parts += ["<h3>Roofline</h3>", plot.roofline(report)]
    slowest = report.predicted
    rows = [
        [escape(limit), time, f"{_bar(bound.seconds / slowest)}", escape(why)]
        for (limit, time, _, why), bound in zip(bound_rows(report), report.bounds, strict=True)
    ]
    parts += ["<h3>Limits</h3>", _table(["limit", "at least", "", "what"], rows,
                                        binding=report.bounds.index(report.verdict.binding))]  # fmt: skip
    compiled = [launch for launch in report.launches if launch.kernel]
    if compiled:
        heads, cells = kernel_rows(report)
        parts += ["<h3>Launches</h3>", _table(heads, [[escape(cell) for cell in row] for row in cells])]
    if hot := report.main.hot:
        heads, cells = mix_rows(hot)
        rows = [
            [*map(escape, row), _bar(hot.leanest.get(row[0], 0) / hot.instructions)] for row in cells
        ]  # fmt: skip
        sentences = [cache_sentence(hot, report.gpu)]
        if hot.multiply_adds:
            sentences.append(share_sentence(hot, report.gpu, report.problem.dtype))
        parts += ["<h3>Hot loop</h3>", f"<p>{escape(' '.join(sentences))}</p>", _table([*heads, ""], rows)]
    if report.own_bytes is not None:
        heads, cells = array_rows(report)
        parts += ["<h3>Arrays</h3>", _table(heads, [[escape(cell) for cell in row] for row in cells]),
                  f'<p class="soft">Sectors: of {SECTOR} bytes, each counted once a block. '
                  f"{escape(replay_sentence(report))}</p>"]  # fmt: skip
    files = annotate.sources(report)
    total = sum(line.clocks for source in files for line in source.lines)
    costliest = annotate.costliest(files, _LINES)
    if costliest:
        rows = [
            [escape(f"{source.name}:{line.number}"), escape(f"{access.space} {access.kind}"), f"{access.bytes} B",
             amount(access.asked, "B"), f"{access.each:.1f}", f"{access.least:.1f}", access.unit,
             f"{100 * access.clocks / total:.0f} %" if total else "-", f"<code>{escape(line.text.strip()[:80])}</code>"]
            for source, line, access in costliest
        ]  # fmt: skip
        heads = ["line", "access", "thread", "asked for", "a request", "least", "of", "cost", ""]
        parts += ["<h3>Lines by cost</h3>", _table(heads, rows),
                  '<p class="soft">Cost: of the clocks in which a multiprocessor loads and stores.</p>']  # fmt: skip
    if any(line.has_figures for source in files for line in source.lines):
        parts.append("<h3>Source</h3>")
        parts += [_source(source, total, i == 0) for i, source in enumerate(files)]
    return parts


def _source(source: annotate.Source, total: float, whole: bool) -> str:
    rows = []
    for n, excerpt in enumerate(source.excerpts(whole)):
        if n or (not whole and excerpt[0].number > 1):
            rows.append('<tr class="gap"><td colspan="8">...</td></tr>')
        for line in excerpt:
            name = "costly" if total and line.clocks > total / 10 else "figures" if line.has_figures else ""
            for i, access in enumerate(line.accesses or [None]):
                cells = ["", "", "", ""]
                if access is not None:
                    cost = f"{100 * access.clocks / total:.0f} %" if total else ""
                    cells = [f"{access.space} {access.kind} {access.bytes} B", f"{access.each:.1f}",
                             f"{access.least:.1f}", cost]  # fmt: skip
                code = [str(line.instructions or ""), str(line.multiply_adds or "")] if i == 0 else ["", ""]
                text = escape(line.text) if i == 0 else ""
                rows.append(
                    f"<tr{f' class={name}' if name else ''}>"
                    + "".join(f"<td>{escape(cell)}</td>" for cell in [*code, *cells])
                    + f'<td class="number">{line.number if i == 0 else ""}</td><td class="text">{text}</td></tr>'
                )
    heads = "".join(f"<th>{name}</th>" for name in ("loop", "FMA", "access", "each", "least", "cost", ""))
    return (
        f'<p><code>{escape(source.name)}</code></p>\n<div class="scroll"><table class="source">\n<tr>{heads}'
        f'<th class="left">line</th></tr>\n' + "\n".join(rows) + "\n</table></div>"
    )


def _about(report: Report) -> str:
    gpu = report.gpu
    kind = "measured with a copy" if gpu.measured else "from the data sheet"
    return (
        "<h3>How to read this</h3><p class=soft>Each limit is a lower bound on the time; the expected time is an "
        "estimate, with what kernels lose by waiting. "
        f"The {escape(str(gpu))} counts as {gpu.sms} multiprocessors ({gpu.architecture}, "
        f"{LIMITS[gpu.architecture].warps} warps each) at {gpu.clock / 1e9:.2f} GHz, with {amount(gpu.memory, 'B/s')} "
        f"of memory bandwidth, {kind}. loop, FMA: instructions of the hot loop that a line became, and multiply-adds "
        "among them. each, least: sectors (global) or wavefronts (shared) a request of a warp, and how many would do. "
        f"Known GPUs: {', '.join(escape(each.name) for each in GPUS)}.</p>"
    )
