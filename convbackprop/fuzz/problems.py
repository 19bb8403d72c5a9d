"""Problems of every kind, as hypothesis draws them; what is known at compile time is the caller's to limit."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from convbackprop.activations import ACTIVATIONS
from convbackprop.errors import EnvironmentProblem
from convbackprop.ladder.variant import Variant
from convbackprop.problem import DTYPES, ConvProblem

Strategy = Any  # hypothesis is optional, and imported where it is used
Kind = Mapping[str, Any]  # dtype, activation, mask
#: What variants that are compiled anew for other sizes know at compile time: filter height, width, padding, and
#: whether each channel has filters of its own.
Filter = tuple[int, int, tuple[tuple[int, int], tuple[int, int]], bool]

#: Sides of images that are still quickly answered in float64; those of images that only laws look at.
SMALL_SIDE, LARGE_SIDE = 80, 400

#: Multiply-adds of a problem that only laws look at, at most: a variant should take well below a second.
_MOST_PRODUCTS = 2**23


def hypothesis() -> Any:
    """Return the library that draws cases and makes failing ones small.

    Raises
    ------
    EnvironmentProblem
        It is not installed; the message says how to.
    """
    try:
        import hypothesis
    except ImportError as error:
        raise EnvironmentProblem(
            f"fuzz needs hypothesis, which cannot be imported ({error}); pip install 'convbackprop[fuzz]'"
        ) from None
    return hypothesis


def problems(images: tuple[int, int] = (0, 4), largest: int = 40) -> Strategy:
    """Return a strategy for sizes of every kind; dtype and activation are the caller's."""
    st = hypothesis().strategies
    small = st.integers(1, 5)
    side = st.integers(0, 6)

    @st.composite
    def strategy(draw: Any) -> ConvProblem:
        groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
        r, s = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        padding = ((draw(side), draw(side)), (draw(side), draw(side)))
        least = [max(1, d * (f - 1) + 1 - sum(p)) for d, f, p in zip(dilation, (r, s), padding, strict=True)]
        return ConvProblem(
            N=draw(st.integers(*images)),
            C=groups * draw(small),
            H=draw(st.integers(least[0], max(largest, least[0]))),
            W=draw(st.integers(least[1], max(largest, least[1]))),
            K=groups * draw(small),
            R=r,
            S=s,
            stride=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=draw(st.booleans()),
        )

    return strategy()


def with_filters(
    pairs: Sequence[tuple[Filter, Kind]], images: tuple[int, int] = (0, 3), largest: int = SMALL_SIDE
) -> Strategy:
    """Return a strategy for problems with one of these filters and kinds, of stride and dilation 1."""
    st = hypothesis().strategies
    size, small = st.integers(1, largest), st.integers(1, 5)

    @st.composite
    def strategy(draw: Any) -> ConvProblem:
        (r, s, padding, depthwise), kind = draw(st.sampled_from(pairs))
        channels = draw(small)
        return ConvProblem(
            N=draw(st.integers(*images)),
            C=channels,
            H=max(draw(size), r - sum(padding[0])),
            W=max(draw(size), s - sum(padding[1])),
            K=channels if depthwise else draw(small),
            R=r,
            S=s,
            padding=padding,
            groups=channels if depthwise else 1,
            bias=draw(st.booleans()),
            **kind,
        )

    return strategy()


# -- what one round is compiled for ----------------------------------------------------------------------------------
def some_kind(rng: random.Random) -> Kind:
    """Return a dtype, an activation, and whether its bits are saved."""
    activation = rng.choice(("relu", *ACTIVATIONS))
    return {
        "dtype": rng.choice(tuple(DTYPES)),
        "activation": activation,
        "mask": activation == "relu" and rng.random() < 0.5,
    }


def taken_by(variant: Variant, kind: Kind) -> Kind:
    """Return the kind, but for a mask, a dtype or a precision if that is all for which the variant refuses it."""
    for change in ({}, {"mask": False}, {"dtype": "float32"}, {"dtype": "float32", "precision": "tf32"}):
        taken = {**kind, **change}
        texts = (*(f"1,2,40,40,2,{size},{size},groups=2,padding=1" for size in (3, 9)), "1,8,40,40,8,3,3,padding=1")
        if any(variant.refusal(ConvProblem.parse(text, **taken)) is None for text in texts):
            return taken
    return kind


def is_product(variant: Variant) -> bool:
    """Return whether a variant is a product of matrices: it is there for channels, not for filters of one size."""
    others = ("tensor_core", "hopper", "winograd", "vectorised_direct")
    return variant.name.endswith("_gemm") or variant.name in others


def some_filter(variant: Variant, kind: Kind, rng: random.Random) -> Filter:
    """Return a filter that the variant takes."""
    for _ in range(1000):
        r, s = rng.choice((1, 2, 3, 3, 4, 5, 5, 6, 7, 9, 12, 15)), rng.choice((1, 2, 3, 3, 4, 5, 5, 6, 7, 9, 17, 33))
        any_padding = ((rng.randint(0, 6), rng.randint(0, 6)), (rng.randint(0, 6), rng.randint(0, 6)))
        padding = any_padding if rng.random() < 0.4 else ((r // 2, r // 2), (s // 2, s // 2))
        known: Filter = (r, s, padding, rng.random() < 0.6)
        probe = ConvProblem(1, 2, 40, 40, 2, r, s, padding=padding, groups=2 if known[3] else 1, **kind)
        if variant.refusal(probe) is None:
            return known
    raise AssertionError(f"{variant} takes no filter")


def of_round(variant: Variant, kind: Kind, rng: random.Random, large: bool = False) -> Strategy:
    """Return a strategy for the problems of a round: of one kind, and of one filter where each is a compilation."""
    st = hypothesis().strategies
    images, largest = ((1, 4), LARGE_SIDE) if large else ((0, 4), SMALL_SIDE)
    if variant.transforms or (variant.specialised and not is_product(variant)):
        found = with_filters([(some_filter(variant, kind, rng), kind)], images, largest)
    else:
        found = problems(images, LARGE_SIDE if large else 40)
        found = st.builds(lambda problem: problem.with_(**kind), found)
    if is_product(variant):
        found = st.builds(_widened, found, st.sampled_from((1, 1, 4, 16)), st.sampled_from((1, 1, 8, 32)))
    if not large:
        widths = st.sampled_from((0,) * 7 + (50_000, 200_000))
        found = st.builds(_stretched, found, widths)
    found = found.filter(lambda problem: variant.refusal(problem) is None)
    return st.builds(_affordable, found).filter(lambda problem: variant.refusal(problem) is None)


def _widened(problem: ConvProblem, channels: int, filters: int) -> ConvProblem:
    return problem.with_(C=problem.C * channels, K=problem.K * filters)


def _stretched(problem: ConvProblem, width: int) -> ConvProblem:
    """Return the problem with few long rows, whose sums over pixels show whether round-offs add up; 0: as it is."""
    height = min(problem.H, max(1, problem.filter_extent[0] - sum(problem.padding[0])))
    if not width:
        return problem
    few = {"N": min(problem.N, 1), "C": problem.groups, "K": problem.groups}
    return problem.with_(H=height, W=problem.W + width, **few)


def _affordable(problem: ConvProblem) -> ConvProblem:
    """Return the problem, with a smaller image where it takes too long."""
    while problem.flops > 2 * _MOST_PRODUCTS:
        least = [max(1, extent - sum(p)) for extent, p in zip(problem.filter_extent, problem.padding, strict=True)]
        if 2 * least[0] < problem.H and problem.H >= problem.W:
            problem = problem.with_(H=problem.H // 2)
        elif 2 * least[1] < problem.W:
            problem = problem.with_(W=problem.W // 2)
        elif problem.N > 1:
            problem = problem.with_(N=1)
        else:
            break
    return problem


def spelled(problem: ConvProblem) -> str:
    """Return the problem as text that leaves nothing to a command's defaults."""
    text = str(problem)
    for name in ("dtype", "activation", "bias", "mask"):
        if f",{name}=" not in text:
            value = getattr(problem, name)
            text += f",{name}={int(value) if isinstance(value, bool) else value}"
    return text
