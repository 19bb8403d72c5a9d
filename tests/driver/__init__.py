"""A libcuda.so.1 of our own for PyCUDA, so that a machine without a GPU proves the cuda device's host code.

`start()` builds it (with g++, through the package's cache of kernels), loads it into this process, and has the package
compile for it. PyCUDA is the real one; it finds the library by its name among those that are loaded. There is no GPU:
kernels run on the CPU, the driver refuses to tell times, and the package never chooses this device by itself. A test
of what the package does with times can have the driver tell a number of its own choice (`pass_for_gpu`).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convbackprop.devices import cache, compiler, cuda
from convbackprop.launch import calls, plan

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SOURCES = sorted(FOLDER.glob("*.cpp"))

#: Makes a runtime of the driver's own, beside the cpu device's.
ISOLATED = ("-Wl,-Bsymbolic",)

#: The test id of the device.
LABEL = "cuda (stand-in)"

OUT_OF_MEMORY, INVALID_VALUE, CONTEXT_LOST = 2, 1, 700

MEMORY = 1 << 30

#: Orders in which queued work runs: as late as it may, and by coins.
ORDERS = (0, 1, 2, 3)


class Unavailable(Exception):
    """The stand-in cannot be used here; the message says why, and what to do."""


class Counts(ctypes.Structure):
    """StandInCounts of calls.cpp."""

    _fields_ = tuple(
        (name, ctypes.c_long)
        for name in ("contexts", "allocations", "bytes", "streams", "events", "modules", "pending", "faults")
    )


class StandIn:
    """The loaded library, and what tests ask of it."""

    #: What it says of its L2 cache.
    L2_BYTES = 1 << 16

    def __init__(self, library: ctypes.CDLL) -> None:
        self.cuda = library
        for name in ("calls", "recorded", "why"):
            getattr(library, f"convbackprop_stand_in_{name}").restype = ctypes.c_char_p
        library.convbackprop_stand_in_reset.argtypes = [ctypes.c_int, ctypes.c_size_t]
        library.convbackprop_stand_in_fail.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int]
        library.convbackprop_stand_in_tell_times.argtypes = [ctypes.c_float]

    def reset(self, devices: int = 2, memory: int = MEMORY) -> None:
        """Forget everything, in the driver and in the package, as in a new process."""
        calls.forget()
        plan.plan.cache_clear()
        cuda.forget()
        self.cuda.convbackprop_stand_in_reset(devices, memory)

    def order(self, number: int) -> None:
        """Let queued work run as late as it may (0), or half of it at once (any other number: which half)."""
        self.cuda.convbackprop_stand_in_order(number)

    def fail(self, call: str, first: int, code: int, times: int = 1) -> None:
        """Let a call fail at its first-th use from now on, and so many times."""
        self.cuda.convbackprop_stand_in_fail(call.encode(), first, times, code)

    def heal(self) -> None:
        """Let no call fail, and count the calls from now on."""
        self.fail("", 0, 0, 0)

    def calls(self) -> dict[str, int]:
        """Return how often each call was used since the last `fail`, `heal` or `reset`."""
        lines = self.cuda.convbackprop_stand_in_calls().decode().splitlines()
        return {name: int(count) for name, count in map(str.split, lines)}

    def record(self) -> None:
        """Write down each call from now on, until `reset`."""
        self.cuda.convbackprop_stand_in_record()

    def has_context(self) -> bool:
        """Return whether a context is current in this thread."""
        handle = ctypes.c_void_p()
        self.cuda.cuCtxGetCurrent(ctypes.byref(handle))
        return bool(handle)

    def recorded(self, names: str = "") -> list[str]:
        """Return the calls since `record` in their order, each with the kernel or the bytes that it was of.

        `names` is a regular expression: those whose name matches it.
        """
        lines = self.cuda.convbackprop_stand_in_recorded().decode().splitlines()
        return [line for line in lines if re.match(names, line)]

    def tell_times(self, milliseconds: float) -> None:
        """Let any two events be so far apart, until `reset`; otherwise the driver refuses to tell."""
        self.cuda.convbackprop_stand_in_tell_times(milliseconds)

    def share_host_memory(self) -> None:
        """Let kernels reach the host's memory, until `reset`; otherwise an address of the host's is an illegal one."""
        self.cuda.convbackprop_stand_in_share_host_memory()

    def why(self) -> str:
        """Return why the last call failed that did: more than the driver's code says."""
        return self.cuda.convbackprop_stand_in_why().decode()

    def counts(self) -> Counts:
        """Return what there is now."""
        counts = Counts()
        self.cuda.convbackprop_stand_in_count(ctypes.byref(counts))
        return counts


def build(flags: tuple[str, ...] = ()) -> Path:
    """Return the library, built where needed."""
    cxx = compiler.find_cxx()
    options = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-shared", "-Wall", "-Wextra", *flags,
               "-Wl,-soname,libcuda.so.1"]  # fmt: skip
    texts = [file.read_text() for file in (*SOURCES, *sorted(FOLDER.glob("*.h")), compiler.RUNTIME / "runtime.h")]

    def make(path: Path) -> dict[str, str]:
        def compiled(source: Path) -> str:
            target = path.with_name(f"{source.stem}.o")
            compiler._run([str(cxx), *options, "-c", str(source), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, SOURCES))
        compiler._run([str(cxx), *options, *objects, "-ldl", "-o", str(path)])
        return {}

    return cache.entry(cache.digest("stand-in", options, texts, compiler.compiler_version(cxx)), ".so", make)[0]


def compiler_script(folder: Path, real: Path | None = None) -> Path:
    """Write what is called in place of nvcc.

    It is another file whenever it would compile otherwise: the package asks a compiler for its version, on which the
    names of compiled kernels depend, once for each state of its file.
    """
    recipe = [file.read_text() for file in (FOLDER / "nvcc.py", Path(compiler.__file__))]
    words = [file.read_text() for file in sorted(compiler.RUNTIME.rglob("*.[ch]*")) if file.is_file()]
    digest = cache.digest(recipe, words, compiler.compiler_version(compiler.find_cxx()), compiler.cpu_features(),
                          str(cache.directory()), str(real), str(FOLDER), sys.executable)  # fmt: skip
    script = folder / f"nvcc-{digest}"
    if not script.exists():
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        environment = f"CONVBACKPROP_STAND_IN_NVCC='{real or ''}' PYTHONPATH='{path}'"
        number, name = tempfile.mkstemp(dir=folder)
        with os.fdopen(number, "w") as file:
            file.write(f'#!/bin/sh\n{environment} exec "{sys.executable}" "{FOLDER}/nvcc.py" {digest} "$@"\n')
        os.chmod(name, 0o755)
        os.replace(name, script)
    return script


def find_pycuda() -> None:
    """See to it that PyCUDA can be imported: it is installed, or its wheel lies in build/wheels (make pycuda)."""
    if importlib.util.find_spec("pycuda"):
        return
    tag = "cp{}{}".format(*sys.version_info)
    wheels = sorted((ROOT / "build" / "wheels").glob(f"pycuda-*-{tag}-*.whl"))
    if not wheels:
        raise Unavailable(f"PyCUDA is not installed, and build/wheels has no wheel of it for {tag}; run 'make pycuda'")

    def unpack(path: Path) -> dict[str, str]:
        command = [sys.executable, "-m", "pip", "install", "-qq", "--no-index", "--find-links", str(wheels[0].parent),
                   "--target", str(path), str(wheels[0])]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"PyCUDA's wheel cannot be installed: {done.stderr.strip()}")
        return {}

    site = ROOT / "build" / "stand-in" / f"{wheels[0].stem}-{wheels[0].stat().st_mtime_ns}"
    if not site.is_dir():
        site.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=site.parent) as scratch:
            unpack(Path(scratch, "site"))
            try:
                os.rename(Path(scratch, "site"), site)
            except OSError:  # another process was first
                if not site.is_dir():
                    raise
    sys.path.append(str(site))
    importlib.invalidate_caches()


def check() -> None:
    """See to it that the stand-in can be loaded into a process.

    Raises
    ------
    Unavailable
        PyCUDA is missing, or there is a driver: two cannot be in one process.
    """
    if _has_driver():
        raise Unavailable("this machine has an NVIDIA driver, and a process can have one libcuda.so.1 only")
    find_pycuda()


@functools.cache
def start() -> StandIn:
    """Load the stand-in into this process.

    Raises
    ------
    Unavailable
        As `check` does.
    """
    check()
    library = ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)
    stand_in = StandIn(library)
    stand_in.reset()
    return stand_in


def _has_driver() -> bool:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return not hasattr(library, "convbackprop_stand_in_reset")


@contextmanager
def compiling(real: Path | None = None) -> Iterator[Path]:
    """Have the package compile for the stand-in, inside a with block."""
    script = compiler_script(cache.directory(), real)
    before = os.environ.get("CONVBACKPROP_NVCC")
    os.environ["CONVBACKPROP_NVCC"] = str(script)
    try:
        yield script
    finally:
        os.environ.pop("CONVBACKPROP_NVCC")
        if before is not None:
            os.environ["CONVBACKPROP_NVCC"] = before


def pass_for_gpu(patch: Any, stand_in: StandIn, milliseconds: float) -> None:
    """Have the package choose the stand-in and time it, which it refuses to do otherwise; each time is the one given.

    For tests of the host code that takes times, before a device is opened. `patch` is pytest's monkeypatch.
    """
    patch.setattr(cuda, "STAND_IN", "the name of no device")
    stand_in.tell_times(milliseconds)


def device(name: str = "cuda") -> Any:
    """Return the stand-in as a device of the package."""
    return cuda.cuda_device(int(name.partition(":")[2] or 0))
