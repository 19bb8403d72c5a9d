"""What goes through shared memory: a tile with its halo."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbackprop.errors import InvalidArgument
from convbackprop.explain.picture import NOTHING, Cells, Frame, Picture, blank
from convbackprop.explain.record import LOAD, STORE, Recording
from convbackprop.explain.threads import WARP, result_of

BANKS = 32


def in_order(accesses: Any) -> Any:
    """Return accesses thread by thread, each in the order in which the thread makes them."""
    return accesses[np.lexsort((accesses["request"], accesses["thread"], accesses["block"]))]


def staged(recording: Recording, accesses: Any, name: str) -> tuple[Any, Any]:
    """Return where in shared memory elements of an array are put, and which, with the access that puts each there.

    A thread stores what it has loaded immediately before; an asynchronous copy is a load and a store.

    Returns
    -------
    sources : array
        Elements of the array.
    stores : array
        The accesses that store them: `address` is that of the element.
    """
    a = in_order(accesses)
    number = recording.arrays.index(name)
    puts = np.flatnonzero((a["shared"][1:] == 1) & (a["kind"][1:] == STORE) & (a["shared"][:-1] == 0)
                          & (a["kind"][:-1] == LOAD) & (a["array"][:-1] == number)
                          & (a["thread"][1:] == a["thread"][:-1]) & (a["block"][1:] == a["block"][:-1]))  # fmt: skip
    sources, _ = recording.elements(a[puts], name)
    each = np.maximum(1, a["bytes"][puts] // recording.item_bytes(name)).astype(int)
    stores = np.repeat(a[puts + 1], each)
    within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    size = np.repeat(a["bytes"][puts + 1], each) // np.repeat(each, each)
    stores["address"] += within * size
    stores["bytes"] = size
    return sources, stores


def image_of(recording: Recording) -> str:
    """Return the array whose windows the products are made of: dy of a gradient, else x."""
    return "dy" if len(recording.of("dy", LOAD)) else "x"


# -- tiles -----------------------------------------------------------------------------------------------------------
def tile(recording: Recording) -> Picture:
    """Draw who brings which element of a tile to shared memory, and what a warp reads of it at once."""
    name = image_of(recording)
    a = recording.accesses
    result = result_of(recording)
    sources, stores = staged(recording, a, name)
    if not len(sources):
        raise InvalidArgument(f"{recording.variant.title} brings nothing of {name} to shared memory; it has no tile")
    blocks, counts = np.unique(stores["block"], return_counts=True)
    block = blocks[counts == counts.max()][0]
    a = a[a["block"] == block]
    sources, stores = staged(recording, a, name)
    _, _, height, width = recording.shape(name)
    first_plane = sources // (height * width) == sources[0] // (height * width)  # of several channels, the first
    sources, stores = sources[first_plane] % (height * width), stores[first_plane]
    rows, cols = sources // width, sources % width
    top, left = int(rows.min()), int(cols.min())
    top, left = top - (top == 0), left - (left == 0)
    extents = (
        int(rows.max()) - top + 1 + (rows.max() == height - 1),
        int(cols.max()) - left + 1 + (cols.max() == width - 1),
    )
    classes, words = blank(*extents)
    _no_pixel(classes, top, left, height, width)
    classes[rows - top, cols - left] = stores["thread"] // WARP
    words[rows - top, cols - left] = [str(lane) for lane in stores["thread"] % WARP]
    frames = _outputs(recording, a, result, top, left)
    warps = np.unique(stores["thread"] // WARP)
    axes = ("p", "q") if name == "dy" else ("h", "w")
    puts = Cells(f"{name}: the lane that brings each element to shared memory; white: padding, which nobody brings",
                 classes, words, {int(warp): f"warp {warp}" for warp in warps}, *axes, (top, left), frames,
                 f"outputs of block {block}" if frames else "")  # fmt: skip
    reads, asked = _reads(recording, a, stores)
    panels: list[Cells | tuple[Cells, ...]] = [puts]
    sentences = [
        f"Block {block} brings {len(np.unique(sources)):,} elements of {name} to shared memory"
        + (
            f" for {frames[0].rows * frames[0].cols:,} of {result}; what is outside the frame is the halo"
            if frames
            else ""
        )
        + f". Its threads read each {asked:.1f} times from there."
    ]
    if reads is not None:
        panels.append(_banks(reads, rows, cols, stores, (top, left), extents, axes, (height, width)))
        sentences.append(_conflicts(reads))
    return Picture("tile", f"{recording.variant}: a tile in shared memory", tuple(panels), tuple(sentences))


def _no_pixel(classes: Any, top: int, left: int, height: int, width: int) -> None:
    down, across = np.indices(classes.shape)
    outside = (down + top < 0) | (down + top >= height) | (across + left < 0) | (across + left >= width)
    classes[outside] = NOTHING


def _outputs(recording: Recording, accesses: Any, result: str, top: int, left: int) -> tuple[Frame, ...]:
    """Return a frame round the block's results, where they lie over the elements that they are made of."""
    p = recording.problem
    if result not in ("y", "dx") or p.stride != (1, 1) or (p.H, p.W) != (p.P, p.Q):
        return ()
    stores = accesses[(accesses["shared"] == 0) & (accesses["kind"] == STORE)
                      & (accesses["array"] == recording.arrays.index(result))]  # fmt: skip
    elements, _ = recording.elements(stores, result)
    rows, cols = elements // p.W % p.H, elements % p.W
    high, wide = int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1
    return (Frame(int(rows.min()) - top, int(cols.min()) - left, high, wide),)


def _reads(recording: Recording, accesses: Any, stores: Any) -> tuple[Any, float]:
    """Return a request of a warp that reads what was staged, and how often each element of it is read."""
    reads = accesses[(accesses["shared"] == 1) & (accesses["kind"] == LOAD)]
    reads = reads[np.isin(reads["address"], stores["address"])]
    if not len(reads):
        return None, 0.0
    numbers, counts = np.unique(reads["request"], return_counts=True)
    whole = numbers[counts == counts.max()]
    return reads[reads["request"] == whole[len(whole) // 2]], len(reads) / len(np.unique(stores["address"]))


def passes(request: Any) -> tuple[int, int]:
    """Return the banks of shared memory that a request of 4 bytes a lane wants, and the most words of one of them."""
    banks = np.unique(request["address"] // 4) % BANKS
    return len(np.unique(banks)), int(np.unique(banks, return_counts=True)[1].max())


def _conflicts(request: Any) -> str:
    banks, most = passes(request)
    return (
        f"At one tap the {len(request)} lanes of a warp read {len(np.unique(request['address']))} words, which lie in "
        f"{banks} of the {BANKS} banks: {most} pass{'es' * (most > 1)}"
        + (", so there is a conflict." if most > 1 else ".")
    )


def _banks(request: Any, rows: Any, cols: Any, stores: Any, first: tuple[int, int], extents: tuple[int, int],
           axes: tuple[str, str], image: tuple[int, int]) -> Cells:  # fmt: skip
    classes, words = blank(*extents)
    _no_pixel(classes, *first, *image)
    words[rows - first[0], cols - first[1]] = [str(bank) for bank in stores["address"] // 4 % BANKS]
    read = np.isin(stores["address"], request["address"])
    classes[(rows - first[0])[read], (cols - first[1])[read]] = 5
    return Cells("the bank of shared memory that each element lies in; coloured: what a warp reads at once", classes,
                 words, {5: "read in one request"}, *axes, first)  # fmt: skip
