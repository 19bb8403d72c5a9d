"""Hand-written CUDA kernels for a convolutional layer's forward pass and its backpropagation.

`conv2d`, `conv2d_input_grad`, `conv2d_kernel_grad`, `conv2d_backward` and `conv_transpose2d` run them on a GPU, or on
the CPU where there is none. The command line (``convbackprop --help``) lists, checks and times them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

#: Where each public name lives; it is imported when it is first used.
_HOMES = {
    "__version__": "_version",
    "conv2d": "ops",
    "conv2d_input_grad": "ops",
    "conv2d_kernel_grad": "ops",
    "conv2d_backward": "ops",
    "conv_transpose2d": "transposed",
    "prepare": "prepared",
    "PreparedCall": "prepared",
    "tuning": "tune.session",
    "ConvProblem": "problem",
    "get_num_threads": "devices.cpu",
    "set_num_threads": "devices.cpu",
    "ConvBackpropError": "errors",
    "InvalidArgument": "errors",
    "InvalidType": "errors",
    "UnsupportedProblem": "errors",
    "ProblemTooLarge": "errors",
    "EnvironmentProblem": "errors",
    "CompilerNotFound": "errors",
    "CompileError": "errors",
    "DeviceNotFound": "errors",
    "DeviceUnusable": "errors",
    "LaunchFailed": "errors",
    "RankMissing": "errors",
}

__all__ = list(_HOMES)

if TYPE_CHECKING:  # named twice, for type checkers to export them
    from convbackprop._version import __version__ as __version__
    from convbackprop.devices.cpu import get_num_threads as get_num_threads, set_num_threads as set_num_threads
    from convbackprop.errors import (
        CompileError as CompileError,
        CompilerNotFound as CompilerNotFound,
        ConvBackpropError as ConvBackpropError,
        DeviceNotFound as DeviceNotFound,
        DeviceUnusable as DeviceUnusable,
        EnvironmentProblem as EnvironmentProblem,
        InvalidArgument as InvalidArgument,
        InvalidType as InvalidType,
        LaunchFailed as LaunchFailed,
        ProblemTooLarge as ProblemTooLarge,
        RankMissing as RankMissing,
        UnsupportedProblem as UnsupportedProblem,
    )
    from convbackprop.ops import (
        conv2d as conv2d,
        conv2d_backward as conv2d_backward,
        conv2d_input_grad as conv2d_input_grad,
        conv2d_kernel_grad as conv2d_kernel_grad,
    )
    from convbackprop.prepared import PreparedCall as PreparedCall, prepare as prepare
    from convbackprop.problem import ConvProblem as ConvProblem
    from convbackprop.transposed import conv_transpose2d as conv_transpose2d
    from convbackprop.tune.session import tuning as tuning


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convbackprop' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convbackprop.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
