"""The parts of a report in their order, what is most wanted first, and how many seconds each may take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import steps
from benchmarks.report.counters import counters
from benchmarks.report.jobs import Job, all_jobs
from benchmarks.report.run import Run
from benchmarks.report.steps import Step
from benchmarks.report.tuning import tune
from benchmarks.report.worker import Limits, supervise

#: Seconds without a word from a worker, which torch's search for an algorithm may take.
SILENCE = 75.0

REPORT = Path(__file__).parents[1] / "gpu_report.py"


@dataclass(frozen=True)
class Part:
    """A part: at most so many seconds, what it is, and for those that have no jobs, how it is carried out."""

    name: str
    seconds: float
    about: str
    action: Callable[[Step, Run, float], None] | None = None


PARTS = (
    Part("launches", 30, "every variant on small problems against float64",
         lambda step, run, seconds: steps.launches(step, seconds, run.dry)),
    Part("rows", 260, "every variant at full size, checked, then timed beside torch and a copy; the goals"),
    Part("host", 25, "what a call costs the host: results given, new ones, torch's eager"),
    Part("graphs", 45, "the public functions in CUDA graphs, replayed and called, beside torch's"),
    Part("training", 90, "layers of convbackprop.torch, forward and backward: eager, autocast, compiled; torch.nn's"),
    Part("nccl", 30, "the layer that is split among processes, on one, beside the unsplit one"),
    Part("ncu", 60, "Nsight Compute's counters of what misses its goal", counters),
    Part("tests", 80, "the tests that use a GPU", lambda step, run, seconds: steps.tests(step, seconds, run.dry)),
    Part("sanitizer", 60, "every variant under memcheck and racecheck",
         lambda step, run, seconds: steps.sanitizer(step, seconds / 2, run.dry)),
    Part("tune", 300, "convbackprop tune on the problems of the goals, as long as time is left", tune),
)  # fmt: skip


def time_jobs(step: Step, run: Run, jobs: Sequence[Job], seconds: float, bar: Any) -> None:
    """Carry out those of a part's jobs that are not done, in worker processes."""
    todo = run.remaining(jobs)
    names = [job.name for job in todo]
    run.gathered.rows = [row for row in run.gathered.rows if row.job not in names]
    task = bar.add_task("timing", total=len(todo))

    def begun(name: str) -> None:
        bar.update(task, description=name, completed=names.index(name))
        bar.refresh()
        run.write(at_once=False)

    limits = Limits(3600, 600) if run.dry else Limits(seconds, SILENCE)
    command = [sys.executable, str(REPORT), *(["--dry-run"] if run.dry else []), "--worker"]
    step.data["clocks"] = {"before": steps.clocks()}
    supervise(todo, command, limits, begun, run.gathered)
    order = {job.name: i for i, job in enumerate(all_jobs())}
    run.gathered.rows.sort(key=lambda row: order[row.job])  # those that were taken over came first
    step.data["clocks"]["after"] = steps.clocks()
    rows = [row for row in run.gathered.rows if row.part == step.name]
    failed = sum(row.failed is not None for row in rows)
    step.detail = f"{len(rows)} rows, {failed} of them failed"  # which fails the report, row by row
