"""From a wrong result, or a finding of sanitize, to the mistake that it comes of.

A mistake is named only where it is certain. A kernel runs on small problems of integers, whose sums are exact in any
order, and a mistake is recognised where its equation (`HYPOTHESES`) gives each number that the kernel gave, right and
wrong ones, on all of them, and that of no other mistake does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from convbackprop import check
from convbackprop.check import reference
from convbackprop.devices import Device
from convbackprop.errors import LaunchFailed
from convbackprop.lab.mistakes import sums as sums, taps as taps  # they enter their hypotheses
from convbackprop.lab.mistakes.catalogue import KINDS, Mistake
from convbackprop.lab.mistakes.hypothesis import HYPOTHESES
from convbackprop.lab.mistakes.layer import BEFORE, Layer, layers_of
from convbackprop.ladder.variant import Variant
from convbackprop.problem import PASSES, RESULTS, ConvProblem

Array = Any


class Stage(NamedTuple):
    """Problems that ask for one thing more than those of the stages before.

    Attributes
    ----------
    name : str
        What they ask for.
    problems : tuple of str
        At least two, of different sizes.
    changes : mapping of str to object
        Of all of them.
    term : float or None
        What all terms of all sums are; None: the inputs are integers.
    """

    name: str
    problems: tuple[str, ...]
    changes: Mapping[str, object] = {}
    term: float | None = None


#: What a kernel is tried on, in turn, until it is wrong. Those of one channel are larger than a block of threads.
STAGES = (
    Stage("one channel", ("1,1,37,137,1,3,3,padding=1", "1,1,41,151,1,5,5,padding=2")),
    Stage("a filter that is not square", ("1,1,37,70,1,5,3,padding=same", "1,1,41,45,1,3,5,padding=same")),
    Stage("an activation", ("1,1,20,19,1,3,3,padding=1", "1,1,17,24,1,3,3,padding=1"), {"activation": "relu"}),
    Stage("images and channels", ("2,3,9,14,4,3,3,padding=1", "3,2,12,11,3,3,3,padding=1")),
    Stage(
        "padding of any width", ("2,2,9,11,3,3,3", "1,1,9,11,1,3,3", "1,1,9,11,1,3,3,padding=0:2x1:0",
                                 "1,2,8,9,2,3,3,padding=2:0x0:1")
    ),
    Stage("a stride", ("2,2,13,17,3,3,3,stride=2x3,padding=1", "1,2,13,14,2,3,3,stride=3x2,padding=1")),
    Stage("a dilation", ("2,2,12,11,3,3,3,dilation=3x2,padding=3x2", "1,2,14,12,2,3,3,dilation=2x3,padding=2x3")),
    Stage(
        "a stride and a dilation",
        ("1,2,14,15,2,3,3,stride=2,dilation=3,padding=3", "2,1,15,16,2,3,3,stride=3,dilation=2,padding=2"),
    ),
    Stage("groups", ("2,6,9,8,4,3,3,groups=2,padding=1", "1,4,8,9,6,3,3,groups=2,padding=1")),
    Stage(
        "phi' of a smooth activation",
        ("1,1,12,13,1,3,3,padding=1", "1,1,9,11,1,3,3,padding=1", "2,2,9,11,3,3,3,padding=1"),
        {"activation": "logistic"},
    ),
    Stage("a long sum", ("1,1,1,30000,1,3,3,padding=1", "1,1,1,20000,1,3,3,padding=1"), term=0.1),
    # More terms of 1 than float16 can count to, over channels, filters and pixels.
    Stage(
        "half precision",
        ("1,256,3,4,2,3,3,padding=1", "1,230,4,3,2,3,3,padding=1", "1,2,3,4,256,3,3,padding=1",
         "1,2,4,3,230,3,3,padding=1", "1,1,50,52,1,3,3,padding=1", "1,1,49,50,1,3,3,padding=1"),
        {"dtype": "float16"}, term=1,
    ),
)  # fmt: skip


def recognise(
    variant: Variant, device: Device, asked: Callable[[ConvProblem], bool] = lambda problem: True
) -> Mistake | None:
    """Return the mistake that a variant's wrong results come of.

    Parameters
    ----------
    variant : Variant
        What to run.
    device : Device
        Where.
    asked : callable
        problem -> whether it is among what the variant should compute; those that it refuses are left out anyway.

    Returns
    -------
    Mistake or None
        None: nothing is wrong, or it is not certain what.
    """
    tried: list[Trial] = []
    for stage in STAGES:
        try:
            tried += [_try(variant, problem, stage.term, device) for problem in _problems(variant, stage, asked)]
        except LaunchFailed:
            return None
        counts = Counter(name for trial in tried for name in trial.wrong)
        if counts and min(counts.values()) > 1:
            return _only_explanation(tried, list(counts))
        if not counts and any(trial.beyond for trial in tried):
            return KINDS["written_out_of_bounds"]
    return None


def _problems(variant: Variant, stage: Stage, asked: Callable[[ConvProblem], bool]) -> Iterator[ConvProblem]:
    """Yield the problems of a stage, with a bias where the variant takes one."""
    for text in stage.problems:
        wanted = (ConvProblem.parse(text, bias=bias, **stage.changes) for bias in (True, False))
        yield from [p for p in wanted if asked(p) and variant.refusal(p) is None][:1]


class Trial(NamedTuple):
    """What a variant has made of a problem, beside what is right.

    Attributes
    ----------
    right : dict of str to Layer
        The results as a right kernel computes them.
    expected : dict of str to (numpy.ndarray, numpy.ndarray)
        Their values, and how far a kernel may be from them.
    got : dict of str to numpy.ndarray
        What the variant has written.
    beyond : bool
        Whether it has written beside an array.
    """

    right: dict[str, Layer]
    expected: dict[str, tuple[Array, Array]]
    got: dict[str, Array]
    beyond: bool

    def gives(self, result: str, value: Array) -> bool:
        """Return whether the variant gave these numbers: exactly, where phi and phi' of integers are exact."""
        got, problem = self.got[result], self.right[result].problem
        if problem.activation in ("identity", "relu"):
            return np.array_equal(got, value.astype(got.dtype), equal_nan=True)
        close = 2.0**-18 * (1 + np.nanmax(abs(value), initial=0))
        return np.allclose(got, value, rtol=0, atol=close, equal_nan=True)

    @property
    def wrong(self) -> list[str]:
        """The results that are not as they should be."""
        return [
            name for name, (value, may_differ) in self.expected.items() if not self._is_right(name, value, may_differ)
        ]

    def _is_right(self, name: str, value: Array, may_differ: Array) -> bool:
        return self.gives(name, value) or bool((abs(self.got[name] - value) <= may_differ).all())


def inputs(pass_name: str, problem: ConvProblem, term: float | None = None) -> dict[str, Array]:
    """Return inputs of a pass: all terms of its sums the same, or integers.

    No two taps of a filter are the same then, nor two biases. Of what the forward pass saves there are quarters, whose
    products are exact, too, and with a ReLU numbers that it does not give.
    """
    rng, count = np.random.default_rng(problem.W), math.prod(problem.w_shape)
    w = rng.permutation(np.arange(1, count + 1)) * rng.choice((-1, 1), count)
    saved = np.arange(-3, 4) if problem.activation == "relu" else np.arange(1, 4) / 4
    own: dict[str, Array] = {"w": w.reshape(problem.w_shape), "b": np.arange(5, 5 + 2 * problem.K, 2)}
    if problem.saved:
        own["saved"] = rng.choice(saved, problem.y_shape)
    if term is not None:
        factors = (term, 1) if pass_name == "forward" else (1, term)
        shapes = {"x": problem.x_shape, "w": problem.w_shape, "dy": problem.y_shape}
        own = {name: np.full(shape, factors[name == "dy"]) for name, shape in shapes.items()}
        own |= {"x": np.ones(problem.x_shape), "b": np.zeros(problem.K)}
    own = {name: array.astype(reference.numpy_dtype(problem.dtype)) for name, array in own.items()}
    return check.inputs(pass_name, problem, "integers", own=own)


def _try(variant: Variant, problem: ConvProblem, term: float | None, device: Device) -> Trial:
    """Run a variant on a problem."""
    given = inputs(variant.pass_name, problem, term)
    results = [o for o in PASSES[variant.pass_name].present(problem) if o.name in RESULTS]
    with np.errstate(over="ignore"):  # infinite in half precision
        before = {o.name: np.full(o.shape(problem), BEFORE).astype(o.dtype(problem)) for o in results}
    blocks = check.launch(variant, problem, {**given, **before}, device)
    got = {name: blocks[name].array for name in before}
    right = layers_of(variant.pass_name, problem, given, {name: got[name] == before[name] for name in before})
    expected = {
        name: (value, reference.error_bound(name, problem, value, magnitude) if term is not None else np.zeros(1))
        for name, (value, magnitude) in reference.answer(variant.pass_name, problem, given).items()
    }
    return Trial(right, expected, got, not all(block.intact() for block in blocks.values()))


def _only_explanation(tried: list[Trial], wrong: list[str]) -> Mistake | None:
    """Return the one mistake that gives all that a variant gave, of each result that is wrong somewhere."""
    found = [kind for kind in HYPOTHESES if all(_explains(kind, name, tried) for name in wrong)]
    return KINDS[found[0]] if len(found) == 1 else None


def _explains(kind: str, result: str, tried: list[Trial]) -> bool:
    """Return whether one way of making a mistake gives all that a variant gave of a result."""
    candidates = [[*HYPOTHESES[kind](trial.right[result])] for trial in tried]
    return any(
        all(
            trial.gives(result, ways[way].compute()) if way < len(ways) else result not in trial.wrong
            for trial, ways in zip(tried, candidates, strict=True)
        )
        for way in range(max(map(len, candidates)))
    )
