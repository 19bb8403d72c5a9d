"""`convbackprop tune` on the problems that the goals are set on: what it finds is a table that the package can ship."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.run import Run
from benchmarks.report.steps import FAILED, Step, run_limited
from convbackprop.errors import InvalidArgument
from convbackprop.tune import table

#: Seconds for what the command does besides its searches.
_BESIDES = 20.0

#: What a dry run tunes, on the CPU: the stand-in for a GPU is refused.
_DRY = ("forward", "--problem", "1,1,64,64,1,3,3,padding=same", "--device", "cpu")


def tune(step: Step, run: Run, seconds: float) -> None:
    """Search for as long as there is time; what was found before the limit counts, too."""
    minutes = 0.05 if run.dry else max(seconds - _BESIDES, 1) / 60
    what: Sequence[str] = _DRY if run.dry else ("--device", run.device.name)
    with tempfile.TemporaryDirectory() as kept:
        command = [sys.executable, "-m", "convbackprop", "tune", *what, "--minutes", f"{minutes:.3g}", "--json"]
        ended = run_limited(command, seconds, {table.VARIABLE: kept})
        files = sorted(Path(kept).glob("*.json"))
        try:
            title, entries = table.read(files[0]) if files else (None, [])
        except InvalidArgument as error:
            step.status, step.detail = FAILED, str(error)
            return
    step.data |= {"title": title, "minutes": minutes, "entries": [entry.as_json() for entry in entries]}
    faster = sum(entry.times_rule > 1 for entry in entries)
    late = "" if ended.code is not None else f"; stopped after {seconds:.0f} s"
    step.detail = f"{len(entries)} choices of {title}, {faster} of them faster than the rule's{late}"
    if ended.code or not entries:
        step.status, step.data["output"] = FAILED, ended.output[-4000:]
        step.detail = (ended.output.strip().splitlines() or ["it printed nothing"])[-1] + late
