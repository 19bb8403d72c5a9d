"""What a layer's gradients are formed from, in PyTorch's own operators: they can be differentiated again."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def before_activation(dy: Tensor, y: Tensor | None, activation: str) -> Tensor:
    """Return g = dy * phi'(s), with phi' from the output y = phi(s): y > 0, y (1 - y) or 1 - y^2."""
    if y is None or activation == "identity":
        return dy
    if activation == "relu":
        return torch.where(y > 0, dy, torch.zeros_like(dy))
    return dy * (y * (1 - y) if activation == "logistic" else 1 - y * y)


def bias_grad(g: Tensor, first: int = 0) -> Tensor:
    """Return db, the sum over images and pixels; g is (N, K, P, Q), (K, P, Q) or (P, Q), after `first` other axes."""
    if g.ndim - first == 2:
        g = g.unsqueeze(first)
    return g.sum([axis for axis in range(first, g.ndim) if axis != g.ndim - 3])
