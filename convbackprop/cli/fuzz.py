"""Try random problems, arrays and arguments until the time is over, and make what fails as small as it gets."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from convbackprop.arguments import known
from convbackprop.cli.common import (
    add_device,
    add_target,
    console,
    counted,
    is_file,
    print_json,
    progress,
    say,
    variants_of,
)
from convbackprop.cli.shield import Shielded
from convbackprop.devices import Device, choice_of_device, get_device, usable_devices
from convbackprop.errors import InvalidArgument, UnsupportedProblem
from convbackprop.files import check_writable, write_whole
from convbackprop.fuzz.cases import Case, Lawful
from convbackprop.fuzz.crashes import shrink
from convbackprop.fuzz.laws import LAWS, Subject, applies
from convbackprop.fuzz.problems import hypothesis
from convbackprop.fuzz.rounds import PARTS, Failure, Findings, Fuzzer
from convbackprop.problem import ConvProblem

#: How long a smaller problem is looked for after a crash.
_SHRINK_SECONDS = 60

HELP = "random problems and arguments until the time is over"
EPILOG = """\
"reference" holds a variant against the float64 reference, as `check` does, with
arrays that need not be aligned. The laws need no reference, so they take large
images: "linear", "shift" (by whole strides), "flip" (half a turn), "adjoint"
(<conv(x), dy> = <x, dx> = <w, dw>), "agree" (with another variant), "devices"
(the CPU and the GPU agree), "batch" (an image's result does not depend on its
neighbours), "workers" (nor on how many there are), "layout" (nor on how arrays
lie in memory). "arguments" calls the public functions with what they do not
expect: a sentence must come of it.

What is known at compile time is drawn once a round, since compiling takes
longer than computing; without --device every device has its rounds. A case that
fails is made smaller, printed as the command that repeats it, and kept in
--failures; its variant is left alone from then on. So is a case that ends in a
crash, which ends the run.

examples:
  convbackprop fuzz
  convbackprop fuzz kernel_grad --minutes 1
  convbackprop fuzz mine.cu --minutes 1
  convbackprop fuzz --only arguments --seed 1

JSON keys: devices, seed, seconds, ok, rounds, cases, parts [part, cases,
seconds, failures], failures [part, command, sentences]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_target(parser)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long; default: 10")
    parser.add_argument("--seed", type=int, metavar="S", help="of the random numbers; default: another one every time")
    parser.add_argument("--only", action="append", metavar="PART", help="one of " + ", ".join(PARTS) + "; may be given "
                        "several times")  # fmt: skip
    parser.add_argument("--failures", default="fuzz-failures.txt", metavar="FILE",
                        help="where failing cases are kept; default: fuzz-failures.txt")  # fmt: skip
    parser.add_argument("--law", metavar="LAW", help="try one case again: this law on --problem with --seed")
    parser.add_argument("--problem", metavar="TEXT", help="of --law")
    parser.add_argument("--tunables", metavar="DEVICE", help="of --law: take the tunable constants of cpu or cuda")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Try cases, print the table, and return 0 if nothing was wrong."""
    variants = variants_of(arguments.target, arguments.pass_name)
    if not 0 < arguments.minutes < 10**6:
        raise InvalidArgument(f"--minutes is {arguments.minutes}; it should be more than 0")
    if arguments.tunables is not None:
        known(arguments.tunables, ("cpu", "cuda"), "--tunables")
    parts = tuple(known(part, PARTS, "--only") for part in arguments.only or PARTS)
    if arguments.seed is not None and arguments.seed < 0:
        raise InvalidArgument(f"--seed is {arguments.seed}; it should be at least 0")
    shield = Shielded()
    if arguments.law is not None:
        return shield.run(lambda: _again(arguments, variants, shield))
    if arguments.problem is not None:
        raise InvalidArgument("--problem belongs to --law; to check a problem use 'convbackprop check'")
    hypothesis()
    path = Path(arguments.failures)
    check_writable(path)
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    if is_file(arguments.target):  # the calls of public functions are not its business
        parts = tuple(part for part in parts if part not in ("arguments", "layout"))
    return shield.run(
        lambda: _rounds(arguments, variants, parts, seed, path, shield),
        crashed=lambda command, sentence: _crashed(command, sentence, path, seed),
    )


def _again(arguments: argparse.Namespace, variants: Any, shield: Shielded) -> int:
    """Try one case again."""
    known(arguments.law, tuple(LAWS), "--law")
    if len(variants) != 1 or arguments.problem is None or arguments.seed is None:
        raise InvalidArgument("--law tries one case again; name one variant, --problem and --seed, too")
    device, _ = choice_of_device(arguments.device)
    (variant,), problem = variants, ConvProblem.parse(arguments.problem)
    if sentence := variant.refusal(problem, device):
        raise UnsupportedProblem(f"{variant.title} does not compute this problem: {sentence}")
    if not applies(arguments.law, variant, problem, device):
        raise InvalidArgument(f"the law {arguments.law!r} says nothing about {variant.title} on {problem}")
    case = Lawful(arguments.law, Subject(variant, problem, device, arguments.tunables, arguments.seed))
    shield.doing(case.command())
    faults = case.faults()
    if arguments.json:
        print_json({"device": device.name, "ok": not faults, "sentences": faults})
    else:
        say(console(), *(faults or [f"{arguments.law} holds for {variant.title} on {problem}"]))
    return int(bool(faults))


def _devices(name: str | None) -> tuple[tuple[Device, ...], str]:
    """Return the devices that have rounds, and a sentence on why these."""
    if name is None and not os.environ.get("CONVBACKPROP_DEVICE") and len(usable := usable_devices()) > 1:
        return tuple(map(get_device, usable)), f"devices {' and '.join(usable)}, in turn"
    device, choice = choice_of_device(name)
    return (device,), choice


def _rounds(arguments: argparse.Namespace, variants: Any, parts: Any, seed: int, path: Path, shield: Shielded) -> int:
    devices, choice = _devices(arguments.device)
    out, seconds, begin = console(), 60 * arguments.minutes, time.monotonic()
    if not arguments.json:
        say(out, choice, f"seed {seed}: --seed {seed} draws the same cases")
    with progress() as bar:
        task = bar.add_task("fuzzing", total=round(seconds))
        drawn = begin

        def tell(case: Case | None) -> None:
            nonlocal drawn
            if case is not None:
                shield.doing(case.command())
            elif (now := time.monotonic()) - drawn > 0.5:
                drawn, passed = now, now - begin
                rate = fuzzer.findings.cases / passed
                bar.update(task, completed=min(round(passed), round(seconds)), refresh=True,
                           description=f"{fuzzer.findings.cases:,} cases, {rate:,.0f}/s")  # fmt: skip

        def found(failure: Failure) -> None:
            _keep(path, seed, failure.sentences, failure.case.command())

        fuzzer = Fuzzer(variants, devices, seed, parts, tell, found)
        with contextlib.suppress(KeyboardInterrupt):  # what there is by then is printed
            fuzzer.run(seconds)
    findings, passed = fuzzer.findings, time.monotonic() - begin
    if arguments.json:
        _print_json(findings, devices, seed, passed)
    else:
        _print_table(findings, parts, passed, path)
    return int(bool(findings.failures) or not findings.cases)


def _crashed(text: str, sentence: str, path: Path, seed: int) -> None:
    """Look for a smaller problem that ends in a crash, and keep the command."""
    words = shlex.split(text)
    err = Console(stderr=True)
    if "--problem" in words:
        say(err, f"looking for a smaller problem that does, for at most {_SHRINK_SECONDS} s")
        with contextlib.suppress(KeyboardInterrupt):
            for smaller in shrink(words, _SHRINK_SECONDS):
                words = smaller
    command = shlex.join(words)
    _keep(path, seed, (sentence,), command)
    say(err, f"  {command}", f"kept in {path}")


def _keep(path: Path, seed: int, sentences: Sequence[str], command: str) -> None:
    """Add a failing case to those that are there: a command, and in comments what is wrong."""
    lines = path.read_text().splitlines() if path.exists() else []
    lines.append(f"# convbackprop fuzz --seed {seed}, {time.strftime('%Y-%m-%d %H:%M')}")
    lines += [*(f"# {sentence}" for sentence in sentences), command]
    write_whole(path, "\n".join(lines) + "\n")


def _print_json(findings: Findings, devices: Sequence[Device], seed: int, seconds: float) -> None:
    print_json({
        "devices": [device.name for device in devices], "seed": seed, "seconds": seconds,
        "ok": not findings.failures and findings.cases > 0,
        "rounds": findings.rounds, "cases": findings.cases,
        "parts": [
            {"part": name, "cases": part.cases, "seconds": part.seconds, "failures": part.failures}
            for name, part in findings.parts.items()
        ],
        "failures": [
            {"part": f.case.part, "command": f.case.command(), "sentences": f.sentences} for f in findings.failures
        ],
    })  # fmt: skip


def _print_table(findings: Findings, parts: Any, seconds: float, path: Path) -> None:
    out = console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("part", "cases", "seconds", "cases/s", "failures"):
        table.add_column(name, no_wrap=True, justify="left" if name == "part" else "right")
    for name in parts:
        part = findings.parts[name]
        rate = f"{part.cases / part.seconds:,.0f}" if part.seconds else "-"
        table.add_row(name, f"{part.cases:,}", f"{part.seconds:,.1f}", rate, f"{part.failures:,}")
    out.print(table)
    tried = f"{counted(findings.cases, 'case')} in {counted(findings.rounds, 'round')} and {seconds:,.0f} s"
    say(out, f"{tried}, compiling included: "
        + (counted(len(findings.failures), "failure") if findings.failures else "nothing was wrong"))  # fmt: skip
    for failure in findings.failures:
        say(out, "", *failure.sentences, f"  {failure.case.command()}")
    if findings.failures:
        say(out, "", f"kept in {path}")
