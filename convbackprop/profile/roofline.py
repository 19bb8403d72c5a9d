"""The roofline's verdict: how long a problem takes at least, how long a kernel does, and what to change first.

Each limit is a lower bound on the time: so much work, at the most that the GPU does of it in a second. Those of the
problem, "memory" and "arithmetic", hold for any implementation (Williams, Waterman and Patterson, "Roofline: An
Insightful Visual Performance Model for Multicore Architectures", 2009). Those of the kernel come from its machine code
and its replayed addresses. The greatest is what a kernel reaches if all else is hidden behind it; `expected` estimates
what it takes, as it is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convbackprop.devices.gpus import LATENCY, Gpu
from convbackprop.ladder.variant import ceil_div
from convbackprop.problem import DTYPES, PASSES, ConvProblem
from convbackprop.profile.hot_loop import HotLoop
from convbackprop.profile.machine_code import Kernel
from convbackprop.profile.traffic import KernelTraffic, LineTraffic

#: Bytes of a sector, the least that a cache hands out.
SECTOR = 32

_WARP = 32

#: A figure that is so many times the least one is worth a change.
_NOTABLE = 1.25


@dataclass(frozen=True)
class LaunchFacts:
    """What is known of one launch of a variant; None: not known.

    Attributes
    ----------
    main : bool
        Whether it does the multiply-adds.
    multiplications : float
        How many of these there are for each of the problem's own.
    all_phases : bool
        As the variant has it.
    """

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    main: bool
    kernel: Kernel | None = None
    hot: HotLoop | None = None
    traffic: KernelTraffic | None = None
    multiplications: float = 1.0
    all_phases: bool = False

    @property
    def blocks(self) -> int:
        """Of the grid."""
        return math.prod(self.grid)

    @property
    def scale(self) -> float:
        """How many times the replayed blocks the grid is."""
        return self.blocks / self.traffic.blocks if self.traffic and self.traffic.blocks else 0.0

    @property
    def own_bytes(self) -> float:
        """Bytes of the distinct sectors that each block asks for, over all blocks."""
        if self.traffic is None:
            return 0.0
        return self.scale * SECTOR * sum(each.loaded_sectors + each.stored_sectors for each in self.traffic.arrays)


@dataclass(frozen=True)
class Bound:
    """A limit, the least time that it allows, and the work that takes so long."""

    limit: str
    seconds: float
    why: str


@dataclass(frozen=True)
class Verdict:
    """What follows from the bounds.

    Attributes
    ----------
    floor : Bound
        The greater of "memory" and "arithmetic": no implementation is faster.
    binding : Bound
        The greatest of all.
    advice : str
        What to change first.
    known : bool
        Whether anything is known of the kernel itself.
    """

    floor: Bound
    binding: Bound
    advice: str
    known: bool

    @property
    def share(self) -> float:
        """How much of the floor's speed the kernel can reach at most."""
        return self.floor.seconds / self.binding.seconds if self.binding.seconds else 1.0

    def sentence(self, name: str, gpu: Gpu) -> str:
        """Return all of it in one sentence."""
        floor = f"the floor on the {gpu} is {duration(self.floor.seconds)} ({self.floor.limit}: {self.floor.why})"
        if not self.known:
            return f"{floor[0].upper()}{floor[1:]}; of {name} itself nothing is known."
        limit = f"{name} is limited by {self.binding.limit}"
        reach = f"of which it reaches at most {percent(self.share)}"
        if self.binding != self.floor:
            limit += f" ({self.binding.why})"
            reach += f", in {duration(self.binding.seconds)}"
        return f"{limit}: {floor}, {reach}; change first: {self.advice}."


# -- numbers as text -------------------------------------------------------------------------------------------------
def duration(seconds: float) -> str:
    """Return a time with three digits, in us, ms or s."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds)} s"


def amount(number: float, unit: str, apart: bool = False) -> str:
    """Return a number with three digits and a decimal prefix, as in "134 MB" or, apart, "28.3 M requests"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{_three_digits(number / size)} {prefix}{' ' if apart else ''}{unit}"
    return f"{number:.0f} {unit}"


def percent(share: float) -> str:
    """Return a share in percent, with a digit behind the point below 10; less than all is never 100 %."""
    whole = 100 * share
    return f"{whole:.1f} %" if whole < 9.95 else f"{min(whole, 99.0) if 99 < whole < 100 else whole:.0f} %"


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _three_digits(number: float) -> str:
    if number >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"


# -- the bounds ------------------------------------------------------------------------------------------------------
def read_bytes(pass_name: str, problem: ConvProblem) -> int:
    """Return the bytes that any implementation reads: each input once."""
    return sum(operand.bytes(problem) for operand in PASSES[pass_name].present(problem) if not operand.written)


def bounds(gpu: Gpu, pass_name: str, problem: ConvProblem, launches: Sequence[LaunchFacts]) -> tuple[Bound, ...]:
    """Return every limit that follows from what is known.

    Parameters
    ----------
    gpu : Gpu
        Where.
    pass_name, problem
        What is computed.
    launches : sequence of LaunchFacts
        One after another: of each limit their times add up.

    Returns
    -------
    tuple of Bound
        First the two of the problem, then those of the kernel.
    """
    least = PASSES[pass_name].least_bytes(problem)
    flops = PASSES[pass_name].flops(problem) * min((launch.multiplications for launch in launches), default=1.0)
    on_tensor_cores = any(launch.main and launch.hot and launch.hot.on_tensor_cores for launch in launches)
    peak = gpu.peak(problem.dtype, on_tensor_cores) or math.inf
    found = [
        Bound("memory", least / gpu.memory, f"{amount(least, 'B')} at {amount(gpu.memory, 'B/s')}"),
        Bound("arithmetic", flops / peak, f"{amount(flops, 'FLOP')} at {amount(peak, 'FLOP/s')}"),
    ]
    for launch in launches:
        if launch.main and launch.hot:
            found += _of_hot_loop(gpu, pass_name, problem, launch, launch.hot)
    if any(launch.traffic for launch in launches):
        found += _of_addresses(gpu, launches)
    return tuple(found)


def _uneven(gpu: Gpu, blocks: int) -> float:
    """Return by how much the busiest multiprocessor has more blocks than the mean one."""
    return ceil_div(blocks, gpu.sms) * gpu.sms / blocks if blocks else 1.0


def _of_hot_loop(gpu: Gpu, pass_name: str, problem: ConvProblem, launch: LaunchFacts, hot: HotLoop) -> list[Bound]:
    """Return the limits that follow from the hot loop, if the kernel has one."""
    if not hot.is_loop or not hot.multiply_adds:
        return []
    found = []
    # Of warps, if every multiply-add of the problem comes with its part of the leanest way round the loop.
    multiply_adds = PASSES[pass_name].flops(problem) / 2 * launch.multiplications
    instructions = multiply_adds / hot.multiply_adds * hot.instructions / _WARP
    counted = _counted(hot.multiply_adds, "multiply-add")
    why = f"at best {hot.instructions:,} instructions for {counted} in the hot loop"
    seconds = instructions / gpu.issue * _uneven(gpu, launch.blocks)
    found.append(Bound("instruction issue", seconds, why + _idle(gpu, launch.blocks)))
    if hot.loaded_bytes and launch.kernel:
        # What a thread loads in one turn is all that it can have under way: Little's law, as in Volkov, "Better
        # Performance at Lower Occupancy", 2010.
        resident = min(launch.blocks, gpu.sms * launch.kernel.occupancy.blocks)
        under_way = resident * launch.kernel.threads * hot.loaded_bytes
        if under_way:
            seconds = read_bytes(pass_name, problem) / under_way * LATENCY / gpu.clock
            each = f"{launch.kernel.occupancy.warps} warps, {hot.loaded_bytes} B a thread"
            why = f"{amount(under_way / gpu.sms, 'B')} under way a multiprocessor: {each}"
            found.append(Bound("latency", seconds, why))
    return found


def _idle(gpu: Gpu, blocks: int) -> str:
    """Return what to say of a grid that leaves multiprocessors without work."""
    return f", on {blocks:,} of {gpu.sms} multiprocessors" if 0 < blocks < gpu.sms else ""


def line_clocks(gpu: Gpu, line: LineTraffic) -> float:
    """Return the clocks that a multiprocessor's loads and stores of a line take, all replayed blocks on one."""
    if line.space == "shared":
        return line.wavefronts
    return max(line.requests, line.sectors * SECTOR / gpu.multiprocessor.l1_bytes)


def _of_addresses(gpu: Gpu, launches: Sequence[LaunchFacts]) -> list[Bound]:
    """Return the limits that follow from the replayed addresses."""
    own = sum(launch.own_bytes for launch in launches)
    found = [Bound("L2 cache", own / gpu.l2, f"{amount(own, 'B')} in sectors of a block at {amount(gpu.l2, 'B/s')}")]
    for limit, space, what in (("L1 cache", "global", "sectors"), ("shared memory", "shared", "wavefronts")):
        seconds, work, requests = 0.0, 0.0, 0.0
        for launch in launches:
            for line in launch.traffic.lines if launch.traffic else ():
                if line.space == space:
                    share = launch.scale * _uneven(gpu, launch.blocks) / gpu.sms / gpu.clock
                    seconds += line_clocks(gpu, line) * share
                    work += launch.scale * (line.sectors if space == "global" else line.wavefronts)
                    requests += launch.scale * line.requests
        if requests:
            why = f"{amount(requests, 'requests', apart=True)} of {work / requests:.1f} {what}"
            found.append(Bound(limit, seconds, why))
    return found


# -- the verdict -----------------------------------------------------------------------------------------------------
def verdict(
    gpu: Gpu, pass_name: str, problem: ConvProblem, launches: Sequence[LaunchFacts], found: Sequence[Bound]
) -> Verdict:
    """Return what follows from the bounds."""
    floor = max(found[:2], key=lambda bound: bound.seconds)
    binding = max(found, key=lambda bound: bound.seconds)  # of equals the first: the floor
    return Verdict(floor, binding, _advice(gpu, pass_name, problem, launches, binding), len(found) > 2)


def _advice(gpu: Gpu, pass_name: str, problem: ConvProblem, launches: Sequence[LaunchFacts], binding: Bound) -> str:
    main = next(launch for launch in launches if launch.main)
    if main.kernel and main.kernel.spill_bytes:
        return (
            f"the spills ({main.kernel.spill_bytes:,} bytes a thread): fewer values that live at once, or a higher "
            "limit in __launch_bounds__"
        )
    on_multiprocessors = binding.limit in ("instruction issue", "L1 cache", "shared memory", "latency")
    if on_multiprocessors and _uneven(gpu, main.blocks) > _NOTABLE:
        return f"the grid: {main.blocks:,} blocks are too few, or too uneven, for {gpu.sms} multiprocessors"
    return {
        "memory": lambda: _fewer_bytes(pass_name, problem),
        "arithmetic": lambda: "the method: fewer multiplications (Winograd), or tensor cores",
        "instruction issue": lambda: _fewer_instructions(main.hot),
        "latency": lambda: _more_under_way(main.kernel),
        "L2 cache": lambda: _fewer_sectors_a_block(pass_name, problem, launches),
        "L1 cache": lambda: _better_requests(launches),
        "shared memory": lambda: _fewer_wavefronts(launches),
    }[binding.limit]()


def _fewer_bytes(pass_name: str, problem: ConvProblem) -> str:
    if pass_name != "forward" and problem.saved == "output" and problem.activation == "relu":
        return "the bytes: the ReLU's bit mask (mask=1) in place of y, or a 16-bit dtype"
    if DTYPES[problem.dtype] > 2:
        return "the bytes: a 16-bit dtype, or one pass over memory for several results"
    return "the bytes: one pass over memory for several results"


def _fewer_instructions(hot: HotLoop | None) -> str:
    """Name what the hot loop has most of besides multiply-adds."""
    kinds: dict[str, int] = {}
    for name, count in hot.leanest.items() if hot else ():
        if not name.startswith(("FFMA", "DFMA", "HFMA2")):
            kinds[name.partition(".")[0]] = kinds.get(name.partition(".")[0], 0) + count
    name = max(kinds, key=lambda kind: kinds[kind], default="integer")
    there = f"{kinds.get(name, 0):,} {name} instructions in the hot loop"
    return {
        "integer": f"the index arithmetic ({there}): offsets formed once, outside the loop",
        "control": f"the branches ({there}): loops of known length, unrolled",
        "move": f"the moves ({there}): unroll, so that values stay in their registers",
        "float": f"the arithmetic beside the multiply-adds ({there}): sums in several parts, conversions done once",
        "LDS": f"the loads from shared memory ({there}): a tile of results a thread, so that each is used again",
        "LDG": f"the loads ({there}): wider ones, each used for several results",
    }.get(name, f"the {there}")


def _more_under_way(kernel: Kernel | None) -> str:
    limited = f", which {' and '.join(kernel.occupancy.limited_by)} limit" if kernel else ""
    return f"the bytes under way: more or wider loads before the first use, or more warps{limited}"


def _fewer_sectors_a_block(pass_name: str, problem: ConvProblem, launches: Sequence[LaunchFacts]) -> str:
    """Name the array whose sectors are asked for most often."""
    asked: dict[str, float] = {}
    for launch in launches:
        for each in launch.traffic.arrays if launch.traffic else ():
            sectors = each.loaded_sectors + each.stored_sectors
            asked[each.name] = asked.get(each.name, 0.0) + launch.scale * SECTOR * sectors
    name = max(asked, key=lambda array: asked[array])
    least = {o.name: o.bytes(problem) for o in PASSES[pass_name].operands}
    times = f", {asked[name] / least[name]:.1f} times its size" if least.get(name) else ""
    return f"what blocks ask for twice: {amount(asked[name], 'B')} of {name}{times}; larger tiles a block"


def _costliest(launches: Sequence[LaunchFacts], space: str) -> LineTraffic | None:
    """Return the line with the most sectors or wavefronts."""
    lines = [
        (launch.scale * (line.sectors if space == "global" else line.wavefronts), line)
        for launch in launches
        for line in (launch.traffic.lines if launch.traffic else ())
        if line.space == space
    ]
    return max(lines, key=lambda pair: pair[0])[1] if lines else None


def _better_requests(launches: Sequence[LaunchFacts]) -> str:
    line = _costliest(launches, "global")
    if line is None:
        return "the loads"
    where, sectors = f"{line.file.name}:{line.line}", line.sectors / line.requests
    if line.sectors > _NOTABLE * line.least_sectors:
        least = line.least_sectors / line.requests
        return (
            f"the {line.kind}s of {where}: {sectors:.1f} sectors a request where {least:.1f} would do; neighbouring "
            "threads should take neighbouring addresses"
        )
    return (
        f"the {line.kind}s of {where} ({line.bytes} bytes a thread): wider ones, each used for several results, or "
        "shared memory"
    )


def _fewer_wavefronts(launches: Sequence[LaunchFacts]) -> str:
    line = _costliest(launches, "shared")
    if line is None:
        return "the accesses to shared memory"
    where = f"{line.file.name}:{line.line}"
    if line.wavefronts > _NOTABLE * line.least_wavefronts:
        return (
            f"the bank conflicts of {where}: {line.wavefronts / line.requests:.1f} wavefronts a request where "
            f"{line.least_wavefronts / line.requests:.1f} would do; pad the rows of the tile"
        )
    return f"the {line.kind}s of {where}: a tile of results a thread, so that each is used several times"
