"""What is special about variants that march down strips: widths, addresses, rows, filters, what is left out."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest

from convbackprop import check
from convbackprop.devices.gpus import Target
from convbackprop.ladder.registry import VARIANTS, choose, select, why_not
from convbackprop.ladder.variant import Alignment
from convbackprop.launch.plan import alignment_of, constants_of
from convbackprop.problem import ConvProblem
from tests.support.turns import in_turn

# All on kernels that are compiled quickly: there are many, and what is special about them stands in their sources.

STRIPS = [variant for variant in VARIANTS if "COLS" in variant.tunables]
GPU_STRIPS = [variant for variant in STRIPS if "cuda" in variant.runs_on]
CPU_STRIPS = [variant for variant in STRIPS if variant not in GPU_STRIPS]

each_variant = pytest.mark.parametrize("variant", STRIPS, ids=str)


def test_a_gpus_strips_are_the_same_everywhere():
    """So that what is tested on a CPU is what a GPU runs."""
    for variant in GPU_STRIPS:
        for text in ("1,1,9,64,1,3,3,padding=same", "2,4,150,64,4,7,7,padding=same,groups=4,dtype=float64"):
            cuda, cpu = (variant.constants(kind, ConvProblem.parse(text)) for kind in ("cuda", "cpu"))
            assert {name for name in cuda if cuda[name] != cpu[name]} <= {"SLICE_GROUPS", "TAPS_EACH"}


def faults(variant, device, text, offset=0, data="normal", **changes):
    problem = ConvProblem.parse(text, **{"bias": True, "activation": "relu", **changes})
    outcome = check.check(variant, problem, device, data, offset=offset)
    return [f"{problem}, offset {offset}: {fault}" for fault in outcome.faults]


#: A strip and its neighbours, one column more and less, rows whose pitch breaks every alignment.
WIDTHS = (*range(1, 41), 63, 64, 65, 127, 128, 129, 150)


@in_turn(0, STRIPS)
@pytest.mark.parametrize(
    ("dtype", "widths"),
    [
        pytest.param("float32", (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 64, 65, 129), id="float32"),
        *(pytest.param(dtype, WIDTHS, id=f"{dtype}-all", marks=pytest.mark.slow) for dtype in ("float32", "float16")),
    ],
)
def test_every_width(quick, variant, dtype, widths):
    found = []
    for width in widths:
        found += faults(variant, quick, f"2,2,5,{width},2,3,3,padding=same,groups=2", dtype=dtype)
    assert found == []


STRIDED = [v for v in STRIPS if v.refusal(ConvProblem.parse("1,1,9,9,1,3,3,stride=2")) is None]


@pytest.mark.parametrize("variant", STRIDED, ids=str)
@pytest.mark.parametrize(
    # Odd and even filters and padding: each phase of a stride begins with each column.
    "layer",
    [
        "4,5,padding=2x2,stride=2",
        *(
            pytest.param(layer, marks=pytest.mark.slow)
            for layer in ("3,3,padding=1,stride=2", "1,2,padding=1,stride=1x2", "2,1,stride=2x1")
        ),
    ],
)
@pytest.mark.parametrize(
    ("widths", "heights"),
    [
        pytest.param((3, 4, 5, 16, 17, 65), (3, 32, 33, 66), id="some"),
        pytest.param(
            (*range(3, 20), 63, 64, 65, 130), (3, 4, 31, 32, 33, 64, 65, 66), id="all", marks=pytest.mark.slow
        ),
    ],
)
def test_every_width_with_a_stride(quick, variant, layer, widths, heights):
    found = []
    for width in widths:
        found += faults(variant, quick, f"2,2,5,{width},2,{layer},groups=2", data="integers")
    for height in heights:
        found += faults(variant, quick, f"2,2,{height},19,2,{layer},groups=2", data="integers")
    assert found == []


@each_variant
@pytest.mark.parametrize("mask", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_offset(quick, variant, mask):
    """Arrays that begin one to three elements after an aligned address, in rows that are aligned and not."""
    found = []
    for width in (16, 32, 35, 64):
        for offset in range(4):
            text = f"1,1,9,{width},1,3,3,padding=same"
            found += faults(variant, quick, text, offset, mask=mask)
    assert found == []


@each_variant
def test_every_height(quick, variant):
    """Fewer rows than a filter, than a band, and one row and two more."""
    found = []
    for height in (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 34, 65):
        found += faults(variant, quick, f"2,1,{height},17,1,3,3,padding=same")
    assert found == []


@pytest.mark.parametrize(
    # Each size is compiled anew: but for one of two of three variants, they are slow tests.
    ("variant", "size"),
    [
        pytest.param(variant, size, id=f"{variant}-{size}", marks=() if size == (2, 0, 7)[i % 3] else pytest.mark.slow)
        for (i, variant), size in product(enumerate(STRIPS), range(1, 10))
    ],
)
def test_every_filter(quick, variant, size):
    found = []
    for text in (f"2,1,19,37,1,{size},{size},padding=same", f"1,2,12,{size + 17},2,{size},{size},groups=2"):
        if variant.refusal(ConvProblem.parse(text)) is None:
            found += faults(variant, quick, text)
    assert found == []


@pytest.mark.parametrize("variant", [v for v in STRIPS if v.pass_name != "backward"], ids=str)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("1,1,20,40,1,15,15,padding=same", marks=pytest.mark.slow),  # one of the curated problems
        "1,1,40,50,1,17,19,padding=3x4",  # too large to be known at compile time
        "2,6,9,18,4,3,5,padding=2:0x1:7,groups=2",
        pytest.param("1,1,4,300,1,1,70,padding=same", marks=pytest.mark.slow),
        pytest.param("1,3,8,50,2,4,33,padding=1", marks=pytest.mark.slow),
        pytest.param("1,1,5,9,1,3,3,padding=6x9", marks=pytest.mark.slow),
    ],
)
def test_large_filters_and_many_channels(quick, variant, text):
    if variant.refusal(ConvProblem.parse(text)):
        assert variant.name in ("coalesced", "pipelined")  # and register_tiled is there for it
    else:
        assert faults(variant, quick, text) == []


@pytest.mark.parametrize(
    ("stride", "wanted"), [(1, "coalesced"), (2, "pipelined"), ("2x1", "pipelined"), (3, "few_channels")]
)
def test_a_stride_of_2_is_marched_too(stride, wanted):
    """For "auto" tiles take longer there, but for dw."""
    problem = ConvProblem.parse(f"8,96,112,112,96,3,3,padding=1,groups=96,stride={stride}")
    chosen = [choose(name, "untuned", problem, "cuda").name for name in ("forward", "input_grad", "kernel_grad")]
    assert chosen == [wanted, wanted, "coalesced" if stride == 1 else "tiled"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("16,1,48,480,16,3,3,padding=1", "coalesced"),
        ("8,16,56,56,256,5,5,padding=2,groups=16", "coalesced"),  # 16 filters a channel
        ("8,32,56,56,32,3,3,padding=1,groups=32", "coalesced"),
        ("8,1,224,224,64,7,7,stride=2,padding=3", "pipelined"),
        ("8,1,224,224,64,7,7,stride=3,padding=3", None),  # no strip does
        ("8,2,56,56,64,3,3,padding=1", None),  # two channels
        ("8,1,56,56,64,3,3,padding=1,residual=1", None),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_channel_is_marched_however_many_filters_see_it(text, wanted, dtype):
    """For "auto" a product of matrices would be as long as a filter has taps."""
    problem = ConvProblem.parse(text, dtype=dtype)
    for target in (Target("cuda"), Target("cuda", 40, "sm_75")):
        chosen = choose("forward", "untuned", problem, target).name
        assert chosen == wanted if wanted else chosen in ("implicit_gemm", "tensor_core")


def test_a_stride_makes_windows_wide_and_parts_of_a_filter_low():
    """All five rows of windows of 24 columns would not fit a thread's registers beside 50 sums."""
    (variant,), text = select("kernel_grad/pipelined"), "4,1,340,79,1,5,10,dtype=float16,stride="
    rows = [constants_of(variant, ConvProblem.parse(f"{text}{stride}"), "cuda")["TAP_ROWS"] for stride in (1, 2)]
    assert rows == [5, 3]


def test_bands_are_tall_where_enough_blocks_remain():
    (variant,) = select("forward/pipelined")
    texts = (
        "1,1,4096,4096,1,3,3",
        "1,1,1024,4096,1,3,3",
        "64,32,112,112,32,3,3,groups=32",
        "8,32,112,112,32,3,3,groups=32",
    )
    rows = [constants_of(variant, ConvProblem.parse(f"{text},padding=1"), "cuda")["ROWS"] for text in texts]
    assert rows == [64, 32, 64, 32]


@pytest.mark.parametrize("variant", [v for v in STRIPS if v.pass_name == "backward"], ids=str)
@pytest.mark.parametrize("mask", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("needs", [(dx, dw, db) for dx in (0, 1) for dw in (0, 1) for db in (0, 1)][1:], ids=str)
def test_needs(quick, variant, mask, needs):
    """What is not needed is neither computed nor written, nor are its operands read."""
    dx, dw, db = (bool(need) for need in needs)
    text = "2,2,35,41,2,3,3,padding=same,groups=2"
    assert faults(variant, quick, text, mask=bool(mask), dx=dx, dw=dw, bias=db) == []
    problem = ConvProblem.parse(text, dx=dx, dw=dw, bias=db)
    constants = constants_of(variant, problem, "cpu")
    assert [constants[f"NEED_{name}"] for name in ("DX", "DW", "DB")] == [int(need) for need in needs]


@each_variant
@pytest.mark.parametrize(
    "data", ["constant", *(pytest.param(d, marks=pytest.mark.slow) for d in ("positive", "integers"))]
)
def test_long_sums(quick, variant, data):
    assert faults(variant, quick, "1,1,700,1111,1,3,3,padding=same", data=data) == []


@pytest.mark.parametrize(
    "name",
    [
        "kernel_grad/coalesced",
        "kernel_grad/vectorised",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("backward/fused", "backward/vectorised")),
    ],
)
def test_error_of_a_large_image_is_far_below_the_bound(quick, name):
    """Equal terms, whose round-offs do not cancel; the bound at this size is 8 * sqrt(2**22) = 16,384 round-offs."""
    (variant,) = select(name)
    problem = ConvProblem.parse("1,1,2048,2048,1,3,3,padding=same,bias=1,dx=0")
    assert check.check(variant, problem, quick, "constant").share < 0.01


@each_variant
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=str)
@pytest.mark.parametrize("mask", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_infinite_inputs_beyond_what_they_meet(quick, variant, mask, value):
    """Every pixel of the border, and of the columns where a strip reaches beyond the row's end."""
    problem = ConvProblem.parse("1,1,6,19,1,3,3,padding=same,bias=1,activation=relu", mask=mask)
    valid = ConvProblem.parse("1,1,6,19,1,3,3,bias=1,activation=relu", mask=mask)
    name = "dy" if variant.pass_name == "input_grad" else "x"
    for p in (problem, valid):
        if variant.refusal(p):
            continue
        plain = check.inputs(variant.pass_name, p)
        for h in (0, 2, p.H - 1 if name == "x" else p.P - 1):
            for w_ in range(p.W if name == "x" else p.Q):
                given = {key: array.copy() for key, array in plain.items()}
                given[name][0, 0, h, w_] = value
                assert check.check(variant, p, quick, given=given).faults == []


# -- vectors -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", GPU_STRIPS, ids=str)
@pytest.mark.parametrize(
    ("width", "dtype", "alignment", "vector"),
    [
        (64, "float32", 16, 4),
        (66, "float32", 16, 2),
        (67, "float32", 16, 1),
        (64, "float32", 8, 2),
        (64, "float32", 4, 1),
        (64, "float16", 16, 8),
        (64, "float16", 2, 1),
        (64, "float64", 16, 2),
        (64, "float64", 8, 1),
    ],
)
def test_widest_load(variant, width, dtype, alignment, vector):
    problem = ConvProblem.parse(f"1,1,9,{width},1,3,3,padding=same", dtype=dtype)
    constants = variant.constants("cuda", problem, Alignment(alignment, alignment))
    assert constants["X_VECTOR"] == constants["Y_VECTOR"] == vector


def test_alignment_of():
    assert alignment_of({"x": 1024, "dy": 4096, "saved": 64}, mask=False) == (16, 16)
    assert alignment_of({"x": 1028, "dx": 32, "dy": 4096, "saved": 8}, mask=False) == (4, 8)
    assert alignment_of({"x": 1028, "dx": 32, "dy": 4096, "saved": 1}, mask=True) == (4, 16)


# -- the rule of "auto" --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "kind", "names"),
    [
        ("1,1,64,64,1,3,3,padding=same", "cpu", ("vectorised", "vectorised", "vectorised", "vectorised")),
        ("1,1,64,64,1,3,3,padding=same", "cuda", ("coalesced", "coalesced", "coalesced", "fused")),
        ("2,4,9,9,4,3,3,stride=2", "cuda", ("few_channels", "few_channels", "tiled", None)),
        ("2,5,9,9,5,3,3,stride=2", "cuda", ("tiled", "tiled", "tiled", None)),
        ("2,4,9,9,3,3,3,stride=2", "cpu", ("naive", "vectorised_gemm", "naive", None)),
        ("2,4,9,9,4,4,4,padding=same", "cpu", ("vectorised_direct", "vectorised_direct", "vectorised_direct", None)),
        ("2,4,9,9,4,4,4,padding=4", "cpu", ("vectorised", "vectorised", "vectorised", None)),
        ("2,5,9,9,5,4,4,padding=same", "cuda", ("register_tiled", "register_tiled", "coalesced", None)),
        ("1,1,64,64,1,31,31,padding=same", "cuda", ("few_channels", "few_channels", "coalesced", None)),
    ],
)
def test_auto(text, kind, names):
    problem = ConvProblem.parse(text)
    for pass_name, name in zip(("forward", "input_grad", "kernel_grad", "backward"), names, strict=True):
        reasons = why_not(pass_name, problem, kind)
        assert [variant.name for variant, reason in reasons.items() if reason is None] == ([name] if name else [])
        assert all(reason is None or len(reason) > 10 for reason in reasons.values())
        if name:
            assert choose(pass_name, "auto", problem, kind).name == name


def test_lanes_follow_the_cpu():
    """A strip is one vector of the CPU, whatever its width."""
    (variant,) = select("backward/vectorised")
    for wide in (16, 32, 64):
        tunable = dataclasses.replace(variant.tunables["VECTOR_BYTES"], cpu=wide)
        other = dataclasses.replace(variant, tunables={**variant.tunables, "VECTOR_BYTES": tunable})
        constants = other.constants("cpu", ConvProblem.parse("1,1,9,64,1,3,3,padding=same"))
        assert constants["LANES"] == min(constants["COLS"], wide // 4)


@pytest.mark.parametrize("variant", CPU_STRIPS, ids=str)
def test_no_strip_works_mostly_for_nothing(variant):
    for width in range(1, 300):
        cols = variant.constants("cpu", ConvProblem.parse(f"1,1,9,{width},1,3,3,padding=same"))["COLS"]
        assert cols <= 16 or -(-width // cols) * cols <= width * 8 / 7
