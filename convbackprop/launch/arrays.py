"""Arrays of numpy, torch, CuPy and PyCUDA: what comes in decides what comes out.

Each library is one class that answers the same few questions; none is imported before one of its arrays is seen.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import functools
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convbackprop.devices import get_device
from convbackprop.errors import ConvBackpropError, InvalidArgument, InvalidType, ProblemTooLarge
from convbackprop.ladder.variant import WIDEST
from convbackprop.layouts import LAYOUTS, as_named, in_memory, lies, strides
from convbackprop.problem import DTYPES, bytes_of

#: How the libraries say that there is no memory left; "an illegal memory access" is something else.
_NO_MEMORY = re.compile("out ?of ?memory|allocate memory|MemoryError", re.IGNORECASE)

#: An allocation below this is not worth asking how much memory there is.
SMALL = 2**26


#: A tensor of at most this many bytes may be kept, to make others like it.
_KEPT = 2**14

#: numpy takes longer to name a dtype than to make an array of it.
_dtype_name = functools.cache(lambda dtype: str(dtype.name))


def _numpy_pointer() -> Callable[[Any], int]:
    """Return what tells a numpy array's address.

    numpy needs a microsecond for that. In its ABI the address comes right after the object's head, where every
    extension that was compiled against numpy reads it (PyArray_DATA), and so does this.
    """

    def read(array: Any) -> int:
        return word(id(array) + head).value or 0

    word, head = ctypes.c_void_p.from_address, object.__basicsize__
    probe = np.empty(1)
    if sys.implementation.name == "cpython" and read(probe) == probe.ctypes.data:
        return read
    return lambda array: int(array.ctypes.data)


_numpy_pointer_of = _numpy_pointer()

_DEFAULT_STREAM = contextlib.nullcontext()

#: What `glance` tells: the facts that decide about a call, and the addresses.
Glance = tuple[tuple[Any, ...], list[int]]

#: What tells the addresses of arrays if they are like others.
Alike = Callable[[Sequence[Any]], "list[int] | None"]

#: The bits of numpy's flags that decide about a call: contiguous, aligned, writable.
_NUMPY_CONTIGUOUS = 0x001
_NUMPY_FLAGS = _NUMPY_CONTIGUOUS | 0x100 | 0x400


def _told(facts: list[Any], addresses: list[int], offsets: int) -> Glance:
    """Return what a glance has seen; `offsets` has the bits of all addresses, which tell whether all are aligned."""
    if offsets % WIDEST:
        facts += (address % WIDEST for address in addresses)
    return tuple(facts), addresses


class Arrays(abc.ABC):
    """What is asked of a library whose arrays are passed in."""

    title = ""

    #: Whether its arrays say nothing about the device to run on, so that CONVBACKPROP_DEVICE may.
    runs_anywhere = False

    #: Whether `alike` is quicker than `glance`.
    compares = False

    def exact_types(self) -> tuple[type, ...]:
        """Return the types that `glance` knows, of which subclasses may differ."""
        return ()

    def glance(self, given: Sequence[Any]) -> Glance | None:
        """Look at the arrays of a call, some of them None, as briefly as possible.

        Returns all that decides whether they can be used, and how, and the addresses of those that are not None; or
        None where one has to be looked at more closely, because it is not what kernels can use where it lies.
        """
        return None

    def alike(self, given: Sequence[Any]) -> Alike:
        """Return what says for other arrays what `glance` would: their addresses if it sees the same, else None.

        It may say None of arrays that are alike.
        """
        seen = self.glance(given)
        facts = seen and seen[0]

        def addresses(others: Sequence[Any]) -> list[int] | None:
            seen = self.glance(others)
            return seen[1] if seen is not None and seen[0] == facts else None

        return addresses

    def maker(self, shape: tuple[int, ...], dtype: str, like: Any, layout: str = "nchw") -> Callable[[Any], Any]:
        """Return what makes small arrays of this shape, as `empty` does, for a call with arrays like these."""
        return lambda like: self.empty(shape, dtype, like, layout)

    @abc.abstractmethod
    def device_name(self, array: Any) -> str:
        """Return "cpu", or "cuda:N" for memory of a GPU."""

    def dtype(self, array: Any) -> str:
        """Return the name of the dtype; bfloat16 is ml_dtypes'."""
        return _dtype_name(array.dtype)

    def refusal(self, array: Any) -> str | None:
        """Return why an array cannot be used ("requires grad: ..."), or None."""
        return None

    @abc.abstractmethod
    def contiguous(self, array: Any) -> Any:
        """Return the array itself, or a copy that is contiguous, aligned and in this machine's byte order."""

    @abc.abstractmethod
    def is_plain(self, array: Any) -> bool:
        """Return whether kernels can write to the array where it lies, contiguous."""

    def is_native(self, array: Any) -> bool:
        """Return whether the numbers of its elements are what its memory holds."""
        return True

    def lies(self, array: Any, layout: str) -> bool:
        """Return whether kernels can use the array where it lies, as an image of this layout."""
        if layout == "nchw":
            return self.is_plain(array)
        element = bytes_of((), self.dtype(array))
        return self.is_native(array) and lies(tuple(array.shape), self.byte_strides(array), element, layout)

    def is_writable(self, array: Any) -> bool:
        """Return whether the array may be written to."""
        return True

    @abc.abstractmethod
    def pointer(self, array: Any) -> int:
        """Return the address of the first element."""

    def byte_strides(self, array: Any) -> tuple[int, ...]:
        """Return the distances between neighbours along each axis, in bytes."""
        return tuple(array.strides)

    @abc.abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, layout: str = "nchw") -> Any:
        """Return a new array where `like` lies: contiguous, or an image of another layout."""

    def copy(self, target: Any, source: Any) -> None:
        """Copy all elements of an array into another of the same shape."""
        target[...] = source

    def on_stream(self, device: Any) -> contextlib.AbstractContextManager[Any]:
        """Give PyCUDA's name of the stream on which the caller works; None is the default stream."""
        return _DEFAULT_STREAM if self.current_stream(device) == 0 else self.on_other_stream(device)

    def current_stream(self, device: Any) -> int:
        """Return the handle of the stream on which the caller works."""
        return 0

    def on_other_stream(self, device: Any) -> contextlib.AbstractContextManager[Any]:
        """Give a stream of ours that waits for the caller's, and that the caller's will wait for."""
        raise NotImplementedError(f"{self.title} has no streams")


class NumpyArrays(Arrays):
    """numpy.ndarray, in host memory."""

    title = "numpy.ndarray"
    runs_anywhere = True

    def exact_types(self) -> tuple[type, ...]:  # noqa: D102
        return (np.ndarray,)

    def glance(self, given: Sequence[Any]) -> Glance | None:  # noqa: D102
        facts: list[Any] = []
        addresses = []
        offsets = 0
        for array in given:
            if array is None:
                facts.append(None)
                continue
            if type(array) is not np.ndarray:
                return None
            flags = array.flags.num & _NUMPY_FLAGS
            facts += (array.shape, array.dtype, flags)
            if not flags & _NUMPY_CONTIGUOUS:
                facts.append(array.strides)
            address = _numpy_pointer_of(array)
            offsets |= address
            addresses.append(address)
        return _told(facts, addresses, offsets)

    def maker(  # noqa: D102
        self, shape: tuple[int, ...], dtype: str, like: Any, layout: str = "nchw"
    ) -> Callable[[Any], Any]:
        if layout != "nchw":
            return super().maker(shape, dtype, like, layout)
        if dtype in DTYPES:
            return lambda like: np.empty(shape, like.dtype)
        return lambda like: np.empty(shape, dtype)

    def device_name(self, array: Any) -> str:  # noqa: D102
        return "cpu"

    def refusal(self, array: Any) -> str | None:  # noqa: D102
        if isinstance(array, np.ma.MaskedArray):
            return "a masked array, whose mask would be lost; pass input.filled(0) or similar"
        return None

    def contiguous(self, array: Any) -> Any:  # noqa: D102
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        return np.require(array, requirements=["C_CONTIGUOUS", "ALIGNED"])

    def is_plain(self, array: Any) -> bool:  # noqa: D102
        return bool(array.flags.c_contiguous and self.is_native(array))

    def is_native(self, array: Any) -> bool:  # noqa: D102
        return bool(array.flags.aligned and array.dtype.isnative)

    def is_writable(self, array: Any) -> bool:  # noqa: D102
        return bool(array.flags.writeable)

    def pointer(self, array: Any) -> int:  # noqa: D102
        return _numpy_pointer_of(array)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, layout: str = "nchw") -> Any:  # noqa: D102
        own = like.dtype.newbyteorder("=") if dtype in DTYPES else dtype
        return as_named(np.empty(in_memory(shape, layout), own), layout)


class TorchArrays(Arrays):
    """torch.Tensor, on the CPU or a GPU."""

    title = "torch.Tensor"
    compares = True

    def exact_types(self) -> tuple[type, ...]:  # noqa: D102
        torch = sys.modules["torch"]
        return (torch.Tensor, torch.nn.Parameter)

    def glance(self, given: Sequence[Any]) -> Glance | None:  # noqa: D102
        grad_mode = sys.modules["torch"].is_grad_enabled()
        facts: list[Any] = []
        addresses = []
        offsets = 0
        try:
            for array in given:
                if array is None:
                    facts.append(None)
                    continue
                if QUICK.get(type(array)) is not self or (grad_mode and array.requires_grad):
                    return None
                address = array.data_ptr()
                if not address or array.is_neg():
                    return None
                facts += (array.shape, array.dtype, array.device)
                if not array.is_contiguous():
                    facts.append(array.stride())
                offsets |= address
                addresses.append(address)
        except RuntimeError:  # one without memory of its own: sparse, or inside a transformation of torch.func
            return None
        return _told(facts, addresses, offsets)

    def alike(self, given: Sequence[Any]) -> Alike:  # noqa: D102
        # What torch.compile asks of the tensors that it is called with takes an eighth of a glance. It is not public.
        torch = sys.modules["torch"]
        absent = [i for i, tensor in enumerate(given) if tensor is None]
        pick = operator.itemgetter(*(i for i, tensor in enumerate(given) if tensor is not None))
        tensors = pick(given)
        if any(tensor.data_ptr() % WIDEST for tensor in tensors):
            return super().alike(given)
        try:
            guards = torch._C._dynamo.guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        except (AttributeError, TypeError):
            return super().alike(given)
        same, grad_enabled = guards.check, torch.is_grad_enabled
        needs_grad = any(tensor.requires_grad for tensor in tensors)

        def addresses(others: Sequence[Any]) -> list[int] | None:
            for i in absent:
                if others[i] is not None:
                    return None
            tensors = pick(others)
            found = []
            bits = 0
            try:
                for tensor in tensors:
                    address = tensor.data_ptr()
                    if not address or tensor.is_nested:  # it has no strides, at which the guards would end the process
                        return None
                    bits |= address
                    found.append(address)
            except (AttributeError, RuntimeError):  # no tensor, or one without memory of its own
                return None
            if bits % WIDEST or not same(*tensors) or (needs_grad and grad_enabled()):
                return None
            return found

        return addresses

    def maker(  # noqa: D102
        self, shape: tuple[int, ...], dtype: str, like: Any, layout: str = "nchw"
    ) -> Callable[[Any], Any]:
        # torch makes an array like another one in half the time that it takes to read a shape, a dtype and a device.
        torch = sys.modules["torch"]
        if bytes_of(shape, dtype) > _KEPT:
            return lambda like: self.empty(shape, dtype, like, layout)
        kept, made = self.empty(shape, dtype, like, layout), torch.empty_like
        return lambda like: made(kept)

    def device_name(self, array: Any) -> str:  # noqa: D102
        if array.device.type == "cuda":
            return f"cuda:{array.device.index}"
        return str(array.device.type)

    def dtype(self, array: Any) -> str:  # noqa: D102
        return str(array.dtype).removeprefix("torch.")

    def refusal(self, array: Any) -> str | None:  # noqa: D102
        torch = sys.modules["torch"]
        if array.requires_grad and torch.is_grad_enabled():
            return (
                "a tensor that requires grad, and its gradient would be lost here; use convbackprop.torch.conv2d, or "
                "pass tensor.detach()"
            )
        if array.is_nested:
            return "a nested tensor; pass the tensors that it is made of one by one (tensor.unbind())"
        if array.layout is not torch.strided:
            return f"a tensor of layout {array.layout}; it should be strided (tensor.to_dense())"
        if array.device.type not in ("cpu", "cuda"):
            return f"a tensor on device {array.device}; it should be on the CPU or on a CUDA device"
        plain = (torch.Tensor, torch.nn.Parameter)
        if type(array) not in plain and type(array).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            return f"a {type(array).__name__}, which stands for a tensor but has no memory of its own"
        return None

    def contiguous(self, array: Any) -> Any:  # noqa: D102
        array = array.detach().resolve_neg()
        return array.clone() if array._is_zerotensor() else array.contiguous()

    def is_plain(self, array: Any) -> bool:  # noqa: D102
        return bool(array.is_contiguous() and self.is_native(array))

    def is_native(self, array: Any) -> bool:  # noqa: D102
        return not array.is_neg() and not array._is_zerotensor()

    def pointer(self, array: Any) -> int:  # noqa: D102
        return int(array.data_ptr())

    def byte_strides(self, array: Any) -> tuple[int, ...]:  # noqa: D102
        return tuple(stride * array.element_size() for stride in array.stride())

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, layout: str = "nchw") -> Any:  # noqa: D102
        torch = sys.modules["torch"]
        own = {"dtype": getattr(torch, dtype), "device": like.device}
        if layout == "nchw":
            return torch.empty(shape, **own)
        # Not a view of what is permuted: a view that a torch.autograd.Function returns is not to be written to.
        return torch.empty_strided(shape, strides(shape, layout), **own)

    def copy(self, target: Any, source: Any) -> None:  # noqa: D102
        target.detach().copy_(source)

    def current_stream(self, device: Any) -> int:  # noqa: D102
        return self._raw_stream(device.ordinal)

    @functools.cached_property
    def _raw_stream(self) -> Callable[[int], int]:
        torch = sys.modules["torch"]
        if hasattr(torch._C, "_cuda_getCurrentRawStream"):  # a tenth of the time, but not public
            return torch._C._cuda_getCurrentRawStream  # type: ignore[no-any-return]
        return lambda ordinal: int(torch.cuda.current_stream(ordinal).cuda_stream)

    @contextlib.contextmanager
    def on_other_stream(self, device: Any) -> Iterator[Any]:  # noqa: D102
        torch = sys.modules["torch"]
        theirs = torch.cuda.current_stream(device.ordinal)
        stream = device.stream_beside(theirs.cuda_stream)
        ours = torch.cuda.ExternalStream(stream.handle, device=device.ordinal)
        ours.wait_stream(theirs)
        yield stream
        theirs.wait_stream(ours)


class CupyArrays(Arrays):
    """cupy.ndarray, on a GPU."""

    title = "cupy.ndarray"

    def exact_types(self) -> tuple[type, ...]:  # noqa: D102
        return (sys.modules["cupy"].ndarray,)

    def glance(self, given: Sequence[Any]) -> Glance | None:  # noqa: D102
        facts: list[Any] = []
        addresses = []
        offsets = 0
        for array in given:
            if array is None:
                facts.append(None)
                continue
            if QUICK.get(type(array)) is not self:
                return None
            facts += (array.shape, array.dtype, array.device.id)
            if not array.flags.c_contiguous:
                facts.append(array.strides)
            address = array.data.ptr
            offsets |= address
            addresses.append(address)
        return _told(facts, addresses, offsets)

    def device_name(self, array: Any) -> str:  # noqa: D102
        return f"cuda:{array.device.id}"

    def contiguous(self, array: Any) -> Any:  # noqa: D102
        return sys.modules["cupy"].ascontiguousarray(array)

    def is_plain(self, array: Any) -> bool:  # noqa: D102
        return bool(array.flags.c_contiguous)

    def pointer(self, array: Any) -> int:  # noqa: D102
        return int(array.data.ptr)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, layout: str = "nchw") -> Any:  # noqa: D102
        with like.device:
            own = like.dtype if dtype in DTYPES else dtype
            return as_named(sys.modules["cupy"].empty(in_memory(shape, layout), own), layout)

    def current_stream(self, device: Any) -> int:  # noqa: D102
        cuda = sys.modules["cupy"].cuda
        with cuda.Device(device.ordinal):
            return int(cuda.get_current_stream().ptr)

    @contextlib.contextmanager
    def on_other_stream(self, device: Any) -> Iterator[Any]:  # noqa: D102
        cuda = sys.modules["cupy"].cuda
        with cuda.Device(device.ordinal):
            theirs = cuda.get_current_stream()
            stream = device.stream_beside(theirs.ptr)
            ours = cuda.ExternalStream(stream.handle)
            ours.wait_event(theirs.record())
            yield stream
            theirs.wait_event(ours.record())


class GpuArrays(Arrays):
    """pycuda.gpuarray.GPUArray; it works on the default stream."""

    title = "pycuda.gpuarray.GPUArray"

    def exact_types(self) -> tuple[type, ...]:  # noqa: D102
        return (sys.modules["pycuda.gpuarray"].GPUArray,)

    def glance(self, given: Sequence[Any]) -> Glance | None:  # noqa: D102
        facts: list[Any] = []
        addresses = []
        offsets = 0
        try:
            for array in given:
                if array is None:
                    facts.append(None)
                    continue
                if QUICK.get(type(array)) is not self or not array.flags.c_contiguous:
                    return None
                # The driver is asked each time: memory may have been freed, and be another context's now.
                facts += (array.shape, array.dtype, self.device_name(array))
                address = self.pointer(array)
                offsets |= address
                addresses.append(address)
        except ConvBackpropError:  # the long way says it
            return None
        return _told(facts, addresses, offsets)

    def device_name(self, array: Any) -> str:  # noqa: D102
        from convbackprop.devices.cuda import owner_of

        return owner_of(self.pointer(array))

    def refusal(self, array: Any) -> str | None:  # noqa: D102
        if not array.flags.c_contiguous:
            return "a GPUArray that is not contiguous; copy it into one that is"
        return None

    def contiguous(self, array: Any) -> Any:  # noqa: D102
        return array

    def is_plain(self, array: Any) -> bool:  # noqa: D102
        return True

    def pointer(self, array: Any) -> int:  # noqa: D102
        return int(array.ptr)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, layout: str = "nchw") -> Any:  # noqa: D102
        made = sys.modules["pycuda.gpuarray"].empty  # all are contiguous
        return made(shape, like.dtype if dtype in DTYPES else np.dtype(dtype), allocator=like.allocator)


NUMPY = NumpyArrays()

_LIBRARIES: dict[str, tuple[str, str, Arrays]] = {
    "numpy": ("numpy", "ndarray", NUMPY),
    "torch": ("torch", "Tensor", TorchArrays()),
    "cupy": ("cupy", "ndarray", CupyArrays()),
    "pycuda": ("pycuda.gpuarray", "GPUArray", GpuArrays()),
}


#: The libraries by the types that their `glance` knows, of those that `library_of` has seen.
QUICK: dict[type, Arrays] = {}


def library_of(array: Any, argument: str) -> Arrays:
    """Return the library that an argument comes from.

    Raises
    ------
    InvalidType
        It is no array of numpy, torch, CuPy or PyCUDA.
    """
    for kind in type(array).__mro__:
        found = _LIBRARIES.get(kind.__module__.partition(".")[0])
        if found and isinstance(array, getattr(sys.modules.get(found[0]), found[1], ())):
            if type(array) in found[2].exact_types():
                QUICK[type(array)] = found[2]
            return found[2]
    raise InvalidType(
        f"{argument} is a {type(array).__name__}; it should be a numpy.ndarray, torch.Tensor, cupy.ndarray or "
        "pycuda GPUArray"
    )


def free_host_bytes() -> int:
    """Return how many bytes of memory this machine has available."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_fits(library: Arrays, like: Any, size: int, what: str) -> None:
    """Raise ProblemTooLarge if the host has no `size` bytes for an array beside `like`.

    The host would promise memory that it does not have, and end the process when it is written to. A GPU's memory is
    the library's to manage: what it keeps for later use is free as well.
    """
    if size > SMALL and library.device_name(like) == "cpu" and size > (free := free_host_bytes()):
        raise ProblemTooLarge(f"{what} needs {size:,} bytes, but only {free:,} are free; use a smaller batch or image")


def allocate(library: Arrays, shape: tuple[int, ...], dtype: str, like: Any, what: str, layout: str = "nchw") -> Any:
    """Return a new array of the library where `like` lies, as an image of this layout.

    Raises
    ------
    ProblemTooLarge
        The memory that is free does not hold it; the message says how many bytes it needs.
    LaunchFailed, DeviceUnusable
        The library finds its GPU in disorder.
    """
    size = bytes_of(shape, dtype)
    check_fits(library, like, size, f"{what} of shape {shape}")
    try:
        return library.empty(shape, dtype, like, layout)
    except ConvBackpropError:
        raise
    except Exception as error:  # each library has its own: torch a RuntimeError, PyCUDA an Exception
        if isinstance(error, MemoryError) or _NO_MEMORY.search(f"{type(error).__name__} {error}"):
            raise ProblemTooLarge(
                f"{what} of shape {shape} needs {size:,} bytes, which could not be allocated; use a smaller batch or "
                "image"
            ) from error
        device: Any = get_device(library.device_name(like))
        if device.kind == "cuda":
            raise device.failure(error) from error
        raise


def laid_out(library: Arrays, array: Any, argument: str, layout: str = "nchw") -> Any:
    """Return the array itself, or a copy as kernels read it: an image of this layout.

    Raises
    ------
    ProblemTooLarge
        The memory that is free does not hold the copy.
    """
    if layout != "nchw" and not library.lies(array, layout):
        shape, dtype = tuple(array.shape), library.dtype(array)
        made = allocate(library, shape, dtype, array, f"the copy of {argument} in layout {layout},", layout)
        library.copy(made, array)
        return made
    if layout != "nchw":
        return array
    if not library.is_plain(array):
        size = bytes_of(array.shape, library.dtype(array))
        check_fits(library, array, size, f"the contiguous copy of {argument}, of shape {tuple(array.shape)},")
    return library.contiguous(array)


def layout_of(library: Arrays, array: Any) -> str | None:
    """Return the first layout in which kernels can use an array where it lies, or None."""
    return next((layout for layout in LAYOUTS if library.lies(array, layout)), None)


def repeats_itself(library: Arrays, array: Any) -> bool:
    """Return whether neighbours along an axis are one and the same element of memory, as after a broadcast."""
    strides = zip(array.shape, library.byte_strides(array), strict=True)
    return any(extent > 1 and stride == 0 for extent, stride in strides)


class _Extent:
    """Where an array lies, as numpy sees it; its memory is never touched."""

    def __init__(self, library: Arrays, array: Any) -> None:
        self.__array_interface__ = {
            "data": (library.pointer(array), True),
            "shape": tuple(array.shape),
            "strides": library.byte_strides(array),
            "typestr": f"|V{DTYPES.get(library.dtype(array), 1)}",
            "version": 3,
        }


def overlap(library: Arrays, a: Any, b: Any) -> bool:
    """Return whether two arrays share an element of memory (True where that is too hard to tell)."""
    if not math.prod(a.shape) or not math.prod(b.shape):
        return False
    first, second = (np.asarray(_Extent(library, array)) for array in (a, b))
    try:
        return bool(np.shares_memory(first, second, max_work=10_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def check_dtype(library: Arrays, array: Any, argument: str) -> str:
    """Return the dtype of an argument if there are kernels for it, else raise InvalidType."""
    name = library.dtype(array)
    if name not in DTYPES:
        raise InvalidType(f"{argument} has dtype {name}; it should be one of {', '.join(DTYPES)}")
    return name


def check_usable(library: Arrays, array: Any, argument: str) -> None:
    """Raise where the library says that an array cannot be used as it is."""
    if reason := library.refusal(array):
        raise InvalidArgument(f"{argument} is {reason}")
