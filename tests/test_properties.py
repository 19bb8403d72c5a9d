"""Every variant on problems of every kind (hypothesis), and how the passes relate, at sizes without a reference."""

from __future__ import annotations

import numpy as np
import pytest

from convbackprop import check, conv2d, conv2d_backward, conv2d_input_grad, conv2d_kernel_grad, devices
from convbackprop.variants import VARIANTS
from tests.conftest import compile_ahead
from tests.problems import CURATED, problems

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis, which is not installed: random problems")
from hypothesis import strategies as st  # noqa: E402

#: Known at compile time, hence few: that all of them work is shown in test_variants.py.
KINDS = (
    {"dtype": "float32", "activation": "relu"},
    {"dtype": "float32", "activation": "relu", "mask": True},
    {"dtype": "float64", "activation": "tanh"},
    {"dtype": "float16", "activation": "identity"},
    {"dtype": "bfloat16", "activation": "logistic"},
)

#: Examples of all variants together, so that the time does not grow with their number.
EXAMPLES = 6000


@pytest.fixture(scope="module", autouse=True)
def _compiled(request):
    problem = CURATED[0].problem()
    compile_ahead(request, [(variant, problem.with_(**kind)) for variant in VARIANTS for kind in KINDS])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("where", devices.usable_devices())
def test_any_problem(where, variant):
    device = devices.get_device(where)

    @hypothesis.settings(
        max_examples=max(100, EXAMPLES // len(VARIANTS)),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(problems(), st.sampled_from(KINDS), st.sampled_from(check.DATA), st.integers(0, 2**16))
    def holds(problem, kind, data, seed):
        problem = problem.with_(**kind)
        hypothesis.assume(variant.refusal(problem) is None)
        assert check.check(variant, problem, device, data, seed).faults == []

    holds()


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(problems(images=(0, 0)))
def test_any_empty_batch(problem):
    """Empty results, and sums over no image."""
    x, w, dy = (np.ones(shape, np.float32) for shape in (problem.x_shape, problem.w_shape, problem.y_shape))
    geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
    assert conv2d(x, w, None, *geometry).shape == problem.y_shape
    dx, dw, db = conv2d_backward(dy, x, w, *geometry)
    assert dx.shape == problem.x_shape
    assert np.array_equal(dw, np.zeros(problem.w_shape))
    assert np.array_equal(db, np.zeros(problem.K))


# -- <conv(x), y> = <x, input_grad(y)> = <w, kernel_grad(x, y)> ------------------------------------------------------
@pytest.mark.parametrize("where", devices.usable_devices())
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "geometry"),
    [
        ((1, 1, 512, 512), (1, 1, 7, 7), (1, 3, 1, 1)),
        ((2, 3, 300, 411), (4, 3, 3, 2), (1, "same", 1, 1)),
        ((2, 6, 257, 255), (4, 3, 5, 3), ((2, 3), ((1, 4), (0, 2)), (3, 1), 2)),
        ((5, 64, 20, 21), (48, 64, 3, 3), (1, 1, 1, 1)),
        ((1, 1, 1, 200_000), (1, 1, 1, 31), (1, (0, 15), 1, 1)),
    ],
    ids=str,
)
def test_passes_are_adjoint(where, x_shape, w_shape, geometry):
    """All three are the same sum of w x y over all triples; float64 sums of it differ by round-offs only.

    What two sums of n terms may differ by is 8 sqrt(n) u of the sum of their magnitudes each, as in error_bound; the
    inner products are formed in long double.
    """
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(x_shape), rng.standard_normal(w_shape)
    y = conv2d(x, w, None, *geometry, device=where)
    dy = rng.standard_normal(y.shape)
    dx = conv2d_input_grad(x_shape, w, dy, *geometry, device=where)
    dw = conv2d_kernel_grad(x, w_shape, dy, *geometry, device=where)
    inner = [np.sum(a.astype(np.longdouble) * b) for a, b in ((y, dy), (x, dx), (w, dw))]
    magnitude = np.sum(conv2d(abs(x), abs(w), None, *geometry, device=where) * abs(dy))
    n = dy[:, 0].size + w.size
    slack = 2 * 8 * np.sqrt(n) * 2.0**-53 * magnitude
    assert abs(inner[0] - inner[1]) <= slack
    assert abs(inner[0] - inner[2]) <= slack
    assert slack < 1e-9 * magnitude
