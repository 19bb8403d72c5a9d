"""List the passes, their variants, and what each does, refuses and lets one tune."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from convbackprop import ops
from convbackprop.arguments import known
from convbackprop.check.curated import CURATED
from convbackprop.cli.common import console, print_json, say
from convbackprop.devices import Device, choice_of_device, usable_devices, why_not_cuda
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.registry import VARIANTS, of_pass, select, why_not
from convbackprop.ladder.variant import Choice, Variant
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.sources import source_root
from convbackprop.tune.choice import Tuned, tuned
from convbackprop.tune.table import SEPARATE

HELP = "the passes and their variants"
EPILOG = """\
With --problem it tells which variant "auto" stands for, and why not the others:
on this machine's device, tuned or by the rule, or by the rule alone on the kind
that --device names, which need not be here. A --problem has a bias and a ReLU
unless its text says otherwise (bias=0, activation=identity); conv2d_backward
computes all its gradients, or without dx (dx=0), or without dw (dw=0).

examples:
  convbackprop list
  convbackprop list kernel_grad
  convbackprop list --problem 1,64,56,56,64,3,3,padding=1 --device cuda
  convbackprop list --json

JSON keys: devices [name], no_cuda, passes [name, gloss, reads, writes],
variants [pass, name, summary, runs_on [KIND], unproven (no GPU has run it as it
stands), refuses, file, tunables {NAME: {legal, cuda, cpu}}] (null: a rule
chooses it for each problem, or it does not run there); with --problem: problem,
device, choices [pass, variant, auto, why_not, tuned (what of it was measured to
be fastest here, or null)], conv2d_backward [variant]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("target", nargs="?", metavar="PASS[/VARIANT]", help="default: all")
    parser.add_argument("--problem", metavar="TEXT", help="N,C,H,W,K,R,S and options, such as "
                        "1,64,56,56,64,3,3,padding=1,dtype=float16: what computes it?")  # fmt: skip
    parser.add_argument("--device", metavar="KIND", help="with --problem: cpu or cuda; default: this machine's device")
    parser.add_argument("--json", action="store_true", help="print JSON")


def refusals(variant: Variant) -> tuple[str, ...]:
    """Return what a variant refuses: in its requirements' own words, or as it refuses the curated problems."""
    words = [" ".join((requirement.__doc__ or "").split()) for requirement in variant.requires]
    if len(variant.runs_on) == 1:
        words.insert(0, f"It runs on {variant.runs_on[0]} only.")
    if all(words):
        return tuple(word.rstrip(".") for word in words)
    problems = [
        curated.problem(activation=activation, dtype=dtype)
        for curated in CURATED
        for activation in ("relu", "tanh")
        for dtype in ("float32", "float64", "float16")
    ]
    return tuple(dict.fromkeys(sentence for problem in problems if (sentence := variant.refusal(problem))))


def _value(choice: Choice | None) -> int | None:
    """Return a tunable's value, None where a rule chooses it for each problem, or where the variant does not run."""
    return choice if isinstance(choice, int) else None


def _tunables(variant: Variant) -> str:
    words = []
    for name, tunable in variant.tunables.items():
        choices = (getattr(tunable, kind) for kind in ("cuda", "cpu") if kind in variant.runs_on)
        first, *cpu = ("by rule" if (value := _value(choice)) is None else str(value) for choice in choices)
        words.append(f"{name} {first}" + "".join(f" (cpu {value})" for value in cpu if value != first))
    return ", ".join(words)


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
                "runs_on": v.runs_on,
                "unproven": v.unproven,
                "refuses": refusals(v),
                "file": str(v.path),
                "tunables": {
                    name: {"legal": t.legal, "cuda": _value(t.cuda), "cpu": _value(t.cpu)}
                    for name, t in v.tunables.items()
                },
            }
            for v in chosen
        ],
    }


# -- what computes a problem -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Choice:
    """A variant, why "auto" does not stand for it (None: it does), and how it was measured to be fastest."""

    variant: Variant
    why_not: str | None
    tuned: str | None = None

    def as_json(self) -> dict[str, Any]:
        v = self.variant
        return {"pass": v.pass_name, "variant": v.name, "auto": self.why_not is None, "why_not": self.why_not,
                "tuned": self.tuned}  # fmt: skip


def _choice(variant: Variant, reason: str | None, measured: Tuned | None) -> _Choice:
    """Return a variant as a choice; `reason`: why the rule does not choose it."""
    if measured is None:
        return _Choice(variant, reason)
    rung = measured.entry.rung
    if rung is None and measured.entry.variant == SEPARATE:
        return _Choice(variant, reason or measured.sentence)
    if rung is None:
        return _Choice(variant, reason, measured.sentence if reason is None else None)
    if (rung.rule or rung) is variant:
        return _Choice(variant, None, measured.sentence)
    return _Choice(variant, reason or f"{rung.name} was measured to be faster")


def _choices(chosen: tuple[Variant, ...], problem: ConvProblem, device: Device | str) -> list[_Choice]:
    """Return every variant as a choice; of a kind of device alone nothing has been measured."""
    found = []
    for pass_name in PASSES:
        measured = None if isinstance(device, str) else tuned(pass_name, problem, device)
        for variant, reason in why_not(pass_name, problem, device).items():
            found.append(_choice(variant, reason, measured))
    return [choice for choice in found if choice.variant in chosen]


def _run_problem(arguments: argparse.Namespace, chosen: tuple[Variant, ...]) -> int:
    """Print what computes a problem, and return 0."""
    problem = ConvProblem.parse(arguments.problem, bias=True, activation="relu")
    device: Device | str
    if arguments.device is None:
        here, why = choice_of_device(None)
        kind, device = here.kind, here
    else:
        kind = device = known(arguments.device, ("cpu", "cuda"), "--device")
        why = f"device {kind}: asked for, as a kind"
    choices = _choices(chosen, problem, device)
    backward = [str(variant) for variant, _ in ops.passes_of_backward("auto", problem, device)]
    if arguments.json:
        print_json({"problem": str(problem), "device": kind, "choices": [choice.as_json() for choice in choices],
                    "conv2d_backward": backward})  # fmt: skip
        return 0
    out = console()
    say(out, f"problem {problem}", why)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("pass/variant", no_wrap=True)
    table.add_column("auto", no_wrap=True)
    table.add_column("why, or why not", overflow="fold")
    for choice in choices:
        is_auto = choice.why_not is None
        by_rule = "the rule chooses it: the highest rung"
        if kind == "cuda" and choice.variant.unproven:
            by_rule += "; no GPU has run it as it stands"
        why = choice.why_not or choice.tuned or by_rule
        table.add_row(str(choice.variant), "auto" if is_auto else "", why)
    out.print(table)
    if any(variant.pass_name in ("input_grad", "kernel_grad", "backward") for variant in chosen):
        say(out, f"conv2d_backward runs {', then '.join(backward) or 'nothing'}")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Print the registry, or what of it computes a problem."""
    chosen = select(arguments.target)
    if arguments.problem is not None:
        return _run_problem(arguments, chosen)
    if arguments.device is not None:
        raise InvalidArgument("--device goes with --problem: what computes it there?")
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
        what = variant.summary + " No GPU has run it as it stands." * variant.unproven
        table.add_row(str(variant), what, "; ".join(refusals(variant)) or "computes every problem", _tunables(variant))
    out.print(table)
    for entry in PASSES.values():
        if any(v in of_pass(entry.name) for v in chosen):
            reads, writes = (", ".join(_operands(entry.name, written)) for written in (False, True))
            say(out, f"{entry.name} ({entry.gloss}): reads {reads}; writes {writes}")
    usable = usable_devices()
    say(
        out,
        f"devices: {', '.join(usable)}" + ("" if "cuda" in usable else " (no cuda: 'convbackprop doctor' says why)"),
    )
    if len(chosen) == len(VARIANTS):
        say(out, f"sources: {source_root()}")
    return 0
