"""Checks of single arguments: each returns the argument in its one form, or says what it should be."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from convbackprop.errors import InvalidArgument, InvalidType

#: What the kernels count in has 32 bits.
INT_MAX = 2**31 - 1

Pair = tuple[int, int]


def shown(value: object) -> str:
    """Return what a message says of a value: its repr on one line, of bearable length."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of more digits than Python prints, or somebody's __repr__
        text = f"{'an' if isinstance(value, int) else 'a'} {type(value).__name__} that cannot be printed"
    return text if len(text) <= 80 else f"{text[:77]}..."


def known(value: object, names: Sequence[str], argument: str) -> str:
    """Return `value` if it is one of `names`, else raise InvalidArgument with a list of them."""
    if isinstance(value, str) and value in names:
        return value
    raise InvalidArgument(f"{argument} is {shown(value)}; it should be one of {', '.join(names)}")


def integer(value: object, argument: str, least: int) -> int:
    """Return `value` as an int >= `least`; a bool or float is refused, whatever its value."""
    try:
        # numpy.bool_ has no __index__, so operator.index refuses it; Python's bool has one.
        number = operator.index(value) if not isinstance(value, bool) else None  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise InvalidType(f"{argument} is {shown(value)} ({type(value).__name__}); it should be an integer")
    if number < least:
        raise InvalidArgument(f"{argument} is {shown(number)}; it should be at least {least}")
    if number > INT_MAX:
        raise InvalidArgument(f"{argument} is {shown(number)}; it should be below 2**31")
    return number


def pair(value: object, argument: str, least: int) -> Pair:
    """Return an int or a pair (height, width) as a pair of ints, each >= `least`."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise InvalidArgument(
                f"{argument} is {shown(value)}; it should be an integer or a pair (height, width), "
                f"not a sequence of {len(value)}"
            )
        return (integer(value[0], argument, least), integer(value[1], argument, least))
    number = integer(value, argument, least)
    return (number, number)


def sides(value: object, argument: str = "padding") -> tuple[Pair, Pair]:
    """Return a padding as ((top, bottom), (left, right))."""
    if isinstance(value, tuple | list) and any(isinstance(v, tuple | list) for v in value):
        if len(value) != 2 or not all(isinstance(v, tuple | list) and len(v) == 2 for v in value):
            raise InvalidArgument(
                f"{argument} is {shown(value)}; it should be an integer, a pair (height, width), a pair of pairs "
                "((top, bottom), (left, right)), 'same' or 'valid'"
            )
        return (pair(value[0], argument, 0), pair(value[1], argument, 0))
    height, width = pair(value, argument, 0)
    return ((height, height), (width, width))


def resolve_padding(padding: object, filter_size: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """Return any accepted form of `padding` as ((top, bottom), (left, right)).

    "same" keeps the size of the image: with an even filter the extra row and column come last, and a stride is
    refused, both as in torch.nn.functional.conv2d.
    """
    if not isinstance(padding, str):
        return sides(padding)
    if known(padding, ("same", "valid"), "padding") == "valid":
        return ((0, 0), (0, 0))
    if stride != (1, 1):
        raise InvalidArgument(f"padding is 'same' and stride is {stride}; 'same' needs stride 1")
    (top, bottom), (left, right) = (
        (total // 2, total - total // 2) for total in (d * (f - 1) for d, f in zip(dilation, filter_size, strict=True))
    )
    return ((top, bottom), (left, right))
