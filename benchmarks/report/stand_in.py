"""What stands for a GPU in a dry run: the tests' stand-in for a driver (tests/driver). Nothing is measured on it."""

from __future__ import annotations

import os
from typing import Any

from convbackprop.devices import cache
from tests import driver

#: Between any two events.
MILLISECONDS = 1.0


class Patch:
    """As much of pytest's monkeypatch as is needed; what it sets, stays."""

    def setattr(self, target: Any, name: str, value: Any) -> None:
        setattr(target, name, value)


def why_not() -> str | None:
    """Return None if a dry run is possible here, else one sentence on why not."""
    try:
        driver.check()
    except driver.Unavailable as error:
        return str(error)
    return None


def install() -> driver.StandIn:
    """Put the stand-in in the place of a GPU for the rest of this process; torch's memory counts as the device's."""
    made = driver.start()
    os.environ["CONVBACKPROP_NVCC"] = str(driver.compiler_script(cache.directory()))
    driver.pass_for_gpu(Patch(), made, MILLISECONDS)
    made.share_host_memory()
    return made
