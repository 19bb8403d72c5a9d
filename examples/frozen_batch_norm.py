"""A residual block with frozen batch norms, as it is fine-tuned: a convolution and what follows it as one layer.

    torch's steps:  o' = relu(bn(conv(relu(bn(conv(o))))) + o)
    fused:          o' = phi(a2 (w2 * phi(a1 (w1 * o) + b1)) + b2 + o)     two kernels, phi = relu

(K. He et al., "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385, figure 2.) Where a network is
fine-tuned on few images, its batch norms keep the statistics that they have: each is then a factor a and a shift b of
its channel. A convolution's kernel, which holds its sum in a register, multiplies, adds and cuts it off before it is
stored; in steps each of these reads and writes all of the features once more.

Both blocks begin with the same parameters and are fitted to the output of another one by the same steps. Counted are
the bytes of all tensors that PyTorch's operators take and give in a training step, and those that autograd keeps.
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from resnet_block import BlockA, processor_time, saved_bytes
from rich.progress import Progress
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import convbackprop.torch as cbt
from convbackprop.bench import timing

Tensor = torch.Tensor

CHANNELS, SIZE = 32, 32
CLOSE, ALIKE = 1e-10, 1e-3  # of gradients in float64, and of the fitted losses in float32
MOVED, FITTED = 0.7, 0.5  # at most these shares are left: of the bytes, and of the loss


class Fused(nn.Module):
    """A block A with frozen batch norms, of two layers; the weights are the block's own."""

    def __init__(self, block: BlockA) -> None:
        super().__init__()
        self.conv1 = cbt.nn.fuse_frozen_batch_norm(block.conv1, block.bn1, activation="relu")
        self.conv2 = cbt.nn.fuse_frozen_batch_norm(block.conv2, block.bn2, activation="relu")

    def forward(self, o: Tensor) -> Tensor:
        """Return o', (N, C, H, W) in and out."""
        return self.conv2(self.conv1(o), o)  # type: ignore[no-any-return]


def frozen(seed: int, dtype: torch.dtype = torch.float32) -> BlockA:
    """Return a block of torch's layers whose batch norms have seen some features, and see no more."""
    torch.manual_seed(seed)
    block = BlockA(CHANNELS, nn.Conv2d).to(dtype)
    for norm in (block.bn1, block.bn2):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    for _ in range(20):
        block(torch.randn(4, CHANNELS, 12, 12, dtype=dtype))
    block.eval()
    for norm in (block.bn1, block.bn2):
        norm.requires_grad_(False)
    return block


def pair(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return a block in torch's steps, and another one with the same numbers, fused."""
    steps = frozen(seed, dtype)
    return {"steps": steps, "fused": Fused(copy.deepcopy(steps))}


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained: the two filters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def fitted(model: nn.Module, optimizer: torch.optim.Optimizer, o: Tensor, target: nn.Module) -> float:
    """Bring a block's weights a step closer to what another one gives; return the mean squared error before it."""
    with torch.no_grad():
        wanted = target(o)
    optimizer.zero_grad()
    loss = (model(o) - wanted).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


# -- what is measured ------------------------------------------------------------------------------------------------
class Traffic(TorchDispatchMode):
    """Counts the bytes of all tensors that operators take and give."""

    moved = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operator, and count."""
        result = operator(*args, **(kwargs or {}))
        if not operator.is_view:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
            self.moved += sum(tensor.nbytes for tensor in tensors)
        return result


def gradients_apart(seed: int) -> float:
    """Return how far gradients are from those of torch's own layers, in float64, relative to their largest."""
    models = pair(seed, torch.float64)
    o = torch.randn(2, CHANNELS, 9, 7, dtype=torch.float64)
    found = []
    for model in models.values():
        own = o.clone().requires_grad_()
        found.append(torch.autograd.grad(model(own).square().sum(), [own, *weights(model)]))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True))


def step_of(model: nn.Module, o: Tensor) -> None:
    """Carry out the forward and the backward pass of a block inside a network."""
    o = o.detach().requires_grad_()
    given = model(o)
    torch.autograd.grad(given, [o, *weights(model)], torch.ones_like(given))


def moved_bytes(model: nn.Module, o: Tensor) -> int:
    """Return the bytes that operators take and give in a training step."""
    with Traffic() as traffic:
        step_of(model, o)
    return traffic.moved


def draw(losses: dict[str, list[float]], rows: dict[str, dict[str, float]]) -> Any:
    """Return the figure: the losses, one over the other, and the bytes of a training step."""
    drawing = common.figure(10, 4)
    left, right = drawing.subplots(1, 2)
    for name, colour, width in (("steps", common.TORCH, 5), ("fused", common.OURS, 1.5)):
        left.plot(losses[name], color=colour, linewidth=width, label=NAMES[name])
    left.set_yscale("log")
    left.legend(fontsize=8, frameon=False)
    common.plain_axes(left, "fitted to another block", "step", "mean squared error")
    for place, (name, colour) in enumerate((("steps", common.TORCH), ("fused", common.OURS))):
        for offset, key in ((0, "moved"), (3, "kept")):
            height = rows[name][key] / 1e6
            right.bar(place + offset, height, color=colour)
            right.annotate(f"{height:.0f}", (place + offset, height), (0, 3), textcoords="offset points", fontsize=8,
                           ha="center")  # fmt: skip
    right.set_xticks([0.5, 3.5], ["operators take and give", "kept for the backward pass"])
    common.plain_axes(right, "bytes of a training step", "", "MB")
    drawing.suptitle("A residual block with frozen batch norms, fused", fontsize=12, fontweight="bold")
    return drawing


NAMES = {"steps": "torch's layers, step by step", "fused": "ours, fused"}


def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Fit both blocks, and count what a training step of each moves."""
    target, models = frozen(arguments.seed + 1), pair(arguments.seed)
    o = torch.randn(arguments.batch, CHANNELS, SIZE, SIZE)
    calls = {name: functools.partial(step_of, model, o) for name, model in models.items()}
    times = timing.alternate(calls, processor_time, arguments.seconds, least=3)
    rows = {
        name: {"moved": moved_bytes(model, o), "kept": saved_bytes(model, o), "seconds": times[name].median}
        for name, model in models.items()
    }
    losses: dict[str, list[float]] = {name: [] for name in models}
    optimizers = {name: torch.optim.Adam(weights(model), lr=3e-3) for name, model in models.items()}
    for _ in common.steps_of(bar, "fitting", arguments.steps):
        features = torch.randn_like(o)
        for name, model in models.items():
            losses[name].append(fitted(model, optimizers[name], features, target))
    apart = gradients_apart(arguments.seed)
    first, last = losses["fused"][0], losses["fused"][-1]
    alike = max(abs(a - b) / b for a, b in zip(losses["fused"], losses["steps"], strict=True))
    moved = rows["fused"]["moved"] / rows["steps"]["moved"]
    shown = common.table("block", "operators take and give", "kept for backward", "processor time of a step")
    for name, row in rows.items():
        shown.add_row(NAMES[name], f"{row['moved'] / 1e6:.1f} MB", f"{row['kept'] / 1e6:.1f} MB",
                      f"{1e3 * row['seconds']:.0f} ms")  # fmt: skip
    return common.Outcome(
        numbers={"batch": arguments.batch, "channels": CHANNELS, "size": SIZE, "rows": rows, "losses": losses,
                 "apart_from_torch": apart, "losses_apart": alike},
        tables=[shown],
        claims=[
            common.Claim(f"in float64 all gradients are those of torch's layers to {CLOSE:g}", f"{apart:.1e} at worst",
                         apart <= CLOSE),
            common.Claim(f"at every step of the fit both losses are the same to {ALIKE:g}", f"{alike:.1e} at worst",
                         alike <= ALIKE),
            common.Claim(f"the fit leaves at most {FITTED:.0%} of the loss", f"{first:.3g} to {last:.3g}",
                         last <= FITTED * first),
            common.Claim(f"at most {MOVED:.0%} of the bytes are left", f"{moved:.0%}", moved <= MOVED),
        ],
        drawing=draw(losses, rows),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "frozen_batch_norm", threads=2)
    parser.add_argument("--batch", type=common.positive, default=4, metavar="N",
                        help=f"images of {SIZE} x {SIZE}; default: %(default)s")  # fmt: skip
    parser.add_argument("--steps", type=common.positive, default=60, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=6.0, metavar="S", help="of timing; default: %(default)s")
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
