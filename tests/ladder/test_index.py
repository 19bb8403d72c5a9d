"""Offsets beyond 2^31 elements, and beyond 2^32, where an unsigned int overflows too.

An array of more than 2^32 float16 elements is mapped but not touched, except where the blocks that are run read or
write it: the last ones of the grid, whose offsets are the largest. What that proves: for each variant, that the offsets
of the last elements of x, y, dy, saved and dx (each > 2^32) do not overflow, and for kernel_grad those of x in every
tap, and of dy and saved in the last slice of the naive variant; the same for w and dw. A row of 2^31 - 1 columns is the
longest that there is. The `hardening` tests run whole grids over 2^31 elements.
Only the cpu device runs a part of a grid; the .cu file is the GPU's.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convbackprop import check
from convbackprop.check import reference
from convbackprop.devices import get_device
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.ladder.registry import VARIANTS, of_pass
from convbackprop.launch.plan import plan
from convbackprop.problem import PASSES, ConvProblem
from tests.support.children import PATIENCE
from tests.support.figures import record

LIMIT = 2**32
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def mapped(shape, dtype=np.float16):
    """Return zeros that take no memory until they are written."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # else one element would take 2 MiB
    return np.frombuffer(memory, dtype).reshape(shape)


def arrays_of(pass_name, problem):
    return {
        o.name: mapped(o.shape(problem), reference.numpy_dtype(o.dtype(problem)))
        for o in PASSES[pass_name].present(problem)
    }


def run_last_blocks(variant, problem, device, arrays, count):
    """Run the last blocks of each of the variant's launches."""
    ready = plan.__wrapped__(variant, problem, device)  # a plan of our own: its launches are changed
    accumulator = np.float32
    arrays["scratch"] = np.zeros(ready.scratch_bytes // 4, accumulator)
    for _, kernel in ready.steps:
        blocks = math.prod(kernel._launch.grid)
        kernel._launch.first_block = max(0, blocks - count)
        kernel._launch.end_block = blocks
    ready.run({name: array.ctypes.data for name, array in arrays.items()})


def fill_corner(array, rows, columns, rng):
    """Put small integers, whose sums are exact, into the last rows and columns of the last image's channels."""
    corner = array[-1, :, -rows:, -columns:]
    corner[...] = rng.integers(1, 4, corner.shape)


@pytest.mark.parametrize("variant", of_pass("forward"), ids=str)
def test_forward(quick, variant):
    problem = ConvProblem.parse("3,5,16930,16931,5,3,3,padding=1,dtype=float16,activation=relu,mask=1")
    if variant.refusal(problem):
        pytest.skip(variant.refusal(problem))
    arrays = arrays_of("forward", problem)
    assert min(arrays["x"].size, arrays["y"].size) > LIMIT
    rng = np.random.default_rng(0)
    fill_corner(arrays["x"], 2, 40, rng)
    arrays["w"][...] = rng.integers(-3, 4, problem.w_shape)
    run_last_blocks(variant, problem, quick, arrays, 4)
    small = problem.with_(N=1, H=2, W=40, padding=((0, 1), (0, 1)), mask=False)
    given = {"x": arrays["x"][-1:, :, -2:, -40:], "w": arrays["w"]}
    expected = reference.answer("forward", small, given)["y"][0][0, -1, -1, -16:]
    assert np.array_equal(arrays["y"][-1, -1, -1, -16:], expected)
    assert (expected != 0).any()
    last = arrays["mask"][-1, -1, -1, -2:]
    assert np.array_equal(
        np.unpackbits(last, bitorder="little")[: 8 + problem.Q % 8], expected[-(8 + problem.Q % 8) :] > 0
    )


@pytest.mark.parametrize("variant", of_pass("input_grad"), ids=str)
@pytest.mark.parametrize("mask", [False, True], ids=["output", "mask"])
def test_input_grad(quick, variant, mask):
    problem = ConvProblem.parse("3,5,16930,16931,5,3,3,padding=1,dtype=float16,activation=relu", mask=mask)
    if variant.refusal(problem):
        pytest.skip(variant.refusal(problem))
    arrays = arrays_of("input_grad", problem)
    assert min(arrays["dx"].size, arrays["dy"].size) > LIMIT
    rng = np.random.default_rng(0)
    fill_corner(arrays["dy"], 2, 40, rng)
    arrays["w"][...] = rng.integers(-3, 4, problem.w_shape)
    if mask:
        arrays["saved"][-1, :, -2:, -6:] = 255
    else:
        arrays["saved"][-1, :, -2:, -48:] = 1
    run_last_blocks(variant, problem, quick, arrays, 4)
    # The corner as a problem of its own: the image's last two rows, whose gradients the two last rows of dy give.
    small = problem.with_(N=1, H=3, W=41, padding=((0, 1), (0, 1)), activation="identity", mask=False)
    given = {"dy": arrays["dy"][-1:, :, -2:, -40:][..., -small.P :, -small.Q :], "w": arrays["w"]}
    assert given["dy"].shape[2:] == (small.P, small.Q)
    expected = reference.answer("input_grad", small, given)["dx"][0][0, -1, -1, -16:]
    assert np.array_equal(arrays["dx"][-1, -1, -1, -16:], expected)
    assert (expected != 0).any()


@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_many_images(quick, pass_name):
    """implicit_gemm counts the elements of neighbouring images in 32 bits, but not those of the batch."""
    variant = next(v for v in of_pass(pass_name) if v.name == "implicit_gemm")
    problem = ConvProblem.parse("700,8,1000,1000,8,1,1,dtype=float16")
    assert variant.refusal(problem) is None
    arrays = arrays_of(pass_name, problem)
    source, result = ("x", "y") if pass_name == "forward" else ("dy", "dx")
    assert min(arrays[source].size, arrays[result].size) > LIMIT
    rng = np.random.default_rng(0)
    fill_corner(arrays[source], 1, 100, rng)
    arrays["w"][...] = rng.integers(-3, 4, problem.w_shape)
    run_last_blocks(variant, problem, quick, arrays, 8)
    w = arrays["w"][:, :, 0, 0] if pass_name == "forward" else arrays["w"][:, :, 0, 0].T
    expected = w @ arrays[source][-1, :, -1, -100:]
    assert np.array_equal(arrays[result][-1, :, -1, -100:], expected) and (expected != 0).any()


@pytest.mark.parametrize("variant", of_pass("kernel_grad"), ids=str)
def test_kernel_grad_of_a_large_image(quick, variant):
    """Two output pixels that lie far apart, in each of many channels: the whole grid is run, all of dw is checked."""
    problem = ConvProblem.parse("1,2100,1,2097155,1,1,3,stride=1x2097152,dtype=float16,bias=1")
    if variant.refusal(problem):
        pytest.skip(variant.refusal(problem))
    assert problem.y_shape == (1, 1, 1, 2)
    arrays = arrays_of("kernel_grad", problem)
    assert arrays["x"].size > LIMIT
    rng = np.random.default_rng(0)
    arrays["dy"][...] = [[[[2, 3]]]]
    taps = rng.integers(-3, 4, (2, 2100, 3))
    arrays["x"][0, :, 0, :3], arrays["x"][0, :, 0, -3:] = taps
    run_last_blocks(variant, problem, quick, arrays, 2**62)
    assert np.array_equal(arrays["dw"][0, :, 0], 2 * taps[0] + 3 * taps[1])
    assert arrays["db"].tolist() == [5]


# -- a filter of more than 2^32 elements ----------------------------------------------------------------------------
@pytest.mark.hardening
def test_forward_and_input_grad_with_a_large_filter(cpu):
    """One pixel, whose last results are sums over the filter's last row or column."""
    computed = set()
    for variant in of_pass("forward") + of_pass("input_grad"):
        problem = ConvProblem.parse("1,65600,1,1,65600,1,1,dtype=float16")
        if variant.refusal(problem):
            continue
        arrays = arrays_of(variant.pass_name, problem)
        assert arrays["w"].size > LIMIT
        source, result = ("x", "y") if variant.pass_name == "forward" else ("dy", "dx")
        arrays[source][0, -3:, 0, 0] = [1, 2, 3]
        corner = arrays["w"][-3:, -3:, 0, 0]
        corner[...] = np.arange(9).reshape(3, 3) - 4
        # tiled has a block for each plane in two rounds, and most of the second round's blocks have none.
        run_last_blocks(variant, problem, cpu, arrays, 65480 if variant.name == "tiled" else 1)
        matrix = corner if variant.pass_name == "forward" else corner.T
        assert np.array_equal(arrays[result][0, -3:, 0, 0], matrix @ [1, 2, 3]), variant
        computed.add(variant.pass_name)
    assert len(computed) == 2


@pytest.mark.hardening
def test_kernel_grad_of_a_large_filter(cpu):
    """One pixel: dw is the product of each channel with each filter."""
    problem = ConvProblem.parse("1,65600,1,1,65600,1,1,dtype=float16,bias=1")
    computed = [variant for variant in of_pass("kernel_grad") if variant.refusal(problem) is None]
    assert computed
    for variant in computed:
        arrays = arrays_of("kernel_grad", problem)
        assert arrays["dw"].size > LIMIT
        arrays["x"][0, -3:, 0, 0], arrays["dy"][0, -3:, 0, 0] = [1, 2, 3], [3, 4, 5]
        # naive has threads for the 65,600 biases, which come last; implicit_gemm adds a bias up with its first taps.
        is_naive = variant.name == "naive"
        run_last_blocks(variant, problem, cpu, arrays, 2100 if is_naive else 40)
        assert arrays["dw"][-1, -3:, 0, 0].tolist() == [5, 10, 15], variant
        assert not is_naive or arrays["db"][-3:].tolist() == [3, 4, 5]


# -- the longest row -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", of_pass("forward") + of_pass("input_grad"), ids=str)
@pytest.mark.parametrize("axis", ["column", "row"])
def test_the_longest_axis(cpu, variant, axis):
    """An image of 2^31 - 1 rows or columns, whose last ones the last blocks read and write."""
    size = 2**31 - 1
    problem = ConvProblem.parse(f"1,1,{f'{size},1' if axis == 'column' else f'1,{size}'},1,1,1,dtype=float16")
    if sentence := variant.refusal(problem):
        assert any(words in sentence for words in ("it counts", "one channel and one filter", "the filter")), sentence
        pytest.skip(sentence)
    arrays = arrays_of(variant.pass_name, problem)
    source, result = ("x", "y") if variant.pass_name == "forward" else ("dy", "dx")
    arrays["w"][...] = 2
    arrays[source].ravel()[-70:] = np.arange(70) + 1
    run_last_blocks(variant, problem, cpu, arrays, 20)
    assert np.array_equal(arrays[result].ravel()[-70:], 2 * np.arange(70) + 2)


def test_kernel_grad_of_a_large_gradient(quick):
    """The naive variant's last slice adds up the last row of dy."""
    variant = of_pass("kernel_grad")[0]
    problem = ConvProblem.parse("60000,1,1,80000,1,1,1,dtype=float16,activation=relu,bias=1")
    arrays = arrays_of("kernel_grad", problem)
    assert arrays["dy"].size > LIMIT
    for name in ("dy", "x", "saved"):
        arrays[name][-1, 0, 0, -50:] = {"dy": 2, "x": 3, "saved": 1}[name]
    run_last_blocks(variant, problem, quick, arrays, 1)
    assert arrays["scratch"][-2:].tolist() == [300, 100]


# -- the arithmetic itself -------------------------------------------------------------------------------------------
#: Runs this file's tests with kernels that end the process where a signed integer overflows.
TRAPPED = """
import sys, pytest
from convbackprop.devices import compiler
compiler._CPU_FLAGS += ("-fsanitize=signed-integer-overflow", "-fsanitize-undefined-trap-on-error")
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[1:]]))
"""


def trapped(*arguments):
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-c", TRAPPED, *arguments], capture_output=True, text=True, timeout=PATIENCE,
                          cwd=root, env={**os.environ, "PYTHONPATH": path})  # fmt: skip


@pytest.mark.hardening
def test_no_integer_overflows():
    done = trapped("tests/ladder/test_index.py")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


OVERFLOWS = """// WRONG: a product of sizes is formed in 32 bits.
//@ launch forward(x, w, b, y) grid=[1] block=[1]
#include "conv2d.cuh"
extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    y[0] = from_acc(Acc(shape.W * shape.W > 0));
}
"""


def run_overflow(path):
    """Run a kernel whose arithmetic overflows; in a process of its own."""
    variant = variant_from_file(Path(path), "forward")
    problem = ConvProblem.parse("1,1,1,65536,1,1,1")
    check.launch(variant, problem, check.inputs("forward", problem), get_device("cpu"))


@pytest.mark.hardening
def test_an_overflow_ends_the_process(tmp_path):
    """What test_no_integer_overflows relies on."""
    kernel, test = tmp_path / "overflows.cu", tmp_path / "test_overflow.py"
    kernel.write_text(OVERFLOWS)
    test.write_text(f"from tests.ladder.test_index import run_overflow\ndef test(): run_overflow({str(kernel)!r})\n")
    assert trapped(str(test)).returncode == -signal.SIGILL


# -- whole grids over more than 2^31 elements ------------------------------------------------------------------------
def free_memory():
    """Return the bytes that can be had without swapping."""
    text = Path("/proc/meminfo").read_text()
    return 1024 * int(re.search(r"MemAvailable:\s*(\d+)", text)[1])


#: 2^31 + 2^18 elements, in rows that strips take.
WHOLE = "1,1,2049,1048576,1,1,1,dtype=float16"


@pytest.mark.hardening
@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_every_element_of_a_large_image(cpu, pass_name):
    """A result of more than 2^31 elements is written whole, and each element where it belongs."""
    problem = ConvProblem.parse(WHOLE)
    if free_memory() < 13 << 30:
        pytest.skip("needs 13 GB of free memory: 8.6 for two arrays, and room for others")
    (variant,) = (v for v in of_pass(pass_name) if v.name == "coalesced")
    arrays = arrays_of(pass_name, problem)
    source, result = (arrays[name] for name in (("x", "y") if pass_name == "forward" else ("dy", "dx")))
    arrays["w"][...] = 2
    # 2,053 values, a prime, so that a row's differ from those above; each is exact in float16.
    pattern = np.arange(2053).astype(np.float16) / 4
    rows = source[0, 0]
    for h in range(problem.H):
        rows[h] = np.resize(np.roll(pattern, -h), problem.W)
    plan(variant, problem, cpu).run({name: array.ctypes.data for name, array in arrays.items()})
    assert source.size == result.size > 2**31
    for h in range(problem.H):
        assert np.array_equal(result[0, 0, h], 2 * rows[h]), f"row {h}"
    record(f"large_{pass_name}", elements=result.size)


@pytest.mark.hardening
@pytest.mark.parametrize("name", ["naive", "coalesced"])
def test_a_sum_over_a_large_image(cpu, name):
    """Zeros take no memory until they are written: all of x and dy is read, and a few products are not 0."""
    problem = ConvProblem.parse(WHOLE, bias=True)
    (variant,) = (v for v in of_pass("kernel_grad") if v.name == name)
    arrays = arrays_of("kernel_grad", problem)
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, arrays["x"].size, 100), arrays["x"].size - 1, 2**31 - 1, 2**31]
    dw = 0
    for i, place in enumerate(dict.fromkeys(map(int, places))):
        arrays["x"].flat[place], arrays["dy"].flat[place] = i % 7, i % 5
        dw += (i % 7) * (i % 5)
    ready = plan(variant, problem, cpu)
    arrays["scratch"] = np.zeros(ready.scratch_bytes // 4, np.float32)
    ready.run({name: array.ctypes.data for name, array in arrays.items()})
    assert arrays["dw"].item() == dw
    record(f"large_kernel_grad_{name}", elements=arrays["x"].size)


# -- grids beyond CUDA's limits --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("variant", "text", "blocks"),
    [
        ("kernel_grad/coalesced", "1,60000,1,1,60000,1,1", "3,600,000,000 blocks"),
        ("kernel_grad/tiled", "1,60000,1,1,60000,1,1", "3,600,000,000 x 1 blocks"),
        ("forward/naive", "2000000000,1,3,3,200,1,1", "28,125,000,000 blocks"),
        ("forward/tiled", "2000000000,1,3,3,200,1,1", "1 x 65,535 x 6,103,609 blocks"),
    ],
)
def test_a_grid_that_no_gpu_takes_is_refused(variant, text, blocks):
    (chosen,) = (v for v in VARIANTS if str(v) == variant)
    problem = ConvProblem.parse(text)
    assert chosen.refusal(problem).startswith(
        f"its grid would be {blocks}; it should be at most 2,147,483,647 x 65,535"
    )
    assert chosen.refusal(ConvProblem.parse("1,2,9,9,2,3,3")) is None


@pytest.mark.parametrize("size", [2**30, 2**30 + 1])
def test_strips_refuse_longer_rows_than_they_count(size):
    problem = ConvProblem.parse(f"1,1,1,{size},1,1,1")
    for variant in VARIANTS:
        if variant.name in ("coalesced", "fused"):
            assert (variant.refusal(problem) is None) == (size <= 2**30), variant
