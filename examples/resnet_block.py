"""Residual blocks with batch normalization, and what gradient checkpointing saves of their memory.

    block A:  o' = relu(bn(conv(relu(bn(conv(o))))) + o)                     the same size in and out
    block B:  o' = relu(bn(conv(relu(bn(conv(o))))) + bn(conv_1x1(o)))       half the size, twice the channels

(K. He et al., "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385, figure 2 and projection B.)
Backpropagation needs what each layer took in and what each ReLU gave: the forward pass keeps 4 sets of features of a
block A and 5 of a block B. With torch.utils.checkpoint a block keeps what it took in alone, and computes the rest anew
when its turn comes.

Measured are the bytes that autograd keeps from the forward pass to the backward pass (each storage once, parameters
left out), the peak of the process's memory during a training step, in a process of its own, and its processor time.
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
import contextlib
import copy
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.progress import Progress
from torch import nn
from torch.utils.checkpoint import checkpoint

import convbackprop.torch as cbt
from convbackprop.bench import timing

Tensor = torch.Tensor

Layer = Callable[..., nn.Module]  # nn.Conv2d or ours

CHANNELS, SIZE = 16, 64  # of the images that come in
CLOSE = 1e-10
SAVED, PEAK = 0.5, 0.6  # at most these shares are left by checkpointing


class BlockA(nn.Module):
    """A residual block that leaves the size as it is."""

    def __init__(self, channels: int, conv: Layer = cbt.nn.Conv2d) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, o: Tensor) -> Tensor:
        """Return o', (N, C, H, W) in and out."""
        inner = torch.relu(self.bn1(self.conv1(o)))
        return torch.relu(self.bn2(self.conv2(inner)) + o)


class BlockB(nn.Module):
    """A residual block that halves the size and doubles the channels."""

    def __init__(self, channels: int, conv: Layer = cbt.nn.Conv2d) -> None:
        super().__init__()
        wide = 2 * channels
        self.conv1, self.bn1 = conv(channels, wide, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wide)
        self.conv2, self.bn2 = conv(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
        self.short, self.bn3 = conv(channels, wide, 1, stride=2, bias=False), nn.BatchNorm2d(wide)

    def forward(self, o: Tensor) -> Tensor:
        """Return o', (N, C, H, W) in and (N, 2C, H/2, W/2) out."""
        inner = torch.relu(self.bn1(self.conv1(o)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.bn3(self.short(o)))


class Blocks(nn.Module):
    """`count` blocks A, a block B, and as many blocks A again; a checkpoint around each of them, or none."""

    def __init__(self, count: int, checkpointed: bool, conv: Layer = cbt.nn.Conv2d) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        first = [BlockA(CHANNELS, conv) for _ in range(count)]
        second = [BlockA(2 * CHANNELS, conv) for _ in range(count)]
        self.blocks = nn.ModuleList([*first, BlockB(CHANNELS, conv), *second])

    def forward(self, o: Tensor) -> Tensor:
        """Return o', (N, C, H, W) in and (N, 2C, H/2, W/2) out."""
        for block in self.blocks:
            if self.checkpointed:
                once = functools.partial(_contexts, block)
                o = checkpoint(block, o, use_reentrant=False, context_fn=once)
            else:
                o = block(o)
        return o


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """Return in what contexts a block is computed first, and anew."""
    return contextlib.nullcontext(), _without_statistics(block)


@contextlib.contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Leave running means and variances as they are: the first computation has counted this batch already."""
    parts = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [(part.momentum, part.num_batches_tracked.clone()) for part in parts]  # type: ignore[union-attr]
    for part in parts:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, (momentum, counted) in zip(parts, before, strict=True):
            part.momentum = momentum
            part.num_batches_tracked.copy_(counted)  # type: ignore[union-attr]


def step_of(model: nn.Module, o: Tensor) -> None:
    """Carry out the forward and the backward pass of R = mean of o'^2 / 2."""
    (model(o).square().mean() / 2).backward()


# -- what is measured ------------------------------------------------------------------------------------------------
def saved_bytes(model: nn.Module, o: Tensor) -> int:
    """Return how many bytes autograd keeps for the backward pass, each storage counted once, without parameters."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(o)  # while this graph lives, no storage that it keeps is freed
    total = sum(found.values())
    del out
    return total


def prepare(count: int, checkpointed: bool, batch: int, seed: int) -> Callable[[], None]:
    """Return a training step, with its kernels loaded; for `common.peak_growth`."""
    torch.manual_seed(seed)
    model = Blocks(count, checkpointed)
    step_of(model, torch.randn(1, CHANNELS, 8, 8))  # of another size: it leaves no large memory to be used again
    for parameter in model.parameters():
        parameter.grad = None
    return functools.partial(step_of, model, torch.randn(batch, CHANNELS, SIZE, SIZE))


def gradients_apart(seed: int) -> float:
    """Return how far gradients are from those of torch's own layers, in float64, relative to their largest."""
    torch.manual_seed(seed)
    theirs = Blocks(1, False, nn.Conv2d).double()
    ours = Blocks(1, False).double()
    ours.load_state_dict(theirs.state_dict())
    o = torch.randn(2, CHANNELS, 12, 10, dtype=torch.float64)
    inputs = [o.clone().requires_grad_(), o.clone().requires_grad_()]
    for model, tensor in zip((ours, theirs), inputs, strict=True):
        step_of(model, tensor)
    pairs = [(a.grad, b.grad) for a, b in zip((inputs[0], *ours.parameters()), (inputs[1], *theirs.parameters()),
                                              strict=True)]  # fmt: skip
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs if a is not None and b is not None)


def same_training(seed: int, steps: int = 3) -> bool:
    """Return whether some steps leave the same parameters and statistics with checkpoints and without, bit by bit."""
    torch.manual_seed(seed)
    kept = Blocks(1, False)
    anew = copy.deepcopy(kept)
    anew.checkpointed = True
    for model in (kept, anew):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            step_of(model, torch.randn(2, CHANNELS, 8, 8, generator=generator))
            optimizer.step()
    other = anew.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in kept.state_dict().items())


def processor_time(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes on all processors together, which depends less on what else they do."""
    start = time.process_time()
    call()
    return time.process_time() - start


def draw(rows: list[dict[str, Any]]) -> Any:
    """Return the figure: saved bytes, the peak, and the time of a step, with checkpoints and without."""
    drawing = common.figure(12, 4.2)
    axes = drawing.subplots(1, 3)
    for ax, key, scale, title, unit in (
        (axes[0], "saved", 1e6, "kept from forward to backward", "MB"),
        (axes[1], "peak", 1e6, "peak of a training step", "MB"),
        (axes[2], "seconds", 1e-3, "processor time of a training step", "ms"),
    ):
        for checkpointed, name, colour, marker in (
            (False, "all is kept", common.COLOURS[1], "o"),
            (True, "a checkpoint a block", common.OURS, "s"),
        ):
            above = 6 if checkpointed == (key == "seconds") else -13  # numbers stand outside of the two lines
            chosen = [row for row in rows if row["checkpointed"] == checkpointed]
            places, heights = [row["blocks"] for row in chosen], [row[key] / scale for row in chosen]
            ax.plot(places, heights, marker=marker, color=colour, label=name)
            for place, height in zip(places, heights, strict=True):
                ax.annotate(f"{height:.0f}", (place, height), (0, above), textcoords="offset points", fontsize=8,
                            ha="center", color=colour)  # fmt: skip
        ax.margins(y=0.12)
        ax.set_ylim(0, None)
        ax.set_xticks(places)
        common.plain_axes(ax, title, "residual blocks", unit)
    axes[0].legend(fontsize=8, frameon=False)
    drawing.suptitle("Gradient checkpointing of residual blocks: memory for time", fontsize=12, fontweight="bold")
    return drawing


def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Check the blocks, and measure them at several depths."""
    torch.manual_seed(arguments.seed)
    o = torch.randn(arguments.batch, CHANNELS, SIZE, SIZE)
    rows: list[dict[str, Any]] = []
    for i in common.steps_of(bar, "measuring", arguments.depths):
        count = int(2**i)
        models = {name: Blocks(count, name == "yes") for name in ("no", "yes")}
        steps = {name: functools.partial(step_of, model, o) for name, model in models.items()}
        times = timing.alternate(steps, processor_time, arguments.seconds / arguments.depths, least=3)
        for name, model in models.items():
            rows.append({
                "blocks": 2 * count + 1,
                "checkpointed": name == "yes",
                "saved": saved_bytes(model, o),
                "peak": common.peak_growth(prepare, count, name == "yes", arguments.batch, arguments.seed),
                "seconds": times[name].median,
            })  # fmt: skip
    shown = common.table("blocks", "checkpoints", "kept for backward", "peak of a step", "processor time of a step")
    for row in rows:
        shown.add_row(str(row["blocks"]), "yes" if row["checkpointed"] else "no", f"{row['saved'] / 1e6:.1f} MB",
                      f"{row['peak'] / 1e6:.1f} MB", f"{1e3 * row['seconds']:.0f} ms")  # fmt: skip
    apart, same = gradients_apart(arguments.seed), same_training(arguments.seed)
    deepest = {row["checkpointed"]: row for row in rows[-2:]}
    kept = deepest[True]["saved"] / deepest[False]["saved"]
    peak = deepest[True]["peak"] / deepest[False]["peak"]
    return common.Outcome(
        numbers={
            "batch": arguments.batch,
            "channels": CHANNELS,
            "size": SIZE,
            "rows": rows,
            "apart_from_torch": apart,
            "same_training": same,
        },
        tables=[shown],
        claims=[
            common.Claim(f"in float64 all gradients are those of torch's layers to {CLOSE:g}", f"{apart:.1e} at worst",
                         apart <= CLOSE),
            common.Claim("with checkpoints training leaves the same parameters and statistics, bit by bit",
                         "it does" if same else "it does not", same),
            common.Claim(f"at most {SAVED:.0%} of what the deepest keeps for the backward pass is left",
                         f"{kept:.0%}", kept <= SAVED),
            common.Claim(f"and at most {PEAK:.0%} of its peak", f"{peak:.0%}", peak <= PEAK),
        ],
        drawing=draw(rows),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "resnet_block", threads=2)
    parser.add_argument("--batch", type=common.positive, default=8, metavar="N", help=f"images of {SIZE} x {SIZE}; "
                        "default: %(default)s")  # fmt: skip
    parser.add_argument("--depths", type=common.positive, default=3, metavar="N", help="how many depths are measured: "
                        "3, 5, 9, 17, ... blocks; default: %(default)s")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=12.0, metavar="S", help="of timing; default: %(default)s")
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
