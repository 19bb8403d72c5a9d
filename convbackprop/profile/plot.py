"""The roofline as a picture, in SVG: what the GPU allows at each number of operations a byte, and where kernels are.

Drawn by hand: the page that shows it has to stand alone, be sharp in print, and need no further package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from convbackprop.profile.report import Report
from convbackprop.profile.roofline import amount, duration

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 178, 16, 52

#: Least distance between two labels.
_LINE = 15


@dataclass(frozen=True)
class _Axes:
    """From (FLOP a byte, FLOP a second), both as logarithms, to places in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, intensity: float, speed: float) -> tuple[float, float]:
        across = (math.log10(intensity) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(speed) - self.y[0]) / (self.y[1] - self.y[0])
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + width * across, _TOP + height * (1 - up)


def roofline(report: Report) -> str:
    """Return the picture as an <svg> element."""
    gpu, flops = report.gpu, report.flops
    peak, memory = gpu.peak(report.problem.dtype), gpu.memory
    ridge, intensity = peak / memory, flops / report.least_bytes
    own = flops / max(report.own_bytes or 0, report.least_bytes)
    limits = [bound for bound in report.bounds[2:] if flops < bound.seconds * peak] if flops else []
    floor, predicted = flops / report.verdict.floor.seconds, flops / report.predicted
    slowest = min([predicted, floor, *(flops / bound.seconds for bound in limits)])
    axes = _Axes(
        (math.floor(math.log10(min(own, intensity, ridge / 10))) - 0.2, math.log10(max(8 * ridge, 3 * intensity))),
        (math.log10(slowest) - 0.6, math.log10(peak) + 0.35),
    )
    parts = [*_grid(axes)]
    first, last = 10 ** axes.x[0], 10 ** axes.x[1]
    start = max(first, 10 ** axes.y[0] / memory)
    roof = [axes.at(start, start * memory), axes.at(ridge, peak), axes.at(last, peak)]
    parts.append(f'<polyline class="roof" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in roof)}"/>')
    parts.append(_label(roof[1][0] + 6, roof[1][1] - 7, f"arithmetic {amount(peak, 'FLOP/s')}"))
    (x0, y0), (x1, y1) = roof[:2]
    angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
    x, y = (x0 + x1) / 2, (y0 + y1) / 2 - 8
    turn = f' transform="rotate({angle:.1f} {x:.1f} {y:.1f})" text-anchor="middle"'
    parts.append(_label(x, y, f"memory {amount(memory, 'B/s')}", turn))
    taken = roof[2][1] - 4
    for bound in sorted(limits, key=lambda bound: bound.seconds):
        speed = flops / bound.seconds
        (x0, y), (x1, _) = axes.at(max(start, speed / memory), speed), axes.at(last, speed)
        binding = bound == report.verdict.binding
        parts.append(f'<line class="{"binding" if binding else "limit"}" x1="{x0:.1f}" y1="{y:.1f}" x2="{x1:.1f}" '
                     f'y2="{y:.1f}"/>')  # fmt: skip
        taken = max(y + 4, taken + _LINE)
        parts.append(_label(x1 + 6, taken, f"{bound.limit}, {duration(bound.seconds)}", _bold(binding)))
    points = [
        (intensity, floor, "floor", f"floor of the problem: {duration(report.verdict.floor.seconds)}"),
        (own, predicted, "point", f"{report.variant}: at least {duration(report.predicted)}"),
    ]
    if report.measured:
        seconds = report.measured.median
        points.append((own, flops / seconds, "measured", f"measured: {duration(seconds)}"))
    for intensity, speed, name, text in points:
        x, y = axes.at(intensity, speed)
        parts.append(f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(text)}</title></circle>')
    parts.append(_legend([name for _, _, name, _ in points], str(report.variant)))
    title = f"Roofline of {report.variant} on the {gpu}"
    return (f'<svg class="roofline" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
            f"{''.join(parts)}</svg>")  # fmt: skip


def _bold(yes: bool) -> str:
    return ' class="strong"' if yes else ""


def _label(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>'


def _grid(axes: _Axes) -> list[str]:
    """Return the axes with a line for each power of ten."""
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for power in range(math.ceil(axes.x[0]), math.floor(axes.x[1]) + 1):
        x, _ = axes.at(10.0**power, 10 ** axes.y[0])
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_label(x, bottom + 16, f"{10.0**power:g}", ' text-anchor="middle"'))
    for power in range(math.ceil(axes.y[0]), math.floor(axes.y[1]) + 1):
        _, y = axes.at(10 ** axes.x[0], 10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(_label(_LEFT - 6, y + 4, _power(power), ' text-anchor="end"'))
    parts.append(f'<path class="axis" d="M{_LEFT},{_TOP}V{bottom}H{right}"/>')
    parts.append(_label((_LEFT + right) / 2, _HEIGHT - 14, "FLOP a byte", ' text-anchor="middle"'))
    middle = (_TOP + bottom) / 2
    parts.append(_label(16, middle, "FLOP a second", f' text-anchor="middle" transform="rotate(-90 16 {middle})"'))
    return parts


def _power(power: int) -> str:
    prefix = {9: "G", 12: "T", 15: "P"}.get(power - power % 3, "")
    return f"{10 ** (power % 3)} {prefix}" if prefix else f"1e{power}"


def _legend(names: list[str], variant: str) -> str:
    texts = {"floor": "the problem's floor", "point": f"{variant}, at least", "measured": "measured"}
    parts = []
    for i, name in enumerate(names):
        y = _HEIGHT - _BOTTOM - 14 - _LINE * (len(names) - 1 - i)
        x = _WIDTH - _RIGHT - 190
        parts.append(f'<circle class="{name}" cx="{x}" cy="{y - 4}" r="5"/>' + _label(x + 12, y, texts[name]))
    return "".join(parts)
