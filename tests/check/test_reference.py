"""The reference that everything is held against: against sums written as loops, hand-computed bounds, and torch."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from convbackprop import check
from convbackprop.activations import COMMON
from convbackprop.check import reference
from convbackprop.problem import DTYPES, PASSES, RESULTS, ConvProblem
from tests.support.problems import PROBLEMS, WITH_IMAGES
from tests.support.turns import every_other

TINY = (
    "1,1,1,1,1,1,1",
    "2,2,3,4,3,2,3",
    "1,2,4,3,2,2,1,stride=2x1,padding=1:0x0:2",
    "2,4,3,4,2,2,2,groups=2,dilation=2x1,padding=1",
    "1,3,5,4,3,3,2,groups=3,stride=2,padding=2",
    "1,1,3,4,1,4,1,padding=same",
    "2,2,3,4,4,2,2,groups=2,padding=1,scale=1,residual=1",
)


def taps(p):
    """Yield (n, k, p, q, c, r, s, h, w) of each product, c being a channel of x and h, w inside the image."""
    per_group = p.K // p.groups
    for n, k, i, j in np.ndindex(*p.y_shape):
        for c, r, s in np.ndindex(*p.w_shape[1:]):
            h = i * p.stride[0] - p.padding[0][0] + r * p.dilation[0]
            w = j * p.stride[1] - p.padding[1][0] + s * p.dilation[1]
            if 0 <= h < p.H and 0 <= w < p.W:
                yield n, k, i, j, c, k // per_group * p.w_shape[1] + c, r, s, h, w


def gate(u):
    return 1 / (1 + math.exp(-u))


PHI = {
    "identity": lambda s: s,
    "relu": lambda s: max(s, 0.0),
    "logistic": lambda s: 1 / (1 + math.exp(-s)),
    "tanh": math.tanh,
    "relu6": lambda s: min(max(s, 0.0), 6.0),
    "leaky_relu": lambda s: s if s > 0 else 0.01 * s,
    "leaky_relu:0.2": lambda s: s if s > 0 else 0.2 * s,
    "softplus": lambda s: math.log(1 + math.exp(s)),
    "silu": lambda s: s / (1 + math.exp(-s)),
    "gelu": lambda s: 0.5 * s * math.erfc(-s / math.sqrt(2)),
    "gelu_tanh": lambda s: s * gate(math.sqrt(8 / math.pi) * (s + 0.044715 * s**3)),
    "hardswish": lambda s: s * min(max(s + 3, 0), 6) / 6,
}
#: By the output, or for the last four by the pre-activation.
SLOPE = {
    "identity": lambda y: 1.0,
    "relu": lambda y: float(not y <= 0),
    "logistic": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
    "relu6": lambda y: float(0 < y < 6),
    "leaky_relu": lambda y: 1.0 if y > 0 else 0.01,
    "leaky_relu:0.2": lambda y: 1.0 if y > 0 else 0.2,
    "softplus": lambda y: -math.expm1(-y),
    "silu": lambda s: gate(s) + s * gate(s) * gate(-s),
    "gelu": lambda s: 0.5 * math.erfc(-s / math.sqrt(2)) + s * math.exp(-s * s / 2) / math.sqrt(2 * math.pi),
    "gelu_tanh": lambda s: (
        lambda u: gate(u) + s * gate(u) * gate(-u) * math.sqrt(8 / math.pi) * (1 + 0.134145 * s * s)
    )(math.sqrt(8 / math.pi) * (s + 0.044715 * s**3)),
    "hardswish": lambda s: 0.0 if s < -3 else 1.0 if s > 3 else s / 3 + 0.5,
}


def total(terms):
    return math.fsum(terms) if np.isfinite(terms).all() else float(np.sum(terms))  # fsum raises where NaN comes of it


def loops(pass_name, p, given):
    """Return what `reference.answer` should, by Python's own arithmetic, one product at a time."""
    if pass_name == "backward":
        return {**loops("input_grad", p, given), **loops("kernel_grad", p, given)}
    scale = given["scale"].astype(float) if p.scale else np.ones(p.K)
    if pass_name == "forward":
        x, w = given["x"], given["w"]
        terms = [[] for _ in range(math.prod(p.y_shape))]
        for n, k, i, j, c, x_c, r, s, h, v in taps(p):
            terms[np.ravel_multi_index((n, k, i, j), p.y_shape)].append(float(x[n, x_c, h, v]) * float(w[k, c, r, s]))
        values = []
        for flat, products in enumerate(terms):
            at = np.unravel_index(flat, p.y_shape)
            others = [float(given["b"][at[1]])] if p.bias else []
            others += [float(given["residual"][at])] if p.residual else []
            values.append(
                PHI[p.activation](total([total(products) * scale[at[1]], *others] if p.scale else [*products, *others]))
            )
            terms[flat] = [product * scale[at[1]] for product in products] + others
        return {"y": (p.y_shape, values, terms)}
    g = given["dy"].astype(float)
    if p.saved:
        slope = np.vectorize(SLOPE[p.activation], otypes=[float])(given["saved"].astype(float))
        g = np.where((slope == 0) & (p.activation == "relu"), 0, g * slope)  # a closed ReLU blocks a NaN
    if pass_name == "input_grad":
        terms = [[] for _ in range(math.prod(p.x_shape))]
        for n, k, i, j, c, x_c, r, s, h, v in taps(p):
            product = g[n, k, i, j] * float(given["w"][k, c, r, s])
            terms[np.ravel_multi_index((n, x_c, h, v), p.x_shape)].append(product * scale[k])
        return {"dx": (p.x_shape, [total(t) for t in terms], terms)}
    terms = [[] for _ in range(math.prod(p.w_shape))]
    for n, k, i, j, c, x_c, r, s, h, v in taps(p):
        terms[np.ravel_multi_index((k, c, r, s), p.w_shape)].append(g[n, k, i, j] * float(given["x"][n, x_c, h, v]))
    factors = [scale[np.unravel_index(flat, p.w_shape)[0]] for flat in range(len(terms))]
    biases = [list(g[:, k].ravel()) for k in range(p.K)]
    return {
        "dw": (
            p.w_shape,
            [total(t) * factor if p.scale else total(t) for t, factor in zip(terms, factors, strict=True)],
            [[term * factor for term in t] for t, factor in zip(terms, factors, strict=True)],
        ),
        "db": ((p.K,), [total(t) for t in biases], biases),
    }


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("activation", PHI)
@pytest.mark.parametrize("text", TINY)
def test_against_loops(pass_name, activation, text):
    compare_with_loops(pass_name, ConvProblem.parse(text, activation=activation, bias=True), "normal", 3)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
@pytest.mark.parametrize("text", TINY)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_padding_is_no_pixel(pass_name, activation, text):
    """The loops leave it out: a NaN or an infinity spreads to what it meets, and to nothing by way of the padding."""
    for seed in range(6):
        compare_with_loops(pass_name, ConvProblem.parse(text, activation=activation, bias=True), "nonfinite", seed)


def compare_with_loops(pass_name, p, data, seed):
    given = check.inputs(pass_name, p, data, seed)
    answer = reference.answer(pass_name, p, given)
    expected = loops(pass_name, p, given)
    assert answer.keys() == expected.keys()
    for name, (shape, values, terms) in expected.items():
        value, magnitude = answer[name]
        sizes = np.reshape([total([abs(term) for term in t]) for t in terms], shape)
        values = np.reshape(values, shape)
        assert value.shape == magnitude.shape == shape
        special = ~np.isfinite(values) | ~np.isfinite(sizes)  # the activation makes 0 or 1 of some infinities
        assert np.array_equal(value[special], values[special], equal_nan=True)
        value, magnitude, values, sizes = (a[~special] for a in (value, magnitude, values, sizes))
        # Sums of at most 60 products in float64, each in an order of its own.
        u = 64 * 2.0**-53
        gated = pass_name != "forward" and p.saved == "pre_activation"  # phi' is a sum itself, which may cancel
        assert np.all(abs(value - values) <= u * ((magnitude if gated else sizes) + abs(value)))
        assert np.all(sizes - magnitude <= u * sizes)
        assert gated or np.all(magnitude - sizes <= u * sizes)


def test_mask_and_saved_output_agree():
    for entry in PROBLEMS:
        p = entry.problem(activation="relu").with_(transposed=False)
        for pass_name in ("input_grad", "kernel_grad"):
            by_output = check.inputs(pass_name, p, seed=1)
            by_mask = check.inputs(pass_name, p.with_(mask=True), seed=1)
            assert by_mask["saved"].shape == p.mask_shape
            assert by_mask["saved"].dtype == np.uint8
            assert np.array_equal(
                np.unpackbits(by_mask["saved"], axis=-1, count=p.Q, bitorder="little"), by_output["saved"] > 0
            )
            one = reference.answer(pass_name, p, by_output)
            other = reference.answer(pass_name, p.with_(mask=True), by_mask)
            assert all(np.array_equal(one[name][0], other[name][0]) for name in one)


def test_float64_problems_are_answered_in_long_double():
    p = ConvProblem.parse("1,1,2,2,1,1,1", dtype="float64")
    value, _ = reference.answer("forward", p, check.inputs("forward", p))["y"]
    assert value.dtype == np.longdouble


# -- the bound -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pass_name", "text", "n", "factor"),
    [
        # n products: (n + 2) u / (1 - (n + 2) u), u = 2**-24 = 5.9604645e-8
        ("forward", "1,1,9,9,1,3,3", 9, 6.5565152e-07),
        ("forward", "1,6,9,9,4,3,3,groups=2", 27, 1.7285377e-06),
        ("input_grad", "1,6,9,9,4,3,3,groups=2", 18, 1.1920943e-06),
        ("kernel_grad", "2,1,4,5,1,1,1", 40, 2.5034013e-06),
        # ... capped at 8 sqrt(n + 2) u
        ("kernel_grad", "1,1,100,100,1,1,1", 10000, 4.7688483e-05),
        # float64: u = 2**-53 = 1.110223e-16
        ("forward", "1,1,9,9,1,3,3,dtype=float64", 9, 1.2212453e-15),
        # a half type is accumulated in float32
        ("forward", "1,1,9,9,1,3,3,dtype=float16", 9, 6.5565152e-07),
    ],
)
def test_bound_of_the_sum(pass_name, text, n, factor):
    p = ConvProblem.parse(text)
    name = next(operand.name for operand in PASSES[pass_name].operands if operand.reduction_length)
    assert RESULTS[name].reduction_length(p) == n
    bound = reference.error_bound(name, p, np.zeros(1), np.ones(1))
    assert bound[0] == pytest.approx(factor + 2.0 ** {"float16": -24}.get(p.dtype, -149), rel=1e-6, abs=0)
    twice = reference.error_bound(name, p, np.zeros(1), np.full(1, 2.0))
    assert twice[0] == pytest.approx(2 * bound[0], rel=0.1)


@pytest.mark.parametrize(
    ("dtype", "relative", "subnormal"),
    [
        ("float32", 5.9604645e-8, 1.4012985e-45),
        ("float64", 1.1102230e-16, 4.9406565e-324),
        ("float16", 4.8828125e-4, 5.9604645e-8),
        ("bfloat16", 3.90625e-3, 9.1835496e-41),
    ],
)
def test_bound_of_storing(dtype, relative, subnormal):
    p = ConvProblem.parse("1,1,9,9,1,3,3", dtype=dtype)
    kind = reference.exact_dtype(p)
    zero = reference.error_bound("y", p, np.zeros(1, kind), np.zeros(1, kind))
    assert zero[0] == pytest.approx(subnormal, rel=1e-6, abs=0)
    stored = reference.error_bound("y", p, np.full(1, -8.0, kind), np.zeros(1, kind))
    assert stored[0] == pytest.approx(8 * relative + subnormal, rel=1e-6, abs=0)


def tf32(array, added=0x1000):
    """Return numbers rounded to TF32, or cut to it where nothing is added."""
    return ((array.view(np.uint32) + np.uint32(added)) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("data", ["normal", "worst"])
def test_bound_of_tf32(data):
    """It holds for factors that are rounded, whatever they are, and not for factors that are cut."""
    problem = ConvProblem.parse("1,3,9,9,2,3,3,padding=1,precision=tf32")
    given = check.inputs("forward", problem)
    if data == "worst":  # a little below, and above, the middle between two TF32 numbers
        given = {name: np.full_like(array, 1 + 2.0**-11 - 2.0**-18) for name, array in given.items()}
    value, magnitude = reference.answer("forward", problem, given)["y"]
    bound = reference.error_bound("y", problem, value, magnitude)
    off = abs(reference.correlate(problem, tf32(given["x"]), tf32(given["w"])) - value)
    assert (off <= bound).all()
    if data == "worst":
        assert (off > 0.9 * bound).all()
        above = np.full_like(given["x"], 1 + 2.0**-10 - 2.0**-18)
        cut = reference.correlate(problem, tf32(above, 0), tf32(given["w"], 0))
        off = abs(cut - reference.correlate(problem, above, given["w"]))
        assert (off > bound).all()


def test_tf32_says_nothing_of_other_dtypes_and_sums():
    ieee, rounded = (ConvProblem.parse(f"2,2,5,5,2,3,3,bias=1,precision={p}") for p in ("ieee", "tf32"))
    ones = np.ones(2)
    for name, changes in (("db", {}), ("y", {"dtype": "float16"}), ("dx", {"dtype": "float64"})):
        bounds = [reference.error_bound(name, p.with_(**changes), ones, ones) for p in (ieee, rounded)]
        assert (bounds[0] == bounds[1]).all()


def test_bound_of_activations():
    p = ConvProblem.parse("1,1,9,9,1,3,3")
    one, u = np.ones(1), 2.0**-24
    sum_only = {a: reference.error_bound("y", p.with_(activation=a), 0 * one, one)[0] for a in COMMON}
    assert sum_only["logistic"] == pytest.approx(sum_only["identity"] / 4)  # its slope is at most 1/4
    assert sum_only["relu"] == sum_only["tanh"] == sum_only["identity"]
    value_only = {a: reference.error_bound("y", p.with_(activation=a), one, 0 * one)[0] / u for a in COMMON}
    assert value_only == pytest.approx({"identity": 1, "relu": 1, "logistic": 7, "tanh": 5})
    for a in COMMON:  # a gradient evaluates no activation
        grad = reference.error_bound("dx", p.with_(activation=a), one, one)
        assert grad == reference.error_bound("dx", p, one, one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_rounding_is_inside_the_bound_and_a_wrong_digit_is_not(dtype):
    p = ConvProblem.parse("2,3,8,7,4,3,3", dtype=dtype)
    value, magnitude = reference.answer("forward", p, check.inputs("forward", p))["y"]
    bound = reference.error_bound("y", p, value, magnitude)
    rounded = value.astype(reference.numpy_dtype(dtype))
    assert reference.error_share(rounded, value, bound, dtype).max() <= 1
    off = (value + 1.01 * bound + reference.round_off(dtype) * abs(value)).astype(rounded.dtype)
    assert reference.error_share(off, value, bound, dtype).max() > 1


# -- the error as a share of the bound -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("got", "value", "share"),
    [
        (1.0, 1.0, 0),
        (1.5, 1.0, 0.5),
        (0.0, 1.0, 1),
        (-1.0, 1.0, 2),
        (np.nan, 1.0, np.inf),
        (1.0, np.nan, np.inf),
        (np.nan, np.nan, 0),
        (np.inf, 1.0, np.inf),
        (1.0, np.inf, np.inf),
        (np.inf, np.inf, 0),
        (-np.inf, np.inf, np.inf),
        (np.nan, np.inf, np.inf),
        (np.inf, np.nan, np.inf),
        (-0.0, 0.0, 0),
        (np.inf, 1e39, 0),  # too large for float32
        (-np.inf, -1e39, 0),
        (-np.inf, 1e39, np.inf),
        (np.nan, 1e39, np.inf),
        (np.inf, 3.4e38, np.inf),  # not too large
        (3.4e38, 1e39, np.inf),
        (-np.inf, -1.0, np.inf),
    ],
)
def test_error_share(got, value, share):
    bound = np.full(1, abs(value) * 2.0**-24 if abs(value) > 1 else 1.0)
    result = reference.error_share(np.float32([got]), np.array([value]), bound, "float32")
    if share == np.inf and np.isfinite(got) and np.isfinite(value):
        assert result[0] > 1e6
    else:
        assert result.tolist() == [share]


def test_error_share_of_a_finite_value_of_an_infinite_sum():
    p = ConvProblem.parse("1,1,1,3,1,1,1", activation="relu")
    value, magnitude = reference.answer("forward", p, {"x": np.full(p.x_shape, -np.inf), "w": np.ones(p.w_shape)})["y"]
    bound = reference.error_bound("y", p, value, magnitude)
    got = np.float32([0, 1, np.nan]).reshape(p.y_shape)
    assert reference.error_share(got, value, bound, "float32").ravel().tolist() == [0, np.inf, np.inf]


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504.0), ("bfloat16", 3.3895e38)])
def test_error_share_of_half_overflow(dtype, largest):
    kind = reference.numpy_dtype(dtype)
    overflow, not_quite = np.array([np.inf, np.inf], kind), np.array([largest * 1.01, largest * 0.99])
    assert reference.error_share(overflow, not_quite, not_quite * 1e-7, dtype).tolist() == [0, np.inf]


# -- torch -----------------------------------------------------------------------------------------------------------
def torch_answer(p, given, dy):
    """Return y, dx, dw and db of float64 torch.autograd."""
    import torch
    from torch.nn import functional

    from tests.support import activations

    x, w, b = (torch.from_numpy(given[name].astype(np.float64)).requires_grad_() for name in "xwb")
    (top, bottom), (left, right) = p.padding
    padded = functional.pad(x, (left, right, top, bottom))
    y = functional.conv2d(padded, w, None, p.stride, 0, p.dilation, p.groups)
    options = {
        name: torch.from_numpy(given[name].astype(np.float64)) for name in ("scale", "residual") if name in given
    }
    y = y * options.get("scale", torch.ones(p.K)).reshape(-1, 1, 1) + b.reshape(-1, 1, 1) + options.get("residual", 0)
    y = activations.PHI[p.activation](y)
    y.backward(torch.from_numpy(dy.astype(np.float64)))
    return {"y": y.detach().numpy(), "dx": x.grad.numpy(), "dw": w.grad.numpy(), "db": b.grad.numpy()}


@functools.cache
def before_activation(entry, seed):
    """Return a problem without its activation, inputs of all passes, and the reference's answers, by pass."""
    plain = entry.problem(activation="identity").with_(bias=True, transposed=False)
    given = check.inputs("forward", plain, entry.data, seed) | check.inputs("kernel_grad", plain, entry.data, seed)
    return plain, given, {name: reference.answer(name, plain, given) for name in PASSES}


@pytest.mark.parametrize("activation", every_other(PHI))
def test_against_torch_autograd(activation):
    pytest.importorskip("torch", reason="needs torch, which is not installed: the reference against torch.autograd")
    u = 2.0**-53
    for seed, entry in enumerate(WITH_IMAGES):
        plain, given, answers = before_activation(entry, seed)
        p, given = plain.with_(activation=activation), dict(given)  # float32 data, answered in float64
        expected = torch_answer(p, given, given["dy"])
        y, y_terms = reference.answer("forward", p, given)["y"]
        given["saved"] = answers["forward"]["y"][0] if p.saved == "pre_activation" else y
        # How far two float64 computations of y may be apart, and hence phi', whose slope is at most 2.
        n = RESULTS["y"].reduction_length(p)
        y_slack = 3 * (n + 2) * u * y_terms + 14 * u * abs(y)
        assert np.all(abs(y - expected["y"]) <= y_slack), f"y of {p}"
        for pass_name in ("input_grad", "kernel_grad", "backward"):
            dy_terms = answers[pass_name]
            for name, (value, magnitude) in reference.answer(pass_name, p, given).items():
                n = RESULTS[name].reduction_length(p)
                slack = 2 * (n + 4) * u * magnitude
                if activation not in ("identity", "relu", "relu6", "leaky_relu", "leaky_relu:0.2"):
                    slack = slack + (2 * y_slack.max() + 24 * u) * dy_terms[name][1]
                assert np.all(abs(value - expected[name]) <= slack), f"{name} of {p}"
