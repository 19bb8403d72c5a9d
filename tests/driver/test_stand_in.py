"""The stand-in for a driver (tests/driver): what a real driver enforces, it enforces, and it sees a wrong host.

What the package does on it: test_cuda_host_code.py. There is no GPU.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import convbackprop
from convbackprop import check
from convbackprop.devices import compiler
from convbackprop.devices.compiler import Source
from convbackprop.ladder.registry import VARIANTS
from convbackprop.launch.plan import constants_of
from convbackprop.problem import ConvProblem
from tests import driver
from tests.driver import ORDERS

SMALL = ConvProblem.parse("2,3,9,8,4,3,3,padding=1", bias=True, activation="relu")


# -- the driver's interface is cuda.h's, and a launch's is nvcc's ------------------------------------------------------
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


# -- what tests can have of it, and nobody else ------------------------------------------------------------------------
def test_it_tells_no_time_unasked(host):
    start, stop = host.drv.Event(), host.drv.Event()
    start.record(), stop.record(), stop.synchronize()
    with refused(host, "operation not supported", "no GPU here whose time could be taken"):
        stop.time_since(start)
    host.stand_in.tell_times(1.5)
    assert stop.time_since(start) == 1.5
    with refused(host, "invalid resource handle", "never recorded"):
        host.drv.Event().time_since(start)
    stop.record()
    with refused(host, "device not ready", "nobody has waited"):
        stop.time_since(start)


def test_what_is_recorded(host):
    x = host.floats(3)
    assert host.stand_in.recorded() == []
    host.stand_in.record()
    host.drv.memset_d32(int(x), 0, 2)
    host.function("twice", "PPi").prepared_async_call((1, 1), (3, 1, 1), None, x, x, 3)
    x.free()
    assert host.stand_in.recorded("cuMem|cuLaunch") == ["cuMemsetD32 8", "cuLaunchKernel twice", "cuMemFree"]


def test_memory_of_the_host_that_is_shared(host):
    of_host = np.full(4, 3, np.float32)
    twice, y = host.function("twice", "PPi"), host.floats(4)
    host.stand_in.share_host_memory()
    twice.prepared_async_call((1, 1), (4, 1, 1), None, of_host.ctypes.data, y, 4)
    assert (host.read(y, 4) == 6).all()


def test_a_reset_takes_it_back(stand_in):
    stand_in.tell_times(1)
    stand_in.share_host_memory()
    stand_in.record()
    stand_in.reset()
    with driver.device().active():
        test_it_tells_no_time_unasked(host := Host(stand_in))
        test_a_double_free_and_memory_of_the_host(host)
    assert stand_in.recorded() == []
