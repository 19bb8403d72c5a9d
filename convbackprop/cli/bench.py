"""Time variants beside other libraries and a copy of memory, each checked against the float64 reference first."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbackprop.bench import layer_goals, peers, runs
from convbackprop.bench.cases import Case
from convbackprop.bench.machine import Noise, environment, load, one_line, spread_of
from convbackprop.bench.measure import Settings, Shared, raise_roofs, time_beside_naive, time_pass
from convbackprop.bench.peers import Peer
from convbackprop.bench.photograph import save_pictures
from convbackprop.bench.rows import Row
from convbackprop.bench.suites import CPU_CUT, SUITES
from convbackprop.bench.timing import check_timeable
from convbackprop.bench.torch_calls import why_no_torch
from convbackprop.cli import goals
from convbackprop.cli.bench_table import print_rows
from convbackprop.cli.bench_work import Work, cases_of, check_options, ladder_of, suite_of, wanted_variants, work_of
from convbackprop.cli.common import (
    add_device,
    add_precision,
    add_target,
    check_memory,
    compile_ahead,
    console,
    distinct,
    is_file,
    print_json,
    progress,
    say,
)
from convbackprop.cli.shield import Shielded
from convbackprop.devices import Device, choice_of_device
from convbackprop.devices.cpu import get_num_threads
from convbackprop.errors import EnvironmentProblem
from convbackprop.ladder.variant import Variant
from convbackprop.problem import DTYPES

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

A FILE.cu is timed beside naive, what "auto" chooses, and torch; --ladder:
beside every variant of its pass.

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
  convbackprop bench mine.cu

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
    add_precision(parser)
    parser.add_argument("--against", metavar="PEERS", help=f"{', '.join(peers.PEERS)} (commas between), all that are "
                        "installed, or none; default: all, and beside FILE.cu torch")  # fmt: skip
    parser.add_argument("--ladder", action="store_true", help="beside FILE.cu time every variant of its pass, not only "
                        "naive and what auto chooses")  # fmt: skip
    parser.add_argument("--goals", action="store_true", help="the goals alone: the public functions beside torch")
    parser.add_argument("--seconds", type=float, metavar="S", help="time for each row; default: so that all rows take "
                        f"about {_ALL_ROWS:.0f} s")  # fmt: skip
    parser.add_argument("--save", metavar="NAME", help="keep the run: .convbackprop/runs/NAME.json, or a path that "
                        "ends in .json")  # fmt: skip
    parser.add_argument("--pictures", metavar="DIR", help="write the pictures of the layer there: input, sum, output "
                        "and input gradient as PNG, the kernel gradient as text")  # fmt: skip
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


# -- running ---------------------------------------------------------------------------------------------------------
def run(arguments: argparse.Namespace) -> int:
    """Check and time, print the table, and return 0 if every row is right."""
    check_options(arguments)
    saved = runs.free_path(arguments.save) if arguments.save is not None else None
    asked = peers.named(arguments.against or peers.ALL)
    variants = wanted_variants(arguments, asked)
    shield = Shielded()

    def command() -> int:
        device, choice = choice_of_device(arguments.device)
        check_timeable(device)
        cases = () if arguments.goals else cases_of(arguments, device.kind)
        for case in cases:
            check_memory(case.problem)
        found = _measure(arguments, asked, variants, cases, device, choice, shield)
        done, ok = found.run, found.ok
        if saved is not None:
            runs.save(done, saved)
        if arguments.json:
            print_json({"device": device.name, "choice": choice, "environment": done.environment,
                        "settings": done.settings, "noise": done.noise, "ok": ok, "notes": done.notes,
                        "saved": saved and str(saved), "rows": [row.as_json() for row in done.rows],
                        "goals": done.goals, "layers": done.layers})  # fmt: skip
        else:
            _print(found, f"saved as {saved}" if saved else None)
        if arguments.pictures is not None:
            given = cases[0].arrays("forward", {})
            pictures = save_pictures(Path(arguments.pictures), given, cases[0].problem, device)
            if not arguments.json:
                say(console(), "", *pictures)
        return 0 if ok else 1

    return shield.run(command) if is_file(arguments.target) else command()


@dataclass(frozen=True)
class _Found:
    """What a run gave, and whether every row is right."""

    run: runs.Run
    goals: Sequence[goals.Result]
    layers: Sequence[layer_goals.Result]
    noise: Noise
    ok: bool


def _measure(
    arguments: argparse.Namespace, asked: Sequence[Peer] | None, variants: Sequence[Variant], cases: Sequence[Case],
    device: Device, choice: str, shield: Shielded,
) -> _Found:  # fmt: skip
    """Time what was asked for; first say on what."""
    if arguments.goals and (reason := why_no_torch(device.kind)):
        raise EnvironmentProblem(reason)
    if arguments.goals and device.kind != "cpu":
        raise EnvironmentProblem(f"--goals are the cpu device's, not {device.name}'s")
    load_before, notes = load(), list[str]()
    unasked = ("torch",) if is_file(arguments.target) and arguments.against is None else ()
    asked = peers.named("torch") if arguments.goals else asked
    beside = peers.found(asked, device.kind, device.name, notes, unasked)
    for peer in beside:
        peer.prepare(get_num_threads())
    ladder = ladder_of(arguments)
    work = work_of(ladder, cases, variants, device, notes, arguments.ladder)
    seconds = arguments.seconds or min(_ONE_ROW, _ALL_ROWS / max(1, sum(len(rungs) for _, rungs in work)))
    facts = environment(device, beside)
    if not arguments.json:
        say(console(), choice, one_line(facts))

    how = Settings(device, beside, seconds, arguments.json, shield.doing)
    beside_naive = ladder is not None and ladder.beside_naive
    rows = _time_all(work, beside_naive, how)
    met: list[goals.Result] = []
    with_torch = any(peer.name == "torch" for peer in beside)
    with_goals = not is_file(arguments.target) and any(map(_has_goals, cases))
    if with_torch and device.kind == "cpu" and (arguments.goals or with_goals):
        met = _time_goals(distinct(v.pass_name for v in variants), arguments.seconds)
    layer_of = {str(case.problem): case.layer for case in cases if case.layer and beside_naive}
    layers = layer_goals.results_of(rows, layer_of)
    noise = Noise(load_before, max(how.loads, default=None), load(), spread_of(rows))
    done = runs.Run(
        name=arguments.save or "",
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        environment=facts,
        settings=_settings(arguments, beside, seconds),
        noise=noise.as_json(),
        notes=[*distinct([*notes, *how.notes]), *how.not_compared()],
        rows=rows,
        goals=[result.as_json() for result in met],
        layers=[result.as_json() for result in layers],
    )
    ok = arguments.goals or (any(row.ours for row in rows) and not any(row.faults for row in rows))
    return _Found(done, met, layers, noise, ok)


def _time_all(work: Work, beside_naive: bool, how: Settings) -> list[Row]:
    """Return a row for each variant on each of its problems."""
    rows: list[Row] = []
    with progress() as bar:
        device = how.device
        wanted = [(v, case.problem) for case, some in work for v in some if v.refusal(case.problem, device) is None]
        compile_ahead(wanted, device, device.kind, bar)
        task = bar.add_task("timing", total=sum(len(variants) for _, variants in work))
        for case, variants in work:
            shared = Shared()
            for pass_name in distinct(variant.pass_name for variant in variants):
                bar.update(task, description=f"{pass_name} on {case.label}", refresh=True)
                rungs = [variant for variant in variants if variant.pass_name == pass_name]
                rows += (time_beside_naive if beside_naive else time_pass)(case, rungs, shared, how)
                bar.advance(task, len(rungs))
                bar.refresh()
    raise_roofs(rows)
    return rows


def _has_goals(case: Case) -> bool:
    p = case.problem
    return (p.N, p.C, p.H, p.W, p.K, p.dtype) == (1, 1, goals.SIZE, goals.SIZE, 1, "float32") and case.image is None


def _time_goals(passes: Sequence[str], seconds: float | None) -> list[goals.Result]:
    """Return the goals of some passes with what was measured."""
    with progress() as bar:
        task = bar.add_task("goals", total=sum(goal.pass_name in passes for goal in goals.GOALS))
        results = []
        for result in goals.run_goals(passes, seconds):
            results.append(result)
            bar.update(task, advance=1, refresh=True)
    return results


def _settings(arguments: argparse.Namespace, beside: Sequence[Peer], seconds: float) -> dict[str, Any]:
    """Return what a run was asked for."""
    suite = suite_of(arguments)
    return {
        "target": arguments.target,
        "suite": "goals" if arguments.goals else suite and suite.name,
        "problems": arguments.problem,
        "image": arguments.image and Path(arguments.image).name,
        "filters": arguments.filter,
        "dtype": arguments.dtype,
        "precision": arguments.precision,
        "peers": [peer.name for peer in beside],
        "seconds_a_row": round(seconds, 4),
    }


def _print(found: _Found, saved: str | None) -> None:
    """Print the table, what is to be said of it, and the goals."""
    out = console()
    if found.run.rows:
        print_rows(found.run.rows, out)
    say(out, *found.run.notes, *(layer_goals.sentences(found.layers) if found.layers else ()))
    if found.goals:
        goals.print_goals(found.goals, out)
    for sentence in (found.noise.sentence, saved):
        if sentence:
            say(out, sentence)
