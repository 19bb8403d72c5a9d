"""What variants of several techniques ask of a problem: each says in one sentence why one is refused, or nothing."""

from __future__ import annotations

from convbackprop.problem import ConvProblem


def unit_stride(p: ConvProblem) -> str | None:
    """It works with stride 1 only."""
    if p.stride != (1, 1):
        return f"stride is {p.stride[0]}x{p.stride[1]}; it works with stride 1 only"
    return None


def unit_dilation(p: ConvProblem) -> str | None:
    """It works with dilation 1 only."""
    if p.dilation != (1, 1):
        return f"dilation is {p.dilation[0]}x{p.dilation[1]}; it works with dilation 1 only"
    return None


#: What 32-bit arithmetic is safe for, with as much again for what a strip or a band reaches beyond the image.
_LONGEST = 2**30


def countable(p: ConvProblem) -> str | None:
    """It counts rows and columns in 32 bits."""
    for name, size, padding in (("rows", p.H, p.padding[0]), ("columns", p.W, p.padding[1])):
        if (padded := size + sum(padding)) > _LONGEST:
            return f"the padded image has {padded:,} {name}; it counts up to {_LONGEST:,}"
    return None
