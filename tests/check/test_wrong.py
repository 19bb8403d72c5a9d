"""Kernels that are wrong on purpose: the curated problems must reject every one of them.

They are the mutations of mutations.py, and a file of one's own that the documents show.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from convbackprop import check
from convbackprop.activations import COMMON
from convbackprop.check.curated import CURATED
from convbackprop.devices.gpus import GPUS, Target
from convbackprop.errors import LaunchFailed
from convbackprop.fuzz.problems import is_product
from convbackprop.ladder.own_file import variant_from_file
from convbackprop.ladder.registry import select
from convbackprop.problem import ConvProblem
from tests.support.mutations import MUTATIONS, NAIVE, copied
from tests.support.quick import quick_on_cpu
from tests.support.turns import every_other, first_of_each

#: The dtypes and activations on which `convbackprop check` and test_variants.py run every problem, or some of them.
CHANGES = ({}, {"activation": "relu"}, {"activation": "tanh"}, {"dtype": "float16"})

MASKED = {"activation": "relu", "mask": True}

#: What a mutation is tried on first, by what shows it; then on all else.
FIRST = {
    "tanh": {"activation": "tanh"}, "identity": {}, "mask": MASKED, "nonfinite": {},
    "pairs": {"activation": "relu", "dtype": "float16"},
}  # fmt: skip

#: How the naive kernels are launched, where one is a file of one's own.
LAUNCHES = {
    "forward": """\
//@ constant THREADS = 128
//@ launch forward(x, w, scale, b, residual, y) grid=[ceil_div(N * K * P * Q, THREADS)] block=[THREADS]
//@ launch pack_mask(y, mask) grid=[ceil_div(N * K * P * ((Q + 7) / 8), THREADS)] block=[THREADS]
""",
    "input_grad": """\
//@ constant THREADS = 128
//@ launch input_grad(dy, saved, w, scale, b, dx) grid=[ceil_div(N * C * H * W, THREADS)] block=[THREADS]
""",
    "kernel_grad": """\
//@ constant THREADS = 128
//@ let taps = K * (C / groups) * R * S + K
//@ let slices = min(N * P, 65535)
//@ partial = slices * taps
//@ launch kernel_grad(dy, saved, x, partial) grid=[ceil_div(taps, THREADS), slices] block=[THREADS]
//@ constant SLICE_GROUPS = 4
//@ constant TAPS_EACH = 1
//@ launch kernel_grad_total(partial, dw, db; slices) grid=[ceil_div(taps, 32)] block=[32, SLICE_GROUPS]
""",
}


def rejections(variant, device, changes):
    """Yield the curated problems on which a check finds a fault, with the fault."""
    for entry in CURATED:
        for change in changes:
            problem = entry.problem(**change)
            if (problem.transposed or problem.scale or problem.residual) and variant.refusal(problem):
                continue
            outcome = check.check(variant, problem, device, entry.data)
            if outcome.faults:
                yield entry, outcome.faults[0]


@pytest.mark.parametrize("name", every_other(NAIVE))
def test_rejected(device, name, tmp_path):
    variant = MUTATIONS[name].applied(tmp_path)
    found = (next(rejections(variant, quick_on_cpu(device), [change]), None) for change in CHANGES)
    assert any(found), "the curated problems accept it"


@pytest.mark.parametrize("activation", COMMON)
def test_a_nan_that_is_written_over_a_guard_shows(device, activation, tmp_path):
    """What is read beyond x is NaN, and so is what stands beyond y: but another one."""
    variant = MUTATIONS["forward/naive: one element past the output is written"].applied(tmp_path)
    problem = ConvProblem.parse("1,1,20,20,1,3,3,padding=1", activation=activation)
    assert check.check(variant, problem, quick_on_cpu(device)).faults == ["memory next to y was written"]


def test_a_wrong_file_is_rejected(device):
    """It is shown in README.md."""
    path = Path(__file__).parents[1] / "wrong" / "forward_border_off_by_one.cu"
    assert path.read_text().startswith("// WRONG: "), "the first line should tell what is wrong"
    variant = variant_from_file(path, "forward")
    assert any(next(rejections(variant, quick_on_cpu(device), [change]), None) for change in CHANGES)


@pytest.mark.parametrize(
    "pass_name", [pytest.param(p, marks=pytest.mark.slow if p == "kernel_grad" else ()) for p in LAUNCHES]
)
def test_right_kernel_is_accepted(device, pass_name, tmp_path):
    """The same way of copying, loading and checking accepts the kernel that the wrong ones were made from."""
    path = copied(f"{pass_name}/naive", tmp_path).path
    path.write_text(LAUNCHES[pass_name] + path.read_text())
    variant = variant_from_file(path, pass_name)
    changes = (*CHANGES, MASKED)
    if pass_name == "forward":
        changes = changes[-1:]  # its mask is written in any case
    assert list(rejections(variant, quick_on_cpu(device), changes)) == []


def test_running_sum_is_rejected_by_constant_data_only(device, tmp_path):
    """On normal data the round-offs of a float32 running sum cancel well enough to pass; on equal terms they add up."""
    variant = MUTATIONS["kernel_grad/naive: one running sum over all pixels of all images"].applied(tmp_path)
    found = rejections(variant, quick_on_cpu(device), CHANGES[:1])
    assert {entry.data for entry, _ in found} == {"constant"}


# -- mutations of the rungs above ------------------------------------------------------------------------------------
#: A variant that is compiled anew for each problem is tried on these two only, where no other shows its mistake.
REVEALING = ("2,1,33,65,1,5,5,padding=same", "2,5,9,8,5,3,3,groups=5,padding=1")


#: A matrix product takes long to compile for each of its tiles: most mistakes show on one of these, so they come first.
REVEALING_GEMM = (
    "2,130,7,7,10,3,3,groups=2,padding=1", "1,33,13,13,66,3,3,stride=2,padding=1", "1,64,5,6,128,3,3,padding=1",
)  # fmt: skip


def tried(variant, shown_by=()):
    """Return the problems that a copied variant is tried on, those first that show most."""
    texts = shown_by or (REVEALING if variant.specialised else ())
    entries = [entry for entry in CURATED if not texts or entry.text in texts]
    if is_product(variant):
        entries.sort(key=lambda entry: entry.text not in REVEALING_GEMM)
    return entries


def is_rejected(variant, device, entries, changes, is_nonfinite=False, multiprocessors=GPUS[0].sms):
    """Return whether some problem finds a fault, or cannot be launched."""
    seeds = range(4) if is_nonfinite else (0,)  # they decide where a NaN or an infinity stands
    # In the order that compiles least until the mistake shows.
    order = list(product(changes, sorted(variant.runs_on), entries))
    if variant.specialised:
        order.sort(key=lambda each: entries.index(each[2]))
    for change, tunables, entry in order:
        problem = entry.problem(**change)
        if variant.refusal(problem):
            continue
        data = "nonfinite" if is_nonfinite else entry.data
        try:
            target = Target(tunables, multiprocessors)
            if any(check.check(variant, problem, device, data, seed, target).faults for seed in seeds):
                return True
        except LaunchFailed:
            return True
    return False


def mutations():
    """Yield the names of the mutations of the rungs above naive; but for one of each technique as slow tests."""
    tried_of = Counter()
    for name in (name for name in MUTATIONS if name not in NAIVE):
        technique = MUTATIONS[name].variant.partition("/")[2]
        tried_of[technique] += 1
        yield pytest.param(name, marks=() if tried_of[technique] == 1 else pytest.mark.slow)


def test_every_mutation_finds_its_text(tmp_path):
    """Also those that are tried in the slow tests only."""
    for i, mutation in enumerate(MUTATIONS.values()):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert mutation.applied(folder).path.is_file()


@pytest.mark.parametrize("name", list(mutations()))
def test_mutation_is_rejected(quick, name, tmp_path):
    """On the cpu device: there the threads of a block take turns, so that a missing barrier shows in every run."""
    mutation = MUTATIONS[name]
    variant = mutation.applied(tmp_path)
    entries = tried(variant, mutation.shown_by)
    changes = (FIRST[mutation.shown_in], MASKED, *CHANGES)
    assert is_rejected(variant, quick, entries, changes, mutation.shown_in == "nonfinite", mutation.multiprocessors), (
        "the curated problems accept it"
    )


def copies():
    """Yield the names of the variants that are mutated; but for one of each technique, no product, as slow tests."""
    names = sorted({mutation.variant for mutation in MUTATIONS.values()})
    for name, marks in first_of_each(names, lambda name: name.partition("/")[2]):
        yield pytest.param(name, marks=pytest.mark.slow if is_product(select(name)[0]) else marks)


@pytest.mark.parametrize("name", list(copies()))
def test_copy_is_accepted(quick, name, tmp_path):
    """The same way of copying and checking accepts the variant as it is."""
    variant = copied(name, tmp_path)
    texts = REVEALING_GEMM if is_product(variant) else REVEALING
    shown_by = next((text,) for text in texts if variant.refusal(ConvProblem.parse(text, **MASKED)) is None)
    kinds = {mutation.shown_in == "nonfinite" for mutation in MUTATIONS.values() if mutation.variant == name}
    assert not any(is_rejected(variant, quick, tried(variant, shown_by), [MASKED], kind) for kind in kinds)
