"""Launch a variant and nothing else: for a profiler, such as ncu or nsys, that looks on."""

from __future__ import annotations

import argparse
import math

import numpy as np

from convbackprop.bench.timing import stage
from convbackprop.check import fill, inputs
from convbackprop.cli.common import (
    add_device,
    add_target,
    check_memory,
    console,
    is_file,
    say,
    variants_of,
)
from convbackprop.cli.profile_report import add_problem, problem_of
from convbackprop.cli.shield import Shielded
from convbackprop.devices import choice_of_device
from convbackprop.errors import InvalidArgument, UnsupportedProblem
from convbackprop.ladder.variant import Variant
from convbackprop.problem import DTYPES, PASSES
from convbackprop.profile.report import launches_of

HELP = "launch a variant and nothing else, for ncu and nsys"
EPILOG = """\
The arrays hold random numbers; nothing is checked and nothing is timed. On a
GPU the code is compiled with -lineinfo, so that a profiler shows the lines of
the .cu files.

examples:
  convbackprop run forward/coalesced
  convbackprop run kernel_grad/tiled --problem 32,64,56,56,64,3,3 --repeat 10
  ncu --set full convbackprop run forward/coalesced
  nsys profile convbackprop run mine.cu --repeat 100
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_target(parser)
    add_problem(parser)
    parser.add_argument("--dtype", nargs=1, metavar="D", help=f"{', '.join(DTYPES)}; default: float32")
    parser.add_argument("--filter", nargs=1, metavar="R", help="height (and width) of the default problem's filter")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="how often it is launched; default: 1")
    add_device(parser)


def _one(target: str | None, pass_name: str | None) -> Variant:
    variants = variants_of(target, pass_name)
    if len(variants) != 1:
        raise InvalidArgument(f"run launches one variant; name it, as in 'convbackprop run {variants[0]}'")
    return variants[0]


def run(arguments: argparse.Namespace) -> int:
    """Launch, and print one line."""
    variant, problem = _one(arguments.target, arguments.pass_name), problem_of(arguments)
    if arguments.repeat < 1:
        raise InvalidArgument(f"--repeat is {arguments.repeat}; it should be at least 1")
    if sentence := variant.refusal(problem):  # before a device is looked for
        raise UnsupportedProblem(f"{variant.title} does not compute this problem: {sentence}")
    check_memory(problem)
    shield = Shielded()

    def command() -> int:
        device, _ = choice_of_device(arguments.device)
        if sentence := variant.refusal(problem, device):
            raise UnsupportedProblem(f"{variant.title} does not compute this problem: {sentence}")
        rng = np.random.default_rng(0)
        own = {}
        if variant.pass_name != "forward" and problem.saved:  # as good as the forward pass's own, and made at once
            saved = PASSES[variant.pass_name].operand("saved")
            own["saved"] = (
                rng.integers(0, 256, saved.shape(problem), np.uint8)
                if problem.mask
                else fill(saved.shape(problem), problem.dtype, "normal", rng)
            )
        given = inputs(variant.pass_name, problem, own=own)
        shield.doing(f"{variant.title} on {problem}")
        with stage(device, variant.pass_name, problem, given) as place:
            call = place.ours(variant)
            for _ in range(arguments.repeat):
                call()
            place.wait()
        launches = ", ".join(
            f"{each.entry} {math.prod(each.grid):,} x {math.prod(each.block)}"
            for each in launches_of(variant, problem, device.target)
        )
        times = "once" if arguments.repeat == 1 else f"{arguments.repeat:,} times"
        where = f"launched {times} on {device.name} (blocks x threads: {launches})"
        say(console(), f"{variant.title} on {problem}: {where}")
        return 0

    return shield.run(command) if is_file(arguments.target) else command()
