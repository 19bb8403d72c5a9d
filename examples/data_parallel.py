"""Trains a small CNN on handwritten digits in several processes, each with a part of every batch.

    torchrun --standalone --nproc-per-node 2 --max-restarts 3 examples/data_parallel.py

DistributedDataParallel averages the gradients, so that two processes learn what one would from the same batch. Where
the batch grows with the number of processes, so does the learning rate (the linear scaling rule), after a warm-up, for
a large rate ruins a network that has not learnt anything: Goyal et al., Accurate, Large Minibatch SGD, 2017.

Every few steps a checkpoint is written. When a worker dies, torchrun ends the others and starts all again, and they go
on from the checkpoint: --kill-at shows it. The loss curve is the same as if nothing had happened, to the bit. An
interrupted run is gone on with by the same command.

Needs pip install 'convbackprop[torch,plot]' scikit-learn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import convbackprop
from convbackprop.cli.common import progress
from convbackprop.torch.nn import Conv2d


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=220, help="batches to learn from (default: %(default)s, 20 epochs)"
    )
    parser.add_argument(
        "--batch", type=int, default=128, help="images of a step, of all processes together (default: %(default)s)"
    )
    parser.add_argument(
        "--lr", type=float, default=0.02, help="learning rate for a batch of --base-batch (default: %(default)s)"
    )
    parser.add_argument("--base-batch", type=int, default=32, help="see --lr (default: %(default)s)")
    parser.add_argument(
        "--warmup", type=int, default=22, help="steps until the scaled rate is reached (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and the order of the images")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--variant", default="auto", help="of the convolutions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("data_parallel"), help="folder for losses.json, loss.svg and "
                        "the checkpoint, which all processes can read (default: %(default)s)")  # fmt: skip
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument(
        "--kill-at", type=int, metavar="STEP", help="the last process kills itself there, the first time"
    )
    parser.add_argument(
        "--timeout", type=float, default=60, help="seconds that a process waits for another (default: %(default)s)"
    )
    parser.add_argument("--no-plot", action="store_true", help="no loss.svg")
    return parser.parse_args(given)


def digits(dtype: torch.dtype) -> tuple[TensorDataset, TensorDataset]:
    """Return 1437 images of 8 x 8 pixels to learn from, and 360 others."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise SystemExit(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16).to(dtype).unsqueeze(1)
    labels = torch.from_numpy(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    learnt, held_out = order[:1437], order[1437:]
    return TensorDataset(images[learnt], labels[learnt]), TensorDataset(images[held_out], labels[held_out])


def network(seed: int, dtype: torch.dtype, variant: str) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        Conv2d(1, 8, 3, padding=1, activation="relu", variant=variant),
        Conv2d(8, 16, 3, stride=2, padding=1, activation="relu", variant=variant),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 10),
    ).to(dtype)


def learning_rate(step: int, settings: argparse.Namespace) -> float:
    """Return --lr times batch / base_batch, which the first steps approach from --lr."""
    scale = settings.batch / settings.base_batch
    return settings.lr * (1 + (scale - 1) * min(1.0, step / max(1, settings.warmup)))


def batches(data: TensorDataset, settings: argparse.Namespace, first_step: int) -> Iterator[list[torch.Tensor]]:
    """Yield this process's part of each batch, from a step on; the whole batch is the same for any number of parts."""
    sampler: DistributedSampler = DistributedSampler(data, seed=settings.seed, drop_last=True)
    loader = DataLoader(data, settings.batch // dist.get_world_size(), sampler=sampler, drop_last=True)
    for epoch in itertools.count(first_step // len(loader)):
        sampler.set_epoch(epoch)
        yield from itertools.islice(loader, max(0, first_step - epoch * len(loader)), None)


# -- checkpoints -----------------------------------------------------------------------------------------------------
#: What a run must share with the one whose checkpoint it goes on from; the number of processes may change.
_KEPT = ("batch", "lr", "base_batch", "warmup", "seed", "dtype", "variant")


def save(path: Path, settings: argparse.Namespace, **state: Any) -> None:
    """Write a checkpoint whole or not at all, whenever the process is killed."""
    kept = {name: getattr(settings, name) for name in _KEPT}
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save({"settings": kept, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path, settings: argparse.Namespace, device: torch.device) -> dict[str, Any] | None:
    """Return the checkpoint that an interrupted run has left, if one has."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    for name, value in state["settings"].items():
        if value != getattr(settings, name):
            raise SystemExit(
                f"{path} is of an interrupted run with --{name.replace('_', '-')} {value}, not "
                f"{getattr(settings, name)}; go on with that, remove the file, or name another --out"
            )
    return state


# -- training --------------------------------------------------------------------------------------------------------
def train(settings: argparse.Namespace) -> list[float]:
    """Return the loss of each step, averaged over the whole batch; how good the network is gets printed."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if settings.batch % world:
        raise SystemExit(f"--batch is {settings.batch}; it should be a multiple of the {world} processes")
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(settings.device, local) if settings.device == "cuda" else torch.device("cpu")
    dtype = getattr(torch, settings.dtype)
    data, held_out = digits(dtype)
    if settings.batch > len(data):
        raise SystemExit(f"--batch is {settings.batch}; there are {len(data)} images")
    net = network(settings.seed, dtype, settings.variant).to(device)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=settings.lr, momentum=0.9)
    checkpoint = settings.out / "checkpoint.pt"
    losses: list[float] = []
    if state := load(checkpoint, settings, device):
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        losses = state["losses"]
        if rank == 0:
            print(f"goes on after step {len(losses)}", flush=True)
    dies = rank == world - 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    bar = progress()
    bar.disable = bar.disable or rank > 0
    with bar:
        task = bar.add_task("training", total=settings.steps, completed=len(losses))
        parts = batches(data, settings, len(losses))
        for step in range(len(losses), settings.steps):
            if step == settings.kill_at and dies:
                os.kill(os.getpid(), signal.SIGKILL)
            images, labels = (part.to(device) for part in next(parts))
            optimizer.param_groups[0]["lr"] = learning_rate(step, settings)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            mean = loss.detach() / world
            dist.all_reduce(mean)
            losses.append(mean.item())
            if rank == 0 and (step + 1) % settings.every == 0:
                save(checkpoint, settings, net=net.state_dict(), optimizer=optimizer.state_dict(), losses=losses)
            bar.update(task, advance=1, refresh=True)
    if rank == 0:
        images, labels = (part.to(device) for part in held_out.tensors)
        with torch.no_grad():
            right = (net(images).argmax(1) == labels).sum().item()
        print(
            f"{world} process{'es' * (world > 1)}, {settings.steps} steps of {settings.batch} images: "
            f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {100 * right / len(labels):.1f} % of {len(labels)} others right"
        )
    return losses


def write(losses: list[float], settings: argparse.Namespace) -> None:
    """Write losses.json and loss.svg, and remove the checkpoint: the run is over."""
    temporary = settings.out / "losses.tmp"
    temporary.write_text(json.dumps(losses))
    os.replace(temporary, settings.out / "losses.json")
    if not settings.no_plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(1, len(losses) + 1), losses)
        axes.set(xlabel="step", ylabel="cross-entropy of the batch", yscale="log", title="Digits, data-parallel")
        axes.grid(alpha=0.3)
        temporary = settings.out / "loss.tmp"
        figure.savefig(temporary, format="svg")
        os.replace(temporary, settings.out / "loss.svg")
    (settings.out / "checkpoint.pt").unlink(missing_ok=True)
    print(f"wrote {settings.out / 'losses.json'}" + ("" if settings.no_plot else f" and {settings.out / 'loss.svg'}"))


def connect(backend: str, timeout: timedelta) -> None:
    """Initialise torch.distributed: for this process alone where torchrun has not started it."""
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun keeps its store when it starts workers again, and with it the addresses of dead ones. On several
        # machines, whose counts may differ, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun instead.
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def main() -> None:
    settings = arguments()
    if not settings.no_plot:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError:
            raise SystemExit("the plot needs matplotlib: pip install 'convbackprop[plot]', or --no-plot") from None
    settings.out.mkdir(parents=True, exist_ok=True)
    backend = "cpu:gloo,cuda:nccl" if settings.device == "cuda" else "gloo"
    if settings.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    else:  # the processes of a machine share its cores
        convbackprop.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    connect(backend, timedelta(seconds=settings.timeout))
    try:
        losses = train(settings)
        if dist.get_rank() == 0:
            write(losses, settings)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
