"""A layer whose sums are scaled, and to which a residual is added, with its derivatives.

With g = dy * phi'(s), the residual's gradient is g itself, and those of x, w and b are what a layer without scale makes
of g, with scale * w in place of w, and dw times the scale. The scale's own is sum_{c,r,s} w dw, of the dw before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function

from convbackprop.activations import torch_function
from convbackprop.torch import batching, functions, operators
from convbackprop.torch.activation import before_activation

Tensor = torch.Tensor


class ScaledLayer(Function):
    """y = phi(scale (x * w) + b + residual), with its derivatives."""

    @staticmethod
    def forward(  # noqa: D102 - its parameters are counted by torch.compile
        x: Any, w: Any, b: Any, scale: Any, residual: Any, stride: Any, padding: Any, dilation: Any, groups: int,
        activation: str, variant: str, precision: str,
    ) -> Tensor:  # fmt: skip
        options = (stride, padding, dilation, groups, activation, variant, precision)
        return operators.scaled_forward(x, w, b, scale, residual, *options)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        x, w, _, scale, _, *ctx.options = inputs
        ctx.save_for_backward(x, w, scale, None if ctx.options[4] == "identity" else output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        found = _gradients(dy, *ctx.saved_tensors, ctx.needs_input_grad[:5], *ctx.options)
        return (*found, *[None] * len(ctx.options))

    @staticmethod
    def vmap(info: Any, dims: Any, *arguments: Any) -> tuple[Tensor, int]:  # noqa: D102
        return batching.scaled_forward(layer, info, dims, *arguments)


def _gradients(
    dy: Tensor, x: Tensor, w: Tensor, scale: Tensor | None, y: Tensor | None, needs: Sequence[bool], *options: Any
) -> tuple[Tensor | None, ...]:
    """Return dx, dw, db, and those of scale and residual: those that are needed."""
    *geometry, activation, variant, precision = options
    needs_x, needs_w, needs_b, needs_scale, needs_residual = needs
    if needs_residual:  # then g is formed here, once for all of them
        # in one pass over memory where PyTorch has an operator for it
        g = (
            torch.ops.aten.threshold_backward(dy, y, 0)
            if activation == "relu"
            else before_activation(dy, y, activation)
        )
        dy, y, activation = g, None, "identity"
    scaled = w if scale is None else w * _of_filters(scale, w)
    dx, dw, db = functions.gradients(
        dy, x, scaled, y, (needs_x, needs_w or needs_scale, needs_b), *geometry, activation, variant, precision
    )
    dscale = None
    if scale is not None and dw is not None:
        if needs_scale:
            dscale = (w * dw).reshape(scale.shape[0], -1).sum(-1)
        dw = dw * _of_filters(scale, w)
    return dx, dw if needs_w else None, db, dscale, dy if needs_residual else None


def _of_filters(scale: Tensor, w: Tensor) -> Tensor:
    """Return a scale so that it multiplies filters, (K, C/groups, R, S) or one (R, S)."""
    return scale.reshape((-1, 1, 1, 1) if w.ndim == 4 else ())


def layer(*arguments: Any) -> Tensor:
    """Return phi(scale (x * w) + b + residual), differentiable.

    From (x, w, b, scale, residual, stride, padding, dilation, groups, activation, variant, precision).
    """
    return ScaledLayer.apply(*arguments)  # type: ignore[no-any-return]


def in_steps(
    products: Tensor, b: Tensor | None, scale: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """Return what `layer` does of x * w, in PyTorch's own operators."""
    per_channel = (-1, 1, 1)[-products.ndim :]
    s = products if scale is None else products * scale.reshape(per_channel)
    s = s if b is None else s + b.reshape(per_channel)
    return torch_function(activation)(s if residual is None else s + residual)  # type: ignore[no-any-return]


torch.library.register_autograd(
    "convbackprop::scaled_forward", ScaledLayer.backward, setup_context=ScaledLayer.setup_context, lib=operators.LIBRARY
)
