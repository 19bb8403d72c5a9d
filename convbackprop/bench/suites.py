"""The suites of `bench`: named sets of problems, each there for a reason.

A suite is data: adding one is adding an entry to `SUITES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from convbackprop.bench import layers
from convbackprop.bench.cases import Case, case_on_image
from convbackprop.bench.layers import Layer
from convbackprop.bench.photograph import CAMERA, PHOTOGRAPHS, photograph
from convbackprop.devices import Device
from convbackprop.ladder.registry import of_pass
from convbackprop.ladder.variant import Variant
from convbackprop.problem import PASSES
from convbackprop.tune.choice import choose

#: (sizes of the filter, dtype, kind of device) -> cases.
Cases = Callable[[Sequence[int], str, str], Iterator[Case]]


@dataclass(frozen=True)
class Suite:
    """A named set of problems.

    Attributes
    ----------
    name : str
        As --suite has it.
    reason : str
        What it shows.
    cases : callable
        (sizes of the filter, dtype, "cpu" or "cuda") -> its cases.
    filters : tuple of int
        Heights (and widths) of the filter unless --filter says otherwise; empty: its problems have filters of their
        own.
    passes : tuple of str
        What is timed.
    beside_naive : bool
        Time only what "auto" chooses, and one run of naive beside it: of a layer of many channels it takes seconds.
    """

    name: str
    reason: str
    cases: Cases
    filters: tuple[int, ...] = ()
    passes: tuple[str, ...] = tuple(PASSES)
    beside_naive: bool = False

    def rungs(self, variants: Sequence[Variant], case: Case, device: Device | str) -> tuple[Variant, ...]:
        """Return those of the variants that are timed on a case, naive first where it is timed beside another."""
        passes = [p for p in self.passes if any(variant.pass_name == p for variant in variants)]
        if not self.beside_naive:
            return tuple(v for v in variants if v.pass_name in passes and v.refusal(case.problem, device) is None)
        return tuple(
            rung
            for pass_name in passes
            for rung in dict.fromkeys((of_pass(pass_name)[0], choose(pass_name, "auto", case.problem, device)))
        )


# -- images of one channel -------------------------------------------------------------------------------------------
def _lab(filters: Sequence[int], dtype: str, device_kind: str) -> Iterator[Case]:
    for image in (photograph(CAMERA), None):
        for size in filters:
            yield case_on_image(image, 1024, size, dtype)


def _photos(filters: Sequence[int], dtype: str, device_kind: str) -> Iterator[Case]:
    for name in PHOTOGRAPHS:
        for size in filters:
            yield case_on_image(photograph(name), 0, size, dtype)


#: Heights (and widths) of the images of the suite `sizes`: from what a cache holds to what it does not.
SIZES = (64, 128, 256, 512, 1024, 2048)


def _sizes(filters: Sequence[int], dtype: str, device_kind: str) -> Iterator[Case]:
    for size in filters:
        for extent in SIZES:
            yield case_on_image(None, extent, size, dtype)


# -- layers of networks ----------------------------------------------------------------------------------------------
#: On a CPU batches are divided by this (at least one image is left): naive takes seconds for a batch as it is.
CPU_CUT = 32


def batch_of(layer: Layer, device_kind: str) -> int:
    """Return how many images of a layer's batch are timed."""
    return max(1, layer.batch // CPU_CUT) if device_kind == "cpu" else layer.batch


def case_of_layer(layer: Layer, dtype: str, device_kind: str) -> Case:
    """Return a layer as a case; its label says by how much its batch is cut."""
    batch = batch_of(layer, device_kind)
    cut = f" (N {layer.batch}/{layer.batch / batch:g})" if batch != layer.batch else ""
    return Case(f"{layer.network}{cut}", layer.problem(batch, dtype=dtype), layer=layer)


def _of_layers(*listed: Layer) -> Cases:
    def cases(filters: Sequence[int], dtype: str, device_kind: str) -> Iterator[Case]:
        for layer in dict.fromkeys(listed):
            yield case_of_layer(layer, dtype, device_kind)

    return cases


_THREE = ("forward", "input_grad", "kernel_grad")

SUITES = {
    suite.name: suite
    for suite in (
        Suite("lab", "the lab's layer, on a photograph and on 1024 x 1024 numbers", _lab, (3, 5, 7)),
        Suite("photos", "the lab's layer on scikit-image's photographs: real data", _photos, (5,)),
        Suite("sizes", "the lab's layer from 64 x 64 to 2048 x 2048: past the caches", _sizes, (5,)),
        Suite("depthwise", "a filter a channel: MobileNetV2, EfficientNet, ConvNeXt",
              _of_layers(*layers.DEPTHWISE)),
        Suite("resnet", "ResNet-50's layers: arithmetic is the limit, not memory",
              _of_layers(*layers.RESNET), passes=_THREE, beside_naive=True),
        Suite("vgg", "VGG-16's layers: 3 x 3 throughout",
              _of_layers(*layers.VGG), passes=_THREE, beside_naive=True),
        Suite("unet", "U-Net's layers: large images, one at a time",
              _of_layers(*layers.UNET), passes=_THREE, beside_naive=True),
        Suite("mobilenet", "MobileNetV2's layers: 1 x 1 and a filter a channel",
              _of_layers(*layers.MOBILENET), passes=_THREE, beside_naive=True),
        Suite("convnext", "ConvNeXt-T's layers: 1 x 1, 2 x 2 and 7 x 7, a filter a channel",
              _of_layers(*layers.CONVNEXT), passes=_THREE, beside_naive=True),
        Suite("deepbench", "DeepBench's training layers, and a layer of 64 to 128 channels",
              _of_layers(layers.WHOLE, *layers.DEEPBENCH), passes=_THREE, beside_naive=True),
    )
}  # fmt: skip
