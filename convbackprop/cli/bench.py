"""Time variants beside torch (or OpenCV) and a copy of memory, each checked against the float64 reference first."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import convbackprop
from convbackprop import ops, peers
from convbackprop.check import check
from convbackprop.cli import goals, layer_rows, opencv
from convbackprop.cli.bench_rows import Case, Row, print_rows
from convbackprop.cli.common import (
    Shielded,
    add_device,
    add_target,
    check_memory,
    compile_ahead,
    console,
    distinct,
    is_file,
    print_json,
    progress,
    say,
    title,
    variants_of,
)
from convbackprop.cli.doctor import processor
from convbackprop.cli.photograph import Photograph, read_image, save_pictures
from convbackprop.compiler import compiler_version, find_cxx
from convbackprop.devices import Device, choice_of_device
from convbackprop.devices.cpu import get_num_threads
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.problem import DTYPES, PASSES, ConvProblem, known
from convbackprop.reference import answer, numpy_dtype
from convbackprop.timing import LEAST, Call, CpuStage, Timing, alternate, host_clock, stage
from convbackprop.variants import Variant, of_pass

HELP = "time variants beside torch"
EPILOG = """\
Without --problem and --image this is the main job: a layer of one channel
(ReLU, bias, padding that keeps the size) on a photograph of 512 x 512 and on
1024 x 1024 random numbers, with filters 3, 5 and 7. The filter is random,
divided by its height; on a photograph it sums to 0 and the bias is 0.01, so
that some ReLUs are open and some are shut.

Each row is checked before it is timed; a row that is wrong gets no time. A
--problem has a bias and a ReLU unless its text says otherwise (bias=0,
activation=identity).

The main job ends with the goals (--goals: these alone): the public functions on
torch tensors, 1024 x 1024 with filter 5, beside what torch's users call. A goal
that is not met fails no run: it is of the machine that it was set on.

--layers are layers of many channels, from real networks: one image, and what
"auto" chooses beside torch, and beside a single run of naive. It takes minutes.

--against opencv times forward beside filter2D, which has no bias and no ReLU.

examples:
  convbackprop bench
  convbackprop bench --goals
  convbackprop bench --layers
  convbackprop bench kernel_grad --filter 3 --dtype float16
  convbackprop bench forward/naive --problem 1,64,56,56,64,3,3,padding=1
  convbackprop bench --problem 1,32,112,112,32,3,3,groups=32,padding=1
  convbackprop bench --against opencv
  convbackprop bench --image photo.jpg --save pictures
  convbackprop bench mine.cu --pass forward

JSON keys: device, choice, environment {...}, ok, notes, rows [variant,
problem, label, ok, refused, faults, error, median_ms, p20_ms, p80_ms,
repetitions, least_bytes, flops, gb_per_s, copy_gb_per_s, share_of_copy,
torch_ms, ratio_to_torch, opencv_ms, ratio_to_opencv, public_ms], goals [pass,
function, peer, goal, ratio, met, ours_ms, peer_ms], layers [layer, problem,
variant, gflop_per_s, times_torch, times_naive, misses]; public_ms times the
public function, from numpy arrays to new numpy arrays.
"""

#: The timings of all rows together take about this long (seconds), and one row no longer than the second number.
_ALL_ROWS, _ONE_ROW = 30.0, 2.0

#: Rows that take so many times as long as the fastest of their pass are timed after it, so that it gets more turns.
_SLOWER = 5.0

#: A round of calls that takes more than these seconds is repeated only so often, and one of slow rows not at all.
_LONG_ROUND, _FEW = 1.0, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_target(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--problem", action="append", metavar="TEXT", help="N,C,H,W,K,R,S and options, such as "
                      "1,64,56,56,64,3,3,padding=1,stride=2; may be given several times")  # fmt: skip
    what.add_argument("--layers", action="store_true", help="layers of real networks, with many channels")
    what.add_argument("--image", metavar="FILE", help="the layer of one channel on this image, made grey")
    parser.add_argument("--filter", nargs="+", metavar="R", help="heights (and widths) of the filter; default: 3 5 7")
    parser.add_argument("--dtype", default="float32", metavar="D", help=", ".join(DTYPES) + "; default: float32")
    parser.add_argument("--against", default="torch", metavar="PEER", help="torch (the default), opencv or none")
    parser.add_argument("--goals", action="store_true", help="the goals alone: the public functions beside torch")
    parser.add_argument("--seconds", type=float, metavar="S", help="time for each row; default: so that all rows take "
                        f"about {_ALL_ROWS:.0f} s")  # fmt: skip
    parser.add_argument("--save", metavar="DIR", help="write the pictures of the layer there: input, sum, output and "
                        "input gradient as PNG, the kernel gradient as text")  # fmt: skip
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


# -- what is timed ---------------------------------------------------------------------------------------------------
def _filters(arguments: argparse.Namespace) -> tuple[int, ...]:
    words = arguments.filter or ["3", "5", "7"]
    for word in words:
        if not word.isdecimal() or int(word) < 1:
            raise InvalidArgument(f"--filter is {word!r}; it should be an integer of at least 1")
    return distinct(int(word) for word in words)


def cases_of(arguments: argparse.Namespace) -> tuple[Case, ...]:
    """Return what the arguments ask for."""
    dtype = known(arguments.dtype, tuple(DTYPES), "--dtype")
    if arguments.problem:
        for option, value in (("--filter", arguments.filter), ("--save", arguments.save)):
            if value is not None:
                raise InvalidArgument(f"{option} goes with an image, but --problem is given")
        problems = [ConvProblem.parse(t, bias=True, activation="relu", dtype=dtype) for t in arguments.problem]
        if empty := [problem for problem in problems if problem.N == 0]:
            raise InvalidArgument(f"problem is {empty[0]}; it has no image, so there is nothing to time")
        return distinct(Case(text, problem) for text, problem in zip(arguments.problem, problems, strict=True))
    if arguments.layers:
        if arguments.filter is not None or arguments.save is not None:
            raise InvalidArgument("--layers has problems of its own; leave out --filter and --save")
        return layer_rows.cases()
    images: list[Photograph | None] = [read_image(arguments.image)]
    if arguments.image is None:
        images.append(None)
    cases = []
    for image in images:
        height, width = image.grey.shape if image is not None else (1024, 1024)
        name = image.name if image is not None else f"{height}x{width}"
        for size in _filters(arguments):
            problem = ConvProblem.parse(
                f"1,1,{height},{width},1,{size},{size},padding=same,activation=relu,bias=1", dtype=dtype
            )
            cases.append(Case(f"{name} {size}x{size}", problem, image))
    return tuple(cases)


# -- running ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """How rows are run."""

    device: Device
    against: str
    seconds: float
    public: bool
    shield: Shielded
    notes: list[str]


@dataclass
class Known:
    """What the passes of one problem share: the inputs and the reference's answers, by operand name."""

    arrays: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)

    def answer(self, pass_name: str, problem: ConvProblem, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reference's answer, which is computed once: backward's is that of the two gradients."""
        wanted = [o.name for o in PASSES[pass_name].present(problem) if o.written and o.name != "mask"]
        if not all(name in self.answers for name in wanted):
            self.answers |= answer(pass_name, problem, given)
        self.arrays |= {name: given[name] for name in "xwb" if name in given}
        if pass_name == "forward" and not problem.mask:
            self.arrays["saved"] = self.answers["y"][0].astype(numpy_dtype(problem.dtype))
        return {name: self.answers[name] for name in wanted}


def time_pass(case: Case, variants: Sequence[Variant], shared: Known, how: Settings) -> list[Row]:
    """Check the variants of one pass on one problem, then time the right ones in turn with a copy and the peer."""
    pass_name = variants[0].pass_name
    rows = [Row(variant, case, variant.refusal(case.problem)) for variant in variants]
    if all(row.refusal for row in rows):
        return rows
    given = case.arrays(pass_name, shared.arrays)
    expected = shared.answer(pass_name, case.problem, given)
    for row in rows:
        if row.refusal is None:
            how.shield.doing(f"{title(row.variant)} on {case.problem}")
            outcome = check(row.variant, case.problem, how.device, given=given, expected=expected)
            row.error, row.faults = outcome.share, outcome.faults
    if right := [row for row in rows if row.refusal is None and not row.faults]:
        _time_rows(right, given, how)
    return rows


def time_beside_naive(case: Case, variants: Sequence[Variant], shared: Known, how: Settings) -> list[Row]:
    """Time a variant as `time_pass` does, and naive, the first of them, by one run: of a layer it may take seconds."""
    naive, others = variants[0], variants[1:]
    rows = time_pass(case, others, shared, how)
    row = Row(naive, case)
    given = case.arrays(naive.pass_name, shared.arrays)
    with stage(how.device, naive.pass_name, case.problem, given) as place:
        row.ours = Timing((place.clock(place.ours(naive)),))
    return [row, *rows]


def _time_rows(right: Sequence[Row], given: Mapping[str, Any], how: Settings) -> None:
    """Time rows of one pass on one problem; the slow ones after the fast ones, the copy and the peer."""
    case, pass_name = right[0].case, right[0].variant.pass_name
    with stage(how.device, pass_name, case.problem, given) as place:
        calls = {title(row.variant): place.ours(row.variant) for row in right}
        once = {name: place.clock(call) for name, call in calls.items()}
        peer_names = []
        for name, call in _peer_calls(pass_name, case, place, how).items():
            try:
                once[name] = place.clock(call)
            except RuntimeError as error:
                how.notes.append(f"{name} cannot do {pass_name} on {case.label}: {str(error).splitlines()[0]}")
            else:
                calls[name] = call
                peer_names.append(name)
        calls["copy"], once["copy"] = place.copy(), 0
        limit = _SLOWER * min(once[title(row.variant)] for row in right)
        slow = [title(row.variant) for row in right if once[title(row.variant)] > limit]
        fast = [name for name in calls if name not in slow]
        few = sum(once[name] for name in fast) > _LONG_ROUND
        timings = alternate({name: calls[name] for name in fast}, place.clock, how.seconds * len(fast),
                            least=_FEW if few else LEAST)  # fmt: skip
        if sum(once[name] for name in slow) > _LONG_ROUND:
            timings |= {name: Timing((once[name],)) for name in slow}
        else:
            timings |= alternate({name: calls[name] for name in slow}, place.clock, how.seconds * len(slow))
        peer = min((timings[name] for name in peer_names), key=lambda timing: timing.median, default=None)
        for row in right:
            row.ours, row.copy = timings[title(row.variant)], timings["copy"]
            row.torch, row.opencv = (peer if how.against == name else None for name in ("torch", "opencv"))
            if how.public and row.variant.file is None:
                call = _public_call(row, place.arrays, how.device)
                row.public = alternate({"": call}, host_clock, how.seconds / 4, least=_FEW, most=20)[""]


def _peer_calls(pass_name: str, case: Case, place: CpuStage, how: Settings) -> dict[str, Call]:
    """Return the peer's ways to do the same job on the same arrays; a note says why OpenCV has none."""
    if how.against == "opencv":
        if reason := opencv.why_not(pass_name, case.problem):
            how.notes.append(f"OpenCV is not timed on {case.label}: {reason}")
            return {}
        return {"opencv": opencv.filter_call(case.problem, place.arrays, np.empty_like(place.arrays["y"]))}
    if how.against == "none":
        return {}
    return peers.torch_calls(pass_name, case.problem, place.arrays, how.device.name)


def _public_call(row: Row, arrays: Mapping[str, Any], device: Device) -> Any:
    """Return a call of the public function that runs the variant, arrays of the host in and out."""
    p, a = row.case.problem, arrays
    common: dict[str, Any] = {
        name: getattr(p, name) for name in ("stride", "padding", "dilation", "groups", "activation")
    }
    common |= {"variant": row.variant.name, "device": device.name}
    if row.variant.pass_name == "forward":
        return lambda: ops.conv2d(a["x"], a["w"], a.get("b"), save_mask=p.mask, **common)
    common["mask" if p.mask else "output"] = a.get("saved")
    if row.variant.pass_name == "input_grad":
        return lambda: ops.conv2d_input_grad(p.x_shape, a["w"], a["dy"], **common)
    if row.variant.pass_name == "backward":
        # Of x and w the one whose gradient is not wanted is not read, and has no array here.
        x, w = (a.get(name, np.empty(shape, a["dy"].dtype)) for name, shape in (("x", p.x_shape), ("w", p.w_shape)))
        return lambda: ops.conv2d_backward(a["dy"], x, w, needs=(p.dx, p.dw, p.bias), **common)
    return lambda: ops.conv2d_kernel_grad(a["x"], p.w_shape, a["dy"], with_bias=p.bias, **common)


def time_all(work: Sequence[tuple[Case, Sequence[Variant]]], how: Settings) -> list[Row]:
    """Return a row for each variant on each of its problems."""
    rows: list[Row] = []
    with progress() as bar:
        wanted = [(v, case.problem) for case, variants in work for v in variants if v.refusal(case.problem) is None]
        compile_ahead(wanted, how.device, how.device.kind, bar)
        task = bar.add_task("timing", total=sum(len(variants) for _, variants in work))
        for case, variants in work:
            shared = Known()
            for pass_name in distinct(variant.pass_name for variant in variants):
                bar.update(task, description=f"{pass_name} on {case.label}", refresh=True)
                rungs = [variant for variant in variants if variant.pass_name == pass_name]
                how_to = time_beside_naive if isinstance(case, layer_rows.LayerCase) else time_pass
                rows += how_to(case, rungs, shared, how)
                bar.advance(task, len(rungs))
                bar.refresh()
    return rows


def time_goals(passes: Sequence[str], seconds: float | None) -> list[goals.Result]:
    """Return the goals of some passes with what was measured."""
    with progress() as bar:
        task = bar.add_task("goals", total=sum(goal.pass_name in passes for goal in goals.GOALS))
        results = []
        for result in goals.run_goals(passes, seconds):
            results.append(result)
            bar.update(task, advance=1, refresh=True)
    return results


def _work(arguments: argparse.Namespace, cases: Sequence[Case], variants: Sequence[Variant], device: Device,
          notes: list[str]) -> list[tuple[Case, Sequence[Variant]]]:  # fmt: skip
    """Return each case with what is timed on it.

    Of layers, that is only naive and what "auto" chooses; of the main job, only what does not refuse it, unless it was
    asked for by name. A note says what is left out.
    """
    if not arguments.layers:
        if arguments.problem or "/" in (arguments.target or "") or is_file(arguments.target):
            return [(case, variants) for case in cases]
        refused: dict[str, list[str]] = {}
        for variant, case in itertools.product(variants, cases):
            if sentence := variant.refusal(case.problem):
                refused.setdefault(sentence, []).append(str(variant))
        notes += [f"Not timed: {', '.join(distinct(names))}: {sentence}" for sentence, names in refused.items()]
        return [(case, [v for v in variants if v.refusal(case.problem) is None]) for case in cases]
    passes = [p for p in distinct(variant.pass_name for variant in variants) if p != "backward"]
    return [(case, [v for p in passes for v in layer_rows.variants_on(case, p, device.kind)]) for case in cases]


def _has_goals(case: Case) -> bool:
    p = case.problem
    return (p.N, p.C, p.H, p.W, p.K, p.dtype) == (1, 1, goals.SIZE, goals.SIZE, 1, "float32") and case.image is None


def _variants(arguments: argparse.Namespace) -> tuple[Variant, ...]:
    """Return what the arguments ask for: of OpenCV's passes only, and a file beside the ladder."""
    variants = variants_of(arguments.target, arguments.pass_name)
    if arguments.against == "opencv":
        variants = tuple(variant for variant in variants if variant.pass_name == "forward")
        if not variants:
            raise InvalidArgument(f"--against opencv times forward, not {arguments.target}")
    return (*of_pass(variants[0].pass_name), *variants) if is_file(arguments.target) else variants


def _check_options(arguments: argparse.Namespace) -> None:
    known(arguments.against, ("torch", "opencv", "none"), "--against")
    if arguments.seconds is not None and not 0 < arguments.seconds < 3600:
        raise InvalidArgument(f"--seconds is {arguments.seconds}; it should be above 0 and below 3600")
    if arguments.goals and (arguments.against != "torch" or is_file(arguments.target)):
        raise InvalidArgument(
            "--goals compares the public functions with torch; it goes with no file and no other peer"
        )
    for option in ("problem", "image", "filter", "save"):
        if arguments.goals and getattr(arguments, option) is not None:
            raise InvalidArgument(f"--goals has a problem of its own; leave out --{option}")
    if arguments.save is not None and Path(arguments.save).exists() and not Path(arguments.save).is_dir():
        raise InvalidArgument(f"--save is {arguments.save}, which exists and is no directory")


def _peer(against: str, device: Device, notes: list[str]) -> str:
    """Make the peer ready and return its name, or "none"; a note says why torch is missing."""
    if against == "opencv":
        if device.kind != "cpu":
            raise InvalidArgument(f"--against opencv compares with the cpu device, not {device.name}; add --device cpu")
        opencv.use_threads(get_num_threads())
    if against == "torch":
        if why_not := peers.why_no_torch(device.kind):
            notes.append(why_not)
            return "none"
        peers.use_threads(get_num_threads())
    return against


def run(arguments: argparse.Namespace) -> int:
    """Check and time, print the table, and return 0 if every row is right."""
    _check_options(arguments)
    variants = _variants(arguments)
    cases = () if arguments.goals else cases_of(arguments)
    for case in cases:
        check_memory(case.problem)
    shield = Shielded()

    def command() -> int:
        device, choice = choice_of_device(arguments.device)
        notes: list[str] = []
        against = _peer(arguments.against, device, notes)
        if arguments.goals and (against != "torch" or device.kind != "cpu"):
            raise EnvironmentProblem(notes[0] if notes else f"--goals are the cpu device's, not {device.name}'s")
        work = _work(arguments, cases, variants, device, notes)
        seconds = arguments.seconds or min(_ONE_ROW, _ALL_ROWS / max(1, sum(len(rungs) for _, rungs in work)))
        facts = environment(device, against)
        out = console()
        if not arguments.json:
            say(out, choice, _one_line(facts))
        rows = time_all(work, Settings(device, against, seconds, arguments.json, shield, notes))
        met: list[goals.Result] = []
        if against == "torch" and device.kind == "cpu" and (arguments.goals or any(map(_has_goals, cases))):
            met = time_goals(distinct(v.pass_name for v in variants if v.file is None), arguments.seconds)
        layers = layer_rows.results_of(rows) if arguments.layers else []
        ok = arguments.goals or (any(row.ours for row in rows) and not any(row.faults for row in rows))
        if arguments.json:
            print_json({"device": device.name, "choice": choice, "environment": facts, "ok": ok, "notes": notes,
                        "rows": [row.as_json() for row in rows],
                        "goals": [result.as_json() for result in met],
                        "layers": [result.as_json() for result in layers]})  # fmt: skip
        else:
            if layers:
                layer_rows.print_results(layers, out)
            elif rows:
                print_rows(rows, out, arguments.against)
            say(out, *distinct(notes))
            if met:
                goals.print_goals(met, out)
        if arguments.save is not None:
            given = cases[0].arrays("forward", {})
            pictures = save_pictures(Path(arguments.save), given, cases[0].problem, device)
            if not arguments.json:
                say(out, "", *pictures)
        return 0 if ok else 1

    return shield.run(command) if is_file(arguments.target) else command()


# -- printing --------------------------------------------------------------------------------------------------------
def environment(device: Device, against: str) -> dict[str, Any]:
    """Return what the timings depend on."""
    facts: dict[str, Any] = {
        "machine": processor() if device.kind == "cpu" else device.title,  # type: ignore[attr-defined]
        "threads": get_num_threads(),
        "convbackprop": convbackprop.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if device.kind == "cpu":
        facts["compiler"] = compiler_version(find_cxx()).splitlines()[0]
    if against == "opencv":
        facts["opencv"] = opencv.import_opencv().__version__
    if against == "torch":
        torch = peers.import_torch()
        facts["torch"] = torch.__version__
        facts["torch_threads"] = torch.get_num_threads()
        facts["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY")
    return facts


def _one_line(facts: Mapping[str, Any]) -> str:
    text = f"{facts['machine']}, {facts['threads']} threads"
    text += f"; convbackprop {facts['convbackprop']}, python {facts['python']}, numpy {facts['numpy']}"
    text += f", {facts['compiler']}" if "compiler" in facts else ""
    text += f"; OpenCV {facts['opencv']}" if "opencv" in facts else ""
    if "torch" in facts:
        text += f"; torch {facts['torch']}, {facts['torch_threads']} threads, "
        text += f"OMP_WAIT_POLICY={facts['OMP_WAIT_POLICY']}"
    return text
