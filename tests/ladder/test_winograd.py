"""Sums by transforms: their bound, ragged tiles, infinities, and that nobody gets them unasked."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from convbackprop import check
from convbackprop.check import reference
from convbackprop.devices.gpus import GPUS
from convbackprop.errors import UnsupportedProblem
from convbackprop.ladder.registry import choose, select, why_not
from convbackprop.ladder.variant import Transforms
from convbackprop.problem import ConvProblem
from convbackprop.profile import roofline
from convbackprop.profile.report import launches_of
from convbackprop.tune.search import rungs
from tests.support.mutations import replaced

FORWARD, INPUT_GRAD = VARIANTS = [select(f"{name}/winograd")[0] for name in ("forward", "input_grad")]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def faults(variant, device, text, data="normal", given=None, **changes):
    problem = ConvProblem.parse(text, **{"bias": True, "activation": "relu", **changes})
    return [f"{problem}: {fault}" for fault in check.check(variant, problem, device, data, given=given).faults]


# -- the algorithm ----------------------------------------------------------------------------------------------------
def test_the_transforms_are_an_algorithm():
    """A^T [(G w) * (B^T x)] is the correlation of x and w, for any x and w."""
    transforms, rng = FORWARD.transforms, np.random.default_rng(0)
    a, g, b = (np.array(rows) for rows in (transforms.results, transforms.filter, transforms.pixels))
    x, w = rng.integers(-9, 9, 4), rng.integers(-9, 9, 3)
    assert (a @ ((g @ w) * (b @ x)) == np.correlate(x, w, "valid")).all()
    assert transforms.multiplications == 16 / 36
    assert transforms.additions == 2 * (2 + 2 + 1)


# -- sizes ------------------------------------------------------------------------------------------------------------
@each_variant
def test_ragged_images(quick, variant):
    """Every height and width from 1 to 9, with 1 to 5 channels and filters."""
    for size in range(81):
        height, width = divmod(size, 9)
        channels, filters = 1 + size % 5, 1 + size // 5 % 5
        if channels == filters == 1:
            continue
        text = f"{1 + size % 3},{channels},{height + 1},{width + 1},{filters},3,3,padding=1"
        assert faults(variant, quick, text, "integers") == []


@each_variant
def test_scale_and_residual(quick, variant):
    """Also in the last column of an odd image, which has no neighbour, and after sums that are formed anew."""
    options = "scale=1,residual=1" if variant is FORWARD else "scale=1"
    for text in ("2,6,5,7,10,3,3,groups=2,padding=1", "1,9,3,3,66,3,3,padding=1"):
        for data in ("normal", "integers", "nonfinite"):
            assert faults(variant, quick, f"{text},{options}", data) == []


@each_variant
def test_any_padding(quick, variant):
    """Also more than a filter, on one side only, and more than the image."""
    for top, bottom, left, right in ((0, 0, 0, 0), (5, 0, 0, 4), (1, 2, 3, 0), (0, 3, 7, 7)):
        text = f"2,3,4,5,2,3,3,padding={top}:{bottom}x{left}:{right}"
        assert faults(variant, quick, text, "integers") == []


@each_variant
@pytest.mark.parametrize("counts", [(64, 9), (65, 8), (9, 130)], ids=str)
def test_tiles_of_filters_and_steps_of_channels(quick, variant, counts):
    rows, channels = counts
    c, k = (channels, rows) if variant is FORWARD else (rows, channels)
    assert faults(variant, quick, f"1,{2 * c},3,13,{2 * k},3,3,groups=2,padding=1") == []


def test_a_transposed_convolution(quick):
    assert faults(INPUT_GRAD, quick, "2,3,5,6,4,3,3,padding=1,transposed=1", activation="tanh") == []


@each_variant
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1,4,9,9,4,5,5", "the filter is 5x5; it works with 3x3 only"),
        ("1,4,9,9,4,3,1", "the filter is 3x1; it works with 3x3 only"),
        ("1,4,9,9,4,3,3,stride=2x1", "stride is 2x1; it works with stride 1 only"),
        ("1,4,9,9,4,3,3,dilation=2", "dilation is 2x2; it works with dilation 1 only"),
        ("1,4,9,9,4,3,3,groups=4", "a group has one channel and one filter"),
        ("1,4,9,9,4,3,3,dtype=float64", "the dtype is float64"),
        ("1,8192,9,9,8192,3,3", "there are 1,073,741,824 numbers"),
    ],
)
def test_refusals(variant, text, sentence):
    problem = ConvProblem.parse(text)
    if "8192" in text:  # the most that it counts
        assert variant.refusal(problem) is None
        problem, sentence = problem.with_(C=8200, K=8200), "numbers of the transformed filter; it counts up to"
    assert sentence in variant.refusal(problem)


# -- the bound --------------------------------------------------------------------------------------------------------
def cancelling(variant, size):
    """Return a problem and inputs whose transforms add up numbers of so large a size, of which the sums have none.

    Large pixels meet taps of 0 there, but are added to those that do not.
    """
    problem = ConvProblem.parse("1,3,6,8,3,3,3")
    given = check.inputs(variant.pass_name, problem, seed=1)
    given["w"][..., 2] = 0
    images = given["x" if variant is FORWARD else "dy"]
    images[..., 2::4] *= size
    return problem, given


def shares(variant, device, problem, given):
    """Return the largest errors as shares of the bound of sums, and of that of the variant."""
    ((name, (value, magnitude)),) = reference.answer(variant.pass_name, problem, given).items()
    got = check.launch(variant, problem, given, device)[name].array
    transformed = reference.transformed_error(variant.pass_name, problem, given, variant.transforms)
    bounds = (reference.error_bound(name, problem, value, magnitude, each) for each in (None, transformed))
    return [reference.error_share(got, value, bound, problem.dtype).max() for bound in bounds]


@each_variant
@pytest.mark.parametrize("size", [2.0**6, 2.0**30])
def test_what_cancels_is_within_its_own_bound_alone(quick, variant, size):
    problem, given = cancelling(variant, size)
    of_sums, own = shares(variant, quick, problem, given)
    assert own <= 1 < of_sums
    assert check.check(variant, problem, quick, given=given).ok
    assert check.check(select(f"{variant.pass_name}/naive")[0], problem, quick, given=given).ok


@each_variant
def test_the_bound_is_tight_enough_to_find_rounded_transforms(quick, variant, tmp_path):
    """Pixels that are rounded to 16 bits in their transform fail on normal data, and on data that cancel."""
    old = "slice.tiles[e][step][column] = d[e];"
    wrong = replaced(str(variant), "winograd.cuh", old, "slice.tiles[e][step][column] = Acc(__half(d[e]));", tmp_path)
    assert faults(wrong, quick, "1,3,6,8,3,3,3") != []
    assert faults(variant, quick, "1,3,6,8,3,3,3") == []


@each_variant
@pytest.mark.parametrize("text", ["1,2,5,7,3,3,3,padding=1", "2,6,4,3,4,3,3,groups=2,padding=2:0x1:3"])
def test_the_bound_by_plain_arithmetic(variant, text):
    """Of each element by the definition: n + 12 round-offs of what its tile adds up, each tile by itself."""
    problem = ConvProblem.parse(text)
    p, transforms = problem, variant.transforms
    given = check.inputs(variant.pass_name, problem)
    is_forward, per_group = variant is FORWARD, p.K // p.groups
    a, g, b = (abs(np.array(rows)) for rows in (transforms.results, transforms.filter, transforms.pixels))
    images, filters = (np.float64(abs(given[name])) for name in ("x" if is_forward else "dy", "w"))
    found = reference.transformed_error(variant.pass_name, problem, given, transforms)
    (n_images, planes, rows, cols), pad = found.shape, (p.pad_top, p.pad_left)
    corner = pad if is_forward else (2 - pad[0], 2 - pad[1])
    channels = p.C // p.groups if is_forward else per_group
    round_offs = channels + 12
    for n, plane, h, w_ in product(range(n_images), range(planes), range(rows), range(cols)):
        group = plane // (planes // p.groups)
        sums = np.zeros((4, 4))
        for c in range(channels):
            tile = np.zeros((4, 4))
            for i, j in product(range(4), range(4)):
                at = h // 2 * 2 - corner[0] + i, w_ // 2 * 2 - corner[1] + j
                if 0 <= at[0] < images.shape[2] and 0 <= at[1] < images.shape[3]:
                    tile[i, j] = images[n, group * channels + c][at]
            at = (plane, c) if is_forward else (group * per_group + c, plane % (p.C // p.groups))
            taps = filters[at] if is_forward else filters[at][::-1, ::-1]
            sums += (g @ taps @ g.T) * (b @ tile @ b.T)
        expected = (a @ sums @ a.T)[h % 2, w_ % 2] * round_offs * 2.0**-24
        assert expected <= found[n, plane, h, w_] <= expected * (1 + round_offs * 2.0**-23) + 1e-40


@each_variant
def test_an_infinity_beside_what_is_added_up_leaves_the_bound(variant):
    """The last row of a tile belongs to the last result alone: a coefficient of 0 adds nothing."""
    problem = ConvProblem.parse("1,2,4,4,2,3,3,padding=1")
    given, of_images = check.inputs(variant.pass_name, problem), "x" if variant is FORWARD else "dy"
    plain = reference.transformed_error(variant.pass_name, problem, given, variant.transforms)
    given[of_images][0, 0, 2, 1] = np.inf  # the last row of the upper tiles, and the second one of the lower tiles
    found = reference.transformed_error(variant.pass_name, problem, given, variant.transforms)
    assert np.array_equal(found[..., 0, :], plain[..., 0, :]) and np.all(np.isinf(found[..., 1:, :2]))


def test_the_bound_follows_from_the_transforms():
    """Other matrices, other round-offs: those of the sum itself."""
    plain = Transforms(((1,),), ((1,),), ((1,),))
    problem = ConvProblem.parse("1,5,3,4,2,1,1")
    given = check.inputs("forward", problem)
    (_, magnitude) = reference.answer("forward", problem, given)["y"]
    found = reference.transformed_error("forward", problem, given, plain)
    np.testing.assert_allclose(found, 7 * 2.0**-24 / (1 - 7 * 2.0**-24) * magnitude, rtol=1e-12)


@each_variant
def test_subnormal_numbers_are_kept(quick, variant):
    """A filter of the smallest numbers, whose halves would be lost in its transform."""
    problem = ConvProblem.parse("1,2,4,4,2,3,3")
    given = check.inputs(variant.pass_name, problem, "integers")
    exact, _ = reference.answer(variant.pass_name, problem, given)["y" if variant is FORWARD else "dx"]
    given["w"] = np.float32(np.ldexp(given["w"], -149))
    ((_, block),) = [(k, v) for k, v in check.launch(variant, problem, given, quick).items() if k in ("y", "dx")]
    assert np.array_equal(block.array, np.ldexp(exact, -149))


@pytest.mark.parametrize(
    ("y", "is_open"),
    [(0.0, False), (-0.0, False), (1e-45, True), (-1e-45, False), (np.nan, True), (np.inf, True), (-np.inf, False)],
)
def test_relu_rule_for_the_saved_output(quick, y, is_open):
    problem = ConvProblem.parse("1,2,4,5,2,3,3", activation="relu")
    given = check.inputs("input_grad", problem, "constant")
    given["saved"][...] = y
    assert check.check(INPUT_GRAD, problem, quick, given=given).faults == []
    assert (check.launch(INPUT_GRAD, problem, given, quick)["dx"].array != 0).all() == is_open


def test_relu_of_zeros_and_nan(quick):
    """And its bits, of windows of one pixel that is not 0."""
    problem = ConvProblem.parse("1,2,3,18,2,3,3,stride=1", activation="relu", mask=True)
    given = {"x": np.zeros(problem.x_shape, np.float32), "w": np.ones(problem.w_shape, np.float32)}
    given["x"][0, 1, 1, 1::3] = [0.0, -0.0, np.nan, -1.0, np.inf, -np.inf]
    blocks = check.launch(FORWARD, problem, given, quick)
    expected = np.float32([0, 0, np.nan, 0, np.inf, 0])
    for k in range(2):
        assert np.array_equal(blocks["y"].array[0, k, 0, ::3], expected, equal_nan=True)
    assert np.array_equal(blocks["mask"].array, reference.mask_of(blocks["y"].array))


# -- what is not finite -----------------------------------------------------------------------------------------------
@each_variant
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_pixel_that_is_not_finite(quick, variant, value):
    """At each place in a tile, and a tap that is not finite, over the padding, too."""
    problem = ConvProblem.parse("1,2,5,5,2,3,3,padding=1")
    for name in ("x" if variant is FORWARD else "dy", "w"):
        for at in product(range(3 if name == "w" else 5), repeat=2):
            given = check.inputs(variant.pass_name, problem)
            given[name][(0, 1, *at)] = value
            assert check.check(variant, problem, quick, given=given).faults == []


@each_variant
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_sum_that_overflows_is_not_nan(quick, variant, dtype):
    """Finite terms, each as large as may be, whose sum is too large."""
    problem = ConvProblem.parse("1,70,4,4,70,3,3", dtype=dtype)
    for sign in (1, -1):
        given = check.inputs(variant.pass_name, problem)
        given["w"][...] = 6e4 if dtype == "float16" else 1.8e19
        given["x" if variant is FORWARD else "dy"][...] = sign * given["w"].flat[0]
        name = "y" if variant is FORWARD else "dx"
        assert (check.launch(variant, problem, given, quick)[name].array == sign * np.inf).all()


@each_variant
def test_transforms_that_overflow(quick, variant, tmp_path):
    """Sums that are finite, of pixels whose transforms are not; also where these make infinities of one sign."""
    problem = ConvProblem.parse("1,2,6,6,2,3,3")
    given = check.inputs(variant.pass_name, problem)
    name = "x" if variant is FORWARD else "dy"
    signs = np.sign(given[name])
    given["w"] = np.float32(np.ldexp(abs(given["w"]), -5))
    for pixels in (np.ldexp(signs, 127), np.ldexp(abs(signs), 126)):
        given[name] = np.float32(pixels)
        assert check.check(variant, problem, quick, given=given).faults == []
    wrong = replaced(str(variant), "winograd.cuh", "fma(both[i][j], Acc(0), both[i][j])", "both[i][j]", tmp_path)
    assert check.check(wrong, problem, quick, given=given).faults != []


# -- what is said of it -----------------------------------------------------------------------------------------------
@each_variant
def test_a_profile_counts_its_own_multiplications(variant):
    problem = ConvProblem.parse("32,64,56,56,64,3,3,padding=1")
    of_sums = select(f"{variant.pass_name}/implicit_gemm")[0]
    own, whole = (
        roofline.bounds(GPUS[0], variant.pass_name, problem, launches_of(each, problem))[1].seconds
        for each in (variant, of_sums)
    )
    assert own == pytest.approx(16 / 36 * whole)


# -- who gets it ------------------------------------------------------------------------------------------------------
@each_variant
def test_it_is_chosen_by_its_name_alone(variant):
    """Its errors are not within the bound that is promised to a call that names no variant."""
    problem = ConvProblem.parse("32,64,56,56,64,3,3,padding=1", bias=True, activation="relu")
    for device_kind in ("cpu", "cuda"):
        reason = why_not(variant.pass_name, problem, device_kind)[variant]
        assert reason is not None
        assert choose(variant.pass_name, "winograd", problem, device_kind) is variant
    assert "wider than the one that is promised" in reason
    with pytest.raises(UnsupportedProblem, match="it works with 3x3 only"):
        choose(variant.pass_name, "winograd", problem.with_(R=5, S=5), "cuda")


@each_variant
def test_the_search_does_not_begin_with_it(variant):
    class Gpu:
        kind = "cuda"

    found = rungs(variant.pass_name, ConvProblem.parse("32,64,56,56,64,3,3,padding=1"), Gpu(), 10.0)
    assert [rung.name for rung in found if rung.transforms] == []
    assert "implicit_gemm" in [rung.name for rung in found]
