"""Two reports of `make gpu-report`: what moved between them.

A report keeps percentiles, not repetitions, so that nothing is tested. A row is faster or slower where the medians
differ by more than `least` and the ranges from 20 to 80 % do not meet; where the copy that was timed beside it moved,
too, the row has to have moved by as much more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convbackprop.bench.comparison import FASTER, LEAST, MOVED, SAME_SPEED, SLOWER
from convbackprop.errors import InvalidArgument

#: Copies and torch's rows that took so much longer or shorter tell of another machine, or another load.
_WITNESSES = 0.1

#: What tells of the environment, by its key in the report.
_SAME = ("device", "commit", "torch", "cudnn", "nvcc", "pycuda")


@dataclass(frozen=True)
class GpuReport:
    """A report: whether nothing was measured, its environment, rows by job and who, and whether each goal is met."""

    name: str
    dry: bool
    environment: Mapping[str, Any]
    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    goals: Mapping[str, bool | None]

    def spread(self, key: tuple[str, str]) -> Mapping[str, float] | None:
        """Return the percentiles of a row in microseconds; None where it was not timed."""
        row = self.rows.get(key, {})
        return None if row.get("failed") else row.get("cold") or row.get("host")


@dataclass(frozen=True)
class Moved:
    """A row of ours in two reports: medians in microseconds, and the same ratio of the copy beside it, else 1."""

    part: str
    job: str
    who: str
    a_us: float
    b_us: float
    machine: float
    verdict: str

    @property
    def ratio(self) -> float:
        """The second's over the first's: below 1 it is faster."""
        return self.b_us / self.a_us

    def as_json(self) -> dict[str, Any]:
        """Return what is known, for --json."""
        return {**vars(self), "ratio": self.ratio}


@dataclass
class Movement:
    """Two reports.

    Attributes
    ----------
    rows : list of Moved
        Ours that both timed.
    only_a, only_b : list of (str, str)
        Job and who of those that only one of them timed.
    goals : list of (str, bool or None, bool or None)
        Those of which not the same is said.
    notes : list of str
        What to keep in mind.
    """

    rows: list[Moved] = field(default_factory=list)
    only_a: list[tuple[str, str]] = field(default_factory=list)
    only_b: list[tuple[str, str]] = field(default_factory=list)
    goals: list[tuple[str, bool | None, bool | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The geometric mean of the rows' ratios."""
        return math.exp(float(np.mean([math.log(row.ratio) for row in self.rows])))


def read(name: str) -> GpuReport | None:
    """Read a report; None: the file is none.

    Raises
    ------
    InvalidArgument
        It is one, but not whole.
    """
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not {"steps", "ceilings", "rows"} <= set(found):
        return None
    try:
        (environment,) = (step["data"] for step in found["steps"] if step["name"] == "environment")
        rows = {(row["job"], row["who"]): row for row in found["rows"]}
        goals = {goal["what"]: goal["met"] for goal in found["goals"]}
        return GpuReport(Path(name).stem, found["dry_run"], environment, rows, goals)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"{name} is a damaged GPU report: {type(error).__name__}: {error}") from None


def compare(a: GpuReport, b: GpuReport, least: float = LEAST) -> Movement:
    """Compare two reports; a row whose medians differ by a smaller share than `least` has not moved."""
    found = Movement(notes=[*_differences(a, b), *_witnesses(a, b)])
    timed_a, timed_b = ([key for key, row in each.rows.items() if row["ours"] and each.spread(key)] for each in (a, b))
    found.only_a = [key for key in timed_a if key not in timed_b]
    found.only_b = [key for key in timed_b if key not in timed_a]
    for key in timed_a:
        before, after = a.spread(key), b.spread(key)
        if before is None or after is None:
            continue
        machine = _ratio(a, b, (key[0], "copy")) or 1.0
        machine = machine if max(machine, 1 / machine) > 1 + _WITNESSES else 1.0
        said, beside = (_verdict(before, after, moved, least) for moved in (1.0, machine))
        verdict = said if said in (SAME_SPEED, beside) else MOVED
        part = a.rows[key].get("part", "rows")
        found.rows.append(Moved(part, *key, before["median"], after["median"], machine, verdict))
    found.goals = [(what, met, b.goals[what]) for what, met in a.goals.items() if b.goals.get(what, met) != met]
    return found


def _verdict(before: Mapping[str, float], after: Mapping[str, float], machine: float, least: float) -> str:
    ratio = after["median"] / before["median"] / machine
    if max(ratio, 1 / ratio) <= 1 + least:
        return SAME_SPEED
    if ratio < 1:
        return FASTER if after["p80"] < machine * before["p20"] else SAME_SPEED
    return SLOWER if after["p20"] > machine * before["p80"] else SAME_SPEED


def _ratio(a: GpuReport, b: GpuReport, key: tuple[str, str]) -> float | None:
    before, after = a.spread(key), b.spread(key)
    return after["median"] / before["median"] if before and after else None


def _differences(a: GpuReport, b: GpuReport) -> list[str]:
    """Return a note on what is not the same besides the times."""
    found = [
        f"{key} {a.environment.get(key)} and {b.environment.get(key)}"
        for key in _SAME
        if a.environment.get(key) != b.environment.get(key)
    ]
    notes = [f"NOTE: {each.name} is of a dry run: none of its times means anything." for each in (a, b) if each.dry]
    if found:
        notes.append(f"NOTE: {a.name} and {b.name} differ in more than their times: {'; '.join(found)}.")
    return notes


def _witnesses(a: GpuReport, b: GpuReport) -> list[str]:
    """Return a note if copies and torch, in which no kernel of ours takes part, took another time."""
    moved = []
    for name, begins in (("a copy", "copy"), ("torch", "torch")):
        keys = [key for key, row in a.rows.items() if not row["ours"] and key[1].startswith(begins)]
        ratios = [ratio for key in keys if (ratio := _ratio(a, b, key))]
        middle = float(np.median(ratios)) if ratios else 1.0
        if max(middle, 1 / middle) > 1 + _WITNESSES:
            moved.append(f"{name} {middle:.2f} times")
    if not moved:
        return []
    return [
        f"NOTE: what none of our kernels takes part in took another time in the second, too ({', '.join(moved)} as "
        "long, by the median): so much of what follows is the machine's, not the code's."
    ]


def summary(found: Movement, a: str, b: str, least: float) -> Sequence[str]:
    """Return what a comparison comes to, in sentences."""
    counts = {verdict: sum(row.verdict == verdict for row in found.rows) for verdict in (FASTER, SLOWER)}
    said = [
        f"{b} is faster in {counts[FASTER]} of {len(found.rows)} rows and slower in {counts[SLOWER]}, by more than "
        f"{100 * least:g} % and with ranges from 20 to 80 % that do not meet; the others are left out.",
        f"Over all rows the ratio is {found.ratio:.3f} (geometric mean).",
    ]
    words = {True: "met", False: "missed", None: "not known"}
    said += [f"Goal {what}: {words[before]} in {a}, {words[after]} in {b}." for what, before, after in found.goals]
    for name, keys in ((a, found.only_a), (b, found.only_b)):
        if keys:
            said.append(f"Only in {name}: {len(keys)} rows, such as {keys[0][1]} of {keys[0][0]}.")
    return said
