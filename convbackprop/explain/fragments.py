"""Which lane holds which element of the matrices of an mma, and what these are in a convolution."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from convbackprop.errors import InvalidArgument
from convbackprop.explain.picture import Cells, Picture, blank
from convbackprop.explain.record import LOAD, STORE, Recording
from convbackprop.explain.threads import WARP
from convbackprop.explain.tile import in_order, staged
from convbackprop.ladder.expression import Expression
from convbackprop.sources import source_root

#: The struct of mma.cuh whose numbers a dtype's are.
FACTORS = {"float32": "Tf32", "float16": "Float16", "bfloat16": "Bfloat16"}

ROWS, COLS, MATRICES = 16, 8, {"left": 4, "right": 2, "sums": 4}


class Place(NamedTuple):
    """Where a number of a lane's word i lies; a word may hold several."""

    lane: int
    i: int
    row: int
    col: int


class Layout(NamedTuple):
    """The fragments of a product: how long its sums are, and the places in each matrix, in the words' order."""

    k: int
    places: dict[str, list[Place]]


def layout(dtype: str) -> Layout:
    """Read the layout of mma's fragments from the table that mma.cuh begins with."""
    if dtype not in FACTORS:
        raise InvalidArgument(f"dtype is {dtype!r}, of which no mma is used; it should be one of {', '.join(FACTORS)}")
    text = (source_root() / "mma.cuh").read_text(encoding="utf-8")
    match = re.search(rf"struct {FACTORS[dtype]} {{\s*static constexpr int PER_WORD = (\d+), K = (\d+);", text)
    assert match, f"mma.cuh does not say what a word of {FACTORS[dtype]} is"
    per_word, k = int(match[1]), int(match[2])
    found = {}
    for name, words in MATRICES.items():
        line = re.search(rf"^//\s+{name}\[i\]\s+(.*)$", text, re.MULTILINE)
        assert line, f"mma.cuh does not say where {name}[i] lies"
        terms = dict(re.findall(r"(row|column)s? (?:from )?(.+?)(?: on)?(?=\s{2,}|$)", line[1]))
        row, col = (Expression(terms[axis], "mma.cuh") for axis in ("row", "column"))
        along = (
            1 if name == "right" else 0
        )  # a word's numbers lie along a row of the left factor, a column of the right
        places = []
        for lane in range(WARP):
            for i in range(words):
                names = {"lane": lane, "i": i, "PER_WORD": per_word}
                for j in range(per_word if name != "sums" else 1):
                    places.append(Place(lane, i, row(names) + along * j, col(names) + (1 - along) * j))
        found[name] = places
    return Layout(k, found)


def fragments(recording: Recording) -> Picture:
    """Draw who holds what of a product's matrices, and what of the convolution that is."""
    if not any(file.name == "band.cuh" for file, _ in recording.lines.values()):
        raise InvalidArgument(f"{recording.variant.title} multiplies no fragments; forward/banded does")
    table = layout(recording.problem.dtype)
    extents = {"left": (ROWS, table.k), "right": (table.k, COLS), "sums": (ROWS, COLS)}
    titles = {"left": "left factor", "right": "right factor", "sums": "sums"}
    whose = []
    for name, places in table.places.items():
        classes, words = blank(*extents[name])
        for place in places:
            classes[place.row, place.col], words[place.row, place.col] = place.i, str(place.lane)
        legend = {i: f"word {i}" for i in range(MATRICES[name])}
        whose.append(Cells(f"{titles[name]}: the lane", classes, words, legend, "row", "col"))
    image, result = ("x", "y") if "y" in recording.arrays else ("dy", "dx")
    what = _contents(recording, table, image, result)
    shown = []
    for name, title in (
        ("left", f"column of {image}"),
        ("right", "tap r,s; 0: none"),
        ("sums", f"{result} of the first group"),
    ):
        classes, words = blank(*extents[name])
        for place, word in zip(table.places[name], what[name], strict=True):
            classes[place.row, place.col] = place.i if word not in ("", "0") else -1
            words[place.row, place.col] = word
        shown.append(Cells(title, classes, words, {}, "row", "col"))
    sentences = (
        f"mma.sync.m16n8k{table.k}: a warp adds to {ROWS} x {COLS} sums the product of a {ROWS} x {table.k} and a "
        f"{table.k} x {COLS} matrix. A lane holds a few words of each matrix, and no lane a whole row.",
        f"Below: what {recording.variant} multiplies. A row of the left factor is a row of {image} from a column on, "
        "as it lies in shared memory; the right factor is a row of the filter where each of 8 outputs sees it.",
    )
    return Picture(
        "fragments", f"{recording.variant}: the fragments of an mma", (tuple(whose), tuple(shown)), sentences
    )


def _contents(recording: Recording, table: Layout, image: str, result: str) -> dict[str, list[str]]:
    """Return what the first product of a row in the image's middle is of, in the layout's order of places."""
    a = recording.accesses
    blocks = np.unique(a["block"])
    a = a[a["block"] == blocks[len(blocks) // 2]]
    warp = in_order(a[a["thread"] < WARP])
    _, _, _, width = recording.shape(image)
    sources, stores = staged(recording, warp, image)
    columns = dict(zip(stores["address"].tolist(), (sources % width).tolist(), strict=True))
    counts = {name: len(places) // WARP for name, places in table.places.items()}
    taps = _taps(recording, a, counts["right"] // MATRICES["right"])
    size = recording.item_bytes(image)

    def product(turn: int) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {name: [] for name in MATRICES}
        for lane in range(WARP):
            mine = warp[warp["thread"] == lane]
            reads = mine[(mine["shared"] == 1) & (mine["kind"] == LOAD)]
            of_image = reads["address"] >= min(columns)  # which lies behind the filter
            starts = np.flatnonzero(of_image & ~np.concatenate([[False], of_image[:-1]]))
            start = starts[(len(starts) // 2 + turn) % len(starts)]
            end = start + np.flatnonzero(~of_image[start:])[0]
            left = [int(r["address"]) + at for r in reads[start:end] for at in range(0, int(r["bytes"]), size)]
            right = reads["address"][end : end + MATRICES["right"]].tolist()
            found["left"] += [str(columns.get(address, "")) for address in left[: counts["left"]]]
            found["right"] += [
                word for address in right for word in taps.get(address, ["0"] * (counts["right"] // MATRICES["right"]))
            ]
            found["sums"] += _stored(recording, mine, result, counts["sums"])
        return found

    # Of some rows one after the other, the one of which the 8 outputs see most taps.
    return max((product(turn) for turn in range(4)), key=lambda found: -found["right"].count("0"))


def _taps(recording: Recording, accesses: Any, each: int) -> dict[int, list[str]]:
    """Return the taps that a word of the banded filter holds, so many each, by the word's address."""
    p = recording.problem
    a = in_order(accesses)
    a = a[(a["shared"] == 1) | (a["array"] == recording.arrays.index("w"))]
    found: dict[int, list[str]] = {}
    pending: list[int] = []
    for access in a:
        if not access["shared"]:
            pending.append(int(access["address"]) // recording.item_bytes("w") % (p.R * p.S))
        elif access["kind"] == STORE:
            if pending:
                words = [f"{tap // p.S},{tap % p.S}" for tap in sorted(pending)]  # g++ may load the second first
                if len(words) < each:  # beside the filter's first tap in a row, or its last
                    words.insert(0 if pending[0] % p.S == 0 else 1, "0")
                found[int(access["address"])] = words
            pending = []
    return found


def _stored(recording: Recording, accesses: Any, result: str, count: int) -> list[str]:
    """Return where a lane's first sums go."""
    _, _, _, width = recording.shape(result)
    stores = accesses[(accesses["shared"] == 0) & (accesses["kind"] == STORE)
                      & (accesses["array"] == recording.arrays.index(result))]  # fmt: skip
    elements, _ = recording.elements(stores, result)
    words = [f"{element // width},{element % width}" for element in elements[:count]]
    return words + [""] * (count - len(words))
