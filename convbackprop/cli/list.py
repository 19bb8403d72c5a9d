"""List the passes, their variants, and what each does, refuses and lets one tune."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from convbackprop.cli.common import console, print_json, say
from convbackprop.curated import CURATED
from convbackprop.devices import usable_devices, why_not_cuda
from convbackprop.problem import PASSES
from convbackprop.sources import source_root
from convbackprop.variants import VARIANTS, Variant, of_pass, select

HELP = "the passes and their variants"
EPILOG = """\
examples:
  convbackprop list
  convbackprop list kernel_grad
  convbackprop list --json

JSON keys: devices [name], no_cuda, passes [name, gloss, reads, writes],
variants [pass, name, summary, refuses, file, tunables {NAME: {legal, cuda,
cpu}}]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("target", nargs="?", metavar="PASS[/VARIANT]", help="default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")


def refusals(variant: Variant) -> tuple[str, ...]:
    """Return what a variant refuses: in its requirements' own words, or as it refuses the curated problems."""
    words = [" ".join((requirement.__doc__ or "").split()) for requirement in variant.requires]
    if all(words):
        return tuple(words)
    problems = [
        curated.problem(activation=activation, dtype=dtype)
        for curated in CURATED
        for activation in ("relu", "tanh")
        for dtype in ("float32", "float64", "float16")
    ]
    return tuple(dict.fromkeys(sentence for problem in problems if (sentence := variant.refusal(problem))))


def _tunables(variant: Variant) -> str:
    return ", ".join(
        f"{name} {t.cuda}" + (f" (cpu {t.cpu})" if t.cpu != t.cuda else "") for name, t in variant.tunables.items()
    )


def _operands(pass_name: str, written: bool) -> tuple[str, ...]:
    return tuple(operand.name for operand in PASSES[pass_name].operands if operand.written == written)


def _json(chosen: tuple[Variant, ...]) -> dict[str, Any]:
    return {
        "devices": usable_devices(),
        "no_cuda": why_not_cuda(),
        "passes": [
            {"name": p.name, "gloss": p.gloss, "reads": _operands(p.name, False), "writes": _operands(p.name, True)}
            for p in PASSES.values()
        ],
        "variants": [
            {
                "pass": v.pass_name,
                "name": v.name,
                "summary": v.summary,
                "refuses": refusals(v),
                "file": str(v.path),
                "tunables": {name: {"legal": t.legal, "cuda": t.cuda, "cpu": t.cpu} for name, t in v.tunables.items()},
            }
            for v in chosen
        ],
    }


def run(arguments: argparse.Namespace) -> int:
    """Print the registry."""
    chosen = select(arguments.target)
    if arguments.json:
        print_json(_json(chosen))
        return 0
    out = console()
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 1, 0))
    table.add_column("pass/variant", no_wrap=True)
    table.add_column("what it does", ratio=3)
    table.add_column("refuses", ratio=2)
    table.add_column("tunables")
    for variant in chosen:
        table.add_row(
            str(variant), variant.summary, "; ".join(refusals(variant)) or "computes every problem", _tunables(variant)
        )
    out.print(table)
    for entry in PASSES.values():
        if any(v in of_pass(entry.name) for v in chosen):
            reads, writes = (", ".join(_operands(entry.name, written)) for written in (False, True))
            say(out, f"{entry.name} ({entry.gloss}): reads {reads}; writes {writes}")
    no_cuda = why_not_cuda()
    say(out, f"devices: {', '.join(usable_devices())}" + (f" (no cuda: {no_cuda})" if no_cuda else ""))
    if len(chosen) == len(VARIANTS):
        say(out, f"sources: {source_root()}")
    return 0
