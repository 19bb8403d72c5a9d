"""Which thread owns which results: the one that stores them; and what a warp asks of memory at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbackprop.errors import InvalidArgument
from convbackprop.explain.picture import NOBODY, Cells, Frame, Picture, blank
from convbackprop.explain.record import LOAD, STORE, Recording

WARP, SECTOR, LINE = 32, 32, 128

#: What is drawn of a plane, and how many loads.
_MOST_ROWS, _MOST_COLS, _MOST_LOADS = 24, 48, 2

#: Warps that are told by their colours.
_MOST_NAMED = 8

#: Arrays of which a request is told, but not drawn.
_SMALL = ("w", "b", "scratch")


def result_of(recording: Recording) -> str:
    """Return the name of the array into which the main kernel stores most."""
    names = [name for name in ("y", "dx", "dw", "scratch") if len(recording.of(name, STORE))]
    if not names:
        raise InvalidArgument(f"{recording.variant.title} stores nothing; there is no owner of a result to draw")
    return names[0]


def plane(recording: Recording, name: str, elements: Any) -> tuple[tuple[int, int], Any, Any, str, str]:
    """Return how an array is drawn: its extents, the row and the column of elements, and the axes' names.

    An image of one channel is drawn as it is; of more channels, a row each with all pixels of it (of several images
    one after the other); scratch memory as a row a part.
    """
    if name == "scratch":
        p = recording.problem
        taps = p.K * (p.C // p.groups) * p.R * p.S + p.K
        parts = int(elements.max()) // taps + 1 if len(elements) else 1
        return (parts, taps), elements // taps, elements % taps, "part", "tap"
    n, c, h, w = recording.shape(name)
    axes = ("p", "q") if name in ("y", "dy") else ("r", "s") if name in ("w", "dw") else ("h", "w")
    if n * c == 1:
        return (h, w), elements // w, elements % w, *axes
    image, channel, pixel = elements // (c * h * w), elements // (h * w) % c, elements % (h * w)
    if name in ("w", "dw"):
        return (n, c * h * w), elements // (c * h * w), elements % (c * h * w), "k", "c,r,s"
    letter = "k" if name in ("y", "dy") else "c"
    return (c, n * h * w), channel, image * h * w + pixel, letter, "pixel"


def threads(recording: Recording) -> Picture:
    """Draw which thread of which warp and block stores each result."""
    name = result_of(recording)
    elements, accesses = recording.elements(recording.of(name, STORE), name)
    keys = np.stack([elements, accesses["block"], accesses["thread"]])
    first = np.unique(keys, axis=1, return_index=True)[1]  # a thread may store an element again
    elements, accesses = elements[first], accesses[first]
    extents, rows, cols, down, across = plane(recording, name, elements)
    classes, words = blank(*extents)
    threads_of = accesses["block"] * recording.threads + accesses["thread"]
    warps_a_block = -(-recording.threads // WARP)
    warps = accesses["block"] * warps_a_block + accesses["thread"] // WARP
    words[rows, cols] = [str(lane) for lane in accesses["thread"] % WARP]
    frames = [Frame(*box) for box in _boxes(accesses["block"], rows, cols) or ()]
    counts = np.unique(threads_of, return_counts=True)[1]
    if counts.max() > 1 and _boxes(threads_of, rows, cols):  # a thread's elements lie together: each is coloured
        classes[rows, cols], legend = threads_of, {}
    else:
        names = np.unique(warps).tolist()
        classes[rows, cols] = np.searchsorted(names, warps)
        legend = {i: f"block {each // warps_a_block}, warp {each % warps_a_block}" for i, each in enumerate(names)}
        legend = legend if len(legend) <= _MOST_NAMED else {}
    panel = Cells(f"{name}: the lane of a warp that stores each element", classes, words, legend, down, across,
                  frames=tuple(frames) if 1 < len(frames) <= 12 else (),
                  framed="a block's elements" if 1 < len(frames) <= 12 else "")  # fmt: skip
    (gx, gy, gz), (bx, by, bz) = recording.grid, recording.block
    idle = gx * gy * gz * recording.threads - len(counts)
    most = f"{counts.max():,} element{'s' * bool(counts.max() > 1)}"
    sentences = (
        f"A grid of {gx} x {gy} x {gz} blocks of {bx} x {by} x {bz} threads. A thread stores "
        + (f"{most}" if counts.min() == counts.max() else f"at most {most} and at least {counts.min():,}")
        + (f"; {idle:,} threads store none" if idle else "")
        + f". {_vectors(recording.of(name, STORE), name)}",
    )
    return Picture("threads", f"{recording.variant}: which thread owns which elements of {name}",
                   (panel.cropped(_MOST_ROWS, _MOST_COLS),), sentences)  # fmt: skip


def _vectors(stores: Any, name: str) -> str:
    widest = int(stores["bytes"].max())
    return f"A store of a thread to {name} is of {widest} bytes."


def _boxes(keys: Any, rows: Any, cols: Any) -> list[tuple[int, int, int, int]] | None:
    """Return a rectangle round the elements of each key, or None unless each is filled by them."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order][0] - 1))
    (top, bottom), (left, right) = (
        (np.minimum.reduceat(each[order], starts), np.maximum.reduceat(each[order], starts)) for each in (rows, cols)
    )
    high, wide = bottom - top + 1, right - left + 1
    if (high * wide != np.diff(starts, append=len(keys))).any():
        return None
    return list(zip(*(each.tolist() for each in (top, left, high, wide)), strict=True))


# -- what a warp loads in one request --------------------------------------------------------------------------------
def loads(recording: Recording) -> Picture:
    """Draw the addresses of a request of a warp, and the sectors that it takes."""
    found = sorted(_requests(recording), key=lambda each: (each[1] in _SMALL, -each[0]))
    if not found:
        raise InvalidArgument(f"{recording.variant.title} loads nothing from global memory")
    drawn = [name for _, name, *_ in found if name not in _SMALL][:_MOST_LOADS]
    panels: list[Cells | tuple[Cells, ...]] = []
    sentences = []
    for _, name, request, requests in found:
        if name in drawn:
            drawn.remove(name)
            panels += [_in_memory(recording, name, request), _in_plane(recording, name, request)]
        file, line = recording.place(request["site"][0])
        sectors, fewest = _sectors(request)
        lanes = "1 lane asks" if len(request) == 1 else f"{len(request)} lanes ask"
        sentences.append(
            f"{file.name}:{line} loads {name}: {lanes} for {int(request['bytes'].max())} bytes each, "
            f"{_distinct(request):,} different ones, which lie in {sectors} sector{'s' * (sectors > 1)} of {SECTOR} "
            f"bytes; {fewest} would hold them. The kernel makes {requests:,} such requests."
        )
    return Picture("loads", f"{recording.variant}: what a warp loads in one request", tuple(panels), tuple(sentences))


def _requests(recording: Recording) -> list[tuple[int, str, Any, int]]:
    """Return for each line that loads from global memory: bytes of all requests, the array, a whole request, count."""
    found = []
    for number, name in enumerate(recording.arrays):
        a = recording.of(name, LOAD) if name else recording.accesses[:0]
        if not len(a) or recording.arrays.index(name) != number:
            continue
        places = {site: recording.place(site) for site in np.unique(a["site"]).tolist()}
        for place in dict.fromkeys(places.values()):
            own = a[np.isin(a["site"], [site for site, each in places.items() if each == place])]
            numbers, counts = np.unique(own["request"], return_counts=True)
            whole = numbers[counts == counts.max()]
            chosen = own[own["request"] == whole[len(whole) // 2]]
            found.append((int(own["bytes"].sum()), name, chosen, len(numbers)))
    return found


def _bytes(request: Any) -> Any:
    each = request["bytes"].astype(int)
    within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    return np.repeat(request["address"], each) + within


def _distinct(request: Any) -> int:
    return len(np.unique(_bytes(request)))


def _sectors(request: Any) -> tuple[int, int]:
    """Return the sectors that a request touches, and how many its bytes would fill."""
    return len(np.unique(_bytes(request) // SECTOR)), -(-_distinct(request) // SECTOR)


def _in_memory(recording: Recording, name: str, request: Any) -> Cells:
    """Return the request in memory: a row is 128 bytes, of which four sectors are framed where they are touched."""
    size = recording.item_bytes(name)
    elements, accesses = recording.elements(request, name)
    a_line = LINE // size
    lines = np.unique(elements // a_line)
    classes, words = blank(len(lines), a_line)
    rows = np.searchsorted(lines, elements // a_line)
    for row, col, lane in zip(rows, elements % a_line, accesses["thread"] % WARP, strict=True):
        shared = classes[row, col] != NOBODY and words[row, col] != str(lane)
        classes[row, col] = lane // 8
        words[row, col] = "*" if shared else str(lane)
    touched = np.unique(np.stack([rows, elements % a_line * size // SECTOR]), axis=1).T
    a_sector = SECTOR // size
    frames = tuple(Frame(int(row), int(sector) * a_sector, 1, a_sector) for row, sector in touched)
    title = f"{name} in memory: a row is {LINE} bytes, {a_line} elements{'; *: several lanes' * ('*' in words)}"
    cells = Cells(title, classes, words, _LANES, frames=frames, framed="a sector that is brought", numbered=False)
    return cells.cropped(16, 64)


_LANES = {i: f"lanes {8 * i} to {8 * i + 7}" for i in range(WARP // 8)}


def _in_plane(recording: Recording, name: str, request: Any) -> Cells:
    """Return the request in the image."""
    elements, accesses = recording.elements(request, name)
    extents, rows, cols, down, across = plane(recording, name, elements)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    first, last = max(0, top - 1), min(extents[0], bottom + 1)
    left = int(cols.min()) if extents[1] > _MOST_COLS else 0
    width = min(extents[1] - left, _MOST_COLS)
    classes, words = blank(last - first, width)
    inside = (cols >= left) & (cols < left + width)
    lanes = accesses["thread"][inside] % WARP
    classes[rows[inside] - first, cols[inside] - left] = lanes // 8
    words[rows[inside] - first, cols[inside] - left] = [str(lane) for lane in lanes]
    return Cells(f"the same in {name}", classes, words, {}, down, across, (first, left)).cropped(12, _MOST_COLS)
