"""What a kernel does that CUDA does not allow, although the result may be right: each access to memory is looked at.

The kernel runs on the cpu device, compiled with hooks (``cpu_runtime/checked``). What is looked for is what
compute-sanitizer's four tools look for on a GPU: memcheck, initcheck, racecheck and synccheck.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convbackprop import check
from convbackprop.check import reference
from convbackprop.devices.checked import (
    Extents,
    FindingKind,
    GlobalArray,
    Launched,
    RawFinding,
    SharedArray,
    checked_device,
    places,
)
from convbackprop.devices.compiler import RUNTIME
from convbackprop.errors import LaunchFailed
from convbackprop.ladder.expression import InvalidLaunch
from convbackprop.ladder.variant import Variant
from convbackprop.layouts import strides
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.sources import source_root

#: An array's shape and layout.
Stored = tuple[tuple[int, ...], str]

#: In which order the threads of a block start, in one run each: a missing barrier then shows in a result.
ORDERS = {"as numbered": 0, "last to first": 1, "shuffled": 2}

#: What the checks do not see, or see wrongly.
LIMITS = (
    "Blocks, or warps of a block, that order themselves by __threadfence and a counter are reported as a race, "
    "although they may be right.",
    "An access that runs from one array into the next is found where it lies beside every array, or beyond an extent "
    "that the source declares; not where it meets another array.",
    "What g++ optimises away is not seen.",
)

#: Each kind of finding: its name, and the tool of compute-sanitizer that looks for it.
KINDS = {
    FindingKind.OUT_OF_BOUNDS: ("out of bounds", "memcheck"),
    FindingKind.MISALIGNED: ("misaligned", "memcheck"),
    FindingKind.WRITE_TO_INPUT: ("write to an input", "memcheck"),
    FindingKind.ARRAY_INDEX: ("array index", "memcheck"),
    FindingKind.UNINITIALISED: ("uninitialised read", "initcheck"),
    FindingKind.RACE: ("race", "racecheck"),
    FindingKind.RACE_BETWEEN_BLOCKS: ("race between blocks", "racecheck"),
    FindingKind.DIVERGENT_BARRIER: ("divergent barrier", "synccheck"),
    FindingKind.BARRIER_WITHOUT_THREADS: ("barrier without all threads", "synccheck"),
    FindingKind.MASK_OF_MISSING_LANES: ("mask of missing lanes", "synccheck"),
    FindingKind.STOPPED: ("stopped", "synccheck"),
}
#: What is found by holding the result against the reference.
WRONG = "wrong result"
#: What a `//@ launch` line asks for and CUDA does not launch.
NOT_LAUNCHED = "not launched"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, with the first place and thread where it was seen.

    Attributes
    ----------
    kind : str
        A name of `KINDS`, `WRONG` or `NOT_LAUNCHED`.
    sentence : str
        What happens there.
    entry : str
        The kernel.
    lines : tuple of (Path, int)
        File and line. First one that the kernel's author wrote, then those that it was inlined into, then lines of the
        package's headers that were inlined into these, the outermost first.
    other_lines : tuple of (Path, int)
        Of a race: the other thread's; of a barrier: the other one.
    thread, block : tuple of int, or None
        Who: x, y, z. None: not one thread, but a launch that was stopped.
    count : int
        How often.
    memory : str
        Where: "x", "scratch" and so on for an array in global memory, "shared", or "" where it belongs to neither.
    is_write : bool
        Whether the access writes.
    both_write : bool
        Of a race: whether both threads write, there or in another access of the same lines.
    reads : bool
        Of a race: whether one of them reads, likewise.
    """

    kind: str
    sentence: str
    entry: str
    lines: tuple[tuple[Path, int], ...] = ()
    other_lines: tuple[tuple[Path, int], ...] = ()
    thread: tuple[int, int, int] | None = None
    block: tuple[int, int, int] | None = None
    count: int = 1
    memory: str = ""
    is_write: bool = False
    both_write: bool = False
    reads: bool = False


@dataclass
class Outcome:
    """What was found, and what looking cost.

    Attributes
    ----------
    seconds : float
        The launches, of all runs.
    notes_bytes : int
        Memory in which the checks kept what they know of each byte.
    """

    variant: str
    problem: ConvProblem
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    notes_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def sanitize(
    variant: Variant,
    problem: ConvProblem,
    data: str = "normal",
    tunables: str = "cuda",
    orders: Sequence[str] = tuple(ORDERS),
    offset: int = 0,
) -> Outcome:
    """Run a variant on the cpu device with checks.

    Parameters
    ----------
    variant : Variant
        What to run.
    problem : ConvProblem
        On what.
    data : str
        One of `check.DATA`.
    tunables : "cuda" or "cpu"
        Whose values the tunable constants take.
    orders : sequence of str
        Names of `ORDERS`: a run each, of which the first one that finds something is the last.
    offset : int
        By how many elements the arrays are off an address that suits the widest loads.

    Returns
    -------
    Outcome
        With the findings; those of one cause are one.
    """
    device = checked_device()
    given = check.inputs(variant.pass_name, problem, data)
    expected = reference.answer(variant.pass_name, problem, given)
    outcome = Outcome(str(variant), problem)
    for name in orders:
        try:
            ready, blocks = check.stage(variant, problem, given, device, tunables, offset)
        except InvalidLaunch as fault:
            outcome.findings = [Finding(NOT_LAUNCHED, fault.sentence, variant.pass_name)]
            break
        failed: LaunchFailed | None = None
        with device.checking(_arrays(blocks, given), ORDERS[name]) as launched:
            began = time.perf_counter()
            try:
                ready.run({operand: block.array.ctypes.data for operand, block in blocks.items()})
            except LaunchFailed as error:
                failed = error
            outcome.seconds += time.perf_counter() - began
            outcome.notes_bytes = max(outcome.notes_bytes, device.notes_bytes())
        shapes = {
            operand.name: (operand.shape(problem), operand.layout(problem))
            for operand in PASSES[variant.pass_name].present(problem)
        }
        outcome.findings = [finding for each in launched for finding in _findings(each, variant.path, shapes, failed)]
        if not failed and not outcome.findings:
            judged = check.judge(variant, problem, given, blocks, data, expected)
            with_order = "" if ORDERS[name] == 0 else f", where a block's threads start {name}"
            outcome.findings = [Finding(WRONG, fault + with_order, variant.pass_name) for fault in judged.faults]
        if outcome.findings:
            break
    return outcome


def _arrays(blocks: Mapping[str, check.Guarded], given: Mapping[str, Any]) -> list[GlobalArray]:
    return [
        GlobalArray(name, block.array.ctypes.data, block.array.nbytes, block.array.itemsize, name in given)
        for name, block in blocks.items()
        if block.array.nbytes
    ]


# -- from the machine's words to sentences ---------------------------------------------------------------------------
def _findings(
    launched: Launched, source: Path, shapes: Mapping[str, Stored], failed: LaunchFailed | None
) -> list[Finding]:
    """Return what a launch found; what differs only in the instruction, not in the line, is one finding."""
    kernel = launched.kernel
    where = places(kernel.path, [site for raw in launched.found for site in (raw.site, raw.other_site)], source)
    found: dict[tuple[object, ...], Finding] = {}
    for raw in launched.found:
        kind = FindingKind(raw.kind)
        lines, other_lines = (_author_first(where.get(site, ())) for site in (raw.site, raw.other_site))
        if kind is FindingKind.DIVERGENT_BARRIER and lines == other_lines:
            continue  # one barrier, which the compiler has copied
        if kind is FindingKind.STOPPED and len(launched.found) > 1:
            continue  # what it was stopped for is told
        array = launched.arrays[raw.array] if raw.array >= 0 else None
        both_write = bool(raw.is_write and raw.other_is_write)
        key = (kind, frozenset((lines, other_lines)), array)  # of two threads in a race, either may come first
        if key in found:
            before = found[key]
            more = {"count": before.count + raw.count, "both_write": before.both_write or both_write,
                    "reads": before.reads or not both_write}  # fmt: skip
            found[key] = Finding(**{**vars(before), **more})
            continue
        sentence = str(failed) if kind is FindingKind.STOPPED else _sentence(kind, raw, array, shapes, kernel.geometry)
        thread = None if kind is FindingKind.STOPPED else _xyz(raw.thread, kernel.geometry[1])
        who = thread, _xyz(raw.block, kernel.geometry[0])
        memory = array.name if isinstance(array, GlobalArray) else "shared" if array else ""
        found[key] = Finding(
            KINDS[kind][0], sentence, kernel.entry, lines, other_lines, *who, raw.count,
            memory, bool(raw.is_write), both_write, not both_write,
        )  # fmt: skip
    return list(found.values())


def is_of_headers(path: Path) -> bool:
    """Return whether a file is a header of the package."""
    return path.suffix != ".cu" and any(path.is_relative_to(root) for root in (source_root(), RUNTIME))


def _author_first(lines: tuple[tuple[Path, int], ...]) -> tuple[tuple[Path, int], ...]:
    """Return inlined lines, which come innermost first, in the order that `Finding` has."""
    headers = [line for line in lines if is_of_headers(line[0])]
    return (*(line for line in lines if line not in headers), *reversed(headers))


def _xyz(number: int, extents: Sequence[int]) -> tuple[int, int, int]:
    x, y, _ = extents
    return number % x, number // x % y, number // (x * y)


def _sentence(
    kind: FindingKind, raw: RawFinding, array: GlobalArray | SharedArray | None,
    shapes: Mapping[str, Stored], geometry: tuple[Extents, Extents],
) -> str:  # fmt: skip
    does = "writes" if raw.is_write else "reads"
    did = "wrote" if raw.other_is_write else "read"
    other = _xyz(raw.other_thread, geometry[1]) if raw.other_thread >= 0 else None
    if kind is FindingKind.OUT_OF_BOUNDS:
        return f"{does} {_bytes(raw.bytes)} {_beside(raw, array)}"
    what = _element(raw, array, shapes)
    if kind is FindingKind.MISALIGNED:
        return f"{does} {_bytes(raw.bytes)} at an address that is no multiple of {raw.bytes}: {what}"
    if kind is FindingKind.WRITE_TO_INPUT:
        return f"writes {what}, an input"
    if kind is FindingKind.UNINITIALISED:
        return f"reads {what}, which nobody has written"
    if kind is FindingKind.RACE:
        return f"{does} {what}, which thread {other} of the same block {did} with nothing between that orders the two"
    if kind is FindingKind.RACE_BETWEEN_BLOCKS:
        who = f"block {_xyz(raw.other_block, geometry[0])}"
        return f"{does} {what}, which {who} {did}: nothing orders two blocks of one launch"
    if kind is FindingKind.ARRAY_INDEX:
        return "an index lies outside the extent that the array is declared with"
    if kind is FindingKind.DIVERGENT_BARRIER:
        return "waits at a __syncthreads while other threads of the block wait at another one"
    if kind is FindingKind.BARRIER_WITHOUT_THREADS:
        return (
            f"waits at a __syncthreads that {raw.other_thread:,} threads of the block do not reach: they have returned"
        )
    if kind is FindingKind.MASK_OF_MISSING_LANES:
        missing = raw.other_thread & 0xFFFFFFFF
        return (
            f"takes part in a warp operation whose mask names lanes that have returned or do not exist: 0x{missing:08x}"
        )
    raise AssertionError(kind)


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


def _beside(raw: RawFinding, array: GlobalArray | SharedArray | None) -> str:
    if array is None:
        return "at an address that belongs to no array"
    size = array.bytes
    name = f"the {size:,} bytes of {array.name}"
    if raw.offset < 0:
        return f"{_bytes(-raw.offset)} before {name}"
    return f"that end {_bytes(raw.offset + raw.bytes - size)} after {name}"


def _element(raw: RawFinding, array: GlobalArray | SharedArray | None, shapes: Mapping[str, Stored]) -> str:
    if isinstance(array, GlobalArray):
        number = raw.offset // array.item_bytes
        if array.name in shapes:
            shape, layout = shapes[array.name]
            steps = strides(shape, layout)
            index = ",".join(str(number // step % extent) for step, extent in zip(steps, shape, strict=True))
            return f"{array.name}[{index}]"
        return f"{array.name}[{number:,}]"
    if array is not None and raw.offset % raw.bytes == 0:
        number = f"{raw.offset // raw.bytes:,}"
        return f"element {number} of {array.name}" if array.is_dynamic else f"{array.name}, element {number}"
    if array is not None:
        return f"{array.name}, byte {raw.offset:,}"
    return "memory"
