"""Every fault of support/faults.py: one exception of ours, nothing leaked, and the next call works or says why not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from convbackprop.devices import cache
from tests.driver import CONTEXT_LOST, INVALID_VALUE, OUT_OF_MEMORY
from tests.support import faults
from tests.support.figures import record

CASES = [(scene, call) for scene, calls in faults.CALLS.items() for call in calls]

#: Seconds of the same handling as in other scenes.
SLOW = (("timing", "cuMemAlloc"), ("gpuarray", "cuMemAlloc"), ("host", "cuMemAlloc"))


def check(outcomes, record_property):
    """Assert that all is as it should be; how many there were is kept in the report of the run (--junit-xml)."""
    record_property("faults", len(outcomes))
    assert outcomes
    assert [f"{o.what} {o.how}: {each}" for o in outcomes for each in o.complaints] == []


@pytest.mark.parametrize(
    ("scene", "call"),
    [pytest.param(*case, id="-".join(case), marks=pytest.mark.slow if case in SLOW else ()) for case in CASES],
)
def test_a_call_of_the_driver_fails(stand_in, scene, call, record_property):
    check(list(faults.driver_cases(stand_in, scene, call)), record_property)


@pytest.mark.parametrize("scene", faults.SCENES)
def test_no_call_is_left_out(stand_in, scene):
    others = {call for other in faults.SCENES if other != scene for call in faults.CALLS[other]}
    assert set(faults.CALLS[scene]) <= set(faults.uses(stand_in, scene)) <= {*faults.CALLS[scene], *others}


@pytest.mark.parametrize("code", (OUT_OF_MEMORY, INVALID_VALUE, CONTEXT_LOST))
def test_every_allocation_fails_from_the_first_on(stand_in, code, record_property):
    """PyCUDA tries again after a collection of garbage: it fails for good."""
    check([faults.driver_case(stand_in, "host", "cuMemAlloc", 1, code, times=1000)], record_property)


def test_a_leak_and_a_foreign_exception_are_seen(stand_in, monkeypatch):
    """The complaints are none that could not be: a package that keeps memory, or lets PyCUDA's exception through."""
    from convbackprop.devices.cuda import CudaDevice, _Active

    with monkeypatch.context() as patch:
        kept = []
        allocate = CudaDevice.allocate
        patch.setattr(CudaDevice, "allocate", lambda self, size: kept.append(made := allocate(self, size)) or made)
        patch.setattr(CudaDevice, "holding", lambda self: _Holding(self))
        outcome = faults.driver_case(stand_in, "host", "cuLaunchKernel", 1, INVALID_VALUE)
        assert any("not given back" in each for each in outcome.complaints)
        kept.clear()
    with monkeypatch.context() as patch:
        patch.setattr(_Active, "__exit__", lambda self, *error: self._device.context.pop())
        outcome = faults.driver_case(stand_in, "host", "cuLaunchKernel", 1, INVALID_VALUE)
        assert any("not ours: LogicError" in each for each in outcome.complaints)


class _Holding:
    def __init__(self, device):
        self.active = device.active()

    def __enter__(self):
        self.active.__enter__()
        return {}

    def __exit__(self, *error):
        self.active.__exit__(*error)


@pytest.mark.hardening
@pytest.mark.parametrize("device", ("cuda", "cpu"))
@pytest.mark.parametrize("fault", faults.FAULTS, ids=" ".join)
def test_a_compiler_or_the_cache_fails(stand_in, cache_folder, device, fault, record_property):
    check([faults.toolchain_case(device, fault, cache_folder, stand_in)], record_property)


@pytest.fixture
def cache_folder():
    """A folder on the file system of the cache, for links to what is in it."""
    with tempfile.TemporaryDirectory(dir=cache.directory()) as folder:
        yield Path(folder)


@pytest.mark.hardening
def test_the_page_of_faults_is_current(stand_in, cache_folder):
    outcomes = list(faults.everything(stand_in, cache_folder))
    bad = sum(bool(outcome.complaints) for outcome in outcomes)
    record("faults", injected=len(outcomes), survived=len(outcomes) - bad)
    page = faults.page(outcomes)
    assert faults.PAGE.read_text() == page, "run 'python -m tests.support.faults --write'"
