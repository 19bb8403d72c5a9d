"""Tensor maps: what a kernel's boxes of a tensor are, as the CPU's runtime and a GPU's driver know it.

A kernel with maps takes them first, then where a wait that does not end is told (hopper/mbarrier.cuh), and then what
all kernels take. PyCUDA binds neither tensor maps nor parameters that are aligned to more than themselves, so that such
a kernel is loaded and launched through the driver that PyCUDA has loaded.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

#: Of tensors of five dimensions: CUtensorMapDataType, and bytes of an element.
_ELEMENTS = {"float16": (6, 2), "float32": (7, 4), "bfloat16": (9, 2)}
_RANK = 5

#: CUtensorMapInterleave, CUtensorMapSwizzle (rows of 128 bytes), CUtensorMapL2promotion (128 bytes at once), and zeros
#: for what lies outside.
_NO_INTERLEAVE, _SWIZZLE_128, _PROMOTE_128, _ZEROS = 0, 3, 2, 0

#: Of a map, and what its address is a multiple of.
BYTES, _ALIGNMENT = 128, 64

#: The driver's limits: elements that a box spans along a dimension, and each how-manieth of them is copied at most.
MOST_SPANNED, MOST_STEP = 256, 8

_MAX_DYNAMIC_SHARED_SIZE_BYTES, _DEVICEMAP = 8, 2

#: WaitNote of hopper/mbarrier.cuh: what is waited for, slot, parity, block, thread.
_NOTE = ctypes.c_int * 5
_WAITED_FOR = ("", "an empty box", "an empty tap", "a box", "a tap")


class TensorMap(NamedTuple):
    """A tensor and its boxes, from the contiguous dimension outwards.

    Attributes
    ----------
    operand : str
        The array of the launch that it is.
    dtype : str
        Of its elements as they lie there.
    sizes : tuple of five int
        In elements.
    strides : tuple of four int
        Bytes from element to element, of all dimensions but the first: multiples of 16.
    box : tuple of five int
        Elements that a box spans; along the first 128 bytes.
    steps : tuple of five int
        Of these each how-manieth is copied; 1 along the first.
    offset : int
        Bytes from the array's beginning to the tensor's.
    """

    operand: str
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    offset: int = 0

    def on_cpu(self, address: int) -> bytes:
        """Return it as a ConvbackpropTensorMap of cpu_runtime/tensor_map.h."""
        _, element = _ELEMENTS[self.dtype]
        first = address + self.offset
        return struct.pack("=Q4Q5I5I5II24x", first, *self.strides, *self.sizes, *self.box, *self.steps, element)

    def on_gpu(self, cuda: ctypes.CDLL, address: int) -> ctypes.Array[Any]:
        """Return what the driver makes of it, at an aligned address.

        Raises
        ------
        RuntimeError
            The driver refuses; in its words.
        """
        room = (ctypes.c_char * (BYTES + _ALIGNMENT))()
        first = -ctypes.addressof(room) % _ALIGNMENT
        made = (ctypes.c_char * BYTES).from_buffer(room, first)
        kind, _ = _ELEMENTS[self.dtype]
        call(
            cuda, "cuTensorMapEncodeTiled", ctypes.byref(made), kind, _RANK, ctypes.c_void_p(address + self.offset),
            (ctypes.c_uint64 * _RANK)(*self.sizes), (ctypes.c_uint64 * (_RANK - 1))(*self.strides),
            (ctypes.c_uint32 * _RANK)(*self.box), (ctypes.c_uint32 * _RANK)(*self.steps),
            _NO_INTERLEAVE, _SWIZZLE_128, _PROMOTE_128, _ZEROS,
        )  # fmt: skip
        return made


#: Which of a launch's arrays a map is of, and the map.
Mapped = tuple[int, TensorMap]


def call(cuda: ctypes.CDLL, name: str, *arguments: Any) -> None:
    """Call the driver.

    Raises
    ------
    RuntimeError
        It lacks the function, or tells of an error: name and words as PyCUDA has them.
    """
    try:
        function = getattr(cuda, name)
    except AttributeError:
        raise RuntimeError(f"{name} failed: the driver is older than CUDA 12, which brought it") from None
    if status := function(*arguments):
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{name} failed: {(text.value or b'unknown error').decode()}")


class WaitNote:
    """Memory of the host in which a kernel leaves a note before it ends for a wait that does not end."""

    def __init__(self, cuda: ctypes.CDLL) -> None:
        place = ctypes.c_void_p()
        call(cuda, "cuMemHostAlloc", ctypes.byref(place), ctypes.c_size_t(ctypes.sizeof(_NOTE)), _DEVICEMAP)
        assert place.value is not None
        self.address: int = place.value  # to the GPU, too
        self._note = _NOTE.from_address(self.address)
        self._note[:] = [0] * len(self._note)

    def sentence(self) -> str | None:
        """Return what a kernel has left, or None."""
        what, slot, parity, block, thread = self._note
        if not what:
            return None
        return f"block {block}, thread {thread} waited in vain for {_WAITED_FOR[what]} in slot {slot}, parity {parity}"


def load_module(cuda: ctypes.CDLL, code: bytes) -> ctypes.c_void_p:
    """Load a cubin into the current context, for as long as that lives."""
    module = ctypes.c_void_p()
    call(cuda, "cuModuleLoadData", ctypes.byref(module), code)
    return module


class MappedKernel:
    """A loaded entry point with tensor maps, and its launch geometry."""

    def __init__(self, cuda: ctypes.CDLL, module: ctypes.c_void_p, entry: str, grid: tuple[int, int, int],
                 block: tuple[int, int, int], shared_bytes: int, shape: bytes, integers: Sequence[int],
                 maps: Sequence[Mapped], note: WaitNote) -> None:  # fmt: skip
        self._function = ctypes.c_void_p()
        call(cuda, "cuModuleGetFunction", ctypes.byref(self._function), module, entry.encode())
        call(cuda, "cuFuncSetAttribute", self._function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        self._cuda = cuda
        self._geometry = (*grid, *block, shared_bytes)
        self._note = note
        self._which = [i for i, _ in maps]
        self._constants = [ctypes.create_string_buffer(shape, len(shape)), *map(ctypes.c_int, integers)]

        # The driver takes a microsecond for each: calls on the same memory find them made.
        @functools.lru_cache(maxsize=64)
        def encoded(addresses: tuple[int, ...]) -> list[ctypes.Array[Any]]:
            return [each.on_gpu(cuda, address) for (_, each), address in zip(maps, addresses, strict=True)]

        self._encoded: Callable[[tuple[int, ...]], list[ctypes.Array[Any]]] = encoded

    def launch(self, pointers: Sequence[int], stream: Any = None) -> None:
        """Queue the grid on a stream (None: the default stream), inside `CudaDevice.active`."""
        values = (ctypes.c_uint64 * (1 + len(pointers)))(self._note.address, *pointers)
        first = ctypes.addressof(values)
        addresses = [
            *map(ctypes.addressof, maps := self._encoded(tuple(pointers[i] for i in self._which))),
            *range(first, first + ctypes.sizeof(values), 8),
            *map(ctypes.addressof, self._constants),
        ]
        parameters = (ctypes.c_void_p * len(addresses))(*addresses)
        handle = ctypes.c_void_p(stream.handle if stream is not None else None)
        call(self._cuda, "cuLaunchKernel", self._function, *self._geometry, handle, parameters, None)
        del maps  # not before: the parameters are read by then
