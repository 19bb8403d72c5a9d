"""Pictures of a run: the ladder, the roofline, and time against size.

Drawn by matplotlib, which is optional, without a display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convbackprop.bench.columns import digits
from convbackprop.bench.rows import Row, peer_names
from convbackprop.bench.runs import Run
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.ladder.registry import VARIANTS
from convbackprop.problem import PASSES, ConvProblem

FORMATS = ("png", "svg")

#: Okabe and Ito's colours, which the colour-blind tell apart, for our variants; greys for the peers.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#F0E442")
_GREYS = ("#555555", "#888888", "#b3b3b3", "#d5d5d5")
_MARKERS = {"forward": "o", "input_grad": "s", "kernel_grad": "^", "backward": "D"}

#: Sizes in inches.
_BAR, _WIDTH, _PANEL = 0.17, 11.0, 3.6


def figure(width: float, height: float) -> Any:
    """Return a new matplotlib figure, which no window shows.

    Raises
    ------
    EnvironmentProblem
        matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentProblem(
            f"matplotlib is needed for pictures and cannot be imported ({error}); pip install 'convbackprop[plot]'"
        ) from None
    matplotlib.rcParams["svg.hashsalt"] = "convbackprop"  # the same picture is the same file
    return Figure(figsize=(width, height), layout="constrained")


def rendered(drawing: Any, kind: str, dpi: int = 130) -> bytes:
    """Return a figure as a file of one of `FORMATS`."""
    stream = io.BytesIO()
    drawing.savefig(stream, format=kind, dpi=dpi, facecolor="white", metadata={"Date": None} if kind == "svg" else None)
    if kind == "png":
        return stream.getvalue()
    return "\n".join(line.rstrip() for line in stream.getvalue().decode().splitlines()).encode() + b"\n"


def caption(run: Run) -> str:
    """Return on what a run was timed, as a line."""
    e = run.environment
    commit = f" ({e['commit']})" if e.get("commit") else ""
    return (
        f"convbackprop {e['convbackprop']}{commit}, {run.date[:10]}, device {e['device']}: {e['machine']}, "
        f"{e['threads']} thread{'s' * (e['threads'] != 1)}{', a noisy machine' * run.noise['noisy']}"
    )


# -- what all have in common -----------------------------------------------------------------------------------------
def _timed(run: Run) -> list[Row]:
    rows = [row for row in run.rows if row.ours]
    if not rows:
        raise InvalidArgument(f"run {run.name} has no row that was timed, so there is nothing to draw")
    return rows


def _passes(rows: Sequence[Row]) -> list[str]:
    return [pass_name for pass_name in PASSES if any(row.pass_name == pass_name for row in rows)]


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """Return a colour for each variant (without its pass), and for each peer."""
    timed = dict.fromkeys(row.name.partition("/")[2] for row in rows)
    # Those of the registry first: a variant has the same colour in every picture.
    known = dict.fromkeys([*(variant.name for variant in VARIANTS), *timed])
    found = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(known) if name in timed}
    return found | {name: _GREYS[i % len(_GREYS)] for i, name in enumerate(peer_names(rows))}


def _labels(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """Return a name for each case, which tells apart those of one label."""
    by_label: dict[str, set[str]] = {}
    for row in rows:
        by_label.setdefault(row.label, set()).add(str(row.problem))
    return {
        row.case: row.label
        if len(by_label[row.label]) == 1
        else f"{row.label}\n{str(row.problem).split(',activation')[0]}"
        for row in rows
    }


def _grid(drawing: Any, passes: Sequence[str], heights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return an axes for each pass, in two columns."""
    columns = min(2, len(passes))
    rows = math.ceil(len(passes) / columns)
    ratios = None
    if heights:
        ratios = [max(heights[p] for p in passes[columns * i : columns * (i + 1)]) for i in range(rows)]
    axes = list(drawing.subplots(rows, columns, squeeze=False, height_ratios=ratios).flat)
    found = dict(zip(passes, axes, strict=False))
    for unused in axes[len(passes) :]:
        unused.set_axis_off()
    for pass_name, ax in found.items():
        ax.set_title(f"{pass_name} ({PASSES[pass_name].gloss})", fontsize=10, loc="left", fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return found


def _finish(drawing: Any, run: Run, what: str, axes: Sequence[Any], below: str = "") -> Any:
    """Give a figure its title, one legend of all its axes, and a line on what was timed where."""
    handles: dict[str, Any] = {}
    for ax in axes:
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    order = [name for name in (*_colours(run.rows), *handles) if name in handles]
    handles = {name: handles[name] for name in dict.fromkeys(order)}
    # The title is the legend's: a layout that keeps two things above the axes apart is then not needed.
    drawing.legend(handles.values(), handles.keys(), loc="outside upper center", title=what,
                   ncols=len(handles) if len(handles) < 9 else math.ceil(len(handles) / 2),
                   title_fontproperties={"size": 12, "weight": "bold"}, frameon=False, fontsize=9, handlelength=1.4,
                   columnspacing=1.4)  # fmt: skip
    drawing.supxlabel("\n".join(filter(None, (below, caption(run)))), fontsize=8, color="#444444")
    return drawing


# -- the ladder ------------------------------------------------------------------------------------------------------
def ladder(run: Run) -> Any:
    """Return the ladder: a bar for each variant and peer on each problem, with the floor as a line."""
    rows = _timed(run)
    labels, colours, passes, peers = _labels(rows), _colours(rows), _passes(rows), peer_names(rows)
    groups = {p: list(dict.fromkeys(row.case for row in rows if row.pass_name == p)) for p in passes}
    bars = {p: [[row for row in rows if row.pass_name == p and row.case == case] for case in groups[p]] for p in passes}
    heights = {p: sum(len(group) + len(peers) + 1.2 for group in bars[p]) * _BAR + 0.75 for p in passes}
    columns = min(2, len(passes))
    total = sum(max(heights[p] for p in passes[i : i + columns]) for i in range(0, len(passes), columns))
    drawing = figure(_WIDTH if columns == 2 else 7.5, total + 1.3)
    axes = _grid(drawing, passes, heights)
    for pass_name, ax in axes.items():
        at = 0.0
        ticks = []
        for group in bars[pass_name]:
            first = at
            for row in group:
                variant = row.name.partition("/")[2]
                assert row.ours is not None
                _bar(ax, at, row.ours, variant, colours[variant])
                at += 1
            for peer in peers:
                if timing := group[0].peer(peer):
                    _bar(ax, at, timing, peer, colours[peer])
                    at += 1
            if group[0].floor:
                ax.plot([1e3 * group[0].floor[0]] * 2, [first - 0.55, at - 0.45], color="black", linewidth=1.6,
                        label="floor", solid_capstyle="butt", zorder=3)  # fmt: skip
            ticks.append(((first + at - 1) / 2, labels[group[0].case]))
            at += 1.2
        ax.set_yticks([place for place, _ in ticks], [name for _, name in ticks], fontsize=8)
        ax.set_ylim(at - 1.4, -1.0)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        _log_axis(ax.xaxis, _milliseconds)
        ax.set_xlim(right=1.5 * ax.get_xlim()[1])  # room for the figures
        ax.set_xlabel("time in ms, median and 20th to 80th percentile (logarithmic)", fontsize=8)
    below = "floor: the longer of a copy of the least bytes and the operations at the peak rate of multiply-adds"
    return _finish(drawing, run, f"The ladder: {_subject(run)}", list(axes.values()), below)


def _bar(ax: Any, at: float, timing: Any, label: str, colour: str) -> None:
    """Draw a time as a bar, its percentiles as a whisker, and its figure."""
    low, high = (1e3 * bound for bound in timing.range)
    middle = 1e3 * timing.median
    ax.barh(at, middle, height=0.9, color=colour, label=label, zorder=2)
    ax.plot([low, high], [at, at], color="#222222", linewidth=0.8, zorder=4)
    ax.annotate(digits(middle), (max(middle, high), at), xytext=(3, 0), textcoords="offset points", va="center",
                fontsize=6.5, color="#222222", zorder=4)  # fmt: skip


def _subject(run: Run) -> str:
    """Return what a run is about, for a title."""
    suite, dtype = run.settings.get("suite"), run.settings.get("dtype")
    return f"{f'suite {suite}' if suite else 'problems of its own'}, {dtype}"


def _milliseconds(value: float, _: Any) -> str:
    return f"{value:g}" if value >= 1e-4 else f"{value:.0e}"


def _log_axis(axis: Any, form: Callable[[float, Any], str]) -> None:
    """Make an axis logarithmic, with numbers that are written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    scale("log")
    low, high = axis.get_view_interval()
    decades = math.log10(high / low) if low > 0 else 9
    axis.set_major_locator(LogLocator(10, subs=(1.0,) if decades > 1.6 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(form))
    axis.set_minor_formatter(NullFormatter())
    for tick in axis.get_ticklabels():
        tick.set_fontsize(8)


# -- the roofline ----------------------------------------------------------------------------------------------------
def roofline(run: Run) -> Any:
    """Return the roofline: GFLOP/s against operations a byte, under what memory and arithmetic allow.

    After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009). Memory's roof is
    the fastest copy of the run, arithmetic's the peak rate of multiply-adds.
    """
    rows = [row for row in _timed(run) if row.copy]
    if not rows:
        raise InvalidArgument(f"run {run.name} has no copies of memory to draw a roof from")
    colours, passes = _colours(rows), _passes(rows)
    drawing = figure(9.5, 6.2)
    ax = drawing.subplots()
    intensities = [row.flops / row.least_bytes for row in rows]
    bandwidth = max(row.rate(row.copy) or 0 for row in rows)
    peaks = sorted({1e-9 * row.peak_flops for row in rows if row.peak_flops})
    left, right = min(intensities) / 2, max(*intensities, 2 * max(peaks, default=0) / bandwidth) * 2
    top = max(peaks, default=bandwidth * right)
    ax.plot([left, min(right, top / bandwidth)], [left * bandwidth, min(right * bandwidth, top)], color="black",
            linewidth=1.6)  # fmt: skip
    ax.text(left * 1.1, left * 1.18 * bandwidth, f"fastest copy of the run: {bandwidth:.3g} GB/s", fontsize=8,
            rotation=math.degrees(math.atan(bandwidth)), rotation_mode="anchor", transform_rotates_text=True,
            va="bottom")  # fmt: skip
    for peak in peaks:
        ax.plot([peak / bandwidth, right], [peak, peak], color="black", linewidth=1.6)
        ax.annotate(f"multiply-adds: {peak:.3g} GFLOP/s", (right, peak), fontsize=8, xytext=(-3, 4),
                    textcoords="offset points", ha="right")  # fmt: skip
    for row, intensity in zip(rows, intensities, strict=True):
        variant = row.name.partition("/")[2]
        ax.plot(intensity, row.gflops, marker=_MARKERS[row.pass_name], color=colours[variant], linestyle="none",
                markersize=6.5, markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
        if peer := row.peer():
            ax.plot(intensity, 1e-9 * row.flops / peer.median, marker=_MARKERS[row.pass_name], color="none",
                    markeredgecolor="#888888", linestyle="none", markersize=6, zorder=1.5)  # fmt: skip
    for variant in dict.fromkeys(row.name.partition("/")[2] for row in rows):
        ax.plot([], [], marker="o", linestyle="none", color=colours[variant], label=variant)
    if any(row.peers for row in rows):
        ax.plot([], [], marker="o", linestyle="none", color="none", markeredgecolor="#888888", label="fastest peer")
    for pass_name in passes:
        ax.plot([], [], marker=_MARKERS[pass_name], linestyle="none", color="#222222", label=pass_name)
    ax.set_xlim(left, right)
    _log_axis(ax.xaxis, _milliseconds)
    _log_axis(ax.yaxis, _milliseconds)
    ax.set_xlabel("operations a byte that has to be moved (FLOP/B)", fontsize=9)
    ax.set_ylabel("GFLOP/s", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    below = "" if peaks else "no roof of arithmetic: its peak rate was not measured"
    return _finish(drawing, run, f"Roofline: {_subject(run)}", [ax], below)


# -- time against size -----------------------------------------------------------------------------------------------
def sizes(run: Run) -> Any:
    """Return time against the number of input elements, both logarithmic.

    A line is a variant, or a peer, on problems that differ in the size of their images and of their batch alone.
    """
    rows = _timed(run)
    series: dict[tuple[str, ConvProblem], list[Row]] = {}
    for row in rows:
        alike = row.problem.with_(N=1, H=_ANY, W=_ANY)
        series.setdefault((row.pass_name, alike), []).append(row)
    series = {key: among for key, among in series.items() if len({_elements(row) for row in among}) > 1}
    if not series:
        raise InvalidArgument(
            f"run {run.name} has no two problems that differ in the size of the image alone, so time against size is "
            "no line"
        )
    rows = [row for among in series.values() for row in among]
    colours, passes = _colours(rows), _passes(rows)
    layers = list(dict.fromkeys(alike for _, alike in series))
    styles = dict(zip(layers, ("-", "--", ":", "-.", *["-"] * len(layers)), strict=False))
    columns = min(2, len(passes))
    drawing = figure(_WIDTH if columns == 2 else 7.5, _PANEL * math.ceil(len(passes) / columns) + 1.2)
    axes = _grid(drawing, passes)
    for (pass_name, alike), among in series.items():
        ax, style = axes[pass_name], styles[alike]
        for name in dict.fromkeys(row.name for row in among):
            variant = name.partition("/")[2]
            points = [(_elements(row), row.ours) for row in among if row.name == name]
            _line(ax, points, style, colours[variant], variant)
        for peer in peer_names(among):
            _line(ax, [(_elements(row), row.peer(peer)) for row in among], style, colours[peer], peer)
        if floors := sorted({(_elements(row), 1e3 * row.floor[0]) for row in among if row.floor}):
            ax.plot(*zip(*floors, strict=True), style, color="black", linewidth=1.6, label="floor")
    for ax in axes.values():
        _log_axis(ax.xaxis, _thousands)
        _log_axis(ax.yaxis, _milliseconds)
        ax.set_xlabel("elements of the input, N C H W", fontsize=8)
        ax.set_ylabel("median time in ms", fontsize=8)
    names = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dash-dotted"}
    kinds = (f"{p.R} x {p.S}{f', {p.C} channels to {p.K}' if p.C > 1 else ''} {names[styles[p]]}" for p in layers)
    below = ""
    if len(layers) > 1:
        several = f"a line for each of {len(layers)} layers, on images of several sizes"
        below = several if len(layers) > len(names) else f"lines: {'; '.join(kinds)}"
    return _finish(drawing, run, f"Time against size: {_subject(run)}", list(axes.values()), below)


#: Stands for the height and the width of any image; larger than a filter with its dilation.
_ANY = 4096


def _elements(row: Row) -> int:
    return math.prod(row.problem.x_shape)


def _thousands(value: float, _: Any) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}"


def _line(ax: Any, points: Sequence[tuple[int, Any]], style: str, colour: str, label: str) -> None:
    """Draw the medians of timings by size."""
    known = sorted((size, 1e3 * timing.median) for size, timing in points if timing)
    if known:
        ax.plot(*zip(*known, strict=True), style, marker="o", markersize=3.5, color=colour, linewidth=1.3,
                label=label)  # fmt: skip


KINDS: dict[str, Callable[[Run], Any]] = {"ladder": ladder, "roofline": roofline, "size": sizes}
