"""The command `explain`: what it lists, prints, writes and refuses."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from convbackprop.explain import TOPICS, explain
from convbackprop.explain.drawing import digest_of
from convbackprop.ladder.registry import VARIANTS, select


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
    for _ in range(2):
        code, out, err = run("explain", "ring", "backward/fused", "-o", f"pictures/ring.{ending}")
        assert (code, err) == (0, "")
        assert "marches down 24 rows of dx" in out
        file = tmp_path / "pictures" / f"ring.{ending}"
        written = file.read_bytes()
        assert written.startswith(begins)
    assert file.read_bytes() == written
    (fused,) = select("backward/fused")
    assert digest_of(file) == explain("ring", fused).digest


def test_a_file_of_ones_own(run):
    assert run("new", "forward/mine")[0] == 0
    code, out, err = run("explain", "mine.cu")
    assert (code, err) == (0, "")
    assert "forward/mine: which thread owns which elements of y" in out


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
