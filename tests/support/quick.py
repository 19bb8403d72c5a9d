"""The cpu device for tests that do not look at the machine code that users run: its kernels are compiled quickly."""

from __future__ import annotations

import functools

from convbackprop import devices
from convbackprop.devices.cpu import CpuDevice

#: Compiles in less than half the time of the flags that the package has for its kernels.
QUICK = "-Og"

#: What other processes need for that.
QUICK_ENVIRONMENT = {"CONVBACKPROP_CXXFLAGS": QUICK}


@functools.cache
def quick_cpu() -> CpuDevice:
    """Return the cpu device with kernels that are compiled quickly.

    For what is wrong in a source, whatever machine code is made of it: mistakes made on purpose, constants that the cpu
    device does not have, and commands whose output is what is looked at.
    """
    return CpuDevice((QUICK,))


def quick_on_cpu(device: devices.Device) -> devices.Device:
    """Return the quick device in place of cpu."""
    return quick_cpu() if device.kind == "cpu" else device
