"""What `bench` times: the cases, variants and settings that its arguments ask for, or why they make no sense."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convbackprop.arguments import known
from convbackprop.bench import peers
from convbackprop.bench.cases import Case, case_on_image
from convbackprop.bench.peers import Peer
from convbackprop.bench.photograph import read_image
from convbackprop.bench.suites import CPU_CUT, SUITES, Suite
from convbackprop.cli.common import distinct, is_file, variants_of
from convbackprop.devices import Device
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.registry import of_pass, why_not
from convbackprop.ladder.variant import Variant
from convbackprop.problem import DTYPES, ConvProblem

#: Each case with what is timed on it.
Work = list[tuple[Case, Sequence[Variant]]]


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything runs."""
    peers.named(arguments.against or peers.ALL)
    if arguments.ladder and not is_file(arguments.target):
        raise InvalidArgument("--ladder goes with a FILE.cu; without one every variant is timed")
    known(arguments.dtype, tuple(DTYPES), "--dtype")
    _filters(arguments, ())
    if arguments.seconds is not None and not 0 < arguments.seconds < 3600:
        raise InvalidArgument(f"--seconds is {arguments.seconds}; it should be above 0 and below 3600")
    if arguments.goals and (arguments.against not in (None, peers.ALL, "torch") or is_file(arguments.target)):
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


def _filters(arguments: argparse.Namespace, default: Sequence[int]) -> tuple[int, ...]:
    for word in arguments.filter or ():
        if not word.isdecimal() or int(word) < 1:
            raise InvalidArgument(f"--filter is {word!r}; it should be an integer of at least 1")
    return distinct(int(word) for word in arguments.filter) if arguments.filter else tuple(default)


def suite_of(arguments: argparse.Namespace) -> Suite | None:
    """Return the suite that is timed, if it is one."""
    return None if arguments.problem or arguments.image else SUITES[arguments.suite or "lab"]


def cases_of(arguments: argparse.Namespace, device_kind: str) -> tuple[Case, ...]:
    """Return what the arguments ask for."""
    cases = _cases(arguments, device_kind)
    if arguments.precision == "ieee":
        return cases
    return tuple(replace(case, problem=case.problem.with_(precision=arguments.precision)) for case in cases)


def _cases(arguments: argparse.Namespace, device_kind: str) -> tuple[Case, ...]:
    if suite := suite_of(arguments):
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


def wanted_variants(arguments: argparse.Namespace, asked: Sequence[Peer] | None) -> tuple[Variant, ...]:
    """Return what the arguments ask for: of passes that a named peer computes, and a file beside the ladder."""
    variants = variants_of(arguments.target, arguments.pass_name)
    if asked:
        passes = distinct(pass_name for peer in asked for pass_name in peer.passes)
        variants = tuple(variant for variant in variants if variant.pass_name in passes)
        if not variants:
            raise InvalidArgument(f"--against {arguments.against} times {' and '.join(passes)}, not {arguments.target}")
    return (*of_pass(variants[0].pass_name), *variants) if is_file(arguments.target) else variants


def ladder_of(arguments: argparse.Namespace) -> Suite | None:
    """Return the suite that says which rungs are timed; None where they were asked for by name, or there is none."""
    named = "/" in (arguments.target or "") or is_file(arguments.target)
    return None if named else suite_of(arguments)


def _beside(variants: Sequence[Variant], problem: ConvProblem, device: Device) -> tuple[Variant, ...]:
    """Return of the rungs before a file of one's own, which comes last, those that tell how good it is: two."""
    *rungs, own = variants
    able = [rung for rung in rungs if rung.refusal(problem, device) is None]
    best = [rung for rung, reason in why_not(own.pass_name, problem, device).items() if reason is None]
    return distinct([*(rung for rung in able if rung.name == "naive"), *best, own])


def work_of(ladder: Suite | None, cases: Sequence[Case], variants: Sequence[Variant], device: Device,
          notes: list[str], whole: bool = False) -> Work:  # fmt: skip
    """Return each case with what is timed on it; of a suite only what does not refuse it, and a note says so.

    Beside a file of one's own not all rungs are timed, unless `whole`.
    """
    if any(case.layer and case.layer.batch != case.problem.N for case in cases):
        notes.append(
            f"On a CPU batches are divided by {CPU_CUT}, or by as much as leaves one image: N 8/8 is 8 divided by 8."
        )
    if ladder is None:
        few = variants[-1].file is not None and not whole
        return [(case, _beside(variants, case.problem, device) if few else variants) for case in cases]
    if not ladder.beside_naive:
        refused: dict[str, list[str]] = {}
        for variant, case in itertools.product(variants, cases):
            if sentence := variant.refusal(case.problem, device):
                refused.setdefault(sentence, []).append(str(variant))
        notes += [f"Not timed: {', '.join(distinct(names))}: {sentence}" for sentence, names in refused.items()]
    return [(case, ladder.rungs(variants, case, device)) for case in cases]
