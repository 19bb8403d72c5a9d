"""Pictures show what the threads do: beside what is worked out by hand, and in kernels whose indices were changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convbackprop.devices.compiler import Source
from convbackprop.errors import InvalidArgument, UnsupportedProblem
from convbackprop.explain import TOPICS, explain, layer, record, topics_of
from convbackprop.explain.fragments import FACTORS, ROWS, layout
from convbackprop.explain.picture import NOBODY, NOTHING
from convbackprop.explain.tile import passes
from convbackprop.ladder.registry import VARIANTS, select
from convbackprop.ladder.variant import pinned
from convbackprop.launch.plan import constants_of, pack_shape
from convbackprop.problem import ConvProblem
from convbackprop.profile.traffic import traffic
from tests.support.mutations import replaced

PLANE = ConvProblem.parse("1,1,24,40,1,3,3,padding=same")


def variant(name):
    (found,) = select(name)
    return found


def numbers(cells):
    """The words of a panel as numbers, -1 where there is none."""
    return np.array([[int(word) if word else -1 for word in row] for row in cells.words])


# -- threads ---------------------------------------------------------------------------------------------------------
def test_the_owner_of_an_output_is_the_thread_that_stores_it(tmp_path):
    (panel,) = explain("threads", variant("forward/naive"), PLANE).cells
    element = np.arange(24 * 40).reshape(24, 40)
    assert (numbers(panel) == element % 32).all()  # a thread an element, in their order
    assert (panel.classes == element // 32).all()
    turned = replaced(
        "forward/naive", "naive.cu", "THREADS + threadIdx.x", "THREADS + (THREADS - 1 - threadIdx.x)", tmp_path
    )
    (panel,) = explain("threads", turned, PLANE).cells
    assert (numbers(panel)[:19] == 31 - element[:19] % 32).all()


def test_a_strip_is_owned_by_one_thread():
    picture = explain("threads", variant("forward/coalesced"), PLANE)
    constants = variant("forward/coalesced").constants("cuda", PLANE)
    row, col = np.indices((24, 40))
    strips = -(-40 // constants["COLS"])
    assert (picture.cells[0].classes == row // constants["ROWS"] * strips + col // constants["COLS"]).all()
    assert f"A thread stores at most {constants['ROWS'] * constants['COLS']} elements" in picture.sentences[0]


def test_of_many_channels_the_sums_of_a_thread_are_found():
    problem = ConvProblem.parse("1,16,14,14,64,3,3,padding=1")
    gemm = variant("forward/implicit_gemm")
    constants = gemm.constants("cuda", problem)
    (panel,) = explain("threads", gemm, problem).cells
    lanes = numbers(panel)
    assert (lanes[:4, :4] == 0).all() and (lanes[4:8, :4] == 1).all() and (lanes[:4, 4:8] == 2).all()
    assert (lanes[8:12, :4] == 16).all()
    assert constants["REG_M"] * constants["REG_N"] == 64
    assert "(the first 24 x 48 of 64 x 196)" in panel.title


# -- loads -----------------------------------------------------------------------------------------------------------
def test_neighbouring_threads_load_neighbouring_inputs_or_not(tmp_path):
    picture = explain("loads", variant("forward/naive"), PLANE)
    assert (
        "naive.cu:37 loads x: 32 lanes ask for 4 bytes each, 128 different ones, which lie in 4 sectors"
        in picture.sentences[0]
    )
    assert "loads w: 32 lanes ask for 4 bytes each, 4 different ones, which lie in 1 sector " in picture.sentences[1]
    memory, plane = picture.cells
    assert len(memory.frames) == 4
    assert sorted(word for word in plane.words.flat if word) == sorted(map(str, range(32)))
    old = "const int q = i % shape.Q;\n    const int p = i / shape.Q % shape.P;"
    new = "const int p = i % shape.P;\n    const int q = i / shape.P % shape.Q;"
    down = replaced("forward/naive", "naive.cu", old, new, tmp_path)
    assert (
        "128 different ones, which lie in 24 sectors of 32 bytes; 4 would hold them"
        in explain("loads", down, PLANE).sentences[0]
    )


def test_the_sectors_are_those_that_profile_counts():
    found = record.record(variant("forward/coalesced"), PLANE)
    (kernel,) = traffic(variant("forward/coalesced"), PLANE)
    line = next(each for each in kernel.lines if each.file.name == "columns.cuh" and each.kind == "load")
    loads = found.of("x", record.LOAD)
    assert len(loads) == line.lanes
    assert len(np.unique(loads["request"])) == line.requests
    sectors = {(r, (address + byte) // 32) for r, address in zip(loads["request"], loads["address"], strict=True)
               for byte in (0, 15)}  # fmt: skip
    assert len(sectors) == line.sectors


# -- tiles -----------------------------------------------------------------------------------------------------------
def test_a_tile_has_its_halo(tmp_path):
    picture = explain("tile", variant("forward/tiled"), PLANE)
    brought, banks = picture.cells
    assert brought.first == (7, -1)  # of the block in the second row of tiles: a row more on each side, and padding
    assert brought.shape == (10, 34)
    assert (brought.classes[:, 0] == NOTHING).all() and (brought.classes[:, 1:] >= 0).all()
    (frame,) = brought.frames
    assert (frame.row, frame.col, frame.rows, frame.cols) == (1, 1, 8, 32)
    assert (numbers(banks)[1:, 1:] == (numbers(banks)[:-1, 1:] + 34) % 32).all()  # a row of the tile is 34 long
    assert "brings 330 elements of x to shared memory for 256 of y" in picture.sentences[0]  # 33 x 10
    assert picture.sentences[1].endswith("of the 32 banks: 1 pass.")
    old = "if (shape.row_inside(h) && shape.col_inside(w_))"
    new = "if (shape.row_inside(h) && shape.col_inside(w_) && (row || col != cols - 1))"
    missing = replaced("forward/tiled", "tiled.cu", old, new, tmp_path)
    (corner, _) = explain("tile", missing, PLANE).cells
    assert (np.argwhere(corner.classes == NOBODY) == [[0, 33]]).all()


@pytest.mark.parametrize(("step", "wanted"), [(1, (32, 1)), (2, (16, 2)), (32, (1, 32)), (33, (32, 1)), (0, (1, 1))])
def test_banks(step, wanted):
    request = np.zeros(32, record._ACCESS)
    request["address"] = 4 * step * np.arange(32)
    assert passes(request) == wanted


# -- rings -----------------------------------------------------------------------------------------------------------
def march(picture):
    """What is asked for, read and stored in each turn."""
    panel = picture.cells[-1]
    return {
        name: [int(word) if word else None for word in row] for name, row in zip(panel.names, panel.words, strict=True)
    }


def test_a_ring_of_rows(tmp_path):
    picture = explain("ring", variant("forward/coalesced"), PLANE)
    assert (
        "marches down 16 rows of y, asks for 17 rows of x, each once, and holds what is in at most 4"
        in picture.sentences[0]
    )
    turns = march(picture)
    assert turns["asks"][:18] == [*range(17), None]
    assert turns["stores"][:18] == [None, None, *range(16)]
    ahead = replaced(
        "forward/coalesced", "coalesced.cu", "if (p < first_p) continue;", "if (p < first_p + 1) continue;", tmp_path
    )
    assert march(explain("ring", ahead, PLANE))["stores"][:4] == [None, None, None, 1]


@pytest.mark.parametrize("stages", [3, 6])
def test_a_ring_in_shared_memory_runs_ahead(stages):
    turns = march(explain("ring", pinned(variant("forward/pipelined"), (("STAGES", stages),)), PLANE))
    lag = turns["reads"].index(0) - turns["asks"].index(0)
    assert lag == stages - 1
    assert turns["reads"][lag:20] == turns["asks"][: 20 - lag]


def test_a_ring_of_what_neighbours_have_formed():
    """g is formed by the lanes that brought dy and y; the lane at the image's left edge brings neither."""
    problem = ConvProblem.parse("1,1,24,40,1,3,3,padding=same,activation=relu")
    turns = march(explain("ring", variant("backward/pipelined"), problem))
    assert turns["asks"] == [*range(22)]


# -- fragments -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FACTORS)
def test_the_layout_is_that_of_the_instruction(dtype, quick):
    """The product of two matrices that are laid out by the table, as the device function computes it."""
    table, rng = layout(dtype), np.random.default_rng(0)
    matrices = {"left": rng.integers(-8, 9, (ROWS, table.k)), "right": rng.integers(-8, 9, (table.k, 8))}
    number = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    words = {
        name: np.array([matrix[place.row, place.col] for place in table.places[name]], number).view(np.uint32)
        for name, matrix in matrices.items()
    }
    sums = np.full(128, np.nan, np.float32)
    problem = ConvProblem.parse("1,1,9,9,1,3,3", dtype=dtype)
    constants = {**constants_of(variant("forward/naive"), problem, "cuda"), "FACTOR": FACTORS[dtype]}
    source = Source.of(Path(__file__).parent / "product.cu", constants)
    kernel = quick.load(source, "product", (1, 1, 1), (32, 1, 1), 0, 3, pack_shape(problem), ())
    kernel.launch([words["left"].ctypes.data, words["right"].ctypes.data, sums.ctypes.data])
    found = np.full((ROWS, 8), np.nan)
    for place, value in zip(table.places["sums"], sums, strict=True):
        found[place.row, place.col] = value
    assert (found == matrices["left"] @ matrices["right"]).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_banded_multiplies_is_a_convolution(dtype):
    """Where the right factor has tap (r,s), the left one has the column that this tap of the output reads."""
    problem = ConvProblem.parse("1,1,24,64,1,5,5,padding=same", dtype=dtype)
    *_, left, right, sums = explain("fragments", variant("forward/banded"), problem).cells
    met = 0
    for row, col in np.ndindex(sums.shape):
        q = int(sums.words[row, col].partition(",")[2])
        for k in range(left.shape[1]):
            word = right.words[k, col]
            if word not in ("", "0") and left.words[row, k]:
                met += 1
                assert int(left.words[row, k]) == q - 2 + int(word.partition(",")[2])
    assert met > 500
    assert {word for word in right.words.flat} - {"0"} == {f"{r},{s}" for r in (0, 1) for s in range(5)}


# -- the layer -------------------------------------------------------------------------------------------------------
def test_padding_leaves_taps_out():
    image, outputs = explain("padding").cells
    row, col = np.indices((6, 8))
    high, wide = 3 - (row == 0) - (row == 5), 3 - (col == 0) - (col == 7)
    assert (numbers(outputs) == high * wide).all()
    assert {word for word in image.words[:3, :3].flat if "," in word} == {"1,1", "1,2", "2,1", "2,2"}


def test_the_input_gradient_turns_the_filter(tmp_path, monkeypatch):
    forward, back = explain("turned-filter").cells
    window = forward.words[2:5, 2:5]
    assert window.tolist() == [[f"{r},{s}" for s in range(3)] for r in range(3)]
    assert (back.words[2:5, 2:5] == window[::-1, ::-1]).all()
    not_turned = replaced("input_grad/naive", "naive.cu", "h + shape.pad_top - r * shape.dilation_h",
                          "h - shape.pad_top + r * shape.dilation_h", tmp_path)  # fmt: skip
    naive = layer.naive
    monkeypatch.setattr(layer, "naive", lambda name: not_turned if name == "input_grad" else naive(name))
    _, wrong = explain("turned-filter").cells
    assert (wrong.words[2:5, 2:5] == window[:, ::-1]).all()


def test_the_chain_rule_in_numbers():
    """The gradients of L = sum of y * dy are its differences, which small whole numbers have exactly."""
    problem = ConvProblem.parse(TOPICS["chain-rule"].problem)
    v = layer.values(problem)

    def loss(x, w, b):
        padded = np.pad(x[0, 0], 1)
        s = np.array([[(padded[p : p + 3, q : q + 3] * w[0, 0]).sum() for q in range(5)] for p in range(4)]) + b
        return (np.maximum(s, 0) * v["dy"][0, 0]).sum()

    at = {name: v[name].astype(float) for name in "xwb"}
    for name in "xwb":
        for index in np.ndindex(at[name].shape):
            nearby = {key: value.copy() for key, value in at.items()}
            nearby[name][index] += 1 / 64  # s is whole, and not 0 where dy is not: no ReLU opens or closes
            if (v["s"] != 0).all() or (v["dy"][v["s"] == 0] == 0).all():
                assert 64 * (loss(**nearby) - loss(**at)) == v["d" + name][index]
    words = dict(zip(("x", "w", "s", "y", "dy", "g", "dx", "dw"), explain("chain-rule").cells, strict=True))
    for name, panel in words.items():
        assert (panel.words.astype(float) == v[name].reshape(panel.shape)).all()


# -- what cannot be drawn --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("topic", "of", "problem", "error", "sentence"),
    [
        ("threads", "forward/naive", "8,1,512,512,1,5,5", InvalidArgument, "a picture needs a smaller one"),
        ("threads", "forward/naive", "0,1,9,9,1,3,3", InvalidArgument, "a picture needs a larger one"),
        ("threads", "forward/coalesced", "1,1,9,9,1,3,3,stride=2", UnsupportedProblem, "forward/coalesced refuses"),
        ("tile", "forward/naive", None, InvalidArgument, "brings nothing of x to shared memory"),
        ("ring", "kernel_grad/naive", None, InvalidArgument, "it has no ring of rows"),
        ("fragments", "forward/naive", None, InvalidArgument, "multiplies no fragments"),
        ("loads", "forward/vectorised", None, InvalidArgument, "is written for a CPU"),
        ("padding", "forward/naive", None, InvalidArgument, "is of the layer, not of a rung"),
        ("padding", None, "1,2,9,9,1,3,3", InvalidArgument, "of one channel, one filter"),
        ("tiles", None, None, InvalidArgument, "topic is 'tiles'"),
    ],
)  # fmt: skip
def test_refusals(topic, of, problem, error, sentence):
    with pytest.raises(error, match=sentence):
        explain(topic, of and variant(of), problem and ConvProblem.parse(problem))


@pytest.mark.slow
@pytest.mark.parametrize("of", VARIANTS, ids=str)
def test_every_rung_is_drawn(of):
    assert "threads" in topics_of(of)
    for topic in topics_of(of):
        picture = explain(topic, of)
        assert picture.sentences and all((cells.classes >= 0).any() for cells in picture.cells)
        assert picture.digest != dataclasses.replace(picture, title="").digest
