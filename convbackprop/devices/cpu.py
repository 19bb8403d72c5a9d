"""Device cpu: the .cu file compiled by the host's C++ compiler, its grid run on threads and fibers.

How that works is told in ``cpu_runtime/runtime.cpp``; here it is built, loaded and launched through ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from convbackprop.arguments import integer
from convbackprop.devices import cache, compiler, mapped
from convbackprop.devices.compiler import Source
from convbackprop.devices.cpu_level import cpu_level, cpu_vector_bytes, processor
from convbackprop.devices.gpus import Target
from convbackprop.devices.mapped import Mapped
from convbackprop.errors import DeviceUnusable, InvalidArgument, LaunchFailed, ProblemTooLarge

#: How long a launch may stay away from Python, so that Ctrl-C is seen (milliseconds).
_TIME_SLICE_MS = 100

#: What one block of the runtime's convbackprop_copy_entry copies.
_COPY_PART = 64 << 10

_FINISHED, _FAILED, _RUNNING, _NO_MEMORY = 0, 1, 2, 3


class _Launch(ctypes.Structure):
    """ConvbackpropLaunch of cpu_runtime/runtime.h."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_size_t),
        ("workers", ctypes.c_int),
        ("first_block", ctypes.c_ulonglong),
        ("end_block", ctypes.c_ulonglong),
    )


def get_num_threads() -> int:
    """Return how many worker threads a launch on the cpu device uses at most."""
    global _num_threads
    _num_threads = _num_threads or _initial_num_threads()
    return _num_threads


def set_num_threads(count: int) -> None:
    """Bound the worker threads of the cpu device.

    Parameters
    ----------
    count : int
        At least 1. At first it is CONVBACKPROP_NUM_THREADS, else the CPUs that this process may use.
    """
    global _num_threads
    _num_threads = integer(count, "count", 1)


def _initial_num_threads() -> int:
    text = os.environ.get("CONVBACKPROP_NUM_THREADS")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise InvalidArgument(f"CONVBACKPROP_NUM_THREADS is {text!r}; it should be an integer of at least 1")
    return int(text)


_num_threads = 0  # not asked for yet


class CpuKernel:
    """A loaded entry point with its launch geometry."""

    def __init__(self, device: CpuDevice, library: ctypes.CDLL, entry: str, launch: _Launch, pointers: int,
                 shape: bytes, integers: Sequence[int], maps: Sequence[Mapped] = ()) -> None:  # fmt: skip
        function = getattr(library, f"{entry}_entry")
        self._device = device
        self._values = (ctypes.c_void_p * pointers)()
        self._fill = struct.Struct(f"{pointers}P").pack_into
        self._constants = [ctypes.create_string_buffer(shape, len(shape)), *map(ctypes.c_int, integers)]
        self._maps = [(i, each, ctypes.create_string_buffer(mapped.BYTES)) for i, each in maps]
        self._no_note = ctypes.c_void_p()  # a wait that does not end is a deadlock here, which the runtime tells
        addresses = [ctypes.addressof(room) for _, _, room in self._maps]
        addresses += [ctypes.addressof(self._no_note)] * bool(maps)
        addresses += [ctypes.addressof(self._values) + 8 * i for i in range(pointers)]
        addresses += [ctypes.addressof(constant) for constant in self._constants]
        self._arguments = (ctypes.c_void_p * len(addresses))(*addresses)
        launch.entry = ctypes.cast(function, ctypes.c_void_p)
        launch.args = ctypes.addressof(self._arguments)
        self._launch = launch
        self._library = library  # keeps the code loaded
        self._entry = entry

    def launch(self, pointers: Sequence[int], stream: object = None) -> None:
        """Run the grid on arrays at these addresses and return when it has ended.

        Raises
        ------
        LaunchFailed
            A wrong geometry, or threads that wait for each other for ever.
        ProblemTooLarge
            There is no memory left for a worker thread; nothing has run.
        """
        device = self._device
        with device.lock:
            self._fill(self._values, 0, *pointers)
            for i, each, room in self._maps:
                room.raw = each.on_cpu(pointers[i])
            device.run(self._launch)


class CpuDevice:
    """The CPU of this machine as a device.

    Parameters
    ----------
    flags : tuple of str
        More flags for the C++ compiler of the kernels.
    """

    name = "cpu"
    kind = "cpu"
    target = Target(kind)
    _kernel = CpuKernel
    _mode = ctypes.DEFAULT_MODE

    def __init__(self, flags: tuple[str, ...] = ()) -> None:
        self._flags = flags
        get_num_threads()  # a bad CONVBACKPROP_NUM_THREADS is found before the first launch
        cpu_level()  # and so is a bad CONVBACKPROP_CPU_LEVEL
        self.lock = threading.Lock()
        self._modules: dict[Path, ctypes.CDLL] = {}
        self.runtime = self._load_runtime()
        self._start = self.runtime.convbackprop_launch
        self._start.argtypes = [ctypes.POINTER(_Launch), ctypes.c_int]
        self._resume, self._cancel = self.runtime.convbackprop_resume, self.runtime.convbackprop_cancel
        self.runtime.convbackprop_error.restype = ctypes.c_char_p
        os.register_at_fork(after_in_child=self._after_fork)

    @property
    def title(self) -> str:
        """The processor, and the vectors that kernels are compiled for."""
        return f"{processor()}, {8 * cpu_vector_bytes()}-bit vectors"

    def _load_runtime(self) -> ctypes.CDLL:
        # The kernels' objects find threadIdx, the barriers and the rest here.
        process = ctypes.CDLL(None)
        if hasattr(process, "convbackprop_launch"):
            return process  # loaded on a first use that was interrupted: the kernels would take the names from it
        return self._open(compiler.cpu_runtime(), compiler.cpu_runtime, ctypes.RTLD_GLOBAL)

    def _after_fork(self) -> None:
        self.lock = threading.Lock()
        self.runtime.convbackprop_after_fork()

    def run(self, launch: _Launch) -> None:
        """Run a grid to its end; the caller holds the lock."""
        launch.workers = self._workers()
        try:
            status = self._start(launch, _TIME_SLICE_MS)
            while status == _RUNNING:  # each return to Python lets a KeyboardInterrupt be raised
                status = self._resume(_TIME_SLICE_MS)
        except BaseException:
            # No Python function is called before this one, so that a second Ctrl-C cannot come in between: workers
            # would go on with arrays that are no longer there.
            self._cancel()
            raise
        if status == _FAILED:
            raise LaunchFailed(self.runtime.convbackprop_error().decode())
        if status == _NO_MEMORY:
            raise ProblemTooLarge(self.runtime.convbackprop_error().decode())

    def _workers(self) -> int:
        return _num_threads

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes between two addresses, on as many threads as a kernel: what timings are compared with."""
        values = (ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size))
        arguments = (ctypes.c_void_p * 3)(*(ctypes.addressof(value) for value in values))
        launch = _Launch(
            entry=ctypes.cast(self.runtime.convbackprop_copy_entry, ctypes.c_void_p),
            args=ctypes.addressof(arguments),
            grid=(max(1, -(-size // _COPY_PART)), 1, 1),
            block=(1, 1, 1),
        )
        with self.lock:
            self.run(launch)

    def load(self, source: Source, entry: str, grid: tuple[int, int, int], block: tuple[int, int, int],
             shared_bytes: int, pointers: int, shape: bytes, integers: Sequence[int], maps: Sequence[Mapped] = ()
             ) -> CpuKernel:  # fmt: skip
        """Compile the file where needed, load it, and prepare a launch of an entry point."""
        with _memory_for(f"{source.path.name} on the cpu device"):
            library = self._module(source)
        launch = _Launch(grid=grid, block=block, shared_bytes=shared_bytes, first_block=0, end_block=0, workers=1)
        self._check_parameters(library, source, entry, pointers, shape, integers, len(maps))
        return self._kernel(self, library, entry, launch, pointers, shape, integers, maps)

    def compile(self, source: Source) -> Path:
        """Compile a file for this device, where that has not been done yet."""
        return compiler.shared_object(source, self._flags)

    def _module(self, source: Source) -> ctypes.CDLL:
        path = self.compile(source)
        if path not in self._modules:
            self._modules[path] = self._open(path, lambda: self.compile(source), self._mode)
        return self._modules[path]

    def _open(self, path: Path, again: Callable[[], object], mode: int) -> ctypes.CDLL:
        """Load a file of the cache; `again` builds it again, where it is damaged."""
        return load_from_memory(path, cache.content(path, again), mode)

    def _check_parameters(self, library: ctypes.CDLL, source: Source, entry: str, pointers: int, shape: bytes,
                          integers: Sequence[int], maps: int) -> None:  # fmt: skip
        """A kernel with other parameters would read arguments that are not there."""
        try:
            sizes = getattr(library, f"{entry}_parameter_sizes")
        except AttributeError:
            raise LaunchFailed(f'{source.path} has no entry point extern "C" __global__ void {entry}') from None
        sizes.restype = ctypes.POINTER(ctypes.c_uint)
        declared = []
        for size in sizes():
            if size == 0:
                break
            declared.append(size)
        given = [mapped.BYTES] * maps + [8] * (pointers + bool(maps)) + [len(shape)] + [4] * len(integers)
        if declared != given:
            raise LaunchFailed(
                f"{entry} in {source.path} takes parameters of {declared} bytes, but is launched with {given}: "
                f"{pointers} arrays, the Conv2dShape and {len(integers)} integers"
            )


@contextlib.contextmanager
def _memory_for(what: str) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        if isinstance(error, ProblemTooLarge):
            raise
        raise ProblemTooLarge(f"there is no memory left to load {what}") from None


# -- loading ---------------------------------------------------------------------------------------------------------
_numbers = itertools.count(1)


def load_from_memory(path: Path, content: bytes, mode: int) -> ctypes.CDLL:
    """Load a shared object of which the content was read before.

    A process maps the file that it loads, and runs what is written to that file later.

    Raises
    ------
    DeviceUnusable
        It cannot be loaded; the message says why.
    """
    with contextlib.suppress(OSError), open(os.memfd_create(path.name), "wb", buffering=0) as file:
        file.write(content)
        # A name takes the library that was loaded under it before; each number makes another name for the same file.
        detour = f"{next(_numbers):b}".replace("0", "/").replace("1", "./")
        return ctypes.CDLL(f"/proc/self/fd/{detour}{file.fileno()}", mode=mode)
    return load_file(path, mode)  # a system that loads nothing from memory, or the error to report


def load_file(path: Path, mode: int) -> ctypes.CDLL:
    """Load a shared object of the cache from its file.

    Raises
    ------
    DeviceUnusable
        It cannot be loaded; it is forgotten, so that it is built again.
    """
    try:
        return ctypes.CDLL(str(path), mode=mode)
    except OSError as error:
        cache.discard(path)
        raise DeviceUnusable(
            f"a compiled kernel cannot be loaded ({error}); CONVBACKPROP_CACHE_DIR should be a directory whose files "
            "may be run, and the C++ compiler one that works; the next call compiles anew"
        ) from None


# -- the one device --------------------------------------------------------------------------------------------------
_first_use = threading.Lock()


def _after_fork() -> None:
    global _first_use
    _first_use = threading.Lock()  # a thread that is not in this process may have held it


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def cpu_device() -> CpuDevice:
    """Return the cpu device, built and loaded on first use."""
    with _first_use, _memory_for("the cpu device"):
        return _the_device()


@functools.cache
def _the_device() -> CpuDevice:
    """Return what `cpu_device` does; a cache alone would let each of several threads make a device.

    They would launch on one runtime at the same time.
    """
    return CpuDevice()
