"""A whole layer: 64 channels to 128 at 112 x 112, 3 x 3 filters, bias and ReLU, on a mini-batch; forward and backward.

Every element of y, dx, dw and db is held against torch in float64 and has to be within the bound that any order of
summation obeys (`convbackprop.check.reference.error_bound`). Then the two passes are timed beside torch's in turns, and
the peak of memory of both passes is measured, for each library in a process of its own.

On a GPU, `make gpu-report` times this layer.
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

import convbackprop.torch as cbt
from convbackprop.bench import timing
from convbackprop.check import reference
from convbackprop.problem import ConvProblem

Tensor = torch.Tensor

LIBRARIES = ("convbackprop", "torch")
RESULTS = ("y", "dx", "dw", "db")


def problem_of(arguments: argparse.Namespace) -> ConvProblem:
    """Return the layer's problem."""
    n, c, k, size = arguments.batch, arguments.channels, arguments.filters, arguments.size
    return ConvProblem.parse(f"{n},{c},{size},{size},{k},3,3,padding=1,activation=relu,bias=1")


def operands(problem: ConvProblem, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, w, b and dy, of a size that keeps y near 1."""
    generator = torch.Generator().manual_seed(seed)
    x, w, b, dy = (
        torch.randn(shape, generator=generator)
        for shape in (problem.x_shape, problem.w_shape, (problem.K,), problem.y_shape)
    )
    return x, w * (2 / (9 * problem.C)) ** 0.5, b, dy


def layer(library: str, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Return y = relu(x * w + b), differentiable."""
    if library == "convbackprop":
        return cbt.conv2d(x, w, b, padding=1, activation="relu")
    return torch.relu(functional.conv2d(x, w, b, padding=1))


def both_passes(library: str, x: Tensor, w: Tensor, b: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Return y, dx, dw and db."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, w, b)]
    y = layer(library, *leaves)
    return dict(zip(RESULTS, (y.detach(), *torch.autograd.grad(y, leaves, dy)), strict=True))


# -- right -----------------------------------------------------------------------------------------------------------
def error_shares(problem: ConvProblem, found: dict[str, Tensor], given: Sequence[Tensor]) -> dict[str, Any]:
    """Return each element's error as a share of its bound, by result.

    A gradient is a function of the y that its own forward pass saved: the ReLU is open where that y is above 0.
    """
    x, w, b, dy = (tensor.double() for tensor in given)
    g = torch.where(found["y"] > 0, dy, 0)

    def linear(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> dict[str, Tensor]:
        return {
            "y": functional.conv2d(x, w, b, padding=1),
            "dx": conv2d_input(x.shape, w, g, padding=1),
            "dw": conv2d_weight(x, w.shape, g, padding=1),
            "db": g.sum(dim=(0, 2, 3)),
        }

    values, magnitudes = linear(x, w, b, g), linear(x.abs(), w.abs(), b.abs(), g.abs())
    values["y"] = values["y"].relu()
    shares = {}
    for name in RESULTS:
        value, magnitude = values[name].numpy(), magnitudes[name].numpy()
        bound = reference.error_bound(name, problem, value, magnitude)
        shares[name] = reference.error_share(found[name].numpy(), value, bound, problem.dtype)
    return shares


# -- fast, and in how much memory ------------------------------------------------------------------------------------
def timings(given: Sequence[Tensor], seconds: float) -> dict[str, dict[str, timing.Timing]]:
    """Return the times of the forward pass and of the backward pass, by pass and library."""
    x, w, b, dy = given

    def forward(library: str) -> None:
        with torch.no_grad():
            layer(library, x, w, b)

    def backward(y: Tensor, leaves: list[Tensor]) -> None:
        torch.autograd.grad(y, leaves, dy, retain_graph=True)

    found = {"forward": {name: functools.partial(forward, name) for name in LIBRARIES}, "backward": {}}
    for name in LIBRARIES:
        leaves = [tensor.detach().requires_grad_() for tensor in (x, w, b)]
        found["backward"][name] = functools.partial(backward, layer(name, *leaves), leaves)
    return {
        pass_name: timing.alternate(calls, timing.host_clock, seconds, least=3) for pass_name, calls in found.items()
    }


def prepare(library: str, problem_text: str, seed: int) -> Callable[[], object]:
    """Return a call of both passes, with its kernels loaded; for `common.peak_growth`."""
    problem = ConvProblem.parse(problem_text)
    both_passes(library, *operands(problem.with_(N=1, H=8, W=8), seed))
    return functools.partial(both_passes, library, *operands(problem, seed))


# -- the picture -----------------------------------------------------------------------------------------------------
def draw(
    problem: ConvProblem,
    shares: dict[str, dict[str, Any]],
    times: dict[str, dict[str, timing.Timing]],
    peaks: dict[str, int],
    least: int,
) -> Any:
    """Return the figure: errors as shares of their bounds, times, and peaks of memory."""
    drawing = common.figure(12.5, 4.4)
    axes = drawing.subplots(1, 3, width_ratios=(1.5, 1, 0.8))
    bins = np.logspace(-7, 0.3, 80)
    for i, name in enumerate(RESULTS):
        values = shares["convbackprop"][name].ravel()
        off = values[values > 0]  # where a ReLU is closed, y is exact
        axes[0].hist(off, bins, weights=np.full(off.size, 100 / values.size), histtype="step", linewidth=1.4,
                     color=common.COLOURS[i], label=f"{name}: {values.max():.2g} at most")  # fmt: skip
    axes[0].axvline(1, color="black", linestyle=":", linewidth=1)
    axes[0].set_xscale("log")
    common.plain_axes(axes[0], "error as a share of its bound", "|found - exact| / bound (1: dotted)", "% of elements")
    axes[0].legend(fontsize=8, framealpha=1, edgecolor="none", loc="upper center", bbox_to_anchor=(0.8, 1))
    for i, (name, colour) in enumerate(zip(LIBRARIES, (common.OURS, common.TORCH), strict=True)):
        medians = [1e3 * times[pass_name][name].median for pass_name in times]
        bars = axes[1].bar([place + 0.38 * i - 0.19 for place in range(len(times))], medians, 0.36, color=colour,
                           label=name)  # fmt: skip
        axes[1].bar_label(bars, fmt="%.0f", fontsize=8)
        bars = axes[2].bar([i], [peaks[name] / 1e6], 0.6, color=colour)
        axes[2].bar_label(bars, fmt="%.0f", fontsize=8)
    axes[1].set_xticks(range(len(times)), list(times))
    common.plain_axes(axes[1], "time, the median", "", "ms")
    axes[1].legend(fontsize=8, frameon=False)
    axes[2].set_xticks(range(len(LIBRARIES)), LIBRARIES)
    axes[2].axhline(least / 1e6, color="black", linestyle=":", linewidth=1, label="y, dx, dw, db")
    axes[2].legend(fontsize=8, frameon=False, loc="upper left")
    common.plain_axes(axes[2], "peak of memory", "", "MB")
    drawing.suptitle(f"A whole layer: {problem.C} to {problem.K} channels at {problem.H} x {problem.W}, bias, ReLU, "
                     f"{problem.N} images, float32", fontsize=12, fontweight="bold")  # fmt: skip
    return drawing


def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Check, time and measure the layer."""
    problem = problem_of(arguments)
    given = operands(problem, arguments.seed)
    shares: dict[str, dict[str, Any]] = {}
    peaks: dict[str, int] = {}
    times: dict[str, dict[str, timing.Timing]] = {}
    for step in common.steps_of(bar, "checking, timing, measuring", 5):
        if step < 2:
            name = LIBRARIES[step]
            shares[name] = error_shares(problem, both_passes(name, *given), given)
        elif step == 2:
            times = timings(given, arguments.seconds / 2)
        else:
            name = LIBRARIES[step - 3]
            peaks[name] = common.peak_growth(prepare, name, str(problem), arguments.seed)
    worst = {name: {result: float(shares[name][result].max()) for result in RESULTS} for name in LIBRARIES}
    # y, dx, dw and db, which remain when both passes have ended
    least = sum(tensor.numel() * tensor.element_size() for tensor in (given[3], *given[:3]))
    flops = {"forward": 2.0 * problem.K * problem.C * 9 * problem.N * problem.P * problem.Q}
    flops["backward"] = 2 * flops["forward"]
    errors = common.table("largest error, as a share of its bound", *RESULTS)
    timed = common.table("time", *LIBRARIES, "ours at", "torch at", "torch's time / ours")
    memory = common.table("memory of both passes", *LIBRARIES)
    for name in LIBRARIES:
        errors.add_row(name, *(f"{worst[name][result]:.2g}" for result in RESULTS))
    for pass_name, both in times.items():
        ours, theirs = (both[name].median for name in LIBRARIES)
        rates = (f"{flops[pass_name] / median / 1e9:.0f} GFLOP/s" for median in (ours, theirs))
        timed.add_row(pass_name, f"{1e3 * ours:.1f} ms", f"{1e3 * theirs:.1f} ms", *rates, f"{theirs / ours:.2f}")
    memory.add_row("peak above the operands", *(f"{peaks[name] / 1e6:.1f} MB" for name in LIBRARIES))
    memory.add_row("of which the results y, dx, dw, db", *[f"{least / 1e6:.1f} MB"] * 2)
    largest = max(worst["convbackprop"].values())
    return common.Outcome(
        numbers={
            "problem": str(problem),
            "errors": worst,
            "seconds": {  # the median, the 20th and the 80th percentile
                pass_name: {name: [t.median, *t.range] for name, t in both.items()} for pass_name, both in times.items()
            },
            "flops": flops,
            "peak_bytes": peaks,
            "result_bytes": least,
        },
        tables=[errors, timed, memory],
        claims=[
            common.Claim("every element of y, dx, dw and db is within the bound of float64", f"{largest:.2g} of it at "
                         "most", largest <= 1),
        ],
        drawing=draw(problem, shares, times, peaks, least),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "whole_layer", threads=2)
    parser.add_argument("--batch", type=common.positive, default=4, metavar="N", help="images; default: %(default)s")
    parser.add_argument("--channels", type=common.positive, default=64, metavar="C", help="default: %(default)s")
    parser.add_argument("--filters", type=common.positive, default=128, metavar="K", help="default: %(default)s")
    parser.add_argument("--size", type=common.positive, default=112, metavar="N", help="height and width; default: "
                        "%(default)s")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=12.0, metavar="S", help="of timing; default: %(default)s")
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
