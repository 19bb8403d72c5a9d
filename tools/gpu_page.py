"""What the recorded runs on GPUs say: tables for README.md and docs/gpu.md, and their pictures.

A run is a JSON that benchmarks/gpu_report.py wrote into benchmarks/results; the newest of each GPU counts. Beside what
it measured stands what `profile` says without a GPU (tools/predict.py, docs/data).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.report.goals import floor_us
from benchmarks.report.rows import Row
from convbackprop.bench import plots
from convbackprop.bench.columns import digits
from convbackprop.devices.gpus import gpu_titled
from convbackprop.ladder.registry import VARIANTS
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import constants_of
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.profile.expected import FITTED, Work, expected
from tools import fit_expected, gpu_parts
from tools.fit_expected import Score
from tools.gpu_parts import table, times
from tools.predict import DATA, RESULTS, ROOT, code_digest

#: What the front page and its picture show: the layers, as briefly as a table wants them, by the label of their jobs.
LADDER = "4096 5x5"
SHOWN = {
    LADDER: "one channel, 4096², 5x5",
    "depthwise 112 3x3": "depthwise, 112², 3x3",
    "64->128 112 3x3": "64->128, 112², 3x3",
}
DTYPE = "float32"

#: The picture of expected against measured times, in docs.
EXPECTED_PICTURE = "expected.svg"

#: The tables of all rows: each takes the jobs whose label begins so, and that no table before it took.
TABLES = (
    ("4096", "Images of one channel, 4096 x 4096"),
    ("16x2048", "Sixteen images of one channel, 2048 x 2048"),
    ("depthwise", "Depthwise: 32 channels, 112 x 112, 32 images"),
    ("64->128", "64 channels to 128, 112 x 112, 32 images"),
    ("DeepBench", "DeepBench's layers"),
)


@dataclass(frozen=True)
class Line:
    """A variant's row of a run, with what was measured beside it; times in microseconds, None where there is none."""

    row: Row
    floor: float | None
    copy: float | None
    torch: float | None
    tf32: float | None
    bound: float | None
    expected: float | None

    @property
    def layer(self) -> str:
        return self.row.job.split("/")[0]

    @property
    def dtype(self) -> str:
        return self.row.job.split("/")[1]

    @property
    def pass_name(self) -> str:
        """With ", mask" where the ReLU's bits are saved or read."""
        return self.row.job.split("/")[2].replace(" ", ", ")

    @property
    def rung(self) -> str:
        return self.row.who if " + " in self.row.who else self.row.who.partition("/")[2]

    @property
    def us(self) -> float | None:
        return self.row.cold["median"] if self.row.cold else None

    @property
    def error(self) -> float | None:
        return max((share for share in (self.row.small_share, self.row.full_share) if share is not None), default=None)

    def times(self, other: float | None) -> float | None:
        return other / self.us if other and self.us else None


class Recorded:
    """A recorded run."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, json.loads(path.read_text())
        self.steps = {step["name"]: step for step in self.found["steps"]}
        self.environment = self.steps["environment"]["data"]
        kept = DATA / path.name
        if not kept.exists():
            raise SystemExit(f"{kept.relative_to(ROOT)} does not exist; tools/predict.py writes it")
        self.kept = json.loads(kept.read_text())

    def said(self, step: str) -> str:
        """Return what came of a step that is not about rows."""
        if step not in self.steps:
            return "not run"
        found = self.steps[step]
        tools = [f"{tool}: {said['summary']}" for tool, said in found["data"].items()] if step == "sanitizer" else []
        return "; ".join(tools) or found["data"].get("closing_line") or found["detail"]

    @property
    def device(self) -> str:
        return self.environment["device"]

    @property
    def commit(self) -> str:
        return self.environment["commit"][:7]

    @property
    def date(self) -> str:
        return self.environment["date"][:10]

    @cached_property
    def rows(self) -> list[Row]:
        return [Row(**row) for row in self.found["rows"]]

    @cached_property
    def lines(self) -> list[Line]:
        """The variants' rows."""
        return [
            self._line(row) for row in self.rows if row.ours and row.problem and row.part == "rows" and not row.host
        ]

    def _line(self, row: Row) -> Line:
        beside = [other for other in self.rows if other.job == row.job and not other.ours and other.cold]
        medians = {other.who: other.cold["median"] for other in beside if other.cold}
        torch = [us for who, us in medians.items() if who.startswith("torch") and "TF32" not in who]
        tf32 = [us for who, us in medians.items() if "TF32" in who]
        keys = [f"{who} {row.problem}" for who in row.who.split(" + ")]
        bounds = [self.kept["predicted"].get(key, {}).get("us") for key in keys]
        works = [Work.from_json(each) for key in keys for each in self.kept["facts"].get(key, ())]
        gpu = gpu_titled(self.device)
        return Line(
            row,
            floor_us(row.least_bytes, row.flops, self.found["ceilings"]),
            medians.get("copy"),
            min(torch, default=None),
            min(tf32, default=None),
            None if None in bounds else sum(bounds),
            expected(gpu, works).seconds * 1e6 if gpu and all(key in self.kept["facts"] for key in keys) else None,
        )

    def of(self, layer: str, dtype: str = DTYPE) -> list[Line]:
        """Return the lines of a layer without a mask."""
        return [line for line in self.lines if (line.layer, line.dtype) == (layer, dtype) and line.pass_name in PASSES]

    @cached_property
    def changed(self) -> list[str]:
        """The run's variants whose code, or whose constants for a problem of the run, are not those of its commit.

        Comments do not count, nor does where a file lies, nor what nvcc was seen to compile to the same.
        """
        compiled: dict[str, list[dict[str, str]]] = {}
        for kernel in self.steps["compile"]["data"]["kernels"]:
            compiled.setdefault(kernel["file"], []).append(kernel["constants"])
        known = {str(variant): variant for variant in VARIANTS}
        same = self.kept["same"]
        changed = {
            name for name, digest in self.kept["code"].items()
            if code_digest(ROOT, name) not in (digest, *same.get(name, ()))
        }  # fmt: skip
        for line in self.lines:
            if (name := line.row.who) in known and name not in changed:
                constants = constants_of(known[name], ConvProblem.parse(line.row.problem), "cuda")
                if {key: str(value) for key, value in constants.items()} not in compiled.get(f"{name}.cu", []):
                    changed.add(name)
        return [name for name in known if name in changed] + sorted(changed - set(known))

    @property
    def missing(self) -> list[Variant]:
        """The variants of the registry that are not in the run."""
        return [variant for variant in VARIANTS if str(variant) not in self.kept["code"]]


def newest() -> list[Recorded]:
    """Return the newest recorded run of each GPU that has rows."""
    runs = (Recorded(path) for path in sorted(RESULTS.glob("*.json")))
    whole = (run for run in runs if run.lines and not run.found["dry_run"])
    real = sorted(whole, key=lambda run: run.environment["date"])
    return list({run.device: run for run in real}.values())


# -- Markdown --------------------------------------------------------------------------------------------------------
def listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1] if words else "none"


def _code(variants: Iterable[object]) -> str:
    return listed([f"`{variant}`" for variant in variants])


# -- the front page --------------------------------------------------------------------------------------------------
def front(run: Recorded) -> str:
    """Return the table of the front page: pass by rung, beside the copy and torch."""
    lines = {layer: run.of(layer) for layer in SHOWN}
    rungs = [name for name in dict.fromkeys(v.name for v in VARIANTS) if any(
        line.rung == name for each in lines.values() for line in each)]  # fmt: skip
    rows = []
    for layer, title in SHOWN.items():
        for i, pass_name in enumerate(dict.fromkeys(line.pass_name for line in lines[layer])):
            own = {line.rung: line for line in lines[layer] if line.pass_name == pass_name}
            best = min(own.values(), key=lambda line: line.us or math.inf)
            times_of = [digits(own[name].us) if name in own else "" for name in rungs]
            beside = [digits(us) for us in (best.copy, best.torch, best.tf32)]
            rows.append(["" if i else title, pass_name, *times_of, *beside, times(best.times(best.torch))])
    heads = ["layer", "pass", *rungs, "copy", "torch", "torch TF32", "torch / ours"]
    deep, faster = ratios(run, "DeepBench")
    return f"""\
{table(heads, rows, left=2)}

*Microseconds on an {run.device}, {DTYPE}: medians with a cold cache, bias and ReLU included. depthwise: 32 channels, 32
images; 64->128: channels, 32 images. copy: of as many bytes as the pass must move. torch {run.environment["torch"]}:
the better of its memory formats, in full float32 as ours, and in TF32, which rounds factors to 11 bits. Over the
{len(deep)} passes of DeepBench's layers torch takes {mean(deep):.2f} times as long as ours (geometric mean), and ours
are faster in {faster}.*

The run is of {run.date}, commit {run.commit}. {since(run)} [On a GPU](docs/gpu.md) has every row, loss and goal."""


def since(run: Recorded) -> str:
    """Return in a sentence how much of what is in the tree the run has not timed."""
    missing = [variant for variant in run.missing if "cuda" in variant.runs_on]
    untimed = []
    if run.changed:
        untimed.append(f"the code of {len(run.changed)} of its {len(run.kept['code'])} variants has changed")
    if missing:
        rungs = dict.fromkeys(variant.name for variant in missing)
        untimed.append(f"{_code(rungs)} {'have' if len(rungs) > 1 else 'has'} been added")
    if not untimed:
        return "Its variants are those of this tree."
    return f"Since then {' and '.join(untimed)}, and no GPU has timed that yet."


def ratios(run: Recorded, label: str) -> tuple[list[float], int]:
    """Return torch's time over ours in every pass of the layers whose label begins so, and how many are above 1."""
    jobs: dict[str, list[float]] = {}
    for line in run.lines:
        if line.layer.startswith(label) and (ratio := line.times(line.torch)):
            jobs.setdefault(line.row.job, []).append(ratio)
    best = [max(each) for each in jobs.values()]
    return best, sum(ratio > 1 for ratio in best)


def mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


# -- docs/gpu.md -----------------------------------------------------------------------------------------------------
def measured(run: Recorded) -> str:
    """Return all that is said of a run."""
    parts = [about(run), goals(run), predictions(run), *gpu_parts.parts(run)]
    taken: set[str] = set()
    for label, title in TABLES:
        for dtype in dict.fromkeys(line.dtype for line in run.lines):
            lines = [line for line in run.lines if line.layer.startswith(label) and line.dtype == dtype]
            if lines:
                taken |= {line.row.job for line in lines}
                parts.append(f"#### {title}, {dtype}\n\n{every_row(lines, label)}")
    if rest := [line for line in run.lines if line.row.job not in taken]:
        parts.append(f"#### Others\n\n{every_row(rest)}")
    return "\n\n".join(parts)


def about(run: Recorded) -> str:
    """Return on what the run was made, what it found besides times, and what has changed since."""
    e, ceilings = run.environment, run.found["ceilings"]
    smi = e["nvidia_smi"]
    facts = {
        "date, commit": f"{run.date}, {run.commit}{', with files in the checkout that it lacks' * e['dirty']}",
        "GPU": f"{run.device} ({e['architecture']}), {ceilings['multiprocessors']} multiprocessors, "
        f"{ceilings['l2_bytes'] >> 20} MiB of L2 cache, at {smi['clocks.sm']} MHz and at most "
        f"{float(smi['power.limit']):.0f} W",
        "software": f"driver {smi['driver_version']}; {e['nvcc'].split(', ')[-1]} of nvcc; PyCUDA {e['pycuda']}; torch "
        f"{e['torch']}, cuDNN {_cudnn(e['cudnn'])}; Python {e['python']}, numpy {e['numpy']}",
        "tests on the GPU": run.said("tests"),
        "every variant against float64": run.said("launches"),
        "compute-sanitizer": run.said("sanitizer"),
        "rows": f"{run.steps['rows']['detail']}; of those right, the same bits in a second run: "
        + ("all" if all(line.row.deterministic for line in run.lines if not line.row.failed) else "not all"),
        "what failed": "; ".join(run.found["failures"]) or "nothing",
        "ceilings": f"a copy of 1 GiB {ceilings['copy_bytes_per_s'] * 1e-12:.3g} TB/s, read and written; FFMA "
        f"{ceilings['ffma_flops_per_s'] * 1e-12:.3g} TFLOP/s; two events with nothing between them "
        f"{ceilings['empty_us']:.3g} us",
    }  # fmt: skip
    missing = {cpu: [v for v in run.missing if ("cuda" not in v.runs_on) == cpu] for cpu in (False, True)}
    notes = [f"All figures are of commit {run.commit}."]
    if run.changed:
        notes.append(f"Since then the code of these has changed, and no GPU has timed that yet: {_code(run.changed)}.")
        notes.append("That of the others has not, or nvcc compiles it to the same.")
    if missing[False]:
        notes.append(f"Added since, and not timed on a GPU yet: {_code(missing[False])}.")
    if missing[True]:
        notes.append(f"Written for a CPU, and not in the run: {_code(missing[True])}.")
    return f"{' '.join(notes)}\n\n{table(('', 'the run'), facts.items(), left=2)}"


def _cudnn(number: int) -> str:
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def goals(run: Recorded) -> str:
    """Return every goal and what became of it."""
    by_job: dict[str, list[Line]] = {}
    for line in run.lines:
        by_job.setdefault(line.row.job, []).append(line)
    rows = []
    for goal in run.found["goals"]:
        line = next((line for line in by_job.get(goal["job"], []) if line.row.who == goal["who"]), None)
        figures = [goal["figure_us"], line and line.expected, line and line.bound, goal["floor_us"], line and line.copy,
                   goal["torch_us"]]  # fmt: skip
        outcome = {True: "met", False: "missed", None: "not known"}[goal["met"]]
        rows.append([goal["what"], goal["wanted"], f"{outcome}{_why(goal['why'])}", *map(digits, figures),
                     times(goal["times_torch"])])  # fmt: skip
    heads = ("goal", "wanted", "outcome", "us", "expected", "bound", "floor", "copy", "torch", "torch / ours")
    met = sum(goal["met"] is True for goal in run.found["goals"])
    return f"""\
#### Goals

{met} of {len(rows)} are met. A "copy" in a goal is of one image at the speed of a large copy; the column has the copy
of as many bytes as the pass must move, timed in the same run.

{table(heads, rows, left=3)}"""


def _why(why: str) -> str:
    """Return the reason that the report gives, with numbers written out and without its examples."""
    why = re.sub(r"[\d.]+e\+\d+", lambda found: f"{float(found[0]):,.0f}", re.sub(r": [^;]* \.\.\.$", "", why))
    return f": {why}" if why else ""


def predictions(run: Recorded) -> str:
    """Return how far measured times are from the bounds, and from what is expected."""
    timed = [line for line in run.lines if line.us and line.bound]
    broken = sum(line.us < line.bound for line in timed if line.us and line.bound)
    scored = fit_expected.measured(run.path)
    rows = []
    for name in dict.fromkeys(row.variant for row in scored):
        bounds = [line.us / line.bound for line in timed if line.row.who == name and line.us and line.bound]
        own = Score.of([row.ratio() for row in scored if row.variant == name])
        others = [row.ratio() for row in scored if row.variant == name and not row.fitted]
        figures = [mean(bounds), own.ratio, own.mean, own.worst]
        rows.append([f"`{name}`", str(own.rows), *map(digits, figures), *_score(others)])
    everything = Score.of([row.ratio() for row in scored])
    all_bounds = [line.us / line.bound for line in timed if line.us and line.bound]
    figures = [mean(all_bounds), everything.ratio, everything.mean, everything.worst]
    rest = _score([row.ratio() for row in scored if not row.fitted])
    rows.append(["all", str(everything.rows), *map(digits, figures), *rest])
    heads = ("variant", "rows", "measured / bound", "expected / measured", "off", "worst", "rows not fitted", "off",
             "worst")  # fmt: skip
    return f"""\
#### What is said without a GPU

![Expected against measured times]({EXPECTED_PICTURE})

bound: what `convbackprop profile` of commit {run.commit} says that a row takes at least, the largest of the limits that
it knows of (memory, arithmetic, instructions, caches, shared memory). A row has none where nobody has replayed its
addresses, which may take more memory than there was; {broken or "none"} of {len(timed)} rows took less.

expected: what today's profile says of the same code, with what a kernel loses by waiting
(convbackprop/profile/expected.py). Five constants of it are fitted, on every other problem of the run; "rows not
fitted" are of the others. off: the geometric mean of expected over measured or its inverse, whichever is above 1.
worst: the largest of these. The constants:

{_constants()}

{table(heads, rows, left=1)}"""


def _score(ratios: Sequence[float]) -> list[str]:
    """Return how many there are, by what factor they are off, and the worst one."""
    if not ratios:
        return ["-"] * 3
    found = Score.of(ratios)
    return [str(found.rows), digits(found.mean), digits(found.worst)]


def _constants() -> str:
    """Return the fitted constants and what they mean."""
    rows = [
        [f"{FITTED.start * 1e6:.3g} us", "of a call with cold caches besides its launches"],
        [f"{FITTED.launch * 1e6:.3g} us", "of each launch, until its first warp is at work and after its last"],
        [f"{FITTED.memory_latency * 1e9:.3g} ns", "from a load to its data in memory, while others are under way"],
        [f"{FITTED.outside:.3g} clocks", "of a lone warp for an instruction outside the hot loop"],
        [f"{FITTED.overlap:.3g}", "the exponent with which the resources' times are added: 1 if nothing overlaps"],
    ]
    return table(("constant", "meaning"), rows, left=2)


def every_row(lines: Sequence[Line], label: str = "") -> str:
    """Return a table of rows, whose layers are named by what follows the label."""
    rows = []
    for line in lines:
        shown = [line.layer.removeprefix(label).strip(), line.pass_name, line.rung]
        if line.row.failed:
            rows.append([*shown, line.row.failed, *[""] * 10])
            continue
        cold, warm = line.row.cold, line.row.warm
        spread = f"{digits(cold['p20'])}-{digits(cold['p80'])}" if cold else "-"
        figures = (line.us, warm and warm["median"], line.expected, line.bound, line.floor, line.copy, line.torch)
        us, *others = map(digits, figures)
        error = "-" if line.error is None else f"{line.error:.2f}" if line.error >= 0.005 else "<0.01"
        rows.append([*shown, us, spread, *others, times(line.times(line.torch)), times(line.times(line.tf32)), error])
    heads = ("layer", "pass", "variant", "us", "20-80 %", "warm", "expected", "bound", "floor", "copy", "torch",
             "torch / ours", "TF32 / ours", "error")  # fmt: skip
    kept = [i for i in range(len(heads)) if i < 3 or any(row[i] not in ("", "-") for row in rows)]
    return table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows], left=3)


# -- the pictures ----------------------------------------------------------------------------------------------------
_BLUES, _TORCH, _COPY, _TEXT = ("#a9cbe8", "#5b9bd5", "#1f5fa8", "#0b2f5e"), "#e08a1e", "#9a9a9a", "#111111"


def scatter(run: Recorded) -> Any:
    """Return the expected times against the measured ones."""
    return fit_expected.scatter(run.path, f"{run.device}, {run.date}, commit {run.commit}")


def picture(run: Recorded) -> Any:
    """Return the ladder of each pass: a bar for each rung, torch and the copy, and the floor as a line."""
    lines = run.of(LADDER)
    passes = {name: [line for line in lines if line.pass_name == name] for name in PASSES}
    passes = {name: own for name, own in passes.items() if own}
    places = max(map(len, passes.values())) + 3
    drawing = plots.figure(10, 1.0 + 0.35 * places * math.ceil(len(passes) / 2))
    axes = list(drawing.subplots(math.ceil(len(passes) / 2), 2, squeeze=False).flat)
    for unused in axes[len(passes) :]:
        unused.set_axis_off()
    longest = max(us for line in lines for us in (line.us, line.torch) if us)
    for ax, (pass_name, own) in zip(axes, passes.items(), strict=False):
        _rungs(ax, own)
        ax.set_ylim(places - 0.5, -0.6)
        ax.set_title(pass_name, loc="left", fontsize=11, fontweight="bold", color=_TEXT)
        ax.set_xscale("log")
        ax.set_xlim(20, 3 * longest)
        ax.set_xticks([20, 50, 100, 200, 500, 1000, 2000], ["20", "50", "100", "200", "500", "1,000", "2,000"])
        ax.tick_params(axis="x", labelsize=8.5, which="major")
        ax.tick_params(axis="x", which="minor", length=0)
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.grid(True, axis="x", which="major", color="#e3e3e3", linewidth=0.7)
        ax.set_axisbelow(True)
    drawing.suptitle(f"{run.device}: one channel of 4096 x 4096, 5 x 5 filter, {DTYPE}, bias and ReLU", fontsize=12,
                     fontweight="bold", color=_TEXT)  # fmt: skip
    drawing.supxlabel(
        "microseconds, on a logarithmic axis. copy: of as many bytes as the pass must move. floor: those bytes at the "
        f"speed of a large copy.\nMeasured {run.date}, commit {run.commit}.", fontsize=8.5, color=_TEXT)  # fmt: skip
    return drawing


def _rungs(ax: Any, own: Sequence[Line]) -> None:
    """Draw the bars of a pass, from the lowest rung down to the copy, and its floor."""
    best = min(own, key=lambda line: line.us or math.inf)
    shades = _BLUES[max(0, len(_BLUES) - 1 - len(own)) :]
    bars = [(line.rung, line.us, shades[min(i, len(shades) - 1)]) for i, line in enumerate(own)]
    bars += [("torch", best.torch, _TORCH), ("copy", best.copy, _COPY)]
    ax.set_yticks(range(len(bars) + 1), [*(name for name, _, _ in bars), "floor"], fontsize=9.5, color=_TEXT)
    ax.plot([best.floor] * 2, [-0.5, len(bars) + 0.4], color="black", linewidth=1.5, linestyle=(0, (3, 1.5)), zorder=3)
    notes = [(us, at, digits(us)) for at, (_, us, _) in enumerate(bars)] + [(best.floor, len(bars), digits(best.floor))]
    for at, (name, us, colour) in enumerate(bars):
        ax.barh(at, us, height=0.78, color=colour, zorder=2)
        if name == best.rung:
            notes[at] = (us, at, f"{digits(us)}  ({times(best.times(best.torch))} as fast as torch)")
    for us, at, note in notes:
        ax.annotate(note, (us, at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, color=_TEXT)
