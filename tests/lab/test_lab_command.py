"""The lab's folder: nothing of a student's is lost, and what is done is remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convbackprop.lab import progress
from convbackprop.lab.exercises import EXERCISES
from tests.lab.solutions import solved
from tests.support.commands import documented
from tests.support.quick import QUICK_ENVIRONMENT

NAMES = [each.file for each in EXERCISES]


def test_a_folder_is_filled_and_nothing_in_it_is_lost(run):
    code, out, err = run("lab")
    assert code == 0 and not err and "convbackprop grade lab/1_forward.cu" in out
    assert sorted(path.name for path in Path("lab").iterdir() if path.name != ".convbackprop") == NAMES
    Path("lab/2_input_grad.cu").write_text("mine")
    Path("lab/3_kernel_grad.cu").unlink()
    Path("lab/notes.txt").write_text("notes")
    code, out, err = run("lab", "--json")
    found = json.loads(out)
    documented("lab", found)
    assert code == 0 and found["written"] == ["3_kernel_grad.cu"] and found["kept"] == [n for n in NAMES if n[0] != "3"]
    assert Path("lab/2_input_grad.cu").read_text() == "mine" and Path("lab/notes.txt").read_text() == "notes"
    code, out, err = run("lab", "lab")
    assert code == 0 and "left as they are: 1_forward.cu, 2_input_grad.cu" in out and "wrote" not in out


def test_what_is_no_folder_is_refused(run):
    Path("file").write_text("")
    code, out, err = run("lab", "file")
    assert (code, out) == (2, "") and "file cannot be written" in err
    for command in (("lab", "--next"), ("lab", "--next", "elsewhere")):
        code, out, err = run(*command)
        assert (code, out) == (2, "") and "there is no exercise in" in err


def test_a_grade_is_remembered_by_the_file_s_digest(tmp_path):
    progress.write_exercises(tmp_path)
    asked = []

    def grade(exercise, path):
        asked.append(path.name)
        return exercise.number != 2, f"said of {path.name}"

    def states():
        asked.clear()
        return {each.file: state for each, state in progress.states(tmp_path, grade).items()}

    found = states()
    assert not asked and not any(state.done for state in found.values())  # as they were handed out
    for name in NAMES[:3]:
        (tmp_path / name).write_text(f"// {name}")
    (tmp_path / NAMES[7]).unlink()
    found = states()
    assert asked == NAMES[:3] and found[NAMES[7]] is None
    assert [found[name].done for name in NAMES[:4]] == [True, False, True, False]
    assert found[NAMES[0]].said == f"said of {NAMES[0]}"
    assert states() == found and not asked
    (tmp_path / NAMES[2]).write_text("changed")
    assert states()[NAMES[0]] == found[NAMES[0]] and asked == [NAMES[2]]
    for broken in ("[]", "{", '{"1_forward.cu": 3}', '{"1_forward.cu": {}}', "\x00"):
        (tmp_path / progress.REMEMBERED).write_text(broken)
        assert states()[NAMES[0]] == found[NAMES[0]] and asked == NAMES[:3]


@pytest.mark.parametrize("with_folder", [True, False])
def test_what_is_done_and_what_comes(run, monkeypatch, with_folder):
    for name, value in QUICK_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CONVBACKPROP_NVCC", "/nowhere")
    run("lab")
    grades = {"1_forward.cu": (True, "All is done."), "2_input_grad.cu": (False, "The filter is not turned.")}
    monkeypatch.setattr("convbackprop.cli.lab._grade", lambda each, path: grades[each.file])
    if not with_folder:
        monkeypatch.chdir("lab")
    folder = Path("lab") if with_folder else Path()
    for name in grades:
        (folder / name).write_text(f"// {name}")
    code, out, err = run("lab", "--next", "--json")
    found = json.loads(out)
    documented("lab", found)
    assert code == 1 and [each["done"] for each in found["exercises"]] == [True, *[False] * 7]
    code, out, err = run("lab", "--next")
    assert code == 1 and not err and f"Next is exercise 2 ({EXERCISES[1].title}): {folder / NAMES[1]}" in out
    assert "The filter is not turned." in out
    grades |= {each.file: (True, "") for each in EXERCISES}
    for each in EXERCISES:
        (folder / each.file).write_text("done")
    code, out, err = run("lab", "--next")
    assert code == 0 and "All is done." in out


def test_an_exercise_is_graded_in_a_process_of_its_own(run, monkeypatch):
    for name, value in {**QUICK_ENVIRONMENT, "CONVBACKPROP_NVCC": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    run("lab", ".")
    Path("2_input_grad.cu").write_text(
        solved(2).replace("const int p = p_steps", "const int p = *(volatile int*)0 + p_steps")
    )
    code, out, err = run("lab", "--next", "--json")
    found = {each["file"]: each for each in json.loads(out)["exercises"]}
    assert code == 1 and not err and not found["2_input_grad.cu"]["done"]
    assert found["2_input_grad.cu"]["said"].startswith("It ended in a crash (Segmentation fault)")
    assert found["1_forward.cu"]["said"].startswith("It is as it was handed out")
