"""What a picture is, however it is drawn: panels of cells that are coloured by what they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

#: The class of a cell in which there is nothing, and of one that is there and belongs to nobody.
NOTHING, NOBODY = -2, -1


@dataclass(frozen=True)
class Frame:
    """A rectangle round cells."""

    row: int
    col: int
    rows: int
    cols: int


@dataclass(frozen=True)
class Cells:
    """A panel: rows and columns of cells.

    Attributes
    ----------
    title : str
        What they are.
    classes : array of int
        Whose each is, by which it is coloured: `NOTHING`, `NOBODY`, or a number from 0 on.
    words : array of str
        What stands in each, a few characters.
    legend : mapping of int to str
        What the classes are.
    down, across : str
        Names of the axes.
    first : (int, int)
        The numbers of the first row and column.
    frames : tuple of Frame
        In rows and columns from 0 on.
    framed : str
        What the frames are round.
    names : tuple of str
        Of the rows, in place of numbers.
    numbered : bool
        Whether the rows have names or numbers.
    """

    title: str
    classes: Any
    words: Any
    legend: Mapping[int, str] = field(default_factory=dict)
    down: str = ""
    across: str = ""
    first: tuple[int, int] = (0, 0)
    frames: tuple[Frame, ...] = ()
    framed: str = ""
    names: tuple[str, ...] = ()
    numbered: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.classes.shape
        return rows, cols

    @property
    def row_names(self) -> tuple[str, ...]:
        """What stands before each row."""
        if not self.numbered:
            return ("",) * self.shape[0]
        return self.names or tuple(str(self.first[0] + i) for i in range(self.shape[0]))

    def cropped(self, rows: int, cols: int) -> Cells:
        """Return the first rows and columns, and say in the title of how many."""
        if self.shape[0] <= rows and self.shape[1] <= cols:
            return self
        whole = f"{self.shape[0]} x {self.shape[1]}"
        rows, cols = min(rows, self.shape[0]), min(cols, self.shape[1])
        frames = tuple(
            Frame(f.row, f.col, min(f.rows, rows - f.row), min(f.cols, cols - f.col))
            for f in self.frames
            if f.row < rows and f.col < cols
        )
        kept = set(np.unique(self.classes[:rows, :cols]).tolist())
        return replace(
            self, title=f"{self.title} (the first {rows} x {cols} of {whole})", classes=self.classes[:rows, :cols],
            words=self.words[:rows, :cols], frames=frames, names=self.names[:rows],
            legend={number: text for number, text in self.legend.items() if number in kept},
        )  # fmt: skip


def blank(rows: int, cols: int, of: int = NOBODY) -> tuple[Any, Any]:
    """Return classes and words of cells that belong to nobody."""
    return np.full((rows, cols), of), np.full((rows, cols), "", dtype=object)


@dataclass(frozen=True)
class Picture:
    """What a topic shows of a rung.

    Attributes
    ----------
    topic : str
        Its name.
    title : str
        What is to be seen.
    panels : tuple of Cells
        Drawn one below the other; those of a tuple side by side.
    sentences : tuple of str
        What to notice, with the figures.
    """

    topic: str
    title: str
    panels: tuple[Cells | tuple[Cells, ...], ...]
    sentences: tuple[str, ...]

    @property
    def cells(self) -> tuple[Cells, ...]:
        """All panels."""
        return tuple(each for row in self.rows for each in row)

    @property
    def rows(self) -> tuple[tuple[Cells, ...], ...]:
        """The panels that stand side by side."""
        return tuple((row,) if isinstance(row, Cells) else row for row in self.panels)

    @property
    def digest(self) -> str:
        """A number that two pictures share only if they show the same."""
        parts: list[Any] = [self.topic, self.title, *self.sentences]
        for each in self.cells:
            parts += [each.title, each.classes.tolist(), each.words.tolist(), dict(each.legend), each.frames,
                      each.framed, each.row_names, each.first]  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it: of each panel the classes, their legend and the words."""
        return {
            "topic": self.topic,
            "title": self.title,
            "sentences": list(self.sentences),
            "panels": [
                {
                    "title": each.title,
                    "down": each.down,
                    "across": each.across,
                    "rows": list(each.row_names),
                    "first_column": each.first[1],
                    "legend": {str(number): text for number, text in each.legend.items()},
                    "classes": each.classes.tolist(),
                    "words": each.words.tolist(),
                    "frames": [vars(frame) for frame in each.frames],
                    "framed": each.framed,
                }
                for each in self.cells
            ],
        }
