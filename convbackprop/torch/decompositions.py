"""The operators in PyTorch's own, aten.convolution and the activation, for what knows those only: ONNX.

The layers call these while torch.onnx.export runs; a program exported before has its operators replaced by
``program.run_decompositions(decompositions.TABLE)``. PyTorch's own table of decompositions, which the exporter takes
too, is no place for them: where the variable CI is set, torch.compile refuses operators with an entry there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from convbackprop.activations import torch_function
from convbackprop.torch import epilogue, operators

Tensor = torch.Tensor


def _whole(tensor: Tensor) -> Tensor:
    """Return an image or filters with all four axes."""
    while tensor.ndim < 4:
        tensor = tensor.unsqueeze(0)
    return tensor


def _like(whole: Tensor, ndim: int) -> Tensor:
    while whole.ndim > ndim:
        whole = whole.squeeze(0)
    return whole


def forward(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    groups: int, activation: str, variant: str, precision: str,
) -> Tensor:  # fmt: skip
    """Return phi(x * w + b)."""
    top, bottom, left, right = padding
    image, sides = _whole(x), [top, left]
    if (top, left) != (bottom, right):
        image, sides = torch.constant_pad_nd(image, (left, right, top, bottom)), [0, 0]
    s = torch.convolution(image, _whole(w), b, stride, sides, dilation, False, [0, 0], groups)
    return torch_function(activation)(_like(s, x.ndim))


def scaled_forward(
    x: Tensor, w: Tensor, b: Tensor | None, scale: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, activation: str, variant: str, precision: str,
) -> Tensor:  # fmt: skip
    """Return phi(scale (x * w) + b + residual)."""
    products = forward(x, w, None, stride, padding, dilation, groups, "identity", variant, precision)
    return epilogue.in_steps(products, b, scale, residual, activation)


def input_grad(
    size: Sequence[int], w: Tensor, g: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    groups: int, variant: str, precision: str,
) -> Tensor:  # fmt: skip
    """Return the transposed convolution of g and w: without padding, for what padding takes away is cut off."""
    filters, top, left = _whole(w), padding[0], padding[2]
    height, width = size[-2:]
    over = [
        (extent + before + after - jump * (taps - 1) - 1) % step
        for extent, before, after, step, taps, jump in zip(
            (height, width), padding[::2], padding[1::2], stride, filters.shape[-2:], dilation, strict=True
        )
    ]
    padded = torch.convolution(_whole(g), filters, None, stride, [0, 0], dilation, True, over, groups)
    return _like(padded[:, :, top : top + height, left : left + width], len(size))


TABLE = {operators.forward: forward, operators.scaled_forward: scaled_forward, operators.input_grad: input_grad}
