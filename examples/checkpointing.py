"""Gradient checkpointing: memory for time, and how many checkpoints are best.

    o -> conv, ReLU -> conv, ReLU -> ... -> o'        a stack of L layers, cut into k segments

Backpropagation needs what each layer took in. Without checkpoints all L feature maps wait for it; with a checkpoint at
the beginning of each segment only k do, and a segment's own L/k are computed anew when its turn comes. At the peak
about k + L/k of them are alive, least near k = sqrt(L), for one more forward pass
(T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174).

Measured are the bytes of the tensors that are alive at once during a training step, parameters and their gradients left
out, and the processor time of the step. (`resnet_block.py` has a checkpoint around each of its blocks, and measures the
process's memory.)
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from resnet_block import processor_time
from rich.progress import Progress
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint_sequential

import convbackprop.torch as cbt
from convbackprop.bench import timing

Tensor = torch.Tensor

CHANNELS, SIZE = 16, 48
PEAK, TIME = 0.55, 1.6  # at most these multiples of memory and time are left with the best number of segments


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside, and alive at once."""

    def __init__(self, but: Sequence[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._left_out = [StorageWeakRef(tensor.untyped_storage()) for tensor in but]
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Compute something, and count what is alive then."""
        results = function(*arguments, **(named or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._sizes[StorageWeakRef(storage)] = storage.nbytes()
        self._sizes = {ref: size for ref, size in self._sizes.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for ref, size in self._sizes.items() if ref not in self._left_out))
        return results


def stack(layers: int) -> nn.Sequential:
    """Return the layers, which leave size and channels as they are."""
    made = [cbt.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, activation="relu") for _ in range(layers)]
    for layer in made:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*made)


def step_of(model: nn.Sequential, segments: int, o: Tensor) -> None:
    """Carry out the forward and the backward pass of R = mean of o'^2 / 2; 0 segments: no checkpoint."""
    out = checkpoint_sequential(model, segments, o, use_reentrant=False) if segments else model(o)
    (out.square().mean() / 2).backward()


def peak_of(model: nn.Sequential, segments: int, o: Tensor) -> int:
    """Return how many bytes a training step has alive at once, without parameters and their gradients."""
    parameters = [*model.parameters()]
    zeros = [torch.zeros_like(parameter) for parameter in parameters]
    for parameter, zero in zip(parameters, zeros, strict=True):  # their gradients' memory is there beforehand
        parameter.grad = zero
    with Alive([o, *parameters, *zeros]) as alive:
        step_of(model, segments, o)
    return alive.peak


def gradients(model: nn.Sequential, segments: int, o: Tensor) -> list[Tensor]:
    """Return the gradients of all parameters after one step."""
    model.zero_grad()
    step_of(model, segments, o)
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def draw(rows: list[dict[str, Any]], layers: int, one: int) -> Any:
    """Return the figure: the peak against the number of segments, and memory against time."""
    drawing = common.figure(9.6, 3.9)
    by_segments, by_time = drawing.subplots(1, 2)
    cut = [row for row in rows if row["segments"]]
    segments, peaks = [row["segments"] for row in cut], [row["peak"] / 1e6 for row in cut]
    curve = [1 + i / 50 * (layers - 1) for i in range(51)]
    expected = [(k + layers / k) * one / 1e6 for k in curve]
    by_segments.plot(curve, expected, color="#999999", linestyle=":", label="(k + L/k) feature maps")
    by_segments.axhline(rows[0]["peak"] / 1e6, color=common.COLOURS[1], label="no checkpoints")
    by_segments.plot(segments, peaks, marker="s", color=common.OURS, label="measured")
    by_segments.axvline(math.sqrt(layers), color="#cccccc", linewidth=0.9)
    by_segments.set_xscale("log", base=2)
    by_segments.set_xticks(segments, map(str, segments))
    by_segments.legend(fontsize=8, frameon=False)
    common.plain_axes(by_segments, f"alive at once; {layers} layers", "segments k", "MB")
    for i, row in enumerate(rows):
        colour = common.OURS if row["segments"] else common.COLOURS[1]
        place = 1e3 * row["seconds"], row["peak"] / 1e6
        by_time.plot(*place, marker="s" if row["segments"] else "o", color=colour)
        name = f"k = {row['segments']}" if row["segments"] else "no checkpoints"
        by_time.annotate(name, place, (6, -11 if i % 2 else 5),
                         textcoords="offset points", fontsize=8, color=colour)  # fmt: skip
    by_time.margins(x=0.25)
    for axes in (by_segments, by_time):
        axes.set_ylim(0, 1.12e-6 * max(row["peak"] for row in rows))
    common.plain_axes(by_time, "memory against time of a step", "processor time, ms", "MB")
    return drawing


def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Measure a stack with each number of segments."""
    torch.manual_seed(arguments.seed)
    layers, o = arguments.layers, torch.randn(arguments.batch, CHANNELS, SIZE, SIZE)
    model = stack(layers)
    tried = [0, *(2**i for i in range(layers.bit_length()) if 2**i <= layers)]
    steps = {str(segments): functools.partial(step_of, model, segments, o) for segments in tried}
    times = timing.alternate(steps, processor_time, arguments.seconds, least=3)
    kept = gradients(model, 0, o)
    rows, same = [], True
    for i in common.steps_of(bar, "measuring", len(tried)):
        same &= all(map(torch.equal, kept, gradients(model, tried[i], o)))
        rows.append({"segments": tried[i], "peak": peak_of(model, tried[i], o), "seconds": times[str(tried[i])].median})
    best = min(rows, key=lambda row: row["peak"])
    one = o.untyped_storage().nbytes()
    shown = common.table("segments", "alive at once", "in feature maps", "processor time of a step")
    for row in rows:
        shown.add_row(str(row["segments"] or "no checkpoints"), f"{row['peak'] / 1e6:.1f} MB",
                      f"{row['peak'] / one:.1f}", f"{1e3 * row['seconds']:.0f} ms")  # fmt: skip
    share, longer = best["peak"] / rows[0]["peak"], best["seconds"] / rows[0]["seconds"]
    root = math.sqrt(layers)
    return common.Outcome(
        numbers={"layers": layers, "feature_map": one, "rows": rows, "best": best["segments"], "same_gradients": same},
        tables=[shown],
        claims=[
            common.Claim("the gradients are the same with checkpoints, bit by bit",
                         "they are" if same else "they are not", same),
            common.Claim(f"least memory is alive with about sqrt({layers}) segments", f"with {best['segments']}",
                         root / 2 < best["segments"] < 2 * root),
            common.Claim(f"at most {PEAK:.0%} of what is alive without checkpoints", f"{share:.0%}", share <= PEAK),
            common.Claim(f"for at most {TIME:g} times the time", f"{longer:.2f} times", longer <= TIME),
        ],
        drawing=draw(rows, layers, one),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "checkpointing", threads=2)
    parser.add_argument("--layers", type=common.positive, default=32, metavar="L", help="default: %(default)s")
    parser.add_argument("--batch", type=common.positive, default=4, metavar="N", help=f"images of {SIZE} x {SIZE}; "
                        "default: %(default)s")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="of timing; default: %(default)s")
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
