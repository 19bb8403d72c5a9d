"""What a variant is: its file, its launches, its constants, and what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from convbackprop.devices.gpus import Target
from convbackprop.devices.mapped import TensorMap
from convbackprop.errors import LaunchFailed
from convbackprop.problem import OPTIONAL, PASSES, ConvProblem
from convbackprop.sources import head_comment, source_root

if TYPE_CHECKING:
    from convbackprop.devices import Device

Constants = Mapping[str, int]
Geometry = Callable[[ConvProblem, Constants], tuple[int, ...]]
Choice = int | Callable[[ConvProblem, Target], int]

#: CUDA's limits on the three extents of a grid.
MAX_GRID = (2**31 - 1, 65535, 65535)

#: The widest load and store there is, in bytes; an address need not be aligned to more.
WIDEST = 16


class Alignment(NamedTuple):
    """Bytes, at most `WIDEST`, to which all arrays of x's shape (x, dx) and of y's shape (y, dy) are aligned."""

    x: int
    y: int


#: What arrays are aligned to that a library has made.
ALIGNED = Alignment(WIDEST, WIDEST)


@dataclass(frozen=True)
class Tunable:
    """A compile-time constant that may be chosen freely among `legal`: for each kind of device a value, or a rule.

    None: for a kind of device that the variant does not run on.
    """

    legal: tuple[int, ...]
    cuda: Choice | None = None
    cpu: Choice | None = None

    def value(self, target: Target | str, problem: ConvProblem) -> int:
        """Return the choice for a target, or a kind of device alone."""
        target = Target.of(target)
        choice: Choice | None = getattr(self, target.kind)
        assert choice is not None, f"a constant of a variant that does not run on {target.kind}"
        return choice if isinstance(choice, int) else choice(problem, target)


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
        (problem, constants) -> whether this launch is needed.
    maps : callable
        (problem, constants) -> tensor maps of its operands, which are parameters before all others.
    """

    entry: str
    operands: tuple[str, ...]
    grid: Geometry
    block: Geometry
    integers: Geometry = lambda p, t: ()
    shared_bytes: Callable[[ConvProblem, Constants], int] = lambda p, t: 0
    when: Callable[[ConvProblem, Constants], bool] = lambda p, t: True
    maps: Callable[[ConvProblem, Constants], tuple[TensorMap, ...]] = lambda p, t: ()


#: Says in one sentence why a problem is refused, or None.
Requirement = Callable[[ConvProblem], "str | None"]

#: Says in one sentence why "auto" leaves a problem on a target to a lower rung, or None.
AutoRule = Callable[[ConvProblem, Target], "str | None"]


Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Transforms:
    """Of an algorithm whose sums are A^T [(G w G^T) * (B^T x B)] A, by tiles of results; rows of its matrices."""

    results: Matrix
    filter: Matrix
    pixels: Matrix

    @property
    def multiplications(self) -> float:
        """How many there are of a tile, for each of those of the sums themselves."""
        taps = len(self.filter[0])
        return (len(self.filter) / (len(self.results) * taps)) ** 2

    @property
    def additions(self) -> int:
        """How many a term passes through at most, in all transforms along both axes."""
        matrices = self.results, self.filter, self.pixels
        return 2 * sum(max(len(row) - row.count(0) for row in rows) - 1 for rows in matrices)


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
    scratch : callable
        (problem, constants) -> how many accumulators of scratch memory the launches share, as operand "scratch".
    layouts : tuple of str
        Of `layouts.LAYOUTS`, those that it reads and writes.
    requires : tuple of callable
        Each looks at a problem and returns None, or one sentence on why it is refused.
    runs_on : tuple of str
        The kinds of device that it can be compiled for.
    architectures : tuple of str
        Of GPUs, that it is written for; none: all.
    auto_on : tuple of str
        Those of them on which `variant="auto"` may choose it.
    unproven : bool
        Whether no GPU has run it as it stands.
    auto_not : callable
        (problem, target) -> one sentence on why "auto" leaves the problem to a lower rung, or None.
    all_phases : bool
        Of input_grad: whether each thread has pixels of all phases of a stride, so that none has more taps than others.
    transforms : Transforms or None
        By which it forms the sums, with a bound of the error that is wider than the one that is promised, so that it is
        chosen by its name alone; None: it forms them as they stand.
    rule : Variant or None
        The variant that this one is with other values of tunables; None: it is one of the registry.
    path : Path
        The .cu file.
    """

    pass_name: str
    name: str
    launches: tuple[Launch, ...]
    tunables: Mapping[str, Tunable] = field(default_factory=dict)
    specialise: Callable[[ConvProblem, Alignment, Constants], Constants] = lambda p, a, t: {}
    scratch: Callable[[ConvProblem, Constants], int] = lambda p, t: 0
    layouts: tuple[str, ...] = ("nchw",)
    requires: tuple[Requirement, ...] = ()
    runs_on: tuple[str, ...] = ("cuda", "cpu")
    architectures: tuple[str, ...] = ()
    auto_on: tuple[str, ...] = ("cuda", "cpu")
    unproven: bool = False
    auto_not: AutoRule = lambda p, target: None
    all_phases: bool = False
    transforms: Transforms | None = None
    file: Path | None = None
    rule: Variant | None = None

    def __str__(self) -> str:
        return f"{self.pass_name}/{self.name}"

    # Two entries are the same only if they are one object: this makes a variant a cheap dictionary key.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def title(self) -> str:
        """The variant's name; a file of one's own keeps its ending."""
        return f"{self.pass_name}/{self.file.name}" if self.file else str(self)

    @property
    def specialised(self) -> bool:
        """Whether it is compiled anew for problems of other sizes."""
        small, large = (ConvProblem.parse(f"1,64,9,9,64,{size},{size},padding=same") for size in (3, 5))
        return self.constants("cuda", small) != self.constants("cuda", large)

    @property
    def multiplications(self) -> float:
        """How many it has for each of the sums' own."""
        return self.transforms.multiplications if self.transforms else 1.0

    @property
    def takes_transposed(self) -> bool:
        """Whether it computes a transposed convolution's forward pass too."""
        return self.pass_name == "input_grad" and self.takes("b")

    def takes(self, operand: str) -> bool:
        """Return whether a launch takes this array."""
        return any(operand in launch.operands for launch in self.launches)

    @property
    def path(self) -> Path:
        """The .cu file."""
        return self.file or source_root() / self.pass_name / f"{self.name}.cu"

    def is_for(self, architecture: str) -> bool:
        """Return whether it can be compiled for a GPU's architecture."""
        return not self.architectures or architecture in self.architectures

    @property
    def summary(self) -> str:
        """What the variant does, from the head comment of its file: the first sentence after the equation."""
        paragraphs = head_comment(self.path)
        return paragraphs[min(1, len(paragraphs) - 1)].split(". ")[0].rstrip(".") + "." if paragraphs else ""

    def refusal(self, problem: ConvProblem, device: Device | Target | str | None = None) -> str | None:
        """Return the sentence on why this variant does not compute `problem`, or None if it does.

        `device`: where, for which target, or on which kind of device; None: on any that it runs on.
        """
        kind = getattr(device, "kind", device)
        if kind is not None and kind not in self.runs_on:
            return f"it is written for {' and '.join(self.runs_on)}; it does not run on {kind}"
        architecture = getattr(device, "architecture", None) if kind == "cuda" else None
        if architecture is not None and not self.is_for(architecture):
            return f"it is written for {' and '.join(self.architectures)}; this GPU is {architecture}"
        sentences = (
            requirement(problem)
            for requirement in (self._layout, self._transposed, self._options, *self.requires, self._grid_fits)
        )
        return next(filter(None, sentences), None)

    def _layout(self, problem: ConvProblem) -> str | None:
        """It knows some layouts."""
        if problem.layout in self.layouts:
            return None
        return f"the layout is {problem.layout}; it reads and writes {' and '.join(self.layouts)}"

    def _transposed(self, problem: ConvProblem) -> str | None:
        """A transposed convolution is the pass input_grad, with a bias."""
        if not problem.transposed or self.takes_transposed:
            return None
        if self.pass_name != "input_grad":
            return "a transposed convolution is computed by the pass input_grad"
        return "it takes no bias b, which a transposed convolution adds to dx"

    def _options(self, problem: ConvProblem) -> str | None:
        """A layer's scale and residual must be taken by a launch."""
        wanted = (o.name for o in PASSES[self.pass_name].present(problem) if o.name in OPTIONAL)
        return next((f"it takes no {name}" for name in wanted if not self.takes(name)), None)

    def _grid_fits(self, problem: ConvProblem) -> str | None:
        """Its grids must be within CUDA's limits, with the constants of every kind of device."""
        for kind in self.runs_on:
            constants = self.constants(kind, problem)
            for launch in self.launches:
                try:
                    grid = launch.grid(problem, constants)
                except LaunchFailed:
                    continue  # a mistake in a file of one's own, not a restriction: the launch tells it
                if any(extent > most for extent, most in zip(grid, MAX_GRID, strict=False)):
                    return f"its grid would be {_by(grid)} blocks; it should be at most {_by(MAX_GRID)}, CUDA's limit"
        return None

    def constants(self, target: Target | str, problem: ConvProblem, alignment: Alignment = ALIGNED) -> dict[str, int]:
        """Return the tunables for a target, and what follows from problem and alignment.

        A kind alone, "cpu" or "cuda", is a target too. A variant that runs on one kind only has the constants of that
        one. For grids, not for the compiler, there is also `multiprocessors`.
        """
        target = Target.of(target)
        if target.kind not in self.runs_on:
            target = target._replace(kind=self.runs_on[0])
        chosen = {name: tunable.value(target, problem) for name, tunable in self.tunables.items()}
        return {**chosen, **self.specialise(problem, alignment, chosen), "multiprocessors": target.multiprocessors}


@functools.cache
def pinned(variant: Variant, values: tuple[tuple[str, int], ...]) -> Variant:
    """Return a variant with these values of tunables in place of its rules': one object for the same values."""
    chosen = {name: replace(variant.tunables[name], cuda=value, cpu=value) for name, value in values}
    return replace(variant, tunables={**variant.tunables, **chosen}, rule=variant) if chosen else variant


def _by(extents: tuple[int, ...]) -> str:
    return " x ".join(f"{extent:,}" for extent in extents)


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)
