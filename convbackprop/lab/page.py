"""The frame of the lab's reports: one HTML page that fetches nothing, runs no script and prints on paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { --ink: #1c2126; --soft: #5b6670; --rule: #d5dbe0; --shade: #f4f6f8; --bad: #b3261e; --good: #1a6b3c; }
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 64rem; padding: 0 1.25rem; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 1.75rem 0 .4rem; }
p { margin: .4rem 0; } .soft, caption { color: var(--soft); }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .9em; }
pre { background: var(--shade); padding: .6rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.verdict { border-left: 4px solid var(--soft); background: var(--shade); padding: .7rem 1rem; margin: .8rem 0; }
.verdict p:first-child { font-weight: 600; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.good { color: var(--good); } .bad { color: var(--bad); } .verdict { color: var(--ink); }
table { border-collapse: collapse; margin: .4rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; white-space: nowrap; }
tr.own td { font-weight: 600; background: var(--shade); }
@media print {
  @page { size: A4; margin: 14mm; }
  body { margin: 0; padding: 0; max-width: none; font-size: 10pt; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  thead { display: table-header-group; } tr, .verdict, pre { break-inside: avoid; } h2 { break-after: avoid; }
}
"""


def page(title: str, body: str) -> str:
    """Return a whole page; `body` is HTML, the title plain text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], own: int | None = None) -> str:
    """Return a table of HTML: with heads all columns but the first are figures; the row numbered `own` stands out."""
    kind = ' class="number"' if heads else ""
    own = None if own is None else own % len(rows)

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{kind if i else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))

    head = f"<thead><tr>{line('th', [escape(name) for name in heads])}</tr></thead>\n" if heads else ""
    body = "".join(f"<tr{' class=own' if i == own else ''}>{line('td', row)}</tr>\n" for i, row in enumerate(rows))
    return f"<table>\n{head}{body}</table>"
