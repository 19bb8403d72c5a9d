"""implicit_gemm and vectorised_gemm: what they refuse, how they split and tile, and when "auto" takes them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convbackprop import check, conv2d, conv2d_kernel_grad
from convbackprop.bench.layers import DEEPBENCH, WHOLE
from convbackprop.devices.compiler import Source
from convbackprop.devices.gpus import GPUS, Target
from convbackprop.errors import InvalidArgument
from convbackprop.ladder import implicit_gemm, matrix_product, scratch
from convbackprop.ladder.registry import choose, of_pass, why_not
from convbackprop.launch.plan import constants_of, pack_shape, plan
from convbackprop.problem import ConvProblem
from tests.support.mutations import replaced
from tests.support.results import results

PASSES = ("forward", "input_grad", "kernel_grad")
GEMM, VECTORISED = (
    {name: next(v for v in of_pass(name) if v.name == rung) for name in PASSES}
    for rung in ("implicit_gemm", "vectorised_gemm")
)
POINTWISE = ConvProblem.parse("8,64,14,14,64,1,1")  # vectorised_direct leaves it
each_rung = pytest.mark.parametrize("gemm", [GEMM, VECTORISED], ids=["implicit_gemm", "vectorised_gemm"])


# -- the product's threads -------------------------------------------------------------------------------------------
@pytest.fixture
def places(quick):
    """Return a function: a variant, for a problem -> the rows and columns of each thread's sums on a GPU."""

    def find(variant, problem):
        source = Source.of(Path(__file__).parent / "product_places.cu", constants_of(variant, problem, "cuda"))
        constants = variant.constants("cuda", problem)
        threads = constants["THREADS"]
        rows, columns = (np.full((threads, constants[name]), -1, np.int32) for name in ("REG_M", "REG_N"))
        kernel = quick.load(source, "places", (1, 1, 1), (threads, 1, 1), 1 << 17, 2, pack_shape(problem), ())
        kernel.launch([rows.ctypes.data, columns.ctypes.data])
        return rows, columns, constants

    return find


#: The second one is small: a tile of 64 x 64.
@pytest.mark.parametrize("text", ["32,64,112,112,128,3,3,padding=1", "1,64,14,14,64,3,3,padding=1"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shared_memory_is_read_16_bytes_at_a_time_without_bank_conflicts(places, text, dtype):
    """In a quarter of a warp, which 16-byte reads are served by, lanes read one vector or vectors in other banks."""
    problem = ConvProblem.parse(text, dtype=dtype)
    rows, columns, constants = places(GEMM["forward"], problem)
    size = 4 if dtype == "float32" else 2
    for read in (rows, columns):
        vectors = read.reshape(len(read), -1, size)
        assert (vectors[..., 0] % size == 0).all() and (np.diff(vectors, axis=-1) == 1).all()
        for quarter in range(0, len(read), 8):
            for i in range(vectors.shape[1]):
                first = set(vectors[quarter : quarter + 8, i, 0].tolist())
                banks = [at // size % 8 for at in first]
                assert len(set(banks)) == len(banks), f"lanes {quarter} to {quarter + 7} meet in a bank"
    sums = {(row, column) for own, across in zip(rows, columns, strict=True) for row in own for column in across}
    assert len(sums) == constants["TILE_M"] * constants["TILE_N"], "the threads' sums make up the tile"


def test_the_tile_follows_the_problem():
    """Tiles of 128 rows where there are enough of them; no block asks for more than 64 KiB of shared memory."""

    def tile(pass_name, text, **changes):
        return GEMM[pass_name].constants("cuda", ConvProblem.parse(text, **changes))["TILE_M"]

    whole = str(WHOLE.problem())
    assert [tile(name, whole) for name in PASSES] == [128, 64, 128]
    assert tile("forward", "1,64,14,14,128,3,3,padding=1") == 64  # 128 would leave most multiprocessors idle
    assert tile("forward", whole, dtype="float64") == 64
    for layer in (WHOLE, *DEEPBENCH):
        for pass_name in PASSES:
            for dtype in ("float32", "float64", "float16"):
                problem = layer.problem(dtype=dtype)
                constants = GEMM[pass_name].constants("cuda", problem)
                for launch in GEMM[pass_name].launches:
                    assert launch.shared_bytes(problem, constants) <= 64 << 10


@pytest.mark.parametrize("gpu", GPUS, ids=str)
def test_tiles_and_splits_follow_the_multiprocessors(gpu):
    """Few of them are kept busy by few large tiles; each has two rounds of a kernel gradient's blocks."""
    layer = ConvProblem.parse("4,64,28,28,128,3,3,padding=1")
    tiles = {count: GEMM["forward"].constants(Target("cuda", count), layer)["TILE_M"] for count in (1, 132)}
    assert tiles == {1: 128, 132: 64}
    constants = GEMM["kernel_grad"].constants(gpu.target, WHOLE.problem())
    launch, *_ = GEMM["kernel_grad"].launches
    blocks = math.prod(launch.grid(WHOLE.problem(), constants))
    assert blocks * constants["THREADS"] / (gpu.sms * 384) == pytest.approx(2, rel=0.1)


def test_a_plan_is_for_the_device_at_hand(quick, monkeypatch):
    problem = ConvProblem.parse("4,64,28,28,128,3,3,padding=1")
    grids = {}
    for count in (4, 132):
        monkeypatch.setattr(type(quick), "target", Target("cpu", count))
        variant = dataclasses.replace(GEMM["kernel_grad"])  # plans are kept
        grids[count] = plan(variant, problem, quick).scratch_bytes
    assert grids[4] < grids[132]


# -- the sums --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("taps", [1, 2, 3, 5, 8])
def test_no_product_with_an_inserted_zero(stride, dilation, taps):
    """A phase has as many steps as taps meet its pixels, and all phases together those of the filter."""
    problem = ConvProblem.parse(f"1,2,99,99,3,{taps},1,stride={stride},dilation={dilation},padding=7")
    meets = [sum((phase + 7 - r * dilation) % stride == 0 for r in range(taps)) for phase in range(stride)]
    assert sum(meets) == taps
    depth = GEMM["input_grad"].constants("cpu", problem)["DEPTH"]
    (slices,) = matrix_product.slices("input_grad")(problem, {"DEPTH": depth})
    assert slices == math.ceil(3 * max(meets) / depth)


@each_rung
@pytest.mark.parametrize("text", ["2,3,6,5,4,2,2,stride=2147483647,dilation=3", "2,2,7,9,3,3,4,stride=9x4,padding=8"])
def test_strides_beyond_the_image(quick, gemm, text):
    """Only phases that have a pixel are worked on."""
    assert check.check(gemm["input_grad"], ConvProblem.parse(text), quick).faults == []


@pytest.mark.parametrize(
    "gemm", [GEMM, pytest.param(VECTORISED, marks=pytest.mark.slow)], ids=["implicit_gemm", "vectorised_gemm"]
)
def test_a_sum_over_many_pixels_stays_far_below_its_bound(quick, gemm):
    """32 images of 112 x 112 equal terms: a plain float32 sum would be out by more than the bound."""
    problem = ConvProblem.parse("32,1,112,112,2,1,1", bias=True)
    outcome = check.check(gemm["kernel_grad"], problem, quick, "constant")
    assert outcome.faults == [] and outcome.share < 0.02


@each_rung
def test_a_dense_layer_is_a_matrix_product(gemm):
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((9, 70), (33, 70)))
    y = conv2d(x[:, :, None, None], w[:, :, None, None], variant=gemm["forward"].name, device="cpu")
    assert np.array_equal(y[:, :, 0, 0], x @ w.T)


# -- sums that are split among blocks -------------------------------------------------------------------------------
SPLIT = ("forward", "input_grad")

#: Of which an H200 has more multiprocessors than there are tiles, and a GPU of one multiprocessor has enough.
FEW_TILES = {
    "forward": ("3,70,9,8,150,3,3,padding=1", "2,130,7,7,140,3,3,groups=2,stride=2,padding=1"),
    "input_grad": ("3,150,9,8,70,3,3,padding=1", "3,300,7,8,260,2,3,groups=2,stride=2x1,padding=1"),
}
each_few = pytest.mark.parametrize(
    ("pass_name", "text"), [(pass_name, text) for pass_name, texts in FEW_TILES.items() for text in texts]
)


def splits_of(variant, problem, multiprocessors):
    constants = variant.constants(Target("cpu", multiprocessors), problem)
    return implicit_gemm.splits(variant.pass_name, problem, constants)


def test_small_layers_are_split_among_the_blocks_that_a_gpu_holds():
    """In whole runs; a large layer is not."""
    small, large = ConvProblem.parse("16,512,7,7,512,3,3,padding=1"), WHOLE.problem()
    for gpu, pass_name in itertools.product(GPUS, SPLIT):
        rung = GEMM[pass_name]
        _, main, total, *_ = rung.launches
        constants = rung.constants(gpu.target, small)
        (tiles, splits), (slices, split_slices) = main.grid(small, constants), main.integers(small, constants)
        assert 0.5 < tiles * splits * constants["THREADS"] / (gpu.sms * 384) < 4
        assert split_slices % (matrix_product.RUN // constants["DEPTH"]) == 0
        assert (splits - 1) * split_slices < slices <= splits * split_slices
        constants = rung.constants(gpu.target, large)
        assert main.grid(large, constants)[1] == 1 and not total.when(large, constants)


@pytest.mark.parametrize(
    ("pass_name", "text"),
    [
        ("forward", FEW_TILES["forward"][0]),
        ("input_grad", FEW_TILES["input_grad"][1]),
        pytest.param("forward", FEW_TILES["forward"][1], marks=pytest.mark.slow),
        pytest.param("input_grad", FEW_TILES["input_grad"][0], marks=pytest.mark.slow),
    ],
)
def test_the_same_bits_however_sums_are_split(quick, pass_name, text):
    """So neither the GPU nor the number of images decides about them."""
    changes = {"dtype": "float16"} if "groups" in text else {"activation": "tanh", "bias": True}
    problem, rung = ConvProblem.parse(text, **changes), GEMM[pass_name]
    assert splits_of(rung, problem, 132) > 1 == splits_of(rung, problem, 1)
    for data in ("normal", "constant"):
        runs = [results(rung, problem, quick, count, data) for count in (1, 132, 132)]
        assert runs[0] == runs[1] == runs[2]
    for count, data in itertools.product((1, 132), ("normal", "nonfinite")):
        assert check.check(rung, problem, quick, data, 1, Target("cpu", count)).faults == []


def test_parts_added_in_another_order_show(quick, tmp_path):
    """Each order is within the bound; only one is that of a block that forms the whole sum."""
    wrong = replaced("forward/implicit_gemm", "run_parts.cuh", "parts[((first + i) * THREAD_VECTORS",
                     "parts[((runs - 1 - first - i) * THREAD_VECTORS", tmp_path)  # fmt: skip
    problem = ConvProblem.parse(FEW_TILES["forward"][0])
    assert check.check(wrong, problem, quick).faults == []
    assert results(wrong, problem, quick, 132) != results(wrong, problem, quick, 1)


@pytest.mark.parametrize("pass_name", PASSES)
def test_the_order_of_a_sum_follows_from_the_problem_alone(pass_name):
    """It is that of the slices, which neither the GPU nor the number of images decides about."""
    for layer, dtype in itertools.product(DEEPBENCH, ("float32", "float16")):
        problems = [layer.problem(images, dtype=dtype) for images in (1, 7, 64)]
        targets = [Target("cuda", count) for count in (1, 40, 132)]
        depths = {GEMM[pass_name].constants(*each)["DEPTH"] for each in itertools.product(targets, problems)}
        assert len(depths) == 1


def test_no_thread_of_the_total_is_without_slices():
    """Many taps of few slices have few groups of threads; few taps of many slices as many as there may be."""
    found = {}
    for text in ("16,512,7,7,512,3,3,padding=1", "32,16,112,112,16,3,3,padding=1"):
        problem = ConvProblem.parse(text)
        constants = GEMM["kernel_grad"].constants("cuda", problem)
        _, total, *_ = GEMM["kernel_grad"].launches
        (across, groups), (slices,) = total.block(problem, constants), total.integers(problem, constants)
        (blocks,) = total.grid(problem, constants)
        assert groups <= slices and across * groups >= 128
        assert (blocks - 1) * across < scratch.taps(problem) <= blocks * across
        found[text] = groups
    assert list(found.values()) == [1, constants["SLICE_GROUPS"]]


@pytest.mark.parametrize("pass_name", SPLIT)
def test_a_split_sum_of_20000_terms_stays_far_below_its_bound(quick, pass_name):
    channels, filters = (2222, 3) if pass_name == "forward" else (3, 2222)
    problem = ConvProblem.parse(f"2,{channels},3,4,{filters},3,3,padding=1")
    assert splits_of(GEMM[pass_name], problem, 132) > 20
    for data in ("normal", "constant", "positive"):
        outcome = check.check(GEMM[pass_name], problem, quick, data)
        assert outcome.faults == [] and outcome.share < 0.3


@pytest.mark.parametrize("pass_name", PASSES)
def test_small_images_and_few_channels(quick, pass_name):
    """1 x 1 to 9 x 9 images, 1 to 5 channels and filters."""
    for size in (1, 2, 5, 7, 9):
        for channels, filters in ((1, 5), (2, 3), (5, 1), (4, 4)):
            problem = ConvProblem.parse(f"2,{channels},{size},{size},{filters},3,3,padding=1", bias=True)
            assert check.check(GEMM[pass_name], problem, quick).faults == []


# -- scratch memory -------------------------------------------------------------------------------------------------
@each_rung
def test_the_workspace_is_capped(quick, limited, gemm):
    problem = ConvProblem.parse("8,16,40,40,24,3,3,padding=1", bias=True)
    sums = 24 * 16 * 9 + 24
    for bytes_ in (64 << 20, 4 * sums * 3 + 5, 1):
        limited(str(bytes_))
        variant = dataclasses.replace(gemm["kernel_grad"])  # plans are kept
        used = plan(variant, problem, quick).scratch_bytes
        assert used <= max(bytes_, 4 * sums) and used % (4 * sums) == 0
        assert check.check(variant, problem, quick).faults == []
    assert used == 4 * sums


@each_few
def test_a_limit_that_parts_do_not_fit_in_leaves_sums_whole(quick, limited, pass_name, text):
    """With the same bits."""
    problem, found = ConvProblem.parse(text), []
    for bytes_ in (64 << 20, 1 << 10):
        limited(str(bytes_))
        rung = dataclasses.replace(GEMM[pass_name])  # plans are kept
        constants = rung.constants("cpu", problem)
        parts = 4 * (rung.scratch(problem, constants) - implicit_gemm.packed_elements(pass_name)(problem, constants))
        assert parts <= bytes_ and (parts > 0) == (splits_of(rung, problem, 132) > 1)
        found.append((parts > 0, results(rung, problem, quick, 132)))
    assert [is_split for is_split, _ in found] == [True, False] and found[0][1] == found[1][1]


@pytest.mark.parametrize("text", ["64M", "-1", "0", "1.5"])
def test_a_limit_that_is_no_number(limited, text):
    limited(text)
    with pytest.raises(InvalidArgument, match=f"CONVBACKPROP_WORKSPACE_LIMIT is '{text}'; it should be a number of"):
        scratch.limit()


def test_the_limit_is_read_by_a_call():
    code = "import numpy, convbackprop as c; x = numpy.ones((1, 2, 9, 9)); "
    code += "c.conv2d_kernel_grad(x, (2, 2, 1, 1), x, variant='implicit_gemm')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "CONVBACKPROP_WORKSPACE_LIMIT": "much"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "CONVBACKPROP_WORKSPACE_LIMIT is 'much'" in done.stderr


# -- the rule of "auto" ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pass_name", PASSES)
def test_auto_takes_it_for_many_channels(pass_name):
    """On each kind of device its own rung; on a GPU that is not the faster one with tensor cores."""
    for kind, below, gemm, other in (
        ("cuda", "tiled", GEMM, VECTORISED), ("cpu", "vectorised", VECTORISED, GEMM)
    ):  # fmt: skip
        problem = WHOLE.problem() if kind == "cuda" else POINTWISE
        reasons = why_not(pass_name, problem, Target(kind, 58, "sm_89"))
        assert reasons[gemm[pass_name]] is None
        assert reasons[next(v for v in of_pass(pass_name) if v.name == below)] == (
            f"{gemm[pass_name].name} is a higher rung"
        )
        assert reasons[other[pass_name]] == (
            "it is made for cuda, not for cpu" if kind == "cpu" else "it is written for cpu; it does not run on cuda"
        )


@pytest.mark.parametrize(
    ("pass_name", "text", "kind", "chosen", "reason"),
    [
        ("forward", "1,3,56,56,15,3,3", "cuda", "register_tiled",
         "a group has 15 filters; it is the faster one from 16 on"),
        ("forward", "1,3,56,56,16,3,3", "cuda", "implicit_gemm", None),
        ("forward", "1,3,56,56,63,3,3", "cpu", "vectorised_direct",
         "a group has 63 filters; it is the faster one from 64 on"),
        ("forward", "1,3,9,9,6,1,1", "cpu", "vectorised", "a group has 6 filters; it is the faster one from 9 on"),
        ("forward", "1,3,9,9,9,1,1", "cpu", "vectorised_gemm", None),
        ("forward", "1,3,56,56,32,1,1", "cpu", "vectorised_gemm", None),
        ("kernel_grad", "1,3,56,56,32,3,3", "cpu", "vectorised_direct", "vectorised_direct is a higher rung"),
        ("kernel_grad", "1,3,56,56,32,3,3,padding=3", "cpu", "vectorised_gemm", None),
        ("input_grad", "1,3,56,56,64,3,3,padding=3", "cpu", "vectorised",
         "a group has 3 channels; it is the faster one from 64 on"),
        ("input_grad", "1,9,56,56,64,3,3,stride=2", "cpu", "vectorised_gemm", None),
        ("input_grad", "1,1,56,56,64,3,3,stride=2", "cpu", "vectorised_gemm", None),
        ("input_grad", "1,7,56,56,64,3,3,stride=2", "cuda", "tiled",
         "a group has 7 channels; it is the faster one from 8 on"),
        ("kernel_grad", "1,7,56,56,3,3,3,stride=2", "cpu", "naive",
         "a group has 3 filters; it is the faster one from 4 on"),
        ("forward", "1,4,56,56,4,3,3,groups=4", "cpu", "vectorised",
         "a group has one channel and one filter; it works on tiles of several of them"),
        ("forward", "1,600,1200,1200,600,3,3", "cuda", "register_tiled",
         "there are 1,728,000,000 elements of neighbouring images; it counts up to 1,073,741,824"),
    ],
)  # fmt: skip
def test_auto_leaves_the_rest_to_lower_rungs(pass_name, text, kind, chosen, reason):
    problem = ConvProblem.parse(text)
    assert choose(pass_name, "auto", problem, kind).name == chosen
    assert why_not(pass_name, problem, kind)[(VECTORISED if kind == "cpu" else GEMM)[pass_name]] == reason


@each_rung
def test_kernel_grad_in_groups_with_a_bias(gemm):
    """A group's bias is one more column of its own tiles."""
    rng = np.random.default_rng(1)
    x, dy = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 6, 9, 8), (2, 70, 9, 8)))
    rung = gemm["kernel_grad"].name
    dw, db = conv2d_kernel_grad(x, (70, 3, 3, 3), dy, padding=1, groups=2, with_bias=True, variant=rung, device="cpu")
    assert np.array_equal(db, dy.sum((0, 2, 3)))
    assert np.array_equal(dw[:, :, 1, 1], np.concatenate([np.einsum("nkpq,ncpq->kc", *pair) for pair in (
        (dy[:, :35], x[:, :3]), (dy[:, 35:], x[:, 3:]))]))  # fmt: skip
