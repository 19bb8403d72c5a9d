"""Every variant in the registry, on every problem, against the float64 reference.

A variant whose compile-time constants follow from the problem is compiled for a few sets of them only (and, in the slow
tests, for many more): see check.within_budget.
"""

from __future__ import annotations

import dataclasses
import functools
from itertools import product

import numpy as np
import pytest

from convbackprop import check, devices
from convbackprop.check import reference
from convbackprop.check.curated import CURATED
from convbackprop.devices.cpu import CpuDevice, set_num_threads
from convbackprop.fuzz import laws
from convbackprop.ladder.launches import TOTAL
from convbackprop.ladder.registry import VARIANTS, of_pass, why_not
from convbackprop.ladder.variant import ALIGNED, Alignment, Variant
from convbackprop.launch.plan import constants_of
from convbackprop.problem import ACCUMULATORS, DTYPES, PASSES, ConvProblem
from tests.conftest import compile_ahead
from tests.support.levels import FOLLOW_THE_LEVEL, OTHER_LEVELS, cpu_at
from tests.support.problems import (
    ACTIVATION_KINDS,
    BUDGET,
    EACH_KIND_ONCE,
    EVERY_KIND,
    EVERYTHING,
    PROBLEMS,
    chosen,
    is_costly,
    is_long,
    kind_of,
    kinds_once,
)
from tests.support.quick import QUICK, quick_on_cpu
from tests.support.turns import has_turn, in_turn

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)

#: Those that filters of any size are launched with; of the others test_winograd.py has the same.
ANY_FILTER = [v for v in VARIANTS if not v.transforms]


def computes(variant, dtype):
    """Return whether a variant takes a dtype at all."""
    return any(variant.refusal(entry.problem(dtype=dtype)) is None for entry in PROBLEMS)


def with_kinds(kinds=EVERY_KIND, costly=None, variants=VARIANTS, quick=EVERY_KIND):
    """Parametrise over variants and kinds; a variant that is checked on few problems meets all of them in one test.

    Slow tests: of the others all kinds but the quick ones, and of tiled but EACH_KIND_ONCE, for naive has them all.
    """

    def is_slow(variant, some):
        brief = EACH_KIND_ONCE if variant.name == "tiled" and quick is EVERY_KIND else quick
        return not is_costly(variant) and some[0] not in brief

    return pytest.mark.parametrize(
        ("variant", "kinds"),
        [
            pytest.param(
                variant,
                some,
                id=f"{variant}-{'-'.join(map(str, some[0])) if len(some) == 1 else 'kinds'}",
                marks=pytest.mark.slow if is_slow(variant, some) else (),
            )
            for variant in variants
            for some in ([costly or kinds] if is_costly(variant) else [(kind,) for kind in kinds])
        ],
    )


def with_dtypes(law, variants, dtypes=DTYPES, costly=("float32",)):
    """Parametrise over variants and dtypes; of what is costly, other dtypes than these are slow tests, too."""
    return pytest.mark.parametrize(
        ("variant", "dtype"),
        [
            pytest.param(
                variant,
                dtype,
                id=f"{variant}-{dtype}",
                marks=pytest.mark.slow
                if not has_turn(variant, law) or (is_costly(variant) and dtype not in costly)
                else (),
            )
            for variant, dtype in product(variants, dtypes)
            if computes(variant, dtype)
        ],
    )


@pytest.fixture(scope="module", autouse=True)
def _compiled(request):
    wanted = ((variant, problem) for variant in VARIANTS for problem in chosen(variant, "cpu"))
    compile_ahead(request, wanted, devices.get_device("cpu"))


@functools.lru_cache(maxsize=512)
def data_of(pass_name, problem, data):
    """Return the inputs of a pass and the reference's answer, which its variants share."""
    given = check.inputs(pass_name, problem, data)
    for array in given.values():
        array.flags.writeable = False
    return given, reference.answer(pass_name, problem, given)


def is_tried(device, tunables):
    """Return whether a GPU's constants are tried on the CPU, where nobody has them."""
    return tunables == "cuda" and device.kind == "cpu"


def on(device, tunables, variant, kind=EACH_KIND_ONCE[0]):
    """Return where to run: what machine code a CPU makes of a GPU's rung, or of its constants, matters to nobody.

    The CPU's own rungs take seconds to compile: as users compile them they are tried in one kind.
    """
    takes_long = is_costly(variant) and kind != EACH_KIND_ONCE[0]
    return quick_on_cpu(device) if is_tried(device, tunables) or "cpu" not in variant.auto_on or takes_long else device


def faults_of(variant, device, problems, kinds, tunables=None, among=None):
    """Check a variant on those of the problems that are chosen for it; return what is wrong, with the problem."""
    if among is None:
        among = chosen(variant, tunables or device.kind, briefly=is_tried(device, tunables))
    found, computed = [], 0
    for (dtype, activation, mask), entry in product(kinds, problems):
        problem = entry.problem(dtype=dtype, activation=activation, mask=mask)
        if problem not in among:
            continue
        given, expected = data_of(variant.pass_name, problem, entry.data)
        where = on(device, tunables, variant, (dtype, activation, mask))
        outcome = check.check(variant, problem, where, entry.data, tunables=tunables, given=given, expected=expected)
        found += [f"{problem} ({entry.reason}): {fault}" for fault in outcome.faults]
        computed += 1
    assert computed, "no problem was computed"
    return found


@with_kinds()
def test_every_problem(device, variant, kinds):
    assert faults_of(variant, device, PROBLEMS, kinds) == []


@pytest.mark.slow
@with_kinds()
def test_every_problem_in_every_kind(cpu, variant, kinds):
    """And three times the constants, of a variant that is compiled anew for other sizes."""
    among = check.within_budget(variant, EVERYTHING, "cpu", 3 * BUDGET)
    assert faults_of(variant, cpu, PROBLEMS, kinds, "cpu", among) == []


def half_of_them(first):
    """Parametrise over shares of the problems: every other one; all are slow tests, but of what meets few anyway."""
    every = pytest.param(slice(None), marks=pytest.mark.slow)
    return pytest.mark.parametrize("share", [slice(first, None, 2), every], ids=("half", "all"))


EXACT = [kind for kind in EVERY_KIND if kind[1] in ("relu", "identity")]


@with_kinds([kind for kind in EXACT if kind[1] == "relu"], costly=EXACT)
@half_of_them(0)
def test_integers_are_exact(device, variant, kinds, share):
    some = PROBLEMS if is_costly(variant) else PROBLEMS[share]
    integers = [dataclasses.replace(entry, data="integers") for entry in some]
    assert faults_of(variant, device, integers, kinds) == []


@with_kinds(EACH_KIND_ONCE, costly=EVERY_KIND)
@half_of_them(1)
def test_padding_is_no_pixel(device, variant, kinds, share):
    """A NaN or an infinity in any operand spreads to what it meets, and to nothing by way of the padding."""
    some = PROBLEMS if is_costly(variant) else PROBLEMS[share]
    nonfinite = [dataclasses.replace(entry, data="nonfinite") for entry in some]
    assert faults_of(variant, device, nonfinite, kinds) == []


@with_kinds(
    EACH_KIND_ONCE,
    quick=EACH_KIND_ONCE[:1],
    costly=EVERY_KIND,
    variants=[
        v
        for v in VARIANTS
        if "cuda" in v.runs_on
        and v.name != "tensor_core"  # which has the same on a CPU
        and any(t.cuda != t.cpu for t in v.tunables.values())
    ],
)
def test_tunables_of_a_gpu(cpu, variant, kinds):
    assert faults_of(variant, cpu, PROBLEMS, kinds, "cuda") == []


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.slow)])
def test_every_variant_meets_every_kind(device):
    """In the problems chosen above: each dtype, each activation, the mask, and both in some combination."""
    for variant in VARIANTS:
        among = chosen(variant, device)
        kinds = {kind_of(problem) for problem in among}
        taken = {kind_of(problem) for problem in EVERYTHING if variant.refusal(problem) is None}
        for i in range(3):
            assert {kind[i] for kind in taken} == {kind[i] for kind in kinds}, variant
        if not variant.specialised:
            tried = chosen(variant, device, briefly=True)
            assert {kind_of(problem) for problem in tried} == set(kinds_once(variant)), variant
        if not is_costly(variant):
            assert kinds == taken, variant
            computed = {str(entry.text) for entry in PROBLEMS if variant.refusal(entry.problem()) is None}
            met = [
                {entry.text for entry in PROBLEMS if entry.problem(activation=activation, mask=mask) in among}
                for activation, mask in ACTIVATION_KINDS
            ]
            assert computed in met, variant  # all of one kind
            of_each = {dtype: {p for p in among if p.dtype == dtype} for dtype in DTYPES}
            for entry in PROBLEMS:
                for dtype, some in of_each.items():
                    as_is = entry.problem(dtype=dtype)
                    # What is transposed has no mask, and so no kind that all problems meet. A scale and a residual are
                    # constants of their own, and met in some kind (above), in each dtype in test_epilogue.py.
                    if as_is.transposed or as_is.scale or as_is.residual:
                        continue
                    is_met = any(p.with_(activation="identity", mask=False) == as_is for p in some)
                    assert is_met or is_long(variant, as_is) or variant.refusal(as_is), (variant, entry.text, dtype)


def legal_values():
    """Yield (variant, tunable, value).

    Slow tests: values between the extremes, and of what is costly all below the largest, and four of five tunables;
    those of kernel_grad_total.cuh, which naive and tiled meet; and those of filter_product.cuh that forward meets.
    """
    for variant in VARIANTS:
        for turn, (name, tunable) in enumerate(variant.tunables.items()):
            for value in tunable.legal:
                is_extreme = value in (max(tunable.legal), *([] if is_costly(variant) else [min(tunable.legal)]))
                is_met = name in ("SLICE_GROUPS", "TAPS_EACH") or str(variant) == "input_grad/implicit_gemm"
                is_quick = is_extreme and not (is_costly(variant) and (is_met or (VARIANTS.index(variant) + turn) % 5))
                marks = () if is_quick else pytest.mark.slow
                yield pytest.param(variant, name, value, id=f"{variant}-{name}-{value}", marks=marks)


def faults_of_value(variant, name, value, where):
    """Check a variant with a legal value of a tunable, on the device that `where` makes of whether it is the usual one.

    On every other problem, by turns; of what is costly, on those of the most frequent constants.
    """
    tunable = dataclasses.replace(variant.tunables[name], cpu=value, cuda=value)
    other = dataclasses.replace(variant, tunables={**variant.tunables, name: tunable})
    kind = ("float32" if computes(variant, "float32") else "float16", "relu", False)
    relu = [p for p in EVERYTHING if kind_of(p) == kind and not variant.refusal(p)]
    among = [p for p in relu if not is_long(variant, p)][variant.tunables[name].legal.index(value) % 2 :: 2]
    if is_costly(other):
        among = max(check.compiled_alike(other, relu, "cpu"), key=len)
    is_usual = all(constants_of(other, p, "cpu") == constants_of(variant, p, "cpu") for p in among)
    return faults_of(other, where(is_usual), PROBLEMS, [kind], "cpu", among)


@pytest.mark.parametrize(("variant", "name", "value"), list(legal_values()))
def test_every_legal_value(cpu, variant, name, value):
    assert faults_of_value(variant, name, value, lambda is_usual: cpu if is_usual else quick_on_cpu(cpu)) == []


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.tunables], ids=str)
def test_defaults_are_legal(variant):
    for problem in (p for p in EVERYTHING if variant.refusal(p) is None):
        for kind, (name, tunable) in product(variant.runs_on, variant.tunables.items()):
            assert tunable.value(kind, problem) in tunable.legal, name


# -- other levels of x86-64 ------------------------------------------------------------------------------------------
def legal_values_at_levels():
    """Yield (level, variant, tunable, value).

    Slow tests: all but the largest values of every sixth tunable, at one level, by turns.
    """
    tunables = [(variant, name) for variant in FOLLOW_THE_LEVEL for name in variant.tunables if name not in TOTAL]
    for turn, (variant, name) in enumerate(tunables):
        legal = variant.tunables[name].legal
        for level, value in product(OTHER_LEVELS, legal):
            is_quick = turn % 6 == 0 and value == max(legal) and level == OTHER_LEVELS[turn // 6 % len(OTHER_LEVELS)]
            marks = () if is_quick else pytest.mark.slow
            yield pytest.param(level, variant, name, value, id=f"{level}-{variant}-{name}-{value}", marks=marks)


@pytest.mark.parametrize(("level", "variant", "name", "value"), list(legal_values_at_levels()), indirect=["level"])
def test_every_legal_value_at_other_levels(level, variant, name, value):
    """Beside what the rules make of the other constants there."""
    assert faults_of_value(variant, name, value, lambda is_usual: cpu_at(level, *([] if is_usual else [QUICK]))) == []


#: Those that are other ones at each level, and the first rung of each pass: what is the same at each level is converted
#: by a header that all share.
AT_LEVELS = {*FOLLOW_THE_LEVEL, *(of_pass(pass_name)[0] for pass_name in PASSES)}


def has_turn_at(variant, level):
    """Return whether what follows the level, or is a first rung, is tried at this one of the other levels."""
    return variant in AT_LEVELS and VARIANTS.index(variant) % len(OTHER_LEVELS) == level


def kinds_at_levels():
    """Yield (level, variant, kind): of a rung that is the same at each level, what it is converted by, float16.

    Slow tests: all but one kind of each variant at one level, by turns, and what is the same at each but for the first
    rungs.
    """
    for (i, level), variant in product(enumerate(OTHER_LEVELS), VARIANTS):
        kinds = (EACH_KIND_ONCE[0], *EACH_KIND_ONCE[2:4]) if variant in FOLLOW_THE_LEVEL else EACH_KIND_ONCE[3:4]
        for turn, kind in enumerate(kind for kind in kinds if computes(variant, kind[0])):
            is_quick = turn == (2 * i if len(kinds) > 1 else 0) and has_turn_at(variant, i)
            marks = () if is_quick else pytest.mark.slow
            yield pytest.param(level, variant, kind, id=f"{level}-{variant}-{kind[0]}", marks=marks)


@pytest.mark.parametrize(("level", "variant", "kind"), list(kinds_at_levels()), indirect=["level"])
def test_each_dtype_at_other_levels(level, variant, kind):
    """As users compile it."""
    alike = check.compiled_alike(variant, [p for p in EVERYTHING if kind_of(p) == kind], "cpu")
    among = max(alike, key=len)[:12]
    assert faults_of(variant, cpu_at(level), PROBLEMS, [kind], "cpu", among) == []


# -- the same bits every run ---------------------------------------------------------------------------------------
def bits(variant, problem, device, tunables=None):
    given = check.inputs(variant.pass_name, problem, "normal", seed=5)
    blocks = check.launch(variant, problem, given, device, tunables)
    return {name: block.array.tobytes() for name, block in blocks.items()}


DETERMINISM = ("2,3,64,57,3,3,5,padding=1x2,groups=3", "1,1,200,210,1,3,3,padding=same")

#: Of tensor cores, whose products a CPU forms one by one: several blocks, warps and splits of a short sum; and of what
#: takes filters of 3 x 3 alone.
DETERMINISM_BRIEFLY = ("1,40,9,11,40,3,3,padding=1",)


def determined(law):
    """Parametrise over variants and problems."""
    return pytest.mark.parametrize(
        ("variant", "text"),
        [
            pytest.param(
                variant,
                text,
                id=f"{text}-{variant}",
                marks=pytest.mark.slow if text == DETERMINISM[1] or not has_turn(variant, law) else (),
            )
            for variant in VARIANTS
            for text in (DETERMINISM_BRIEFLY if variant.name in ("tensor_core", "hopper", "winograd") else DETERMINISM)
        ],
    )


def determined_problem(variant, text):
    """Return the problem, in float32 where the variant takes it."""
    dtype = "float32" if computes(variant, "float32") else "float16"
    return ConvProblem.parse(text, bias=True, activation="relu", dtype=dtype)


@determined(0)
def test_same_bits_in_every_run(device, variant, text):
    problem = determined_problem(variant, text)
    first = bits(variant, problem, shared(variant, device))
    for _ in range(10):
        assert bits(variant, problem, shared(variant, device)) == first


@determined(1)
@pytest.mark.parametrize("tunables", ["cpu", "cuda"])
def test_same_bits_with_any_number_of_workers(cpu, workers, variant, text, tunables):
    problem = determined_problem(variant, text)
    runs = []
    for count in (1, 2, 3, 4):
        set_num_threads(count)
        runs.append(bits(variant, problem, on(shared(variant, cpu), tunables, variant), tunables))
    assert all(run == runs[0] for run in runs)


BATCHES = ("5,3,64,57,3,3,5,padding=1x2,groups=3", "4,6,7,9,66,3,3,padding=1")


@in_turn(2, [v for v in VARIANTS if v.pass_name != "kernel_grad"])
@pytest.mark.parametrize("text", BATCHES)
@pytest.mark.parametrize("tunables", ["cpu", "cuda"])
def test_same_bits_at_any_place_in_the_batch(cpu, variant, text, tunables):
    """Some of the images, in another order and among other neighbours (that a wrong kernel fails: test_fuzz.py)."""
    problem = ConvProblem.parse(text, bias=True, activation="relu")
    if sentence := variant.refusal(problem):
        pytest.skip(sentence)
    where = on(shared(variant, cpu), tunables, variant)
    for seed in range(4):
        assert laws.batch(laws.Subject(variant, problem, where, tunables, seed)) == []


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_auto_does_not_look_at_the_number_of_images(kind):
    """Else a batch of one might have other bits than a batch of many."""
    for entry in PROBLEMS:
        for pass_name in PASSES:
            chosen = set()
            for n in (1, 2, 3, 64, 1000):
                reasons = why_not(pass_name, entry.problem().with_(N=n), kind)
                chosen.add(next((rung for rung, reason in reasons.items() if reason is None), None))
            assert len(chosen) == 1, f"{pass_name} on {entry.text}"


#: Rows of whole vectors, so that where an array begins decides how wide its loads may be.
ADDRESSED = "2,3,20,60,3,3,5,padding=1x2,groups=3,bias=1,activation=relu"


def follows_the_address(variant):
    """Return whether a variant is compiled anew for arrays that begin elsewhere."""
    problem = ConvProblem.parse(ADDRESSED)
    if variant.refusal(problem):
        return False
    constants = (constants_of(variant, problem, "cuda", alignment) for alignment in (ALIGNED, Alignment(4, 4)))
    return len({str(each) for each in constants}) > 1


@in_turn(0, [v for v in VARIANTS if follows_the_address(v)])
def test_same_bits_at_any_address(variant):
    """With a GPU's constants, where the width of loads follows from the address.

    Which products g++ contracts to multiply-adds may differ with that width: here it contracts none.
    """
    cpu = CpuDevice((QUICK, "-ffp-contract=off"))
    problem = ConvProblem.parse(ADDRESSED)
    given = check.inputs(variant.pass_name, problem, "normal", seed=5)
    runs = []
    for offset in (0, 1, 2):
        blocks = check.launch(variant, problem, given, cpu, "cuda", offset)
        runs.append({name: block.array.tobytes() for name, block in blocks.items() if name not in given})
    assert all({**run, "scratch": b""} == {**runs[0], "scratch": b""} for run in runs)


# -- NaN and infinities ----------------------------------------------------------------------------------------------
SPECIAL = "2,3,9,8,4,3,3,padding=1,stride=1x2"
SPECIAL_DEPTHWISE = "2,4,9,21,4,3,3,padding=1,groups=4"  # for those that refuse the other
SPECIAL_LARGE = "2,4,9,21,4,5,6,padding=2,groups=4"  # and for those that refuse small filters
SPECIAL_LONG = "2,4,9,8,4,3,3,padding=1"  # and for those that refuse sums of few products
CORNERS = [(0, 0, 0, 0), (1, 1, 0, -1), (0, 2, -1, 0), (1, 0, -1, -1), (0, 1, 4, 3)]

GRADIENTS = of_pass("input_grad") + of_pass("kernel_grad") + of_pass("backward")


def special(variant, **changes):
    """Return the first of the special problems that the variant computes."""
    texts = (SPECIAL, SPECIAL_DEPTHWISE, SPECIAL_LARGE, SPECIAL_LONG)
    problems = (ConvProblem.parse(text, bias=True, **changes) for text in texts)
    return next(problem for problem in problems if variant.refusal(problem) is None)


def ways(variant, problem, device):
    """Yield where and with which tunables to run: the cpu device runs a GPU's, too, where these are other ones."""
    if device.kind == "cuda":
        yield device, "cuda"
        return
    yield shared(variant, device), "cpu"
    is_other = constants_of(variant, problem, "cuda") != constants_of(variant, problem, "cpu")
    if is_other and kind_of(problem) in EACH_KIND_ONCE:
        yield on(device, "cuda", variant), "cuda"


def shared(variant, device):
    """Return where to run what other tests do not run, too: there kernels are compiled quickly."""
    return quick_on_cpu(device) if is_costly(variant) or "cpu" not in variant.auto_on else device


def check_given(variant, problem, device, given):
    expected = reference.answer(variant.pass_name, problem, given)
    for where, tunables in ways(variant, problem, device):
        outcome = check.check(variant, problem, where, tunables=tunables, given=given, expected=expected)
        assert outcome.faults == []


#: Every kind, and of what is costly only a few; but for the naive variants all but the first one are slow tests, and
#: what is costly has turns.
VARIANTS_AND_KINDS = [
    pytest.param(
        variant, dtype, activation, mask, id=f"{variant}-{dtype}-{activation}{'-mask' * mask}",
        marks=()
        if variant.name == "naive" or ((dtype, activation, mask) == EACH_KIND_ONCE[0] and has_turn(variant, 1))
        else pytest.mark.slow,
    )
    for variant, dtype, (activation, mask) in product(VARIANTS, DTYPES, ACTIVATION_KINDS)
    if (not is_costly(variant) or (dtype, activation) in (("float32", "relu"), ("float64", "tanh")))
    and computes(variant, dtype)
]  # fmt: skip


@pytest.mark.parametrize(("variant", "dtype", "activation", "mask"), VARIANTS_AND_KINDS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=str)
def test_special_values_spread_as_in_the_reference(device, variant, dtype, activation, mask, value):
    problem = special(variant, dtype=dtype, activation=activation, mask=mask)
    taps = [(0, 0, 0, 0), (3, -1, 2, 1), (1, 0, 1, 2)]
    places = {
        "forward": {"x": CORNERS, "w": taps, "b": [(0,), (3,)]},
        "input_grad": {"dy": CORNERS, "w": taps},
        "kernel_grad": {"x": CORNERS, "dy": CORNERS},
        "backward": {"x": CORNERS, "w": taps, "dy": CORNERS},
    }[variant.pass_name]
    for name, indices in places.items():
        for at in indices:
            given = check.inputs(variant.pass_name, problem)
            given[name][at] = value
            check_given(variant, problem, device, given)


#: Filters and strides that no tile divides; long sums; a filter in shared memory; and no padding at all.
OVER_PADDING = (
    "2,3,9,28,3,3,5,groups=3,padding=same", "2,2,11,13,3,3,2,stride=2x3,dilation=2,padding=2x3",
    "1,20,5,6,65,3,3,padding=1:0x0:2", "1,1,20,40,1,15,15,padding=same", "2,3,9,8,4,3,3",
)  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "text"),
    [
        pytest.param(
            variant,
            text,
            id=f"{text}-{variant}",
            marks=pytest.mark.slow if i % 2 or not has_turn(variant, i // 2) else (),
        )
        for (i, text), variant in product(enumerate(OVER_PADDING), VARIANTS)
        if variant.refusal(ConvProblem.parse(text)) is None
    ],
)
def test_padding_contributes_nothing(device, variant, text):
    """Whatever meets it of each operand: taps on each side of a filter, pixels on each side of an image."""
    problem = ConvProblem.parse(text, bias=True)
    plain = check.inputs(variant.pass_name, problem)
    for name in {"x", "w", "dy"} & {*plain}:
        *_, rows, cols = plain[name].shape
        border = [at for at in np.ndindex(rows, cols) if at[0] in (0, rows - 1) or at[1] in (0, cols - 1)]
        for i, at in enumerate(border[:: 1 + len(border) // 8]):
            given = {key: array.copy() for key, array in plain.items()}
            given[name][(0, -1, *at)] = (np.inf, -np.inf, np.nan)[i % 3]
            assert check.check(variant, problem, shared(variant, device), given=given).faults == []


@with_dtypes(2, GRADIENTS)
@pytest.mark.parametrize("mask", [False, True], ids=["output", "mask"])
def test_closed_relu_blocks_a_nan(device, variant, dtype, mask):
    problem = special(variant, dtype=dtype, activation="relu", mask=mask)
    plain = problem.with_(mask=False)
    given = check.inputs(variant.pass_name, plain)
    closed = given["saved"] <= 0
    given["dy"][closed] = np.nan
    assert closed.any() and not closed.all()
    if mask:
        given["saved"] = np.packbits(~closed, axis=-1, bitorder="little")
    check_given(variant, problem, device, given)
    blocks = check.launch(variant, problem, given, shared(variant, device))
    for operand in PASSES[variant.pass_name].present(problem):
        if operand.written:
            assert np.isfinite(blocks[operand.name].array.astype(np.float64)).all()


@in_turn(0, [v for v in GRADIENTS if v in ANY_FILTER])
@pytest.mark.parametrize(
    ("y", "is_open"),
    [(0.0, False), (-0.0, False), (1e-45, True), (-1e-45, False), (np.nan, True), (np.inf, True), (-np.inf, False)],
)
def test_relu_rule_for_the_saved_output(device, variant, y, is_open):
    """Open where not (y <= 0), torch's rule: closed at both zeros, open at NaN."""
    if not computes(variant, "float32"):
        pytest.skip(f"{variant} rounds float32 factors to TF32")
    problem = ConvProblem.parse("1,1,2,3,1,1,1", activation="relu", bias=True)
    given = check.inputs(variant.pass_name, problem, "constant")
    given["saved"][...] = y
    check_given(variant, problem, device, given)
    blocks = check.launch(variant, problem, given, shared(variant, device))
    for operand in PASSES[variant.pass_name].present(problem):
        if operand.written:
            result = blocks[operand.name].array
            assert (result != 0).all() if is_open else (result == 0).all()


@in_turn(1, [v for v in of_pass("forward") if v in ANY_FILTER])
def test_relu_of_zeros_and_nan(device, variant):
    problem = ConvProblem.parse("1,1,1,6,1,1,1", activation="relu", mask=True)
    x = np.array([0.0, -0.0, np.nan, -1.0, np.inf, -np.inf], np.float32).reshape(problem.x_shape)
    blocks = check.launch(variant, problem, {"x": x, "w": np.ones((1, 1, 1, 1), np.float32)}, shared(variant, device))
    assert np.array_equal(blocks["y"].array.ravel(), np.float32([0, 0, np.nan, 0, np.inf, 0]), equal_nan=True)
    assert blocks["mask"].array.ravel().tolist() == [0b010100]


#: Those whose sums may be long: with one channel a filter, a sum of products is as short as a filter.
SUMMING = [v for v in ANY_FILTER if v.name not in ("coalesced", "pipelined", "banded") or v.pass_name == "kernel_grad"]


def long_sum(variant, dtype, count):
    """Return a problem whose only result is a sum of `count` terms, its data (all 1), and the factors' names."""
    texts = {
        "forward": f"1,{count},1,1,1,1,1",
        "input_grad": f"1,1,1,1,{count},1,1",
        "kernel_grad": f"1,1,1,{count},1,1,1",
        "backward": f"1,1,1,{count},1,1,1,dx=0",
    }
    factors = {"forward": ("x", "w"), "input_grad": ("dy", "w")}.get(variant.pass_name, ("dy", "x"))
    problem = ConvProblem.parse(texts[variant.pass_name], dtype=dtype)
    given = {name: np.ones_like(array) for name, array in check.inputs(variant.pass_name, problem).items()}
    return problem, given, factors


def result(variant, problem, given, device):
    """Launch, and return the first of the results."""
    name = next(operand.name for operand in PASSES[variant.pass_name].present(problem) if operand.written)
    return check.launch(variant, problem, given, shared(variant, device))[name].array


@with_dtypes(2, SUMMING, costly=("float16",))
@pytest.mark.parametrize("count", [1, 64, 65, 1000, *(pytest.param(n, marks=pytest.mark.slow) for n in (63, 200))])
def test_infinite_sum_is_not_nan(device, variant, dtype, count):
    """Compensated addition forms inf - inf, which must not reach the result."""
    problem, given, (a, _) = long_sum(variant, dtype, count)
    for place in (0, count // 2, count - 1):
        array = np.ones(count, given[a].dtype)
        array[place] = -np.inf
        assert result(variant, problem, {**given, a: array.reshape(given[a].shape)}, device) == -np.inf
    given[a][...] = np.inf
    assert result(variant, problem, given, device) == np.inf


@with_dtypes(2, SUMMING, costly=("float16",))
@pytest.mark.parametrize("count", [2, 64, 100, 1000, *(pytest.param(n, marks=pytest.mark.slow) for n in (40, 128))])
def test_overflowing_sum_is_not_nan(device, variant, dtype, count):
    """Finite terms whose sum is too large, whether it gets there inside a run of 64 terms or between two runs."""
    problem, given, (a, b) = long_sum(variant, dtype, count)
    largest = float(np.finfo(reference.numpy_dtype(ACCUMULATORS[dtype]) if dtype != "bfloat16" else np.float32).max)
    term = largest * 0.9 / (64 if count > 64 else 1)
    for sign in (1, -1):
        given[a][...] = sign * np.sqrt(term) if dtype != "float16" else sign * 6e4
        given[b][...] = np.sqrt(term) if dtype != "float16" else 6e4
        got = result(variant, problem, given, device)
        assert got == sign * np.inf, f"{count} terms of {sign * term:.3g} give {got.item()}"


@with_dtypes(0, ANY_FILTER, costly=("float16",))
def test_subnormal_results_are_kept(device, variant, dtype):
    """Integers times a power of two so small that their sums of products are subnormal, and exact."""
    problem = ConvProblem.parse("1,1,3,4,1,2,2", dtype=dtype)
    if variant.pass_name == "backward":
        problem = ConvProblem.parse("1,1,3,4,1,3,3,padding=1,dx=0", dtype=dtype)
    half = np.finfo(reference.numpy_dtype(dtype)) if dtype != "bfloat16" else None
    smallest = -133 if half is None else round(np.log2(half.smallest_subnormal))
    normal = 2.0**-126 if half is None else half.smallest_normal
    given = {}
    for i, (name, array) in enumerate(check.inputs(variant.pass_name, problem, "integers").items()):
        exponent = (smallest - smallest // 2, smallest // 2)[i]
        given[name] = np.ldexp(array.astype(np.float64), exponent).astype(array.dtype)
    got = result(variant, problem, given, device)
    ((value, _),) = reference.answer(variant.pass_name, problem, given).values()
    assert np.array_equal(got.astype(value.dtype), value)
    assert ((value != 0) & (abs(value) < normal)).any(), "the test's data gives no subnormal result"


@with_dtypes(1, VARIANTS, ["float16", "bfloat16"], costly=("float16",))
def test_half_results_are_rounded_once(device, variant, dtype):
    """Integer sums that float32 holds and the half type does not: the nearest half number, to the last bit."""
    problem = ConvProblem.parse("2,30,9,8,30,3,3,padding=1", dtype=dtype, bias=True)
    if variant.refusal(problem):
        problem = ConvProblem.parse("2,3,9,18,3,7,7,padding=3,groups=3", dtype=dtype, bias=True)
    rng = np.random.default_rng(1)
    given = {
        name: rng.integers(0, 13, array.shape).astype(array.dtype)
        for name, array in check.inputs(variant.pass_name, problem).items()
    }
    got = check.launch(variant, problem, given, shared(variant, device))
    rounded_at_all = False
    for name, (value, _) in reference.answer(variant.pass_name, problem, given).items():
        rounded = value.astype(np.float32).astype(got[name].array.dtype)
        assert np.array_equal(got[name].array, rounded)
        rounded_at_all |= bool((rounded.astype(np.float64) != value).any())
    assert rounded_at_all, "the test's data needs no rounding"


def test_registry():
    names = [str(variant) for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert {variant.pass_name for variant in VARIANTS} == set(PASSES)
    for variant in VARIANTS:
        assert isinstance(variant, Variant)
        assert variant.path.is_file()
        assert len(variant.summary) > 20, f"{variant}: its .cu file has no head comment"
    for pass_name in ("forward", "input_grad", "kernel_grad"):  # "auto" always finds a rung: the first
        first = of_pass(pass_name)[0]
        assert first.requires == ()
        assert first.auto_on == ("cuda", "cpu")


def test_curated_problems_have_reasons():
    assert all(len(entry.reason) > 5 for entry in PROBLEMS)
    assert len({entry.reason for entry in PROBLEMS}) == len({entry.text for entry in PROBLEMS}) == len(PROBLEMS)
    assert {entry.data for entry in CURATED} == set(check.DATA) - {"nonfinite"}  # which goes with every normal one
