"""Photographs for `bench` and `demo`: read one, and write the pictures of the layer that was applied to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convbackprop import ops
from convbackprop.devices import Device
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.problem import ConvProblem

Array = Any

#: The photographs that scikit-image carries (others it would download), from 191 x 384 to 1411 x 1411.
CAMERA = "camera"
PHOTOGRAPHS = (
    CAMERA, "coins", "page", "text", "moon", "brick", "grass", "gravel", "astronaut", "retina",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Photograph:
    """A grey image: values from 0 to 1, shape (H, W)."""

    name: str
    grey: Array


def _missing(package: str, error: ImportError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{package} is needed for photographs and cannot be imported ({error}); pip install 'convbackprop[data]', or "
        "give a --problem"
    )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise _missing("Pillow", error) from None
    return Image


def photograph(name: str) -> Photograph:
    """Return one of scikit-image's `PHOTOGRAPHS`, made grey.

    Raises
    ------
    EnvironmentProblem
        scikit-image is missing.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise _missing("scikit-image", error) from None
    pixels = np.asarray(getattr(data, name)()) / 255
    # ITU-R BT.601's weights of red, green and blue, which Pillow's "L" has, too
    return Photograph(name, pixels @ (0.299, 0.587, 0.114) if pixels.ndim == 3 else pixels)


def drawn(size: int = 256) -> Photograph:
    """Return a picture made of sums of shapes, for where there is no photograph: a disc, a box and a ramp."""
    row, col = np.mgrid[0:size, 0:size] / size
    grey = 0.25 + 0.25 * col
    grey[np.hypot(row - 0.4, col - 0.35) < 0.22] = 0.9
    grey[(abs(row - 0.7) < 0.15) & (abs(col - 0.68) < 0.2)] = 0.05
    return Photograph("drawn", grey)


def read_image(file: str) -> Photograph:
    """Read an image with Pillow, made grey: the way up that its EXIF data say, what is transparent on white.

    Raises
    ------
    InvalidArgument
        It cannot be read.
    EnvironmentProblem
        Pillow is missing.
    """
    image_class = _pillow()
    from PIL.ImageOps import exif_transpose

    try:
        with image_class.open(file) as image:
            name = Path(file).name
            image = exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits
                grey = np.asarray(image, np.float64) / 65535
            elif image.mode == "F":
                grey = np.asarray(image, np.float64)
                grey = grey / (abs(grey).max() or 1)
            else:
                clear = image.convert("RGBA") if image.has_transparency_data else None
                if clear is not None and np.asarray(clear)[..., 3].min() < 255:
                    image = image_class.alpha_composite(image_class.new("RGBA", image.size, "white"), clear)
                    name += " (on white)"
                grey = np.asarray(image.convert("L"), np.float64) / 255
    except (OSError, ValueError, SyntaxError, image_class.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidArgument(f"image {file} cannot be read: {reason}") from None
    return Photograph(name, grey)


def _picture(values: Array) -> tuple[Array, str]:
    """Return values as grey bytes, and the range they stand for: from 0, or with 0 in the middle."""
    largest = float(abs(values).max()) or 1.0
    if values.min() >= 0:
        return np.rint(255 * (values / largest)).astype(np.uint8), f"black 0 to white {largest:.4g}"
    grey = np.rint(128 + 127 * (values / largest)).astype(np.uint8)
    return grey, f"black {-largest:.4g}, mid-grey 0, white {largest:.4g}"


def save_pictures(folder: Path, given: Mapping[str, Array], problem: ConvProblem, device: Device) -> list[str]:
    """Write input, s, o' and dx as PNG and the kernel gradient as text, all computed by our kernels.

    The loss is half the sum of the squares of the output, so the gradient that comes from above is the output itself.

    Returns
    -------
    list of str
        A line on each file.
    """
    image_class = _pillow()
    x, w, b = (given[name] for name in "xwb")
    where: dict[str, Any] = {"padding": problem.padding, "device": device.name}
    s = ops.conv2d(x, w, b, **where)
    y = ops.conv2d(x, w, b, activation=problem.activation, **where)
    through: dict[str, Any] = {**where, "activation": problem.activation, "output": y}
    dx = ops.conv2d_input_grad(x.shape, w, y, **through)
    dw, db = ops.conv2d_kernel_grad(x, w.shape, y, with_bias=True, **through)
    lines = [
        f"pictures of the layer with filter {problem.R}x{problem.S} in {folder}; the loss is half the sum of o'^2:"
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, values, what in (
            ("input", x, "the photograph"),
            ("s", s, "the sum, before the activation"),
            ("output", y, "o', after the activation"),
            ("dx", dx, "the input gradient"),
        ):
            grey, scale = _picture(values[0, 0].astype(np.float64))
            image_class.fromarray(grey).save(folder / f"{name}.png")
            lines.append(f"  {name}.png: {what}; {scale}")
        text = "# dw, a row of the filter a line; then db\n"
        text += "\n".join(" ".join(f"{float(v):.9g}" for v in row) for row in dw[0, 0]) + f"\n\n{float(db[0]):.9g}\n"
        (folder / "kernel_grad.txt").write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"--pictures is {folder}, which cannot be written: {error.strerror or error}") from None
    return [*lines, "  kernel_grad.txt: the kernel gradient and the bias gradient"]
