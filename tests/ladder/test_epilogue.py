"""A layer's scale and residual: the rungs that take them, those that refuse them, and the public functions."""

from __future__ import annotations

import numpy as np
import pytest

import convbackprop
from convbackprop import check, ops
from convbackprop.check import reference
from convbackprop.errors import InvalidArgument, InvalidType, UnsupportedProblem
from convbackprop.ladder.implicit_gemm import splits
from convbackprop.ladder.registry import VARIANTS, choose, of_pass, select
from convbackprop.ladder.variant import pinned
from convbackprop.launch.plan import constants_of
from convbackprop.problem import DTYPES, ConvProblem
from tests.support.turns import has_turn

#: Two groups of more filters than a tile has; and no size like another.
TEXTS = ("1,34,5,9,132,3,3,groups=2,padding=1", "2,6,9,11,10,3,3,groups=2,padding=1")
BOTH = {"scale": True, "residual": True, "bias": True}

#: For rungs that take groups of few channels alone.
FEW = "2,6,5,9,4,3,3,groups=2,stride=2x1,padding=1"

TAKING = [variant for variant in VARIANTS if variant.takes("scale")]


def text_for(variant):
    return FEW if variant.name == "few_channels" else TEXTS[0]


def rungs_and_dtypes():
    """Every rung in every dtype; by default in one, of the costly by turns, and of the kernel gradients the first."""
    for variant in TAKING:
        problem = ConvProblem.parse(text_for(variant), activation="relu", **BOTH)
        dtypes = [dtype for dtype in DTYPES if variant.refusal(problem.with_(dtype=dtype), "cpu") is None]
        assert dtypes, variant
        for dtype in dtypes:
            briefly = dtype == dtypes[0] and (variant.pass_name != "kernel_grad" or variant.name == "naive")
            briefly &= has_turn(variant, 0, every=2)
            briefly |= f"{variant}, {dtype}" == "input_grad/tensor_core, float16"  # whose filter then has two parts
            yield pytest.param(variant, dtype, marks=() if briefly else pytest.mark.slow, id=f"{variant}-{dtype}")


@pytest.mark.parametrize(("variant", "dtype"), list(rungs_and_dtypes()))
def test_every_rung_that_takes_them_is_right(quick, variant, dtype):
    problem = ConvProblem.parse(text_for(variant), dtype=dtype, activation="relu", **BOTH)
    assert variant.refusal(problem, "cpu") is None
    for data in ("normal", "nonfinite"):
        assert check.check(variant, problem, quick, data, seed=3).faults == []


@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_several_pixels_of_a_thread(quick, pass_name):
    """And what is formed anew, beside the padding, of an infinite tap."""
    variant = pinned(select(f"{pass_name}/few_channels")[0], (("TILE_ROWS", 2), ("TILE_COLS", 2)))
    problem = ConvProblem.parse(FEW, activation="relu", **BOTH)
    given = check.inputs(pass_name, problem, seed=3)
    given["w"][1, 2, 0, 0] = np.inf
    assert check.check(variant, problem, quick, given=given).faults == []


@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_split_sums_are_finished_once(quick, pass_name):
    variant = select(f"{pass_name}/implicit_gemm")[0]
    problem = ConvProblem.parse("1,128,5,6,320,2,2,padding=1", activation="relu", **BOTH)
    assert splits(pass_name, problem, variant.constants("cpu", problem)) > 1
    for data in ("normal", "nonfinite"):
        assert check.check(variant, problem, quick, data).faults == []


def test_who_takes_them():
    names = {
        name: {v.name for v in of_pass(name) if v.takes("scale")} for name in ("forward", "input_grad", "backward")
    }
    products = {"implicit_gemm", "tensor_core", "winograd", "vectorised_gemm"}
    assert names == {
        "forward": {"naive", "few_channels", "vectorised", "vectorised_direct", "hopper", *products},
        "input_grad": {"naive", "few_channels", *products},
        "backward": set(),
    }
    assert [v.name for v in of_pass("kernel_grad") if not v.takes("scale")] == ["hopper", "vectorised_direct"]
    for variant in of_pass("forward"):
        assert variant.takes("residual") == variant.takes("scale")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_layer_without_them_is_compiled_as_before(variant):
    """Their constants are there for a problem that has them, so that no other one has code for them."""
    plain = ConvProblem.parse(TEXTS[0], bias=True)
    assert {"SCALED", "RESIDUAL"}.isdisjoint(constants_of(variant, plain, variant.runs_on[0]))
    found = constants_of(variant, plain.with_(**BOTH), variant.runs_on[0])
    assert {"SCALED", "RESIDUAL"} & found.keys() == {
        "SCALED",
        *(["RESIDUAL"] if variant.pass_name == "forward" else []),
    }


def test_a_problem_that_has_them():
    text = "2,6,9,11,10,3,3,scale=1,residual=1"
    problem = ConvProblem.parse(text)
    assert str(problem) == text and problem == ConvProblem.parse(
        text[: -len(",scale=1,residual=1")], scale=True, residual=True
    )
    for name in ("scale", "residual"):
        with pytest.raises(InvalidArgument, match=f"^{name} is given, which a transposed convolution does not take$"):
            ConvProblem.parse("1,1,5,5,1,3,3,transposed=1", **{name: True})


# -- the public functions ---------------------------------------------------------------------------------------------
def layer(dtype="float32", seed=0):
    problem = ConvProblem.parse(TEXTS[1], dtype=dtype, activation="tanh", **BOTH)
    return (
        problem,
        check.inputs("forward", problem, seed=seed),
        {"padding": 1, "groups": 2, "activation": "tanh", "variant": "naive"},
    )


@pytest.mark.usefixtures("quick_commands")
@pytest.mark.parametrize("dtype", DTYPES)
def test_public_functions(dtype):
    problem, a, how = layer(dtype)
    dy = check.inputs("kernel_grad", problem.with_(activation="identity"), seed=5)["dy"]
    scale = {"scale": a["scale"], "device": "cpu"}
    y = ops.conv2d(a["x"], a["w"], a["b"], residual=a["residual"], **scale, **how)
    dx = ops.conv2d_input_grad(problem.x_shape, a["w"], dy, output=y, **scale, **how)
    dw, db = ops.conv2d_kernel_grad(a["x"], problem.w_shape, dy, output=y, with_bias=True, **scale, **how)
    given = {**a, "dy": dy, "saved": y}
    found = {"y": y, "dx": dx, "dw": dw, "db": db}
    expected = reference.answer("forward", problem, given) | reference.answer("backward", problem, given)
    for name, (value, magnitude) in expected.items():
        bound = reference.error_bound(name, problem, value, magnitude)
        assert np.all(abs(found[name].astype(value.dtype) - value) <= bound), name
    both = ops.conv2d_backward(dy, a["x"], a["w"], output=y, **scale, **how)
    assert all(np.array_equal(found[name], one) for name, one in zip(("dx", "dw", "db"), both, strict=True))
    one = ops.conv2d(a["x"][0], a["w"], a["b"], residual=a["residual"][0], **scale, **how)  # one image, unbatched
    assert np.array_equal(one, y[0])


@pytest.mark.usefixtures("quick_commands")
def test_mask_out_and_prepared_calls():
    _, a, how = layer()
    how |= {"activation": "relu", "scale": a["scale"], "residual": a["residual"], "device": "cpu"}
    y, mask = ops.conv2d(a["x"], a["w"], a["b"], save_mask=True, **how)
    assert np.array_equal(mask, reference.mask_of(y))
    out = np.empty_like(y)
    call = convbackprop.prepare(ops.conv2d, a["x"], a["w"], a["b"], out=out, **how)
    assert call.arrays == ("input", "weight", "bias", "scale", "residual")
    assert call() is out and np.array_equal(out, y)
    assert np.array_equal(
        call(a["x"], a["w"], a["b"], 2 * a["scale"]),
        ops.conv2d(a["x"], a["w"], a["b"], **how | {"scale": 2 * a["scale"]}),
    )
    with pytest.raises(InvalidArgument, match="out shares memory with residual; it should be an array of its own"):
        ops.conv2d(a["x"], a["w"], out=a["residual"], **how)  # what is formed anew reads it once more


def test_refusals():
    problem, a, how = layer()
    for name, array, error, words in (
        ("scale", a["scale"][:-1], InvalidArgument, r"scale has shape \(9,\); it should be \(10,\), one value an"),
        (
            "residual",
            a["x"],
            InvalidArgument,
            r"residual has shape .*; it should be \(2, 10, 9, 11\), the shape of the",
        ),
        (
            "residual",
            a["residual"].astype(np.float64),
            InvalidType,
            "residual has dtype float64, but it should be float32",
        ),
    ):
        with pytest.raises(error, match=words):
            ops.conv2d(a["x"], a["w"], **{name: array}, **how)
    with pytest.raises(InvalidArgument, match=r"scale has shape .*; it should be \(10,\)"):
        ops.conv2d_kernel_grad(a["x"], problem.w_shape, a["residual"], padding=1, groups=2, scale=a["x"])
    with pytest.raises(UnsupportedProblem, match=r"forward/tiled does not compute this problem: it takes no scale"):
        ops.conv2d(a["x"], a["w"], scale=a["scale"], **how | {"variant": "tiled"})
    with pytest.raises(UnsupportedProblem, match=r"backward/fused .*: it takes no scale"):
        ops.conv2d_backward(a["residual"], a["x"], a["w"], padding=1, groups=2, scale=a["scale"], variant="fused")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_auto_passes_by_who_does_not_take_them(kind):
    few, many = (
        ConvProblem.parse(text, **BOTH) for text in ("1,1,64,64,1,3,3,padding=1", "8,64,28,28,64,3,3,padding=1")
    )
    for problem in (few, many):
        for pass_name in ("forward", "input_grad", "kernel_grad"):
            assert choose(pass_name, "auto", problem, kind).takes("scale")
    assert select("forward/naive")[0].refusal(few) is None


def test_depthwise_layers_with_them_do_not_fall_to_naive():
    problem = ConvProblem.parse("8,64,56,56,64,3,3,padding=1,groups=64", **BOTH)
    chosen = [choose(pass_name, "auto", problem, "cuda").name for pass_name in ("forward", "input_grad")]
    assert chosen == ["few_channels", "few_channels"]
