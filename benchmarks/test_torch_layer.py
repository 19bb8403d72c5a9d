"""A small layer in PyTorch, forward and backward, beside torch's own: mostly what a call costs.

make bench-suite ARGS="benchmarks/test_torch_layer.py"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: a layer beside torch's own")

import convbackprop  # noqa: E402
from convbackprop.torch import conv2d  # noqa: E402


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Both sides on as many threads."""
    before = torch.get_num_threads(), convbackprop.get_num_threads()
    torch.set_num_threads(request.param)
    convbackprop.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before[0])
    convbackprop.set_num_threads(before[1])


def ours(x: Any, w: Any, b: Any) -> Any:
    return conv2d(x, w, b, padding=1, activation="relu")


def theirs(x: Any, w: Any, b: Any) -> Any:
    return torch.relu(torch.nn.functional.conv2d(x, w, b, padding=1))


class Nothing(torch.autograd.Function):
    """What a function written in Python costs that computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, b: Any) -> Any:
        ctx.save_for_backward(x, w, b)
        return x.detach()

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return ctx.saved_tensors


@pytest.mark.parametrize("layer", [ours, theirs, Nothing.apply], ids=["convbackprop", "torch", "an empty function"])
def test_28x28(benchmark: Any, threads: int, layer: Callable[..., Any]) -> None:
    """One channel, 3 x 3, bias, ReLU: y, and the gradients of x, w and b."""
    inputs = [torch.randn(shape).requires_grad_() for shape in ((1, 1, 28, 28), (1, 1, 3, 3), (1,))]
    dy = torch.randn(1, 1, 28, 28)
    benchmark.group = f"28x28, forward and backward, threads: {threads}"
    benchmark.pedantic(
        lambda: torch.autograd.grad(layer(*inputs), inputs, dy), warmup_rounds=50, rounds=300, iterations=20
    )
