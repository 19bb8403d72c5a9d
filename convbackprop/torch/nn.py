"""Modules: `Conv2d`, a drop-in for torch.nn.Conv2d with an activation, and `from_torch`, which puts it into a model."""

from __future__ import annotations

from convbackprop.torch.module import Conv2d
from convbackprop.torch.swap import Report, from_torch

__all__ = ["Conv2d", "Report", "from_torch"]
