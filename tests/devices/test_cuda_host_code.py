"""The host code of the cuda device: the real PyCUDA and the package, on the stand-in for a driver (tests/driver).

Numbers come from the very same .cu files, with the constants of the cuda device, on the CPU. There is no GPU.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest

import convbackprop
from convbackprop import check, devices
from convbackprop.bench import timing
from convbackprop.bench.roof import measure_roof
from convbackprop.cli import doctor
from convbackprop.devices import cuda
from convbackprop.ladder.registry import VARIANTS
from convbackprop.launch.arrays import CupyArrays
from convbackprop.launch.plan import pack_shape, plan, shape_fields
from convbackprop.problem import ConvProblem
from tests import driver
from tests.driver import ORDERS, cupy as cupy_on_stand_in
from tests.support.children import PATIENCE
from tests.support.problems import EVERYTHING, chosen, is_costly

SMALL = ConvProblem.parse("2,3,9,8,4,3,3,padding=1", bias=True, activation="relu")
rng = np.random.default_rng(0)
X, W, DY = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 9, 8), (4, 3, 3, 3), (2, 4, 9, 8)))


# -- right numbers ---------------------------------------------------------------------------------------------------
def each_way_to_launch():
    """Yield the variants of a GPU; those whose launches take what another one's take are slow tests.

    So are those of a technique that another pass has met, if they take long to compile.
    """
    met = set()
    for variant in (v for v in VARIANTS if "cuda" in v.runs_on):
        problem = next(each for each in EVERYTHING if variant.refusal(each) is None)
        t = variant.constants("cuda", problem)
        taken = tuple(
            (each.operands, len(each.integers(problem, t)), each.shared_bytes(problem, t) > 0,
             len(each.maps(problem, t))) for each in variant.launches
        )  # fmt: skip
        is_met = taken in met or (variant.name in met and is_costly(variant))
        yield pytest.param(variant, id=str(variant), marks=pytest.mark.slow if is_met else ())
        met |= {taken, variant.name}


@pytest.mark.parametrize("variant", list(each_way_to_launch()))
def test_every_variant(stand_in, variant):
    """On a few problems of one set of constants; test_variants.py has all of them."""
    launches = 0
    for problem in check.compiled_alike(variant, chosen(variant, "cuda"), "cuda")[0][:5]:
        outcome = check.check(variant, problem, driver.device())
        assert outcome.ok, (str(problem), outcome.faults)
        launches += len(plan(variant, problem, driver.device()).steps)
    assert stand_in.calls()["cuLaunchKernel"] == launches > 0
    assert stand_in.counts().allocations == 0


def test_wrong_numbers_are_seen(stand_in, monkeypatch):
    """A launch that is left out is found: what it should have written is NaN on the stand-in."""
    monkeypatch.setattr(cuda.CudaKernel, "launch", lambda *arguments: None)
    assert not check.check(VARIANTS[0], SMALL, driver.device()).ok


def test_arrays_of_the_host(stand_in):
    """They are copied there and back; the second call of a kind is not checked again."""
    x, w, dy = (array.astype(np.float64) for array in (X, W, DY))
    stand_in.record()
    for _ in range(2):
        y = convbackprop.conv2d(x, w, padding=1, activation="tanh", device="cuda")
        assert np.array_equal(y, convbackprop.conv2d(x, w, padding=1, activation="tanh", device="cpu"))
        options = {"padding": 1, "output": y, "activation": "tanh", "variant": "naive"}
        there = convbackprop.conv2d_backward(dy, x, w, **options, device="cuda:0")
        here = convbackprop.conv2d_backward(dy, x, w, **options, device="cpu")
        for a, b in zip(there, here, strict=True):
            assert np.allclose(a, b, rtol=1e-13, atol=1e-13)  # sums in another order
    kernels = ("forward", "input_grad", "kernel_grad", "kernel_grad_total")
    assert stand_in.recorded("cuLaunchKernel") == [f"cuLaunchKernel {name}" for name in kernels] * 2
    assert stand_in.counts().allocations == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("own_stream", (False, True), ids=("legacy stream", "own stream"))
def test_arrays_of_the_device_on_the_callers_stream(stand_in, monkeypatch, order, own_stream):
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in, own_stream)
    stand_in.order(order)
    expected = convbackprop.conv2d_backward(DY, X, W, padding=1, device="cpu")
    for _ in range(2):  # the second call is not checked again
        dy, x, w = map(cupy.asarray, (DY, X, W))
        for a, b in zip(convbackprop.conv2d_backward(dy, x, w, padding=1), expected, strict=True):
            assert type(a) is cupy.ndarray
            assert np.allclose(a.get(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("own_stream", (False, True), ids=("legacy stream", "own stream"))
def test_what_a_call_on_arrays_of_the_device_asks_of_the_driver(stand_in, monkeypatch, own_stream):
    """Memory for three results and the scratch, no copies; a wait before and after on a stream of the caller's."""
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in, own_stream)
    dy, x, w = map(cupy.asarray, (DY, X, W))
    kernels = [f"cuLaunchKernel {name}" for name in ("input_grad", "kernel_grad", "kernel_grad_total")]
    wait = ["cuEventRecord", "cuStreamWaitEvent"] * own_stream
    for _ in range(2):  # the second call is not checked again
        stand_in.record()
        results = convbackprop.conv2d_backward(dy, x, w, padding=1, variant="naive")
        assert stand_in.recorded("cuLaunch|cuMemcpy|cuEventRecord|cuStreamWait") == [*wait, *kernels, *wait]
        allocated = [int(line.split()[1]) for line in stand_in.recorded("cuMemAlloc")]
        assert allocated[:3] == [array.nbytes for array in results] and len(allocated) == 4
        assert not stand_in.has_context()


def test_arrays_of_the_device_are_not_moved(stand_in, monkeypatch):
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in)
    x = cupy.asarray(X)
    with pytest.raises(convbackprop.InvalidArgument, match=r"device is 'cpu', but input is a cupy.ndarray on cuda:0"):
        convbackprop.conv2d(x, cupy.asarray(W), device="cpu")
    with pytest.raises(convbackprop.InvalidType, match=r"weight is a numpy.ndarray, but input is a cupy.ndarray"):
        convbackprop.conv2d(x, W)


@pytest.mark.parametrize("order", ORDERS)
def test_gpu_arrays_of_pycuda(stand_in, order):
    driver.device()
    from pycuda import gpuarray

    stand_in.order(order)
    with driver.device().active():
        x, w = gpuarray.to_gpu(X), gpuarray.to_gpu(W)
        y = convbackprop.conv2d(x, w, padding=1, activation="tanh")
        got = y.get()
        del x, w, y
    assert np.allclose(got, convbackprop.conv2d(X, W, padding=1, activation="tanh", device="cpu"), atol=1e-5)
    assert stand_in.counts().allocations == 0


def test_a_second_device(stand_in):
    y = convbackprop.conv2d(X, W, device="cuda:1")
    assert np.allclose(y, convbackprop.conv2d(X, W, device="cpu"), atol=1e-5)
    with pytest.raises(convbackprop.DeviceNotFound, match=r"device is 'cuda:2'; it should be below 'cuda:2'"):
        devices.get_device("cuda:2")


# -- contexts and memory ---------------------------------------------------------------------------------------------
TO_THE_END = """\
import atexit
counts = []  # what is registered first is called last
atexit.register(lambda: print(counts[0]().contexts, stand_in.calls().get("cuDevicePrimaryCtxRelease"), stand_in.why()))
import numpy as np, convbackprop
from tests import driver
stand_in = driver.start()
counts.append(stand_in.counts)
with driver.compiling(): convbackprop.conv2d(np.ones((5, 5)), np.ones((3, 3)), device="cuda")
print(stand_in.counts().contexts)
"""


def test_the_context_is_given_back_at_the_end(stand_in):
    """PyCUDA by itself would give back the primary context as if it had made it, which a driver refuses."""
    convbackprop.conv2d(np.ones((5, 5)), np.ones((3, 3)), device="cuda")
    assert stand_in.counts().contexts == 1
    cuda.forget()
    assert stand_in.counts().contexts == 0
    done = subprocess.run([sys.executable, "-c", TO_THE_END], capture_output=True, text=True, timeout=PATIENCE,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["1", "0", "1"]


def test_the_context_stack_is_left_as_it_was(stand_in):
    def call():
        try:
            return convbackprop.conv2d(X, W, device="cuda")
        finally:
            assert not stand_in.has_context()

    expected = call()
    stand_in.fail("cuLaunchKernel", 1, driver.INVALID_VALUE)
    with pytest.raises(convbackprop.LaunchFailed, match="cuLaunchKernel failed: invalid argument"):
        call()
    assert np.array_equal(call(), expected)
    other = driver.device("cuda:1")
    with other.active():  # a context of the caller's stays
        assert np.array_equal(convbackprop.conv2d(X, W, device="cuda"), expected)
        assert other.driver.Context.get_device() == other.driver.Device(1)
        assert stand_in.has_context()


def no_context(device):
    return nullcontext()


@contextmanager
def by_another_library(device):
    """The primary context, current as torch makes it so: PyCUDA does not know of that."""
    cuda._library().cuCtxPushCurrent_v2(ctypes.c_void_p(device.context.handle))
    yield
    cuda._library().cuCtxPopCurrent_v2(None)


@pytest.mark.parametrize(
    ("where", "switches"),
    [
        (no_context, True),
        (by_another_library, False),
        (lambda device: device.active(), False),
        (lambda device: driver.device("cuda:1").active(), True),
    ],
    ids=("none", "the primary one", "the primary one, by PyCUDA", "of another device"),
)
def test_a_launch_where_a_context_is_current(stand_in, monkeypatch, where, switches):
    """Contexts are switched only where the driver says that another one is current, and left as they were."""
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in, own_stream=False)
    x, w, out = cupy.asarray(X), cupy.asarray(W), cupy.empty(DY.shape, np.float32)
    device, library = driver.device(), cuda._library()
    convbackprop.conv2d(x, w, padding=1, out=out)
    expected = out.get()
    with where(device):
        before = cuda._current(library)
        out.set(zeros := np.zeros(DY.shape, np.float32))
        stand_in.heal()
        convbackprop.conv2d(x, w, padding=1, out=out)
        assert ("cuCtxPushCurrent" in stand_in.calls()) == switches
        assert cuda._current(library) == before
        assert np.array_equal(out.get(), expected) and zeros is not None
        stand_in.fail("cuLaunchKernel", 1, driver.INVALID_VALUE)
        with pytest.raises(convbackprop.LaunchFailed, match="cuLaunchKernel failed: invalid argument; nothing is lost"):
            convbackprop.conv2d(x, w, padding=1, out=out)
        assert cuda._current(library) == before
        convbackprop.conv2d(x, w, padding=1, out=out)


def test_threads_with_contexts_of_their_own(stand_in, monkeypatch):
    """Each thread asks for itself what is current: the primary context in one, nothing in the other."""
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in, own_stream=False)
    x, w = cupy.asarray(X), cupy.asarray(W)
    expected = convbackprop.conv2d(x, w, padding=1).get()
    failed = []

    def work(where):
        try:
            with where(driver.device()):
                for _ in range(50):
                    assert np.array_equal(convbackprop.conv2d(x, w, padding=1).get(), expected)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(where,)) for where in (no_context, by_another_library) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_no_memory_on_the_device(stand_in):
    stand_in.reset(memory=X.nbytes - 1)
    with pytest.raises(convbackprop.ProblemTooLarge, match=f"cuda:0 has no memory left for an array of {X.nbytes:,} b"):
        convbackprop.conv2d(X, W, device="cuda")
    assert not stand_in.has_context()


def test_memory_of_another_thread_is_given_back(stand_in, recwarn):
    """A thread that has no context; PyCUDA frees memory in the one that opened the device only, and else warns."""
    here = convbackprop.conv2d(X, W, device="cuda")
    results = []
    thread = threading.Thread(target=lambda: results.append(convbackprop.conv2d(X, W, device="cuda")))
    thread.start()
    thread.join()
    assert len(results) == 1 and np.array_equal(results[0], here)
    assert stand_in.counts().allocations == 0
    assert not recwarn.list


# -- which device ------------------------------------------------------------------------------------------------------
def test_cuda_is_chosen_when_it_is_usable(stand_in, monkeypatch):
    """Of a GPU; here the stand-in passes for one."""
    driver.pass_for_gpu(monkeypatch, stand_in, 1)
    monkeypatch.delenv("CONVBACKPROP_DEVICE", raising=False)
    assert devices.why_not_cuda() is None
    assert devices.get_device().name == "cuda:0"
    assert devices.usable_devices() == ["cuda", "cpu"]
    monkeypatch.setenv("CONVBACKPROP_DEVICE", "cpu")
    assert devices.get_device().name == "cpu"


def test_a_driver_without_gpus(stand_in, monkeypatch):
    stand_in.reset(devices=0)
    for _ in range(2):  # a driver says so when it starts, or by its number of GPUs
        with pytest.raises(convbackprop.DeviceNotFound, match="finds no GPU; check 'nvidia-smi' and CUDA_VISIBLE_DEV"):
            devices.get_device("cuda")
        assert "finds no GPU" in devices.why_not_cuda()
        assert devices.usable_devices() == ["cpu"]
        stand_in.reset()
        monkeypatch.setattr(cuda._driver().Device, "count", lambda: 0)


def test_a_driver_that_does_not_start(stand_in):
    stand_in.fail("cuInit", 1, 803)
    with pytest.raises(convbackprop.DeviceUnusable, match=r"does not start \(cuInit failed: .* driver combination\)"):
        devices.get_device("cuda")


# -- never mistaken for a GPU ------------------------------------------------------------------------------------------
def test_nobody_gets_it_unasked(stand_in, monkeypatch):
    monkeypatch.delenv("CONVBACKPROP_DEVICE", raising=False)
    assert "there is no GPU" in devices.why_not_cuda()
    assert devices.usable_devices() == ["cpu"]
    assert devices.get_device().name == "cpu"
    assert driver.device().title == cuda.STAND_IN
    assert "the tests' stand-in for a GPU, on the CPU" in devices.choice_of_device("cuda")[1]


def cli(capsys, *arguments):
    from convbackprop.cli import main

    code = main(list(arguments))
    return code, *capsys.readouterr()


def test_doctor_does_not_take_it_for_a_gpu(stand_in, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda module: "not asked")  # importing them takes seconds
    code, out, _ = cli(capsys, "doctor", "--json")
    found = {finding["item"]: finding for finding in json.loads(out)["findings"]}
    assert code == 0 and found["cpu device"]["usable"]
    for item in ("NVIDIA driver", "cuda device"):
        assert not found[item]["usable"]
        assert "stand-in" in found[item]["found"] and "no GPU" in found[item]["found"]


def test_nothing_is_timed_on_it(stand_in, capsys):
    code, _, err = cli(capsys, "bench", "forward/naive", "--device", "cuda")
    assert code != 0
    assert "device cuda:0 is the tests' stand-in for a GPU: its kernels run on the CPU, and are not timed" in err
    with pytest.raises(convbackprop.DeviceUnusable, match="not timed"):
        measure_roof(driver.device(), "float32")
    given = check.inputs("forward", SMALL)
    with timing.stage(driver.device(), "forward", SMALL, given) as place, pytest.raises(convbackprop.DeviceUnusable):
        place.clock(lambda: None)
    drv = driver.device().driver
    with driver.device().active():
        start, stop = drv.Event(), drv.Event()
        start.record(), stop.record(), stop.synchronize()
        with pytest.raises(drv.LogicError, match="operation not supported"):
            stop.time_since(start)


def test_the_gpu_report_refuses_it(stand_in, capsys):
    from benchmarks.gpu_report import main

    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main([]))
    assert ended.value.code == 1
    assert "gpu-report needs a GPU: libcuda.so.1 is the tests' stand-in" in capsys.readouterr().out


# -- times -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("least", (0, 1 << 20))
def test_what_a_timed_call_asks_of_the_driver(stand_in, monkeypatch, least):
    """Between two events there is the call alone; before them 4 times the cache is overwritten, and at least so much.

    The stand-in passes for a GPU, and says of any two events that they are 3 ms apart: nothing is measured.
    """
    driver.pass_for_gpu(monkeypatch, stand_in, 3)
    monkeypatch.setattr(timing, "_LEAST_FLUSHED", least)
    device = driver.device()
    with timing.stage(device, "forward", SMALL, check.inputs("forward", SMALL)) as place:
        stand_in.record()
        assert place.clock(place.ours(VARIANTS[0])) == pytest.approx(3e-3)
        flushed = max(4 * stand_in.L2_BYTES, least)
        assert f"cuMemAlloc {flushed}" in stand_in.recorded("cuMemAlloc")
        assert stand_in.recorded("cuMem.*Async|cuLaunch|cuEvent(?!Create|Destroy)|cuCtxSynchronize") == [
            f"cuMemsetD8Async {flushed}", "cuEventRecord", "cuLaunchKernel forward", "cuEventRecord",
            "cuEventSynchronize", "cuEventElapsedTime",
        ]  # fmt: skip
        assert stand_in.counts().events == 0
        copy, half = place.copy(), sum(array.nbytes for array in place.arrays.values()) // 2
        stand_in.record()
        copy()
        assert stand_in.recorded("cuMemcpy") == [f"cuMemcpyDtoDAsync {half}"]
        place.wait()
        assert stand_in.counts().pending == 0
        assert stand_in.counts().bytes > flushed
    assert stand_in.counts().allocations == 0


def test_memory_of_timings_that_fail_is_given_back(stand_in, monkeypatch):
    """At once, though the exception keeps alive what it came through; also where the stage is half made."""
    driver.pass_for_gpu(monkeypatch, stand_in, 3)
    device = driver.device()
    for call, use in (("cuMemcpyHtoD", 2), ("cuLaunchKernel", 1)):
        stand_in.fail(call, use, driver.INVALID_VALUE)
        with (
            pytest.raises(convbackprop.LaunchFailed, match=call) as raised,
            timing.stage(device, "forward", SMALL, check.inputs("forward", SMALL)) as place,
        ):
            place.clock(place.ours(VARIANTS[0]))
        assert raised.tb and stand_in.counts().allocations == stand_in.counts().events == 0
        assert not stand_in.has_context()


# -- what is needed of the package ------------------------------------------------------------------------------------
@pytest.mark.parametrize("lost", ("before", "after"))
def test_the_package_without_one_of_its_waits(stand_in, monkeypatch, lost):
    """The bridge between the caller's stream and ours, with either of its waits left out, gives wrong numbers."""

    @contextmanager
    def on_other_stream(self, device):
        cupy = sys.modules["cupy"].cuda
        theirs = cupy.get_current_stream()
        stream = device.stream_beside(theirs.ptr)
        ours = cupy.ExternalStream(stream.handle)
        if lost != "before":
            ours.wait_event(theirs.record())
        yield stream
        if lost != "after":
            theirs.wait_event(ours.record())

    monkeypatch.setattr(CupyArrays, "on_other_stream", on_other_stream)
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in)
    x, w = cupy.asarray(X), cupy.asarray(W)
    y = convbackprop.conv2d(x, w, padding=1, variant="naive").get()
    assert not np.allclose(y, convbackprop.conv2d(X, W, padding=1, device="cpu"), atol=1e-5)


def test_the_package_without_its_context(stand_in, monkeypatch):
    device = driver.device()
    monkeypatch.setattr(cuda.CudaDevice, "active", lambda self: nullcontext())
    with pytest.raises(device.driver.LogicError, match=r"no currently active context|invalid device context"):
        convbackprop.conv2d(X, W, device="cuda")


def test_the_package_without_the_attribute_of_shared_memory(stand_in, monkeypatch):
    naive = VARIANTS[0]
    greedy = replace(naive, launches=(replace(naive.launches[0], shared_bytes=lambda p, c: 100 * 1024),))
    assert check.check(greedy, SMALL, driver.device()).ok
    stand_in.reset()
    monkeypatch.setattr(cuda, "_SHARED_BYTES_UNASKED", 1 << 30)
    with pytest.raises(convbackprop.LaunchFailed, match="invalid argument"):
        check.check(greedy, SMALL, driver.device())
    assert "attribute" in stand_in.why()


def test_the_package_without_a_field_of_the_struct(stand_in, monkeypatch):
    from convbackprop.launch import plan

    monkeypatch.setattr(plan, "pack_shape", lambda problem, pack=plan.pack_shape: pack(problem)[:-4])
    with pytest.raises(convbackprop.LaunchFailed, match="invalid argument"):
        check.check(VARIANTS[0], SMALL, driver.device())
    assert "bytes for parameters of" in stand_in.why()


def test_the_struct_of_the_launch_is_the_one_of_the_kernels():
    problem = ConvProblem.parse("2,6,9,8,4,3,2,stride=2x1,padding=0:1x2:3,dilation=1x2,groups=2")
    values = np.frombuffer(pack_shape(problem), np.int32)
    assert dict(zip(shape_fields(), values.tolist(), strict=True)) == {
        "N": 2, "C": 6, "H": 9, "W": 8, "K": 4, "R": 3, "S": 2, "P": 4, "Q": 11, "stride_h": 2, "stride_w": 1,
        "pad_top": 0, "pad_left": 2, "dilation_h": 1, "dilation_w": 2, "groups": 2,
    }  # fmt: skip


# -- capture -----------------------------------------------------------------------------------------------------------
def test_a_captured_call_is_replayed(stand_in, monkeypatch):
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in)
    x, w = cupy.asarray(X), cupy.asarray(W)
    out = cupy.empty((2, 4, 9, 8), np.float32)
    expected = convbackprop.conv2d(X, W, padding=1, variant="naive", device="cpu")
    convbackprop.conv2d(x, w, padding=1, variant="naive", out=out)  # loads the kernel
    out.set(zeros := np.zeros((2, 4, 9, 8), np.float32))
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    cupy.drive("cuStreamBeginCapture_v2", cupy.stream, 0)
    convbackprop.conv2d(x, w, padding=1, variant="naive", out=out)
    cupy.drive("cuStreamEndCapture", cupy.stream, ctypes.byref(graph))
    assert (out.get() == zeros).all(), "a capture runs nothing"
    cupy.drive("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    x.set(twice := 2 * X)
    cupy.drive("cuGraphLaunch", executable, cupy.stream)
    assert np.allclose(out.get(), 2 * expected, atol=1e-4)
    assert twice is not None


def test_a_capture_does_not_meet_the_legacy_stream(stand_in, monkeypatch):
    cupy = cupy_on_stand_in.install(monkeypatch, stand_in)
    convbackprop.conv2d(X, W, device="cuda")
    cupy.drive("cuStreamBeginCapture_v2", cupy.stream, 0)
    with pytest.raises(convbackprop.LaunchFailed, match="depend on a capturing blocking stream"):
        convbackprop.conv2d(X, W, device="cuda")
    # What the call did has spoilt the capture, as with a real driver.
    with pytest.raises(RuntimeError, match="previous error during capture"):
        cupy.drive("cuStreamEndCapture", cupy.stream, ctypes.byref(ctypes.c_void_p()))
    convbackprop.conv2d(X, W, device="cuda")
