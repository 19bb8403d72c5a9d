"""One level of a U-Net takes the noise out of a photograph, trained on crops and run on whole photographs of any size.

    o -> 2 convolutions -------------------------- concatenated -> 2 convolutions -> 1 x 1 convolution -> noise
                       \\-> down -> 2 convolutions -> up /

The model is written with torch.nn, and `convbackprop.torch.nn.from_torch` puts our layers in the places of torch's,
with the ReLU that follows fused in. It is fully convolutional: no layer knows how large an image is. Where a side is
odd, what comes up is brought to the size of what it is concatenated with. The way up is a transposed convolution: each
pixel below spreads over 2 x 2 pixels above, with weights that are learned. It is called so since as a matrix it is the
transpose of a convolution that goes down with stride 2, so that it is computed as that one's input gradient
(V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285, section 4).
The level learns the noise, which is then taken off (K. Zhang et al., "Beyond a Gaussian Denoiser", 2017,
arXiv:1608.03981).
"""

from __future__ import annotations

import common  # first: it says what to install

# isort: split

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

import convbackprop.torch as cbt

Tensor = torch.Tensor

PHOTOGRAPHS = ("coins", "astronaut", "brick", "gravel", "moon")  # it learns from these
UNSEEN = ("camera", "page", "text")  # and is tried on these, of 512 x 512, 191 x 384 and 172 x 448
CROP, BATCH, RATE = 48, 8, 2e-3
SIGMA = 0.1  # of the noise; white is 1
BLURS = (0.5, 0.7, 0.9, 1.1, 1.4, 1.8)  # standard deviations in pixels, of the blurs that it is compared with
GAIN, ABOVE_BLUR = 4.0, 0.5  # decibels


class UNetLevel(nn.Module):
    """One level of a U-Net (O. Ronneberger et al., 2015, arXiv:1505.04597) in torch's own layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left = self._two(1, channels)
        self.down = nn.MaxPool2d(2, ceil_mode=True)
        self.bottom = self._two(channels, 2 * channels)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.right = self._two(2 * channels, channels)
        self.last = nn.Conv2d(channels, 1, 1)

    @staticmethod
    def _two(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
        )

    def forward(self, o: Tensor) -> Tensor:
        """Return o without its noise, (N, 1, H, W) in and out."""
        left = self.left(o)
        risen = self.up(self.bottom(self.down(left)))
        risen = risen[..., : o.shape[-2], : o.shape[-1]]  # an odd side was made even on the way down
        return o - self.last(self.right(torch.cat([left, risen], dim=1)))


def noisy(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with noise added."""
    return clean + SIGMA * torch.randn(clean.shape, generator=generator)


def psnr(got: Tensor, clean: Tensor) -> float:
    """Return the peak signal-to-noise ratio in decibels: 10 log10(1 / mean square error), white being 1."""
    return -10 * math.log10(float((got.clamp(0, 1) - clean).square().mean()))


def train(model: nn.Module, steps: int, seed: int, bar: Progress) -> list[float]:
    """Train on noisy crops, and return the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    photographs = [common.grey(name) for name in PHOTOGRAPHS]
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in common.steps_of(bar, "learning", steps):
        clean = common.crops(photographs, BATCH, CROP, generator)
        loss = (model(noisy(clean, generator)) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


@dataclass(frozen=True)
class Tried:
    """A photograph that the level never saw: clean, noisy, and without noise by the level and by the best blur."""

    name: str
    clean: Tensor
    noisy: Tensor
    found: Tensor
    blurred: Tensor
    blur: float

    def decibels(self) -> tuple[float, float, float]:
        """Return the signal-to-noise ratios before, after the best blur, and after the level."""
        return psnr(self.noisy, self.clean), psnr(self.blurred, self.clean), psnr(self.found, self.clean)


def attempt(model: nn.Module, name: str, clean: Tensor, seed: int) -> Tried:
    """Take the noise out of a whole image, and blur it as a comparison, as suits the clean image best."""
    gaussian = common.need("skimage.filters", "scikit-image").gaussian
    given = noisy(clean, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found = model(given[None, None])[0, 0]
    blurs = {sigma: torch.from_numpy(gaussian(given.numpy(), sigma)) for sigma in BLURS}
    best = max(blurs, key=lambda sigma: psnr(blurs[sigma], clean))
    return Tried(name, clean, given, found, blurs[best], best)


def transpose_apart(up: Any, seed: int) -> float:
    """Return how far <up(o), a> is from <o, down(a)>, relatively, in float64: down has up's weights and stride 2."""
    generator = torch.Generator().manual_seed(seed)
    weight: Tensor = up.weight.detach().double()
    o = torch.randn(2, weight.shape[0], 5, 7, generator=generator, dtype=torch.float64)
    a = torch.randn(2, weight.shape[1], 10, 14, generator=generator, dtype=torch.float64)
    above = float((cbt.conv_transpose2d(o, weight, stride=2) * a).sum())
    below = float((o * cbt.conv2d(a, weight, stride=2)).sum())
    return abs(above - below) / abs(below)


def draw(tried: Sequence[Tried], losses: list[float]) -> Any:
    """Return the figure: the first photograph in four states, a part of it large, and the losses."""
    first = tried[0]
    before, blurred, after = first.decibels()
    drawing = common.figure(12.5, 6.9)
    axes = drawing.subplots(2, 4)
    states = (
        ("clean", first.clean),
        (f"noisy, {before:.1f} dB", first.noisy),
        (f"the best blur, {blurred:.1f} dB", first.blurred),
        (f"one U-Net level, {after:.1f} dB", first.found),
    )
    height, width = first.clean.shape
    part = slice(height // 5, height // 5 + height // 4), slice(width * 2 // 5, width * 2 // 5 + width // 4)
    for ax, (title, image) in zip(axes[0], states, strict=True):
        common.picture(ax, image, title)
    for ax, (title, image) in zip(axes[1], states[1:], strict=False):
        common.picture(ax, image[part], title.partition(",")[0])
    ax = axes[1, 3]
    mean = torch.tensor(losses).unfold(0, min(20, len(losses)), 1).mean(dim=1)
    ax.semilogy(losses, color="#bbbbbb", linewidth=0.7)
    ax.semilogy(range(len(losses) - len(mean), len(losses)), mean, color=common.OURS)
    ax.axhline(SIGMA**2, color="black", linestyle=":", linewidth=0.9)
    common.plain_axes(ax, "mean square error (dotted: noise)", "step")
    drawing.suptitle(f"One U-Net level, trained on crops of {CROP} x {CROP}, run on {height} x {width}", fontsize=12,
                     fontweight="bold")  # fmt: skip
    return drawing


def run(arguments: argparse.Namespace, bar: Progress) -> common.Outcome:
    """Train, and try the level on whole photographs and on an odd size."""
    common.need("skimage.data", "scikit-image")
    torch.manual_seed(arguments.seed)
    plain = UNetLevel(arguments.channels)
    model, swapped = cbt.nn.from_torch(plain)
    start = time.perf_counter()
    losses = train(model, arguments.steps, arguments.seed, bar)
    seconds = time.perf_counter() - start

    images = {name: common.grey(name) for name in UNSEEN}
    images["camera, 301 x 203"] = images["camera"][100:401, 150:353]
    tried = [attempt(model, name, clean, arguments.seed + i) for i, (name, clean) in enumerate(images.items())]
    with torch.no_grad():  # from_torch shares the parameters: torch's own layers have learned, too
        apart = max(float((plain(one.noisy[None, None])[0, 0] - one.found).abs().max()) for one in tried)
    transpose = transpose_apart(model.up, arguments.seed)
    shown = common.table("never seen", "size", "noisy", "best blur", "U-Net level", "gain")
    for one in tried:
        before, blurred, after = one.decibels()
        height, width = one.clean.shape
        shown.add_row(one.name, f"{height} x {width}", f"{before:.2f} dB", f"{blurred:.2f} dB", f"{after:.2f} dB",
                      f"{after - before:+.2f} dB")  # fmt: skip
    layers = common.table("layer", "from_torch")
    for name, activation in swapped.fused.items():
        layers.add_row(name, f"ours, with {activation}")
    for name in swapped.swapped:
        layers.add_row(name, "ours")
    gains = [after - before for before, _, after in (one.decibels() for one in tried)]
    above = [after - blurred for _, blurred, after in (one.decibels() for one in tried)]
    right_sizes = all(one.found.shape == one.clean.shape for one in tried)
    return common.Outcome(
        numbers={
            "steps": arguments.steps,
            "sigma": SIGMA,
            "losses": [losses[0], sum(losses[-20:]) / len(losses[-20:])],
            "images": [
                {"name": one.name, "size": list(one.clean.shape), "blur": one.blur,
                 **dict(zip(("noisy", "best_blur", "found"), one.decibels(), strict=True))}
                for one in tried
            ],
            "apart_from_torch": apart,
            "transpose_apart": transpose,
            "fused": swapped.fused,
            "left": swapped.left,
            "train_seconds": seconds,
        },
        tables=[layers, shown],
        claims=[
            common.Claim(f"at least {GAIN:g} dB better than the noisy image", f"{min(gains):.2f} dB at least",
                         min(gains) >= GAIN),
            common.Claim(f"at least {ABOVE_BLUR:g} dB better than the blur that suits best",
                         f"{min(above):.2f} dB at least", min(above) >= ABOVE_BLUR),
            common.Claim("any size goes in and comes out", ", ".join("x".join(map(str, one.found.shape)) for one in
                         tried), right_sizes),
            common.Claim("torch's own layers with these parameters give the same image to 1e-5",
                         f"{apart:.1e} apart at most", apart <= 1e-5),
            common.Claim("the way up is the transpose of a convolution that goes down, to 1e-12",
                         f"<up(o), a> is <o, down(a)>, {transpose:.1e} apart", transpose <= 1e-12),
        ],
        drawing=draw(tried, losses),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.options(__doc__, "unet_level", threads=2)
    parser.add_argument("--steps", type=common.positive, default=600, help=f"of Adam, {BATCH} crops each; default: "
                        "%(default)s")  # fmt: skip
    parser.add_argument("--channels", type=common.positive, default=16, metavar="N", help="of the first two "
                        "convolutions; default: %(default)s")  # fmt: skip
    return common.main(parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
