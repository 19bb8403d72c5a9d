"""The activations by PyTorch's own functions."""

from __future__ import annotations

import torch
from torch.nn import functional

PHI = {
    "identity": lambda s: s,
    "relu": torch.relu,
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "relu6": functional.relu6,
    "leaky_relu": lambda s: functional.leaky_relu(s, 0.01),
    "leaky_relu:0.2": lambda s: functional.leaky_relu(s, 0.2),
    # Beyond its threshold torch's is s itself, which differs in float64 from 20, its default.
    "softplus": lambda s: functional.softplus(s, threshold=40),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda s: functional.gelu(s, approximate="tanh"),
    "hardswish": functional.hardswish,
}
