"""A grade: what it says of a file that is wrong in some way, and what it refuses to look at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convbackprop
from convbackprop.check import Outcome
from convbackprop.check.sanitize import Finding
from convbackprop.cli import grade as command
from convbackprop.errors import InvalidArgument
from convbackprop.lab import exercises, grade_report, grading, progress
from convbackprop.lab.counts import Counts
from convbackprop.lab.grade import Grade, Times
from convbackprop.lab.mistakes import KINDS
from convbackprop.lab.page import page, table
from convbackprop.problem import ConvProblem
from tests.support.commands import documented
from tests.support.quick import QUICK_ENVIRONMENT

TEMPLATE = (Path(convbackprop.__file__).parent / "templates" / "forward.cu").read_text()
KEYS = ["file", "exercise", "pass", "variant", "device", "compiled", "error", "right", "checks", "wrong_checks",
        "clean", "findings", "mistake", "said", "coalescing", "bank_conflicts", "cpu_us", "expected_us", "measured_us",
        "rank", "limit", "tasks"]  # fmt: skip
COUNTS = Counts(coalescing=1.5, bank_conflicts=None, pixels=1.0, loads=2.0, moved=3.0, atomics=0)


def changed(*replacements, text=TEMPLATE):
    for old, new in replacements:
        assert text.count(old) >= 1
        text = text.replace(old, new)
    return text


# -- what is refused -------------------------------------------------------------------------------------------------
REFUSED = {
    "no kernel": ("//@ pass forward\n", "has no CUDA kernel"),
    "nothing": ("", "does not say what it computes"),
    "two passes": (TEMPLATE + "//@ pass kernel_grad\n", "says that the file computes kernel_grad, but mine.cu:8 says"),
    "no such pass": (changed(("pass forward", "pass sideways")), "pass is 'sideways'"),
    "no launch": (re.sub(r"//@ launch.*\n", "", TEMPLATE), "does not say how it is launched"),
    "another signature": (changed(("const Scalar* __restrict__ b,", "")), "which is not what the launch gives it"),
    "host code": (TEMPLATE + "int main() { return 0; }\n", "mine.cu, line 45: main is a function of the host"),
    "not UTF-8": (b"//@ pass forward\n\xff", "mine.cu cannot be read: 'utf-8' codec"),
    "long": (TEMPLATE + " " * grading.MOST_BYTES, "bytes; a hand-in has at most 1,048,576"),
    "another exercise": (TEMPLATE, "mine.cu computes forward; exercise 2 is about input_grad"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_kernel_is_refused(run, what):
    content, sentence = REFUSED[what]
    Path("mine.cu").write_bytes(content if isinstance(content, bytes) else content.encode())
    options = ("--exercise", "2") if what == "another exercise" else ()
    code, out, err = run("grade", "mine.cu", "--device", "cpu", *options)
    assert (code, out) == (2, "") and sentence in err and "Traceback" not in err
    code, out, err = run("grade", "mine.cu", "--device", "cpu", "--json", *options)
    found = json.loads(out)
    assert code == 2 and list(found) == KEYS
    assert not found["compiled"] and sentence in found["error"] and sentence in found["said"] and sentence in err


def test_what_is_no_file_is_refused(run, tmp_path):
    Path("folder.cu").mkdir()
    Path("dangling.cu").symlink_to("nowhere")
    Path("zero.cu").symlink_to("/dev/zero")
    os.mkfifo("fifo.cu")
    for name, sentence in (("folder.cu", "has no hand-in"), ("dangling.cu", "does not exist"), ("mine.txt", "no CUDA"),
                           ("zero.cu", "is no regular file"), ("fifo.cu", "is no regular file")):  # fmt: skip
        code, out, err = run("grade", name, "--device", "cpu")
        assert (code, out) == (2, "") and sentence in err, name
    path = os.fsdecode(b"n\xff.cu")
    Path(path).write_text(TEMPLATE)
    with pytest.raises(InvalidArgument, match="the file's name is not UTF-8"):
        grading.grade(path)


# -- what is wrong ---------------------------------------------------------------------------------------------------
def test_what_does_not_compile(graded, tmp_path):
    path = tmp_path / "mine.cu"
    path.write_text(changed(("activate(sum)", "activat(sum)")))
    found = graded(path)
    assert not found.compiled and not found.done
    assert found.error.startswith("mine.cu:38:") and "activat" in found.error and str(tmp_path) not in found.error
    assert found.said == f"It does not compile: {found.error}"


def test_a_link_to_a_file_is_that_file(graded, tmp_path):
    (tmp_path / "mine.cu").write_text(TEMPLATE)
    (tmp_path / "link.cu").symlink_to("mine.cu")
    found = graded(tmp_path / "link.cu")
    assert found.done and found.exercise.number == 0
    assert found.said == "Nothing is wrong: every result is right, and the sanitizer finds nothing."


def in_a_process(folder, text, longest=2.0):
    (folder / "mine.cu").write_text(text)
    program = (
        f"import sys; from convbackprop.cli import main, grade; grade.LONGEST = {longest}; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "grade", "mine.cu", "--device", "cpu", "--json"],
        cwd=folder, env={**os.environ, **QUICK_ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_crash_is_told_with_its_line(tmp_path):
    done = in_a_process(tmp_path, changed(("y[i] = ", "y[i + (1ll << 40)] = ")))
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["right"] and not found["clean"] and found["checks"] == 0
    assert found["findings"][0]["kind"] == "out of bounds" and found["findings"][0]["line"] == 38
    assert found["said"].startswith("It ended in a crash (Segmentation fault); it reads or writes outside its arrays. ")


def test_a_launch_without_end_is_ended(tmp_path):
    endless = changed(("    Acc sum = ", "    volatile int go = 1;\n    while (go) {}\n    Acc sum = "))
    done = in_a_process(tmp_path, endless, longest=1.0)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["compiled"] and not found["right"]
    assert found["said"] == "It has a launch that did not end within 1 s."


# -- what is said ----------------------------------------------------------------------------------------------------
def a_grade(number=6, **what):
    file = Path("mine.cu").absolute()
    return Grade(str(file), exercises.exercise(number), "cpu", "forward", "forward/mine.cu", compiled=True, **what)


def finding(kind="race", lines=((Path("mine.cu"), 3),)):
    return Finding(kind, "reads total, element 0", "forward", tuple(lines), (), (1, 0, 0), (0, 0, 0))


WRONG = Outcome(
    "forward/mine.cu", ConvProblem.parse("1,1,28,28,1,3,3,padding=same,bias=1"), "normal", 9.0, ["y is wrong"]
)
SAID = [
    ({"error": "mine.cu:1: error: no"}, "It does not compile: mine.cu:1: error: no"),
    ({}, "It computes none of the problems that it is judged by."),
    ({"checks": 4, "sanitized": 1, "crashed": "ended in a crash"}, "It ended in a crash."),
    ({"checks": 4, "wrong": [WRONG]}, "1 of 4 checks are wrong; the first one is of 1,1,28,28,1,3,3,padding=1,bias=1 "
                                      "(the lab's layer on a small image): y is wrong."),
    ({"checks": 4, "wrong": [WRONG], "findings": [finding("out of bounds", ())]},
     "Out of bounds: thread (1, 0, 0) of block (0, 0, 0) reads total, element 0. On a GPU"),
    ({"checks": 4, "wrong": [WRONG], "mistake": KINDS["filter_not_turned"]},
     "The filter is not turned for the input gradient. 1 of 4 checks are wrong; the first one"),
    ({"checks": 4, "sanitized": 1, "counts": COUNTS},
     "It is right, and not yet what the exercise asks: at most 1.25 times the sectors are asked for that the numbers "
     "would fill. It is 1.50 now."),
]  # fmt: skip


@pytest.mark.parametrize(("what", "said"), SAID)
def test_the_first_thing_that_is_wrong_is_said(what, said):
    found = a_grade(**what)
    assert found.said.startswith(said) and not found.done
    assert list(found.as_json()) == KEYS
    documented("grade", found.as_json())
    html = grade_report.html(found)
    assert "<script" not in html and "http" not in html and "src=" not in html
    assert grade_report.verdict(found) in html


def test_atomics_are_told_why_they_are_not_asked_for():
    found = a_grade(3, checks=4, sanitized=1, counts=Counts(1, 1, 1, 1, 1, atomics=7))
    kind = KINDS["atomics_in_any_order"]
    asked = "It is right, and not yet what the exercise asks: nothing is added by atomics."
    assert found.said == f"{asked} {kind.why} Look at {kind.look_at}."
    assert found.mistake is None  # the kernel is right


def test_the_line_is_that_of_the_mistake():
    read, written = (
        Finding(
            "out of bounds", "beyond", "forward", ((Path("mine.cu"), 3 + 6 * is_write),), memory="y", is_write=is_write
        )
        for is_write in (False, True)
    )
    found = a_grade(checks=4, findings=[read, written], mistake=KINDS["written_out_of_bounds"])
    assert found.said.startswith(f"{KINDS['written_out_of_bounds'].title} Line 9: beyond. ")


@pytest.mark.parametrize(("key", "by"), [("measured", "gpu"), ("expected", "expected"), ("cpu", "cpu")])
def test_the_rank_is_by_the_best_time_there_is(key, by):
    own = {
        "measured": {"measured": 2, "expected": 9, "cpu": 9},
        "expected": {"expected": 2, "cpu": 9},
        "cpu": {"cpu": 2},
    }
    times = [Times("slow", 3, 3, 3), Times("fast", 1, 1, 1), Times("equal", 2, 2, 2), Times("unknown"),
             Times("mine", **own[key])]  # fmt: skip
    found = a_grade(checks=1, sanitized=1, times=times)
    assert found.rank == {"by": by, "faster_than": ["slow"], "slower_than": ["fast", "equal"]}
    heads, rows = grade_report.ladder(found)
    assert heads == ["variant", "expected", "on the GPU", "on this CPU"] and len(rows) == len(times)
    assert a_grade().rank is None


def test_no_task_is_done_by_a_wrong_or_an_unclean_file():
    good = {"checks": 4, "sanitized": 1, "counts": Counts(1, 1, 0, 0, 1, 0)}
    for number in range(1, len(exercises.EXERCISES) + 1):
        assert a_grade(number, **good).done
        assert not a_grade(number, **good, wrong=[WRONG]).done
        assert not a_grade(number, **good, findings=[finding()]).done
        assert not any(task.done(a_grade(number)) for task in exercises.exercise(number).tasks)


def test_a_page_escapes_what_it_shows():
    found = a_grade(checks=1, findings=[Finding("race", "<b>&", "forward")])
    assert "<b>" not in grade_report.html(found) and "&lt;b&gt;&amp;" in grade_report.html(found)
    assert "<title>a &lt; b</title>" in page("a < b", "")
    assert table(["a", "<b>"], [["c", "d"], ["e", "f"]], own=-1).count("class=own") == 1


def test_a_report_is_printed_and_written(run, graded, monkeypatch):
    monkeypatch.setattr(command, "grade", lambda path, exercise, device, *_: graded(path, exercise))
    assert run("lab", ".")[0] == 0
    code, out, err = run("grade", "6_coalesced.cu", "--device", "cpu", "--html", "report.html")
    assert code == 1 and not err
    lines = out.splitlines()
    assert lines[0] == "Exercise 6 (coalesced loads): 2 of 3 tasks done."
    assert lines[1].startswith("It is right, and not yet what the exercise asks: at most 1.25 times")
    assert "Rank, by the time on this CPU, which says little of a GPU: " in out and lines[-1] == "wrote report.html"
    kept = json.loads(progress.REMEMBERED.read_text())["6_coalesced.cu"]
    assert (
        not kept["done"]
        and kept["said"] == " ".join(lines[1:3])
        and kept["digest"] == progress.digest_of(Path("6_coalesced.cu"))
    )
    html = Path("report.html").read_text()
    assert lines[0] in html and "Beside the ladder" in html and "http" not in html
    code, out, err = run("grade", "6_coalesced.cu", "--device", "cpu", "--exercise", "9")
    assert (code, out) == (2, "") and "--exercise is 9" in err
