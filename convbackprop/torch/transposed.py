"""Transposed convolution: as a function of tensors, and as a module.

Its forward pass is the pass input_grad; with respect to its input and its filters it is differentiated by the forward
pass and the kernel gradient: the three are each other's derivatives (see `functions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.modules.utils import _pair
from torch.overrides import handle_torch_function, has_torch_function

from convbackprop import ops, transposed
from convbackprop.activations import saved_by, torch_function
from convbackprop.arguments import known, pair, shown, sides
from convbackprop.errors import InvalidArgument, InvalidType
from convbackprop.torch import decompositions
from convbackprop.torch.activation import before_activation, bias_grad
from convbackprop.torch.direct import possible
from convbackprop.torch.formats import formatted
from convbackprop.torch.functional import check_tensor, in_autocast, not_scriptable
from convbackprop.torch.functions import contract
from convbackprop.torch.module import Layer
from convbackprop.torch.operators import Geometry
from convbackprop.torch.options import normalized, precision_of

Tensor = torch.Tensor


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    activation: str = "identity",
    variant: str = "auto",
    precision: str | None = None,
) -> Tensor:
    """Compute a transposed convolution's output, differentiably: phi(what spreads input by the filters, + b).

    The arguments of torch.nn.functional.conv_transpose2d, and the activation. Results are channels_last where those of
    `convbackprop.torch.conv2d` are.

    Parameters
    ----------
    input : Tensor, shape (N, K, P, Q), (K, P, Q) or (P, Q)
        float32, float64, float16 or bfloat16, on the CPU or a CUDA device.
    weight : Tensor, shape (K, C/groups, R, S) or (R, S)
        The filters.
    bias : Tensor, shape (C,), optional
        Added to each output channel.
    stride, padding, groups, dilation, activation
        As in `convbackprop.conv_transpose2d`.
    output_padding : int or (int, int)
        Further rows and columns of the output, fewer than the stride or the dilation.
    variant : str
        A rung of the ladder that all passes have, such as "naive", "auto" or "untuned": see `convbackprop.conv2d`.
    precision : str, optional
        As in `convbackprop.torch.conv2d`.

    Returns
    -------
    Tensor, shape (N, C, H, W), or without the axes that input lacks
        As `convbackprop.conv_transpose2d` tells.

    Raises
    ------
    InvalidArgument, InvalidType, UnsupportedProblem, ProblemTooLarge
        As `convbackprop.torch.conv2d` does.
    """
    given = (input, weight, bias)
    if has_torch_function(given) and not possible(*given):
        return handle_torch_function(  # type: ignore[no-any-return]
            conv_transpose2d, given, *given, stride, padding, output_padding, groups, dilation,
            activation=activation, variant=variant, precision=precision,
        )  # fmt: skip
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is not None or name != "bias":
            check_tensor(tensor, name)
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise InvalidType(
            "torch.jit.trace records no transposed convolution, as it would fix the output's size to the example's; "
            "use torch.export or torch.compile"
        )
    input, weight, bias = in_autocast(input, weight, bias)
    # The geometry as the convolution has it whose input gradient this is; its own padding is never "same".
    geometry = (stride, sides(padding), dilation, groups)
    strides, around, dilations, groups, name = normalized(weight, geometry, activation)
    more = pair(output_padding, "output_padding", 0)
    input = _with_zeros(input, more, strides, dilations)
    more = (more[0] % strides[0], more[1] % strides[1])
    how = (variant, precision_of(precision, input))
    kept = saved_by(name) == "pre_activation"  # an intermediate result, which PyTorch keeps and differentiates
    if possible(*(given := (input, weight, bias))):
        kept &= torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
        fused = "identity" if kept else name
        y = DirectTransposed.apply(*given, more, (strides, around, dilations, groups), fused, how)
        return torch_function(name)(y) if kept else y  # type: ignore[no-any-return]
    size = _output_size(input, weight, strides, around, dilations, groups, more)
    options = strides, around, dilations, groups, *how
    if torch.onnx.is_in_onnx_export():
        y = decompositions.input_grad(size, weight, input, *options)
    else:
        y = contract(None, weight, input, size, *options)
    if bias is not None:
        y = y + bias.reshape((-1, 1, 1)[-y.ndim :])
    return torch_function(name)(y)  # type: ignore[no-any-return]


conv_transpose2d.__prepare_scriptable__ = not_scriptable  # type: ignore[attr-defined]


def _with_zeros(input: Tensor, more: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Return the input with rows and columns of zeros that make the output as much larger as output_padding says.

    What is left of output_padding is its remainder by the stride.
    """
    for extra, stride, dilation in zip(more, strides, dilations, strict=True):
        if extra >= max(stride, dilation):
            raise InvalidArgument(
                f"output_padding is {shown(tuple(more))}; it should be less than the stride, {tuple(strides)}, or the "
                f"dilation, {tuple(dilations)}"
            )
    bottom, right = (extra // stride for extra, stride in zip(more, strides, strict=True))
    return functional.pad(input, (0, right, 0, bottom)) if bottom or right else input


def _output_size(
    input: Tensor, weight: Tensor, strides: Any, around: Any, dilations: Any, groups: int, more: Sequence[int]
) -> tuple[Any, ...]:
    """Return the output's shape; sizes that are not known yet are taken to be right."""
    shapes = tuple(input.shape), tuple(weight.shape)
    top, bottom, left, right = around
    if all(isinstance(size, int) for shape in shapes for size in shape):
        padding = ((top, bottom), (left, right))
        return transposed.transposed_size(*shapes, strides, padding, tuple(more), dilations, groups)
    *outer, height, width = input.shape
    channels = weight.shape[1] * groups
    rows, cols = (
        (extent - 1) * stride - sum(cut) + dilation * (taps - 1) + extra + 1
        for extent, stride, cut, dilation, taps, extra in zip(
            (height, width), strides, ((top, bottom), (left, right)), dilations, weight.shape[-2:], more, strict=True
        )
    )
    return (*outer[:-1], channels, rows, cols) if outer else (rows, cols)


class DirectTransposed(Function):
    """The layer on plain tensors in eager mode: see `direct`. Its activation's derivative is formed from y."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, more: Any, geometry: Geometry, activation: str,
        how: tuple[str, str],
    ) -> Tensor:  # fmt: skip
        strides, (top, bottom, left, right), dilations, groups = geometry
        y = transposed.conv_transpose2d(
            x, w, b, strides, ((top, bottom), (left, right)), more, groups, dilations,
            activation=activation, variant=how[0], precision=how[1],
        )  # fmt: skip
        y = formatted(y, x, w)
        ctx.save_for_backward(x, w, None if activation == "identity" else y)
        ctx.options = geometry, activation, how
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, w, y = ctx.saved_tensors
        geometry, activation, how = ctx.options
        g = before_activation(dy, y, activation)
        dx = dw = None
        if torch.is_grad_enabled() or not possible(g, x, w):
            if ctx.needs_input_grad[0]:
                dx = contract(g, w, None, (), *geometry, *how)
            if ctx.needs_input_grad[1]:
                dw = contract(g, None, x, tuple(w.shape), *geometry, *how)
        else:
            strides, (top, bottom, left, right), *others = geometry
            own = (strides, ((top, bottom), (left, right)), *others)
            if ctx.needs_input_grad[0]:
                dx = ops.conv2d(g, w, None, *own, variant=how[0], precision=how[1])
            if ctx.needs_input_grad[1]:
                dw = ops.conv2d_kernel_grad(g, tuple(w.shape), x, *own, variant=how[0], precision=how[1])
        dx, dw = (gradient if gradient is None else formatted(gradient, x, w) for gradient in (dx, dw))
        db = bias_grad(g) if ctx.needs_input_grad[2] else None
        return dx, dw, db, None, None, None, None


class ConvTranspose2d(Layer):
    """A transposed convolution by this package's kernels.

    The constructor of torch.nn.ConvTranspose2d with three more arguments, its parameters, its state_dict, both ways.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode
        As in torch.nn.ConvTranspose2d.
    device, dtype
        As there.
    activation, variant, precision : str
        As in `Conv2d`.

    Raises
    ------
    InvalidArgument
        For an unknown activation, variant or precision, or another padding_mode than "zeros".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: Any = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "identity",
        variant: str = "auto",
        precision: str | None = None,
    ) -> None:
        known(padding_mode, ("zeros",), "padding_mode")
        super().__init__(
            in_channels, out_channels, _pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), True,
            _pair(output_padding), groups, bias, padding_mode, device=device, dtype=dtype, activation=activation,
            variant=variant, precision=precision,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """Return the layer's output; output_size, its height and width or its shape, decides where strides do not."""
        sizes: Any = (self.stride, self.padding, self.kernel_size, 2, self.dilation)
        more = _ConvTransposeNd._output_padding(self, input, output_size, *sizes)  # type: ignore[arg-type]
        return conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, more, self.groups, self.dilation,
            activation=self.activation, variant=self.variant, precision=self.precision,
        )  # fmt: skip
