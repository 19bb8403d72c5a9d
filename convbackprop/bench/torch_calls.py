"""The same job done by torch, to be timed beside ours."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convbackprop.activations import activation, torch_function
from convbackprop.check.reference import numpy_dtype, pre_activation_grad
from convbackprop.problem import ConvProblem

Array = Any
Call = Callable[[], Any]


@functools.cache
def import_torch() -> Any:
    """Return torch, its idle threads made to sleep: they would spin on the cores that the next measurement needs.

    Raises
    ------
    ImportError
        It is not installed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
    import torch

    return torch


def why_no_torch(device_kind: str) -> str | None:
    """Return None if torch can be timed on this kind of device, else why not and what to do."""
    try:
        torch = import_torch()
    except ImportError as error:
        if error.name == "torch":
            return "torch is not installed, so nothing is compared with it; pip install 'convbackprop[torch]'"
        return f"torch cannot be imported ({error}), so nothing is compared with it"
    if device_kind == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use the GPU, so nothing is compared with it; install a CUDA build"
    return None


def use_threads(count: int) -> None:
    """Let torch use as many threads as the cpu device, and on a GPU the fastest algorithms of full precision."""
    torch = import_torch()
    torch.set_num_threads(count)
    torch.backends.cudnn.benchmark = True
    allow_tf32(False)


def allow_tf32(allow: bool) -> None:
    """Say whether torch may round float32 factors to TF32."""
    torch = import_torch()
    torch.backends.cudnn.allow_tf32 = allow
    torch.backends.cuda.matmul.allow_tf32 = allow


def tensor(array: Array, device_name: str = "cpu") -> Any:
    """Return an array as a tensor; on the CPU it is the same memory."""
    torch = import_torch()
    if array.dtype == numpy_dtype("bfloat16"):  # numpy has no bfloat16 that torch knows
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device_name)
    return torch.from_numpy(array).to(device_name)


def settings() -> dict[str, Any]:
    """Return what torch's timings depend on."""
    torch = import_torch()
    return {
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "allow_tf32": torch.backends.cudnn.allow_tf32,
    }


def calls(
    pass_name: str,
    problem: ConvProblem,
    given: Mapping[str, Array],
    device_name: str = "cpu",
    channels_last: bool | None = None,
) -> dict[str, Call]:
    """Return torch's ways to compute a pass, by name; each returns the results as tensors.

    The gradients get g = dy * phi'(s) ready-made, which favours torch. Padding that differs between two sides, which
    torch's convolutions do not take, is padded or cropped within the call.

    Parameters
    ----------
    pass_name, problem
        What to compute.
    given : mapping of str to numpy.ndarray
        The pass's inputs by operand name.
    device_name : str
        "cpu" or "cuda:N".
    channels_last : bool or None
        Also give the way that works on tensors in this memory format; None: on a GPU.
    """
    arrays = {name: array for name, array in given.items() if name in ("x", "w", "b")}
    if "dy" in given:
        arrays["g"] = pre_activation_grad(problem, given["dy"], given.get("saved"))[0].astype(given["dy"].dtype)
    tensors = {name: tensor(array, device_name) for name, array in arrays.items()}
    both = device_name != "cpu" if channels_last is None else channels_last
    return calls_on(pass_name, problem, tensors, channels_last=both)


def calls_on(pass_name: str, problem: ConvProblem, tensors: Mapping[str, Any], channels_last: bool) -> dict[str, Call]:
    """Return torch's ways to compute a pass on tensors that are there already.

    Parameters
    ----------
    pass_name, problem
        What to compute.
    tensors : mapping of str to torch.Tensor
        What the pass reads of x, w, b and g = dy * phi'(s).
    channels_last : bool
        Also give the way that works on tensors in this memory format.
    """
    torch = import_torch()
    formats = {"torch": torch.contiguous_format}
    if channels_last:
        formats["torch channels_last"] = torch.channels_last
    return {name: _call(pass_name, problem, tensors, memory_format) for name, memory_format in formats.items()}


def _call(pass_name: str, p: ConvProblem, tensors: Mapping[str, Any], memory_format: Any) -> Call:
    torch = import_torch()
    functional = torch.nn.functional
    t = {n: v.contiguous(memory_format=memory_format) if v.dim() == 4 else v for n, v in tensors.items()}
    (top, bottom), (left, right) = p.padding
    symmetric = top == bottom and left == right
    padding = [top, left] if symmetric else [0, 0]
    x_shape = (p.N, p.C, p.H, p.W) if symmetric else (p.N, p.C, p.H + top + bottom, p.W + left + right)
    like = next(iter(t.values()))

    phi = getattr(torch, f"{activation(p.activation).torch}_", None) or torch_function(p.activation)

    def padded(x: Any) -> Any:
        return x if symmetric else functional.pad(x, (left, right, top, bottom))

    def unpadded(dx: Any) -> Any:
        return dx if symmetric else dx[:, :, top : top + p.H, left : left + p.W].contiguous()

    # torch asks for both of a convolution's arrays; of the one whose gradient alone is wanted it uses only the shape.
    def shape_only(shape: tuple[int, ...]) -> Any:
        return like.new_zeros(shape).contiguous(memory_format=memory_format)

    some_x = shape_only(x_shape) if "x" not in t else None
    some_w = shape_only(p.w_shape) if "w" not in t else None

    def gradients(wanted: list[bool]) -> tuple[Any, ...]:
        x = padded(t["x"]) if some_x is None else some_x
        w = t["w"] if some_w is None else some_w
        bias_sizes = [p.K] if p.bias else None
        dx, dw, db = torch.ops.aten.convolution_backward(
            t["g"], x, w, bias_sizes, p.stride, padding, p.dilation, False, [0, 0], p.groups, wanted
        )
        results = (unpadded(dx) if wanted[0] else None, dw, db)
        return tuple(result for result, want in zip(results, wanted, strict=True) if want)

    def forward() -> tuple[Any, ...]:
        y = functional.conv2d(padded(t["x"]), t["w"], t.get("b"), p.stride, padding, p.dilation, p.groups)
        return (phi(y),)  # where torch has it, in place

    def input_grad() -> tuple[Any, ...]:
        if not p.transposed:
            return gradients([True, False, False])
        more = [
            (size + sum(around) - extent) % stride
            for size, around, extent, stride in zip((p.H, p.W), p.padding, p.filter_extent, p.stride, strict=True)
        ]
        y = functional.conv_transpose2d(
            t["g"],
            t["w"],
            t.get("b"),
            p.stride,
            padding,
            more,
            p.groups,
            p.dilation,  # type: ignore[arg-type]
        )
        return (phi(unpadded(y)),)

    def kernel_grad() -> tuple[Any, ...]:
        return gradients([False, True, p.bias])

    def backward() -> tuple[Any, ...]:
        return gradients([p.dx, p.dw, p.bias])

    calls = {"forward": forward, "input_grad": input_grad, "kernel_grad": kernel_grad, "backward": backward}
    call = calls[pass_name]

    def without_graph() -> Any:
        with torch.no_grad():
            return call()

    return without_graph
