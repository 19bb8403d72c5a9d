"""The exercises: each is wrong or slow in one way, and its solution does all that is asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from convbackprop.check.curated import CURATED
from convbackprop.devices.gpus import GPUS
from convbackprop.errors import InvalidArgument
from convbackprop.lab import exercises
from convbackprop.lab.counts import Counts
from convbackprop.lab.exercises import EXERCISES, RIGHT
from convbackprop.lab.grade import Grade
from convbackprop.ladder.registry import select
from convbackprop.problem import ConvProblem
from convbackprop.profile.report import report
from tests.lab.solutions import solved

NUMBERS = [each.number for each in EXERCISES]

#: What is not done of each exercise as it is handed out, the kind of mistake that it has, and what is said of it.
HANDED_OUT = {
    1: ([True, True], "border_not_checked", 'Line 40, "sum += to_acc(x[shape.x_at('),
    2: ([True, False], "filter_not_turned", "elements of dx are wrong"),
    3: (
        [False, True, False],
        "not_atomic",
        'Line 54, "total += sum.value();": thread (0, 0, 0) of block (0, 0, 0) reads',
    ),
    4: ([True, False], "phi_grad_of_pre_activation", "elements of dx are wrong"),
    5: ([True, True, True], "not_written_before", 'Line 56, "sum += x_tile['),
    6: (
        [False, False, True],
        None,
        "It is right, and not yet what the exercise asks: at most 1.25 times the sectors are",
    ),
    7: (
        [False, False, True],
        None,
        "It is right, and not yet what the exercise asks: at most 1.45 times the bytes are",
    ),
    8: ([False, False, True], None, "It is right, and not yet what the exercise asks: at most half a number is loaded"),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_handed_out(number):
    exercise = exercises.exercise(number)
    text = exercise.text()
    assert exercise is EXERCISES[number - 1] is exercises.of_file(exercise.file)
    assert text.startswith(f"// Exercise {number}: {exercise.title}")
    assert all(f"\n// {part}: " in text for part in ("Given", "Change", "Done"))
    assert f"// Done: convbackprop grade {exercise.file}\n" in text
    assert f"//@ pass {exercise.pass_name}\n" in text
    (rung,) = select(exercise.solution)
    (link,) = re.findall(r"(/\S+\.cuh?)\b", text.rpartition("// ")[0].rpartition("}\n")[2] + text.rpartition("// ")[2])
    assert Path(link).is_file() and (number == 4 or Path(link) == rung.path)
    for problem in (exercise.profiled, exercise.timed):
        assert exercise.takes(ConvProblem.parse(problem, bias=True))
    assert sum(exercise.takes(curated.problem()) for curated in CURATED) >= 10


@pytest.mark.parametrize("number", [*NUMBERS[:6], *(pytest.param(n, marks=pytest.mark.slow) for n in NUMBERS[6:])])
def test_as_handed_out_it_is_wrong_or_slow_in_one_way(graded, tmp_path, number):
    path = tmp_path / EXERCISES[number - 1].file
    path.write_text(EXERCISES[number - 1].text())
    found = graded(path)
    lacking, kind, said = HANDED_OUT[number]
    assert [not task.done(found) for task in found.exercise.tasks] == lacking and not found.done
    assert found.compiled and said in found.said
    assert (found.mistake.kind if found.mistake else None) == kind


@pytest.mark.parametrize("number", [pytest.param(n, marks=pytest.mark.slow if n in (5, 7) else ()) for n in NUMBERS])
def test_a_solution_does_all_that_is_asked(graded, tmp_path, number):
    path = tmp_path / "mine.cu"
    path.write_text(solved(number))
    found = graded(path, number)
    assert found.done, found.said
    assert found.said == "All is done: right, clean, and what the exercise asks."
    assert found.counts and found.rank["by"] == "cpu" and found.limit


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_the_rung_does_what_is_asked(number):
    exercise = exercises.exercise(number)
    (rung,) = select(exercise.solution)
    phi = "relu" if rung.pass_name == "forward" else "tanh"
    told = report(rung, ConvProblem.parse(exercise.profiled, bias=True, activation=phi), GPUS[0], 4)
    found = Grade("", exercise, "cpu", checks=1, sanitized=1, counts=Counts.of(told))
    assert found.done, (found.said, found.counts)


def test_an_exercise_that_is_not_there():
    with pytest.raises(InvalidArgument, match="--exercise is 9; it should be between 1 and 8"):
        exercises.exercise(9)
    assert exercises.of_file("mine.cu") is None
    assert exercises.without_exercise("forward").tasks[0] is RIGHT
