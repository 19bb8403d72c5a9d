"""The exact results of a problem at full size: float64 sums over filter taps, by torch, where the arrays lie.

Each tap is a matrix product of the channels. No convolution of any library takes part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from convbackprop.check.reference import error_bound, transformed_error
from convbackprop.ladder.variant import Transforms
from convbackprop.problem import ConvProblem

Tensor = Any


def pre_activation_grad(torch: Any, p: ConvProblem, t: Mapping[str, Tensor]) -> Tensor:
    """Return g = dy * phi'(s), in dy's dtype: for a ReLU nothing is rounded."""
    assert p.activation == "relu"
    if p.mask:
        bits = torch.arange(8, device=t["saved"].device, dtype=torch.uint8)
        closed = ((t["saved"].unsqueeze(-1) >> bits) & 1).flatten(-2)[..., : p.Q] == 0
    else:
        closed = t["saved"] <= 0
    return t["dy"].masked_fill(closed, 0)


def packed_mask(torch: Any, y: Tensor) -> Tensor:
    """Return the bits of y > 0, eight to a byte."""
    is_open = torch.nn.functional.pad((~(y <= 0)).to(torch.uint8), (0, -y.shape[-1] % 8))
    bits = torch.arange(8, device=y.device, dtype=torch.uint8)
    return (is_open.unflatten(-1, (-1, 8)) << bits).sum(-1, dtype=torch.uint8)


def exact(torch: Any, pass_name: str, p: ConvProblem, t: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each result with the sum of the magnitudes of its terms, as reference.answer does."""
    assert p.activation == "relu"
    (top, bottom), (left, right) = p.padding
    groups, channels, filters = p.groups, p.C // p.groups, p.K // p.groups
    taps = [(r, s) for r in range(p.R) for s in range(p.S)]

    def padded(x: Tensor) -> Tensor:
        image = torch.nn.functional.pad(x.double(), (left, right, top, bottom))
        return image.view(p.N, groups, channels, *image.shape[2:])

    def window(x: Tensor, r: int, s: int) -> Tensor:
        """Return what tap (r, s) of every output reads."""
        h, w_ = r * p.dilation_h, s * p.dilation_w
        rows = slice(h, h + (p.P - 1) * p.stride_h + 1, p.stride_h)
        return x[..., rows, slice(w_, w_ + (p.Q - 1) * p.stride_w + 1, p.stride_w)]

    def both(compute: Any, *factors: Tensor) -> tuple[Tensor, Tensor]:
        return compute(*factors), compute(*(factor.abs() for factor in factors))

    w = t["w"].double().view(groups, filters, channels, p.R, p.S) if "w" in t else None
    if pass_name == "forward":

        def total(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            sums = b.view(1, groups, filters, 1, 1).expand(p.N, groups, filters, p.P, p.Q).clone()
            for r, s in taps:
                sums += torch.einsum("gkc,ngcpq->ngkpq", w[..., r, s], window(x, r, s))
            return sums.view(p.y_shape)

        value, size = both(total, padded(t["x"]), w, t["b"].double())
        return {"y": (value.clamp_(min=0), size)}

    g = pre_activation_grad(torch, p, t).double().view(p.N, groups, filters, p.P, p.Q)
    results = {}
    if pass_name in ("input_grad", "backward"):

        def spread(g: Tensor, w: Tensor) -> Tensor:
            image = g.new_zeros((p.N, groups, channels, p.H + top + bottom, p.W + left + right))
            for r, s in taps:
                window(image, r, s).add_(torch.einsum("gkc,ngkpq->ngcpq", w[..., r, s], g))
            return image[..., top : top + p.H, left : left + p.W].reshape(p.x_shape)

        results["dx"] = both(spread, g, w)
    if pass_name in ("kernel_grad", "backward"):

        def products(x: Tensor, g: Tensor) -> Tensor:
            sums = [torch.einsum("ngkpq,ngcpq->gkc", g, window(x, r, s)) for r, s in taps]
            return torch.stack(sums, -1).view(p.w_shape)

        results["dw"] = both(products, padded(t["x"]), g)
        results["db"] = both(lambda g: g.sum((0, 3, 4)).view(p.K), g)
    return results


def transformed(torch: Any, pass_name: str, p: ConvProblem, t: Mapping[str, Tensor], transforms: Transforms) -> Tensor:
    """Return reference.transformed_error, on the host and one image after the other: its tiles take much memory."""

    def on_host(tensor: Tensor) -> Any:
        return (tensor if tensor.dtype == torch.uint8 else tensor.double()).cpu().numpy()

    same = {name: on_host(t[name]) for name in ("w", "b") if name in t}
    errors = [
        transformed_error(pass_name, p.with_(N=1), {**same, **own}, transforms)
        for i in range(p.N)
        for own in [{name: on_host(t[name][i : i + 1]) for name in ("x", "dy", "saved") if name in t}]
    ]
    return torch.from_numpy(np.concatenate(errors)).to(t["w"].device)


def share_of_bound(
    torch: Any, name: str, p: ConvProblem, got: Tensor, value: Tensor, magnitude: Tensor,
    transformed: Tensor | None = None,
) -> float:  # fmt: skip
    """Return the largest error as a share of reference.error_bound, which is linear in magnitude and |value|."""
    zero, one = np.zeros(1), np.ones(1)
    least = float(error_bound(name, p, zero, zero)[0])
    by_magnitude, by_value = (
        float(error_bound(name, p, value, magnitude)[0]) - least for value, magnitude in ((zero, one), (one, zero))
    )
    sums = by_magnitude * magnitude
    if transformed is not None:  # of the sums, on which a ReLU acts with a slope of 1
        sums = torch.where(transformed.isfinite(), torch.maximum(sums, transformed), sums)
    bound = sums + by_value * value.abs() + least
    if p.dtype == "float64":
        bound *= 2  # the sums that it is held against are no more precise
    worst = float(((got.double() - value).abs() / bound).nan_to_num(nan=math.inf).max())
    return worst
