"""The command `explain`: what it lists, prints, writes and refuses."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from convbackprop.explain import TOPICS, explain
from convbackprop.explain.drawing import digest_of
from convbackprop.ladder.registry import VARIANTS


def test_it_lists_topics_and_rungs(run):
    code, out, err = run("explain")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(TOPICS)
    assert re.search(r"^tile .* tiled *$", out, re.MULTILINE)
    code, out, _ = run("explain", "--json")
    (threads,) = (each for each in json.loads(out)["topics"] if each["topic"] == "threads")
    assert (code, threads["rungs"]) == (0, [str(variant) for variant in VARIANTS])


def test_a_picture_in_the_terminal_is_words_where_there_are_no_colours(run):
    code, out, err = run("explain", "turned-filter")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "2    ·   · 2,2 2,1 2,0   ·   ·" in out


def test_json_has_what_is_drawn(run):
    code, out, _ = run("explain", "forward/tiled", "--json", "--problem", "1,1,9,40,1,3,3,padding=same")
    pictures = json.loads(out)["pictures"]
    assert code == 0
    assert [picture["topic"] for picture in pictures] == ["threads", "loads", "tile"]
    (panel,) = pictures[0]["panels"]
    assert np.shape(panel["classes"]) == np.shape(panel["words"]) == (9, 40)
    assert panel["rows"] == [str(row) for row in range(9)]


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_file_says_what_it_shows(run, tmp_path, ending, begins):
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed: `explain -o`")
    written = []
    for name in ("one", "two"):
        code, out, err = run("explain", "padding", "-o", f"{name}/padding.{ending}")
        assert (code, err) == (0, "")
        assert out.startswith(f"wrote {name}/padding.{ending}\ny is 6 x 8")
        file = tmp_path / name / f"padding.{ending}"
        written.append(file.read_bytes())
        assert written[0].startswith(begins) and digest_of(file) == explain("padding").digest
    assert written[0] == written[1]


def test_a_file_of_ones_own(run):
    assert run("new", "forward/mine")[0] == 0
    code, out, err = run("explain", "mine.cu")
    assert (code, err) == (0, "")
    assert "forward/mine: which thread owns which elements of y" in out


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        ("", 2, "forward/idle.cu stores nothing"),
        ("y[threadIdx.x] = 1;", 2, "forward/idle.cu loads nothing from global memory"),
        ("y[0] = x[1000000000ll];", 1, "it touches memory far from every array"),
        ("y[0] = x[0]", 1, "idle.cu"),
    ],
)
def test_a_file_that_does_not_do_its_part(run, tmp_path, body, code, sentence):
    head = "const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape"
    (tmp_path / "idle.cu").write_text(
        '//@ pass forward\n//@ launch forward(x, w, b, y) grid=[1] block=[32]\n#include "conv2d.cuh"\n'
        f'extern "C" __global__ void forward({head}) {{ {body} }}\n'
    )
    found, _, err = run("explain", "idle.cu")
    assert found == code
    assert sentence in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["til"], "WHAT is 'til'; it should be one of chain-rule"),
        (["tile", "ring"], "it should be a topic, a rung, or one of each"),
        (["forward"], "name one rung of it, such as forward/naive"),
        (["forward/nave"], "variant of forward is 'nave'"),
        (["tile", "-o", "tile.gif"], "--output is tile.gif; its name should end in .png or .svg"),
        (["-o", "tile.png"], "WHAT is missing"),
        (["tile", "--problem", "1,1"], "it should begin with seven integers"),
        (["none.cu"], "none.cu does not exist"),
    ],
)
def test_bad_input(run, words, sentence):
    code, out, err = run("explain", *words)
    assert (code, out) == (2, "")
    assert sentence in err and err.count("\n") == 1


def test_without_matplotlib_a_file_is_refused_and_the_terminal_is_not(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("explain", "padding", "-o", "padding.svg")
    assert code == 1 and "pip install 'convbackprop[plot]'" in err
    assert run("explain", "padding")[0] == 0
