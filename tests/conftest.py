"""What the tests share: the devices to run on, and kernels compiled ahead of time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convbackprop import cli, devices
from convbackprop.devices import cpu_level
from convbackprop.devices.compiler import Source
from convbackprop.devices.cpu import CpuDevice
from convbackprop.ladder.variant import Variant
from convbackprop.launch import calls
from convbackprop.launch.plan import constants_of
from convbackprop.problem import ConvProblem
from tests import driver
from tests.support.levels import OTHER_LEVELS
from tests.support.quick import quick_cpu

# Tests choose their devices themselves, and how wide a terminal is (pytest-xdist tells its workers its own width).
os.environ.pop("CONVBACKPROP_DEVICE", None)
os.environ.pop("COLUMNS", None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of the many processes compiles the package anew
os.environ["CONVBACKPROP_TUNED"] = "off"  # what the user has tuned is no test's concern


@pytest.fixture(params=[*devices.usable_devices(), pytest.param(driver.LABEL, marks=pytest.mark.hardening)])
def device(request: pytest.FixtureRequest) -> Iterable[devices.Device]:
    """Each device that this machine can use; test_gpu.py says so where CUDA is not among them.

    The third is no GPU, but the cuda device on the stand-in of tests/driver; nobody gets it unasked.
    """
    if request.param != driver.LABEL:
        yield devices.get_device(request.param)
        return
    stand_in = started()
    with driver.compiling():
        yield driver.device()
        assert (left := stand_in.counts().allocations) == 0, f"{left} arrays were not given back"


@pytest.fixture
def stand_in() -> Iterable[driver.StandIn]:
    """The stand-in for a driver, as in a new process."""
    made = started()
    with driver.compiling():
        made.reset()
        yield made
        made.reset()


def started() -> driver.StandIn:
    """Return the stand-in, or skip the test where it cannot be used."""
    try:
        return driver.start()
    except driver.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=OTHER_LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Another level of x86-64 than this machine's own; kernels are compiled for it as long as the test runs."""
    if why := cpu_level.why_not(request.param):
        pytest.skip(f"kernels for {request.param} cannot run: {why}")
    monkeypatch.setenv(cpu_level.VARIABLE, request.param)
    return request.param


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
def run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty directory; return (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return command


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many faults were injected and how many of them survived (tests/devices/test_faults.py)."""
    injected = survived = 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            count = sum(value for name, value in report.user_properties if name == "faults")
            injected += count
            survived += count * (outcome == "passed")
    if injected:
        terminalreporter.write_line(f"{injected} faults injected, {survived} survived")
