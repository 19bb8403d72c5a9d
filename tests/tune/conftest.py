"""A folder of tuned choices for each test."""

from __future__ import annotations

import pytest

from convbackprop.launch import calls
from convbackprop.tune import table
from convbackprop.tune.table import Entry, digest_of


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """The folder, empty at first."""
    place = tmp_path / "tuned"
    monkeypatch.setenv(table.VARIABLE, str(place))
    table.forget()
    calls.forget()
    yield place
    table.forget()
    calls.forget()


@pytest.fixture
def entry():
    """What makes an entry that counts: of a variant, with tunables, for a problem."""
    from convbackprop.ladder.registry import select
    from convbackprop.problem import ConvProblem

    def made(target, problem, tunables=None, **changes):
        pass_name, _, name = target.partition("/")
        rung = select(target)[0] if name not in (table.UNTUNED, table.SEPARATE) else None
        values = {"us": 10.0, "rule_us": 15.0, "date": "2026-11-28T12:00:00+0000", **changes}
        code = values.pop("code", digest_of(rung) if rung else "")
        return Entry(pass_name, ConvProblem.parse(problem), name, tunables or {}, code=code, **values)

    return made
