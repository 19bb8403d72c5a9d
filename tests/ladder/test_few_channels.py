"""few_channels: the few channels of a result at a tile of pixels, in forward and input_grad."""

from __future__ import annotations

import pytest

from convbackprop import check
from convbackprop.devices.gpus import Target
from convbackprop.ladder.registry import choose, select
from convbackprop.ladder.variant import pinned
from convbackprop.problem import ConvProblem

FEW = {name: select(f"{name}/few_channels")[0] for name in ("forward", "input_grad")}

each_pass = pytest.mark.parametrize("variant", FEW.values(), ids=str)


def few_in(variant, text, few, many, **options):
    """Return a problem given as "H,W,R,S,options", with so many channels of the result and of the source."""
    sizes, rest = text.split(",")[:4], text.split(",")[4:]
    channels, filters = (many, few) if variant.pass_name == "forward" else (few, many)
    h, w, r, s = sizes
    return ConvProblem.parse(",".join([f"2,{channels},{h},{w},{filters},{r},{s}", *rest]), **options)


@each_pass
@pytest.mark.parametrize(
    ("text", "few", "many"),
    [
        ("1,1,3,3,padding=1", 4, 5),
        ("9,7,3,3,padding=1,stride=2", 3, 9),  # a chunk of 8, and one plane more
        ("8,9,7,7,padding=3,stride=2", 3, 5),
        pytest.param("5,9,4,2,padding=2x0,stride=3x2,dilation=2x3", 2, 3, marks=pytest.mark.slow),
        pytest.param("2,131,1,5,padding=0x2", 1, 4, marks=pytest.mark.slow),  # beyond a tile of 32 x 4 columns
        pytest.param("35,3,15,1,padding=7x0", 4, 2, marks=pytest.mark.slow),  # a row at a time
    ],
)
@pytest.mark.parametrize("tunables", ["cpu", "cuda"])
def test_small_images(quick, variant, text, few, many, tunables):
    problem = few_in(variant, text, few, many, bias=True, activation="tanh")
    assert check.check(variant, problem, quick, tunables=tunables).faults == []


@each_pass
@pytest.mark.parametrize("few", [1, 2, 3, 4, 5])
def test_a_group_has_at_most_four_channels(variant, few):
    what = "filters" if variant.pass_name == "forward" else "channels"
    expected = f"a group has 5 {what}; it works where there are at most 4" if few > 4 else None
    assert variant.refusal(few_in(variant, "9,9,3,3", few, 7)) == expected


@each_pass
@pytest.mark.parametrize("data", ["constant", "positive"])
def test_sums_of_20000_terms(quick, variant, data):
    """Runs of a few hundred terms: as one sum, equal terms are outside the bound."""
    problem = few_in(variant, "3,4,3,3,padding=1", 2, 2223)
    assert check.check(variant, problem, quick, data).faults == []


@each_pass
@pytest.mark.parametrize(
    ("text", "tiles"),
    [
        ("40,33,5,17,padding=6:1x1:5", ((1, 1), (2, 2))),
        pytest.param("20,33,17,16,padding=8", ((1, 1), (1, 4)), marks=pytest.mark.slow),  # a row is a run
    ],
)
def test_bits_do_not_follow_the_tile(cpu, variant, text, tiles):
    """A batch of few images has other tiles, and the same bits: of products, and of the runs of long sums."""
    problem = few_in(variant, text, 1, 5, dtype="float64")
    given = check.inputs(variant.pass_name, problem, "normal", seed=5)
    results = []
    for rows, cols in tiles:
        tiled = pinned(variant, (("TILE_ROWS", rows), ("TILE_COLS", cols)))
        blocks = check.launch(tiled, problem, given, cpu, "cuda")
        results.append([block.array.tobytes() for block in blocks.values()])
    assert results[0] == results[1]


def test_what_does_not_fit_is_refused():
    assert FEW["input_grad"].refusal(ConvProblem.parse("1,3,99,99,64,3,3,stride=9")) == (
        "sums and taps of a 3x3 filter with stride 9x9 take 499 registers of a thread in float32; at most 190 fit"
    )
    assert FEW["forward"].refusal(ConvProblem.parse("1,8,200,200,1,31,31,dilation=3")) == (
        "the part of a plane under a tile takes 49 KiB of shared memory; at most 48 KiB fit"
    )


@each_pass
def test_tiles_follow_the_multiprocessors(variant):
    """A small image makes small tiles, so that more multiprocessors have one; a large one, those that cost least."""

    def tile(size, multiprocessors):
        constants = variant.constants(Target("cuda", multiprocessors), few_in(variant, f"{size},{size},3,3", 3, 64))
        return constants["TILE_ROWS"] * constants["TILE_COLS"]

    assert tile(58, 1) > tile(58, 132) == 1
    assert tile(1000, 132) == tile(1000, 1) == 8


@each_pass
def test_auto(variant):
    """It is the highest rung on a GPU for few channels of many, but not where a thread has a channel to itself."""

    def chosen(text):
        return choose(variant.pass_name, "auto", ConvProblem.parse(text), "cuda").name

    assert chosen(str(few_in(variant, "56,56,3,3,padding=1", 4, 64))) == "few_channels"
    assert chosen(str(few_in(variant, "56,56,3,3,padding=1,stride=2,dilation=3", 1, 64))) == "few_channels"
    assert chosen(str(few_in(variant, "56,56,3,3,padding=1", 5, 64))) == "register_tiled"
    assert chosen("1,1,56,56,1,3,3,padding=1") == "coalesced"
