"""Mini-batch SGD learns a filter that sees edges, from photographs.

A layer with the filter [-1 0 1]/3 in three rows and the bias -0.1 (`convbackprop demo edge` takes it apart) answers
photographs. A second layer, whose nine numbers and bias begin at random, is shown crops of them and the answers, and
learns by stochastic gradient descent on R = mean of (o' - t)^2 / 2. The picture draws the way it takes.

The activation is the logistic function, whose gradient is nowhere 0. With --activation relu the layer mostly learns
nothing: where both answer 0 there is no gradient, and few places of a photograph are edges.
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress

import convbackprop.torch as cbt
from convbackprop import demo
from convbackprop.bench.photograph import CAMERA

Tensor = torch.Tensor

PHOTOGRAPHS = ("coins", "grass", "gravel", "brick", "moon")  # it learns from these
UNSEEN = CAMERA  # and is looked at on this one
CROP = 48
CLOSE = 1e-4

#: Activations, and the learning rates that suit them: the slope of the logistic function is 1/4 at most.
RATES = {"logistic": 10.0, "tanh": 1.0, "identity": 1.0, "relu": 1.0}
PHI = {"logistic": torch.sigmoid, "tanh": torch.tanh, "identity": lambda s: s, "relu": torch.relu}


@dataclass(frozen=True)
class Path:
    """The filter's way: what it was before each step and after the last one, and the loss of each step."""

    filters: Tensor  # (steps + 1, 3, 3)
    biases: Tensor  # (steps + 1,)
    losses: Tensor  # (steps,)

    def errors(self) -> Tensor:
        """Return the largest error of the ten numbers before each step and after the last one, shape (steps + 1,)."""
        of_filter = (self.filters - torch.from_numpy(demo.FILTER)).abs().amax(dim=(1, 2))
        return torch.maximum(of_filter, (self.biases - demo.BIAS).abs())


def teacher(activation: str) -> cbt.nn.Conv2d:
    """Return the layer that is to be imitated."""
    layer = cbt.nn.Conv2d(1, 1, 3, padding="same", activation=activation)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(demo.FILTER))
        layer.get_parameter("bias").fill_(demo.BIAS)
    return layer.requires_grad_(False)


def learn(activation: str, steps: int, batch: int, rate: float, momentum: float, seed: int, bar: Progress) -> Path:
    """Learn the teacher's filter and bias."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    photographs = [common.grey(name) for name in PHOTOGRAPHS]
    right = teacher(activation)
    layer = cbt.nn.Conv2d(1, 1, 3, padding="same", activation=activation)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=momentum)
    filters, biases, losses = [], [], []

    def note() -> None:
        filters.append(layer.weight.detach()[0, 0].double())
        biases.append(layer.get_parameter("bias").detach()[0].double())

    for _ in common.steps_of(bar, "learning", steps):
        note()
        x = common.crops(photographs, batch, CROP, generator)
        loss = (layer(x) - right(x)).square().mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().double())
    note()
    return Path(torch.stack(filters), torch.stack(biases), torch.stack(losses))


# -- the picture -----------------------------------------------------------------------------------------------------
#: The plane in which the path is drawn: how strong the step from left to right is, 1 where it is right, and the sum
#: of the filter, 0 where it is right: a filter with a sum answers to brightness.
STEP, SUM = torch.from_numpy(demo.FILTER), torch.ones(3, 3, dtype=torch.float64) / 9


def coordinates(filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return where filters lie in the plane."""
    return (filters * STEP).sum(dim=(1, 2)) / STEP.square().sum(), filters.sum(dim=(1, 2))


def landscape(activation: str, x: Tensor, steps: Tensor, sums: Tensor) -> Tensor:
    """Return the loss on crops over the plane, shape (len(sums), len(steps)); all else of the filter is right.

    The layer is linear up to its activation: what the plane's two directions answer is computed once, and scaled.
    """
    directions = torch.stack([STEP, SUM])[:, None].float()
    by_step, by_sum = cbt.conv2d(x, directions, padding="same").unbind(1)
    phi = PHI[activation]
    right = phi(by_step + demo.BIAS)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return (phi(a * by_step + b * by_sum + demo.BIAS) - right).square().mean() / 2

    return torch.stack([torch.stack([loss(a, b) for a in steps]) for b in sums])


def draw(path: Path, activation: str, seed: int) -> Any:
    """Return the figure."""
    drawing = common.figure(12.5, 7.4)
    axes = drawing.subplots(2, 3)
    x = common.grey(UNSEEN)[60:260, 130:330]
    first, last = (
        cbt.conv2d(x, path.filters[i].float(), path.biases[i].float()[None], padding="same", activation=activation)
        for i in (0, -1)
    )
    right = teacher(activation)(x[None])[0]
    low, high = (float(right.quantile(q)) for q in (0.002, 0.998))
    common.picture(axes[0, 0], x, f"a photograph it never saw ({UNSEEN})")
    common.picture(axes[0, 1], first, "what the layer answers before ...", vmin=low, vmax=high)
    off = float((last - right).abs().max())
    common.picture(axes[0, 2], last, f"... and after; {off:.1e} off at most", vmin=low, vmax=high)

    ax = axes[1, 0]
    ax.loglog(range(1, len(path.losses) + 1), path.losses, color="#bbbbbb", linewidth=0.7, label="loss of the batch")
    ax.loglog(range(1, len(path.biases) + 1), path.errors(), color=common.OURS, label="largest error of the ten")
    common.plain_axes(ax, "how well it does", "step")
    ax.legend(fontsize=8, frameon=False)

    ax = axes[1, 1]
    places = range(1, len(path.biases) + 1)
    columns = ("left column", "middle column", "right column")
    for col, (name, colour) in enumerate(zip(columns, common.COLOURS, strict=False)):
        ax.semilogx(places, path.filters[:, :, col], color=colour, linewidth=1.2, label=[name, None, None])
        ax.axhline(demo.FILTER[0, col], color=colour, linestyle=":", linewidth=0.9)
    ax.semilogx(places, path.biases, color="black", linewidth=1.2, label="bias")
    ax.axhline(demo.BIAS, color="black", linestyle=":", linewidth=0.9)
    common.plain_axes(ax, "the ten numbers (dotted: right)", "step")
    ax.legend(fontsize=8, frameon=False)

    ax = axes[1, 2]
    a, b = coordinates(path.filters)
    steps = torch.linspace(min(-0.2, float(a.min()) - 0.1), max(1.4, float(a.max()) + 0.1), 33)
    reach = max(0.5, float(b.abs().max()) * 1.15)
    sums = torch.linspace(-reach, reach, 33)
    generator = torch.Generator().manual_seed(seed)
    loss = landscape(
        activation, common.crops([common.grey(name) for name in PHOTOGRAPHS], 4, CROP, generator), steps, sums
    )
    ax.contourf(steps.numpy(), sums.numpy(), loss.clamp(min=1e-7).log10().numpy(), levels=24, cmap="Blues_r")
    ax.plot(a, b, color=common.COLOURS[1], linewidth=1.3)
    ax.plot(a[0], b[0], "o", color=common.COLOURS[1], markersize=5)
    ax.plot(1, 0, "*", color="white", markersize=12, markeredgecolor="black", markeredgewidth=0.6)
    common.plain_axes(ax, "the path, on the loss (dark: low)", "step from left to right, 1 is right",
                      "sum of the filter, 0 is right")  # fmt: skip
    ax.grid(False)
    drawing.suptitle("Mini-batch SGD learns the edge filter [-1 0 1]/3 and its bias from photographs",
                     fontsize=12, fontweight="bold")  # fmt: skip
    return drawing


# -- the command -----------------------------------------------------------------------------------------------------
def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Learn, and hold what was learned against the teacher."""
    common.need("skimage", "scikit-image")
    activation = arguments.activation
    rate = arguments.rate or RATES[activation]
    path = learn(activation, arguments.steps, arguments.batch, rate, arguments.momentum, arguments.seed, bar)
    errors = path.errors()
    rows = sorted({min(step, arguments.steps) for step in (0, 100, 300, 1000, arguments.steps)})
    shown = common.table("step", "largest error", "bias", "mean of its three rows")
    for step in rows:
        mean = "  ".join(f"{value:8.4f}" for value in path.filters[step].mean(dim=0).tolist())
        shown.add_row(str(step), f"{errors[step]:.2e}", f"{path.biases[step]:.4f}", mean)
    last = float(errors[-1])
    return common.Outcome(
        numbers={
            "activation": activation,
            "steps": arguments.steps,
            "filter": path.filters[-1].tolist(),
            "bias": float(path.biases[-1]),
            "error": last,
            "error_before": float(errors[0]),
            "loss": float(path.losses[-1]),
            "loss_before": float(path.losses[0]),
        },
        tables=[shown],
        claims=[common.Claim(f"filter and bias are found to {CLOSE:g}", f"{last:.1e} off at most", last <= CLOSE)],
        drawing=draw(path, activation, arguments.seed),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "edge_filter")
    parser.add_argument("--activation", choices=RATES, default="logistic", help="default: %(default)s")
    parser.add_argument("--steps", type=common.positive, default=2000, help="of SGD; default: %(default)s")
    parser.add_argument("--batch", type=common.positive, default=16, help="crops a step; default: %(default)s")
    parser.add_argument("--rate", type=float, help="learning rate; default: what suits the activation")
    parser.add_argument("--momentum", type=float, default=0.9, help="default: %(default)s")
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
