"""The registry: every variant of every pass, one entry a .cu file.

Nothing else in the package knows a variant. Its file, entry points, tests, benchmark rows and documentation follow
from the entry here and from the head comment of its .cu file.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from convbackprop.errors import UnsupportedProblem
from convbackprop.problem import PASSES, ConvProblem, known
from convbackprop.sources import head_comment, source_root

Constants = Mapping[str, int]
Geometry = Callable[[ConvProblem, Constants], tuple[int, ...]]
Choice = int | Callable[[ConvProblem], int]

#: CUDA's limit on the second and third extent of a grid.
MAX_GRID_YZ = 65535


#: The widest load and store there is, in bytes; an address need not be aligned to more.
WIDEST = 16


class Alignment(NamedTuple):
    """Bytes, at most `WIDEST`, to which all arrays of x's shape (x, dx) and of y's shape (y, dy) are aligned."""

    x: int = WIDEST
    y: int = WIDEST


@dataclass(frozen=True)
class Tunable:
    """A compile-time constant that may be chosen freely among `legal`: for each kind of device a value, or a rule."""

    legal: tuple[int, ...]
    cuda: Choice
    cpu: Choice

    def value(self, device_kind: str, problem: ConvProblem) -> int:
        """Return the choice for a kind of device, "cpu" or "cuda"."""
        choice: Choice = getattr(self, device_kind)
        return choice if isinstance(choice, int) else choice(problem)


@dataclass(frozen=True)
class Launch:
    """One launch of an entry point of a variant's file.

    Attributes
    ----------
    entry : str
        The name of the __global__ function.
    operands : tuple of str
        The arrays it takes, in the order of its parameters. The Conv2dShape comes after them.
    grid, block : callable
        (problem, constants) -> one to three extents.
    integers : callable
        (problem, constants) -> the int parameters that come after the Conv2dShape.
    shared_bytes : callable
        (problem, constants) -> bytes of dynamic shared memory.
    when : callable
        problem -> whether this launch is needed.
    """

    entry: str
    operands: tuple[str, ...]
    grid: Geometry
    block: Geometry
    integers: Geometry = lambda p, t: ()
    shared_bytes: Callable[[ConvProblem, Constants], int] = lambda p, t: 0
    when: Callable[[ConvProblem], bool] = lambda p: True


#: Says in one sentence why a problem is refused, or None.
Requirement = Callable[[ConvProblem], "str | None"]


@dataclass(frozen=True)
class Variant:
    """One way to compute a pass.

    Attributes
    ----------
    pass_name, name : str
        Written together as "forward/naive".
    launches : tuple of Launch
        In the order in which they run.
    tunables : mapping of str to Tunable
        Given to both compilers as -DNAME=value.
    specialise : callable
        (problem, alignment, tunables' values) -> further compile-time constants, which follow from these.
    partial_sums : callable
        (problem, constants) -> how many accumulators of scratch memory the launches share, as operand "partial".
    requires : tuple of callable
        Each looks at a problem and returns None, or one sentence on why it is refused.
    auto_on : tuple of str
        The kinds of device on which `variant="auto"` may choose it.
    path : Path
        The .cu file.
    """

    pass_name: str
    name: str
    launches: tuple[Launch, ...]
    tunables: Mapping[str, Tunable] = field(default_factory=dict)
    specialise: Callable[[ConvProblem, Alignment, Constants], Constants] = lambda p, a, t: {}
    partial_sums: Callable[[ConvProblem, Constants], int] = lambda p, t: 0
    requires: tuple[Requirement, ...] = ()
    auto_on: tuple[str, ...] = ("cuda", "cpu")
    file: Path | None = None

    def __str__(self) -> str:
        return f"{self.pass_name}/{self.name}"

    # Two entries are the same only if they are one object: this makes a variant a cheap dictionary key.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def path(self) -> Path:
        """The .cu file."""
        return self.file or source_root() / self.pass_name / f"{self.name}.cu"

    @property
    def summary(self) -> str:
        """What the variant does, from the head comment of its file: the first sentence after the equation."""
        paragraphs = head_comment(self.path)
        return paragraphs[min(1, len(paragraphs) - 1)].split(". ")[0].rstrip(".") + "." if paragraphs else ""

    def refusal(self, problem: ConvProblem) -> str | None:
        """Return the sentence on why this variant does not compute `problem`, or None if it does."""
        return next(filter(None, (requirement(problem) for requirement in self.requires)), None)

    def constants(
        self, device_kind: str, problem: ConvProblem, alignment: Alignment = Alignment()
    ) -> dict[str, int]:
        """Return the tunables for a kind of device, "cpu" or "cuda", and what follows from problem and alignment."""
        chosen = {name: tunable.value(device_kind, problem) for name, tunable in self.tunables.items()}
        return {**chosen, **self.specialise(problem, alignment, chosen)}


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def _one_thread_each(count: Callable[[ConvProblem], int]) -> Geometry:
    return lambda p, t: (ceil_div(count(p), t["THREADS"]),)


def _threads(p: ConvProblem, t: Constants) -> tuple[int, ...]:
    return (t["THREADS"],)


_WHOLE_WARPS = Tunable(legal=(32, 64, 128, 256, 512, 1024), cuda=128, cpu=128)


def _taps(p: ConvProblem) -> int:
    return math.prod(p.w_shape) + p.K


def _slices(p: ConvProblem) -> int:
    """Into how many slices the rows of all images go: one a row, while 2**24 partial sums (64 MiB) hold them."""
    return max(1, min(p.N * p.P, MAX_GRID_YZ, 2**24 // _taps(p)))


#: One group a warp: many where many warps hide the latency of memory, one where threads take turns.
_SLICE_GROUPS = Tunable(legal=(1, 4, 16, 32), cuda=32, cpu=1)


def _total(slices: Callable[[ConvProblem, Constants], int]) -> Launch:
    """Return the launch of kernel_grad_total.cuh, which adds up the slices of partial sums."""
    return Launch("kernel_grad_total", ("partial", "dw", "db"), lambda p, t: (ceil_div(_taps(p), 32),),
                  lambda p, t: (32, t["SLICE_GROUPS"]), integers=lambda p, t: (slices(p, t),))  # fmt: skip


#: Within a pass in the order of the ladder: each rung is meant to be faster than those before it.
VARIANTS: tuple[Variant, ...] = (
    Variant(
        "forward",
        "naive",
        launches=(
            Launch("forward", ("x", "w", "b", "y"), _one_thread_each(lambda p: math.prod(p.y_shape)), _threads),
            Launch("pack_mask", ("y", "mask"), _one_thread_each(lambda p: math.prod(p.mask_shape)), _threads,
                   when=lambda p: p.mask),
        ),
        tunables={"THREADS": _WHOLE_WARPS},
    ),
    Variant(
        "input_grad",
        "naive",
        launches=(
            Launch("input_grad", ("dy", "saved", "w", "dx"),
                   _one_thread_each(lambda p: math.prod(p.x_shape)), _threads),
        ),
        tunables={"THREADS": _WHOLE_WARPS},
    ),
    Variant(
        "kernel_grad",
        "naive",
        launches=(
            Launch("kernel_grad", ("dy", "saved", "x", "partial"),
                   lambda p, t: (ceil_div(_taps(p), t["THREADS"]), _slices(p)), _threads),
            _total(lambda p, t: _slices(p)),
        ),
        tunables={"THREADS": _WHOLE_WARPS, "SLICE_GROUPS": _SLICE_GROUPS},
        partial_sums=lambda p, t: _slices(p) * _taps(p),
    ),
)  # fmt: skip


def of_pass(pass_name: str) -> tuple[Variant, ...]:
    """Return the variants of a pass, in the order of the ladder."""
    known(pass_name, tuple(PASSES), "pass")
    return tuple(variant for variant in VARIANTS if variant.pass_name == pass_name)


def choose(pass_name: str, variant: str, problem: ConvProblem, device_kind: str) -> Variant:
    """Return the variant that `variant` names, or the one that "auto" stands for.

    Raises
    ------
    InvalidArgument
        There is no such variant; the message lists the known ones.
    UnsupportedProblem
        The variant refuses the problem; the message is its sentence.
    """
    known(variant, ("auto", *(rung.name for rung in of_pass(pass_name))), "variant")
    if variant == "auto":
        reasons = why_not(pass_name, problem, device_kind)
        chosen = next((rung for rung, reason in reasons.items() if reason is None), None)
        if chosen is None:
            raise UnsupportedProblem(f"no variant of {pass_name} computes this problem: {'; '.join(reasons.values())}")
        return chosen
    chosen = next(rung for rung in of_pass(pass_name) if rung.name == variant)
    if sentence := chosen.refusal(problem):
        raise UnsupportedProblem(f"{chosen} does not compute this problem: {sentence}")
    return chosen


def why_not(pass_name: str, problem: ConvProblem, device_kind: str) -> dict[Variant, str | None]:
    """Return each variant of a pass with the reason why "auto" does not choose it, None for the one that it chooses.

    The rule: the highest rung of the ladder that computes the problem, of those that are meant for the device.
    """
    reasons: dict[Variant, str | None] = {}
    chosen: Variant | None = None
    for rung in reversed(of_pass(pass_name)):
        reason = rung.refusal(problem)
        if reason is None and device_kind not in rung.auto_on:
            reason = f"on {device_kind} a lower rung is faster"
        if reason is None and chosen is not None:
            reason = f"{chosen.name} is a higher rung"
        if reason is None:
            chosen = rung
        reasons[rung] = reason
    return reasons


def select(pattern: str | None) -> tuple[Variant, ...]:
    """Return the variants that "pass", "pass/variant" or None (all) stands for."""
    if pattern is None:
        return VARIANTS
    pass_name, _, name = pattern.partition("/")
    rungs = of_pass(pass_name)
    if not name:
        return rungs
    known(name, tuple(rung.name for rung in rungs), f"variant of {pass_name}")
    return tuple(rung for rung in rungs if rung.name == name)
