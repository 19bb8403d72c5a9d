"""docs/guide.md: its commands run, its pictures show what the kernels do, its figures are those of the recorded run."""

from __future__ import annotations

import dataclasses
import re

import pytest

pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed: the guide's pictures")

from convbackprop.cli import explain
from convbackprop.explain.drawing import digest_of
from tools import guide


@pytest.fixture(scope="module")
def page() -> str:
    if not guide.GUIDE.exists():
        pytest.skip("the tests run outside a checkout")
    return guide.GUIDE.read_text()


def test_the_pictures_show_what_the_kernels_do(page):
    found = guide.pictures(page)
    assert len(found) >= 12
    for path, drawn in found.items():
        assert digest_of(path) == guide.shown(drawn), f"{path.name} is out of date: run 'make readme'"
        assert path.stat().st_size <= 100_000
    linked = re.findall(r"!\[[^\]]+\]\(pictures/([^)]+)\)", page)
    assert linked == [path.name for path in found]  # each below its command
    assert {path.name for path in guide.PICTURES.iterdir()} == set(linked)


def test_a_picture_that_no_longer_shows_it_is_seen(page, tmp_path, monkeypatch):
    command = "    convbackprop explain padding -o padding.png\n"
    assert guide.stale(command) == {}
    picture = guide.pictures(command)[guide.PICTURES / "padding.png"][0]
    other = dataclasses.replace(picture, sentences=("Something else.",))
    monkeypatch.setattr(explain, "drawn", lambda arguments: [other])
    ((path, content),) = guide.stale(command).items()
    (tmp_path / "padding.png").write_bytes(content)
    assert path.name == "padding.png"
    assert digest_of(tmp_path / "padding.png") == other.digest != picture.digest


def test_the_other_commands_run(page):
    rest = [each for each in guide.commands(page) if not each.output]
    assert len(rest) >= 8
    assert all(explain.drawn(each) for each in rest)


def test_the_figures_are_of_the_recorded_run(page):
    for name, part in guide.parts().items():
        assert f"<!-- generated: {name} -->\n{part}\n<!-- end -->" in page, "run 'make readme'"
    (run,) = guide.newest()[-1:]
    assert "| 64 to 128 channels" in guide.measured(run, "implicit_gemm")
    assert guide.measured(run, "none") == "No GPU has timed `none`: the recorded run has no row of it."
