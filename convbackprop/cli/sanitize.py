"""Look at each access of a kernel to memory, on the CPU: out of bounds, uninitialised, races, divergent barriers."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from convbackprop.arguments import known
from convbackprop.check import within_budget
from convbackprop.check.curated import CURATED
from convbackprop.check.sanitize import KINDS, LIMITS, WRONG, Finding, Outcome, is_of_headers, sanitize
from convbackprop.cli.common import (
    add_target,
    check_memory,
    compile_ahead,
    console,
    counted,
    distinct,
    is_file,
    print_json,
    progress,
    say,
    variants_of,
)
from convbackprop.cli.shield import Shielded
from convbackprop.devices.checked import checked_device
from convbackprop.devices.compiler import RUNTIME
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.variant import Variant
from convbackprop.problem import DTYPES, ConvProblem
from convbackprop.sources import source_root


def _of_tool(tool: str) -> str:
    names = ", ".join(name for name, owner in KINDS.values() if owner == tool)
    return textwrap.fill(f"  {tool:10} {names}", 80, subsequent_indent=" " * 13)


HELP = "find invalid accesses and races, by line of source, without a GPU"
EPILOG = f"""\
The kernel runs on the CPU with a GPU's tunable constants, and each access to
memory is looked at, as compute-sanitizer does on a GPU. What is found:

{chr(10).join(_of_tool(tool) for tool in distinct(owner for _, owner in KINDS.values()))}

Then it runs twice more, the threads of each block started in other orders: a
result that is wrong there misses a barrier.

Without --problem these are the curated problems in float32 with a ReLU, from
the output and from the bit mask; of a variant that is compiled anew for other
sizes, as many as `check` takes. --all takes them all.

Limits:
{chr(10).join(textwrap.fill(limit, 80, initial_indent="  ", subsequent_indent="  ") for limit in LIMITS)}

examples:
  convbackprop sanitize forward/tiled
  convbackprop sanitize kernel_grad --problem 2,3,32,32,8,3,3,stride=2
  convbackprop sanitize mine.cu

JSON keys: ok, runs, refused, left_out, seconds, notes_bytes, limits, findings
[variant, problem, kind, tool, sentence, kernel, file, line, lines, other_file,
other_line, thread, block, count]
"""

#: Findings that are printed for each variant; JSON has all.
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_target(parser)
    parser.add_argument("--problem", action="append", metavar="TEXT", help="N,C,H,W,K,R,S and options, such as "
                        "2,3,32,32,8,3,3,stride=2,padding=1; may be given several times")  # fmt: skip
    parser.add_argument("--dtype", default="float32", metavar="D", help=", ".join(DTYPES) + "; default: float32")
    parser.add_argument("--tunables", default="cuda", metavar="DEVICE", help="take the tunable constants of cuda (the "
                        "default) or cpu")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="every curated problem, however many compilations it takes")
    parser.add_argument("--json", action="store_true", help="print JSON")


_Found = tuple[Variant, Outcome, str]


def _work(arguments: argparse.Namespace) -> list[tuple[ConvProblem, str]]:
    """Return the problems that the arguments ask for, each with its data."""
    changes = {"dtype": known(arguments.dtype, tuple(DTYPES), "--dtype"), "activation": "relu", "bias": True}
    if arguments.problem:
        return [(ConvProblem.parse(text, **changes), "normal") for text in arguments.problem]
    both = ({**changes, "mask": mask} for mask in (False, True))
    return [(entry.problem(**change), entry.data) for change in both for entry in CURATED]


def run(arguments: argparse.Namespace) -> int:
    """Run the kernels with checks, print what is found, and return 0 if that is nothing."""
    variants = variants_of(arguments.target, arguments.pass_name)
    known(arguments.tunables, ("cpu", "cuda"), "--tunables")
    work = _work(arguments)
    for problem, _ in work:
        check_memory(problem)
    whole = arguments.all or bool(arguments.problem) or is_file(arguments.target)
    computed = {v: [(p, data) for p, data in work if v.refusal(p) is None] for v in variants}
    refused = sum(len(work) - len(some) for some in computed.values())
    if not any(computed.values()):
        raise InvalidArgument("nothing is left to run: " + "; ".join(
            distinct(f"{v.title} refuses {p}: {v.refusal(p)}" for v in variants for p, _ in work[:1])))  # fmt: skip
    chosen = {
        v: some
        if whole
        else [(p, d) for p, d in some if p in within_budget(v, [q for q, _ in some], arguments.tunables)]
        for v, some in computed.items()
    }
    left_out = sum(map(len, computed.values())) - sum(map(len, chosen.values()))
    shield = Shielded()

    def command() -> int:
        found = _sanitize_all(chosen, arguments.tunables, shield)
        if arguments.json:
            _print_json(found, refused, left_out)
        else:
            _print(found, refused, left_out)
        return int(any(not outcome.ok for _, outcome, _ in found))

    return shield.run(command)


def _sanitize_all(
    chosen: dict[Variant, list[tuple[ConvProblem, str]]], tunables: str, shield: Shielded
) -> list[_Found]:
    device = checked_device()
    found = []
    with progress() as bar:
        compile_ahead([(v, problem) for v, some in chosen.items() for problem, _ in some], device, tunables, bar)
        task = bar.add_task("sanitizing", total=sum(map(len, chosen.values())))
        for variant, some in chosen.items():
            for problem, data in some:
                shield.doing(f"{variant.title} on {problem}")
                found.append((variant, sanitize(variant, problem, data, tunables), data))
                bar.update(task, advance=1, refresh=True)
    return found


# -- printing --------------------------------------------------------------------------------------------------------
def _distinct_findings(found: Sequence[_Found]) -> list[tuple[Variant, Outcome, Finding, int]]:
    """Return what was found, each place once: the first problem that shows it, and how many do."""
    seen: dict[tuple[Any, ...], list[tuple[Outcome, Finding]]] = {}
    for variant, outcome, _ in found:
        for finding in outcome.findings:
            key = (variant, finding.kind, finding.entry, finding.lines, frozenset((finding.lines, finding.other_lines)))
            seen.setdefault(key, []).append((outcome, finding))
    return [(key[0], *all_of[0], len({id(outcome) for outcome, _ in all_of})) for key, all_of in seen.items()]


def _print_json(found: Sequence[_Found], refused: int, left_out: int) -> None:
    tools = dict(KINDS.values())

    def place(lines: tuple[tuple[Path, int], ...]) -> tuple[str | None, int | None]:
        return (_name(lines[0][0]), lines[0][1]) if lines else (None, None)

    def as_json(variant: Variant, outcome: Outcome, finding: Finding) -> dict[str, Any]:
        (file, line), (other_file, other_line) = place(finding.lines), place(finding.other_lines)
        return {
            "variant": variant.title, "problem": str(outcome.problem), "kind": finding.kind,
            "tool": tools.get(finding.kind), "sentence": finding.sentence, "kernel": finding.entry, "file": file,
            "line": line, "lines": [[_name(path), number] for path, number in finding.lines],
            "other_file": other_file, "other_line": other_line, "thread": finding.thread, "block": finding.block,
            "count": finding.count,
        }  # fmt: skip

    print_json({
        "ok": all(outcome.ok for _, outcome, _ in found),
        "runs": len(found),
        "refused": refused,
        "left_out": left_out,
        "seconds": sum(outcome.seconds for _, outcome, _ in found),
        "notes_bytes": max(outcome.notes_bytes for _, outcome, _ in found),
        "limits": list(LIMITS),
        "findings": [as_json(v, outcome, finding) for v, outcome, _ in found for finding in outcome.findings],
    })  # fmt: skip


def _print(found: Sequence[_Found], refused: int, left_out: int) -> None:
    out = console()
    places = _distinct_findings(found)
    for variant in distinct(variant for variant, _, _ in found):
        own = [each for each in places if each[0] is variant]
        runs = sum(v is variant for v, _, _ in found)
        verdict = Text(f"{len(own)} found", "red") if own else Text("clean", "green")
        out.print(Text.assemble((variant.title, "cyan"), f": {counted(runs, 'problem')}, ", verdict))
        for _, outcome, finding, problems in own[:_SHOWN]:
            _print_finding(out, outcome, finding, problems)
        if len(own) > _SHOWN:
            out.print(f"  ... and {len(own) - _SHOWN} more")
    total = sum(outcome.seconds for _, outcome, _ in found)
    most = max(outcome.notes_bytes for _, outcome, _ in found)
    counts = f"{counted(len(found), 'run')} in {total:.1f} s, {counted(len(places), 'finding')}"
    say(out, f"\n{counts}, {refused:,} refused by the variant; notes on memory took at most {most / 1e6:,.1f} MB")
    if left_out:
        say(out, f"{left_out:,} left out: variants that are compiled for the problem's sizes; --all takes them all")
    if any(finding.kind.startswith("race") for _, _, finding, _ in places):
        say(out, LIMITS[0])


def _print_finding(out: Console, outcome: Outcome, finding: Finding, problems: int) -> None:
    on = f"on {outcome.problem}" + (f" and {problems - 1:,} more" if problems > 1 else "")
    times = f", {finding.count:,} times" if finding.count > 1 else ""
    out.print(Text.assemble("\n  ", (finding.kind, "red"), f" in {finding.entry}, {on}{times}"), soft_wrap=True)
    who = f"thread {finding.thread} of block {finding.block} " if finding.thread and finding.kind != WRONG else ""
    say(out, f"    {who}{finding.sentence}")
    for label, lines in (("", finding.lines), ("the other: ", finding.other_lines)):
        for i, (path, number) in enumerate(lines):
            before = f"    {label}" if i == 0 else "    in " if is_of_headers(path) else "    inlined into "
            if not (i and path.suffix == ".cu"):  # of the kernel itself one line says where
                out.print(f"{before}{_name(path)}:{number}:  {_line(path, number)}", soft_wrap=True)


def _name(path: Path) -> str:
    """Return a file's name: from the root of the kernels on, or from the current folder, or as it is."""
    for root in (source_root(), RUNTIME, Path.cwd()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def _line(path: Path, number: int) -> str:
    try:
        return path.read_text(encoding="utf-8").splitlines()[number - 1].strip()
    except (OSError, IndexError):
        return ""
