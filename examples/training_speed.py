"""How long a training step takes with our layers and with torch's: the course's CNN, and the level of a U-Net.

Both libraries train the same networks, on the same batches from the same beginning, with torch's optimizers and all
that is around a convolution. A few steps of one and of the other take turns, so that whatever else the machine does
meets both alike; the ratio is the median of the turns' ratios. Kernels are compiled before, in steps that do not count.

Of each time there are two: the clock's, and the processors' own, which what else the machine does changes least.
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import basic_cnn
import torch
import unet_level
from rich.progress import Progress
from torch import nn

import convbackprop.torch as cbt

Tensor = torch.Tensor
Step = Callable[[], Tensor]  # returns the loss

LIBRARIES = ("convbackprop", "torch")
RATIO = 2.5  # at most, of the processors' time
TURN = 0.05  # seconds that the steps of a library take until it is the other one's turn, about


def cnn_steps(library: str, seed: int) -> Step:
    """Return the training step of the course's CNN on digits."""
    torch.manual_seed(seed)
    images, shown = basic_cnn.digits(seed, torch.float32).train
    model = basic_cnn.cnn(library)
    optimizer = torch.optim.SGD(model.parameters(), basic_cnn.RATE, basic_cnn.MOMENTUM, nesterov=True)
    generator = torch.Generator().manual_seed(seed)

    def step() -> Tensor:
        batch = torch.randint(len(images), (basic_cnn.BATCH,), generator=generator)
        return updated(optimizer, nn.functional.cross_entropy(model(images[batch]), shown[batch]))

    return step


def unet_steps(library: str, seed: int, channels: int = 16) -> Step:
    """Return the training step of the U-Net's level on noisy crops."""
    torch.manual_seed(seed)
    model: nn.Module = unet_level.UNetLevel(channels)
    if library == "convbackprop":
        model = cbt.nn.from_torch(model)[0]
    optimizer = torch.optim.Adam(model.parameters(), unet_level.RATE)
    generator = torch.Generator().manual_seed(seed)
    photographs = [common.grey(name) for name in unet_level.PHOTOGRAPHS]

    def step() -> Tensor:
        clean = common.crops(photographs, unet_level.BATCH, unet_level.CROP, generator)
        return updated(optimizer, (model(unet_level.noisy(clean, generator)) - clean).square().mean())

    return step


def updated(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Take a step down the loss, and return it."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


NETS: dict[str, Callable[[str, int], Step]] = {"basic_cnn": cnn_steps, "unet_level": unet_steps}


def clocks(step: Step, count: int) -> tuple[float, float]:
    """Return the seconds of a step by the clock, and those of the processors together: the mean of so many."""
    start, processors = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count, (time.process_time() - processors) / count


def in_turns(steps: Sequence[Step], turns: Iterable[int]) -> list[list[tuple[float, float]]]:
    """Return what `clocks` finds, for each turn and in it for each library."""
    losses = [[float(step()) for _ in range(3)] for step in steps]
    assert abs(losses[0][-1] - losses[1][-1]) < 1e-3 * abs(losses[1][-1]), "they should learn the same"
    count = max(1, round(TURN / max(clocks(step, 1)[1] for step in steps)))
    return [[clocks(step, count) for step in steps] for _ in turns]


def draw(found: dict[str, dict[str, Any]]) -> Any:
    """Return the figure: the ratios of all turns, a column for each network."""
    drawing = common.figure(6, 4)
    ax = drawing.add_subplot()
    for i, (name, row) in enumerate(found.items()):
        places = [i + 0.3 * (turn / len(row["ratios"]) - 0.5) for turn in range(len(row["ratios"]))]
        ax.plot(places, row["ratios"], ".", color=common.OURS, markersize=5)
        ax.hlines(row["ratio"], i - 0.25, i + 0.25, color=common.OURS)
        ax.annotate(f"{row['ratio']:.2f}", (i + 0.27, row["ratio"]), fontsize=9, va="center")
        ax.text(i, -0.12, name, ha="center", va="top", fontsize=9)
    ax.axhline(1, color=common.TORCH, linewidth=0.9)
    ax.axhline(RATIO, color="black", linestyle=":", linewidth=0.9)
    common.plain_axes(ax, "processor time of a training step, torch's being 1")
    ax.set_xlim(-0.5, len(found) - 0.3)
    ax.set_ylim(bottom=0)
    ax.set_xticks([])
    return drawing


def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Time both libraries on each network."""
    shown = common.table("net", "convbackprop", "torch", "ratio", "processors'", "torch's", "ratio")
    found: dict[str, dict[str, Any]] = {}
    for name, steps_of in NETS.items():
        steps = [steps_of(library, arguments.seed) for library in LIBRARIES]
        turns = in_turns(steps, common.steps_of(bar, name, arguments.turns))
        ours, theirs = ([statistics.median(turn[i][clock] for turn in turns) for clock in (0, 1)] for i in (0, 1))
        wall, processors = ([turn[0][clock] / turn[1][clock] for turn in turns] for clock in (0, 1))
        ratios = statistics.median(wall), statistics.median(processors)
        found[name] = {
            "seconds": [ours[0], theirs[0]], "ratio_of_clock": ratios[0],
            "processor_seconds": [ours[1], theirs[1]], "ratio": ratios[1], "ratios": processors,
        }  # fmt: skip
        shown.add_row(name, *(text for clock in (0, 1) for text in (
            f"{1e3 * ours[clock]:.2f} ms", f"{1e3 * theirs[clock]:.2f} ms", f"{ratios[clock]:.2f}")))  # fmt: skip
    return common.Outcome(
        numbers={"nets": found},
        tables=[shown],
        claims=[
            common.Claim(f"a step of {name} takes at most {RATIO:g} times torch's processor time",
                         f"{row['ratio']:.2f} times", row["ratio"] <= RATIO)
            for name, row in found.items()
        ],
        drawing=draw(found),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "training_speed")
    parser.add_argument("--turns", type=common.positive, default=40, metavar="N", help="of each library; default: "
                        "%(default)s")  # fmt: skip
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
