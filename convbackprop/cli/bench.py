"""Time variants beside other libraries and a copy of memory, each checked against the float64 reference first."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convbackprop.bench import layer_goals, peers, runs
from convbackprop.bench.cases import Case, case_on_image
from convbackprop.bench.machine import Noise, environment, load, one_line, spread_of
from convbackprop.bench.measure import Settings, Shared, time_beside_naive, time_pass
from convbackprop.bench.peers import Peer
from convbackprop.bench.rows import Row
from convbackprop.bench.suites import CPU_CUT, SUITES, Suite
from convbackprop.cli import goals
from convbackprop.cli.bench_table import print_rows
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
    variants_of,
)
from convbackprop.devices import Device, choice_of_device
from convbackprop.devices.cpu import get_num_threads
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.peers import why_no_torch
from convbackprop.photograph import read_image, save_pictures
from convbackprop.problem import DTYPES, ConvProblem, known
from convbackprop.variants import Variant, of_pass

HELP = "time variants beside torch and others"
EPILOG = f"""\
suites (--suite):
{chr(10).join(f"  {suite.name:10} {suite.reason}" for suite in SUITES.values())}

The suite lab is the default: a layer of one channel (ReLU, bias, padding that
keeps the size) on a photograph of 512 x 512 and on 1024 x 1024 random numbers,
with filters 3, 5 and 7. The filter is random, divided by its height; on a
photograph it sums to 0 and the bias is 0.01, so that some ReLUs are open and
some are shut. Of layers of many channels (resnet, deepbench), what "auto"
chooses is timed, and a single run of naive beside it: minutes. On a CPU the
batches of layers are divided by {CPU_CUT}, and each label says so.

Each row is checked before it is timed; a row that is wrong gets no time. A
--problem has a bias and a ReLU unless its text says otherwise (bias=0,
activation=identity).

Peers (--against): {", ".join(peers.PEERS)}; all that are installed and
run on the device, unless told. cupy is for GPUs.

The suite lab ends with the goals (--goals: these alone): the public functions
on torch tensors, 1024 x 1024 with filter 5, beside what torch's users call. A
goal that is not met fails no run: it is of the machine that it was set on.

--save NAME keeps the run, all repetitions included, in .convbackprop/runs, for
'convbackprop compare', 'plot' and 'report'.

examples:
  convbackprop bench
  convbackprop bench --goals
  convbackprop bench --suite depthwise --save before
  convbackprop bench --suite deepbench
  convbackprop bench kernel_grad --filter 3 --dtype float16
  convbackprop bench forward/naive --problem 1,64,56,56,64,3,3,padding=1
  convbackprop bench --against torch,opencv
  convbackprop bench --image photo.jpg --pictures folder
  convbackprop bench mine.cu --pass forward

JSON keys: device, choice, environment {{...}}, settings {{...}}, noise {{...}},
ok, notes, saved, rows [variant, problem, label, ok, refused, faults, error,
median_ms, p20_ms, p80_ms, repetitions, least_bytes, flops, gb_per_s,
gflop_per_s, copy_gb_per_s, share_of_copy, peak_gflop_per_s, floor_ms, floor_is,
share_of_floor, peers {{name: {{median_ms, ratio}}}}, public_ms], goals [pass,
function, peer, goal, ratio, met, ours_ms, peer_ms], layers [layer, batch,
problem, variant, gflop_per_s, times_torch, times_naive, misses]; public_ms
times the public function, from numpy arrays to new numpy arrays.
"""

#: The timings of all rows together take about this long (seconds), and one row no longer than the second number.
_ALL_ROWS, _ONE_ROW = 30.0, 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_target(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--suite", metavar="NAME", help=f"{', '.join(SUITES)}; default: lab")
    what.add_argument("--problem", action="append", metavar="TEXT", help="N,C,H,W,K,R,S and options, such as "
                      "1,64,56,56,64,3,3,padding=1,stride=2; may be given several times")  # fmt: skip
    what.add_argument("--image", metavar="FILE", help="the layer of one channel on this image, made grey")
    parser.add_argument("--filter", nargs="+", metavar="R", help="heights (and widths) of the filter; default: 3 5 7")
    parser.add_argument("--dtype", default="float32", metavar="D", help=", ".join(DTYPES) + "; default: float32")
    parser.add_argument("--against", default=peers.ALL, metavar="PEERS", help=f"{', '.join(peers.PEERS)} (commas "
                        "between), all that are installed (the default), or none")  # fmt: skip
    parser.add_argument("--goals", action="store_true", help="the goals alone: the public functions beside torch")
    parser.add_argument("--seconds", type=float, metavar="S", help="time for each row; default: so that all rows take "
                        f"about {_ALL_ROWS:.0f} s")  # fmt: skip
    parser.add_argument("--save", metavar="NAME", help="keep the run: .convbackprop/runs/NAME.json, or a path that "
                        "ends in .json")  # fmt: skip
    parser.add_argument("--pictures", metavar="DIR", help="write the pictures of the layer there: input, sum, output "
                        "and input gradient as PNG, the kernel gradient as text")  # fmt: skip
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


# -- what is timed ---------------------------------------------------------------------------------------------------
def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything runs."""
    peers.named(arguments.against)
    known(arguments.dtype, tuple(DTYPES), "--dtype")
    _filters(arguments, ())
    if arguments.seconds is not None and not 0 < arguments.seconds < 3600:
        raise InvalidArgument(f"--seconds is {arguments.seconds}; it should be above 0 and below 3600")
    if arguments.goals and (arguments.against not in (peers.ALL, "torch") or is_file(arguments.target)):
        raise InvalidArgument(
            "--goals compares the public functions with torch; it goes with no file and no other peer"
        )
    for option in ("suite", "problem", "image", "filter", "pictures"):
        if arguments.goals and getattr(arguments, option) is not None:
            raise InvalidArgument(f"--goals has a problem of its own; leave out --{option}")
    suite = known(arguments.suite, tuple(SUITES), "--suite") if arguments.suite else None
    for option, value in (("--filter", arguments.filter), ("--pictures", arguments.pictures)):
        if arguments.problem and value is not None:
            raise InvalidArgument(f"{option} goes with an image, but --problem is given")
        if suite and not SUITES[suite].filters and value is not None:
            raise InvalidArgument(f"--suite {suite} has problems of its own; leave out {option}")
    if arguments.pictures is not None and Path(arguments.pictures).exists() and not Path(arguments.pictures).is_dir():
        raise InvalidArgument(f"--pictures is {arguments.pictures}, which exists and is no directory")
    if arguments.save is not None:
        runs.free_path(arguments.save)


def _filters(arguments: argparse.Namespace, default: Sequence[int]) -> tuple[int, ...]:
    for word in arguments.filter or ():
        if not word.isdecimal() or int(word) < 1:
            raise InvalidArgument(f"--filter is {word!r}; it should be an integer of at least 1")
    return distinct(int(word) for word in arguments.filter) if arguments.filter else tuple(default)


def _suite_of(arguments: argparse.Namespace) -> Suite | None:
    """Return the suite that is timed, if it is one."""
    return None if arguments.problem or arguments.image else SUITES[arguments.suite or "lab"]


def cases_of(arguments: argparse.Namespace, device_kind: str) -> tuple[Case, ...]:
    """Return what the arguments ask for."""
    if suite := _suite_of(arguments):
        return tuple(suite.cases(_filters(arguments, suite.filters), arguments.dtype, device_kind))
    if arguments.problem:
        problems = [
            ConvProblem.parse(t, bias=True, activation="relu", dtype=arguments.dtype) for t in arguments.problem
        ]
        if empty := [problem for problem in problems if problem.N == 0]:
            raise InvalidArgument(f"problem is {empty[0]}; it has no image, so there is nothing to time")
        return distinct(Case(text, problem) for text, problem in zip(arguments.problem, problems, strict=True))
    image = read_image(arguments.image)
    return tuple(case_on_image(image, 0, size, arguments.dtype) for size in _filters(arguments, (3, 5, 7)))


def _variants(arguments: argparse.Namespace, asked: Sequence[Peer] | None) -> tuple[Variant, ...]:
    """Return what the arguments ask for: of passes that a named peer computes, and a file beside the ladder."""
    variants = variants_of(arguments.target, arguments.pass_name)
    if asked:
        passes = distinct(pass_name for peer in asked for pass_name in peer.passes)
        variants = tuple(variant for variant in variants if variant.pass_name in passes)
        if not variants:
            raise InvalidArgument(f"--against {arguments.against} times {' and '.join(passes)}, not {arguments.target}")
    return (*of_pass(variants[0].pass_name), *variants) if is_file(arguments.target) else variants


Work = list[tuple[Case, Sequence[Variant]]]


def _ladder_of(arguments: argparse.Namespace) -> Suite | None:
    """Return the suite that says which rungs are timed; None where they were asked for by name, or there is none."""
    named = "/" in (arguments.target or "") or is_file(arguments.target)
    return None if named else _suite_of(arguments)


def _work(ladder: Suite | None, cases: Sequence[Case], variants: Sequence[Variant], device: Device,
          notes: list[str]) -> Work:  # fmt: skip
    """Return each case with what is timed on it; of a suite only what does not refuse it, and a note says so."""
    if ladder is None:
        return [(case, variants) for case in cases]
    if not ladder.beside_naive:
        refused: dict[str, list[str]] = {}
        for variant, case in itertools.product(variants, cases):
            if sentence := variant.refusal(case.problem):
                refused.setdefault(sentence, []).append(str(variant))
        notes += [f"Not timed: {', '.join(distinct(names))}: {sentence}" for sentence, names in refused.items()]
    return [(case, ladder.rungs(variants, case, device.kind)) for case in cases]


# -- running ---------------------------------------------------------------------------------------------------------
def time_all(work: Work, beside_naive: bool, how: Settings) -> list[Row]:
    """Return a row for each variant on each of its problems."""
    rows: list[Row] = []
    with progress() as bar:
        wanted = [(v, case.problem) for case, variants in work for v in variants if v.refusal(case.problem) is None]
        compile_ahead(wanted, how.device, how.device.kind, bar)
        task = bar.add_task("timing", total=sum(len(variants) for _, variants in work))
        for case, variants in work:
            shared = Shared()
            for pass_name in distinct(variant.pass_name for variant in variants):
                bar.update(task, description=f"{pass_name} on {case.label}", refresh=True)
                rungs = [variant for variant in variants if variant.pass_name == pass_name]
                rows += (time_beside_naive if beside_naive else time_pass)(case, rungs, shared, how)
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


def _has_goals(case: Case) -> bool:
    p = case.problem
    return (p.N, p.C, p.H, p.W, p.K, p.dtype) == (1, 1, goals.SIZE, goals.SIZE, 1, "float32") and case.image is None


def run(arguments: argparse.Namespace) -> int:
    """Check and time, print the table, and return 0 if every row is right."""
    _check_options(arguments)
    asked = peers.named(arguments.against)
    variants = _variants(arguments, asked)
    shield = Shielded()

    def command() -> int:
        return _run(arguments, asked, variants, shield)

    return shield.run(command) if is_file(arguments.target) else command()


def _run(
    arguments: argparse.Namespace, asked: Sequence[Peer] | None, variants: Sequence[Variant], shield: Shielded
) -> int:
    device, choice = choice_of_device(arguments.device)
    cases = () if arguments.goals else cases_of(arguments, device.kind)
    for case in cases:
        check_memory(case.problem)
    if arguments.goals and (reason := why_no_torch(device.kind)):
        raise EnvironmentProblem(reason)
    if arguments.goals and device.kind != "cpu":
        raise EnvironmentProblem(f"--goals are the cpu device's, not {device.name}'s")
    load_before, notes = load(), list[str]()
    beside = peers.found(peers.named("torch") if arguments.goals else asked, device.kind, device.name, notes)
    for peer in beside:
        peer.prepare(get_num_threads())
    ladder = _ladder_of(arguments)
    work = _work(ladder, cases, variants, device, notes)
    seconds = arguments.seconds or min(_ONE_ROW, _ALL_ROWS / max(1, sum(len(rungs) for _, rungs in work)))
    facts, out = environment(device, beside), console()
    if not arguments.json:
        say(out, choice, one_line(facts))

    how = Settings(device, beside, seconds, arguments.json, shield.doing, notes)
    rows = time_all(work, ladder is not None and ladder.beside_naive, how)
    met: list[goals.Result] = []
    with_torch = any(peer.name == "torch" for peer in beside)
    if with_torch and device.kind == "cpu" and (arguments.goals or any(map(_has_goals, cases))):
        met = time_goals(distinct(v.pass_name for v in variants if v.file is None), arguments.seconds)
    layers: list[layer_goals.Result] = []
    if ladder is not None and ladder.beside_naive:
        layers = layer_goals.results_of(rows, {str(case.problem): case.layer for case in cases if case.layer})
    noise = Noise(load_before, max(how.loads, default=None), load(), spread_of(rows))
    done = runs.Run(
        name=arguments.save or "",
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        environment=facts,
        settings=_settings(arguments, beside, seconds),
        noise=noise.as_json(),
        notes=[*distinct(notes), *how.not_compared()],
        rows=rows,
        goals=[result.as_json() for result in met],
        layers=[result.as_json() for result in layers],
    )

    ok = arguments.goals or (any(row.ours for row in rows) and not any(row.faults for row in rows))
    saved = runs.free_path(arguments.save) if arguments.save is not None else None
    if saved is not None:
        runs.save(done, saved)
    if arguments.json:
        print_json({"device": device.name, "choice": choice, "environment": facts, "settings": done.settings,
                    "noise": done.noise, "ok": ok, "notes": done.notes, "saved": saved and str(saved),
                    "rows": [row.as_json() for row in rows], "goals": done.goals, "layers": done.layers})  # fmt: skip
    else:
        if rows:
            print_rows(rows, out)
        say(out, *done.notes, *(layer_goals.sentences(layers) if layers else ()))
        if met:
            goals.print_goals(met, out)
        say(out, *([noise.sentence] if noise.sentence else []), *([f"saved as {saved}"] if saved else []))
    if arguments.pictures is not None:
        pictures = save_pictures(Path(arguments.pictures), cases[0].arrays("forward", {}), cases[0].problem, device)
        if not arguments.json:
            say(out, "", *pictures)
    return 0 if ok else 1


def _settings(arguments: argparse.Namespace, beside: Sequence[Peer], seconds: float) -> dict[str, Any]:
    """Return what a run was asked for."""
    suite = _suite_of(arguments)
    return {
        "target": arguments.target,
        "suite": "goals" if arguments.goals else suite and suite.name,
        "problems": arguments.problem,
        "image": arguments.image and Path(arguments.image).name,
        "filters": arguments.filter,
        "dtype": arguments.dtype,
        "peers": [peer.name for peer in beside],
        "seconds_a_row": round(seconds, 4),
    }
