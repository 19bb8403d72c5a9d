"""What can be said of a recorded run without a GPU: what was predicted, and whether its code is that of this tree.

    python tools/predict.py [--code] [RUN.json ...]

For each run (default: all in benchmarks/results) docs/data/RUN.json gets
    code        the digest of each variant's code at the run's commit, comments left out
    same        other digests, of this tree, that nvcc compiles to the same PTX with every set of constants of the run
    predicted   the time that `convbackprop profile` of the run's commit says each row takes at least; not with --code
    facts       what each launch of a row asks of a GPU, for today's expected time (convbackprop/profile/expected.py):
                its addresses as replayed by the run's commit, its instructions as read today; not with --code

The commit is checked out beside the working tree for as long as that lasts. A row takes 5 to 20 seconds and up to
16 GB; what is there already is kept, and a row that fails is left out. It needs git, nvcc and, to look at instructions,
cuobjdump.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from convbackprop.devices.compiler import find_nvcc
from convbackprop.devices.gpus import Gpu, gpu_titled
from convbackprop.ladder.registry import select
from convbackprop.problem import ConvProblem
from convbackprop.profile import sass
from convbackprop.profile.expected import works
from convbackprop.profile.hot_loop import HotLoop
from convbackprop.profile.machine_code import Kernel, Usage
from convbackprop.profile.occupancy import Occupancy
from convbackprop.profile.roofline import LaunchFacts
from convbackprop.profile.traffic import ArrayTraffic, KernelTraffic, LineTraffic

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT / "docs" / "data"

#: Blocks of a launch that are replayed: they are much alike, and a few are enough.
BLOCKS = 8


def code_digest(root: Path, variant: str) -> str | None:
    """Return a digest of a variant's .cu file and of all that it includes, but for comments and layout, or None."""
    folder = root / "cuda_src"
    text = _with_includes(folder / f"{variant}.cu", folder, set())
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else None


def _with_includes(path: Path, folder: Path, seen: set[Path]) -> str:
    """Return the code of a file, each include replaced by what is included, once."""
    if path in seen or not path.is_file():
        return ""
    seen.add(path)
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = []
    for line in text.splitlines():
        if included := re.match(r'\s*#\s*include\s*"([^"]+)"', line):
            beside, below = path.parent / included[1], folder / included[1]
            words.append(_with_includes(beside if beside.is_file() else below, folder, seen))
        else:
            words.append(" ".join(line.split()))
    return "\n".join(filter(None, words))


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out in a folder that lasts as long as the context."""
    with tempfile.TemporaryDirectory() as workshop:
        root = Path(workshop) / "commit"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", root, commit], cwd=ROOT, check=True)
        (root / "convbackprop" / "cuda_src").symlink_to(root / "cuda_src")  # or an editable install's would be found
        try:
            yield root
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", root], cwd=ROOT, check=True)


def ptx(root: Path, variant: str, constants: Mapping[str, str], architecture: str) -> str | None:
    """Return what nvcc makes of a variant in a checkout, or None if it rejects these constants."""
    with tempfile.TemporaryDirectory() as workshop:
        made = Path(workshop) / "kernel.ptx"
        defines = [f"-D{name}={value}" for name, value in constants.items()]
        command = [find_nvcc(), "-std=c++17", "-ptx", f"-arch={architecture}", *defines, "-I", root / "cuda_src"]
        subprocess.run([*command, root / "cuda_src" / f"{variant}.cu", "-o", made], capture_output=True)
        return made.read_text() if made.exists() else None


def compare(root: Path, run: dict[str, Any], found: dict[str, Any]) -> None:
    """Note the variants whose code has changed since a run's commit, and is compiled to the same."""
    made = next(step["data"] for step in run["steps"] if step["name"] == "compile")
    for name, before in found["code"].items():
        today = code_digest(ROOT, name)
        if today is None or today in (before, *found["same"].get(name, ())):
            continue
        print(f"{name}: is it compiled to the same as at the run's commit?", flush=True)
        sets = [kernel["constants"] for kernel in made["kernels"] if kernel["file"] == f"{name}.cu"]
        pairs = ([ptx(tree, name, each, made["architecture"]) for tree in (root, ROOT)] for each in sets)
        if sets and all(old is not None and old == new for old, new in pairs):
            found["same"].setdefault(name, []).append(today)


def profiled(root: Path, folder: Path, variant: str, problem: str, gpu: Gpu) -> dict[str, Any] | None:
    """Return what `profile` of a checkout says of a variant on a problem, and leave kernel.cubin in a folder.

    None: it failed, for want of memory above all.
    """
    command = [sys.executable, "-m", "convbackprop", "profile", variant, "--problem", problem, "--gpu", gpu.name,
               "--device", "cpu"]  # fmt: skip
    said = []
    for options in (["--json", "--blocks", str(BLOCKS)], ["--emit", "cubin", "--output", folder / "kernel.cubin"]):
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run([*command, *options], cwd=root, env=environment, stdout=subprocess.PIPE)
        if done.returncode:
            return None
        said.append(done.stdout)
    (report,) = json.loads(said[0])["reports"]
    return dict(report)


def facts(report: dict[str, Any], cubin: Path, problem: str, gpu: Gpu) -> list[dict[str, Any]]:
    """Return what each launch of a report asks of a GPU."""
    code = sass.functions(sass.dump(sass.find_cuobjdump(), cubin))
    (variant,) = select(report["variant"])
    launches = [
        replace(
            _launch(each, HotLoop.of(code[each["kernel"]], {}, multiplies=each["main"])),
            multiplications=variant.multiplications,
            all_phases=variant.all_phases,
        )
        for each in report["launches"]
    ]
    found = works(gpu, report["variant"].partition("/")[0], ConvProblem.parse(problem), launches)
    return [work.as_json() for work in found or ()]


def _launch(found: dict[str, Any], hot: HotLoop) -> LaunchFacts:
    """Return a launch as `profile --json` tells of it."""
    grid, block, code, replay = tuple(found["grid"]), tuple(found["block"]), found["code"], found["traffic"]
    unknown: Any = None
    kernel = Kernel(
        unknown,
        found["kernel"],
        block[0] * block[1] * block[2],
        code["dynamic_shared_bytes"],
        Usage(*(code[name] for name in Usage._fields)),
        Occupancy(code["blocks_per_sm"], code["warps_per_sm"], tuple(code["limited_by"])),
    )
    lines = tuple(LineTraffic(**{**line, "file": Path(line["file"])}) for line in replay["lines"])
    arrays = tuple(ArrayTraffic(**array) for array in replay["arrays"])
    traffic = KernelTraffic(found["kernel"], grid, block, replay["blocks"], lines, arrays)
    return LaunchFacts(found["kernel"], grid, block, found["main"], kernel, hot, traffic)


def write(path: Path, found: dict[str, Any]) -> None:
    """Write what was found, the facts of a launch on a line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(launches)}" for key, launches in found["facts"].items()]
    text = json.dumps({**found, "facts": {}}, indent=1)
    path.write_text(text.replace('"facts": {}', '"facts": {\n' + ",\n".join(lines) + "\n }") + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", action="store_true", help="predict nothing: a few minutes")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN.json", default=sorted(RESULTS.glob("*.json")))
    arguments = parser.parse_args()
    for path in arguments.runs:
        run, kept = json.loads(path.read_text()), DATA / path.name
        environment = run["steps"][0]["data"]
        of = gpu_titled(environment["device"])
        found: dict[str, Any] = {
            "commit": environment["commit"], "code": {}, "same": {}, "predicted": {}, "facts": {}
        }  # fmt: skip
        if kept.exists():
            found |= json.loads(kept.read_text())
        wanted = {
            f"{variant} {row['problem']}": (variant, row["problem"])
            for row in run["rows"]
            if row["ours"] and row["problem"] and "/" in row["who"]
            for variant in row["who"].split(" + ")
        }
        with checkout(found["commit"]) as root, tempfile.TemporaryDirectory() as workshop:
            found["code"] = {name: code_digest(root, name) for name in sorted({name for name, _ in wanted.values()})}
            compare(root, run, found)
            write(kept, found)
            for i, (key, (variant, problem)) in enumerate(wanted.items()):
                if arguments.code or of is None or (key in found["predicted"] and key in found["facts"]):
                    continue
                print(f"{i + 1} of {len(wanted)}: {key}", flush=True)
                if report := profiled(root, Path(workshop), variant, problem, of):
                    remarks = [remark for remark in report["remarks"] if "left out" in remark]
                    bound = {"us": round(report["predicted_us"], 2), "limit": report["limited_by"], "remarks": remarks}
                    found["predicted"].setdefault(key, bound)
                    if not remarks:
                        found["facts"][key] = facts(report, Path(workshop) / "kernel.cubin", problem, of)
                    write(kept, found)


if __name__ == "__main__":
    main()
