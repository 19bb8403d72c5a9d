"""The public functions: check the arguments, choose a variant, launch it (see `calls` for when this is done).

Shapes in the docstrings: input (N,C,H,W), weight (K,C/groups,R,S), bias (K), output (N,K,P,Q) with
P = (H + top + bottom - dilation * (R-1) - 1) // stride + 1 and Q likewise. A 2-D array is one image of one channel, a
3-D one an unbatched (C,H,W); a 2-D weight is one filter. All arrays are of one library, one dtype (float32, float64,
float16, bfloat16) and one device, and so are the results. Images may lie in memory with their channels side by side,
(N, H, W, C), seen as (N, C, H, W); results then lie so, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convbackprop.arguments import known, shown
from convbackprop.devices import Device
from convbackprop.errors import InvalidArgument, InvalidType
from convbackprop.ladder.registry import AUTO, UNTUNED, of_pass
from convbackprop.ladder.variant import Variant
from convbackprop.launch import calls
from convbackprop.launch.calls import Checked, Function, Result
from convbackprop.launch.given import Arguments, Given, Shape, as_seen, problem_of, size_of
from convbackprop.problem import ConvProblem
from convbackprop.tune.choice import choose, one_pass, passes_of, takes_layout

#: stride, padding, dilation, groups, activation, variant, precision, and a size where there is one.
_Options = tuple[Any, ...]


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    scale: Any = None,
    residual: Any = None,
    activation: str = "identity",
    variant: str = "auto",
    precision: str = "ieee",
    device: str | None = None,
    out: Any = None,
    save_mask: bool = False,
) -> Any:
    """Compute a convolutional layer's output, y = phi(x * w + b), or phi(scale (x * w) + b + residual).

    y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] w[k,c,r,s]),
    the cross-correlation of torch.nn.functional.conv2d, whose arguments these are.

    Parameters
    ----------
    input : array, shape (N, C, H, W), (C, H, W) or (H, W)
        float32, float64, float16 or bfloat16; of numpy, torch, CuPy or PyCUDA.
    weight : array, shape (K, C/groups, R, S) or (R, S)
        The filters.
    bias : array, shape (K,), optional
        Added to each output channel.
    stride, dilation : int or (int, int)
        Height, width.
    padding : int, (int, int), ((int, int), (int, int)), "same" or "valid"
        Zeros around the image: on all sides; (height, width); ((top, bottom), (left, right)). "same" keeps the size of
        the image; with an even filter the extra row and column come last. "valid" is 0. They are no pixels: a tap over
        them contributes nothing, also a NaN or infinite one.
    groups : int
        Divides both numbers of channels; filters of one group see that group's input channels only.
    scale : array, shape (K,), optional
        Factor of each output channel's sum, before the bias is added: with the bias as its shift, a batch norm whose
        statistics are frozen.
    residual : array, shape (N, K, P, Q), or without the axes that input lacks, optional
        Added before the activation.
    activation : str
        Applied to the sum before it is rounded: "identity", "relu", "logistic" (or "sigmoid"), "tanh", "relu6",
        "leaky_relu" (or "leaky_relu:SLOPE"), "softplus", "silu", "gelu", "gelu_tanh" or "hardswish".
    variant : str
        A rung of the ladder such as "naive"; "auto", the one that was measured to be fastest on the device where there
        is such a measurement ('convbackprop tune', `tuning`), else what the package's rule chooses; or "untuned", the
        rule's choice: between two measurements "auto" may add in another order, "untuned" never does.
    precision : str
        "ieee": float32 factors are multiplied as they are. "tf32" lets a variant round them to TF32's 11 significant
        bits, as tensor cores take them; sums stay float32, and other dtypes as they are.
    device : str, optional
        Where arrays of the host run: "cpu", "cuda" or "cuda:N"; default for numpy: CONVBACKPROP_DEVICE, else cuda when
        usable, else cpu; for CPU tensors: cpu. Arrays on a GPU run where they lie.
    out : array, optional
        Where to write y.
    save_mask : bool
        Also return the ReLU's bit mask, which the gradients take in place of y.

    Returns
    -------
    y : array, shape (N, K, P, Q), or without the axes that input lacks
        Of the same library, dtype and device as input.
    mask : array of uint8, shape (N, K, P, ceil(Q / 8)), only with save_mask
        numpy.packbits(y > 0, axis=-1, bitorder="little").

    Raises
    ------
    InvalidArgument, InvalidType
        A ValueError or TypeError that names the argument, what it is, and what it should be.
    UnsupportedProblem
        A ValueError: the variant does not compute this problem.
    ProblemTooLarge
        A MemoryError that says how many bytes are missing.
    """
    y, mask = calls.run(
        _FORWARD,
        (input, weight, bias, scale, residual, out, None),
        device,
        (stride, padding, dilation, groups, activation, variant, precision),
        (_flag(save_mask, "save_mask"),),
    )
    return (y, mask) if save_mask else y


def _check_forward(given: Given, outs: Given, device: Any, options: _Options, flags: tuple[bool, ...]) -> Checked:
    stride, padding, dilation, groups, activation, variant, precision = options
    (save_mask,) = flags
    call = Arguments(device, given)
    x_shape, w_shape = tuple(given["input"].shape), tuple(given["weight"].shape)
    problem = problem_of(
        x_shape, "input", w_shape, "weight", stride, padding, dilation, groups, activation, call.dtype, precision,
        bias=given["bias"] is not None, mask=save_mask, scale=given["scale"] is not None,
        residual=given["residual"] is not None,
    )  # fmt: skip
    call.check_shape("bias", (problem.K,), "one value an output channel")
    call.check_shape("scale", (problem.K,), "one value an output channel")
    call.check_shape("residual", as_seen(problem.y_shape, x_shape), "the shape of the output")
    results = {"y": Result("output", as_seen(problem.y_shape, x_shape))}
    if save_mask:
        results["mask"] = Result("mask", as_seen(problem.mask_shape, x_shape))
    call.check_outs(outs, results)
    return call.checked(results, problem, lambda laid_out: passes_of("forward", variant, laid_out, call.device))


_FORWARD = Function(_check_forward, ("input", "weight", "bias", "scale", "residual"), ("y", "mask"))


def _gradient_problem(
    call: Arguments, given: Given, x_shape: Shape, x_name: str, w_shape: Shape, w_name: str, options: _Options,
    **flags: bool,
) -> ConvProblem:  # fmt: skip
    """Return the problem of a gradient, after checking that all is there that it is formed from."""
    stride, padding, dilation, groups, activation, _, precision, *_ = options
    found = [name for name in ("output", "mask", "pre_activation") if given[name] is not None]
    problem = problem_of(
        x_shape, x_name, w_shape, w_name, stride, padding, dilation, groups, activation, call.dtype, precision,
        mask="mask" in found, scale=given["scale"] is not None, **flags,
    )  # fmt: skip
    call.check_shape("scale", (problem.K,), "one value an output channel")
    y_shape = as_seen(problem.y_shape, x_shape)
    call.check_shape("grad_output", y_shape, "the shape of the layer's output for these arguments")
    for name in ("output", "pre_activation"):
        call.check_shape(name, y_shape, "the shape of grad_output")
    call.check_shape("mask", as_seen(problem.mask_shape, x_shape), "a bit for each element of grad_output")
    if len(found) > 1:
        raise InvalidArgument(f"{' and '.join(found[:2])} are both given; phi' should be formed from one of them")
    if problem.saved and problem.saved not in found:
        needed = {
            "output": "the saved output of the forward pass (or, with 'relu', its mask)",
            "pre_activation": "conv2d(..., activation='identity'): it has some values twice, so that the output does "
            "not tell its derivative",
        }[problem.saved]
        raise InvalidArgument(f"{problem.saved} is missing: activation {problem.activation!r} needs {needed}")
    return problem


def conv2d_input_grad(
    input_size: Sequence[int],
    weight: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    output: Any = None,
    mask: Any = None,
    pre_activation: Any = None,
    scale: Any = None,
    activation: str = "identity",
    variant: str = "auto",
    precision: str = "ieee",
    device: str | None = None,
    out: Any = None,
) -> Any:
    """Compute the gradient of a convolutional layer with respect to its input.

    dx[n,c,h,w] = sum_{k,r,s} g[n,k,p,q] w[k,c,r,s] over all (p,q) whose tap (r,s) reads x[n,c,h,w], with
    g = grad_output * phi'. Positional arguments as in torch.nn.grad.conv2d_input.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input: (N, C, H, W), (C, H, W) or (H, W).
    weight : array, shape (K, C/groups, R, S) or (R, S)
        The filters.
    grad_output : array, shape (N, K, P, Q), or without the axes that input_size lacks
        Gradient with respect to the layer's output.
    stride, padding, dilation, groups
        As in the forward pass (see `conv2d`).
    output : array like grad_output, optional
        The forward pass's output, from which phi' is formed; needed unless activation is "identity", or one of those
        below.
    mask : array of uint8, optional
        For "relu" in place of output: the bit mask that conv2d(..., save_mask=True) returned.
    pre_activation : array like grad_output, optional
        For "silu", "gelu", "gelu_tanh" and "hardswish" in place of output, which does not tell their derivative: the
        output without the activation.
    scale : array, shape (K,), optional
        The layer's, a factor of each filter here.
    activation, variant, precision, device
        As in `conv2d`.
    out : array of shape input_size, optional
        Where to write the gradient.

    Returns
    -------
    dx : array of shape input_size
        Of the same library, dtype and device as grad_output.

    Raises
    ------
    InvalidArgument, InvalidType, UnsupportedProblem, ProblemTooLarge
        As `conv2d` does.
    """
    (dx,) = calls.run(
        _INPUT_GRAD,
        (weight, grad_output, output, mask, pre_activation, scale, out),
        device,
        (stride, padding, dilation, groups, activation, variant, precision, input_size),
    )
    return dx


def _check_input_grad(given: Given, outs: Given, device: Any, options: _Options, flags: tuple[bool, ...]) -> Checked:
    *_, variant, _, input_size = options
    call = Arguments(device, given)
    x_shape, w_shape = size_of(input_size, "input_size"), tuple(given["weight"].shape)
    problem = _gradient_problem(call, given, x_shape, "input_size", w_shape, "weight", options)
    results = {"dx": Result("input gradient", x_shape)}
    call.check_outs(outs, results)
    return call.checked(results, problem, lambda laid_out: passes_of("input_grad", variant, laid_out, call.device))


_INPUT_GRAD = Function(
    _check_input_grad, ("weight", "grad_output", "output", "mask", "pre_activation", "scale"), ("dx",)
)


def conv2d_kernel_grad(
    input: Any,
    weight_size: Sequence[int],
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    output: Any = None,
    mask: Any = None,
    pre_activation: Any = None,
    scale: Any = None,
    activation: str = "identity",
    with_bias: bool = False,
    variant: str = "auto",
    precision: str = "ieee",
    device: str | None = None,
    out: Any = None,
) -> Any:
    """Compute the gradient of a convolutional layer with respect to its filters, and to its bias.

    dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] and
    db[k] = sum_{n,p,q} g[n,k,p,q], with g = grad_output * phi'. Positional arguments as in
    torch.nn.grad.conv2d_weight. The same bits every run: sums are formed in a fixed order.

    Parameters
    ----------
    input : array, shape (N, C, H, W), (C, H, W) or (H, W)
        The layer's input.
    weight_size : sequence of int
        Shape of the filters: (K, C/groups, R, S) or (R, S).
    grad_output : array, shape (N, K, P, Q), or without the axes that input lacks
        Gradient with respect to the layer's output.
    stride, padding, dilation, groups
        As in the forward pass (see `conv2d`).
    output, mask, pre_activation, activation, variant, precision, device
        As in `conv2d_input_grad`.
    scale : array, shape (K,), optional
        The layer's, a factor of each filter's gradient. Its own gradient is sum_{c,r,s} w dw, with the dw of a layer
        without it.
    with_bias : bool
        Also return the gradient with respect to the bias.
    out : array of shape weight_size, or with_bias a pair of it and an array of shape (K,), optional
        Where to write the results.

    Returns
    -------
    dw : array of shape weight_size
        Of the same library, dtype and device as input.
    db : array of shape (K,), only with_bias
        The gradient with respect to the bias.

    Raises
    ------
    InvalidArgument, InvalidType, UnsupportedProblem, ProblemTooLarge
        As `conv2d` does.
    """
    with_bias = _flag(with_bias, "with_bias")
    dw_out, db_out = _outs(out, 2, "a pair (dw, db)") if with_bias else (out, None)
    dw, db = calls.run(
        _KERNEL_GRAD,
        (input, grad_output, output, mask, pre_activation, scale, dw_out, db_out),
        device,
        (stride, padding, dilation, groups, activation, variant, precision, weight_size),
        (with_bias,),
    )
    return (dw, db) if with_bias else dw


def _check_kernel_grad(given: Given, outs: Given, device: Any, options: _Options, flags: tuple[bool, ...]) -> Checked:
    *_, variant, _, weight_size = options
    (with_bias,) = flags
    call = Arguments(device, given)
    x_shape, w_shape = tuple(given["input"].shape), size_of(weight_size, "weight_size")
    problem = _gradient_problem(call, given, x_shape, "input", w_shape, "weight_size", options, bias=with_bias)
    results = {"dw": Result("kernel gradient", w_shape)}
    if with_bias:
        results["db"] = Result("bias gradient", (problem.K,))
    call.check_outs(outs, results)
    return call.checked(results, problem, lambda laid_out: passes_of("kernel_grad", variant, laid_out, call.device))


_KERNEL_GRAD = Function(
    _check_kernel_grad, ("input", "grad_output", "output", "mask", "pre_activation", "scale"), ("dw", "db")
)


def conv2d_backward(
    grad_output: Any,
    input: Any,
    weight: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    output: Any = None,
    mask: Any = None,
    pre_activation: Any = None,
    scale: Any = None,
    activation: str = "identity",
    needs: Sequence[bool] = (True, True, True),
    variant: str = "auto",
    precision: str = "ieee",
    device: str | None = None,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """Compute all gradients of a convolutional layer: of its input, its filters and its bias.

    Parameters
    ----------
    grad_output : array, shape (N, K, P, Q), or without the axes that input lacks
        Gradient with respect to the layer's output.
    input : array, shape (N, C, H, W), (C, H, W) or (H, W)
        The layer's input.
    weight : array, shape (K, C/groups, R, S) or (R, S)
        The filters.
    stride, padding, dilation, groups, output, mask, pre_activation, scale, activation, precision, device
        As in `conv2d_input_grad`.
    variant : str
        "fused" computes all that is needed in one pass over grad_output; a rung of the gradients' ladders such as
        "naive" the input gradient and the others one after the other. "vectorised" is both: one pass where dx and
        another gradient are needed and it computes the problem so. "auto" is the rung of the one pass that is made for
        the device, on the same terms, and else for each of the two the rung that "auto" stands for there.
    needs : (bool, bool, bool)
        Which of (dx, dw, db) to compute; no work is done for the others.
    out : (array or None, array or None, array or None), optional
        Where to write dx, dw and db.

    Returns
    -------
    dx, dw, db : arrays of the shapes of input, weight and (K,)
        None where not needed.

    Raises
    ------
    InvalidArgument, InvalidType, UnsupportedProblem, ProblemTooLarge
        As `conv2d` does.
    """
    if not isinstance(needs, Sequence) or list(map(type, needs)) != [bool, bool, bool]:
        raise InvalidArgument(f"needs is {shown(needs)}; it should be three bools, for dx, dw and db")
    need_dx, need_dw, need_db = needs
    dx_out, dw_out, db_out = _outs(out, 3, "three arrays or Nones, for dx, dw and db")
    outs = (dx_out if need_dx else None, dw_out if need_dw else None, db_out if need_db else None)
    dx, dw, db = calls.run(
        _BACKWARD,
        (grad_output, input, weight, output, mask, pre_activation, scale, *outs),
        device,
        (stride, padding, dilation, groups, activation, variant, precision),
        (need_dx, need_dw, need_db),
    )
    return dx, dw if need_dw else None, db


def _check_backward(given: Given, outs: Given, device: Any, options: _Options, needs: tuple[bool, ...]) -> Checked:
    call = Arguments(device, given)
    x_shape, w_shape = tuple(given["input"].shape), tuple(given["weight"].shape)
    need_dx, need_dw, need_db = needs
    problem = _gradient_problem(
        call, given, x_shape, "input", w_shape, "weight", options, dx=need_dx, dw=need_dw, bias=need_db
    )
    possible = {
        "dx": Result("input gradient", x_shape),
        "dw": Result("kernel gradient", w_shape),
        "db": Result("bias gradient", (problem.K,)),
    }
    results = {name: result for (name, result), need in zip(possible.items(), needs, strict=True) if need}
    call.check_outs(outs, results)
    checked = call.checked(results, problem, lambda laid_out: _laid_out_backward(options[5], laid_out, call.device))
    if any(variant.pass_name == "kernel_grad" for variant, _ in checked.passes):
        checked.results = {**results, "dw": possible["dw"]}  # that pass computes it, needed or not
    return checked


_BACKWARD = Function(
    _check_backward, ("grad_output", "input", "weight", "output", "mask", "pre_activation", "scale"), ("dx", "dw", "db")
)


def parts_of_backward(problem: ConvProblem) -> list[tuple[str, ConvProblem]]:
    """Return the passes, each with its problem, that compute one after another the gradients that `problem` wants."""
    separate = problem.with_(dx=True, dw=True)
    parts = []
    if problem.dx:
        parts.append(("input_grad", separate.with_(bias=False)))
    if problem.dw or problem.bias:
        parts.append(("kernel_grad", separate))
    return parts


def _laid_out_backward(variant: str, problem: ConvProblem, device: Device) -> list[tuple[Variant, ConvProblem]] | None:
    """Return the passes; None: not all of them are computed in the layout of the images."""
    if not all(takes_layout(name, variant, part, device) for name, part in parts_of_backward(problem)):
        return None
    return passes_of_backward(variant, problem, device)


def passes_of_backward(variant: str, problem: ConvProblem, device: Device | str) -> list[tuple[Variant, ConvProblem]]:
    """Return what computes the gradients that `problem` wants: one pass, or one for dx and one for dw and db."""
    parts = parts_of_backward(problem)
    fused = [rung.name for rung in of_pass("backward")]
    ladders = [
        [rung.name for rung in of_pass(name)] for name, _ in parts or (("input_grad", None), ("kernel_grad", None))
    ]
    shared = [name for name in ladders[0] if all(name in ladder for ladder in ladders)]
    known(variant, tuple(dict.fromkeys((AUTO, UNTUNED, *fused, *shared))), "variant")
    if not parts:
        return []
    if variant in fused and variant not in shared:
        return [(choose("backward", variant, problem, device), problem)]
    if len(parts) == 2 and (rung := one_pass(variant, problem, device)):
        return [(rung, problem)]
    return [(choose(name, variant, part, device), part) for name, part in parts]


def _flag(value: object, argument: str) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidType(f"{argument} is {shown(value)}; it should be True or False")


def _outs(out: Any, count: int, what: str) -> Sequence[Any]:
    if out is None:
        return (None,) * count
    if isinstance(out, tuple | list) and len(out) == count:
        return out
    raise InvalidType(f"out is a {type(out).__name__}; it should be {what}")
