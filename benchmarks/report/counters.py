"""Nsight Compute on the kernels that miss their goals: what a GPU counts of each."""

from __future__ import annotations

import time

from benchmarks.report.goals import GOALS
from benchmarks.report.jobs import all_jobs
from benchmarks.report.run import Run
from benchmarks.report.steps import SKIPPED, Step
from convbackprop.errors import EnvironmentProblem
from convbackprop.ladder.registry import VARIANTS
from convbackprop.problem import ConvProblem
from convbackprop.profile import ncu
from convbackprop.profile.machine_code import main_entry
from convbackprop.profile.report import launches_of

#: Seconds for a kernel.
_EACH = 25.0


def missed(run: Run) -> dict[tuple[str, str], str]:
    """Return the variants that miss a goal, with their problems and jobs; where nothing was timed, every goal's."""
    rows = {(row.job, row.who): row.problem for row in run.gathered.rows}
    if rows:
        found = [(verdict.who, rows.get((verdict.job, verdict.who)), verdict.job)
                 for verdict in run.verdicts if verdict.met is False]  # fmt: skip
    else:
        jobs = {job.name: job for job in all_jobs() if job.kind == "pass"}
        chosen = [jobs[goal.job] for goal in GOALS if goal.job in jobs]
        found = [(str(job.variants[-1]), str(job.problem), job.name) for job in chosen]
    known = {str(variant) for variant in VARIANTS}
    return {(who, problem): job for who, problem, job in found if who in known and problem}


def counters(step: Step, run: Run, seconds: float) -> None:
    """Run ncu over each; what is not reached in time is left out."""
    wanted = missed(run)
    step.data["kernels"] = []
    if run.dry:
        step.status, step.detail = SKIPPED, f"{len(wanted)} kernels to count; there is no GPU that counts"
        return
    end, variants = time.monotonic() + seconds, {str(variant): variant for variant in VARIANTS}
    for (who, problem), job in wanted.items():
        left = end - time.monotonic()
        if left <= 1:
            break
        arguments = [who, "--problem", problem, "--device", run.device.name]
        try:
            launches = ncu.collect(arguments, min(_EACH, left))
        except EnvironmentProblem as error:
            step.status, step.detail = SKIPPED, str(error)
            return
        variant = variants[who]
        entries = [launch.entry for launch in launches_of(variant, ConvProblem.parse(problem), run.device.target)]
        found = ncu.quantities(entries, main_entry(variant), launches)
        step.data["kernels"].append({"job": job, "who": who, "problem": problem, "counted": {
            each.name: [each.counted, each.unit] for each in found if each.counted is not None}})  # fmt: skip
    step.detail = f"{len(step.data['kernels'])} of {len(wanted)} kernels that miss their goals were counted"
