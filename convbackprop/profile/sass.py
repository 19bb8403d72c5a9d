"""What a kernel's instructions tell: how wide its loads and stores are, and what its hot loop consists of."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from convbackprop.devices import cache
from convbackprop.devices.compiler import find_nvcc
from convbackprop.errors import CompilerNotFound, EnvironmentProblem

#: The widths of a load or store, in bits.
WIDTHS = (128, 64, 32, 16, 8)

#: The names of fused multiply-adds; those that end in 2 do two at once.
FUSED_MULTIPLY_ADDS = ("FFMA", "FFMA2", "DFMA", "HFMA2")


def multiply_adds(name: str) -> int:
    """Return how many a thread does with an instruction of a name: of FFMA 1, of HFMA2 2, of a matrix product many.

    HMMA.16816 is a warp's, of a 16 x 16 matrix and a 16 x 8 one; HGMMA.64x256x16 that of four warps.
    """
    if match := re.fullmatch(r"HMMA\.16(8)(4|8|16)|HGMMA\.64x(\d+)x(\d+)", name):
        columns, steps = filter(None, match.groups())
        return (16 * int(columns) * int(steps)) // 32
    return (name in FUSED_MULTIPLY_ADDS) * (2 if name.endswith("2") else 1)


# -- getting the instructions ----------------------------------------------------------------------------------------
def find_cuobjdump() -> Path:
    """Return cuobjdump: CONVBACKPROP_CUOBJDUMP, PATH, beside nvcc, from NVIDIA's wheels, from triton's.

    One without nvdisasm, which it calls, does not count.

    Raises
    ------
    EnvironmentProblem
        There is none; the message says what to install.
    """
    candidates = [os.environ.get("CONVBACKPROP_CUOBJDUMP"), "cuobjdump"]
    try:
        nvcc = find_nvcc()
        candidates += [str(nvcc.with_name("cuobjdump")), str(nvcc.resolve().with_name("cuobjdump"))]
    except CompilerNotFound:
        pass
    candidates += [str(found) for folder in sys.path for found in sorted(Path(folder).glob("nvidia/cu*/bin/cuobjdump"))]
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations or ()) if triton else ():
        candidates.append(f"{folder}/backends/nvidia/bin/cuobjdump")
    candidates += ["/usr/local/cuda/bin/cuobjdump"]
    for name in candidates:
        if name and (found := shutil.which(name)):
            beside = Path(found).resolve().parent
            if shutil.which("nvdisasm", path=os.pathsep.join([str(beside), os.environ.get("PATH", "")])):
                return Path(found)
    raise EnvironmentProblem(
        "no cuobjdump with its nvdisasm was found; install the CUDA toolkit, or its wheels of 6 MB (pip install "
        "'convbackprop[sass]'), or name a cuobjdump in CONVBACKPROP_CUOBJDUMP"
    )


def dump(cuobjdump: Path, cubin: Path) -> str:
    """Return the listing of a cubin.

    Raises
    ------
    EnvironmentProblem
        cuobjdump fails; with its message.
    """
    command = [str(cuobjdump), "--dump-sass", str(cubin)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise EnvironmentProblem(f"{cuobjdump} cannot be run: {error.strerror}") from None
    if done.returncode or "Function :" not in done.stdout:
        said = (done.stderr + done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise EnvironmentProblem(f"{cuobjdump} fails: {said[-1]}")
    return done.stdout


# -- reading them ----------------------------------------------------------------------------------------------------
class Instruction(NamedTuple):
    """An instruction as cuobjdump prints it: what it branches to is an address."""

    address: int
    guard: str
    name: str  # such as LDG.E.128.CONSTANT
    operands: str

    @property
    def base(self) -> str:
        """Its name without what is behind the first point."""
        return self.name.partition(".")[0]

    @property
    def width(self) -> int:
        """Bits of a load or store."""
        if self.base == "LDSM":  # a word of each of so many matrices
            return 32 * int(self.name.rpartition(".")[2]) if self.name[-1] in "24" else 32
        found = re.search(r"\.(?:[SU](8|16)|(64|128|256))\b", self.name)
        return int(found[1] or found[2]) if found else 32

    @property
    def is_multiply_add(self) -> bool:
        """Whether it is a fused multiply-add that computes something, or a product of matrices on tensor cores."""
        # HFMA2 R4, -RZ, RZ, 0, 0 is how a constant is moved into a register.
        is_fused = self.base in FUSED_MULTIPLY_ADDS and not re.search(r", -?RZ, -?RZ,", self.operands)
        return is_fused or ("MMA." in self.name and multiply_adds(self.matrices) > 0)

    @property
    def matrices(self) -> str:
        """Its name with the size of the matrices, as in HMMA.16816."""
        return ".".join(self.name.split(".")[:2])


_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P[0-9T]+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")


#: Of nvdisasm's listing: where a function begins, and a name for the address of the next instruction.
SECTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\.L\w+):")


def functions(listing: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each function of a listing: cuobjdump's, or nvdisasm's."""
    found: dict[str, list[Instruction]] = {}
    body: list[Instruction] = []
    addresses: dict[str, int] = {}
    labels: list[str] = []
    for line in listing.splitlines():
        if match := _LINE.match(line):
            address = int(match[1], 16)
            body.append(Instruction(address, (match[2] or "").strip(), match[3], match[4]))
            addresses.update(dict.fromkeys(labels, address))
            labels = []
        elif match := SECTION.match(line):
            body = found.setdefault(match[1], [])
        elif match := _LABEL.match(line):
            labels.append(match[1])
        elif line.lstrip().startswith("Function :"):
            body = found.setdefault(line.partition(":")[2].strip(), [])
    return {name: [_branching(each, addresses) for each in code] for name, code in found.items()}


def _branching(instruction: Instruction, addresses: Mapping[str, int]) -> Instruction:
    """Return an instruction with the addresses that it names: of another function, 0."""
    if "`(" not in instruction.operands:
        return instruction
    named = re.sub(r"`\((.*?)\)", lambda name: hex(addresses.get(name[1], 0)), instruction.operands)
    return instruction._replace(operands=named)


@dataclass(frozen=True)
class Mix:
    """What a stretch of code consists of: counts of instructions; of loads and stores, by their bits."""

    instructions: int = 0
    multiply_adds: int = 0
    global_loads: dict[int, int] = field(default_factory=dict)
    global_stores: dict[int, int] = field(default_factory=dict)
    local_loads: int = 0
    local_stores: int = 0

    @classmethod
    def of(cls, code: Sequence[Instruction]) -> Mix:
        """Count."""
        bases = Counter(instruction.base for instruction in code)
        loads, stores = (
            Counter(instruction.width for instruction in code if instruction.base == base) for base in ("LDG", "STG")
        )
        multiply_adds = sum(instruction.is_multiply_add for instruction in code)
        return cls(len(code), multiply_adds, dict(loads), dict(stores), bases["LDL"], bases["STL"])

    @property
    def share(self) -> float:
        """Of the fused multiply-adds among all instructions."""
        return self.multiply_adds / self.instructions if self.instructions else 0.0


@dataclass(frozen=True)
class Instructions:
    """A kernel as a whole, and its hot loop: the innermost loop that has the most multiply-adds; None without one."""

    whole: Mix
    loop: Mix | None

    @classmethod
    def of(cls, code: Sequence[Instruction]) -> Instructions:
        """Read a kernel."""
        loop = hot_loop(code)
        return cls(Mix.of(code), Mix.of(loop.instructions) if loop else None)


class Loop(NamedTuple):
    """A loop, without the loops in it.

    Attributes
    ----------
    instructions : list of Instruction
        All of it, also what few threads come by, such as the code for an image's border.
    leanest : list of Instruction
        Of the ways round it the one with the fewest instructions for each multiply-add: what a loop in it takes is not
        counted, so no way round does better.
    usual : list of Instruction
        The one that a thread inside the image goes: all multiply-adds and all bytes loaded and stored that a way can
        have, in the fewest instructions.
    """

    instructions: list[Instruction]
    leanest: list[Instruction]
    usual: list[Instruction]

    @property
    def multiply_adds(self) -> int:
        """What a thread multiplies and adds with its instructions, of which HFMA2 does two and HMMA many."""
        return sum(multiply_adds(i.matrices) or multiply_adds(i.base) for i in self.instructions if i.is_multiply_add)


def hot_loop(code: Sequence[Instruction]) -> Loop | None:
    """Return the innermost loop that has the most multiply-adds, or None if no loop has any."""
    return max(multiplying_loops(code), key=lambda loop: loop.multiply_adds, default=None)


def multiplying_loops(code: Sequence[Instruction]) -> list[Loop]:
    """Return the loops that have multiply-adds."""
    return [loop for loop in loops(code) if loop.multiply_adds]


def _blocks(code: Sequence[Instruction]) -> tuple[list[Sequence[Instruction]], list[list[int]]]:
    """Return the basic blocks of a function, and for each the numbers of those that may come next."""
    place = {instruction.address: i for i, instruction in enumerate(code)}
    targets: dict[int, int] = {}  # of the branches, by place
    ends = set()  # the places after which another need not come next
    for i, instruction in enumerate(code):
        if instruction.base == "BRA":
            *conditions, target = re.split(r"[\s,]+", instruction.operands)
            targets[i] = place.get(int(target, 16), i) if target.startswith("0x") else i
            if instruction.name == "BRA" and not instruction.guard and not conditions:
                ends.add(i)
        elif instruction.base in ("EXIT", "RET", "BRX") and not instruction.guard:
            ends.add(i)
    first = sorted({0, *targets.values(), *(i + 1 for i in {*targets, *ends} if i + 1 < len(code))})
    number = {i: n for n, i in enumerate(first)}
    after = []
    for n, end in enumerate([*first[1:], len(code)]):
        following = [number[targets[end - 1]]] if end - 1 in targets else []
        if end - 1 not in ends and end < len(code):
            following.append(n + 1)
        after.append(following)
    return [code[i:end] for i, end in zip(first, [*first[1:], len(code)], strict=True)], after


def loops(code: Sequence[Instruction]) -> Iterator[Loop]:
    """Yield each loop.

    A loop is what can come back to a branch that leads up to a block through which every way to that branch leads: a
    backward branch alone may be one from code that was moved out of the way.
    """
    if not code:
        return
    blocks, after = _blocks(code)
    before: list[list[int]] = [[] for _ in blocks]
    for n, following in enumerate(after):
        for other in following:
            before[other].append(n)
    everywhere = (1 << len(blocks)) - 1
    through = [everywhere] * len(blocks)  # as bits: the blocks through which every way to this one leads
    through[0] = 1
    changed = True
    while changed:
        changed = False
        for n in range(1, len(blocks)):
            ways = functools.reduce(lambda bits, other: bits & through[other], before[n], everywhere) | 1 << n
            changed |= ways != through[n]
            through[n] = ways
    bodies: dict[int, set[int]] = {}
    for n, following in enumerate(after):
        for head in following:
            if through[n] >> head & 1 and through[n] != everywhere:
                body = bodies.setdefault(head, {head})
                new = [n]
                while new:
                    block = new.pop()
                    if block not in body:
                        body.add(block)
                        new += before[block]
    for head, body in bodies.items():
        inner = set().union(*(other for begin, other in bodies.items() if begin != head and begin in body))
        own = {n: blocks[n] if n not in inner else () for n in body}
        everything = [instruction for n in sorted(own) for instruction in own[n]]
        yield Loop(everything, _leanest(head, own, before), _usual(head, own, before))


def _leanest(
    head: int, body: Mapping[int, Sequence[Instruction]], before: Sequence[Sequence[int]]
) -> list[Instruction]:
    """Return the way round a loop with the fewest instructions for each multiply-add.

    Found by Dinkelbach's method ("On nonlinear fractional programming", 1967): the best way if each multiply-add is
    worth 1 and each instruction costs the ratio of the best way so far, until that is the best one.
    """
    ratio, best = 0.0, [head]
    while True:
        worth = {n: (sum(i.is_multiply_add for i in own) - ratio * len(own),) for n, own in body.items()}
        way = _way(head, worth, before)
        code = [instruction for n in way for instruction in body[n]]
        new = sum(instruction.is_multiply_add for instruction in code) / max(1, len(code))
        if new <= ratio:
            return [instruction for n in best for instruction in body[n]]
        ratio, best = new, way


def _usual(head: int, body: Mapping[int, Sequence[Instruction]], before: Sequence[Sequence[int]]) -> list[Instruction]:
    """Return the way round a loop with most multiply-adds, of these most bytes moved, of these fewest instructions."""
    moves = ("LDG", "LDGSTS", "LDS", "LDSM", "STS")
    worth = {
        n: (sum(i.is_multiply_add for i in own), sum(i.width for i in own if i.base in moves), -len(own))
        for n, own in body.items()
    }
    return [instruction for n in _way(head, worth, before) for instruction in body[n]]


def _way(head: int, worth: Mapping[int, tuple[float, ...]], before: Sequence[Sequence[int]]) -> list[int]:
    """Return the blocks of the way round a loop that is worth most; loops within are worth nothing."""
    found, came_from = {head: worth[head]}, {}
    for _ in worth:  # towards every block from the head, one more block at a time
        for n in worth:
            for other in before[n]:
                if n != head and other in found:
                    new = tuple(a + b for a, b in zip(found[other], worth[n], strict=True))
                    if n not in found or new > found[n]:
                        found[n], came_from[n] = new, other
    n = max((other for other in before[head] if other in found), key=lambda other: found[other])
    way = [n]
    while n != head:
        n = came_from[n]
        way.append(n)
    return way[::-1]


# -- both ------------------------------------------------------------------------------------------------------------
def instructions(cuobjdump: Path, cubin: Path) -> dict[str, Instructions]:
    """Return what is to be known of the instructions of each kernel of a cubin; cached beside it."""

    def find() -> str:
        return json.dumps({
            name: [asdict(found.whole), asdict(found.loop) if found.loop else None]
            for name, found in (
                (name, Instructions.of(code)) for name, code in functions(dump(cuobjdump, cubin)).items()
            )
        })  # fmt: skip

    status = cuobjdump.resolve().stat()
    recipe = Path(__file__).read_text(encoding="utf-8")
    name = cache.digest("sass", recipe, cubin.name, str(cuobjdump.resolve()), status.st_size, status.st_mtime_ns)
    known = json.loads(cache.remembered(name, find))
    return {name: Instructions(_mix(whole), _mix(loop) if loop else None) for name, (whole, loop) in known.items()}


def _mix(known: dict) -> Mix:
    widths = {
        name: {int(width): count for width, count in known[name].items()} for name in ("global_loads", "global_stores")
    }
    return Mix(**{**known, **widths})
