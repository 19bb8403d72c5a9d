"""What the lab's tests share: grades that take a second, whatever compilers a machine has."""

from __future__ import annotations

import dataclasses

import pytest

from convbackprop.check.curated import CURATED
from convbackprop.errors import CompilerNotFound
from convbackprop.lab import exercises, grading
from tests.support.quick import quick_cpu


def _smaller(problem):
    return "1,1,128,128,1,5,5,padding=same" if problem.startswith("1,1") else "1,16,28,28,16,3,3,padding=1"


@pytest.fixture
def graded(monkeypatch):
    """Grade a file as quickly as that is possible: quick compilations, few and small problems, one block, no nvcc."""

    def no_nvcc():
        raise CompilerNotFound("nvcc is left out of this test")

    monkeypatch.setattr("convbackprop.profile.report.find_nvcc", no_nvcc)
    monkeypatch.setattr("convbackprop.devices.cpu.cpu_device", quick_cpu)
    small = [
        dataclasses.replace(each, profiled=_smaller(each.profiled), timed=_smaller(each.timed))
        for each in exercises.EXERCISES
    ]
    few = tuple(each for each in CURATED if grading._size(each.problem()) < 120_000)
    monkeypatch.setattr(exercises, "EXERCISES", tuple(small))
    monkeypatch.setattr(grading, "CURATED", few)
    monkeypatch.setattr(grading, "_SANITIZED", 3)
    monkeypatch.setattr(grading, "_BLOCKS", 1)
    monkeypatch.setattr(grading, "_SECONDS", 0)
    monkeypatch.setattr(grading, "_RUNGS", ("naive",))

    kinds = grading._KINDS

    def grade(path, exercise=None, **options):
        about_activations = exercise == 4 or path.name.startswith("4")
        monkeypatch.setattr(grading, "_KINDS", kinds[: 2 if about_activations else 1])
        return grading.grade(path, exercise, quick_cpu(), **options)

    return grade
