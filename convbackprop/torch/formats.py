"""Memory formats: as in PyTorch, a layer's result and its gradients are channels_last where its image or filters are.

Where a variant takes images whose channels lie side by side, what comes back lies so already. Filters, and the images
of other variants, are read and written in the usual order of the axes (torch.contiguous_format), so that they are
copied: what comes in before a pass, what goes out after it.
"""

from __future__ import annotations

import torch
from torch._prims_common import suggest_memory_format

Tensor = torch.Tensor


def is_channels_last(tensor: Tensor | None) -> bool:
    """Return whether PyTorch takes a tensor for channels_last: by its strides, also with a single channel."""
    if tensor is None or tensor.ndim != 4 or tensor.stride(3) < tensor.stride(1) * tensor.size(1):
        return False
    return suggest_memory_format(tensor) is torch.channels_last


def formatted(result: Tensor, *operands: Tensor | None) -> Tensor:
    """Return a result in the format that its operands ask for: channels_last if one of them is."""
    if result.ndim < 3 or is_channels_last(result) == (last := any(map(is_channels_last, operands))):
        return result
    if result.ndim == 3:
        return formatted(result.unsqueeze(0), *operands).squeeze(0)
    # contiguous(memory_format) would leave the strides of a single channel as they are
    return result.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
