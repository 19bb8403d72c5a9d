"""The goals for an NVIDIA H200, and whether the rows of a run meet them.

A floor is the larger of two times: the bytes that must move over the bandwidth of a copy, and the operations over the
peak rate of FFMA, both measured in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.jobs import DEEPBENCH_LABEL, THREE_PASSES, WHOLE_LAYER
from benchmarks.report.rows import Row
from convbackprop.bench.layers import WHOLE
from convbackprop.problem import DTYPES, PASSES, ConvProblem


@dataclass(frozen=True)
class Goal:
    """What is wanted of a job; None: nothing.

    Attributes
    ----------
    number : str
        Of the table of goals.
    job : str
        Whose rows decide: the fastest of ours, cold, by its median.
    over_floor : float or None
        At most so many times the floor.
    times_torch : float or None
        torch's best memory format takes at least so many times as long; in full float32.
    microseconds : float or None
        At most.
    copies : float or None
        At most as long as so many copies of the image.
    deterministic : bool
        A second run gives the same bits.
    host : tuple of (str, str) or None
        By the host's clock: whose time, less whose.
    """

    number: str
    what: str
    job: str
    over_floor: float | None = None
    times_torch: float | None = None
    microseconds: float | None = None
    copies: float | None = None
    deterministic: bool = False
    host: tuple[str, str] | None = None

    @property
    def wanted(self) -> str:
        """In words."""
        parts = []
        if self.over_floor is not None:
            parts.append(f"<= {self.over_floor:g} floors")
        if self.microseconds is not None:
            parts.append(f"<= {self.microseconds:g} us")
        if self.copies is not None:
            parts.append(f"<= {self.copies:g} copies")
        if self.deterministic:
            parts.append("same bits")
        if self.times_torch is not None:
            parts.append(f">= {self.times_torch:g}x torch")
        return ", ".join(parts)


def _single(size: int, pass_name: str) -> str:
    return f"4096 {size}x{size}/float32/{pass_name}"


#: 60 TFLOP/s on the whole layer, in microseconds.
_WHOLE_US = 1e6 * PASSES["forward"].flops(WHOLE.problem()) / 60e12

_BARE = "PyCUDA's bare prepared launch"
_HOST = "28 3x3/float32/host"

GOALS = (
    Goal("1", "forward 3x3", _single(3, "forward"), 1.08, 3),
    Goal("1", "forward 5x5", _single(5, "forward"), 1.08),
    Goal("1", "forward 7x7", _single(7, "forward"), 1.25, 7),
    *(Goal("2", f"kernel_grad {k}x{k}", _single(k, "kernel_grad"), 1.1, 15, deterministic=True) for k in (3, 5, 7)),
    Goal("3", "backward 3x3", _single(3, "backward"), 1.1, 20),
    Goal("3", "backward 5x5", _single(5, "backward"), 1.1, 20),
    Goal("3", "backward 7x7", _single(7, "backward"), 1.3, 20),
    *(Goal("3 stretch", f"backward {k}x{k}, mask", _single(k, "backward mask"), 1.11) for k in (3, 5)),
    Goal("4", "layer 3x3, mask", _single(3, "layer"), None, 15, microseconds=90, copies=3),
    *(Goal("5", f"{name} 15x15", _single(15, name), 1.1, 9) for name in ("forward", "input_grad", "kernel_grad")),
    *(
        Goal("9", f"{name} 64->128", f"{WHOLE_LAYER}/float32/{name}", None, 1.5, microseconds=_WHOLE_US)
        for name in THREE_PASSES
    ),
    Goal("10", "28x28 call, out given", _HOST, None, 10, microseconds=3, host=("conv2d, out given", _BARE)),
    Goal("10", "28x28 call, new result", _HOST, None, 10, microseconds=3, host=("conv2d, new result", _BARE)),
)


@dataclass
class Verdict:
    """A goal and what the run says of it; `met` is None, and `why` says so, where it cannot be said.

    Times are in microseconds.
    """

    number: str
    what: str
    job: str
    wanted: str
    who: str | None = None
    figure_us: float | None = None
    floor_us: float | None = None
    over_floor: float | None = None
    copies: float | None = None
    torch_us: float | None = None
    times_torch: float | None = None
    times_torch_tf32: float | None = None
    met: bool | None = None
    why: str = ""


def floor_us(least_bytes: int, flops: int, facts: Mapping[str, Any]) -> float | None:
    """Return the floor by the ceilings that were measured."""
    if not (facts.get("copy_bytes_per_s") and facts.get("ffma_flops_per_s")):
        return None
    return 1e6 * max(least_bytes / facts["copy_bytes_per_s"], flops / facts["ffma_flops_per_s"])


def _best(rows: Sequence[Row], ours: bool, tf32: bool = False) -> Row | None:
    timed = [
        row
        for row in rows
        if row.cold and not row.failed and row.who != "copy" and row.ours == ours and ("TF32" in row.who) == tf32
    ]
    return min(timed, key=lambda row: row.cold["median"] if row.cold else math.inf, default=None)


def _image_bytes(row: Row) -> int:
    """Return the bytes of one array of the problem's image."""
    problem = ConvProblem.parse(row.problem)
    return math.prod(problem.x_shape) * DTYPES[problem.dtype]


def evaluate(goal: Goal, rows: Sequence[Row], facts: Mapping[str, Any]) -> Verdict:
    """Return what the rows of a run say of a goal."""
    verdict = Verdict(goal.number, goal.what, goal.job, goal.wanted)
    rows = [row for row in rows if row.job == goal.job]
    if goal.host:
        return _evaluate_host(goal, verdict, rows)
    best = _best(rows, ours=True)
    if best is None or best.cold is None:
        failed = [row for row in rows if row.failed and row.ours]
        verdict.why = f"not measured: {failed[0].failed}" if failed else "not measured: it was not run"
        return verdict
    figure = best.cold["median"]
    verdict.who, verdict.figure_us = best.who, figure
    tests: list[tuple[bool | None, str]] = []
    verdict.floor_us = floor_us(best.least_bytes, best.flops, facts)
    if verdict.floor_us is not None:
        verdict.over_floor = figure / verdict.floor_us
        verdict.copies = figure / (2e6 * _image_bytes(best) / facts["copy_bytes_per_s"])
    for limit, value, what in (
        (goal.over_floor, verdict.over_floor, "floors"),
        (goal.microseconds, figure, "us"),
        (goal.copies, verdict.copies, "copies"),
    ):
        if limit is not None:
            tests.append(_at_most(value, limit, what))
    if goal.deterministic:
        tests.append((best.deterministic, "the second run gave other bits"))
    for tf32 in (False, True):
        other = _best(rows, ours=False, tf32=tf32)
        if other is not None and other.cold is not None:
            ratio = other.cold["median"] / figure
            if tf32:
                verdict.times_torch_tf32 = ratio
            else:
                verdict.torch_us, verdict.times_torch = other.cold["median"], ratio
    return _conclude(goal, verdict, rows, tests)


def _evaluate_host(goal: Goal, verdict: Verdict, rows: Sequence[Row]) -> Verdict:
    assert goal.host
    by_who = {row.who: row for row in rows}
    medians = {who: row.host["median"] for who, row in by_who.items() if row.host and not row.failed}
    ours, less = goal.host
    for name in goal.host:
        if name not in medians:
            failed = by_who[name].failed if name in by_who else next((r.failed for r in rows if r.failed), None)
            verdict.why = f"not measured: {failed or 'it was not run'}"
            return verdict
    verdict.who, verdict.figure_us = f"{ours} - {less}", medians[ours] - medians[less]
    if "torch eager" in medians:
        verdict.torch_us, verdict.times_torch = medians["torch eager"], medians["torch eager"] / medians[ours]
    assert goal.microseconds is not None
    return _conclude(goal, verdict, rows, [_at_most(verdict.figure_us, goal.microseconds, "us")])


def _at_most(value: float | None, limit: float, what: str) -> tuple[bool | None, str]:
    if value is None:
        return None, "the ceilings were not measured"
    return value <= limit, f"{value:.3g} {what}"


def _conclude(goal: Goal, verdict: Verdict, rows: Sequence[Row], tests: list[tuple[bool | None, str]]) -> Verdict:
    """Say whether all that is wanted is there; what is missing is never met, and what is missed is not met."""
    if goal.times_torch is not None:
        if verdict.times_torch is None:
            failed = [row.failed for row in rows if row.who.startswith("torch") and row.failed]
            tests.append((None, f"torch was not timed: {failed[0] if failed else 'it was not run'}"))
        else:
            tests.append((verdict.times_torch >= goal.times_torch, f"{verdict.times_torch:.3g}x torch"))
    missed = [text for met, text in tests if met is False]
    unknown = [text for met, text in tests if met is None]
    verdict.met = False if missed else None if unknown else True
    verdict.why = "; ".join([*missed, *unknown])
    return verdict


#: DeepBench: the geometric mean of the ratios to torch, the least of them, and the least with one input channel.
_MEAN, _LEAST, _LEAST_SINGLE = 1.5, 0.95, 5.0


def evaluate_deepbench(rows: Sequence[Row]) -> Verdict:
    """Return what the rows say of DeepBench's layers together: torch's time over ours, of every pass of every layer."""
    wanted = f"mean >= {_MEAN:g}x torch, none < {_LEAST:g}x, C=1 >= {_LEAST_SINGLE:g}x"
    verdict = Verdict("11", "DeepBench's layers", DEEPBENCH_LABEL, wanted)
    by_job: dict[str, list[Row]] = {}
    for row in rows:
        if row.job.startswith(DEEPBENCH_LABEL):
            by_job.setdefault(row.job, []).append(row)
    ratios: dict[str, float] = {}
    single = set()
    for job, own in by_job.items():
        ours, torch = _best(own, ours=True), _best(own, ours=False)
        if ours and torch and ours.cold and torch.cold:
            ratios[job] = torch.cold["median"] / ours.cold["median"]
            if ConvProblem.parse(ours.problem).C == 1:
                single.add(job)
    if not ratios:
        verdict.why = "not measured: no layer was timed beside torch"
        return verdict
    verdict.times_torch = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    slow = [f"{job} {ratio:.2f}x" for job, ratio in ratios.items()
            if ratio < (_LEAST_SINGLE if job in single else _LEAST)]  # fmt: skip
    missed = [f"mean {verdict.times_torch:.2f}x"] if verdict.times_torch < _MEAN else []
    if slow:
        missed.append(f"{len(slow)} of {len(ratios)} below: {', '.join(slow[:3])}{' ...' if len(slow) > 3 else ''}")
    absent = len(by_job) - len(ratios)
    verdict.met = False if missed else None if absent else True
    verdict.why = "; ".join([*missed, *([f"{absent} not timed"] if absent else [])])
    return verdict


def evaluate_all(rows: Sequence[Row], facts: Mapping[str, Any], goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """Return the verdict on every goal, DeepBench's last."""
    return [*(evaluate(goal, rows, facts) for goal in goals), evaluate_deepbench(rows)]
