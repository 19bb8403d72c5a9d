"""Counted sectors and bank conflicts: beside values worked out by hand, and what the variants are meant to reach."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from convbackprop.devices.checked import GlobalArray, checked_device
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.ladder.registry import VARIANTS, select
from convbackprop.problem import ConvProblem
from convbackprop.profile.traffic import RecordingDevice, traffic
from tests.support.turns import in_turn

#: One warp. At the end of a line: what a request of it takes, "sectors 5" or "passes 32".
PATTERNS = """\
//@ launch forward(x, w, b, y) grid=[1] block=[32]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    __shared__ Scalar plain[32][32], padded[32][33];
    __shared__ float4 vectors[32];
    const int i = threadIdx.x;
    Scalar sum = x[i];           // sectors 4: 32 x 4 bytes side by side
    sum += x[2 * i];             // sectors 8: every other element of 256 bytes
    sum += x[i + 1];             // sectors 5: 128 bytes from the 4th on
    sum += x[i * shape.W];       // sectors 32: a column
    sum += x[0];                 // sectors 1: one element for all
    if (i < 9) sum += x[8 * i];  // sectors 9: 9 lanes, a sector each
    for (int j = 0; j < 32; ++j)
        plain[j][i] = sum;       // passes 1: a row
    for (int j = 0; j < 32; ++j)
        padded[j][i] = sum;      // passes 1: a row
    __syncwarp();
    sum += plain[i][3];          // passes 32: a column, of which all elements lie in one bank
    sum += padded[i][3];         // passes 1: a column of rows that are an element longer
    sum += plain[0][5];          // passes 1: one word for all
    sum += plain[0][2 * i % 32]; // passes 1: 16 words, each for two lanes
    sum += plain[i % 2][3];      // passes 2: two words of one bank
    vectors[i] = make_float4(sum, sum, sum, sum);  // passes 4: 512 bytes, a quarter of a warp at a time
    y[i] = vectors[31 - i].x;    // sectors 4: side by side
}
"""


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    path = tmp_path_factory.mktemp("patterns") / "patterns.cu"
    path.write_text(PATTERNS)
    (kernel,) = traffic(variant_from_file(path, "forward"), ConvProblem.parse("1,1,64,64,1,1,1"))
    return kernel


WANTED = {
    number: tuple(line.partition("// ")[2].partition(":")[0].split())
    for number, line in enumerate(PATTERNS.splitlines(), 1)
    if "// sectors" in line or "// passes" in line
}


@pytest.mark.parametrize("number", WANTED, ids=lambda number: PATTERNS.splitlines()[number - 1].strip()[:40])
def test_counts_are_those_worked_out_by_hand(patterns, number):
    what, wanted = WANTED[number]
    space = {"sectors": "global", "passes": "shared"}[what]
    kinds = ("store",) if "] = " in PATTERNS.splitlines()[number - 1] else ("load",)
    (line,) = (each for each in patterns.lines if each.line == number and each.space == space and each.kind in kinds)
    counted = line.sectors if what == "sectors" else line.wavefronts
    assert counted / line.requests == int(wanted)
    if what == "sectors":  # the bytes asked for, side by side
        distinct = 4 if "x[0]" in PATTERNS.splitlines()[number - 1] else 4 * line.lanes
        assert line.least_sectors == math.ceil(distinct / 32)
    else:
        assert line.least_wavefronts / line.requests == {4: 1, 16: 4}[line.bytes]


def test_arrays(patterns):
    x, y = (next(array for array in patterns.arrays if array.name == name) for name in "xy")
    assert x.loaded_bytes == 4 * (5 * 32 + 9) and x.stored_bytes == y.loaded_bytes == 0
    assert y.stored_bytes == 128 and y.stored_sectors == 4
    rows = {i * 64 // 8 for i in range(32)}  # of the column
    assert x.loaded_sectors == len(rows | set(range(8)) | set(range(9)))


# -- a sample of a large grid ----------------------------------------------------------------------------------------
LARGE = "8,64,56,56,128,3,3"  # 203,776 accesses a block of kernel_grad/implicit_gemm, of which there are 774


def test_no_more_is_replayed_than_enough(monkeypatch):
    (variant,), problem = select("kernel_grad/implicit_gemm"), ConvProblem.parse(LARGE)
    monkeypatch.setattr("convbackprop.profile.traffic.ENOUGH", 390_000)
    main, total = traffic(variant, problem)
    assert main.blocks == 2 and total.blocks == 64  # the second block passes the limit
    assert math.prod(main.grid) > 64 and math.prod(total.grid) > 64
    one, _ = traffic(variant, problem, blocks=1)
    assert one.blocks == 1
    of_two, of_one = ({a.name: a.loaded_bytes / kernel.blocks for a in kernel.arrays} for kernel in (main, one))
    assert of_two == pytest.approx(of_one, rel=0.05) and of_one["dy"] > 1e5


def test_a_replay_takes_no_memory_but_what_blocks_touch(monkeypatch):
    """Not for the notes of the checks, 19 bytes for each byte of an array, nor for the rest of the arrays."""
    (variant,), problem = select("forward/naive"), ConvProblem.parse("64,1,1024,1024,1,3,3")
    notes, resident = [], []
    end = RecordingDevice.end

    def look(device, kernel):
        notes.append(device.notes_bytes())
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        end(device, kernel)

    monkeypatch.setattr(RecordingDevice, "end", look)
    traffic(variant, ConvProblem.parse("1,1,64,64,1,3,3"), blocks=1)
    traffic(variant, problem, blocks=1)
    assert notes == [0, 0]
    assert resident[1] - resident[0] < 32 << 20  # of 512 MiB
    device = checked_device()  # whose runtime it is
    with device.checking([GlobalArray("x", np.zeros(8, np.float32).ctypes.data, 32, 4, True)]):
        assert device.notes_bytes() > 0


def test_all_of_a_small_grid_is_replayed(patterns):
    problem = ConvProblem.parse("1,1,40,200,1,3,3")
    (kernel,) = traffic(select("forward/naive")[0], problem)
    assert kernel.blocks == math.prod(kernel.grid) > 1
    assert next(a for a in kernel.arrays if a.name == "y").stored_bytes == 4 * problem.P * problem.Q


# -- what the variants are meant to reach ----------------------------------------------------------------------------
STRIPS = ("forward/coalesced", "input_grad/coalesced", "kernel_grad/coalesced", "backward/fused")


@pytest.mark.parametrize("size", [3, pytest.param(5, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize("name", STRIPS)
def test_strips_read_each_sector_hardly_more_than_once(name, size):
    """In a block: the rows of its band, and the R - 1 rows of the window around it."""
    (variant,) = select(name)
    problem = ConvProblem.parse(f"1,1,256,4096,1,{size},{size},padding=same", bias=True, activation="relu")
    kernel = traffic(variant, problem, blocks=4)[0]
    rows = variant.constants("cuda", problem)["ROWS"]
    arrays = {array.name: array for array in kernel.arrays}
    pixels = kernel.blocks * math.prod(kernel.block) * rows * variant.constants("cuda", problem)["COLS"]
    for operand in ("x", "dy", "saved"):
        if operand in arrays:
            assert arrays[operand].loaded_sectors * 32 <= 1.05 * 4 * pixels * (rows + size - 1) / rows, operand
    for operand in ("y", "dx"):
        if operand in arrays:
            assert arrays[operand].stored_sectors * 32 == arrays[operand].stored_bytes == 4 * pixels


@pytest.mark.parametrize("size", [3, pytest.param(5, marks=pytest.mark.slow)])
@in_turn(0, [v for v in VARIANTS if "cuda" in v.runs_on])
def test_no_bank_conflicts(variant, size):
    texts = (
        f"1,1,256,512,1,{size},{size}", f"2,64,14,16,64,{size},{size}", f"1,1,256,512,1,{3 * size},{3 * size}",
        f"2,64,14,16,64,{size},{size},dtype=float16", "2,64,14,16,64,3,3",  # of what takes 3 x 3 alone
    )  # fmt: skip
    problems = [ConvProblem.parse(f"{text},padding=same", bias=True, activation="relu") for text in texts]
    problem = next(problem for problem in problems if variant.refusal(problem) is None)
    # Five rows of taps, each of whole vectors, are 40 words: a warp that stages them meets banks twice, once a block.
    known = 2 if (variant.name, size) == ("few_channels", 5) else 0
    for kernel in traffic(variant, problem, blocks=2):
        meeting = [line for line in kernel.lines if line.wavefronts != line.least_wavefronts]
        beyond = sum(line.wavefronts - line.least_wavefronts for line in meeting)
        assert beyond == known and {line.kind for line in meeting} <= {"store"}, (kernel.entry, meeting)
