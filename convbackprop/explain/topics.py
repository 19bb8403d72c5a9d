"""What there is to explain: topics, of which some belong to certain rungs, and the problems that show them well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convbackprop.arguments import known
from convbackprop.errors import InvalidArgument
from convbackprop.explain.fragments import fragments
from convbackprop.explain.layer import chain_rule, padding, turned_filter
from convbackprop.explain.picture import Picture
from convbackprop.explain.record import Recording, record
from convbackprop.explain.ring import ring
from convbackprop.explain.threads import loads, threads
from convbackprop.explain.tile import tile
from convbackprop.ladder.registry import VARIANTS, select
from convbackprop.ladder.variant import Variant
from convbackprop.problem import ConvProblem

#: An image of one channel; one for filters that are larger; a layer of many channels.
PLANE, LARGER, LAYER = "1,1,24,40,1,3,3,padding=same", "1,1,24,64,1,5,5,padding=same", "1,16,14,14,64,3,3,padding=1"


@dataclass(frozen=True)
class Topic:
    """Something that can be drawn.

    Attributes
    ----------
    what : str
        What is shown.
    draw : callable
        From the recording of a rung, or from the problem alone.
    rungs : tuple of str
        The techniques that it is of, the one first that shows it best; none: it is of the layer, not of a rung.
    problem : str
        That shows it well; "": that of the rung.
    """

    what: str
    draw: Callable[[Recording], Picture] | Callable[[ConvProblem], Picture]
    rungs: tuple[str, ...] = ()
    problem: str = ""


_EVERY = tuple(dict.fromkeys(variant.name for variant in VARIANTS))
_ON_A_GPU = tuple(dict.fromkeys(variant.name for variant in VARIANTS if "cuda" in variant.runs_on))

TOPICS = {
    "chain-rule": Topic("a layer in numbers, forward and back", chain_rule,
                        problem="1,1,4,5,1,3,3,padding=same,activation=relu,bias=1"),
    "padding": Topic("what an output at the border is made of", padding, problem="1,1,6,8,1,3,3,padding=same"),
    "turned-filter": Topic("why the input gradient turns the filter", turned_filter,
                           problem="1,1,7,7,1,3,3,padding=same"),
    "threads": Topic("which thread owns which results", threads, ("coalesced", *_EVERY)),
    "loads": Topic("what a warp loads in one request: addresses and sectors", loads, ("naive", *_ON_A_GPU)),
    "tile": Topic("a tile in shared memory: who brings what, its halo, its banks", tile, ("tiled",)),
    "ring": Topic("a ring of rows: which are held when", ring, ("coalesced", "fused", "pipelined")),
    "fragments": Topic("which lane holds which element of an mma", fragments, ("banded",)),
}  # fmt: skip


def topics_of(variant: Variant) -> tuple[str, ...]:
    """Return the topics that show a rung; of a file of one's own, those that are of every rung."""
    name = "naive" if variant.file else variant.name
    missing = ("ring",) if variant.pass_name == "kernel_grad" else ()  # it stores no rows
    if (variant.pass_name, name) == ("kernel_grad", "hopper"):
        missing = ("loads",)  # the copy engine loads
    return tuple(topic for topic, each in TOPICS.items() if name in each.rungs and topic not in missing)


def default_problem(topic: str, variant: Variant | None) -> ConvProblem:
    """Return a small problem that shows a topic of a rung well."""
    if TOPICS[topic].problem or variant is None:
        return ConvProblem.parse(TOPICS[topic].problem or PLANE)
    texts = (LAYER, f"{LAYER},precision=tf32", PLANE) if "TILE_M" in variant.tunables else (PLANE, LARGER, LAYER)
    problems = [ConvProblem.parse(text) for text in texts]
    return next((problem for problem in problems if variant.refusal(problem) is None), problems[0])


def explain(topic: str, variant: Variant | None = None, problem: ConvProblem | None = None) -> Picture:
    """Draw a topic.

    Parameters
    ----------
    topic : str
        One of `TOPICS`.
    variant : Variant, optional
        Of which rung; default: the one that shows it best. A topic of the layer has none.
    problem : ConvProblem, optional
        Default: a small one that shows it well.

    Raises
    ------
    InvalidArgument, UnsupportedProblem
        There is nothing of the kind to be seen in that rung or on that problem.
    """
    found = TOPICS[known(topic, tuple(TOPICS), "topic")]
    if not found.rungs:
        if variant is not None:
            raise InvalidArgument(f"{topic} is of the layer, not of a rung; leave {variant.title} out")
        return found.draw(problem or default_problem(topic, None))  # type: ignore[arg-type]
    variant = variant or next(each for each in select(None) if each.name == found.rungs[0])
    if topic != "threads" and "cuda" not in variant.runs_on:
        raise InvalidArgument(f"{variant.title} is written for a CPU, which has no warps and no shared memory; "
                              f"of it there is the topic threads")  # fmt: skip
    return found.draw(record(variant, problem or default_problem(topic, variant)))  # type: ignore[arg-type]
