"""The search for what is fastest: candidates by steps from the rule's choice, halved by time until one is left.

A round takes the best so far and the variants that differ from it in one tunable. Those that cannot be good are left
out unseen; the others are compiled, held against the reference, and timed in turn; half of them goes, the others are
timed twice as often, until two are left (successive halving: Jamieson and Talwalkar, "Non-stochastic Best Arm
Identification and Hyperparameter Optimization", 2016). What has won begins the next round, as long as there are better
ones and time is left. At last it is timed in turn with the rule's choice, and counts only if it is faster there.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from convbackprop.bench.timing import Call, CpuStage, check_timeable, stage
from convbackprop.check import check, inputs, reference
from convbackprop.devices import Device
from convbackprop.devices.compiler import Source, cubin
from convbackprop.devices.gpus import gpu_titled
from convbackprop.errors import ConvBackpropError, EnvironmentProblem
from convbackprop.ladder.registry import UNTUNED, of_pass
from convbackprop.ladder.variant import Variant, pinned
from convbackprop.launch.plan import constants_of
from convbackprop.problem import ConvProblem
from convbackprop.tune.table import SEPARATE, Entry, digest_of

#: A choice is taken in place of the rule's where it takes at most this share of its time, in half of all turns, and
#: less time in four of five: what is nearer may be noise.
FASTER = 0.97

#: Turns in which what has won is timed with the rule's choice: at least and at most.
_LEAST, _MOST = 9, 60

#: What takes so many times as long as the best is not timed again.
_HOPELESS = 3.0

#: Seconds that a repetition lasts at least on a CPU, whose clock is read around it.
_REPETITION = 5e-4

#: Floating-point operations of a problem that candidates are checked on; of more, as many images as have no more.
_CHECKED_FLOPS = 2e9

#: Flops a second that any kernel reaches: what would take longer than half of the search is not tried.
_SLOWEST = {"cpu": 1e9, "cuda": 1e11}


#: What runs one after another, each on its part of the problem.
Passes = Sequence[tuple[Variant, ConvProblem]]


@dataclass
class Candidate:
    """A choice of the search: the passes that it runs, how often its call runs them, and seconds that one run took."""

    passes: Passes
    call: Call
    count: int
    seconds: list[float] = field(default_factory=list)

    @property
    def variant(self) -> Variant | None:
        """The one that it runs, None for several."""
        return self.passes[0][0] if len(self.passes) == 1 else None

    @property
    def median(self) -> float:
        """Of what it has taken, infinite where it has not run."""
        return float(np.median(self.seconds)) if self.seconds else math.inf

    def __str__(self) -> str:
        return " + ".join(_named(variant) for variant, _ in self.passes)


def _named(variant: Variant) -> str:
    return ", ".join([variant.name, *(f"{name} {value}" for name, value in sorted(chosen_of(variant).items()))])


def chosen_of(variant: Variant) -> dict[str, int]:
    """Return the tunables of a variant that are not by its own rule."""
    if variant.rule is None:
        return {}
    return {
        name: int(tunable.cuda)  # type: ignore[arg-type]
        for name, tunable in variant.tunables.items()
        if tunable is not variant.rule.tunables[name]
    }


# -- candidates ------------------------------------------------------------------------------------------------------
def neighbours(variant: Variant, problem: ConvProblem, device: Device) -> list[Variant]:
    """Return the variants that differ from one in one tunable, for a problem on a device: small steps first."""
    base, chosen = variant.rule or variant, chosen_of(variant)
    own = {name: tunable.value(device.target, problem) for name, tunable in base.tunables.items()}
    found = []
    for name, tunable in base.tunables.items():
        values = sorted({*tunable.legal, own[name]})
        now = values.index(chosen.get(name, own[name]))
        for i, value in enumerate(values):
            if i != now and value in tunable.legal:
                changed = {key: v for key, v in {**chosen, name: value}.items() if v != own[key]}
                found.append((abs(i - now), pinned(base, tuple(sorted(changed.items())))))
    return [variant for _, variant in sorted(found, key=lambda pair: pair[0])]


def rungs(pass_name: str, problem: ConvProblem, device: Device, seconds: float) -> list[Variant]:
    """Return the rungs to begin with: those made for the kind of device, but none that would take all the time.

    Nor one whose errors have a wider bound than is promised: what is found is taken by calls that name no variant.
    """
    kind = device.kind
    return [
        rung
        for rung in reversed(of_pass(pass_name))
        if kind in rung.auto_on and rung.transforms is None and rung.refusal(problem, device) is None
        and (rung.name != "naive" or problem.flops / _SLOWEST[kind] < seconds / 2)
    ]  # fmt: skip


def why_hopeless(variant: Variant, problem: ConvProblem, device: Any, best: float) -> str | None:
    """Return a sentence on why a variant need not be timed on a GPU, from its machine code, or None.

    `best` are the seconds of the best so far: a lower bound above them is enough.
    """
    from convbackprop.profile.machine_code import Configuration, kernels
    from convbackprop.profile.report import bounds_of_code

    configuration = Configuration(variant, problem.dtype, problem.R, device.architecture, problem, device.target)
    for kernel in kernels(configuration):
        if kernel.spill_bytes:
            return f"{kernel.entry} spills {kernel.spill_bytes} bytes a thread"
        if not kernel.occupancy.blocks:
            return f"a block of {kernel.entry} does not fit a multiprocessor"
    if gpu := gpu_titled(device.title):
        bound = max(bounds_of_code(variant, problem, gpu), key=lambda each: each.seconds)
        if bound.seconds > best:
            return f"{bound.limit} alone takes {1e6 * bound.seconds:.1f} us: {bound.why}"
    return None


# -- the search ------------------------------------------------------------------------------------------------------
class Search:
    """A search for the fastest choice for a pass of a problem.

    Parameters
    ----------
    pass_name, problem, device
        What is searched for.
    seconds : float
        When no new round begins.
    doing : callable
        Gets a line on what goes on.

    Attributes
    ----------
    tried, left_out : int
        Candidates that were timed, and that were not: they do not compile, are wrong, or cannot be good.
    """

    def __init__(self, pass_name: str, problem: ConvProblem, device: Device, seconds: float,
                 doing: Callable[[str], None] = lambda what: None) -> None:  # fmt: skip
        check_timeable(device)
        self.pass_name, self.problem, self.device = pass_name, problem, device
        self.tried = self.left_out = 0
        self._doing = doing
        self._seconds = seconds
        self._end = time.perf_counter() + seconds
        flops = problem.flops / max(1, problem.N)
        self._small = problem.with_(N=min(problem.N, max(1, int(_CHECKED_FLOPS / flops)))) if flops else problem
        self._given = inputs(pass_name, self._small)
        self._expected = reference.answer(pass_name, self._small, self._given)
        self._seen: set[Variant] = set()

    def run(self, rule: Passes, others: Sequence[Passes] = (), hints: Sequence[Variant] = ()) -> Entry:
        """Search, and return the entry for the table.

        Parameters
        ----------
        rule : sequence of (Variant, ConvProblem)
            What the rule of "auto" chooses.
        others : sequence of such
            Other choices of several passes, each of which is known to be right.
        hints : sequence of Variant
            What is fastest on similar problems: where to begin.

        Raises
        ------
        EnvironmentProblem
            What the rule chooses cannot be run, or is wrong.
        """
        given = self._given if self._small is self.problem else inputs(self.pass_name, self.problem)
        with stage(self.device, self.pass_name, self.problem, given) as place:
            best = base = self._base(rule, place)
            for passes in others:
                best = self._best([best, self._placed(passes, place)], place)
            begin = [*hints, *rungs(self.pass_name, self.problem, self.device, self._seconds)]
            best = self._best([best, *self._admitted(begin, place, best)], place)
            while best.variant and time.perf_counter() < self._end:
                near = neighbours(best.variant, self.problem, self.device)
                winner = self._best([best, *self._admitted(near, place, best)], place)
                if winner is best:
                    break
                best = winner
            return self._entry(best, base, place)

    def _base(self, rule: Passes, place: CpuStage) -> Candidate:
        if len(rule) > 1:
            return self._placed(rule, place)
        if admitted := self._admitted([rule[0][0]], place, None):
            return admitted[0]
        raise EnvironmentProblem(
            f"{rule[0][0]}, which the rule chooses for {self.problem}, cannot be run here or is wrong; "
            f"'convbackprop check {rule[0][0]} --problem {self.problem}' tells"
        )

    def _admitted(self, variants: Sequence[Variant], place: CpuStage, best: Candidate | None) -> list[Candidate]:
        """Return candidates of what is new, compiles, may be good and is right; compiled on all cores."""
        new = [variant for variant in dict.fromkeys(variants) if variant not in self._seen]
        self._seen |= set(new)
        found = []
        limit = best.median if best else math.inf
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            jobs = {pool.submit(self._compiled, variant, limit): variant for variant in new}
            for count, job in enumerate(as_completed(jobs), 1):
                self._say(f"compiled {count} of {len(jobs)}", best)
                if best and time.perf_counter() > self._end:
                    break
                if job.result() and (candidate := self._right(jobs[job], place)):
                    found.append(candidate)
        finally:
            pool.shutdown(cancel_futures=True)
        self.left_out += len(new) - len(found)
        return sorted(found, key=lambda candidate: new.index(candidate.passes[0][0]))  # not in the order of compilation

    def _compiled(self, variant: Variant, best: float) -> bool:
        """Compile a variant; return whether that is possible and it may be good."""
        device: Any = self.device
        source = Source.of(variant.path, constants_of(variant, self.problem, device.target))
        try:
            if device.kind == "cpu":
                device.compile(source)
                return True
            cubin(source, device.architecture)
            return why_hopeless(variant, self.problem, device, best) is None
        except ConvBackpropError:
            return False

    def _right(self, variant: Variant, place: CpuStage) -> Candidate | None:
        """Return a candidate of a variant, or None where it cannot be run or is wrong."""
        try:
            if not check(variant, self._small, self.device, given=self._given, expected=self._expected).ok:
                return None
            return self._placed([(variant, self.problem)], place)
        except ConvBackpropError:
            if self.device.kind == "cuda":
                self.device.check_usable()  # type: ignore[attr-defined]
            return None

    def _placed(self, passes: Passes, place: CpuStage) -> Candidate:
        calls = [place.ours(variant, problem) for variant, problem in passes]
        self.tried += 1
        once = place.clock(lambda: [call() for call in calls])
        count = max(1, math.ceil(_REPETITION / once)) if self.device.kind == "cpu" else 1
        calls *= count
        return Candidate(passes, lambda: [call() for call in calls], count, [once])

    # -- timing ------------------------------------------------------------------------------------------------------
    def _turns(self, candidates: Sequence[Candidate], turns: int, place: CpuStage) -> None:
        for turn in range(turns):
            first = turn % len(candidates)
            for candidate in (*candidates[first:], *candidates[:first]):
                candidate.seconds.append(place.clock(candidate.call) / candidate.count)

    def _best(self, candidates: Sequence[Candidate], place: CpuStage) -> Candidate:
        """Return the fastest, by successive halving; the first one where it is not beaten."""
        for candidate in candidates:
            candidate.seconds = []
        alive, turns, first = list(candidates), 2, candidates[0]
        while len(alive) > 1:
            self._turns(alive, turns, place)
            alive.sort(key=lambda candidate: candidate.median)
            fastest = alive[0]
            self._say(f"{self.tried} timed", fastest)
            alive = [c for c in alive[: max(1, len(alive) // 2)] if c.median < _HOPELESS * fastest.median]
            turns *= 2
        winner = alive[0]
        if winner is first:
            return first
        self._turns([first, winner], turns, place)
        return winner if winner.median < first.median else first

    def _say(self, what: str, best: Candidate | None) -> None:
        so_far = f", best {best}, {1e6 * best.median:.1f} us" if best else ""
        self._doing(f"{self.pass_name} on {self.problem}: {what}{so_far}")

    def _entry(self, best: Candidate, base: Candidate, place: CpuStage) -> Entry:
        """Time what has won in turn with the rule's choice, and return the faster one."""
        both = [base] if best is base else [base, best]
        for candidate in both:
            candidate.seconds = []
        start = time.perf_counter()
        for turn in range(_MOST):
            if turn >= _LEAST and time.perf_counter() - start > self._seconds / 4:
                break
            self._turns(both, 1, place)
        us, rule_us = round(1e6 * best.median, 3), round(1e6 * base.median, 3)
        found = Entry(self.pass_name, self.problem, UNTUNED, us=rule_us, rule_us=rule_us,
                      date=time.strftime("%Y-%m-%dT%H:%M:%S%z"))  # fmt: skip
        shares = np.array(best.seconds) / np.array(base.seconds)
        if np.median(shares) > FASTER or np.percentile(shares, 80) >= 1:
            return found
        if best.variant is None:
            return replace(found, variant=SEPARATE, us=us)
        return replace(found, variant=best.variant.name, us=us, tunables=chosen_of(best.variant),
                       code=digest_of(best.variant.rule or best.variant))  # fmt: skip
