"""The package's passes as operators of PyTorch: ``torch.ops.convbackprop.forward`` and its gradients.

As operators, the passes have a place in graphs that are traced, compiled and exported: a schema, a rule for shapes
without data (fake and meta tensors) and a rule for `torch.vmap`. `functions` differentiates them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from convbackprop import ops
from convbackprop.errors import InvalidArgument, InvalidType
from convbackprop.ladder.registry import choose
from convbackprop.launch.given import problem_of
from convbackprop.problem import DTYPES
from convbackprop.torch import batching
from convbackprop.torch.formats import formatted

Tensor = torch.Tensor
#: stride, padding as (top, bottom, left, right), dilation, groups.
Geometry = tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int], int]

_GEOMETRY = "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, int groups"
_HOW = "str variant, str precision"
LIBRARY = torch.library.Library("convbackprop", "DEF")


def _define(schema: str, run: Any, shapes: Any) -> None:
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"convbackprop::{name}", shapes, lib=LIBRARY)


def _for_kernels(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> tuple[Any, ...]:
    """Return a geometry as the package's own functions take it."""
    top, bottom, left, right = padding
    return tuple(stride), ((top, bottom), (left, right)), tuple(dilation), groups


# -- with data -------------------------------------------------------------------------------------------------------
def _forward(x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Tensor:
    *geometry, activation, variant, precision = options
    own = {"activation": activation, "variant": variant, "precision": precision}
    y = ops.conv2d(x, w, b, *_for_kernels(*geometry), **own)
    return formatted(y, x, w)


def _scaled_forward(
    x: Tensor, w: Tensor, b: Tensor | None, scale: Tensor | None, residual: Tensor | None, *options: Any
) -> Tensor:
    *geometry, activation, variant, precision = options
    own = {"scale": scale, "residual": residual, "activation": activation, "variant": variant, "precision": precision}
    return formatted(ops.conv2d(x, w, b, *_for_kernels(*geometry), **own), x, w)


def _input_grad(size: Sequence[int], w: Tensor, g: Tensor, *options: Any) -> Tensor:
    *geometry, variant, precision = options
    own = {"variant": variant, "precision": precision}
    return formatted(ops.conv2d_input_grad(tuple(size), w, g, *_for_kernels(*geometry), **own), w, g)


def _kernel_grad(x: Tensor, size: Sequence[int], g: Tensor, *options: Any) -> Tensor:
    *geometry, variant, precision = options
    own = {"variant": variant, "precision": precision}
    return formatted(ops.conv2d_kernel_grad(x, tuple(size), g, *_for_kernels(*geometry), **own), x, g)


def _backward(
    dy: Tensor, x: Tensor, w: Tensor, y: Tensor | None, needs: Sequence[bool], *options: Any
) -> tuple[Tensor, ...]:
    *geometry, activation, variant, precision = options
    gradients = ops.conv2d_backward(
        dy, x, w, *_for_kernels(*geometry), output=y, activation=activation, needs=tuple(needs), variant=variant,
        precision=precision,
    )  # fmt: skip
    return tuple(dy.new_empty(0) if gradient is None else formatted(gradient, x, w) for gradient in gradients)


# -- without data ----------------------------------------------------------------------------------------------------
def _check_alike(**tensors: Tensor | None) -> None:
    """Raise unless all tensors have one dtype, which there are kernels for, and one device."""
    (first, like), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    if str(like.dtype).removeprefix("torch.") not in DTYPES:
        raise InvalidType(f"{first} has dtype {like.dtype}; it should be one of {', '.join(DTYPES)}")
    for name, tensor in others:
        if tensor.dtype != like.dtype:
            raise InvalidType(
                f"{name} has dtype {tensor.dtype}, but it should be {like.dtype}: {first} is {like.dtype}"
            )
        if tensor.device != like.device:
            raise InvalidArgument(
                f"{name} is on device {tensor.device}, but {first} is on {like.device}; move one of them"
            )


def _output_shape(
    x_shape: Sequence[Any], w_shape: Sequence[Any], like: Tensor, geometry: Sequence[Any], activation: str,
    variant: str, precision: str, **flags: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """Return y's shape; sizes that are not known yet are taken to be right, for the kernels look at them later."""
    stride, padding, dilation, _ = geometry
    if all(isinstance(size, int) for size in (*x_shape, *w_shape)):
        dtype = str(like.dtype).removeprefix("torch.")
        strides, sides, dilations, groups = _for_kernels(*geometry)
        problem = problem_of(
            tuple(x_shape), "input", tuple(w_shape), "weight", strides, sides, dilations, groups, activation, dtype,
            precision, **flags,
        )  # fmt: skip
        if like.device.type != "meta":
            choose("forward", variant, problem, like.device.type)
    taps = w_shape[-2:]
    before_after = (padding[:2], padding[2:])
    height, width = (
        (size + sum(around) - step * (extent - 1) - 1) // jump + 1
        for size, around, step, extent, jump in zip(x_shape[-2:], before_after, dilation, taps, stride, strict=True)
    )
    images, filters = x_shape[:-3], w_shape[:-3]
    return (*images, *filters[-1:], height, width) if len(x_shape) > 2 else (height, width)


def _bias_shape(w: Tensor) -> tuple[int]:
    return (w.shape[0] if w.ndim == 4 else 1,)


def _check_per_channel(w: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tuple(tensor.shape) != _bias_shape(w):
            raise InvalidArgument(
                f"{name} has shape {tuple(tensor.shape)}; it should be {_bias_shape(w)}, one value an output channel"
            )


def _forward_shapes(x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Tensor:
    *geometry, activation, variant, precision = options
    _check_alike(input=x, weight=w, bias=b)
    shape = _output_shape(x.shape, w.shape, x, geometry, activation, variant, precision)
    _check_per_channel(w, bias=b)
    return formatted(x.new_empty(shape), x, w)


def _scaled_forward_shapes(
    x: Tensor, w: Tensor, b: Tensor | None, scale: Tensor | None, residual: Tensor | None, *options: Any
) -> Tensor:
    *geometry, activation, variant, precision = options
    _check_alike(input=x, weight=w, bias=b, scale=scale, residual=residual)
    flags = {"scale": scale is not None, "residual": residual is not None}
    shape = _output_shape(x.shape, w.shape, x, geometry, activation, variant, precision, **flags)
    _check_per_channel(w, bias=b, scale=scale)
    if residual is not None and tuple(residual.shape) != shape:
        raise InvalidArgument(f"residual has shape {tuple(residual.shape)}; it should be {shape}, the output's")
    return formatted(x.new_empty(shape), x, w)


def _input_grad_shapes(size: Sequence[int], w: Tensor, g: Tensor, *options: Any) -> Tensor:
    _check_alike(weight=w, grad_output=g)
    return formatted(g.new_empty(size), w, g)


def _kernel_grad_shapes(x: Tensor, size: Sequence[int], g: Tensor, *options: Any) -> Tensor:
    _check_alike(input=x, grad_output=g)
    return formatted(x.new_empty(size), x, g)


def _backward_shapes(
    dy: Tensor, x: Tensor, w: Tensor, y: Tensor | None, needs: Sequence[bool], *options: Any
) -> tuple[Tensor, ...]:
    _check_alike(grad_output=dy, input=x, weight=w, output=y)
    shapes = (x.shape, w.shape, _bias_shape(w))
    empty = (dy.new_empty(shape if needed else 0) for shape, needed in zip(shapes, needs, strict=True))
    return tuple(formatted(gradient, x, w) for gradient in empty)


# -- the operators ---------------------------------------------------------------------------------------------------
_define(f"forward(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}, str activation, {_HOW}) -> Tensor",
        _forward, _forward_shapes)  # fmt: skip
_define(f"scaled_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual, {_GEOMETRY}, "
        f"str activation, {_HOW}) -> Tensor", _scaled_forward, _scaled_forward_shapes)  # fmt: skip
_define(f"input_grad(SymInt[] input_size, Tensor weight, Tensor grad_output, {_GEOMETRY}, {_HOW}) -> Tensor",
        _input_grad, _input_grad_shapes)  # fmt: skip
_define(f"kernel_grad(Tensor input, SymInt[] weight_size, Tensor grad_output, {_GEOMETRY}, {_HOW}) -> Tensor",
        _kernel_grad, _kernel_grad_shapes)  # fmt: skip
_define(f"backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? output, bool[3] needs, {_GEOMETRY}, "
        f"str activation, {_HOW}) -> (Tensor, Tensor, Tensor)", _backward, _backward_shapes)  # fmt: skip

forward = torch.ops.convbackprop.forward.default
scaled_forward = torch.ops.convbackprop.scaled_forward.default
input_grad = torch.ops.convbackprop.input_grad.default
kernel_grad = torch.ops.convbackprop.kernel_grad.default
backward = torch.ops.convbackprop.backward.default


def contract(
    x: Tensor | None, w: Tensor | None, g: Tensor | None, size: Sequence[int],
    stride: Any, padding: Any, dilation: Any, groups: int, variant: str, precision: str,
) -> Tensor:  # fmt: skip
    """Return the one of x, w and g that is None, from the other two: a gradient, or the forward pass.

    All three are what is left of <x * w, g> (a number that is linear in each) when one is taken out. `size` is the
    shape of the one that is missing, if that is x or w.
    """
    geometry, how = (stride, padding, dilation, groups), (variant, precision)
    if x is None:
        return input_grad(size, w, g, *geometry, *how)  # type: ignore[no-any-return]
    if w is None:
        return kernel_grad(x, size, g, *geometry, *how)  # type: ignore[no-any-return]
    return forward(x, w, None, *geometry, "identity", *how)  # type: ignore[no-any-return]


def _vmap_input_grad(info: Any, dims: Any, size: Any, w: Tensor, g: Tensor, *options: Any) -> Any:
    return batching.contraction(contract, info, (None, *dims[1:3]), None, w, g, size, *options)


def _vmap_kernel_grad(info: Any, dims: Any, x: Tensor, size: Any, g: Tensor, *options: Any) -> Any:
    return batching.contraction(contract, info, (dims[0], None, dims[2]), x, None, g, size, *options)


for _name, _rule in (
    ("forward", functools.partial(batching.forward, forward)),
    ("scaled_forward", functools.partial(batching.scaled_forward, scaled_forward)),
    ("input_grad", _vmap_input_grad),
    ("kernel_grad", _vmap_kernel_grad),
    ("backward", functools.partial(batching.backward, contract)),
):
    torch.library.register_vmap(f"convbackprop::{_name}", _rule, lib=LIBRARY)
