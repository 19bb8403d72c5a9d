"""A layer's options as the operators take them."""

from __future__ import annotations

from typing import Any

import torch

from convbackprop.activations import activation_name
from convbackprop.arguments import integer, known, pair, resolve_padding
from convbackprop.errors import InvalidArgument
from convbackprop.problem import PRECISIONS

#: stride, padding as (top, bottom, left, right), dilation, groups and the activation.
Options = tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int], int, str]


def precision_of(given: str | None, tensor: torch.Tensor) -> str:
    """Return the precision that is given, or that torch's own convolution of such a tensor has."""
    if given is not None:
        return known(given, PRECISIONS, "precision")
    return "tf32" if tensor.is_cuda and allowed_by_torch() else "ieee"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def allowed_by_torch() -> bool:
    """Return whether torch lets its convolutions round to TF32; a compiled program keeps what was so at first."""
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else cudnn.allow_tf32  # before 2.9


def normalized(weight: torch.Tensor, geometry: tuple[Any, Any, Any, Any], activation: Any) -> Options:
    """Return `conv2d`'s stride, padding, dilation and groups, and its activation: checked, and in one form."""
    stride, padding, dilation, groups = geometry
    strides, dilations = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    if weight.ndim < 2:
        raise InvalidArgument(
            f"weight has shape {tuple(weight.shape)}; it should be (K, C/groups, R, S) or one filter (R, S)"
        )
    r, s = weight.shape[-2:]
    (top, bottom), (left, right) = resolve_padding(padding, (r, s), strides, dilations)
    return strides, (top, bottom, left, right), dilations, integer(groups, "groups", 1), activation_name(activation)
