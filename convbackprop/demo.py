"""The course's example, a filter that sees edges, through a layer and back: what `convbackprop demo edge` shows.

The filter is [-1 0 1]/3 in each of three rows: Prewitt's, which averages three rows and answers to light that grows
from left to right. With a bias of -0.1 and a ReLU only steps of more than 0.1 from one side of a pixel to the other are
left.

The gradient that comes from above is that of a loss. The layer is asked to answer as Sobel's filter, [-1 0 1] times 1,
2 and 1 quarter down the rows, would with the same bias and ReLU: R = 1/2 sum (o' - t)^2, so that dR/do' = o' - t. What
-dR/dw asks for is then known, but for what it adds to all nine numbers because a picture is bright: a larger step from
left to right in the middle row than in the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convbackprop import ops
from convbackprop.bench import torch_calls
from convbackprop.bench.photograph import CAMERA, Photograph, drawn, photograph, read_image
from convbackprop.bench.plots import figure
from convbackprop.check import reference
from convbackprop.devices import Device
from convbackprop.errors import EnvironmentProblem
from convbackprop.problem import ConvProblem

Array = Any

BIAS = -0.1
FILTER = np.outer([1, 1, 1], [-1, 0, 1]) / 3
TARGET = np.outer([1, 2, 1], [-1, 0, 1]) / 4

#: What is shown: by name, what it is, and its formula.
PARTS = {
    "o": ("input", "o"),
    "s": ("pre-activation", "s = w * o + b"),
    "y": ("output", "o' = max(s, 0)"),
    "dy": ("upstream gradient", "dR/do' = o' - t"),
    "dx": ("input gradient", "dR/do"),
    "dw": ("kernel gradient", "dR/dw"),
    "db": ("bias gradient", "dR/db"),
}


@dataclass(frozen=True)
class Edge:
    """The example, computed.

    Attributes
    ----------
    image : Photograph
        What it was computed on.
    problem : ConvProblem
        The layer.
    ours : mapping of str to numpy.ndarray
        The `PARTS`, float32; images of shape (H, W), dw (3, 3), db ().
    torch : mapping of str to numpy.ndarray or None
        The same by torch.autograd of the loss, without what is given (o); None where torch is not installed.
    errors : mapping of str to float
        Of ours, the largest as a share of the bound of `reference.error_bound`, by result.
    """

    image: Photograph
    problem: ConvProblem
    ours: Mapping[str, Array]
    torch: Mapping[str, Array] | None
    errors: Mapping[str, float]


def image_of(file: str | None) -> Photograph:
    """Return an image file, or scikit-image's photograph; a drawn picture where scikit-image is not installed."""
    if file is not None:
        return read_image(file)
    try:
        return photograph(CAMERA)
    except EnvironmentProblem:
        return drawn()


def compute(image: Photograph, device: Device) -> Edge:
    """Compute the example by our kernels, by the float64 reference, and by torch where it is installed."""
    height, width = image.grey.shape
    problem = ConvProblem.parse(f"1,1,{height},{width},1,3,3,padding=same,activation=relu,bias=1")
    x, w, sobel = (np.asarray(a, np.float32)[None, None] for a in (image.grey, FILTER, TARGET))
    b = np.full(1, BIAS, np.float32)
    where: dict[str, Any] = {"padding": "same", "device": device.name}
    target = ops.conv2d(x, sobel, b, activation="relu", **where)
    s = ops.conv2d(x, w, b, **where)
    y = ops.conv2d(x, w, b, activation="relu", **where)
    dy = y - target
    dx, dw, db = ops.conv2d_backward(dy, x, w, output=y, activation="relu", **where)
    given = {"x": x, "w": w, "b": b, "dy": dy, "saved": y}
    results = {"s": s, "y": y, "dx": dx, "dw": dw, "db": db}
    ours = {"o": x, "dy": dy, **results}
    return Edge(
        image=image,
        problem=problem,
        ours={name: _plain(ours[name]) for name in PARTS},
        torch=None if torch_calls.why_no_torch("cpu") else _by_torch(x, w, b, target),
        errors=_errors(problem, given, results),
    )


def _plain(array: Array) -> Array:
    """Return an array without its axes of one element: an image of one channel, a filter, a number."""
    return np.asarray(array).squeeze()


def _by_torch(x: Array, w: Array, b: Array, target: Array) -> dict[str, Array]:
    """Return the parts by torch.autograd of the loss."""
    torch = torch_calls.import_torch()
    leaves = {
        name: torch.from_numpy(array.copy()).requires_grad_() for name, array in (("dx", x), ("dw", w), ("db", b))
    }
    s = torch.nn.functional.conv2d(*leaves.values(), padding=1)
    y = torch.relu(s)
    y.retain_grad()
    (0.5 * (y - torch.from_numpy(target)).square().sum()).backward()
    tensors = {"s": s, "y": y, "dy": y.grad, **{name: leaf.grad for name, leaf in leaves.items()}}
    return {name: _plain(tensor.detach().numpy()) for name, tensor in tensors.items()}


def _errors(problem: ConvProblem, given: Mapping[str, Array], results: Mapping[str, Array]) -> dict[str, float]:
    """Return the largest error of each result against float64, as a share of its bound."""
    found = {}
    identity = problem.with_(activation="identity")
    for name, pass_name, p in (
        ("s", "forward", identity), ("y", "forward", problem), ("dx", "input_grad", problem),
        ("dw", "kernel_grad", problem), ("db", "kernel_grad", problem),
    ):  # fmt: skip
        operand = "y" if name == "s" else name
        value, magnitude = reference.answer(pass_name, p, given)[operand]
        bound = reference.error_bound(operand, p, value, magnitude)
        found[name] = float(reference.error_share(results[name].reshape(value.shape), value, bound, p.dtype).max())
    return found


# -- the numbers -----------------------------------------------------------------------------------------------------
def numbers(edge: Edge) -> list[dict[str, Any]]:
    """Return a row of numbers for each part: its least, largest and sum, ours and torch's, and how far they differ."""
    rows = []
    for name, (what, formula) in PARTS.items():
        ours = edge.ours[name]
        theirs = edge.torch.get(name) if edge.torch is not None else None
        rows.append({
            "part": name,
            "what": what,
            "formula": formula,
            "least": float(ours.min()),
            "largest": float(ours.max()),
            "sum": float(ours.sum(dtype=np.float64)),
            "torch_least": None if theirs is None else float(theirs.min()),
            "torch_largest": None if theirs is None else float(theirs.max()),
            "torch_sum": None if theirs is None else float(theirs.sum(dtype=np.float64)),
            "difference": None if theirs is None else float(abs(ours.astype(np.float64) - theirs).max()),
            "error": edge.errors.get(name),
        })  # fmt: skip
    return rows


# -- the figure ------------------------------------------------------------------------------------------------------
def draw(edge: Edge, device: Device) -> Any:
    """Return the figure: six heat maps, what came in at the left and what goes back at the right."""
    height, width = edge.image.grey.shape
    drawing = figure(12.5, 2 * min(6.0, max(2.2, 3.7 * height / width)) + 1.2)
    axes = drawing.subplots(2, 3)
    for ax, name in zip(axes.flat, ("o", "s", "y", "dy", "dx", "dw"), strict=True):
        what, formula = PARTS[name]
        _heat_map(drawing, ax, edge.ours[name], name not in ("o", "y"), 1 if name in ("o", "dw") else 0.998)
        ax.set_title(f"{what}: {formula}", fontsize=10)
    _write_numbers(axes[1, 2], edge.ours["dw"])
    drawing.suptitle(
        f"An edge through a layer and back: w = [-1 0 1]/3 in three rows, b = {BIAS}, ReLU; "
        f"dR/db = {float(edge.ours['db']):.4g}",
        fontsize=12, fontweight="bold",
    )  # fmt: skip
    drawing.supxlabel(
        "R = 1/2 sum (o' - t)^2, where t is what Sobel's filter gives with the same bias and ReLU. "
        f"{edge.image.name}, {height} x {width}; computed by convbackprop on device {device.name}.",
        fontsize=8.5, color="#444444",
    )  # fmt: skip
    return drawing


def _heat_map(drawing: Any, ax: Any, values: Array, signed: bool, quantile: float) -> None:
    """Draw values in colours, grey from 0 or red and blue around 0, which end at a quantile."""
    largest = float(np.quantile(abs(values), quantile)) or float(abs(values).max()) or 1.0
    low, colours = (-largest, "RdBu_r") if signed else (0.0, "gray")
    shown = ax.imshow(values, cmap=colours, vmin=low, vmax=largest, interpolation="nearest")
    beyond = "both" if signed and abs(values).max() > largest else "max" if values.max() > largest else "neither"
    bar = drawing.colorbar(shown, ax=ax, extend=beyond, shrink=0.85, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    ax.set_xticks([])
    ax.set_yticks([])


def _write_numbers(ax: Any, values: Array) -> None:
    """Write each number on its square."""
    largest = abs(values).max() or 1
    for (row, col), value in np.ndenumerate(values):
        ax.text(col, row, f"{value:.4g}", ha="center", va="center", fontsize=11,
                color="white" if abs(value) > 0.6 * largest else "black")  # fmt: skip
