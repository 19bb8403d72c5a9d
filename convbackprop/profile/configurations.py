"""The configurations of the variants on a GPU: the sets of constants that problems of all sorts lead to.

One list for whoever compiles them: the compiler's tests look for spills in it; the GPU report launches a part of it.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convbackprop.bench.layers import DEEPBENCH, DEPTHWISE, RESNET, WHOLE
from convbackprop.check.curated import CURATED
from convbackprop.devices.compiler import Source
from convbackprop.devices.gpus import Target
from convbackprop.ladder.registry import VARIANTS
from convbackprop.ladder.variant import ALIGNED, Alignment, Variant
from convbackprop.launch.plan import constants_of
from convbackprop.problem import DTYPES, ConvProblem
from convbackprop.profile.machine_code import FILTERS, problem_of

#: Dtype, activation and mask: a ReLU in each dtype, an activation of each kind and the costliest, the mask with and
#: without conversions.
KINDS = (
    *((dtype, "relu", False) for dtype in DTYPES),
    ("float32", "relu", True), ("float16", "relu", True),
    ("float16", "identity", False), ("float64", "tanh", False), ("bfloat16", "logistic", False),
    ("float32", "gelu", False),
)  # fmt: skip

#: What is not wanted of a backward pass.
_NEEDS: tuple[dict[str, Any], ...] = ({"dx": False}, {"dw": False, "bias": False})

#: As for the views of an array of float32.
UNALIGNED = Alignment(4, 4)


#: An image narrower than a warp's strips, whose rows are not aligned.
_NARROW = "1,1,37,33,1,5,5,padding=same"

#: So many rows in all that bands are tall in each dtype.
_MANY = "16,1,2048,2048,1,5,5,padding=same"

#: Different strides down and across, and transposed convolutions of as many channels as tensor cores take.
_STRIDES = "2,3,19,21,4,3,2,stride=2x1,padding=0:1x2:0"
_UP = "1,64,28,28,64,4,4,stride=2,padding=1,transposed=1"
_BACK = "1,64,28,28,64,3,3,padding=1,transposed=1"


def problems() -> tuple[ConvProblem, ...]:
    """Return the curated problems, the published ones, and layers of real networks."""
    layers = (WHOLE, *DEEPBENCH, *RESNET, *DEPTHWISE)
    return (
        *(entry.problem() for entry in CURATED),
        *(ConvProblem.parse(text, bias=True) for text in (_NARROW, _MANY, _STRIDES, _UP, _BACK)),
        *(problem_of("float32", size) for size in FILTERS),
        *(layer.problem() for layer in layers),
    )


def configured(
    pairs: Iterable[tuple[Variant, ConvProblem]],
    alignments: Sequence[Alignment] = (ALIGNED,),
    target: Target | str = "cuda",
) -> dict[Source, Variant]:
    """Return what is compiled for a GPU for variants on problems, each configuration once."""
    return {
        Source.of(variant.path, constants_of(variant, problem, target, alignment)): variant
        for variant, problem in pairs
        for alignment in alignments
    }


@functools.cache
def configurations() -> Mapping[Source, Variant]:
    """Return every configuration of every variant that runs on a GPU, for arrays that are aligned or not."""
    wanted = [
        base.with_(dtype=dtype, activation=activation, mask=mask)
        for base in problems()
        for dtype, activation, mask in KINDS
        if not (mask and base.transposed)
    ]
    wanted += [base.with_(activation="relu", **needs) for base in problems() for needs in _NEEDS]
    several = [base for base in problems() if base.C > 1]
    wanted += [base.with_(activation="gelu", precision="tf32") for base in several if base.transposed]
    wanted += [base.with_(activation="relu", mask=True, precision="tf32") for base in several if not base.transposed]
    wanted += [
        base.with_(layout="nhwc", dtype="float16", activation=activation, residual=not base.transposed)
        for base in several
        for activation in ("identity", "gelu" if base.transposed else "relu")
    ]
    pairs = ((variant, problem) for problem in wanted for variant in VARIANTS)
    return configured((pair for pair in pairs if pair[0].refusal(pair[1], "cuda") is None), (ALIGNED, UNALIGNED))


def sample(each: int) -> list[Source]:
    """Return so many configurations of each variant: those that meet the most constants' values, the rarest first."""
    taken: list[Source] = []
    for variant in VARIANTS:
        sources = [source for source, of in configurations().items() if of is variant]
        values = {source: _values(source) for source in sources}
        count = Counter(itertools.chain(*values.values()))
        met: set[tuple[str, str]] = set()
        for _ in range(min(each, len(sources))):
            # In order, or the last bit of a sum depends on how strings are hashed.
            worth = {source: sum(1 / count[value] for value in sorted(values[source] - met)) for source in sources}
            taken.append(max(worth, key=lambda source: worth[source]))
            met |= values[taken[-1]]
    return taken


def _values(source: Source) -> set[tuple[str, str]]:
    """Return the constants' values of a configuration; a transposed one is one kind, whatever its activation."""
    return {(name, "" if name == "OUTPUT_ACTIVATION" else value) for name, value in source.constants}
