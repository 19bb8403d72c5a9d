"""The layer on plain tensors in eager mode, without PyTorch's dispatcher in between: half of a small layer's time.

What transforms calls or looks at them (compile, func, vmap, forward mode, autocast, fake tensors, the profiler) sees
the operators instead; `possible` tells the two apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function, forward_ad

from convbackprop import ops
from convbackprop.torch.functions import gradients
from convbackprop.torch.options import normalized

Tensor = torch.Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


class DirectLayer(Function):
    """`functions.Layer` with the options as the user gave them: the public functions check them, and remember."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: tuple[Any, ...], activation: str, variant: str
    ) -> Tensor:
        y = ops.conv2d(x, w, b, *geometry, activation=activation, variant=variant)
        ctx.save_for_backward(x, w, None if activation == "identity" else y)
        ctx.options = geometry, activation, variant
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, w, y = ctx.saved_tensors
        geometry, activation, variant = ctx.options
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not possible(dy, x, w):
            found = gradients(dy, x, w, y, needs, *normalized(w, geometry, activation), variant)
        else:
            found = ops.conv2d_backward(
                dy, x, w, *geometry, output=y, activation=activation, needs=needs, variant=variant
            )
        return (*found, None, None, None)


def _looked_at() -> bool:
    """Return whether anything is active that has to see operators, or whose tensors have no memory of their own."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._is_any_autocast_enabled()
        or torch._C._autograd._profiler_enabled()
    )


def _batched(tensor: Tensor) -> bool:
    """Return whether a cotangent stands for many: torch.autograd.grad(is_grads_batched=True)."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


def possible(*tensors: Any) -> bool:
    """Return whether a call on these tensors (None is none) can go the direct way."""
    if torch.compiler.is_compiling() or _looked_at():
        return False
    return all(t is None or (type(t) in _PLAIN and not t.is_meta and not _batched(t)) for t in tensors)
