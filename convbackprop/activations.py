"""The activations phi, and what a gradient forms phi' from: the output y, or the pre-activation s where y cannot tell.

Adding one takes an entry here, a line in cuda_src/activation.cuh and one in cuda_src/activation_grad.cuh. `value` and
`grad` are written for numpy and for torch alike, and share no code with the kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convbackprop.arguments import known, shown
from convbackprop.errors import InvalidArgument

Array = Any  # numpy.ndarray or torch.Tensor
Namespace = Any  # the module numpy or torch


@dataclass(frozen=True)
class Activation:
    """An activation and its derivative.

    Attributes
    ----------
    value : callable
        (module, s) -> phi(s); the module is numpy or torch.
    grad : callable
        (module, dy, saved) -> dy * phi'(s); `saved` is y = phi(s), or s, as the next attribute says.
    saved : str or None
        What phi' is formed from: "output", "pre_activation", or None if it is 1.
    slope : float
        The largest |phi'|: how much an error of s can grow.
    round_offs : int
        Round-offs of the accumulator that evaluating phi may cost, relative to its value.
    grad_round_offs : int
        The same of forming dy * phi', relative to `grad_size`.
    grad_size : callable
        (|dy|, saved) -> the sum of the magnitudes of the terms that dy * phi' is made of; numpy only.
    torch : str
        A function of torch.nn.functional.
    module : str
        The class of torch.nn, whose attributes, like the function's arguments, have the names of `parameters`.
    parameters : mapping of str to object
        Their defaults.
    accepts : callable
        (**parameters) -> the activation's name with these, or None if the kernels do not compute it.
    """

    value: Callable[[Namespace, Array], Array]
    grad: Callable[[Namespace, Array, Array], Array]
    saved: str | None = "output"
    slope: float = 1.0
    round_offs: int = 0
    grad_round_offs: int = 2
    grad_size: Callable[[Array, Array], Array] | None = None
    torch: str = ""
    module: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    accepts: Callable[..., str | None] = lambda: None


def _sigmoid(xp: Namespace, s: Array) -> tuple[Array, Array]:
    """Return 1 / (1 + exp(-s)) and 1 / (1 + exp(s)), neither by a difference."""
    small = xp.exp(-abs(s))
    near, far = 1 / (1 + small), small / (1 + small)
    return xp.where(s > 0, near, far), xp.where(s > 0, far, near)


def _normal_cdf(xp: Namespace, s: Array) -> Array:
    """Return Phi(s) = erfc(-s / sqrt(2)) / 2; numpy has no erfc, and the standard library one of double precision."""
    erfc = np.vectorize(math.erfc, otypes=[float]) if xp is np else xp.special.erfc
    return erfc(-s * math.sqrt(0.5)) / 2


def _normal_density(xp: Namespace, s: Array) -> Array:
    return xp.exp(-s * s / 2) / math.sqrt(2 * math.pi)


#: Beyond it gelu's derivative is 0 or 1 in every dtype, and powers of s might overflow.
_FAR = 64.0

#: gelu_tanh is s * sigmoid(2 u) with u = sqrt(2 / pi) (s + 0.044715 s^3).
_TWO_U = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _two_u(s: Array) -> tuple[Array, Array]:
    """Return 2 u and its derivative."""
    return _TWO_U * (s + _CUBIC * s * s * s), _TWO_U * (1 + 3 * _CUBIC * s * s)


def _silu_grad(xp: Namespace, dy: Array, s: Array) -> Array:
    open_, closed = _sigmoid(xp, s)
    return dy * (open_ * (1 + s * closed))


def _silu_size(dy: Array, s: Array) -> Array:
    open_, closed = _sigmoid(np, s)
    return dy * (open_ * (1 + abs(s) * closed))


def _gelu_tanh_grad(xp: Namespace, dy: Array, s: Array) -> Array:
    s = xp.clip(s, -_FAR, _FAR)
    two_u, slope = _two_u(s)
    open_, closed = _sigmoid(xp, two_u)
    return dy * (open_ * (1 + s * slope * closed))


def _gelu_tanh_size(dy: Array, s: Array) -> Array:
    s = np.clip(s, -_FAR, _FAR)
    two_u, slope = _two_u(s)
    open_, closed = _sigmoid(np, two_u)
    return dy * ((1 + abs(two_u)) * open_ * (1 + abs(s) * slope * closed))  # exp enlarges an error of 2 u


def _gelu_size(dy: Array, s: Array) -> Array:
    s = np.clip(s, -_FAR, _FAR)
    # exp enlarges an error of s^2 / 2 by as much
    return dy * (_normal_cdf(np, s) + (1 + s * s) * abs(s) * _normal_density(np, s))


def _gelu_grad(xp: Namespace, dy: Array, s: Array) -> Array:
    s = xp.clip(s, -_FAR, _FAR)
    return dy * (_normal_cdf(xp, s) + xp.where(abs(s) < _FAR, s * _normal_density(xp, s), 0))


#: May be followed by its slope (leaky_relu:0.2), which else is torch's.
_SLOPED, _SLOPE = "leaky_relu", 0.01


def _leaky_relu(slope: float) -> Activation:
    return Activation(
        lambda xp, s: xp.where(s > 0, s, slope * s),
        lambda xp, dy, y: xp.where(y > 0, dy, slope * dy),
        slope=max(1.0, slope),
        round_offs=2,
        torch="leaky_relu",
        module="LeakyReLU",
        parameters={"negative_slope": slope},
        accepts=lambda negative_slope: f"leaky_relu:{negative_slope!r}" if 0 <= negative_slope < math.inf else None,
    )


#: In the order in which the kernels have them. Round-offs from the CUDA C++ Programming Guide, "Mathematical
#: Functions", where exp has 1 to 2 units in the last place (a unit is two round-offs), tanh, expm1 and log1p 1 to 2,
#: erfc 4 to 5; glibc's are below.
ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda xp, s: s, lambda xp, dy, saved: dy, saved=None),
    "relu": Activation(
        lambda xp, s: xp.where(s <= 0, 0, s),
        lambda xp, dy, y: xp.where(y <= 0, 0, dy),
        torch="relu",
        module="ReLU",
        accepts=lambda: "relu",
    ),
    # exp (4), 1 + e (1), the division (1)
    "logistic": Activation(
        lambda xp, s: _sigmoid(xp, s)[0],
        lambda xp, dy, y: dy * (y * (1 - y)),
        slope=0.25,
        round_offs=6,
        torch="sigmoid",
        module="Sigmoid",
        accepts=lambda: "logistic",
    ),
    "tanh": Activation(
        lambda xp, s: xp.tanh(s),
        lambda xp, dy, y: dy * ((1 - y) * (1 + y)),  # 1 - y * y would cancel
        round_offs=4,
        torch="tanh",
        module="Tanh",
        accepts=lambda: "tanh",
    ),
    "relu6": Activation(
        lambda xp, s: xp.where(s <= 0, 0, xp.where(s >= 6, 6, s)),
        lambda xp, dy, y: xp.where((y <= 0) | (y >= 6), 0, dy),
        torch="relu6",
        module="ReLU6",
        accepts=lambda: "relu6",
    ),
    "leaky_relu": _leaky_relu(_SLOPE),
    # max(s, 0) + log1p(exp(-|s|)), each term non-negative: exp (4), log1p (4), the sum (1)
    "softplus": Activation(
        lambda xp, s: xp.where(s > 0, s, 0) + xp.log1p(xp.exp(-abs(s))),
        lambda xp, dy, y: dy * -xp.expm1(-y),
        round_offs=9,
        grad_round_offs=6,
        torch="softplus",
        module="Softplus",
        parameters={"beta": 1.0, "threshold": 20.0},
        accepts=lambda beta, threshold: "softplus" if beta == 1 and threshold >= 20 else None,
    ),
    "silu": Activation(
        lambda xp, s: s * _sigmoid(xp, s)[0],
        _silu_grad,
        saved="pre_activation",
        slope=1.1,
        round_offs=7,
        grad_round_offs=18,
        grad_size=_silu_size,
        torch="silu",
        module="SiLU",
        accepts=lambda: "silu",
    ),
    "gelu": Activation(
        lambda xp, s: s * _normal_cdf(xp, s),
        _gelu_grad,
        saved="pre_activation",
        slope=1.13,
        round_offs=14,
        grad_round_offs=16,
        grad_size=_gelu_size,
        torch="gelu",
        module="GELU",
        parameters={"approximate": "none"},
        accepts=lambda approximate: {"none": "gelu", "tanh": "gelu_tanh"}.get(approximate),
    ),
    "gelu_tanh": Activation(
        lambda xp, s: s * _sigmoid(xp, _two_u(s)[0])[0],
        _gelu_tanh_grad,
        saved="pre_activation",
        slope=1.13,
        round_offs=7,
        grad_round_offs=24,
        grad_size=_gelu_tanh_size,
        torch="gelu",
        parameters={"approximate": "tanh"},
    ),
    "hardswish": Activation(
        lambda xp, s: s * xp.clip(s + 3, 0, 6) / 6,
        lambda xp, dy, s: xp.where(s <= -3, 0, xp.where(s >= 3, dy, dy * (s / 3 + 0.5))),
        saved="pre_activation",
        slope=1.5,
        round_offs=3,
        grad_round_offs=4,
        grad_size=lambda dy, s: np.where(s <= -3, 0, np.where(s >= 3, dy, dy * (abs(s) / 3 + 0.5))),
        torch="hardswish",
        module="Hardswish",
        accepts=lambda: "hardswish",
    ),
}


def _same(s: Array) -> Array:
    return s


#: Those that kernels are tried with by default; from them the others differ in phi and phi' alone.
COMMON = ("identity", "relu", "logistic", "tanh")

_ALIASES = {"sigmoid": "logistic", "linear": "identity"}


def activation_name(value: object) -> str:
    """Return the canonical name of an activation: "sigmoid" is "logistic", "leaky_relu:0.010" is "leaky_relu".

    Raises
    ------
    InvalidArgument
        There is none of this name; or the slope of "leaky_relu:SLOPE" is no number, negative, or not finite.
    """
    name, colon, text = value.partition(":") if isinstance(value, str) else ("", "", "")
    if name == _SLOPED and colon:
        try:
            slope = float(text)
        except ValueError:
            slope = math.nan
        if not 0 <= slope < math.inf:
            raise InvalidArgument(
                f"activation is {shown(value)}; its slope should be a number, 0 or more: y would not tell which side "
                "of 0 it came from"
            )
        return _SLOPED if slope == _SLOPE else f"{_SLOPED}:{slope!r}"
    return known(_ALIASES.get(str(value), value), tuple(ACTIVATIONS), "activation")


def activation(name: str) -> Activation:
    """Return an activation by its canonical name."""
    return ACTIVATIONS.get(name) or _leaky_relu(float(name.partition(":")[2]))


def saved_by(value: object) -> str | None:
    """Return what the derivative of an activation, by any of its names, is formed from: see `Activation.saved`."""
    return activation(activation_name(value)).saved


def torch_function(name: str) -> Callable[[Array], Array]:
    """Return phi as PyTorch has it, with its own derivatives."""
    import torch

    phi = activation(name)
    return functools.partial(getattr(torch.nn.functional, phi.torch), **phi.parameters) if phi.torch else _same


def constants(name: str, transposed: bool = False) -> dict[str, object]:
    """Return the constants that choose an activation, and its derivative, in the kernels.

    `transposed`: it is applied to what input_grad computes, and none is differentiated.
    """
    kind, _, slope = name.partition(":")
    where = {"ACTIVATION": kind.upper()}
    if transposed:
        where = {"ACTIVATION": "IDENTITY", "OUTPUT_ACTIVATION": kind.upper()}
    return {**where, **({"SLOPE": float(slope or _SLOPE)} if kind == _SLOPED else {})}
