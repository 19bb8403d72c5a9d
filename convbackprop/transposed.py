"""Transposed convolution: the pass input_grad as a layer of its own, bias and activation fused in."""

from __future__ import annotations

from typing import Any

from convbackprop.arguments import integer, pair, shown, sides
from convbackprop.errors import InvalidArgument
from convbackprop.launch import calls
from convbackprop.launch.calls import Checked, Function, Result
from convbackprop.launch.given import Arguments, Given, Shape, as_seen, four_axes, problem_of
from convbackprop.tune.choice import passes_of


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    activation: str = "identity",
    variant: str = "auto",
    precision: str = "ieee",
    device: str | None = None,
    out: Any = None,
) -> Any:
    """Compute a transposed convolution's output, phi(what `conv2d_input_grad` makes of input + b).

    The arguments of torch.nn.functional.conv_transpose2d. It is the pass input_grad: with x the output, w the filters
    and y the input of this layer, it spreads each element of the input over the pixels of the output that a convolution
    by the same filters would form it from.

    Parameters
    ----------
    input : array, shape (N, K, P, Q), (K, P, Q) or (P, Q)
        float32, float64, float16 or bfloat16; of numpy, torch, CuPy or PyCUDA.
    weight : array, shape (K, C/groups, R, S) or (R, S)
        The filters; K is the number of channels of the input, C of the output.
    bias : array, shape (C,), optional
        Added to each output channel.
    stride, dilation : int or (int, int)
        Height, width.
    padding : int, (int, int) or ((int, int), (int, int))
        Rows and columns that are cut off the output: on all sides; (height, width); ((top, bottom), (left, right)).
    output_padding : int or (int, int)
        Further rows at the bottom and columns on the right of the output, fewer than the stride.
    groups : int
        Divides both numbers of channels.
    activation, variant, precision, device
        As in `conv2d`; the rungs are those of input_grad.
    out : array, optional
        Where to write the output.

    Returns
    -------
    array, shape (N, C, H, W), or without the axes that input lacks
        H = (P - 1) * stride - top - bottom + dilation * (R - 1) + output_padding + 1, and W likewise.

    Raises
    ------
    InvalidArgument, InvalidType, UnsupportedProblem, ProblemTooLarge
        As `conv2d` does.
    """
    (y,) = calls.run(
        _TRANSPOSE,
        (input, weight, bias, out),
        device,
        (stride, padding, output_padding, dilation, groups, activation, variant, precision),
    )
    return y


def transposed_size(
    size: Shape,
    w_shape: Shape,
    stride: object,
    padding: object,
    output_padding: object,
    dilation: object,
    groups: object,
) -> Shape:
    """Return the shape of a transposed convolution's output, after a look at all that it follows from."""
    n, k, *extents = four_axes(size, "input")
    if len(w_shape) not in (2, 4):
        raise InvalidArgument(
            f"weight has shape {w_shape}, {len(w_shape)}-D; it should be (K, C/groups, R, S) or one filter (R, S)"
        )
    filters, group_c, *taps = w_shape if len(w_shape) == 4 else (1, 1, *w_shape)
    if filters != k:
        raise InvalidArgument(
            f"weight has shape {w_shape}, {filters} filters; it should have {k}: input has {k} channels"
        )
    strides, dilations = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    more = pair(output_padding, "output_padding", 0)
    for extra, step in zip(more, strides, strict=True):
        if extra >= step:
            raise InvalidArgument(
                f"output_padding is {shown(output_padding)}; it should be less than the stride, {shown(stride)}: pad "
                "the input with zeros at the bottom and on the right instead"
            )
    found = []
    for name, extent, tap, step, around, reach, extra in zip(
        ("height", "width"), extents, taps, strides, sides(padding), dilations, more, strict=True
    ):
        integer(extent, f"input's {name}", 1)
        integer(tap, f"weight's {name}", 1)
        whole = (extent - 1) * step + reach * (tap - 1) + extra + 1
        if sum(around) >= whole:
            raise InvalidArgument(
                f"padding is {shown(padding)}, which cuts off all of the output's {name}, {whole} without it"
            )
        found.append(whole - sum(around))
    channels = group_c * integer(groups, "groups", 1)
    if len(size) == 2 and channels != 1:
        raise InvalidArgument(
            f"input is 2-D, one image of one channel, but weight makes {channels}; pass input as (1, P, Q)"
        )
    return as_seen((n, channels, *found), size)


def _check_transpose(
    given: Given, outs: Given, device: Any, options: tuple[Any, ...], flags: tuple[bool, ...]
) -> Checked:
    stride, padding, output_padding, dilation, groups, activation, variant, precision = options
    call = Arguments(device, given)
    size, w_shape = tuple(given["input"].shape), tuple(given["weight"].shape)
    shape = transposed_size(size, w_shape, stride, padding, output_padding, dilation, groups)
    problem = problem_of(
        shape, "output", w_shape, "weight", stride, sides(padding), dilation, groups, activation, call.dtype, precision,
        bias=given["bias"] is not None, transposed=True,
    )  # fmt: skip
    call.check_shape("bias", (problem.C,), "one value an output channel")
    results = {"dx": Result("output", shape)}
    call.check_outs(outs, results)
    return call.checked(
        results, problem, lambda laid_out: passes_of("input_grad", variant, laid_out, call.device),
        {"input": "dy", "weight": "w", "bias": "b"},
    )  # fmt: skip


_TRANSPOSE = Function(_check_transpose, ("input", "weight", "bias"), ("dx",))
