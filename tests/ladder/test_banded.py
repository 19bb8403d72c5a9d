"""What is special about filters as banded matrices on tensor cores: sizes, a tile's edges, factors in parts, NaN."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest

from convbackprop import check
from convbackprop.ladder.registry import select
from convbackprop.ladder.variant import Tunable
from convbackprop.problem import ConvProblem
from tests.support.mutations import replaced

FORWARD, INPUT_GRAD = (select(f"{name}/banded")[0] for name in ("forward", "input_grad"))

each_variant = pytest.mark.parametrize("variant", [FORWARD, INPUT_GRAD], ids=str)


def image_of(variant):
    """Return the name of what is correlated with the filter."""
    return "x" if variant.pass_name == "forward" else "dy"


def faults(variant, device, text, data="normal", offset=0, **changes):
    problem = ConvProblem.parse(text, **{"bias": True, "activation": "relu", **changes})
    return [f"{problem}: {fault}" for fault in check.check(variant, problem, device, data, offset=offset).faults]


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        (FORWARD, "float16"),
        (INPUT_GRAD, "float32"),
        pytest.param(FORWARD, "float32", marks=pytest.mark.slow),
        pytest.param(INPUT_GRAD, "float16", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_width(quick, variant, dtype):
    """A tile and one column more and less, of arrays that begin at aligned addresses and not."""
    found = []
    for width in (*range(1, 10), 15, 16, 17, 33, 64, 65, 128, 129):
        for offset in (0, 1):
            text = f"2,2,7,{width},2,7,9,padding=same,groups=2"
            found += faults(variant, quick, text, "integers", offset, dtype=dtype)
    assert found == []


@each_variant
def test_every_height(quick, variant):
    """Fewer rows than a filter, than a band, and one row and two more."""
    found = []
    for height in (1, 2, 3, 4, 5, 8, 9, 63, 64, 65, 66, 130):
        found += faults(variant, quick, f"2,1,{height},17,1,9,9,padding=same", "integers")
    assert found == []


def filters():
    """Yield (rows, columns, dtype): each is compiled anew, and all but a few extreme ones are slow tests."""
    extreme = {(31, 6, "bfloat16"), (31, 31, "float32")}
    sizes = *((size, size) for size in range(5, 32)), (5, 31), (31, 5), (31, 6), (6, 31), (9, 24), (24, 9), (16, 17)
    for (rows, columns), dtype in product(sizes, ("float32", "float16", "bfloat16")):
        yield pytest.param(rows, columns, dtype, marks=() if (rows, columns, dtype) in extreme else pytest.mark.slow)


@each_variant
@pytest.mark.parametrize(("rows", "columns", "dtype"), list(filters()))
def test_every_filter(quick, variant, rows, columns, dtype):
    found = []
    size = f"{rows},{columns}"
    for text in (f"1,1,34,37,1,{size},padding=same", f"1,2,{rows + 3},{columns + 9},2,{size},groups=2"):
        for data in ("normal", "constant"):
            found += faults(variant, quick, text, data, dtype=dtype)
    assert found == []


@each_variant
@pytest.mark.parametrize(
    ("out_rows", "tiles"),
    [
        pytest.param(out_rows, tiles, marks=() if (out_rows, tiles) in ((1, 4), (4, 1)) else pytest.mark.slow)
        for out_rows in (1, 2, 4)
        for tiles in (1, 2, 4)
    ],
)
def test_every_tile(quick, variant, out_rows, tiles):
    """Whatever a group and a tile are, sums of integers are the same to the bit."""
    values = {"OUT_ROWS": out_rows, "TILES": tiles, "ROWS": 16, "STAGES": 3}
    tunables = {name: Tunable((value,), cuda=value, cpu=value) for name, value in values.items()}
    other = dataclasses.replace(variant, tunables={**variant.tunables, **tunables})
    for dtype in ("float32", "float16"):
        assert faults(other, quick, "1,1,37,141,1,9,11,padding=same", "integers", dtype=dtype) == []


# -- factors in parts -------------------------------------------------------------------------------------------------
#: Numbers that are half and a quarter of a TF32 number's last place above 1, and whose low parts all have one sign.
LOW_BITS = (1 + 2.0**-11 - 2.0**-14, 1 + 2.0**-12 + 2.0**-23)

SUMS = "1,1,24,40,1,15,15,padding=same"


def given_low_bits(variant, x_value, w_value):
    """Return a problem and its inputs: one value for all pixels, one for all taps."""
    problem = ConvProblem.parse(SUMS, bias=variant is FORWARD)
    given = check.inputs(variant.pass_name, problem)
    for name, value in ((image_of(variant), x_value), ("w", w_value)):
        given[name] = np.full_like(given[name], value)
    return problem, given


@each_variant
@pytest.mark.parametrize("x_value", LOW_BITS)
@pytest.mark.parametrize("w_value", LOW_BITS)
@pytest.mark.parametrize("signs", [False, True])
def test_low_bits_of_float32_matter(quick, variant, x_value, w_value, signs):
    """Also where the high parts cancel, so that the result is the low parts."""
    problem, given = given_low_bits(variant, x_value, w_value)
    if signs:
        given["w"][..., ::2] = -1
    assert check.check(variant, problem, quick, given=given).faults == []


@each_variant
@pytest.mark.parametrize(("part", "x_value", "w_value"), [("(1, 0)", LOW_BITS[0], 1), ("(0, 1)", 1, LOW_BITS[0])])
def test_a_part_that_is_left_out_shows(quick, variant, part, x_value, w_value, tmp_path):
    wrong = replaced(str(variant), "band.cuh", f"add{part};", ";", tmp_path)
    problem, given = given_low_bits(variant, x_value, w_value)
    assert check.check(wrong, problem, quick, given=given).faults != []
    assert check.check(variant, problem, quick, given=given).faults == []


def test_a_gradient_of_16_bits_is_not_rounded_before_it_is_multiplied(quick, tmp_path):
    """g = dy * phi'(y) is float32, also of float16: rounded to it, it is wrong where the high parts cancel."""
    problem = ConvProblem.parse(SUMS, dtype="float16", activation="tanh")
    given = check.inputs("input_grad", problem)
    given["dy"][...] = 1
    given["saved"][...] = 0.3
    given["w"][...] = 1
    given["w"][..., ::2] = -1
    assert check.check(INPUT_GRAD, problem, quick, given=given).faults == []
    wrong = replaced("input_grad/banded", "banded.cu", "std::conditional_t<IS_TF32, Acc, Scalar>", "Scalar", tmp_path)
    assert check.check(wrong, problem, quick, given=given).faults != []


def faults_of_scaled(variant, device, exponents):
    problem = ConvProblem.parse(SUMS, bias=False)
    given = check.inputs(variant.pass_name, problem)
    for name, exponent in zip((image_of(variant), "w"), exponents, strict=True):
        given[name] = np.ldexp(given[name], exponent)
    return check.check(variant, problem, device, given=given).faults


@each_variant
@pytest.mark.parametrize(
    "exponents", [(-149, 0), (-130, 10), (-126, -15), (0, -149), (12, -135), (-70, -60), (70, 30)], ids=str
)
def test_small_and_large_numbers_have_low_bits_too(quick, variant, exponents):
    """Subnormal numbers, numbers whose low parts would be, and sums that are too large once they are scaled."""
    assert faults_of_scaled(variant, quick, exponents) == []


@each_variant
def test_without_a_scale_small_numbers_have_no_low_bits(quick, variant, tmp_path):
    wrong = replaced(str(variant), "factors.cuh", "IS_TF32 ? 16777216.0f : 1.0f", "1.0f", tmp_path)
    assert faults_of_scaled(wrong, quick, (-130, 10)) != []


# -- one TF32 number a factor ------------------------------------------------------------------------------------------
#: Cut to TF32, it is off by nearly its last place; rounded, by little.
ABOVE_THE_MIDDLE = 1 + 2.0**-10 - 2.0**-16


@each_variant
@pytest.mark.parametrize("data", ["normal", "constant", "integers", "nonfinite"])
@pytest.mark.parametrize(
    "text", ["2,2,21,37,2,7,9,padding=same,groups=2", "1,1,34,37,1,15,15", "1,1,40,33,1,31,31,padding=same"]
)
def test_tf32_where_it_is_asked_for(quick, variant, text, data):
    assert faults(variant, quick, text, data, precision="tf32") == []


@each_variant
def test_tf32_is_one_product_of_rounded_factors(quick, variant, tmp_path):
    """Its result is within TF32's bound and, as it should be faster for it, not within float32's; nor is it cut."""
    problem, given = given_low_bits(variant, ABOVE_THE_MIDDLE, ABOVE_THE_MIDDLE)
    rounded = problem.with_(precision="tf32")
    blocks = check.launch(variant, rounded, given, quick)
    assert check.judge(variant, rounded, given, blocks).faults == []
    assert check.judge(variant, problem, given, blocks).faults != []
    wrong = replaced(str(variant), "mma.cuh", "(isfinite(f) ? 0x1000 : 0)", "0", tmp_path)
    assert check.check(wrong, rounded, quick, given=given).faults != []


# -- what is no number ------------------------------------------------------------------------------------------------
@each_variant
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, "largest"], ids=str)
def test_a_zero_of_the_band_meets_no_infinity(quick, variant, dtype, value):
    """A pixel that is no number reaches the outputs whose windows hold it, and no others."""
    for text in ("1,1,21,70,1,9,9,padding=same", "1,1,21,70,1,9,10"):
        problem = ConvProblem.parse(text, dtype=dtype, bias=True, activation="relu")
        image = image_of(variant)
        for h, w_ in ((0, 0), (10, 35), (12, 60)):
            given = check.inputs(variant.pass_name, problem)
            number = float(np.finfo(given[image].dtype).max) if value == "largest" else value
            given[image][0, 0, h, w_] = number
            assert check.check(variant, problem, quick, given=given).faults == []


@pytest.mark.parametrize("variant", [FORWARD, INPUT_GRAD], ids=str)
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1,1,40,40,1,15,15,dtype=float64", "the dtype is float64"),
        ("1,1,40,40,1,4,15", "it takes those of 5 to 31 rows and columns"),
        ("1,1,40,40,1,5,32", "it takes those of 5 to 31 rows and columns"),
        ("1,2,40,40,2,15,15", "it works where that is one"),
        ("1,1,40,40,1,15,15,stride=2", "stride 1 only"),
        ("1,1,40,40,1,15,15,dilation=2", "dilation 1 only"),
    ],
)
def test_refused(variant, text, why):
    assert why in variant.refusal(ConvProblem.parse(text))
