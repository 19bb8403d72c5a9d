"""The steps besides the rows: environment, compiling, tests on the device, the sanitizer."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, TimeoutError as Late, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import convbackprop
from convbackprop.bench import torch_calls
from convbackprop.devices import compiler
from convbackprop.devices.compiler import Source, compiler_version, find_nvcc

ROOT = Path(__file__).parents[2]

OK, FAILED, SKIPPED = "ok", "failed", "skipped"


@dataclass
class Step:
    """A part of the report: what became of it, in a sentence and as data."""

    name: str
    status: str = OK
    detail: str = ""
    seconds: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)


def carry_out(name: str, action: Callable[[Step], None]) -> Step:
    """Run a step; whatever it raises is its outcome."""
    step = Step(name)
    start = time.monotonic()
    try:
        action(step)
    except Exception as error:
        step.status, step.detail = FAILED, f"{type(error).__name__}: {error}"
    step.seconds = round(time.monotonic() - start, 1)
    return step


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, None where it was stopped by the limit, and what it printed."""

    code: int | None
    output: str


def run_limited(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a command; at the limit it is interrupted as by Ctrl-C, and ended 15 seconds later."""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": _python_path(), **(environment or {})}, text=True,
        errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, preexec_fn=_with_ctrl_c,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
        return Ended(process.returncode, output)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own group: see start_new_session
        output, _ = process.communicate()
    return Ended(None, output)


def _with_ctrl_c() -> None:
    """Let a command be interrupted, also where this process ignores it, as under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


# -- environment -----------------------------------------------------------------------------------------------------
_SMI = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
        "power.draw", "temperature.gpu", "memory.total")  # fmt: skip


def _first_line(command: Sequence[str]) -> str | None:
    """Return the first line that a command prints, or None."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if not done.returncode and done.stdout.strip() else None


def clocks() -> dict[str, str] | None:
    """Return what nvidia-smi says of the first GPU: MHz, watts, degrees; it only reads."""
    line = _first_line(["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader,nounits", "--id=0"])
    return dict(zip(_SMI, (word.strip() for word in line.split(",")), strict=False)) if line else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(step: Step, device: Any) -> None:
    """Say on what the report was made."""
    torch = torch_calls.import_torch()
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    nvcc = next((line for line in compiler_version(find_nvcc()).splitlines() if "release" in line), None)
    step.data |= {
        "device": device.title if device else None,
        "architecture": device.architecture if device else "sm_90a",
        "nvidia_smi": clocks(),
        "commit": _first_line(["git", "rev-parse", "HEAD"]),
        "dirty": None if dirty.returncode else bool(dirty.stdout.strip()),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "convbackprop": convbackprop.__version__,
        "numpy": _version("numpy"),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "pycuda": _version("pycuda"),
        "cuda_driver_api": device.driver.get_driver_version() if device else None,
        "nvcc": nvcc.strip() if nvcc else None,
    }
    found = step.data
    commit = f"{(found['commit'] or 'unknown')[:12]}{' + changes' * bool(found['dirty'])}"
    step.detail = f"{found['device'] or 'no GPU'}, commit {commit}, torch {found['torch']}, {found['nvcc']}"


# -- compiling -------------------------------------------------------------------------------------------------------
def compile_all(step: Step, sources: Sequence[Source], architecture: str, bar: Any, seconds: float) -> None:
    """Compile everything that will be launched, several at once; a spill is told, a failure fails the step."""
    task = bar.add_task("compiling", total=len(sources))
    kernels, failures = [], []
    pool = ThreadPoolExecutor(os.cpu_count())
    futures = {pool.submit(compiler.cubin, source, architecture): source for source in sources}
    try:
        for future in as_completed(futures, timeout=seconds):
            source = futures[future]
            name = f"{source.path.parent.name}/{source.path.name}"
            try:
                _, log = future.result()
                kernels.append({
                    "file": name,
                    "constants": dict(source.constants),
                    "registers": max(map(int, re.findall(r"Used (\d+) registers", log)), default=0),
                    "spill_bytes": sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", log))),
                })  # fmt: skip
            except Exception as error:
                failures.append(f"{name} with {' '.join(source.defines)}: {str(error).splitlines()[0]}")
            bar.advance(task)
            bar.refresh()
    except Late:
        failures.append(f"{len(sources) - len(kernels) - len(failures)} were not compiled within {seconds:.0f} s")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    spilled = [kernel for kernel in kernels if kernel["spill_bytes"]]
    step.data |= {"architecture": architecture, "kernels": kernels, "failures": failures}
    step.detail = f"{len(kernels)} compiled for {architecture}, {len(failures)} failed, {len(spilled)} spilled"
    for kernel in spilled:
        step.detail += f"\n  {kernel['file']} spills {kernel['spill_bytes']} bytes with {kernel['constants']}"
    if failures:
        step.status = FAILED
        step.detail = "\n  ".join([step.detail, *failures])


# -- tests -----------------------------------------------------------------------------------------------------------
#: Those that use the device fixture, without those that compile dozens of kernels: test_variants.py's other rungs,
#: whose constants follow from the problem's size; launch_all.py checks them, on fewer problems.
TESTS = ("tests/devices/test_gpu.py", "tests/test_ops.py", "tests/test_ops_torch.py", "tests/ladder/test_variants.py")
CHOSEN = (
    "test_gpu_is_used or (cuda and test_ops and not float64 and not bfloat16)"
    " or (test_every_problem and cuda and (float32-relu or float16-relu) and (naive or tiled))"
)


def tests(step: Step, seconds: float, dry: bool) -> None:
    """Run the tests that use the GPU; a dry run collects them with the stand-in in the GPU's place."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CHOSEN, *TESTS]
    if dry:
        command += ["-p", "benchmarks.report.stand_in_plugin", "--collect-only"]
    elif importlib.util.find_spec("xdist"):
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    ended = run_limited(command, seconds)
    lines = [line.strip("= ") for line in ended.output.splitlines() if re.search(r" in \d+[.:]\d+", line)]
    closing = lines[-1] if lines else _last_line(ended.output)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", closing)}
    if dry and (found := re.match(r"(\d+)(?:/\d+)? tests collected", closing)):
        counts = {"collected": int(found[1])}
    step.data |= {"counts": counts, "stopped_by_limit": ended.code is None, "closing_line": closing}
    step.data["failures"] = re.findall(r"^(?:FAILED|ERROR) .*", ended.output, re.MULTILINE)[:20]
    step.detail = closing + (f"; stopped after {seconds:.0f} s" if ended.code is None else "")
    wrong = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    done = counts.get("passed", 0) + counts.get("collected", 0)
    if wrong or not done or ended.code not in (0, None):
        step.status = FAILED
        step.detail = "\n  ".join([step.detail, *step.data["failures"]])
        step.data["output"] = ended.output[-4000:]


# -- launches and sanitizer ------------------------------------------------------------------------------------------
LAUNCH_ALL = (sys.executable, "-m", "benchmarks.report.launch_all")


def launches(step: Step, seconds: float, dry: bool) -> None:
    """Check every variant on a few small problems; a dry run does so on the stand-in."""
    ended = run_limited([*LAUNCH_ALL, *(["--stand-in"] if dry else [])], seconds)
    step.detail = _last_line(ended.output) + (f"; stopped after {seconds:.0f} s" if ended.code is None else "")
    if ended.code != 0:
        step.status, step.data["output"] = FAILED, ended.output[-4000:]


def _last_line(output: str) -> str:
    return (output.strip().splitlines() or ["it printed nothing"])[-1]


def find_sanitizer() -> str | None:
    """Return compute-sanitizer, from PATH or beside nvcc."""
    folder = find_nvcc().resolve().parent
    beside = [folder / "compute-sanitizer", folder.parent / "compute-sanitizer" / "compute-sanitizer"]
    return shutil.which("compute-sanitizer") or next((str(path) for path in beside if path.is_file()), None)


def sanitizer(step: Step, seconds: float, dry: bool) -> None:
    """Let memcheck and racecheck look on while launch_all.py runs."""
    tool = find_sanitizer()
    if tool is None:
        step.status, step.detail = SKIPPED, "compute-sanitizer is neither on PATH nor beside nvcc"
        return
    if dry:
        step.status, step.detail = SKIPPED, f"{tool} needs a GPU"
        return
    details = []
    for check in ("memcheck", "racecheck"):
        ended = run_limited([tool, "--tool", check, "--error-exitcode", "9", *LAUNCH_ALL], seconds)
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", ended.output)
        line = summary[-1] if summary else _last_line(ended.output)
        unsupported = "not supported" in ended.output and not summary
        clean = ended.code == 0 and re.search(r"SUMMARY: 0 ", line) is not None
        step.data[check] = {"clean": clean, "summary": line, "stopped_by_limit": ended.code is None}
        details.append(f"{check}: {line}" + (f"; stopped after {seconds:.0f} s" if ended.code is None else ""))
        if not clean:
            step.data[check]["output"] = ended.output[-4000:]
            if unsupported and step.status == OK:
                step.status = SKIPPED
            elif not unsupported:
                step.status = FAILED
    step.detail = "\n  ".join(details)
