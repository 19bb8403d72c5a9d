"""The convolution problem: its sizes, its operands, and what each pass costs at least."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from convbackprop.activations import activation, activation_name
from convbackprop.arguments import INT_MAX, Pair, integer, known, pair, resolve_padding
from convbackprop.errors import InvalidArgument
from convbackprop.layouts import LAYOUTS

#: Bytes of an element by dtype, and the dtype in which its sums are formed.
DTYPES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
ACCUMULATORS = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}

#: Operands that a variant may do without: it then refuses the problems that have them.
OPTIONAL = ("scale", "residual")

#: What may become of a float32 factor before it is multiplied: nothing, or it is rounded to TF32's 11 significant bits.
PRECISIONS = ("ieee", "tf32")


def bytes_of(shape: Sequence[int], dtype: str) -> int:
    """Return the bytes of an array, of one of `DTYPES` or of single bytes."""
    return math.prod(shape) * DTYPES.get(dtype, 1)


@dataclass(frozen=True)
class ConvProblem:
    """One 2-D convolution: the sizes, what it is made of, and how it is stored.

    Parameters
    ----------
    N, C, H, W : int
        Images in the batch (0 is allowed), input channels, image height and width.
    K, R, S : int
        Output channels, filter height and width.
    stride, dilation : (int, int)
        Height, width.
    padding : ((int, int), (int, int))
        Rows and columns of zeros around the image: ((top, bottom), (left, right)).
    groups : int
        Divides C and K; each group of K/groups filters sees C/groups channels.
    dtype : str
        float32, float64, float16 or bfloat16.
    activation : str
        As in `activations.ACTIVATIONS`: identity, relu, ..., leaky_relu:SLOPE.
    bias : bool
        The forward pass adds a bias; kernel_grad also returns its gradient.
    mask : bool
        The gradients read the ReLU's bit mask in place of the saved output.
    scale, residual : bool
        The forward pass multiplies the sum of each output channel by a number of its own before it adds the bias, and
        adds an array of y's shape before the activation: y = phi(scale[k] * sum + b[k] + residual).
    transposed : bool
        The pass `input_grad` is the forward pass of a transposed convolution, from dy to dx: the bias, of C values, and
        the activation are applied to dx.
    precision : str
        "ieee"; or "tf32", which lets a variant round float32 factors to TF32, and says nothing of other dtypes.
    layout : str
        In memory, of all arrays of x's and of y's shape but the bit mask: one of `layouts.LAYOUTS`.
    dx, dw : bool
        What the pass `backward` computes: the input gradient, the kernel gradient (and, with `bias`, the bias's).

    Raises
    ------
    InvalidArgument, InvalidType
        One sentence that names the parameter, what it is, and what it should be.
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    dtype: str = "float32"
    activation: str = "identity"
    bias: bool = False
    mask: bool = False
    scale: bool = False
    residual: bool = False
    transposed: bool = False
    precision: str = "ieee"
    layout: str = "nchw"
    dx: bool = True
    dw: bool = True

    def __post_init__(self) -> None:
        integer(self.N, "N (images)", 0)
        known(self.precision, PRECISIONS, "precision")
        known(self.layout, LAYOUTS, "layout")
        for name, what in (("C", "input channels"), ("H", "image height"), ("W", "image width"),
                           ("K", "output channels"), ("R", "filter height"), ("S", "filter width")):  # fmt: skip
            integer(getattr(self, name), f"{name} ({what})", 1)
        for name in ("C", "K"):
            if getattr(self, name) % self.groups:
                what = "input" if name == "C" else "output"
                raise InvalidArgument(
                    f"groups is {self.groups}, which does not divide the {getattr(self, name)} {what} channels"
                )
        for axis, image, extent, (before, after) in (
            ("high", self.H, self.filter_extent[0], self.padding[0]),
            ("wide", self.W, self.filter_extent[1], self.padding[1]),
        ):
            padded = image + before + after
            if extent > padded:
                raise InvalidArgument(
                    f"the filter is {extent} {axis} (dilation included), but the padded image only {padded}; "
                    "pad more or use a smaller filter"
                )
            if padded > INT_MAX:
                raise InvalidArgument(f"the padded image is {padded} {axis}; it should be below 2**31")
        if self.mask and self.activation != "relu":
            raise InvalidArgument(
                f"mask needs activation 'relu', not {self.activation!r}: only a ReLU saves a bit mask"
            )
        if self.mask and self.transposed:
            raise InvalidArgument("mask is given, which a transposed convolution neither saves nor reads")
        if self.mask and self.layout != "nchw":
            raise InvalidArgument(f"mask is given, whose bytes are pieces of rows; layout {self.layout!r} has none")
        for name in OPTIONAL:
            if self.transposed and getattr(self, name):
                raise InvalidArgument(f"{name} is given, which a transposed convolution does not take")

    # -- sizes -------------------------------------------------------------------------------------------------
    @property
    def filter_extent(self) -> Pair:
        """Height and width of the filter with its dilation."""
        return (self.dilation[0] * (self.R - 1) + 1, self.dilation[1] * (self.S - 1) + 1)

    @property
    def P(self) -> int:
        """Output height."""
        return (self.H + sum(self.padding[0]) - self.filter_extent[0]) // self.stride[0] + 1

    @property
    def Q(self) -> int:
        """Output width."""
        return (self.W + sum(self.padding[1]) - self.filter_extent[1]) // self.stride[1] + 1

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """Shape of the input and of its gradient."""
        return (self.N, self.C, self.H, self.W)

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        """Shape of the filter and of its gradient."""
        return (self.K, self.C // self.groups, self.R, self.S)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output and of its gradient."""
        return (self.N, self.K, self.P, self.Q)

    @property
    def mask_shape(self) -> tuple[int, int, int, int]:
        """Shape of the ReLU's bit mask, in bytes: numpy.packbits(y > 0, axis=-1, bitorder="little")."""
        return (self.N, self.K, self.P, -(-self.Q // 8))

    # -- the names under which the kernels know stride, padding and dilation (Conv2dShape in conv2d.cuh) -----------
    @property
    def stride_h(self) -> int:  # noqa: D102
        return self.stride[0]

    @property
    def stride_w(self) -> int:  # noqa: D102
        return self.stride[1]

    @property
    def pad_top(self) -> int:  # noqa: D102
        return self.padding[0][0]

    @property
    def pad_left(self) -> int:  # noqa: D102
        return self.padding[1][0]

    @property
    def dilation_h(self) -> int:  # noqa: D102
        return self.dilation[0]

    @property
    def dilation_w(self) -> int:  # noqa: D102
        return self.dilation[1]

    # -- costs -------------------------------------------------------------------------------------------------
    @property
    def saved(self) -> str | None:
        """What the gradients need to form phi': "output", "pre_activation", "mask", or None."""
        if self.transposed:
            return None
        return "mask" if self.mask else activation(self.activation).saved

    @property
    def accumulator_bytes(self) -> int:
        """Bytes of a number in which sums are formed."""
        return DTYPES[ACCUMULATORS[self.dtype]]

    @property
    def is_tf32(self) -> bool:
        """Whether factors may be rounded to TF32."""
        return self.precision == "tf32" and self.dtype == "float32"

    @property
    def flops(self) -> int:
        """Floating-point operations of one pass: a multiplication and an addition a tap, padding counted."""
        return 2 * math.prod(self.y_shape) * math.prod(self.w_shape[1:])

    def with_(self, **changes: Any) -> ConvProblem:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    # -- text --------------------------------------------------------------------------------------------------
    def __str__(self) -> str:
        """Return the problem as `ConvProblem.parse` reads it, leaving out what has its default value."""
        parts = [",".join(str(getattr(self, name)) for name in _SIZES)]
        for field in fields(self)[len(_SIZES) :]:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={_spell(value)}")
        return ",".join(parts)

    @classmethod
    def parse(cls, text: str, **defaults: Any) -> ConvProblem:
        """Read a problem as it is written on the command line.

        Parameters
        ----------
        text : str
            "N,C,H,W,K,R,S" and then any of "stride=2", "stride=2x1", "padding=1", "padding=1x2",
            "padding=0:1x2:3" (top:bottom x left:right), "padding=same", "dilation=2", "groups=4",
            "dtype=float16", "activation=relu", "bias=1", "mask=1", "scale=1", "residual=1",
            "transposed=1", "precision=tf32", "layout=nhwc", "dx=0", "dw=0".
        **defaults
            Values of options that the text leaves out.

        Raises
        ------
        InvalidArgument
            The text is none of this; the message says which part.
        """
        words = [word.strip() for word in text.split(",")]
        sizes, options = words[: len(_SIZES)], words[len(_SIZES) :]
        if len(sizes) < len(_SIZES) or not all(re.fullmatch(r"\d+", size) for size in sizes):
            raise InvalidArgument(
                f"problem is {text!r}; it should begin with seven integers N,C,H,W,K,R,S, such as 1,1,512,512,1,3,3"
            )
        values: dict[str, Any] = dict(zip(_SIZES, map(int, sizes), strict=True))
        given: dict[str, Any] = dict(defaults)
        for option in options:
            name, equals, value = option.partition("=")
            if not equals or name not in _OPTIONS:
                raise InvalidArgument(
                    f"problem option is {option!r}; it should be NAME=VALUE with one of {', '.join(_OPTIONS)}"
                )
            given[name] = _OPTIONS[name](value, name)
        stride = pair(given.pop("stride", 1), "stride", 1)
        dilation = pair(given.pop("dilation", 1), "dilation", 1)
        padding = resolve_padding(given.pop("padding", 0), (values["R"], values["S"]), stride, dilation)
        integer(given.get("groups", 1), "groups", 1)
        return cls(**values, stride=stride, padding=padding, dilation=dilation, **given)


_SIZES = ("N", "C", "H", "W", "K", "R", "S")


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        if value[0] == value[1] and (not isinstance(value[0], tuple) or value[0][0] == value[0][1]):
            return _spell(value[0][0] if isinstance(value[0], tuple) else value[0])
        return "x".join(":".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
    return str(int(value)) if isinstance(value, bool) else str(value)


def _read_integer(text: str, name: str) -> int:
    if not re.fullmatch(r"-?\d+", text):
        raise InvalidArgument(f"{name} is {text!r}; it should be an integer")
    return int(text)


def _read_pair(text: str, name: str) -> object:
    numbers = [_read_integer(part, name) for part in text.split("x")]
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _read_padding(text: str, name: str) -> object:
    if ":" in text:
        return tuple(tuple(_read_integer(part, name) for part in side.split(":")) for side in text.split("x"))
    return text if text in ("same", "valid") else _read_pair(text, name)


def _read_flag(text: str, name: str) -> bool:
    return known(text, ("0", "1"), name) == "1"


_OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "stride": _read_pair,
    "padding": _read_padding,
    "dilation": _read_pair,
    "groups": _read_integer,
    "dtype": lambda text, name: known(text, tuple(DTYPES), name),
    "activation": lambda text, name: activation_name(text),
    "bias": _read_flag,
    "mask": _read_flag,
    "scale": _read_flag,
    "residual": _read_flag,
    "transposed": _read_flag,
    "precision": lambda text, name: known(text, PRECISIONS, name),
    "layout": lambda text, name: known(text, LAYOUTS, name),
    "dx": _read_flag,
    "dw": _read_flag,
}


@dataclass(frozen=True)
class Operand:
    """An array that a pass reads or writes; where it is not `present`, the kernels get a null pointer.

    Attributes
    ----------
    name : str
        As in the kernels' parameters.
    shape : callable
        problem -> shape.
    reduction_length : callable or None
        problem -> how many products are added up for one element of a result; None for what is read, and for bits.
    present : callable
        problem -> whether the problem has it.
    dtype : callable
        problem -> dtype.
    is_image : bool
        Whether it lies in memory in the problem's layout.
    """

    name: str
    shape: Callable[[ConvProblem], tuple[int, ...]]
    reduction_length: Callable[[ConvProblem], int] | None = None
    written: bool = False
    present: Callable[[ConvProblem], bool] = lambda p: True
    dtype: Callable[[ConvProblem], str] = lambda p: p.dtype
    is_image: bool = False

    def layout(self, problem: ConvProblem) -> str:
        """Return the layout of the array."""
        return problem.layout if self.is_image else "nchw"

    def bytes(self, problem: ConvProblem) -> int:
        """Return the bytes of the array."""
        return bytes_of(self.shape(problem), self.dtype(problem))


def _result(name: str, shape: Callable[[ConvProblem], tuple[int, ...]], reduction_length: Callable[[ConvProblem], int],
            **more: Any) -> Operand:  # fmt: skip
    return Operand(name, shape, reduction_length, written=True, **more)


def _pixels(p: ConvProblem) -> int:
    return p.N * p.P * p.Q


_X = Operand("x", lambda p: p.x_shape, is_image=True)
_W = Operand("w", lambda p: p.w_shape)
_B = Operand("b", lambda p: (p.K,), present=lambda p: p.bias)
_SCALE = Operand("scale", lambda p: (p.K,), present=lambda p: p.scale)
_RESIDUAL = Operand("residual", lambda p: p.y_shape, present=lambda p: p.residual, is_image=True)
_TRANSPOSED_B = Operand("b", lambda p: (p.C,), present=lambda p: p.bias and p.transposed)
_DY = Operand("dy", lambda p: p.y_shape, is_image=True)
_SAVED = Operand(
    "saved",
    lambda p: p.mask_shape if p.mask else p.y_shape,
    present=lambda p: p.saved is not None,
    dtype=lambda p: "uint8" if p.mask else p.dtype,
    is_image=True,
)
_Y = _result("y", lambda p: p.y_shape, lambda p: math.prod(p.w_shape[1:]), is_image=True)
_MASK = Operand("mask", lambda p: p.mask_shape, None, True, present=lambda p: p.mask, dtype=lambda p: "uint8")
_DX = _result("dx", lambda p: p.x_shape, lambda p: p.K // p.groups * p.R * p.S, is_image=True)
_DW = _result("dw", lambda p: p.w_shape, _pixels)
_DB = _result("db", lambda p: (p.K,), _pixels, present=lambda p: p.bias)


@dataclass(frozen=True)
class Pass:
    """One of the computations that a variant can be of.

    Attributes
    ----------
    name : str
        forward, input_grad, kernel_grad or backward.
    gloss : str
        The same in the words of other libraries.
    operands : tuple of Operand
        In the order of the kernels' parameters.
    """

    name: str
    gloss: str
    operands: tuple[Operand, ...]

    def present(self, problem: ConvProblem) -> tuple[Operand, ...]:
        """Return the operands that this problem has."""
        return tuple(operand for operand in self.operands if operand.present(problem))

    def operand(self, name: str) -> Operand:
        """Return an operand by its name."""
        return next(operand for operand in self.operands if operand.name == name)

    def least_bytes(self, problem: ConvProblem) -> int:
        """Return the bytes that any implementation moves: each operand read or written once."""
        return sum(operand.bytes(problem) for operand in self.present(problem))

    def flops(self, problem: ConvProblem) -> int:
        """Return the floating-point operations: a multiplication and an addition a tap, padding counted."""
        return problem.flops * max(1, sum(o.name in ("dx", "dw") for o in self.present(problem)))


PASSES = {
    entry.name: entry
    for entry in (
        Pass("forward", "fprop", (_X, _W, _SCALE, _B, _RESIDUAL, _Y, _MASK)),
        Pass("input_grad", "dgrad", (_DY, _SAVED, _W, _SCALE, _TRANSPOSED_B, _DX)),
        Pass("kernel_grad", "wgrad", (_DY, _SAVED, _X, _SCALE, _DW, _DB)),
        Pass(
            "backward",
            "dgrad and wgrad in one",
            (
                _DY,
                _SAVED,
                replace(_X, present=lambda p: p.dw),
                replace(_W, present=lambda p: p.dx),
                _SCALE,
                replace(_DX, present=lambda p: p.dx),
                replace(_DW, present=lambda p: p.dw),
                _DB,
            ),
        ),
    )
}

#: The operands that lie in memory in a problem's layout.
IMAGES = frozenset(operand.name for each in PASSES.values() for operand in each.operands if operand.is_image)

#: The floating-point results of all passes, by name.
RESULTS = {operand.name: operand for operand in (_Y, _DX, _DW, _DB)}
