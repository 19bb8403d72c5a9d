"""What a kernel asks of memory, counted on the CPU from the addresses of each thread: sectors, and bank conflicts.

How it is counted is told in ``cpu_runtime/checked/traffic.cpp``. These are facts of the access pattern, exact for the
instructions that g++ makes of the source; they are no times.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convbackprop.check.reference import numpy_dtype
from convbackprop.devices import compiler
from convbackprop.devices.checked import CheckedDevice, CheckedKernel, GlobalArray, Launched, places
from convbackprop.devices.compiler import Source
from convbackprop.devices.gpus import Target
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import plan
from convbackprop.problem import ACCUMULATORS, PASSES, ConvProblem

#: Files whose lines only spell an access out: it is counted for the line that calls them.
_WORDS = ("cuda_on_cpu.h", "lane.cuh", "scalar.cuh")

_KINDS = ("load", "store", "atomic")
_MOST = 4096

#: Of memory that cudaMalloc returns, in bytes.
_ALIGNMENT = 256

#: Accesses of a launch after which no further block is replayed: a few seconds.
ENOUGH = 50_000_000


@dataclass(frozen=True)
class LineTraffic:
    """What one line of source asks of memory, over all replayed blocks.

    Attributes
    ----------
    file, line : Path, int
        Where it stands.
    space : str
        "global" or "shared".
    kind : str
        "load", "store" or "atomic".
    bytes : int
        Of one lane's access, the widest.
    requests, lanes : int
        Requests of a warp, and active lanes, summed over these.
    sectors, least_sectors : int
        Of global memory: 32-byte sectors, summed over the requests; and those that the bytes asked for would fill.
    wavefronts, least_wavefronts : int
        Of shared memory: passes over the banks, summed over the requests; and without bank conflicts.
    """

    file: Path
    line: int
    space: str
    kind: str
    bytes: int
    requests: int
    lanes: int
    sectors: int
    least_sectors: int
    wavefronts: int
    least_wavefronts: int


@dataclass(frozen=True)
class ArrayTraffic:
    """What the blocks ask of an array: bytes by lanes, and distinct 32-byte sectors of a block, summed over all."""

    name: str
    loaded_bytes: int
    stored_bytes: int
    loaded_sectors: int
    stored_sectors: int


@dataclass(frozen=True)
class KernelTraffic:
    """One launch of a variant, of which so many blocks were replayed: all, or a sample from the middle of the grid."""

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    blocks: int
    lines: tuple[LineTraffic, ...]
    arrays: tuple[ArrayTraffic, ...]


class _Site(ctypes.Structure):
    """ConvbackpropSiteTraffic of cpu_runtime/checked/checks.h."""

    _fields_ = (
        ("site", ctypes.c_uint), ("shared", ctypes.c_int), ("kind", ctypes.c_int), ("bytes", ctypes.c_uint),
        ("requests", ctypes.c_longlong), ("lanes", ctypes.c_longlong), ("sectors", ctypes.c_longlong),
        ("least_sectors", ctypes.c_longlong), ("passes", ctypes.c_longlong), ("least_passes", ctypes.c_longlong),
    )  # fmt: skip


class _Array(ctypes.Structure):
    """ConvbackpropArrayTraffic of cpu_runtime/checked/checks.h."""

    _fields_ = (
        ("array", ctypes.c_int), ("loaded_bytes", ctypes.c_longlong), ("stored_bytes", ctypes.c_longlong),
        ("loaded_sectors", ctypes.c_longlong), ("stored_sectors", ctypes.c_longlong),
    )  # fmt: skip


class RecordingDevice(CheckedDevice):
    """A checked device whose kernels also tell which basic blocks they run, and which records in place of checking."""

    name = "cpu (recording)"

    def __init__(self) -> None:
        super().__init__()
        self.most_blocks = 0
        self.main = ""
        self.source = Path()
        self.recorded: list[KernelTraffic] = []
        self.runtime.convbackprop_checks_recorded_accesses.restype = ctypes.c_longlong

    def compile(self, source: Source) -> Path:
        """Compile a file for this device, where that has not been done yet."""
        return compiler.checked_object(source, ("-fsanitize-coverage=trace-pc", "-fno-sanitize=bounds"))

    @contextmanager
    def checking(self, arrays: Sequence[GlobalArray], order: int = 0) -> Iterator[list[Launched]]:
        """Record the launches made inside."""
        self.runtime.convbackprop_checks_record_traffic(1)  # first: the checks' notes are many times the arrays
        try:
            with super().checking(arrays, order) as launched:
                yield launched
        finally:
            self.runtime.convbackprop_checks_record_traffic(0)

    def begin(self, kernel: CheckedKernel, own_memory: Sequence[tuple[int, int]]) -> None:
        """Choose the blocks. What comes before the main kernel runs whole: it may prepare the addresses."""
        super().begin(kernel, own_memory)
        total = math.prod(kernel.geometry[0])
        is_main_or_later = kernel.entry == self.main or any(each.entry == self.main for each in self.recorded)
        self._ranges = _middle(total, self.most_blocks) if is_main_or_later else [(0, total)]
        self.runtime.convbackprop_checks_record_traffic(1)

    def enough(self) -> int:
        """Return after how many accesses of a launch no further block runs."""
        return ENOUGH

    def run(self, launch: Any) -> None:
        """Run blocks until enough is recorded."""
        self._blocks = 0
        for launch.first_block, launch.end_block in self._ranges:
            super().run(launch)
            self._blocks += launch.end_block - launch.first_block
            if self.runtime.convbackprop_checks_recorded_accesses() >= self.enough():
                break

    def end(self, kernel: CheckedKernel) -> None:
        """Keep what was counted."""
        sites, arrays = (_Site * _MOST)(), (_Array * _MOST)()
        found = sites[: self.runtime.convbackprop_checks_site_traffic(sites, _MOST)]
        asked = arrays[: self.runtime.convbackprop_checks_array_traffic(arrays, _MOST)]
        names = self._arrays
        super().end(kernel)
        grid, block = kernel.geometry
        self.recorded.append(KernelTraffic(
            kernel.entry, grid, block, self._blocks, _lines(kernel.path, found, self.source),
            tuple(ArrayTraffic(names[a.array].name, a.loaded_bytes, a.stored_bytes, a.loaded_sectors, a.stored_sectors)
                  for a in asked),
        ))  # fmt: skip


def _middle(total: int, most: int) -> list[tuple[int, int]]:
    """Return the blocks in the middle of a grid, each as a range, the innermost first."""
    blocks = min(total, most)
    first = (total - blocks) // 2
    return [(i, i + 1) for i in sorted(range(first, first + blocks), key=lambda i: abs(2 * i + 1 - total))]


@functools.cache
def _device() -> RecordingDevice:
    return RecordingDevice()


def place_in_source(chain: Sequence[tuple[Path, int]], path: Path) -> tuple[Path, int]:
    """Return the file and line that an access counts for, of all that were inlined into each other (see `places`)."""
    return next((place for place in chain if place[0].name not in _WORDS), chain[-1] if chain else (path, 0))


def _lines(path: Path, sites: Sequence[Any], source: Path) -> tuple[LineTraffic, ...]:
    """Return the traffic by line of source."""
    where = places(path, [site.site for site in sites], source)
    lines: dict[tuple[Path, int, bool, int], list[int]] = {}
    for site in sites:
        file, line = place_in_source(where.get(site.site, ()), path)
        counts = lines.setdefault((file, line, bool(site.shared), site.kind), [0] * 7)
        counts[0] = max(counts[0], site.bytes)
        for i, name in enumerate(("requests", "lanes", "sectors", "least_sectors", "passes", "least_passes"), 1):
            counts[i] += getattr(site, name)
    return tuple(
        LineTraffic(file, line, "shared" if shared else "global", _KINDS[kind], *counts)
        for (file, line, shared, kind), counts in sorted(lines.items())
    )


def traffic(
    variant: Variant, problem: ConvProblem, blocks: int = 64, target: Target | str = "cuda"
) -> tuple[KernelTraffic, ...]:
    """Replay blocks of each launch of a variant on the cpu device, with the constants of a GPU.

    Parameters
    ----------
    variant : Variant
        What to run.
    problem : ConvProblem
        On what; its arrays are made.
    blocks : int
        How many blocks of a launch at most, from the middle of the grid; fewer where they make many accesses.
    target : Target or "cuda"
        The GPU.

    Returns
    -------
    tuple of KernelTraffic
        One for each launch.
    """
    device = _device()
    replay(device, variant, problem, blocks, target)
    return tuple(device.recorded)


def replay(device: RecordingDevice, variant: Variant, problem: ConvProblem, blocks: int, target: Target | str) -> None:
    """Run a variant on a recording device, on arrays of zeros."""
    entries = [launch.entry for launch in variant.launches]
    device.most_blocks = blocks
    device.main = variant.pass_name if variant.pass_name in entries else entries[0]
    device.source = variant.path
    device.recorded = []
    ready = plan(variant, problem, device, target)
    operands = PASSES[variant.pass_name].present(problem)
    staged = {o.name: _zeros(math.prod(o.shape(problem)), numpy_dtype(o.dtype(problem))) for o in operands}
    accumulator = np.dtype(ACCUMULATORS[problem.dtype])
    staged["scratch"] = _zeros(ready.scratch_bytes // accumulator.itemsize, accumulator)
    inputs = {operand.name for operand in operands if not operand.written}
    arrays = [
        GlobalArray(name, array.ctypes.data, array.nbytes, array.itemsize, name in inputs)
        for name, array in staged.items()
        if array.nbytes
    ]
    with device.checking(arrays):
        ready.run({name: array.ctypes.data for name, array in staged.items()})


def _zeros(size: int, dtype: np.dtype[Any]) -> Any:
    """Return an array of zeros, since no address follows from a value: of its memory only what blocks touch is taken.

    It is as aligned as what a GPU's allocator returns.
    """
    memory = np.zeros(size * dtype.itemsize + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size * dtype.itemsize].view(dtype)
