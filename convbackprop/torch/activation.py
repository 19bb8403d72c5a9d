"""What a layer's gradients are formed from, in PyTorch's own operators: they can be differentiated again."""

from __future__ import annotations

import torch

from convbackprop.activations import activation

Tensor = torch.Tensor


def before_activation(dy: Tensor, saved: Tensor | None, name: str) -> Tensor:
    """Return g = dy * phi'(s), with phi' from what `activations` says is saved."""
    return dy if saved is None else activation(name).grad(torch, dy, saved)  # type: ignore[no-any-return]


def bias_grad(g: Tensor, first: int = 0) -> Tensor:
    """Return db, the sum over images and pixels; g is (N, K, P, Q), (K, P, Q) or (P, Q), after `first` other axes."""
    if g.ndim - first == 2:
        g = g.unsqueeze(first)
    return g.sum([axis for axis in range(first, g.ndim) if axis != g.ndim - 3])
