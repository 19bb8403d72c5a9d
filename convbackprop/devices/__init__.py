"""Where kernels run: `cuda` (PyCUDA) and `cpu` (the same .cu file, compiled by the host's C++ compiler)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Protocol

from convbackprop.arguments import shown
from convbackprop.devices.compiler import Source
from convbackprop.devices.gpus import Target
from convbackprop.devices.mapped import Mapped
from convbackprop.errors import InvalidArgument


class Kernel(Protocol):
    """A loaded entry point with its launch geometry."""

    def launch(self, pointers: Sequence[int], stream: Any = None) -> None:
        """Run it on arrays at these addresses, in the order of its parameters; 0 is a null pointer."""


class Device(Protocol):
    """What a device can do."""

    name: str
    kind: str
    target: Target

    @property
    def title(self) -> str:
        """Which model it is."""

    def load(
        self,
        source: Source,
        entry: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        pointers: int,
        shape: bytes,
        integers: Sequence[int],
        maps: Sequence[Mapped] = (),
    ) -> Kernel:
        """Compile, load and prepare a launch: `pointers` arrays, then the shape struct, then the integers.

        `maps`: tensor maps of these arrays, which come before all else.
        """

    def __hash__(self) -> int:
        """Tell devices apart by identity: there is one object a device."""


def get_device(name: str | None = None) -> Device:
    """Return a device by its name.

    Parameters
    ----------
    name : str or None
        "cpu", "cuda" (the first GPU) or "cuda:1". None: CONVBACKPROP_DEVICE, else cuda when it is usable, else cpu.

    Raises
    ------
    InvalidArgument
        The name is none of these.
    DeviceNotFound, DeviceUnusable
        There is no such device, or it cannot be used; the message says what to do.
    """
    if name is None:
        name = os.environ.get("CONVBACKPROP_DEVICE") or ("cuda" if why_not_cuda() is None else "cpu")
    if not isinstance(name, str) or not (match := re.fullmatch(r"cpu|cuda(?::(\d{1,9}))?", name)):
        raise InvalidArgument(f"device is {shown(name)}; it should be 'cpu', 'cuda' or 'cuda:N'")
    if name == "cpu":
        from convbackprop.devices.cpu import cpu_device

        return cpu_device()
    from convbackprop.devices.cuda import cuda_device

    return cuda_device(int(match[1] or 0))


def why_not_cuda() -> str | None:
    """Return None if a CUDA device can be used, else one sentence on why not and what to do."""
    from convbackprop.devices.cuda import why_not

    return why_not()


def usable_devices() -> list[str]:
    """Return the names of the devices that can be used now, the fastest first."""
    return ["cuda", "cpu"] if why_not_cuda() is None else ["cpu"]


def choice_of_device(name: str | None) -> tuple[Device, str]:
    """Return the device that `get_device` chooses, and one sentence that says which and why."""
    device = get_device(name)
    stand_in = ", the tests' stand-in for a GPU, on the CPU" if getattr(device, "is_stand_in", False) else ""
    if name is not None:
        return device, f"device {device.name}: asked for{stand_in}"
    if os.environ.get("CONVBACKPROP_DEVICE"):
        return device, f"device {device.name}: named in CONVBACKPROP_DEVICE{stand_in}"
    if device.kind == "cuda":
        return device, f"device {device.name}: the GPU is usable"
    return device, "device cpu: no GPU is usable ('convbackprop doctor' says why)"
