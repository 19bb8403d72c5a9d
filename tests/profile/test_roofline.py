"""The roofline's verdict, by hand: each limit binds where its figures say so, and names what to change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from convbackprop.devices.compiler import ARCHITECTURES
from convbackprop.devices.gpus import GPUS, MULTIPROCESSORS, Gpu, gpu, gpu_titled
from convbackprop.errors import InvalidArgument
from convbackprop.problem import ConvProblem
from convbackprop.profile import roofline
from convbackprop.profile.hot_loop import HotLoop
from convbackprop.profile.machine_code import Usage
from convbackprop.profile.occupancy import LIMITS, Occupancy
from convbackprop.profile.roofline import LaunchFacts, amount, duration, percent
from convbackprop.profile.traffic import ArrayTraffic, KernelTraffic, LineTraffic

#: 10 multiprocessors at 1 GHz: 2.56 TFLOP/s, 40 G instructions, 10 G wavefronts and 640 GB/s of the L2 cache a second.
TOY = Gpu("Toy", ("Toy",), "sm_90a", sms=10, clock=1e9, memory=1e11)

#: 8,000,036 bytes, which are 80.0 us of the toy's memory, and 18 MFLOP, which are 7.03 us of its arithmetic.
PROBLEM = ConvProblem.parse("1,1,1000,1000,1,3,3,padding=1")

HERE = Path("/lab/f.cu")


def facts(*, blocks=1000, kinds=None, loaded=0, kernel=None, lines=(), arrays=()):
    """Return one launch of which a hundredth was replayed."""
    hot = HotLoop(True, kinds, kinds, 16 * sum(kinds.values()), loaded) if kinds else None
    traffic = KernelTraffic("f", (blocks, 1, 1), (32, 1, 1), 10, lines, arrays) if lines or arrays else None
    return LaunchFacts("f", (blocks, 1, 1), (32, 1, 1), True, kernel, hot, traffic)


def kernel(spills=0):
    """Return a kernel of which a multiprocessor holds one warp."""
    usage = Usage(255, 0, spills, spills, 0)
    fits = Occupancy(1, 1, ("registers",))
    return SimpleNamespace(threads=32, usage=usage, shared_bytes=0, spill_bytes=spills, occupancy=fits)


def line(space, requests, units, least):
    sectors, wavefronts = ((units, least), (0, 0)) if space == "global" else ((0, 0), (units, least))
    return LineTraffic(HERE, 7, space, "load", 4, requests, 32 * requests, *sectors, *wavefronts)


GOOD = {"FFMA": 90, "integer": 10}  # 9e6 / 90 * 100 instructions of 32 threads: 7.8 us
CASES = {
    # limit: (facts, microseconds, what the advice says)
    "memory": (facts(kinds=GOOD), 80.0, "a 16-bit dtype"),
    "instruction issue": (facts(kinds={"FFMA": 1, "integer": 12, "control": 7}), 140.6, "(12 integer instructions"),
    # 10 * 32 threads with 4 bytes under way of 4,000,036 that must be read: 3125.03 times 400 ns
    "latency": (facts(kinds=GOOD, loaded=4, kernel=kernel()), 1250.0, "more warps, which registers limit"),
    # 20,000 sectors of 10 blocks are 64 MB of 1000, at 640 GB/s
    "L2 cache": (facts(arrays=[ArrayTraffic("x", 0, 0, 20_000, 0)]), 100.0, "64.0 MB of x, 16.0 times its size"),
    # 80,000 clocks of 4 sectors for 10 blocks; 100 times as many on 10 multiprocessors
    "L1 cache": (facts(lines=[line("global", 10_000, 320_000, 40_000)]), 800.0,
                 "f.cu:7: 32.0 sectors a request where 4.0 would do"),
    "shared memory": (facts(lines=[line("shared", 20_000, 40_000, 20_000)]), 400.0,
                      "the bank conflicts of f.cu:7: 2.0 wavefronts a request where 1.0 would do"),
}  # fmt: skip


def verdict(launch, problem=PROBLEM, on=TOY):
    found = roofline.bounds(on, "forward", problem, [launch])
    return roofline.verdict(on, "forward", problem, [launch], found)


@pytest.mark.parametrize("limit", CASES)
def test_each_limit_binds(limit):
    launch, microseconds, advice = CASES[limit]
    found = verdict(launch)
    assert found.binding.limit == limit
    assert found.binding.seconds * 1e6 == pytest.approx(microseconds, rel=1e-3)
    assert advice in found.advice
    assert found.floor.limit == "memory" and found.floor.seconds * 1e6 == pytest.approx(80.00036)
    assert found.share == pytest.approx(80.00036 / microseconds, rel=1e-3)


def test_arithmetic_binds_with_a_large_filter():
    problem = PROBLEM.with_(R=15, S=15, padding=((7, 7), (7, 7)))  # 450 MFLOP
    found = verdict(facts(kinds=GOOD), problem)
    assert found.floor.limit == "arithmetic" and found.floor.seconds * 1e6 == pytest.approx(175.78, rel=1e-4)
    # 225e6 / 90 * 100 / 32 instructions at 40 G a second, for a tenth of them is no multiply-add
    assert found.binding.limit == "instruction issue" and found.share == pytest.approx(0.9)
    whole = verdict(facts(kinds={"FFMA": 100}), problem)
    assert whole.binding.limit == "arithmetic" and whole.share == 1 and "Winograd" in whole.advice


def test_half_of_the_issue_slots_suffice_where_there_are_half_as_many_units():
    """An A100 starts 128 threads' instructions a clock, and does 64 multiply-adds."""
    problem = PROBLEM.with_(R=15, S=15, padding=((7, 7), (7, 7)))
    half, a100 = facts(kinds={"FFMA": 50, "integer": 50}, blocks=108 * 100), gpu("A100")
    assert verdict(half, problem, a100).share == pytest.approx(1)
    assert verdict(half, problem, gpu("H100")).share == pytest.approx(0.5, rel=0.02)


def test_two_multiply_adds_an_instruction_count_as_two():
    one, two = (roofline.bounds(TOY, "forward", PROBLEM, [facts(kinds={name: 5, "integer": 5})])[2]
                for name in ("FFMA", "HFMA2"))  # fmt: skip
    assert one.limit == two.limit == "instruction issue" and one.seconds == 2 * two.seconds


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"FFMA": 1, "control": 30}, "the branches (30 control"),
        ({"FFMA": 1, "move": 30}, "the moves"),
        ({"FFMA": 1, "float": 30}, "the arithmetic beside the multiply-adds"),
        ({"FFMA": 1, "LDS.32": 10, "LDS.64": 10, "integer": 15}, "the loads from shared memory (20 LDS"),
        ({"FFMA": 1, "LDG.32": 30}, "wider ones"),
        ({"FFMA": 1, "atomic": 30}, "the 30 atomic instructions in the hot loop"),
    ],
)
def test_the_most_frequent_kind_is_what_to_change(kinds, words):
    assert words in verdict(facts(kinds=kinds)).advice


def test_what_is_coalesced_and_without_conflicts_gets_other_advice():
    assert "wider ones" in verdict(facts(lines=[line("global", 10_000, 320_000, 320_000)])).advice
    assert "a tile of results a thread" in verdict(facts(lines=[line("shared", 40_000, 40_000, 40_000)])).advice


def test_a_broadcast_takes_a_clock_though_it_is_one_sector():
    """Of one sector each, as many clocks as requests, not a quarter."""
    (bound,) = (b for b in roofline.bounds(TOY, "forward", PROBLEM, [facts(lines=[line("global", 40_000, 40_000, 1)])])
                if b.limit == "L1 cache")  # fmt: skip
    assert bound.seconds * 1e6 == pytest.approx(400)


def test_spills_come_first():
    launch = facts(kinds=GOOD, loaded=4, kernel=kernel(spills=40))
    assert verdict(launch).advice.startswith("the spills (40 bytes a thread)")


def test_too_few_blocks():
    """11 blocks on 10 multiprocessors take as long as 20."""
    even, uneven = (facts(blocks=blocks, kinds={"FFMA": 1, "integer": 19}) for blocks in (20, 11))
    times = [verdict(launch).binding.seconds for launch in (even, uneven)]
    assert times[1] == pytest.approx(times[0] * 20 / 11)
    assert verdict(uneven).advice == "the grid: 11 blocks are too few, or too uneven, for 10 multiprocessors"
    few = verdict(facts(blocks=5, kinds={"FFMA": 1, "integer": 19}))
    assert "on 5 of 10 multiprocessors" in few.binding.why


def test_launches_add_up():
    launches = [facts(lines=[line("shared", 20_000, 40_000, 20_000)])] * 2
    one, two = (roofline.bounds(TOY, "forward", PROBLEM, some)[-1] for some in (launches[:1], launches))
    assert two.limit == "shared memory" and two.seconds == 2 * one.seconds


def test_the_bit_mask_saves_bytes():
    problem = PROBLEM.with_(activation="relu")
    for masked, words in ((False, "the ReLU's bit mask"), (True, "16-bit")):
        of = problem.with_(mask=masked)
        found = roofline.bounds(TOY, "input_grad", of, [facts(kinds=GOOD)])
        assert words in roofline.verdict(TOY, "input_grad", of, [facts(kinds=GOOD)], found).advice


def test_the_sentence():
    launch, _, _ = CASES["shared memory"]
    assert verdict(launch).sentence("forward/mine", TOY) == (
        "forward/mine is limited by shared memory (2.00 M requests of 2.0 wavefronts): the floor on the Toy is 80.0 us "
        "(memory: 8.00 MB at 100 GB/s), of which it reaches at most 20 %, in 400 us; change first: the bank conflicts "
        "of f.cu:7: 2.0 wavefronts a request where 1.0 would do; pad the rows of the tile."
    )
    assert verdict(facts()).sentence("forward/mine", TOY) == (
        "The floor on the Toy is 80.0 us (memory: 8.00 MB at 100 GB/s); of forward/mine itself nothing is known."
    )


def test_numbers():
    assert [duration(s) for s in (1.234e-6, 12.34e-6, 123.4e-6, 999.4e-6, 999.6e-6, 0.5, 2)] == [
        "1.23 us", "12.3 us", "123 us", "999 us", "1.00 ms", "500 ms", "2.00 s"
    ]  # fmt: skip
    assert [amount(n, "B") for n in (0, 999, 1000, 134217832, 4.3e12)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "134 MB",
        "4.30 TB",
    ]
    assert [percent(s) for s in (0, 0.094, 0.0999, 0.6451, 0.997, 1)] == [
        "0.0 %", "9.4 %", "10 %", "65 %", "99 %", "100 %"
    ]  # fmt: skip


# -- the GPUs --------------------------------------------------------------------------------------------------------
#: TFLOP/s of the data sheets.
PEAKS = {
    "H200": (67, 34), "H100": (67, 34), "A100": (19.5, 9.7), "L4": (30.3, 0.47), "RTX 4090": (82.6, 1.29),
    "T4": (8.1, 0.25),
}  # fmt: skip


def test_peaks_are_those_of_the_data_sheets():
    assert set(PEAKS) == {each.name for each in GPUS}
    for name, (float32, float64) in PEAKS.items():
        assert gpu(name).peak("float32") / 1e12 == pytest.approx(float32, rel=0.01)
        assert gpu(name).peak("float64") / 1e12 == pytest.approx(float64, rel=0.03)
        assert gpu(name).peak("float16") == gpu(name).peak("float32")  # its sums are float32


def test_names_of_gpus():
    assert gpu("h200") is gpu("NVIDIA H200") and gpu("rtx-4090") is gpu("RTX4090")
    with pytest.raises(
        InvalidArgument, match=r"GPU is 'GTX 970'; it should be one of H200, H100, A100, L4, RTX 4090, T4"
    ):
        gpu("GTX 970")
    titles = {
        "NVIDIA H200": "H200", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA L4": "L4",
        "NVIDIA GeForce RTX 4090": "RTX 4090", "Tesla T4": "T4", "NVIDIA L40S": None, "NVIDIA H100 PCIe": None,
        "NVIDIA GeForce RTX 4090 Laptop GPU": None, "NVIDIA A100-PCIE-40GB": None,
    }  # fmt: skip
    for title, name in titles.items():
        found = gpu_titled(title)
        assert (found.name if found else None) == name, title


def test_every_architecture_is_known_everywhere():
    assert set(LIMITS) == set(MULTIPROCESSORS) >= {*ARCHITECTURES, *(each.architecture for each in GPUS)}
