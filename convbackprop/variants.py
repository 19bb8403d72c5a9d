"""The registry: every variant of every pass, one entry a .cu file.

Nothing else in the package knows a variant. Its file, entry points, tests, benchmark rows and documentation follow
from the entry here and from the head comment of its .cu file.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from convbackprop.errors import InvalidArgument, UnsupportedProblem
from convbackprop.problem import PASSES, ConvProblem, known

Constants = Mapping[str, int]
Geometry = Callable[[ConvProblem, Constants], tuple[int, ...]]

#: CUDA's limit on the second and third extent of a grid.
MAX_GRID_YZ = 65535


@dataclass(frozen=True)
class Tunable:
    """A compile-time constant that may be chosen freely among `legal`, one value a kind of device."""

    legal: tuple[int, ...]
    cuda: int
    cpu: int


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
    partial_sums : callable
        (problem, constants) -> how many accumulators of scratch memory the launches share, as operand "partial".
    requires : tuple of callable
        Each looks at a problem and returns None, or one sentence on why it is refused.
    path : Path
        The .cu file.
    """

    pass_name: str
    name: str
    launches: tuple[Launch, ...]
    tunables: Mapping[str, Tunable] = field(default_factory=dict)
    partial_sums: Callable[[ConvProblem, Constants], int] = lambda p, t: 0
    requires: tuple[Requirement, ...] = ()
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

    def constants(self, device_kind: str) -> dict[str, int]:
        """Return the values of the tunables for a kind of device, "cpu" or "cuda"."""
        return {name: getattr(tunable, device_kind) for name, tunable in self.tunables.items()}


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
            Launch("kernel_grad_total", ("partial", "dw", "db"), _one_thread_each(_taps), _threads,
                   integers=lambda p, t: (_slices(p),)),
        ),
        tunables={"THREADS": _WHOLE_WARPS},
        partial_sums=lambda p, t: _slices(p) * _taps(p),
    ),
)  # fmt: skip


def of_pass(pass_name: str) -> tuple[Variant, ...]:
    """Return the variants of a pass, in the order of the ladder."""
    known(pass_name, tuple(PASSES), "pass")
    return tuple(variant for variant in VARIANTS if variant.pass_name == pass_name)


def choose(pass_name: str, variant: str, problem: ConvProblem) -> Variant:
    """Return the variant that `variant` names, or for "auto" the highest rung that computes the problem.

    Raises
    ------
    InvalidArgument
        There is no such variant; the message lists the known ones.
    UnsupportedProblem
        The variant refuses the problem; the message is its sentence.
    """
    known(variant, ("auto", *(rung.name for rung in of_pass(pass_name))), "variant")
    return _choose(pass_name, variant, problem)


@functools.lru_cache(maxsize=1024)
def _choose(pass_name: str, variant: str, problem: ConvProblem) -> Variant:
    rungs = of_pass(pass_name)
    if variant == "auto":
        return next(rung for rung in reversed(rungs) if rung.refusal(problem) is None)
    chosen = next(rung for rung in rungs if rung.name == variant)
    if sentence := chosen.refusal(problem):
        raise UnsupportedProblem(f"{chosen} does not compute this problem: {sentence}")
    return chosen


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


@functools.cache
def source_root() -> Path:
    """Return the directory of the .cu files: package data, or the checkout's own cuda_src."""
    try:
        return Path(str(files("convbackprop.cuda_src")))
    except ModuleNotFoundError:
        return Path(__file__).parent.parent / "cuda_src"


def head_comment(path: Path) -> list[str]:
    """Return the paragraphs of the comment at the head of a .cu file, each as one line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("//"):
            break
        if not line.startswith("//@"):
            lines.append(line[2:].strip())
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(lines).strip()) if part]


def entry_points(path: Path) -> tuple[str, ...]:
    """Return the names of the extern "C" __global__ functions of a .cu file.

    Raises
    ------
    InvalidArgument
        The file cannot be read, or has none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}") from None
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    names = re.findall(
        r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(', code
    )
    if not names:
        raise InvalidArgument(f'{path} has no CUDA kernel: it should define an extern "C" __global__ void function')
    return tuple(names)
