"""The convolutions of a model of PyTorch's, as problems: what one forward and one backward pass of it compute."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convbackprop.devices import Device
from convbackprop.errors import InvalidArgument
from convbackprop.launch import calls
from convbackprop.launch.given import problem_of
from convbackprop.problem import ConvProblem
from convbackprop.tune import choice

Job = tuple[str, ConvProblem]


def jobs_of_model(text: str) -> list[Job]:
    """Return the passes of a model's layers, each with its problem, in the order in which they are first computed.

    Convolutions of PyTorch's own count as ours without an activation.

    Parameters
    ----------
    text : str
        "FILE.pt2", as torch.export.save writes it, or "module:function", a function without arguments that returns
        a model and a tuple of its inputs.

    Raises
    ------
    InvalidArgument
        There is no such file or function, or it returns something else; the model cannot be run; or it has no
        convolution.
    """
    import torch

    model, inputs = _exported(text) if text.endswith(".pt2") else _returned(text)
    found: dict[Job, None] = {}

    def tell(pass_name: str, problem: ConvProblem, device: Device) -> None:
        found[pass_name, problem] = None

    choice.listeners.append(tell)
    calls.forget()
    try:
        with _recorder(found), torch.enable_grad():
            results = model(*inputs)
            outputs = results if isinstance(results, list | tuple) else [results]
            losses = [out.sum() for out in outputs if isinstance(out, torch.Tensor) and out.requires_grad]
            if losses:
                torch.autograd.backward(losses)
    except Exception as error:
        raise InvalidArgument(f"--model {text}: running it fails: {type(error).__name__}: {error}") from error
    finally:
        choice.listeners.remove(tell)
    if not found:
        raise InvalidArgument(f"--model {text} has no two-dimensional convolution")
    return list(found)


def _exported(text: str) -> tuple[Any, Sequence[Any]]:
    import torch

    import convbackprop.torch  # noqa: F401 - whose operators the program may call

    if not Path(text).is_file():
        raise InvalidArgument(f"--model {text} does not exist; it should be a file that torch.export.save has written")
    try:
        program = torch.export.load(text)
    except Exception as error:
        raise InvalidArgument(f"--model {text} cannot be loaded: {error}") from error
    inputs, named = program.example_inputs or ((), {})
    module = program.module()
    return lambda *given: module(*given, **named), inputs


def _returned(text: str) -> tuple[Any, Sequence[Any]]:
    name, colon, function = text.partition(":")
    if not (name and colon and function):
        raise InvalidArgument(f"--model is {text!r}; it should be FILE.pt2 or module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as for python -m
    try:
        made = getattr(importlib.import_module(name), function)()
    except Exception as error:
        raise InvalidArgument(f"--model {text}: {type(error).__name__}: {error}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0]) and isinstance(made[1], list | tuple)):
        raise InvalidArgument(f"--model {text} returns a {type(made).__name__}; it should return (model, inputs), the "
                              "inputs a tuple")  # fmt: skip
    return made


def _recorder(found: dict[Job, None]) -> Any:
    """Return a mode of PyTorch's that notes the convolutions that are its own."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operator(*args, **(kwargs or {}))
            if operator is aten.convolution.default:
                x, w, b, *geometry = args
                found.update(dict.fromkeys(_forward(x, w, b is not None, geometry, result)))
            elif operator is aten.convolution_backward.default:
                dy, x, w, _, *geometry, needs = args
                found.update(dict.fromkeys(_backward(x, w, geometry, dy, needs)))
            return result

    return Recorder()


def _problem(x: Any, w: Any, geometry: Sequence[Any], y: Any, **flags: bool) -> ConvProblem:
    """Return the problem of a convolution of PyTorch's own; of a transposed one, which y is the x of."""
    from convbackprop.torch.options import precision_of

    stride, padding, dilation, transposed, _, groups = geometry
    sides = tuple((extent, extent) for extent in padding)
    image = y if transposed else x
    dtype = str(x.dtype).removeprefix("torch.")
    return problem_of(
        tuple(image.shape), "input", tuple(w.shape), "weight", tuple(stride), sides, tuple(dilation), groups,
        "identity", dtype, precision_of(None, x), **flags,
    )  # fmt: skip


def _forward(x: Any, w: Any, bias: bool, geometry: Sequence[Any], y: Any) -> list[Job]:
    if w.ndim != 4:
        return []
    if geometry[3]:
        return [("input_grad", _problem(x, w, geometry, y, bias=bias, transposed=True))]
    return [("forward", _problem(x, w, geometry, y, bias=bias))]


def _backward(x: Any, w: Any, geometry: Sequence[Any], dy: Any, needs: Sequence[bool]) -> list[Job]:
    if w.ndim != 4:
        return []
    dx, dw, db = needs
    plain = _problem(x, w, geometry, dy)
    if geometry[3]:
        return [*([("forward", plain)] if dx else []), *([("kernel_grad", plain)] if dw else [])]
    jobs = [*([("input_grad", plain)] if dx else []), *([("kernel_grad", plain.with_(bias=db))] if dw or db else [])]
    return [*jobs, ("backward", plain.with_(bias=db, dw=dw))] if dx and (dw or db) else jobs
