"""A layer's options as the operators take them."""

from __future__ import annotations

from typing import Any

import torch

from convbackprop.activations import activation_name
from convbackprop.arguments import integer, pair, resolve_padding
from convbackprop.errors import InvalidArgument

#: stride, padding as (top, bottom, left, right), dilation, groups and the activation.
Options = tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int], int, str]


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
