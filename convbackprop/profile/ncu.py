"""Nsight Compute's counters beside the model's figures: what a GPU counted, and what was predicted without one.

ncu launches `convbackprop run` and prints CSV; a CSV that was recorded elsewhere is read the same. Both of its pages
are: "raw", with a launch a line and a counter a column, whose second line has the units, and "details", with a counter
a line.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbackprop.devices.compiler import find_nvcc
from convbackprop.errors import CompilerNotFound, EnvironmentProblem, InvalidArgument
from convbackprop.profile.report import Report
from convbackprop.profile.roofline import SECTOR, amount, duration

_L1, _WARP = "l1tex__t_{}_pipe_lsu_mem_global_op_{}.sum", 32

#: What is added up over the launches: each quantity by the counters that make it up, and what one of them is worth.
_SUMS: dict[str, tuple[tuple[str, ...], float]] = {
    "time": (("gpu__time_duration.sum",), 1),
    "DRAM": (("dram__bytes_read.sum", "dram__bytes_write.sum"), 1),
    "L2 cache": (("lts__t_sectors_srcunit_tex.sum",), SECTOR),
    "L1 cache, requests": ((_L1.format("requests", "ld"), _L1.format("requests", "st")), 1),
    "L1 cache, sectors": ((_L1.format("sectors", "ld"), _L1.format("sectors", "st")), 1),
    "shared memory": (("l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",), 1),
    "instructions": (("smsp__inst_executed.sum",), 1),
}

#: What is of the main kernel alone.
_OF_MAIN = {
    "registers a thread": "launch__registers_per_thread",
    "warps a multiprocessor": "sm__warps_active.avg.per_cycle_active",
}

_METRICS = (*(name for names, _ in _SUMS.values() for name in names), *_OF_MAIN.values())

#: A reason for which warps wait: so many of them, on average, whenever a scheduler issues an instruction.
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")

#: Of the reasons, those shown.
_LARGEST = 4

HEADS = ("quantity", "counted", "model", "counted / model")
SENTENCE = (
    "counted: by Nsight Compute, with cold caches; warps: of those in flight, the share that waits for this reason. "
    "model: the time is the expected one, a call's start included, or the least where none is known; the bytes of DRAM "
    "are the least, the instructions those of the leanest way round the hot loop; sectors and wavefronts are of the "
    "replayed addresses."
)

#: Seconds and bytes in a unit, by ncu's names; the others are 1.
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "nsecond": 1e-9, "usecond": 1e-6, "msecond": 1e-3, "Kbyte": 1e3,
          "Mbyte": 1e6, "Gbyte": 1e9}  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """A launch of a kernel and its counters, in seconds, bytes or as they are."""

    kernel: str
    counters: Mapping[str, float]


@dataclass(frozen=True)
class Quantity:
    """What a GPU counted of something beside what the model says of it; None: not known."""

    name: str
    unit: str
    counted: float | None
    model: float | None = None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """As text: its name, both figures, and their ratio."""
        ratio = f"{self.counted / self.model:.2f}" if self.counted is not None and self.model else "-"
        return self.name, self._text(self.counted), self._text(self.model), ratio

    def _text(self, figure: float | None) -> str:
        if figure is None:
            return "-"
        if self.unit == "s":
            return duration(figure)
        if self.unit == "":
            return f"{figure:.1f}" if figure % 1 else f"{figure:.0f}"
        return f"{100 * figure:.0f} %" if self.unit == "%" else amount(figure, self.unit, apart=self.unit != "B")


# -- getting the counters --------------------------------------------------------------------------------------------
def find_ncu() -> Path:
    """Return ncu: from PATH, or beside nvcc.

    Raises
    ------
    EnvironmentProblem
        There is none; the message says what to install.
    """
    candidates = ["ncu"]
    with suppress(CompilerNotFound):
        candidates.append(str(find_nvcc().resolve().with_name("ncu")))
    for name in candidates:
        if found := shutil.which(name):
            return Path(found)
    raise EnvironmentProblem(
        "ncu is not on PATH; install Nsight Compute, which the CUDA toolkit brings, or name a CSV that it printed "
        "elsewhere (--ncu FILE.csv)"
    )


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command that prints the counters of `convbackprop run` with these arguments."""
    options = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    options += ["--target-processes", "all", "--section", "WarpStateStats", "--metrics", ",".join(_METRICS)]
    return [str(find_ncu()), *options, sys.executable, "-m", "convbackprop", "run", *arguments]


def collect(arguments: Sequence[str], seconds: float | None = None) -> list[Counted]:
    """Run ncu over `convbackprop run` with these arguments, for so many seconds at most, and return what it counted.

    Raises
    ------
    EnvironmentProblem
        There is no ncu, or it fails, or it may not read the counters.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the package as it is here
    try:
        process = subprocess.Popen(command(arguments), text=True, errors="replace", stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
                                   start_new_session=True)  # fmt: skip
    except OSError as error:
        raise EnvironmentProblem(f"ncu cannot be run: {error.strerror}") from None
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # with what it runs
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise EnvironmentProblem(f"ncu did not end within {seconds:.0f} s") from None
        raise
    said = out + err
    if "ERR_NVGPUCTRPERM" in said:
        raise EnvironmentProblem(
            "ncu may not read the GPU's counters (ERR_NVGPUCTRPERM); run it as root, or have the driver's module "
            "loaded with NVreg_RestrictProfilingToAdminUsers=0"
        )
    found = parse(out)
    if process.returncode or not found:
        lines = [line for line in said.splitlines() if "error" in line.lower()] or said.strip().splitlines()
        raise EnvironmentProblem(f"ncu fails: {lines[-1] if lines else f'exit status {process.returncode}'}")
    return found


def read(path: Path) -> list[Counted]:
    """Return what a CSV of ncu holds.

    Raises
    ------
    InvalidArgument
        It cannot be read, or holds no counters.
    """
    try:
        found = parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise InvalidArgument(f"--ncu is {path}, which cannot be read: {error.strerror}") from None
    if not found:
        raise InvalidArgument(f"--ncu is {path}, which holds no counters; it should be what 'ncu --csv' printed")
    return found


def parse(text: str) -> list[Counted]:
    """Return the launches in what ncu printed, in their order; the lines before the table do not count."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table = list(csv.reader(lines[start:]))
    if not table or "Kernel Name" not in table[0]:
        return []
    heads = table[0]
    rows = [dict(zip(heads, row, strict=True)) for row in table[1:] if len(row) == len(heads)]
    found: dict[tuple[str, str], dict[str, float]] = {}
    units: Mapping[str, str] = {}
    for row in rows:
        if not row["ID"]:  # the units of the columns
            units = row
            continue
        counters = found.setdefault((row["ID"], _entry(row["Kernel Name"])), {})
        if "Metric Name" in heads:
            _add(counters, row["Metric Name"], row["Metric Value"], row["Metric Unit"])
        else:
            for name in heads[heads.index("Kernel Name") + 1 :]:
                _add(counters, name, row[name], units.get(name, ""))
    return [Counted(kernel, counters) for (_, kernel), counters in found.items()]


def _entry(name: str) -> str:
    """Return a kernel's name without its type and parameters."""
    return name.partition("(")[0].split()[-1] if name.partition("(")[0].split() else name


def _add(counters: dict[str, float], name: str, value: str, unit: str) -> None:
    """Keep a counter whose value is a number."""
    with suppress(ValueError):
        counters[name] = float(value.replace(",", "")) * _UNITS.get(unit, 1)


# -- beside the model ------------------------------------------------------------------------------------------------
def beside(report: Report, launches: Sequence[Counted]) -> list[Quantity]:
    """Return the quantities that were counted of a report's launches, beside what it says of them."""
    needed = [launch.entry for launch in report.launches]
    return quantities(needed, report.main.entry, launches, _model(report))


def quantities(
    needed: Sequence[str], main_entry: str, launches: Sequence[Counted], model: Mapping[str, float] | None = None
) -> list[Quantity]:
    """Return the quantities that were counted of the kernels that a problem needs, beside a model's figures.

    Where a kernel was launched more often than the problem needs, a launch counts for the mean of these.

    Raises
    ------
    InvalidArgument
        A kernel is not among the launches.
    """
    own = [each for each in launches if each.kernel in needed]
    if missing := [entry for entry in needed if entry not in {each.kernel for each in own}]:
        kernels = ", ".join(dict.fromkeys(each.kernel for each in launches))
        raise InvalidArgument(f"ncu counted no launch of {missing[0]}, which is needed, but of {kernels}")
    share = {entry: needed.count(entry) / sum(each.kernel == entry for each in own) for entry in needed}

    def total(names: Sequence[str], worth: float) -> float | None:
        figures = [each.counters.get(name) for each in own for name in names]
        if None in figures:
            return None
        return worth * sum(share[each.kernel] * each.counters[name] for each in own for name in names)

    model = model or {}
    units = {"time": "s", "DRAM": "B", "L2 cache": "B", "L1 cache, requests": "requests", "L1 cache, sectors":
             "sectors", "shared memory": "wavefronts", "instructions": "of warps"}  # fmt: skip
    found = [Quantity(name, units[name], total(*how), model.get(name)) for name, how in _SUMS.items()]
    main = next(each.counters for each in own if each.kernel == main_entry)
    found += [Quantity(name, "", main.get(counter), model.get(name)) for name, counter in _OF_MAIN.items()]
    stalls = {match[1]: value for name, value in main.items() if (match := _STALL.fullmatch(name))}
    everything = sum(stalls.values())
    stalls.pop("selected", None)  # these do not wait
    for name in sorted(stalls, key=lambda reason: -stalls[reason])[:_LARGEST] if everything else ():
        found.append(Quantity(f"warps: {name.replace('_', ' ')}", "%", stalls[name] / everything))
    return found


def as_json(quantities: Sequence[Quantity] | None) -> dict[str, Any]:
    """Return what --json says of it: nothing without --ncu."""
    if quantities is None:
        return {}
    return {"ncu": [{"quantity": q.name, "unit": q.unit, "counted": q.counted, "model": q.model} for q in quantities]}


def _model(report: Report) -> dict[str, float]:
    """Return what the report says of the quantities."""
    expected = report.expected.seconds if report.expected else report.predicted
    model: dict[str, float] = {"time": expected, "DRAM": report.least_bytes}
    if report.own_bytes is not None:
        lines = [(launch.scale, line) for launch in report.launches for line in
                 (launch.traffic.lines if launch.traffic else ())]  # fmt: skip
        own = {space: [(scale, line) for scale, line in lines if line.space == space] for space in ("global", "shared")}
        model["L2 cache"] = report.own_bytes
        model["L1 cache, requests"] = sum(scale * line.requests for scale, line in own["global"])
        model["L1 cache, sectors"] = sum(scale * line.sectors for scale, line in own["global"])
        model["shared memory"] = sum(scale * line.wavefronts for scale, line in own["shared"])
    if kernel := report.main.kernel:
        model |= dict(zip(_OF_MAIN, (kernel.usage.registers, kernel.occupancy.warps), strict=True))
    if (hot := report.main.hot) and hot.is_loop and hot.multiply_adds:
        multiply_adds = report.flops / 2 * report.main.multiplications
        model["instructions"] = multiply_adds / hot.multiply_adds * hot.instructions / _WARP
    return model
