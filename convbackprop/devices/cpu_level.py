"""For which CPUs the kernels of the cpu device are compiled: for this one, or for all of a level of x86-64.

The levels, and what each asks of a CPU: System V ABI, AMD64 Architecture Processor Supplement, "Micro-Architecture
Levels". A higher one has all of the lower ones.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

from convbackprop.errors import DeviceUnusable, InvalidArgument

VARIABLE = "CONVBACKPROP_CPU_LEVEL"
NATIVE = "native"


class Level(NamedTuple):
    """How wide a level's vector registers are, and what it adds to the one below, in the words of /proc/cpuinfo."""

    vector_bytes: int
    adds: tuple[str, ...]


LEVELS = {
    "v2": Level(16, ("cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3")),
    "v3": Level(32, ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")),
    "v4": Level(64, ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")),
}


def cpu_level() -> str:
    """Return the level that kernels are compiled for: CONVBACKPROP_CPU_LEVEL, else "native", all that this CPU has.

    Raises
    ------
    InvalidArgument
        It is none of the levels.
    DeviceUnusable
        This CPU lacks something that the level asks for.
    """
    level = os.environ.get(VARIABLE) or NATIVE
    if level != NATIVE and level not in LEVELS:
        raise InvalidArgument(f"{VARIABLE} is {level!r}; it should be one of {', '.join((NATIVE, *LEVELS))}")
    if why := why_not(level):
        raise DeviceUnusable(f"{VARIABLE} is {level!r}, but {why}")
    return level


def why_not(level: str) -> str | None:
    """Return None if this CPU can run code for a level, else what it lacks and what the variable should be."""
    if level == NATIVE:
        return None
    machine = platform.machine()
    if machine != "x86_64":
        return f"x86-64's levels mean nothing on {machine}; it should be {NATIVE}"
    lacking = {name: [flag for flag in LEVELS[name].adds if flag not in _flags()] for name in LEVELS}
    missing = [flag for name in _up_to(level) for flag in lacking[name]]
    if not missing:
        return None
    usable = [name for name in LEVELS if not any(lacking[below] for below in _up_to(name))]
    choice = f"one of {', '.join((NATIVE, *usable))}" if usable else NATIVE
    return f"this CPU lacks {', '.join(missing)}; it should be {choice}"


def _up_to(level: str) -> list[str]:
    names = list(LEVELS)
    return names[: names.index(level) + 1]


@functools.cache
def _said(what: str) -> str:
    """Return what /proc/cpuinfo says of a processor, "" where it says nothing."""
    info = Path("/proc/cpuinfo")
    found = re.search(rf"^{what}\s*:(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else ""


@functools.cache
def _flags() -> frozenset[str]:
    """Return what this CPU has, in the words of /proc/cpuinfo."""
    return frozenset(_said("flags").split())


def processor() -> str:
    """Return the name of this machine's processor."""
    return _said("model name") or platform.machine()


def architecture_flag() -> str:
    """Return the C++ compiler's flag for the level."""
    if (level := cpu_level()) != NATIVE:
        return f"-march=x86-64-{level}"
    return "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"


def cpu_vector_bytes() -> int:
    """Return how wide the level's vector registers are."""
    if (level := cpu_level()) != NATIVE:
        return LEVELS[level].vector_bytes
    return 64 if "avx512f" in _flags() else 32 if "avx" in _flags() else 16
