"""Time variants beside torch and beside a copy of memory, each checked against the float64 reference first."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import convbackprop
from convbackprop import ops, peers
from convbackprop.check import check
from convbackprop.cli.bench_rows import Case, Row, print_rows
from convbackprop.cli.common import (
    Shielded,
    add_device,
    add_target,
    check_memory,
    console,
    distinct,
    is_file,
    print_json,
    progress,
    say,
    title,
    variants_of,
)
from convbackprop.cli.doctor import processor
from convbackprop.cli.photograph import Photograph, read_image, save_pictures
from convbackprop.compiler import compiler_version, find_cxx
from convbackprop.devices import Device, choice_of_device
from convbackprop.devices.cpu import get_num_threads
from convbackprop.errors import InvalidArgument
from convbackprop.problem import DTYPES, ConvProblem, known
from convbackprop.reference import answer, numpy_dtype
from convbackprop.timing import alternate, host_clock, stage
from convbackprop.variants import Variant, of_pass

HELP = "time variants beside torch"
EPILOG = """\
Without --problem and --image this is the main job: a layer of one channel
(ReLU, bias, padding that keeps the size) on a photograph of 512 x 512 and on
1024 x 1024 random numbers, with filters 3, 5 and 7. The filter is random,
divided by its height; on a photograph it sums to 0 and the bias is 0.01, so
that some ReLUs are open and some are shut.

Each row is checked before it is timed; a row that is wrong gets no time. A
--problem has a bias and a ReLU unless its text says otherwise (bias=0,
activation=identity).

examples:
  convbackprop bench
  convbackprop bench kernel_grad --filter 3 --dtype float16
  convbackprop bench forward/naive --problem 1,64,56,56,64,3,3,padding=1
  convbackprop bench --image photo.jpg --save pictures
  convbackprop bench mine.cu --pass forward

JSON keys: device, choice, environment {...}, ok, notes, rows [variant,
problem, label, ok, refused, faults, error, median_ms, p20_ms, p80_ms,
repetitions, least_bytes, flops, gb_per_s, copy_gb_per_s, share_of_copy,
torch_ms, ratio_to_torch, public_ms]; public_ms times the public function, from
numpy arrays to new numpy arrays.
"""

#: The timings of all rows together take about this long (seconds), and one row no longer than the second number.
_ALL_ROWS, _ONE_ROW = 75.0, 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_target(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--problem", action="append", metavar="TEXT", help="N,C,H,W,K,R,S and options, such as "
                      "1,64,56,56,64,3,3,padding=1,stride=2; may be given several times")  # fmt: skip
    what.add_argument("--image", metavar="FILE", help="the layer of one channel on this image, made grey")
    parser.add_argument("--filter", nargs="+", metavar="R", help="heights (and widths) of the filter; default: 3 5 7")
    parser.add_argument("--dtype", default="float32", metavar="D", help=", ".join(DTYPES) + "; default: float32")
    parser.add_argument("--against", default="torch", metavar="PEER", help="torch (the default) or none")
    parser.add_argument("--seconds", type=float, metavar="S", help="time for each row; default: so that all rows take "
                        f"about {_ALL_ROWS:.0f} s")  # fmt: skip
    parser.add_argument("--save", metavar="DIR", help="write the pictures of the layer there: input, sum, output and "
                        "input gradient as PNG, the kernel gradient as text")  # fmt: skip
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


# -- what is timed ---------------------------------------------------------------------------------------------------
def _filters(arguments: argparse.Namespace) -> tuple[int, ...]:
    words = arguments.filter or ["3", "5", "7"]
    for word in words:
        if not word.isdecimal() or int(word) < 1:
            raise InvalidArgument(f"--filter is {word!r}; it should be an integer of at least 1")
    return distinct(int(word) for word in words)


def cases_of(arguments: argparse.Namespace) -> tuple[Case, ...]:
    """Return what the arguments ask for."""
    dtype = known(arguments.dtype, tuple(DTYPES), "--dtype")
    if arguments.problem:
        for option, value in (("--filter", arguments.filter), ("--save", arguments.save)):
            if value is not None:
                raise InvalidArgument(f"{option} goes with an image, but --problem is given")
        problems = [ConvProblem.parse(t, bias=True, activation="relu", dtype=dtype) for t in arguments.problem]
        if empty := [problem for problem in problems if problem.N == 0]:
            raise InvalidArgument(f"problem is {empty[0]}; it has no image, so there is nothing to time")
        return distinct(Case(text, problem) for text, problem in zip(arguments.problem, problems, strict=True))
    images: list[Photograph | None] = [read_image(arguments.image)]
    if arguments.image is None:
        images.append(None)
    cases = []
    for image in images:
        height, width = image.grey.shape if image is not None else (1024, 1024)
        name = image.name if image is not None else f"{height}x{width}"
        for size in _filters(arguments):
            problem = ConvProblem.parse(
                f"1,1,{height},{width},1,{size},{size},padding=same,activation=relu,bias=1", dtype=dtype
            )
            cases.append(Case(f"{name} {size}x{size}", problem, image))
    return tuple(cases)


# -- running ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """How rows are run."""

    device: Device
    against_torch: bool
    seconds: float
    public: bool
    shield: Shielded
    notes: list[str]


def time_pass(case: Case, variants: Sequence[Variant], known_arrays: dict[str, Any], how: Settings) -> list[Row]:
    """Check the variants of one pass on one problem, then time the right ones in turn with a copy and with torch."""
    pass_name = variants[0].pass_name
    given = case.arrays(pass_name, known_arrays)
    expected = answer(pass_name, case.problem, given)
    if pass_name == "forward":
        known_arrays.update(given)
        if not case.problem.mask:
            known_arrays["saved"] = expected["y"][0].astype(numpy_dtype(case.problem.dtype))
    rows = []
    for variant in variants:
        row = Row(variant, case, variant.refusal(case.problem))
        rows.append(row)
        if row.refusal is None:
            how.shield.doing(f"{title(variant)} on {case.problem}")
            outcome = check(variant, case.problem, how.device, given=given, expected=expected)
            row.error, row.faults = outcome.share, outcome.faults
    right = [row for row in rows if row.refusal is None and not row.faults]
    if not right:
        return rows
    with stage(how.device, pass_name, case.problem, given) as place:
        calls = {title(row.variant): place.ours(row.variant) for row in right}
        ours = tuple(calls)
        calls["copy"] = place.copy()
        torch_names: tuple[str, ...] = ()
        if how.against_torch:
            others = peers.torch_calls(pass_name, case.problem, place.arrays, how.device.name)
            try:
                for call in others.values():
                    call()
                calls.update(others)
                torch_names = tuple(others)
            except RuntimeError as error:
                how.notes.append(f"torch cannot do {pass_name} on {case.label}: {str(error).splitlines()[0]}")
        timings = alternate(calls, place.clock, how.seconds * len(right))
        for row, name in zip(right, ours, strict=True):
            row.ours, row.copy = timings[name], timings["copy"]
            row.torch = min((timings[name] for name in torch_names), key=lambda timing: timing.median, default=None)
            if how.public and row.variant.file is None:
                call = _public_call(row, place.arrays, how.device)
                row.public = alternate({"": call}, host_clock, how.seconds / 4, most=20)[""]
    return rows


def _public_call(row: Row, arrays: Mapping[str, Any], device: Device) -> Any:
    """Return a call of the public function that runs the variant, arrays of the host in and out."""
    p, a = row.case.problem, arrays
    common: dict[str, Any] = {
        name: getattr(p, name) for name in ("stride", "padding", "dilation", "groups", "activation")
    }
    common |= {"variant": row.variant.name, "device": device.name}
    if row.variant.pass_name == "forward":
        return lambda: ops.conv2d(a["x"], a["w"], a.get("b"), save_mask=p.mask, **common)
    common["mask" if p.mask else "output"] = a.get("saved")
    if row.variant.pass_name == "input_grad":
        return lambda: ops.conv2d_input_grad(p.x_shape, a["w"], a["dy"], **common)
    return lambda: ops.conv2d_kernel_grad(a["x"], p.w_shape, a["dy"], with_bias=p.bias, **common)


def time_all(cases: Sequence[Case], variants: Sequence[Variant], how: Settings) -> list[Row]:
    """Return a row for each variant on each problem."""
    rows: list[Row] = []
    with progress() as bar:
        task = bar.add_task("timing", total=len(cases) * len(variants))
        for case in cases:
            known_arrays: dict[str, Any] = {}
            for pass_name in distinct(variant.pass_name for variant in variants):
                bar.update(task, description=f"{pass_name} on {case.label}", refresh=True)
                rungs = [variant for variant in variants if variant.pass_name == pass_name]
                rows += time_pass(case, rungs, known_arrays, how)
                bar.advance(task, len(rungs))
                bar.refresh()
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Check and time, print the table, and return 0 if every row is right."""
    variants = variants_of(arguments.target, arguments.pass_name)
    if is_file(arguments.target):  # a file runs beside the ladder
        variants = (*of_pass(variants[0].pass_name), *variants)
    against = known(arguments.against, ("torch", "none"), "--against")
    if arguments.seconds is not None and not 0 < arguments.seconds < 3600:
        raise InvalidArgument(f"--seconds is {arguments.seconds}; it should be above 0 and below 3600")
    cases = cases_of(arguments)
    save = Path(arguments.save) if arguments.save is not None else None
    if save is not None and save.exists() and not save.is_dir():
        raise InvalidArgument(f"--save is {save}, which exists and is no directory")
    for case in cases:
        check_memory(case.problem)
    shield = Shielded()

    def command() -> int:
        device, choice = choice_of_device(arguments.device)
        why_not = peers.why_no_torch(device.kind) if against == "torch" else "not asked for"
        if why_not is None:
            peers.use_threads(get_num_threads())
        seconds = arguments.seconds or min(_ONE_ROW, _ALL_ROWS / (len(cases) * len(variants)))
        notes = [why_not] if why_not and against == "torch" else []
        facts = environment(device, why_not is None)
        out = console()
        if not arguments.json:
            say(out, choice, _one_line(facts))
        how = Settings(device, why_not is None, seconds, arguments.json, shield, notes)
        rows = time_all(cases, variants, how)
        timed = any(row.ours for row in rows)
        ok = timed and not any(row.faults for row in rows)
        if arguments.json:
            print_json({"device": device.name, "choice": choice, "environment": facts, "ok": ok, "notes": notes,
                        "rows": [row.as_json() for row in rows]})  # fmt: skip
        else:
            print_rows(rows, out)
            say(out, *distinct(notes))
        if save is not None:
            pictures = save_pictures(save, cases[0].arrays("forward", {}), cases[0].problem, device)
            if not arguments.json:
                say(out, "", *pictures)
        return 0 if ok else 1

    return shield.run(command) if is_file(arguments.target) else command()


# -- printing --------------------------------------------------------------------------------------------------------
def environment(device: Device, with_torch: bool) -> dict[str, Any]:
    """Return what the timings depend on."""
    facts: dict[str, Any] = {
        "machine": processor() if device.kind == "cpu" else device.title,  # type: ignore[attr-defined]
        "threads": get_num_threads(),
        "convbackprop": convbackprop.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if device.kind == "cpu":
        facts["compiler"] = compiler_version(find_cxx()).splitlines()[0]
    if with_torch:
        torch = peers.import_torch()
        facts["torch"] = torch.__version__
        facts["torch_threads"] = torch.get_num_threads()
        facts["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY")
    return facts


def _one_line(facts: Mapping[str, Any]) -> str:
    text = f"{facts['machine']}, {facts['threads']} threads"
    text += f"; convbackprop {facts['convbackprop']}, python {facts['python']}, numpy {facts['numpy']}"
    text += f", {facts['compiler']}" if "compiler" in facts else ""
    if "torch" in facts:
        text += f"; torch {facts['torch']}, {facts['torch_threads']} threads, "
        text += f"OMP_WAIT_POLICY={facts['OMP_WAIT_POLICY']}"
    return text
