"""Other levels of x86-64 than this machine's own: devices, and what depends on them; see devices/cpu_level.py."""

from __future__ import annotations

import functools

import pytest

from convbackprop.devices import cpu_level
from convbackprop.devices.checked import CheckedDevice
from convbackprop.devices.cpu import CpuDevice
from convbackprop.ladder.registry import VARIANTS
from convbackprop.launch.plan import constants_of
from tests.support.problems import PROBLEMS

#: Those that have other vectors than the machine that the kernels were written on.
OTHER_LEVELS = ("v2", "v3")


@functools.cache
def cpu_at(level: str, *flags: str) -> CpuDevice:
    """Return the cpu device of a level, which the environment has to name as long as it compiles."""
    return CpuDevice(flags)


@functools.cache
def checked_at(level: str) -> CheckedDevice:
    """Return the checked device of a level, which the environment has to name as long as it compiles."""
    return CheckedDevice()


def _follow_the_level():
    """Return the variants whose constants on a CPU follow from its level."""
    problems = [entry.problem() for entry in PROBLEMS[::8]]  # each variant takes some of them

    def constants(variant, level):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_level, "why_not", lambda level: None)  # nothing is run
            patch.setenv(cpu_level.VARIABLE, level)
            return str([constants_of(variant, p, "cpu") for p in problems if variant.refusal(p) is None])

    return [variant for variant in VARIANTS if len({constants(variant, level) for level in cpu_level.LEVELS}) > 1]


FOLLOW_THE_LEVEL = _follow_the_level()
