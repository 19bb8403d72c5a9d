"""What ours are compared with: each peer is one class here, found when its package is installed.

Torch's calls are in `torch_calls`, which other parts of the package use, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from convbackprop.bench import torch_calls
from convbackprop.check.reference import pre_activation_grad
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.problem import PASSES, ConvProblem

Array = Any
Call = Callable[[], Any]


class Peer:
    """Another library that does the same job.

    Attributes
    ----------
    name : str
        As --against has it. The names of its calls begin with it.
    module, pip : str
        What is imported, and what pip installs.
    device_kinds, passes : tuple of str
        Where it runs, and what it computes.
    about : str
        What is to be known of the comparison.
    """

    name = ""
    module = ""
    pip = ""
    device_kinds: tuple[str, ...] = ("cpu",)
    passes: tuple[str, ...] = tuple(PASSES)
    about = ""

    def load(self) -> Any:
        """Return its module; raises ImportError."""
        return importlib.import_module(self.module)

    def missing(self, device_kind: str) -> str | None:
        """Return None if it can be used, else why not and what to do."""
        try:
            self.load()
        except ImportError as error:
            return f"{self.name} cannot be imported ({error}), so nothing is compared with it; pip install {self.pip}"
        return None

    def prepare(self, threads: int) -> None:
        """Let it use as many threads as the cpu device."""

    def versions(self) -> dict[str, Any]:
        """Return what its timings depend on."""
        return {self.name: self.load().__version__}

    def why_not(self, pass_name: str, problem: ConvProblem, device_kind: str) -> str | None:
        """Return None if it computes a pass of a problem, else why not."""
        if device_kind not in self.device_kinds:
            return f"it does not run on {device_kind}"
        if problem.scale or problem.residual:
            return "its convolution takes no scale and no residual"
        return None if pass_name in self.passes else f"it is compared in {' and '.join(self.passes)}"

    def calls(
        self, pass_name: str, problem: ConvProblem, given: Mapping[str, Array], device_name: str
    ) -> dict[str, Call]:
        """Return its ways to compute a pass by name; each returns the results as it has them.

        The gradients get g = dy * phi'(s) ready-made.
        """
        raise NotImplementedError


def _ready_made(problem: ConvProblem, given: Mapping[str, Array]) -> Array:
    """Return g = dy * phi'(s)."""
    return pre_activation_grad(problem, given["dy"], given.get("saved"))[0].astype(given["dy"].dtype)


def _no_image_filter(problem: ConvProblem) -> str | None:
    """Return why a function that filters one image with one filter does not compute a problem."""
    p = problem
    same = ((p.R // 2, p.R // 2), (p.S // 2, p.S // 2))
    if p.R % 2 == 0 or p.S % 2 == 0 or p.padding != same or (p.stride, p.dilation) != ((1, 1), (1, 1)):
        return "it is compared with odd filters, padding 'same', stride 1 and dilation 1"
    return None


# -- torch -----------------------------------------------------------------------------------------------------------
class Torch(Peer):
    """PyTorch: contiguous tensors, and channels_last ones where the two differ."""

    name, module, pip = "torch", "torch", "'convbackprop[torch]'"
    device_kinds = ("cpu", "cuda")
    about = (
        "torch, at the better of its two memory formats. It allocates its results, which ours do not; for the "
        "gradients it is given dy * phi'(s) ready-made, which ours form."
    )

    def missing(self, device_kind: str) -> str | None:  # noqa: D102
        return torch_calls.why_no_torch(device_kind)

    def prepare(self, threads: int) -> None:  # noqa: D102
        torch_calls.use_threads(threads)

    def versions(self) -> dict[str, Any]:  # noqa: D102
        return torch_calls.settings()

    def calls(  # noqa: D102
        self, pass_name: str, problem: ConvProblem, given: Mapping[str, Array], device_name: str
    ) -> dict[str, Call]:
        both = device_name != "cpu" or problem.C > 1 or problem.K > 1
        torch_calls.allow_tf32(problem.is_tf32)
        return torch_calls.calls(pass_name, problem, given, device_name, channels_last=both)


# -- filters of images -----------------------------------------------------------------------------------------------
class OpenCV(Peer):
    """OpenCV's filter2D: the forward pass of one float32 image with one filter."""

    name, module, pip = "opencv", "cv2", "opencv-python-headless"
    passes = ("forward",)
    about = "OpenCV's filter2D, with as many threads and into an array that is there; it adds no bias and has no ReLU."

    def prepare(self, threads: int) -> None:  # noqa: D102
        self.load().setNumThreads(threads)

    def why_not(self, pass_name: str, problem: ConvProblem, device_kind: str) -> str | None:  # noqa: D102
        p = problem
        if (p.N, p.C, p.K) != (1, 1, 1) or p.dtype != "float32":
            return "it is compared on one float32 image with one filter"
        return super().why_not(pass_name, problem, device_kind) or _no_image_filter(problem)

    def calls(  # noqa: D102
        self, pass_name: str, problem: ConvProblem, given: Mapping[str, Array], device_name: str
    ) -> dict[str, Call]:
        cv2 = self.load()
        image, kernel = given["x"][0, 0], given["w"][0, 0]
        target = np.empty(problem.y_shape[2:], np.float32)
        return {"opencv": lambda: cv2.filter2D(image, -1, kernel, dst=target, borderType=cv2.BORDER_CONSTANT)}


def _ndimage_refusal(problem: ConvProblem) -> str | None:
    """Return why `ndimage_call` does not compute a problem."""
    p = problem
    if p.dtype not in ("float32", "float64"):
        return "it is compared in float32 and float64"
    if not p.C == p.K == p.groups or p.activation not in ("identity", "relu"):
        return "it is compared with one filter a channel, with ReLU or without an activation"
    return _no_image_filter(p)


def ndimage_call(
    pass_name: str, p: ConvProblem, a: Mapping[str, Array], module: Any, xp: Any
) -> Call:  # fmt: skip
    """Return a call of correlate (forward) or convolve (input_grad), image by image, into an array that is there.

    Parameters
    ----------
    pass_name, p
        What to compute.
    a : mapping of str to array
        What the pass reads of x, w, b and g.
    module, xp : module
        scipy.ndimage and numpy, or CuPy's.
    """
    forward = pass_name == "forward"
    source, filters, correlate = a["x" if forward else "g"], a["w"], module.correlate if forward else module.convolve
    target = xp.empty_like(source)
    bias = a["b"][None, :, None, None] if forward and p.bias else None

    def call() -> tuple[Array, ...]:
        for n in range(p.N):
            for c in range(p.C):
                correlate(source[n, c], filters[c, 0], output=target[n, c], mode="constant")
        if bias is not None:
            xp.add(target, bias, out=target)
        if forward and p.activation == "relu":
            xp.maximum(target, 0, out=target)
        return (target,)

    return call


class SciPy(Peer):
    """scipy.ndimage: correlate and convolve, one image after the other, on one thread."""

    name, module, pip = "scipy", "scipy.ndimage", "'convbackprop[stats]'"
    passes = ("forward", "input_grad")
    about = "scipy.ndimage's correlate and convolve, image by image, on one thread, with numpy's bias and ReLU."

    def versions(self) -> dict[str, Any]:  # noqa: D102
        return {"scipy": importlib.import_module("scipy").__version__}

    def why_not(self, pass_name: str, problem: ConvProblem, device_kind: str) -> str | None:  # noqa: D102
        return super().why_not(pass_name, problem, device_kind) or _ndimage_refusal(problem)

    def calls(  # noqa: D102
        self, pass_name: str, problem: ConvProblem, given: Mapping[str, Array], device_name: str
    ) -> dict[str, Call]:
        arrays = dict(given) if pass_name == "forward" else {"w": given["w"], "g": _ready_made(problem, given)}
        return {"scipy": ndimage_call(pass_name, problem, arrays, self.load(), np)}


# -- CuPy ------------------------------------------------------------------------------------------------------------
class CuPy(Peer):
    """CuPy on a GPU: cuDNN, which its versions before 14 have, and cupyx.scipy.ndimage for one filter a channel."""

    name, module, pip = "cupy", "cupy", "cupy-cuda13x"
    device_kinds = ("cuda",)
    about = (
        "CuPy: cuDNN through CuPy (before version 14), by its own choice of algorithm and without tensor cores, into "
        "arrays that are there; and cupyx.scipy.ndimage, image by image. g is ready-made for the gradients."
    )

    def missing(self, device_kind: str) -> str | None:  # noqa: D102
        try:
            count = self.load().cuda.runtime.getDeviceCount()
        except ImportError:
            return super().missing(device_kind)
        except Exception as error:  # its own, CUDARuntimeError
            return f"cupy cannot use the GPU ({error}), so nothing is compared with it"
        return None if count else "cupy finds no GPU, so nothing is compared with it"

    @staticmethod
    def _cudnn() -> Any:
        try:
            return importlib.import_module("cupy.cudnn")
        except ImportError:
            return None

    def _ways(self, pass_name: str, problem: ConvProblem) -> dict[str, str | None]:
        """Return its ways, each with the reason why it does not compute a pass of a problem."""
        (top, bottom), (left, right) = problem.padding
        cudnn = None
        if self._cudnn() is None:
            cudnn = "this CuPy comes without cuDNN, which versions before 14 have"
        elif problem.dtype == "bfloat16" or (top, left) != (bottom, right) or not problem.dx or not problem.dw:
            cudnn = "cuDNN is compared on symmetric padding, without bfloat16, with both gradients"
        elif pass_name == "forward" and problem.activation not in ("identity", "relu"):
            cudnn = "cuDNN is compared with ReLU or without an activation"
        in_ndimage = pass_name in SciPy.passes
        ndimage = _ndimage_refusal(problem) if in_ndimage else "cupyx.scipy.ndimage has no such function"
        return {"cupy cudnn": cudnn, "cupy ndimage": ndimage}

    def why_not(self, pass_name: str, problem: ConvProblem, device_kind: str) -> str | None:  # noqa: D102
        if reason := super().why_not(pass_name, problem, device_kind):
            return reason
        reasons = self._ways(pass_name, problem).values()
        return "; ".join(filter(None, reasons)) if all(reasons) else None

    def calls(  # noqa: D102
        self, pass_name: str, problem: ConvProblem, given: Mapping[str, Array], device_name: str
    ) -> dict[str, Call]:
        cupy = self.load()
        arrays = {name: array for name, array in given.items() if name in "xwb"}
        if "dy" in given:
            arrays["g"] = _ready_made(problem, given)
        ways = self._ways(pass_name, problem)
        with cupy.cuda.Device(int(device_name.partition(":")[2] or 0)):
            there = {name: cupy.asarray(array) for name, array in arrays.items()}
            made = {}
            if ways["cupy cudnn"] is None:
                made["cupy cudnn"] = cudnn_call(pass_name, problem, there, self._cudnn(), cupy)
            if ways["cupy ndimage"] is None:
                module = importlib.import_module("cupyx.scipy.ndimage")
                made["cupy ndimage"] = ndimage_call(pass_name, problem, there, module, cupy)
        return made


def cudnn_call(pass_name: str, p: ConvProblem, a: Mapping[str, Array], cudnn: Any, xp: Any) -> Call:
    """Return a call of cuDNN through CuPy, into arrays that are there."""
    dtype = a["w" if "w" in a else "x"].dtype
    where = (tuple(before for before, _ in p.padding), p.stride, p.dilation, p.groups)
    how = {"auto_tune": True, "tensor_core": "auto" if p.dtype == "float16" else "never"}

    def forward() -> tuple[Array, ...]:
        cudnn.convolution_forward(a["x"], a["w"], a.get("b"), y, *where, **how)
        if p.activation == "relu":
            xp.maximum(y, 0, out=y)
        return (y,)

    def input_grad() -> tuple[Array, ...]:
        cudnn.convolution_backward_data(a["w"], a["g"], None, dx, *where, deterministic=False, **how)
        return (dx,)

    def kernel_grad() -> tuple[Array, ...]:
        cudnn.convolution_backward_filter(a["x"], a["g"], dw, *where, deterministic=False, **how)
        return (dw, a["g"].sum(axis=(0, 2, 3))) if p.bias else (dw,)

    y, dx, dw = (
        xp.empty(shape, dtype) if pass_name in passes else None
        for shape, passes in (
            (p.y_shape, ("forward",)), (p.x_shape, ("input_grad", "backward")), (p.w_shape, ("kernel_grad", "backward"))
        )
    )  # fmt: skip
    calls = {
        "forward": forward,
        "input_grad": input_grad,
        "kernel_grad": kernel_grad,
        "backward": lambda: (*input_grad(), *kernel_grad()),
    }
    return calls[pass_name]


# -- the registry ----------------------------------------------------------------------------------------------------
PEERS = {peer.name: peer for peer in (Torch(), SciPy(), OpenCV(), CuPy())}

#: Words of --against that are no peer's name.
ALL, NONE = "all", "none"


def named(text: str) -> tuple[Peer, ...] | None:
    """Return the peers that --against names, separated by commas; None: all that are installed.

    Raises
    ------
    InvalidArgument
        It names an unknown one; the message lists the known ones.
    """
    if text in (ALL, NONE):
        return None if text == ALL else ()
    for name in text.split(","):
        if name not in PEERS:
            known = ", ".join([*PEERS, ALL, NONE])
            raise InvalidArgument(f"--against is {name!r}; it should be one of {known}, or peers with commas between")
    return tuple(PEERS[name] for name in dict.fromkeys(text.split(",")))


def found(
    asked: Sequence[Peer] | None, device_kind: str, device_name: str, notes: list[str], unasked: Sequence[str] = ()
) -> tuple[Peer, ...]:
    """Return those peers that can be used; a note says which of all is missing.

    `unasked`: the names of those that are meant by all, where that is not every one.

    Raises
    ------
    InvalidArgument
        A peer that was asked for does not run on the device.
    EnvironmentProblem
        A peer that was asked for is not installed.
    """
    if asked is None:
        meant = [PEERS[name] for name in unasked or PEERS]
        able = [peer for peer in meant if device_kind in peer.device_kinds]
        missing = {peer.name: why for peer in able if (why := peer.missing(device_kind))}
        notes += missing.values()
        return tuple(peer for peer in able if peer.name not in missing)
    for peer in asked:
        if device_kind not in peer.device_kinds:
            raise InvalidArgument(
                f"--against {peer.name} compares on {' and '.join(peer.device_kinds)}, not on {device_name}; add "
                f"--device {peer.device_kinds[0]}"
            )
        if why := peer.missing(device_kind):
            raise EnvironmentProblem(f"{why}, or leave it out of --against")
    return tuple(asked)
