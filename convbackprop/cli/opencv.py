"""OpenCV's filter2D beside the forward pass, for `bench --against opencv`: one image, one filter, float32, no bias."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from convbackprop.errors import EnvironmentProblem
from convbackprop.problem import ConvProblem

Array = Any


def import_opencv() -> Any:
    """Return cv2.

    Raises
    ------
    EnvironmentProblem
        It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise EnvironmentProblem(
            f"OpenCV is needed for --against opencv and cannot be imported ({error}); pip install "
            "opencv-python-headless, or take --against torch or none"
        ) from None


def use_threads(count: int) -> None:
    """Let OpenCV use as many threads as the cpu device."""
    import_opencv().setNumThreads(count)


def why_not(pass_name: str, problem: ConvProblem) -> str | None:
    """Return None if filter2D does the same job but for bias and activation, else why not."""
    p = problem
    if pass_name != "forward":
        return "filter2D is a forward pass"
    if (p.N, p.C, p.K) != (1, 1, 1) or p.dtype != "float32":
        return "it is compared on one float32 image with one filter"
    same = ((p.R // 2, p.R // 2), (p.S // 2, p.S // 2))
    if p.R % 2 == 0 or p.S % 2 == 0 or p.padding != same or (p.stride, p.dilation) != ((1, 1), (1, 1)):
        return "it is compared with odd filters, padding 'same', stride 1 and dilation 1"
    return None


def filter_call(problem: ConvProblem, given: Mapping[str, Array], out: Array) -> Callable[[], Array]:
    """Return a call of filter2D that writes to `out`, of the output's shape."""
    cv2 = import_opencv()
    image, kernel, target = given["x"][0, 0], given["w"][0, 0], out[0, 0]
    return lambda: cv2.filter2D(image, -1, kernel, dst=target, borderType=cv2.BORDER_CONSTANT)
