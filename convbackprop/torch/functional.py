"""The layer as a function of tensors."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import handle_torch_function, has_torch_function

from convbackprop.activations import saved_by, torch_function
from convbackprop.errors import InvalidType
from convbackprop.torch import decompositions, direct, epilogue, functions, operators
from convbackprop.torch.options import normalized, precision_of

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
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    variant: str = "auto",
    precision: str | None = None,
) -> Tensor:
    """Compute a convolutional layer's output, y = phi(x * w + b), or phi(scale (x * w) + b + residual), differentiably.

    The arguments of torch.nn.functional.conv2d, and the activation. Under autocast, float32 tensors are taken in
    autocast's dtype, as torch does. Also as torch's, y and the gradients are channels_last where input or weight is;
    where the variant does not take this format, copies are made before and after it (of a filter, always). Results are
    the same bits every run, whether or not torch is asked for deterministic algorithms.

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
    scale : Tensor, shape (K,), optional
        Factor of each output channel's sum, before the bias is added: with the bias as its shift, a batch norm whose
        statistics are frozen (`nn.fuse_frozen_batch_norm`).
    residual : Tensor, shape (N, K, P, Q), or without the axes that input lacks, optional
        Added before the activation. Under torch.func.jvp, torch.jit.trace and torch.onnx.export scale and residual are
        steps of their own.
    activation : str
        As in `convbackprop.conv2d`. Its derivative is formed from y, or for "silu", "gelu", "gelu_tanh" and
        "hardswish" from the pre-activation, which is then kept beside y.
    variant : str
        A rung of the ladder that all passes have, such as "naive", "auto" or "untuned": see `convbackprop.conv2d`.
    precision : str, optional
        "ieee" or "tf32", for all passes: see `convbackprop.conv2d`. By default what torch's own convolution does: on a
        CUDA device "tf32" where torch.backends.cudnn allows it, as it does from the start.

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
    has_options = scale is not None or residual is not None
    if not has_options and direct.possible(input, weight, bias):
        return direct.layer(input, weight, bias, geometry, activation, (variant, precision_of(precision, input)))
    given = (input, weight, bias, scale, residual)
    if has_torch_function(given):  # subclasses with a say of their own, and torch.fx's proxies
        more: dict[str, Any] = {"scale": scale, "residual": residual} if has_options else {}
        return handle_torch_function(  # type: ignore[no-any-return]
            conv2d, given, input, weight, bias, *geometry, **more, activation=activation, variant=variant,
            precision=precision,
        )  # fmt: skip
    for name, tensor in zip(("input", "weight", "bias", "scale", "residual"), given, strict=True):
        if tensor is not None or name in ("input", "weight"):
            check_tensor(tensor, name)
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    options = (_untraced if tracing else normalized)(weight, geometry, activation)
    input, weight, bias, scale, residual = in_autocast(input, weight, bias, scale, residual)
    *geometry_only, name = options
    how = (variant, precision_of(precision, input))
    layer = operators.forward if tracing else functions.layer  # a traced program calls the operator
    if torch.onnx.is_in_onnx_export():
        layer = decompositions.forward
    if has_options:
        if tracing or torch.onnx.is_in_onnx_export() or functions.in_forward_mode():
            products = layer(input, weight, None, *geometry_only, "identity", *how)
            return epilogue.in_steps(products, bias, scale, residual, name)
        layer = functools.partial(_with_options, scale, residual)
    if saved_by(name) == "pre_activation":  # it is an intermediate result, which PyTorch keeps and differentiates
        return torch_function(name)(layer(input, weight, bias, *geometry_only, "identity", *how))  # type: ignore[no-any-return]
    return layer(input, weight, bias, *options, *how)


def _with_options(
    scale: Tensor | None, residual: Tensor | None, x: Tensor, w: Tensor, b: Tensor | None, *options: Any
) -> Tensor:
    return epilogue.layer(x, w, b, scale, residual, *options)


def in_autocast(input: Tensor, *others: Tensor | None) -> Any:
    """Return the tensors, under autocast those of float32 in its dtype."""
    kind = input.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return input, *others
    dtype = torch.get_autocast_dtype(kind)
    return tuple(None if tensor is None else _cast(tensor, dtype) for tensor in (input, *others))


def _untraced(weight: Tensor, *options: Any) -> Any:
    """Return what `normalized` does, of sizes that are numbers: torch.jit.trace has them as tensors."""
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return normalized(weight, *options)
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


def not_scriptable(*_: Any) -> Any:
    """Refuse torch.jit.script: what PyTorch asks of functions and of modules by the name __prepare_scriptable__."""
    raise InvalidType(
        "torch.jit.script compiles no layer of convbackprop.torch, which is not written in TorchScript; use "
        "torch.compile or torch.export"
    )


conv2d.__prepare_scriptable__ = not_scriptable  # type: ignore[attr-defined]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor


def check_tensor(tensor: Any, name: str) -> None:
    """Raise InvalidType for what is no tensor, or one whose numbers no kernel reads."""
    if not isinstance(tensor, Tensor):
        raise InvalidType(f"{name} is a {type(tensor).__name__}; it should be a torch.Tensor")
    if tensor.is_nested:
        raise InvalidType(
            f"{name} is a nested tensor; pass the tensors that it is made of one by one ({name}.unbind()), or all in "
            "one size (torch.nested.to_padded_tensor)"
        )
    if tensor.layout is not torch.strided:
        raise InvalidType(f"{name} is a tensor of layout {tensor.layout}; pass {name}.to_dense()")
    if tensor.is_complex():
        raise InvalidType(
            f"{name} has dtype {tensor.dtype}; no kernel is complex; convolve the real and the imaginary part, "
            "which are real"
        )
    kind = type(tensor)
    if kind not in _KNOWN and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise InvalidType(f"{name} is a {kind.__name__}, which is no tensor that the kernels know; pass a torch.Tensor")
