"""What the package uses of CuPy, on the stand-in: arrays in the driver's memory, and a stream that waits for no other.

CuPy itself needs more of CUDA than the stand-in has. Copies to and from the host are queued on the current stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import types
from typing import Any

import numpy as np

from tests.driver import StandIn, device

NON_BLOCKING = 1


class CUDADriverError(RuntimeError):
    """cupy.cuda.driver's."""


def install(monkeypatch: Any, stand_in: StandIn, own_stream: bool = True) -> types.ModuleType:
    """Put a module `cupy` where it is imported from; work goes to a stream of its own, or to the legacy one."""
    cuda = stand_in.cuda

    def drive(call: str, *arguments: Any) -> None:
        with device().active():
            status = getattr(cuda, call)(*arguments)
        if status:
            text = ctypes.c_char_p()
            cuda.cuGetErrorString(status, ctypes.byref(text))
            raise CUDADriverError(f"{call} failed: {(text.value or b'').decode()}")

    current = ctypes.c_void_p(0)
    if own_stream:
        drive("cuStreamCreate", ctypes.byref(current), NON_BLOCKING)

    class Memory:
        def __init__(self, size: int) -> None:
            pointer = ctypes.c_uint64()
            try:
                drive("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
            finally:
                self.ptr = pointer.value

        def __del__(self) -> None:
            for _ in range(2 if self.ptr else 0):  # again where the context could not be made current
                with contextlib.suppress(Exception):
                    drive("cuMemFree_v2", ctypes.c_uint64(self.ptr))
                    break

    class Device:
        def __init__(self, number: int) -> None:
            self.id = number

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    class ndarray:
        def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
            like = np.empty(shape, dtype)
            self.shape, self.dtype, self.strides, self.nbytes = like.shape, like.dtype, like.strides, like.nbytes
            self.flags = types.SimpleNamespace(c_contiguous=True)
            self.device = Device(0)
            self.data = Memory(like.nbytes)

        def set(self, host: np.ndarray) -> None:
            """Queue a copy; `host` stays as it is until then."""
            pointer = ctypes.c_uint64(self.data.ptr)
            drive("cuMemcpyHtoDAsync_v2", pointer, ctypes.c_void_p(host.ctypes.data), ctypes.c_size_t(self.nbytes),
                  current)  # fmt: skip

        def get(self) -> np.ndarray:
            host = np.empty(self.shape, self.dtype)
            drive("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(host.ctypes.data), ctypes.c_uint64(self.data.ptr),
                  ctypes.c_size_t(self.nbytes), current)  # fmt: skip
            drive("cuStreamSynchronize", current)
            return host

    class Stream:
        def __init__(self, ptr: int) -> None:
            self.ptr = ptr

        def record(self) -> Any:
            event = ctypes.c_void_p()
            drive("cuEventCreate", ctypes.byref(event), 2)
            drive("cuEventRecord", event, ctypes.c_void_p(self.ptr))
            return event

        def wait_event(self, event: Any) -> None:
            drive("cuStreamWaitEvent", ctypes.c_void_p(self.ptr), event, 0)
            drive("cuEventDestroy_v2", event)

    def asarray(host: np.ndarray) -> ndarray:
        made = ndarray(host.shape, host.dtype)
        made.set(host)
        return made

    cupy = types.ModuleType("cupy")
    ndarray.__module__ = "cupy"
    cupy.ndarray, cupy.asarray, cupy.empty = ndarray, asarray, ndarray  # type: ignore[attr-defined]
    cupy.ascontiguousarray = lambda array: array  # type: ignore[attr-defined]
    cupy.drive, cupy.stream = drive, current  # type: ignore[attr-defined]
    cupy.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device, ExternalStream=Stream, get_current_stream=lambda: Stream(current.value or 0)
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy
