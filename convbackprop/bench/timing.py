"""How a call is timed: on arrays allocated once, in turn with what it is compared with.

On the cpu device a launch returns when it has ended, and the host's clock measures it. On a GPU, events around the call
measure it, and what the last repetition left in the L2 cache is overwritten first.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convbackprop.check.reference import numpy_dtype
from convbackprop.devices import Device
from convbackprop.errors import DeviceUnusable
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import alignment_of, plan
from convbackprop.layouts import as_named, in_memory
from convbackprop.problem import PASSES, ConvProblem

Array = Any
Call = Callable[[], object]

#: Repetitions of each call: at least and at most.
LEAST, MOST = 5, 50

#: Bytes that are overwritten at least before a call is timed on a GPU: the GPU is busy while the call is queued.
_LEAST_FLUSHED = 64 << 20


@dataclass(frozen=True)
class Timing:
    """How long the repetitions of a call took, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the repetitions were faster."""
        return float(np.median(self.seconds))

    @property
    def range(self) -> tuple[float, float]:
        """The 20th and the 80th percentile."""
        low, high = np.percentile(self.seconds, (20, 80))
        return float(low), float(high)


def alternate(
    calls: Mapping[str, Call], clock: Callable[[Call], float], seconds: float, least: int = LEAST, most: int = MOST
) -> dict[str, Timing]:
    """Time several calls in turn, so that the machine's noise hits all of them alike.

    Parameters
    ----------
    calls : mapping of str to callable
        What to time. Each is called once untimed; who begins changes from round to round.
    clock : callable
        Calls and returns the seconds it took.
    seconds : float
        When to stop, counted over all of them, between `least` and `most` repetitions of each.

    Returns
    -------
    dict of str to Timing
        By the names of the calls.
    """
    for call in calls.values():
        clock(call)
    names = list(calls)
    taken: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    for turn in range(most if names else 0):
        if turn >= least and time.perf_counter() > end:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(clock(calls[name]))
    return {name: Timing(tuple(values)) for name, values in taken.items()}


def host_clock(call: Call) -> float:
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any], layout: str = "nchw") -> Array:
    """Return an array at a multiple of 64 bytes, a cache line, as torch's own are; each page has been written to."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.ones(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return as_named(memory[start : start + size].view(dtype).reshape(in_memory(shape, layout)), layout)


def check_timeable(device: Device) -> None:
    """Raise DeviceUnusable on the tests' stand-in for a GPU, whose times would be those of a CPU."""
    if getattr(device, "is_stand_in", False):
        raise DeviceUnusable(
            f"device {device.name} is the tests' stand-in for a GPU: its kernels run on the CPU, and are not timed; "
            "time device 'cpu', or a GPU"
        )


class CpuStage:
    """A pass of a problem on the cpu device: its arrays, allocated once, and the calls that can be timed on them.

    Attributes
    ----------
    arrays : dict of str to numpy.ndarray
        By operand name.
    """

    def __init__(self, device: Device, pass_name: str, problem: ConvProblem, given: Mapping[str, Array]) -> None:
        self.device: Any = device
        self.problem = problem
        self.arrays = {}
        self._memory: list[Any] = []  # what lives as long as the stage
        for operand in PASSES[pass_name].present(problem):
            array = aligned(operand.shape(problem), numpy_dtype(operand.dtype(problem)), operand.layout(problem))
            if not operand.written:
                array[...] = given[operand.name]
            self.arrays[operand.name] = array
        self._pointers = {name: self._place(array) for name, array in self.arrays.items()}
        self._half = max(1, PASSES[pass_name].least_bytes(problem) // 2)

    def _place(self, array: Array) -> int:
        """Return the address at which kernels find an array."""
        return int(array.ctypes.data)

    def _reserve(self, size: int) -> int:
        """Return the address of new memory."""
        self._memory.append(aligned((size,), np.dtype(np.uint8)))
        return int(self._memory[-1].ctypes.data)

    def ours(self, variant: Variant, problem: ConvProblem | None = None) -> Call:
        """Return a call of a variant: its launches and nothing else; `problem`: of a part of the pass."""
        problem = problem or self.problem
        ready = plan(variant, problem, self.device, None, alignment_of(self._pointers, problem.mask))
        pointers = {**self._pointers, "scratch": self._reserve(ready.scratch_bytes)}
        return lambda: ready.run(pointers)

    def copy(self) -> Call:
        """Return a copy that reads and writes together as many bytes as the pass must."""
        target, source = self._reserve(self._half), self._reserve(self._half)
        return lambda: self.device.copy(target, source, self._half)

    def clock(self, call: Call) -> float:
        """Return how many seconds a call takes on the device."""
        return host_clock(call)

    def wait(self) -> None:
        """Return when all that was called has ended."""


class CudaStage(CpuStage):
    """The same on a GPU, while its context is active; everything is queued on the default stream, torch's too."""

    def __init__(
        self, device: Device, pass_name: str, problem: ConvProblem, given: Mapping[str, Array], held: dict[str, Any]
    ) -> None:
        self._held = held  # the memory on the GPU, which `CudaDevice.holding` frees
        super().__init__(device, pass_name, problem, given)

    @functools.cached_property
    def _flushed(self) -> tuple[int, int]:
        """Address and size of what is overwritten before a call is timed."""
        driver = self.device.driver
        l2_bytes = driver.Device(self.device.ordinal).get_attribute(driver.device_attribute.L2_CACHE_SIZE)
        size = max(4 * l2_bytes, _LEAST_FLUSHED)
        return self._reserve(size), size

    def _place(self, array: Array) -> int:
        return self._hold(self.device.upload(array.ctypes.data, array.nbytes))

    def _reserve(self, size: int) -> int:
        address = self._hold(self.device.allocate(size))
        self.device.driver.memset_d8(address, 0x3C, max(1, size))
        return address

    def _hold(self, allocation: Any) -> int:
        self._held[f"array {len(self._held)}"] = allocation
        return int(allocation)

    def clock(self, call: Call) -> float:  # noqa: D102
        check_timeable(self.device)
        address, size = self._flushed
        self.device.driver.memset_d8_async(address, 0x3C, size)
        return float(self.device.seconds(call))

    def wait(self) -> None:  # noqa: D102
        self.device.context.synchronize()


@contextlib.contextmanager
def stage(device: Device, pass_name: str, problem: ConvProblem, given: Mapping[str, Array]) -> Iterator[CpuStage]:
    """Give the stage of a pass on a device, and take its arrays away in the end."""
    if device.kind == "cpu":
        yield CpuStage(device, pass_name, problem, given)
        return
    cuda: Any = device
    with cuda.holding() as held:
        yield CudaStage(device, pass_name, problem, given, held)
