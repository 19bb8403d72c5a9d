"""Layers of real networks: those that training is measured on.

DeepBench's are its convolutions for training (https://github.com/baidu-research/DeepBench), by the networks that they
were taken from. ResNet-50's are those of table 1 of He et al., "Deep Residual Learning for Image Recognition" (2016),
its stride in the 3 x 3 layers, as torchvision has it. The depthwise ones are of MobileNetV2 (Sandler et al., 2018,
table 2), EfficientNet-B0 (Tan and Le, 2019, table 1) and ConvNeXt-T (Liu et al., 2022, table 9). VGG-16's are those of
configuration D of Simonyan and Zisserman, "Very Deep Convolutional Networks" (2015), U-Net's those of figure 1 of
Ronneberger et al., "U-Net" (2015). Of layers with the same extents each is there once.
"""

from __future__ import annotations

from dataclasses import dataclass

from convbackprop.problem import ConvProblem


@dataclass(frozen=True)
class Layer:
    """A layer: the network it is from, its batch, and the problem of one image as text."""

    network: str
    batch: int
    text: str

    def problem(self, batch: int | None = None, **changes: object) -> ConvProblem:
        """Return the problem for its own batch or another one, with a bias and a ReLU."""
        text = f"{batch or self.batch},{self.text}"
        return ConvProblem.parse(text, **{"bias": True, "activation": "relu", **changes})


def _square(network: str, batch: int, *layers: tuple[int, int, int, int, int, int]) -> tuple[Layer, ...]:
    """Return layers given as (size of the image, C, K, size of the filter, padding, stride)."""
    return tuple(
        Layer(network, batch, f"{channels},{size},{size},{filters},{taps},{taps},padding={pad},stride={stride}")
        for size, channels, filters, taps, pad, stride in layers
    )


def _depthwise(network: str, *layers: tuple[int, int, int, int]) -> tuple[Layer, ...]:
    """Return layers of one filter a channel, given as (size of the image, channels, size of the filter, stride)."""
    return tuple(
        Layer(network, 8, f"{c},{size},{size},{c},{taps},{taps},groups={c},padding={taps // 2},stride={stride}")
        for size, c, taps, stride in layers
    )


#: A layer of 64 channels to 128 at 112 x 112, the example of a whole layer.
WHOLE = Layer("whole layer", 32, "64,112,112,128,3,3,padding=1")

RESNET_3X3 = _square(
    "ResNet", 16, (56, 64, 64, 3, 1, 1), (28, 128, 128, 3, 1, 1), (14, 256, 256, 3, 1, 1), (7, 512, 512, 3, 1, 1)
)

DEEPBENCH = (
    Layer("DeepSpeech", 4, "1,161,700,32,5,20,stride=2"),
    Layer("DeepSpeech", 4, "32,79,341,32,5,10,stride=2"),
    Layer("OCR", 16, "1,48,480,16,3,3,padding=1"),
    Layer("OCR", 16, "16,24,240,32,3,3,padding=1"),
    Layer("OCR", 16, "32,12,120,64,3,3,padding=1"),
    Layer("OCR", 16, "64,6,60,128,3,3,padding=1"),
    *_square("Face", 8, (108, 3, 64, 3, 1, 2), (54, 64, 64, 3, 1, 1), (27, 128, 128, 3, 1, 1),
             (14, 128, 256, 3, 1, 1), (7, 256, 512, 3, 1, 1)),
    *_square("VGG", 8, (224, 3, 64, 3, 1, 1), (112, 64, 128, 3, 1, 1), (56, 128, 256, 3, 1, 1),
             (28, 256, 512, 3, 1, 1), (14, 512, 512, 3, 1, 1), (7, 512, 512, 3, 1, 1)),
    *_square("GoogLeNet", 16, (224, 3, 64, 7, 3, 2), (28, 192, 32, 5, 2, 1), (28, 192, 64, 1, 0, 1),
             (14, 512, 48, 5, 2, 1), (14, 512, 192, 1, 0, 1), (7, 832, 256, 1, 0, 1), (7, 832, 128, 5, 2, 1)),
    *RESNET_3X3,
    *_square("ResNet", 16, (56, 64, 256, 1, 0, 1), (56, 64, 256, 1, 0, 2), (56, 256, 64, 1, 0, 1),
             (28, 128, 512, 1, 0, 1), (28, 512, 128, 1, 0, 1), (28, 512, 256, 1, 0, 2), (14, 256, 1024, 1, 0, 1),
             (14, 1024, 256, 1, 0, 1), (14, 1024, 512, 1, 0, 2), (7, 512, 2048, 1, 0, 1), (7, 2048, 512, 1, 0, 1)),
    Layer("Speaker", 16, "1,161,700,64,5,5,stride=2"),
    Layer("Speaker", 16, "64,80,350,64,3,3,padding=1"),
    Layer("Speaker", 16, "64,80,350,128,5,5,stride=2"),
    Layer("Speaker", 16, "128,40,175,128,3,3,padding=1"),
    Layer("Speaker", 16, "128,40,175,256,5,5,stride=2"),
    Layer("Speaker", 16, "256,20,84,256,3,3,padding=1"),
    Layer("Speaker", 16, "256,20,84,512,5,5,stride=2"),
    Layer("Speaker", 16, "512,10,42,512,3,3,padding=1"),
)  # fmt: skip

RESNET = (
    *_square("ResNet-50", 16, (224, 3, 64, 7, 3, 2), (56, 64, 64, 1, 0, 1), (56, 64, 64, 3, 1, 1),
             (56, 64, 256, 1, 0, 1), (56, 256, 64, 1, 0, 1), (56, 256, 128, 1, 0, 1), (56, 128, 128, 3, 1, 2),
             (28, 128, 512, 1, 0, 1), (56, 256, 512, 1, 0, 2), (28, 512, 128, 1, 0, 1), (28, 128, 128, 3, 1, 1),
             (28, 512, 256, 1, 0, 1), (28, 256, 256, 3, 1, 2), (14, 256, 1024, 1, 0, 1), (28, 512, 1024, 1, 0, 2),
             (14, 1024, 256, 1, 0, 1), (14, 256, 256, 3, 1, 1), (14, 1024, 512, 1, 0, 1), (14, 512, 512, 3, 1, 2),
             (7, 512, 2048, 1, 0, 1), (14, 1024, 2048, 1, 0, 2), (7, 2048, 512, 1, 0, 1), (7, 512, 512, 3, 1, 1)),
)  # fmt: skip

DEPTHWISE = (
    *_depthwise("MobileNetV2", (112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (28, 192, 3, 1), (14, 384, 3, 1),
                (7, 960, 3, 1)),
    *_depthwise("EfficientNet-B0", (56, 144, 5, 2), (28, 240, 5, 1), (14, 480, 5, 1), (7, 1152, 5, 1)),
    *_depthwise("ConvNeXt-T", (56, 96, 7, 1), (28, 192, 7, 1), (14, 384, 7, 1), (7, 768, 7, 1)),
)  # fmt: skip

VGG = _square("VGG-16", 16, (224, 3, 64, 3, 1, 1), (224, 64, 64, 3, 1, 1), (112, 64, 128, 3, 1, 1),
              (112, 128, 128, 3, 1, 1), (56, 128, 256, 3, 1, 1), (56, 256, 256, 3, 1, 1), (28, 256, 512, 3, 1, 1),
              (28, 512, 512, 3, 1, 1), (14, 512, 512, 3, 1, 1))  # fmt: skip

UNET = _square("U-Net", 1, (572, 1, 64, 3, 0, 1), (570, 64, 64, 3, 0, 1), (284, 64, 128, 3, 0, 1),
               (282, 128, 128, 3, 0, 1), (140, 128, 256, 3, 0, 1), (138, 256, 256, 3, 0, 1), (68, 256, 512, 3, 0, 1),
               (66, 512, 512, 3, 0, 1), (32, 512, 1024, 3, 0, 1), (30, 1024, 1024, 3, 0, 1), (56, 1024, 512, 3, 0, 1),
               (54, 512, 512, 3, 0, 1), (104, 512, 256, 3, 0, 1), (102, 256, 256, 3, 0, 1), (200, 256, 128, 3, 0, 1),
               (198, 128, 128, 3, 0, 1), (392, 128, 64, 3, 0, 1), (390, 64, 64, 3, 0, 1), (388, 64, 2, 1, 0, 1),
               )  # fmt: skip

MOBILENET = (
    *_square("MobileNetV2", 16, (224, 3, 32, 3, 1, 2), (112, 32, 16, 1, 0, 1), (112, 16, 96, 1, 0, 1),
             (56, 96, 24, 1, 0, 1), (56, 24, 144, 1, 0, 1), (56, 144, 24, 1, 0, 1), (28, 144, 32, 1, 0, 1),
             (28, 32, 192, 1, 0, 1), (28, 192, 32, 1, 0, 1), (14, 192, 64, 1, 0, 1), (14, 64, 384, 1, 0, 1),
             (14, 384, 64, 1, 0, 1), (14, 384, 96, 1, 0, 1), (14, 96, 576, 1, 0, 1), (14, 576, 96, 1, 0, 1),
             (7, 576, 160, 1, 0, 1), (7, 160, 960, 1, 0, 1), (7, 960, 160, 1, 0, 1), (7, 960, 320, 1, 0, 1),
             (7, 320, 1280, 1, 0, 1)),
    *_depthwise("MobileNetV2", (112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (56, 144, 3, 2), (28, 192, 3, 1),
                (28, 192, 3, 2), (14, 384, 3, 1), (14, 576, 3, 1), (14, 576, 3, 2), (7, 960, 3, 1)),
)  # fmt: skip

CONVNEXT = (
    *_square("ConvNeXt-T", 16, (224, 3, 96, 4, 0, 4), (56, 96, 384, 1, 0, 1), (56, 384, 96, 1, 0, 1),
             (56, 96, 192, 2, 0, 2), (28, 192, 768, 1, 0, 1), (28, 768, 192, 1, 0, 1), (28, 192, 384, 2, 0, 2),
             (14, 384, 1536, 1, 0, 1), (14, 1536, 384, 1, 0, 1), (14, 384, 768, 2, 0, 2), (7, 768, 3072, 1, 0, 1),
             (7, 3072, 768, 1, 0, 1)),
    *_depthwise("ConvNeXt-T", (56, 96, 7, 1), (28, 192, 7, 1), (14, 384, 7, 1), (7, 768, 7, 1)),
)  # fmt: skip
