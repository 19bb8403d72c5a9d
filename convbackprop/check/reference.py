"""The answer to a problem in more precision than the kernels have, and how far a kernel may be from it.

A direct sum over filter taps in numpy: float64, or long double for float64 problems. It shares no code with the
kernels. The padding is no pixel: a tap over it adds nothing to a sum, whatever the tap is, also NaN or infinite.
The error bound is derived, not tuned: see `error_bound`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convbackprop.activations import activation
from convbackprop.ladder.variant import Transforms
from convbackprop.problem import ACCUMULATORS, RESULTS, ConvProblem

Array = Any  # numpy.ndarray; its dtype is the point here, and numpy's types do not carry it well

#: Significant bits of each dtype, and the exponents of its smallest subnormal and its smallest normal number.
_BITS = {"float32": 24, "float64": 53, "float16": 11, "bfloat16": 8}
_SMALLEST = {"float32": -149, "float64": -1074, "float16": -24, "bfloat16": -133}
_NORMAL = {"float32": -126, "float64": -1022}
_LARGEST = {"float32": 128, "float64": 1024, "float16": 16, "bfloat16": 128}


#: The unit round-off of a factor in TF32.
_TF32 = 2.0**-11


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of a name; bfloat16 is ml_dtypes'."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def round_off(dtype: str) -> float:
    """Return the unit round-off of a dtype, half the distance from 1 to the next number."""
    return 2.0 ** -_BITS[dtype]


def exact_dtype(problem: ConvProblem) -> Any:
    """Return the type in which the reference computes."""
    return np.longdouble if problem.dtype == "float64" else np.float64


# -- the activation --------------------------------------------------------------------------------------------------
def mask_of(y: Array) -> Array:
    """Return the bits that a ReLU saves of its output: 1 where it is open, and where y is NaN."""
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of a NaN
        return np.packbits(~(y <= 0), axis=-1, bitorder="little")


def saved_by_forward(problem: ConvProblem, given: Mapping[str, Array]) -> Array:
    """Return what a layer keeps for its gradients, rounded as it is stored: y, its bits, or the pre-activation."""
    layer = problem.with_(activation="identity", mask=False) if problem.saved == "pre_activation" else problem
    kept = answer("forward", layer, given)["y"][0].astype(numpy_dtype(problem.dtype))
    return mask_of(kept) if problem.mask else kept


def pre_activation_grad(problem: ConvProblem, dy: Array, saved: Array | None) -> tuple[Array, Array]:
    """Return g = dy * phi'(s), with phi' from what the forward pass saved, and the magnitudes of its terms."""
    grad = dy.astype(exact_dtype(problem))
    phi = activation(problem.activation)
    if saved is None:
        return grad, abs(grad)
    if problem.saved == "mask":
        is_open = np.unpackbits(saved, axis=-1, bitorder="little", count=problem.Q).astype(bool)
        grad = np.where(is_open, grad, 0)
    elif problem.saved:
        kept = saved.astype(grad.dtype)
        if phi.grad_size:
            underflow = np.ldexp(grad.dtype.type(1), _NORMAL[ACCUMULATORS[problem.dtype]]) * (1 + abs(kept))
            size = phi.grad_size(abs(grad), kept) + abs(grad) * underflow
            grad = phi.grad(np, grad, kept)
            return grad, np.where(np.isfinite(kept), size, abs(grad))  # at an infinity phi' is 0 or 1
        grad = phi.grad(np, grad, kept)
    return grad, abs(grad)


# -- the three sums, over filter taps --------------------------------------------------------------------------------
def _inside(count: int, size: int, start: int, stride: int) -> tuple[slice, slice]:
    """Return which of `count` outputs see a pixel through a tap, along one axis, and which pixels these are.

    The tap of output 0 lies at `start`, which is below 0 in the padding. No zero stands there: it would make NaN of an
    infinite factor.
    """
    first = max(0, -(start // stride))  # rounded up
    end = max(first, min(count, (size - 1 - start) // stride + 1))
    return slice(first, end), slice(start + first * stride, start + end * stride, stride)


def _meetings(problem: ConvProblem) -> Iterator[tuple[int, int, Any, Any]]:
    """Yield for each tap (r, s) the index of all outputs that see a pixel through it, and that of these pixels."""
    p = problem
    for r in range(p.R):
        rows, image_rows = _inside(p.P, p.H, r * p.dilation[0] - p.padding[0][0], p.stride[0])
        for s in range(p.S):
            cols, image_cols = _inside(p.Q, p.W, s * p.dilation[1] - p.padding[1][0], p.stride[1])
            yield r, s, (..., rows, cols), (..., image_rows, image_cols)


def _images(problem: ConvProblem, x: Array) -> Array:
    """Return images as (N, groups, C/groups, H, W)."""
    p = problem
    return x.astype(exact_dtype(p)).reshape(p.N, p.groups, p.C // p.groups, p.H, p.W)


def _outputs(problem: ConvProblem, g: Array) -> Array:
    """Return an output-shaped array as (N, groups, K/groups, P, Q)."""
    return g.reshape(problem.N, problem.groups, problem.K // problem.groups, problem.P, problem.Q)


def _filters(problem: ConvProblem, w: Array) -> Array:
    """Return the filters as (groups, K/groups, C/groups, R, S)."""
    p = problem
    return w.astype(exact_dtype(p)).reshape(p.groups, p.K // p.groups, p.C // p.groups, p.R, p.S)


def _as_columns(planes: Array) -> Array:
    """Return planes with all of their pixels on one axis, the last."""
    return planes.reshape(*planes.shape[:3], planes.shape[3] * planes.shape[4])


def correlate(problem: ConvProblem, x: Array, w: Array) -> Array:
    """Return sum_{c,r,s} x w, shape (N, K, P, Q): the forward pass without bias and activation."""
    image, filters = _images(problem, x), _filters(problem, w)
    total = _outputs(problem, np.zeros(problem.y_shape, image.dtype))
    for r, s, seen, pixels in _meetings(problem):
        there = total[seen]
        there += (filters[..., r, s] @ _as_columns(image[pixels])).reshape(there.shape)
    return total.reshape(problem.y_shape)


def correlate_back(problem: ConvProblem, g: Array, w: Array) -> Array:
    """Return sum_{k,r,s} g w, shape (N, C, H, W): each output spread over the inputs that it read."""
    filters, grad = _filters(problem, w), _outputs(problem, g)
    total = _images(problem, np.zeros(problem.x_shape, grad.dtype))
    for r, s, seen, pixels in _meetings(problem):
        there = total[pixels]
        there += (filters[..., r, s].swapaxes(-1, -2) @ _as_columns(grad[seen])).reshape(there.shape)
    return total.reshape(problem.x_shape)


def correlate_images(problem: ConvProblem, x: Array, g: Array) -> Array:
    """Return sum_{n,p,q} g x, shape (K, C/groups, R, S)."""
    image, grad = _images(problem, x), _outputs(problem, g)
    total = np.zeros_like(_filters(problem, np.zeros(problem.w_shape)))
    for r, s, seen, pixels in _meetings(problem):
        products = _as_columns(grad[seen]) @ _as_columns(image[pixels]).swapaxes(-1, -2)
        total[..., r, s] = products.sum(axis=0)
    return total.reshape(problem.w_shape)


def _factors(problem: ConvProblem, given: Mapping[str, Array]) -> Array:
    """Return the scale of each filter, shape (K, 1, 1, 1)."""
    if not problem.scale:
        return np.ones((problem.K, 1, 1, 1), exact_dtype(problem))
    return given["scale"].astype(exact_dtype(problem)).reshape(-1, 1, 1, 1)


# -- answer and bound ------------------------------------------------------------------------------------------------
def _finished(problem: ConvProblem, total: Array, size: Array, given: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return a layer's sums and their magnitudes with scale, bias, residual and, in the sums, the activation."""
    if problem.scale:
        scale = _factors(problem, given).reshape(-1, 1, 1)
        total, size = total * scale, size * abs(scale)
    if problem.bias:
        bias = given["b"].astype(total.dtype).reshape(-1, 1, 1)
        total, size = total + bias, size + abs(bias)
    if problem.residual:
        residual = given["residual"].astype(total.dtype)
        total, size = total + residual, size + abs(residual)
    return activation(problem.activation).value(np, total), size


def answer(pass_name: str, problem: ConvProblem, given: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """Return for each floating-point result its exact value and the sum of the magnitudes of its terms.

    Parameters
    ----------
    pass_name : str
        forward, input_grad, kernel_grad or backward.
    problem : ConvProblem
        The sizes.
    given : mapping of str to numpy.ndarray
        The pass's inputs by operand name: x, w, b or dy, saved, and w or x; and scale and residual, if it has them.

    Returns
    -------
    dict of str to (numpy.ndarray, numpy.ndarray)
        By operand name: y, or dx, or dw and (with a bias) db. For y, and dx of a transposed convolution, the magnitudes
        are those before the activation.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if pass_name == "forward":
            total = correlate(problem, given["x"], given["w"])
            size = correlate(problem, abs(given["x"]), abs(given["w"]))
            return {"y": _finished(problem, total, size, given)}
        g, g_size = pre_activation_grad(problem, given["dy"], given.get("saved"))
        results = {}
        if pass_name == "input_grad" or (pass_name == "backward" and problem.dx):
            w = given["w"].astype(g.dtype) * _factors(problem, given)
            total, size = correlate_back(problem, g, w), correlate_back(problem, g_size, abs(w))
            is_output = problem.transposed and pass_name == "input_grad"
            results["dx"] = _finished(problem, total, size, given) if is_output else (total, size)
        if pass_name == "kernel_grad" or (pass_name == "backward" and problem.dw):
            x = given["x"]
            total, size = correlate_images(problem, x, g), correlate_images(problem, abs(x), g_size)
            results["dw"] = (total * _factors(problem, given), size * abs(_factors(problem, given)))
        if pass_name != "input_grad" and problem.bias:
            results["db"] = (g.sum(axis=(0, 2, 3)), g_size.sum(axis=(0, 2, 3)))
        return results


def transformed_error(
    pass_name: str, problem: ConvProblem, given: Mapping[str, Array], transforms: Transforms
) -> Array:
    """Return how far sums may be from the exact ones that are formed by transforms, before the activation.

    What is added up for a tile of results is |A^T| [sum over n channels (|G| |w| |G^T|) * (|B^T| |x| |B|)] |A|. Each
    term passes through n additions of products, those of its transforms, along both axes, and one of a bias, or through
    forming g; a scale and a residual make it one more each. All is rounded each time: gamma of so many round-offs. In
    an input gradient |x| are the magnitudes of the terms of g, and the filter is turned. Products may be rounded to a
    subnormal number each.

    Returns
    -------
    numpy.ndarray
        Of the shape of y or dx; not finite where a pixel or a tap that its transforms add up is not.
    """
    p, is_forward, phi = problem, pass_name == "forward", activation(problem.activation)
    scale = abs(_factors(p, given))
    filters = abs(_filters(p, given["w"].astype(scale.dtype) * (1 if is_forward else scale)))
    if is_forward:
        planes, result, corner = abs(_images(p, given["x"])), p.y_shape, (p.pad_top, p.pad_left)
    else:
        filters = filters.swapaxes(1, 2)[..., ::-1, ::-1]
        with np.errstate(invalid="ignore"):
            planes = _outputs(p, pre_activation_grad(p, given["dy"], given.get("saved"))[1])
        result, corner = p.x_shape, (p.R - 1 - p.pad_top, p.S - 1 - p.pad_left)
    a, g, b = (abs(np.array(rows)) for rows in (transforms.results, transforms.filter, transforms.pixels))
    tile, side = a.shape
    counts = [-(-size // tile) for size in result[2:]]
    seen = np.zeros((*planes.shape[:3], *(tile * count + side - tile for count in counts)), planes.dtype)
    inside = [(slice(max(0, -pad), size), slice(max(0, pad), max(0, size + pad)))
              for pad, size in zip(corner, planes.shape[3:], strict=True)]  # fmt: skip
    (rows, seen_rows), (cols, seen_cols) = inside
    there = seen[..., seen_rows, seen_cols]
    there += planes[..., rows, cols][..., : there.shape[-2], : there.shape[-1]]
    tiles = np.lib.stride_tricks.sliding_window_view(seen, (side, side), (3, 4))[..., ::tile, ::tile, :, :]

    def added_up(filters: Array, tiles: Array) -> Array:
        products = np.einsum("gkcij,ngcpqij->ngkpqij", g @ filters @ g.T, b @ tiles @ b.T, optimize=True)
        size = (a @ products @ a.T).swapaxes(-3, -2).reshape(*result[:2], *(tile * count for count in counts))
        return size[..., : result[2], : result[3]]

    with np.errstate(invalid="ignore", over="ignore"):
        are_finite = [np.isfinite(array) for array in (filters, tiles)]
        size = added_up(*(np.where(known, array, 0) for known, array in zip(are_finite, (filters, tiles), strict=True)))
        if not all(known.all() for known in are_finite):  # a coefficient of 0 adds nothing of what is infinite
            of_filters, of_tiles = (known.astype(size.dtype) for known in are_finite)
            met = added_up(1 - of_filters, np.ones_like(of_tiles)) + added_up(np.ones_like(of_filters), 1 - of_tiles)
            size = np.where(met > 0, np.inf, size)
        if is_forward:
            size = size * scale[..., 0]
            size = size + (abs(given["residual"].astype(size.dtype)) if p.residual else 0)
        if p.bias and (is_forward or p.transposed):
            size = size + abs(given["b"].astype(size.dtype).reshape(-1, 1, 1))
    channels = filters.shape[2]
    u, smallest = round_off(ACCUMULATORS[p.dtype]), _SMALLEST[ACCUMULATORS[p.dtype]]
    round_offs = channels + transforms.additions + (2 if is_forward or p.transposed else phi.grad_round_offs)
    round_offs += p.scale + (is_forward and p.residual)
    subnormals = np.ldexp(2.0 * channels + 2, smallest) * (np.maximum(1, scale[..., 0]) if is_forward else 1)
    return round_offs * u / (1 - round_offs * u) * size + subnormals


def error_bound(
    name: str, problem: ConvProblem, value: Array, magnitude: Array, transformed: Array | None = None
) -> Array:
    """Return how far a correct kernel's result may be from the exact value, element by element.

    With n products in a sum, u the accumulator's unit round-off and gamma(n) = n u / (1 - n u), the classical bound for
    any order of summation is gamma(n + 2) * sum|a||b| (N. J. Higham, "Accuracy and Stability of Numerical Algorithms",
    2002, sections 3.1 and 4.2; the 2 more are for adding the bias, or for forming g, which with some activations takes
    more than 2). A scale is one more multiplication, of a sum or of each tap, and a residual one more addition: each
    makes it gamma of one more. Round-offs of long sums mostly cancel, so it is capped at 8 sqrt(n + 2) u sum|a||b|: a
    kernel that keeps one running sum of all pixels exceeds that. On top come evaluating the activation, rounding to the
    stored type, and one subnormal number.

    Where factors may be rounded to TF32, a product a b is off by (1 + t)^2 - 1 = 2 t + t^2 of |a b| at most, with
    t = 2^-11: 11 significant bits, rounded to nearest. These errors need not cancel, so that they are not capped. Cut
    to 11 bits in place of rounded, t would be twice as large. db is no sum of products and stays as it is.

    A variant that forms the sums by transforms has the error of these, where that is the larger one; where it is not
    finite, the sum has to be formed as it stands.

    Parameters
    ----------
    name : str
        The result: y, dx, dw or db.
    problem : ConvProblem
        The sizes.
    value, magnitude : numpy.ndarray
        From `answer`.
    transformed : numpy.ndarray, optional
        From `transformed_error`, of a variant with transforms.

    Returns
    -------
    numpy.ndarray
        Of the shape of value.
    """
    n = RESULTS[name].reduction_length(problem)  # type: ignore[misc]
    u = round_off(ACCUMULATORS[problem.dtype])
    phi = activation(problem.activation)
    is_output = name == "y" or (name == "dx" and problem.transposed)
    more = 2 if is_output else phi.grad_round_offs
    more += (problem.scale and name != "db") + (problem.residual and name == "y")
    factor = (8 * math.sqrt(n + 2) + more - 2) * u
    if (n + more) * u < 1:
        factor = min(factor, (n + more) * u / (1 - (n + more) * u))
    if problem.is_tf32 and name != "db":
        products = (1 + _TF32) ** 2
        factor = products * (1 + factor) - 1
    relative = round_off(problem.dtype)
    if is_output:
        relative += phi.round_offs * u
    with np.errstate(invalid="ignore"):
        sums = factor * magnitude
        if transformed is not None:
            sums = np.where(np.isfinite(transformed), np.maximum(sums, transformed), sums)
        if is_output:
            sums = phi.slope * sums
        return sums + relative * abs(value) + np.ldexp(magnitude.dtype.type(1), _SMALLEST[problem.dtype])


def error_share(got: Array, value: Array, bound: Array, dtype: str) -> Array:
    """Return |got - value| / bound, element by element; at most 1 is right.

    A NaN is infinitely wrong unless the exact value is NaN; so is an infinity, unless the exact value is the same or is
    too large for the dtype; and where the activation has made a finite value of an infinite sum, any other value.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        wide = got.astype(value.dtype)
        share = abs(wide - value) / bound
        largest = np.ldexp(value.dtype.type(1), _LARGEST[dtype]) * (1 - round_off(dtype) / 2)
        same = (wide == value) | (np.isnan(wide) & np.isnan(value))
        overflow = np.isinf(wide) & (np.sign(wide) == np.sign(value)) & (abs(value) + bound >= largest)
        share = np.where(np.isnan(share) | np.isinf(bound), np.inf, share)
        return np.where(same | overflow, 0, share).astype(np.float64)
