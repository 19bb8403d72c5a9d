"""What is measured: one job a pass of a problem in a dtype, and a few of another kind; in the order of importance."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from convbackprop.bench import roof
from convbackprop.bench.layers import DEEPBENCH, WHOLE, Layer
from convbackprop.devices.compiler import Source
from convbackprop.devices.gpus import Target
from convbackprop.ladder.registry import choose, of_pass
from convbackprop.ladder.variant import Tunable, Variant
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.profile.configurations import configured

HERE = Path(__file__).parents[1]

#: The package's kernels are compiled with what they need; so are these.
FFMA = roof.source("float32", roof.THREADS, lanes=1, chains=roof.CHAINS)
SPIN = Source.of(HERE / "spin.cu", {"SCALAR": "float32"})

#: The lower rungs run on this size only: they are slow, and their time is nobody's goal.
LADDER_ON = "4096 5x5"
LOWER_RUNGS = ("naive", "tiled")

#: Of layers of many channels.
THREE_PASSES = ("forward", "input_grad", "kernel_grad")
WHOLE_LAYER, DEEPBENCH_LABEL = "64->128 112 3x3", "DeepBench"


@dataclass(frozen=True)
class Job:
    """What one measurement is about.

    Attributes
    ----------
    name : str
        Such as "4096 5x5/float32/forward"; rows and goals refer to it.
    kind : str
        "pass"; "layer": forward and backward with a mask; "ceilings"; "host": what a call costs; "graphs": a public
        function in a CUDA graph; "training": a layer of convbackprop.torch; "nccl": one that is split among processes.
    problem : ConvProblem or None
        With ReLU and bias.
    variants : tuple of Variant
        Of a pass; of a layer the forward and the backward one.
    brief : bool
        One of many: timed cold only, for a quarter of the time, and torch in full float32 only.
    """

    name: str
    kind: str
    pass_name: str = ""
    problem: ConvProblem | None = None
    variants: tuple[Variant, ...] = ()
    brief: bool = False

    @property
    def part(self) -> str:
        """The part of the report that it belongs to."""
        return self.kind if self.kind in ("host", "graphs", "training", "nccl") else "rows"


def shrunk(problem: ConvProblem) -> ConvProblem:
    """Return a small problem that runs the same compiled kernels (`as_for`): sizes keep their factors of two."""
    if problem.groups == problem.K:
        return problem.with_(N=min(problem.N, 2), H=min(problem.H, 101), W=min(problem.W, 96))
    # Channels, filters and small images stay as they are: how sums are made and split follows from them.
    height, width = (size if size < 96 else 32 + size % 32 for size in (problem.H, problem.W))
    return problem.with_(N=min(problem.N, 8), H=height, W=width)


@functools.cache
def as_for(variant: Variant, problem: ConvProblem, target: Target | str = "cuda") -> Variant:
    """Return the variant with the tunable constants that a GPU takes for this problem, for smaller ones too."""
    values = {name: tunable.value(target, problem) for name, tunable in variant.tunables.items()}
    fixed = {name: Tunable((value,), value, value) for name, value in values.items()}
    return dataclasses.replace(variant, tunables=fixed)


def _pass(label: str, text: str, dtype: str, pass_name: str, mask: bool = False) -> Job:
    problem = ConvProblem.parse(text, dtype=dtype, activation="relu", bias=True, mask=mask)
    rungs = tuple(
        rung
        for rung in of_pass(pass_name)
        if rung.refusal(problem, "cuda") is None and (rung.name not in LOWER_RUNGS or (label == LADDER_ON and not mask))
    )
    return Job(f"{label}/{dtype}/{pass_name}{' mask' * mask}", "pass", pass_name, problem, rungs)


def _deep(label: str, layer: Layer, dtype: str, pass_name: str) -> Job:
    """Return the job of a layer of many channels, which only the variant that "auto" chooses does."""
    problem = layer.problem(dtype=dtype)
    return Job(f"{label}/{dtype}/{pass_name}", "pass", pass_name, problem,
               (choose(pass_name, "auto", problem, "cuda"),), brief=layer != WHOLE)  # fmt: skip


def _layer(dtype: str) -> Job:
    problem = ConvProblem.parse(
        "1,1,4096,4096,1,3,3,padding=same", dtype=dtype, activation="relu", bias=True, mask=True
    )
    both = tuple(choose(pass_name, "auto", problem, "cuda") for pass_name in ("forward", "backward"))
    return Job(f"4096 3x3/{dtype}/layer", "layer", "", problem, both)


def _all() -> Iterator[Job]:
    square = {size: f"1,1,4096,4096,1,{size},{size},padding=same" for size in (3, 5, 7, 15)}
    depthwise = "32,32,112,112,32,3,3,groups=32,padding=1"
    batch = "16,1,2048,2048,1,5,5,padding=same"

    def passes(label: str, text: str, dtype: str) -> Iterator[Job]:
        for pass_name in PASSES:
            yield _pass(label, text, dtype, pass_name)

    yield Job("ceilings", "ceilings")
    for size in (3, 5, 7):
        yield from passes(f"4096 {size}x{size}", square[size], "float32")
        for pass_name in ("forward", "backward"):
            yield _pass(f"4096 {size}x{size}", square[size], "float32", pass_name, mask=True)
    yield _layer("float32")
    yield from passes("4096 15x15", square[15], "float32")
    yield from passes("depthwise 112 3x3", depthwise, "float32")
    yield from passes("16x2048 5x5", batch, "float32")
    for size in (5, 3, 7):
        yield from passes(f"4096 {size}x{size}", square[size], "float16")
    yield _layer("float16")
    yield from passes("depthwise 112 3x3", depthwise, "float16")
    yield from passes("16x2048 5x5", batch, "float16")
    for pass_name in THREE_PASSES:
        yield _deep(WHOLE_LAYER, WHOLE, "float32", pass_name)
    for dtype in ("bfloat16", "float64"):
        yield from passes("4096 5x5", square[5], dtype)
    for pass_name in THREE_PASSES:
        yield _deep(WHOLE_LAYER, WHOLE, "float16", pass_name)
    for i, layer in enumerate(DEEPBENCH):
        for pass_name in THREE_PASSES:
            p = layer.problem()
            sizes = f"{p.C}x{p.H}x{p.W}->{p.K} {p.R}x{p.S}{f' s{p.stride_h}' if p.stride_h > 1 else ''}"
            yield _deep(f"{DEEPBENCH_LABEL} {i + 1:02} {sizes}", layer, "float32", pass_name)


def _public() -> Iterator[Job]:
    """Yield what is measured of the public functions and of the layers, whose kernels have their rows above."""
    labels = {
        "28 3x3": "1,1,28,28,1,3,3,padding=same",
        "4096 3x3": "1,1,4096,4096,1,3,3,padding=same",
        WHOLE_LAYER: "32,64,112,112,128,3,3,padding=1",
    }
    problems = {
        label: ConvProblem.parse(text, activation="relu", bias=True, dtype="float32") for label, text in labels.items()
    }
    for pass_name, name in (("forward", "host"), ("backward", "host backward")):
        yield _of_public("28 3x3", problems["28 3x3"], name, "host", pass_name)
    for label, problem in problems.items():
        for pass_name in PASSES:
            yield _of_public(label, problem, f"graphs {pass_name}", "graphs", pass_name)
    for name in ("training", "training compiled", "nccl"):
        for label, problem in problems.items():
            yield Job(f"{label}/float32/{name}", name.split()[0], "", problem)


def _of_public(label: str, problem: ConvProblem, name: str, kind: str, pass_name: str) -> Job:
    """Return a job of a public function, and the variants that "auto" runs for it."""
    passes = (pass_name,)
    if pass_name == "backward" and not any(v.refusal(problem, "cuda") is None for v in of_pass("backward")):
        passes = ("input_grad", "kernel_grad")
    variants = tuple(choose(each, "auto", problem, "cuda") for each in passes)
    return Job(f"{label}/float32/{name}", kind, pass_name, problem, variants)


def all_jobs() -> tuple[Job, ...]:
    """Return every job that has something to run."""
    return (*(job for job in _all() if job.variants or job.kind == "ceilings"), *_public())


#: What the sanitizer looks at: odd widths, several bands and blocks, channels, stride, padding on one side.
SANITIZER_PROBLEMS = (
    "2,1,101,96,1,3,3,padding=same",
    "1,1,37,33,1,5,5,padding=same",
    "2,4,17,24,4,3,3,groups=4,padding=1",
    "2,3,19,21,4,3,2,stride=2x1,padding=0:1x2:0",
)
SANITIZER_DTYPES = ("float32", "float16")


def sanitizer_runs() -> Iterator[tuple[Variant, ConvProblem]]:
    """Yield every variant on the problems that it computes; the gradients also with a mask."""
    for dtype in SANITIZER_DTYPES:
        for text in SANITIZER_PROBLEMS:
            for pass_name in PASSES:
                for mask in (False, True):
                    problem = ConvProblem.parse(text, dtype=dtype, activation="relu", bias=True, mask=mask)
                    yield from ((rung, problem) for rung in of_pass(pass_name) if rung.refusal(problem, "cuda") is None)


def sources(jobs: Iterable[Job], sanitizer: bool, target: Target | str = "cuda") -> list[Source]:
    """Return every file, with its constants, that these jobs launch on a GPU; the sanitizer's runs too, if wanted."""
    wanted = [(variant, job.problem) for job in jobs if job.problem for variant in job.variants]
    wanted += [(as_for(variant, problem, target), shrunk(problem)) for variant, problem in wanted]
    if sanitizer:
        wanted += sanitizer_runs()
    return [FFMA, SPIN, *configured(wanted, target=target)]
