"""Say what this machine can run: each thing that the package needs or can use, and what to do where it is missing."""

from __future__ import annotations

import argparse
import ctypes
import importlib
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

import convbackprop
from convbackprop.bench.timing import aligned
from convbackprop.cli.common import console, counted, print_json
from convbackprop.devices import cache, get_device, why_not_cuda
from convbackprop.devices.compiler import compiler_version, cxx_name, find_cxx, find_nvcc
from convbackprop.devices.cpu import cpu_device, get_num_threads
from convbackprop.devices.cpu_level import VARIABLE as CPU_LEVEL, cpu_level, cpu_vector_bytes, processor
from convbackprop.errors import ConvBackpropError, DeviceUnusable, ProblemTooLarge
from convbackprop.profile.sass import find_cuobjdump

HELP = "what this machine can run, and what is missing"
EPILOG = """\
Exit code 0 if at least one device is usable.

examples:
  convbackprop doctor
  convbackprop doctor --json

JSON keys: version, usable, findings [item, usable, found, todo]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass(frozen=True)
class Finding:
    """Something looked at: whether it is usable, what was found, and what to do if it is not usable."""

    item: str
    usable: bool
    found: str
    todo: str = ""


def _tried(item: str, find: Callable[[], str], todo: str = "") -> Finding:
    """Return what `find` finds; its exception says why it does not."""
    try:
        return Finding(item, True, find())
    except ConvBackpropError as error:
        why, _, advice = str(error).partition("; ")
        return Finding(item, False, why, todo or advice)
    except (ImportError, OSError) as error:
        return Finding(item, False, str(error), todo)


def _version(module: str) -> str:
    found = importlib.import_module(module)
    return str(getattr(found, "__version__", None) or getattr(found, "VERSION_TEXT", "found"))


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _release(program: Path) -> str:
    """Return the line of `nvcc --version`, or `cuobjdump --version`, that names the release."""
    text = compiler_version(program)
    return next((line for line in text.splitlines() if "release" in line), _first_line(text))


def _cpu() -> str:
    """Run a grid on the cpu device."""
    device = cpu_device()
    source, target = (aligned((1 << 18,), np.dtype(np.uint8)) for _ in range(2))
    source[:] = 7
    device.copy(target.ctypes.data, source.ctypes.data, source.nbytes)
    if not (target == 7).all():
        raise ConvBackpropError("a copy on the cpu device gives a wrong result; please report it")
    count = get_num_threads()
    vectors = f"{cpu_level()}, vectors of {cpu_vector_bytes()} bytes ({CPU_LEVEL})"
    return f"{processor()}, {counted(count, 'thread')} (CONVBACKPROP_NUM_THREADS), level {vectors}"


def _driver() -> str:
    version = ctypes.c_int()
    library = ctypes.CDLL("libcuda.so.1")
    if hasattr(library, "convbackprop_stand_in_reset"):
        raise ConvBackpropError("libcuda.so.1 is the tests' stand-in for a driver, and there is no GPU")
    library.cuDriverGetVersion(ctypes.byref(version))
    return f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def _gpu() -> str:
    if why := why_not_cuda():
        raise ConvBackpropError(why)
    device: Any = get_device("cuda")
    try:
        with device.active():
            count = device.driver.Device.count()
            free = device.free_bytes()
    except ProblemTooLarge as error:  # whose advice is about a batch, and there is none
        raise DeviceUnusable(
            f"{device.name} has no memory left ({error.__cause__}); end what else uses it ('nvidia-smi' lists that)"
        ) from None
    others = f", and {count - 1} more" if count > 1 else ""
    return f"{device.title}, {device.architecture}, {free / 2**30:.1f} GiB free{others}"


def _cache() -> str:
    files = [file for file in cache.directory().iterdir() if file.suffix in (".so", ".cubin")]
    size = sum(file.stat().st_size for file in files) / 2**20
    return f"{cache.directory()}: {len(files):,} compiled kernels, {size:.1f} MiB (CONVBACKPROP_CACHE_DIR)"


def findings() -> Iterator[Finding]:
    """Look at everything, the most needed first."""
    yield Finding("python", True, f"{platform.python_version()} ({sys.executable})")
    yield _tried("numpy", lambda: _version("numpy"))
    yield _tried("C++ compiler", lambda: f"{find_cxx()}: {cxx_name()}")
    yield _tried("cpu device", _cpu)
    yield _tried("nvcc", lambda: f"{find_nvcc()}: {_release(find_nvcc())}")
    yield _tried("cuobjdump", lambda: f"{find_cuobjdump()}: {_release(find_cuobjdump())}",
                 "what `profile` reads instructions with: pip install 'convbackprop[sass]'")  # fmt: skip
    yield _tried("PyCUDA", lambda: _version("pycuda"),
                 "needed for a GPU only: 'make pycuda' builds it, or pip install 'convbackprop[cuda]'")  # fmt: skip
    yield _tried("NVIDIA driver", _driver, "needed for a GPU only: install the driver; 'nvidia-smi' should list a GPU")
    yield _tried("cuda device", _gpu)
    yield _tried("torch", lambda: _version("torch"), "what `bench` compares with: pip install 'convbackprop[torch]'")
    for module in ("skimage", "PIL"):
        yield _tried(module, lambda module=module: _version(module),  # type: ignore[misc]
                     "photographs for `bench`: pip install 'convbackprop[data]'")  # fmt: skip
    yield _tried("matplotlib", lambda: _version("matplotlib"),
                 "pictures of `plot`, `report` and `demo`: pip install 'convbackprop[plot]'")  # fmt: skip
    yield _tried("scipy", lambda: _version("scipy"),
                 "what `compare` tests with, and a peer of `bench`: pip install 'convbackprop[stats]'")  # fmt: skip
    yield _tried("cache", _cache)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; return 0 if a device is usable."""
    found = list(findings())
    usable = any(finding.usable for finding in found if finding.item.endswith(" device"))
    if arguments.json:
        print_json({
            "version": convbackprop.__version__, "usable": usable, "findings": [asdict(finding) for finding in found],
        })  # fmt: skip
        return 0 if usable else 1
    out = console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        state = Text("ok", "green") if finding.usable else Text("no", "yellow")
        table.add_row(finding.item, state, finding.found + (f"\n-> {finding.todo}" if finding.todo else ""))
    out.print(f"convbackprop {convbackprop.__version__}")
    out.print(table)
    devices = [finding.item.split()[0] for finding in found if finding.item.endswith(" device") and finding.usable]
    out.print(f"usable devices: {', '.join(devices)}" if usable else "no device is usable")
    return 0 if usable else 1
