"""A picture as PNG or SVG, by matplotlib."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convbackprop.bench.plots import figure
from convbackprop.explain.picture import NOTHING, Cells, Picture
from convbackprop.explain.terminal import colour

FORMATS = ("png", "svg")

#: Inches: of a picture, of a cell at most, and of what stands above and below a panel.
_WIDTH, _MOST, _ABOVE, _BELOW, _LEGEND = 9.5, 0.34, 0.45, 0.2, 0.22
_DPI = 110

_KEYWORD = "convbackprop"


def rendered(pictures: Sequence[Picture], kind: str) -> bytes:
    """Return pictures, one below the other, as a file of one of `FORMATS`, in which `digest_of` finds what it shows.

    Raises
    ------
    EnvironmentProblem
        matplotlib is missing.
    """
    sizes = [[_size(row) for row in picture.rows] for picture in pictures]
    heads = [0.35 + 0.2 * len(_wrapped(picture)) for picture in pictures]
    heights = [head + sum(high for _, high in rows) for head, rows in zip(heads, sizes, strict=True)]
    drawing = figure(_WIDTH, sum(heights))
    drawing.set_layout_engine("none")
    top = sum(heights)
    for picture, rows, head in zip(pictures, sizes, heads, strict=True):
        _write_head(drawing, picture, top)
        top -= head
        for row, (cell, high) in zip(picture.rows, rows, strict=True):
            _draw_row(drawing, row, cell, top, high)
            top -= high
    return _file(drawing, kind, "+".join(picture.digest for picture in pictures))


def digest_of(file: Path) -> str:
    """Return what a file says it shows: the digests of its pictures, "" if nothing."""
    found = re.search(rb"shows ([0-9a-f+]{16,})\.", file.read_bytes())
    return found[1].decode() if found else ""


def _file(drawing: Any, kind: str, digest: str) -> bytes:
    stream = io.BytesIO()
    said = {"Description": f"{_KEYWORD} explain; shows {digest}."}
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        drawing.savefig(stream, format=kind, dpi=_DPI, facecolor="white",
                        metadata={**said, "Date": None} if kind == "svg" else {**said, "Software": None})  # fmt: skip
    if kind == "png":
        return _with_few_colours(stream, said)
    return "\n".join(line.rstrip() for line in stream.getvalue().decode().splitlines()).encode() + b"\n"


def _with_few_colours(stream: io.BytesIO, said: dict[str, str]) -> bytes:
    """Return a PNG with a palette, a third as large."""
    from PIL import Image, PngImagePlugin  # matplotlib needs it itself

    info = PngImagePlugin.PngInfo()
    for name, text in said.items():
        info.add_text(name, text)
    smaller = io.BytesIO()
    Image.open(stream).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(
        smaller, "png", optimize=True, pnginfo=info, dpi=(_DPI, _DPI)
    )
    return smaller.getvalue()


def _wrapped(picture: Picture) -> list[str]:
    return [line for sentence in picture.sentences for line in textwrap.wrap(sentence, 138)]


def _write_head(drawing: Any, picture: Picture, top: float) -> None:
    high = drawing.get_figheight()
    drawing.text(0.15 / _WIDTH, (top - 0.25) / high, picture.title, fontsize=12, fontweight="bold", va="center")
    for i, line in enumerate(_wrapped(picture)):
        drawing.text(0.15 / _WIDTH, (top - 0.5 - 0.2 * i) / high, line, fontsize=9, va="center", color="#333333")


def _left(cells: Cells) -> float:
    return max(0.75, 0.08 * max(map(len, cells.row_names)) + 0.15) if cells.numbered else 0.25


def _size(row: Sequence[Cells]) -> tuple[float, float]:
    """Return how large a cell of panels that stand side by side is, and how high they are with all round them."""
    room = _WIDTH - sum(_left(cells) + 0.3 for cells in row)
    widest = max(len(word) for cells in row for word in [*cells.words.flat, ""])
    most = max(_MOST, 0.085 * widest)
    cell = min(most, room / sum(cells.shape[1] for cells in row))
    legend = max(-(-len(_legend(cells)) // _columns(cells, cell)) for cells in row)
    return cell, max(cells.shape[0] for cells in row) * _height(cell) + _ABOVE + _BELOW + _LEGEND * legend


def _legend(cells: Cells) -> list[tuple[int | None, str]]:
    """Return the classes, of many the first, and None for the frames."""
    shown: list[tuple[int | None, str]] = [*list(cells.legend.items())[:16]]
    return [*shown, (None, cells.framed)] if cells.framed else shown


def _columns(cells: Cells, cell: float) -> int:
    """Return the columns of a panel's legend."""
    longest = max((len(words) for _, words in _legend(cells)), default=1)
    return max(1, int(max(cells.shape[1] * cell, 2.5) / (0.07 * longest + 0.4)))


def _height(cell: float) -> float:
    return min(cell, _MOST)


def _draw_row(drawing: Any, row: Sequence[Cells], cell: float, top: float, high: float) -> None:
    left = 0.0
    for cells in row:
        left += _left(cells)
        wide, tall = cells.shape[1] * cell, cells.shape[0] * _height(cell)
        place = (left / _WIDTH, (top - _ABOVE - tall) / drawing.get_figheight(), wide / _WIDTH,
                 tall / drawing.get_figheight())  # fmt: skip
        _draw(drawing.add_axes(place), cells, cell)
        left += wide + 0.3


def _draw(ax: Any, cells: Cells, cell: float) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch, Rectangle

    rows, cols = cells.shape
    image = np.ones((rows, cols, 3))
    for i, j in np.ndindex(rows, cols):
        image[i, j] = to_rgb(colour(int(cells.classes[i, j])) or "white")
    ax.imshow(image, extent=(0, cols, rows, 0), aspect="auto", interpolation="nearest")
    there = cells.classes != NOTHING
    # Lines between cells, no longer than there are cells on one of their sides.
    ax.hlines(*_edges(there), color="white", linewidth=0.8)
    x, top, bottom = _edges(there.T)
    ax.vlines(x, top, bottom, color="white", linewidth=0.8)
    for i, j in np.ndindex(rows, cols):
        if word := cells.words[i, j]:
            size = min(9.0, 0.85 * 72 * cell / (0.64 * len(word)), 0.75 * 72 * _height(cell))
            ax.text(j + 0.5, i + 0.54, word, ha="center", va="center", fontsize=size)
    for frame in cells.frames:
        ax.add_patch(Rectangle((frame.col, frame.row), frame.cols, frame.rows, fill=False, edgecolor="black",
                               linewidth=1.4, clip_on=False, zorder=5))  # fmt: skip
    ax.set_title(cells.title, fontsize=9.5, loc="left", pad=17)
    ax.xaxis.tick_top()
    every = next(step for step in (1, 2, 4, 5, 8, 10, 20, 50, 100, 1000) if cols / step <= 40)
    numbers = [n for n in range(cells.first[1], cells.first[1] + cols) if n % every == 0]
    ax.set_xticks([n - cells.first[1] + 0.5 for n in numbers], [str(n) for n in numbers])
    ax.set_yticks([i + 0.5 for i in range(rows)] if cells.numbered else [], cells.row_names if cells.numbered else [])
    if cells.numbered:
        names = [f"{name} {arrow}" for name, arrow in ((cells.down, "↓"), (cells.across, "→")) if name]
        ax.annotate(" ".join(names), (0, 1), xycoords="axes fraction", xytext=(-5, 3), textcoords="offset points",
                    fontsize=7, ha="right", color="#333333")  # fmt: skip
    ax.tick_params(length=0, labelsize=7.5, pad=1)
    ax.spines[:].set_visible(False)
    if shown := _legend(cells):
        handles = [Patch(facecolor="white" if number is None else colour(number), label=words, linewidth=1.4,
                         edgecolor="black" if number is None else "none") for number, words in shown]  # fmt: skip
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.03 / (rows * _height(cell))),
                  ncols=_columns(cells, cell), frameon=False, fontsize=8, handlelength=1.2, borderaxespad=0,
                  columnspacing=1.2)  # fmt: skip


def _edges(there: Any) -> tuple[list[int], list[int], list[int]]:
    """Return the horizontal edges of cells: where, from, to."""
    found = []
    for i in range(there.shape[0] + 1):
        near = there[max(0, i - 1)] | there[min(i, there.shape[0] - 1)]
        found += [(i, j, j + 1) for j in np.flatnonzero(near)]
    return tuple(list(each) for each in zip(*found, strict=True)) if found else ([], [], [])  # type: ignore[return-value]
