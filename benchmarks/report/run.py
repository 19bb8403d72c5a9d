"""A report in the making: what is known so far. It lies in the JSON from the first step on, and is taken over later."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.goals import Verdict, evaluate_all
from benchmarks.report.jobs import Job
from benchmarks.report.rows import Row
from benchmarks.report.steps import FAILED, OK, Step
from benchmarks.report.worker import Gathered
from convbackprop.files import write_whole

SETTINGS = {
    "cudnn_benchmark": True,
    "allow_tf32": "False; True in the rows that say TF32",
    "cold": "before each repetition 4 times the L2 cache is overwritten by memset; its lines are dirty then",
    "warm": "the same arrays again and again",
    "both": "a kernel of one thread keeps the GPU busy while the call between the two events is queued",
}

#: Seconds between two writings of the JSON while rows come in.
_OFTEN = 5.0


class Run:
    """What a report has found out, and how much time is left to it."""

    def __init__(self, dry: bool, device: Any, path: Path | None, seconds: float) -> None:
        self.dry, self.device, self.path = dry, device, path
        self.steps: list[Step] = []
        self.gathered = Gathered()
        self._end, self._written = time.monotonic() + seconds, 0.0

    @property
    def left(self) -> float:
        """Seconds; a dry run takes what it takes."""
        return 3600.0 if self.dry else max(0.0, self._end - time.monotonic())

    @property
    def verdicts(self) -> list[Verdict]:
        """On every goal, by the rows so far."""
        return evaluate_all(self.gathered.rows, self.gathered.facts)

    @property
    def failures(self) -> list[str]:
        """A sentence for each step and row that did not come through."""
        failed = [f"step {step.name}: {step.detail}" for step in self.steps if step.status == FAILED]
        return failed + [f"{row.job}, {row.who}: {row.failed}" for row in self.gathered.rows if row.failed]

    def remaining(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that have no rows yet, or one that failed."""
        rows = self.gathered.rows
        done = {row.job for row in rows} - {row.job for row in rows if row.failed}
        return [job for job in jobs if job.name not in done]

    def write(self, at_once: bool = True) -> None:
        """Write the JSON, whole or not at all; if not at once, only where it has not been for a while."""
        if self.path is None or (not at_once and time.monotonic() < self._written + _OFTEN):
            return
        found = {
            "dry_run": self.dry,
            "ok": not self.failures,
            "failures": self.failures,
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "ceilings": self.gathered.facts,
            "settings": SETTINGS,
            "rows": [dataclasses.asdict(row) for row in self.gathered.rows],
            "goals": [dataclasses.asdict(verdict) for verdict in self.verdicts],
        }
        write_whole(self.path, json.dumps(finite(found), indent=1, allow_nan=False) + "\n")
        self._written = time.monotonic()

    def take_over(self, path: Path) -> dict[str, Step]:
        """Take over the rows of an earlier report, and return its steps that were done, by name.

        Raises
        ------
        ValueError
            It is no such report, or not one of this GPU and commit.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            steps = {step["name"]: Step(**step) for step in found["steps"]}
            rows, facts, there = [Row(**row) for row in found["rows"]], found["ceilings"], steps["environment"].data
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report: {type(error).__name__}: {error}") from None
        here = self.steps[0].data
        for what in ("device", "commit"):
            if there[what] != here[what]:
                raise ValueError(f"{path} is of the {what} {there[what]}, and this is {here[what]}")
        if found["dry_run"] != self.dry:
            raise ValueError(f"{path} is of a dry run, or this is: nothing can be taken over")
        self.gathered.rows, self.gathered.facts = rows, facts
        return {name: step for name, step in steps.items() if step.status == OK}


def finite(part: Any) -> Any:
    """Return a value with null in place of numbers that JSON lacks."""
    if isinstance(part, dict):
        return {name: finite(item) for name, item in part.items()}
    if isinstance(part, list | tuple):
        return [finite(item) for item in part]
    return None if isinstance(part, float) and not abs(part) < float("inf") else part
