"""tools/expected_page.py: a row is what profile says, and is kept as long as what it follows from is the same."""

from __future__ import annotations

import dataclasses
import json

import pytest

from convbackprop.ladder.registry import select
from convbackprop.problem import ConvProblem
from tests.support.machine_code import needs_cuobjdump, needs_nvcc
from tools import expected_page
from tools.expected_page import Row

(NAIVE,) = select("forward/naive")
PROBLEMS = [ConvProblem.parse(f"1,1,21,45,1,{size},{size},padding=same,activation=relu,bias=1") for size in (3, 5)]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Rows of naive on two problems, as kept, with a row that is no longer wanted."""
    monkeypatch.setattr(expected_page, "KEPT", tmp_path / "expected.json")
    monkeypatch.setattr(expected_page, "wanted", lambda: [(NAIVE, problem) for problem in PROBLEMS])
    rows = {f"{NAIVE} {problem}": Row(expected_page.digest(NAIVE, problem), 7.0) for problem in PROBLEMS}
    others = {"forward/tiled 1,1,21,45,1,3,3": Row("0", 7.0)}
    text = json.dumps({key: dataclasses.asdict(row) for key, row in (rows | others).items()})
    expected_page.KEPT.write_text(text)
    return rows


def test_rows_are_kept_while_code_and_constants_are_the_same(kept, monkeypatch):
    assert expected_page.current() == kept
    for name in ("_code_digest", "model_digest"):
        with monkeypatch.context() as changed:
            changed.setattr(expected_page, name, lambda *of: "other code")
            assert expected_page.current() == {}
    launch, *others = NAIVE.launches
    for name in ("grid", "integers", "shared_bytes"):
        other = dataclasses.replace(NAIVE, launches=(dataclasses.replace(launch, **{name: lambda p, t: 7}), *others))
        assert {expected_page.digest(other, p) for p in PROBLEMS}.isdisjoint(row.digest for row in kept.values())


def test_a_row_whose_digest_has_changed_is_dropped(kept):
    first, second = kept
    changed = {first: dataclasses.asdict(kept[first]), second: {**dataclasses.asdict(kept[second]), "digest": "old"}}
    expected_page.KEPT.write_text(json.dumps(changed))
    assert expected_page.current() == {first: kept[first]}


@needs_nvcc
@needs_cuobjdump
def test_a_row_is_what_profile_says(run, quick_commands):
    """Of a few blocks, all of which are replayed."""
    found = expected_page.row("forward/tiled", str(PROBLEMS[0]))
    code, out, _ = run("profile", "forward/tiled", "--problem", PROBLEMS[0], "--gpu", "H200", "--json")
    (report,) = json.loads(out)["reports"]
    (launch,) = report["launches"]
    assert code == 0 and launch["traffic"]["blocks"] == launch["traffic"]["of_blocks"]

    def ratio(space, asked, fewest):
        lines = [line for line in launch["traffic"]["lines"] if line["space"] == space]
        return round(sum(line[asked] for line in lines) / sum(line[fewest] for line in lines), 2)

    assert found["us"] == pytest.approx(report["expected_us"], rel=1e-3)
    assert (found["registers"], found["spilled"]) == (launch["code"]["registers"], 0)
    assert found["sectors"] == ratio("global", "sectors", "least_sectors")
    assert found["wavefronts"] == ratio("shared", "wavefronts", "least_wavefronts")
    assert found["sectors"] > 1  # of rows that are not aligned
