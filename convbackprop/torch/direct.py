"""The layer on plain tensors in eager mode, without PyTorch's dispatcher in between: half of a small layer's time.

What transforms calls or looks at them (compile, func, vmap, forward mode, autocast, fake tensors, the profiler) sees
the operators instead; `possible` tells the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function, forward_ad

from convbackprop import ops
from convbackprop.activations import activation_name, saved_by, torch_function
from convbackprop.torch.formats import formatted
from convbackprop.torch.functions import gradients
from convbackprop.torch.options import normalized

Tensor = torch.Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
_How = tuple[str, str]  # variant, precision


def _formatted(found: Sequence[Tensor | None], x: Tensor, w: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(gradient if gradient is None else formatted(gradient, x, w) for gradient in found)


class DirectLayer(Function):
    """`functions.Layer` with the options as the user gave them: the public functions check them, and remember."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: tuple[Any, ...], activation: str, how: _How
    ) -> Tensor:
        y = formatted(ops.conv2d(x, w, b, *geometry, activation=activation, variant=how[0], precision=how[1]), x, w)
        ctx.save_for_backward(x, w, None if activation == "identity" else y)
        ctx.options = geometry, activation, how
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, w, y = ctx.saved_tensors
        geometry, activation, how = ctx.options
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not possible(dy, x, w):
            found = gradients(dy, x, w, y, needs, *normalized(w, geometry, activation), *how)
        else:
            found = ops.conv2d_backward(
                dy, x, w, *geometry, output=y, activation=activation, needs=needs, variant=how[0], precision=how[1]
            )
            found = _formatted(found, x, w)
        return (*found, None, None, None)


class DirectGated(Function):
    """`DirectLayer` for an activation whose derivative is formed from the pre-activation s, its second output.

    As an output s has a derivative of its own, which is what second derivatives go through.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: tuple[Any, ...], activation: str, how: _How
    ) -> tuple[Tensor, Tensor]:
        s = formatted(ops.conv2d(x, w, b, *geometry, variant=how[0], precision=how[1]), x, w)
        ctx.save_for_backward(x, w, s)
        ctx.options = geometry, activation_name(activation), how
        ctx.set_materialize_grads(False)
        return torch_function(ctx.options[1])(s), s

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, ds: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, w, s = ctx.saved_tensors
        geometry, activation, how = ctx.options
        needs, again = ctx.needs_input_grad[:3], torch.is_grad_enabled()
        if ds is None and not again and dy is not None and possible(dy, x, w):
            found = ops.conv2d_backward(
                dy, x, w, *geometry, pre_activation=s, activation=activation, needs=needs, variant=how[0],
                precision=how[1],
            )  # fmt: skip
            return (*_formatted(found, x, w), None, None, None)
        g = ds
        if dy is not None:
            with torch.enable_grad():
                own = s if again else s.detach().requires_grad_()
                (g,) = torch.autograd.grad(torch_function(activation)(own), own, dy, create_graph=again)
            g = g if ds is None else g + ds
        if g is None:
            return (None,) * 6
        parts = gradients(g, x, w, None, needs, *normalized(w, geometry, "identity"), *how)
        return (*parts, None, None, None)


def layer(x: Tensor, w: Tensor, b: Tensor | None, geometry: tuple[Any, ...], activation: str, how: _How) -> Tensor:
    """Return phi(x * w + b), differentiable."""
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, w, b))
    if differentiated and saved_by(activation) == "pre_activation":
        return DirectGated.apply(x, w, b, geometry, activation, how)[0]  # type: ignore[no-any-return]
    return DirectLayer.apply(x, w, b, geometry, activation, how)  # type: ignore[no-any-return]


def _looked_at() -> bool:
    """Return whether anything is active that has to see operators, or whose tensors have no memory of their own."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._is_any_autocast_enabled()
        or torch._C._autograd._profiler_enabled()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


def _has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor is an array of numbers: neither sparse nor nested, and not without data."""
    return tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_nested


def _batched(tensor: Tensor) -> bool:
    """Return whether a cotangent stands for many: torch.autograd.grad(is_grads_batched=True)."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


def possible(*tensors: Any) -> bool:
    """Return whether a call on these tensors (None is none) can go the direct way."""
    if torch.compiler.is_compiling() or _looked_at():
        return False
    return all(t is None or (type(t) in _PLAIN and _has_memory(t) and not _batched(t)) for t in tensors)
