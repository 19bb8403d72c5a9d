"""Grade one .cu file: is it right, is it clean, what does it ask of memory, how long does it take beside the ladder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convbackprop.bench.timing import alternate, stage
from convbackprop.check import check, inputs
from convbackprop.check.curated import CURATED
from convbackprop.check.sanitize import WRONG, sanitize
from convbackprop.devices import Device, get_device
from convbackprop.devices.checked import checked_device
from convbackprop.devices.gpus import GPUS, gpu_titled
from convbackprop.errors import CompileError, InvalidArgument
from convbackprop.lab import exercises
from convbackprop.lab.counts import Counts
from convbackprop.lab.device_code import refuse_host_code
from convbackprop.lab.exercises import Exercise
from convbackprop.lab.grade import Grade, Times
from convbackprop.lab.mistakes import recognise, recognise_findings
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.ladder.registry import of_pass
from convbackprop.ladder.variant import Variant
from convbackprop.problem import ConvProblem
from convbackprop.profile.report import Report, report

#: Bytes of a hand-in, at most: a kernel is a page or two.
MOST_BYTES = 1 << 20

#: What a file is checked with: every problem of the first kind, and of the others one in so many.
_KINDS = (("float32", "relu"), ("float32", "tanh"), ("float32", "logistic"), ("float16", "relu"))
_ONE_IN = 3

#: Problems of the sanitizer: so many, of at most so many multiply-adds each, which it looks at one by one.
_SANITIZED, _MULTIPLY_ADDS = 8, 400_000

#: The rungs that a file is timed beside: those that the exercises lead to.
_RUNGS = ("naive", "tiled", "coalesced", "fused", "implicit_gemm")

#: Findings after which a result depends on what was in memory before, or on who came first.
_BY_CHANCE = ("uninitialised read", "race", "race between blocks")

#: Seconds in which a file and the rungs are timed, and blocks of each launch that are replayed.
_SECONDS, _BLOCKS = 1.0, 16

#: Tells what is done next: for a progress bar, and for the message where it crashes.
Doing = Callable[[str], None]


def _size(p: ConvProblem) -> int:
    return p.N * p.K * p.P * p.Q * p.C // p.groups * p.R * p.S


def read_hand_in(path: Path) -> None:
    """Refuse what is no text of device code.

    Raises
    ------
    InvalidArgument
        It is no regular file, too long, no UTF-8, has a name that cannot be printed, or holds host code.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        name = str(path).encode(errors="replace").decode()
        raise InvalidArgument(f"{name}: the file's name is not UTF-8; rename it") from None
    if path.suffix != ".cu":
        raise InvalidArgument(f"{path} is no CUDA source; its name should end in .cu")
    if not path.is_file():
        what = "does not exist" if not path.exists() else "is no regular file"
        raise InvalidArgument(f"{path} {what}; it should be a .cu file ('convbackprop lab' writes some)")
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InvalidArgument(f"{path} has {size:,} bytes; a hand-in has at most {MOST_BYTES:,}")
        refuse_host_code(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}") from None
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}, {error}" if str(error).startswith("line") else str(error)) from None


def problems(asked: Exercise) -> list[tuple[ConvProblem, str]]:
    """Return what a file is checked with: curated problems of an exercise, each with its data."""
    taken = [curated for curated in CURATED if asked.takes(curated.problem())]
    return [
        (curated.problem(dtype=dtype, activation=activation), curated.data)
        for kind, (dtype, activation) in enumerate(_KINDS)
        for i, curated in enumerate(taken)
        if kind == 0 or (i + kind) % _ONE_IN == 0
    ]


def sanitized(asked: Exercise) -> list[tuple[ConvProblem, str]]:
    """Return what the sanitizer runs a file on: the largest of the small problems."""
    small = [(p, data) for p, data in problems(asked) if (p.dtype, p.activation) == _KINDS[0] and p.N]
    small = [each for each in small if _size(each[0]) <= _MULTIPLY_ADDS]
    return sorted(small, key=lambda each: -_size(each[0]))[:_SANITIZED]


def grade(
    file: Path | str,
    exercise: int | None = None,
    device: Device | None = None,
    doing: Doing = lambda what: None,
    ahead: Callable[[Sequence[tuple[Variant, ConvProblem]], Device], None] = lambda pairs, device: None,
    crashed: str | None = None,
) -> Grade:
    """Look at a file until something is wrong with it, and then beyond it as far as that makes sense.

    Parameters
    ----------
    file : Path or str
        A .cu file of one's own.
    exercise : int, optional
        By which exercise it is judged; None: by the one whose file is named so, or by none.
    device : Device, optional
        Where it is checked and timed; None: as `get_device` chooses.
    doing : callable, optional
        Told what is done next.
    ahead : callable, optional
        Given what is about to be compiled for a device.
    crashed : str, optional
        How it has ended the process before: then it is looked at by the sanitizer alone.

    Raises
    ------
    InvalidArgument
        The file is no kernel; the message says why.
    """
    path = Path(file).absolute()
    asked = exercises.exercise(exercise) if exercise is not None else exercises.of_file(path.name)
    read_hand_in(Path(file))
    variant = variant_from_file(path)
    if asked and asked.pass_name != variant.pass_name:
        raise InvalidArgument(
            f"{path.name} computes {variant.pass_name}; exercise {asked.number} is about {asked.pass_name}"
        )
    device = device or get_device()
    found = Grade(str(file), asked or exercises.without_exercise(variant.pass_name), device.name)
    found.pass_name, found.variant, found.crashed = variant.pass_name, variant.title, crashed
    try:
        if not crashed:
            _check(found, variant, device, doing, ahead)
        _sanitize(found, variant, doing, ahead)
        _recognise(found, variant, device, doing)
        if found.right:
            _measure(found, variant, device, doing)
    except CompileError as error:
        found.error = _first_error(str(error))
    return found


def _first_error(text: str) -> str:
    """Return the first error among a compiler's messages, without the folders."""
    line = next((line for line in text.splitlines() if re.search(r"\berror\b", line)), text.splitlines()[0])
    return re.sub(r"(?<![\w.])/\S*/", "", line).strip()


def _check(found: Grade, variant: Variant, device: Device, doing: Doing, ahead: Any) -> None:
    work = [(p, data) for p, data in problems(found.exercise) if variant.refusal(p, device) is None]
    ahead([(variant, problem) for problem, _ in work], device)
    for problem, data in work:
        doing(f"{variant.title} on {problem}")
        outcome = check(variant, problem, device, data)
        found.compiled = True
        found.checks += 1
        if not outcome.ok:
            found.wrong.append(outcome)


def _sanitize(found: Grade, variant: Variant, doing: Doing, ahead: Any) -> None:
    work = [(p, data) for p, data in sanitized(found.exercise) if variant.refusal(p, "cpu") is None]
    ahead([(variant, problem) for problem, _ in work[:1]], checked_device())
    seen = set()
    for problem, data in work:
        doing(f"{variant.title} on {problem}")
        outcome = sanitize(variant, problem, data)
        found.compiled = True
        found.sanitized += 1
        for finding in outcome.findings:
            key = (finding.kind, finding.lines, finding.other_lines)
            if key not in seen and not (finding.kind == WRONG and found.wrong):
                seen.add(key)
                found.findings.append(finding)


def _recognise(found: Grade, variant: Variant, device: Device, doing: Doing) -> None:
    """Name the mistake: by the findings where results come of chance, else first by the results."""
    by_chance = any(each.kind in _BY_CHANCE for each in found.findings)
    if by_chance or not found.wrong:
        found.mistake = recognise_findings(found.findings)
        return
    doing(f"{variant.title}: what the wrong results come of")
    found.mistake = recognise(variant, device, found.exercise.takes) or recognise_findings(found.findings)


def _measure(found: Grade, variant: Variant, device: Device, doing: Doing) -> None:
    """Count what a right file asks of memory, and time it beside the ladder."""
    # Gradients not of ReLU, whose closed pixels need no dy: the replayed arrays are zeros, all closed.
    phi = "relu" if variant.pass_name == "forward" else "tanh"
    texts = (found.exercise.profiled, found.exercise.timed)
    profiled, timed = (ConvProblem.parse(text, bias=True, activation=phi) for text in texts)
    if variant.refusal(profiled) or variant.refusal(timed):
        return
    gpu = (gpu_titled(device.title) if device.kind == "cuda" else None) or GPUS[0]
    rungs = [rung for rung in of_pass(variant.pass_name)
             if rung.name in _RUNGS and "cuda" in rung.runs_on and not rung.refusal(profiled)]  # fmt: skip
    variants = [*rungs, variant]
    times = {each: Times(each.name if each.file is None else each.title) for each in variants}
    for each in variants:
        doing(f"{each.title} on {profiled}")
        told: Report = report(each, profiled, gpu, _BLOCKS)
        times[each].expected = told.expected.seconds * 1e6 if told.expected else None
        if each is variant:
            found.counts = Counts.of(told)
            found.limit = told.verdict.sentence(variant.title, gpu)
    cpu = get_device("cpu")
    for each, us in _timed(variants, timed, cpu, doing).items():
        times[each].cpu = us
    if device.kind == "cuda":
        for each, us in _timed(variants, profiled, device, doing).items():
            times[each].measured = us
    found.times = list(times.values())


def _timed(variants: Iterable[Variant], problem: ConvProblem, device: Device, doing: Doing) -> Mapping[Variant, float]:
    """Return the medians of variants that take turns, in microseconds."""
    own = list(variants)
    given = inputs(own[0].pass_name, problem)
    doing(f"{own[-1].title} on {problem}")
    with stage(device, own[0].pass_name, problem, given) as place:
        calls = {str(i): place.ours(each) for i, each in enumerate(own)}
        timings = alternate(calls, place.clock, _SECONDS)
    return {each: timings[str(i)].median * 1e6 for i, each in enumerate(own)}
