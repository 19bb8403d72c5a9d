"""What the tests share: the devices to run on, and kernels compiled ahead of time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from convbackprop import compiler, devices
from convbackprop.compiler import Source
from convbackprop.plan import constants_of
from convbackprop.problem import ConvProblem
from convbackprop.variants import Variant

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
def workers() -> Iterable[None]:
    """Puts the number of worker threads back after a test that changes it."""
    from convbackprop.devices.cpu import get_num_threads, set_num_threads

    before = get_num_threads()
    yield
    set_num_threads(before)


def compile_ahead(
    request: pytest.FixtureRequest, wanted: Iterable[tuple[Variant, ConvProblem]], tunables: str = "cpu"
) -> None:
    """Compile kernels for the cpu device, several at once; a cold cache is then half as slow on two cores.

    Not for a few tests: each compiles what it needs.
    """
    if len(request.session.items) < 40:
        return
    sources = {Source.of(variant.path, constants_of(variant, problem, tunables)) for variant, problem in wanted}
    compiler.cpu_runtime()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiler.shared_object, sources))
