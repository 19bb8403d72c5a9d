"""The exceptions that convbackprop raises on purpose; each message says what is wrong and what to do."""

from __future__ import annotations


class ConvBackpropError(Exception):
    """Base class of every exception that the package raises on purpose."""


class InvalidArgument(ConvBackpropError, ValueError):
    """An argument has a value that makes no convolution; nothing was launched."""


class InvalidType(ConvBackpropError, TypeError):
    """An argument is of a type that cannot be used; nothing was launched."""


class UnsupportedProblem(ConvBackpropError, ValueError):
    """The variant asked for does not compute this problem; the message is the registry's sentence."""


class ProblemTooLarge(ConvBackpropError, MemoryError):
    """The arrays of the problem do not fit the memory of the device."""


class EnvironmentProblem(ConvBackpropError):
    """Something that the package needs from the machine is missing or broken; base of the classes below."""


class CompilerNotFound(EnvironmentProblem):
    """No C++ compiler (device cpu) or no nvcc (device cuda) was found."""


class CompileError(EnvironmentProblem):
    """The compiler rejected a kernel; the message carries its output, with the .cu file and line."""


class DeviceNotFound(EnvironmentProblem):
    """There is no such device on this machine."""


class DeviceUnusable(EnvironmentProblem):
    """There is a device, but it cannot be used; the message says why."""


class LaunchFailed(EnvironmentProblem):
    """A CUDA kernel was launched wrongly or did not end well."""


class RankMissing(EnvironmentProblem):
    """A process of a torch.distributed group did not answer in time, or has ended."""
