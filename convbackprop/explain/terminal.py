"""A picture in the terminal: cells as coloured words."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rich.console import Console, Group
from rich.text import Text

from convbackprop.explain.picture import NOBODY, NOTHING, Cells, Picture

#: Light backgrounds for black words: Okabe and Ito's colours, lightened; without colours the words are enough.
COLOURS = ("#f8d48a", "#a9d8f5", "#8fd8bd", "#f3b08a", "#e6bcd3", "#8fbde0", "#f6efa0", "#c9c9c9")
_NOBODY = "#eeeeee"

#: Entries of a legend in a line.
_A_LINE = 4


def colour(number: int) -> str | None:
    """Return the background of a class, None of nothing."""
    return None if number == NOTHING else _NOBODY if number == NOBODY else COLOURS[number % len(COLOURS)]


def lines(cells: Cells, room: int) -> Iterable[Text]:
    """Return a panel line by line; its words stand apart where there is room."""
    rows, cols = cells.shape
    width = max(2, *(len(word) for word in cells.words.flat)) if cells.words.size else 2
    left = max(len(cells.down), *(len(name) for name in cells.row_names)) + 1
    spaced = width + (width > 2 or left + cols * (width + 1) <= room)
    yield Text(cells.title, style="bold")
    head = Text(f"{cells.down:>{left - 1}} ", style="dim")
    for j in range(cols):
        number = str(cells.first[1] + j)
        head.append((number if len(number) <= width and j % (1 if spaced > 2 else 2) == 0 else "").rjust(spaced))
    yield head.append(f"  {cells.across}")
    framed = np.zeros((rows, cols), bool)
    for frame in cells.frames:
        framed[frame.row : frame.row + frame.rows, frame.col : frame.col + frame.cols] = True
    for i in range(rows):
        line = Text(f"{cells.row_names[i]:>{left - 1}} ", style="dim")
        for j in range(cols):
            background = colour(int(cells.classes[i, j]))
            word = cells.words[i, j] or ("·" if background == _NOBODY else "")
            style = f"{'bold underline ' * bool(framed[i, j])}black on {background}" if background else ""
            line.append(word.rjust(spaced), style)
        yield line
    entries = [Text.assemble(("  ", f"on {colour(kind)}"), f" {words}") for kind, words in cells.legend.items()]
    if cells.framed:
        entries.append(Text.assemble(("00", "bold underline"), f" {cells.framed}"))
    for first in range(0, len(entries), _A_LINE):
        yield Text(" " * left) + Text("   ").join(entries[first : first + _A_LINE])


def show(picture: Picture, out: Console) -> None:
    """Print a picture."""
    out.print(Text(picture.title, style="bold underline"))
    for sentence in picture.sentences:
        out.print(sentence, soft_wrap=not out.is_terminal)
    for cells in picture.cells:
        out.print()
        out.print(Group(*lines(cells, out.width)), no_wrap=True, crop=False, overflow="ignore", soft_wrap=True)
    out.print()
