"""The CPU runtime (convbackprop/cpu_runtime) by itself: kernels of tests/cpu_runtime, launched directly.

That the convolutions come out right on it is test_variants.py's business. Here it is what CUDA promises to any
kernel: built-in variables, barriers, warps, atomics, conversions; and what the runtime adds: sentences on what went
wrong, launches that can be interrupted, threads and forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convbackprop.check.curated import CURATED
from convbackprop.devices import cache, compiler, cpu as cpu_module
from convbackprop.devices.compiler import Source
from convbackprop.devices.cpu import cpu_device, set_num_threads
from convbackprop.errors import CompileError, LaunchFailed
from convbackprop.ladder.registry import VARIANTS
from convbackprop.launch.plan import constants_of
from tests.support.children import PATIENCE
from tests.support.figures import record

KERNELS = Path(__file__).parent
FINISHED, FAILED, RUNNING = 0, 1, 2  # of runtime.h
KIB = 1024
SHARED_BYTES = 227 * KIB  # the most that a block may have


class Module:
    """A compiled file of KERNELS whose entry points take any arguments.

    An array is passed as a pointer, a numpy scalar by value.
    """

    def __init__(self, source):
        cpu_device()  # the library finds the runtime's functions in the process
        self.library = ctypes.CDLL(str(compiler.shared_object(source)))

    def prepared(self, entry, grid, block, *arguments, shared_bytes=0, first_block=0, end_block=0, workers=1):
        """Return a launch as convbackprop_launch takes it."""
        values = [
            (np.uintp(value.ctypes.data) if isinstance(value, np.ndarray) else value).tobytes() for value in arguments
        ]
        sizes = getattr(self.library, f"{entry}_parameter_sizes")
        sizes.restype = ctypes.POINTER(ctypes.c_uint)
        declared = sizes()[: len(values) + 1]
        assert declared == [*map(len, values), 0], f"{entry} has other parameters: {declared}"
        buffers = [ctypes.create_string_buffer(value, len(value)) for value in values]
        addresses = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, buffers))
        launch = cpu_module._Launch(
            entry=ctypes.cast(getattr(self.library, f"{entry}_entry"), ctypes.c_void_p),
            args=ctypes.addressof(addresses),
            grid=(*grid, 1, 1)[:3],
            block=(*block, 1, 1)[:3],
            shared_bytes=shared_bytes,
            workers=workers,
            first_block=first_block,
            end_block=end_block,
        )
        launch.kept = buffers, addresses, arguments
        return launch

    def run(self, *arguments, **options):
        """Run a grid as the device does, on set_num_threads workers."""
        device = cpu_device()
        launch = self.prepared(*arguments, **options)
        with device.lock:
            device.run(launch)


@functools.cache
def module(name, **constants):
    """The module of a file of KERNELS, compiled with these constants and loaded once."""
    return Module(Source.of(KERNELS / f"{name}.cu", constants))


def naive_source(name="forward"):
    variant = next(v for v in VARIANTS if (v.pass_name, v.name) == (name, "naive"))
    return Source.of(variant.path, constants_of(variant, CURATED[0].problem(), "cpu"))


def uses_ucontext(library):
    """Whether a library switches stacks by ucontext."""
    return b"swapcontext" in library.read_bytes()


UCONTEXT = ("-DCONVBACKPROP_UCONTEXT",)
STRICT = ("-Wextra", "-Werror")


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    """Compiles everything, several at once: half of the time on two cores where the cache is cold."""
    names = [path.stem for path in KERNELS.glob("*.cu") if path.stem not in ("shared_in_template", "large_local_array")]
    sources = [Source.of(KERNELS / f"{name}.cu", {}) for name in names]
    sources += [Source.of(KERNELS / "shared_in_template.cu", {"SIZE": size}) for size in (64, 4096)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compiler.cpu_runtime, flags) for flags in ((), UCONTEXT)]
        jobs += [pool.submit(compiler.shared_object, source) for source in sources]
    for job in jobs:
        job.result()


@pytest.fixture(autouse=True)
def _put_back(workers):
    """Ends a launch that a failed test has left in progress; the workers fixture puts their number back."""
    yield
    cpu_device().runtime.convbackprop_cancel()
    _ENDLESS.clear()


@pytest.fixture
def runtime():
    return cpu_device().runtime


def error(runtime):
    return runtime.convbackprop_error().decode()


def assert_launches_work():
    """A launch after whatever happened before has the right result in every block."""
    counts = np.zeros(50, np.int32)
    module("launches").run("count", (50,), (70,), counts)
    assert (counts == 70).all()


# -- built-in variables ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("entry", ("places", "places_after_barrier", "places_after_warp"))
@pytest.mark.parametrize("count", (1, 2, 3, 7))
@pytest.mark.parametrize(
    ("grid", "block"),
    [((4, 3, 2), (5, 3, 2)), ((1, 1, 5), (1, 1, 64)), ((2, 7), (1024,)), ((1,), (1,)), ((3, 1, 3), (1, 33, 2))],
)
def test_each_thread_runs_once_in_its_place(entry, count, grid, block):
    set_num_threads(count)
    grid3, block3 = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
    blocks, threads = int(np.prod(grid)), int(np.prod(block))
    records = np.zeros((blocks * threads, 13), np.uint32)
    module("built_in").run(entry, grid, block, records)
    number = np.arange(blocks * threads)

    def places(numbers, extents):
        return np.stack(np.unravel_index(numbers, extents[::-1])[::-1], axis=1)

    assert (records[:, 12] == 1).all(), "a thread that did not run once"
    assert (records[:, 0:3] == places(number % threads, block3)).all()
    assert (records[:, 3:6] == places(number // threads, grid3)).all()
    assert (records[:, 6:9] == block3).all()
    assert (records[:, 9:12] == grid3).all()


def test_blocks_have_numbers_beyond_32_bits():
    grid = (2**31 - 1, 65535, 65535)
    for number in (2**32 + 1, 2**50 + 12345, int(np.prod(grid, dtype=object)) - 1):
        place = np.zeros(3, np.uint32)
        module("built_in").run("place_of_block", grid, (1,), place, first_block=number, end_block=number + 1)
        x, y, z = map(int, place)
        assert (z * grid[1] + y) * grid[0] + x == number


def test_no_more_workers_than_asked_for(runtime):
    """A worker's blocks have their shared memory in one place."""
    sink = np.zeros(1, np.float32)
    for workers in (1, 2, 3):
        addresses = np.zeros(200, np.uint64)
        launch = module("launches").prepared("storage", (200,), (1,), addresses, sink, np.int32(40000), workers=workers)
        assert runtime.convbackprop_launch(launch, 0) == FINISHED
        used = len(set(addresses.tolist()))
        assert used <= workers
        assert used >= min(workers, 2), "the helpers did nothing"


# -- barriers --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", (1, 2, 31, 32, 33, 256, 1000, 1024))
def test_reversal(threads):
    data = np.random.default_rng(0).integers(-(2**31), 2**31, (9, threads), dtype=np.int32)
    got = data.copy()
    module("barriers").run("reverse_static", (9,), (threads,), got)
    assert (got == data[:, ::-1]).all()
    for first in (0, SHARED_BYTES // 4 - threads):  # at both ends of what a block may have
        got = data.copy()
        module("barriers").run(
            "reverse_dynamic", (9,), (threads,), got, np.int32(first), shared_bytes=4 * (first + threads)
        )
        assert (got == data[:, ::-1]).all()


@pytest.mark.parametrize("entry", ("tree_sum_static", "tree_sum_dynamic"))
@pytest.mark.parametrize("threads", (1, 2, 64, 1024))
def test_tree_sum(entry, threads):
    data = np.random.default_rng(1).integers(-(2**50), 2**50, (17, threads))
    sums = np.zeros(17, np.int64)
    module("barriers").run(entry, (17,), (threads,), data, sums, shared_bytes=8 * threads)
    assert (sums == data.sum(axis=1)).all()


def test_dynamic_shared_memory_has_one_storage_for_all_its_names():
    floats = np.random.default_rng(2).standard_normal(200).astype(np.float32)
    got = np.zeros(800, np.uint8)
    module("barriers").run("two_names", (1,), (200,), floats, got, shared_bytes=800)
    assert (got.view(np.float32) == floats).all()


def test_shared_memory_of_a_template_belongs_to_its_module():
    addresses = set()
    for size in (64, 4096, 64):
        data = np.arange(size, dtype=np.int32)
        address = np.zeros(1, np.uint64)
        set_num_threads(1)
        module("shared_in_template", SIZE=size).run("reverse", (1,), (64,), data, address)
        assert (data == np.arange(size)[::-1]).all()
        addresses.add((size, int(address[0])))
    (low, at), (high, further) = sorted(addresses, key=lambda pair: pair[1])
    assert at + 4 * low <= further, f"{low} and {high} integers overlap"


@pytest.mark.parametrize("threads", (1, 45, 256))
def test_votes_of_a_block(threads):
    predicates = np.zeros((4, threads), np.int32)
    predicates[0] = np.random.default_rng(3).choice([0, 1, 2, -4, 256], threads)
    predicates[1] = 65536
    predicates[2, threads // 2] = -1
    got = np.zeros((3, 4, threads), np.int32)
    module("barriers").run("votes", (4,), (threads,), predicates, got)
    true = predicates != 0
    for row, expected in zip(got, (true.sum(axis=1), true.all(axis=1), true.any(axis=1)), strict=True):
        assert (row == expected[:, None]).all()


@pytest.mark.parametrize("leaver", (0, 1, 2))
@pytest.mark.parametrize("threads", (3, 64, 97, 1024))
def test_barrier_does_not_wait_for_threads_that_have_returned(threads, leaver):
    """Some return before anyone waits, some while others wait, and the last thread of the block may be one of them."""
    neighbours, counts = np.zeros((2, threads), np.int32)
    module("barriers").run("some_leave", (1,), (threads,), neighbours, counts, np.int32(leaver))
    t = np.arange(threads)
    stays = t % 3 != leaver
    assert (neighbours == np.where(stays, 1000 + (t + 1) % threads, 0)).all()
    assert (counts == np.where(stays, stays.sum(), 0)).all()


# -- warps -----------------------------------------------------------------------------------------------------------
def shuffled(values, argument, width):
    """What __shfl_sync, _up, _down and _xor give each lane."""
    lane = np.arange(32)
    first = lane // width * width
    sources = (
        first + argument % width,
        np.where(lane - argument < first, lane, lane - argument),
        np.where(lane + argument >= first + width, lane, lane + argument),
        np.where((lane ^ argument) >= first + width, lane, lane ^ argument),
    )
    return np.stack([values.reshape(-1, 32)[:, source].ravel() for source in sources])


@pytest.mark.parametrize(
    ("argument", "width"),
    [(0, 32), (1, 32), (16, 32), (31, 32), (3, 16), (15, 16), (20, 16), (1, 8), (5, 8), (13, 8), (2, 4), (0, 1)],
)
@pytest.mark.parametrize("dtype", (np.int32, np.float32, np.float64), ids=("int", "float", "double"))
def test_shuffles(argument, width, dtype):
    name = {"int32": "int", "float32": "float", "float64": "double"}[np.dtype(dtype).name]
    values = (np.random.default_rng(4).standard_normal(96) * 1e6).astype(dtype)
    got = np.zeros((4, 96), dtype)
    module("warps").run(f"shuffles_of_{name}", (1,), (96,), values, got, np.int32(argument), np.int32(width))
    assert (got == shuffled(values, argument, width)).all()


def test_shuffle_from_a_lane_of_ones_own_choice():
    rng = np.random.default_rng(5)
    values, lanes = rng.integers(-1000, 1000, (2, 128), dtype=np.int32)
    got = np.zeros(128, np.int32)
    module("warps").run("gather", (1,), (128,), values, lanes, got)
    assert (got == values[np.arange(128) // 32 * 32 + lanes % 32]).all()


@pytest.mark.parametrize("threads", (64, 41, 5))
def test_votes_of_a_warp(threads):
    predicates = np.random.default_rng(6).choice([0, 1, 2, -4, 256], threads).astype(np.int32)
    for forced in (None, 0, 1 << 20):
        if forced is not None:
            predicates[:32] = forced
        got = np.zeros((3, threads), np.uint32)
        module("warps").run("votes", (1,), (threads,), predicates, got)
        for first in range(0, threads, 32):
            true = predicates[first : first + 32] != 0
            ballot = sum(1 << lane for lane in np.flatnonzero(true).tolist())
            expected = [[ballot], [true.any()], [true.all()]]
            assert (got[:, first : first + 32] == expected).all()


@pytest.mark.parametrize("threads", (96, 50, 1))
def test_reductions(threads):
    values = np.random.default_rng(7).integers(-(2**31), 2**31, threads, dtype=np.int32)
    got = np.zeros((9, threads), np.int32)
    module("warps").run("reductions", (1,), (threads,), values, got)
    for first in range(0, threads, 32):
        i = values[first : first + 32]
        u = i.view(np.uint32)
        expected = [
            np.add.reduce(i, dtype=np.int32), i.min(), i.max(),
            np.add.reduce(u, dtype=np.uint32), u.min(), u.max(),
            np.bitwise_and.reduce(u), np.bitwise_or.reduce(u), np.bitwise_xor.reduce(u),
        ]  # fmt: skip
        for row, value in zip(got[:, first : first + 32], expected, strict=True):
            assert (row == value.astype(np.uint32).view(np.int32)).all()


def test_partial_masks():
    values = np.random.default_rng(8).integers(-1000, 1000, 64, dtype=np.int32)
    got = np.zeros(64, np.int32)
    module("warps").run("thirds", (1,), (64,), values, got)
    for warp, result in zip(values.reshape(2, 32), got.reshape(2, 32), strict=True):
        assert (result[0::3] == warp[0::3].sum()).all()
        assert (result[1::3] == np.roll(warp[1::3], -1)).all()
        positive = sum(1 << lane for lane in range(2, 32, 3) if warp[lane] > 0)
        assert (result[2::3] == positive).all()


@pytest.mark.parametrize("stay", (1, 16, 31))
@pytest.mark.parametrize("threads", (64, 45))
def test_warp_operations_do_not_wait_for_lanes_that_have_returned(threads, stay):
    values = np.random.default_rng(9).integers(-1000, 1000, threads, dtype=np.int32)
    got = np.zeros((3, threads), np.int32)
    module("warps").run("some_leave", (1,), (threads,), values, got, np.int32(stay))
    for first in range(0, threads, 32):
        there = min(stay, threads - first)
        left = values[first : first + there]
        expected = [[left.sum()], [2**there - 1], [left[0]]]
        assert (got[:, first : first + there] == expected).all()
        assert (got[:, first + there : first + 32] == 0).all()


def test_syncwarp():
    data = np.random.default_rng(10).integers(-1000, 1000, 96, dtype=np.int32)
    got = data.copy()
    module("warps").run("neighbours", (1,), (96,), got)
    assert (got == data[np.arange(96) ^ 1]).all()


# -- atomics ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", (1, 2, 3, 4))
def test_atomics(count):
    set_num_threads(count)
    blocks, threads, times = 300, 64, 20
    everyone = blocks * threads
    n = everyone * times
    i = np.array([0, 0, 2**31 - 1, -1, 0, 0, 0], np.int32)
    u = np.array([0, 0, 0, 2**32 - 1, 0, everyone], np.uint32)
    ull, f, d = np.zeros(1, np.uint64), np.zeros(1, np.float32), np.zeros(1)
    module("atomics").run("totals", (blocks,), (threads,), i, u, ull, f, d, np.int32(times))
    xor = int(np.bitwise_xor.reduce(np.arange(everyone)))
    assert i.tolist() == [n, -2 * n, 0, everyone - 1, xor, 1, n]
    assert u.tolist() == [3 * n, n % 10, 2**31 - 1, 2**31, 1, 0]
    assert (int(ull[0]), f[0], d[0]) == (n << 20, n, n / 2)

    taken = np.zeros(everyone, np.uint32)
    module("atomics").run("tickets", (blocks,), (threads,), np.zeros(1, np.uint32), taken)
    assert (taken == 1).all()


# -- float16 and bfloat16 --------------------------------------------------------------------------------------------
HALVES = {"half": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def bits_of(values):
    return values.view(np.dtype(f"u{values.dtype.itemsize}"))


@pytest.mark.parametrize("name", HALVES)
def test_every_half_to_float_and_back(name):
    bits = np.arange(65536, dtype=np.uint16)
    floats, back = np.zeros(65536, np.float32), np.zeros(65536, np.uint16)
    module("conversions").run(f"from_{name}", (256,), (256,), bits, floats, back, np.int32(65536))
    with np.errstate(invalid="ignore"):
        expected = bits.view(HALVES[name]).astype(np.float32)
    nan = np.isnan(expected)
    assert nan.sum() == {"half": 2 * 1023, "bfloat16": 2 * 127}[name]
    assert (bits_of(floats)[~nan] == bits_of(expected)[~nan]).all()
    assert np.isnan(floats[nan]).all()
    assert (back[~nan] == bits[~nan]).all()
    assert np.isnan(back[nan].view(HALVES[name]).astype(np.float32)).all()


def floats_around(dtype):
    """Every finite value of a type and every tie between two of them, each with the floats next to it."""
    finite = int(np.array(np.inf, dtype).view(np.uint16))
    values = np.arange(finite, dtype=np.uint16).view(dtype).astype(np.float64)
    after = 2 * values[-1] - values[-2]  # would follow the largest, had it not become infinite
    points = np.concatenate([values, (values + np.append(values[1:], after)) / 2]).astype(np.float32)
    near = np.concatenate([points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(np.inf))])
    return np.concatenate([near, -near])


@pytest.mark.parametrize("name", HALVES)
def test_float_to_half_rounds_to_nearest_even(name):
    with np.errstate(over="ignore", under="ignore"):
        around = floats_around(HALVES[name])
    rng = np.random.default_rng(11)
    anything = rng.integers(0, 2**32, 50000, dtype=np.uint32).view(np.float32)
    large = np.array([65519.996, 65520, 1e30, 3.4028235e38, np.inf], np.float32)
    small = np.array([2**-24, 2**-25, 2**-26, 2**-126, 2**-149, 0], np.float32)
    special = np.concatenate([large, -large, small, -small, [np.nan, -np.nan]]).astype(np.float32)
    values = np.concatenate([around, anything, special])
    bits = np.zeros(len(values), np.uint16)
    module("conversions").run(f"to_{name}", (-(-len(values) // 512),), (512,), values, bits, np.int32(len(values)))
    with np.errstate(all="ignore"):
        expected = bits_of(values.astype(HALVES[name]))
    nan = np.isnan(values)
    wrong = np.flatnonzero((bits != expected) & ~nan)
    assert not len(wrong), f"{values[wrong[0]]!r} became {bits[wrong[0]]:#06x}, not {expected[wrong[0]]:#06x}"
    assert np.isnan(bits[nan].view(HALVES[name]).astype(np.float32)).all()


def test_pairs_of_halves():
    values = np.array([1 + 2**-11 + 2**-20, -3.14159], np.float32)
    got = np.zeros((4, 2), np.float32)
    module("conversions").run("pairs", (1,), (1,), values, got)
    assert (got[:2] == values.astype(np.float16).astype(np.float32)).all()
    assert (got[2:] == values.astype(ml_dtypes.bfloat16).astype(np.float32)).all()


# -- arithmetic ------------------------------------------------------------------------------------------------------
def test_vector_types_have_cudas_sizes_and_alignments():
    got = np.zeros(18, np.int32)
    module("arithmetic").run("layout", (1,), (1,), got)
    float2, float3, float4 = (8, 8), (12, 4), (16, 16)
    double2, double4, int4, uchar4, ushort2, longlong2 = (16, 16), (32, 16), (16, 16), (4, 4), (4, 4), (16, 16)
    expected = [float2, float3, float4, double2, double4, int4, uchar4, ushort2, longlong2]
    assert got.reshape(-1, 2).tolist() == [list(pair) for pair in expected]


def test_vectors_and_loads_through_ldg():
    storage = np.zeros(4 * 64 + 4, np.float32)
    values = storage[-storage.ctypes.data % 16 // 4 :][: 4 * 64].reshape(64, 4)
    values[:] = np.random.default_rng(12).standard_normal((64, 4))
    out = np.zeros(4 * 64 + 4, np.float32)
    vectors = out[-out.ctypes.data % 16 // 4 :][: 4 * 64].reshape(64, 4)
    halves = np.zeros((64, 4), np.float32)
    module("arithmetic").run("rotate", (1,), (64,), values, vectors, halves)
    assert (vectors == np.roll(values, -1, axis=1)).all()
    assert (halves == vectors).all()


def test_min_and_max_take_the_number_where_the_other_is_nan():
    choices = np.array([np.nan, 0.0, 2.5, -2.5, np.inf, -np.inf], np.float32)
    a, b = (choices[i].ravel() for i in np.indices((6, 6)))
    floats, doubles = np.zeros((4, 36), np.float32), np.zeros((3, 36))
    module("arithmetic").run("extremes", (1,), (64,), a.copy(), b.copy(), floats, doubles, np.int32(36))
    low, high = np.fmin(a, b), np.fmax(a, b)
    for got, expected in zip((*floats, *doubles), (low, high, low, high, low, high, low), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_min_and_max_of_integers_of_unlike_sign_are_unsigned():
    got = np.zeros(6, np.int64)
    module("arithmetic").run("integer_extremes", (1,), (1,), np.array([-1], np.int32), got)
    assert got.tolist() == [3, 2**32 - 1, -1, 2, 6, 2]


def test_fma_rounds_once_and_separate_operations_twice():
    rng = np.random.default_rng(13)
    a, b = rng.standard_normal((2, 1000)).astype(np.float32)
    c = -(a * b)  # all that is left is the round-off of the product
    fused, separate = np.ones((2, 1000), np.float32)
    module("arithmetic").run("multiply_add", (1,), (1000,), a, b, c, fused, separate)
    exact = a.astype(np.float64) * b + c
    assert (fused == exact.astype(np.float32)).all()
    assert np.count_nonzero(fused) > 900
    assert (separate == 0).all()


# -- what fails ------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def failing(*parts):
    """Expects LaunchFailed with these parts in its sentence, and that the next launch works all the same."""
    with pytest.raises(LaunchFailed) as caught:
        yield
    for part in parts:
        assert part in str(caught.value)
    assert_launches_work()


@pytest.mark.parametrize("count", (1, 2))
@pytest.mark.parametrize(
    ("entry", "grid", "block", "parts"),
    [
        ("deadlock_at_barrier", 40, 32, ("block (3, 0, 0)", "deadlock", "16 of its threads wait at __syncthreads",
                                         "16 at warp operations")),
        ("deadlock_in_warp", 1, 32, ("block (0, 0, 0)", "deadlock", "0 of its threads wait at __syncthreads",
                                     "3 at warp operations")),
        ("outside_its_mask", 1, 64, ("lane 5 of warp 1", "mask 0x0000000f leaves it out")),
        ("mixed_operations", 1, 64, ("lanes of warp 0", "different warp operations", "0xffffffff")),
        ("mixed_barriers", 1, 64, ("different kinds of __syncthreads at one barrier",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_block_that_cannot_go_on_fails(entry, grid, block, parts, count):
    set_num_threads(count)
    arguments = () if entry == "deadlock_at_barrier" else (np.zeros(64, np.int32),)
    for _ in range(2):
        with failing(*parts):
            module("failures").run(entry, (grid,), (block,), *arguments)


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "parts"),
    [
        ((1,), (1025,), 0, ("a block of (1025, 1, 1) threads", "1024 in all")),
        ((1,), (64, 32), 0, ("a block of (64, 32, 1) threads", "1024 in all")),
        ((1,), (1, 1, 65), 0, ("a block of (1, 1, 65) threads", "(1024, 1024, 64)")),
        ((1,), (2**31, 2), 0, ("a block of (2147483648, 2, 1) threads",)),
        ((1,), (0,), 0, ("a block of (0, 1, 1) threads",)),
        ((0,), (1,), 0, ("a grid of (0, 1, 1) blocks", "1 to (2147483647, 65535, 65535)")),
        ((1, 0), (1,), 0, ("a grid of (1, 0, 1) blocks",)),
        ((1, 65536), (1,), 0, ("a grid of (1, 65536, 1) blocks",)),
        ((2**31,), (1,), 0, ("a grid of (2147483648, 1, 1) blocks",)),
        ((1,), (1,), SHARED_BYTES + 1, (f"{SHARED_BYTES + 1} bytes of dynamic shared memory", f"{SHARED_BYTES}")),
    ],
)
def test_geometry_that_no_gpu_takes_is_refused(grid, block, shared_bytes, parts):
    with failing(*parts):
        module("launches").run("count", grid, block, np.zeros(1, np.int32), shared_bytes=shared_bytes)


def test_launch_without_workers_is_refused(runtime):
    launch = module("launches").prepared("count", (1,), (1,), np.zeros(1, np.int32), workers=0)
    assert runtime.convbackprop_launch(launch, 0) == FAILED
    assert error(runtime) == "0 workers: there must be at least 1"
    assert_launches_work()


SHAPE = np.array([3, -2, 0, 0], np.int32).tobytes()


def test_entry_with_arrays_shape_and_integers(cpu):
    source = Source.of(KERNELS / "failures.cu", {})
    kernel = cpu.load(source, "scaled", (4, 1, 1), (32, 1, 1), 0, 2, SHAPE, (100,))
    values, got = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    for _ in range(2):
        kernel.launch((values.ctypes.data, got.ctypes.data))
        assert (got == np.where(np.arange(128) < 100, 3 * values - 2, 0)).all()
        values += 1


@pytest.mark.parametrize(
    ("pointers", "shape", "integers", "given"),
    [
        (3, SHAPE, (1,), "[8, 8, 8, 16, 4]"),
        (1, SHAPE, (1,), "[8, 16, 4]"),
        (2, SHAPE, (), "[8, 8, 16]"),
        (2, SHAPE, (1, 2), "[8, 8, 16, 4, 4]"),
        (2, SHAPE[:12], (1,), "[8, 8, 12, 4]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_number_of_parameters(cpu, pointers, shape, integers, given):
    source = Source.of(KERNELS / "failures.cu", {})
    with failing("scaled in", "failures.cu", "parameters of [8, 8, 16, 4] bytes", f"launched with {given}"):
        cpu.load(source, "scaled", (1, 1, 1), (32, 1, 1), 0, pointers, shape, integers)


def test_unknown_entry(cpu):
    with failing("failures.cu", 'has no entry point extern "C" __global__ void nobody'):
        cpu.load(Source.of(KERNELS / "failures.cu", {}), "nobody", (1, 1, 1), (32, 1, 1), 0, 2, SHAPE, (1,))


def test_local_array_too_large_for_a_stack_is_a_compile_error():
    path = KERNELS / "large_local_array.cu"
    with pytest.raises(CompileError) as caught:
        compiler.shared_object(Source.of(path, {}))
    lines = path.read_text().splitlines()
    body = range(lines.index(next(line for line in lines if "void large" in line)) + 1, len(lines) + 1)
    assert any(f"large_local_array.cu:{number}:" in str(caught.value) for number in body)
    assert "frame size" in str(caught.value)


# -- part of a grid, part of a block ---------------------------------------------------------------------------------
@pytest.mark.parametrize("count", (1, 2, 4))
@pytest.mark.parametrize(("first", "end"), [(0, 0), (0, 1), (10, 990), (999, 1000), (999, 0), (500, 0)])
def test_only_the_blocks_of_a_range_run(first, end, count):
    set_num_threads(count)
    counts = np.zeros(1000, np.int32)
    module("launches").run("count", (1000,), (33,), counts, first_block=first, end_block=end)
    number = np.arange(1000)
    assert (counts == np.where((number >= first) & (number < (end or 1000)), 33, 0)).all()


@pytest.mark.parametrize(("first", "end"), [(8, 0), (8, 8), (5, 5), (5, 4), (2, 9)])
def test_empty_range_is_refused(first, end):
    with failing(f"blocks {first} to {end or 8} (exclusive) of a grid of 8", "an empty range or one beyond it"):
        module("launches").run("count", (8,), (1,), np.zeros(8, np.int32), first_block=first, end_block=end)


def marched(values, steps, width):
    """What `march` and, with a width of 32, `march_in_warps` make of (blocks, threads) values."""
    blocks, threads = values.shape
    rounds = values.reshape(blocks, threads // width, width)
    t = np.arange(threads, dtype=np.uint32).reshape(threads // width, width)
    for _ in range(steps):
        rounds = 3 * np.roll(rounds, -1, axis=2) + t
    return rounds.reshape(blocks, threads)


def some_values(blocks=3, threads=96):
    return np.random.default_rng(14).integers(0, 2**32, (blocks, threads), dtype=np.uint32)


def in_slices(runtime, launch, slice_ms):
    """Run a launch to its end; return how often it came back before that."""
    count = 0
    status = runtime.convbackprop_launch(launch, slice_ms)
    while status == RUNNING:
        count += 1
        status = runtime.convbackprop_resume(slice_ms)
    assert status == FINISHED, error(runtime)
    return count


def in_some_slices(runtime, steps, prepare):
    """Run launches of twice as many steps each, in slices of 1 ms, until one is so long that it has some.

    `prepare` makes an array for so many steps, and a launch on it. Return the steps and the array.
    """
    while True:
        got, launch = prepare(steps)
        if in_slices(runtime, launch, 1) >= 3:
            return steps, got
        steps *= 2
        assert steps < 2**30, "a launch of minutes ended within three milliseconds"


@pytest.mark.parametrize("workers", (1, 2))
@pytest.mark.parametrize(
    ("entry", "blocks", "threads", "steps"),
    [("march", 3, 96, 8000), ("march_in_warps", 1, 32, 30000)],  # one warp: no thread starts while it marches
)
def test_time_slice_ends_in_the_middle_of_a_block(runtime, entry, blocks, threads, steps, workers):
    values = some_values(blocks, threads)

    def prepare(steps):
        got = values.copy()
        return got, module("launches").prepared(entry, (blocks,), (threads,), got, np.int32(steps), workers=workers)

    whole, launch = prepare(steps)
    assert in_slices(runtime, launch, 0) == 0
    assert (whole == marched(values, steps, threads)).all()
    steps, got = in_some_slices(runtime, steps, prepare)
    assert (got == marched(values, steps, threads)).all()


def test_time_slice_ends_between_threads_that_never_wait(runtime):
    def prepare(steps):
        values = np.arange(512, dtype=np.float32)
        return values, module("launches").prepared("roots", (1,), (512,), values, np.int32(steps))

    steps, got = in_some_slices(runtime, 20000, prepare)
    whole, launch = prepare(steps)
    assert in_slices(runtime, launch, 0) == 0
    assert (got == whole).all()


_ENDLESS = []


def endless(workers, blocks=1000, threads=256):
    """A launch that takes days: what ends it does not wait for its end, nor for that of a block.

    It is kept until the test is over: workers read its arrays after the call returns.
    """
    values = np.zeros((blocks, threads), np.uint32)
    launch = module("launches").prepared("march", (blocks,), (threads,), values, np.int32(2**30), workers=workers)
    _ENDLESS.append(launch)
    return launch


@pytest.mark.parametrize("workers", (1, 2, 4))
def test_cancel(runtime, workers):
    for _ in range(3):
        assert runtime.convbackprop_launch(endless(workers), 20) == RUNNING
        assert runtime.convbackprop_resume(20) == RUNNING
        runtime.convbackprop_cancel()
        assert_launches_work()
    runtime.convbackprop_cancel()  # nothing is in progress: nothing happens
    assert_launches_work()


@pytest.mark.parametrize("workers", (1, 2))
def test_cancel_of_threads_that_never_wait(runtime, workers):
    values = np.zeros((1000, 1024), np.float32)
    launch = module("launches").prepared("roots", (1000,), (1024,), values, np.int32(20000), workers=workers)
    assert runtime.convbackprop_launch(launch, 20) == RUNNING
    runtime.convbackprop_cancel()
    assert (values[-1] == 0).all()  # of a minute's work
    assert_launches_work()


def test_ctrl_c_ends_a_launch():
    def interrupt(*_):
        raise KeyboardInterrupt

    device = cpu_device()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), device.lock:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            device.run(endless(2))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_launches_work()


def test_one_launch_at_a_time(runtime):
    values, counts = some_values(), np.zeros(8, np.int32)
    launch = module("launches").prepared("march", (3,), (96,), values, np.int32(8000))
    assert runtime.convbackprop_launch(launch, 1) == RUNNING
    other = module("launches").prepared("count", (8,), (1,), counts)
    assert runtime.convbackprop_launch(other, 0) == FAILED
    assert error(runtime) == "another launch is in progress"
    assert (counts == 0).all()
    while (status := runtime.convbackprop_resume(20)) == RUNNING:
        pass
    assert status == FINISHED
    assert (values == marched(some_values(), 8000, 96)).all(), "the launch in progress has suffered"
    assert runtime.convbackprop_resume(20) == FAILED
    assert error(runtime) == "no launch is in progress"
    assert_launches_work()


def test_resume_from_another_thread_is_refused(runtime):
    assert runtime.convbackprop_launch(endless(2), 5) == RUNNING
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(runtime.convbackprop_resume, 5).result() == FAILED
    assert "resumed from another OS thread" in error(runtime)
    assert_launches_work()


# -- threads and processes -------------------------------------------------------------------------------------------
def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def os_threads():
    return len(os.listdir("/proc/self/task"))


def test_threads_that_come_and_go_leave_nothing_behind():
    set_num_threads(2)
    data = np.zeros((20, 1024), np.int32)
    expected = np.arange(1024)
    faults = []

    def launch():
        data[:] = expected
        module("barriers").run("reverse_dynamic", (20,), (1024,), data, np.int32(0), shared_bytes=4096)
        if not (data == expected[::-1]).all():
            faults.append("wrong result")

    def one_after_another(count):
        for _ in range(count):
            thread = threading.Thread(target=launch)
            thread.start()
            thread.join()

    one_after_another(30)
    memory, threads = resident_bytes(), os_threads()
    one_after_another(300)
    assert not faults
    assert resident_bytes() - memory < 8 << 20
    deadline = time.monotonic() + PATIENCE  # a thread that was joined may stay listed for a moment
    while os_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os_threads() <= threads


def test_threads_that_launch_at_the_same_time_take_turns():
    set_num_threads(2)

    def launch(number):
        data = np.arange(number, number + 2000, dtype=np.int32).reshape(20, 100)
        expected = data[:, ::-1].copy()
        for _ in range(21):
            module("barriers").run("reverse_static", (20,), (100,), data)
        return (data == expected).all()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(launch, range(16)))


def status_of_child(function):
    """Fork; return how the child ended in which `function` was called: 0 if it returned."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(PATIENCE)  # ends a child that hangs
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("count", (1, 2, 4))
def test_launch_in_the_child_of_a_fork(count):
    set_num_threads(count)
    assert_launches_work()  # so that the parent has its helper threads, which the child lacks
    assert status_of_child(assert_launches_work) == 0
    assert_launches_work()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_a_launch_is_in_progress(runtime):
    set_num_threads(2)
    values = some_values()
    with cpu_device().lock:  # which the child must not find taken
        launch = module("launches").prepared("march", (3,), (96,), values, np.int32(8000), workers=2)
        assert runtime.convbackprop_launch(launch, 1) == RUNNING
        assert status_of_child(assert_launches_work) == 0
        while (status := runtime.convbackprop_resume(20)) == RUNNING:
            pass
    assert status == FINISHED
    assert (values == marched(some_values(), 8000, 96)).all()


@pytest.mark.hardening
def test_a_million_launches_leave_nothing_behind(runtime):
    """Neither memory nor threads; with a barrier and two workers, from one OS thread."""
    counts = np.zeros(2, np.int32)
    launch = module("launches").prepared("count", (2,), (33,), counts, workers=2)

    def launches(number):
        for _ in range(number):
            assert runtime.convbackprop_launch(launch, 0) == FINISHED

    launches(10_000)
    memory, threads = resident_bytes(), os_threads()
    launches(1_000_000)
    assert counts.tolist() == [33 * 1_010_000] * 2
    assert resident_bytes() - memory < 1 << 20
    assert os_threads() == threads
    record("launches", launches=1_010_000)


# -- under sanitizers ------------------------------------------------------------------------------------------------
SANITIZERS = {"address": "AddressSanitizer", "undefined": "runtime error", "thread": "ThreadSanitizer"}


@functools.cache
def sanitized(name):
    """The program sanitized.cpp with the runtime in it, from the cache."""
    sources = [KERNELS / "sanitized.cpp", *sorted(compiler.RUNTIME.glob("*.cpp"))]
    flags = ["-std=c++17", "-O1", "-g", f"-fsanitize={name}", "-fno-sanitize-recover=all", "-pthread", "-Wall"]
    flags += ["-Wno-unknown-pragmas", "-Wno-unused-function", "-I", str(compiler.RUNTIME)]
    texts = [path.read_text() for path in sorted((*KERNELS.glob("*.c*"), *compiler.RUNTIME.glob("*.[ch]*")))]

    def build(path):
        command = [str(compiler.find_cxx()), *flags, *map(str, sources), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if "cannot find" in done.stderr:
            pytest.skip(f"the compiler has no {name} sanitizer: {done.stderr.splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        return {}

    program = cache.entry(compiler._key(compiler.find_cxx(), flags, texts), ".program", build).path
    program.chmod(0o700)  # nothing else of a cache is run as a program
    return program


def run_sanitized(name, *arguments):
    return subprocess.run([str(sanitized(name)), *arguments], capture_output=True, text=True, timeout=PATIENCE)


def assert_clean(name, rounds):
    done = run_sanitized(name, str(rounds))
    assert done.returncode == 0, done.stderr[-4000:]
    assert not done.stderr
    count = int(done.stdout.split()[0])
    assert count >= 5 * rounds
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", ["address", "thread"])
def test_sanitizers_find_nothing(name):
    assert_clean(name, 8)


@pytest.mark.hardening
@pytest.mark.parametrize("name", SANITIZERS)
def test_sanitizers_find_nothing_in_many_rounds(name):
    record(f"sanitized_{name}", launches=assert_clean(name, 200 if name == "thread" else 4000))


@pytest.mark.hardening
@pytest.mark.parametrize(
    ("name", "fault", "kind"),
    [
        ("address", "stack", "stack-buffer-overflow"),  # of a fiber's stack
        ("address", "heap", "heap-buffer-overflow"),
        ("undefined", "overflow", "signed integer overflow"),
        ("thread", "race", "data race"),
    ],
)
def test_sanitizers_find_a_fault(name, fault, kind):
    done = run_sanitized(name, "0", fault)
    assert done.returncode != 0
    assert SANITIZERS[name] in done.stderr and kind in done.stderr


# -- how it is built -------------------------------------------------------------------------------------------------
def everything_that_waits():
    """The results of kernels with every kind of waiting."""
    results = []
    for entry in ("march", "march_in_warps"):
        results.append(some_values())
        module("launches").run(entry, (3,), (96,), results[-1], np.int32(300))
    results.append(np.zeros((2, 97), np.int32))
    module("barriers").run("some_leave", (1,), (97,), *results[-1], np.int32(0))
    results.append(np.zeros((3, 45), np.int32))
    module("warps").run("some_leave", (1,), (45,), np.arange(45, dtype=np.int32), results[-1], np.int32(16))
    return results


def on_ucontext(file):
    """Save the results that the runtime has with ucontext; to be called in a process of its own."""
    built = compiler.cpu_runtime
    compiler.cpu_runtime = lambda: built(UCONTEXT)
    results = everything_that_waits()
    with failing("deadlock", "block (3, 0, 0)"):
        module("failures").run("deadlock_at_barrier", (40,), (32,))
    runtime = cpu_device().runtime
    assert runtime.convbackprop_launch(endless(2), 5) == RUNNING
    runtime.convbackprop_cancel()

    def prepare(steps):
        values = some_values()
        return values, module("launches").prepared("march", (3,), (96,), values, np.int32(steps))

    steps, values = in_some_slices(runtime, 1000, prepare)
    assert (values == marched(some_values(), steps, 96)).all()
    loaded = compiler.cpu_runtime()
    assert uses_ucontext(loaded) and f"memfd:{loaded.name}" in Path("/proc/self/maps").read_text()
    np.savez(file, *results)


def test_ucontext_has_the_same_results_as_assembly(tmp_path):
    if platform.machine() == "x86_64":
        assert not uses_ucontext(compiler.cpu_runtime())
    file = tmp_path / "results.npz"
    program = "import sys; from tests.cpu_runtime.test_cpu_runtime import on_ucontext; on_ucontext(sys.argv[1])"
    folder = Path(__file__).parents[2]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        capture_output=True, text=True, timeout=PATIENCE, cwd=folder, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(file) as got:
        for a, b in zip(got.values(), everything_that_waits(), strict=True):
            assert (a == b).all()


def test_no_warnings():
    compiler.cpu_runtime(STRICT)
    compiler.shared_object(naive_source(), STRICT)


def test_warnings_are_not_silenced(tmp_path):
    """What test_no_warnings relies on."""
    path = tmp_path / "warns.cu"
    path.write_text('extern "C" __global__ void warns(int* out, unsigned n) { if (out[0] < n) out[0] = 0; }\n')
    with pytest.raises(CompileError, match=r"warns\.cu:1:.*Werror=sign-compare"):
        compiler.shared_object(Source.of(path, {}), STRICT)


def test_compiles_for_aarch64(monkeypatch):
    if platform.machine() == "aarch64":
        pytest.skip("this is aarch64: everything here is compiled for it")
    if not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("there is no aarch64-linux-gnu-g++ (Debian: apt install g++-aarch64-linux-gnu)")
    monkeypatch.setenv("CONVBACKPROP_CXX", "aarch64-linux-gnu-g++")
    monkeypatch.setattr(compiler, "architecture_flag", lambda: "-march=armv8-a")
    for made in (compiler.cpu_runtime(STRICT), compiler.shared_object(naive_source(), STRICT)):
        assert made.read_bytes()[18:20] == b"\xb7\x00", "not a file for aarch64"
