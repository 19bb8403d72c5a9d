"""The layer as a module."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.utils import _pair
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convbackprop.activations import activation_name
from convbackprop.arguments import known
from convbackprop.errors import InvalidArgument, InvalidType
from convbackprop.ladder.registry import AUTO, UNTUNED, of_pass
from convbackprop.problem import PRECISIONS
from convbackprop.torch.functional import conv2d, not_scriptable

Tensor = torch.Tensor
Module = torch.nn.Module


class Layer(_ConvNd):
    """What the modules add to a convolution of PyTorch's: an activation, a variant and a precision.

    It is no torch.nn.Conv2d, for tools that ask whether a module is one take it for a convolution and nothing else.
    """

    def __init__(self, *arguments: Any, activation: str, variant: str, precision: str | None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.activation = activation_name(activation)
        rungs = [{rung.name for rung in of_pass(name)} for name in ("forward", "input_grad", "kernel_grad")]
        shared = [rung.name for rung in of_pass("forward") if all(rung.name in ladder for ladder in rungs)]
        self.variant = known(variant, (AUTO, UNTUNED, *shared), "variant")
        self.precision = None if precision is None else known(precision, PRECISIONS, "precision")

    __prepare_scriptable__ = not_scriptable

    def register_parameter(self, name: str, param: Any) -> None:
        """Refuse what torch.nn.utils.fusion, which asks no module what it is, would make of an activation."""
        activation = getattr(self, "activation", "identity")  # not there yet where _ConvNd makes its parameters
        assigns = sys._getframe(1).f_back
        if activation != "identity" and assigns is not None and assigns.f_code is fuse_conv_bn_eval.__code__:
            raise InvalidArgument(
                f"conv has activation {activation!r} between its weight and the batch norm, which therefore cannot be "
                "folded into it; leave the batch norm where it is"
            )
        super().register_parameter(name, param)

    def extra_repr(self) -> str:  # noqa: D102
        usual = {"activation": "identity", "variant": AUTO, "precision": None}
        unusual = ((name, getattr(self, name)) for name, value in usual.items() if getattr(self, name) != value)
        return super().extra_repr() + "".join(f", {name}={value!r}" for name, value in unusual)


class Conv2d(Layer):
    """A convolutional layer by this package's kernels: phi(x * w + b).

    The constructor of torch.nn.Conv2d with three more arguments, its parameters, and its state_dict, both ways. No
    subclass of it: what looks for layers by isinstance, such as an initialisation, asks for both.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        As in torch.nn.Conv2d.
    activation : str
        As in `convbackprop.conv2d`: "identity", "relu", "gelu", ...
    variant : str
        A rung of the ladder that all passes have, such as "naive", "auto" or "untuned": see `convbackprop.conv2d`.
    precision : str, optional
        As in `convbackprop.torch.conv2d`.

    Attributes
    ----------
    scale : Tensor, shape (out_channels,), or None
        As in `convbackprop.torch.conv2d`; None until one is assigned, which may be a Parameter, and then part of the
        state_dict. `fuse_frozen_batch_norm` makes layers that have one.

    Raises
    ------
    InvalidArgument
        For an unknown activation, variant or precision; else what torch.nn.Conv2d raises.
    """

    scale: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "identity",
        variant: str = "auto",
        precision: str | None = None,
    ) -> None:
        sides = padding if isinstance(padding, str) else _pair(padding)
        super().__init__(
            in_channels, out_channels, _pair(kernel_size), _pair(stride), sides, _pair(dilation), False, _pair(0),
            groups, bias, padding_mode, device=device, dtype=dtype, activation=activation, variant=variant,
            precision=precision,
        )  # fmt: skip
        self.register_buffer("scale", None)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return phi(x * w + b), or with a scale and a residual phi(scale (x * w) + b + residual)."""
        return self._conv_forward(input, self.weight, self.bias, residual)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups, scale=self.scale, residual=residual,
            activation=self.activation, variant=self.variant, precision=self.precision,
        )  # fmt: skip


def fuse_frozen_batch_norm(conv: Module, norm: Any, activation: str = "identity") -> Conv2d:
    """Return a convolution, the batch norm after it, whose statistics are frozen, and an activation as one layer.

    It computes phi(scale (x * w) + b), or phi(scale (x * w) + b + residual), in one pass over its output, with
    scale = gamma / sqrt(variance + eps) and the shift b = beta - scale * mean. The weight is conv's own parameter, and
    the only one that is trained; scale and b are the norm's as it is now.

    Parameters
    ----------
    conv : torch.nn.Conv2d or Conv2d
        Without an activation and a scale of its own.
    norm : torch.nn.BatchNorm2d in eval mode, or any module with its running_mean, running_var, weight, bias and eps
        Such as torchvision's FrozenBatchNorm2d.
    activation : str
        As in `convbackprop.conv2d`.

    Raises
    ------
    InvalidArgument
        The batch norm is in training mode, has no running statistics, or is of another number of channels; or conv has
        an activation or a scale.
    InvalidType
        conv is no two-dimensional convolution.
    """
    if not isinstance(conv, torch.nn.Conv2d | Conv2d):
        raise InvalidType(f"conv is a {type(conv).__name__}; it should be a torch.nn.Conv2d or one of ours")
    if (own := getattr(conv, "activation", "identity")) != "identity" or getattr(conv, "scale", None) is not None:
        what = f"activation {own!r}" if own != "identity" else "a scale"
        raise InvalidArgument(f"conv has {what}, which stands between it and the batch norm; it should have none")
    if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) and norm.training:
        raise InvalidArgument(
            "norm is in training mode, where it takes the statistics of each batch; it should be frozen: norm.eval()"
        )
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or variance is None:
        raise InvalidArgument(f"norm is a {type(norm).__name__} without running statistics; it should have some")
    if mean.shape != (conv.out_channels,):
        raise InvalidArgument(
            f"norm has {mean.numel()} channels; it should have {conv.out_channels}, as many as conv gives"
        )
    with torch.no_grad():
        scale = torch.rsqrt(variance + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -scale * mean if norm.bias is None else norm.bias - scale * mean
        shift = shift if conv.bias is None else shift + scale * conv.bias
    layer = Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
        True, conv.padding_mode, device="meta", dtype=conv.weight.dtype, activation=activation,
        variant=getattr(conv, "variant", AUTO), precision=getattr(conv, "precision", None),
    )  # fmt: skip
    layer.weight = conv.weight
    layer.bias = torch.nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    layer.scale = scale.to(conv.weight.dtype)
    return layer.train(conv.training)
