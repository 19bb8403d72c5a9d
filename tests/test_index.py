"""Offsets beyond 2^31 elements, and beyond 2^32, where an unsigned int overflows too.

An array of more than 2^32 float16 elements is mapped but not touched, except where the blocks that are run read or
write it: the last ones of the grid, whose offsets are the largest. What that proves: for each variant, that the offsets
of the last elements of x, y, dy, saved and dx (each > 2^32) do not overflow, and for kernel_grad those of x in every
tap, and of dy and saved in the last slice of the naive variant. Not shown: a filter of more than 2^31 elements.
Only the cpu device runs a part of a grid; the .cu file is the GPU's.
"""

from __future__ import annotations

import math
import mmap

import numpy as np
import pytest

from convbackprop import reference
from convbackprop.plan import plan
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.variants import of_pass

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
    arrays["partial"] = np.zeros(ready.partial_bytes // 4, accumulator)
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


def test_kernel_grad_of_a_large_gradient(quick):
    """The naive variant's last slice adds up the last row of dy."""
    variant = of_pass("kernel_grad")[0]
    problem = ConvProblem.parse("60000,1,1,80000,1,1,1,dtype=float16,activation=relu,bias=1")
    arrays = arrays_of("kernel_grad", problem)
    assert arrays["dy"].size > LIMIT
    for name in ("dy", "x", "saved"):
        arrays[name][-1, 0, 0, -50:] = {"dy": 2, "x": 3, "saved": 1}[name]
    run_last_blocks(variant, problem, quick, arrays, 1)
    assert arrays["partial"][-2:].tolist() == [300, 100]
