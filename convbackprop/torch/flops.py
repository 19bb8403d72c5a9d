"""What torch.utils.flop_counter counts for the operators: what it counts for PyTorch's own convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from convbackprop.torch import operators  # noqa: F401 - it defines them

Size = Sequence[int]


def _whole(size: Size) -> tuple[int, ...]:
    """Return four extents, of an unbatched image or a single filter too."""
    return (*(1,) * (4 - len(size)), *size)


def _swapped(size: Size) -> tuple[int, ...]:
    first, second, *spatial = _whole(size)
    return (second, first, *spatial)


@register_flop_formula(torch.ops.convbackprop.forward)
def forward(x: Size, w: Size, *_: Any, out_shape: Size) -> int:
    """Count x * w."""
    return conv_flop_count(_whole(x), _whole(w), _whole(out_shape))  # type: ignore[no-any-return, arg-type]


@register_flop_formula(torch.ops.convbackprop.scaled_forward)
def scaled_forward(x: Size, w: Size, *_: Any, out_shape: Size) -> int:
    """Count x * w: PyTorch counts nothing of a batch norm or a sum."""
    return conv_flop_count(_whole(x), _whole(w), _whole(out_shape))  # type: ignore[no-any-return, arg-type]


def _input_grad(w: Size, g: Size, size: Size) -> int:
    return conv_flop_count(_whole(g), _whole(w), _whole(size), transposed=True)  # type: ignore[no-any-return, arg-type]


def _kernel_grad(x: Size, g: Size, size: Size) -> int:
    return conv_flop_count(_swapped(x), _swapped(g), _swapped(size))  # type: ignore[no-any-return, arg-type]


@register_flop_formula(torch.ops.convbackprop.input_grad)
def input_grad(size: Size, w: Size, g: Size, *_: Any, out_shape: Size) -> int:
    """Count the transposed convolution of g and w."""
    return _input_grad(w, g, size)


@register_flop_formula(torch.ops.convbackprop.kernel_grad)
def kernel_grad(x: Size, size: Size, g: Size, *_: Any, out_shape: Size) -> int:
    """Count the convolution of x and g, channels in the place of images; as PyTorch, all groups with each other."""
    return _kernel_grad(x, g, size)


@register_flop_formula(torch.ops.convbackprop.backward)
def backward(dy: Size, x: Size, w: Size, y: Size | None, needs: Sequence[bool], *_: Any, out_shape: Any) -> int:
    """Count the gradients that are needed."""
    return needs[0] * _input_grad(w, dy, x) + needs[1] * _kernel_grad(x, dy, w)
