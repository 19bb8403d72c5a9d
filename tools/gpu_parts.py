"""What a recorded run says besides its rows: calls, CUDA graphs, training, the split layer, counters, as Markdown.

Of a part that is not in the run nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.rows import Row
from convbackprop.bench.columns import digits
from convbackprop.profile.ncu import Quantity
from convbackprop.tune import table as tune_table
from convbackprop.tune.table import Entry

_GRAPHS = """\
A public function with its results given, and torch's, called many times in a row or replayed from a graph of one call:
microseconds each, until the GPU has done the last. A replay writes the bits that the call writes."""
_TRAINING = """\
A step, forward and backward with all gradients, of `convbackprop.torch`'s layer with ReLU beside torch.nn's two, of
float32 parameters; autocast: to float16. Microseconds with a cold cache; the host's part counts where the GPU waits for
it."""
_SPLIT = """\
A step of `SpatialConv2d` with nccl, which agrees on shapes and adds gradients up even so, beside the unsplit layer's:
microseconds."""
_COUNTED = """\
Of kernels that miss their goals, with cold caches. warps wait for: of those in flight, the shares of the largest
reasons."""
_TUNED = """\
What `convbackprop tune` found in {minutes:.1f} minutes, beside the rule's choice, timed in turn: microseconds. The
package ships this table, and variant="auto" follows it on this GPU as long as the kernels' code is the same."""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """Return a table in Markdown whose first `left` columns are text and whose others are figures."""
    rule = ["---"] * left + ["--:"] * (len(heads) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{digits(ratio, 2)}x"


@dataclass(frozen=True)
class Section:
    """A title, what is to be said, and a table whose first `left` columns are text."""

    title: str
    text: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int

    def __str__(self) -> str:
        return f"#### {self.title}\n\n{self.text}\n\n{table(self.heads, self.rows, self.left)}"


def parts(run: Any) -> list[str]:
    """Return what there is to say, part by part."""
    return [
        str(each)
        for each in (host(run), graphs(run), training(run), split(run), counters(run), tuned(run))
        if each.rows
    ]


def _figure(row: Row | None) -> float | None:
    """Return a row's median in microseconds, None without one."""
    measured = row and (row.host or row.cold)
    return measured["median"] if measured else None


def _by_job(run: Any, part: str) -> dict[str, dict[str, Row]]:
    """Return the rows of a part by job and by who."""
    found: dict[str, dict[str, Row]] = {}
    for row in run.rows:
        if row.part == part:
            found.setdefault(row.job, {})[row.who] = row
    return found


def host(run: Any) -> Section:
    """Return what a call costs the host."""
    rows = [[row.who, digits(row.host["median"])] for row in run.rows if row.host and row.part in ("rows", "host")]
    return Section("What a call costs the host", "On an image of 28 x 28.", ("call", "us"), rows, 1)


def graphs(run: Any) -> Section:
    """Return how long the public functions take in a CUDA graph."""
    ways = [f"{who}, {how}" for who in ("ours", "torch") for how in ("called", "replayed")]
    rows = []
    for job, own in _by_job(run, "graphs").items():
        layer, _, name = job.split("/")
        rows.append([layer, name.removeprefix("graphs "), *(_cell(own.get(way)) for way in ways)])
    return Section("In CUDA graphs", _GRAPHS, ("layer", "pass", *ways), rows, 2)


def _cell(row: Row | None) -> str:
    return row.failed if row and row.failed else digits(_figure(row))


def training(run: Any) -> Section:
    """Return how long a step of a layer takes beside torch.nn's."""
    rows = []
    for job, own in _by_job(run, "training").items():
        for who, row in own.items():
            if row.ours:
                other = own.get(who.replace("convbackprop.torch", "torch.nn"))
                mine, theirs = _figure(row), _figure(other)
                rows.append([job.split("/")[0], who.partition(", ")[2] or "eager", _cell(row), _cell(other),
                             times(theirs / mine if mine and theirs else None)])  # fmt: skip
    return Section("Training", _TRAINING, ("layer", "mode", "ours", "torch.nn", "torch.nn / ours"), rows, 2)


def split(run: Any) -> Section:
    """Return what the layer that is split among processes takes on one."""
    rows = [
        [job.split("/")[0], *(_cell(own.get(who)) for who in ("SpatialConv2d, one process", "Conv2d"))]
        for job, own in _by_job(run, "nccl").items()
    ]
    return Section("Split among processes, of which there is one", _SPLIT, ("layer", "split", "unsplit"), rows, 1)


def counters(run: Any) -> Section:
    """Return what Nsight Compute counted of the kernels that miss their goals."""
    kernels = run.steps["ncu"]["data"].get("kernels", []) if "ncu" in run.steps else []
    names = list(dict.fromkeys(name for kernel in kernels for name in kernel["counted"]))
    measured = [name for name in names if not name.startswith("warps: ")]
    rows = []
    for kernel in kernels:
        shown = {name: Quantity(name, unit, figure).cells[1] for name, (figure, unit) in kernel["counted"].items()}
        waits = ", ".join(f"{name[7:]} {text}" for name, text in shown.items() if name.startswith("warps: "))
        rows.append([f"`{kernel['who']}`", kernel["job"], *(shown.get(name, "-") for name in measured), waits])
    return Section("What Nsight Compute counted", _COUNTED, ("variant", "job", *measured, "warps wait for"), rows, 2)


def tuned(run: Any) -> Section:
    """Return what tune found to be faster than the rule's choices, or not."""
    found = run.steps["tune"]["data"] if "tune" in run.steps else {}
    entries = [Entry.of_json(entry) for entry in found.get("entries", [])]
    rows = [
        [entry.pass_name, str(entry.problem), entry.choice, digits(entry.us), digits(entry.rule_us),
         times(entry.times_rule)]
        for entry in entries
    ]  # fmt: skip
    text = _TUNED.format(minutes=found.get("minutes", 0))
    return Section("Tuned", text, ("pass", "problem", "fastest", "us", "rule's us", "times as fast"), rows, 3)


def shipped_table(run: Any) -> dict[Path, str]:
    """Return the table that the package ships for the run's GPU, by its file, if the run has tuned anything."""
    found = run.steps["tune"]["data"] if "tune" in run.steps else {}
    if not found.get("entries"):
        return {}
    entries = [Entry.of_json(entry) for entry in found["entries"]]
    return {tune_table.shipped(found["title"]): tune_table.text_of(found["title"], entries)}
