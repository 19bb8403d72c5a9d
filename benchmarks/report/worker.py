"""Jobs in a process of their own: what crashes or hangs takes its own row with it, and the rest goes on in a new one.

The worker writes a line of JSON when it begins a job and one when it has done it; the parent reads them, and ends a
worker that says nothing for too long. After a failed launch a context is lost for good: the worker then says so and
ends, and the job is taken up again without the variant that failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

from benchmarks.report.jobs import Job
from benchmarks.report.kinds import failed_rows, measure
from benchmarks.report.measure import Outcome, Place
from benchmarks.report.rows import Row

Measure = Callable[[Job, Any], Outcome]


# -- in the worker ---------------------------------------------------------------------------------------------------
def work(jobs: Iterable[Job], place: Place, out: TextIO, carry_out: Measure = measure) -> int:
    """Carry out jobs and write what they gave; return 3 if the GPU cannot be used any more."""

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    for job in jobs:
        say(begin=job.name)
        try:
            outcome = carry_out(job, place)
        except Exception as error:
            outcome = Outcome(list(failed_rows(job, f"{type(error).__name__}: {error}")))
        try:
            with place.device.active():
                place.synchronize()
            lost = None
        except Exception as error:
            lost = f"{type(error).__name__}: {error}"
        say(done=job.name, rows=[dataclasses.asdict(row) for row in outcome.rows], facts=outcome.facts, lost=lost)
        if lost:
            return 3
    return 0


def without(job: Job, skipped: Sequence[str]) -> Job:
    """Return a job without some of its variants."""
    return dataclasses.replace(job, variants=tuple(rung for rung in job.variants if str(rung) not in skipped))


# -- in the parent ---------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Gathered:
    """What the jobs gave."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def take(self, message: dict[str, Any]) -> None:
        """Add what a worker wrote when it had done a job."""
        self.rows += [Row(**row) for row in message["rows"]]
        self.facts |= message["facts"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds: for all jobs together, and without a word from the worker (the first includes its start)."""

    total: float
    silence: float


def supervise(
    jobs: Sequence[Job],
    command: Sequence[str],
    limits: Limits,
    begun: Callable[[str], None] = lambda name: None,
    gathered: Gathered | None = None,
) -> Gathered:
    """Carry out jobs in workers, which `command` and a list of (job, variants to skip) as JSON start.

    What they give is added to `gathered` as it comes, so that it is there whatever ends this.
    """
    gathered = Gathered() if gathered is None else gathered
    left: dict[str, list[str]] = {job.name: [] for job in jobs}  # variants to skip
    by_name = {job.name: job for job in jobs}
    end = time.monotonic() + limits.total

    def give_up(name: str, why: str) -> None:
        gathered.rows += failed_rows(without(by_name[name], left.pop(name)), why)

    while left and time.monotonic() < end:
        doing, why, words = None, "", 0
        with _worker([*command, json.dumps(list(left.items()))]) as (process, lines):
            while message := lines(min(limits.silence, end - time.monotonic())):
                words += 1
                if "begin" in message:
                    doing = message["begin"]
                    begun(doing)
                    continue
                gathered.take(message)
                culprit = next((row["who"] for row in message["rows"] if row["failed"] and row["ours"]), None)
                again = message["lost"] and culprit and len(by_name[doing].variants) > 1 + len(left[doing])
                if again and by_name[doing].kind == "pass":  # the other rows failed because the context was lost
                    left[doing].append(culprit)
                    gathered.rows = [row for row in gathered.rows if row.job != doing or row.who in left[doing]]
                else:
                    del left[doing]
                doing = None
            if process.poll() is None and message is None:
                in_time = time.monotonic() < end
                why = f"no answer for {limits.silence:.0f} s" if in_time else "out of time"
                process.kill()
            code = process.wait()
        if not left:
            break
        if doing is not None:
            give_up(doing, why or f"the process ended with exit code {code}")
        elif not words:  # it did not even begin
            for name in list(left):
                give_up(name, why or f"the worker ended with exit code {code} before it began")
    for name in list(left):
        give_up(name, "out of time")
    return gathered


@contextlib.contextmanager
def _worker(command: Sequence[str]) -> Any:
    """Start a worker; give it, and what returns its next message: None after so many seconds, {} at its end."""
    read_end, write_end = os.pipe()
    process = subprocess.Popen([*command, str(write_end)], pass_fds=(write_end,), stdin=subprocess.DEVNULL)
    os.close(write_end)
    buffer = b""
    with selectors.DefaultSelector() as selector, process:
        selector.register(read_end, selectors.EVENT_READ)

        def next_message(seconds: float) -> dict[str, Any] | None:
            nonlocal buffer
            until = time.monotonic() + seconds
            while b"\n" not in buffer:
                if not selector.select(max(0.0, until - time.monotonic())):
                    return None
                data = os.read(read_end, 1 << 16)
                if not data:
                    return {}
                buffer += data
            line, _, buffer = buffer.partition(b"\n")
            return json.loads(line)

        try:
            yield process, next_message
        finally:
            os.close(read_end)
            if process.poll() is None:
                process.kill()


def serve(jobs: Sequence[Job], wanted: str, write_end: int, make_place: Callable[[], Place]) -> None:
    """Be the worker: carry out what `wanted` lists, and end at once: nothing is left to be cleaned up."""
    by_name = {job.name: job for job in jobs}
    chosen = [without(by_name[name], skipped) for name, skipped in json.loads(wanted)]
    with os.fdopen(write_end, "w") as out:
        code = work(chosen, make_place(), out)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
