"""Which rows a thread that marches down an image asks for and holds, and when."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convbackprop.errors import InvalidArgument
from convbackprop.explain.picture import Cells, Picture, blank
from convbackprop.explain.record import LOAD, STORE, Recording
from convbackprop.explain.threads import WARP, result_of
from convbackprop.explain.tile import image_of

#: What is drawn of a march.
_MOST_TURNS, _MOST_HELD = 22, 16

ASKED, HELD, STORED = 0, 1, 2


def ring(recording: Recording) -> Picture:
    """Draw when a thread asks for each row, how long what is in it is held, and when rows of the result are stored."""
    name, result = image_of(recording), result_of(recording)
    refusal = f"{recording.variant.title} stores no rows one after the other; it has no ring of rows"
    if result == "scratch":
        raise InvalidArgument(refusal)
    events = _events(recording, name, result)
    turns = _turns(events)
    stored = {row: turn for turn, (what, row) in turns if what == "store"}
    asked: dict[int, int] = {}
    for turn, (what, row) in turns:
        if what == "ask":
            asked.setdefault(row, turn)
    if len(stored) < 2 or len(asked) < 2:
        raise InvalidArgument(refusal)
    count = min(_MOST_TURNS, max(turn for turn, _ in turns) + 1)
    first = min(asked)
    classes, words = blank(max(asked) - first + 1, count)
    last_use = {row: max((stored[p] for p in stored if row in _rows_for(recording, result, p)), default=turn)
                for row, turn in asked.items()}  # fmt: skip
    for row, turn in asked.items():
        classes[row - first, turn : last_use[row] + 1] = HELD
        if turn < count:
            classes[row - first, turn], words[row - first, turn] = ASKED, "ask"
    axes = ("p", "turn") if name == "dy" else ("h", "turn")
    legend = {
        ASKED: "is asked for",
        HELD: f"is held, as it is or in sums of {result}, until all is stored that needs it",
    }
    rows = Cells(f"rows of {name}, for one thread", classes, words, legend, *axes, (first, 0))
    panels = (rows.cropped(_MOST_HELD, count), _march(turns, count, name, result))
    asks = sum(what == "ask" for _, (what, _) in turns)
    held = max(sum(asked[row] <= turn <= last_use[row] for row in asked) for turn in range(count))
    times = "each once" if asks == len(asked) else f"{asks} times in all"
    sentences = (
        f"The thread marches down {len(stored)} rows of {result}, asks for {len(asked)} rows of {name}, "
        f"{times}, and holds what is in at most {held} of them at a time.",
    )
    return Picture("ring", f"{recording.variant}: which rows are held when", panels, sentences)


#: What is done to a row: "ask", "read" (from shared memory), "store".
Event = tuple[str, int]


def _events(recording: Recording, name: str, result: str) -> list[Event]:
    """Return what happens to rows, in the order in which a thread that stores as many as any meets it.

    What other lanes of its warp bring to places in shared memory from which it reads is asked for, too. A copy past the
    registers is recorded as a store and then a load, both of one site; other stores follow what was loaded.
    """
    stores = recording.of(result, STORE)
    keys = stores["block"] * recording.threads + stores["thread"]
    owners, counts = np.unique(keys, return_counts=True)
    most = owners[counts == counts.max()]
    block, thread = divmod(int(most[len(most) // 2]), recording.threads)
    a = recording.accesses
    warp = a[(a["block"] == block) & (a["thread"] // WARP == thread // WARP)]
    _, _, height, width = recording.shape(name)
    _, _, result_height, result_width = recording.shape(result)
    mine_only = warp[warp["thread"] == thread]
    read = set(mine_only["address"][(mine_only["shared"] == 1) & (mine_only["kind"] == LOAD)].tolist())
    number, result_number = recording.arrays.index(name), recording.arrays.index(result)
    lies: dict[int, int | None] = {}  # in shared memory, at this time: the row, by address
    last: dict[int, int] = {}  # that a lane has just loaded
    copies: dict[int, tuple[int, int]] = {}  # site and address of a lane's last store to shared memory
    found: list[Event] = []
    for access in warp[np.argsort(warp["request"], kind="stable")]:
        lane, address = int(access["thread"]), int(access["address"])
        loaded = last.pop(lane, None)
        if access["shared"] and access["kind"] == STORE:
            lies[address], copies[lane] = loaded, (int(access["site"]), address)
            if loaded is not None and address in read and ("ask", loaded) not in found[-WARP:]:
                found.append(("ask", loaded))
        elif access["shared"] and lane == thread and (row := lies.get(address)) is not None:
            found.append(("read", row))
        elif access["array"] == number and access["kind"] == LOAD and not access["shared"]:
            row = address // recording.item_bytes(name) // width % height
            site, place = copies.get(lane, (None, 0))
            if site == access["site"]:
                lies[place] = row
            else:
                last[lane] = row
            if lane == thread or (site == access["site"] and place in read and ("ask", row) not in found[-WARP:]):
                found.append(("ask", row))
        elif access["array"] == result_number and access["kind"] == STORE and lane == thread:
            found.append(("store", address // recording.item_bytes(result) // result_width % result_height))
    return found


def _turns(events: Sequence[Event]) -> list[tuple[int, Event]]:
    """Number the turns of a march: one ends where something happens again, to another row."""
    found: dict[tuple[int, Event], None] = {}
    turn, seen = 0, dict[str, int]()
    for what, row in events:
        if seen.get(what, row) != row:
            turn, seen = turn + 1, {}
        seen[what] = row
        found[turn, (what, row)] = None
    return list(found)


def _rows_for(recording: Recording, result: str, row: int) -> set[int]:
    """Return the rows of the image that a row of the result is made of."""
    p = recording.problem
    if result == "y":
        return {row * p.stride[0] - p.padding[0][0] + r * p.dilation[0] for r in range(p.R)}
    steps = [row + p.padding[0][0] - r * p.dilation[0] for r in range(p.R)]
    return {step // p.stride[0] for step in steps if step % p.stride[0] == 0}


def _march(turns: Sequence[tuple[int, Event]], count: int, name: str, result: str) -> Cells:
    """Return what happens in each turn: which row is asked for, read from shared memory, and stored."""
    titles = {"ask": f"asks: for that row of {name}", "read": "reads: it from shared memory",
              "store": f"stores: that row of {result}"}  # fmt: skip
    seen = {what: {turn: row for turn, (each, row) in turns if each == what and turn < count} for what in titles}
    shown = [what for what in titles if seen[what]]
    classes, words = blank(len(shown), count)
    for i, what in enumerate(shown):
        for turn, row in seen[what].items():
            classes[i, turn], words[i, turn] = {"ask": ASKED, "read": HELD, "store": STORED}[what], str(row)
    title = f"what the thread does in each turn ({'; '.join(titles[what] for what in shown)})"
    return Cells(title, classes, words, {}, "", "turn", names=tuple(f"{what}s" for what in shown))
