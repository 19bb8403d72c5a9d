"""The search: it finds what is fastest, of what is right, and leaves out what cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from convbackprop.bench.timing import CpuStage, CudaStage
from convbackprop.devices.compiler import find_nvcc
from convbackprop.devices.gpus import gpu
from convbackprop.errors import CompilerNotFound, DeviceUnusable, EnvironmentProblem
from convbackprop.ladder.registry import choose, of_pass, select
from convbackprop.ladder.variant import pinned
from convbackprop.problem import ConvProblem
from convbackprop.tune import search
from convbackprop.tune.search import Search, chosen_of, neighbours, why_hopeless
from convbackprop.tune.table import SEPARATE, UNTUNED, digest_of

PROBLEM = ConvProblem.parse("2,1,9,11,1,3,3,padding=1,activation=relu,bias=1")


class Clocked:
    """A call that still runs, and takes as long as it is told."""

    taken = 0.0

    def __init__(self, call, seconds):
        self.call, self.seconds = call, seconds

    def __call__(self):
        self.call()
        Clocked.taken += self.seconds


@pytest.fixture
def clocked(monkeypatch):
    """Calls take as long as a function says of the variants that they run."""
    ours = CpuStage.ours

    def clock(stage, call):
        Clocked.taken = 0.0
        call()
        return Clocked.taken

    def by(seconds):
        monkeypatch.setattr(CpuStage, "ours", lambda s, v, *more: Clocked(ours(s, v, *more), seconds(v)))
        monkeypatch.setattr(CpuStage, "clock", clock)

    return by


def searched(device, pass_name="forward", problem=PROBLEM, seconds=60.0, others=(), hints=()):
    found = Search(pass_name, problem, device, seconds)
    rule = [(choose(pass_name, UNTUNED, problem, device.kind), problem)]
    return found.run(rule, others, hints), found


def test_what_is_planted_is_found(quick, clocked):
    """Two steps from the rule's choice, each of which is faster."""
    clocked(lambda v: 1.0 if v.name != "vectorised" else 0.5 - 0.1 * (chosen_of(v).get("ROWS") == 8)
            - 0.1 * (chosen_of(v).get("THREADS") == 64))  # fmt: skip
    entry, found = searched(quick)
    assert (entry.variant, entry.tunables) == ("vectorised", {"ROWS": 8, "THREADS": 64})
    assert (entry.us, entry.rule_us) == pytest.approx((0.3e6, 0.5e6)) and entry.stale is None
    assert entry.code == digest_of(select("forward/vectorised")[0]) and found.tried > 10


def test_another_rung(quick, clocked):
    clocked(lambda v: 0.1 if v.name == "naive" else 0.5)
    entry, _ = searched(quick)
    assert (entry.variant, dict(entry.tunables)) == ("naive", {}) and entry.rung is select("forward/naive")[0]


@pytest.mark.parametrize("share", [0.975, 1.0, 1.5])
def test_what_is_hardly_faster_does_not_count(quick, clocked, share):
    clocked(lambda v: share if chosen_of(v) else 1.0)
    entry, _ = searched(quick)
    assert (entry.variant, entry.tunables, entry.us) == (UNTUNED, {}, 1e6) and entry.rung is None


def test_what_is_wrong_does_not_count(quick, clocked, monkeypatch):
    """The fastest of all reads beyond the image's border."""
    naive = select("forward/naive")[0]
    wrong = dataclasses.replace(
        naive, name="wrong", file=Path(__file__).parents[1] / "wrong" / "forward_border_off_by_one.cu"
    )
    monkeypatch.setattr(search, "of_pass", lambda name: (*of_pass(name), wrong))
    clocked(lambda v: 0.01 if v.name == "wrong" else 0.1 if v.name == "naive" else 0.5)
    entry, found = searched(quick)
    assert entry.variant == "naive" and found.left_out >= 1


def test_no_time(quick, clocked):
    """What the rule chooses is timed all the same; nothing else is."""
    clocked(lambda v: 0.1 if chosen_of(v) else 0.5)
    entry, found = searched(quick, seconds=1e-9)
    assert entry.variant == UNTUNED and found.tried <= 2


@pytest.mark.slow
def test_it_begins_with_hints(quick, clocked):
    """Far from the rule's choice, with nothing better on the way."""
    hint = pinned(select("forward/vectorised")[0], (("COLS", 64), ("ROWS", 8), ("THREADS", 256)))
    clocked(lambda v: 0.1 if v is hint else 0.5 + 0.1 * len(chosen_of(v)))
    assert searched(quick)[0].variant == UNTUNED
    assert searched(quick, hints=[hint])[0].tunables == {"COLS": 64, "ROWS": 8, "THREADS": 256}


@pytest.mark.slow
@pytest.mark.parametrize("fused, expected", [(0.5, SEPARATE), (0.2, UNTUNED)])
def test_two_passes_in_place_of_one(quick, clocked, fused, expected):
    parts = [(choose(name, UNTUNED, PROBLEM, "cpu"), PROBLEM.with_(bias=bias))
             for name, bias in (("input_grad", False), ("kernel_grad", True))]  # fmt: skip
    clocked(lambda v: fused if v.pass_name == "backward" else 0.2)
    entry, _ = searched(quick, "backward", others=[parts])
    assert (entry.variant, entry.us) == (expected, pytest.approx(1e6 * min(fused, 0.4)))


def test_the_rule_s_choice_is_wrong(quick, clocked, monkeypatch):
    clocked(lambda v: 1.0)
    monkeypatch.setattr(search, "check", lambda *_, **__: SimpleNamespace(ok=False))
    with pytest.raises(
        EnvironmentProblem, match=r"forward/vectorised, which the rule chooses for 2,1,9.*is wrong; 'conv"
    ):
        searched(quick)


def test_neighbours():
    """One step in one tunable, the small ones first; what is by the rule again is not pinned."""
    vectorised = select("forward/vectorised")[0]
    device = SimpleNamespace(target="cpu")
    near = neighbours(pinned(vectorised, (("ROWS", 16),)), PROBLEM, device)
    chosen = [chosen_of(variant) for variant in near]
    assert {} in chosen and {"ROWS": 8} in chosen and {"ROWS": 16, "THREADS": 64} in chosen
    assert chosen.index({"ROWS": 16, "THREADS": 64}) < chosen.index({"ROWS": 16, "THREADS": 128})
    assert all(variant.rule is vectorised or variant is vectorised for variant in near)
    legal = sum(len(tunable.legal) for tunable in vectorised.tunables.values())
    assert len(near) == len(set(near)) == legal - len(vectorised.tunables)


def test_of_a_large_batch_a_part_is_checked(quick, clocked, monkeypatch):
    monkeypatch.setattr(search, "_CHECKED_FLOPS", PROBLEM.flops)
    monkeypatch.setattr(search, "neighbours", lambda *_: [])
    clocked(lambda v: 1.0)
    checked = []
    check = search.check
    monkeypatch.setattr(search, "check", lambda v, p, *more, **named: checked.append(p) or check(v, p, *more, **named))
    entry, _ = searched(quick, problem=PROBLEM.with_(N=7))
    assert {problem.N for problem in checked} == {2} and entry.problem.N == 7


# -- what is known without a GPU -------------------------------------------------------------------------------------
@pytest.fixture
def h200():
    try:
        find_nvcc()
    except CompilerNotFound as error:
        pytest.skip(f"needs nvcc: {error}")
    return SimpleNamespace(architecture="sm_90a", target=gpu("H200").target, title="NVIDIA H200")


def test_bounded_above_the_best(h200):
    coalesced = select("forward/coalesced")[0]
    large = ConvProblem.parse("1,1,4096,4096,1,3,3,padding=1,activation=relu,bias=1")
    assert why_hopeless(coalesced, large, h200, best=1.0) is None
    assert "memory alone takes 31.2 us" in why_hopeless(coalesced, large, h200, best=2e-5)
    h200.title = "NVIDIA Unheard-of"
    assert why_hopeless(coalesced, large, h200, best=2e-5) is None


def test_spills(h200, monkeypatch):
    from convbackprop.profile import machine_code

    compiled = machine_code.kernels

    def spilling(configuration):
        return [dataclasses.replace(k, usage=k.usage._replace(spill_load_bytes=8)) for k in compiled(configuration)]

    monkeypatch.setattr(machine_code, "kernels", spilling)
    sentence = why_hopeless(select("forward/naive")[0], PROBLEM, h200, best=1.0)
    assert sentence == "forward spills 8 bytes a thread"


def test_a_block_too_large(h200):
    """Tiles of 128 x 128, whose totals are staged, take more shared memory than a multiprocessor of a T4 has."""
    tiles = pinned(select("forward/implicit_gemm")[0], (("DEPTH", 16), ("TILE_M", 128), ("TILE_N", 128)))
    layer = ConvProblem.parse("32,64,56,56,128,3,3,padding=1")
    h200.architecture = "sm_75"
    assert why_hopeless(tiles, layer, h200, best=1.0) == "a block of forward does not fit a multiprocessor"


@pytest.mark.slow
def test_a_search_on_the_cuda_device(stand_in, clocked, monkeypatch):
    """On the stand-in for a GPU: what is launched there is right, and what spills is left out unseen."""
    from tests import driver

    clocked(lambda v: 0.5 - 0.1 * (chosen_of(v).get("ROWS") == 8) - 0.2 * (chosen_of(v).get("COLS") == 4))
    monkeypatch.setattr(CudaStage, "clock", CpuStage.clock)
    monkeypatch.setattr(search, "check_timeable", lambda device: None)
    monkeypatch.setattr(search, "why_hopeless", lambda v, *_: "it spills" if chosen_of(v).get("COLS") == 4 else None)
    entry, found = searched(driver.device())
    assert (entry.variant, entry.tunables) == ("coalesced", {"ROWS": 8}) and found.left_out > 0


def test_the_stand_in_tells_no_times(stand_in):
    from tests import driver

    with pytest.raises(DeviceUnusable, match="the tests' stand-in for a GPU"):
        searched(driver.device())
