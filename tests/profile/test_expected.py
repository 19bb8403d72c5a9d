"""The expected time: what a warp meets in machine code, how a launch's time is put together, and how good it is."""

from __future__ import annotations

import dataclasses
import re

import pytest

from convbackprop.devices.gpus import gpu
from convbackprop.ladder.registry import select
from convbackprop.problem import ConvProblem
from convbackprop.profile import expected as model, sass
from convbackprop.profile.expected import FITTED, Work, alone_seconds, expected, works
from convbackprop.profile.hot_loop import HotLoop
from convbackprop.profile.report import launches_of
from convbackprop.profile.roofline import LaunchFacts
from convbackprop.profile.traffic import ArrayTraffic, KernelTraffic, LineTraffic
from convbackprop.profile.warp import LATENCIES, WarpCode
from tests.profile.test_roofline import HERE, kernel
from tests.support.machine_code import listing
from tools.fit_expected import Score, measured, runs

LOAD, SUM = "LDG.E R{}, desc[UR8][R{}.64]", "FFMA R{0}, R{1}, R3, R{0}"
TURN_AROUND = ["@P1 | BRA 0x0", "EXIT"]
H200 = gpu("H200")


def warp_code(*lines):
    (code,) = sass.functions(listing(*lines)).values()
    return WarpCode.of(code)


# -- one warp --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "waits"),
    [
        ([LOAD.format(4, 8), LOAD.format(5, 10), SUM.format(1, 4), SUM.format(1, 5)], 1),  # together
        ([LOAD.format(4, 8), SUM.format(1, 4), LOAD.format(5, 10), SUM.format(1, 5)], 2),  # one after the other
        ([LOAD.format(4, 8), LOAD.format(5, 4), SUM.format(1, 5)], 2),  # the address of the second is in the first
        (["LDG.E.128 R4, desc[UR8][R8.64]", SUM.format(1, 7)], 1),  # the last of four registers
        (["@P0 | LDG.E R4, desc[UR8][R8.64]", "ISETP.NE.AND P0, PT, R4, RZ, PT", SUM.format(1, 2)], 1),  # a predicate
        (["LDGSTS.E.128 [R6], desc[UR8][R8.64]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x0", SUM.format(1, 2)], 1),
        ([LOAD.format(4, 8), SUM.format(1, 2)], 1),  # its register is overwritten a turn later
        (["LDS R4, [R8]", SUM.format(1, 4)], 0),
    ],
)
def test_a_warp_waits(lines, waits):
    code = warp_code(*lines, *TURN_AROUND)
    assert code.turn.waits == pytest.approx(waits, abs=0.02)
    assert code.turn.at(LATENCIES[-1] + 100) == pytest.approx(code.turn.clocks[-1] + 100 * waits, abs=2)
    assert (code.once, code.around) == (1, 0)
    assert WarpCode.from_json(code.as_json()) == code


def test_loads_of_the_next_turn_are_hidden_behind_this_one():
    """Loaded into one register and moved, once there, to another: as long as a turn takes longer, nothing waits."""
    sums = [SUM.format(10 + i % 8, 5) for i in range(600)]
    code = warp_code("MOV R5, R4", LOAD.format(4, 8), *sums, *TURN_AROUND)
    at_once, half, whole, twice = code.turn.clocks
    assert at_once == half < whole == pytest.approx(1000, abs=10) and twice == pytest.approx(2000, abs=10)
    in_two_groups = warp_code("LDGSTS.E [R6], desc[UR8][R8.64]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x1", *sums, *TURN_AROUND)
    assert in_two_groups.turn.clocks[1] == pytest.approx(at_once, abs=10)


@pytest.mark.parametrize("left", [0, 1, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_copies_of_some_groups_share_the_latency(left, groups):
    """Those that are waited for so many groups later: their time is that of a turn for each group under way."""
    sums = [SUM.format(10 + i % 8, 5) for i in range(20)]
    group = ["DEPBAR.LE SB0, " + hex(left), "LDGSTS.E [R6], desc[UR8][R8.64]", "LDGDEPBAR", *sums]
    turn = warp_code(*group * groups, *TURN_AROUND).turn
    assert turn.loads == groups
    for latency, clocks in zip(LATENCIES, turn.clocks, strict=True):
        assert clocks == pytest.approx(max(turn.clocks[0], latency * groups / (left + 1)), rel=0.02)
    (code,) = sass.functions(listing(*group * groups, *TURN_AROUND)).values()
    assert HotLoop.of(code, {}).loaded_bytes == 4 * max(groups, left + 1)


@pytest.mark.parametrize(
    ("line", "clocks"),
    [("FFMA R1, R2, R3, R1", 1), ("DFMA R2, R4, R6, R2", 2), ("IADD3 R0, R1, R2, RZ", 2), ("MUFU.RCP R0, R1", 8),
     ("HMMA.16816.F32 R4, R12, R20, R4", 6.4)],
)  # fmt: skip
def test_a_turn_occupies_the_busiest_pipe(line, clocks):
    assert warp_code(*[line] * 50, SUM.format(1, 2), *TURN_AROUND).turn.issue == pytest.approx(50 * clocks, abs=3)


@pytest.mark.parametrize(
    ("line", "each"),
    [("FFMA R1, R2, R3, R1", 1), ("HFMA2 R1, R2, R3, R1", 2), ("HMMA.16816.F32 R4, R12, R20, R4", 64),
     ("HMMA.1688.F32.TF32 R4, R12, R20, R4", 32), ("HGMMA.64x256x16.F32 R24, gdesc[UR4], R24", 2048)],
)  # fmt: skip
def test_multiply_adds_of_a_thread(line, each):
    (code,) = sass.functions(listing(*[line] * 3, *TURN_AROUND)).values()
    loop = HotLoop.of(code, {}, ["HGMMA"])
    assert loop.multiply_adds == 3 * each and loop.share == 3 / 4
    assert loop.on_tensor_cores == ("MMA" in line)
    assert loop.warp is None if "HGMMA" in line else loop.warp.turn.multiply_adds == 3 * each


def test_matrices_are_waited_for_by_all_of_their_registers():
    """Four of the left factor and of the sums, two of the right one; the next product has the sums before."""
    load, product = "LDSM.16.M88.4 R12, [R2]", "HMMA.16816.F32 R4, R{}, R20, R4"
    first, last, other = (warp_code(load, product.format(left), *TURN_AROUND).turn for left in (12, 9, 16))
    assert first.shared_bytes == 16
    assert first.clocks == last.clocks and first.clocks[0] > other.clocks[0] == 33


def test_loads_that_are_never_executed_do_not_count():
    """nvcc puts three of them before asynchronous copies."""
    never = "@!PT | LDS RZ, [RZ]"
    assert warp_code(never, "LDS.128 R12, [R2]", SUM.format(1, 4), *TURN_AROUND).turn.shared_bytes == 16


def test_the_usual_way_has_the_loads_and_no_border():
    inside, border = ["LDG.E.64 R4, desc[UR8][R8.64]"], [LOAD.format(4, 8), LOAD.format(5, 10), "MOV R6, R7"]
    code = warp_code("@P0 | BRA 0x30", *inside, "BRA 0x60", *border, SUM.format(1, 4), *TURN_AROUND)
    assert (code.turn.loads, code.turn.multiply_adds) == (1, 1)


def test_what_forms_nan_anew_is_no_hot_loop_of_what_adds_up_parts():
    parts = ["LDG.E.128 R4, desc[UR8][R8.64]", *["FADD R1, R1, R4"] * 4, "@P1 | BRA 0x0"]
    anew = [LOAD.format(4, 8), LOAD.format(5, 10), SUM.format(1, 4), "@P1 | BRA 0x60", "EXIT"]
    (code,) = sass.functions(listing(*parts, *anew)).values()
    adds, multiplies = (HotLoop.of(code, {}, multiplies=own).warp for own in (False, True))
    assert (adds.turn.loads, adds.turn.multiply_adds, adds.around) == (1, 0, 4)
    assert (multiplies.turn.loads, multiplies.turn.multiply_adds, multiplies.around) == (2, 1, 6)


def test_the_hot_loop_multiplies_and_adds_most_not_most_often():
    """An mma of a warp is 64 multiply-adds of each thread's; nine FFMAs beside it are fewer."""
    few, many = [SUM.format(1, 2)] * 9, ["HMMA.16816.F32 R4, R12, R20, R4"]
    assert warp_code(*few, "@P1 | BRA 0x0", *many, "@P1 | BRA 0xa0", "EXIT").turn.multiply_adds == 64


def test_an_unrolled_loop_and_its_remainder_are_one_turn():
    four, three = [SUM.format(1, 2)] * 4, [SUM.format(1, 2)] * 3
    code = warp_code(*four, "@P1 | BRA 0x0", *three, "@P1 | BRA 0x50", "EXIT")
    assert code.turn.multiply_adds == 7
    code = warp_code(*four, "@P1 | BRA 0x0", SUM.format(1, 2), "@P1 | BRA 0x50", "EXIT")
    assert (code.turn.multiply_adds, code.around) == (4, 2)  # too few: another loop


# -- what a launch asks for ------------------------------------------------------------------------------------------
PROBLEM = ConvProblem.parse("1,1,1000,1000,1,3,3,padding=1")


def launch(lines, hot, main=True):
    arrays = (ArrayTraffic("x", 0, 0, 500, 0),)
    return LaunchFacts("f", (1000, 1, 1), (32, 1, 1), main, kernel(), hot, KernelTraffic(
        "f", (1000, 1, 1), (32, 1, 1), 10, tuple(lines), arrays))  # fmt: skip


def loop(*lines):
    (code,) = sass.functions(listing(*lines, *TURN_AROUND)).values()
    return HotLoop.of(code, {})


def access(space, requests):
    return LineTraffic(HERE, 7, space, "load", 4, requests, 32 * requests, *[4 * requests] * 2, *[requests] * 2)


def test_turns_by_multiply_adds_by_loads_and_by_shared_memory():
    loads = loop(LOAD.format(4, 8), SUM.format(1, 4))
    (work,) = works(H200, "forward", PROBLEM, [launch([access("global", 10)], loads)])
    assert work.turns == pytest.approx(9e6 / 1000 / 32)  # each with one multiply-add, as the problem has
    (work,) = works(H200, "forward", PROBLEM, [launch([access("global", 5000)], loads)])
    assert work.turns == 500  # some rows are loaded for nothing
    shared = loop("LDS R4, [R8]", SUM.format(1, 4))
    (work,) = works(H200, "forward", PROBLEM, [launch([access("shared", 4000)], shared)])
    assert (work.turns, work.own_bytes, work.shared_clocks) == (400, 500 * 32 * 100, 400)
    # nvcc leaves out of a wide load what is not used, or makes one of four: there are no more turns for that.
    wide = dataclasses.replace(access("shared", 4000), bytes=16)
    (work,) = works(H200, "forward", PROBLEM, [launch([wide], shared)])
    assert work.turns == 400
    joined = loop("LDS.128 R4, [R8]", *[SUM.format(1, 4)] * 4)
    (work,) = works(H200, "forward", PROBLEM, [launch([access("shared", 4000)], joined)])
    assert work.turns == 100
    copied = loop("LDGSTS.E [R6], desc[UR8][R8.64]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x0", SUM.format(1, 2))
    lines = [access("global", 5000), dataclasses.replace(access("shared", 5000), kind="store"),
             dataclasses.replace(access("global", 9000), line=8)]  # fmt: skip
    (work,) = works(H200, "forward", PROBLEM, [launch(lines, copied)])
    assert work.turns == 500  # the taps, which another line loads, are no copies
    assert works(H200, "forward", PROBLEM, [launch([], None)]) is None
    assert Work.from_json(work.as_json()) == work


def test_a_stride_leaves_some_pixels_of_dx_all_the_taps():
    hot = loop(LOAD.format(4, 8), SUM.format(1, 4))
    strided = ConvProblem.parse("1,1,1000,1000,1,3,1,padding=1,stride=2")
    busiest = [works(H200, name, strided, [launch([], hot)])[0].busiest for name in ("forward", "input_grad")]
    assert busiest == pytest.approx([1, 4 / 3 * 2])  # of 3 taps 2, where 1.5 are the mean; of 1 tap 1, where 0.5 are


@pytest.mark.parametrize(
    ("name", "busiest"), [("implicit_gemm", 8 / 3), ("tiled", 8 / 3), ("few_channels", 1), ("pipelined", 1)]
)
def test_threads_with_all_phases_have_taps_alike(name, busiest):
    (variant,), strided = select(f"input_grad/{name}"), ConvProblem.parse("1,1,1000,1000,1,3,1,padding=1,stride=2")
    (main,) = (facts for facts in launches_of(variant, strided) if facts.main)
    facts = launch([], loop(LOAD.format(4, 8), SUM.format(1, 4)))
    (work,) = works(H200, "input_grad", strided, [dataclasses.replace(facts, all_phases=main.all_phases)])
    assert work.busiest == pytest.approx(busiest)


# -- how long it takes -----------------------------------------------------------------------------------------------
#: One round of blocks that do next to nothing.
IDLE = Work(132, 4, 4, turns=1, busiest=1, turn_issue=0, turn_clocks=(1.0, 1.0, 1.0, 1.0), loads=0, outside=0, fills=0,
            l1_clocks=0, shared_clocks=0, asked_bytes=0, own_bytes=0, least_bytes=0)  # fmt: skip

#: 1,000 us of one limit each.
BUSY = {
    "latency": {"turns": 1.98e6},
    "instruction issue": {"turns": 1000, "turn_issue": 1980},
    "L1 cache": {"l1_clocks": 1.98e6},
    "shared memory": {"shared_clocks": 1.98e6},
    "L2 cache": {"own_bytes": H200.l2 * 1e-3},
    "memory": {"least_bytes": H200.memory * 1e-3},
}


@pytest.mark.parametrize("limit", model.LIMITS)
def test_each_limit_by_itself(limit):
    work = dataclasses.replace(IDLE, **BUSY[limit])
    assert alone_seconds(H200, work, FITTED)[limit] == pytest.approx(1e-3, rel=1e-3)
    found = expected(H200, [work])
    assert found.limit == limit and found.seconds == pytest.approx(1e-3 + FITTED.start + FITTED.launch, rel=0.01)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert re.search(rf", 2\.0 times the floor, of which 9\d % {limit}", found.sentence(5e-4))


def test_limits_hide_each_other_in_part():
    both = dataclasses.replace(IDLE, **BUSY["L1 cache"], **BUSY["memory"])
    one = expected(H200, [dataclasses.replace(IDLE, **BUSY["memory"])]).seconds
    assert 1.2 * one < expected(H200, [both]).seconds < 1.8 * one


def test_what_a_change_would_win():
    """2 rounds of blocks whose warps wait twice a turn for memory: one of the waits may go, or one of the rounds."""
    clocks = tuple(100.0 + 2 * latency for latency in LATENCIES)
    waiting = dataclasses.replace(IDLE, blocks=8 * 132, turns=500, turn_clocks=clocks, loads=2, asked_bytes=1e6,
                                  own_bytes=1e6, least_bytes=1e6)  # fmt: skip
    found = expected(H200, [waiting])
    assert list(found.wins) == ["loads asked for a turn ahead", "twice the blocks at once"]
    assert all(0.45 < seconds / found.seconds < 0.6 for seconds in found.wins.values())
    assert "with twice the blocks at once" in found.sentence(1e-3)
    even = expected(H200, [dataclasses.replace(waiting, blocks=4 * 132, turn_clocks=(100.0,) * 4)])
    assert not even.wins and even.seconds < found.seconds / 4


def test_data_in_a_cache_comes_sooner():
    waiting = dataclasses.replace(IDLE, turns=1000, turn_clocks=tuple(map(float, LATENCIES)), loads=1, asked_bytes=1e9,
                                  own_bytes=1e9, least_bytes=1e9)  # fmt: skip
    times = [
        alone_seconds(H200, dataclasses.replace(waiting, **change), FITTED)["latency"]
        for change in ({}, {"least_bytes": 1e7}, {"own_bytes": 1e7, "least_bytes": 1e7})
    ]
    memory, *caches = (seconds * H200.clock / 1000 for seconds in times)
    assert memory == pytest.approx(FITTED.memory_latency * H200.clock)
    assert caches == pytest.approx([0.99 * 270 + 0.01 * memory, 0.99 * 35 + 0.01 * memory])


# -- how good it is --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", runs(), ids=lambda path: path.stem)
def test_recorded_runs_take_about_as_long_as_expected(path):
    rows = [row for row in measured(path) if not row.fitted]
    score = Score.of([row.ratio() for row in rows])
    assert score.rows >= 60
    assert score.mean <= 1.25 and score.worst <= 2
