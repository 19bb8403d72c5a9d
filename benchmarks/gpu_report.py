"""Settle the goals for a GPU with one command: `make gpu-report`, or python benchmarks/gpu_report.py.

It needs an NVIDIA GPU, PyCUDA, nvcc and torch, and takes less than 8 minutes. Steps: environment; compiling everything
that will be launched; tests on the device; every variant on small problems, alone and under compute-sanitizer; the
rows, which are checked before they are timed; the goals. A step or row that fails is reported and the rest goes on; the
exit code is then 1. A goal that is missed is no failure.

--dry-run, on a machine without a GPU: nvcc compiles all of it for sm_90a, and every step and row is walked through with
small problems on a stand-in for the driver (tests/driver; it needs PyCUDA), on the CPU. Nothing is measured.

JSON (benchmarks/results/DEVICE-DATE.json):
    dry_run     true: none of the numbers means anything
    ok, failures  whether all steps and rows came through, and a sentence for each that did not
    steps       [name, status ("ok", "failed", "skipped"), detail, seconds, data]; data of "environment": device,
                architecture, nvidia_smi {as queried; MHz, W, C}, commit, dirty, date, versions; of "compile": kernels
                [file, constants, registers, spill_bytes], failures; of "tests": counts, stopped_by_limit; of
                "sanitizer": memcheck, racecheck {clean, summary}; of "rows": clocks {before, after}
    ceilings    copy_bytes_per_s (read + written), ffma_flops_per_s, empty_us (two events with nothing between them; in
                every time below, and not taken off), multiprocessors, l2_bytes
    settings    torch's (cudnn_benchmark, allow_tf32), and how cold and warm are made
    rows        [job, who, ours, problem, cold, warm, host, least_bytes, flops, small_share, full_share, deterministic,
                failed]; cold, warm, host: {min, p5, p20, median, p80, p95 (microseconds), repetitions} or null; who:
                "pass/variant", "torch", "torch channels_last", the same with TF32, or "copy" (of least_bytes)
    goals       [number, what, job, wanted, who, figure_us, floor_us, over_floor, copies, torch_us, times_torch,
                times_torch_tf32, met (true, false, null: cannot be said), why]

torch allocates its results and, except in "layer", is given g = dy * phi'(s) ready-made; its ratios are to the better
of its two memory formats, in full float32 unless TF32 is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.table import Table

from benchmarks.report import stand_in, steps
from benchmarks.report.goals import Verdict, evaluate_all, floor_us
from benchmarks.report.jobs import Job, all_jobs, sources
from benchmarks.report.measure import DRY, MEASURED, Place
from benchmarks.report.rows import Row
from benchmarks.report.steps import FAILED, Step, carry_out
from benchmarks.report.worker import Gathered, Limits, serve, supervise
from convbackprop.cli.common import console, progress, say
from convbackprop.devices import get_device, why_not_cuda

RESULTS = Path(__file__).parent / "results"

#: Seconds: the whole report; the tests; all variants on small problems; each tool of the sanitizer; all rows at least;
#: a worker that says nothing.
WHOLE, TESTS, LAUNCHES, SANITIZER, ROWS, SILENCE = 465.0, 80.0, 30.0, 40.0, 150.0, 75.0

SETTINGS = {
    "cudnn_benchmark": True,
    "allow_tf32": "False; True in the rows that say TF32",
    "cold": "before each repetition 4 times the L2 cache is overwritten by memset; its lines are dirty then",
    "warm": "the same arrays again and again",
    "both": "a kernel of one thread keeps the GPU busy while the call between the two events is queued",
}


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="no GPU: compile, and walk every row on a stand-in")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the JSON; default: benchmarks/results/DEVICE-DATE.json"
    )
    parser.add_argument("--only", metavar="REGEX", help="the jobs whose name it is found in; no tests, no sanitizer")
    parser.add_argument("--worker", nargs=2, metavar=("JOBS", "FD"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def be_worker(dry: bool, wanted: str, write_end: int) -> None:
    """Carry out jobs in this process."""
    if dry:
        stand_in.install()

    def make_place() -> Place:
        device: Any = get_device("cuda")
        with device.active():
            return Place(device, DRY if dry else MEASURED)

    serve(all_jobs(), wanted, write_end, make_place)


# -- the report ------------------------------------------------------------------------------------------------------
def report(arguments: argparse.Namespace, out: Any) -> int:
    """Carry out all steps, print and write what they gave, and return the exit code."""
    start, dry = time.monotonic(), arguments.dry_run
    device: Any = None
    if not dry:
        if reason := why_not_cuda():
            say(out, f"gpu-report needs a GPU: {reason}. --dry-run walks through it without one.")
            return 1
        device = get_device("cuda")
    else:
        if reason := stand_in.why_not():
            say(out, f"a dry run needs the stand-in for a driver, which cannot be used: {reason}")
            return 1
        say(out, "DRY RUN: no GPU takes part and nothing is measured; small problems run on a stand-in.", "")
    jobs = [job for job in all_jobs() if re.search(arguments.only or "", job.name)]
    if not jobs:
        say(out, f"--only is {arguments.only!r}, which is in the name of no job")
        return 1
    architecture = device.architecture if device else "sm_90a"
    gathered = Gathered()
    done: list[Step] = []
    with progress() as bar:

        def take(name: str, action: Any) -> None:
            done.append(carry_out(name, action))
            step = done[-1]
            say(out, f"{step.name}: {step.status}, {step.seconds:.0f} s: {step.detail}")

        take("environment", lambda step: steps.environment(step, device))
        wanted = sources(jobs, not arguments.only, device.target if device else "cuda")
        take("compile", lambda step: steps.compile_all(step, wanted, architecture, bar))
        if not arguments.only:
            take("tests", lambda step: steps.tests(step, TESTS, dry))
            take("launches", lambda step: steps.launches(step, 1800 if dry else LAUNCHES, dry))
            take("sanitizer", lambda step: steps.sanitizer(step, SANITIZER, dry))
        take("rows", lambda step: rows_step(step, jobs, dry, start, gathered, bar))
    verdicts = evaluate_all(gathered.rows, gathered.facts)
    failures = [f"step {step.name}: {step.detail}" for step in done if step.status == FAILED]
    failures += [f"{row.job}, {row.who}: {row.failed}" for row in gathered.rows if row.failed]
    print_rows(gathered, out)
    print_goals([v for v in verdicts if not arguments.only or any(job.name.startswith(v.job) for job in jobs)], out)
    path = arguments.out or (None if dry else default_path(device.title))
    if path:
        found = {
            "dry_run": dry,
            "ok": not failures,
            "failures": failures,
            "steps": [dataclasses.asdict(step) for step in done],
            "ceilings": gathered.facts,
            "settings": SETTINGS,
            "rows": [dataclasses.asdict(row) for row in gathered.rows],
            "goals": [dataclasses.asdict(verdict) for verdict in verdicts],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(finite(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        say(out, "", f"written to {path}")
    if dry:
        say(out, "", "DRY RUN: nothing was measured; times, ratios and verdicts above only show that the code runs.")
    for failure in failures:
        say(out, f"FAILED {failure}")
    walked = f"{len(gathered.rows)} rows of {len(jobs)} jobs"
    say(out, f"{walked}, {'all came through' if not failures else f'{len(failures)} failures'}")
    return 1 if failures else 0


def rows_step(step: Step, jobs: Sequence[Job], dry: bool, start: float, gathered: Gathered, bar: Any) -> None:
    """Carry out the jobs in worker processes, in what is left of the time."""
    task = bar.add_task("timing", total=len(jobs))
    names = [job.name for job in jobs]

    def begun(name: str) -> None:
        bar.update(task, description=name, completed=names.index(name))
        bar.refresh()

    limits = Limits(3600, 600) if dry else Limits(max(ROWS, start + WHOLE - time.monotonic()), SILENCE)
    command = [sys.executable, str(Path(__file__).resolve()), *(["--dry-run"] if dry else []), "--worker"]
    step.data["clocks"] = {"before": steps.clocks()}
    found = supervise(jobs, command, limits, begun)
    gathered.rows, gathered.facts = found.rows, found.facts
    step.data["clocks"]["after"] = steps.clocks()
    failed = sum(row.failed is not None for row in gathered.rows)
    step.detail = f"{len(gathered.rows)} rows, {failed} of them failed"  # which fails the report, row by row


def default_path(title: str) -> Path:
    """Return where the JSON goes."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")
    return RESULTS / f"{name}-{time.strftime('%Y-%m-%d-%H%M')}.json"


def finite(part: Any) -> Any:
    """Return a value with null in place of numbers that JSON lacks."""
    if isinstance(part, dict):
        return {name: finite(item) for name, item in part.items()}
    if isinstance(part, list | tuple):
        return [finite(item) for item in part]
    return None if isinstance(part, float) and not abs(part) < float("inf") else part


# -- tables ----------------------------------------------------------------------------------------------------------
def digits(value: float | None, unit: str = "") -> str:
    """Return a number in three digits, "-" for none."""
    if value is None:
        return "-"
    return (f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}") + unit


def print_rows(gathered: Gathered, out: Any) -> None:
    """Print our rows beside the copy of as many bytes and torch's best."""
    facts = gathered.facts
    if facts:
        say(out, "", f"ceilings: copy {facts['copy_bytes_per_s'] * 1e-12:.3g} TB/s read and written, FFMA "
            f"{facts['ffma_flops_per_s'] * 1e-12:.3g} TFLOP/s; two events with nothing between: "
            f"{facts['empty_us']:.3g} us", "")  # fmt: skip
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("job", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    for name in ("cold us", "20-80 %", "warm us", "floors", "copy us", "torch us", "vs torch", "vs TF32", "error"):
        table.add_column(name, justify="right", no_wrap=True)

    def median(row: Row | None) -> float | None:
        return row.cold["median"] if row and row.cold else None

    for row in gathered.rows:
        if not row.ours:
            continue
        beside = [other for other in gathered.rows if other.job == row.job and not other.ours]
        copy = next((other for other in beside if other.who == "copy"), None)
        torch = [t for o in beside if o.who.startswith("torch") and "TF32" not in o.who and (t := median(o))]
        tf32 = [t for o in beside if "TF32" in o.who and (t := median(o))]
        ours = median(row)
        floor = floor_us(row.least_bytes, row.flops, facts)
        cells = ["FAILED"] + [""] * 7 if row.failed else [
            digits(ours or (row.host["median"] if row.host else None)),
            f"{digits(row.cold['p20'])}-{digits(row.cold['p80'])}" if row.cold else "host clock",
            digits(row.warm["median"] if row.warm else None),
            digits(ours / floor if ours and floor else None),
            digits(median(copy)),
            digits(min(torch, default=None)),
            digits(min(torch) / ours if torch and ours else None, "x"),
            digits(min(tf32) / ours if tf32 and ours else None, "x"),
        ]  # fmt: skip
        shares = [share for share in (row.small_share, row.full_share) if share is not None]
        error = max(shares, default=None)
        table.add_row(row.job, row.who, *cells, "-" if error is None else f"{error:.2f}" if error >= 0.005 else "<0.01")
    out.print(table)
    say(out, "floors: how many times the floor by the ceilings above. error: the largest, as a share of its bound.", "")


def print_goals(verdicts: Sequence[Verdict], out: Any) -> None:
    """Print the goals."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("#", "goal", "wanted"):
        table.add_column(name, no_wrap=True)
    for name in ("us", "floor us", "floors", "copies", "torch us", "vs torch", "vs TF32"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("met")
    table.add_column("why")
    for v in verdicts:
        table.add_row(
            v.number, v.what, v.wanted, digits(v.figure_us), digits(v.floor_us), digits(v.over_floor),
            digits(v.copies), digits(v.torch_us), digits(v.times_torch, "x"), digits(v.times_torch_tf32, "x"),
            {True: "met", False: "NOT MET", None: "-"}[v.met], v.why,
        )  # fmt: skip
    out.print(table)


def main(argv: Sequence[str]) -> int:
    arguments = arguments_of(argv)
    if arguments.worker:
        wanted, write_end = arguments.worker
        be_worker(arguments.dry_run, wanted, int(write_end))
    return report(arguments, console())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
