"""The exercises: what each is about, on which problems it is judged, and what is asked of a solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from convbackprop.errors import InvalidArgument
from convbackprop.problem import ConvProblem
from convbackprop.sources import source_root

if TYPE_CHECKING:
    from convbackprop.lab.counts import Counts
    from convbackprop.lab.grade import Grade


@dataclass(frozen=True)
class Task:
    """What an exercise asks for, and whether a grade says that it is done: by what was counted, never by a clock.

    `figure` is that which decides, if it is one; `mistake` the kind of mistake that it is not to have done it, if it is
    one of the catalogue.
    """

    text: str
    done: Callable[[Grade], bool]
    figure: Callable[[Counts], float] | None = None
    mistake: str | None = None


@dataclass(frozen=True)
class Exercise:
    """An exercise of the lab.

    Attributes
    ----------
    file : str
        Of convbackprop/lab/exercises.
    takes : callable
        Whether a curated problem is one of the exercise's.
    profiled, timed : str
        The problem whose addresses are replayed (and that a GPU is timed on), and a smaller one that the CPU is timed
        on.
    solution : str
        The rung of the ladder that does it.
    """

    number: int
    file: str
    title: str
    pass_name: str
    takes: Callable[[ConvProblem], bool]
    profiled: str
    timed: str
    tasks: tuple[Task, ...]
    solution: str

    def text(self) -> str:
        """Return the file as it is handed out, with the folder of the ladder's sources as it is on this machine."""
        found = files("convbackprop") / "lab" / "exercises" / self.file
        return found.read_text(encoding="utf-8").replace("CUDA_SRC", str(source_root()))


# -- on which problems -----------------------------------------------------------------------------------------------
_ONE_CHANNEL, _ONE_CHANNEL_TIMED = "1,1,4096,4096,1,5,5,padding=same", "1,1,512,512,1,5,5,padding=same"
_SUM = "1,1,512,512,1,5,5,padding=same"  # a block that adds up all pixels is replayed whole
_MANY, _MANY_TIMED = "8,64,56,56,64,3,3,padding=1", "1,32,28,28,32,3,3,padding=1"


def _all(p: ConvProblem) -> bool:
    return not (p.transposed or p.scale or p.residual)


def _one_channel(p: ConvProblem) -> bool:
    return _all(p) and p.C == p.K == 1 and p.stride == p.dilation == (1, 1)


def _same(p: ConvProblem) -> bool:
    return _one_channel(p) and (p.P, p.Q) == (p.H, p.W) and p.R % 2 == p.S % 2 == 1


def _no_groups(p: ConvProblem) -> bool:
    return _all(p) and p.groups == 1


# -- what is asked ---------------------------------------------------------------------------------------------------
RIGHT = Task("every result is right", lambda grade: grade.right)
CLEAN = Task("the sanitizer finds nothing", lambda grade: grade.clean)


def _at_most(text: str, most: float, figure: Callable[[Counts], float]) -> Task:
    def done(grade: Grade) -> bool:
        return grade.right and grade.counts is not None and figure(grade.counts) <= most

    return Task(text, done, figure)


_NO_ATOMICS = Task(
    "nothing is added by atomics",
    lambda grade: grade.right and grade.counts is not None and not grade.counts.atomics,
    mistake="atomics_in_any_order",
)
_SHARED = _at_most("at most a quarter of a pixel is asked of global memory for each multiply-add", 0.25,
                   lambda counts: counts.pixels)  # fmt: skip
_COALESCED = _at_most("at most 1.25 times the sectors are asked for that the numbers would fill", 1.25,
                      lambda counts: counts.coalescing)  # fmt: skip
_FUSED = _at_most("at most 1.45 times the bytes are moved that must be", 1.45, lambda counts: counts.moved)
_PRODUCT = _at_most("at most half a number is loaded for each multiply-add", 0.5, lambda counts: counts.loads)

EXERCISES = (
    Exercise(1, "1_forward.cu", "the forward pass, one thread a pixel", "forward", _all, _ONE_CHANNEL,
             _ONE_CHANNEL_TIMED, (RIGHT, CLEAN), "forward/naive"),
    Exercise(2, "2_input_grad.cu", "the input gradient: which way is the filter turned?", "input_grad", _all,
             _ONE_CHANNEL, _ONE_CHANNEL_TIMED, (RIGHT, CLEAN), "input_grad/naive"),
    Exercise(3, "3_kernel_grad.cu", "the kernel gradient: who adds, and where?", "kernel_grad", _all, _SUM,
             _ONE_CHANNEL_TIMED, (RIGHT, CLEAN, _NO_ATOMICS), "kernel_grad/tiled"),
    Exercise(4, "4_activation.cu", "phi', and what the forward pass has saved", "input_grad", _all, _ONE_CHANNEL,
             _ONE_CHANNEL_TIMED, (RIGHT, CLEAN), "input_grad/naive"),
    Exercise(5, "5_shared_memory.cu", "shared memory, and the halo", "forward", _one_channel, _ONE_CHANNEL,
             _ONE_CHANNEL_TIMED, (RIGHT, CLEAN, _SHARED), "forward/tiled"),
    Exercise(6, "6_coalesced.cu", "coalesced loads", "forward", _one_channel, _ONE_CHANNEL, _ONE_CHANNEL_TIMED,
             (RIGHT, CLEAN, _COALESCED), "forward/naive"),
    Exercise(7, "7_fused.cu", "fuse it", "backward", _same, _ONE_CHANNEL, _ONE_CHANNEL_TIMED, (RIGHT, CLEAN, _FUSED),
             "backward/fused"),
    Exercise(8, "8_matrix_product.cu", "many channels, as a matrix product", "forward", _no_groups, _MANY, _MANY_TIMED,
             (RIGHT, CLEAN, _PRODUCT), "forward/implicit_gemm"),
)  # fmt: skip


def exercise(number: int) -> Exercise:
    """Return an exercise by its number.

    Raises
    ------
    InvalidArgument
        There is none of that number.
    """
    if not 1 <= number <= len(EXERCISES):
        raise InvalidArgument(f"--exercise is {number}; it should be between 1 and {len(EXERCISES)}")
    return EXERCISES[number - 1]


def of_file(name: str) -> Exercise | None:
    """Return the exercise whose file has a name."""
    return next((each for each in EXERCISES if each.file == name), None)


def without_exercise(pass_name: str) -> Exercise:
    """Return what a file is judged by that belongs to no exercise: all curated problems, right and clean."""
    profiled = _SUM if pass_name == "kernel_grad" else _ONE_CHANNEL
    return Exercise(0, "", "", pass_name, _all, profiled, _ONE_CHANNEL_TIMED, (RIGHT, CLEAN), "")
