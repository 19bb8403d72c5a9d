"""The rungs of tensor cores on each layer of ResNet-50 and of U-Net, held against float64 element by element."""

from __future__ import annotations

import math

import pytest

from convbackprop import check
from convbackprop.bench.layers import RESNET, UNET
from convbackprop.devices.gpus import gpu
from convbackprop.ladder.registry import select
from convbackprop.ladder.variant import pinned

#: Multiply-adds of a pass at most, as tiles of 64 channels and filters have them; but a tile of pixels, and two rows.
MOST, TILE, LEAST_ROWS = 1 << 25, 128, 2

#: What tensor cores multiply: 16-bit numbers, also where a pixel's channels lie side by side, float32 rounded to TF32,
#: and float32 as three products of TF32.
KINDS = {
    "float16": {"dtype": "float16"},
    "float16-nhwc": {"dtype": "float16", "layout": "nhwc"},
    "bfloat16": {"dtype": "bfloat16"},
    "tf32": {"precision": "tf32"},
    "float32": {},
}


def cut(problem):
    """Return one image of so few rows that it has few multiply-adds; all else stays as it is."""
    channels, filters = (64 * math.ceil(count / 64) for count in (problem.C, problem.K))
    of_row = channels * filters * problem.R * problem.S * problem.Q
    missing = max(0, problem.P - max(LEAST_ROWS, math.ceil(TILE / problem.Q), MOST // of_row))
    return problem.with_(N=1, H=problem.H - missing * problem.stride_h)


def as_on_a_gpu(variant, problem):
    """Return the variant with the tiles that it has for a problem on an H200."""
    target = gpu("H200").target
    return pinned(variant, tuple((name, each.value(target, problem)) for name, each in variant.tunables.items()))


def test_rows_are_cut():
    """A tile of pixels is left of each layer, or all of them."""
    for layer in (*RESNET, *UNET):
        whole, few = layer.problem(1), cut(layer.problem(1))
        assert few == whole.with_(H=few.H) and few.Q == whole.Q
        assert few == whole or 2 * few.Q <= few.P * few.Q >= 128


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [RESNET, UNET], ids=["ResNet-50", "U-Net"])
@pytest.mark.parametrize("name", [f"{p}/{rung}" for rung in ("tensor_core", "hopper")
                                  for p in ("forward", "input_grad", "kernel_grad")])  # fmt: skip
def test_each_layer_is_within_the_bound(quick, name, layers, kind, record_property):
    """With tiles as for the layer's own batch on a GPU; all take an hour of a core, most of it U-Net's channels."""
    (variant,) = select(name)
    whole = [layer.problem(**KINDS[kind]) for layer in dict.fromkeys(layers)]
    taken = [problem for problem in whole if variant.refusal(problem) is None]
    if not taken:
        pytest.skip(f"{name} refuses them: {variant.refusal(whole[-1])}")
    outcomes = [check.check(as_on_a_gpu(variant, each), cut(each), quick) for each in taken]
    record_property("layers", len(taken))
    record_property("share", max(outcome.share for outcome in outcomes))
    assert [f"{outcome.problem}: {fault}" for outcome in outcomes for fault in outcome.faults] == []
