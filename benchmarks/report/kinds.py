"""How each kind of job is carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.report.jobs import Job
from benchmarks.report.layers import measure_split, measure_training
from benchmarks.report.measure import Outcome, Place, measure_ceilings, measure_layer, measure_pass
from benchmarks.report.public import measure_graphs, measure_host
from benchmarks.report.rows import Row

KINDS: dict[str, Callable[[Job, Place], Outcome]] = {
    "pass": measure_pass,
    "layer": measure_layer,
    "ceilings": measure_ceilings,
    "host": measure_host,
    "graphs": measure_graphs,
    "training": measure_training,
    "nccl": measure_split,
}


def measure(job: Job, place: Place) -> Outcome:
    """Carry out a job."""
    with place.device.active():
        outcome = KINDS[job.kind](job, place)
    for row in outcome.rows:
        row.part = job.part
    return outcome


def failed_rows(job: Job, why: str) -> Sequence[Row]:
    """Return the rows of a job that could not be carried out."""
    names = [str(variant) for variant in job.variants] if job.kind in ("pass", "layer") else [job.kind]
    ours, problem = job.kind != "ceilings", str(job.problem or "")
    return [Row(job.name, name, ours=ours, problem=problem, failed=why, part=job.part) for name in names]
