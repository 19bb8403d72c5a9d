"""All that can be known of a variant on a problem without running it on a GPU, gathered from where it is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convbackprop.bench.timing import Timing
from convbackprop.devices.compiler import Source, cubin, find_nvcc
from convbackprop.devices.gpus import Gpu, Target
from convbackprop.errors import CompileError, EnvironmentProblem, ProblemTooLarge, UnsupportedProblem
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import constants_of, three
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.profile import expected as model, roofline
from convbackprop.profile.hot_loop import hot_loops
from convbackprop.profile.machine_code import Configuration, kernels, main_entry
from convbackprop.profile.roofline import Bound, LaunchFacts, Verdict
from convbackprop.profile.sass import find_cuobjdump
from convbackprop.profile.traffic import KernelTraffic, traffic

#: Seconds below which the launch is most of what a user waits for.
_SHORT = 2e-6


@dataclass(frozen=True)
class Report:
    """What is known of a variant on a problem.

    Attributes
    ----------
    launches : tuple of LaunchFacts
        Those that the problem needs, in their order.
    bounds : tuple of Bound
        Each limit, and the least time that it allows.
    expected : Expected or None
        How long it is expected to take; None: the instructions or the addresses are not known.
    remarks : tuple of str
        Sentences on what could not be found out, and on what the figures do not tell.
    measured : Timing or None
        On a GPU: how long it took.
    """

    variant: Variant
    problem: ConvProblem
    gpu: Gpu
    launches: tuple[LaunchFacts, ...]
    bounds: tuple[Bound, ...]
    verdict: Verdict
    remarks: tuple[str, ...] = ()
    measured: Timing | None = None
    expected: model.Expected | None = None

    @property
    def main(self) -> LaunchFacts:
        """The launch that does the multiply-adds."""
        return next(launch for launch in self.launches if launch.main)

    @property
    def least_bytes(self) -> int:
        """That any implementation moves."""
        return PASSES[self.variant.pass_name].least_bytes(self.problem)

    @property
    def flops(self) -> int:
        """Of the problem."""
        return PASSES[self.variant.pass_name].flops(self.problem)

    @property
    def own_bytes(self) -> float | None:
        """Of the distinct sectors that each block asks for, over all blocks and launches; None: not replayed."""
        if not any(launch.traffic for launch in self.launches):
            return None
        return sum(launch.own_bytes for launch in self.launches)

    @property
    def predicted(self) -> float:
        """Seconds that it takes at least: the greatest of the bounds."""
        return self.verdict.binding.seconds

    @property
    def ratio(self) -> float | None:
        """The measured time as a multiple of the least one; None: not measured."""
        return self.measured.median / self.predicted if self.measured else None

    def timed(self, timing: Timing) -> Report:
        """Return the same with a measured time."""
        return replace(self, measured=timing)


def launches_of(variant: Variant, problem: ConvProblem, target: Target | str = "cuda") -> tuple[LaunchFacts, ...]:
    """Return the launches that a problem needs, for a target; no more is known of them yet."""
    constants, main = variant.constants(target, problem), main_entry(variant)
    return tuple(
        LaunchFacts(
            launch.entry,
            three(launch.grid(problem, constants)),
            three(launch.block(problem, constants)),
            launch.entry == main,
            multiplications=variant.multiplications,
            all_phases=variant.all_phases,
        )
        for launch in variant.launches
        if launch.when(problem, constants)
    )


def report(variant: Variant, problem: ConvProblem, gpu: Gpu, blocks: int = 64) -> Report:
    """Find out all that is to be known of a variant on a problem.

    Parameters
    ----------
    variant, problem
        What is looked at.
    gpu : Gpu
        For which GPU it is compiled, and whose limits count.
    blocks : int
        How many blocks of each launch are replayed at most.

    Raises
    ------
    UnsupportedProblem
        The variant refuses the problem.
    CompileError
        nvcc rejects the file, with its messages.
    """
    if sentence := variant.refusal(problem, "cuda"):
        raise UnsupportedProblem(f"{variant} does not compute this problem: {sentence}")
    remarks: list[str] = []
    launches = _with_code(launches_of(variant, problem, gpu.target), variant, problem, gpu, remarks)
    launches = _with_traffic(launches, variant, problem, gpu, blocks, remarks)
    found = roofline.bounds(gpu, variant.pass_name, problem, launches)
    verdict = roofline.verdict(gpu, variant.pass_name, problem, launches, found)
    if verdict.binding.seconds < _SHORT:
        remarks.append(
            "A launch takes microseconds by itself; so small a problem does not show what a kernel is worth."
        )
    of = model.works(gpu, variant.pass_name, problem, launches)
    expected = model.expected(gpu, of) if of else None
    return Report(variant, problem, gpu, launches, found, verdict, tuple(remarks), expected=expected)


def bounds_of_code(variant: Variant, problem: ConvProblem, gpu: Gpu) -> tuple[Bound, ...]:
    """Return the limits that need no replay: those of the problem, and of the hot loop where cuobjdump is there."""
    launches = _with_code(launches_of(variant, problem, gpu.target), variant, problem, gpu, [])
    return roofline.bounds(gpu, variant.pass_name, problem, launches)


def _with_code(
    launches: Sequence[LaunchFacts], variant: Variant, problem: ConvProblem, gpu: Gpu, remarks: list[str]
) -> tuple[LaunchFacts, ...]:
    """Add what nvcc and cuobjdump tell, where there are such."""
    try:
        find_nvcc()
    except EnvironmentProblem as error:
        remarks.append(f"Machine code is left out: {error}.")
        return tuple(launches)
    compiled = {kernel.entry: kernel for kernel in kernels(Configuration.of(variant, problem, gpu))}
    loops = {}
    try:
        cuobjdump: Path = find_cuobjdump()
        path, _ = cubin(Source.of(variant.path, constants_of(variant, problem, gpu.target)), gpu.architecture)
        loops = hot_loops(cuobjdump, path, gpu.architecture, main_entry(variant))
        if loops[main_entry(variant)].warp is None:
            remarks.append("How long it takes is not expected: these products of matrices are not in the model.")
    except CompileError:
        raise
    except EnvironmentProblem as error:
        remarks.append(f"The instructions are left out: {error}.")
    return tuple(replace(launch, kernel=compiled[launch.entry], hot=loops.get(launch.entry)) for launch in launches)


def _with_traffic(
    launches: Sequence[LaunchFacts], variant: Variant, problem: ConvProblem, gpu: Gpu, blocks: int, remarks: list[str]
) -> tuple[LaunchFacts, ...]:
    """Add what the replay tells: it has the launches in the same order."""
    try:
        replayed: Sequence[KernelTraffic] = traffic(variant, problem, blocks, gpu.target)
    except CompileError:
        raise
    except (EnvironmentProblem, ProblemTooLarge) as error:
        remarks.append(f"The addresses are left out: {error}.")
        return tuple(launches)
    waiting = list(replayed)
    found = []
    for launch in launches:
        own = next((each for each in waiting if each.entry == launch.entry), None)
        if own is not None:
            waiting.remove(own)
        found.append(replace(launch, traffic=own))
    return tuple(found)


# -- scores ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Score:
    """How good the expected times of several measured reports are.

    Attributes
    ----------
    mean : float
        Geometric mean of measured over expected, or over least where that is not known of all.
    pairs, right : int
        Pairs of variants on one problem, and those that are ranked as measured.
    broken : tuple of str
        Variants that were faster than a lower bound allows: the bound is wrong.
    """

    mean: float
    pairs: int
    right: int
    broken: tuple[str, ...]


def score(reports: Sequence[Report]) -> Score | None:
    """Return the score of those reports that have been measured, None without any."""
    measured = [(each, each.measured.median) for each in reports if each.measured]
    if not measured:
        return None
    expected = [each.expected.seconds for each, _ in measured if each.expected]
    said = expected if len(expected) == len(measured) else [each.predicted for each, _ in measured]
    mean = math.exp(sum(math.log(time / s) for (_, time), s in zip(measured, said, strict=True)) / len(measured))
    pairs = [
        (said[i] < said[j]) == (time < measured[j][1])
        for i, (each, time) in enumerate(measured)
        for j in range(i)
        if each.problem == measured[j][0].problem
    ]
    broken = tuple(str(each.variant) for each, time in measured if time < each.predicted)
    return Score(mean, len(pairs), sum(pairs), broken)
