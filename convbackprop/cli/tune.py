"""Find out by measuring which variant and which constants are fastest here, and keep that for "auto"."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from convbackprop.arguments import known
from convbackprop.bench.layers import DEPTHWISE, WHOLE
from convbackprop.bench.suites import SUITES, case_of_layer
from convbackprop.cli.common import add_device, add_precision, check_memory, console, counted, print_json, say
from convbackprop.devices import Device, choice_of_device
from convbackprop.errors import InvalidArgument
from convbackprop.files import write_whole
from convbackprop.ladder.registry import UNTUNED, of_pass
from convbackprop.problem import DTYPES, PASSES, ConvProblem
from convbackprop.tune import table
from convbackprop.tune.session import tune
from convbackprop.tune.table import Entry

HELP = "find and keep what is fastest on this machine"
EPILOG = f"""\
For each pass of each problem: the rungs made for the device with their own
constants, then, step by step, other legal values of the best one's. What does
not compile, spills or is bounded above the best is left out; the others are
held against the float64 reference and timed in turn, on a GPU with cold caches.
What wins counts if it beats what the rule chooses when the two are timed in
turn once more. Problems: --problem, --suite, --model, else those that the goals
are set on.

What is found is kept in a file a model of device, in the user's data folder or
that which {table.VARIABLE} names ("off": none is read or written). From then
on variant="auto" takes it for problems of that kind whose sizes are at most
{table.NEAR} octaves off in all, the nearest first; 'list --problem' says which. The
order in which sums are formed may change with it: variant="untuned" ignores it.

--model FILE.pt2 (of torch.export.save) or module:function, which returns
(model, inputs): the layers that one forward and backward pass computes.

examples:
  convbackprop tune
  convbackprop tune --suite depthwise --minutes 10
  convbackprop tune forward --problem 16,64,56,56,64,3,3,padding=1
  convbackprop tune --model train:model --minutes 5
  convbackprop tune --show
  convbackprop tune --export lab.json
  convbackprop tune --import lab.json
  convbackprop tune --forget kernel_grad

JSON keys: device, title, file, minutes, mean (geometric, times the rule),
entries [pass, problem, variant ("{UNTUNED}": the rule's; "{table.SEPARATE}"), tunables,
us, rule_us, version, code, date, times_rule, stale]; stale: why it is ignored.
"""

#: Seconds of a search at least: less finds nothing.
_LEAST = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("target", nargs="?", metavar="PASS", help=f"{', '.join(PASSES)}; default: all")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--problem", action="append", metavar="TEXT", help="N,C,H,W,K,R,S and options, such as "
                      "1,64,56,56,64,3,3,padding=1,stride=2; may be given several times")  # fmt: skip
    what.add_argument("--suite", metavar="NAME", help=", ".join(SUITES))
    what.add_argument("--model", metavar="M", help="FILE.pt2 or module:function")
    what.add_argument("--show", action="store_true", help="what has been found on this device, and where it is kept")
    what.add_argument("--forget", action="store_true", help="remove what has been found, of PASS or all")
    what.add_argument("--export", metavar="FILE", help="write it to a file, for other machines with this device")
    what.add_argument("--import", dest="import_", metavar="FILE", help="add what such a file has, for its device")
    parser.add_argument("--dtype", default="float32", metavar="D", help=f"{', '.join(DTYPES)}; default: float32")
    add_precision(parser)
    parser.add_argument("--minutes", type=float, default=2.0, metavar="M", help="for all searches; default: 2")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


# -- what is tuned ---------------------------------------------------------------------------------------------------
def _goal_problems(dtype: str, device_kind: str) -> list[ConvProblem]:
    """Return the problems that the goals are set on: the layer of one channel, a whole layer and a depthwise one."""
    extent, filters = (1024, (5,)) if device_kind == "cpu" else (4096, (3, 5, 7, 15))
    single = [f"1,1,{extent},{extent},1,{size},{size},padding=same,activation=relu,bias=1" for size in filters]
    layers = [case_of_layer(layer, dtype, device_kind).problem for layer in (WHOLE, DEPTHWISE[0])]
    return [*(ConvProblem.parse(text, dtype=dtype) for text in single), *layers]


def _jobs(arguments: argparse.Namespace, device: Device) -> list[tuple[str, ConvProblem]]:
    """Return the passes to tune, each with its problem; a class once."""
    dtype = arguments.dtype
    passes = tuple(PASSES) if arguments.target is None else (arguments.target,)
    if arguments.model is not None:
        from convbackprop.tune.model import jobs_of_model

        jobs = jobs_of_model(arguments.model)
    else:
        if arguments.problem:
            problems = [ConvProblem.parse(text, **{"dtype": dtype, "bias": True, "activation": "relu"})
                        for text in arguments.problem]  # fmt: skip
        elif arguments.suite:
            suite = SUITES[arguments.suite]
            problems = [case.problem for case in suite.cases(suite.filters, dtype, device.kind)]
            passes = tuple(name for name in passes if name in suite.passes)
        else:
            problems = _goal_problems(dtype, device.kind)
        if arguments.precision != "ieee":
            problems = [problem.with_(precision=arguments.precision) for problem in problems]
        jobs = [(name, problem) for problem in problems for name in passes]
    able: dict[table.Class, tuple[str, ConvProblem]] = {}
    for name, problem in jobs:
        if name in passes and any(rung.refusal(problem, device) is None for rung in of_pass(name)):
            able.setdefault(table.class_of(name, problem), (name, problem))
    return list(able.values())


# -- tuning ----------------------------------------------------------------------------------------------------------
def _tuned(jobs: Sequence[tuple[str, ConvProblem]], device: Device, seconds: float) -> Iterator[Entry]:
    """Tune one after another in so many seconds, with a progress bar and the best so far."""
    err = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    end = time.perf_counter() + seconds
    with Progress(*columns, console=err, disable=not err.is_terminal, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=len(jobs))
        for i, (pass_name, problem) in enumerate(jobs):
            share = max(_LEAST, (end - time.perf_counter()) / (len(jobs) - i))
            entry = tune(pass_name, problem, device, share,
                         lambda what: bar.update(task, description=what, refresh=True))  # fmt: skip
            bar.update(task, advance=1, refresh=True)
            if entry is not None:
                yield entry


def _tune(arguments: argparse.Namespace, device: Device, choice: str) -> int:
    path = table.file_of(device.title)
    jobs = _jobs(arguments, device)
    for _, problem in jobs:
        check_memory(problem)
    if not arguments.json:
        say(
            console(),
            choice,
            f"{device.title}: {counted(len(jobs), 'problem')} to tune in {arguments.minutes:g} minutes",
        )
    entries = list(_tuned(jobs, device, 60 * arguments.minutes))
    return _print(arguments, device, path, entries)


# -- what is kept ----------------------------------------------------------------------------------------------------
def _mean(entries: Sequence[Entry]) -> float | None:
    """Return the geometric mean of how many times as fast as the rule's the choices are."""
    return math.exp(sum(math.log(entry.times_rule) for entry in entries) / len(entries)) if entries else None


def _print(arguments: argparse.Namespace, device: Device, path: Path, entries: Sequence[Entry]) -> int:
    """Print entries, where they are kept, and return 0."""
    if arguments.json:
        found = [{**entry.as_json(), "times_rule": entry.times_rule, "stale": entry.stale} for entry in entries]
        print_json({"device": device.name, "title": device.title, "file": str(path), "minutes": arguments.minutes,
                    "mean": _mean(entries), "entries": found})  # fmt: skip
        return 0
    out = console()
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("pass", "problem", "fastest"):
        shown.add_column(name, overflow="fold")
    for name in ("us", "the rule's us", "times as fast"):
        shown.add_column(name, justify="right")
    shown.add_column("measured")
    for entry in entries:
        times = f"{entry.times_rule:.2f}" if entry.variant != UNTUNED else "-"
        shown.add_row(entry.pass_name, str(entry.problem), entry.choice, f"{entry.us:,.1f}", f"{entry.rule_us:,.1f}",
                      times, entry.stale or entry.date[:10])  # fmt: skip
    out.print(shown)
    if entries:
        say(out, f"{_mean(entries):.2f} times as fast as the rule's choices (geometric mean)")
    say(out, f"kept in {path}")
    return 0


def _kept(device: Device) -> tuple[Path, list[Entry]]:
    """Return the file of a device and what it has; raises InvalidArgument where there is none."""
    path = table.file_of(device.title)
    if not path.exists():
        raise InvalidArgument(f"nothing has been tuned on {device.title}; 'convbackprop tune' does, and writes {path}")
    return path, table.read(path)[1]


def _forget(arguments: argparse.Namespace, device: Device) -> int:
    path, entries = _kept(device)
    passes = frozenset(PASSES if arguments.target is None else [arguments.target])
    table.update(device.title, [], passes)
    gone = sum(entry.pass_name in passes for entry in entries)
    say(console(), f"{counted(gone, 'choice')} removed from {path}")
    return 0


def _export(arguments: argparse.Namespace, device: Device) -> int:
    _, entries = _kept(device)
    write_whole(Path(arguments.export), table.text_of(device.title, entries))
    say(console(), f"{counted(len(entries), 'choice')} for {device.title} written to {arguments.export}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    title, entries = table.read(Path(arguments.import_))
    path = table.update(title, entries)
    stale = [entry.stale for entry in entries if entry.stale]
    say(console(), f"{counted(len(entries), 'choice')} for {title} added to {path}")
    if stale:
        say(console(), f"{len(stale)} of them are ignored here: {stale[0]}")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Tune, or show or change what is kept, and return 0."""
    if arguments.target is not None:
        known(arguments.target, tuple(PASSES), "PASS")
    if arguments.suite is not None:
        known(arguments.suite, tuple(SUITES), "--suite")
    known(arguments.dtype, tuple(DTYPES), "--dtype")
    if not 0 < arguments.minutes < math.inf:
        raise InvalidArgument(f"--minutes is {arguments.minutes}; it should be above 0")
    if arguments.import_ is not None:
        return _import(arguments)
    device, choice = choice_of_device(arguments.device)
    if arguments.show:
        path, entries = _kept(device)
        return _print(arguments, device, path, entries)
    if arguments.forget:
        return _forget(arguments, device)
    if arguments.export is not None:
        return _export(arguments, device)
    return _tune(arguments, device, choice)
