"""The stand-in for a driver (tests/driver): PyCUDA and the package's CUDA path on it, and that it sees a wrong host.

Numbers come from the very same .cu files, with the constants of the cuda device, on the CPU. There is no GPU.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import convbackprop
from convbackprop import check, compiler, devices
from convbackprop.arrays import CupyArrays
from convbackprop.cli import doctor
from convbackprop.compiler import Source
from convbackprop.devices import cuda
from convbackprop.plan import constants_of
from convbackprop.problem import ConvProblem
from convbackprop.variants import VARIANTS
from tests import driver
from tests.driver import cupy as cupy_on_stand_in

#: Orders in which queued work runs: as late as it may, and by coins.
ORDERS = (0, 1, 2, 3)

SMALL = ConvProblem.parse("2,3,9,8,4,3,3,padding=1", bias=True, activation="relu")
DEPTHWISE = ConvProblem.parse("2,3,9,8,3,3,3,padding=1,groups=3", bias=True, activation="relu")
rng = np.random.default_rng(0)
X, W, DY = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 9, 8), (4, 3, 3, 3), (2, 4, 9, 8)))


# -- right numbers ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant(stand_in, variant):
    problem = DEPTHWISE if variant.refusal(SMALL) else SMALL
    outcome = check.check(variant, problem, driver.device())
    assert outcome.ok, outcome.faults
    assert stand_in.calls()["cuLaunchKernel"] == len([each for each in variant.launches if each.when(problem)])
    assert stand_in.counts().allocations == 0


def test_wrong_numbers_are_seen(stand_in, monkeypatch):
    """A launch that is left out is found: what it should have written is NaN on the stand-in."""
    monkeypatch.setattr(cuda.CudaKernel, "launch", lambda *arguments: None)
    assert not check.check(VARIANTS[0], SMALL, driver.device()).ok


def test_arrays_of_the_host(stand_in):
    here = convbackprop.conv2d_backward(DY, X, W, padding=1, device="cpu")
    for _ in range(2):
        there = convbackprop.conv2d_backward(DY, X, W, padding=1, device="cuda")
        for a, b in zip(there, here, strict=True):
            assert np.allclose(a, b, rtol=1e-4, atol=1e-4)
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
    done = subprocess.run([sys.executable, "-c", TO_THE_END], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["1", "0", "1"]


def test_memory_of_another_thread_is_given_back(stand_in, recwarn):
    """PyCUDA frees memory in the thread that opened the device only, and else warns and leaks it."""
    convbackprop.conv2d(X, W, device="cuda")
    results = []
    thread = threading.Thread(target=lambda: results.append(convbackprop.conv2d(X, W, device="cuda")))
    thread.start()
    thread.join()
    assert len(results) == 1
    assert stand_in.counts().allocations == 0
    assert not recwarn.list


def real_nvcc():
    """Return this machine's nvcc, or None."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CONVBACKPROP_NVCC", raising=False)
        try:
            return compiler.find_nvcc()
        except convbackprop.CompilerNotFound:
            return None


def test_the_struct_of_a_launch_lies_where_nvcc_looks_for_it(stand_in):
    """Offsets of parameters, launch bounds, registers and static shared memory, from a real nvcc's cubin."""
    real = real_nvcc()
    if real is None:
        pytest.skip("there is no nvcc that would say where it looks for a kernel's parameters")
    with driver.compiling(real):
        assert check.check(VARIANTS[0], SMALL, driver.device()).ok
        text = compiler.cubin(Source.of(VARIANTS[0].path, constants_of(VARIANTS[0], SMALL, "cuda")), "sm_90a")[0]
    kernels = [line.split() for line in text.read_text().splitlines() if line.startswith("kernel ")]
    (facts,) = [words for words in kernels if words[1] == VARIANTS[0].launches[0].entry]
    assert 0 < int(facts[5]) < 256 and int(facts[3]) <= 1024
    assert facts[8:12] == ["offsets", "0", "8", "16"]


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
    from convbackprop.bench.roof import measure_roof
    from convbackprop.timing import stage

    with pytest.raises(convbackprop.DeviceUnusable, match="not timed"):
        measure_roof(driver.device(), "float32")
    given = check.inputs("forward", SMALL)
    with stage(driver.device(), "forward", SMALL, given) as place, pytest.raises(convbackprop.DeviceUnusable):
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


# -- the driver's interface is cuda.h's ------------------------------------------------------------------------------
@pytest.mark.hardening
def test_signatures_and_numbers_are_those_of_cuda_h():
    headers = [nvcc_root / "include" for nvcc_root in toolkits() if (nvcc_root / "include" / "cuda.h").is_file()]
    if not headers:
        pytest.skip("there is no CUDA toolkit, whose cuda.h would be compared with tests/driver/cuda_api.h")
    command = [str(compiler.find_cxx()), "-std=c++17", "-fsyntax-only", "-DREAL_CUDA_H", "-I", str(headers[0]), "-w"]
    sources = [str(source) for source in driver.SOURCES if source.name != "unsupported.cpp"]
    done = subprocess.run([*command, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wrong = '#include "cuda_api.h"\nCONSTANT(CUDA_ERROR_OUT_OF_MEMORY, 3)\nextern "C" CUresult cuInit(int);\n'
    done = subprocess.run([*command, f"-I{driver.FOLDER}", "-xc++", "-"], input=wrong, capture_output=True, text=True)
    assert "is another number" in done.stderr and "conflicting declaration" in done.stderr


def toolkits():
    nvcc = real_nvcc()
    if nvcc is None:
        return []
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    return [Path(line.split("=", 1)[1]).parent for line in dry.splitlines() if line.startswith("#$ _HERE_=")]


# -- what a real driver enforces, it enforces --------------------------------------------------------------------------
class Host:
    """A host program of PyCUDA's own kind, with the kernels of driver/host.cu."""

    def __init__(self, stand_in):
        self.stand_in = stand_in
        self.device = driver.device()
        self.drv = self.device.driver
        self.cubin = compiler.cubin(Source.of(driver.FOLDER / "host.cu", {}), "sm_90a")[0].read_bytes()
        self.module = self.drv.module_from_buffer(self.cubin)

    def function(self, name, formats):
        return self.module.get_function(name).prepare(formats)

    def floats(self, count, value=1.0):
        made = self.drv.mem_alloc(4 * count)
        self.drv.memcpy_htod(made, np.full(count, value, np.float32))
        return made

    def read(self, address, count=1):
        back = np.empty(count, np.float32)
        self.drv.memcpy_dtoh(back, address)
        return back

    def synchronize(self):
        self.device.context.synchronize()


@pytest.fixture
def host(stand_in):
    with driver.device().active():
        yield Host(stand_in)


@contextmanager
def refused(host, text, why):
    """Expect that the driver refuses, now, in these words; `why` is what the stand-in knows beyond them."""
    with pytest.raises(host.drv.Error, match=text):
        yield
    assert why in host.stand_in.why()


def test_a_right_host_program(host):
    twice = host.function("twice", "PPi")
    x, y = host.floats(100, 3.0), host.floats(100)
    twice.prepared_async_call((1, 1), (128, 1, 1), None, x, y, 100)
    assert (host.read(y, 100) == 6).all()
    backwards = host.function("reversed", "PP")
    values = np.arange(64, dtype=np.float32)
    host.drv.memcpy_htod(x, values)
    backwards.prepared_async_call((1, 1), (64, 1, 1), None, x, y, shared_size=256)
    assert (host.read(y, 64) == values[::-1]).all()
    put = host.function("set", "Phi")
    put.prepared_async_call((1, 1), (1, 1, 1), None, y, 2, 111)
    assert host.read(y, 3)[2] == 111


def test_no_current_context(host):
    twice, x = host.function("twice", "PPi"), host.floats(1)
    host.device.context.pop()
    try:
        with refused(host, "invalid device context", "no current context"):
            twice.prepared_async_call((1, 1), (1, 1, 1), None, x, x, 1)
        with pytest.raises(host.drv.LogicError, match="invalid device context"):
            host.drv.mem_alloc(4)
    finally:
        host.device.context.push()


def test_a_freed_pointer(host):
    twice, x, y = host.function("twice", "PPi"), host.floats(1), host.floats(1)
    address = int(x)
    x.free()
    with refused(host, "invalid argument", "was freed"):
        host.drv.memcpy_htod(address, np.zeros(1, np.float32))
    twice.prepared_async_call((1, 1), (1, 1, 1), None, address, y, 1)  # a driver does not look, the GPU does
    with refused(host, "illegal memory access", "argument 0 is no device memory"):
        host.synchronize()
    with pytest.raises(host.drv.Error, match="illegal memory access"):  # and for ever after
        host.floats(1)


def test_a_double_free_and_memory_of_the_host(host):
    cuda_library = host.stand_in.cuda
    address = ctypes.c_uint64()
    assert cuda_library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(16)) == 0
    assert cuda_library.cuMemFree_v2(address) == 0
    assert cuda_library.cuMemFree_v2(address) == driver.INVALID_VALUE
    of_host = np.zeros(4, np.float32)
    twice, y = host.function("twice", "PPi"), host.floats(4)
    twice.prepared_async_call((1, 1), (4, 1, 1), None, of_host.ctypes.data, y, 4)
    with refused(host, "illegal memory access", "the host's"):
        host.synchronize()


def test_a_pointer_of_another_device(host):
    x, twice = host.floats(1), host.function("twice", "PPi")
    other = driver.device("cuda:1")
    with other.active():
        there = other.driver.mem_alloc(4)
    twice.prepared_async_call((1, 1), (1, 1, 1), None, x, there, 1)
    with refused(host, "illegal memory access", "argument 1 is memory of another device"):
        host.synchronize()
    with other.active():
        there.free()  # that one is not lost


def test_writing_beyond_an_array(host):
    beyond, y = host.function("beyond", "Pi"), host.floats(5)
    beyond.prepared_async_call((1, 1), (1, 1, 1), None, y, 4)
    host.synchronize()
    beyond.prepared_async_call((1, 1), (1, 1, 1), None, y, 5)
    with refused(host, "illegal memory access", "it wrote 20 bytes from an array of 20 bytes"):
        host.synchronize()


def test_ranges_of_copies(host):
    x = host.floats(4)
    with refused(host, "invalid argument", "beyond the allocation"):
        host.read(x, 5)
    with refused(host, "invalid argument", "beyond the allocation"):
        host.drv.memset_d8(int(x) + 1, 0, 16)
    with refused(host, "invalid argument", "not aligned"):
        host.drv.memset_d32(int(x) + 1, 0, 1)


def test_device_memory_is_not_the_hosts(host):
    """A host that reads it as its own would, on the CPU, find numbers there; here as on a GPU it crashes."""
    x = host.floats(1)
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.string_at(int(x), 4)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_shared_memory_without_the_attribute(host):
    backwards, x, y = host.function("reversed", "PP"), host.floats(64), host.floats(64)
    with refused(host, "invalid argument", "more shared memory than the function's attribute allows"):
        backwards.prepared_async_call((1, 1), (64, 1, 1), None, x, y, shared_size=48 * 1024 + 1)
    attribute = host.drv.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
    with refused(host, "invalid argument", "than a block can have"):
        backwards.set_attribute(attribute, 227 * 1024 + 1)
    backwards.set_attribute(attribute, 100 * 1024)
    backwards.prepared_async_call((1, 1), (64, 1, 1), None, x, y, shared_size=100 * 1024)
    with refused(host, "invalid argument", "more shared memory"):
        backwards.prepared_async_call((1, 1), (64, 1, 1), None, x, y, shared_size=100 * 1024 + 1)
    host.synchronize()


@pytest.mark.parametrize(
    ("grid", "block", "why"),
    [
        ((0, 1, 1), (1, 1, 1), "without extent"),
        ((1, 65536, 1), (1, 1, 1), "the grid is too large"),
        ((1, 1, 65536), (1, 1, 1), "the grid is too large"),
        ((2**31, 1, 1), (1, 1, 1), "the grid is too large"),
        ((1, 1, 1), (1025, 1, 1), "block"),
        ((1, 1, 1), (32, 33, 1), "block"),
        ((1, 1, 1), (1, 1, 65), "block"),
    ],
)
def test_limits_of_grid_and_block(host, grid, block, why):
    twice, x = host.function("twice", "PPi"), host.floats(1)
    with refused(host, "invalid argument", why):
        twice.prepared_async_call(grid, block, None, x, x, 1)


@pytest.mark.parametrize(
    ("formats", "arguments"),
    [
        ("PP", ("x", "x")),
        ("PPq", ("x", "x", 1)),
        ("PPii", ("x", "x", 1, 1)),
        ("iPP", (1, "x", "x")),  # as many bytes, misplaced
    ],
    ids=["too few", "too wide", "too many", "misplaced"],
)
def test_arguments_of_the_wrong_size(host, formats, arguments):
    twice, x = host.function("twice", formats), host.floats(1)
    values = [int(x) if each == "x" else each for each in arguments]
    with refused(host, "invalid argument", "bytes for parameters of 20"):
        twice.prepared_async_call((1, 1), (1, 1, 1), None, *values)


def test_misaligned_arguments(host):
    """An int after a short lies at a multiple of 4; packed without a gap the buffer is too short."""
    packed = host.function("set", "P6s")
    with refused(host, "invalid argument", "arguments of 14 bytes for parameters of 16"):
        packed.prepared_async_call((1, 1), (1, 1, 1), None, host.floats(1), bytes(6))


def test_a_module_that_is_unloaded_in_use(host):
    module = host.drv.module_from_buffer(host.cubin)
    twice, x = module.get_function("twice").prepare("PPi"), host.floats(1)
    twice.prepared_async_call((1, 1), (1, 1, 1), None, x, x, 1)
    handle = ctypes.c_void_p()
    cuda_library = host.stand_in.cuda
    assert cuda_library.cuModuleLoadData(ctypes.byref(handle), host.cubin) == 0
    function = ctypes.c_void_p()
    assert cuda_library.cuModuleGetFunction(ctypes.byref(function), handle, b"beyond") == 0
    values = (ctypes.c_uint64(int(x)), ctypes.c_int(0))
    pointers = (ctypes.c_void_p * 2)(*map(ctypes.addressof, values))
    launch = (function, 1, 1, 1, 1, 1, 1, 0, None, pointers, None)
    assert cuda_library.cuLaunchKernel(*launch) == 0
    assert cuda_library.cuModuleUnload(handle) == 0
    assert cuda_library.cuLaunchKernel(*launch) == 400, "a handle of what is gone"
    with refused(host, "illegal instruction", "unloaded before it ran"):
        host.synchronize()


def test_images_that_are_none(host):
    for image, text in (
        (b"garbage", "kernel image is invalid"),
        (host.cubin[: len(host.cubin) // 2], "kernel image is invalid"),
        (b"\x7fELF of a real GPU", "no kernel image is available"),
    ):
        with pytest.raises(host.drv.Error, match=text):
            host.drv.module_from_buffer(image)
    with pytest.raises(host.drv.LogicError, match="named symbol not found"):
        host.module.get_function("thrice")


def test_a_forked_child(host):
    child = os.fork()
    if child == 0:
        os._exit(int(host.stand_in.cuda.cuCtxSynchronize()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3  # not initialised


def test_what_it_lacks_it_says(host):
    with pytest.raises(host.drv.LogicError, match="operation not supported"):
        host.drv.pagelocked_empty(4, np.float32)
    assert "the stand-in has no cuMemHostAlloc" in host.stand_in.why()


# -- the order of work -----------------------------------------------------------------------------------------------
def run_producer_and_consumer(host, wait):
    """Double on one stream what another one brings; return what comes out."""
    twice, x, y = host.function("twice", "PPi"), host.floats(8, 1.0), host.floats(8, 1.0)
    first, second = host.drv.Stream(), host.drv.Stream()
    twice.prepared_async_call((1, 1), (8, 1, 1), first, x, y, 8)
    if wait:
        second.wait_for_event(host.drv.Event().record(first))
    twice.prepared_async_call((1, 1), (8, 1, 1), second, y, y, 8)
    second.synchronize()
    return float(host.read(y, 8)[0]) if wait else read_after(host, second, y)


def read_after(host, stream, address):
    back = np.empty(8, np.float32)
    host.drv.memcpy_dtoh_async(back, address, stream)
    stream.synchronize()
    return float(back[0])


@pytest.mark.parametrize("order", ORDERS)
def test_a_wait_orders_two_streams(host, order):
    host.stand_in.order(order)
    assert run_producer_and_consumer(host, wait=True) == 4


def test_a_missing_wait_is_seen(host):
    assert run_producer_and_consumer(host, wait=False) == 2, "the consumer came first"


def test_work_that_comes_too_early_is_seen(host):
    """One stream overwrites what another has still to read: late work alone would hide it."""
    seen = set()
    for order in range(1, 9):
        host.stand_in.order(order)
        twice, x, y = host.function("twice", "PPi"), host.floats(8, 1.0), host.floats(8, 0.0)
        reader, writer = host.drv.Stream(), host.drv.Stream()
        twice.prepared_async_call((1, 1), (8, 1, 1), reader, x, y, 8)
        host.drv.memset_d32_async(x, 0, 8, writer)
        host.synchronize()
        seen.add(float(host.read(y)[0]))
    assert seen == {0.0, 2.0}


def test_the_legacy_stream_waits_for_blocking_ones_alone(host):
    blocking, lone = ctypes.c_void_p(), ctypes.c_void_p()
    library = host.stand_in.cuda
    assert library.cuStreamCreate(ctypes.byref(blocking), 0) == 0
    assert library.cuStreamCreate(ctypes.byref(lone), 1) == 0
    for stream, expected in ((blocking, 7), (lone, 1)):
        x = host.floats(1, 1.0)
        bits = int(np.float32(7).view(np.uint32))
        assert library.cuMemsetD32Async(ctypes.c_uint64(int(x)), bits, ctypes.c_size_t(1), stream) == 0
        assert host.read(x)[0] == expected
    assert host.stand_in.counts().pending == 1
    host.synchronize()
    assert host.stand_in.counts().pending == 0


def test_work_is_deferred_until_it_must_run(host):
    x = host.floats(1)
    stream, done = host.drv.Stream(), host.drv.Event()
    for _ in range(3000):
        host.drv.memset_d8_async(x, 0, 4, stream)
    done.record(stream)
    assert host.stand_in.counts().pending == 3001
    queries = 0
    while not done.query():
        queries += 1
    assert queries == 3001 and host.stand_in.counts().pending == 0


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
    from convbackprop import plan

    monkeypatch.setattr(plan, "pack_shape", lambda problem, pack=plan.pack_shape: pack(problem)[:-4])
    with pytest.raises(convbackprop.LaunchFailed, match="invalid argument"):
        check.check(VARIANTS[0], SMALL, driver.device())
    assert "bytes for parameters of" in stand_in.why()


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
