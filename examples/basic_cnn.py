"""The course's CNN, trained on handwritten digits by our kernels, and by torch's from the same beginning.

    image 1 x 8 x 8, three times a convolution with 2 x 2 filters, padding 1 and ReLU (2, 4 and 8 channels),
    2 x 2 max-pooling, a dense layer of 32 with ReLU, a dense layer of 10.

The dense layers are 1 x 1 convolutions of images of one pixel. Digits are scikit-learn's, split at random, three times.

Rounding errors grow as the network learns: two right programs that add in different orders drift apart, and how fast
depends on the weights that they begin with. So the losses are compared in float64, and in float32 what was learned.
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

import convbackprop.torch as cbt

Tensor = torch.Tensor

BATCH, RATE, MOMENTUM = 64, 0.03, 0.9
TEST_SHARE = 0.3
COMPARED = 300  # steps, in float64
ACCURACY, APART, LOSSES = 94.0, 1.0, 1e-9


def cnn(library: str) -> nn.Sequential:
    """Return the network with "convbackprop"'s layers or with "torch"'s; both draw the same first weights."""

    def layer(inputs: int, outputs: int, size: int, padding: int, relu: bool = True) -> list[nn.Module]:
        if library == "convbackprop":
            activation = "relu" if relu else "identity"
            return [cbt.nn.Conv2d(inputs, outputs, size, padding=padding, activation=activation)]
        return [nn.Conv2d(inputs, outputs, size, padding=padding), *[nn.ReLU()] * relu]

    model = nn.Sequential(
        *layer(1, 2, 2, 1),  # 9 x 9
        *layer(2, 4, 2, 1),  # 10 x 10
        *layer(4, 8, 2, 1),  # 11 x 11
        nn.MaxPool2d(2),  # 5 x 5
        nn.Flatten(),
        nn.Unflatten(1, (200, 1, 1)),
        *layer(200, 32, 1, 0),
        *layer(32, 10, 1, 0, relu=False),
        nn.Flatten(),
    )
    for part in model:
        if isinstance(part, (nn.Conv2d, cbt.nn.Conv2d)):  # as K. He et al. do for ReLU, arXiv:1502.01852
            nn.init.kaiming_normal_(part.weight)
            nn.init.constant_(part.get_parameter("bias"), 0)
    return model


@dataclass(frozen=True)
class Digits:
    """A random split of the digits: images of shape (N, 1, 8, 8) with values from 0 to 1, and what they show."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits(seed: int, dtype: torch.dtype) -> Digits:
    """Return scikit-learn's digits, split at random."""
    data = common.need("sklearn.datasets", "scikit-learn").load_digits()
    images = torch.from_numpy(data.images)[:, None].to(dtype) / 16
    shown = torch.from_numpy(data.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, train = order.tensor_split([round(TEST_SHARE * len(images))])
    return Digits((images[train], shown[train]), (images[test], shown[test]))


@dataclass(frozen=True)
class Trained:
    """A network, the loss of each step, and how many seconds training took."""

    model: nn.Sequential
    losses: Tensor
    seconds: float

    def answers(self, images: Tensor) -> Tensor:
        """Return which digits it sees."""
        with torch.no_grad():
            return self.model(images).argmax(dim=1)  # type: ignore[no-any-return]


def train(library: str, data: Digits, steps: int, seed: int, bar: Progress, planned: int | None = None) -> Trained:
    """Train for some steps, of `planned` ones over which the learning rate sinks to 0."""
    torch.manual_seed(seed)
    images, shown = data.train
    model = cnn(library).to(images.dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=planned or steps)
    generator = torch.Generator().manual_seed(seed)
    losses = torch.empty(steps, dtype=images.dtype)
    start = time.perf_counter()
    for step in common.steps_of(bar, f"seed {seed}, {library}, {str(images.dtype).removeprefix('torch.')}", steps):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[batch]), shown[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses[step] = loss.detach()
    return Trained(model, losses, time.perf_counter() - start)


def draw(
    pair: tuple[Trained, Trained], wide: tuple[Tensor, Tensor], data: Digits, accuracies: list[tuple[float, float]]
) -> Any:
    """Return the figure: losses, how far they part, accuracies, and what the first network gets wrong."""
    ours, theirs = pair
    drawing = common.figure(12, 7)
    grid = drawing.add_gridspec(2, 6, height_ratios=(1.5, 1))
    ax = drawing.add_subplot(grid[0, :2])
    ax.semilogy(theirs.losses, color=common.TORCH, linewidth=1.4, label="torch")
    ax.semilogy(ours.losses, color=common.OURS, linewidth=0.7, label="convbackprop")
    common.plain_axes(ax, "loss of the batch, float32", "step")
    ax.legend(fontsize=8, frameon=False)

    ax = drawing.add_subplot(grid[0, 2:4])
    count = len(wide[0])
    for name, (a, b), colour in (
        ("float32", (ours.losses[:count], theirs.losses[:count]), common.COLOURS[1]),
        ("float64", wide, common.COLOURS[2]),
    ):
        ax.semilogy(((a - b).abs() / b).clamp(min=1e-17), ".", color=colour, markersize=3, label=name)
    ax.axhline(LOSSES, color="black", linestyle=":", linewidth=0.9)
    common.plain_axes(ax, "how far the losses are apart, relatively", "step")
    ax.legend(fontsize=8, frameon=False, markerscale=3)

    ax = drawing.add_subplot(grid[0, 4:])
    for i, (name, colour) in enumerate((("convbackprop", common.OURS), ("torch", common.TORCH))):
        values = [accuracy[i] for accuracy in accuracies]
        places = [seed + 0.38 * i - 0.19 for seed in range(len(values))]
        bars = ax.bar(places, values, 0.36, color=colour, label=name)
        ax.bar_label(bars, fmt="%.1f", fontsize=8)
    ax.axhline(ACCURACY, color="black", linestyle=":", linewidth=0.9)
    ax.set_ylim(min(90.0, *(min(pair) - 5 for pair in accuracies)), 101)
    ax.set_xticks(range(len(accuracies)))
    common.plain_axes(ax, "digits read that it never saw, %", "split")
    ax.legend(fontsize=8, frameon=False, loc="lower right")

    images, shown = data.test
    seen = ours.answers(images)
    wrong = (seen != shown).nonzero().flatten()[:6].tolist()
    for i in range(6):
        ax = drawing.add_subplot(grid[1, i])
        if i < len(wrong):
            title = f"read {int(seen[wrong[i]])}, it is a {int(shown[wrong[i]])}"
            common.picture(ax, images[wrong[i], 0], title, cmap="gray_r")
        else:
            ax.set_axis_off()
    drawing.suptitle("The course's CNN on handwritten digits, by our kernels and by torch's", fontsize=12,
                     fontweight="bold")  # fmt: skip
    return drawing


def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Train with each seed in both libraries, and compare losses in float64."""
    steps, first = arguments.steps, arguments.seed
    seeds = range(first, first + arguments.seeds)
    accuracies, pairs = [], []
    shown = common.table("split", "convbackprop", "torch", "seconds", "torch's")
    for seed in seeds:
        data = digits(seed, torch.float32)
        images, labels = data.test
        pair = (train("convbackprop", data, steps, seed, bar), train("torch", data, steps, seed, bar))
        ours, theirs = (100 * float((one.answers(images) == labels).float().mean()) for one in pair)
        accuracies.append((ours, theirs))
        pairs.append(pair)
        shown.add_row(str(seed), f"{ours:.2f} %", f"{theirs:.2f} %", *(f"{one.seconds:.1f}" for one in pair))
    means = [sum(values) / len(values) for values in zip(*accuracies, strict=True)]
    shown.add_row("mean", *(f"{mean:.2f} %" for mean in means), "", "")

    count = min(COMPARED, steps)
    data = digits(first, torch.float64)
    wide = tuple(train(name, data, count, first, bar, planned=steps).losses for name in ("convbackprop", "torch"))
    apart = float(((wide[0] - wide[1]).abs() / wide[1]).max())
    narrow = [one.losses[:count] for one in pairs[0]]
    apart32 = float(((narrow[0] - narrow[1]).abs() / narrow[1]).max())
    return common.Outcome(
        numbers={
            "steps": steps,
            "batch": BATCH,
            "rate": RATE,
            "accuracies": accuracies,
            "means": means,
            "losses_apart_float64": apart,
            "losses_apart_float32": apart32,
            "compared_steps": count,
            "seconds": [[one.seconds for one in pair] for pair in pairs],
        },
        tables=[shown],
        claims=[
            common.Claim(f"it reads at least {ACCURACY:g} % of digits that it never saw", f"{means[0]:.2f} %",
                         means[0] >= ACCURACY),
            common.Claim(f"and as many as torch's, within {APART:g} point", f"{means[1]:.2f} %",
                         abs(means[0] - means[1]) <= APART),
            common.Claim(f"in float64 the losses of {count} steps are torch's to {LOSSES:g}",
                         f"{apart:.1e} apart at most, relatively; in float32 {apart32:.1e}", apart <= LOSSES),
        ],
        drawing=draw(pairs[0], (wide[0], wide[1]), digits(first, torch.float32), accuracies),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "basic_cnn")
    parser.add_argument("--steps", type=common.positive, default=800, help=f"of SGD, {BATCH} digits each; default: "
                        "%(default)s")  # fmt: skip
    parser.add_argument("--seeds", type=common.positive, default=3, metavar="N", help="how many, from --seed on; "
                        "default: %(default)s")  # fmt: skip
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
