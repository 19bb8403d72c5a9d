"""Mistakes in what is added up, in bias and activation, and in how the result is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from convbackprop.activations import activation
from convbackprop.lab.mistakes.hypothesis import AXES, GRADIENTS, SUMS_OVER_TAPS, of
from convbackprop.lab.mistakes.layer import BEFORE, Array, Layer


# -- channels and images --------------------------------------------------------------------------------------------
@of("y", "dx")
def _channels_not_summed(layer: Layer) -> Iterator[Layer]:
    for chosen in (slice(0, 1), slice(-1, None)):
        yield layer.with_(channels=layer.channels[:, chosen], filters=layer.filters[:, chosen])


@of(*SUMS_OVER_TAPS)
def _image_channel_ignored(layer: Layer) -> Iterator[Layer]:
    yield layer.with_(channels=np.zeros_like(layer.channels))


@of(*SUMS_OVER_TAPS)
def _groups_ignored(layer: Layer) -> Iterator[Layer]:
    terms = layer.channels.shape[1]
    first_group = np.broadcast_to(np.arange(terms), layer.channels.shape)
    yield layer.with_(channels=first_group)
    if layer.result == "dx":
        p = layer.problem
        in_group = np.arange(p.C) % (p.C // p.groups)
        filters = layer.given["w"][first_group, in_group[:, None]]
        yield layer.with_(filters=filters)
        yield layer.with_(filters=filters, channels=first_group)


@of("y", "dx")
def _image_number_ignored(layer: Layer) -> Iterator[Layer]:
    yield layer.with_(images=np.zeros_like(layer.images))


@of("dw", "db")
def _batch_not_summed(layer: Layer) -> Iterator[Layer]:
    yield layer.with_(images=layer.images[:1])
    yield layer.with_(images=layer.images[-1:])


@of("db")
def _bias_grad_of_tap(layer: Layer) -> Iterator[Layer]:
    counts, g = layer.looks().counts, layer.g
    for down, across in AXES:
        rows, cols = counts.any(axis=(2, 3)) | (not down), counts.any(axis=(0, 1)) | (not across)
        for tap in (0, -1):
            yield layer.with_(g=g * (rows[:, tap, None] & cols[:, tap]))


def _ends(size: int, steps: Sequence[int]) -> list[int]:
    """Return where a loop over `size` pixels may end too early: one before, or at a multiple of each step."""
    return [size - 1, *(size // step * step for step in steps)]


@of("dw", "db")
def _last_outputs_not_summed(layer: Layer) -> Iterator[Layer]:
    """Outputs at the end are left out of a sum over all of them."""
    g = layer.g
    P, Q = layer.sites
    flat, row, col = np.arange(P * Q).reshape(P, Q), np.arange(P)[:, None], np.arange(Q)
    for end in _ends(P, (2, 4, 8, 16, 32)):
        yield layer.with_(g=g * (row < end))
    for end in _ends(Q, (4, 8, 16, 32, 64)):
        yield layer.with_(g=g * (col < end))
    for end in _ends(P * Q, (32, 64, 128, 256, 512, 1024)):
        yield layer.with_(g=g * (flat < end))


# -- bias and activation ---------------------------------------------------------------------------------------------
@of("y")
def _bias_missing(layer: Layer) -> Iterator[Layer]:
    yield layer.with_(bias=None)


@of("y")
def _bias_twice(layer: Layer) -> Iterator[Layer]:
    if layer.bias is not None:
        yield layer.with_(bias=2 * layer.bias)


@of("y")
def _bias_for_each_term(layer: Layer) -> Iterator[Layer]:
    """The bias is added inside of a loop over taps or channels: all of them, or those that meet the image."""
    p, bias = layer.problem, layer.bias
    if bias is None:
        return
    terms = layer.channels.shape[1]
    yield layer.with_(bias=p.R * p.S * terms * bias)
    yield layer.with_(bias=p.R * terms * bias)
    yield layer.with_(bias=terms * bias)
    counted = terms * layer.looks().counts.sum(axis=(1, 3))
    yield layer.with_(phi=lambda sums, b: layer.phi(sums, b * counted), bias=bias)


@of("y")
def _bias_of_another_channel(layer: Layer) -> Iterator[Layer]:
    if layer.bias is not None:
        yield layer.with_(bias=np.repeat(layer.bias[:1], len(layer.bias)))
        yield layer.with_(bias=np.roll(layer.bias, -1))


@of("y")
def _phi_missing(layer: Layer) -> Iterator[Layer]:
    yield layer.with_(phi=lambda sums, bias: sums + bias)


@of("y")
def _phi_before_bias(layer: Layer) -> Iterator[Layer]:
    yield layer.with_(phi=lambda sums, bias: layer.phi(sums, 0 * bias) + bias)


def _with_g(layer: Layer, g: Array) -> Layer:
    """Put another g in the place of the right one, also where it is the image that taps look at."""
    return layer.with_(g=g, image=g if layer.result == "dx" else layer.image)


@of(*GRADIENTS)
def _phi_grad_missing(layer: Layer) -> Iterator[Layer]:
    yield _with_g(layer, layer.given["dy"])


@of(*GRADIENTS)
def _phi_grad_sign(layer: Layer) -> Iterator[Layer]:
    yield _with_g(layer, -layer.g)


def _grad_of(layer: Layer, saved: Array) -> Array:
    return activation(layer.problem.activation).grad(np, layer.given["dy"], saved)


@of(*GRADIENTS)
def _phi_grad_of_dy(layer: Layer) -> Iterator[Layer]:
    yield _with_g(layer, _grad_of(layer, layer.given["dy"]))


@of("dw", "db")
def _phi_grad_of_x(layer: Layer) -> Iterator[Layer]:
    if layer.image.shape == layer.given["dy"].shape:
        yield _with_g(layer, _grad_of(layer, layer.image))


@of(*GRADIENTS)
def _phi_grad_closed_only_below_zero(layer: Layer) -> Iterator[Layer]:
    if layer.problem.activation == "relu":
        yield _with_g(layer, np.where(layer.given["saved"] < 0, 0, layer.given["dy"]))


@of(*GRADIENTS)
def _y_in_place_of_phi_grad(layer: Layer) -> Iterator[Layer]:
    if "saved" in layer.given:
        yield _with_g(layer, layer.given["dy"] * layer.given["saved"])


@of("dx")
def _phi_grad_after_sum(layer: Layer) -> Iterator[Layer]:
    saved = layer.given.get("saved")
    if saved is not None and saved.shape == layer.problem.x_shape:
        phi = activation(layer.problem.activation)
        yield _with_g(layer, layer.given["dy"]).with_(after=lambda dx: phi.grad(np, dx, saved))


@of(*GRADIENTS)
def _phi_grad_factor_missing(layer: Layer) -> Iterator[Layer]:
    """Of the two factors of phi' one is missing: y (1 - y) of the logistic function, (1 - y) (1 + y) of tanh."""
    factors = {"logistic": (lambda y: 1 - y,), "tanh": (lambda y: 1 - y, lambda y: 1 + y)}
    for factor in factors.get(layer.problem.activation, ()):
        yield _with_g(layer, layer.given["dy"] * factor(layer.given["saved"]))


@of(*GRADIENTS)
def _phi_grad_twice(layer: Layer) -> Iterator[Layer]:
    if "saved" in layer.given:
        phi, saved = activation(layer.problem.activation), layer.given["saved"]
        yield _with_g(layer, phi.grad(np, layer.g, saved))


@of(*GRADIENTS)
def _phi_grad_of_pre_activation(layer: Layer) -> Iterator[Layer]:
    """Form phi' as from a pre-activation, but of y: phi(y) (1 - phi(y)) in place of y (1 - y)."""
    if "saved" in layer.given:
        phi = activation(layer.problem.activation)
        yield _with_g(layer, _grad_of(layer, phi.value(np, layer.given["saved"])))


# -- rounding --------------------------------------------------------------------------------------------------------
@of("y", "dx", "dw", "db")
def _sum_rounded_to_stored_type(layer: Layer) -> Iterator[Layer]:
    """Count in half precision: 2048 + 1 is 2048 again."""
    if layer.problem.dtype == "float16":
        yield layer.with_(after=lambda sums: np.minimum(sums, 2048))


@of("dw", "db")
def _long_running_sum(layer: Layer) -> Iterator[Layer]:
    """Add up equal terms one by one in float32."""
    term = np.float32(layer.g.flat[0])
    if layer.problem.dtype != "float32" or not (layer.g == term).all() or not (layer.image == 1).all():
        return

    def one_by_one(sums: Array) -> Array:
        counts = np.rint(sums / float(term)).astype(int)
        return np.append(np.float32(0), np.cumsum(np.full(counts.max(), term)))[counts].astype(np.float64)

    yield layer.with_(after=one_by_one)


# -- how the result is written ---------------------------------------------------------------------------------------
@of("y", "dx", "dw", "db")
def _nothing_written(layer: Layer) -> Iterator[Layer]:
    yield layer.with_(after=lambda result: np.full_like(result, BEFORE))


@of("y", "dx", "dw", "db")
def _end_not_written(layer: Layer) -> Iterator[Layer]:
    """Left as they were are all elements from some number on, or all beyond a row, a column, a channel, an image."""
    left = layer.left
    if left.all() or not left.any():
        return
    written = np.argwhere(~left)
    box = tuple(slice(0, end) for end in written.max(axis=0) + 1)
    is_tail = (~left).ravel()[: np.flatnonzero(~left).size].all()
    if is_tail or not left[box].any():
        yield layer.with_(after=lambda result: np.where(left, BEFORE, result))


@of("y", "dx", "dw", "db")
def _added_to_what_was_there(layer: Layer) -> Iterator[Layer]:
    yield layer.with_(after=lambda result: result + BEFORE)


@of("y", "dx")
def _result_transposed(layer: Layer) -> Iterator[Layer]:
    def at_q_P_p(result: Array) -> Array:
        return result.swapaxes(-1, -2).reshape(result.shape)

    yield layer.with_(after=at_q_P_p)


@of("y")
def _row_pitch_of_image(layer: Layer) -> Iterator[Layer]:
    p = layer.problem
    if p.W <= p.Q:
        return
    at = (np.arange(p.N * p.K * p.P)[:, None] * p.W + np.arange(p.Q)).ravel()

    def spread(result: Array) -> Array:
        there = np.full(result.size, BEFORE)
        there[at[at < result.size]] = result.ravel()[at < result.size]
        return there.reshape(result.shape)

    yield layer.with_(after=spread)
