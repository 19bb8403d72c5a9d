"""What is expected of the ladder on an H200, layer by layer, where no GPU has timed it: docs/expected.md.

    python tools/expected_page.py [--jobs N] [--rule] [TEXT ...]

Each row is a variant on a problem, kept in docs/data/expected.json with a digest of what it follows from: the variant's
code, its constants and launches, and the model (convbackprop/profile). Rows of which one has changed are
computed anew, 3 seconds each, an hour for all; with TEXT only those whose variant and problem have it. What is done is
kept if it is interrupted. `make readme` writes the page, without what has changed since.

--rule computes nothing: it prints where the rule of "auto" errs, of the rows that are kept.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.progress import track

from convbackprop import profile
from convbackprop.bench.columns import digits
from convbackprop.bench.suites import SUITES
from convbackprop.devices.gpus import gpu
from convbackprop.ladder.registry import of_pass, select, why_not
from convbackprop.ladder.variant import Variant
from convbackprop.launch.plan import constants_of
from convbackprop.problem import PASSES, ConvProblem
from convbackprop.profile import sass
from convbackprop.profile.report import report
from tools import gpu_page
from tools.gpu_parts import table
from tools.predict import BLOCKS, DATA, ROOT, code_digest

GPU = gpu("H200")
KEPT = DATA / "expected.json"

#: The modules of convbackprop/profile that a row follows from.
MODEL = ("machine_code", "sass", "occupancy", "traffic", "hot_loop", "warp", "expected", "report")

#: How many blocks of tensor_core are replayed, which make millions of accesses: of four rows, as two tell but for 2 %.
BLOCKS_OF_PRODUCTS = 1

#: The suites of layers, in their order on the page.
LAYERS = ("deepbench", "resnet", "vgg", "unet", "mobilenet", "convnext", "depthwise")
THREE = ("forward", "input_grad", "kernel_grad")

#: Rungs that no GPU has run, that the rule of "auto" weighs against others; the one that is for most channels first.
UNPROVEN = ("tensor_core", "pipelined")

#: Of one channel: the rung before `pipelined`, by pass.
BEFORE = {name: "fused" if name == "backward" else "coalesced" for name in PASSES}


@dataclass(frozen=True)
class Row:
    """What is expected of a variant on a problem.

    Attributes
    ----------
    digest : str
        Of what it follows from.
    us : float or None
        None: not to be had, as of a kernel whose instructions the model does not know.
    registers, spilled : int
        Of the main kernel: a thread's registers, and the bytes that did not fit.
    sectors, wavefronts : float
        Of global and of shared memory: how many are asked for, over the fewest for these bytes.
    under_way : int
        Bytes that a multiprocessor can have asked for at once.
    """

    digest: str
    us: float | None
    registers: int = 0
    spilled: int = 0
    sectors: float = 1.0
    wavefronts: float = 1.0
    under_way: int = 0


# -- the rows --------------------------------------------------------------------------------------------------------
def one_channel() -> Iterator[ConvProblem]:
    """Yield the lab's problem: filters of 3, 5 and 7, in 32 and in 16 bits."""
    for size in (3, 5, 7):
        for dtype in ("float32", "float16"):
            text = f"1,1,4096,4096,1,{size},{size},padding=same,bias=1,activation=relu"
            yield ConvProblem.parse(text, dtype=dtype)


def layers(suite: str) -> list[ConvProblem]:
    """Return the layers of a suite."""
    return [case.problem for case in SUITES[suite].cases((), "float32", "cuda")]


def rivals(pass_name: str, problem: ConvProblem) -> tuple[Variant, Variant | None]:
    """Return what "auto" takes, and the rung that it is weighed against.

    That is the first of `UNPROVEN` that computes the problem, or the highest rung below, if "auto" takes that one.
    """
    reasons = why_not(pass_name, problem, GPU.target)
    chosen = next(rung for rung, reason in reasons.items() if reason is None)
    own = {variant.name: variant for variant in of_pass(pass_name)}
    other = next((own[name] for name in UNPROVEN if name in own and own[name].refusal(problem, "cuda") is None), None)
    if other is chosen:
        other = next((rung for rung, reason in reasons.items() if reason == f"{chosen.name} is a higher rung"), None)
    return chosen, other


def wanted() -> Iterator[tuple[Variant, ConvProblem]]:
    """Yield each row of the page, those of "auto" first."""
    for problem in one_channel():
        for pass_name in PASSES:
            for name in (BEFORE[pass_name], "pipelined"):
                yield select(f"{pass_name}/{name}")[0], problem
    for i, dtype, suite, pass_name in product((0, 1), ("float32", "float16"), LAYERS, THREE):
        for problem in layers(suite):
            if variant := rivals(pass_name, problem.with_(dtype=dtype))[i]:
                yield variant, problem.with_(dtype=dtype)


_code_digest = functools.cache(code_digest)


@functools.cache
def model_digest() -> str:
    """Return a digest of the modules that the model is made of, but for comments."""
    folder = Path(profile.__file__).parent
    trees = [ast.dump(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))) for name in MODEL]
    return hashlib.sha256("".join(trees).encode()).hexdigest()[:16]


def digest(variant: Variant, problem: ConvProblem) -> str:
    """Return a digest of what a row follows from."""
    constants = variant.constants(GPU.target, problem)
    launches = [
        (launch.entry, *(rule(problem, constants) for rule in (launch.grid, launch.integers, launch.shared_bytes)))
        for launch in variant.launches
        if launch.when(problem, constants)
    ]
    compiled = sorted(constants_of(variant, problem, GPU.target).items())
    of = (_code_digest(ROOT, str(variant)), compiled, launches, model_digest())
    return hashlib.sha256(repr(of).encode()).hexdigest()[:12]


def row(name: str, text: str) -> dict[str, Any]:
    """Return a row, with what its digest is of."""
    (variant,), problem = select(name), ConvProblem.parse(text)
    found = report(variant, problem, GPU, BLOCKS_OF_PRODUCTS if variant.name == "tensor_core" else BLOCKS)
    code, hot = found.main.kernel, found.main.hot
    if code is None or hot is None or found.expected is None:
        return asdict(Row(digest(variant, problem), None))
    lines = [(launch.scale, line) for launch in found.launches if launch.traffic for line in launch.traffic.lines]
    ratios = []
    for space, asked, fewest in (("global", "sectors", "least_sectors"), ("shared", "wavefronts", "least_wavefronts")):
        own = [(scale, line) for scale, line in lines if line.space == space]
        least = sum(scale * getattr(line, fewest) for scale, line in own)
        ratios.append(round(sum(scale * getattr(line, asked) for scale, line in own) / least, 2) if least else 1.0)
    stages = variant.constants(GPU.target, problem).get("STAGES")
    each = code.shared_bytes * (stages - 1) // stages if stages else code.threads * hot.loaded_bytes
    us = float(f"{found.expected.seconds * 1e6:.4g}")
    spilled = code.usage.spill_store_bytes + code.usage.spill_load_bytes
    return asdict(Row(digest(variant, problem), us, code.usage.registers, spilled, *ratios,
                      code.occupancy.blocks * each))  # fmt: skip


def current() -> dict[str, Row]:
    """Return the rows that are kept, by variant and problem, without those that have changed."""
    rows = {key: Row(**found) for key, found in json.loads(KEPT.read_text()).items()} if KEPT.exists() else {}
    digests = {f"{variant} {problem}": digest(variant, problem) for variant, problem in wanted()}
    return {key: rows[key] for key, digest in digests.items() if key in rows and rows[key].digest == digest}


def renew(jobs: int, texts: Iterable[str]) -> None:
    """Compute the rows of the page that have changed, and keep them with the others."""
    sass.find_cuobjdump()  # without it each row would be kept without a time
    rows, keys = current(), list(dict.fromkeys(f"{variant} {problem}" for variant, problem in wanted()))
    chosen = [key for key in keys if key not in rows and all(text in key for text in texts)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        under_way = {pool.submit(row, *key.split(" ", 1)): key for key in chosen}
        for i, done in enumerate(track(as_completed(under_way), f"{len(chosen)} of {len(keys)} rows", len(chosen))):
            rows[under_way[done]] = Row(**done.result())
            if i % 20 == 19 or i + 1 == len(chosen):
                lines = [f" {json.dumps(key)}: {json.dumps(asdict(rows[key]))}" for key in keys if key in rows]
                KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


# -- the page --------------------------------------------------------------------------------------------------------
def floor(pass_name: str, problem: ConvProblem) -> float:
    """Return the microseconds of the least bytes, or of the multiply-adds outside tensor cores."""
    spec = PASSES[pass_name]
    return 1e6 * max(spec.least_bytes(problem) / GPU.memory, spec.flops(problem) / GPU.peak(problem.dtype))


def part() -> str:
    """Return the tables as Markdown."""
    rows = current()
    suites = "\n\n".join(f"## {name}: {SUITES[name].reason}\n\n{_of_suite(name, rows)}" for name in LAYERS)
    return f"## One channel, 4096 x 4096\n\n{_of_one_channel(rows)}\n\n{suites}"


def _of_one_channel(rows: dict[str, Row]) -> str:
    lines = []
    for pass_name in PASSES:
        for problem in one_channel():
            before, after = (
                rows.get(f"{pass_name}/{name} {problem}", Row("", None)) for name in (BEFORE[pass_name], "pipelined")
            )
            figures = [f"{after.under_way / 1024:.0f}", f"{after.sectors:.2f}", f"{after.wavefronts:.2f}"]
            times = [digits(us) for us in (floor(pass_name, problem), before.us, after.us)]
            code = [f"{each.registers}{f' + {each.spilled} B' if each.spilled else ''}" for each in (before, after)]
            lines.append([pass_name, f"{problem.R}x{problem.S}", problem.dtype, BEFORE[pass_name], *times, *code,
                          *figures])  # fmt: skip
    heads = ("pass", "filter", "dtype", "before", "floor", "before", "pipelined", "registers", "pipelined's",
             "KiB under way", "sectors", "wavefronts")  # fmt: skip
    return table(heads, lines, left=4)


def _of_suite(suite: str, rows: dict[str, Row]) -> str:
    run = gpu_page.newest()[-1]
    recorded = {
        (line.pass_name, ConvProblem.parse(str(line.row.problem))): line
        for line in run.lines
        if "+" not in line.row.who
    }
    lines, proven, fastest = [], [], []
    for problem in layers(suite):
        for i, pass_name in enumerate(THREE):
            chosen, rung = rivals(pass_name, problem)
            times = [rows.get(f"{variant} {problem}", Row("", None)).us for variant in (chosen, rung)]
            half = problem.with_(dtype="float16")
            times.append(rows.get(f"{rivals(pass_name, half)[0]} {half}", Row("", None)).us)
            line = recorded.get((pass_name, problem))
            torch = line.torch if line else None
            name = str(problem.with_(activation="identity", bias=False)) if i == 0 else ""
            auto, other = times[:2]
            lines.append([name, pass_name, chosen.name, rung.name if rung else "-", digits(floor(pass_name, problem)),
                          *map(digits, (*times, line and line.us, torch))])  # fmt: skip
            if torch and auto:
                proven.append(torch / auto)
                fastest += [torch / min(auto, other)] if other else []
    heads = ("layer", "pass", "auto", "other", "floor", "auto", "other", "float16", "recorded", "torch")
    said = table(heads, lines, left=4)
    if not proven:
        return said
    of_both = ""
    if len(fastest) == len(proven):
        of_both = (
            f" Of the faster of both these are {gpu_page.mean(fastest):.2f} and "
            f"{sum(ratio < 0.95 for ratio in fastest)}."
        )
    return (
        f"{said}\n\nOf {len(proven)} passes torch took {gpu_page.mean(proven):.2f} times as long as is expected of "
        f'"auto" (geometric mean); {sum(ratio < 0.95 for ratio in proven)} of them below 0.95.{of_both}'
    )


def rule() -> str:
    """Return where "auto" is expected to be slower than the rung that it is weighed against, and how often that is."""
    rows, said, ratios = current(), [], []
    problems = dict.fromkeys(problem for suite in LAYERS for problem in layers(suite))
    for dtype, pass_name, problem in product(("float32", "float16"), THREE, problems):
        each = problem.with_(dtype=dtype)
        chosen, other = rivals(pass_name, each)
        auto, against = (rows.get(f"{variant} {each}", Row("", None)).us for variant in (chosen, other))
        if auto and against:
            ratios.append(against / auto)
            if against < auto:
                said.append(f"{against / auto:.2f}  {chosen} {auto:g} us, {other} {against:g} us: {each}")
    return "\n".join([*sorted(said), f"{len(said)} of {len(ratios)}; mean {gpu_page.mean(ratios):.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time, 1 GB each; default 2")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="only rows whose variant and problem have it")
    parser.add_argument("--rule", action="store_true", help='print where the rule of "auto" errs')
    arguments = parser.parse_args()
    if arguments.rule:
        print(rule())
        return
    renew(arguments.jobs, arguments.texts)


if __name__ == "__main__":
    main()
