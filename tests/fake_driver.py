"""As much of PyCUDA as the package uses, on the memory and the CPU of this machine: no GPU, and never to be timed.

It lets the host code of the cuda device run where there is no GPU: contexts, memory, modules, arguments and streams. A
"cubin" is a text that names the .cu file and its constants; a launch unpacks the arguments as the driver would and
runs the same file on the cpu device. What the real driver refuses is refused here too: work without a current context,
an address that is not device memory, a function that was not prepared.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
import threading
import types
from pathlib import Path

import numpy as np

from convbackprop import cache
from convbackprop.compiler import Source
from tests.quick import quick_cpu


class Error(Exception):
    pass


class LogicError(Error):
    pass


class MemoryError_(Error):
    pass


class FakeDriver(types.ModuleType):
    """pycuda.driver."""

    Error = Error
    LogicError = LogicError
    MemoryError = MemoryError_

    def __init__(self, devices: int = 1, memory: int = 2**30) -> None:
        super().__init__("pycuda.driver")
        self.devices = devices
        self.free = memory
        self.stacks = threading.local()
        self.allocations: dict[int, DeviceAllocation] = {}
        self.launches: list[str] = []
        self.fail_next_launch = False
        driver = self

        class Device:
            def __init__(self, ordinal: int) -> None:
                self.ordinal = ordinal

            @staticmethod
            def count() -> int:
                return driver.devices

            def retain_primary_context(self) -> Context:
                return Context(driver, self.ordinal)

            def name(self) -> str:
                return "stand-in"

            def compute_capability(self) -> tuple[int, int]:
                return (9, 0)

        class Stream:
            def __init__(self) -> None:
                driver.require_context()
                self.handle = 0x5EED

        class Event:
            def __init__(self) -> None:
                driver.require_context()

            def record(self) -> None:
                driver.require_context()

            def synchronize(self) -> None:
                driver.require_context()

        self.Device = Device
        self.Stream = Stream
        self.Event = Event
        self.function_attribute = types.SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

    def init(self) -> None:
        pass

    def stack(self) -> list:
        if not hasattr(self.stacks, "stack"):
            self.stacks.stack = []
        return self.stacks.stack

    def require_context(self) -> None:
        if not self.stack():
            raise LogicError("no currently active context?")

    def mem_alloc(self, size: int) -> DeviceAllocation:
        self.require_context()
        if size > self.free:
            raise MemoryError_("cuMemAlloc failed: out of memory")
        return DeviceAllocation(self, size)

    def mem_get_info(self) -> tuple[int, int]:
        self.require_context()
        return self.free, 2**30

    def memset_d8(self, target: int, value: int, size: int) -> None:
        self.require_context()
        ctypes.memset(target, value, size)

    def memcpy_htod(self, target: DeviceAllocation, source: object) -> None:
        self.require_context()
        data = bytes(memoryview(source).cast("B"))
        ctypes.memmove(int(target), data, len(data))

    def memcpy_dtoh(self, target: object, source: DeviceAllocation) -> None:
        self.require_context()
        view = memoryview(target).cast("B")
        view[:] = ctypes.string_at(int(source), len(view))

    def module_from_buffer(self, cubin: bytes) -> Module:
        self.require_context()
        return Module(self, cubin)

    def is_device_memory(self, address: int) -> bool:
        return any(start <= address < start + a.size for start, a in self.allocations.items())


class Context:
    def __init__(self, driver: FakeDriver, ordinal: int) -> None:
        self.driver = driver
        self.ordinal = ordinal

    def push(self) -> None:
        self.driver.stack().append(self)

    def pop(self) -> None:
        assert self.driver.stack().pop() is self

    def detach(self) -> None:
        pass


class DeviceAllocation:
    def __init__(self, driver: FakeDriver, size: int) -> None:
        self.memory = np.full(size, 0xFF, np.uint8)  # NaN, as long as nothing is written
        self.size = size
        self.driver = driver
        driver.allocations[int(self)] = self

    def __int__(self) -> int:
        return self.memory.ctypes.data

    def free(self) -> None:
        self.driver.allocations.pop(int(self), None)


class Module:
    def __init__(self, driver: FakeDriver, cubin: bytes) -> None:
        self.driver = driver
        self.made_from = json.loads(cubin)

    def get_function(self, name: str) -> Function:
        return Function(self, name)


class Function:
    def __init__(self, module: Module, name: str) -> None:
        self.module = module
        self.name = name
        self.format: list[str] | None = None

    def set_attribute(self, attribute: int, value: int) -> None:
        assert attribute == 8 and value > 48 * 1024

    def prepare(self, formats: list[str]) -> None:
        self.format = list(formats)

    def prepared_async_call(self, grid, block, stream, *args, shared_size=0) -> None:
        driver = self.module.driver
        driver.require_context()
        assert self.format is not None, "the function was not prepared"
        if driver.fail_next_launch:
            driver.fail_next_launch = False
            raise LogicError("cuLaunchKernel failed: an illegal memory access was encountered")
        packed = struct.pack("".join(self.format), *args)
        values = struct.unpack("".join(self.format), packed)
        pointers = [v for f, v in zip(self.format, values, strict=True) if f == "P"]
        for pointer in pointers:
            assert pointer == 0 or driver.is_device_memory(pointer), f"{pointer:#x} is not device memory"
        (shape,) = [v for f, v in zip(self.format, values, strict=True) if f.endswith("s")]
        integers = [v for f, v in zip(self.format, values, strict=True) if f == "i"]
        source = Source(Path(self.module.made_from["path"]), tuple(map(tuple, self.module.made_from["constants"])))
        kernel = quick_cpu().load(source, self.name, grid, block, shared_size, len(pointers), shape, integers)
        kernel.launch(pointers)
        driver.launches.append(self.name)


def fake_cubin(folder: Path):
    """Return what stands for compiler.cubin: it writes down the source instead of compiling it."""

    def cubin(source: Source, architecture: str) -> tuple[Path, str]:
        assert architecture == "sm_90a"
        text = json.dumps({"path": str(source.path), "constants": source.constants})
        path = folder / f"{cache.digest(text)}.cubin"
        return cache._build(path, lambda made: made.write_text(text) and {}, alone=True).path, ""

    return cubin


def install(monkeypatch, folder: Path, **options) -> FakeDriver:
    """Put the stand-in where PyCUDA is imported from, for one test."""
    from convbackprop import calls, compiler
    from convbackprop.devices import cuda

    driver = FakeDriver(**options)
    package = types.ModuleType("pycuda")
    package.driver = driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(compiler, "cubin", fake_cubin(folder))
    cuda.forget()
    calls.forget()
    return driver


def uninstall() -> None:
    """Forget what was opened on the stand-in."""
    from convbackprop import calls
    from convbackprop.devices import cuda

    cuda.forget()
    calls.forget()


class FakeCupyArray:
    """cupy.ndarray on the stand-in's memory."""

    def __init__(self, driver: FakeDriver, array: np.ndarray) -> None:
        self.shape, self.dtype, self.strides = array.shape, array.dtype, array.strides
        self.flags = types.SimpleNamespace(c_contiguous=True)
        self.device = types.SimpleNamespace(id=0, __enter__=lambda: None, __exit__=lambda *e: None)
        Context(driver, 0).push()
        self.allocation = DeviceAllocation(driver, max(1, array.nbytes))
        driver.stack().pop()
        self.data = types.SimpleNamespace(ptr=int(self.allocation))
        self.nbytes = array.nbytes
        ctypes.memmove(int(self.allocation), np.ascontiguousarray(array).tobytes(), array.nbytes)

    def get(self) -> np.ndarray:
        return np.frombuffer(ctypes.string_at(self.data.ptr, self.nbytes), self.dtype).reshape(self.shape)


def install_cupy(monkeypatch, driver: FakeDriver, stream: int = 0) -> types.ModuleType:
    """Put a stand-in for CuPy on the stand-in driver's memory; `stream` is the current stream's handle."""
    cupy = types.ModuleType("cupy")
    log: list[str] = []

    class ndarray(FakeCupyArray):
        def __init__(self, array: np.ndarray) -> None:
            super().__init__(driver, array)
            self.device = Device(0)

    class Device:
        def __init__(self, number: int) -> None:
            self.id = number

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    class Stream:
        def __init__(self, ptr: int) -> None:
            self.ptr = ptr

        def record(self) -> str:
            return f"event of {self.ptr:#x}"

        def wait_event(self, event: str) -> None:
            log.append(f"{self.ptr:#x} waits for {event} after {len(driver.launches)} launches")

    ndarray.__module__ = "cupy"
    cupy.ndarray = ndarray
    cupy.ascontiguousarray = lambda array: array
    cupy.empty = lambda shape, dtype: ndarray(np.full(shape, 77, dtype))
    cupy.cuda = types.SimpleNamespace(Device=Device, ExternalStream=Stream, get_current_stream=lambda: Stream(stream))
    cupy.log = log
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy
