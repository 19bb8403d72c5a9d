"""compare, plot and report: what they conclude, draw and write from saved runs, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from convbackprop.bench import plots, report, runs
from convbackprop.bench.comparison import FASTER, FEW, LEAST, MOVED, SAME_SPEED, SLOWER, UNTESTED, compare, summary
from convbackprop.bench.timing import Timing
from convbackprop.cli import main
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from tests.support import saved_runs
from tests.support.commands import documented

needs_scipy = pytest.mark.usefixtures("scipy")
needs_matplotlib = pytest.mark.usefixtures("matplotlib")


@pytest.fixture
def scipy():
    return pytest.importorskip("scipy", reason="scipy, of the extra stats, is not installed: the tests of compare")


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed: pictures")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verdicts(found):
    return [pair.verdict for pair in found.pairs]


# -- comparison ------------------------------------------------------------------------------------------------------
@needs_scipy
@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, SAME_SPEED), (1.02, SAME_SPEED), (1.2, SLOWER), (0.8, FASTER), (3.0, SLOWER)]
)
def test_verdicts(factor, verdict):
    found = compare(saved_runs.run(), saved_runs.run("b", 1, factor))
    assert verdicts(found) == [verdict] * 8 and found.verdict == verdict
    assert found.ratio == pytest.approx(factor, rel=0.02) and not found.notes
    assert all(pair.q >= pair.p for pair in found.pairs)


@needs_scipy
@pytest.mark.parametrize(
    ("factor", "copies", "verdict"),
    [(1.22, 1.2, MOVED), (1.26, 1.08, SLOWER), (1.5, 1.2, SLOWER), (0.8, 1.3, FASTER), (0.8, 0.79, MOVED),
     (1.0, 1.3, SAME_SPEED)],
)  # fmt: skip
def test_a_difference_is_the_machines_where_the_copies_differ_too(factor, copies, verdict):
    a, b = saved_runs.run(), saved_runs.run("b", 1, factor)
    for row in b.rows:
        row.copy = Timing(tuple(copies * seconds for seconds in row.copy.seconds))
    found = compare(a, b)
    assert verdicts(found) == [verdict] * 8 and found.verdict == verdict
    assert ("as the copy: " in " ".join(summary(found, "a", "b", LEAST))) == (verdict == MOVED)


@needs_scipy
def test_a_difference_is_none_below_the_least():
    a, b = saved_runs.run(), saved_runs.run("b", 1, 1.2)
    assert verdicts(compare(a, b, least=0.3)) == [SAME_SPEED] * 8
    assert verdicts(compare(a, saved_runs.run("b", 1, 1.04), least=0)) == [SLOWER] * 8


@needs_scipy
def test_one_row_alone():
    a, b = saved_runs.run(), saved_runs.run("b", 1)
    b.rows[2].ours = Timing(tuple(2 * seconds for seconds in b.rows[2].ours.seconds))
    assert verdicts(compare(a, b)) == [SLOWER if i == 2 else SAME_SPEED for i in range(8)]


@needs_scipy
def test_many_rows_that_do_not_differ():
    """With a test a row at 5 %, one in twenty would be called faster or slower; corrected, hardly any is."""
    sizes = tuple(range(8, 8 + 50))
    a, b = (saved_runs.run(name, seed, sizes=sizes) for name, seed in (("a", 0), ("b", 1)))
    found = compare(a, b, least=0)
    assert len(found.pairs) == 200
    assert sum(pair.p <= 0.05 for pair in found.pairs) > 2 > sum(v != SAME_SPEED for v in verdicts(found))


@needs_scipy
def test_few_repetitions_tell_nothing():
    found = compare(saved_runs.run(count=3), saved_runs.run("b", 1, 2.0, count=20))
    assert verdicts(found) == [FEW] * 8 and all(pair.p is None for pair in found.pairs)
    assert found.verdict == SLOWER  # of the rows there are enough


@needs_scipy
def test_rows_of_one_run_only():
    found = compare(saved_runs.run(sizes=(64, 128)), saved_runs.run("b", sizes=(128, 256)))
    assert [row.label for row in found.only_a] == ["64x64 3x3"] * 4 and len(found.only_b) == 4
    assert [pair.a.label for pair in found.pairs] == ["128x128 3x3"] * 4
    assert found.p is None and found.verdict == UNTESTED  # four rows cannot tell


@needs_scipy
def test_two_photographs_of_one_size():
    """Their problem is the same; their rows are not."""
    a, b = saved_runs.run(sizes=(64, 64)), saved_runs.run("b", 1, sizes=(64, 64))
    for run in (a, b):
        for row in run.rows[4:]:
            row.label = "another"
    b.rows[5].ours = Timing(tuple(3 * seconds for seconds in b.rows[5].ours.seconds))
    assert verdicts(compare(a, b)) == [SLOWER if i == 5 else SAME_SPEED for i in range(8)]


@needs_scipy
def test_notes_on_what_differs():
    a = saved_runs.run()
    notes = compare(a, saved_runs.run("b", machine="another", convbackprop="0.2.0")).notes
    assert "machine a processor and another" in notes[0] and "convbackprop 0.1.0 and 0.2.0" in notes[0]
    assert "they are of another machine, so no ratio here is the code's alone" in notes[1]
    notes = compare(a, saved_runs.run("b", commit="def")).notes
    assert len(notes) == 1 and "commit abc and def" in notes[0]
    b = dataclasses.replace(saved_runs.run("b"), noise={**saved_runs.QUIET, "noisy": True, "spread": 0.4})
    (note,) = compare(a, b).notes
    assert "b was timed on a noisy machine" in note and "spread 40 %" in note


@needs_scipy
def test_notes_on_what_is_not_ours():
    a, b = saved_runs.run(), saved_runs.run("b", 1)
    for row in b.rows:
        row.copy = Timing(tuple(1.5 * seconds for seconds in row.copy.seconds))
        row.peers = {**row.peers, "scipy": Timing(tuple(0.5 * s for s in row.peers["scipy"].seconds))}
    (note,) = compare(a, b).notes
    assert re.search(r"\(a copy of memory 1\.5\d* times, scipy 0\.5\d* times as long", note) and "torch" not in note


def test_compare_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    found = compare(saved_runs.run(), saved_runs.run("b", 1, 2.0))
    assert verdicts(found) == [UNTESTED] * 8 and found.ratio == pytest.approx(2, rel=0.02)
    assert "pip install 'convbackprop[stats]'" in found.notes[0]


@needs_scipy
def test_compare_on_the_command_line(here, capfd):
    for name, seed, factor in (("before", 0, 1.0), ("after", 1, 1.5)):
        runs.save(saved_runs.run(name, seed, factor), runs.path_of(name))
    assert main(["compare", "before", "after"]) == 0
    out, err = capfd.readouterr()
    assert not err and "after is slower" not in out.splitlines()[0]
    assert re.search(r"^forward/naive +64x64 3x3 +\S+ +\S+ +1\.\d+ +<0\.001 +slower", out, re.MULTILINE)
    assert "after is faster in 0 of 8 rows and slower in 8." in out and "Benjamini-Hochberg" in out
    assert main(["compare", "before", "after", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    documented("compare", found)
    assert {row["verdict"] for row in found["rows"]} == {"slower"} and found["overall"]["verdict"] == "slower"
    runs.save(saved_runs.run("other", sizes=(32,)), runs.path_of("other"))
    assert main(["compare", "before", "other"]) == 2
    assert "before and other have no row in common" in capfd.readouterr().err


# -- pictures --------------------------------------------------------------------------------------------------------
@needs_matplotlib
def test_the_ladder_shows_every_row_and_its_floor():
    run = saved_runs.run()
    axes = [ax for ax in plots.ladder(run).axes if ax.has_data()]
    assert [ax.get_title("left").split()[0] for ax in axes] == ["forward", "kernel_grad"]
    for ax in axes:
        rows = [row for row in run.rows if ax.get_title("left").startswith(row.pass_name)]
        expected = [1e3 * row.ours.median for row in rows]
        expected += [1e3 * timing.median for row in rows[::2] for timing in row.peers.values()]  # once a problem
        assert sorted(bar.get_width() for bar in ax.patches) == pytest.approx(sorted(expected))
        floors = [line.get_xdata()[0] for line in ax.lines if line.get_label() == "floor"]
        assert floors == pytest.approx([1e3 * row.floor[0] for row in rows[::2]])
        assert "ms" in ax.get_xlabel() and [tick.get_text() for tick in ax.get_yticklabels()]
    (legend,) = plots.ladder(run).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["naive", "coalesced", "torch", "scipy", "floor"]


@needs_matplotlib
def test_the_roofline():
    run = saved_runs.run()
    (ax,) = plots.roofline(run).axes
    points = {(float(x), float(y)) for line in ax.lines for x, y in [line.get_data()] if len(np.atleast_1d(x)) == 1
              for x, y in [(np.atleast_1d(x)[0], np.atleast_1d(y)[0])]}  # fmt: skip
    for row in run.rows:
        assert any(point == pytest.approx((row.flops / row.least_bytes, row.gflops)) for point in points)
    slope, flat = ax.lines[:2]
    (x0, x1), (y0, y1) = slope.get_data()
    bandwidth = max(row.rate(row.copy) for row in run.rows)
    assert y0 / x0 == pytest.approx(bandwidth) and y1 / x1 == pytest.approx(bandwidth)
    assert list(flat.get_ydata()) == [100, 100]  # GFLOP/s
    for row in run.rows:
        row.peak_flops = None
    drawing = plots.roofline(run)  # memory's roof alone, and a sentence
    assert "its peak rate was not measured" in drawing._supxlabel.get_text()


@needs_matplotlib
def test_time_against_size():
    run = saved_runs.run(sizes=(32, 64, 128))
    ax = plots.sizes(run).axes[0]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    (naive,) = (line for line in ax.lines if line.get_label() == "naive")
    rows = [row for row in run.rows if row.name == "forward/naive"]
    assert list(naive.get_xdata()) == [32**2, 64**2, 128**2]
    assert list(naive.get_ydata()) == pytest.approx([1e3 * row.ours.median for row in rows])
    with pytest.raises(InvalidArgument, match="no two problems that differ in the size of the image alone"):
        plots.sizes(saved_runs.run(sizes=(64,)))


@needs_matplotlib
def test_pictures_of_a_run_without_times():
    run = saved_runs.run()
    for row in run.rows:
        row.ours = None
    for draw in plots.KINDS.values():
        with pytest.raises(InvalidArgument, match="run a has no row that was timed"):
            draw(run)


@needs_matplotlib
def test_plot_on_the_command_line(here, capfd):
    runs.save(saved_runs.run("one", sizes=(64,)), runs.path_of("one"))
    runs.save(saved_runs.run("two"), runs.path_of("two"))
    assert main(["plot", "one", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    documented("plot", found)
    assert found["pictures"] == ["one-ladder.png", "one-roofline.png"] and "size is left out" in found["left_out"][0]
    assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in found["pictures"])
    assert main(["plot", "two", "size", "--output", "new/growth.svg"]) == 0
    first = Path("new/growth.svg").read_bytes()
    assert b"<svg" in first and main(["plot", "two", "size", "--output", "new/growth.svg"]) == 0
    assert Path("new/growth.svg").read_bytes() == first  # the same picture is the same file
    capfd.readouterr()
    assert main(["plot", "two", "ladder", "--only", "nix"]) == 2
    assert "--only is 'nix', which is found in no row of run two" in capfd.readouterr().err
    assert main(["plot", "two", "ladder", "--only", "("]) == 2
    assert "is no regular expression" in capfd.readouterr().err


def test_pictures_without_matplotlib(here, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'convbackprop\[plot\]'"):
        plots.ladder(saved_runs.run())
    runs.save(saved_runs.run("one"), runs.path_of("one"))
    for command in (["plot", "one"], ["report", "one"]):
        assert main(command) == 1
        err = capfd.readouterr().err
        assert "pip install 'convbackprop[plot]'" in err and len(err.splitlines()) == 1
    assert not Path("report.html").exists()


# -- reports ---------------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Gathers the tags of a page, and what they fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href")]


HOSTILE = "<script>alert(1)</script>"


@needs_matplotlib
@needs_scipy
def test_an_html_page_is_one_file(here, capfd):
    for name, seed, factor in (("before", 0, 1.0), ("after", 1, 1.5)):
        run = saved_runs.run(name, seed, factor, sizes=(64,))
        run.environment["machine"] = HOSTILE
        run.rows[0].label += HOSTILE
        runs.save(dataclasses.replace(run, goals=[{
            "function": "conv2d", "peer": HOSTILE, "ours_ms": 1.0, "peer_ms": 3.0, "ratio": 3.0, "goal": 2, "met": True,
        }]), runs.path_of(name))  # fmt: skip
    assert main(["report", "before", "after", "--title", f"a{HOSTILE}"]) == 0
    assert capfd.readouterr().out == "wrote report.html\n"
    text = Path("report.html").read_text()
    page = Page(text)
    assert page.fetched and all(address.startswith("data:image/svg+xml;base64,") for address in page.fetched)
    assert len(page.fetched) == 4 and page.tags.count("h2") == 3 and "script" not in page.tags
    assert "forward/coalesced" in text and "slower in 4" in text and "conv2d" in text
    assert [file.name for file in here.iterdir() if file.is_file()] == ["report.html"]


@needs_matplotlib
def test_a_markdown_page_and_its_pictures(here, capfd):
    run = saved_runs.run("before")
    run.rows[0].label = f"a|b*c {HOSTILE}"
    run.rows[1].ours, run.rows[1].faults, run.rows[1].error = None, ["it is wrong"], math.inf
    runs.save(dataclasses.replace(run, noise={**saved_runs.QUIET, "noisy": True}), runs.path_of("before"))
    command = ["report", "before", "--output", "page/r.md", "--format", "png", "--json"]
    assert main(command) == 0
    found = json.loads(capfd.readouterr().out)
    documented("report", found)
    text = Path("page/r.md").read_text()
    assert sorted(re.findall(r"!\[.*?\]\((.*?)\)", text)) == sorted(Path(file).name for file in found["pictures"])
    assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in found["pictures"])
    assert "| date | 2026-01-02T03:04:05+0000 |" in text and "This machine was noisy" in text
    table = next(part for part in text.split("\n\n") if part.startswith("| pass/variant |"))
    lines = table.splitlines()
    assert len(lines) == 2 + 8
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", lines[0])) for line in lines)
    assert r"a\|b\*c &lt;script&gt;" in table and "WRONG" in lines[3] and "<script" not in text
    assert main(["report", "before", ".convbackprop/runs/before.json"]) == 2
    assert "two runs have the same name" in capfd.readouterr().err


def test_escaping_is_needed():
    """The check above fails where a page takes names as they are."""
    assert "script" in Page(f"<h1>{HOSTILE}</h1>").tags
    assert report._escaped("a|b") == r"a\|b" and report._escaped("\\") == r"\\"
