"""The layer as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from convbackprop.activations import activation_name
from convbackprop.arguments import known
from convbackprop.ladder.registry import of_pass
from convbackprop.torch.functional import conv2d

Tensor = torch.Tensor


class Conv2d(torch.nn.Conv2d):
    """A convolutional layer by this package's kernels: phi(x * w + b).

    The constructor of torch.nn.Conv2d with two more arguments, its parameters, and its state_dict, both ways.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        As in torch.nn.Conv2d.
    activation : str
        As in `convbackprop.conv2d`: "identity", "relu", "gelu", ...
    variant : str
        A rung of the ladder that all passes have, such as "naive", or "auto".

    Raises
    ------
    InvalidArgument
        For an unknown activation or variant; else what torch.nn.Conv2d raises.
    """

    def __init__(self, *arguments: Any, activation: str = "identity", variant: str = "auto", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.activation = activation_name(activation)
        rungs = [{rung.name for rung in of_pass(name)} for name in ("forward", "input_grad", "kernel_grad")]
        shared = [rung.name for rung in of_pass("forward") if all(rung.name in ladder for ladder in rungs)]
        self.variant = known(variant, ("auto", *shared), "variant")

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups,
            activation=self.activation, variant=self.variant,
        )  # fmt: skip

    def extra_repr(self) -> str:  # noqa: D102
        more = f", activation={self.activation!r}" if self.activation != "identity" else ""
        return super().extra_repr() + more + (f", variant={self.variant!r}" if self.variant != "auto" else "")
