"""Two layers of an image that is split by rows among processes, and what they compute while rows are sent.

    torchrun --standalone --nproc-per-node 2 examples/spatial_layers.py --out spatial

Compares the result with the image in one piece, and writes a Chrome trace of each rank's step (ui.perfetto.dev shows
it) and, of rank 0, the picture overlap.svg. Needs pip install 'convbackprop[torch,plot]'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

import convbackprop
from convbackprop.torch import conv2d
from convbackprop.torch.spatial import SpatialConv2d, gather_rows, split_rows

#: What the picture shows, from top to bottom: the profiler's names, the rows' names, their colours.
LANES = (
    ("spatial: shapes", "shapes compared", "tab:purple"),
    ("spatial: exchange starts", "exchange: start", "tab:orange"),
    ("gloo:recv", "rows under way", "tab:gray"),
    ("convbackprop::forward", "forward of rows", "tab:blue"),
    ("convbackprop::backward", "backward of rows", "tab:green"),
    ("spatial: exchange is waited for", "exchange: wait", "tab:red"),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="rows and columns of the image (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=8, help="of the layers (default: %(default)s)")
    parser.add_argument("--filter", type=int, default=5, help="rows and columns of the filters (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", default="auto")
    parser.add_argument(
        "--out", type=Path, default=Path("spatial"), help="folder for the traces (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    settings = arguments()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        convbackprop.set_num_threads(1)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    settings.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(settings.seed)
    image = torch.randn(1, 1, settings.size, settings.size)
    options = {"padding": "same", "variant": settings.variant}
    first = SpatialConv2d(1, settings.channels, settings.filter, activation="relu", **options)
    second = SpatialConv2d(settings.channels, 1, settings.filter, **options)
    layers = torch.nn.Sequential(first, second).to(device)
    rows = split_rows(image).to(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    profiler = profile(activities=activities)
    for recorder in (contextlib.nullcontext(), contextlib.nullcontext(), profiler):  # two compile kernels and connect
        layers.zero_grad()
        dist.barrier()
        with recorder:
            y = layers(rows)
            torch.square(y).sum().backward()
    trace = settings.out / f"rank{rank}.json"
    profiler.export_chrome_trace(str(trace))

    whole = gather_rows(y.detach())
    hidden = conv2d(image.to(device), first.weight, first.bias, activation="relu", **options)
    unsplit = conv2d(hidden, second.weight, second.bias, **options)
    (gradient,) = torch.autograd.grad(torch.square(unsplit).sum(), [first.weight])
    summed = first.weight.grad
    assert summed is not None
    if rank == 0:
        print(f"{settings.size} x {settings.size} on {ranks} ranks, {rows.shape[-2]} rows on this one")
        for name, split, one in (("output", whole, unsplit), ("gradient of the filters", summed, gradient)):
            off = (split - one).abs().max().item()
            print(f"{name}: off the image in one piece by {off:.2g}, of numbers up to {one.abs().max().item():.3g}")
        picture(trace, settings.out / "overlap.svg")
        print(f"wrote {settings.out / 'rank0.json'} and {settings.out / 'overlap.svg'}")
    dist.destroy_process_group()


def picture(trace: Path, path: Path) -> None:
    """Draw what one rank did when, from its trace."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise SystemExit("the picture needs matplotlib: pip install 'convbackprop[plot]'") from None
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("ph") == "X"]
    begin = min(event["ts"] for event in events if event["name"] == LANES[0][0])
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    for lane, (name, _, colour) in enumerate(LANES):
        spans = [
            ((event["ts"] - begin) / 1e3, event["dur"] / 1e3) for event in events if event["name"].startswith(name)
        ]
        axes.broken_barh(spans, (lane - 0.4, 0.8), color=colour)
    axes.set_yticks(range(len(LANES)), [title for _, title, _ in LANES])
    axes.invert_yaxis()
    axes.set(xlabel="ms", title="Rank 0: two layers, forward and backward")
    axes.grid(axis="x", alpha=0.3)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="svg")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
