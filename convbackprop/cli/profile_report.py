"""The report of `profile`: one variant on one problem, or each of a pass, in a terminal, as JSON or as a page."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from convbackprop.arguments import known
from convbackprop.bench.timing import Timing, alternate, stage
from convbackprop.check import check, inputs
from convbackprop.cli import what_if
from convbackprop.cli.common import console, grid, is_file, print_json, progress, say, variants_of
from convbackprop.cli.shield import Shielded
from convbackprop.devices import Device, get_device, why_not_cuda
from convbackprop.devices.compiler import Source, cubin, ptx
from convbackprop.devices.gpus import GPUS, Gpu, gpu, gpu_titled
from convbackprop.errors import InvalidArgument, UnsupportedProblem
from convbackprop.files import write_whole
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import constants_of
from convbackprop.problem import DTYPES, ConvProblem
from convbackprop.profile import annotate, ncu, sass
from convbackprop.profile.occupancy import LIMITS
from convbackprop.profile.page import page
from convbackprop.profile.report import Report, report
from convbackprop.profile.roofline import LaunchFacts, amount, duration, percent
from convbackprop.profile.tables import (
    array_rows,
    bound_rows,
    cache_sentence,
    kernel_rows,
    measured_sentence,
    mix_rows,
    replay_sentence,
    score_sentence,
    share_sentence,
    times_expected,
)

EMITTED = ("ptx", "sass", "cubin")

#: Lines of source in the table by cost.
_LINES = 10

#: Seconds for the timings of a variant on a GPU.
_SECONDS = 1.0

#: The problem without --problem: the main job, as in --machine-code.
_SIZE, _FILTER = 4096, 5


# -- arguments -------------------------------------------------------------------------------------------------------
def add_problem(parser: argparse.ArgumentParser) -> None:
    """Add --problem."""
    parser.add_argument("--problem", metavar="TEXT", help="N,C,H,W,K,R,S and options, such as "
                        f"1,64,56,56,64,3,3,padding=1; default: a layer of one channel on {_SIZE} x {_SIZE} numbers, "
                        f"filter {_FILTER}")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the report knows besides --machine-code."""
    add_problem(parser)
    parser.add_argument("--gpu", metavar="NAME", help=f"{', '.join(each.name for each in GPUS)}; default: the GPU of "
                        f"--device, else {GPUS[0].name}")  # fmt: skip
    parser.add_argument("--annotate", action="store_true", help="the source with its figures beside each line")
    parser.add_argument("--html", metavar="FILE", help="write the report as one self-contained page")
    parser.add_argument("--blocks", type=int, default=64, metavar="N", help="blocks of each launch whose addresses are "
                        "replayed at most; default: 64, and fewer of blocks with many accesses")  # fmt: skip
    parser.add_argument("--what-if", metavar="NAME=N,...", help="compare with other values of a variant's tunables, "
                        "such as ROWS=16,COLS=4")  # fmt: skip
    parser.add_argument("--ncu", nargs="?", const="", metavar="FILE.csv", help="Nsight Compute's counters beside the "
                        "model's figures: ncu is run on the GPU, or what it printed elsewhere is read")  # fmt: skip
    parser.add_argument("--emit", metavar="KIND", help=f"write the compiled code instead: {', '.join(EMITTED)}")
    parser.add_argument("-o", "--output", metavar="FILE", help="where --emit writes; default: standard output")


def problem_of(arguments: argparse.Namespace) -> ConvProblem:
    """Return the problem that --problem, --dtype and --filter describe."""
    dtype = _one(arguments.dtype, "--dtype") or "float32"
    known(dtype, tuple(DTYPES), "--dtype")
    size = _one(arguments.filter, "--filter")
    if arguments.problem is not None and size is not None:
        raise InvalidArgument("--filter goes with the default problem, but --problem is given")
    if size is not None and (not size.isdecimal() or not 1 <= int(size) < 10_000):
        raise InvalidArgument(f"--filter is {size!r}; it should be an integer from 1 to 9999")
    side = size or _FILTER
    text = arguments.problem or f"1,1,{_SIZE},{_SIZE},1,{side},{side},padding=same"
    problem = ConvProblem.parse(text, bias=True, activation="relu", dtype=dtype)
    if problem.N == 0:
        raise InvalidArgument(f"problem is {problem}; it has no image, so there is nothing to look at")
    return problem


def _one(words: Sequence[str] | None, option: str) -> str | None:
    if words is not None and len(words) > 1:
        raise InvalidArgument(f"{option} is {' '.join(words)}; without --machine-code it takes one value")
    return words[0] if words else None


def device_and_gpu(arguments: argparse.Namespace) -> tuple[Device | None, Gpu, str]:
    """Return the GPU that is looked at, the device if it is one that can time it, and a sentence if it is not."""
    name = arguments.device or os.environ.get("CONVBACKPROP_DEVICE")
    if name == "cpu" or (name is None and why_not_cuda() is not None):
        return None, gpu(arguments.gpu or GPUS[0].name), ""
    device: Any = get_device(name or "cuda")
    own = gpu_titled(device.title)
    wanted = gpu(arguments.gpu) if arguments.gpu else own
    if wanted is None:
        return None, GPUS[0], f"There is no data of {device.title}, so nothing is timed; this is of the {GPUS[0]}."
    if wanted != own:
        return None, wanted, f"Nothing is timed: {device.name} is {device.title}, and this is of the {wanted}."
    return device, wanted, ""


# -- the command -----------------------------------------------------------------------------------------------------
def run(arguments: argparse.Namespace) -> int:
    """Look at what was named, in a child process if it is a file of one's own, and return the exit code."""
    if arguments.target is None:
        raise InvalidArgument(
            "say what to look at: a pass, a variant or a FILE.cu, as in 'convbackprop profile forward/coalesced'; or "
            "all of them at once, as in 'convbackprop profile --machine-code'"
        )
    if arguments.sass:
        raise InvalidArgument("--sass goes with --machine-code; --emit sass writes the instructions of a variant")
    if arguments.blocks < 1:
        raise InvalidArgument(f"--blocks is {arguments.blocks}; it should be at least 1")
    if arguments.output is not None and arguments.emit is None:
        raise InvalidArgument("--output says where --emit writes; --html has a file of its own")
    variants: Sequence[Variant] = variants_of(arguments.target, arguments.pass_name)
    problem = problem_of(arguments)
    if arguments.what_if is not None:
        if len(variants) != 1:
            raise InvalidArgument(f"--what-if is of one variant; name it, as in 'profile {variants[0]} --what-if ...'")
        variants = [*variants, what_if.changed(arguments.what_if, variants[0])]
    if arguments.emit is not None:
        return _emit(arguments, variants, problem)
    if arguments.arch is not None:
        raise InvalidArgument("--arch goes with --machine-code and --emit; --gpu names what a report is of")
    shield = Shielded()

    def command() -> int:
        return _profile(arguments, variants, problem, shield)

    return shield.run(command) if is_file(arguments.target) else command()


def _profile(arguments: argparse.Namespace, variants: Sequence[Variant], problem: ConvProblem, shield: Shielded) -> int:
    """Gather, print and write; return 0 if every variant that was run on a GPU is right."""
    device, chosen, note = device_and_gpu(arguments)
    reports, refused = _reports(variants, problem, chosen, arguments.blocks, shield)
    wrong: list[str] = []
    if device is not None:
        reports = [_timed(each, device, wrong) for each in reports]
    notes = [*([note] if note else []), *wrong,
             *(f"{variant.title} refuses the problem: {sentence}" for variant, sentence in refused)]  # fmt: skip
    other = None
    if arguments.what_if is not None:
        if refused:
            raise UnsupportedProblem(f"{variants[0].title} does not compute this problem: {refused[0][1]}")
        reports, other = reports[:1], reports[1]
    counted = _counted(arguments, reports, device)
    if arguments.html is not None:
        write_whole(Path(arguments.html), page(reports, notes))
    if arguments.json:
        found: dict[str, Any] = {
            "ok": not wrong,
            "gpu": chosen.name,
            "problem": str(problem),
            "notes": notes,
            "reports": [
                {**_as_json(each, arguments.annotate), **ncu.as_json(counted.get(each.variant))} for each in reports
            ],
        }
        if other is not None:
            found["what_if"] = what_if.as_json(reports[0], other, _as_json(other, arguments.annotate))
        print_json(found)
        return int(bool(wrong))
    out = console()
    for each in reports:
        _print_report(each, out, arguments.annotate)
        if each.variant in counted:
            out.print(grid(ncu.HEADS, [quantity.cells for quantity in counted[each.variant]]))
            say(out, ncu.SENTENCE, "")
    if len(reports) > 1:
        _print_overview(reports, out)
    if other is not None:
        what_if.print_comparison(reports[0], other, out)
    say(out, *([""] if notes else []), *notes)
    if arguments.html is not None:
        say(out, "", f"wrote {arguments.html}")
    return int(bool(wrong))


def _reports(
    variants: Sequence[Variant], problem: ConvProblem, chosen: Gpu, blocks: int, shield: Shielded
) -> tuple[list[Report], list[tuple[Variant, str]]]:
    """Return the reports, and the variants that refuse the problem with their sentences."""
    found, refused = [], []
    with progress() as bar:
        task = bar.add_task("profiling", total=len(variants))
        for variant in variants:
            bar.update(task, description=variant.title, refresh=True)
            if sentence := variant.refusal(problem, "cuda"):
                refused.append((variant, sentence))
            else:
                shield.doing(f"{variant.title} on {problem}")
                found.append(report(variant, problem, chosen, blocks))
            bar.update(task, advance=1, refresh=True)
    if not found:
        reasons = "; ".join(f"{variant.title}: {sentence}" for variant, sentence in refused)
        raise UnsupportedProblem(f"nothing computes this problem: {reasons}")
    return found, refused


def _timed(of: Report, device: Device, wrong: list[str]) -> Report:
    """Check a variant on a GPU and time it; a wrong one gets no time, and a sentence."""
    given = inputs(of.variant.pass_name, of.problem)
    outcome = check(of.variant, of.problem, device, given=given)
    if not outcome.ok:
        wrong.append(f"{of.variant.title} is wrong and gets no time: {outcome.faults[0]}")
        return of
    return of.timed(measure(of.variant, of.problem, device, given))


def measure(variant: Variant, problem: ConvProblem, device: Device, given: Any) -> Timing:
    """Return how long the launches of a variant take on a GPU, with cold caches."""
    with stage(device, variant.pass_name, problem, given) as place:
        return alternate({"": place.ours(variant)}, place.clock, _SECONDS)[""]


def _counted(
    arguments: argparse.Namespace, reports: Sequence[Report], device: Device | None
) -> dict[Variant, list[ncu.Quantity]]:
    """Return what ncu counted of each variant, beside what its report says: with --ncu."""
    if arguments.ncu is None:
        return {}
    if arguments.ncu:
        if len(reports) != 1:
            raise InvalidArgument(f"--ncu {arguments.ncu} is of one variant; name it, as in 'profile "
                                  f"{reports[0].variant} --ncu {arguments.ncu}'")  # fmt: skip
        return {reports[0].variant: ncu.beside(reports[0], ncu.read(Path(arguments.ncu)))}
    if device is None:
        raise InvalidArgument(
            "--ncu runs ncu on the GPU that the report is of, and that is not usable here ('convbackprop doctor' says "
            "why); --ncu FILE.csv reads what it printed elsewhere"
        )
    common = ["--device", device.name]
    for option in ("problem", "dtype", "filter", "pass"):
        if value := getattr(arguments, "pass_name" if option == "pass" else option):
            common += [f"--{option}", value if isinstance(value, str) else value[0]]
    own = arguments.target if is_file(arguments.target) else None
    return {each.variant: ncu.beside(each, ncu.collect([own or str(each.variant), *common])) for each in reports}


# -- compiled code ---------------------------------------------------------------------------------------------------
def _emit(arguments: argparse.Namespace, variants: Sequence[Variant], problem: ConvProblem) -> int:
    """Write what nvcc makes of a variant."""
    kind = known(arguments.emit, EMITTED, "--emit")
    for option in ("html", "annotate", "json", "ncu"):
        if getattr(arguments, option) not in (None, False):
            raise InvalidArgument(f"--emit writes compiled code and nothing else; leave out --{option}")
    if len(variants) != 1:
        raise InvalidArgument(f"--emit writes one variant; name it, as in 'profile {variants[0]} --emit {kind}'")
    if arguments.gpu is not None and arguments.arch is not None:
        raise InvalidArgument("--gpu and --arch both name an architecture; leave one out")
    meant = gpu(arguments.gpu or GPUS[0].name)
    architecture = _one(arguments.arch, "--arch") or meant.architecture
    known(architecture, tuple(LIMITS), "--arch")
    (variant,) = variants
    if sentence := variant.refusal(problem, "cuda"):
        raise UnsupportedProblem(f"{variant.title} does not compute this problem: {sentence}")
    if not variant.is_for(architecture):
        raise UnsupportedProblem(f"{variant.title} is written for {' and '.join(variant.architectures)} alone")
    if kind == "cubin" and arguments.output is None and sys.stdout.isatty():
        raise InvalidArgument("a cubin is no text; say with --output where it goes")
    source = Source.of(variant.path, constants_of(variant, problem, meant.target))
    if kind == "sass":
        content = sass.dump(sass.find_cuobjdump(), cubin(source, architecture)[0]).encode()
    else:
        content = (ptx(source, architecture) if kind == "ptx" else cubin(source, architecture)[0]).read_bytes()
    if arguments.output is not None:
        write_whole(Path(arguments.output), content)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
    return 0


# -- printing --------------------------------------------------------------------------------------------------------
def _print_report(of: Report, out: Console, with_source: bool) -> None:
    name = of.variant.title
    say(out, f"{name} on {of.problem}, {of.gpu} ({of.gpu.architecture})")
    out.print()
    binding = of.bounds.index(of.verdict.binding)
    rows = [[Text(cell, "bold" if i == binding else "") for cell in row] for i, row in enumerate(bound_rows(of))]
    out.print(grid(("limit", "at least", "of the floor", "what"), rows, ("what",)))
    if any(launch.kernel for launch in of.launches):
        out.print()
        heads, cells = kernel_rows(of)
        out.print(grid(heads, cells, ("limited by",)))
    if hot := of.main.hot:
        out.print()
        heads, cells = mix_rows(hot)
        out.print(grid(heads, cells))
        sentences = [cache_sentence(hot, of.gpu)]
        if hot.multiply_adds:
            sentences.append(share_sentence(hot, of.gpu, of.problem.dtype))
        say(out, *sentences)
    if of.own_bytes is not None:
        out.print()
        heads, cells = array_rows(of)
        out.print(grid(heads, cells))
        say(out, replay_sentence(of))
        _print_lines(of, out)
    if with_source:
        for line in annotate.text(of):
            out.print(Text(line), soft_wrap=True)
    say(out, "", *of.remarks, of.verdict.sentence(name, of.gpu))
    if of.expected:
        say(out, of.expected.sentence(of.verdict.floor.seconds))
    if of.measured:
        say(out, measured_sentence(of))
    out.print()


def _print_lines(of: Report, out: Console) -> None:
    files = annotate.sources(of)
    total = sum(line.clocks for source in files for line in source.lines)
    rows = [
        [f"{source.name}:{line.number}", f"{access.space} {access.kind}", f"{access.bytes} B",
         amount(access.asked, "B"), f"{access.each:.1f}", f"{access.least:.1f}", access.unit,
         f"{100 * access.clocks / total:.0f} %" if total else "-"]
        for source, line, access in annotate.costliest(files, _LINES)
    ]  # fmt: skip
    if rows:
        out.print()
        heads = ("line", "access", "thread", "asked for", "a request", "least", "of", "cost")
        out.print(grid(heads, rows, ("access", "of")))


def _print_overview(reports: Sequence[Report], out: Console) -> None:
    heads = ["variant", "limited by", "at least", "of the floor", "expected"]
    measured = any(each.measured for each in reports)
    heads += ["measured", "times expected"] if measured else []
    rows = []
    for each in reports:
        row = [each.variant.title, each.verdict.binding.limit, duration(each.predicted),
               percent(each.verdict.share), duration(each.expected.seconds) if each.expected else "-"]  # fmt: skip
        if measured:
            row += list(times_expected(each))
        rows.append(row)
    out.print(grid(heads, rows, ("limited by",)))
    if sentence := score_sentence(reports):
        say(out, "", sentence)


# -- JSON ------------------------------------------------------------------------------------------------------------
def _as_json(of: Report, with_source: bool) -> dict[str, Any]:
    """Return a report with numbers in bytes and microseconds."""
    found = {
        "variant": of.variant.title,
        "flops": of.flops,
        "least_bytes": of.least_bytes,
        "own_bytes": of.own_bytes,
        "floor_us": of.verdict.floor.seconds * 1e6,
        "predicted_us": of.predicted * 1e6,
        "expected_us": of.expected.seconds * 1e6 if of.expected else None,
        "expected_parts": {name: part * 1e6 for name, part in of.expected.parts.items()} if of.expected else None,
        "expected_with": {what: time * 1e6 for what, time in of.expected.wins.items()} if of.expected else None,
        "limited_by": of.verdict.binding.limit,
        "share": of.verdict.share,
        "advice": of.verdict.advice,
        "verdict": of.verdict.sentence(of.variant.title, of.gpu),
        "bounds": [{"limit": bound.limit, "us": bound.seconds * 1e6, "what": bound.why} for bound in of.bounds],
        "launches": [_launch_as_json(launch) for launch in of.launches],
        "remarks": list(of.remarks),
        "measured_us": of.measured.median * 1e6 if of.measured else None,
        "ratio": of.ratio,
    }
    if with_source:
        found["source"] = [
            {"file": source.name, "line": line.number, "instructions": line.instructions,
             "multiply_adds": line.multiply_adds, "accesses": [vars(access) for access in line.accesses]}
            for source in annotate.sources(of)
            for line in source.lines
            if line.has_figures
        ]  # fmt: skip
    return found


def _launch_as_json(launch: LaunchFacts) -> dict[str, Any]:
    found: dict[str, Any] = {"kernel": launch.entry, "main": launch.main, "grid": launch.grid, "block": launch.block}
    kernel, hot, traffic = launch.kernel, launch.hot, launch.traffic
    found["code"] = kernel and {
        **kernel.usage._asdict(),
        "dynamic_shared_bytes": kernel.dynamic_shared_bytes,
        "blocks_per_sm": kernel.occupancy.blocks,
        "warps_per_sm": kernel.occupancy.warps,
        "limited_by": kernel.occupancy.limited_by,
    }
    found["hot_loop"] = hot and {
        "is_loop": hot.is_loop,
        "instructions": hot.instructions,
        "multiply_adds": hot.multiply_adds,
        "share": hot.share,
        "bytes": hot.bytes,
        "kinds": dict(hot.kinds),
    }
    found["traffic"] = traffic and {
        "blocks": traffic.blocks,
        "of_blocks": launch.blocks,
        "arrays": [vars(each) for each in traffic.arrays],
        "lines": [{**vars(each), "file": str(each.file)} for each in traffic.lines],
    }
    return found
