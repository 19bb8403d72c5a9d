"""Layouts of images in memory: of a problem, of arrays, which rungs take which, and how."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest

from convbackprop import check, layouts
from convbackprop.check import sanitize
from convbackprop.devices.gpus import Target
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.registry import VARIANTS, select
from convbackprop.ladder.variant import ALIGNED, Alignment
from convbackprop.problem import ConvProblem
from convbackprop.tune.table import class_of
from tests.support.mutations import replaced

NHWC = ConvProblem.parse("2,6,5,7,4,3,2,groups=2,padding=1,layout=nhwc", bias=True, activation="relu")

#: The rungs that take images whose channels lie side by side.
TAKE_NHWC = {"forward/hopper", "input_grad/hopper", "kernel_grad/hopper"}


# -- the problem ------------------------------------------------------------------------------------------------------
def test_a_problem_has_a_layout():
    assert NHWC.layout == "nhwc" and ConvProblem.parse(str(NHWC)) == NHWC
    assert "layout" not in str(NHWC.with_(layout="nchw"))
    assert class_of("forward", NHWC) != class_of("forward", NHWC.with_(layout="nchw"))
    with pytest.raises(InvalidArgument, match="layout is 'nwhc'; it should be one of nchw, nhwc"):
        ConvProblem.parse("1,1,9,9,1,3,3,layout=nwhc")
    with pytest.raises(InvalidArgument, match="mask is given, whose bytes are pieces of rows; layout 'nhwc' has none"):
        NHWC.with_(mask=True)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (4, 5), (2, 1, 4, 5), (1, 3, 1, 1)], ids=str)
def test_strides_are_those_of_memory(shape):
    for layout in layouts.LAYOUTS:
        array = layouts.as_named(np.empty(layouts.in_memory(shape, layout), np.float16), layout)
        assert array.shape == shape
        assert array.strides == tuple(2 * step for step in layouts.strides(shape, layout))
        assert layouts.lies(shape, array.strides, 2, layout)
        same = len(shape) < 3 or shape[-3] == 1 or shape[-2:] == (1, 1)
        assert layouts.layout_of(shape, array.strides, 2) == ("nchw" if same else layout)
    assert layouts.layout_of(shape, tuple(2 * step for step in array.strides), 2) is None


# -- the rungs --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_rung_takes_a_layout_or_refuses_it_in_a_sentence(variant):
    assert ("nhwc" in variant.layouts) == (str(variant) in TAKE_NHWC)
    if "nhwc" not in variant.layouts:
        assert variant.refusal(NHWC) == "the layout is nhwc; it reads and writes nchw"


# -- hopper -----------------------------------------------------------------------------------------------------------
HOPPER = [select(f"{name}/hopper")[0] for name in ("forward", "input_grad", "kernel_grad")]
each_hopper = pytest.mark.parametrize("variant", HOPPER, ids=str)

#: Two multiprocessors: a block has several tiles in turn.
FEW = Target("cpu", 2)

#: Problems, and why.
TEXTS = (
    "2,72,5,20,72,3,3,padding=1",  # whole units of 16 bytes, results that are exchanged; two chunks, ragged rows
    "3,16,7,7,130,2,3,padding=1:0x2:1,dilation=2x3,groups=2",  # groups; filters that fill no unit
    "2,40,9,14,32,3,4,stride=2x3,padding=1",  # strides of the tensor map, or phases with different taps
)

#: One of each: images that are read where they lie, and images that are not, for phi' or TF32.
KINDS = ({"activation": "identity"}, {"activation": "relu"})


def faults(variant, device, text, data="normal", offset=0, **changes):
    problem = ConvProblem.parse(text, **{"bias": True, "dtype": "float16", "layout": "nhwc", **changes})
    assert variant.refusal(problem) is None
    found = check.check(variant, problem, device, data, tunables=FEW, offset=offset)
    return [f"{problem}: {fault}" for fault in found.faults]


@pytest.mark.parametrize("text", [TEXTS[0], *(pytest.param(text, marks=pytest.mark.slow) for text in TEXTS[1:])])
@each_hopper
def test_hopper_takes_channels_last(quick, variant, text):
    options = {"scale": True, "residual": True} if variant.pass_name == "forward" else {}
    for kind in KINDS:
        assert faults(variant, quick, text, **kind, **options) == []


@each_hopper
def test_hopper_turns_what_no_map_can_be_of(quick, variant):
    """Arrays that do not begin at 16 bytes; channels that are no whole units; TF32."""
    assert faults(variant, quick, TEXTS[0], "integers", offset=1, activation="identity") == []
    assert faults(variant, quick, "2,12,5,20,18,3,3,padding=1", "nonfinite", dtype="bfloat16") == []
    if variant.pass_name != "kernel_grad":
        assert faults(variant, quick, TEXTS[0], dtype="float32", precision="tf32", activation="tanh") == []


@each_hopper
def test_hopper_reads_where_images_lie(variant):
    """Then there is no launch that turns them, and no scratch memory for it; what phi' is applied to is formed once."""
    problem = ConvProblem.parse(TEXTS[0], dtype="float16", layout="nhwc")

    def looked_at(problem, alignment=ALIGNED):
        t = variant.constants("cuda", problem, alignment)
        entries = [launch.entry for launch in variant.launches if launch.when(problem, t)]
        maps = [each.operand for launch in variant.launches for each in launch.maps(problem, t)]
        return [entry for entry in entries if entry.startswith("stage")], maps, variant.scratch(problem, t)

    own = {"forward": ["x"], "input_grad": ["dy"], "kernel_grad": ["x", "dy"]}[variant.pass_name]
    launches, maps, words = looked_at(problem)
    assert launches == [] and maps == own
    turned = looked_at(problem.with_(layout="nchw"))
    images = {"x": problem.x_shape, "dy": problem.y_shape}
    assert turned[2] - words == sum(math.prod(images[name]) for name in own) // 2
    for alignment, changes in ((Alignment(8, 8), {}), (ALIGNED, {"C": 76, "K": 76})):
        launches, maps, _ = looked_at(problem.with_(**changes), alignment)
        assert len(launches) == len(own) and set(maps) == {"scratch"}
    launches, maps, _ = looked_at(problem.with_(activation="relu"))
    assert maps == {"forward": ["x"], "input_grad": ["scratch"], "kernel_grad": ["x", "scratch"]}[variant.pass_name]
    assert len(launches) == maps.count("scratch")


# -- mistakes ---------------------------------------------------------------------------------------------------------
class Mistake(NamedTuple):
    """What is wrong, in which file, and what stands there in place of what."""

    what: str
    file: str
    old: str
    new: str
    variant: str = "forward/hopper"
    changes: dict[str, object] = {}  # noqa: RUF012 - of the problem that shows it


BOX, MAPS = "box_product.cuh", {"activation": "identity"}
MISTAKES = (
    Mistake("neighbours exchange the halves that they keep", BOX, "theirs >> 16 | (own & 0xffff0000)",
            "theirs & 0xffff | (own & 0xffff0000)"),
    Mistake("the last 8 rows are the first", BOX, "row / 4 * 4 + is_last * 8", "row / 4 * 4 + (1 - is_last) * 8"),
    Mistake("the second pixel is the first", BOX, "column + is_odd))", "column))"),
    Mistake("a pixel is a channel further on", BOX, "results.at({0, 0, 1}) - results.at({0, 0, 0})", "results.rows",
            changes={"groups": 2, "K": 80, "C": 64}),
    Mistake("what is not exchanged is another row's", BOX, "to(row + i * 8, column + e)",
            "to(row + i * 8, column + 1 - e)", changes={"K": 71}),
    Mistake("the residual is the first filter's", "outputs_channels_last.cuh", "residual[at + m]", "residual[at]",
            changes={"residual": True}),
    Mistake("rows of x are columns", "channels_last.cuh", "((Index(n) * H + h) * W + w_) * C + c",
            "((Index(n) * W + w_) * H + h) * C + c", "input_grad/hopper"),
    Mistake("rows of dy are columns", "channels_last.cuh", "((Index(n) * P + p) * Q + q) * K + k",
            "((Index(n) * Q + q) * P + p) * K + k", "kernel_grad/hopper"),
    Mistake("biases are summed of channels for pixels", "staged_image.cuh",
            "const int channel = CHANNELS_LAST ? threadIdx.x % ASIDE : i;",
            "const int channel = CHANNELS_LAST ? i : threadIdx.x % ASIDE;", "kernel_grad/hopper", MAPS),
)  # fmt: skip


def mistakes():
    """Yield the mistakes; but for the first of each variant they are slow tests."""
    met = set()
    for mistake in MISTAKES:
        yield pytest.param(mistake, id=mistake.what, marks=pytest.mark.slow if mistake.variant in met else ())
        met.add(mistake.variant)


def test_every_mistake_finds_its_text(tmp_path):
    for i, mistake in enumerate(MISTAKES):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert replaced(mistake.variant, mistake.file, mistake.old, mistake.new, folder).path.is_file()


@pytest.mark.parametrize("mistake", list(mistakes()))
def test_a_mistake_shows(quick, mistake, tmp_path):
    wrong = replaced(mistake.variant, mistake.file, mistake.old, mistake.new, tmp_path)
    problem = ConvProblem.parse(TEXTS[0], bias=True, dtype="float16", layout="nhwc", activation="relu")
    problem = problem.with_(**mistake.changes)
    assert check.check(wrong, problem, quick, tunables=FEW).faults != []


def test_a_map_of_a_neighbour_is_found(quick):
    """What is copied where it lies is that array: a map of other strides sees other pixels."""

    def spoilt(problem, constants):
        (made,) = HOPPER[0].launches[2].maps(problem, constants)
        group, pixel, image, row = made.strides
        return (made._replace(strides=(group, pixel, image, row - pixel)),)

    launches = [
        dataclasses.replace(each, maps=spoilt) if each.entry == "forward" else each for each in HOPPER[0].launches
    ]
    wrong = dataclasses.replace(HOPPER[0], launches=tuple(launches))
    assert faults(wrong, quick, TEXTS[0]) != []


# -- the checks -------------------------------------------------------------------------------------------------------
def test_sanitize_names_the_element_by_its_axes(tmp_path):
    """In the order in which they are named, not in that of memory."""
    wrong = replaced("kernel_grad/hopper", "hopper.cu", "return to_acc(x[shape.x_at(n, c, h, w_)]);",
                     "return to_acc(const_cast<Scalar*>(x)[shape.x_at(1, 4, 2, 3)] = 1);", tmp_path)  # fmt: skip
    problem = ConvProblem.parse("2,6,5,7,4,3,2,padding=1,layout=nhwc", dtype="float16")
    found = sanitize.sanitize(wrong, problem, orders=("as numbered",)).findings
    assert any(finding.sentence == "writes x[1,4,2,3], an input" for finding in found)
