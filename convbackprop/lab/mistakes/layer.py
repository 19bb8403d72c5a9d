"""A convolution as a kernel computes it, with all that one can get wrong as a value of its own.

Where each tap looks, whether it counts, which channels and images are added up, bias, phi and phi': a mistaken kernel
has another one of them (`taps`, `sums`). It is written down in numpy and shares no code with the kernels, nor with
`check.reference`, whose answer it gives where nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convbackprop.activations import activation
from convbackprop.problem import PASSES, RESULTS, ConvProblem

Array = Any
Pair = tuple[int, int]

#: What stands in every result before a launch: an integer that no sum reaches and to which any adds exactly.
BEFORE = 2.0**20


@dataclass(frozen=True)
class Looks:
    """Where the taps of each element look.

    Attributes
    ----------
    rows, cols : numpy.ndarray of int
        Shapes (rows of the result, R) and (its columns, S): positions in the image, which may lie outside.
    counts : numpy.ndarray of bool
        Shape (rows of the result, R, its columns, S): which taps are added up.
    pitch, plane : int
        How many elements further the next row of the image is, and the next channel.
    """

    rows: Array
    cols: Array
    counts: Array
    pitch: int
    plane: int

    def with_(self, **changes: Any) -> Looks:
        """Return a copy with something changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Layer:
    """One result of a pass, as a kernel computes it.

    y and dx are sums over channels and taps of image * filter, dw of g * image over images and pixels, db of g alone;
    for dx, the image is g.

    Attributes
    ----------
    result : str
        y, dx, dw or db.
    problem : ConvProblem
        The sizes.
    given : mapping of str to numpy.ndarray
        The pass's inputs.
    stride, dilation, pad : (int, int)
        Down and across, as the kernel reads them; pad at the top and at the left.
    bend : callable
        Layer, Looks -> Looks: what becomes of where the taps look.
    image : numpy.ndarray
        (N, channels, height, width): what the taps look at.
    images : numpy.ndarray of int
        Which images are read, or added up.
    channels : numpy.ndarray of int
        (output channels, terms): which of the image's channels are added up.
    filters : numpy.ndarray, or None for dw and db
        (output channels, terms, R, S).
    g : numpy.ndarray, or None for y
        dy * phi'(s).
    bias : numpy.ndarray, or None where there is none
        A number for each output channel.
    phi : callable
        sum, bias -> result.
    after : callable
        What becomes of the result.
    left : numpy.ndarray of bool
        Which elements the kernel has left as they were.
    beyond : float
        What is read before the first and behind the last element of the image's array.
    """

    result: str
    problem: ConvProblem
    given: Mapping[str, Array]
    stride: Pair
    dilation: Pair
    pad: Pair
    image: Array
    images: Array
    channels: Array
    filters: Array
    g: Array
    bias: Array
    phi: Callable[[Array, Array], Array]
    left: Array
    beyond: float = np.nan
    bend: Callable[[Layer, Looks], Looks] = lambda layer, looks: looks
    after: Callable[[Array], Array] = lambda result: result

    def with_(self, **changes: Any) -> Layer:
        """Return a copy with something changed."""
        return replace(self, **changes)

    def bent(self, bend: Callable[[Layer, Looks], Looks]) -> Layer:
        """Return a copy whose taps look elsewhere."""
        return replace(self, bend=bend)

    @property
    def sites(self) -> Pair:
        """The pixels that a sum is formed for, or for dw over: those of x for dx, else those of y."""
        p = self.problem
        return (p.H, p.W) if self.result == "dx" else (p.P, p.Q)

    def looks(self) -> Looks:
        """Return where the taps look."""
        whole, places = [], []
        for axis, (sites, taps) in enumerate(zip(self.sites, (self.problem.R, self.problem.S), strict=True)):
            site, tap = np.arange(sites)[:, None], np.arange(taps)
            if self.result == "dx":  # site = place * stride - pad + tap * dilation, solved for the place
                steps = site + self.pad[axis] - tap * self.dilation[axis]
                places.append(steps // self.stride[axis])
                whole.append(steps % self.stride[axis] == 0)
            else:
                places.append(site * self.stride[axis] - self.pad[axis] + tap * self.dilation[axis])
                whole.append(np.ones((sites, taps), bool))
        inside = [w & (x >= 0) & (x < n) for w, x, n in zip(whole, places, self.image.shape[2:], strict=True)]
        height, width = self.image.shape[2:]
        return self.bend(self, Looks(places[0], places[1], outer(*inside), width, height * width))

    def compute(self) -> Array:
        """Return the result, in float64."""
        if self.result == "db":
            return self.after(self.g[self.images].sum(axis=(0, 2, 3)))
        seen = self._seen()[self.images][:, self.channels]
        if self.filters is None:
            return self.after(np.einsum("nopq,noiprqs->oirs", self.g[self.images], seen, optimize=True))
        sums = np.einsum("noiprqs,oirs->nopq", seen, self.filters, optimize=True)
        bias = np.zeros(len(self.channels)) if self.bias is None else self.bias
        return self.after(self.phi(sums, bias.reshape(-1, 1, 1)))

    def _seen(self) -> Array:
        """Return what each tap sees, (N, channels, rows, R, columns, S)."""
        looks, (images, channels) = self.looks(), self.image.shape[:2]
        start = np.arange(images * channels).reshape(images, channels, 1, 1, 1, 1) * looks.plane
        at = start + looks.rows[:, :, None, None] * looks.pitch + looks.cols
        with_beyond = np.concatenate([[self.beyond], self.image.ravel(), [self.beyond]])
        return np.where(looks.counts, with_beyond[np.clip(at, -1, self.image.size) + 1], 0)


def outer(rows: Array, cols: Array) -> Array:
    """Return which taps are both in `rows` (sites, R) and in `cols` (sites, S)."""
    return np.asarray(rows)[:, :, None, None] & np.asarray(cols)


def layers_of(
    pass_name: str, problem: ConvProblem, given: Mapping[str, Array], left: Mapping[str, Array]
) -> dict[str, Layer]:
    """Return the results of a pass as a right kernel computes them."""
    p = problem
    arrays = {name: array.astype(np.float64) for name, array in given.items()}
    phi = activation(p.activation)
    in_group, of_group = p.C // p.groups, p.K // p.groups
    forward_channels = np.arange(p.K)[:, None] // of_group * in_group + np.arange(in_group)
    back_channels = np.arange(p.C)[:, None] // in_group * of_group + np.arange(of_group)
    g = None if "dy" not in arrays else phi.grad(np, arrays["dy"], arrays.get("saved"))

    def layer(result: str) -> Layer:
        to_x = result == "dx"
        filters = arrays.get("w") if result in ("y", "dx") else None
        if to_x and filters is not None:
            filters = filters[back_channels, (np.arange(p.C) % in_group)[:, None]]
        return Layer(
            result=result,
            problem=p,
            given=arrays,
            stride=p.stride,
            dilation=p.dilation,
            pad=(p.pad_top, p.pad_left),
            image=g if to_x else arrays.get("x"),
            images=np.arange(p.N),
            channels=back_channels if to_x else forward_channels,
            filters=filters,
            g=g,
            bias=arrays.get("b") if result == "y" else None,
            phi=(lambda sums, bias: phi.value(np, sums + bias)) if result == "y" else (lambda sums, bias: sums),
            left=left[result],
        )

    present = [operand.name for operand in PASSES[pass_name].present(p)]
    return {name: layer(name) for name in RESULTS if name in present}
