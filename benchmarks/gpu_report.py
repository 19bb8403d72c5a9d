"""Settle the goals for a GPU with one command: `make gpu-report`, or python benchmarks/gpu_report.py.

It needs an NVIDIA GPU, PyCUDA, nvcc and torch, and takes at most 8 minutes. The environment is looked at and what will
be launched is compiled; then come the parts, what is most wanted first:

{parts}

A part, a step or a row that fails is reported and the rest goes on; the exit code is then 1. A goal that is missed is
no failure. What no time is left for is skipped. The JSON is written from the first step on, so that it is there
whatever ends the run; --skip-done FILE takes over what an earlier one of this GPU and commit has, and does the rest.

What was tuned on the machine is ignored, and stays as it is.

--dry-run, on a machine without a GPU: nvcc compiles all of it for sm_90a, and every step and row is walked through with
small problems on a stand-in for the driver (tests/driver; it needs PyCUDA), on the CPU. Nothing is measured.

JSON (benchmarks/results/DEVICE-DATE.json):
    dry_run     true: none of the numbers means anything
    ok, failures  whether all steps and rows came through, and a sentence for each that did not
    steps       [name, status ("ok", "failed", "skipped"), detail, seconds, data]; data of "environment": device,
                architecture, nvidia_smi {{as queried; MHz, W, C}}, commit, dirty, date, versions; of "compile": kernels
                [file, constants, registers, spill_bytes], failures; of "tests": counts, stopped_by_limit; of
                "sanitizer": memcheck, racecheck {{clean, summary}}; of parts with rows: clocks {{before, after}}; of
                "ncu": kernels [job, who, problem, counted {{quantity: [figure, unit]}}]; of "tune": title, minutes,
                entries as `convbackprop tune` keeps them
    ceilings    copy_bytes_per_s (read + written), ffma_flops_per_s, empty_us (two events with nothing between them; in
                every time below, and not taken off), multiprocessors, l2_bytes
    settings    torch's (cudnn_benchmark, allow_tf32), and how cold and warm are made
    rows        [job, who, part, ours, problem, cold, warm, host, least_bytes, flops, small_share, full_share,
                deterministic, failed]; cold, warm, host: {{min, p5, p20, median, p80, p95 (microseconds), repetitions}}
                or null; who: "pass/variant", "torch", "torch channels_last", the same with TF32, "copy" (of
                least_bytes), or what a call is made of
    goals       [number, what, job, wanted, who, figure_us, floor_us, over_floor, copies, torch_us, times_torch,
                times_torch_tf32, met (true, false, null: cannot be said), why]

torch allocates its results and, except in "layer" and outside the part "rows", is given g = dy * phi'(s) ready-made;
its ratios are to the better of its two memory formats, in full float32 unless TF32 is named.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import stand_in, steps
from benchmarks.report.jobs import Job, all_jobs, sources
from benchmarks.report.measure import DRY, MEASURED, Place
from benchmarks.report.parts import PARTS, Part, time_jobs
from benchmarks.report.run import Run
from benchmarks.report.steps import FAILED, SKIPPED, Step, carry_out
from benchmarks.report.tables import print_goals, print_others, print_rows
from benchmarks.report.worker import serve
from convbackprop.cli.common import console, progress, say
from convbackprop.devices import get_device, why_not_cuda

RESULTS = Path(__file__).parent / "results"

#: Minutes for the whole report; seconds for compiling; the share of a part's seconds below which it is not begun.
MINUTES, COMPILING, LEAST = 8.0, 120.0, 1 / 8


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    text = (__doc__ or "").format(
        parts="\n".join(f"    {part.name:<11} {part.about}; {part.seconds:g} s" for part in PARTS)
    )
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="no GPU: compile, and walk every row on a stand-in")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the JSON; default: benchmarks/results/DEVICE-DATE.json"
    )
    parser.add_argument("--only", metavar="PART[,PART]", help="these parts; default: all, or with --jobs those that "
                        "have such jobs")  # fmt: skip
    parser.add_argument("--jobs", metavar="REGEX", help="the jobs whose name it is found in")
    parser.add_argument("--skip-done", type=Path, metavar="FILE", help="take over what an earlier report has")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all of it; default: {MINUTES:g}")
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


def chosen(arguments: argparse.Namespace) -> tuple[list[Part], list[Job]]:
    """Return the parts and jobs that are wanted.

    Raises
    ------
    ValueError
        There are none such.
    """
    jobs = [job for job in all_jobs() if re.search(arguments.jobs or "", job.name)]
    if not jobs:
        raise ValueError(f"--jobs is {arguments.jobs!r}, which is in the name of no job")
    names = [part.name for part in PARTS]
    wanted = arguments.only.split(",") if arguments.only else names
    if not set(wanted) <= set(names):
        raise ValueError(f"--only is {arguments.only!r}; it should be of {', '.join(names)}")
    with_jobs = {job.part for job in jobs}
    if arguments.jobs and not arguments.only:
        wanted = [name for name in wanted if name in with_jobs]
    return [part for part in PARTS if part.name in wanted], [job for job in jobs if job.part in wanted]


# -- the report ------------------------------------------------------------------------------------------------------
def report(arguments: argparse.Namespace, out: Any) -> int:
    """Carry out the parts, print and write what they gave, and return the exit code."""
    dry, device = arguments.dry_run, None
    try:
        parts, jobs = chosen(arguments)
        if dry:
            if reason := stand_in.why_not():
                raise ValueError(f"a dry run needs the stand-in for a driver, which cannot be used: {reason}")
            say(out, "DRY RUN: no GPU takes part and nothing is measured; small problems run on a stand-in.", "")
        elif reason := why_not_cuda():
            raise ValueError(f"gpu-report needs a GPU: {reason}. --dry-run walks through it without one.")
        else:
            device = get_device("cuda")
        run = Run(dry, device, arguments.out or (None if dry else default_path(device.title)), 60 * arguments.minutes)
        carry_out_all(run, parts, jobs, arguments.skip_done, out)
    except ValueError as error:
        say(out, str(error))
        return 1
    if any(row.part == "rows" for row in run.gathered.rows):
        print_rows(run.gathered, out)
        wanted = [v for v in run.verdicts if not arguments.jobs or any(job.name.startswith(v.job) for job in jobs)]
        print_goals(wanted, out)
    print_others(run.gathered, out)
    if run.path:
        say(out, "", f"written to {run.path}")
    if dry:
        say(out, "", "DRY RUN: nothing was measured; times, ratios and verdicts above only show that the code runs.")
    for failure in run.failures:
        say(out, f"FAILED {failure}")
    walked = f"{len(run.gathered.rows)} rows of {len(jobs)} jobs"
    say(out, f"{walked}, {'all came through' if not run.failures else f'{len(run.failures)} failures'}")
    return 1 if run.failures else 0


def carry_out_all(run: Run, parts: Sequence[Part], jobs: Sequence[Job], earlier: Path | None, out: Any) -> None:
    """Carry out the steps and parts, those excepted that an earlier report has; the JSON is written after each."""
    target, architecture = (run.device.target, run.device.architecture) if run.device else ("cuda", "sm_90a")

    def take(step: Step, note: str = "") -> None:
        run.steps.append(step)
        run.write()
        say(out, f"{step.name}: {step.status}{note or f', {step.seconds:.0f} s'}: {step.detail}")

    with progress() as bar:
        doing = "environment"
        try:
            take(carry_out(doing, lambda step: steps.environment(step, run.device)))
            done = run.take_over(earlier) if earlier else {}
            doing = "compile"
            small = any(part.name in ("launches", "sanitizer") and part.name not in done for part in parts)
            wanted = sources(run.remaining(jobs), small, target)
            limit = min(COMPILING, run.left)
            compiled = carry_out(doing, lambda step: steps.compile_all(step, wanted, architecture, bar, limit))
            if doing in done:
                known = done[doing].data["kernels"]
                compiled.data["kernels"] += [each for each in known if each not in compiled.data["kernels"]]
            take(compiled)
            for part in parts:
                doing = part.name
                own = [job for job in jobs if job.part == part.name]
                seconds = min(part.seconds, run.left) if not run.dry else run.left
                if part.name in done and not run.remaining(own):
                    take(done[part.name], ", taken over")
                elif seconds < LEAST * part.seconds:
                    take(Step(part.name, SKIPPED, "no time was left"))
                elif part.action:
                    take(carry_out(doing, lambda step, do=part.action, limit=seconds: do(step, run, limit)))
                else:
                    take(carry_out(doing, lambda step, own=own, limit=seconds: time_jobs(step, run, own, limit, bar)))
            for name in done:  # of parts that are not wanted now
                if name not in {step.name for step in run.steps}:
                    take(done[name], ", taken over")
        except KeyboardInterrupt:
            take(Step(doing, FAILED, "interrupted"))
        finally:
            run.write()


def default_path(title: str) -> Path:
    """Return where the JSON goes."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")
    return RESULTS / f"{name}-{time.strftime('%Y-%m-%d-%H%M')}.json"


def main(argv: Sequence[str]) -> int:
    arguments = arguments_of(argv)
    if arguments.worker:
        wanted, write_end = arguments.worker
        be_worker(arguments.dry_run, wanted, int(write_end))
    return report(arguments, console())


if __name__ == "__main__":
    os.environ["CONVBACKPROP_TUNED"] = "off"  # "auto" is the rule's choice, whatever this machine has measured
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was found is written, as after Ctrl-C
    sys.exit(main(sys.argv[1:]))
