"""Which tests of many alike are default ones: what takes long to compile meets the laws that all obey by turns."""

from __future__ import annotations

import itertools

import pytest

from convbackprop.ladder.registry import VARIANTS
from convbackprop.ladder.variant import Variant
from tests.support.problems import is_costly


def has_turn(variant: Variant, law: int, every: int = 3) -> bool:
    """Return whether a variant meets a law by default; what is costly meets every third one.

    What most laws hold is the work of headers that several rungs share, and each law meets a third of the rungs.
    """
    return not is_costly(variant) or (VARIANTS.index(variant) + law) % every == 0


def in_turn(law: int, variants=VARIANTS, every: int = 3) -> pytest.MarkDecorator:
    """Parametrise over variants; those that have no turn are slow tests."""
    return pytest.mark.parametrize(
        "variant",
        [pytest.param(v, id=str(v), marks=() if has_turn(v, law, every) else pytest.mark.slow) for v in variants],
    )


def every_other(values, quick=0):
    """Return values to parametrise over, every other one a slow test; quick: the first that is not, 0 or 1."""
    return [pytest.param(v, marks=() if i % 2 == quick else pytest.mark.slow) for i, v in enumerate(values)]


def every_other_pair(first, second):
    """Return pairs to parametrise over, as on a chessboard: each value of both is met, half of the pairs are slow."""
    pairs = itertools.product(enumerate(first), enumerate(second))
    return [pytest.param(a, b, marks=pytest.mark.slow if (i + j) % 2 else ()) for (i, a), (j, b) in pairs]


def first_of_each(items, sort):
    """Yield (item, marks): but for the first of each sort, slow tests."""
    met = set()
    for item in items:
        yield item, pytest.mark.slow if sort(item) in met else ()
        met.add(sort(item))
