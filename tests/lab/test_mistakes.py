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

from convbackprop import check
from convbackprop.check import reference
from convbackprop.check.sanitize import Finding
from convbackprop.lab.mistakes import KINDS, recognise, recognise_code, recognise_finding, recognise_findings
from convbackprop.lab.mistakes.hypothesis import HYPOTHESES
from convbackprop.lab.mistakes.layer import layers_of
from convbackprop.lab.mistakes.recognition import STAGES, inputs
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.ladder.registry import VARIANTS
from convbackprop.problem import RESULTS, ConvProblem
from tests.support.mutations import MUTATIONS
from tests.support.quick import quick_on_cpu
from tests.support.turns import first_of_each

SEEDED = Path(__file__).parents[1] / "seeded" / "mistakes"

#: (pass, number, kind): what the ends of lines of the seeded kernels say; "-" is no mistake that has a name.
MADE = [
    (path.stem, int(number), kind)
    for path in sorted(SEEDED.glob("*.cu"))
    for number, kind in re.findall(r"mistake == (\d+)\b.*//! ([\w-]+)$", path.read_text(), re.MULTILINE)
]

#: What mutations of the ladder's kernels are recognised as.
MUTATED = {
    "forward/naive: the elements that do not fill a block are skipped": "end_not_written",
    "forward/tiled: taps beyond the image are multiplied": "-",  # by what is left in shared memory
    "input_grad/naive: the remainder by the stride down the rows is ignored": "stride_remainder_ignored",
    "input_grad/coalesced: the filter is not turned": "filter_not_turned",
    "backward/fused: the filter is not turned": "filter_not_turned",
    "backward/fused: db adds up another row of g": "bias_grad_of_tap",  # which leaves out the same row
    "backward/fused: the ring's index is off by one": "-",
}

#: Kinds that are told by findings, each beside what sanitize finds.
FOUND = {
    "barrier_not_for_all": [Finding("barrier without all threads", "", "forward")],
    "threads_stuck": [Finding("stopped", "", "forward")],
    "barrier_missing": [
        Finding("uninitialised read", "", "forward", memory="shared"),
        Finding("race", "", "forward", memory="shared", is_write=True, reads=True),
    ],
    "not_atomic": [Finding("race between blocks", "", "kernel_grad", memory="dw", both_write=True, reads=True)],
    "written_twice": [Finding("race", "", "forward", memory="y", is_write=True, both_write=True)],
    "written_out_of_bounds": [Finding("out of bounds", "", "forward", memory="y", is_write=True)],
    "shared_memory_too_small": [Finding("out of bounds", "", "forward", memory="shared", is_write=True)],
    "index_beyond_extent": [Finding("array index", "", "forward")],
    "read_out_of_bounds": [Finding("out of bounds", "", "forward", memory="x")],
    "no_array_there": [Finding("out of bounds", "", "forward")],
    "vector_not_aligned": [Finding("misaligned", "", "forward", memory="x")],
    "input_written": [Finding("write to an input", "", "forward", memory="x", is_write=True)],
    "lanes_missing": [Finding("mask of missing lanes", "", "forward")],
    "not_written_before": [Finding("uninitialised read", "", "forward", memory="shared")],
    "result_not_zeroed": [Finding("uninitialised read", "", "kernel_grad", memory="dw")],
    "partial_sums_missing": [Finding("uninitialised read", "", "kernel_grad", memory="scratch")],
    "order_of_threads": [Finding("wrong result", "y is wrong, where a block's threads start shuffled", "forward")],
}


def with_mistake(pass_name, number):
    """Return a seeded kernel that makes this mistake; 0 is none."""
    variant = variant_from_file(SEEDED / f"{pass_name}.cu")
    (launch,) = variant.launches
    return dataclasses.replace(variant, launches=(dataclasses.replace(launch, integers=lambda p, c: (number,)),))


def kind_of(variant, device, *asked):
    found = recognise(variant, quick_on_cpu(device), *asked)
    return found.kind if found else "-"


# -- kernels ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    # Of each kind one; the other passes are slow tests.
    ("pass_name", "number", "kind"),
    [
        pytest.param(*made, id="-".join(map(str, made)), marks=marks)
        for made, marks in first_of_each(MADE, lambda made: made[2])
    ],
)
def test_a_mistake_is_recognised(device, pass_name, number, kind):
    assert kind_of(with_mistake(pass_name, number), device) == kind


@pytest.mark.parametrize("name", MUTATED)
def test_a_mutation_is_recognised(device, name, tmp_path):
    assert kind_of(MUTATIONS[name].applied(tmp_path), device) == MUTATED[name]


@pytest.mark.parametrize("grid", ["N * K * P * Q / THREADS", "min(9, ceil_div(N * K * P * Q, THREADS))"])
def test_a_grid_that_is_too_small_is_recognised(device, grid, tmp_path):
    text = (SEEDED / "forward.cu").read_text()
    path = tmp_path / "forward.cu"
    path.write_text(text.replace("ceil_div(N * K * P * Q, THREADS)", grid))
    assert kind_of(variant_from_file(path), device) == "end_not_written"


OF_ALL_KINDS = ("forward/coalesced", "forward/implicit_gemm", "kernel_grad/tiled")
RIGHT = [variant for variant in VARIANTS if variant.name == "naive" or str(variant) in OF_ALL_KINDS]


@pytest.mark.parametrize("variant", RIGHT, ids=str)
def test_nothing_is_named_where_a_kernel_is_right(device, variant):
    assert kind_of(variant, device) == "-"


@pytest.mark.slow
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in RIGHT], ids=str)
def test_nothing_is_named_in_any_rung(device, variant):
    if why := variant.refusal(ConvProblem.parse(STAGES[0].problems[1]), device.kind):
        pytest.skip(why)
    assert kind_of(variant, device) == "-"


@pytest.mark.parametrize("pass_name", ["forward", "input_grad", "kernel_grad"])
def test_only_what_is_asked_for_is_tried(device, pass_name):
    assert kind_of(with_mistake(pass_name, 0), device) == "-"
    number = next(number for name, number, kind in MADE if name == pass_name and kind == "stride_ignored")
    assert kind_of(with_mistake(pass_name, number), device, lambda problem: problem.stride == (1, 1)) == "-"


# -- the equations ---------------------------------------------------------------------------------------------------
def results(result, stage):
    """Yield for each problem of a stage a layer's result as it should be, and what the reference says of it."""
    pass_name = {"y": "forward", "dx": "input_grad"}.get(result, "kernel_grad")
    for text in stage.problems:
        problem = ConvProblem.parse(text, bias=True, **stage.changes)
        given = inputs(pass_name, problem, stage.term)
        left = {name: np.zeros(RESULTS[name].shape(problem), bool) for name in RESULTS}
        yield layers_of(pass_name, problem, given, left)[result], reference.answer(pass_name, problem, given)[result][0]


@pytest.mark.parametrize("result", RESULTS)
def test_no_two_kinds_are_one(result):
    """Whatever a kind gives on the problems that show it first, no other kind gives."""
    shown = set()
    for stage in STAGES[:-2]:
        layers, expected = zip(*results(result, stage), strict=True)
        for layer, value in zip(layers, expected, strict=True):
            assert np.allclose(layer.compute(), value, rtol=1e-12, atol=1e-9)
        given = defaultdict(set)
        for kind, hypothesis in HYPOTHESES.items():
            for way, made in enumerate(zip(*map(hypothesis, layers), strict=False)):
                if (kind, way) in shown:
                    continue
                values = [layer.compute() for layer in made]
                differ = [not np.array_equal(*pair) for pair in zip(values, expected, strict=True)]
                if any(differ):
                    shown.add((kind, way))
                    given[b"".join((value + 0.0).tobytes() for value in values)].add(kind)
        assert [kinds for kinds in given.values() if len(kinds) > 1] == []


# -- findings and code -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", FOUND)
def test_a_finding_is_recognised(kind):
    assert recognise_findings(FOUND[kind]) is KINDS[kind]
    assert recognise_finding(FOUND[kind][-1]) is KINDS[kind]
    assert recognise_findings([Finding("wrong result", "y is wrong", "forward")]) is None


def test_atomics_are_seen_in_the_code(quick):
    variant = variant_from_file(SEEDED / "atomics.cu", "kernel_grad")
    problem = ConvProblem.parse("1,1,9,10,1,3,3,padding=1,activation=relu,bias=1")
    assert check.check(variant, problem, quick, "integers").ok
    assert recognise_code(variant).kind == "atomics_in_any_order"
    assert not any(map(recognise_code, VARIANTS))


# -- the catalogue ---------------------------------------------------------------------------------------------------
def table(mistakes):
    """Return a table of mistakes as docs/mistakes.md has it."""
    rows = (f"| `{each.kind}` | {each.title} {each.why} | {each.look_at} |" for each in mistakes)
    return "\n".join(["| kind | what is wrong | what to look at |", "|---|---|---|", *rows])


def test_the_catalogue_is_documented():
    document = Path(__file__).parents[2] / "docs" / "mistakes.md"
    if not document.exists():
        pytest.skip("the tests run outside a checkout")
    text = document.read_text()
    assert table(KINDS[kind] for kind in KINDS if kind in HYPOTHESES) in text
    assert table(KINDS[kind] for kind in KINDS if kind not in HYPOTHESES) in text


def test_every_kind_is_shown():
    made = {kind for _, _, kind in MADE} | set(MUTATED.values()) | set(FOUND) | {"atomics_in_any_order"}
    assert made - {"-"} == set(KINDS)
    assert set(HYPOTHESES) < set(KINDS) and len(KINDS) >= 25
