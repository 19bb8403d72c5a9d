"""docs/reliability.md tells the truth: its tests exist, and its counts are those that were recorded."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.support.mutations import MUTATIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"


@pytest.fixture
def text():
    if not PAGE.exists():
        pytest.skip("the tests run outside a checkout")
    return PAGE.read_text()


def test_its_tests_exist(text):
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 20
    files = {file.name: file for file in (ROOT / "tests").rglob("test_*.py")}
    for file, function in named:
        assert f"def {function or 'test_'}" in files[file].read_text(), (file, function)
    wrong = re.findall(r"`(\w+/\w+: [^`]+)`", text)
    assert len(wrong) >= 3 and set(wrong) <= set(MUTATIONS)


def test_its_counts_are_current(text):
    tool = runpy.run_path(str(ROOT / "tools" / "reliability.py"))
    counts = json.loads((ROOT / "docs" / "data" / "reliability.json").read_text())
    assert tool["page"](counts) == text, "run 'python tools/reliability.py'"
    assert counts["faults"]["injected"] == counts["faults"]["survived"] > 500
    assert counts["storm"]["wrong"] == 0


def test_every_record_has_a_title():
    titles = runpy.run_path(str(ROOT / "tools" / "reliability.py"))["TITLES"]
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for name in re.findall(r"(?<![.\w])record\(f?\"(\w+)", file.read_text()):
            assert any(title.startswith(name) for title in titles), f"{name} of {file.name}"
