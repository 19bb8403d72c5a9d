"""Predicts, on paper, how a layer of an image split by rows scales: bytes exchanged against compute.

    python examples/spatial_scaling.py
    python examples/spatial_scaling.py --gpus 64 --size 16384 --channels 64 --filter 3

Nothing is measured. A rank of n computes 2 N C K R S P Q / n operations in forward and twice as many in backward, at
--peak. It receives, and sends, d (R-1) rows of N C W numbers in forward, and as many gradients in backward, half of
them from each neighbour, at --bandwidth each way, after --latency. While they are under way it computes the rows that
do not need them, so that a pass takes max(t_exchange, t_interior) + t_border. Then the gradient of the filters, B
bytes, is summed, which nothing hides here: the quicker of a ring, 2 (n-1) messages of B/n bytes one after the other,
and of trees, 2 log2(n) messages one after the other and 2 B bytes through each link. What memory and the kernels
themselves cost more than --peak is left out: the efficiency is the most that communication leaves.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from convbackprop.torch.rows import RowSplit, even_heights


@dataclass(frozen=True)
class Prediction:
    """A step, forward and backward, on the rank that has most to do; seconds, bytes and operations of that rank."""

    gpus: int
    rows: int
    operations: float
    exchanged: int
    summed: int
    compute: float
    exchange: float
    exposed: float
    step: float
    efficiency: float


def predict(
    gpus: int, size: int = 16384, channels: int = 64, filters: int = 64, taps: int = 3, dilation: int = 1,
    images: int = 1, itemsize: int = 2, peak: float = 989e12, bandwidth: float = 50e9, latency: float = 10e-6,
) -> Prediction:  # fmt: skip
    """Predict a layer with padding "same" on square images.

    Parameters
    ----------
    gpus : int
        Ranks.
    size : int
        Rows and columns of the image.
    channels, filters, taps, dilation, images, itemsize : int
        C, K, R = S, d, N, and bytes of a number.
    peak, bandwidth, latency : float
        Operations a second of a GPU, bytes a second of its link each way, seconds of a message.
    """
    reach = dilation * (taps - 1)
    split = RowSplit(even_heights(size, gpus), taps, 1, dilation, (reach // 2, reach - reach // 2))
    operations_of_a_row = 2 * images * channels * filters * taps * taps * size
    bytes_of_a_row = images * channels * size * itemsize
    one = 3 * size * operations_of_a_row / peak

    def on_rank(rank: int) -> Prediction:
        rows = split.heights[rank]
        halo = sum(split.halo(rank))
        inner = split.pieces(rank)[1]
        interior = inner.end - inner.first if inner else 0
        exchange = latency + halo * bytes_of_a_row / bandwidth if halo else 0.0
        step = exposed = 0.0
        for work in (1, 2):  # forward, backward
            of_a_row = work * operations_of_a_row / peak
            step += max(exchange, interior * of_a_row) + (rows - interior) * of_a_row
            exposed += max(0.0, exchange - interior * of_a_row)
        weights = channels * filters * taps * taps * 4  # summed in float32
        ring = 2 * (gpus - 1) * (latency + weights / gpus / bandwidth)
        trees = 2 * math.ceil(math.log2(gpus)) * latency + 2 * weights / bandwidth if gpus > 1 else 0.0
        step, exposed = step + min(ring, trees), exposed + min(ring, trees)
        return Prediction(
            gpus, rows, 3 * rows * operations_of_a_row, 2 * halo * bytes_of_a_row, weights if gpus > 1 else 0,
            3 * rows * operations_of_a_row / peak, 2 * exchange, exposed, step, one / gpus / step,
        )  # fmt: skip

    return max((on_rank(rank) for rank in range(gpus)), key=lambda prediction: (prediction.step, prediction.exchanged))


def powers(most: int) -> list[int]:
    """Return powers of two up to `most`, and `most`."""
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def table(predictions: list[Prediction], title: str) -> Table:
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="")
    for name in (
        "GPUs",
        "rows each",
        "TFLOP each",
        "MB received",
        "compute ms",
        "exchange ms",
        "not hidden ms",
        "step ms",
        "efficiency",
    ):
        shown.add_column(name, justify="right")
    for p in predictions:
        times = (f"{1e3 * seconds:.3f}" for seconds in (p.compute, p.exchange, p.exposed, p.step))
        counts = (str(p.gpus), str(p.rows), f"{p.operations / 1e12:.3g}", f"{p.exchanged / 1e6:.3g}")
        shown.add_row(*counts, *times, f"{100 * p.efficiency:.0f} %")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--gpus", type=int, default=64, help="the largest number (default: %(default)s)")
    add("--size", type=int, default=16384, help="rows and columns of the image (default: %(default)s)")
    add("--channels", type=int, default=64, help="in and out (default: %(default)s)")
    add("--filter", type=int, default=3, help="rows and columns (default: %(default)s)")
    add("--dilation", type=int, default=1)
    add("--itemsize", type=int, default=2, help="bytes of a number (default: %(default)s, fp16)")
    add(
        "--peak",
        type=float,
        default=989,
        help="TFLOP/s of a GPU (default: %(default)s, an H200's fp16 by its datasheet)",
    )
    add("--bandwidth", type=float, default=50, help="GB/s of a GPU's link, each way (default: %(default)s, 400 Gbit/s)")
    add("--latency", type=float, default=10, help="us of a message (default: %(default)s)")
    add("--json", action="store_true", help="the same as JSON")
    given = parser.parse_args()
    predictions = [
        predict(gpus, given.size, given.channels, given.channels, given.filter, given.dilation, itemsize=given.itemsize,
                peak=given.peak * 1e12, bandwidth=given.bandwidth * 1e9, latency=given.latency * 1e-6)
        for gpus in powers(given.gpus)
    ]  # fmt: skip
    if given.json:
        print(json.dumps([asdict(prediction) for prediction in predictions], indent=2))
        return
    title = (
        f"Predicted, not measured: {given.size} x {given.size}, {given.channels} to {given.channels} channels, "
        f"{given.filter} x {given.filter}, {given.itemsize} bytes a number;\n"
        f"assumed: {given.peak:g} TFLOP/s a GPU, {given.bandwidth:g} GB/s each way, {given.latency:g} us a message"
    )
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table(predictions, title))


if __name__ == "__main__":
    main()
