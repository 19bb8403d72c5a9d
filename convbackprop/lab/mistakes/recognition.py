"""From a wrong result, or a finding of sanitize, to the mistake that it comes of.

A mistake is named only where it is certain. A kernel runs on small problems of integers, whose sums are exact in any
order, and a mistake is recognised where its equation (`HYPOTHESES`) gives each number that the kernel gave, right and
wrong ones, on all of them, and that of no other mistake does.
"""

from __future__ import annotations

import math
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
    """Problems that ask for one thing more than those of the stages before."""

    name: str
    problems: tuple[str, ...]
    changes: Mapping[str, object] = {}


#: What a kernel is tried on, in turn, until it is wrong. Those of one channel are larger than a block of threads.
STAGES = (
    Stage("one channel", ("1,1,37,137,1,3,3,padding=1", "1,1,41,151,1,5,5,padding=2")),
    Stage("a filter that is not square", ("1,1,37,70,1,5,3,padding=same", "1,1,41,45,1,3,5,padding=same")),
    Stage(
        "an activation",
        ("1,1,20,19,1,3,3,padding=1", "1,1,17,24,1,3,3,padding=1"),
        {"activation": "relu"},
    ),
    Stage("images and channels", ("2,3,9,14,4,3,3,padding=1", "3,2,12,11,3,3,3,padding=1")),
    Stage(
        "padding of any width", ("2,2,9,11,3,3,3", "1,1,9,11,1,3,3,padding=0:2x2:1", "1,2,8,9,2,3,3,padding=2:0x1:2")
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
        ("1,1,12,13,1,3,3,padding=1", "2,2,9,11,3,3,3,padding=1"),
        {"activation": "logistic"},
    ),
)


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
            tried += [_try(variant, problem, device) for problem in _problems(variant, stage, asked)]
        except LaunchFailed:
            return None
        if any(trial.wrong for trial in tried):
            return _only_explanation(tried)
    return None


def _problems(variant: Variant, stage: Stage, asked: Callable[[ConvProblem], bool]) -> Iterator[ConvProblem]:
    """Yield the problems of a stage, with a bias where the variant takes one."""
    for text in stage.problems:
        wanted = (ConvProblem.parse(text, bias=bias, **stage.changes) for bias in (True, False))
        yield from [p for p in wanted if asked(p) and variant.refusal(p) is None][:1]


class Trial(NamedTuple):
    """What a variant has made of a problem, beside what is right."""

    right: dict[str, Layer]
    expected: dict[str, Array]
    got: dict[str, Array]

    def agrees(self, result: str, value: Array) -> bool:
        """Return whether the variant gave this result: exactly, where it is exact."""
        got = self.got[result].astype(np.float64)
        if self.right[result].problem.activation in ("identity", "relu"):
            return np.array_equal(got, value, equal_nan=True)
        scale = 2.0**-18 * (1 + np.nanmax(abs(value), initial=0))
        return np.allclose(got, value, rtol=0, atol=scale, equal_nan=True)

    @property
    def wrong(self) -> list[str]:
        """The results that are not as they should be."""
        return [name for name, value in self.expected.items() if not self.agrees(name, value)]


def inputs(pass_name: str, problem: ConvProblem) -> dict[str, Array]:
    """Return integers for a pass, and of what the forward pass saves quarters, whose products are exact, too.

    No two taps are the same, nor two biases; a saved output may be what a ReLU does not give.
    """
    rng = np.random.default_rng(problem.W)
    count = math.prod(problem.w_shape)
    w = rng.permutation(np.arange(1, count + 1)) * rng.choice((-1, 1), count)
    own = {"w": w.reshape(problem.w_shape), "b": np.arange(5, 5 + 2 * problem.K, 2)}
    if problem.saved:
        values = np.arange(-3, 4) if problem.activation == "relu" else np.arange(1, 4) / 4
        own["saved"] = rng.choice(values, problem.y_shape)
    own = {name: array.astype(reference.numpy_dtype(problem.dtype)) for name, array in own.items()}
    return check.inputs(pass_name, problem, "integers", own=own)


def _try(variant: Variant, problem: ConvProblem, device: Device) -> Trial:
    """Run a variant on a problem."""
    given = inputs(variant.pass_name, problem)
    results = [o for o in PASSES[variant.pass_name].present(problem) if o.name in RESULTS]
    before = {o.name: np.full(o.shape(problem), BEFORE, np.float32) for o in results}
    blocks = check.launch(variant, problem, {**given, **before}, device)
    got = {name: blocks[name].array for name in before}
    left = {name: got[name] == BEFORE for name in before}
    right = layers_of(variant.pass_name, problem, given, left)
    return Trial(right, {name: layer.compute() for name, layer in right.items()}, got)


def _only_explanation(tried: list[Trial]) -> Mistake | None:
    """Return the one mistake that gives all that a variant gave: of each result that is wrong somewhere."""
    wrong = {name for trial in tried for name in trial.wrong}
    if any(sum(name in trial.wrong for trial in tried) < 2 for name in wrong):
        return None
    found = [kind for kind in HYPOTHESES if all(_explains(kind, name, tried) for name in wrong)]
    return KINDS[found[0]] if len(found) == 1 else None


def _explains(kind: str, result: str, tried: list[Trial]) -> bool:
    """Return whether one way of making a mistake gives all that a variant gave of a result."""
    candidates = [[*HYPOTHESES[kind](trial.right[result])] for trial in tried]
    for way in range(max(map(len, candidates))):
        chosen = zip(tried, candidates, strict=True)
        if all(
            trial.agrees(result, ways[way].compute() if way < len(ways) else trial.expected[result])
            for trial, ways in chosen
        ):
            return True
    return False
