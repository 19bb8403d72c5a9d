"""Fit the constants of the expected time (convbackprop/profile/expected.py) to the recorded runs, and score them.

    python tools/fit_expected.py

The rows are those of benchmarks/results whose facts tools/predict.py has recorded. The constants are fitted on every
other problem of a run, whatever its dtypes, passes and variants, and the score counts on the others. Prints the
constants, which go into FITTED, and the scores by variant.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from convbackprop.bench import plots
from convbackprop.devices.gpus import Gpu, gpu_titled
from convbackprop.problem import ConvProblem
from convbackprop.profile.expected import FITTED, Constants, Work, expected

ROOT = Path(__file__).parent.parent

#: Where a fit starts: what GPU.md and microbenchmarks let one expect.
START = Constants(start=5e-6, launch=2e-6, memory_latency=450e-9, outside=2.0, overlap=2.0)

#: How much a squared error counts beside its magnitude, for the sake of the worst rows.
_WORST = 0.3


@dataclass(frozen=True)
class Measured:
    """A row of a run, with a cold cache, what its launches ask of the GPU, and whether constants are fitted on it."""

    gpu: Gpu
    variant: str
    problem: str
    seconds: float
    works: tuple[Work, ...]
    fitted: bool

    def ratio(self, constants: Constants = FITTED) -> float:
        """Return the expected time over the measured one."""
        return expected(self.gpu, self.works, constants).seconds / self.seconds


@dataclass(frozen=True)
class Score:
    """Of expected times: how many, the geometric means of the ratio and of max(ratio, 1 / ratio), and the worst one."""

    rows: int
    ratio: float
    mean: float
    worst: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Score:
        """Score expected over measured times."""
        logs = [math.log(ratio) for ratio in ratios]
        off = [abs(log) for log in logs]
        return cls(len(logs), *(math.exp(value) for value in (sum(logs) / len(logs), sum(off) / len(off), max(off))))


def measured(path: Path) -> list[Measured]:
    """Return the rows of a run that have been timed and whose facts are recorded."""
    run, kept = json.loads(path.read_text()), json.loads((ROOT / "docs" / "data" / path.name).read_text())
    gpu = gpu_titled(run["steps"][0]["data"]["device"])
    found: list[Measured] = []
    shapes: dict[str, int] = {}
    for row in run["rows"]:
        facts = kept.get("facts", {}).get(f"{row['who']} {row['problem']}")
        if gpu and row["ours"] and row["cold"] and facts:
            works = tuple(Work.from_json(each) for each in facts)
            problem = ConvProblem.parse(row["problem"])
            shape = str(problem.with_(dtype="float32", activation="identity", bias=False, mask=False))
            is_fitted = shapes.setdefault(shape, len(shapes)) % 2 == 0
            found.append(Measured(gpu, row["who"], row["problem"], row["cold"]["median"] * 1e-6, works, is_fitted))
    return found


def runs() -> list[Path]:
    """Return the recorded runs of GPUs."""
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    return [path for path in paths if not json.loads(path.read_text())["dry_run"]]


def loss(rows: Sequence[Measured], constants: Constants) -> float:
    """Return what a fit makes small."""
    off = [abs(math.log(row.ratio(constants))) for row in rows]
    return sum(each + _WORST * each**2 for each in off) / len(off)


def fit(rows: Sequence[Measured], constants: Constants = START) -> Constants:
    """Return the constants with the least loss: each in turn is made larger or smaller, by ever smaller steps."""
    steps = {field.name: 0.3 for field in dataclasses.fields(Constants)}
    least = loss(rows, constants)
    while max(steps.values()) > 0.005:
        for name, step in steps.items():
            for factor in (1 + step, 1 / (1 + step)):
                tried = dataclasses.replace(constants, **{name: factor * getattr(constants, name)})
                if (new := loss(rows, tried)) < least:
                    constants, least = tried, new
                    break
            else:
                steps[name] *= 0.6
    return constants


# -- the picture -----------------------------------------------------------------------------------------------------
#: A marker for each pass and a colour for each rung of `scatter`: Okabe and Ito's, which the colour-blind tell apart.
_MARKERS = {"forward": "o", "input_grad": "s", "kernel_grad": "^", "backward": "D"}
_HUES = {"naive": "#999999", "tiled": "#E69F00", "coalesced": "#0072B2", "fused": "#CC79A7", "implicit_gemm": "#009E73",
         "register_tiled": "#D55E00"}  # fmt: skip


def scatter(path: Path, title: str) -> Any:
    """Return the picture of a run's expected times against the measured ones."""
    rows = measured(path)
    drawing = plots.figure(7.5, 6.4)
    ax = drawing.subplots()
    times = {row: (row.seconds * 1e6, row.ratio() * row.seconds * 1e6) for row in rows}
    ends = [0.8 * min(map(min, times.values())), 1.25 * max(map(max, times.values()))]
    for factor, style in ((1.0, "-"), (1.25, "--"), (0.8, "--"), (2.0, ":"), (0.5, ":")):
        ax.plot(ends, [factor * end for end in ends], color="#8a8a8a", linewidth=0.9, linestyle=style, zorder=1)
    for name in dict.fromkeys(row.variant for row in rows):
        pass_name, _, rung = name.partition("/")
        hue, marker = _HUES.get(rung, "black"), _MARKERS[pass_name]
        for is_fitted in (True, False):
            own = [times[row] for row in rows if row.variant == name and row.fitted == is_fitted]
            face = hue if is_fitted else "none"
            across, up = [time for time, _ in own], [time for _, time in own]
            ax.scatter(across, up, s=26, marker=marker, linewidths=1.1, edgecolors=hue, facecolors=face, zorder=2)
        ax.scatter([], [], s=26, marker=marker, color=hue, label=name)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    ax.set(xlabel="measured, us", ylabel="expected, us")
    ticks = [tick for tick in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if ends[0] < tick < ends[1]]
    for set_ticks in (ax.set_xticks, ax.set_yticks):
        set_ticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.grid(True, which="major", color="#e3e3e3", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    score = Score.of([row.ratio() for row in rows if not row.fitted])
    drawing.supxlabel(
        f"Full: rows that constants are fitted on. Hollow: the {score.rows} others, off by {score.mean:.2f} (geometric "
        f"mean), the worst by {score.worst:.2f}.\nLines: the same, 1.25 times more or less, twice or half.",
        fontsize=8.5)  # fmt: skip
    return drawing


def main() -> None:
    rows = [row for path in runs() for row in measured(path)]
    constants = fit([row for row in rows if row.fitted])
    print(constants)
    for title, chosen in (("found", constants), ("FITTED", FITTED)):
        for half, wanted in (("fitted", True), ("not fitted", False)):
            own = [row for row in rows if row.fitted == wanted]
            print(f"\n{title}, {half}: {Score.of([row.ratio(chosen) for row in own])}")
            for variant in dict.fromkeys(row.variant for row in own):
                print(f"    {variant}: {Score.of([row.ratio(chosen) for row in own if row.variant == variant])}")


if __name__ == "__main__":
    main()
