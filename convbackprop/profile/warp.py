"""What one warp meets in a kernel's machine code: how long a turn of the hot loop takes, if no other warp is there.

A warp issues its instructions in their order, each when the registers that it reads and writes are ready. What is
known of a pipe is how long it takes and how often it accepts a warp; of memory, nothing: a turn is timed for several
latencies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convbackprop.profile import sass
from convbackprop.profile.sass import Instruction, Loop

#: Clocks from a load of global memory to its data for which a turn is timed; between them and beyond, a line is drawn.
LATENCIES = (0, 500, 1000, 2000)

#: Turns that are timed before those that count: loads may be asked for some turns ahead.
_TURNS_BEFORE = 3

#: Clocks to a result, and clocks between two warps of a scheduler in the pipe. Throughputs: CUDA C++ Programming Guide,
#: "Throughput of Native Arithmetic Instructions", for 9.0. Latencies of Volta to Hopper: arXiv:1804.06826, table 4.1;
#: Luo et al., arXiv:2402.13499. HMMA: a scheduler's tensor core multiplies and adds 512 16-bit numbers a clock, which
#: mma.sync reaches 63 % of (the same, section 5): 16 x 8 x 16 in 6.4 clocks; of TF32 half as many.
_PIPES = (
    (("HMMA",), 33, 6.4),
    (("MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"), 24, 8),
    (("DFMA", "DADD", "DMUL", "DSETP", "DMNMX"), 8, 2),
    (("LDS", "LDSM", "ATOMS"), 29, 1),
    (("LDC", "ULDC", "LDL"), 30, 1),
    (("S2R", "S2UR", "R2UR", "SHFL", "VOTE"), 24, 1),
)
_USUAL_LATENCY = 5
_FROM_GLOBAL = ("LDG", "ATOMG", "ATOM")

#: Clocks for which a warp issues nothing more: at a barrier that all have reached, and after a branch.
_BARRIER, _BRANCH = 20, 4

#: Integer and logic have half the lanes of a scheduler; IMAD, MOV and the uniform ones go elsewhere.
_HALF_RATE = ("IADD", "IABS", "ISETP", "IMNMX", "LEA", "LOP", "SHF", "SEL", "PRMT", "SGXT", "VIADD", "VIMNMX", "BMSK",
              "PLOP3", "P2R", "R2P", "FSEL", "FSETP", "FMNMX")  # fmt: skip

_NO_RESULT = ("STG", "STS", "STL", "ST", "RED", "BAR", "BRA", "BRX", "EXIT", "RET", "CALL", "BSSY", "BSYNC", "WARPSYNC",
              "NOP", "DEPBAR", "LDGDEPBAR", "LDGSTS")  # fmt: skip
_TWO_RESULTS = ("ISETP", "FSETP", "DSETP", "HSETP2", "PLOP3", "VOTE")
_REGISTER = re.compile(r"(?<![A-Z0-9_])(U?P|U?R)(\d+)(\.64)?")


@dataclass(frozen=True)
class Turn:
    """One turn of the hot loop, on the usual way round it.

    Attributes
    ----------
    multiply_adds, loads, shared_bytes, shared_loads, copies : int
        Of a thread: what it multiplies and adds, its loads from global memory, the bytes that it loads from shared
        memory, in how many loads, and how many of the loads from global memory are copies to shared memory.
    issue : int
        Clocks for which the warp occupies its scheduler, or the busiest pipe behind it.
    clocks : tuple of float
        That a turn of a lone warp takes, for each of `LATENCIES`.
    """

    multiply_adds: int
    loads: int
    shared_bytes: int
    issue: float
    clocks: tuple[float, ...]
    shared_loads: int = 0
    copies: int = 0

    @classmethod
    def of(cls, way: Sequence[Instruction]) -> Turn:
        """Time a way round a loop."""
        fused = Loop(list(way), [], []).multiply_adds
        loads = sum(i.base in ("LDG", "LDGSTS") for i in way)
        shared = [i.width // 8 for i in way if i.base in ("LDS", "LDSM") and i.guard != "@!PT"]  # that: never
        pipes = [sum(every for i in way if i.base in names) for names, _, every in _PIPES if every > 1]
        halves = 2 * sum(i.base.startswith(_HALF_RATE) for i in way)
        registers = [_registers(i) for i in way]
        clocks = tuple(_clocks(way, registers, latency) for latency in LATENCIES)
        copies = sum(i.base == "LDGSTS" for i in way)
        return cls(fused, loads, sum(shared), max(len(way), halves, *pipes), clocks, len(shared), copies)

    @property
    def waits(self) -> float:
        """How many times a lone warp waits for global memory, one time after another."""
        return (self.clocks[-1] - self.clocks[-2]) / (LATENCIES[-1] - LATENCIES[-2])

    def at(self, latency: float) -> float:
        """Return the clocks of a turn if global memory takes so many."""
        i = next((i for i in range(1, len(LATENCIES)) if latency <= LATENCIES[i]), len(LATENCIES) - 1)
        slope = (self.clocks[i] - self.clocks[i - 1]) / (LATENCIES[i] - LATENCIES[i - 1])
        return self.clocks[i] + slope * (latency - LATENCIES[i])


@dataclass(frozen=True)
class WarpCode:
    """A kernel's code as a warp goes through it.

    Attributes
    ----------
    turn : Turn or None
        Of the hot loop, or in a kernel that does not do the products of the loop that loads most; None: it has no such.
        nvcc unrolls a loop of unknown length and puts the remainder behind it, in a loop with fewer multiply-adds: a
        turn is then one of each.
    once : int
        Instructions outside all loops.
    around : int
        Instructions of a turn of each other loop.
    """

    turn: Turn | None
    once: int
    around: int

    @classmethod
    def of(cls, code: Sequence[Instruction], multiplies: bool = True) -> WarpCode:
        """Read a kernel; not `multiplies`: of those that pack factors or add up parts.

        Their only multiply-adds, if they have any, form a result anew that was NaN, which hardly any thread ever does.
        """
        loops = list(sass.loops(code))
        hot = sass.hot_loop(code) if multiplies else None
        products = hot.multiply_adds if hot else 0
        hot = hot or max((loop for loop in loops if _loaded(loop)), key=_loaded, default=None)
        once = len(code) - sum(len(loop.instructions) for loop in loops)
        if hot is None:
            return cls(None, once, sum(len(loop.usual) for loop in loops))
        taken = [hot, *(loop for loop in loops if loop != hot and 2 * loop.multiply_adds >= products > 0)]
        around = sum(len(loop.usual) for loop in loops if loop not in taken)
        return cls(Turn.of([instruction for loop in taken for instruction in loop.usual]), once, around)

    @classmethod
    def from_json(cls, known: Sequence[Any]) -> WarpCode:
        """Return what `as_json` wrote."""
        turn, once, around = known
        if turn is None:
            return cls(None, once, around)
        multiply_adds, loads, shared_bytes, issue, clocks, *others = turn
        return cls(Turn(multiply_adds, loads, shared_bytes, issue, tuple(clocks), *others), once, around)

    def as_json(self) -> list[Any]:
        """Return all of it as JSON knows it."""
        turn = self.turn
        fields = turn and [
            turn.multiply_adds, turn.loads, turn.shared_bytes, turn.issue, turn.clocks, turn.shared_loads, turn.copies
        ]  # fmt: skip
        return [fields, self.once, self.around]


def _loaded(loop: Loop) -> int:
    return sum(i.width for i in loop.usual if i.base in ("LDG", "LDGSTS"))


# -- one warp --------------------------------------------------------------------------------------------------------
def groups_ahead(way: Sequence[Instruction]) -> int:
    """Return of how many groups of asynchronous copies all may be under way at once: 0 without such copies."""
    if not any(i.base == "LDGDEPBAR" for i in way):
        return 0
    return max((1 + _left_under_way(i) for i in way if i.base == "DEPBAR"), default=1)


def turns_ahead(way: Sequence[Instruction]) -> float:
    """Return for how many turns copies are under way before they are waited for: as many hide the latency."""
    return groups_ahead(way) / max(1, sum(i.base == "LDGDEPBAR" for i in way))


def _left_under_way(wait: Instruction) -> int:
    """Return how many groups a DEPBAR does not wait for."""
    return int(wait.operands.rpartition(",")[2].strip() or "0", 16)


def _clocks(way: Sequence[Instruction], registers: Sequence[tuple[list[str], list[str]]], latency: int) -> float:
    """Return the clocks of a turn once the turns before have filled the pipes.

    Copies that are waited for some groups later arrive so many at a time: the mean is of as many turns.
    """
    ready: dict[str, float] = {}
    groups: list[float] = []  # when the asynchronous copies that were committed together are there
    copies, now, before = 0.0, 0.0, 0.0
    steps = [(i, i.base, *own, *_pipe(i, latency)) for i, own in zip(way, registers, strict=True)]
    alike = max(1, groups_ahead(way))
    for turn in range(_TURNS_BEFORE + 2 * alike - 1):
        if turn == _TURNS_BEFORE + alike - 1:
            before = now
        for instruction, base, results, sources, takes, every in steps:
            at = max([now, *(ready.get(register, 0.0) for register in (*sources, *results))])
            if base == "LDGSTS":
                copies = max(copies, at + latency)
            elif base == "LDGDEPBAR":
                groups.append(copies)
            elif base == "DEPBAR" and groups:
                at = max([at, *groups[: max(0, len(groups) - _left_under_way(instruction))]])
            now = at + every + {"BAR": _BARRIER, "BRA": _BRANCH}.get(base, 0)
            ready.update(dict.fromkeys(results, at + takes))
    return (now - before) / alike


def _pipe(instruction: Instruction, latency: int) -> tuple[int, float]:
    """Return the clocks to an instruction's result, and until its scheduler can issue the next."""
    if instruction.base in _FROM_GLOBAL:
        return latency, 1
    return next(((takes, every) for names, takes, every in _PIPES if instruction.base in names), (_USUAL_LATENCY, 1))


def _registers(instruction: Instruction) -> tuple[list[str], list[str]]:
    """Return the registers and predicates that an instruction writes, and those that it reads."""
    operands = [operand.strip() for operand in instruction.operands.split(",")]
    words = max(1, instruction.width // 32)
    double = 2 if instruction.base in ("DFMA", "DADD", "DMUL") else 1
    sources = _named(instruction.guard)
    if instruction.base in _NO_RESULT:
        is_store = instruction.base.startswith("ST")
        for operand in operands:
            sources += _named(operand, words if is_store and not operand.startswith(("[", "desc")) else 1)
        return [], sources
    if instruction.base == "HMMA":  # a lane's words of the sums, of both factors, and of the sums before
        sums, *factors = (_named(operand, words) for operand, words in zip(operands, (4, 4, 2, 4), strict=True))
        return sums, sources + [register for each in factors for register in each]
    carries = len(operands) > 1 and re.fullmatch(r"U?P\d", operands[1]) is not None
    count = 2 if instruction.base in _TWO_RESULTS or carries else 1
    wide = words if instruction.base.startswith(("LD", "ULD")) else 2 if "WIDE" in instruction.name else double
    results = [register for operand in operands[:count] for register in _named(operand, wide)]
    return results, sources + [register for operand in operands[count:] for register in _named(operand, double)]


def _named(operand: str, words: int = 1) -> list[str]:
    """Return the registers of an operand: so many, one after another, where it names the first."""
    found = []
    for kind, number, pair in _REGISTER.findall(operand):
        count = 1 if kind.endswith("P") else 2 if pair else words
        found += [f"{kind}{int(number) + i}" for i in range(count)]
    return found
