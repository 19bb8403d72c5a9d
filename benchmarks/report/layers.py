"""The layers of convbackprop.torch in training beside torch.nn's, and the one that is split among processes.

A step is forward and backward, all gradients, as a training loop has them; both layers hold the same parameters.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from benchmarks.report import exact
from benchmarks.report.jobs import Job
from benchmarks.report.measure import Call, Outcome, Place, Tensor, time_rows, tried
from benchmarks.report.rows import Row
from convbackprop.problem import PASSES, ConvProblem

BOTH = ("forward", "backward")


class Step:
    """A step of a layer on random numbers; autocast to the problem's dtype, where that is not the parameters'."""

    def __init__(self, layer: Any, p: ConvProblem, place: Place) -> None:
        self.layer, self.p, self.torch = layer, p, place.torch
        generator = self.torch.Generator(place.where).manual_seed(p.R)
        self.x, self.dy = (
            self.torch.randn(shape, device=place.where, generator=generator) for shape in (p.x_shape, p.y_shape)
        )
        self.x.requires_grad_()
        self.parameters = tuple(layer.parameters())
        self.dtype = getattr(self.torch, p.dtype)
        self.kind = self.torch.device(place.where).type

    def __call__(self) -> tuple[Tensor, ...]:
        """Return y and the gradients of the input, the filters and the bias."""
        autocast = self.dtype != self.parameters[0].dtype
        with self.torch.autocast(self.kind, self.dtype) if autocast else nullcontext():
            y = self.layer(self.x)
        return (y.detach(), *self.torch.autograd.grad(y, (self.x, *self.parameters), self.dy.to(y.dtype)))

    def check(self, row: Row) -> None:
        """Hold the results against exact sums over what the kernels are given."""
        torch, p = self.torch, self.p
        y, *gradients = self()
        named = zip(("x", "w", "b", "dy"), (self.x, *self.parameters, self.dy), strict=True)
        given = {name: tensor.detach().to(self.dtype) for name, tensor in named} | {"saved": y}
        found = dict(zip(("y", "dx", "dw", "db"), (y, *gradients), strict=True))
        row.full_share = max(
            exact.share_of_bound(torch, name, p, found[name], *values)
            for pass_name in BOTH
            for name, values in exact.exact(torch, pass_name, p, given).items()
        )
        if not row.full_share <= 1:
            raise ArithmeticError(f"wrong: the largest error is {row.full_share:.3g} times its bound")


def layers(p: ConvProblem, place: Place) -> tuple[Any, Any]:
    """Return the package's layer, and torch.nn's with the same parameters."""
    from convbackprop.torch import nn

    ours = nn.Conv2d(*_sizes(p), activation=p.activation, device=place.where)
    theirs = place.torch.nn.Conv2d(*_sizes(p), device=place.where)
    theirs.load_state_dict(ours.state_dict())
    return ours, place.torch.nn.Sequential(theirs, place.torch.nn.ReLU())


def _sizes(p: ConvProblem) -> tuple[Any, ...]:
    (top, bottom), (left, right) = p.padding
    assert (top, left) == (bottom, right) and p.bias
    return p.C, p.K, (p.R, p.S), p.stride, (top, left), p.dilation, p.groups


def measure_training(job: Job, place: Place) -> Outcome:
    """Time a step of the layer beside torch.nn's: eager and under autocast to float16, or compiled."""
    assert job.problem is not None
    p = place.scale.problem(job.problem)
    steps: dict[str, Step] = {}
    if job.name.endswith("compiled"):
        backend = "aot_eager" if place.scale.dry else "inductor"  # which would have g++ compile for the CPU
        modes = {", compiled": (p, lambda layer: place.torch.compile(layer, backend=backend))}
    else:
        modes = {mode: (p.with_(dtype=dtype), lambda layer: layer) for mode, dtype in
                 (("", p.dtype), (", autocast", "float16"))}  # fmt: skip
    for mode, (problem, made) in modes.items():
        for who, layer in zip(("convbackprop.torch", "torch.nn"), layers(p, place), strict=True):
            steps[who + mode] = Step(made(layer), problem, place)
    return _timed(job, steps, place)


@contextmanager
def one_process(place: Place) -> Iterator[None]:
    """Give a torch.distributed of this process alone: nccl's on a GPU, gloo's in a dry run."""
    import torch.distributed as dist

    backend = "gloo" if place.scale.dry else "cpu:gloo,cuda:nccl"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")  # a machine may have no other
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def measure_split(job: Job, place: Place) -> Outcome:
    """Time a step of the layer that is split among processes, of which there is one, beside the unsplit layer's."""
    assert job.problem is not None
    from convbackprop.torch.spatial import SpatialConv2d

    p = place.scale.problem(job.problem)
    with one_process(place):
        split = SpatialConv2d(*_sizes(p), activation=p.activation, device=place.where)
        whole, _ = layers(p, place)
        whole.load_state_dict(split.state_dict())
        steps = {"SpatialConv2d, one process": Step(split, p, place), "Conv2d": Step(whole, p, place)}
        return _timed(job, steps, place)


def _timed(job: Job, steps: dict[str, Step], place: Place) -> Outcome:
    """Check the package's steps, make torch's once, and time all in turn."""
    rows: list[Row] = []
    timed: dict[str, tuple[Row, Call]] = {}
    for who, step in steps.items():
        row = Row(job.name, who, ours=not who.startswith("torch.nn"), problem=str(step.p))
        row.least_bytes = sum(PASSES[name].least_bytes(step.p) for name in BOTH)
        row.flops = sum(PASSES[name].flops(step.p) for name in BOTH)
        rows.append(row)
        if tried(row, functools.partial(step.check, row) if row.ours else step):
            timed[who] = (row, step)
    place.synchronize()
    if timed:
        time_rows(timed, place)
    return Outcome(rows)
