"""What is special about sm_90's warpgroups and copy engine: boxes, rings of slots, swizzles, tensor maps.

The kernels themselves run here, on what cpu_runtime/hopper.cpp makes of barriers, copies and products.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np
import pytest

import convbackprop
from convbackprop import check
from convbackprop.devices.gpus import Target
from convbackprop.devices.mapped import MOST_SPANNED, MOST_STEP
from convbackprop.ladder import hopper_planes
from convbackprop.ladder.registry import select
from convbackprop.problem import DTYPES, ConvProblem
from convbackprop.profile.configurations import problems
from tests import driver
from tests.support.mutations import find_all, replaced
from tests.support.turns import every_other_pair

FORWARD, INPUT_GRAD, KERNEL_GRAD = VARIANTS = [
    select(f"{name}/hopper")[0] for name in ("forward", "input_grad", "kernel_grad")
]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
of_windows = pytest.mark.parametrize("variant", [FORWARD, INPUT_GRAD], ids=str)

#: Two multiprocessors: a block has several tiles in turn, and the slots pass through both parities.
FEW = Target("cpu", 2)


def faults(variant, device, text, data="normal", offset=0, **changes):
    problem = ConvProblem.parse(text, **{"bias": True, "activation": "relu", "dtype": "float16", **changes})
    assert variant.refusal(problem) is None
    found = check.check(variant, problem, device, data, tunables=FEW, offset=offset)
    return [f"{problem}: {fault}" for fault in found.faults]


# -- the kernels ------------------------------------------------------------------------------------------------------
#: Problems, and why. Few pixels, so that emulation is quick.
TEXTS = (
    "2,72,5,20,70,3,3,padding=1",  # ragged channels, filters, rows and columns; two chunks, boxes of three taps
    "3,16,7,7,130,2,3,padding=1:0x2:1,dilation=2x3,groups=2",  # several images in a box, groups, a wide halo
    "2,40,9,14,32,3,4,stride=2x3,padding=1",  # strides of the tensor map, or phases with different taps
    "1,16,5,6,16,2,5,padding=2,stride=2x1,dilation=2x1",  # a phase without taps
    "2,24,5,8,40,1,1",  # one tap
)

TF32 = {"dtype": "float32", "precision": "tf32"}


@pytest.mark.parametrize(("variant", "text"), every_other_pair(VARIANTS, TEXTS))
def test_boxes(quick, variant, text):
    assert faults(variant, quick, text, "integers", 1) == []


@each_variant
def test_tf32_and_bfloat16(quick, variant):
    assert faults(variant, quick, TEXTS[0], activation="tanh", **TF32) == []
    assert faults(variant, quick, TEXTS[2], dtype="bfloat16", activation="identity") == []


#: Of TF32 in kernel_grad, whose taps are shifts of a line, and why; the others are slow tests.
PLANES = (
    *TEXTS[1:3],
    "2,3,23,22,20,7,7,stride=2,padding=3",  # few channels at many taps; the last phases are shorter
    "2,8,5,6,16,2,2,padding=7x9",  # padding wider than the image, which no tap can leave
)
MORE_PLANES = (
    *TEXTS[3:],
    "1,16,30,31,16,2,2,stride=9,padding=1",  # a stride of which no tensor map takes each pixel, with phases of no tap
    "3,5,9,1,8,3,1,padding=1:0x0:0",  # rows of one pixel
)


@pytest.mark.parametrize("text", [*PLANES, *(pytest.param(text, marks=pytest.mark.slow) for text in MORE_PLANES)])
def test_planes(quick, text):
    for target in (FEW, Target("cpu", 132)):  # whole sums, and as many parts as there may be
        problem = ConvProblem.parse(text, bias=True, activation="relu", **TF32)
        found = check.check(KERNEL_GRAD, problem, quick, "integers", tunables=target, offset=1)
        assert found.faults == [], target
    assert faults(KERNEL_GRAD, quick, text, layout="nhwc", **TF32) == []


def test_parts_are_within_the_bound():
    """Of layers of real networks: each product of matrices may cut a sum twice, and each part is one addition more."""
    taken = 0
    for problem in (base.with_(precision="tf32") for base in problems()):
        for target in (Target("cuda", 1), Target("cuda", 132)):
            if KERNEL_GRAD.refusal(problem) is not None:
                continue
            t = KERNEL_GRAD.constants(target, problem)
            _, _, multiply, add, _ = KERNEL_GRAD.launches
            (positions, *_), (_, part_boxes) = multiply.maps(problem, t)[1].sizes, multiply.integers(problem, t)
            products = np.full(math.ceil(positions / 32), 4)
            products[-1] = math.ceil((positions - 1) % 32 // 8 + 1)
            of_parts = np.add.reduceat(np.tile(products, problem.N), range(0, products.size * problem.N, part_boxes))
            assert add.integers(problem, t) == (of_parts.size,)
            n = problem.N * problem.P * problem.Q
            cuts = 2 * of_parts.max() + (min(of_parts.size, 67) if of_parts.size > 1 else 0)  # LongSum has 67
            assert cuts <= min(n + 2, 8 * math.sqrt(n + 2)), problem
            taken += 1
    assert taken > 100


#: What is just below a number of 11 bits: cut, it is off by twice as much as rounded to nearest it may be.
NEARLY = 1 + 2.0**-10 - 2.0**-20


def test_factors_are_rounded_to_nearest(quick, tmp_path):
    problem = ConvProblem.parse("1,8,5,9,8,3,3,padding=1", **TF32)
    given = {name: np.full(shape, NEARLY, np.float32) for name, shape in
             (("x", problem.x_shape), ("dy", problem.y_shape))}  # fmt: skip
    assert check.check(KERNEL_GRAD, problem, quick, given=given).faults == []
    wrong = replaced("kernel_grad/hopper", "grad_planes.cuh", "tf32_word(turned", "__float_as_uint(turned", tmp_path)
    assert check.check(wrong, problem, quick, given=given).faults != []


def test_rows_need_their_zeros(quick, tmp_path, monkeypatch):
    """With rows as long as the image, a shift sees the next one."""
    text = "2,8,5,8,16,3,3,padding=1"
    assert faults(KERNEL_GRAD, quick, text, **TF32) == []
    wrong = replaced("kernel_grad/hopper", PLANE, "max(of_g, of_x)", "max(shape.Q, cols.of_phase())", tmp_path)
    monkeypatch.setattr(hopper_planes, "_pitch", lambda p: p.W)
    assert faults(wrong, quick, text, **TF32) != []


#: Its sums are longer than a run of 3,840 steps.
LONG = "1,440,3,9,70,3,3,padding=1"


@of_windows
@pytest.mark.parametrize(
    ("channels", "changes"),
    [pytest.param(440, {}, marks=pytest.mark.slow), (121, {"dtype": "float32", "precision": "tf32"})],
)
def test_long_sums_have_totals(quick, variant, channels, changes):
    """Of runs that end within the taps of a box, and of one that has just begun."""
    text = f"1,{channels},3,9,{channels},3,3,padding=1"
    t = variant.constants("cpu", ConvProblem.parse(text, **{"dtype": "float16", **changes}))
    assert t["LONG_SUMS"] and t["RUN_STEPS"] % (9 * t["DEPTH"])
    assert faults(variant, quick, text, **changes) == []


def test_the_mask_and_a_transposed_convolution(quick):
    assert faults(FORWARD, quick, TEXTS[0], mask=True) == []
    assert faults(KERNEL_GRAD, quick, TEXTS[0], mask=True) == []
    assert faults(INPUT_GRAD, quick, TEXTS[2], transposed=True, activation="gelu", data="integers") == []


def not_a_number(variant, device, value, name, **changes):
    """Return what is wrong where one element of x, dy or w is such a value."""
    problem = ConvProblem.parse("1,32,5,9,32,3,3,padding=1", **{"dtype": "float16", **changes})
    given = check.inputs(variant.pass_name, problem)
    given[name][0, 3, 0, 0] = value
    return check.check(variant, problem, device, given=given).faults


@each_variant
def test_what_is_no_number_stays_where_it_is(quick, variant):
    """A pixel that is no number reaches the results that see it; one beside padding does not make NaN of zeros."""
    for name in {"forward": "xw", "input_grad": ("dy", "w"), "kernel_grad": ("x", "dy")}[variant.pass_name]:
        for value, changes in ((np.inf, {}), (np.nan, {}), (-np.inf, TF32)):
            assert not_a_number(variant, quick, value, name, **changes) == []


# -- mistakes ---------------------------------------------------------------------------------------------------------
class Mistake(NamedTuple):
    """What is wrong, in which header or .cu file, and what stands there in place of what."""

    what: str
    file: str
    old: str
    new: str
    is_deadlock: bool = False
    variant: str = "forward/hopper"
    changes: dict[str, object] = {}  # noqa: RUF012 - of the problem that shows it


PLANE = "grad_planes.cuh"
WAIT, BOX = "empty[turn.slot].wait(turn.parity ^ 1, note", "box_product.cuh"
MISTAKES = (
    Mistake("a slot's parity never changes", "mbarrier.cuh", "slot = 0, parity ^= 1", "slot = 0"),
    Mistake("an empty slot is not waited for", "mbarrier.cuh", WAIT, f"if (0) {WAIT}"),
    Mistake("empty slots are waited for from the other parity on", "mbarrier.cuh", WAIT, WAIT.replace(" ^ 1", ""),
            True),
    Mistake("slots are given back before products have ended", BOX, "sums.product.wait<1>();", ""),
    Mistake("a tap is given back at once", BOX, "read_tap = &rings.taps.empty[tap.slot],",
            "if (sums.lane == 0) rings.taps.empty[tap.slot].arrive();\nread_tap = nullptr,"),
    Mistake("a box is never given back", BOX, "read_box = &rings.boxes.empty[box.slot];", "", True),
    Mistake("a full box is not waited for", BOX,
            "if (TAPS_DOWN == 1 || i == 0) rings.boxes.wait_until_full(box, note);", ""),
    Mistake("a full tap is not waited for", BOX, "rings.taps.wait_until_full(tap, note);", ""),
    Mistake("the last products are not waited for", BOX, "        sums.product.wait<0>();\n        if (sums.lane",
            "        if (sums.lane"),
    Mistake("the bytes of half a box are expected", BOX, "expect(BOX_BYTES)", "expect(BOX_BYTES / 2)", True),
    Mistake("the filter is not swizzled", BOX, "to[unit ^ m % 8]", "to[unit]"),
    Mistake("the filter is swizzled by four rows", BOX, "to[unit ^ m % 8]", "to[unit ^ m % 4]"),
    Mistake("a descriptor's stride is twice as long", BOX, "first_b + shift, PATTERN", "first_b + shift, 2 * PATTERN"),
    Mistake("a step of products is that of the neighbour", BOX, "b + step * 32", "b + (step ^ 1) * 32"),
    Mistake("both warpgroups have the first one's rows", BOX, "(sums.group % ROW_GROUPS) * 64", "0 * 64"),
    Mistake("a tap sees the row of its neighbour", BOX, "shift += rows.step", "shift -= rows.step"),
    Mistake("the sums of the tile before are added", BOX, "accumulate = LONG_SUMS;",
            "accumulate = number >= gridDim.x;"),
    Mistake("a run is added twice", BOX, "is_last ? totals[i] : 0", "is_last ? totals[i] : product.sums[i]"),
    Mistake("a phase without taps has boxes", BOX, "? min(phase.down, 1)", "? 1", True, "input_grad/hopper"),
    Mistake("taps lie a row too near", "grad_pixels.cuh", "? TAP_ROWS * BOX_ROW_BYTES", "? 0 * BOX_ROW_BYTES", False,
            "kernel_grad/hopper"),
    Mistake("one of several boxes is not asked for", "hopper.cu", ">= ASKING", ">= ASKING - 1", True,
            "kernel_grad/hopper"),
    Mistake("x and g are given back at once", "hopper.cu", "product.wait<1>();",
            "if (lane == 0) ring.empty[turn.slot].arrive();", False, "kernel_grad/hopper"),
    Mistake("padding is a pixel", "hopper.cu", "if (isnan(sum.value())) {", "if (false) {", False,
            "kernel_grad/hopper"),
    *(Mistake(f"{what}, of planes", file, old, new, False, "kernel_grad/hopper", TF32) for what, file, old, new in (
        ("a tap sees what its neighbour sees", PLANE, "cols.shift(s);", "cols.shift(s) + 1;"),
        ("a tap sees the row of its neighbour", PLANE, "rows.shift(r) *", "(rows.shift(r) - 1) *"),
        ("a tap has the phase of its neighbour", PLANE, "+ cols.phase(s);", "+ (cols.phase(s) + 1) % cols.phases();"),
        ("a phase begins at its neighbour's column", PLANE, "rest + stride : rest", "-rest : rest"),
        ("the margin is the next row", PLANE, "row < of.rows.size && col < of.cols.size", "row < of.rows.size"),
        ("all chunks of channels are the first", PLANE, "x_map, full, at.position + shift, c,",
         "x_map, full, at.position + shift, 0,"),
        ("the last part is lost", "hopper.cu", "part < count; ++part", "part < count - (count > 1); ++part"),
        ("a product is its neighbour", PLANE, "STEP_BYTES = ROW_BYTES / STEPS", "STEP_BYTES = ROW_BYTES / STEPS / 2"),
        ("boxes are read before they are there", "hopper.cu", "ring.wait_until_full(turn, note);", ""),
        ("boxes are given back at once", "hopper.cu", "product.wait<1>();",
         "if (lane == 0) ring.empty[turn.slot].arrive();"),
        ("the scale is not taken out", "hopper.cu", "unscaled(product.sums[", "(product.sums["),
        ("biases are summed of rounded numbers", "hopper.cu", "staged(chunk, pixel, threadIdx.x)",
         "__uint_as_float(tf32_word(staged(chunk, pixel, threadIdx.x)))"),
    )),
)  # fmt: skip


#: Where another problem shows it: a long sum, a phase without taps, many tiles.
MORE = {
    "a run is added twice": LONG,
    "a phase without taps has boxes": TEXTS[3],
    "a tap is given back at once": "3,72,9,20,70,3,3,padding=1",
    "all chunks of channels are the first, of planes": "1,300,3,8,16,1,1",
    "the last part is lost, of planes": "8,16,5,6,16,1,1",
    **dict.fromkeys(("a tap has the phase of its neighbour, of planes",
                     "a phase begins at its neighbour's column, of planes"), TEXTS[2]),
}  # fmt: skip


def mistakes():
    """Yield the mistakes; but for the first of each variant, file and way to fail they are slow tests."""
    met = set()
    for mistake in MISTAKES:
        sort = mistake.variant, mistake.file, mistake.is_deadlock
        yield pytest.param(mistake, id=mistake.what, marks=pytest.mark.slow if sort in met else ())
        met.add(sort)


def test_every_mistake_finds_its_text(tmp_path):
    find_all(MISTAKES, tmp_path)


@pytest.mark.parametrize("mistake", list(mistakes()))
def test_a_mistake_shows(quick, mistake, tmp_path):
    wrong = replaced(mistake.variant, mistake.file, mistake.old, mistake.new, tmp_path)
    text = MORE.get(mistake.what, TEXTS[0])
    if mistake.what == "padding is a pixel":
        found = not_a_number(wrong, quick, np.inf, "dy")
    else:
        found = faults(wrong, quick, text, **mistake.changes)
    assert found != []
    assert not mistake.is_deadlock or "at mbarriers, forever" in found[0]


# -- tensor maps ------------------------------------------------------------------------------------------------------
@each_variant
def test_maps_are_what_a_driver_takes(variant):
    """Of layers of real networks: the rules of cuTensorMapEncodeTiled, and what a block may have of shared memory."""
    taken = 0
    for base in problems():
        for changes in ({"dtype": "float16"}, {"precision": "tf32"}):
            problem = base.with_(**changes)
            if variant.refusal(problem) is not None:
                continue
            taken += 1
            t = variant.constants("cuda", problem)
            for launch in variant.launches:
                assert launch.shared_bytes(problem, t) <= 227 << 10
                for each in launch.maps(problem, t):
                    element = DTYPES[each.dtype]
                    assert each.box[0] * element == 128 and each.steps[0] == 1
                    assert all(1 <= span <= MOST_SPANNED for span in each.box)
                    assert all(1 <= step <= MOST_STEP for step in each.steps)
                    assert all(stride % 16 == 0 for stride in (*each.strides, each.offset))
                    last = sum((size - 1) * stride for size, stride in zip(each.sizes[1:], each.strides, strict=True))
                    end = each.offset + last + each.sizes[0] * element
                    assert end <= variant.scratch(problem, t) * problem.accumulator_bytes
    assert taken > 20


@each_variant
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1,64,40,40,64,3,3,dtype=float64", "the dtype is float64"),
        ("1,64,40,40,64,3,3", "float32 factors"),
        ("1,64,40,40,64,3,3,dtype=float16,activation=tanh", "would be rounded to float16"),
        ("1,4,9,9,4,3,3,groups=4,dtype=float16", "a group has one channel and one filter"),
        ("1,64,90,90,64,3,3,stride=9,dtype=float16", "a tensor map takes each 8th pixel at most"),
        ("1,2,200,1,2,1,1,dtype=float16", "its bound has"),
        ("1,2,40,40,2,31,31,dtype=float16", "its bound has"),
    ],
)
def test_refused(variant, text, why):
    sentence = variant.refusal(ConvProblem.parse(text))
    is_taken = (
        (variant is FORWARD and "rounded" in why)
        or (variant is INPUT_GRAD and "stride=9" in text)
        or ("bound" in why and (variant is KERNEL_GRAD) == ("31" in text))
    )
    assert sentence is None if is_taken else why in sentence


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1,16,1,1,16,1,61,padding=0x30", "a sum of 1 pixels passes products of matrices"),
        ("256,512,14,14,512,3,3,padding=1", r"its sums have \d+ parts; scratch memory holds 7"),
    ],
)
def test_planes_refused(text, why):
    assert re.match(why, KERNEL_GRAD.refusal(ConvProblem.parse(text, **TF32)))


#: A problem whose kernel is compiled quickly, and runs on what stands in for a driver.
SMALL = ConvProblem.parse("1,16,5,8,16,2,3", dtype="float16")


def on_device(device, variant, times=1):
    """Run a variant on arrays of a device, on the same memory each time."""
    ready, blocks = check.stage(variant, SMALL, check.inputs("forward", SMALL), device)
    with device.holding() as there:
        for name, held in blocks.items():
            there[name] = device.upload(held.array.ctypes.data, held.array.nbytes)
        for _ in range(times):
            ready.run({name: int(allocation) for name, allocation in there.items()})


def test_maps_of_the_same_memory_are_made_once(stand_in):
    device = driver.device()
    assert check.check(FORWARD, SMALL, device).faults == []
    stand_in.record()
    on_device(device, FORWARD, 3)
    assert stand_in.recorded("cuTensorMap") == ["cuTensorMapEncodeTiled"]
    assert (
        stand_in.recorded("cuLaunchKernel")
        == ["cuLaunchKernel stage", "cuLaunchKernel pack", "cuLaunchKernel forward"] * 3
    )
    assert stand_in.counts().allocations == 0


@pytest.mark.parametrize(
    ("name", "position", "value", "why"),
    [
        ("strides", 1, 40, "a multiple of 16 bytes"),
        ("box", 2, 257, "1 to 256 elements"),
        ("box", 0, 128, "longer than what is swizzled together"),
        ("steps", 2, 9, "1 to 8 elements"),
        ("sizes", 3, 0, "1 to 2^32 elements"),
    ],
)
def test_a_map_that_breaks_a_rule_is_refused(stand_in, name, position, value, why):
    def spoilt(problem, constants):
        (made,) = FORWARD.launches[2].maps(problem, constants)
        values = list(getattr(made, name))
        values[position] = value
        return (made._replace(**{name: tuple(values)}),)

    launches = [
        dataclasses.replace(each, maps=spoilt) if each.entry == "forward" else each for each in FORWARD.launches
    ]
    wrong = dataclasses.replace(FORWARD, launches=tuple(launches))
    with pytest.raises(convbackprop.LaunchFailed, match="cuTensorMapEncodeTiled failed: invalid argument"):
        on_device(driver.device(), wrong)
    assert why in stand_in.why()


def test_a_wait_that_does_not_end_is_told(stand_in):
    """What a kernel leaves in memory of the host before it ends stands in the error."""
    device = driver.device()
    on_device(device, FORWARD)
    device._wait_note._note[:] = [3, 2, 1, 7, 160]
    stand_in.fail("cuLaunchKernel", 3, driver.CONTEXT_LOST)
    sentence = "block 7, thread 160 waited in vain for a box in slot 2, parity 1"
    with pytest.raises(convbackprop.LaunchFailed, match=sentence):
        on_device(device, FORWARD)


def test_other_gpus_are_refused_in_a_sentence(stand_in, monkeypatch):
    device = driver.device()
    monkeypatch.setattr(device, "architecture", "sm_80")
    x, w = np.zeros((1, 16, 8, 8), np.float16), np.zeros((8, 16, 3, 3), np.float16)
    with pytest.raises(convbackprop.UnsupportedProblem, match="written for sm_90a; this GPU is sm_80"):
        convbackprop.conv2d(x, w, variant="hopper", device="cuda")
