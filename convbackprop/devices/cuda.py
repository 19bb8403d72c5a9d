"""Device cuda: PyCUDA on the device's primary context, which torch and CuPy use too.

PyCUDA is imported when a CUDA device is first asked for. Every use is bracketed by push and pop of the context, so that
whoever calls finds the thread as it was, and a thread without a context (torch runs backward in one) works. Launches
alone do without where that context is current already.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbackprop.devices import cache, compiler
from convbackprop.devices.compiler import Source
from convbackprop.devices.gpus import Target
from convbackprop.devices.mapped import Mapped, MappedKernel, WaitNote, load_module
from convbackprop.errors import (
    CompileError,
    ConvBackpropError,
    DeviceNotFound,
    DeviceUnusable,
    InvalidArgument,
    LaunchFailed,
    ProblemTooLarge,
)

if TYPE_CHECKING:
    from convbackprop.launch.arrays import Arrays

#: Architectures whose own instructions (wgmma, TMA) are only there under another name.
_ARCHITECTURE_SPECIFIC = {"sm_90": "sm_90a"}

#: What the driver of tests/driver calls its devices: kernels run on the CPU there, and nothing is worth timing.
STAND_IN = "stand-in (no GPU)"

#: A driver says so when it starts, or by its number of GPUs.
_NO_GPU = "the NVIDIA driver finds no GPU; check 'nvidia-smi' and CUDA_VISIBLE_DEVICES"

#: What takes a launch's addresses out of those of a call, and the launch.
Step = tuple[Callable[[Sequence[int]], Sequence[int]], Callable[..., None]]

#: Above this a kernel must ask for its dynamic shared memory.
_SHARED_BYTES_UNASKED = 48 * 1024


_Handle = ctypes.c_void_p  # of a context


@functools.cache
def _driver() -> Any:
    """Return pycuda.driver, initialised.

    Raises
    ------
    DeviceNotFound, DeviceUnusable
        What is missing, and what to do.
    """
    try:
        import pycuda  # noqa: F401
    except ImportError:
        raise DeviceNotFound(
            "PyCUDA is not installed; on a machine with an NVIDIA GPU run 'make pycuda', or pip install "
            "'convbackprop[cuda]'"
        ) from None
    try:
        import pycuda.driver as drv
    except ImportError as error:
        raise DeviceNotFound(
            f"PyCUDA cannot load the NVIDIA driver ({error}); install the driver, or use device 'cpu'"
        ) from None
    try:
        drv.init()
    except drv.Error as error:
        if "no CUDA-capable device" in str(error):
            raise DeviceNotFound(_NO_GPU) from None
        raise DeviceUnusable(
            f"the NVIDIA driver does not start ({error}); 'nvidia-smi' should list a GPU before CUDA can be used"
        ) from None
    return drv


@functools.cache
def _library() -> ctypes.CDLL:
    """Return the driver itself, for what PyCUDA does not bind."""
    return ctypes.CDLL("libcuda.so.1")


def _current(cuda: ctypes.CDLL) -> int | None:
    """Return the handle of the context that the driver takes for this thread's."""
    handle = ctypes.c_void_p()
    cuda.cuCtxGetCurrent(ctypes.byref(handle))
    return handle.value


class _Active:
    """The device's primary context, current in this thread inside a with block; the driver's errors become ours.

    A class and not a generator, which would take longer than the launch inside it.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device

    def __enter__(self) -> None:
        device = self._device
        device.check_usable()
        try:
            device.context.push()
        except device.driver.Error as error:
            device.mend_stack()
            raise device.failure(error) from error

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        device = self._device
        try:
            device.context.pop()
        except device.driver.Error as refused:
            if _current(_library()):  # told of something earlier, the driver has not popped it
                with contextlib.suppress(device.driver.Error):
                    device.context.pop()
            device.mend_stack()
            error = error or refused.with_traceback(None)  # which would keep this frame, and what called it, alive
        if isinstance(error, device._errors):
            raise device.failure(error) from error


class CudaKernel:
    """A loaded entry point with its launch geometry.

    Its parameters are pointers, a Conv2dShape and integers, in this order and without gaps. PyCUDA's prepared call
    would pack all of them at each launch, and import what packs them, which takes several times as long as the launch.
    """

    def __init__(self, function: Any, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int,
                 pointers: int, shape: bytes, integers: Sequence[int]) -> None:  # fmt: skip
        self._launch = function._launch_kernel  # what all of PyCUDA's calls end in
        self._grid = grid
        self._block = block
        self._shared_bytes = shared_bytes
        self._pack = struct.Struct(f"{pointers}P").pack
        self._constants = shape + struct.pack(f"{len(integers)}i", *integers)

    def launch(self, pointers: Sequence[int], stream: Any = None) -> None:
        """Queue the grid on a stream (None: the default stream), inside `CudaDevice.active`.

        There LaunchFailed is raised if the driver refuses the launch, or an earlier one has failed.
        """
        parameters = self._pack(*pointers) + self._constants
        self._launch(self._grid, self._block, parameters, self._shared_bytes, stream)


class CudaDevice:
    """A GPU as a device."""

    kind = "cuda"

    def __init__(self, ordinal: int) -> None:
        self.driver = drv = _driver()
        self.name = f"cuda:{ordinal}"
        self.ordinal = ordinal
        self._active = _Active(self)
        self._unusable: str | None = None  # why, for ever in this process
        self._get_current = ctypes.PyDLL("libcuda.so.1").cuCtxGetCurrent  # keeps the interpreter's lock: it is brief
        self._get_current.argtypes = [ctypes.POINTER(_Handle)]
        self._errors = (drv.Error, RuntimeError)  # torch's and CuPy's are RuntimeErrors
        try:
            count = drv.Device.count()
            if count == 0:
                raise DeviceNotFound(_NO_GPU)
            if ordinal >= count:
                raise DeviceNotFound(
                    f"device is 'cuda:{ordinal}'; it should be below 'cuda:{count}', the number of GPUs"
                )
            device = drv.Device(ordinal)
            self.title = device.name()
            major, minor = device.compute_capability()
            multiprocessors = device.get_attribute(drv.device_attribute.MULTIPROCESSOR_COUNT)
            self.context = device.retain_primary_context()
            self._handle = self.context.handle
        except drv.Error as error:
            raise DeviceUnusable(
                f"GPU {ordinal} cannot be used ({error}); another process may hold it, or all of its memory: "
                "'nvidia-smi' tells"
            ) from None
        #: Gives the context back, once; Python's end does, too.
        self.close = weakref.finalize(self, _give_back, self.context, drv.Error, os.getpid())
        self.is_stand_in = self.title == STAND_IN
        self.architecture = _ARCHITECTURE_SPECIFIC.get(f"sm_{major}{minor}", f"sm_{major}{minor}")
        self.target = Target(self.kind, multiprocessors, self.architecture)
        # Modules live as long as the process: unloading one from another thread leaks with a warning.
        self._modules: dict[Path, Any] = {}
        self._streams: dict[tuple[int, int], Any] = {}
        self._mapped_modules: dict[Path, ctypes.c_void_p] = {}
        self._wait_note: WaitNote | None = None

    def check_usable(self) -> None:
        """Refuse to work in a forked child, where the driver does not, and after the context was lost."""
        if self._unusable:
            raise DeviceUnusable(self._unusable)

    def mend_stack(self) -> None:
        """Put this thread's context back, which PyCUDA takes off the driver's stack before it pushes another one."""
        theirs = self.driver.Context.get_current()
        if theirs is not None and not _current(_library()):
            _library().cuCtxPushCurrent_v2(ctypes.c_void_p(theirs.handle))

    def failure(self, error: Exception) -> ConvBackpropError:
        """Return our exception in place of one of the driver's, or of a library's that uses it."""
        said = str(error).removesuffix(" - ")
        if self._is_lost():
            if self._wait_note is not None and (waited := self._wait_note.sentence()):
                said = f"{said}; {waited}"
            self._unusable = (
                f"{self.name} cannot be used in this process any more, since its context was lost ({said}); start the "
                "program again, or use device 'cpu'"
            )
            return LaunchFailed(
                f"the NVIDIA driver reports: {said}; the context of {self.name} is lost with all that was in it: "
                "start the program again, under compute-sanitizer where a kernel of your own may be to blame"
            )
        if isinstance(error, self.driver.MemoryError) or "out of memory" in said:
            return ProblemTooLarge(
                f"{self.name} has no memory left for this problem ({said}); use a smaller batch, or end what else "
                "uses it ('nvidia-smi' lists that)"
            )
        return LaunchFailed(
            f"the NVIDIA driver reports: {said}; nothing is lost: call again, and if that fails too, "
            "'convbackprop check --device cuda' tells whether anything works"
        )

    def _is_lost(self) -> bool:
        """Ask the driver something harmless: after certain errors each call returns that error, for ever."""
        try:
            self.context.push()
            try:
                self.driver.mem_get_info()
            finally:
                self.context.pop()
        except self.driver.Error:
            return True
        return False

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Make the device's primary context current for a while.

        Raises
        ------
        ProblemTooLarge, LaunchFailed
            In place of the driver's errors, on the way out.
        """
        return self._active

    def launch(self, steps: Iterable[Step], addresses: Sequence[int], library: Arrays) -> None:
        """Queue launches on the stream on which the caller works with the arrays of this library.

        Where the device's primary context is current, as torch leaves it, and the stream is the default one, there is
        nothing to push, to pop, or to wait for. Only the driver knows what is current: PyCUDA's own stack tells what
        was pushed by PyCUDA.

        Raises
        ------
        ProblemTooLarge, LaunchFailed, DeviceUnusable
            In place of the driver's errors.
        """
        if self._unusable:
            self.check_usable()
        self._get_current(current := _Handle())
        if current.value == self._handle:
            try:
                if not library.current_stream(self):
                    for pick, launch in steps:
                        launch(pick(addresses))
                    return
            except self._errors as error:
                raise self.failure(error) from error
        with self._active, library.on_stream(self) as stream:
            for pick, launch in steps:
                launch(pick(addresses), stream)

    def stream_beside(self, handle: int) -> Any:
        """Return a stream of our own that stands for another library's stream in this thread.

        PyCUDA cannot launch on a stream that it did not make.
        """
        key = (threading.get_ident(), handle)
        if key not in self._streams:
            self._streams[key] = self.driver.Stream()
        return self._streams[key]

    def load(self, source: Source, entry: str, grid: tuple[int, int, int], block: tuple[int, int, int],
             shared_bytes: int, pointers: int, shape: bytes, integers: Sequence[int], maps: Sequence[Mapped] = ()
             ) -> CudaKernel | MappedKernel:  # fmt: skip
        """Compile the file where needed, load it, and prepare a launch of an entry point."""
        path, _ = compiler.cubin(source, self.architecture)
        if maps:
            return self._load_mapped(path, source, entry, grid, block, shared_bytes, shape, integers, maps)
        with self.active():
            if path not in self._modules:
                code = cache.content(path, lambda: compiler.cubin(source, self.architecture))
                self._modules[path] = self._module(code, path, source)
            function = self._modules[path].get_function(entry)
            if shared_bytes > _SHARED_BYTES_UNASKED:
                attribute = self.driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
                function.set_attribute(attribute, shared_bytes)
        return CudaKernel(function, grid, block, shared_bytes, pointers, shape, integers)

    def _load_mapped(self, path: Path, source: Source, entry: str, grid: tuple[int, int, int],
                     block: tuple[int, int, int], shared_bytes: int, shape: bytes, integers: Sequence[int],
                     maps: Sequence[Mapped]) -> MappedKernel:  # fmt: skip
        with self.active():
            if self._wait_note is None:
                self._wait_note = WaitNote(_library())
            if path not in self._mapped_modules:
                code = cache.content(path, lambda: compiler.cubin(source, self.architecture))
                self._mapped_modules[path] = load_module(_library(), code)
            return MappedKernel(_library(), self._mapped_modules[path], entry, grid, block, shared_bytes, shape,
                                integers, maps, self._wait_note)  # fmt: skip

    def _module(self, code: bytes, path: Path, source: Source) -> Any:
        try:
            return self.driver.module_from_buffer(code)
        except self.driver.Error as error:
            if "kernel image" not in str(error):
                raise
            cache.discard(path)
            said = str(error).removesuffix(" - ")
            raise CompileError(
                f"the NVIDIA driver does not take what nvcc made of {source.path} ({said}); nvcc should be one that "
                "works and is no newer than the driver ('convbackprop doctor' names both); the next call compiles anew"
            ) from None

    def free_bytes(self) -> int:
        """Return how many bytes of the GPU's memory are free."""
        with self.active():
            free, _ = self.driver.mem_get_info()
        return int(free)

    # -- arrays of the host: copied to the device and back --------------------------------------------------------
    def allocate(self, size: int) -> Any:
        """Return device memory of `size` bytes; int() of it is its address."""
        try:
            return self.driver.mem_alloc(max(1, size))
        except self.driver.MemoryError:
            raise ProblemTooLarge(
                f"device {self.name} has no memory left for an array of {size:,} bytes; use a smaller batch or image"
            ) from None

    def upload(self, address: int, size: int) -> Any:
        """Return a copy on the device of `size` bytes of host memory."""
        allocation = self.allocate(size)
        try:
            if size:
                self.driver.memcpy_htod(allocation, (ctypes.c_char * size).from_address(address))
        except self.driver.Error:
            allocation.free()
            raise
        return allocation

    @contextlib.contextmanager
    def holding(self) -> Iterator[dict[str, Any]]:
        """Be active, and free all memory that is put into the dictionary in the end.

        Left to itself, PyCUDA frees memory only in the thread that opened the device, and else warns and leaks it.
        """
        with self.active():
            held: dict[str, Any] = {}
            try:
                yield held
            finally:
                while held:
                    held.popitem()[1].free()

    def download(self, allocation: Any, address: int, size: int) -> None:
        """Wait for the default stream and copy `size` bytes back to host memory."""
        if size:
            self.driver.memcpy_dtoh((ctypes.c_char * size).from_address(address), allocation)

    def copy(self, target: int, source: int, size: int) -> None:
        """Queue a copy of `size` bytes between two device addresses: what timings are compared with."""
        self.driver.memcpy_dtod_async(target, source, size)

    def seconds(self, call: Callable[[], object]) -> float:
        """Return how many seconds the GPU takes for what a call queues on the default stream, once that has ended."""
        start, stop = self.driver.Event(), self.driver.Event()
        try:
            start.record()
            call()
            stop.record()
            stop.synchronize()
            return float(stop.time_since(start)) * 1e-3
        finally:
            # Not left to whoever handles an exception: an event that dies while its context is not current, and cannot
            # be made so, has PyCUDA end the process.
            del start, stop


def _give_back(context: Any, driver_error: type[Exception], process: int) -> None:
    """Give a primary context back: PyCUDA, left to itself, does so in a way that only fits contexts it made."""
    if os.getpid() == process:
        with contextlib.suppress(driver_error):
            context.detach()


_devices: dict[int, CudaDevice] = {}


def _opened(ordinal: int) -> CudaDevice:
    if ordinal not in _devices:
        _devices[ordinal] = CudaDevice(ordinal)
    return _devices[ordinal]


def _after_fork() -> None:
    for device in _devices.values():
        device._unusable = (
            "CUDA was used before this process was forked, and does not survive that; start workers by 'spawn'"
        )


os.register_at_fork(after_in_child=_after_fork)


def forget() -> None:
    """Close all devices, and look anew for a driver when one is asked for."""
    while _devices:
        _devices.popitem()[1].close()
    _driver.cache_clear()
    why_not.cache_clear()


def cuda_device(ordinal: int) -> CudaDevice:
    """Return a GPU by its number, opened on first use.

    Raises
    ------
    DeviceNotFound, DeviceUnusable
        What is wrong, and what to do.
    """
    device = _opened(ordinal)
    device.check_usable()
    return device


@functools.cache
def why_not() -> str | None:
    """Return None if the first GPU can be used, else one sentence on why not and what to do."""
    try:
        device = _opened(0)
    except ConvBackpropError as error:
        return str(error)
    if device.is_stand_in:
        return "libcuda.so.1 is the tests' stand-in for a driver, and there is no GPU; only device='cuda' uses it"
    return None


def _meaning(cuda: ctypes.CDLL, status: int) -> str:
    """Return the driver's words for one of its codes."""
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(status, ctypes.byref(text))
    return (text.value or b"unknown error").decode()


def owner_of(address: int) -> str:
    """Return the name of the device that a device address belongs to.

    Raises
    ------
    InvalidArgument
        The memory belongs to another context than the device's primary one, where our kernels cannot reach it.
    """
    _driver()
    cuda = _library()
    context, primary, ordinal = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
    attribute_context, attribute_device_ordinal = 1, 9
    for value, attribute in ((context, attribute_context), (ordinal, attribute_device_ordinal)):
        status = cuda.cuPointerGetAttribute(ctypes.byref(value), attribute, ctypes.c_uint64(address))
        if status == 1:  # CUDA_ERROR_INVALID_VALUE
            raise InvalidArgument(f"the GPUArray at {address:#x} lies in no memory of a GPU; it may have been freed")
        if status:
            raise LaunchFailed(
                f"the NVIDIA driver does not tell whose the GPUArray at {address:#x} is ({_meaning(cuda, status)}); "
                "nothing was launched"
            )
    if status := cuda.cuDevicePrimaryCtxRetain(ctypes.byref(primary), ordinal):
        raise DeviceUnusable(
            f"GPU {ordinal.value}, where the GPUArray lies, cannot be used ({_meaning(cuda, status)}); another process "
            "may hold it, or all of its memory: 'nvidia-smi' tells"
        )
    cuda.cuDevicePrimaryCtxRelease_v2(ordinal)
    if context.value != primary.value:
        raise InvalidArgument(
            "the GPUArray was made in a context of its own; make it in the device's primary context "
            "(pycuda.driver.Device(i).retain_primary_context().push()) instead of pycuda.autoinit's"
        )
    return f"cuda:{ordinal.value}"
