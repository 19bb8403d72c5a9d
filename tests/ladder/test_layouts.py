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
from convbackprop.errors import InvalidArgument, UnsupportedProblem
from convbackprop.ladder.registry import VARIANTS, choose, select
from convbackprop.ladder.variant import ALIGNED, Alignment
from convbackprop.problem import ConvProblem
from convbackprop.tune.table import class_of
from tests.support.mutations import find_all, replaced

NHWC = ConvProblem.parse("2,6,5,7,4,3,2,groups=2,padding=1,layout=nhwc", bias=True, activation="relu")

#: The rungs that take images whose channels lie side by side.
TAKE_NHWC = {
    f"{name}/{rung}" for name in ("forward", "input_grad", "kernel_grad") for rung in ("hopper", "tensor_core")
}


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

#: Two multiprocessors: a block has several tiles in turn, and sums are not split.
FEW, GPU = Target("cpu", 2), Target("cuda", 2)

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


@pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.slow) for v in HOPPER[:2]] + HOPPER[2:], ids=str)
def test_hopper_turns_what_no_map_can_be_of(quick, variant):
    """Arrays that do not begin at 16 bytes; channels that are no whole units; TF32."""
    assert faults(variant, quick, TEXTS[0], "integers", offset=1, activation="identity") == []
    assert faults(variant, quick, "2,12,5,20,18,3,3,padding=1", "nonfinite", dtype="bfloat16") == []
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


# -- tensor_core ------------------------------------------------------------------------------------------------------
TENSOR_CORE = [select(f"{name}/tensor_core")[0] for name in ("forward", "input_grad", "kernel_grad")]
each_tensor_core = pytest.mark.parametrize("variant", TENSOR_CORE, ids=str)

#: Problems, and why: C channels to 64 filters in forward and kernel_grad, and back in input_grad.
HALOS = (
    "2,64,5,20,72,3,3,padding=1",  # two slices of channels, results that are exchanged, ragged tiles
    "5,64,4,6,64,3,3,padding=1",  # several images a tile, and one that is left over
    "2,32,9,14,64,1,1",  # one tap
    "3,64,7,7,144,2,3,padding=1:0x2:1,dilation=2x3,groups=2",  # groups, a wide halo
)


def turned(variant, text, **changes):
    """Return a problem of layout nhwc, for input_grad with channels and filters exchanged."""
    problem = ConvProblem.parse(text, **{"bias": True, "dtype": "float16", "layout": "nhwc", **changes})
    return problem.with_(C=problem.K, K=problem.C) if variant.pass_name == "input_grad" else problem


@pytest.mark.parametrize("text", [*HALOS[:2], *(pytest.param(text, marks=pytest.mark.slow) for text in HALOS[2:])])
@each_tensor_core
def test_tensor_core_takes_channels_last(quick, variant, text):
    options = {"scale": True, "residual": True} if variant.pass_name == "forward" else {}
    for kind in KINDS:
        problem = turned(variant, text, **kind, **options)
        assert variant.refusal(problem) is None
        assert check.check(variant, problem, quick, tunables=GPU).faults == []


@each_tensor_core
def test_tensor_core_by_any_address_and_number(quick, variant):
    """Arrays that begin at 2, 4 and 8 bytes, read by elements or copied; NaN and infinities; sums that are split."""
    for offset in (1, 2, 4):
        problem = turned(variant, HALOS[0])
        assert check.check(variant, problem, quick, "integers", tunables=GPU, offset=offset).faults == []
    problem = turned(variant, HALOS[0], dtype="bfloat16", activation="relu")
    assert check.check(variant, problem, quick, "nonfinite", tunables=Target("cuda", 132)).faults == []


def test_a_phase_of_a_stride(quick):
    """Of input_grad, whose results then lie a stride apart."""
    problem = turned(TENSOR_CORE[1], "1,32,9,14,64,3,4,stride=2x3,padding=1")
    assert check.check(TENSOR_CORE[1], problem, quick, tunables=GPU).faults == []


@each_tensor_core
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2,64,9,14,64,3,3,dtype=float32", "of layout nhwc it takes factors that are 16-bit numbers"),
        ("2,48,9,14,48,3,3", "of layout nhwc it takes whole slices of channels, at unit stride"),
        ("2,64,9,14,64,3,3,activation=tanh", "of layout nhwc it takes factors that are 16-bit numbers"),
        ("2,64,9,14,64,3,3,stride=2", "of layout nhwc it takes whole slices of channels, at unit stride"),
        ("2,64,9,14,68,3,3", "of layout nhwc it takes filters of a group in chunks of 8"),
    ],
)
def test_what_tensor_core_refuses(variant, text, why):
    sentence = variant.refusal(turned(variant, text))
    is_taken = {"forward": "tanh" in text or "68" in text, "input_grad": "stride" in text or "68" in text}
    assert sentence == (None if is_taken.get(variant.pass_name) else why)


@each_tensor_core
def test_auto_takes_tensor_core_as_in_the_other_layout(variant):
    problem = ConvProblem.parse("32,64,56,56,64,3,3,padding=1", dtype="float16")
    for architecture, name in (("sm_75", None), ("sm_80", "tensor_core"), ("sm_90a", "tensor_core")):
        target = Target("cuda", 108, architecture)
        assert choose(variant.pass_name, "auto", problem, target).name == (name or "implicit_gemm")
        if name:
            assert choose(variant.pass_name, "auto", problem.with_(layout="nhwc"), target) is variant
        else:
            with pytest.raises(UnsupportedProblem, match="no variant of"):
                choose(variant.pass_name, "auto", problem.with_(layout="nhwc"), target)


# -- mistakes ---------------------------------------------------------------------------------------------------------
class Mistake(NamedTuple):
    """What is wrong, in which file, and what stands there in place of what."""

    what: str
    file: str
    old: str
    new: str
    variant: str = "forward/hopper"
    changes: dict[str, object] = {}  # noqa: RUF012 - of the problem that shows it


BOX, STORE, LOADER = "box_product.cuh", "channel_results.cuh", "channel_loader.cuh"
MAPS, TILES = {"activation": "identity"}, {"C": 64}
SMALL = {"N": 5, "C": 64, "K": 64, "H": 4, "W": 6}  # as HALOS[1]
MISTAKES = (
    Mistake("neighbours exchange the halves that they keep", STORE, "theirs >> 16 | (own & 0xffff0000)",
            "theirs & 0xffff | (own & 0xffff0000)"),
    Mistake("the last 8 rows are the first", STORE, "row / 4 * 4 + is_last * 8", "row / 4 * 4 + (1 - is_last) * 8"),
    Mistake("the second pixel is the first", STORE, "is_odd ? at[1] : at[0]", "at[0]"),
    Mistake("a pixel is a channel further on", BOX, "results.at({0, 0, 1}) - results.at({0, 0, 0})", "results.rows",
            changes={"groups": 2, "K": 80, "C": 64}),
    Mistake("what is not exchanged is another row's", STORE, "at[e][row + i * 8] =", "at[e][row + 8 - i * 8] =",
            changes={"K": 71}),
    Mistake("the residual is the first filter's", "outputs_channels_last.cuh", "residual[at + m]", "residual[at]",
            changes={"residual": True}),
    Mistake("rows of x are columns", "channels_last.cuh", "((Index(n) * H + h) * W + w_) * C + c",
            "((Index(n) * W + w_) * H + h) * C + c", "input_grad/hopper"),
    Mistake("rows of dy are columns", "channels_last.cuh", "((Index(n) * P + p) * Q + q) * K + k",
            "((Index(n) * Q + q) * P + p) * K + k", "kernel_grad/hopper"),
    Mistake("biases are summed of channels for pixels", "staged_image.cuh",
            "const int channel = CHANNELS_LAST ? threadIdx.x % ASIDE : i;",
            "const int channel = CHANNELS_LAST ? i : threadIdx.x % ASIDE;", "kernel_grad/hopper", MAPS),
    Mistake("a chunk is its neighbour", LOADER, "first_plane + chunk * CHUNK_STEPS",
            "first_plane + (chunk ^ 1) * CHUNK_STEPS", "forward/tensor_core", TILES),
    Mistake("pixels are counted by rows of the image", LOADER, "(down * cols + across) * channels",
            "(down * rows + across) * channels", "forward/tensor_core", TILES),
    Mistake("padding is read", LOADER, "&& unsigned(col + across) < unsigned(cols);", ";", "forward/tensor_core",
            TILES),
    Mistake("a pixel lies in its neighbour's place", LOADER, "(row * HALO_Q + col) * Halo::PITCH",
            "(row * HALO_Q + (col ^ 1)) * Halo::PITCH", "forward/tensor_core", TILES),
    Mistake("a closed ReLU lets g through", LOADER, "is_open ? element_of(read.dy, i)", "true ? element_of(read.dy, i)",
            "input_grad/tensor_core", {"C": 72, "K": 64}),
    Mistake("results lie a row of the product further on", "channel_product.cuh", "out + place[e] + first;",
            "out + place[e] + own;", "input_grad/tensor_core", {"C": 72, "K": 64}),
    Mistake("rows are counted from the first image", LOADER, "row - image * HALO_P", "row", "forward/tensor_core",
            SMALL),
    Mistake("all of a tile's images are the first", LOADER, "reader.set_corner(n + image,", "reader.set_corner(n,",
            "input_grad/tensor_core", SMALL),
    Mistake("g of all of a tile's images is the first's", "tap_channels.cuh", "n + pixel.image", "n",
            "kernel_grad/tensor_core", SMALL),
    Mistake("both pixels of g are the first", "tap_channels.cuh", "pixel.col + e)", "pixel.col)",
            "kernel_grad/tensor_core", TILES),
    Mistake("two pixels of g are exchanged", "tap_channels.cuh", "formed(own[0]), GradChannels::formed(own[1])",
            "formed(own[1]), GradChannels::formed(own[0])", "kernel_grad/tensor_core", TILES),
)  # fmt: skip


def mistakes():
    """Yield the mistakes; but for the first of each variant they are slow tests."""
    met = set()
    for mistake in MISTAKES:
        yield pytest.param(mistake, id=mistake.what, marks=pytest.mark.slow if mistake.variant in met else ())
        met.add(mistake.variant)


def test_every_mistake_finds_its_text(tmp_path):
    find_all(MISTAKES, tmp_path)


@pytest.mark.parametrize("mistake", list(mistakes()))
def test_a_mistake_shows(quick, mistake, tmp_path):
    wrong = replaced(mistake.variant, mistake.file, mistake.old, mistake.new, tmp_path)
    problem = ConvProblem.parse(TEXTS[0], bias=True, dtype="float16", layout="nhwc", activation="relu")
    problem = problem.with_(**mistake.changes)
    assert check.check(wrong, problem, quick, tunables=GPU if "tensor" in mistake.variant else FEW).faults != []


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


def test_sanitize_sees_a_chunk_beyond_the_last(tmp_path):
    """Whose numbers are in no result; the kernel as it is reads none."""
    problem = ConvProblem.parse("1,32,3,8,24,1,1,layout=nhwc", dtype="float16", bias=True)
    found = sanitize.sanitize(TENSOR_CORE[2], problem, orders=("as numbered",)).findings
    assert found == []
    wrong = replaced(
        "kernel_grad/tensor_core", "tap_channels.cuh", "reader.read(exists && filter < filters);",
        "reader.read(exists);", tmp_path,
    )  # fmt: skip
    found = sanitize.sanitize(wrong, problem, orders=("as numbered",)).findings
    assert {finding.kind for finding in found} == {"out of bounds"} and {each.memory for each in found} == {"dy"}


@pytest.mark.parametrize(
    ("variant", "file", "wait"),
    [
        ("forward/tensor_core", "halo.cuh", "if constexpr (Loader::IS_COPIED) __pipeline_commit();"),
        ("kernel_grad/tensor_core", "tap_halo.cuh", "__pipeline_wait_prior(0);"),
    ],
)
def test_sanitize_sees_copies_that_are_not_waited_for(variant, file, wait, tmp_path):
    problem = ConvProblem.parse("1,64,6,9,72,3,3,padding=1", dtype="float16", layout="nhwc", bias=True)
    wrong = replaced(variant, file, wait, "", tmp_path)
    assert sanitize.sanitize(*select(variant), problem, orders=("as numbered",)).findings == []
    found = sanitize.sanitize(wrong, problem, orders=("as numbered",)).findings
    assert "uninitialised read" in {finding.kind for finding in found}
