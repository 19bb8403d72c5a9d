"""A case of a benchmark: a problem, its short name, and what its arrays are filled with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convbackprop.bench.layers import Layer
from convbackprop.bench.photograph import Photograph
from convbackprop.check import inputs
from convbackprop.check.reference import numpy_dtype
from convbackprop.problem import ConvProblem


@dataclass(frozen=True)
class Case:
    """A problem, its short name, the image that it is about (None: random numbers), and the layer that it is."""

    label: str
    problem: ConvProblem
    image: Photograph | None = None
    layer: Layer | None = None

    def arrays(self, pass_name: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of a pass; `own` are those that are known already."""
        problem, dtype = self.problem, numpy_dtype(self.problem.dtype)
        w = np.random.default_rng(1).standard_normal(problem.w_shape) / problem.R
        mine = {}
        if self.image is not None:
            mine["x"] = self.image.grey.reshape(problem.x_shape).astype(dtype)
            # A filter that sums to 0 sees edges: on an image of positive values any other opens, or shuts, nearly all
            # of the ReLUs.
            w -= w.mean() if w.size > 1 else 0
            mine["b"] = np.full(problem.K, 0.01, dtype)
        mine["w"] = w.astype(dtype)
        return inputs(pass_name, problem, own={**mine, **own})


def case_on_image(image: Photograph | None, size: int, filter_size: int, dtype: str) -> Case:
    """Return the lab's layer (one channel, one filter, 'same' padding, bias, ReLU) on an image.

    Without an image it is on size x size random numbers.
    """
    height, width = image.grey.shape if image is not None else (size, size)
    name = image.name if image is not None else f"{height}x{width}"
    text = f"1,1,{height},{width},1,{filter_size},{filter_size},padding=same,activation=relu,bias=1"
    return Case(f"{name} {filter_size}x{filter_size}", ConvProblem.parse(text, dtype=dtype), image)
