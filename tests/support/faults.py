"""Faults, one at a time, and what the user of the package reads: the tests' cases, and the table in docs/faults.md.

A case sets the stage, lets something fail in one call of a public function, mends it, and calls again. What is
expected of every case stands in `Outcome.complaints`.

    python -m tests.support.faults           print how many cases there are and what became of them
    python -m tests.support.faults --write   write docs/faults.md too
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from rich.progress import track

import convbackprop
from convbackprop.bench import roof, timing as timed
from convbackprop.cli import doctor
from convbackprop.devices import cache, compiler, cpu, cuda
from convbackprop.errors import ConvBackpropError
from convbackprop.ladder.registry import select
from convbackprop.problem import ConvProblem
from tests import driver
from tests.driver import CONTEXT_LOST, INVALID_VALUE, OUT_OF_MEMORY, StandIn, cupy as cupy_on_stand_in

PAGE = driver.ROOT / "docs" / "faults.md"

rng = np.random.default_rng(0)
X, W, DY = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 9, 8), (4, 3, 3, 3), (2, 4, 7, 6)))
EXPECTED = dict(zip(("dx", "dw", "db"), convbackprop.conv2d_backward(DY, X, W, device="cpu"), strict=True))
EXPECTED["y"] = convbackprop.conv2d(X, W, device="cpu")

CODES = {OUT_OF_MEMORY: "out of memory", INVALID_VALUE: "invalid argument", CONTEXT_LOST: "context lost"}


@dataclass
class Outcome:
    """What became of a case."""

    what: str  # that failed
    how: str
    error: BaseException | None  # None: the call came through, with the right numbers
    again: BaseException | None = None  # of the next call
    said: list[str] = field(default_factory=list)  # warnings
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for error in (self.error, self.again):
            if error is not None and not isinstance(error, ConvBackpropError):
                self.complaints.append(f"an exception that is not ours: {type(error).__name__}: {error}")
        if self.how != CODES[OUT_OF_MEMORY] and isinstance(self.error, MemoryError):
            self.complaints.append(f"memory is not what was missing: {self.error}")
        says_lost = re.search(r"context .*\blost\b.* start the program again", str(self.again))
        if self.again is not None and not (self.how == CODES[CONTEXT_LOST] and says_lost):
            self.complaints.append(f"the next call fails, too: {self.again}")

    @property
    def message(self) -> str:
        """What the user reads, without what differs from machine to machine."""
        if self.error is None and not self.said:
            return "(nothing: the call succeeds)"
        text = "; ".join(self.said) if self.error is None else str(self.error)
        text = re.sub(r"\s+", " ", text.replace("\n", " / "))
        text = re.sub(r"[^\s('\"]*/(nvcc|g\+\+)[-\w]*", r"DIR/\1", text)
        text = re.sub(r"[^\s('\"]*/(?=[^/\s]+\.(cu|so|cubin|json|lock))", "DIR/", text)
        text = re.sub(r"/tmp/[^\s,;:')]*|" + re.escape(tempfile.gettempdir()) + r"/[^\s,;:')]*", "DIR", text)
        text = re.sub(r"nvcc-[0-9a-f]{32}", "nvcc", text)
        text = re.sub(r"[0-9a-f]{32}", "NAME", text)
        text = re.sub(r"0x[0-9a-f]{8,}", "ADDRESS", text)
        text = re.sub(r" / command: .*", " / command: ...", text)
        return f"{type(self.error).__name__ if self.error else 'warning'}: {text}"


def attempt(call: Callable[[], dict[str, np.ndarray]]) -> BaseException | None:
    """Return the exception of a call, or None where it gave the right numbers."""
    try:
        got = call()
    except Exception as error:
        link: BaseException | None = error
        while link:  # what was raised on the way holds the arrays of the call as long as someone holds it
            link = link.with_traceback(None).__cause__ or link.__context__
        return error
    for name, right in EXPECTED.items():
        if name in got and not np.allclose(got[name], right, rtol=1e-4, atol=1e-4):
            return AssertionError(f"{name} is wrong, and nobody said so")
    return None


# -- the driver ------------------------------------------------------------------------------------------------------
def host_arrays(stand_in: StandIn, patch: pytest.MonkeyPatch) -> Callable[[], dict[str, np.ndarray]]:
    """The first use of the device in this process, on numpy arrays."""
    return lambda: dict(zip(("dx", "dw", "db"), convbackprop.conv2d_backward(DY, X, W, device="cuda"), strict=True))


def device_arrays(stand_in: StandIn, patch: pytest.MonkeyPatch) -> Callable[[], dict[str, np.ndarray]]:
    """Arrays that lie on the device, and a stream of the caller's."""
    cupy = cupy_on_stand_in.install(patch, stand_in)
    dy, x, w = map(cupy.asarray, (DY, X, W))

    def call() -> dict[str, np.ndarray]:
        results = convbackprop.conv2d_backward(dy, x, w, variant="naive")
        stand_in.heal()
        try:
            return {name: array.get() for name, array in zip(("dx", "dw", "db"), results, strict=True)}
        except cupy_on_stand_in.CUDADriverError:  # the call went well and lost the context: the copies are CuPy's own
            return {}

    return call


def gpu_arrays(stand_in: StandIn, patch: pytest.MonkeyPatch) -> Callable[[], dict[str, np.ndarray]]:
    """PyCUDA's own arrays."""
    from convbackprop.devices.cuda import cuda_device

    active = cuda_device(0).active
    from pycuda import gpuarray

    with active():
        given = [gpuarray.to_gpu(array) for array in (DY, X, W)]

    def call() -> dict[str, np.ndarray]:
        with active():
            results = convbackprop.conv2d_backward(*given, variant="naive")
            stand_in.heal()
            return {name: array.get() for name, array in zip(("dx", "dw", "db"), results, strict=True)}

    return call


def shared_memory(stand_in: StandIn, patch: pytest.MonkeyPatch) -> Callable[[], dict[str, np.ndarray]]:
    """A tile that is more shared memory than a kernel gets unasked: here that is none at all."""
    patch.setattr(cuda, "_SHARED_BYTES_UNASKED", 0)
    return lambda: {"y": convbackprop.conv2d(X, W, variant="tiled", device="cuda")}


def timing(stand_in: StandIn, patch: pytest.MonkeyPatch) -> Callable[[], dict[str, np.ndarray]]:
    """What `bench` does on a GPU: a variant beside a copy, and the roof. Nothing is measured: each time is 2 ms."""
    driver.pass_for_gpu(patch, stand_in, 2)
    patch.setattr(timed, "_LEAST_FLUSHED", 0)  # else it takes a second, for nothing
    patch.setattr(roof, "_LAUNCHES", 2)
    patch.setattr(roof, "_ROUNDS", {"cuda": 1})
    device = driver.device()
    problem = ConvProblem.parse("2,3,9,8,4,3,3")
    (naive,) = select("forward/naive")

    def call() -> dict[str, np.ndarray]:
        roof._highest.clear()
        with timed.stage(device, "forward", problem, {"x": X, "w": W}) as place:
            calls = {"naive": place.ours(naive), "copy": place.copy()}
            for timing in timed.alternate(calls, place.clock, 0, least=1, most=1).values():
                assert timing.seconds == pytest.approx([2e-3]), "a time is wrong, and nobody said so"
            place.wait()
            roof.measure_roof(device, "float32")
        return {}

    return call


def doctor_command(stand_in: StandIn, patch: pytest.MonkeyPatch) -> Callable[[], dict[str, np.ndarray]]:
    """What `convbackprop doctor` says of a GPU that it can use."""
    driver.pass_for_gpu(patch, stand_in, 2)
    driver.device()

    def call() -> dict[str, np.ndarray]:
        assert "1.0 GiB free, and 1 more" in doctor._gpu()
        return {}

    return call


SCENES = {
    "host": host_arrays,
    "device": device_arrays,
    "gpuarray": gpu_arrays,
    "shared memory": shared_memory,
    "timing": timing,
    "doctor": doctor_command,
}

#: What a scene calls; each use of each is a case, three times.
CALLS = {
    "host": (
        "cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceComputeCapability",
        "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuCtxPopCurrent", "cuModuleLoadDataEx", "cuModuleGetFunction",
        "cuMemAlloc", "cuMemFree", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuLaunchKernel",
    ),
    "device": (
        "cuCtxPushCurrent", "cuCtxPopCurrent", "cuModuleLoadDataEx", "cuModuleGetFunction", "cuMemAlloc", "cuMemFree",
        "cuStreamCreate", "cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "cuEventDestroy",
        "cuCtxGetCurrent", "cuLaunchKernel",
    ),
    "gpuarray": (
        "cuPointerGetAttribute", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent",
        "cuCtxPopCurrent", "cuModuleLoadDataEx", "cuModuleGetFunction", "cuMemAlloc", "cuMemFree",
        "cuCtxGetCurrent", "cuLaunchKernel", "cuCtxGetDevice",
    ),
    "shared memory": ("cuFuncSetAttribute",),
    "timing": (
        "cuCtxPushCurrent", "cuCtxPopCurrent", "cuDeviceGet", "cuDeviceGetAttribute", "cuMemAlloc", "cuMemFree",
        "cuMemcpyHtoD", "cuMemcpyDtoH", "cuMemcpyDtoDAsync", "cuMemsetD8", "cuMemsetD8Async", "cuModuleLoadDataEx",
        "cuModuleGetFunction", "cuLaunchKernel", "cuEventCreate", "cuEventRecord",
        "cuEventSynchronize", "cuEventElapsedTime", "cuEventDestroy", "cuCtxSynchronize",
    ),
    "doctor": ("cuDeviceGetCount", "cuCtxPushCurrent", "cuCtxPopCurrent", "cuMemGetInfo"),
}  # fmt: skip


def staged(stand_in: StandIn, scene: str, patch: pytest.MonkeyPatch) -> Callable[[], dict[str, np.ndarray]]:
    """Return a scene's call, as in a new process."""
    stand_in.reset()
    call = SCENES[scene](stand_in, patch)
    stand_in.heal()
    return call


def uses(stand_in: StandIn, scene: str) -> dict[str, int]:
    """Return how often a scene uses each call."""
    with pytest.MonkeyPatch.context() as patch:
        seen: dict[str, int] = {}
        call = staged(stand_in, scene, patch)
        heal = stand_in.heal
        patch.setattr(stand_in, "heal", lambda: seen or seen.update(stand_in.calls()) or heal())
        if error := attempt(call):
            raise error
        return seen or stand_in.calls()


def driver_cases(stand_in: StandIn, scene: str, call: str) -> Iterator[Outcome]:
    """Let each use of a driver's call fail, with each code."""
    count = uses(stand_in, scene).get(call, 0)
    for code in CODES:
        for use in range(1, count + 1):
            yield driver_case(stand_in, scene, call, use, code)


def driver_case(stand_in: StandIn, scene: str, call: str, use: int, code: int, times: int = 1) -> Outcome:
    """Let one use of a driver's call fail."""
    with pytest.MonkeyPatch.context() as patch:
        run = staged(stand_in, scene, patch)
        before = stand_in.counts().allocations
        stand_in.fail(call, use, code, times)
        struck = []
        heal = stand_in.heal
        patch.setattr(stand_in, "heal", lambda: struck.append(stand_in.counts().faults) or heal())
        error = attempt(run)
        stand_in.heal()
        lost = stand_in.counts().allocations == 0 and before > 0
        leaked = 0 if lost else stand_in.counts().allocations - before
        again = attempt(run)
        outcome = Outcome(call, CODES[code], error, again)
        if not max(struck):
            outcome.complaints.append("the fault did not strike")
        if leaked:
            outcome.complaints.append(f"{leaked} arrays were not given back")
        if call == "cuMemAlloc" and code == OUT_OF_MEMORY and error and not isinstance(error, MemoryError):
            outcome.complaints.append(f"no MemoryError: {error}")
        return outcome


# -- compilers and the cache -----------------------------------------------------------------------------------------
@functools.cache
def _runtimes(device: str) -> list[Path]:
    """Return the files that a kernel is compiled with, as they lie in the cache of kernels, manifests included."""
    flags = driver.ISOLATED if device == "cuda" else ()
    runtime = compiler.cpu_runtime(flags)
    return [runtime, runtime.with_suffix(".json")]


class Place:
    """A cache of its own, and compilers that can be made to fail."""

    def __init__(self, folder: Path, device: str, patch: pytest.MonkeyPatch, stand_in: StandIn | None) -> None:
        self.folder, self.device, self.patch = folder, device, patch
        self.cache = folder / "cache"
        self.cache.mkdir(parents=True)
        for made in _runtimes(device):  # one file: a process has room for the thread-local memory of a few runtimes
            os.link(made, self.cache / made.name)
        patch.setenv("CONVBACKPROP_CACHE_DIR", str(self.cache))
        if device == "cuda":
            assert stand_in
            stand_in.reset()
            self.variable, self.name = "CONVBACKPROP_NVCC", "nvcc"
            patch.setenv(self.variable, str(driver.compiler_script(folder)))
        else:
            convbackprop.launch.calls.forget()
            convbackprop.launch.plan.plan.cache_clear()
            cpu.cpu_device.cache_clear()
            self.variable, self.name = "CONVBACKPROP_CXX", "g++"
            patch.setenv(self.variable, str(compiler.find_cxx()))
        self.good = os.environ[self.variable]

    def compiler(self, body: str) -> None:
        """Put a shell script in the compiler's place; $out is the file that it should write."""
        script = self.folder / self.name
        find_out = 'out=; previous=; for each; do [ "$previous" = -o ] && out=$each; previous=$each; done'
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo version 1 && exit\n{find_out}\n{body}\n')
        script.chmod(0o755)
        self.patch.setenv(self.variable, str(script))

    def call(self) -> dict[str, np.ndarray]:
        return {"y": convbackprop.conv2d(X, W, device=self.device, variant="naive")}


def _missing(place: Place) -> None:
    place.patch.setenv(place.variable, str(place.folder / "no" / place.name))
    place.patch.setenv("PATH", str(place.folder))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        place.patch.delenv(name, raising=False)
    place.patch.setattr(sys, "path", [])
    place.patch.setattr(shutil, "which", lambda name, which=shutil.which: None if "/usr/local" in name else which(name))


def _not_executable(place: Place) -> None:
    script = place.folder / place.name
    script.write_text("\0\1\2 no program")
    script.chmod(0o755)
    place.patch.setenv(place.variable, str(script))


def _removed_meanwhile(place: Place) -> None:
    place.compiler(f'rm -rf "{place.cache}"\nexec "{place.good}" "$@"')


def _no_space(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _disk_full_when_moved(place: Place) -> None:
    place.patch.setattr(cache.os, "replace", _no_space)


def _disk_full_at_once(place: Place) -> None:
    place.patch.setattr(cache.tempfile, "mkdtemp", _no_space)


def _read_only(place: Place) -> None:
    """Below a regular file nothing can be written, not even by root."""
    (place.folder / "file").touch()
    place.patch.setenv("CONVBACKPROP_CACHE_DIR", str(place.folder / "file" / "cache"))


def _removed_before(place: Place) -> None:
    if error := attempt(place.call):
        raise error
    shutil.rmtree(place.cache)
    convbackprop.launch.calls.forget()
    convbackprop.launch.plan.plan.cache_clear()


def _cannot_be_loaded(place: Place) -> None:
    place.compiler('printf "no library" > "$out"')


#: what fails, how -> what brings it about
FAULTS: dict[tuple[str, str], Callable[[Place], None]] = {
    ("compiler", "is missing"): _missing,
    ("compiler", "is no program"): _not_executable,
    ("compiler", "is killed"): lambda place: place.compiler("kill -9 $$"),
    ("compiler", "finds the disk full"): lambda place: place.compiler(
        'echo "fatal error: error writing to x.o: No space left on device" >&2; exit 1'
    ),
    ("compiler", "writes garbage"): lambda place: place.compiler('head -c 100 /dev/urandom > "$out"'),
    ("compiler", "writes nothing, and says that all is well"): lambda place: place.compiler("exit 0"),
    ("compiler", "says what is no text"): lambda place: place.compiler(r"printf '\377\376\0' >&2; exit 1"),
    ("cache", "cannot be written"): _read_only,
    ("cache", "is full before a kernel is compiled"): _disk_full_at_once,
    ("cache", "is full when a kernel is put into it"): _disk_full_when_moved,
    ("cache", "is removed between two calls"): _removed_before,
    ("cache", "is removed while a kernel is compiled"): _removed_meanwhile,
}


def toolchain_case(device: str, fault: tuple[str, str], folder: Path, stand_in: StandIn | None = None) -> Outcome:
    """Let a compiler or the cache fail in a call on a device; nothing half-made may stay."""
    what, how = fault
    with pytest.MonkeyPatch.context() as patch:
        place = Place(folder, device, patch, stand_in)
        with pytest.MonkeyPatch.context() as broken, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            place.patch = broken
            FAULTS[fault](place)
            error = attempt(place.call)
            left = [each.name for each in place.cache.glob("building/*")]
        again = attempt(place.call)
        name = {"compiler": place.name, "cache": f"the cache ({device})"}[what]
        outcome = Outcome(name, how, error, again, said=[str(each.message) for each in warned])
        outcome.complaints += [f"{each} was left in the cache" for each in left]
    if device == "cpu":
        cpu.cpu_device.cache_clear()
    return outcome


# -- all of them -----------------------------------------------------------------------------------------------------
def everything(stand_in: StandIn, folder: Path) -> Iterator[Outcome]:
    """Go through every case."""
    for scene, calls in CALLS.items():
        for call in calls:
            yield from driver_cases(stand_in, scene, call)
    for device in ("cuda", "cpu"):
        for number, fault in enumerate(FAULTS):
            yield toolchain_case(device, fault, folder / f"{device}-{number}", stand_in)


def page(outcomes: list[Outcome]) -> str:
    """Return docs/faults.md."""
    rows = dict.fromkeys((o.what, o.how, o.message) for o in outcomes)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    raised = Counter(type(o.error).__name__ if o.error else "the call succeeds" for o in outcomes)
    lines = [
        "# What goes wrong, and what you read then",
        "",
        "Written by `python -m tests.support.faults --write`, which makes each of these happen: every call of the",
        "NVIDIA driver that the package makes, at each of its uses, on a stand-in for the driver (tests/driver), and",
        "the compilers and the cache of kernels. DIR stands for a folder. After each fault the same call is made",
        "again: it succeeds, or says that the device's context is lost and that the program has to be started again.",
        "",
        f"{len(outcomes)} faults: " + ", ".join(f"{count} {name}" for name, count in sorted(raised.items())) + ".",
        "",
        "| what fails | how | message |",
        "|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in escaped),
        "",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves what PyCUDA's destructors write to standard error, a line for each array."""
    before = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def main() -> int:
    """Go through every case, print what became of them, and return whether one is as it should not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(driver.ROOT)}")
    arguments = parser.parse_args()
    stand_in = driver.start()
    with tempfile.TemporaryDirectory(dir=cache.directory()) as folder, driver.compiling():
        cases = everything(stand_in, Path(folder))
        with quiet():
            outcomes = list(track(cases, "faults", transient=True, disable=not sys.stdout.isatty()))
        stand_in.reset()
    for outcome in outcomes:
        for complaint in outcome.complaints:
            print(f"{outcome.what} {outcome.how}: {complaint}")
    bad = sum(bool(outcome.complaints) for outcome in outcomes)
    print(f"{len(outcomes)} faults injected, {len(outcomes) - bad} survived")
    if arguments.write:
        PAGE.write_text(page(outcomes), encoding="utf-8")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
