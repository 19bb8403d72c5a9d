"""What the tests share: the devices to run on, and kernels compiled ahead of time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from convbackprop import calls, devices
from convbackprop.compiler import Source
from convbackprop.devices.cpu import CpuDevice
from convbackprop.plan import constants_of
from convbackprop.problem import ConvProblem
from convbackprop.variants import Variant
from tests.quick import quick_cpu

# Tests choose their devices themselves, and how wide a terminal is (pytest-xdist tells its workers its own width).
os.environ.pop("CONVBACKPROP_DEVICE", None)
os.environ.pop("COLUMNS", None)


@pytest.fixture(params=devices.usable_devices())
def device(request: pytest.FixtureRequest) -> devices.Device:
    """Each device that this machine can use; test_gpu.py says so where CUDA is not among them."""
    return devices.get_device(request.param)


@pytest.fixture
def cpu() -> devices.Device:
    """The cpu device, for what only it can do."""
    return devices.get_device("cpu")


@pytest.fixture
def quick() -> devices.Device:
    """The cpu device with kernels that are compiled quickly."""
    return quick_cpu()


@pytest.fixture
def quick_commands(monkeypatch: pytest.MonkeyPatch) -> Iterable[None]:
    """Commands and functions of this process run on the quick device; pass `QUICK_ENVIRONMENT` to other processes."""
    calls.forget()
    with monkeypatch.context() as patch:
        patch.setattr("convbackprop.devices.cpu.cpu_device", quick_cpu)
        yield
    calls.forget()


@pytest.fixture
def workers() -> Iterable[None]:
    """Puts the number of worker threads back after a test that changes it."""
    from convbackprop.devices.cpu import get_num_threads, set_num_threads

    before = get_num_threads()
    yield
    set_num_threads(before)


def compile_ahead(
    request: pytest.FixtureRequest, wanted: Iterable[tuple[Variant, ConvProblem]], device: CpuDevice
) -> None:
    """Compile kernels for a cpu device, several at once; a cold cache is then half as slow on two cores.

    Not for a few tests: each compiles what it needs. Nor under pytest-xdist, whose workers do so side by side.
    """
    if len(request.session.items) < 40 or "PYTEST_XDIST_WORKER" in os.environ:
        return
    sources = {Source.of(variant.path, constants_of(variant, problem, "cpu")) for variant, problem in wanted}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(device.compile, sources))
