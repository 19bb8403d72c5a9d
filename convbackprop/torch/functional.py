"""The layer as a function of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import handle_torch_function, has_torch_function

from convbackprop.activations import saved_by, torch_function
from convbackprop.errors import InvalidType
from convbackprop.torch import direct
from convbackprop.torch.functions import layer
from convbackprop.torch.options import normalized

Tensor = torch.Tensor

#: The kinds of tensors that operators see with their memory, or with none on purpose.
_KNOWN = (Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str = "identity",
    variant: str = "auto",
) -> Tensor:
    """Compute a convolutional layer's output, y = phi(x * w + b), differentiably.

    The arguments of torch.nn.functional.conv2d, and the activation. Under autocast, float32 tensors are taken in
    autocast's dtype, as torch does. A channels_last input is copied into the usual order first, and y is contiguous.
    Results are the same bits every run, whether or not torch is asked for deterministic algorithms.

    Parameters
    ----------
    input : Tensor, shape (N, C, H, W), (C, H, W) or (H, W)
        float32, float64, float16 or bfloat16, on the CPU or a CUDA device.
    weight : Tensor, shape (K, C/groups, R, S) or (R, S)
        The filters.
    bias : Tensor, shape (K,), optional
        Added to each output channel.
    stride, dilation : int or (int, int)
        Height, width.
    padding : int, (int, int), ((int, int), (int, int)), "same" or "valid"
        As in `convbackprop.conv2d`.
    groups : int
        Divides both numbers of channels.
    activation : str
        As in `convbackprop.conv2d`. Its derivative is formed from y, or for "silu", "gelu", "gelu_tanh" and
        "hardswish" from the pre-activation, which is then kept beside y.
    variant : str
        A rung of the ladder that all passes have, such as "naive", or "auto".

    Returns
    -------
    y : Tensor, shape (N, K, P, Q), or without the axes that input lacks
        As `convbackprop.conv2d` tells.

    Raises
    ------
    InvalidArgument, InvalidType, UnsupportedProblem, ProblemTooLarge
        As `convbackprop.conv2d` does, and for tensors without memory of their own that PyTorch's operators do not
        know either.
    """
    geometry = (stride, padding, dilation, groups)
    if direct.possible(input, weight, bias):
        return direct.layer(input, weight, bias, geometry, activation, variant)
    if has_torch_function((input, weight, bias)):  # subclasses with a say of their own, and torch.fx's proxies
        return handle_torch_function(  # type: ignore[no-any-return]
            conv2d, (input, weight, bias), input, weight, bias, *geometry, activation=activation, variant=variant
        )
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is not None or name != "bias":
            check_tensor(tensor, name)
    options = normalized(weight, geometry, activation)
    input, weight, bias = in_autocast(input, weight, bias)
    *geometry_only, name = options
    if saved_by(name) == "pre_activation":  # it is an intermediate result, which PyTorch keeps and differentiates
        return torch_function(name)(layer(input, weight, bias, *geometry_only, "identity", variant))  # type: ignore[no-any-return]
    return layer(input, weight, bias, *options, variant)


def in_autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the tensors, under autocast those of float32 in its dtype."""
    kind = input.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return _cast(input, dtype), _cast(weight, dtype), None if bias is None else _cast(bias, dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor


def check_tensor(tensor: Any, name: str) -> None:
    """Raise InvalidType for what is no tensor, or one whose numbers no kernel reads."""
    if not isinstance(tensor, Tensor):
        raise InvalidType(f"{name} is a {type(tensor).__name__}; it should be a torch.Tensor")
    if tensor.is_complex():
        raise InvalidType(
            f"{name} has dtype {tensor.dtype}; no kernel is complex; convolve the real and the imaginary part, "
            "which are real"
        )
    kind = type(tensor)
    if kind not in _KNOWN and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise InvalidType(f"{name} is a {kind.__name__}, which is no tensor that the kernels know; pass a torch.Tensor")
