"""How long a variant is expected to take on a problem, from what its machine code and its replayed addresses say.

The bounds of `roofline` say how long it takes at least. What it loses besides is mostly waiting: a warp asks for data,
waits, computes and asks again, and too few warps are there to fill the gaps. So the time of a launch is put together
from the times that each resource would take alone (`LIMITS`). None hides the others wholly: they are added as the
lengths of vectors are, with an exponent of their own. Few constants are fitted, each with a meaning (`Constants`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from convbackprop.devices.gpus import SCHEDULERS, Gpu
from convbackprop.ladder.variant import ceil_div
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.profile.roofline import SECTOR, LaunchFacts, duration, line_clocks, percent
from convbackprop.profile.warp import LATENCIES, Turn

#: What takes the time of a launch; "launch" is what it takes before and after.
LIMITS = ("latency", "instruction issue", "L1 cache", "shared memory", "L2 cache", "memory")
_LAUNCH = "launch"

#: Clocks from a load to its data in the first- and second-level cache: Luo et al., arXiv:2402.13499, tables 4 and 5.
_L1_LATENCY, _L2_LATENCY = 35, 270

#: How many times a block waits for memory outside the hot loop: for its first data, and for what it needs at its end.
_WAITS_OUTSIDE = 2

#: A change is worth a word if it wins this much.
_NOTABLE = 1.05

_WARP = 32


@dataclass(frozen=True)
class Constants:
    """What tools/fit_expected.py finds in recorded runs.

    Attributes
    ----------
    start : float
        Seconds of a call with cold caches besides its launches: from one event to the other.
    launch : float
        Seconds of each launch, until its first warp is at work and after its last.
    memory_latency : float
        Seconds from a load to its data in memory, while many others are under way.
    outside : float
        Clocks that a lone warp takes for an instruction outside the hot loop.
    overlap : float
        The exponent with which the resources' times are added: 1 if nothing overlaps, infinite if all is hidden behind
        the longest.
    """

    start: float
    launch: float
    memory_latency: float
    outside: float
    overlap: float


@dataclass(frozen=True)
class Work:
    """What a launch asks of a GPU, in plain numbers.

    Attributes
    ----------
    blocks, warps, resident : int
        Blocks of the grid, warps of a block, and blocks that a multiprocessor holds.
    turns, busiest : float
        Of the hot loop: how many a warp takes, and those of the busiest block over the mean one's.
    turn_issue : float
        Clocks for which a warp's turn occupies its scheduler.
    turn_clocks : tuple of float
        Clocks of a lone warp's turn, for each of the latencies of `warp.LATENCIES`.
    loads : int
        From global memory, in a turn.
    outside : float
        Instructions of a warp outside the hot loop.
    fills : float
        How many times a block fills its shared memory before the hot loop goes on.
    l1_clocks, shared_clocks : float
        That the block's accesses to global and to shared memory take of a multiprocessor.
    asked_bytes, own_bytes, least_bytes : float
        Of the sectors of all requests, of the distinct ones of each block, and those that must come from memory.
    """

    blocks: int
    warps: int
    resident: int
    turns: float
    busiest: float
    turn_issue: float
    turn_clocks: tuple[float, ...]
    loads: int
    outside: float
    fills: float
    l1_clocks: float
    shared_clocks: float
    asked_bytes: float
    own_bytes: float
    least_bytes: float

    @property
    def waits(self) -> float:
        """How many times a warp waits for global memory in a turn."""
        return (self.turn_clocks[-1] - self.turn_clocks[-2]) / (LATENCIES[-1] - LATENCIES[-2])

    def turn_at(self, latency: float) -> float:
        """Return the clocks of a lone warp's turn, if global memory takes so many."""
        return Turn(0, 0, 0, 0, self.turn_clocks).at(latency)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers with five digits."""
        rounded = {name: _five_digits(value) for name, value in asdict(self).items() if name != "turn_clocks"}
        return {**rounded, "turn_clocks": [_five_digits(value) for value in self.turn_clocks]}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Work:
        """Return what `as_json` wrote."""
        return cls(**{**known, "turn_clocks": tuple(known["turn_clocks"])})


def _five_digits(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")


# -- what a launch asks for ------------------------------------------------------------------------------------------
def works(gpu: Gpu, pass_name: str, problem: ConvProblem, launches: Sequence[LaunchFacts]) -> tuple[Work, ...] | None:
    """Return what each launch asks of a GPU; None: of one the machine code or the addresses are not known."""
    found = [_work(gpu, pass_name, problem, launch) for launch in launches]
    return None if None in found else tuple(work for work in found if work)


def _work(gpu: Gpu, pass_name: str, problem: ConvProblem, launch: LaunchFacts) -> Work | None:
    kernel, traffic, code = launch.kernel, launch.traffic, launch.hot.warp if launch.hot else None
    if kernel is None or traffic is None or code is None or not traffic.blocks:
        return None
    warps = ceil_div(math.prod(launch.block), _WARP)
    shared = [line for line in traffic.lines if line.space == "shared"]
    loads = [line for line in traffic.lines if line.space == "global" and line.kind == "load"]
    turn = code.turn or Turn(0, 0, 0, 0, (0.0,) * len(LATENCIES))
    replayed = traffic.blocks * warps  # of warps
    bytes_loaded, bytes_stored = (
        sum(line.lanes * line.bytes for line in shared if line.kind == kind) for kind in ("load", "store")
    )
    flops = PASSES[pass_name].flops(problem) * launch.multiplications if launch.main else 0
    # A turn is known by its multiply-adds. Beyond those of the problem there may be some for nothing, at a tile's edge:
    # the loads from shared memory count them, if nvcc has left these where they are; else those from global memory.
    # nvcc makes one load of several numbers, and leaves out of a wide one what is not used: either their bytes or they
    # themselves are as many as the source has.
    turns = flops / 2 / (launch.blocks * warps * _WARP) / turn.multiply_adds if turn.multiply_adds else 0.0
    by_shared = bytes_loaded / (replayed * _WARP) / turn.shared_bytes if turn.shared_bytes else 0.0
    if turn.shared_loads:
        requests = sum(line.requests for line in shared if line.kind == "load")
        by_shared = min(by_shared, requests / replayed / turn.shared_loads)
    if turn.copies == turn.loads:  # then what is loaded to registers, such as taps, is loaded before the loop
        stored = {(line.file, line.line) for line in shared if line.kind == "store"}
        loads = [line for line in loads if (line.file, line.line) in stored]
    by_loads = sum(line.requests for line in loads) / replayed / turn.loads if turn.loads else 0.0
    turns = by_shared if 0 < by_shared >= turns else max(turns, by_loads)
    is_staged = turn.multiply_adds and not turn.loads and kernel.shared_bytes
    fills = max(1.0, bytes_stored / traffic.blocks / kernel.shared_bytes) if is_staged else 1.0
    return Work(
        blocks=launch.blocks,
        warps=warps,
        resident=max(1, kernel.occupancy.blocks),
        turns=turns,
        busiest=_busiest(pass_name, problem) if launch.main and not launch.all_phases else 1.0,
        turn_issue=turn.issue,
        turn_clocks=turn.clocks,
        loads=turn.loads,
        outside=code.once + code.around * fills,
        fills=fills,
        l1_clocks=sum(line_clocks(gpu, line) for line in traffic.lines if line.space == "global") / traffic.blocks,
        shared_clocks=sum(line_clocks(gpu, line) for line in shared) / traffic.blocks,
        asked_bytes=launch.scale * SECTOR * sum(line.sectors for line in traffic.lines),
        own_bytes=launch.own_bytes,
        least_bytes=PASSES[pass_name].least_bytes(problem) if launch.main else launch.own_bytes,
    )


def _busiest(pass_name: str, problem: ConvProblem) -> float:
    """Return how many more taps meet the busiest pixel of dx than the mean one: a stride leaves gaps between them."""
    if pass_name != "input_grad":
        return 1.0
    down, across = problem.stride_h, problem.stride_w
    return (ceil_div(problem.R, down) * down / problem.R) * (ceil_div(problem.S, across) * across / problem.S)


# -- how long it takes -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Expected:
    """The expected time, and what takes it.

    Attributes
    ----------
    seconds : float
        With cold caches.
    parts : mapping of str to float
        Seconds that each of `LIMITS` and "launch" adds to it, the longest first.
    wins : mapping of str to float
        Seconds that it would take after a change, by the change; the shortest first.
    """

    seconds: float
    parts: Mapping[str, float]
    wins: Mapping[str, float]

    @property
    def limit(self) -> str:
        """What takes most of the time."""
        return next(iter(self.parts))

    def sentence(self, floor: float) -> str:
        """Return all of it in one sentence, beside the seconds of the floor."""
        shares = [f"{percent(part / self.seconds)} {name}" for name, part in self.parts.items()
                  if part >= 0.05 * self.seconds]  # fmt: skip
        times = f"{self.seconds / floor:.1f} times the floor"
        text = f"Expected: {duration(self.seconds)}, {times}, of which {', '.join(shares)}"
        if self.wins:
            text += "; " + ", ".join(f"with {what} {duration(seconds)}" for what, seconds in self.wins.items())
        return f"{text}."


def expected(gpu: Gpu, of: Sequence[Work], constants: Constants | None = None) -> Expected:
    """Return how long launches are expected to take, one after another.

    Parameters
    ----------
    gpu : Gpu
        Where.
    of : sequence of Work
        What each launch asks for.
    constants : Constants, optional
        Default: `FITTED`.
    """
    known = constants or FITTED
    total, parts = _time(gpu, of, known)
    wins = {}
    for what, change in _CHANGES.items():
        seconds, _ = _time(gpu, [change(work) for work in of], known)
        if seconds * _NOTABLE < total:
            wins[what] = seconds
    return Expected(
        total,
        dict(sorted(parts.items(), key=lambda part: -part[1])),
        dict(sorted(wins.items(), key=lambda win: win[1])),
    )


def _time(gpu: Gpu, of: Sequence[Work], constants: Constants) -> tuple[float, dict[str, float]]:
    """Return the seconds of launches, and of these what each limit adds."""
    parts = {name: 0.0 for name in LIMITS} | {_LAUNCH: constants.start + constants.launch * len(of)}
    for work in of:
        alone = alone_seconds(gpu, work, constants)
        powers = {name: seconds**constants.overlap for name, seconds in alone.items()}
        whole = sum(powers.values())
        for name, power in powers.items():
            parts[name] += whole ** (1 / constants.overlap) * power / whole if whole else 0.0
    return sum(parts.values()), parts


def alone_seconds(gpu: Gpu, work: Work, constants: Constants) -> dict[str, float]:
    """Return how long a launch takes if one of `LIMITS` were all there is, for each of them."""
    blocks = ceil_div(work.blocks, gpu.sms)  # of the busiest multiprocessor
    rounds = ceil_div(blocks, work.resident)
    latency = _latency(gpu, work, constants)
    block = work.turns * work.busiest * work.turn_at(latency)
    block += constants.outside * work.outside + _WAITS_OUTSIDE * work.fills * latency
    issued = (work.turns * work.turn_issue + work.outside) * work.warps / SCHEDULERS
    return {
        "latency": rounds * block / gpu.clock,
        "instruction issue": blocks * issued / gpu.clock,
        "L1 cache": blocks * work.l1_clocks / gpu.clock,
        "shared memory": blocks * work.shared_clocks / gpu.clock,
        "L2 cache": work.own_bytes / gpu.l2,
        "memory": work.least_bytes / gpu.memory,
    }


def _latency(gpu: Gpu, work: Work, constants: Constants) -> float:
    """Return the clocks for which a warp waits: of several loads for the slowest, which may be in a cache or not.

    A block's distinct sectors are not in the first-level cache yet when they are asked for, and of the sectors of all
    blocks those that must come from memory are not in the second-level one.
    """
    together = max(1.0, work.loads / work.waits) if work.waits > 0.01 else 1.0
    misses_l1 = min(1.0, together * work.own_bytes / work.asked_bytes) if work.asked_bytes else 1.0
    misses_l2 = min(1.0, work.least_bytes / work.own_bytes) if work.own_bytes else 1.0
    beyond = _L2_LATENCY * (1 - misses_l2) + constants.memory_latency * gpu.clock * misses_l2
    return _L1_LATENCY * (1 - misses_l1) + beyond * misses_l1


# -- changes ---------------------------------------------------------------------------------------------------------
def _ahead(work: Work) -> Work:
    clocks = tuple(max(work.turn_clocks[0], float(latency)) for latency in LATENCIES)
    return replace(work, turn_clocks=clocks) if work.waits > 0.01 else work


#: What might be done to a kernel, and what a launch would then ask for.
_CHANGES = {
    "loads asked for a turn ahead": _ahead,
    "twice the blocks at once": lambda work: replace(work, resident=2 * work.resident),
}

#: From the run on an H200 of 2026-11-28.
FITTED = Constants(start=10e-6, launch=1.9e-6, memory_latency=376e-9, outside=1.07, overlap=1.71)
