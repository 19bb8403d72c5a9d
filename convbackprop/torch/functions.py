"""The derivatives of a convolutional layer, of any order and in both modes.

x * w is linear in x and in w, and so is the number <x * w, g>, which is linear in g too. Its derivatives with respect
to g, x and w are the forward pass, the input gradient and the kernel gradient, and each of these is linear in its two
arguments again: their derivatives are the same three. `Contraction` is all three; `Layer` puts bias and activation
around it, and takes its first derivatives from the fused pass.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function

from convbackprop.torch import batching, operators
from convbackprop.torch.activation import before_activation, bias_grad
from convbackprop.torch.formats import formatted

Tensor = torch.Tensor


class Contraction(Function):
    """What `operators.contract` computes, with its derivatives."""

    @staticmethod
    def forward(  # noqa: D102 - its parameters are counted by torch.compile
        x: Any, w: Any, g: Any, size: Any, stride: Any, padding: Any, dilation: Any, groups: int, variant: str,
        precision: str,
    ) -> Tensor:  # fmt: skip
        return operators.contract(x, w, g, size, stride, padding, dilation, groups, variant, precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        x, w, g, _, *ctx.options = inputs
        ctx.save_for_backward(x, w, g)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        given = ctx.saved_tensors
        full = [cotangent if tensor is None else tensor for tensor in given]
        gradients = [
            formatted(_without(full, i, tensor.shape, ctx.options), *given) if tensor is not None and needed else None
            for i, (tensor, needed) in enumerate(zip(given, ctx.needs_input_grad[:3], strict=True))
        ]
        return (*gradients, None, *[None] * len(ctx.options))

    @staticmethod
    def vmap(info: Any, dims: Any, *arguments: Any) -> tuple[Tensor, int]:  # noqa: D102
        return batching.contraction(contract, info, dims, *arguments)


class _ContractionForwardMode(Contraction):
    """torch.compile takes no Function with a jvp of its own, so that it is one apart."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Contraction.setup_context(ctx, inputs, output)
        ctx.size = inputs[3]
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        given = ctx.saved_tensors
        terms = [
            contract(*given[:i], tangent, *given[i + 1 :], ctx.size, *ctx.options)
            for i, tangent in enumerate(tangents[:3])
            if tangent is not None
        ]
        return functools.reduce(torch.add, terms)


def contract(*arguments: Any) -> Tensor:
    """Return what `operators.contract` does, differentiable."""
    function = Contraction if torch.compiler.is_compiling() else _ContractionForwardMode
    return function.apply(*arguments)  # type: ignore[no-any-return]


def _without(full: list[Tensor], i: int, size: Any, options: Any) -> Tensor:
    """Return what takes the place of one of x, w and g when the other two are given."""
    return contract(*(None if j == i else tensor for j, tensor in enumerate(full)), tuple(size), *options)


class Layer(Function):
    """y = phi(x * w + b), with its derivatives."""

    @staticmethod
    def forward(  # noqa: D102 - its parameters are counted by torch.compile
        x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: int, activation: str, variant: str,
        precision: str,
    ) -> Tensor:  # fmt: skip
        geometry = (stride, padding, dilation, groups)
        return operators.forward(x, w, b, *geometry, activation, variant, precision)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        x, w, _, *ctx.options = inputs
        ctx.save_for_backward(x, w, None if ctx.options[4] == "identity" else output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        found = gradients(dy, *ctx.saved_tensors, ctx.needs_input_grad[:3], *ctx.options)
        return (*found, *[None] * len(ctx.options))

    @staticmethod
    def vmap(info: Any, dims: Any, *arguments: Any) -> tuple[Tensor, int]:  # noqa: D102
        return batching.forward(layer, info, dims, *arguments)


def gradients(
    dy: Tensor, x: Tensor, w: Tensor, y: Tensor | None, needs: Sequence[bool], *options: Any
) -> tuple[Tensor | None, ...]:
    """Return dx, dw and db, those that are needed: in one pass, or so that they can be differentiated again."""
    *geometry, activation, variant, precision = options
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        found = operators.backward(dy, x, w, y, needs, *options)
        return tuple(gradient if needed else None for gradient, needed in zip(found, needs, strict=True))
    g, how = before_activation(dy, y, activation), (variant, precision)
    dx = formatted(contract(None, w, g, tuple(x.shape), *geometry, *how), x, w) if needs[0] else None
    dw = formatted(contract(x, None, g, tuple(w.shape), *geometry, *how), x, w) if needs[1] else None
    return dx, dw, bias_grad(g) if needs[2] else None


class _LayerForwardMode(Layer):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Layer.setup_context(ctx, inputs, output)
        ctx.shape = output.shape
        ctx.save_for_forward(*inputs[:2], None if ctx.options[4] == "identity" else output)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, w, y = ctx.saved_tensors
        *geometry, activation, variant, precision = ctx.options
        how = (variant, precision)
        dx, dw, db = tangents[:3]
        terms = []
        if dx is not None:
            terms.append(contract(dx, w, None, (), *geometry, *how))
        if dw is not None:
            terms.append(contract(x, dw, None, (), *geometry, *how))
        if db is not None:
            terms.append(db.reshape((-1, 1, 1)[-len(ctx.shape) :]).expand(ctx.shape))
        return before_activation(functools.reduce(torch.add, terms), y, activation)


def in_forward_mode() -> bool:
    """Return whether derivatives are taken along with the values."""
    return getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0


def layer(*arguments: Any) -> Tensor:
    """Return phi(x * w + b), differentiable.

    From (x, w, b, stride, padding, dilation, groups, activation, variant, precision).
    """
    # What is saved for forward mode holds y, which holds what it was saved in. Torch breaks that circle, but not where
    # a checkpoint stops computing anew: y would then stay in memory until Python looks for circles.
    function = _LayerForwardMode if in_forward_mode() and not torch.compiler.is_compiling() else Layer
    return function.apply(*arguments)  # type: ignore[no-any-return]


# -- the operators on their own --------------------------------------------------------------------------------------
# An exported program calls the operators and not the functions above; they are differentiated alike.
def _gradients_apart(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "torch.ops.convbackprop.backward cannot be differentiated; its parts, input_grad and kernel_grad, can, and "
        "convbackprop.torch.conv2d is differentiated to any order"
    )


def _register(name: str, missing: int) -> None:
    """Have an operator differentiated as the contraction whose operand number `missing` it computes."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        operands: list[Any] = list(inputs[:3])
        size, operands[missing] = operands[missing], None
        Contraction.setup_context(ctx, (*operands, size, *inputs[3:]), output)

    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        gradients = Contraction.backward(ctx, cotangent)
        return gradients[:-1]  # the contraction has a size of its own besides

    torch.library.register_autograd(
        f"convbackprop::{name}", backward, setup_context=setup_context, lib=operators.LIBRARY
    )


torch.library.register_autograd(
    "convbackprop::forward", Layer.backward, setup_context=Layer.setup_context, lib=operators.LIBRARY
)
_register("input_grad", 0)
_register("kernel_grad", 1)
torch.library.register_autograd("convbackprop::backward", _gradients_apart, lib=operators.LIBRARY)
