"""compare on two reports of `make gpu-report`: what is called faster, slower or the machine's."""

from __future__ import annotations

import json

import pytest

from convbackprop.bench import gpu_reports
from convbackprop.bench.comparison import FASTER, MOVED, SAME_SPEED, SLOWER
from tests.support.commands import documented

JOB, HOST = "4096 3x3/float32/forward", "28 3x3/float32/host"
OURS = (JOB, "forward/coalesced")


def times(median, spread=0.02):
    return {"p20": median * (1 - spread), "median": median, "p80": median * (1 + spread), "repetitions": 50}


def row(job, who, median, clock="cold", **more):
    return {"job": job, "who": who, "ours": who != "copy" and "torch" not in who, "cold": None, "host": None,
            clock: times(median), "failed": None, **more}  # fmt: skip


def report(ours=50.0, copy=40.0, torch=200.0, call=18.0, met=False, dry=False, **environment):
    rows = [row(*OURS, ours), row(JOB, "copy", copy), row(JOB, "torch", torch)]
    rows.append(row(HOST, "conv2d, out given", call, "host", part="host"))
    data = {"device": "NVIDIA H200", "commit": "c0ffee", **environment}
    return {"dry_run": dry, "steps": [{"name": "environment", "data": data}], "ceilings": {}, "rows": rows,
            "goals": [{"what": "forward 3x3", "met": met}]}  # fmt: skip


@pytest.fixture
def moved(tmp_path):
    def moved(a, b, **options):
        both = []
        for name, found in (("a", a), ("b", b)):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(found))
            both.append(gpu_reports.read(str(path)))
        return gpu_reports.compare(*both, **options)

    return moved


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ({}, {}, SAME_SPEED),
        ({}, {"ours": 52.0}, SAME_SPEED),  # 4 %
        ({}, {"ours": 40.0}, FASTER),
        ({}, {"ours": 60.0}, SLOWER),
        ({}, {"ours": 60.0, "copy": 48.0}, MOVED),  # the copy as well
        ({}, {"ours": 90.0, "copy": 48.0}, SLOWER),  # but not by as much
    ],
)
def test_verdicts(moved, before, after, verdict):
    found = moved(report(**before), report(**after))
    assert [each.verdict for each in found.rows] == [verdict, SAME_SPEED]
    assert [each.part for each in found.rows] == ["rows", "host"]  # older reports have no parts


def test_ranges_that_meet(moved):
    noisy = report(ours=60.0)
    noisy["rows"][0]["cold"] = times(60.0, spread=0.2)  # 48 to 72
    assert moved(report(), noisy).rows[0].verdict == SAME_SPEED
    assert moved(report(), report(ours=52.0), least=0.01).rows[0].verdict == SAME_SPEED  # 51 meets 51
    assert moved(report(), report(ours=53.0), least=0.01).rows[0].verdict == SLOWER


def test_what_is_noted(moved):
    found = moved(report(), report(torch=300.0, met=True, commit="beef", dry=True))
    assert found.goals == [("forward 3x3", False, True)]
    dry, differ, witnesses = found.notes
    assert "b is of a dry run" in dry and "commit c0ffee and beef" in differ and "torch 1.50 times" in witnesses


def test_rows_of_one_alone(moved):
    failed = report()
    failed["rows"][0] |= {"cold": None, "failed": "no answer"}
    found = moved(failed, report())
    assert (found.only_a, found.only_b) == ([], [OURS]) and len(found.rows) == 1


# -- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, found in (("first", report()), ("second", report(ours=40.0, met=True))):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    return "first.json", "second.json"


def test_compare(run, files):
    code, out, err = run("compare", *files)
    assert code == 0 and not err
    (line,) = (line.split() for line in out.splitlines() if "forward/coalesced" in line)
    assert line[-4:] == ["50.0", "40.0", "0.800", "faster"] and "conv2d, out given" not in out
    assert "second is faster in 1 of 2 rows and slower in 0" in out
    assert "Goal forward 3x3: missed in first, met in second." in out
    found = json.loads(run("compare", *files, "--json")[1])
    documented("compare", found)
    assert [each["verdict"] for each in found["rows"]] == [FASTER, SAME_SPEED]


def test_mistakes(run, files, tmp_path):
    assert "first.json is a GPU report and before is none" in run("compare", "first.json", "before")[2]
    assert "first.json is a GPU report and before is none" in run("compare", "before", "first.json")[2]
    (tmp_path / "second.json").write_text(json.dumps(report() | {"goals": [3]}))
    assert "second.json is a damaged GPU report: TypeError" in run("compare", *files)[2]
    (tmp_path / "second.json").write_text(json.dumps(report() | {"rows": []}))
    assert "have no row in common" in run("compare", *files)[2]
