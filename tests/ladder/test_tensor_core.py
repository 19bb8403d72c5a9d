"""What is special about matrix products on tensor cores: halos, factors in parts, runs of cut sums, NaN."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from convbackprop import check
from convbackprop.bench.layers import DEEPBENCH
from convbackprop.devices.gpus import GPUS, Target
from convbackprop.ladder import scratch
from convbackprop.ladder.registry import choose, of_pass, select, why_not
from convbackprop.ladder.variant import ALIGNED, Alignment
from convbackprop.problem import ConvProblem
from tests.support.mutations import replaced
from tests.support.results import results

FORWARD, INPUT_GRAD, KERNEL_GRAD = VARIANTS = [
    select(f"{name}/tensor_core")[0] for name in ("forward", "input_grad", "kernel_grad")
]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
of_windows = pytest.mark.parametrize("variant", [FORWARD, INPUT_GRAD], ids=str)


def faults(variant, device, text, data="normal", offset=0, **changes):
    problem = ConvProblem.parse(text, **{"bias": True, "activation": "relu", **changes})
    return [f"{problem}: {fault}" for fault in check.check(variant, problem, device, data, offset=offset).faults]


# -- halos ------------------------------------------------------------------------------------------------------------
#: Problems whose windows are staged as halos, and why.
HALOS = (
    "3,32,7,9,64,3,3,padding=1",  # several images in a tile, and columns that no vector divides
    "1,32,6,16,32,3,5,dilation=2x1,padding=2:0x1:3",  # a halo twice as large as its tile
    "1,64,5,20,64,2,2,groups=2",  # two taps down and across; more than one tile across
)


@of_windows
@pytest.mark.parametrize(
    ("text", "dtype", "mask"),
    [
        pytest.param(text, dtype, mask, id=f"{text}-{dtype}", marks=() if i % 2 == turn else pytest.mark.slow)
        for i, text in enumerate(HALOS)
        for turn, (dtype, mask) in enumerate((("float32", False), ("float16", True)))
    ],
)
def test_halos(quick, variant, text, dtype, mask):
    constants = variant.constants("cpu", ConvProblem.parse(text, dtype=dtype))
    assert constants["HALO"]
    assert faults(variant, quick, text, "integers", 1, dtype=dtype, mask=mask) == []


@of_windows
def test_a_relu_that_is_forgotten_shows(quick, variant, tmp_path):
    """Of 16 bits g is dy where phi' is 1, and else 0: it is formed by no multiplication."""
    if variant is INPUT_GRAD:
        wrong = replaced(str(variant), "window_reader.cuh", "times_derivative(1, y.value(i)) != 0", "true", tmp_path)
        assert faults(wrong, quick, "1,32,3,5,32,2,2", dtype="float16") != []
    assert faults(variant, quick, "1,32,3,5,32,2,2", dtype="float16") == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_halos_of_phases(quick, dtype):
    """Phases of a stride have different taps, and one of them may have none."""
    for text in ("1,16,9,14,32,3,4,stride=2x3,padding=1", "1,16,6,12,32,2,3,stride=3x2"):
        assert INPUT_GRAD.constants("cpu", ConvProblem.parse(text, dtype=dtype))["HALO"]
        assert faults(INPUT_GRAD, quick, text, dtype=dtype, activation="tanh") == []


@pytest.mark.parametrize(
    ("variant", "text"),
    [(INPUT_GRAD, "1,64,6,8,64,3,3,stride=2,padding=1"), (FORWARD, "2,64,12,16,64,4,4,padding=1")],
    ids=str,
)
@pytest.mark.parametrize("changes", [{"dtype": "float16"}, pytest.param({"precision": "tf32"}, marks=pytest.mark.slow)])
def test_groups_of_taps_that_are_not_full(quick, variant, text, changes):
    """The last taps of a block of channels are fewer than those before, and a block of the grid has several."""
    problem, alone = ConvProblem.parse(text, bias=True, activation="relu", **changes), Target("cpu", 1)
    t = variant.constants(alone, problem)
    assert t["HALO"] and t["TAPS_AT_ONCE"] == 3 and splits_of(variant, problem, 1) < 64 // t["DEPTH"]
    assert check.check(variant, problem, quick, tunables=alone).faults == []


def test_a_part_of_a_halo_that_is_left_out_shows(quick, tmp_path):
    """A phase of one tap leaves no time for all of the next channels."""
    text = "1,16,9,14,32,3,4,stride=2x3,padding=1"
    wrong = replaced(
        "input_grad/tensor_core", "halo.cuh", "if (has_next) loader.bring(next, next_plane);", "", tmp_path
    )
    assert faults(wrong, quick, text) != []


def test_units_of_a_halo_that_lie_a_column_too_far_show(quick, tmp_path):
    """A thread brings several units of a large halo."""
    old, new = "unit % ACROSS * VECTOR_PIXELS)", "unit % ACROSS * VECTOR_PIXELS + unit / AT_ONCE)"
    wrong = replaced("forward/tensor_core", "halo_loader.cuh", old, new, tmp_path)
    assert faults(wrong, quick, HALOS[1]) != []


#: Problems whose images kernel_grad stages with a halo, and why.
TAP_HALOS = (
    ("2,32,5,16,33,3,3,padding=1", {"dtype": "float16", "mask": True}),  # 16-bit factors, turned as they are read
    ("3,32,4,7,10,2,5,dilation=2x1,padding=3,groups=2", {"activation": "tanh"}),  # several images and groups of taps
    ("1,16,9,12,33,3,3", {"precision": "tf32"}),  # a g whose low part is for db alone
)


@pytest.mark.parametrize(("text", "changes"), TAP_HALOS)
@pytest.mark.parametrize("offset", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_halos_of_kernel_grad(quick, text, changes, offset):
    problem = ConvProblem.parse(text, **{"bias": True, "activation": "relu", **changes})
    assert KERNEL_GRAD.constants("cpu", problem)["HALO"]
    assert faults(KERNEL_GRAD, quick, text, offset=offset, **changes) == []


def test_tiles_of_kernel_grad_do_not_depend_on_where_arrays_lie():
    """For the order of a sum follows from them."""
    for text in ("32,64,112,112,128,3,3,padding=1", "8,64,55,56,64,1,3", "4,32,28,14,64,2,2"):
        for dtype in ("float16", "float32"):
            problem = ConvProblem.parse(text, dtype=dtype, activation="relu")
            apart, aligned = (
                KERNEL_GRAD.constants("cuda", problem, alignment) for alignment in (Alignment(4, 4), ALIGNED)
            )
            assert aligned["HALO"] and {name for name in apart if apart[name] != aligned[name]} <= {
                "X_PIXELS", "G_PIXELS", "HALO_Q", "STEPS_AT_ONCE"
            }  # fmt: skip


def test_bits_of_kernel_grad_do_not_depend_on_where_arrays_lie(quick):
    """Nor on how many steps are unrolled, with sums of several runs."""
    problem = ConvProblem.parse("1,32,20,20,64,3,3,padding=1", activation="relu", bias=True)
    aligned, apart = (KERNEL_GRAD.constants("cpu", problem, alignment) for alignment in (ALIGNED, Alignment(4, 4)))
    assert aligned["STEPS_AT_ONCE"] != apart["STEPS_AT_ONCE"] and aligned["LONG_SUMS"] == aligned["HALO"] == 1
    given = check.inputs("kernel_grad", problem)
    at_places = [check.launch(KERNEL_GRAD, problem, given, quick, offset=offset) for offset in (0, 1)]
    for name in ("dw", "db"):
        there, here = (blocks[name].array for blocks in at_places)
        assert np.array_equal(there, here), name


#: Of a halo: what is wrong, in which file, what is replaced, and by what.
WRONG_TAP_HALOS = (
    ("a tap is its neighbour", "tap_halo.cuh", "(s * COL_STEP +", "((s + 1) * COL_STEP +"),
    ("a row of taps is the one above", "tap_halo.cuh", "tap_row * shape.dilation_h", "0"),
    ("a column of the halo is not staged", "halo_loader.cuh", "unit % ACROSS * V", "unit % (ACROSS - 1) * V"),
    ("the next tile overwrites this one", "tap_halo.cuh", "next = staged[turn ^ 1]", "next = staged[turn]"),
    ("a part of the next halo is left out", "tap_halo.cuh", "images.bring(next.b, block.first_c);", ""),
    ("a tile's last filters are left out", "tap_grads.cuh", "row + i * AT_ONCE < filters", "row + 1 < filters"),
    ("tiles are added by two splits", "tap_halo.cuh", "first_tile + split_tiles,", "first_tile + split_tiles + 1,"),
    ("db leaves out a chunk", "tensor_core.cu", "LEFT_PARTS * Rows::ACROSS; ++i", "LEFT_PARTS * Rows::ACROSS - 1; ++i"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param(file, old, new, id=what, marks=() if i in (0, 2, 3) else pytest.mark.slow)
        for i, (what, file, old, new) in enumerate(WRONG_TAP_HALOS)
    ],
)
def test_a_wrong_halo_of_kernel_grad_shows(quick, file, old, new, tmp_path):
    """On several tiles a block, whose halos are more than the steps of one bring; two tiles of filters, one ragged."""
    wrong = replaced("kernel_grad/tensor_core", file, old, new, tmp_path)
    assert faults(wrong, quick, "4,32,20,41,65,5,5,padding=2,dilation=3", dtype="float16") != []


#: The same of 32-bit numbers, whose planes are staged as they lie.
WRONG_PLANES = (
    (
        "a plane is its neighbour",
        "tap_planes.cuh",
        "next.plane * HaloPlanes::PITCH",
        "(next.plane ^ 1) * HaloPlanes::PITCH",
    ),
    (
        "a halo begins a row too low",
        "tap_planes.cuh",
        "unit / ACROSS % HALO_P, unit",
        "unit / ACROSS % HALO_P + 1, unit",
    ),
    (
        "a halo begins a column too far",
        "tap_planes.cuh",
        "unit % ACROSS * VECTOR_PIXELS)",
        "unit % ACROSS * VECTOR_PIXELS + 1)",
    ),
    ("a tile is read before it is there", "tap_halo.cuh", "meet();  // the first tile", "// the first tile"),
)


@pytest.mark.parametrize(("file", "old", "new"), [pytest.param(*rest, id=what) for what, *rest in WRONG_PLANES])
def test_a_wrong_plane_of_kernel_grad_shows(quick, file, old, new, tmp_path):
    wrong = replaced("kernel_grad/tensor_core", file, old, new, tmp_path)
    assert faults(wrong, quick, "1,16,7,16,33,3,3,padding=1") != []


#: Of kernel_grad: halos of 16-bit and of 32-bit numbers that are one split, and one of several.
ONE_SPLIT = {"float16": "2,32,5,9,8,3,3,padding=1", "float32": "1,16,7,16,33,3,3,padding=1"}
SEVERAL_SPLITS = "2,32,20,20,33,3,3,padding=1"


@pytest.mark.parametrize("text", [ONE_SPLIT["float16"], pytest.param(SEVERAL_SPLITS, marks=pytest.mark.slow)])
def test_nan_of_padding_is_formed_anew_in_a_halo_of_kernel_grad(quick, tmp_path, text):
    """An infinity of g beside the padding of x gives no NaN."""
    problem = ConvProblem.parse(text, dtype="float16", bias=True)
    given = check.inputs("kernel_grad", problem)
    given["dy"][1, 3, 0, problem.Q - 1] = np.inf
    assert check.check(KERNEL_GRAD, problem, quick, given=given).faults == []
    wrong = replaced("kernel_grad/tensor_core", "tap_halo.cuh", "is_nan |= sum != sum;", "", tmp_path)
    assert check.check(wrong, problem, quick, given=given).faults != []


@pytest.mark.parametrize("dtype", ONE_SPLIT)
def test_gradients_of_one_split_are_written_at_once(dtype):
    """There are no parts, and no launch that adds them up."""
    for text, entries in ((ONE_SPLIT[dtype], 1), (SEVERAL_SPLITS, 2)):
        problem = ConvProblem.parse(text, dtype=dtype)
        t = KERNEL_GRAD.constants("cuda", problem)
        assert t["HALO"] and sum(launch.when(problem, t) for launch in KERNEL_GRAD.launches) == entries
        assert (KERNEL_GRAD.scratch(problem, t) == 0) == (entries == 1)


@pytest.mark.parametrize(
    ("dtype", "text"),
    [*ONE_SPLIT.items(), *(pytest.param(dtype, SEVERAL_SPLITS, marks=pytest.mark.slow) for dtype in ONE_SPLIT)],
)
def test_gradients_of_splits(quick, dtype, text):
    """With a scale, and where either is not wanted."""
    for needs in ({}, {"dw": False}, {"bias": False}):
        assert faults(KERNEL_GRAD, quick, text, dtype=dtype, scale=True, **needs) == []


@pytest.mark.parametrize(
    ("dtype", "old", "new"),
    [
        pytest.param("float16", "from_acc(scaled(sum, scale, k))", "from_acc(sum)", id="the scale is forgotten"),
        pytest.param("float32", "from_acc(scaled(sum, scale, k))", "from_acc(sum)", marks=pytest.mark.slow,
                     id="the scale is forgotten in float32"),
        pytest.param("float16", "db[k] = from_acc(sum);", ";", id="db is not written", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_wrong_gradient_of_one_split_shows(quick, dtype, old, new, tmp_path):
    wrong = replaced("kernel_grad/tensor_core", "tap_halo.cuh", old, new, tmp_path)
    assert faults(wrong, quick, ONE_SPLIT[dtype], dtype=dtype, scale=True) != []


def test_halos_of_kernel_grad_are_within_the_bound():
    """Zeros that fill up tiles do not lengthen sums beyond what may be cut off; else windows are staged tap by tap."""
    for dtype, activation, products in (("float16", "relu", 1), ("float16", "tanh", 2), ("float32", "relu", 3)):
        for text in ("0,32,9,9,8,3,3", "1,32,3,3,8,3,3,padding=1", "1,32,7,8,8,3,3,padding=1",
                     "9,32,9,9,8,3,3,padding=1", "32,32,33,33,8,3,3,padding=1",
                     "64,64,224,9,64,3,3,padding=1"):  # fmt: skip
            problem = ConvProblem.parse(text, dtype=dtype, activation=activation, bias=True)
            t = KERNEL_GRAD.constants("cuda", problem)
            if not t["HALO"]:
                assert problem.N * problem.P * problem.Q < 64
                continue
            _, tiles = KERNEL_GRAD.launches[0].integers(problem, t)
            n, steps = problem.N * problem.P * problem.Q, tiles * t["TILE_IMAGES"] * t["TILE_P"] * t["TILE_Q"]
            run, depth = min(steps, t["RUN_STEPS"]), 16 if t["FACTOR_BITS"] == 16 else 8
            assert t["LONG_SUMS"] or steps <= run
            cut = 2 * (products * math.ceil(run / depth) - (products - 1)) + 8 * (products == 3)
            assert cut + (steps / run if t["LONG_SUMS"] else 0) <= min(n + 3, 8 * math.sqrt(n + 2)), text


# -- what is written ---------------------------------------------------------------------------------------------------
@of_windows
def test_what_is_known_of_results(variant):
    """Pairs are written where they are neighbours at aligned addresses; no ends are looked for of whole tiles.

    But in forward by warps of 64 x 64 sums, which have no registers for it.
    """

    def known(text, alignment=ALIGNED, **changes):
        t = variant.constants("cuda", ConvProblem.parse(text, dtype="float16", **changes), alignment)
        return t["RESULTS_TOGETHER"], t["WHOLE_TILES"]

    square, is_whole = "32,128,112,112,128,3,3,padding=1", int(variant is INPUT_GRAD)
    assert known(square) == (2, is_whole)
    assert known(square, Alignment(2, 2)) == (1, is_whole)
    assert known("1,64,16,16,64,2,2,padding=1:0x1:0") == (2, 1)
    assert known("32,128,112,111,128,3,3,padding=1") == (1, 0)
    assert known("32,129,112,112,129,3,3,padding=1") == (2, 0)
    assert known("32,96,112,112,96,3,3,padding=1") == (2, 0)
    assert known("32,128,112,112,128,3,3,padding=1,stride=2")[0] == (2 if variant is FORWARD else 1)


@of_windows
def test_whole_tiles(quick, variant):
    text = "1,64,16,16,64,2,2,padding=1:0x1:0"
    assert variant.constants("cpu", ConvProblem.parse(text, dtype="float16"))["WHOLE_TILES"]
    assert faults(variant, quick, text, dtype="float16") == []


@of_windows
def test_where_windows_are_staged_tap_by_tap(variant):
    """Where the channels do not fill slices, there is one tap, or a halo is too large for shared memory."""

    def halo(text, **changes):
        return variant.constants("cuda", ConvProblem.parse(text, dtype="float16", **changes))["HALO"]

    assert halo("1,64,56,56,64,3,3") and halo("1,64,56,56,64,7,7")
    assert not halo("1,65,56,56,65,3,3") and not halo("1,64,56,56,64,1,1")
    assert not halo("1,64,56,56,64,3,3,dilation=20")
    assert halo("1,64,56,56,64,3,3,stride=2") == (variant is INPUT_GRAD)


@each_variant
def test_shared_memory_fits_every_gpu_since_sm_80(variant):
    for text in ("32,64,112,112,128,3,3,padding=1", "32,512,7,7,512,3,3,padding=1", "1,64,40,40,64,15,15,padding=7"):
        for dtype in ("float32", "float16"):
            for saved in ("relu", "tanh"):
                problem = ConvProblem.parse(text, dtype=dtype, activation=saved)
                t = variant.constants("cuda", problem)
                assert max(launch.shared_bytes(problem, t) for launch in variant.launches) <= 99 << 10


#: Of up to 32 rows: with a halo, in parts and whole; without; with groups of taps; and a g of 16 bits that is rounded.
FEW_ROWS = (
    ("3,32,5,9,32,3,3,padding=1", {}),
    ("1,32,9,17,32,3,3,padding=1", {"dtype": "float16"}),
    ("2,20,6,7,24,3,2,stride=2,padding=1", {"activation": "tanh"}),
    ("2,32,5,8,17,5,5,padding=2", {"precision": "tf32"}),
    ("2,32,5,8,17,3,3,padding=1", {"dtype": "bfloat16", "activation": "tanh"}),
)


@pytest.mark.parametrize(
    ("variant", "text", "changes"),
    [
        pytest.param(variant, *few, marks=() if (i + j) % 2 == 0 else pytest.mark.slow)
        for (i, variant), (j, few) in itertools.product(enumerate(VARIANTS), enumerate(FEW_ROWS))
    ],
)
def test_few_rows_have_a_tile_of_their_own(quick, variant, text, changes):
    """Of 33 on it is larger; so it is of 16-bit numbers in kernel_grad."""
    problem = ConvProblem.parse(text, **{"bias": True, "activation": "relu", **changes})
    t = variant.constants("cpu", problem)
    assert t["TILE_M"] == (64 if variant is KERNEL_GRAD and t["FACTOR_BITS"] == 16 else 32)
    assert variant.constants("cpu", problem.with_(C=96, K=96, groups=1))["TILE_M"] > 32
    assert faults(variant, quick, text, **changes) == []


@pytest.mark.parametrize(("image", "columns"), [("20,84", 64), ("32,128", 128)])
def test_a_tile_is_smaller_where_most_of_what_a_larger_one_has_more_lies_beyond_the_image(image, columns):
    """Phases of 10 x 42 pixels, and of 16 x 64. It is not where larger tiles have larger warps."""
    for precision in ("ieee", "tf32"):
        problem = ConvProblem.parse(f"16,256,{image},64,5,5,stride=2", precision=precision)
        t = INPUT_GRAD.constants("cuda", problem)
        assert t["TILE_N"] == (columns if precision == "ieee" else 128) and t["HALO"]


def test_small_blocks_leave_shared_memory_to_as_many_as_there_should_be():
    problem = ConvProblem.parse("16,192,28,28,32,5,5,padding=2,bias=1,activation=relu")
    t = FORWARD.constants("cuda", problem)
    assert t["RESIDENT"] == 4 and FORWARD.launches[1].shared_bytes(problem, t) + 1024 <= (228 << 10) / t["RESIDENT"]
    assert t["RUN_STEPS"] == 25 * t["DEPTH"] and splits_of(FORWARD, problem, 132) > 1


# -- factors in parts -------------------------------------------------------------------------------------------------
#: Numbers that are half and a quarter of a TF32 number's last place above 1, and whose low parts all have one sign.
LOW_BITS = (1 + 2.0**-11 - 2.0**-14, 1 + 2.0**-12 + 2.0**-23)


def given_values(variant, left, right, count=32):
    """Return a problem whose sums have so many products, all of two numbers, and its inputs."""
    text = {
        "forward": f"1,{count},3,4,5,1,1",
        "input_grad": f"1,5,3,4,{count},1,1",
        "kernel_grad": f"1,3,{count // 8},8,5,1,1",
    }[variant.pass_name]
    names = {"forward": ("x", "w"), "input_grad": ("dy", "w"), "kernel_grad": ("x", "dy")}[variant.pass_name]
    problem = ConvProblem.parse(text)
    given = check.inputs(variant.pass_name, problem)
    for name, value in zip(names, (left, right), strict=True):
        given[name] = np.full_like(given[name], value)
    return problem, given


@each_variant
@pytest.mark.parametrize("count", [*(pytest.param(n, marks=pytest.mark.slow) for n in (32, 64)), 72, 1000])
def test_low_bits_of_float32_matter(quick, variant, count):
    """Within the bound from as few products on as are taken, and in runs that end within a slice or with it."""
    assert variant.refusal(given_values(variant, 1, 1)[0]) is None
    for left in LOW_BITS:
        for right in LOW_BITS:
            problem, given = given_values(variant, left, right, count)
            assert check.check(variant, problem, quick, given=given).faults == []


@each_variant
@pytest.mark.parametrize(
    ("part", "left", "right"), [("left[1], right[0]", 1, LOW_BITS[0]), ("left[0], right[1]", LOW_BITS[0], 1)]
)
def test_a_part_that_is_left_out_shows(quick, variant, part, left, right, tmp_path):
    wrong = replaced(str(variant), "tensor_product.cuh", f"add_products({part});", ";", tmp_path)
    problem, given = given_values(variant, left, right)
    assert check.check(wrong, problem, quick, given=given).faults != []
    assert check.check(variant, problem, quick, given=given).faults == []


@each_variant
@pytest.mark.parametrize("exponents", [(-149, 0), (-70, -60), (70, 30)], ids=str)
def test_small_and_large_numbers_have_low_bits_too(quick, variant, exponents):
    """Subnormal numbers, numbers whose low parts would be, and sums that are too large once they are scaled."""
    problem, given = given_values(variant, *(np.ldexp(1.2345678, exponent) for exponent in exponents))
    assert check.check(variant, problem, quick, given=given).faults == []


@each_variant
def test_without_a_scale_small_numbers_have_no_low_bits(quick, variant, tmp_path):
    wrong = replaced(str(variant), "factors.cuh", "IS_TF32 ? 16777216.0f : 1.0f", "1.0f", tmp_path)
    problem, given = given_values(variant, np.ldexp(1.2345678, -130), np.ldexp(1.2345678, 10))
    assert check.check(wrong, problem, quick, given=given).faults != []


def test_a_bias_is_the_sum_of_huge_gradients(quick):
    """Scaled they would be infinite."""
    problem, given = given_values(KERNEL_GRAD, 1, 1)
    problem = problem.with_(bias=True)
    given["dy"] *= 2.0**110
    assert check.check(KERNEL_GRAD, problem, quick, given=given).faults == []


@pytest.mark.parametrize("variant", [INPUT_GRAD, KERNEL_GRAD], ids=str)
def test_a_gradient_of_16_bits_is_not_rounded_before_it_is_multiplied(variant):
    """g = dy * phi'(y) is float32, also of float16: two TF32 numbers, where dy or 0 is a factor as it is."""
    kinds = {"relu": 16, "identity": 16, "tanh": 32, "gelu": 32}
    for activation, bits in kinds.items():
        t = variant.constants("cuda", ConvProblem.parse("1,8,9,9,8,3,3", dtype="float16", activation=activation))
        assert (t["FACTOR_BITS"], t["LEFT_PARTS"] + t["RIGHT_PARTS"]) == (bits, 2 if bits == 16 else 3)


@each_variant
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cut_sums_stay_within_the_bound(variant, dtype):
    """In the worst case each product of matrices costs two round-offs of all that was added up before."""
    for n in (32, 33, 40, 41, 63, 64, 65, 128, 3840, 3841, 100000):
        text = {"forward": f"1,{n},2,2,4,1,1", "input_grad": f"1,4,2,2,{n},1,1", "kernel_grad": f"1,4,1,{n},4,1,1"}
        t = variant.constants("cuda", ConvProblem.parse(text[variant.pass_name], dtype=dtype))
        products, left_out, depth = (3, 8, 8) if dtype == "float32" else (1, 0, 16)
        run = min(n, t["RUN_STEPS"])
        cut = 2 * (products * math.ceil(run / depth) - (products - 1))  # the first low parts are too small to be cut
        steps = n
        if variant is KERNEL_GRAD:
            _, split_slices = variant.launches[0].integers(ConvProblem.parse(text[variant.pass_name], dtype=dtype), t)
            steps = split_slices * t["DEPTH"]
        assert t["LONG_SUMS"] == (steps > t["RUN_STEPS"]) or dtype == "float32"
        additions = n / run if t["LONG_SUMS"] else 0
        assert cut + left_out + additions <= min(n + 3, 8 * math.sqrt(n + 2)), n


# -- what is no number ------------------------------------------------------------------------------------------------
@of_windows
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_no_number_stays_where_it_is(quick, variant, dtype):
    """A pixel that is no number reaches the outputs whose windows hold it, and no others."""
    problem = ConvProblem.parse("1,32,5,9,32,3,3,padding=1", dtype=dtype, bias=True, activation="relu")
    for value in (np.inf, -np.inf, np.nan):
        for h, w_ in ((0, 0), (2, 5)):
            given = check.inputs(variant.pass_name, problem)
            given["x" if variant is FORWARD else "dy"][0, 3, h, w_] = value
            assert check.check(variant, problem, quick, given=given).faults == []


@each_variant
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1,64,40,40,64,3,3,dtype=float64", "the dtype is float64"),
        ("2,2,2,2,2,2,2", "a float32 sum has"),
        ("1,4,9,9,4,3,3,groups=4", "a group has one channel and one filter"),
    ],
)
def test_refused(variant, text, why):
    assert why in variant.refusal(ConvProblem.parse(text))


@each_variant
def test_one_product_where_factors_may_be_rounded_to_tf32(quick, variant):
    """To nearest: 1 + 2^-11 less 2^-14 goes down, as 1 + 2^-12 does. db is not rounded."""
    problem, given = given_values(variant, *LOW_BITS)
    problem = problem.with_(precision="tf32")
    name = {"forward": "y", "input_grad": "dx", "kernel_grad": "dw"}[variant.pass_name]
    assert (check.launch(variant, problem, given, quick)[name].array == 32).all()
    for text in ("1,17,9,8,33,3,3,padding=1", "2,2,5,6,3,2,2"):
        assert faults(variant, quick, text, precision="tf32") == []


@pytest.mark.parametrize("text", ["1,3,4,8,5,1,1", "1,16,4,8,5,1,3,padding=0x1"])
def test_a_gradient_that_is_staged_whole_for_its_sum_is_rounded_to_nearest(quick, text, tmp_path):
    """1 + 2^-11 + 2^-13 goes up, and what is no number stays so; db has all bits."""
    problem = ConvProblem.parse(text, precision="tf32", bias=True)
    assert KERNEL_GRAD.constants("cpu", problem)["LEFT_IS_WHOLE"]
    given = check.inputs("kernel_grad", problem)
    given["x"][:], given["dy"][:] = 1, 1 + 2.0**-11 + 2.0**-13
    found = check.launch(KERNEL_GRAD, problem, given, quick)
    assert (found["dw"].array[..., problem.S // 2] == 32 * (1 + 2.0**-10)).all()
    assert (found["db"].array == 32 * (1 + 2.0**-11 + 2.0**-13)).all()
    cut, kept = tmp_path / "cut", tmp_path / "kept"
    cut.mkdir(), kept.mkdir()
    wrong = replaced("kernel_grad/tensor_core", "mma.cuh", "return word + 0x1000;", "return word;", cut)
    assert (check.launch(wrong, problem, given, quick)["dw"].array[..., problem.S // 2] == 32).all()
    for value in (np.inf, np.uint32(0x7FFFFFFF).view(np.float32)):  # the NaN that is the largest word
        given["dy"][0, 1, 0, 0] = value
        assert check.check(KERNEL_GRAD, problem, quick, given=given).faults == []
    largest = "isfinite(f) ? 0xffffffff : 0xffffe000"
    wrong = replaced("kernel_grad/tensor_core", "mma.cuh", largest, "0xffffffff", kept)
    assert check.check(wrong, problem, quick, given=given).faults != []


# -- sums that are split among blocks ---------------------------------------------------------------------------------
#: Of which an H200 has more multiprocessors than there are tiles: with a halo, without, and of phases.
FEW_TILES = (
    (FORWARD, "2,96,5,6,40,3,3,padding=1", {"dtype": "float16", "residual": True}),
    (FORWARD, "3,70,9,8,40,3,3,padding=1", {}),
    (INPUT_GRAD, "2,40,9,9,192,3,3,stride=2,padding=1", {"activation": "tanh"}),
    (INPUT_GRAD, "2,20,9,9,331,3,2,stride=2x1,padding=1", {"precision": "tf32"}),
    (FORWARD, "3,192,5,6,20,5,5", {}),  # a block of channels has more steps than runs of several
)


def few(text, changes):
    return ConvProblem.parse(text, **{"bias": True, "activation": "relu", **changes})


def splits_of(variant, problem, multiprocessors):
    main = next(launch for launch in variant.launches if launch.entry == variant.pass_name)
    return main.grid(problem, variant.constants(Target("cpu", multiprocessors), problem))[1]


@of_windows
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_small_layers_are_split_among_the_blocks_that_a_gpu_holds(variant, dtype):
    """In whole runs of all taps of some channels, within the workspace; a large layer is not."""
    small, large = (ConvProblem.parse(f"{text},3,3,padding=1", dtype=dtype) for text in (
        "8,512,7,7,512", "32,64,112,112,128"))  # fmt: skip
    _, main, total, *_ = variant.launches
    for gpu in GPUS:
        t = variant.constants(gpu.target, small)
        (tiles, splits), (slices, runs, split_runs) = main.grid(small, t), main.integers(small, t)
        assert splits > 1 and 0.4 < tiles * splits / (gpu.sms * t["RESIDENT"]) < 4
        assert t["RUN_STEPS"] % (9 * t["DEPTH"]) == 0 and runs * t["RUN_STEPS"] >= slices * t["DEPTH"]
        assert (splits - 1) * split_runs < runs <= splits * split_runs
        t = variant.constants(gpu.target, large)
        assert main.grid(large, t)[1] == 1 and not total.when(large, t)
    for layer in DEEPBENCH:
        problem = layer.problem(dtype=dtype)
        t = variant.constants("cuda", problem)
        whole = variant.scratch(problem, {**t, "MAY_SPLIT": 0})
        assert 4 * (variant.scratch(problem, t) - whole) <= scratch.limit()


@pytest.mark.parametrize(
    ("variant", "text", "changes"),
    [
        pytest.param(*few, id=" ".join(map(str, few)), marks=() if i in (0, 4) else pytest.mark.slow)
        for i, few in enumerate(FEW_TILES)
    ],
)
def test_the_same_bits_however_sums_are_split(quick, variant, text, changes):
    """So neither the GPU nor the number of images decides about them."""
    problem = few(text, changes)
    assert splits_of(variant, problem, 132) > 1 == splits_of(variant, problem, 1)
    for data in ("normal", "constant"):
        assert len({tuple(results(variant, problem, quick, count, data).items()) for count in (1, 132, 132)}) == 1
    for count, data in itertools.product((1, 132), ("normal", "nonfinite")):
        assert check.check(variant, problem, quick, data, 1, Target("cpu", count)).faults == []


def test_the_order_of_a_sum_follows_from_an_image_alone():
    """How long a run is, and which steps are staged together."""
    for variant, layer, dtype in itertools.product((FORWARD, INPUT_GRAD), DEEPBENCH, ("float32", "float16")):
        found = {
            tuple(t[name] for name in ("RUN_STEPS", "LONG_SUMS", "MAY_SPLIT", "DEPTH", "ONE_TAP", "HALO"))
            for count, images in itertools.product((1, 40, 132), (1, 7, 64))
            for t in [variant.constants(Target("cuda", count), layer.problem(images, dtype=dtype))]
        }
        assert len(found) == 1


#: Of parts: what is wrong, in which file, what is replaced, and by what.
WRONG_PARTS = (
    ("a part is left out", "run_parts.cuh", "if (first + i < runs) total", "if (first + i < runs - 1) total"),
    ("the activation is applied to each part", "run_parts.cuh", "sum = own[i][j].elements[e]",
     "sum = max(own[i][j].elements[e], 0.0f)"),
    ("all blocks begin with the first channels", "halo.cuh", "first_block * DEPTH);", "0);"),
)  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new"), [pytest.param(*rest, id=what) for what, *rest in WRONG_PARTS])
def test_wrong_parts_show(quick, file, old, new, tmp_path):
    variant, text, changes = FEW_TILES[0]
    wrong = replaced(str(variant), file, old, new, tmp_path)
    assert check.check(wrong, few(text, changes), quick).faults != []


def test_parts_added_in_another_order_show(quick, tmp_path):
    """Each order is within the bound; only one is that of a block that forms the whole sum."""
    variant, text, changes = FEW_TILES[1]
    wrong = replaced(str(variant), "run_parts.cuh", "parts[((first + i) *", "parts[((runs - 1 - first - i) *", tmp_path)
    assert check.check(wrong, few(text, changes), quick).faults == []
    assert results(wrong, few(text, changes), quick, 132) != results(wrong, few(text, changes), quick, 1)


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        pytest.param(variant, dtype, marks=() if (variant, dtype) == (FORWARD, "float16") else pytest.mark.slow)
        for variant, dtype in itertools.product((FORWARD, INPUT_GRAD), ("float16", "float32"))
    ],
)
def test_a_split_sum_of_20000_terms_stays_far_below_its_bound(quick, variant, dtype):
    channels, filters = (2240, 3) if variant is FORWARD else (3, 2240)
    problem = ConvProblem.parse(f"2,{channels},3,4,{filters},3,3,padding=1", dtype=dtype)
    assert splits_of(variant, problem, 132) > 20
    outcome = check.check(variant, problem, quick, "positive")
    assert outcome.faults == [] and (outcome.share < 0.3 or dtype == "float16")  # to which a result is rounded


@of_windows
def test_small_images(quick, variant):
    """1 x 1 to 9 x 9, whose sums are split, at whose borders most taps see nothing."""
    for size in (1, 2, 9):
        problem = ConvProblem.parse(f"2,48,{size},{size},48,3,3,padding=1", bias=True, precision="tf32")
        assert splits_of(variant, problem, 132) > 1
        assert check.check(variant, problem, quick).faults == []


@pytest.mark.parametrize(("variant", "text", "changes"), FEW_TILES[::2], ids=str)
def test_a_limit_that_parts_do_not_fit_in_leaves_sums_whole(quick, limited, variant, text, changes):
    """With the same bits."""
    problem, found = few(text, changes), []
    for bytes_ in ("67108864", "1024"):
        limited(bytes_)
        found.append((splits_of(variant, problem, 132) > 1, results(dataclasses.replace(variant), problem, quick, 132)))
    assert [is_split for is_split, _ in found] == [True, False] and found[0][1] == found[1][1]


# -- the rule of "auto" ----------------------------------------------------------------------------------------------
LAYER = "16,64,28,28,64,3,3,padding=1,activation=relu"
BY_NAME = {name: {rung.name: rung for rung in of_pass(name)} for name in ("forward", "input_grad", "kernel_grad")}


@each_variant
@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("sm_75", {"dtype": "float16"}, "its products are those of tensor cores from sm_80 on; this GPU is sm_75"),
        ("sm_80", {}, None),
        ("sm_90a", {}, None),
        ("sm_89", {}, "sm_89 may take longer for 3 TF32 products than for a multiply-add"),
        ("sm_89", {"precision": "tf32"}, None),
        ("sm_86", {"dtype": "bfloat16"}, None),
        ("sm_120", {"dtype": "float16"}, None),
    ],
)
def test_auto_takes_it_where_a_gpu_has_the_tensor_cores(variant, architecture, changes, reason):
    problem, target = ConvProblem.parse(LAYER, **changes), Target("cuda", 100, architecture)
    assert why_not(variant.pass_name, problem, target)[variant] == reason
    chosen = choose(variant.pass_name, "auto", problem, target)
    assert chosen is choose(variant.pass_name, "untuned", problem, target)
    assert chosen.name == ("implicit_gemm" if reason else "tensor_core")


@pytest.mark.parametrize("variant", [INPUT_GRAD, KERNEL_GRAD], ids=str)
def test_a_rounded_gradient_is_two_products(variant):
    """Of an activation whose derivative is neither 0 nor 1: more than some GPUs have time for."""
    problem = ConvProblem.parse(LAYER, dtype="float16").with_(activation="tanh")
    reasons = {name: why_not(variant.pass_name, problem, Target("cuda", 100, name))[variant] for name in (
        "sm_80", "sm_89")}  # fmt: skip
    assert reasons == {"sm_80": None, "sm_89": "sm_89 may take longer for 2 TF32 products than for a multiply-add"}


@pytest.mark.parametrize(
    ("pass_name", "text", "chosen", "reason"),
    [
        ("forward", "1,3,56,56,64,5,5", "tensor_core", None),
        ("kernel_grad", "1,3,56,56,64,5,5,dtype=float16", "tensor_core", None),
        ("kernel_grad", "1,3,56,56,64,5,5", "implicit_gemm",
         "a filter has 75 taps; with numbers of 32 bits it is the faster one from 96 on"),
        ("kernel_grad", "1,3,56,56,64,7,7", "tensor_core", None),
        ("kernel_grad", "1,27,56,56,64,1,1,dtype=float16", "implicit_gemm",
         "a filter has 27 taps; with numbers of 16 bits it is the faster one from 28 on"),
        ("forward", "1,64,56,56,8,3,3", "register_tiled", "a group has 8 filters; it is the faster one from 16 on"),
        ("input_grad", "1,64,56,56,9,3,3", "implicit_gemm", "a group has 9 filters; it is the faster one from 16 on"),
        ("kernel_grad", "9,64,5,5,64,3,3", "implicit_gemm",
         "an image has 9 output pixels; it is the faster one from 32 on"),
    ],
)  # fmt: skip
def test_auto_leaves_few_channels_and_pixels_to_lower_rungs(pass_name, text, chosen, reason):
    problem = ConvProblem.parse(text)
    assert why_not(pass_name, problem, "cuda")[BY_NAME[pass_name]["tensor_core"]] == reason
    assert choose(pass_name, "auto", problem, "cuda").name == chosen


def test_auto_does_not_take_it_on_a_cpu():
    for variant in VARIANTS:
        reason = why_not(variant.pass_name, ConvProblem.parse(LAYER), "cpu")[variant]
        assert reason == "it is made for cuda, not for cpu"
