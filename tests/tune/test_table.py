"""The files of tuned choices: what is written is read, and what is damaged, stale or of others counts for nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import convbackprop
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.problem import ConvProblem
from convbackprop.tune import table

TITLE = "NVIDIA H200"
ON = "1,1,64,64,1,5,5,padding=2,activation=relu"


def found(text, pass_name="forward", title=TITLE):
    return [(far, entry.variant) for far, entry in table.lookup(title, pass_name, ConvProblem.parse(text))]


def test_what_is_written_is_read(tuned, entry):
    mine = entry("forward/coalesced", ON, {"ROWS": 8, "COLS": 4})
    path = table.update(TITLE, [mine])
    assert path == tuned / "NVIDIA-H200.json" and table.read(path) == (TITLE, [mine])
    (line,) = [line for line in path.read_text().splitlines() if "coalesced" in line]  # an entry a line
    assert json.loads(line)["tunables"] == {"COLS": 4, "ROWS": 8}
    ((far, kept),) = table.lookup(TITLE, "forward", ConvProblem.parse(ON))
    assert far == 0 and kept == mine and kept.times_rule == 1.5
    assert kept.rung.constants("cuda", kept.problem)["ROWS"] == 8
    assert kept.rung is mine.rung and kept.rung.rule.tunables["ROWS"].cuda != 8


def test_a_class_has_one_entry(tuned, entry):
    table.update(TITLE, [entry("forward/coalesced", ON, us=9), entry("input_grad/naive", ON)])
    table.update(TITLE, [entry("forward/naive", ON.replace("64,64", "100,127"), us=8)])  # the same octaves
    assert found(ON) == [(0, "naive")] and found(ON, "input_grad") == [(0, "naive")]
    table.update(TITLE, [], frozenset({"forward"}))
    assert found(ON) == [] and found(ON, "input_grad") == [(0, "naive")]


@pytest.mark.parametrize(
    "other, distance",
    {
        "1,1,64,64,1,5,5,padding=2,activation=relu,bias=1": 0,
        "1,1,127,65,1,5,5,activation=tanh": 0,
        "1,1,128,64,1,5,5,activation=relu": 1,
        "2,1,256,64,1,5,5,activation=relu": 3,
        "2,1,256,128,1,5,5,activation=relu": None,
        "1,1,64,64,1,3,5,activation=relu": None,
        "1,1,64,64,1,5,5,activation=relu,stride=2": None,
        "1,1,64,64,1,5,5,activation=relu,dilation=2": None,
        "1,1,64,64,1,5,5,activation=relu,dtype=float16": None,
        "1,1,64,64,2,5,5,activation=relu": None,
        "1,1,64,64,1,5,5,activation=relu,mask=1": None,
        "1,1,64,64,1,5,5,activation=gelu": None,  # whose derivative is formed from something else
        "1,2,64,64,2,5,5,activation=relu,groups=2": 1,
    }.items(),
)  # fmt: skip
def test_what_is_near(tuned, entry, other, distance):
    table.update(TITLE, [entry("forward/naive", ON)])
    assert found(other) == ([] if distance is None else [(distance, "naive")])


def test_the_nearest_comes_first(tuned, entry):
    table.update(TITLE, [entry("forward/naive", ON), entry("forward/tiled", ON.replace("64,64", "256,64"))])
    assert found(ON.replace("64,64", "129,64")) == [(1, "tiled"), (1, "naive")]
    assert found(ON.replace("64,64", "512,64")) == [(1, "tiled"), (3, "naive")]
    assert found(ON, title="NVIDIA H100") == []


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"version": "0.0.9"}, "it is of version 0.0.9"),
        ({"code": "0123456789abcdef"}, "forward/naive has changed since"),
        ({"tunables": {"THREADS": 7}}, "forward/naive has no THREADS 7"),
        ({"tunables": {"WARPS": 7}}, "forward/naive has no WARPS 7"),
        ({"variant": "fft"}, "there is no forward/fft"),
        ({"variant": table.SEPARATE}, "there is no forward/separate"),
    ],
)
def test_stale_entries_are_ignored_with_one_warning(tuned, entry, changes, reason):
    path = table.update(TITLE, [entry("forward/naive", ON), entry("input_grad/naive", ON)])
    content = json.loads(path.read_text())
    content["entries"][0] |= changes
    path.write_text(json.dumps(content))
    table.forget()
    with pytest.warns(UserWarning, match=f"1 of 2 tuned choices in .* are ignored: {reason}; 'convbackprop tune'"):
        assert found(ON) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(ON) == [] and found(ON, "input_grad") == [(0, "naive")]


DAMAGED = {
    "no JSON": (lambda text: text[:-20], "cannot be read: it is no JSON"),
    "a list": (lambda text: "[]", "is no table of tuned choices"),
    "deep": (lambda text: "[" * 100_000, "cannot be read: it is no JSON"),
    "format": (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2; this version reads 1"),
    "device": (lambda text: text.replace('"NVIDIA H200"', "7"), "does not say of which device it is"),
    "entry": (lambda text: text.replace('{"pass"', '7, {"pass"'), "an entry is 7; it should have pass"),
    "text": (lambda text: text.replace('"naive"', "7"), "variant of an entry is 7; it should be text"),
    "pass": (lambda text: text.replace('"forward"', '"sideways"'), "pass of an entry is 'sideways'"),
    "problem": (lambda text: text.replace("1,1,64", "1,x,64"), "problem is '1,x,64"),
    "time": (lambda text: text.replace("10.0", "-1"), "us of an entry is -1; it should be microseconds"),
    "bool": (lambda text: text.replace("10.0", "true"), "us of an entry is True"),
    "infinite": (lambda text: text.replace("10.0", "1e999"), "us of an entry is inf"),
    "tunables": (lambda text: text.replace('{"THREADS": 64}', '{"THREADS": "64"}'), "they should be integers"),
}


@pytest.mark.parametrize("how, sentence", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_ignored_with_one_warning(tuned, entry, how, sentence):
    """And is kept beside the new one that the next tuning writes."""
    path = table.update(TITLE, [entry("forward/naive", ON, {"THREADS": 64})])
    damaged = how(path.read_text())
    path.write_text(damaged)
    table.forget()
    with pytest.raises(InvalidArgument, match=f"NVIDIA-H200.json .*{sentence}"):
        table.read(path)
    with pytest.warns(UserWarning, match=f"{sentence}.*it is ignored"):
        assert found(ON) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(ON) == []
    with pytest.warns(UserWarning, match=r"it is kept as NVIDIA-H200.damaged"):
        table.update(TITLE, [entry("forward/naive", ON)])
    assert found(ON) == [(0, "naive")] and path.with_suffix(".damaged").read_text() == damaged


def test_off(monkeypatch, entry):
    monkeypatch.setenv(table.VARIABLE, "off")
    assert found(ON) == [] and table.folder() is None
    with pytest.raises(InvalidArgument, match="CONVBACKPROP_TUNED is 'off'; unset it, or name a folder"):
        table.update(TITLE, [entry("forward/naive", ON)])


def test_in_the_user_s_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(table.VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert table.file_of(TITLE) == tmp_path / "convbackprop" / "tuned" / "NVIDIA-H200.json"


def test_a_folder_that_cannot_be_written(tuned, entry):
    tuned.write_text("a file where the folder should be")
    with pytest.raises(EnvironmentProblem, match=r"NVIDIA-H200.json cannot be written now"):
        table.update(TITLE, [entry("forward/naive", ON)])


WRITER = f"""
import sys
from convbackprop.problem import ConvProblem
from convbackprop.tune import table
for size in range(5):
    problem = ConvProblem.parse(f"1,1,{{4 << size}},64,1,{{sys.argv[1]}},5")
    table.update({TITLE!r}, [table.Entry("forward", problem, table.UNTUNED, us=1, rule_us=1)])
    table.read(table.file_of({TITLE!r}))
"""


def test_many_processes_at_once(tuned):
    """Each entry of each is there in the end, and what is read meanwhile is whole."""
    environment = {**os.environ, "PYTHONPATH": str(Path(convbackprop.__file__).parents[1])}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(rows)], env=environment, stderr=subprocess.PIPE)
        for rows in range(1, 5)
    ]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 4
    assert len(table.read(table.file_of(TITLE))[1]) == 4 * 5
