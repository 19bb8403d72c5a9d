"""Mistakes are recognised: each kind by a kernel that makes it, and nothing in a right kernel, or in two at once.

The kernels of tests/seeded/mistakes make one of many mistakes, chosen by a number at run time: they are compiled once.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from convbackprop.check import reference
from convbackprop.lab.mistakes import KINDS, recognise
from convbackprop.lab.mistakes.hypothesis import HYPOTHESES
from convbackprop.lab.mistakes.layer import layers_of
from convbackprop.lab.mistakes.recognition import STAGES, inputs
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.ladder.registry import select
from convbackprop.problem import PASSES, RESULTS, ConvProblem
from tests.support.mutations import MUTATIONS
from tests.support.quick import quick_on_cpu

SEEDED = Path(__file__).parents[1] / "seeded" / "mistakes"

#: (pass, number, kind): what the ends of lines of the seeded kernels say; "-" is no mistake that has a name.
MADE = [
    (path.stem, int(number), kind)
    for path in sorted(SEEDED.glob("*.cu"))
    for number, kind in re.findall(r"mistake == (\d+)\b.*//! ([\w-]+)$", path.read_text(), re.MULTILINE)
]


def with_mistake(pass_name, number):
    """Return a seeded kernel that makes this mistake; 0 is none."""
    variant = variant_from_file(SEEDED / f"{pass_name}.cu")
    (launch,) = variant.launches
    return dataclasses.replace(variant, launches=(dataclasses.replace(launch, integers=lambda p, c: (number,)),))


def kind_of(variant, device):
    found = recognise(variant, quick_on_cpu(device))
    return found.kind if found else "-"


@pytest.mark.parametrize(("pass_name", "number", "kind"), MADE, ids=lambda value: str(value))
def test_a_mistake_is_recognised(device, pass_name, number, kind):
    assert kind_of(with_mistake(pass_name, number), device) == kind
