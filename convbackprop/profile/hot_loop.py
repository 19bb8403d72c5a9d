"""What a kernel's hot loop is made of, by kind of instruction and by line of source.

The hot loop is the innermost one with the most multiply-adds; a kernel without one is looked at as a whole.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convbackprop.devices import cache
from convbackprop.devices.gpus import INSTRUCTION_BYTES
from convbackprop.errors import EnvironmentProblem
from convbackprop.profile import sass, warp
from convbackprop.profile.sass import Instruction
from convbackprop.profile.warp import WarpCode

#: Products of matrices.
_TENSOR_CORES = ("HMMA", "IMMA", "DMMA", "QMMA", "HGMMA", "UTCHMMA")

#: Kinds of instructions by the beginnings of their names, the first that fits; a load or store has its bits behind it.
#: Names: NVIDIA, "CUDA Binary Utilities", "Instruction Set Reference".
_KINDS = (
    ("LDG", ("LDG",)),
    ("STG", ("STG",)),
    ("LDGSTS", ("LDGSTS", "LDGDEPBAR")),
    ("LDS", ("LDS",)),
    ("STS", ("STS",)),
    ("local", ("LDL", "STL")),
    ("atomic", ("ATOM", "RED")),
    ("constant", ("LDC", "ULDC")),
    ("tensor", _TENSOR_CORES),
    ("control", ("BRA", "BRX", "JMP", "EXIT", "RET", "CALL", "BSSY", "BSYNC", "BREAK", "BMOV", "WARPSYNC", "BAR", "NOP",
                 "YIELD", "DEPBAR", "NANOSLEEP", "KILL", "PLOP3", "VOTE", "UBRA")),
    ("move", ("MOV", "UMOV", "IMAD.MOV", "CS2R", "S2R", "S2UR", "R2UR", "P2R", "R2P", "SHFL", "PRMT")),
    ("float", ("FADD", "FMUL", "FSET", "FMNMX", "FSEL", "FCHK", "FSWZ", "DADD", "DMUL", "DSET", "DMNMX", "HADD2",
               "HMUL2", "HSET2", "HMNMX2", "MUFU", "F2F", "F2I", "I2F", "FRND", "FFMA", "DFMA", "HFMA2")),
    ("integer", ("IMAD", "IADD", "IABS", "IMNMX", "ISETP", "ICMP", "LEA", "LOP", "SHF", "SHL", "SHR", "SEL", "BFE",
                 "BREV", "FLO", "POPC", "SGXT", "VIADD", "VIADDMNMX", "VIMNMX", "LEPC", "IDP", "BMSK", "R2B",
                 "UIADD", "UIMAD", "USHF", "ULEA", "ULOP", "UISETP", "USEL", "UFLO", "UPOPC", "UBREV", "USGXT", "UPRMT",
                 "UP2UR", "UPLOP", "UBMSK", "UMNMX", "UVIADD")),
)  # fmt: skip


def kind(instruction: Instruction) -> str:
    """Return the kind of an instruction: "FFMA" (or DFMA, HMMA.16816), "LDG.128", "integer", "control" or "other"."""
    return _kind(instruction._replace(address=0, guard="", operands=""), instruction.is_multiply_add)


@functools.cache
def _kind(instruction: Instruction, multiplies: bool) -> str:
    if multiplies:
        return instruction.matrices if instruction.base in _TENSOR_CORES else instruction.base
    if instruction.base in ("HFMA2", "FFMA"):  # with factors of zero: a constant on its way to a register
        return "move"
    for name, beginnings in _KINDS:
        for beginning in beginnings:
            whole = "." in beginning
            if instruction.name.startswith(beginning) if whole else _is(instruction.base, beginning):
                return f"{name}.{instruction.width}" if name in ("LDG", "STG", "LDS", "STS") else name
    return "other"


def _is(base: str, beginning: str) -> bool:
    """Return whether a name is such a one: the same, or with a number behind it, as IADD3 is an IADD and LOP3 a LOP."""
    return re.fullmatch(rf"{beginning}(P|M|G|S|\d\w*)?", base) is not None


@dataclass(frozen=True)
class LineCode:
    """Instructions that a line of source became: in the hot loop, and multiply-adds of these."""

    file: str  # its name without the folders: a cached cubin may come from another copy
    line: int
    instructions: int
    multiply_adds: int


@dataclass(frozen=True)
class HotLoop:
    """The hot loop of a kernel.

    Attributes
    ----------
    is_loop : bool
        False: the kernel has no loop with multiply-adds, and this is all of its code.
    kinds : dict of str to int
        How many instructions there are of each kind, the most frequent first.
    leanest : dict of str to int
        The same of the way round it with the fewest instructions for each multiply-add, which no thread beats; the
        rest may be for an image's border alone.
    bytes : int
        Of its instructions.
    loaded_bytes : int
        That a thread can have asked for at once: all loads from global memory of one turn, or copies of several.
    lines : tuple of LineCode
        By file and line; empty where the disassembler knows no lines.
    warp : WarpCode or None
        The whole kernel as a warp goes through it; None: not read.
    """

    is_loop: bool
    kinds: Mapping[str, int]
    leanest: Mapping[str, int]
    bytes: int
    loaded_bytes: int
    lines: tuple[LineCode, ...] = ()
    warp: WarpCode | None = None

    @property
    def instructions(self) -> int:
        """How many there are on the leanest way."""
        return sum(self.leanest.values())

    @property
    def multiply_adds(self) -> int:
        """What a thread multiplies and adds on the leanest way; HFMA2 and FFMA2 do two at once, HMMA many."""
        return sum(count * sass.multiply_adds(name) for name, count in self.leanest.items())

    @property
    def on_tensor_cores(self) -> bool:
        """Whether it multiplies matrices."""
        return any(name.startswith(_TENSOR_CORES) for name in self.leanest)

    @property
    def share(self) -> float:
        """Of the multiply-adds among the instructions of the leanest way."""
        multiply = sum(count for name, count in self.leanest.items() if sass.multiply_adds(name))
        return multiply / self.instructions if self.instructions else 0.0

    @classmethod
    def of(
        cls,
        code: Sequence[Instruction],
        places: Mapping[int, tuple[str, int]],
        unknown: Sequence[str] = (),
        multiplies: bool = True,
    ) -> HotLoop:
        """Read a kernel.

        `places` are the file and line of an instruction by its address; `unknown` those that no warp is timed with;
        `multiplies`: whether it is the kernel of a variant that does the products.
        """
        loop = sass.hot_loop(code)
        if loop is None:  # all of it, without the padding behind the last instruction
            end = next((i for i in range(len(code), 0, -1) if code[i - 1].base not in ("NOP", "BRA")), len(code))
            loop, is_loop = sass.Loop(*[list(code[:end])] * 3), False
        else:
            is_loop = True
        body = loop.instructions
        ahead = {"LDG": 1.0, "LDGSTS": max(1.0, warp.turns_ahead(loop.usual))}
        by_place: dict[tuple[str, int], list[int]] = {}
        for instruction in body:
            if place := places.get(instruction.address):
                counts = by_place.setdefault(place, [0, 0])
                counts[0] += 1
                counts[1] += instruction.is_multiply_add
        return cls(
            is_loop,
            dict(Counter(map(kind, body)).most_common()),
            dict(Counter(map(kind, loop.leanest)).most_common()),
            len(body) * INSTRUCTION_BYTES,
            round(sum(i.width // 8 * ahead.get(i.base, 0) for i in body)),
            tuple(LineCode(*place, *counts) for place, counts in sorted(by_place.items())),
            None if any(instruction.base in unknown for instruction in body) else WarpCode.of(code, multiplies),
        )


# -- lines of source -------------------------------------------------------------------------------------------------
_PLACE = re.compile(r'^\s*//## File "([^"]+)", line (\d+)')
_ADDRESS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/")


def places(listing: str) -> dict[str, dict[int, tuple[str, int]]]:
    """Return the file's name and the line of each instruction, by function and address, from nvdisasm's listing."""
    found: dict[str, dict[int, tuple[str, int]]] = {}
    function: dict[int, tuple[str, int]] = {}
    place: tuple[str, int] | None = None
    for line in listing.splitlines():
        if match := sass.SECTION.match(line):
            function, place = found.setdefault(match[1], {}), None
        elif match := _PLACE.match(line):
            place = (Path(match[1]).name, int(match[2]))
        elif place and (match := _ADDRESS.match(line)):
            function[int(match[1], 16)] = place
    return found


def listing_with_lines(cuobjdump: Path, cubin: Path) -> str:
    """Return nvdisasm's listing of a cubin, or nothing where it is not beside cuobjdump or is too old to know lines."""
    beside = cuobjdump.resolve().with_name("nvdisasm")
    program = str(beside) if beside.is_file() else shutil.which("nvdisasm")
    if program is None:
        return ""
    try:
        command = [program, "--print-code", "--print-line-info", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise EnvironmentProblem(f"{program} cannot be run: {error.strerror}") from None
    return done.stdout if done.returncode == 0 else ""


def hot_loops(cuobjdump: Path, cubin: Path, architecture: str, main: str) -> dict[str, HotLoop]:
    """Return the hot loop of each kernel of a cubin; cached beside it.

    As a warp goes through it only what the model of a warp knows: of products of matrices, Hopper's mma.sync. `main`:
    the kernel that does the products.

    Raises
    ------
    EnvironmentProblem
        cuobjdump or nvdisasm fails; with its message.
    """
    unknown = [name for name in _TENSOR_CORES if name != "HMMA" or not architecture.startswith("sm_90")]

    def find() -> str:
        listing = listing_with_lines(cuobjdump, cubin)  # all in one: cuobjdump would run nvdisasm again
        where, code = places(listing), sass.functions(listing or sass.dump(cuobjdump, cubin))
        loops = {name: HotLoop.of(body, where.get(name, {}), unknown, name == main) for name, body in code.items()}
        return json.dumps({
            name: [loop.is_loop, loop.kinds, loop.leanest, loop.bytes, loop.loaded_bytes,
                   [[each.file, each.line, each.instructions, each.multiply_adds] for each in loop.lines],
                   loop.warp and loop.warp.as_json()]
            for name, loop in loops.items()
        })  # fmt: skip

    status = cuobjdump.resolve().stat()
    recipe = [Path(file).read_text(encoding="utf-8") for file in (__file__, sass.__file__, warp.__file__)]
    of = (cubin.name, str(cuobjdump.resolve()), status.st_size, status.st_mtime_ns)
    name = cache.digest("hot loop", recipe, unknown, main, *of)
    known = json.loads(cache.remembered(name, find))
    return {
        name: HotLoop(
            is_loop,
            kinds,
            leanest,
            size,
            loaded,
            tuple(LineCode(*line) for line in lines),
            code and WarpCode.from_json(code),
        )
        for name, (is_loop, kinds, leanest, size, loaded, lines, code) in known.items()
    }
