"""The rows of a report's tables as text: the terminal and the page print the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convbackprop.devices.gpus import Gpu
from convbackprop.problem import ACCUMULATORS, PASSES
from convbackprop.profile.hot_loop import HotLoop
from convbackprop.profile.occupancy import LIMITS
from convbackprop.profile.report import Report, score
from convbackprop.profile.roofline import SECTOR, amount, duration, percent


def bound_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Return of each limit its name, the least time, the share of the floor that it allows, and why."""
    floor = report.verdict.floor.seconds
    return [
        (bound.limit, duration(bound.seconds), percent(min(1.0, floor / bound.seconds)) if bound.seconds else "-",
         bound.why)
        for bound in report.bounds
    ]  # fmt: skip


def kernel_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the launches: their geometry, and what their kernels use."""
    heads = ["kernel", "grid", "threads", "registers", "shared", "spills", "blocks", "warps", "limited by"]
    rows = []
    for launch in report.launches:
        grid = " x ".join(f"{extent:,}" for extent in _trimmed(launch.grid))
        row = [launch.entry, grid, str(math.prod(launch.block))]
        if kernel := launch.kernel:
            warps = f"{kernel.occupancy.warps}/{LIMITS[report.gpu.architecture].warps}"
            row += [str(kernel.usage.registers), f"{kernel.shared_bytes:,}", f"{kernel.spill_bytes:,}",
                    str(kernel.occupancy.blocks), warps, ", ".join(kernel.occupancy.limited_by)]  # fmt: skip
        else:
            row += ["-"] * 6
        rows.append(row)
    return heads, rows


def _trimmed(extents: Sequence[int]) -> Sequence[int]:
    """Return the extents without the ones at the end."""
    while len(extents) > 1 and extents[-1] == 1:
        extents = extents[:-1]
    return extents


def mix_rows(hot: HotLoop) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the hot loop's instructions by kind: all, and on the leanest way round it."""
    heads = ["instructions", "loop" if hot.is_loop else "all", "leanest way", "share"]
    rows = []
    for name, count in hot.kinds.items():
        lean = hot.leanest.get(name, 0)
        rows.append([name, f"{count:,}", *([f"{lean:,}", percent(lean / hot.instructions)] if lean else ["-", "-"])])
    return heads, rows


def cache_sentence(hot: HotLoop, gpu: Gpu) -> str:
    """Return one sentence on the hot loop's size beside the instruction caches."""
    what = "The hot loop" if hot.is_loop else "There is no loop with multiply-adds; all of the code"
    l0, l1 = gpu.multiprocessor.instruction_caches
    fits = (
        f"fits the L0 instruction cache ({l0 >> 10} KiB" if hot.bytes <= l0
        else f"does not fit the L0 instruction cache ({l0 >> 10} KiB), but the next one ({l1 >> 10} KiB"
        if hot.bytes <= l1
        else f"fits neither the L0 instruction cache ({l0 >> 10} KiB) nor the next one ({l1 >> 10} KiB"
    )  # fmt: skip
    measured = "" if gpu.architecture == "sm_75" else ", estimated from Volta's"
    return f"{what} is {sum(hot.kinds.values()):,} instructions in {hot.bytes:,} bytes, which {fits}{measured})."


def share_sentence(hot: HotLoop, gpu: Gpu, dtype: str) -> str:
    """Return one sentence on the bound that the share of multiply-adds sets on the arithmetic."""
    units, schedulers = gpu.multiprocessor.multiply_adds[ACCUMULATORS[dtype]], 128
    reach = min(1.0, hot.share * schedulers / units)
    return (
        f"Of the leanest way round it {percent(hot.share)} are multiply-adds: at most {percent(reach)} of the {gpu}'s "
        f"arithmetic ({units} multiply-adds a clock, of {schedulers} threads whose instructions are issued)."
    )


def array_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the arrays: what threads ask for, what blocks ask for, and the least."""
    asked: dict[str, list[float]] = {}
    for launch in report.launches:
        for each in launch.traffic.arrays if launch.traffic else ():
            sums = asked.setdefault(each.name, [0.0] * 4)
            figures = (each.loaded_bytes, each.stored_bytes, each.loaded_sectors, each.stored_sectors)
            for i, figure in enumerate(figures):
                sums[i] += figure * launch.scale
    least = {
        operand.name: operand.bytes(report.problem)
        for operand in PASSES[report.variant.pass_name].present(report.problem)
    }
    heads = ["array", "threads load", "store", "blocks load", "store", "least", "times least"]
    rows = []
    for name, (loaded, stored, loaded_sectors, stored_sectors) in asked.items():
        sectors = SECTOR * (loaded_sectors + stored_sectors)
        own = least.get(name)
        rows.append([name, _bytes(loaded), _bytes(stored), _bytes(SECTOR * loaded_sectors),
                     _bytes(SECTOR * stored_sectors), amount(own, "B") if own else "-",
                     f"{sectors / own:,.2f}" if own else "-"])  # fmt: skip
    total, everything = report.own_bytes or 0.0, sum(least.values())
    sums = [sum(figures) for figures in zip(*asked.values(), strict=True)] if asked else [0.0] * 4
    rows.append(["all", _bytes(sums[0]), _bytes(sums[1]), _bytes(SECTOR * sums[2]), _bytes(SECTOR * sums[3]),
                 amount(everything, "B"), f"{total / everything:.2f}" if everything else "-"])  # fmt: skip
    return heads, rows


def _bytes(number: float) -> str:
    return amount(number, "B") if number else "-"


def measured_sentence(report: Report) -> str:
    """Return one sentence on the measured time beside the expected and the least one, empty where there is none."""
    if report.measured is None:
        return ""
    low, high = report.measured.range
    text = f"Measured: {duration(report.measured.median)} ({duration(low)} to {duration(high)}), "
    if report.expected:
        text += f"{report.measured.median / report.expected.seconds:.2f} times the expected time, "
    return f"{text}{report.ratio:.2f} times the greatest bound."


def times_expected(report: Report) -> tuple[str, str]:
    """Return the measured time, and what multiple it is of the expected one."""
    if report.measured is None:
        return "-", "-"
    time = report.measured.median
    return duration(time), f"{time / report.expected.seconds:.2f}" if report.expected else "-"


def comparison_rows(reports: Sequence[Report]) -> list[list[str]]:
    """Return rows with a column for each report: what they are expected to take, and at least, and why."""
    expected = [report.expected for report in reports]
    rows = [["expected", *(duration(each.seconds) if each else "-" for each in expected)]]
    for name in dict.fromkeys(name for each in expected if each for name in each.parts):
        rows.append([f"  {name}", *(duration(each.parts[name]) if each else "-" for each in expected)])
    if any(report.measured for report in reports):
        rows.append(["measured", *(duration(each.measured.median) if each.measured else "-" for each in reports)])
    rows.append(["at least", *(duration(report.predicted) for report in reports)])
    bounds = [{bound.limit: bound.seconds for bound in report.bounds} for report in reports]
    for name in dict.fromkeys(name for each in bounds for name in each):
        rows.append([f"  {name}", *(duration(each[name]) if name in each else "-" for each in bounds)])
    rows.append(["blocks", *(f"{report.main.blocks:,}" for report in reports)])
    kernels = [report.main.kernel for report in reports]
    if all(kernels):
        rows.append(["registers", *(str(kernel.usage.registers) for kernel in kernels if kernel)])
        rows.append(["spills, bytes", *(f"{kernel.spill_bytes:,}" for kernel in kernels if kernel)])
        rows.append(["warps of a multiprocessor", *(str(kernel.occupancy.warps) for kernel in kernels if kernel)])
    return rows


def replay_sentence(report: Report) -> str:
    """Return one sentence on the blocks that the figures of addresses come from."""
    sampled = [
        f"{launch.traffic.blocks:,} of {launch.blocks:,} blocks of {launch.entry}"
        for launch in report.launches
        if launch.traffic and launch.traffic.blocks < launch.blocks
    ]
    if not sampled:
        return "All blocks were replayed."
    return f"The addresses are those of a sample, scaled up to the grid: {', '.join(sampled)}."


def score_sentence(reports: Sequence[Report]) -> str:
    """Return one sentence on how good the expected times are, empty where nothing was measured."""
    found = score(reports)
    if found is None:
        return ""
    what = "expected ones" if all(each.expected for each in reports if each.measured) else "least ones"
    text = f"Measured times are {found.mean:.2f} times the {what} (geometric mean)"
    if found.pairs:
        text += f"; {found.right} of {found.pairs} pairs are ranked as measured"
    if found.broken:
        text += f". A bound is wrong: {', '.join(found.broken)} took less than the least"
    return f"{text}."
