"""What a kernel's threads touch, access by access: the facts that the pictures show.

The kernel runs on the cpu device with a GPU's constants, as `profile` replays it (``cpu_runtime/checked/traffic.cpp``).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convbackprop.check.reference import numpy_dtype
from convbackprop.devices.checked import CheckedKernel, GlobalArray, places
from convbackprop.devices.gpus import Target
from convbackprop.errors import InvalidArgument, UnsupportedProblem
from convbackprop.ladder.variant import Variant
from convbackprop.problem import ACCUMULATORS, PASSES, ConvProblem
from convbackprop.profile.traffic import RecordingDevice, place_in_source, replay

LOAD, STORE, ATOMIC = range(3)

#: Accesses of lanes that are kept: of a picture that shows more, nobody sees anything.
MOST = 1_000_000

#: ConvbackpropLaneAccess of cpu_runtime/checked/checks.h.
_ACCESS = np.dtype(
    [("request", "i8"), ("block", "i8"), ("address", "i8"), ("site", "u4"), ("thread", "i4"), ("array", "i4"),
     ("shared", "i4"), ("kind", "i4"), ("bytes", "u4")], align=True
)  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """All accesses of a variant's main kernel, of every thread of its grid.

    Attributes
    ----------
    variant, problem : Variant, ConvProblem
        What ran.
    grid, block : tuple of int
        Its extents.
    accesses : array
        One a lane: request (the lanes of one instruction of a warp have the same), block, address (of shared memory:
        from its beginning; of an array: from the array's), thread, array, shared, kind, bytes, and the site in the
        object. Warp by warp between two barriers, in the order in which the warp makes them.
    arrays : tuple of str
        Names, by their numbers.
    lines : mapping of int to (Path, int)
        File and line of a site.
    """

    variant: Variant
    problem: ConvProblem
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    accesses: Any
    arrays: tuple[str, ...]
    lines: Mapping[int, tuple[Path, int]]

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one of the pass's arrays."""
        (operand,) = (o for o in PASSES[self.variant.pass_name].operands if o.name == name)
        return operand.shape(self.problem)

    def item_bytes(self, name: str) -> int:
        """Return the bytes of an element of an array: of scratch and shared memory those of an accumulator."""
        for operand in PASSES[self.variant.pass_name].operands:
            if operand.name == name:
                return int(numpy_dtype(operand.dtype(self.problem)).itemsize)
        return np.dtype(ACCUMULATORS[self.problem.dtype]).itemsize

    def of(self, name: str, kind: int) -> Any:
        """Return the accesses to an array in global memory."""
        a = self.accesses
        if name not in self.arrays:
            return a[:0]
        return a[(a["shared"] == 0) & (a["array"] == self.arrays.index(name)) & (a["kind"] == kind)]

    def shared(self, kind: int) -> Any:
        """Return the accesses to shared memory."""
        return self.accesses[(self.accesses["shared"] == 1) & (self.accesses["kind"] == kind)]

    def elements(self, accesses: Any, name: str) -> tuple[Any, Any]:
        """Return which elements of an array accesses touch, and for each of them its access."""
        size = self.item_bytes(name)
        each = np.maximum(1, accesses["bytes"] // size).astype(int)
        within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
        return np.repeat(accesses["address"] // size, each) + within, np.repeat(accesses, each)

    def place(self, site: int) -> tuple[Path, int]:
        """Return the file and the line that an access counts for."""
        return self.lines[int(site)]


class _KeepingDevice(RecordingDevice):
    """A recording device that also keeps the accesses themselves."""

    name = "cpu (keeping)"

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, tuple[Any, tuple[str, ...], Mapping[int, tuple[Path, int]]]] = {}
        self.runtime.convbackprop_checks_kept_accesses.argtypes = (ctypes.c_void_p, ctypes.c_int)

    def enough(self) -> int:
        """Return after how many accesses too many are made for a picture."""
        return MOST

    def end(self, kernel: CheckedKernel) -> None:
        """Keep what this launch touched."""
        count = self.runtime.convbackprop_checks_kept_accesses(None, 0)
        found = np.zeros(count, _ACCESS)
        self.runtime.convbackprop_checks_kept_accesses(found.ctypes.data, count)
        arrays = list(self._arrays)
        super().end(kernel)
        for number, array in enumerate(arrays):
            if isinstance(array, GlobalArray):
                found["address"][(found["array"] == number) & (found["shared"] == 0)] -= array.address
        if (found["shared"] == 1).any():
            found["address"] -= np.where(found["shared"] == 1, found["address"][found["shared"] == 1].min(), 0)
        chains = places(kernel.path, np.unique(found["site"]).tolist(), self.source)
        lines = {
            int(site): place_in_source(chains.get(int(site), ()), kernel.path) for site in np.unique(found["site"])
        }
        self.kept[kernel.entry] = (found, tuple(array.name if array else "" for array in arrays), lines)


@functools.cache
def _device() -> _KeepingDevice:
    return _KeepingDevice()


@functools.lru_cache(maxsize=4)
def record(variant: Variant, problem: ConvProblem, target: Target | str = "cuda") -> Recording:
    """Run a variant, and return what its main kernel touched.

    Raises
    ------
    UnsupportedProblem
        The variant refuses the problem.
    InvalidArgument
        It is too large to be drawn.
    """
    if (sentence := variant.refusal(problem)) is not None:
        raise UnsupportedProblem(f"{variant.title} refuses {problem}: {sentence}")
    device = _device()
    device.kept = {}
    device.runtime.convbackprop_checks_keep_accesses(MOST)
    try:
        replay(device, variant, problem, 2**31, target)
    finally:
        device.runtime.convbackprop_checks_keep_accesses(0)
    if device.main not in device.kept:
        raise InvalidArgument(
            f"problem is {problem}, of which no thread has anything to do; a picture needs a larger one"
        )
    kept, arrays, lines = device.kept[device.main]
    if len(kept) >= MOST:
        raise InvalidArgument(
            f"problem is {problem}, of which the threads of {variant.title} make {MOST:,} accesses or more; "
            "a picture needs a smaller one"
        )
    traffic = next(each for each in device.recorded if each.entry == device.main)
    return Recording(variant, problem, traffic.grid, traffic.block, kept, arrays, lines)
