"""`torch.vmap` over the operators: a batch of calls is one call, with more images or with more groups.

Where the filters are shared, the batch joins the images' own; where each call has its own filters (or, in the kernel
gradient, makes its own), the batch joins the groups, so that call i's channels see call i's filters only. So are
gradients of single samples computed, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from convbackprop.torch.activation import before_activation, bias_grad

Tensor = torch.Tensor


class _Fold:
    """A batch of `size` calls as one; dimensions of a call that lack (unbatched images, one filter) are put in."""

    def __init__(self, size: int, shared_filters: bool) -> None:
        self.size, self.shared_filters = size, shared_filters

    def groups(self, groups: int) -> int:
        return groups if self.shared_filters else groups * self.size

    def images(self, tensor: Tensor, dim: int | None) -> Tensor:
        """Return (B N, C, H, W) or (N, B C, H, W)."""
        whole = self._whole(tensor, dim)
        return whole.flatten(0, 1) if self.shared_filters else whole.transpose(0, 1).flatten(1, 2)

    def split_images(self, folded: Tensor, ndim: int) -> Tensor:
        """Return the batch of images of `ndim` dimensions each; it comes first."""
        if self.shared_filters:
            whole = folded.unflatten(0, (self.size, folded.shape[0] // self.size))
        else:
            whole = folded.unflatten(1, (self.size, folded.shape[1] // self.size)).transpose(0, 1)
        return whole.reshape(self.size, *whole.shape[5 - ndim :])

    def images_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return what `images` would return, in shape, for images of this size."""
        n, c, h, w = (*(1,) * (4 - len(size)), *size)
        return (self.size * n, c, h, w) if self.shared_filters else (n, self.size * c, h, w)

    def filters(self, tensor: Tensor, dim: int | None) -> Tensor:
        """Return (K, C, R, S) or (B K, C, R, S)."""
        if self.shared_filters:
            return tensor.reshape(*(1,) * (4 - tensor.ndim), *tensor.shape)
        return self._whole(tensor, dim).flatten(0, 1)

    def filters_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return what `filters` would return, in shape, for filters of this size, each call's own."""
        k, c, r, s = (*(1,) * (4 - len(size)), *size)
        return (self.size * k, c, r, s)

    def bias(self, tensor: Tensor, dim: int | None) -> Tensor:
        """Return (K,) or (B K,)."""
        return tensor if self.shared_filters else self._first(tensor, dim).flatten()

    def _first(self, tensor: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            return tensor.unsqueeze(0).expand(self.size, *tensor.shape)
        return tensor.movedim(dim, 0)

    def _whole(self, tensor: Tensor, dim: int | None) -> Tensor:
        whole = self._first(tensor, dim)
        return whole.reshape(self.size, *(1,) * (5 - whole.ndim), *whole.shape[1:])


def _own_ndim(tensor: Tensor, dim: int | None) -> int:
    """Return how many dimensions a call sees."""
    return tensor.ndim - (dim is not None)


def forward(call: Callable[..., Tensor], info: Any, dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
    """Carry out a batch of `call(x, w, b, stride, padding, dilation, groups, activation, variant, precision)`.

    Parameters
    ----------
    call : callable
        The operator, or the function that differentiates it.
    info : torch's VmapInfo
        Tells the size of the batch.
    dims : sequence of int or None
        For each argument where its batch is, or that it has none.
    arguments
        The arguments.

    Returns
    -------
    y : Tensor
        All outputs.
    dim : int
        Where their batch is.
    """
    x, w, b, stride, padding, dilation, groups, *how = arguments
    fold = _Fold(info.batch_size, dims[1] is None and dims[2] is None)
    y = call(
        fold.images(x, dims[0]), fold.filters(w, dims[1]), None if b is None else fold.bias(b, dims[2]),
        stride, padding, dilation, fold.groups(groups), *how,
    )  # fmt: skip
    return fold.split_images(y, _own_ndim(x, dims[0])), 0


def scaled_forward(
    call: Callable[..., Tensor], info: Any, dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Carry out a batch of `epilogue.layer`, whose arguments are those of `forward` with a scale and a residual."""
    x, w, b, scale, residual, stride, padding, dilation, groups, *how = arguments
    fold = _Fold(info.batch_size, dims[1] is None and dims[2] is None and dims[3] is None)
    y = call(
        fold.images(x, dims[0]), fold.filters(w, dims[1]), None if b is None else fold.bias(b, dims[2]),
        None if scale is None else fold.bias(scale, dims[3]),
        None if residual is None else fold.images(residual, dims[4]),
        stride, padding, dilation, fold.groups(groups), *how,
    )  # fmt: skip
    return fold.split_images(y, _own_ndim(x, dims[0])), 0


def contraction(
    call: Callable[..., Tensor], info: Any, dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Carry out a batch of `functions.contract`, whose arguments end in the groups, the variant and the precision."""
    x, w, g, size, stride, padding, dilation, groups, *how = arguments
    fold = _Fold(info.batch_size, w is not None and dims[1] is None)
    folded = (
        None if x is None else fold.images(x, dims[0]),
        None if w is None else fold.filters(w, dims[1]),
        None if g is None else fold.images(g, dims[2]),
    )
    whole_size = fold.images_size(size) if x is None else fold.filters_size(size) if w is None else ()
    result = call(*folded, whole_size, stride, padding, dilation, fold.groups(groups), *how)
    if w is None:
        return result.reshape(fold.size, *size), 0
    return fold.split_images(result, len(size) if x is None else _own_ndim(x, dims[0])), 0


def backward(
    contract: Callable[..., Tensor], info: Any, dims: Sequence[int | None], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Carry out a batch of the operator `backward`, one gradient after the other."""
    dy, x, w, y, needs, stride, padding, dilation, groups, activation, variant, precision = arguments
    geometry = (stride, padding, dilation, groups)
    how = ("auto" if variant == "fused" else variant, precision)
    size = info.batch_size

    def first(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    def own_size(tensor: Tensor, dim: int | None) -> list[int]:
        return [extent for axis, extent in enumerate(tensor.shape) if axis != dim]

    g = before_activation(first(dy, dims[0]), None if y is None else first(y, dims[3]), activation)
    dx = dw = db = g.new_empty(size, 0)
    if needs[0]:
        size_of_x = own_size(x, dims[1])
        dx, _ = contraction(contract, info, (None, dims[2], 0), None, w, g, size_of_x, *geometry, *how)
    if needs[1]:
        size_of_w = own_size(w, dims[2])
        dw, _ = contraction(contract, info, (dims[1], None, 0), x, None, g, size_of_w, *geometry, *how)
    if needs[2]:
        db = bias_grad(g, first=1)
    return (dx, dw, db), (0, 0, 0)
