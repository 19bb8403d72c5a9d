"""What stands for a GPU in a dry run: tests/fake_driver.py with what timing needs. Nothing is measured on it."""

from __future__ import annotations

import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

from tests import fake_driver


class Patch:
    """As much of pytest's monkeypatch as fake_driver.install needs; what it sets, stays."""

    def setitem(self, mapping: Any, key: Any, value: Any) -> None:
        mapping[key] = value

    def setattr(self, target: Any, name: str, value: Any) -> None:
        setattr(target, name, value)


def furnish(driver: Any) -> Any:
    """Give the stand-in events, memset, copies and attributes; torch's memory counts as the device's."""

    class Event:
        def __init__(self) -> None:
            driver.require_context()
            self.at: float | None = None

        def record(self, stream: Any = None) -> None:
            driver.require_context()
            self.at = time.perf_counter()

        def synchronize(self) -> None:
            assert self.at is not None, "the event was not recorded"

        def time_since(self, other: Any) -> float:
            return (self.at - other.at) * 1e3  # milliseconds

    def memset(address: int, value: int, size: int) -> None:
        driver.require_context()
        assert 0 <= value < 256 and driver.allocations[address].size >= size

    def copy(target: int, source: int, size: int) -> None:
        driver.require_context()
        assert all(driver.allocations[address].size >= size for address in (target, source))

    driver.Event, driver.memset_d8, driver.memset_d8_async = Event, memset, memset
    driver.memcpy_dtod_async = copy
    driver.device_attribute = types.SimpleNamespace(L2_CACHE_SIZE=38, MULTIPROCESSOR_COUNT=16)
    driver.Device.get_attribute = lambda self, attribute: {38: 1 << 16, 16: 1}[attribute]
    driver.Context = types.SimpleNamespace(synchronize=driver.require_context)
    driver.is_device_memory = lambda address: True
    return driver


def install() -> Any:
    """Put the stand-in where PyCUDA is imported from, for the rest of this process."""
    assert "pycuda.driver" not in sys.modules, "a dry run does not touch a real driver"
    return furnish(fake_driver.install(Patch(), Path(tempfile.mkdtemp(prefix="gpu-report-"))))
