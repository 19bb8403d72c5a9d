"""Two saved runs, row by row: how their times compare, and whether the difference is more than noise.

Repetitions of two runs do not pair: the third of one has nothing to do with the third of the other. So a row is judged
by a test for two independent samples that assumes no distribution, the Mann-Whitney U test (Mann and Whitney, "On a
test of whether one of two random variables is stochastically larger than the other", 1947), as timings are skewed. Many
rows make many tests: their p-values are corrected by Benjamini and Hochberg's procedure ("Controlling the false
discovery rate", 1995), so that of the rows which are called faster or slower at most a share of `RATE` is expected to
be wrong.

What does pair is the same row of both runs. Over all rows, the Wilcoxon signed-rank test for paired samples (Wilcoxon,
"Individual comparisons by ranking methods", 1945) of the logarithms of their ratios tells whether one run as a whole is
faster.

Neither test knows that another start of the process is another layout of memory, and another minute another machine:
repetitions within a run are more alike than two runs are (Kalibera and Jones, "Rigorous benchmarking in reasonable
time", 2013). So a difference below `least` is none, however certain it is; and what the copies of memory and the peers
took, in which no kernel of ours takes part, tells how much of it is the machine's. Where the copy that was timed beside
a row took another time as well, the row is faster or slower only if it also is by as much more than the copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convbackprop.bench.columns import digits
from convbackprop.bench.machine import SAME
from convbackprop.bench.rows import Row
from convbackprop.bench.runs import Run

#: Of the rows called faster or slower, the share that may be wrong; and how much a difference is at least.
RATE, LEAST = 0.05, 0.05

#: Fewer repetitions than this cannot differ significantly, whatever they are; nor can fewer rows.
_REPETITIONS, _ROWS = 4, 6

#: Copies and peers that differ by more than this between two runs tell of another machine, or another load.
_WITNESSES = 0.1

FASTER, SLOWER, SAME_SPEED, FEW, UNTESTED = "faster", "slower", "no difference", "too few", "untested"
MOVED = "as the copy"


@dataclass
class Pair:
    """A row in two runs.

    Attributes
    ----------
    a, b : Row
        In the first and in the second run.
    p, q : float or None
        Of the Mann-Whitney U test, as it is and corrected for the number of rows; None where it was not made.
    verdict : str
        What the second run is: "faster", "slower", "no difference", "as the copy" (the difference is one of the
        machine), "too few" (repetitions to tell), "untested".
    """

    a: Row
    b: Row
    p: float | None = None
    q: float | None = None
    verdict: str = UNTESTED

    @property
    def ratio(self) -> float:
        """The second's median over the first's: below 1 it is faster."""
        assert self.a.ours is not None and self.b.ours is not None
        return self.b.ours.median / self.a.ours.median

    @property
    def machine(self) -> float:
        """The same ratio of the copies that were timed beside it, if they tell of another machine; else 1."""
        if not self.a.copy or not self.b.copy:
            return 1.0
        moved = self.b.copy.median / self.a.copy.median
        return moved if max(moved, 1 / moved) > 1 + _WITNESSES else 1.0

    def as_json(self) -> dict[str, Any]:
        """Return what is known, for --json."""
        assert self.a.ours is not None and self.b.ours is not None
        return {"variant": self.a.name, "problem": str(self.a.problem), "label": self.a.label,
                "a_ms": 1e3 * self.a.ours.median, "b_ms": 1e3 * self.b.ours.median,
                "a_repetitions": len(self.a.ours.seconds), "b_repetitions": len(self.b.ours.seconds),
                "ratio": self.ratio, "machine": self.machine, "p": self.p, "q": self.q,
                "verdict": self.verdict}  # fmt: skip


@dataclass
class Comparison:
    """Two runs.

    Attributes
    ----------
    pairs : list of Pair
        The rows that both timed.
    only_a, only_b : list of Row
        Those that only one of them timed.
    ratio : float or None
        The geometric mean of the rows' ratios.
    p : float or None
        Of the Wilcoxon signed-rank test over the rows; None where it was not made.
    verdict : str
        What the second run is as a whole, as `Pair.verdict`.
    notes : list of str
        What to keep in mind.
    """

    pairs: list[Pair]
    only_a: list[Row]
    only_b: list[Row]
    ratio: float | None
    p: float | None
    verdict: str
    notes: list[str]


def compare(a: Run, b: Run, least: float = LEAST) -> Comparison:
    """Compare two runs.

    Parameters
    ----------
    a, b : Run
        The first, and the second, of which the verdicts speak.
    least : float
        A row whose medians differ by a smaller share than this is called "no difference".
    """
    of_a, of_b = ({row.key: row for row in run.rows if row.ours} for run in (a, b))
    pairs = [Pair(row, of_b[key]) for key, row in of_a.items() if key in of_b]
    notes = [*_differences(a, b), *_noise(a, b), *_witnesses(pairs)]
    ratios = [pair.ratio for pair in pairs]
    p, verdict = None, UNTESTED
    try:
        from scipy import stats
    except ImportError as error:
        notes.append(f"Nothing is tested, as scipy cannot be imported ({error}): pip install 'convbackprop[stats]'.")
    else:
        _judge(pairs, least, stats)
        if len(ratios) >= _ROWS:
            beside_copies = [pair.ratio / pair.machine for pair in pairs]
            p = _signed_rank(ratios, stats)
            verdict = _beside(
                _verdict(p, _mean(ratios), LEAST),
                _verdict(_signed_rank(beside_copies, stats), _mean(beside_copies), LEAST),
            )
    return Comparison(
        pairs=pairs,
        only_a=[row for key, row in of_a.items() if key not in of_b],
        only_b=[row for key, row in of_b.items() if key not in of_a],
        ratio=_mean(ratios) if ratios else None,
        p=p,
        verdict=verdict,
        notes=notes,
    )


def _judge(pairs: Sequence[Pair], least: float, stats: Any) -> None:
    """Test each row, correct for their number, and say what follows."""
    tested = []
    for pair in pairs:
        assert pair.a.ours is not None and pair.b.ours is not None
        samples = pair.a.ours.seconds, pair.b.ours.seconds
        if min(map(len, samples)) < _REPETITIONS:
            pair.verdict = FEW
        else:
            pair.p = float(stats.mannwhitneyu(*samples, alternative="two-sided").pvalue)
            tested.append(pair)
    if tested:
        corrected = stats.false_discovery_control([pair.p for pair in tested], method="bh")
        for pair, q in zip(tested, corrected, strict=True):
            pair.q = float(q)
            pair.verdict = _beside(*(_verdict(pair.q, r, least) for r in (pair.ratio, pair.ratio / pair.machine)))


def _verdict(p: float, ratio: float, least: float) -> str:
    if p > RATE or max(ratio, 1 / ratio) <= 1 + least:
        return SAME_SPEED
    return FASTER if ratio < 1 else SLOWER


def _beside(said: str, beside_copy: str) -> str:
    """Return a verdict that holds beside the copies, too, or that the difference is theirs."""
    return said if said in (SAME_SPEED, beside_copy) else MOVED


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(float(np.mean(np.log(ratios))))


def _signed_rank(ratios: Sequence[float], stats: Any) -> float:
    return float(stats.wilcoxon(np.log(ratios)).pvalue) if any(ratio != 1 for ratio in ratios) else 1.0


# -- in words --------------------------------------------------------------------------------------------------------
def cells(row: dict[str, float | None]) -> list[str]:
    """Return the figures of a row of a comparison as they are printed."""
    q = row["q"]
    return [digits(row["a_ms"]), digits(row["b_ms"]), f"{row['ratio']:.3f}",
            "-" if q is None else f"{q:.2g}" if q >= 0.001 else "<0.001"]  # fmt: skip


def summary(found: Comparison, a: str, b: str, least: float) -> list[str]:
    """Return what a comparison comes to, in sentences."""
    counts = {verdict: sum(pair.verdict == verdict for pair in found.pairs) for verdict in (FASTER, SLOWER)}
    said = [
        f"ratio: the median of {b} over that of {a}; below 1, {b} is faster. q: of a Mann-Whitney U test of the "
        f"repetitions, corrected for {len(found.pairs)} rows (Benjamini-Hochberg). A row is faster or slower where q "
        f"is at most {RATE:g} and the medians differ by more than {100 * least:g} %.",
        f"{b} is faster in {counts[FASTER]} of {len(found.pairs)} rows and slower in {counts[SLOWER]}.",
    ]
    if any(pair.verdict == MOVED for pair in found.pairs):
        said.append(f"{MOVED}: so did the copy of memory timed beside the row; beside it there is no difference.")
    if found.ratio is not None:
        tested = "" if found.p is None else f", p {found.p:.2g} (Wilcoxon signed-rank test of the rows' log ratios)"
        said.append(f"Over all rows the ratio is {found.ratio:.3f} (geometric mean){tested}: {found.verdict}.")
    for name, rows in ((a, found.only_a), (b, found.only_b)):
        if rows:
            said.append(f"Only in {name}: {len(rows)} rows, such as {rows[0].name} on {rows[0].label}.")
    return said


# -- what to keep in mind --------------------------------------------------------------------------------------------
def _differences(a: Run, b: Run) -> list[str]:
    """Return a note on what is not the same in two runs besides the code."""
    found = [
        f"{key} {a.environment.get(key)} and {b.environment.get(key)}"
        for key in (*SAME, *(key for key in a.environment if key not in SAME))
        if a.environment.get(key) != b.environment.get(key) and (key in SAME or key in b.environment)
    ]
    found += [
        f"{key} {a.settings.get(key)} and {b.settings.get(key)}"
        for key in ("dtype", "peers")
        if a.settings.get(key) != b.settings.get(key)
    ]
    serious = [key for key in ("machine", "cpus", "device") if a.environment.get(key) != b.environment.get(key)]
    notes = [f"NOTE: {a.name} and {b.name} differ in more than their times: {'; '.join(found)}."] if found else []
    if serious:
        notes.append(f"NOTE: they are of another {' and '.join(serious)}, so no ratio here is the code's alone.")
    return notes


def _noise(a: Run, b: Run) -> list[str]:
    return [
        f"NOTE: {run.name} was timed on a noisy machine (load {run.noise.get('load_before')} before, spread "
        f"{100 * (run.noise.get('spread') or 0):.0f} %): differences of that size mean nothing."
        for run in (a, b)
        if run.noise["noisy"]
    ]


def _witnesses(pairs: Sequence[Pair]) -> list[str]:
    """Return a note if copies and peers, in which no kernel of ours takes part, took another time in the second run."""
    ratios: dict[str, list[float]] = {}
    for pair in pairs:
        for name, first, second in (
            ("a copy of memory", pair.a.copy, pair.b.copy),
            *((name, timing, pair.b.peers.get(name)) for name, timing in pair.a.peers.items()),
        ):
            if first and second:
                ratios.setdefault(name, []).append(second.median / first.median)
    middles = {name: float(np.median(found)) for name, found in ratios.items()}
    moved = [f"{name} {m:.2f} times" for name, m in middles.items() if max(m, 1 / m) > 1 + _WITNESSES]
    if not moved:
        return []
    return [
        f"NOTE: what none of our kernels takes part in took another time in the second run, too ({', '.join(moved)} as "
        "long, by the median): so much of what follows is the machine's, not the code's."
    ]
