"""A kind of mistake as a function of what is right, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from convbackprop.lab.mistakes.layer import Layer

#: Takes one result of a layer as it should be and yields it as kernels with this mistake form it: each way of making
#: the mistake in turn, the same ones for every problem. Nothing, where the mistake does not concern this result.
Hypothesis = Callable[[Layer], Iterator[Layer]]

#: By kind of mistake.
HYPOTHESES: dict[str, Hypothesis] = {}

#: Along which of the two axes, down and across, a mistake is made.
AXES = ((True, True), (True, False), (False, True))

SUMS_OVER_TAPS = ("y", "dx", "dw")
GRADIENTS = ("dx", "dw", "db")


def of(*results: str) -> Callable[[Hypothesis], Hypothesis]:
    """Enter a function, named after its kind, as the hypothesis of a mistake that concerns these results."""

    def enter(hypothesis: Hypothesis) -> Hypothesis:
        kind = hypothesis.__name__.removeprefix("_")
        HYPOTHESES[kind] = lambda layer: hypothesis(layer) if layer.result in results else iter(())
        return hypothesis

    return enter
