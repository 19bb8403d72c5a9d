"""Devices for other levels of x86-64 than this machine's own; see convbackprop/devices/cpu_level.py."""

from __future__ import annotations

import functools

from convbackprop.devices.checked import CheckedDevice
from convbackprop.devices.cpu import CpuDevice

#: Those that have other vectors than the machine that the kernels were written on.
OTHER_LEVELS = ("v2", "v3")


@functools.cache
def cpu_at(level: str) -> CpuDevice:
    """Return the cpu device of a level, which the environment has to name as long as it compiles."""
    return CpuDevice()


@functools.cache
def checked_at(level: str) -> CheckedDevice:
    """Return the checked device of a level, which the environment has to name as long as it compiles."""
    return CheckedDevice()
