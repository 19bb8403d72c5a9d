"""vectorised_direct: what it refuses, how it tiles and splits, and when "auto" takes it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from convbackprop import check, conv2d_kernel_grad
from convbackprop.bench.layers import DEEPBENCH, RESNET, WHOLE
from convbackprop.ladder import scratch, vectorised_direct
from convbackprop.ladder.registry import choose, of_pass, why_not
from convbackprop.launch.plan import plan
from convbackprop.problem import ConvProblem

PASSES = ("forward", "input_grad", "kernel_grad")
RUNG = {name: next(v for v in of_pass(name) if v.name == "vectorised_direct") for name in PASSES}
NETS = (
    "64,2,9,9,4,2,2,padding=1", "8,32,48,48,16,3,3,padding=1", "1,4,3,4000,4,3,3,padding=1",
    "1,300,3,2,70,1,9,padding=0x4",
)  # fmt: skip


@pytest.mark.parametrize("pass_name", PASSES)
def test_tiles_fit_and_make_up_the_whole(pass_name):
    problems = [layer.problem(1) for layer in (WHOLE, *DEEPBENCH, *RESNET)] + [ConvProblem.parse(text) for text in NETS]
    taken = [problem for problem in problems if RUNG[pass_name].refusal(problem) is None]
    assert len(taken) > len(problems) / 2
    for problem in taken:
        constants = RUNG[pass_name].constants("cpu", problem)
        rows, planes = vectorised_direct.rows_and_planes(pass_name, problem)
        laid = vectorised_direct.signal(pass_name, problem)
        tile = vectorised_direct.tile(pass_name, problem, constants)
        in_rows, in_planes, in_lines = vectorised_direct.tiles(pass_name, problem, constants)
        assert in_rows / problem.groups * tile.rows >= rows and in_lines * tile.lines >= laid.lines
        assert in_planes * tile.chunk >= planes and tile.bytes <= 227 << 10
        assert tile.size >= (tile.lines + laid.reach) * laid.pitch + laid.across
        if pass_name != "kernel_grad":
            assert tile.chunk == 1 or tile.chunk * problem.R * problem.S <= 256
        assert all(math.prod(launch.grid(problem, constants)) > 0 for launch in RUNG[pass_name].launches)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1,2,9,9,2,3,3,stride=2", "stride is 2x2; it works with stride 1 only"),
        ("1,2,20,20,2,16,17", "a filter has 272 taps a channel; it adds up at most 256 of them"),
        ("1,2,9,9,2,3,2,padding=2",
         "padding is ((2, 2), (2, 2)); it works with at most 2 rows and 1 columns, a window's but one"),
        ("1,2,9,40000,2,3,3,padding=1", "a line of 40001 pixels takes "),
        ("70000,2,128,128,2,3,3", "the images are laid out in 1,146,880,000 elements; it counts up to 1,073,741,824"),
    ],
)  # fmt: skip
def test_refusals(text, sentence):
    for pass_name in ("forward", "kernel_grad"):
        assert RUNG[pass_name].refusal(ConvProblem.parse(text)).startswith(sentence)


@pytest.mark.parametrize(
    ("pass_name", "text", "chosen", "reason"),
    [
        *((name, "8,16,48,48,16,3,3,padding=1", "vectorised_direct", None) for name in PASSES),
        *((name, "64,2,9,9,4,2,2,padding=1", "vectorised_direct", None) for name in PASSES),
        ("forward", "8,16,48,48,16,1,1", "vectorised",
         "a filter has one tap a channel; it lays out an image to read each pixel several times"),
        ("forward", "8,1,48,48,16,3,3", "vectorised",
         "a group has 1 x 16 channels and filters; it is for several of both"),
        ("input_grad", "8,1,48,48,16,3,3", "vectorised",
         "a group has 1 x 16 channels and filters; it is for several of both"),
        ("kernel_grad", "8,1,48,48,16,3,3", "vectorised_direct", None),
        ("kernel_grad", "8,2,48,48,2,3,3", "vectorised",
         "a group has 4 pairs of a filter and a channel; it is the faster one from 16 on"),
    ],
)  # fmt: skip
def test_auto(pass_name, text, chosen, reason):
    problem = ConvProblem.parse(text)
    assert choose(pass_name, "auto", problem, "cpu").name == chosen
    assert why_not(pass_name, problem, "cpu")[RUNG[pass_name]] == reason


@pytest.mark.parametrize("pass_name", PASSES)
def test_images_of_any_width(quick, pass_name):
    """Vectors go over the ends of rows and images; the padding differs from side to side; taps lie apart."""
    for text in (
        "3,3,5,1,5,2,2,padding=1:0x0:1", "2,9,3,33,9,3,3,padding=0:2x1:4,dilation=1x2", "5,2,2,2,3,2,1",
        "2,6,20,20,10,3,3,groups=2,padding=1",
    ):  # fmt: skip
        problem = ConvProblem.parse(text, bias=True)
        assert check.check(RUNG[pass_name], problem, quick).faults == []


@pytest.mark.parametrize("options", [{"scale": True}, {"residual": True}, {"scale": True, "residual": True}])
def test_scale_and_residual(quick, options):
    problem = ConvProblem.parse("2,3,9,19,5,3,3,padding=1,activation=relu", bias=True, **options)
    for data in ("normal", "nonfinite"):
        assert check.check(RUNG["forward"], problem, quick, data).faults == []


def test_a_part_of_a_kernel_gradient_is_several_ranges_of_lines(quick, monkeypatch):
    """As few parts as scratch memory holds, at least one; each adds up its ranges in their order."""
    problem = ConvProblem.parse("8,5,40,40,7,3,3,padding=1", bias=True)
    sums = 4 * (7 * 5 * 9 + 7)
    for limit in (64 << 20, 3 * sums + 5, 1):
        monkeypatch.setenv("CONVBACKPROP_WORKSPACE_LIMIT", str(limit))
        scratch.limit.cache_clear()
        variant = dataclasses.replace(RUNG["kernel_grad"])  # plans are kept
        used = plan(variant, problem, quick).scratch_bytes
        assert used <= max(limit, sums) and used % sums == 0
        assert check.check(variant, problem, quick).faults == []
    assert used == sums
    monkeypatch.undo()
    scratch.limit.cache_clear()


def test_no_image_gives_zeros():
    dw, db = conv2d_kernel_grad(
        np.ones((0, 3, 9, 9), np.float32), (5, 3, 3, 3), np.ones((0, 5, 7, 7), np.float32), with_bias=True,
        variant="vectorised_direct", device="cpu",
    )  # fmt: skip
    assert not dw.any() and not db.any() and dw.shape == (5, 3, 3, 3)


def test_a_long_sum_stays_far_below_its_bound(quick):
    """Of 2,304 equal terms, and of 100,352: a plain sum would be out by more."""
    forward = check.check(RUNG["forward"], ConvProblem.parse("1,256,6,6,2,3,3"), quick, "constant")
    kernel_grad = check.check(RUNG["kernel_grad"], ConvProblem.parse("8,2,112,112,2,1,1"), quick, "constant")
    assert forward.faults == kernel_grad.faults == [] and max(forward.share, kernel_grad.share) < 0.1
