"""The linear scaling rule: a batch k times as large wants a learning rate k times as large, and a warm-up.

A step along the mean gradient of k batches, k times as long, is about what k steps along their gradients are, if these
gradients hardly change meanwhile. In the first steps they do change, and fast: there the large rate is reached by and
by. (P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, arXiv:1706.02677, sections 2.1
and 2.2: the rate grows from that of the small batch in equal steps.)

A small network of our layers tells the directions of gratings in noise, trained in four ways on as many images: with
small batches; with batches k times as large at the same rate, at k times the rate, and at k times the rate with a
warm-up. The first has the most steps, and is what the others are held against. Each way is tried from three beginnings,
whose weights are larger than is right for ReLUs: so the beginning is as steep as that of a deep network.
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

import convbackprop.torch as cbt

Tensor = torch.Tensor

BATCH, RATE, MOMENTUM = 16, 0.004, 0.9
BEGINNINGS, GAIN = 3, 1.75
TRAIN, TEST, SIZE, DIRECTIONS, NOISE = 4096, 2048, 8, 6, 0.7
WARM_UP = 0.25  # of the training
NEAR, BEHIND = 2.0, 5.0  # points of accuracy


def gratings(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images of gratings in noise, (count, 1, SIZE, SIZE), and which way each runs."""
    generator = torch.Generator().manual_seed(seed)
    way = torch.randint(DIRECTIONS, (count,), generator=generator)
    angle, phase = math.pi / DIRECTIONS * way, 2 * math.pi * torch.rand(count, generator=generator)
    length = 3 + 2 * torch.rand(count, generator=generator)
    row, col = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    along = torch.cos(angle)[:, None, None] * col + torch.sin(angle)[:, None, None] * row
    waves = torch.cos(2 * math.pi / length[:, None, None] * along + phase[:, None, None])
    return (waves + NOISE * torch.randn(waves.shape, generator=generator))[:, None], way


def network(seed: int) -> nn.Sequential:
    """Return the network, which begins the same way for the same seed."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        cbt.nn.Conv2d(1, 8, 3, padding=1, activation="relu"),
        cbt.nn.Conv2d(8, 16, 3, stride=2, padding=1, activation="relu"),
        cbt.nn.Conv2d(16, 32, 3, stride=2, padding=1, activation="relu"),
        cbt.nn.Conv2d(32, DIRECTIONS, 2),
        nn.Flatten(),
    )
    layers = [part for part in model if isinstance(part, cbt.nn.Conv2d)]
    for part in layers:  # as K. He et al. do for ReLU, arXiv:1502.01852
        nn.init.kaiming_normal_(part.weight)
        part.weight.data *= GAIN
        nn.init.zeros_(part.get_parameter("bias"))
    return model


@dataclass(frozen=True)
class Plan:
    """How a network is trained: images a step, the rate that is reached, and the share of training until then."""

    name: str
    batch: int
    rate: float
    warm_up: float = 0.0

    def rate_at(self, seen: int, images: int) -> float:
        """Return the learning rate after `seen` of all images."""
        done = seen / images
        return RATE + (self.rate - RATE) * min(1.0, done / self.warm_up) if self.warm_up else self.rate


def plans(k: int) -> tuple[Plan, ...]:
    """Return the four ways of training."""
    return (
        Plan("small batches", BATCH, RATE),
        Plan(f"batch x {k}, same rate", k * BATCH, RATE),
        Plan(f"batch x {k}, rate x {k}", k * BATCH, k * RATE),
        Plan(f"batch x {k}, rate x {k}, warm-up", k * BATCH, k * RATE, WARM_UP),
    )


def train(plan: Plan, images: int, seed: int, bar: Progress) -> tuple[nn.Sequential, list[float]]:
    """Train on so many images, and return the network and the loss of each step."""
    x, way = gratings(TRAIN, seed)
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in common.steps_of(bar, plan.name, images // plan.batch):
        optimizer.param_groups[0]["lr"] = plan.rate_at(step * plan.batch, images)
        chosen = torch.randint(TRAIN, (plan.batch,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[chosen]), way[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses


def accuracy(model: nn.Sequential, seed: int) -> float:
    """Return the percentage of gratings that it never saw whose direction it tells."""
    x, way = gratings(TEST, seed + 1)
    with torch.no_grad():
        return 100 * float((model(x).argmax(dim=1) == way).double().mean())


def draw(rows: list[dict[str, Any]], k: int, images: int) -> Any:
    """Return the figure: losses and learning rates against images seen."""
    drawing = common.figure(9.6, 3.9)
    losses, rates = drawing.subplots(1, 2, width_ratios=(2, 1))
    for row, plan, colour in zip(rows, plans(k), ("#888888", *common.COLOURS[1:3], common.OURS), strict=True):
        width = max(1, len(row["losses"]) // 40)
        mean = torch.tensor(row["losses"]).unfold(0, width, width).mean(dim=1)
        seen = [(i + 0.5) * width * plan.batch / 1e3 for i in range(len(mean))]
        losses.semilogy(seen, mean.clamp(min=1e-4), color=colour, label=f"{plan.name}: {row['accuracy']:.1f} %")
        steps = range(len(row["losses"]) + 1)
        rates.plot([step * plan.batch / 1e3 for step in steps],
                   [plan.rate_at(step * plan.batch, images) for step in steps], color=colour)  # fmt: skip
    losses.legend(fontsize=8, frameon=False)
    common.plain_axes(losses, "loss, and accuracy at the end", "thousand images")
    common.plain_axes(rates, "learning rate", "thousand images")
    return drawing


def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Train four times, and compare."""
    rows: list[dict[str, Any]] = []
    for plan in plans(arguments.times):
        seeds = range(arguments.seed, arguments.seed + BEGINNINGS)
        trained = [train(plan, arguments.images, seed, bar) for seed in seeds]
        accuracies = [accuracy(model, seed) for (model, _), seed in zip(trained, seeds, strict=True)]
        losses = torch.tensor([losses for _, losses in trained]).mean(dim=0)
        rows.append({
            "plan": plan.name, "batch": plan.batch, "rate": plan.rate, "steps": len(losses), "losses": losses.tolist(),
            "loss": float(losses[-max(1, len(losses) // 10) :].mean()), "accuracies": accuracies,
            "accuracy": sum(accuracies) / BEGINNINGS,
        })  # fmt: skip
    shown = common.table("training", "steps", "loss at the end", "accuracy", "of each beginning")
    for row in rows:
        shown.add_row(row["plan"], str(row["steps"]), f"{row['loss']:.4f}", f"{row['accuracy']:.2f} %",
                      " ".join(f"{each:.1f}" for each in row["accuracies"]))  # fmt: skip
    small, same, scaled, warm = (row["accuracy"] for row in rows)
    return common.Outcome(
        numbers={"times": arguments.times, "images": arguments.images, "rows": rows},
        tables=[shown],
        claims=[
            common.Claim(f"at the same rate large batches stay {BEHIND:g} points behind small ones",
                         f"{small - same:.2f} points", small - same >= BEHIND),
            common.Claim(f"at {arguments.times} times the rate and with a warm-up they come within {NEAR:g} points",
                         f"{small - warm:.2f} points", small - warm <= NEAR),
            common.Claim("and nearer than without", f"{small - scaled:.2f} points without", warm > scaled),
        ],
        drawing=draw(rows, arguments.times, arguments.images),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "linear_scaling")
    parser.add_argument("--times", type=common.positive, default=16, metavar="K", help=f"batches of K times {BATCH} "
                        "images; default: %(default)s")  # fmt: skip
    parser.add_argument("--images", type=common.positive, default=8 * TRAIN, metavar="N", help="that each training "
                        "sees; default: %(default)s")  # fmt: skip
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
