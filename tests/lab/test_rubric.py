"""Points by a rubric."""

from __future__ import annotations

from pathlib import Path

import pytest

from convbackprop.errors import InvalidArgument
from convbackprop.lab.rubric import example, read_rubric

RIGHT = {
    "compiled": True, "right": True, "clean": True, "tasks": [], "coalescing": 1.0, "bank_conflicts": 1.0,
    "rank": {"by": "expected", "faster_than": ["naive", "tiled"], "slower_than": ["coalesced"]},
}  # fmt: skip


def points(rubric, **changes):
    return {criterion.title: criterion.earned({**RIGHT, **changes}) for criterion in rubric.criteria}


def written(text, folder):
    path = folder / "rubric.toml"
    path.write_text(text)
    return path


def test_the_example():
    rubric = read_rubric()
    assert rubric.points == 10
    assert sum(points(rubric).values()) == 10
    assert "10 points in all" in example()


def test_the_page_shows_it():
    page = (Path(__file__).parents[2] / "docs" / "lab_class.md").read_text()
    lines = [line for line in example().splitlines() if line and not line.startswith("#")]
    assert page.partition("```toml\n")[2].partition("```")[0].splitlines() == lines


@pytest.mark.parametrize(
    "changes, lost",
    [
        ({"right": False}, 9),  # compiles
        ({"right": False, "compiled": False}, 10),
        ({"clean": False}, 1),
        ({"coalescing": 1.26}, 1),
        ({"bank_conflicts": 2.0}, 1),
        ({"bank_conflicts": None}, 0),
        ({"coalescing": None, "bank_conflicts": None}, 2),
        ({"rank": None}, 2),
        ({"rank": {"by": "cpu", "faster_than": ["naive"], "slower_than": ["tiled"]}}, 1),
    ],
)
def test_what_costs_points(changes, lost):
    assert 10 - sum(points(read_rubric(), **changes).values()) == lost


def test_a_rubric_of_ones_own(tmp_path):
    text = "right = 2.5\ntasks = 3\n[coalesced]\npoints = 1\nat_most = 4\n[faster_than]\ntiled = 2\n"
    rubric = read_rubric(written(text, tmp_path))
    tasks = [{"task": "a", "done": True}, {"task": "b", "done": False}, {"task": "c", "done": False}]
    assert points(rubric, tasks=tasks, coalescing=3.9) == {"right": 2.5, "tasks": 1, "coalesced": 1, "beats tiled": 2}
    assert rubric.points == 8.5


@pytest.mark.parametrize(
    "text, sentence",
    [
        (
            "right = 4\ncompile = 1",
            ":2 has the criterion 'compile'; it should be one of compiles, right, clean, tasks, ",
        ),
        ("# right\nright = -1", ":2 has right: points = -1; it should be at least 0"),
        ("right = true", ":1 has right: points = True; it should be a number"),
        ("right = 'four'", ":1 has right: points = 'four'; it should be a number"),
        ("right = nan", ":1 has right: points = nan; it should be at least 0"),
        ("right = [4]", ":1 has right: points = \\[4]; it should be a number"),
        ("[clean]\npoints = 1", ":1 has clean: points = {'points': 1}; it should be a number"),
        (
            "coalesced = { points = 1, atmost = 2 }",
            ":1 has the key 'atmost' for coalesced; it should be points or at_m",
        ),
        ("coalesced = { at_most = 2 }", ":1 has no points for coalesced; it should be such as"),
        ("[no_conflicts]\npoints = 1\nat_most = 0.5", ":3 has no_conflicts: at_most = 0.5; it should be at least 1"),
        ("faster_than = 'tiled'", ":1 has faster_than = 'tiled'; it should be points for each variant, such as"),
        ("[faster_than]\nnaive = 1\nfastest = 2", ":3 has faster_than 'fastest'; it should be one of naive, tiled, "),
        ("right = 4\nright = 5", "is no TOML: "),
        ("right : 4", "is no TOML: .*line 1"),
        ("", "gives no points; it should have a line such as"),
        ("right = 0", "gives no points"),
    ],
)
def test_what_is_not_understood(text, sentence, tmp_path):
    with pytest.raises(InvalidArgument, match=f"rubric.toml ?{sentence}"):
        read_rubric(written(text, tmp_path))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_rubric(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xff\n")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_rubric(tmp_path / "latin.toml")
