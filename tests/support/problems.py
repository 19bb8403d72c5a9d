"""The problems that the tests run on: the curated ones, and more with their reasons. Others: convbackprop/fuzz."""

from __future__ import annotations

import functools
from itertools import product

from convbackprop import check
from convbackprop.check.curated import CURATED, Curated
from convbackprop.fuzz.problems import is_product
from convbackprop.launch.plan import constants_of
from convbackprop.problem import DTYPES

#: What is known at compile time: (activation, mask).
ACTIVATION_KINDS = (("identity", False), ("relu", False), ("relu", True), ("logistic", False), ("tanh", False))

#: Too slow or too special for `convbackprop check`, but not for the tests.
MORE = (
    Curated("2,4,6,7,4,3,3,groups=4,padding=2,stride=2,dilation=2", "depthwise, strided and dilated at once"),
    Curated("1,1,3,1031,1,3,3,padding=1", "a row longer than a block of 1024 threads"),
    Curated("1,1,7,9,1,7,9", "one output pixel: the filter covers the image exactly"),
    Curated("1,1,7,9,1,1,1,stride=9", "one output pixel: the stride is larger than the image"),
    Curated("5,1,4,4,129,1,1", "more output channels than a block has threads"),
    Curated("1,130,4,4,1,3,3,padding=1", "sums of more than a thousand terms, with a remainder"),
    Curated("1,1,5,5,1,2,2,dilation=4", "a dilated filter as large as the image"),
    Curated("1,1,4,23,3,4,9,stride=1x2,padding=1:6x0:2,dilation=1x3", "g is narrower than a phase of the pixels"),
    Curated("1,2,4,5,2,3,3,padding=0:6x6:0", "padding on two sides only, twice the filter"),
    Curated("1,1,36,40,1,31,31,padding=same", "the largest filter of those that a rung has in shared memory"),
    Curated("7,1,2,2,1,2,2", "many images of one output pixel: the batch is the only long axis"),
)

PROBLEMS = CURATED + MORE

#: Each dtype, each activation and what is saved, once.
EACH_KIND_ONCE = (
    ("float32", "relu", False), ("float32", "relu", True), ("float64", "tanh", False), ("float16", "identity", False),
    ("bfloat16", "logistic", False),
)  # fmt: skip
EVERY_KIND = tuple((dtype, *kind) for dtype, kind in product(DTYPES, ACTIVATION_KINDS))

#: All problems in all kinds, with the reason for each.
EVERYTHING = tuple(
    entry.problem(dtype=dtype, activation=activation, mask=mask)
    for entry in PROBLEMS
    for dtype, activation, mask in EVERY_KIND
)

#: Sets of compile-time constants for which a variant is compiled that is compiled anew for other sizes, and for which
#: a matrix product is that chooses among some.
BUDGET, BUDGET_BRIEFLY, BUDGET_OF_PRODUCTS = 5, 2, 5


def is_costly(variant):
    """Return whether a variant takes long to compile, or is compiled anew for each problem."""
    return variant.specialised or is_product(variant)


def kind_of(problem):
    return problem.dtype, problem.activation, problem.mask


def is_long(variant, problem):
    """Return whether the threads of a block meet at so many barriers that a CPU takes long: one for each tile."""
    return variant.name == "tiled" and problem.K * problem.C // problem.groups >= 1000


@functools.cache
def chosen(variant, tunables, briefly=False):
    """Return the problems on which a variant is checked.

    All of them in one kind, and in each dtype, where the activations take turns; each kind once, briefly. What is
    costly is compiled as seldom as it can be: see `covering`.
    """
    if variant.specialised:
        return covering(variant, EVERYTHING, tunables, BUDGET_BRIEFLY if briefly else BUDGET)
    once = [p for p in EVERYTHING if kind_of(p) in kinds_once(variant)]
    if is_costly(variant):
        return covering(variant, once, tunables, len(kinds_once(variant)) if briefly else BUDGET_OF_PRODUCTS)
    if briefly:
        some = once
    else:
        turns = len(ACTIVATION_KINDS)
        in_turn = [p for i, p in enumerate(EVERYTHING) if sum(divmod(i, len(EVERY_KIND))) % turns == 0]
        some = [*in_turn, *(p for p in EVERYTHING if kind_of(p) == EACH_KIND_ONCE[0])]
    some = [p for p in some if not is_long(variant, p) or kind_of(p) in EACH_KIND_ONCE[:2]]
    return check.within_budget(variant, some, tunables)


def covering(variant, problems, tunables, budget=None):
    """Return problems for which a variant is compiled with few sets of constants, and that meet all there is to meet.

    That is each kind, and each dtype, activation and mask, each size of problem, and each value of each constant. Of no
    more sets than a budget they meet what they can, what belongs to kinds first.
    """
    sets = check.compiled_alike(variant, problems, tunables)
    kinds = [{fact for p in alike for fact in (kind_of(p), *enumerate(kind_of(p)))} for alike in sets]
    others = [
        {p.with_(dtype="float32", activation="identity", mask=False) for p in alike}
        | set(constants_of(variant, alike[0], tunables).items())
        for alike in sets
    ]
    taken, unmet = [], (set().union(*kinds), set().union(*others))
    while any(unmet) and len(taken) != budget:
        best = max(range(len(sets)), key=lambda i: (len(kinds[i] & unmet[0]), len(others[i] & unmet[1])))
        unmet = unmet[0] - kinds[best], unmet[1] - others[best]
        taken.append(sets[best])
    return frozenset(problem for alike in taken for problem in alike)


@functools.cache
def kinds_once(variant):
    """Return each kind once; for one that a variant refuses, with another dtype or activation that it takes."""
    # What is transposed has the kinds of a forward pass.
    taken = {kind_of(p) for p in EVERYTHING if not p.transposed and variant.refusal(p) is None}
    found = {}
    for dtype, activation, mask in EACH_KIND_ONCE:
        others = product((dtype, "float32", "float16"), (activation, "relu"), (mask,))
        found.update(dict.fromkeys([kind for kind in others if kind in taken][:1]))
    return tuple(found)


#: What torch computes too: it refuses some empty batches.
WITH_IMAGES = tuple(entry for entry in CURATED if entry.problem().N)
