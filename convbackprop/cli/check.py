"""Hold variants against the float64 reference, element by element, on problems that are each there for a reason."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from rich.table import Table
from rich.text import Text

from convbackprop.activations import ACTIVATIONS, COMMON, activation_name
from convbackprop.arguments import known
from convbackprop.check import BUDGET, DATA, GUARD, Outcome, check, inputs, within_budget
from convbackprop.check.curated import CURATED
from convbackprop.check.reference import answer
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
    variants_of,
)
from convbackprop.cli.shield import Shielded
from convbackprop.devices import Device, choice_of_device
from convbackprop.devices.gpus import Target
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import target_of
from convbackprop.problem import DTYPES, ConvProblem

HELP = "hold variants against the float64 reference"
EPILOG = """\
Without --problem these are the curated problems: each with the activations
identity and relu (also with the bit mask) in every dtype, and with logistic and
tanh on a quarter of the problems, another quarter for each dtype; --activation
all checks each activation on all. A variant whose compile-time constants follow
from the sizes is compiled for 10 sets of them, whose problems differ most; the
others are left out, unless there is --all.

What is checked with normal numbers is checked once more with a few NaN and
infinities among them: the padding is no pixel, and a tap over it adds nothing
to a sum, also a NaN or infinite one.

"error" is the largest error as a share of the bound that any order of summation
obeys: at most 1 is right. Inputs lie between guard zones of NaN, and results
are NaN until they are written.

examples:
  convbackprop check
  convbackprop check forward/coalesced --all
  convbackprop check kernel_grad/naive --dtype float16 --activation all
  convbackprop check forward --problem 2,3,32,32,8,3,3,stride=2,padding=1
  convbackprop check mine.cu

JSON keys: device, ok, checks, refused, left_out, rows [variant, dtype, checks,
refused, left_out, error, problem, ok], faults [variant, problem, data,
sentences]
"""

#: Faults that are printed for each row of the table; JSON has all.
_SHOWN = 3

#: Of the curated problems, one in so many is checked with an activation that is not of the first ones.
_ONE_IN = 4
_EVERYWHERE = ("identity", "relu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_target(parser)
    parser.add_argument("--problem", action="append", metavar="TEXT",
                        help="N,C,H,W,K,R,S and options, such as 2,3,32,32,8,3,3,stride=2,padding=1x2,dilation=2,"
                        "groups=1,bias=0,activation=tanh,mask=1; may be given several times")  # fmt: skip
    parser.add_argument("--dtype", default="all", metavar="D", help=f"all (the default), {', '.join(DTYPES)}")
    add_precision(parser)
    parser.add_argument("--activation", metavar="A", help=f"all, {', '.join(ACTIVATIONS)}")
    parser.add_argument(
        "--data",
        metavar="KIND",
        help=f"{', '.join(DATA)}; default: each problem's own, and beside normal also nonfinite",
    )
    parser.add_argument("--tunables", metavar="DEVICE", help="take the tunable constants of cpu or cuda; default: "
                        "those of the device")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random numbers; default: 0")
    parser.add_argument("--offset", type=int, default=0, metavar="N", help="arrays begin N elements after an address "
                        "that suits the widest loads; default: 0")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="every curated problem, however many compilations it takes")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass(frozen=True)
class _Task:
    """A problem with its data."""

    problem: ConvProblem
    data: str


@dataclass
class _Row:
    """What is known of a variant in a dtype."""

    variant: Variant
    dtype: str
    checks: int = 0
    refused: int = 0
    left_out: int = 0
    error: float = 0.0
    problem: ConvProblem | None = None
    failed: list[Outcome] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.checks += 1
        # The problem is the first that failed, or as long as none has, the one with the largest error.
        if self.problem is None or (not self.failed and (outcome.share > self.error or not outcome.ok)):
            self.problem = outcome.problem
        self.error = max(self.error, outcome.share)
        if not outcome.ok:
            self.failed.append(outcome)

    def as_json(self) -> dict[str, Any]:
        return {
            "variant": self.variant.title, "dtype": self.dtype, "checks": self.checks, "refused": self.refused,
            "left_out": self.left_out, "error": self.error,
            "problem": None if self.problem is None else str(self.problem), "ok": not self.failed,
        }  # fmt: skip


_Pair = tuple[Variant, ConvProblem]


# -- what is checked -------------------------------------------------------------------------------------------------
def _problems(text: str, dtype: str, precision: str, activations: Sequence[str]) -> tuple[ConvProblem, ...]:
    """Return a problem in all its forms: what its text leaves open takes each value."""
    named = set(re.findall(r"(\w+)=", text))
    defaults = {"bias": True, "dtype": dtype, "precision": precision, "activation": "relu"}
    first = ConvProblem.parse(text, **defaults)
    if "activation" in named or first.mask:
        activations = (first.activation,)
    forms = [first.with_(activation=activation) for activation in activations]
    if "mask" not in named and not first.transposed:
        forms += [form.with_(mask=True) for form in forms if form.activation == "relu"]
    return tuple(forms)


def _data(usual: str, wanted: str | None) -> tuple[str, ...]:
    """Return the kinds of data that a problem is checked with; what is long is checked with its usual ones only."""
    if wanted is not None:
        return (wanted,)
    return ("normal", "nonfinite") if usual == "normal" else (usual,)


def tasks(arguments: argparse.Namespace) -> tuple[_Task, ...]:
    """Return the problems that the arguments ask for, each with its data."""
    dtypes = tuple(DTYPES) if arguments.dtype == "all" else (known(arguments.dtype, tuple(DTYPES), "--dtype"),)
    wanted: tuple[str, ...] = COMMON
    if arguments.activation is not None:
        every = arguments.activation == "all"
        wanted = tuple(ACTIVATIONS) if every else (activation_name(arguments.activation),)
    if arguments.data is not None:
        known(arguments.data, DATA, "--data")
    found = []
    if arguments.problem:
        for text in arguments.problem:
            for dtype, data in product(dtypes, _data("normal", arguments.data)):
                found += [_Task(problem, data) for problem in _problems(text, dtype, arguments.precision, wanted)]
        return distinct(found)
    for i, curated in enumerate(CURATED):
        for d, dtype in enumerate(dtypes):
            some = arguments.activation is None and (i + d) % _ONE_IN != 0
            activations = _EVERYWHERE if some else wanted
            for data in _data(curated.data, arguments.data):
                forms = _problems(curated.text, dtype, arguments.precision, activations)
                found += [_Task(problem, data) for problem in forms]
    return distinct(found)


# -- running ---------------------------------------------------------------------------------------------------------
def _chosen(
    variants: Sequence[Variant], work: Sequence[_Task], device: Device, target: Target, whole: bool
) -> set[_Pair]:
    """Return what is to be run: all that is not refused, or of it what the budget of compilations allows."""
    problems = distinct(task.problem for task in work)
    if whole:
        return {(v, problem) for v in variants for problem in problems if v.refusal(problem, device) is None}
    there = [v for v in variants if device.kind in v.runs_on]
    return {(v, problem) for v in there for problem in within_budget(v, problems, target)}


def _check_all(
    variants: Sequence[Variant], work: Sequence[_Task], device: Device, tunables: str | None, whole: bool,
    shield: Shielded, seed: int, offset: int,
) -> list[_Row]:  # fmt: skip
    for task in work:
        check_memory(task.problem)
    rows = {(variant, task.problem.dtype): _Row(variant, task.problem.dtype) for variant in variants for task in work}
    target = target_of(device, tunables)
    chosen = _chosen(variants, work, device, target, whole)
    with progress() as bar:
        compile_ahead(chosen, device, target, bar)
        checking = bar.add_task("checking", total=len(variants) * len(work))
        for task in work:
            for pass_name in distinct(variant.pass_name for variant in variants):
                given = expected = None  # the same for all variants of the pass
                for variant in (v for v in variants if v.pass_name == pass_name):
                    row = rows[variant, task.problem.dtype]
                    shield.doing(f"{variant.title} on {task.problem}")
                    if sentence := variant.refusal(task.problem, device):
                        row.refused += 1
                        row.reasons.append(sentence)
                    elif (variant, task.problem) not in chosen:
                        row.left_out += 1
                    else:
                        given = given or inputs(pass_name, task.problem, task.data, seed)
                        expected = expected or answer(pass_name, task.problem, given)
                        row.add(check(variant, task.problem, device, task.data, tunables=tunables, given=given,
                                      expected=expected, offset=offset))  # fmt: skip
                    bar.advance(checking)
            bar.refresh()
    return sorted(rows.values(), key=lambda row: (variants.index(row.variant), list(DTYPES).index(row.dtype)))


def run(arguments: argparse.Namespace) -> int:
    """Check, print the table, and return 0 if every result is right."""
    variants = variants_of(arguments.target, arguments.pass_name)
    work = tasks(arguments)
    if arguments.tunables is not None:
        known(arguments.tunables, ("cpu", "cuda"), "--tunables")
    for name, most in (("seed", 2**63), ("offset", GUARD)):
        if not 0 <= (value := getattr(arguments, name)) <= most:
            raise InvalidArgument(f"--{name} is {value}; it should be between 0 and {most}")
    shield = Shielded()

    def command() -> int:
        device, choice = choice_of_device(arguments.device)
        whole = arguments.all or bool(arguments.problem) or is_file(arguments.target)
        rows = _check_all(variants, work, device, arguments.tunables, whole, shield, arguments.seed, arguments.offset)
        (_print_json if arguments.json else _print_table)(rows, device, choice)
        return int(any(row.failed for row in rows) or not any(row.checks for row in rows))

    return shield.run(command) if is_file(arguments.target) else command()


# -- printing --------------------------------------------------------------------------------------------------------
def _print_json(rows: Sequence[_Row], device: Device, choice: str) -> None:
    print_json({
        "device": device.name,
        "ok": not any(row.failed for row in rows) and any(row.checks for row in rows),
        "checks": sum(row.checks for row in rows),
        "refused": sum(row.refused for row in rows),
        "left_out": sum(row.left_out for row in rows),
        "rows": [row.as_json() for row in rows],
        "faults": [
            {"variant": row.variant.title, "problem": str(o.problem), "data": o.data, "sentences": o.faults}
            for row in rows
            for o in row.failed
        ],
    })  # fmt: skip


def _print_table(rows: Sequence[_Row], device: Device, choice: str) -> None:
    out = console()
    say(out, choice)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("pass/variant", "dtype", "checks", "refused", "left out", "error"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("pass/variant", "dtype") else "right")
    table.add_column("on problem", overflow="fold")
    table.add_column("")
    for row in rows:
        verdict = Text("FAILED", "red") if row.failed else Text("ok", "green") if row.checks else Text("refused")
        table.add_row(row.variant.title, row.dtype, f"{row.checks:,}", f"{row.refused:,}", f"{row.left_out:,}",
                      f"{row.error:.2f}" if row.checks else "-", str(row.problem or "-"), verdict)  # fmt: skip
    out.print(table)
    for row in rows:
        for outcome in row.failed[:_SHOWN]:
            say(out, f"\n{row.variant.title} on {outcome.problem} ({outcome.data} data):")
            for fault in outcome.faults:
                say(out, f"  {fault}")
        if len(row.failed) > _SHOWN:
            out.print(f"  ... and {len(row.failed) - _SHOWN} more problems of {row.dtype}")
    checks, failed, refused, left_out = (
        sum(counts) for counts in zip(*((r.checks, len(r.failed), r.refused, r.left_out) for r in rows), strict=True)
    )
    out.print(f"\n{checks:,} checks, {failed:,} failed, {refused:,} refused by the variant")
    if left_out:
        say(out, f"{left_out:,} left out: variants that are compiled for the problem's sizes are checked with {BUDGET} "
            "sets of constants each; --all checks everything")  # fmt: skip
    if not checks:
        say(out, "nothing was checked: " + "; ".join(distinct(reason for row in rows for reason in row.reasons)))
