"""The activations that the other tests leave out, in every pass, and one of them in every rung."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from convbackprop import check
from convbackprop.activations import ACTIVATIONS, COMMON
from convbackprop.check import reference
from convbackprop.ladder.registry import VARIANTS
from convbackprop.problem import ConvProblem
from tests.support.quick import quick_on_cpu
from tests.support.turns import in_turn

OTHERS = (*(name for name in ACTIVATIONS if name not in COMMON), "leaky_relu:0.2")
#: What a derivative is formed from for the first time, in each of the passes.
NAIVE = [variant for variant in VARIANTS if variant.name == "naive"]
KINDS = [
    pytest.param(
        name, dtype, marks=() if dtype == "float32" or (name, dtype) == ("gelu", "float64") else pytest.mark.slow
    )
    for name in OTHERS
    for dtype in ("float32", "float64", "float16", "bfloat16")
]


def given_to(pass_name, problem, scale):
    """The pass's inputs, so large that sums reach far into both tails of an activation."""
    plain = check.inputs("forward", problem, seed=1)
    layer = {name: (array * array.dtype.type(scale)).astype(array.dtype) for name, array in plain.items()}
    if pass_name == "forward":
        return layer
    given = check.inputs(pass_name, problem, seed=1)
    return given | {name: layer[name] for name in given if name in layer} | {
        "saved": reference.saved_by_forward(problem, layer)
    }  # fmt: skip


@pytest.mark.parametrize(("activation", "dtype"), KINDS)
@pytest.mark.parametrize("variant", NAIVE, ids=str)
def test_near_and_far_from_zero(device, variant, activation, dtype):
    problem = ConvProblem.parse("2,1,9,12,1,3,3,padding=1,bias=1", activation=activation, dtype=dtype)
    for scale in (0.01, 1, 30 if dtype == "float16" else 1000):
        given = given_to(variant.pass_name, problem, scale)
        assert check.check(variant, problem, quick_on_cpu(device), given=given).faults == [], scale


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", NAIVE[1:], ids=str)
def test_an_infinite_gradient_meets_no_derivative_that_underflows(device, variant, dtype):
    """Whose sums are so long that most pre-activations lie where gelu's derivative is 0 in float32 alone."""
    problem = ConvProblem.parse("3,12,16,4,1,6,3", activation="gelu", dtype=dtype)
    for seed in (1, 5, 231):
        assert check.check(variant, problem, quick_on_cpu(device), "nonfinite", seed).faults == [], seed


@in_turn(
    0,
    [v for v in VARIANTS if v.name != "naive"],
)
def test_every_rung_forms_a_derivative_from_the_pre_activation(device, variant):
    texts = (
        "2,3,9,12,3,3,3,padding=1,groups=3,bias=1", "2,3,9,12,4,3,3,padding=1,bias=1",
        "2,3,9,12,3,5,6,padding=2,groups=3,bias=1", "2,4,9,12,4,3,3,padding=1,bias=1",
    )  # fmt: skip
    kinds = {"dtype": "float32"}, {"precision": "tf32"}, {"dtype": "float16"}
    problems = [ConvProblem.parse(text, activation="gelu", **kind) for kind, text in product(kinds, texts)]
    problem = next((p for p in problems if not variant.refusal(p)), None)
    if problem is None:
        pytest.skip(f"{variant}: {variant.refusal(problems[-1])}")
    assert check.check(variant, problem, quick_on_cpu(device)).faults == []


@pytest.mark.parametrize(
    ("activation", "mistaken"),
    [("gelu", "gelu_tanh"), ("leaky_relu", "leaky_relu:0.0101"), ("softplus", "relu"), ("silu", "hardswish")],
)
@pytest.mark.parametrize("variant", NAIVE, ids=str)
def test_activations_that_are_alike_are_told_apart(device, variant, activation, mistaken):
    right = ConvProblem.parse("2,1,9,12,1,3,3,padding=1,bias=1", activation=activation)
    given = check.inputs(variant.pass_name, right)
    blocks = check.launch(variant, right.with_(activation=mistaken), given, quick_on_cpu(device))
    assert any("are wrong" in fault for fault in check.judge(variant, right, given, blocks).faults)


def test_the_derivative_is_that_of_the_value():
    """By differences, in long double: neither of the two shares a line with the other."""
    s = np.linspace(-7, 7, 1000, dtype=np.longdouble) + np.longdouble(1) / 7777
    h = np.longdouble(2) ** -20
    for name, phi in ACTIVATIONS.items():
        saved = s if phi.saved == "pre_activation" else phi.value(np, s)
        slope = (phi.value(np, s + h) - phi.value(np, s - h)) / (2 * h)
        error = abs(phi.grad(np, np.ones_like(s), saved) - slope)
        kinks = np.abs(s[:, None] - np.array([-3, 0, 3, 6])).min(axis=1) < h
        assert error[~kinks].max() < 1e-9, name
        assert abs(slope[~kinks]).max() <= phi.slope, name
