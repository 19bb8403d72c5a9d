"""The roof of the arithmetic: how many operations a second a device does at best, measured by fma_peak.cu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convbackprop.bench.timing import aligned, check_timeable, host_clock
from convbackprop.devices import Device
from convbackprop.devices.compiler import Source
from convbackprop.devices.cpu import get_num_threads
from convbackprop.devices.cpu_level import cpu_vector_bytes
from convbackprop.launch.plan import pack_shape
from convbackprop.problem import ACCUMULATORS, DTYPES, ConvProblem

#: For a GPU, and for a CPU, whose threads work on lanes of several numbers.
SOURCES = tuple(Path(__file__).parent / name for name in ("fma_peak.cu", "fma_peak_vectorised.cu"))

#: Of a GPU's block. 8 chains a thread and 2048 threads a multiprocessor hide the latency of a multiply-add; a CPU has
#: one thread a core, which 12 chains keep busy within 16 vector registers.
THREADS, CHAINS, STEPS = 256, 8, 16
_CPU_CHAINS = 12

#: Rounds of a launch (about a millisecond), and launches, of which the fastest counts: it is a roof.
_ROUNDS = {"cpu": 4000, "cuda": 2000}
_LAUNCHES = 12


def source(accumulator: str, threads: int, lanes: int, chains: int) -> Source:
    """Return the kernel for sums of a dtype, blocks of so many threads, and lanes of so many numbers."""
    constants = {
        "SCALAR": accumulator,
        "ACTIVATION": "IDENTITY",
        "SAVED": "Scalar",
        "THREADS": threads,
        "LANES": lanes,
        "CHAINS": chains,
        "STEPS": STEPS,
    }
    return Source.of(SOURCES[lanes > 1], constants)


#: The highest rate that was seen in this process, by device, dtype of the sums and number of threads.
_highest: dict[tuple[str, str, int], float] = {}


def measure_roof(device: Device, dtype: str) -> float:
    """Return how many floating-point operations a second the device does at best on sums of a dtype.

    A multiply-add counts as two. Products of 16-bit numbers are added up in float32, and so count float32's. The tensor
    cores of a GPU are not meant. Each call takes some milliseconds and returns the highest rate that was seen so far:
    on a machine with other work, one of many short moments finds the units free.
    """
    accumulator = ACCUMULATORS[dtype]
    workers = get_num_threads() if device.kind == "cpu" else 0
    key = (device.name, accumulator, workers)
    _highest[key] = max(_highest.get(key, 0.0), _measured(device, accumulator, workers))
    return _highest[key]


def _measured(device: Device, accumulator: str, workers: int) -> float:
    if device.kind == "cpu":
        lanes = cpu_vector_bytes() // DTYPES[accumulator]
        return _of_launches(device, accumulator, 4 * workers, 1, lanes, _CPU_CHAINS)
    check_timeable(device)
    cuda: Any = device
    with cuda.active():
        return _of_launches(device, accumulator, cuda.target.multiprocessors * (2048 // THREADS), THREADS, 1, CHAINS)


def _of_launches(device: Any, accumulator: str, blocks: int, threads: int, lanes: int, chains: int) -> float:
    """Launch several times and return the highest rate."""
    rounds = _ROUNDS[device.kind]
    factors, out = (aligned((size,), np.dtype(accumulator)) for size in (2, blocks * threads))
    factors[:], out[:] = (0.999, 0.001), np.nan
    shape = pack_shape(ConvProblem.parse("1,1,1,1,1,1,1"))
    kernel = device.load(source(accumulator, threads, lanes, chains), "fma_peak", (blocks, 1, 1), (threads, 1, 1), 0,
                         2, shape, (rounds,))  # fmt: skip
    operations = 2 * chains * lanes * STEPS * rounds * out.size
    if device.kind == "cpu":
        pointers = (factors.ctypes.data, out.ctypes.data)
        seconds = [host_clock(lambda: kernel.launch(pointers)) for _ in range(_LAUNCHES)]
    else:
        with device.holding() as there:
            for name, array in (("factors", factors), ("out", out)):
                there[name] = device.upload(array.ctypes.data, array.nbytes)
            pointers = (int(there["factors"]), int(there["out"]))
            seconds = [device.seconds(lambda: kernel.launch(pointers)) for _ in range(_LAUNCHES)]
            device.download(there["out"], out.ctypes.data, out.nbytes)
    if not np.isfinite(out).all():
        raise ArithmeticError("fma_peak.cu did not write every sum")
    return operations / min(seconds)
