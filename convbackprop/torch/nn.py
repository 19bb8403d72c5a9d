"""Modules: `Conv2d` and `ConvTranspose2d`, like PyTorch's with an activation, `from_torch` and batch norms fused in."""

from __future__ import annotations

from convbackprop.torch.module import Conv2d, fuse_frozen_batch_norm
from convbackprop.torch.swap import Report, from_torch
from convbackprop.torch.transposed import ConvTranspose2d

__all__ = ["Conv2d", "ConvTranspose2d", "Report", "from_torch", "fuse_frozen_batch_norm"]
