"""The kernels in PyTorch: `conv2d`, `conv_transpose2d`, their modules in `nn`, and `nn.from_torch` for a whole model.

Everything that PyTorch does with a convolution works: autograd to any order and in forward mode, torch.func, vmap,
compile, export, autocast, checkpointing, fake and meta tensors.
"""

from __future__ import annotations

from typing import Any

try:
    import torch as _torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "convbackprop.torch needs PyTorch, which is not installed; install it with pip install 'convbackprop[torch]'"
    ) from error

from convbackprop.torch import flops as _flops, nn, spatial
from convbackprop.torch.functional import conv2d
from convbackprop.torch.transposed import conv_transpose2d

__all__ = ["conv2d", "conv_transpose2d", "nn", "spatial"]
