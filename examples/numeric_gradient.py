"""Central differences beside backpropagation, layer by layer.

A small network in float64: two convolutional layers and a dense one, which is a convolution as large as its input.
Backpropagation gives dR/dp for each of its numbers p and for each pixel; so does trying it out,

    dR/dp = (R(p + h) - R(p - h)) / 2h + O(h^2),

at two forward passes a number. Both are our kernels, the forward ones alone in the second case: that they agree shows
that the gradients belong to the forward pass. With a large h the O(h^2) is seen, with a small one the rounding of R,
u R / h. The picture draws both.
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.progress import Progress

import convbackprop.torch as cbt

Tensor = torch.Tensor

U = 2.0**-53  # the round-off of float64
STEP = (3 * U) ** (1 / 3)  # where h^2 and u/h are about the same
SWEEP = tuple(10.0**-k for k in range(1, 12))
CLOSE = 1e-7


def network(activation: str, variant: str) -> torch.nn.Sequential:
    """Return the network, for images of 9 x 8; strides, paddings and filters are not alike on purpose."""
    options: dict[str, Any] = {"dtype": torch.float64, "variant": variant}
    layers: OrderedDict[str, torch.nn.Module] = OrderedDict(
        conv1=cbt.nn.Conv2d(1, 2, 3, padding=1, activation=activation, **options),
        conv2=cbt.nn.Conv2d(2, 3, (2, 3), stride=2, padding=(0, 1), activation="logistic", **options),
        dense=cbt.nn.Conv2d(3, 2, (4, 4), **options),
    )
    return torch.nn.Sequential(layers)


def central_differences(loss: Callable[[], Tensor], tensor: Tensor, h: float) -> Tensor:
    """Return the gradient of a loss with respect to a tensor, by trying out each of its numbers."""
    gradient = torch.empty_like(tensor)
    numbers = tensor.data.view(-1)
    for i, value in enumerate(numbers.tolist()):
        numbers[i] = value + h
        above = loss()
        numbers[i] = value - h
        gradient.view(-1)[i] = (above - loss()) / (2 * h)
        numbers[i] = value
    return gradient


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return |got - wanted| / (|got| + |wanted|) of two tensors, by their Euclidean norms: 0 alike, 1 opposite."""
    return float((got - wanted).norm() / (got.norm() + wanted.norm()))


def by_torch(model: torch.nn.Sequential, activation: str, x: Tensor, target: Tensor) -> list[Tensor]:
    """Return the gradients that torch's own convolutions have, in the order of the model's parameters, x last."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*model.parameters(), x)]
    phi = {"tanh": torch.tanh, "relu": torch.relu, "logistic": torch.sigmoid}[activation]
    w1, b1, w2, b2, w3, b3, o = leaves
    o = phi(torch.nn.functional.conv2d(o, w1, b1, padding=1))
    o = torch.sigmoid(torch.nn.functional.conv2d(o, w2, b2, stride=2, padding=(0, 1)))
    o = torch.nn.functional.conv2d(o, w3, b3)
    return list(torch.autograd.grad((o - target).square().sum() / 2, leaves))


def draw(sweep: dict[str, list[float]], pairs: dict[str, tuple[Tensor, Tensor]], h: float) -> Any:
    """Return the figure: the error against h, and both gradients against one another."""
    drawing = common.figure(11.5, 4.6)
    left, right = drawing.subplots(1, 2)
    markers = "osD^vPX"
    for i, (name, errors) in enumerate(sweep.items()):
        colour = common.COLOURS[i // 2 % len(common.COLOURS)]
        left.loglog(SWEEP, errors, marker=markers[i % 7], markersize=4, linewidth=1, color=colour, label=name)
    h_large, h_small = ([h for h in SWEEP if h >= 1e-5], [h for h in SWEEP if h < 1e-5])
    first, last = (max(errors[i] for errors in sweep.values()) for i in (0, -1))
    left.loglog(h_large, [3 * first * (h / SWEEP[0]) ** 2 for h in h_large], "--", color="#555555", linewidth=0.9)
    left.loglog(h_small, [3 * last * SWEEP[-1] / h for h in h_small], ":", color="#555555", linewidth=0.9)
    left.annotate(
        "h²",
        (middle := h_large[len(h_large) // 2], 3 * first * (middle / SWEEP[0]) ** 2),
        (-14, 2),
        textcoords="offset points",
        fontsize=9,
    )
    left.annotate(
        "u / h",
        (middle := h_small[len(h_small) // 2], 3 * last * SWEEP[-1] / middle),
        (4, 4),
        textcoords="offset points",
        fontsize=9,
    )
    common.plain_axes(left, "central differences against backpropagation", "h", "relative error")
    left.legend(fontsize=8, frameon=False)
    for i, (name, (numeric, exact)) in enumerate(pairs.items()):
        colour = common.COLOURS[i // 2 % len(common.COLOURS)]
        right.plot(exact.flatten(), numeric.flatten(), markers[i % 7], markersize=4, color=colour, alpha=0.7,
                   label=name)  # fmt: skip
    ends = [min(float(exact.min()) for _, exact in pairs.values()), max(float(e.max()) for _, e in pairs.values())]
    right.plot(ends, ends, color="black", linewidth=0.7, zorder=0)
    right.set_xscale("symlog", linthresh=1e-3)
    right.set_yscale("symlog", linthresh=1e-3)
    common.plain_axes(right, f"every number of the network, h = {h:.1e}", "dR/dp by backpropagation",
                      "dR/dp by trying it out")  # fmt: skip
    drawing.suptitle("The numeric gradient of a small network", fontsize=12, fontweight="bold")
    return drawing


def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Compute each gradient in both ways."""
    torch.manual_seed(arguments.seed)
    model = network(arguments.activation, arguments.variant)
    x = torch.randn(1, 1, 9, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randn(1, 2, 1, 1, dtype=torch.float64)
    tensors = {**dict(model.named_parameters()), "input": x}

    def loss() -> Tensor:
        return (model(x) - target).square().sum() / 2

    exact = dict(zip(tensors, torch.autograd.grad(loss(), list(tensors.values())), strict=True))
    others = dict(zip(tensors, by_torch(model, arguments.activation, x, target), strict=True))
    pairs, sweep = {}, {name: [0.0] * len(SWEEP) for name in tensors}
    with torch.no_grad():
        for i in common.steps_of(bar, "trying out", len(SWEEP) + 1):
            for name, tensor in tensors.items():
                numeric = central_differences(loss, tensor, STEP if i == len(SWEEP) else SWEEP[i])
                if i == len(SWEEP):
                    pairs[name] = numeric, exact[name]
                else:
                    sweep[name][i] = relative_error(numeric, exact[name])
    errors = {name: relative_error(*pair) for name, pair in pairs.items()}
    from_torch = {name: relative_error(exact[name], others[name]) for name in tensors}
    shown = common.table("gradient of", "numbers", "norm", f"error, h = {STEP:.1e}", "least", "at h", "from torch's")
    for name, tensor in tensors.items():
        least = min(range(len(SWEEP)), key=lambda i: sweep[name][i])
        shown.add_row(name, str(tensor.numel()), f"{exact[name].norm():.4f}", f"{errors[name]:.1e}",
                      f"{sweep[name][least]:.1e}", f"{SWEEP[least]:.0e}", f"{from_torch[name]:.1e}")  # fmt: skip
    worst = max(errors, key=lambda name: errors[name])
    return common.Outcome(
        numbers={
            "activation": arguments.activation,
            "variant": arguments.variant,
            "h": STEP,
            "errors": errors,
            "sweep": {"h": list(SWEEP), **sweep},
            "from_torch": from_torch,
        },
        tables=[shown],
        claims=[
            common.Claim(
                f"backpropagation agrees with central differences to {CLOSE:g} in every layer",
                f"{errors[worst]:.1e} at worst, in {worst}",
                errors[worst] <= CLOSE,
            ),
            common.Claim(
                "and with torch's gradients to 1e-13",
                f"{max(from_torch.values()):.1e} at worst",
                max(from_torch.values()) <= 1e-13,
            ),
        ],
        drawing=draw(sweep, pairs, STEP),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "numeric_gradient")
    parser.add_argument("--activation", choices=("tanh", "logistic", "relu"), default="tanh", help="of the first "
                        "layer; ReLU has no derivative at 0, which shows; default: %(default)s")  # fmt: skip
    parser.add_argument("--variant", default="auto", help="a rung of the ladder that all passes have, such as naive; "
                        "default: %(default)s")  # fmt: skip
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
