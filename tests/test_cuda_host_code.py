"""The host code of the cuda device, run through a stand-in for PyCUDA's driver; no GPU takes part."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import convbackprop
from convbackprop import check, devices
from convbackprop.problem import ConvProblem
from convbackprop.variants import VARIANTS
from tests import fake_driver
from tests.problems import chosen


@pytest.fixture
def driver(monkeypatch, tmp_path):
    yield fake_driver.install(monkeypatch, tmp_path)
    fake_driver.uninstall()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_gives_the_right_answer_through_the_cuda_device(driver, variant):
    """On two sets of constants with which test_variants.py compiles it, too; a few problems of each."""
    device = devices.get_device("cuda")
    for alike in check.compiled_alike(variant, chosen(variant, "cuda"), "cuda")[:2]:
        for problem in alike[:10]:
            outcome = check.check(variant, problem, device)
            assert outcome.ok, (str(problem), outcome.faults)
    assert driver.launches


def test_cuda_is_chosen_when_it_is_usable(driver, monkeypatch):
    monkeypatch.delenv("CONVBACKPROP_DEVICE", raising=False)
    assert devices.why_not_cuda() is None
    assert devices.get_device().name == "cuda:0"
    assert devices.usable_devices() == ["cuda", "cpu"]
    monkeypatch.setenv("CONVBACKPROP_DEVICE", "cpu")
    assert devices.get_device().name == "cpu"


def test_host_arrays_are_copied_there_and_back(driver, quick_commands):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 9, 8)), rng.standard_normal((4, 3, 3, 3))
    y = convbackprop.conv2d(x, w, padding=1, activation="tanh", device="cuda")
    assert driver.launches == ["forward"]
    assert np.array_equal(y, convbackprop.conv2d(x, w, padding=1, activation="tanh", device="cpu"))
    dy = rng.standard_normal(y.shape)
    options = {"padding": 1, "output": y, "activation": "tanh", "variant": "naive"}
    there = convbackprop.conv2d_backward(dy, x, w, **options, device="cuda:0")
    here = convbackprop.conv2d_backward(dy, x, w, **options, device="cpu")
    for a, b in zip(there, here, strict=True):
        assert np.allclose(a, b, rtol=1e-13, atol=1e-13)  # sums in another order
    assert driver.launches[1:] == ["input_grad", "kernel_grad", "kernel_grad_total"]


@pytest.mark.parametrize("stream", (0, 0xCAFE))
def test_gpu_arrays_are_worked_on_where_they_lie_on_the_current_stream(driver, monkeypatch, stream):
    cupy = fake_driver.install_cupy(monkeypatch, driver, stream)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 9, 8), np.float32), rng.standard_normal((4, 3, 3, 3), np.float32)
    dy = rng.standard_normal((2, 4, 7, 6), np.float32)
    there = [cupy.ndarray(array) for array in (dy, x, w)]
    allocated = len(driver.allocations)
    results = convbackprop.conv2d_backward(*there, variant="naive")
    assert len(driver.allocations) == allocated + 4, "three results and the scratch memory, no copies"
    for got, expected in zip(results, convbackprop.conv2d_backward(dy, x, w, device="cpu"), strict=True):
        assert type(got) is cupy.ndarray
        assert np.allclose(got.get(), expected, rtol=1e-5, atol=1e-5)  # sums in another order
    again = convbackprop.conv2d_backward(*there, variant="naive")  # without checks
    assert len(driver.allocations) == allocated + 8
    for one, other in zip(again, results, strict=True):
        assert type(one) is cupy.ndarray
        assert np.array_equal(one.get(), other.get())
    before_and_after = [
        "0x5eed waits for event of 0xcafe after 0 launches",
        "0xcafe waits for event of 0x5eed after 3 launches",
        "0x5eed waits for event of 0xcafe after 3 launches",
        "0xcafe waits for event of 0x5eed after 6 launches",
    ]
    assert cupy.log == (before_and_after if stream else [])
    assert driver.stack() == []


def test_gpu_arrays_are_not_moved(driver, monkeypatch):
    cupy = fake_driver.install_cupy(monkeypatch, driver)
    x, w = cupy.ndarray(np.ones((5, 5))), cupy.ndarray(np.ones((3, 3)))
    with pytest.raises(convbackprop.InvalidArgument, match=r"device is 'cpu', but input is a cupy.ndarray on cuda:0"):
        convbackprop.conv2d(x, w, device="cpu")
    with pytest.raises(convbackprop.InvalidType, match=r"weight is a numpy.ndarray, but input is a cupy.ndarray"):
        convbackprop.conv2d(x, np.ones((3, 3)))


def test_the_context_stack_is_left_as_it_was(driver):
    convbackprop.conv2d(np.ones((5, 5)), np.ones((3, 3)), device="cuda")
    assert driver.stack() == []
    driver.fail_next_launch = True
    with pytest.raises(convbackprop.LaunchFailed, match="illegal memory access"):
        convbackprop.conv2d(np.ones((5, 5)), np.ones((3, 3)), device="cuda")
    assert driver.stack() == []
    convbackprop.conv2d(np.ones((5, 5)), np.ones((3, 3)), device="cuda")  # the next call works


def test_a_thread_without_a_context_can_launch(driver):
    results = []

    def call() -> None:
        results.append(convbackprop.conv2d(np.ones((5, 5)), np.ones((3, 3)), device="cuda"))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert np.array_equal(results[0], np.full((3, 3), 9.0))


def test_no_such_gpu(driver):
    with pytest.raises(convbackprop.DeviceNotFound, match=r"device is 'cuda:1'; it should be below 'cuda:1'"):
        devices.get_device("cuda:1")


def test_a_driver_without_gpus(monkeypatch, tmp_path):
    fake_driver.install(monkeypatch, tmp_path, devices=0)
    try:
        assert "finds no GPU" in devices.why_not_cuda()
        assert devices.usable_devices() == ["cpu"]
    finally:
        fake_driver.uninstall()


def test_a_driver_that_does_not_start(monkeypatch, tmp_path):
    driver = fake_driver.install(monkeypatch, tmp_path)

    def init() -> None:
        raise fake_driver.Error("cuInit failed: system driver mismatch")

    monkeypatch.setattr(driver, "init", init)
    try:
        with pytest.raises(convbackprop.DeviceUnusable, match="driver mismatch"):
            devices.get_device("cuda")
    finally:
        fake_driver.uninstall()


def test_out_of_memory_on_the_gpu(driver):
    driver.free = 100
    with pytest.raises(convbackprop.ProblemTooLarge, match="no memory left"):
        convbackprop.conv2d(np.ones((50, 50)), np.ones((3, 3)), device="cuda")
    assert driver.stack() == []


def test_a_forked_child_refuses_to_use_cuda(driver):
    devices.get_device("cuda")
    child = os.fork()
    if child == 0:
        try:
            devices.get_device("cuda")
        except convbackprop.DeviceUnusable as error:
            os._exit(7 if "spawn" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_the_struct_of_the_launch_is_the_one_of_the_kernels():
    from convbackprop.plan import pack_shape, shape_fields

    problem = ConvProblem.parse("2,6,9,8,4,3,2,stride=2x1,padding=0:1x2:3,dilation=1x2,groups=2")
    values = np.frombuffer(pack_shape(problem), np.int32)
    assert dict(zip(shape_fields(), values.tolist(), strict=True)) == {
        "N": 2, "C": 6, "H": 9, "W": 8, "K": 4, "R": 3, "S": 2, "P": 4, "Q": 11, "stride_h": 2, "stride_w": 1,
        "pad_top": 0, "pad_left": 2, "dilation_h": 1, "dilation_w": 2, "groups": 2,
    }  # fmt: skip
