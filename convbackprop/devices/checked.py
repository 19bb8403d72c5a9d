"""The cpu device with checks: a kernel that looks at each access to memory before it makes it.

The kernel is compiled with hooks and run by a runtime of its own (``cpu_runtime/checked``), beside the plain one and in
the same process, on one worker thread.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from convbackprop.devices import compiler
from convbackprop.devices.compiler import Source
from convbackprop.devices.cpu import CpuDevice, CpuKernel, load_file
from convbackprop.errors import CompileError
from convbackprop.sources import files_with_includes

Extents = tuple[int, int, int]

#: Of one launch that are kept.
_MOST_FINDINGS = 4096


class ArrayKind(IntEnum):
    """ConvbackpropArrayKind of cpu_runtime/checked/checks.h."""

    INPUT, RESULT, SHARED, DYNAMIC_SHARED, SILENT = range(5)


class FindingKind(IntEnum):
    """ConvbackpropFindingKind of cpu_runtime/checked/checks.h."""

    (
        OUT_OF_BOUNDS, MISALIGNED, UNINITIALISED, WRITE_TO_INPUT, RACE, RACE_BETWEEN_BLOCKS, ARRAY_INDEX,
        DIVERGENT_BARRIER, BARRIER_WITHOUT_THREADS, MASK_OF_MISSING_LANES, STOPPED,
    ) = range(11)  # fmt: skip


class RawFinding(ctypes.Structure):
    """ConvbackpropFinding of cpu_runtime/checked/checks.h."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("site", ctypes.c_uint),
        ("other_site", ctypes.c_uint),
        ("array", ctypes.c_int),
        ("is_write", ctypes.c_int),
        ("other_is_write", ctypes.c_int),
        ("bytes", ctypes.c_uint),
        ("offset", ctypes.c_longlong),
        ("thread", ctypes.c_int),
        ("other_thread", ctypes.c_int),
        ("block", ctypes.c_longlong),
        ("other_block", ctypes.c_longlong),
        ("count", ctypes.c_ulonglong),
    )


class GlobalArray(NamedTuple):
    """An array in global memory that a kernel may touch."""

    name: str
    address: int
    bytes: int
    item_bytes: int
    is_input: bool


class SharedArray(NamedTuple):
    """A __shared__ array, or all dynamic shared memory: where it lies in the object's thread-local memory."""

    name: str
    offset: int
    bytes: int
    is_dynamic: bool


class Launched(NamedTuple):
    """What the checks found in one launch, in the words of the machine."""

    kernel: CheckedKernel
    found: tuple[RawFinding, ...]
    arrays: tuple[GlobalArray | SharedArray | None, ...]  # by their numbers


class CheckedKernel(CpuKernel):
    """A launch that is checked."""

    @property
    def entry(self) -> str:
        """The name of the entry point."""
        return self._entry

    @property
    def path(self) -> Path:
        """The shared object that it is a part of."""
        return Path(self._library._name)

    @property
    def geometry(self) -> tuple[Extents, Extents]:
        """The extents of the grid and of a block."""
        (gx, gy, gz), (bx, by, bz) = self._launch.grid, self._launch.block
        return (gx, gy, gz), (bx, by, bz)

    def launch(self, pointers: Sequence[int], stream: object = None) -> None:
        """Run the grid; what is found is kept in the device's `launched`."""
        device: Any = self._device
        own = (self._values, self._arguments, *self._constants, self._no_note, *(room for _, _, room in self._maps))
        device.begin(self, [(ctypes.addressof(buffer), ctypes.sizeof(buffer)) for buffer in own])
        try:
            super().launch(pointers, stream)
        finally:
            device.end(self)


class CheckedDevice(CpuDevice):
    """The CPU with checks, on one worker thread. Not for several OS threads at a time."""

    name = "cpu (checked)"
    _kernel = CheckedKernel
    # Its own runtime's names come before those of the plain one.
    _mode = os.RTLD_LOCAL | os.RTLD_DEEPBIND

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[Launched] = []
        self._global: tuple[GlobalArray, ...] = ()
        self._arrays: list[GlobalArray | SharedArray | None] = []
        runtime = self.runtime
        runtime.convbackprop_checks_add_array.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        runtime.convbackprop_checks_set_order.argtypes = (ctypes.c_ulonglong,)
        runtime.convbackprop_checks_notes_bytes.restype = ctypes.c_size_t
        runtime.convbackprop_checks_take_findings.argtypes = (ctypes.POINTER(RawFinding), ctypes.c_int)

    def _load_runtime(self) -> ctypes.CDLL:
        return self._open(compiler.cpu_runtime(checked=True), compiler.cpu_runtime, self._mode)

    def _open(self, path: Path, again: Callable[[], object], mode: int) -> ctypes.CDLL:
        # From its file, by whose name the kernels' objects ask for the runtime.
        return load_file(path, mode)

    def compile(self, source: Source) -> Path:
        """Compile a file for this device, where that has not been done yet."""
        return compiler.checked_object(source)

    def _workers(self) -> int:
        return 1

    @contextmanager
    def checking(self, arrays: Sequence[GlobalArray], order: int = 0) -> Iterator[list[Launched]]:
        """Check the launches made inside, which may touch these arrays.

        Parameters
        ----------
        arrays : sequence of GlobalArray
            All that the kernels are given.
        order : int
            In which order a block's threads start: 0 as they are numbered, 1 from the last to the first, more:
            shuffled, each number another way.

        Yields
        ------
        list of Launched
            An entry for each launch, in turn.
        """
        self.launched = []
        self._global = tuple(arrays)
        self.runtime.convbackprop_checks_keep_arrays(0)
        self.runtime.convbackprop_checks_set_order(order)
        for array in arrays:
            kind = ArrayKind.INPUT if array.is_input else ArrayKind.RESULT
            self.runtime.convbackprop_checks_add_array(kind, array.address, array.bytes, array.item_bytes)
        try:
            yield self.launched
        finally:
            self.runtime.convbackprop_checks_keep_arrays(0)
            self._global = ()

    def notes_bytes(self) -> int:
        """Return the memory in which the checks keep what they know of each byte."""
        return int(self.runtime.convbackprop_checks_notes_bytes())

    def begin(self, kernel: CheckedKernel, own_memory: Sequence[tuple[int, int]]) -> None:
        """Announce what belongs to a kernel alone."""
        add = self.runtime.convbackprop_checks_add_array
        self.runtime.convbackprop_checks_keep_arrays(len(self._global))
        self._arrays = list(self._global)
        for array in shared_arrays(kernel.path):
            kind = ArrayKind.DYNAMIC_SHARED if array.is_dynamic else ArrayKind.SHARED
            add(kind, array.offset, array.bytes, smallest_access(kernel.path))
            self._arrays.append(array)
        for address, size in own_memory:
            add(ArrayKind.SILENT, address, size, 1)
            self._arrays.append(None)

    def end(self, kernel: CheckedKernel) -> None:
        """Keep what was found."""
        found = (RawFinding * _MOST_FINDINGS)()
        count = self.runtime.convbackprop_checks_take_findings(found, _MOST_FINDINGS)
        self.launched.append(Launched(kernel, tuple(found[: min(count, _MOST_FINDINGS)]), tuple(self._arrays)))


@functools.cache
def checked_device() -> CheckedDevice:
    """Return the checked device, built and loaded on first use."""
    return CheckedDevice()


# -- reading an object -----------------------------------------------------------------------------------------------
def _tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        raise CompileError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


@functools.lru_cache(maxsize=256)
def _symbols(path: Path) -> tuple[str, ...]:
    return tuple(_tool("readelf", "--symbols", "--wide", "--demangle", str(path)).splitlines())


def shared_arrays(path: Path) -> tuple[SharedArray, ...]:
    """Return the shared memory of a kernel's object: its thread-local symbols."""
    found = {}
    for line in _symbols(path):
        if match := re.match(r"\s*\d+: ([0-9a-f]+)\s+(\w+) TLS\s+\S+\s+\S+\s+\d+ (.+)", line):
            offset, size = int(match[1], 16), int(match[2], 0)
            is_dynamic = size == compiler.SHARED_BYTES  # by all its names
            name = "dynamic shared memory" if is_dynamic else match[3].rpartition("::")[2]
            found[offset] = SharedArray(name, offset, size, is_dynamic)
    return tuple(found.values())


def smallest_access(path: Path) -> int:
    """Return the bytes of the smallest access that an object's code makes, 4 at most: what races are looked for in."""
    hooks = {
        int(size)
        for line in _symbols(path)
        for size in re.findall(r" __tsan_(?:volatile_)?(?:read|write)(\d+)\b", line)
    }
    return min(hooks | {4})


def places(path: Path, sites: Sequence[int], source: Path) -> dict[int, tuple[tuple[Path, int], ...]]:
    """Return where in the source the instructions before these offsets come from.

    Parameters
    ----------
    path : Path
        The shared object. The same text at another place may have been compiled to it.
    sites : sequence of int
        Offsets in it.
    source : Path
        The .cu file.

    Returns
    -------
    dict of int to tuple of (Path, int)
        File and line; what was inlined there comes before the line that it was inlined into.
    """
    distinct = sorted(set(sites) - {0})
    if not distinct:
        return {}
    command = ["addr2line", "-a", "-i", "-e", str(path), *(hex(site - 1) for site in distinct)]
    found: dict[int, list[tuple[Path, int]]] = {}
    current: list[tuple[Path, int]] = []
    files = {Path(name).name: file for name, file in files_with_includes(source).items()}
    for line in _tool(*command).splitlines():
        if line.startswith("0x"):
            current = found.setdefault(int(line, 16) + 1, [])
        elif match := re.match(r"(.*):(\d+)", line):
            file = Path(match[1])
            current.append((files.get(file.name, file), int(match[2])))
    return {site: tuple(chain) for site, chain in found.items()}
