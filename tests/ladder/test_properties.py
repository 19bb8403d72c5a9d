"""Every variant on problems of every kind (hypothesis), and how the passes relate, at sizes without a reference."""

from __future__ import annotations

import numpy as np
import pytest

from convbackprop import check, conv2d, conv2d_backward, conv2d_input_grad, conv2d_kernel_grad, devices
from convbackprop.fuzz.problems import is_product, problems, with_filters
from convbackprop.ladder.registry import VARIANTS
from convbackprop.launch.plan import constants_of
from convbackprop.problem import ConvProblem
from tests.support.problems import is_costly
from tests.support.quick import quick_on_cpu
from tests.support.turns import in_turn

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

#: What variants that are compiled anew for other sizes know at compile time, too: filter height, width, padding, and
#: whether each channel has filters of its own.
FILTERS = (
    (3, 3, ((1, 1), (1, 1)), True),
    (5, 5, ((2, 2), (2, 2)), True),
    (1, 3, ((0, 0), (1, 1)), True),
    (7, 5, ((3, 3), (2, 2)), True),
    (3, 2, ((2, 0), (0, 5)), False),
    (9, 9, ((4, 4), (4, 4)), False),
    (7, 7, ((3, 3), (3, 3)), True),
    (5, 3, ((2, 2), (1, 1)), True),
    (15, 15, ((7, 7), (7, 7)), True),
    (1, 1, ((0, 0), (0, 0)), False),
    (4, 6, ((0, 9), (1, 2)), True),
    (2, 33, ((1, 0), (16, 16)), False),
)

#: What every matrix product computes, in the dtypes that it takes.
MANY_CHANNELS = ConvProblem.parse("1,64,9,9,64,3,3,padding=same")

#: Examples of all variants together, so that the time does not grow with their number; in the slow tests, of each one.
EXAMPLES, EXAMPLES_EACH = 500, 2000

#: Of one that is written for a few architectures, whose instructions a CPU takes long to stand in for.
EXAMPLES_STOOD_IN_FOR = 4

#: Sets of compile-time constants of one variant: examples that need more of them are passed over.
COMPILATIONS, COMPILATIONS_EACH = 2, EXAMPLES_EACH


def strategy_for(variant, filters):
    """Return a strategy for the problems that a variant computes."""
    if variant.transforms:
        filters = [(3, 3, padding, False) for padding in (((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (0, 5)))]
        return with_filters([(known, kind) for known in filters for kind in KINDS], largest=27)
    if not variant.specialised or is_product(variant):
        # Each kind of a matrix product takes long to compile for each of its tiles.
        is_long = is_costly(variant) and len(filters) < len(FILTERS)
        taken = [kind for kind in KINDS if variant.refusal(MANY_CHANNELS.with_(**kind)) is None]
        kinds = taken[::2] if is_long else KINDS
        return st.builds(lambda problem, kind: problem.with_(**kind), problems(), st.sampled_from(kinds))
    pairs = [(known, kind) for known in filters for kind in KINDS]
    if len(filters) < len(FILTERS):
        pairs = [(known, KINDS[i % len(KINDS)]) for i, known in enumerate(filters)]
    # Wider images have other strips, which are compiled anew: of that, test_coalesced.py has every width.
    return with_filters(pairs, largest=80 if len(filters) == len(FILTERS) else 27)


def hold(variant, where, filters, examples, compilations):
    device, compiled = quick_on_cpu(devices.get_device(where)), set()

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy_for(variant, filters), st.sampled_from(check.DATA), st.integers(0, 2**16))
    def holds(problem, data, seed):
        hypothesis.assume(variant.refusal(problem) is None)
        constants = frozenset(constants_of(variant, problem, device.target).items())
        hypothesis.assume(constants in compiled or len(compiled) < compilations)
        compiled.add(constants)
        assert check.check(variant, problem, device, data, seed).faults == []

    holds()


@in_turn(0)
@pytest.mark.parametrize("where", devices.usable_devices())
def test_any_problem(where, variant):
    examples = EXAMPLES_STOOD_IN_FOR if variant.architectures else max(5, EXAMPLES // len(VARIANTS))
    hold(variant, where, FILTERS[:2], examples, COMPILATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("where", devices.usable_devices())
def test_any_problem_at_length(where, variant):
    hold(variant, where, FILTERS, EXAMPLES_EACH, COMPILATIONS_EACH)


@hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(problem=problems(images=(0, 0)))
def test_any_empty_batch(quick_commands, problem):
    """Empty results, and sums over no image."""
    x, w, dy = (np.ones(shape, np.float32) for shape in (problem.x_shape, problem.w_shape, problem.y_shape))
    geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
    assert conv2d(x, w, None, *geometry).shape == problem.y_shape
    dx, dw, db = conv2d_backward(dy, x, w, *geometry, variant="naive")  # of "auto", the curated problems have one
    assert dx.shape == problem.x_shape
    assert np.array_equal(dw, np.zeros(problem.w_shape))
    assert np.array_equal(db, np.zeros(problem.K))


# -- <conv(x), y> = <x, input_grad(y)> = <w, kernel_grad(x, y)> ------------------------------------------------------
@pytest.mark.parametrize("where", devices.usable_devices())
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "geometry"),
    [
        pytest.param((1, 1, 512, 512), (1, 1, 7, 7), (1, 3, 1, 1), marks=pytest.mark.slow),
        pytest.param((2, 3, 300, 411), (4, 3, 3, 2), (1, "same", 1, 1), marks=pytest.mark.slow),
        ((2, 6, 257, 255), (4, 3, 5, 3), ((2, 3), ((1, 4), (0, 2)), (3, 1), 2)),
        ((5, 64, 20, 21), (48, 64, 3, 3), (1, 1, 1, 1)),
        ((1, 1, 1, 200_000), (1, 1, 1, 31), (1, (0, 15), 1, 1)),
    ],
    ids=str,
)
def test_passes_are_adjoint(quick_commands, where, x_shape, w_shape, geometry):
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
