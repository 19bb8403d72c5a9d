"""Run a variant on a problem and hold every element against the reference.

Arrays lie between guard zones; outputs are filled with NaN before the launch, so that an element that is not written is
found, and so are the guard zones of the inputs, so that a read outside shows in the result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convbackprop.check import reference
from convbackprop.devices import Device
from convbackprop.devices.gpus import Target
from convbackprop.errors import LaunchFailed
from convbackprop.ladder.expression import InvalidLaunch
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import Plan, alignment_of, constants_of, plan
from convbackprop.layouts import as_named, in_memory
from convbackprop.problem import ACCUMULATORS, PASSES, ConvProblem

Array = Any

#: Elements of a guard zone, on each side of an array.
GUARD = 1024

#: Of memory that cudaMalloc returns, in bytes.
_ALIGNMENT = 256

#: What data a problem can be filled with.
DATA = ("normal", "integers", "constant", "positive", "nonfinite")


#: Why a sum may be wrong that is right with finite data.
PADDING_IS_NO_PIXEL = (
    "there are a few NaN and infinities among these data: the padding is no pixel, and a tap over it adds nothing to a "
    "sum, also a NaN or infinite one"
)

#: So near to 0 no derivative of an activation is too small for any accumulator.
_NEAR = 4


def fill(shape: tuple[int, ...], dtype: str, data: str, rng: np.random.Generator) -> Array:
    """Return an array of test data.

    "normal" numbers; small "integers", whose sums are exact in any order; a "constant" and "positive" numbers, which
    show a sum whose round-offs do not cancel; "nonfinite" ones: normal but for a NaN or an infinity, or two, or none.
    """
    values = {
        "normal": lambda: rng.standard_normal(shape),
        "integers": lambda: rng.integers(-3, 4, shape).astype(np.float64),
        "constant": lambda: np.full(shape, rng.uniform(0.5, 1)),
        "positive": lambda: rng.uniform(0, 1, shape),
        "nonfinite": lambda: rng.standard_normal(shape),
    }[data]()
    if data == "nonfinite" and values.size:
        for _ in range(rng.choice((0, 1, 1, 2))):  # few, and so that much of the result remains finite
            at = tuple(int(rng.choice([0, size - 1, int(rng.integers(size))])) for size in shape)  # at borders, too
            values[at] = rng.choice((np.nan, np.inf, -np.inf))
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of a NaN
        return values.astype(reference.numpy_dtype(dtype))


def inputs(
    pass_name: str,
    problem: ConvProblem,
    data: str = "normal",
    seed: int = 0,
    own: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Return the input arrays of a pass by operand name; `saved` is what the reference's forward pass would save.

    Beside an infinite dy a pre-activation of "nonfinite" data is nearer to 0 than that may be.

    Arrays in `own` take the place of test data.
    """
    rng = np.random.default_rng(seed)
    biases = problem.C if problem.transposed and pass_name == "input_grad" else problem.K
    made = {name: fill(shape, problem.dtype, data, rng) for name, shape in
            (("x", problem.x_shape), ("w", problem.w_shape), ("b", (biases,)), ("dy", problem.y_shape))}  # fmt: skip
    options = (("scale", problem.scale, (problem.K,)), ("residual", problem.residual, problem.y_shape))
    made |= {name: fill(shape, problem.dtype, data, rng) for name, wanted, shape in options if wanted}
    made |= own or {}
    if pass_name != "forward" and problem.saved and "saved" not in made:
        made["saved"] = reference.saved_by_forward(problem, made)
        if data == "nonfinite" and problem.saved == "pre_activation":
            # Far from 0 a derivative is so small that whether it underflows, and infinity times it is NaN, is a matter
            # of the accumulator's type.
            infinite = np.isinf(made["dy"])
            made["saved"][infinite] = made["saved"][infinite].astype(np.float64).clip(-_NEAR, _NEAR)
    present = {o.name for o in PASSES[pass_name].present(problem) if not o.written}
    return {name: array for name, array in made.items() if name in present}


class Guarded:
    """An array between two guard zones, all in one block of memory, filled with NaN.

    Of the many NaNs each array has another, by its `mark`, so that one that was read beyond the end of an array and
    written beyond the end of another shows.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0, mark: int = 0, layout: str = "nchw"
    ) -> None:
        size = math.prod(shape)
        self.first = GUARD + offset
        # As aligned as what a GPU's allocator returns.
        memory = np.empty((self.first + size + GUARD) * dtype.itemsize + _ALIGNMENT, np.uint8)
        begin = -memory.ctypes.data % _ALIGNMENT
        self.whole = memory[begin : memory.size - _ALIGNMENT + begin].view(dtype)
        self._bits = np.dtype(f"u{dtype.itemsize}")
        # All bits 1 is a NaN in every floating-point type, and still is with other bits at its end.
        self._guard = self._bits.type(np.iinfo(self._bits).max - mark)
        self.whole.view(self._bits)[...] = self._guard
        self.array = as_named(self.whole[self.first : self.first + size].reshape(in_memory(shape, layout)), layout)

    def intact(self) -> bool:
        """Return whether both guard zones are as they were."""
        ends = np.concatenate([self.whole[: self.first], self.whole[-GUARD:]])
        return bool((ends.view(self._bits) == self._guard).all())


def stage(
    variant: Variant,
    problem: ConvProblem,
    given: Mapping[str, Array],
    device: Device,
    tunables: str | None = None,
    offset: int = 0,
) -> tuple[Plan, dict[str, Guarded]]:
    """Make ready to run a variant on guarded copies of the given arrays.

    The arrays begin `offset` elements after an address that suits the widest loads.

    Returns
    -------
    Plan
        What is to be run.
    dict of str to Guarded
        Every operand that the problem has, and the scratch memory "scratch".
    """
    blocks = {
        operand.name: Guarded(
            operand.shape(problem), reference.numpy_dtype(operand.dtype(problem)), offset, mark, operand.layout(problem)
        )
        for mark, operand in enumerate(PASSES[variant.pass_name].present(problem), 1)
    }
    for name, array in given.items():
        blocks[name].array[...] = array
    starts = {name: block.first * block.whole.itemsize for name, block in blocks.items()}  # the whole is aligned
    ready = plan(variant, problem, device, tunables, alignment_of(starts, problem.mask))
    accumulators = ready.scratch_bytes // problem.accumulator_bytes
    blocks["scratch"] = Guarded((accumulators,), np.dtype(ACCUMULATORS[problem.dtype]))
    return ready, blocks


def launch(
    variant: Variant,
    problem: ConvProblem,
    given: Mapping[str, Array],
    device: Device,
    tunables: str | None = None,
    offset: int = 0,
) -> dict[str, Guarded]:
    """Run a variant on guarded copies of the given arrays, and return these (see `stage`) after the launch."""
    ready, blocks = stage(variant, problem, given, device, tunables, offset)
    if device.kind == "cpu":
        ready.run({name: block.array.ctypes.data for name, block in blocks.items()})
        return blocks
    cuda: Any = device
    with cuda.holding() as there:
        for name, block in blocks.items():
            there[name] = cuda.upload(block.whole.ctypes.data, block.whole.nbytes)
        ready.run({name: int(there[name]) + block.first * block.whole.itemsize for name, block in blocks.items()})
        for name, block in blocks.items():
            cuda.download(there[name], block.whole.ctypes.data, block.whole.nbytes)
    return blocks


@dataclass
class Outcome:
    """What a check has found.

    Attributes
    ----------
    share : float
        The largest error of any element as a share of its bound; at most 1 is right, infinite where a NaN should not
        be.
    faults : list of str
        One sentence for each thing that is wrong; empty when all is well.
    """

    variant: str
    problem: ConvProblem
    data: str
    share: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return not self.faults


def check(
    variant: Variant,
    problem: ConvProblem,
    device: Device,
    data: str = "normal",
    seed: int = 0,
    tunables: str | None = None,
    given: Mapping[str, Array] | None = None,
    expected: Mapping[str, tuple[Array, Array]] | None = None,
    offset: int = 0,
) -> Outcome:
    """Hold every element that a variant computes against the reference.

    Parameters
    ----------
    variant : Variant
        What to run.
    problem : ConvProblem
        On what.
    device : Device
        Where.
    data : str
        One of `DATA`; "integers" must come out exactly.
    seed : int
        Of the random numbers.
    tunables : "cpu", "cuda" or None
        Whose values the tunable constants take; None: the device's own.
    given : mapping of str to numpy.ndarray, optional
        The inputs, in place of test data.
    expected : mapping, optional
        `reference.answer` for these inputs, where it is known already.
    offset : int
        By how many elements the arrays are off an address that suits the widest loads.

    Returns
    -------
    Outcome
        With the largest error and what is wrong.

    Raises
    ------
    LaunchFailed
        A launch of the package failed, or one on a GPU, which then launches nothing more. What makes a file of one's
        own impossible to launch, or to end, is a fault of the outcome.
    """
    given = inputs(variant.pass_name, problem, data, seed) if given is None else given
    try:
        blocks = launch(variant, problem, given, device, tunables, offset)
    except LaunchFailed as error:
        if variant.file is None or not (device.kind == "cpu" or isinstance(error, InvalidLaunch)):
            raise
        sentence = error.sentence if isinstance(error, InvalidLaunch) else str(error)
        return Outcome(str(variant), problem, data, math.inf, [sentence])
    return judge(variant, problem, given, blocks, data, expected)


def judge(
    variant: Variant,
    problem: ConvProblem,
    given: Mapping[str, Array],
    blocks: Mapping[str, Guarded],
    data: str = "normal",
    expected: Mapping[str, tuple[Array, Array]] | None = None,
) -> Outcome:
    """Hold what a launch has left in `blocks` against the reference; see `check`."""
    pass_name = variant.pass_name
    outcome = Outcome(str(variant), problem, data)
    for name, array in given.items():
        if blocks[name].array.tobytes() != array.tobytes():
            outcome.faults.append(f"{name}, an input, was changed")
    for name, block in blocks.items():
        if not block.intact():
            outcome.faults.append(f"memory next to {name} was written")
    exact = data == "integers" and problem.activation in ("identity", "relu")
    expected = reference.answer(pass_name, problem, given) if expected is None else expected
    transforms = variant.transforms
    transformed = reference.transformed_error(pass_name, problem, given, transforms) if transforms else None
    for name, (value, magnitude) in expected.items():
        got = blocks[name].array
        bound = reference.error_bound(name, problem, value, magnitude, transformed)
        shares = reference.error_share(got, value, bound, problem.dtype)
        if exact:
            rounded = value.astype(got.dtype)
            shares = np.where(got == rounded, 0, np.inf)
        if shares.size:
            outcome.share = max(outcome.share, float(shares.max()))
            outcome.faults += _describe(name, got, value, shares)
    if data == "nonfinite" and outcome.faults:
        outcome.faults.append(PADDING_IS_NO_PIXEL)
    if "mask" in blocks and not np.array_equal(reference.mask_of(blocks["y"].array), blocks["mask"].array):
        outcome.faults.append("mask is not the bits of y > 0")
    return outcome


#: Sets of compile-time constants that a check of many problems compiles a variant with.
BUDGET = 10


def compiled_alike(variant: Variant, problems: Iterable[ConvProblem], target: Target | str) -> list[list[ConvProblem]]:
    """Return those of the problems that a variant computes, in lists of one set of compile-time constants each.

    Lists and problems come in an order that looks random and is the same in every run.
    """
    sets: dict[tuple[tuple[str, object], ...], list[ConvProblem]] = {}
    for problem in sorted(problems, key=lambda problem: hashlib.sha256(str(problem).encode()).digest()):
        if variant.refusal(problem) is None:
            sets.setdefault(tuple(constants_of(variant, problem, target).items()), []).append(problem)
    return list(sets.values())


def within_budget(
    variant: Variant, problems: Iterable[ConvProblem], target: Target | str, budget: int = BUDGET
) -> frozenset[ConvProblem]:
    """Choose problems for whose sake a variant is compiled not too often.

    Each set of compile-time constants is one compilation, of seconds. A variant that chooses among a few of them is
    compiled for the usual one of each kind (dtype, activation and what is saved), and for all of one kind. One that is
    compiled anew for other sizes is compiled at most `budget` times, for problems that differ most.

    Parameters
    ----------
    variant : Variant
        What is to be checked.
    problems : iterable of ConvProblem
        On what; those that it refuses are not chosen.
    target : Target, "cpu" or "cuda"
        Whose values the tunable constants take.
    budget : int
        Sets of constants at most.

    Returns
    -------
    frozenset of ConvProblem
        Those that can be checked with so many compilations.
    """
    sets = compiled_alike(variant, problems, target)
    kinds: dict[tuple[str, str, bool], list[list[ConvProblem]]] = {}
    for alike in sets:
        # A set may have several kinds: the mask of a forward pass is a launch of its own.
        for kind in dict.fromkeys((p.dtype, p.activation, p.mask) for p in alike):
            kinds.setdefault(kind, []).append(alike)
    if not variant.specialised:
        usual = [max(same_kind, key=len) for same_kind in kinds.values()]
        sets = usual + max(kinds.values(), key=lambda same_kind: sum(map(len, same_kind)), default=[])
    elif len(sets) > len(kinds):
        sets = _most_varied(sets, budget)
    return frozenset(problem for alike in sets for problem in alike)


#: What problems differ in.
_FACTS = (
    "activation", "mask", "layout", "scale", "residual", "transposed", "R", "S", "stride", "padding", "dilation",
    "groups",
)  # fmt: skip


def _most_varied(sets: list[list[ConvProblem]], count: int) -> list[list[ConvProblem]]:
    """Return so many of the sets: each time the one that meets most that no other of them does in a dtype."""
    facts = [{(p.dtype, name, getattr(p, name)) for p in alike for name in _FACTS} for alike in sets]
    taken: list[int] = []
    met: set[tuple[str, str, object]] = set()
    for _ in range(min(count, len(sets))):
        left = (i for i in range(len(sets)) if i not in taken)
        taken.append(max(left, key=lambda i: (len(facts[i] - met), len(sets[i]))))
        met |= facts[taken[-1]]
    return [sets[i] for i in taken]


def _describe(name: str, got: Array, value: Array, shares: Array) -> list[str]:
    """Return a sentence on the first wrong element and the worst one, if there is any."""
    wrong = np.flatnonzero(~(shares <= 1))
    if not wrong.size:
        return []

    def element(flat: int) -> str:
        at = ",".join(str(int(i)) for i in np.unravel_index(flat, value.shape))
        times = shares.flat[flat]
        error = f"{times:.3g} times the bound" if np.isfinite(times) else "no rounding error"
        return f"{name}[{at}] is {float(got.flat[flat]):.9g} instead of {float(value.flat[flat]):.9g} ({error})"

    first, worst = int(wrong[0]), int(shares.argmax())
    text = f"{wrong.size:,} of {value.size:,} elements of {name} are wrong: first {element(first)}"
    return [text if worst == first else f"{text}; worst {element(worst)}"]
