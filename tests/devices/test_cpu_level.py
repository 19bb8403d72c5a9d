"""CONVBACKPROP_CPU_LEVEL: what it may be, and that the cpu device's kernels follow it."""

from __future__ import annotations

import ctypes
import json
import platform

import pytest

from convbackprop.bench import machine
from convbackprop.devices import compiler, cpu_level, get_device
from convbackprop.devices.compiler import Source
from convbackprop.devices.cpu import CpuDevice, cpu_device
from convbackprop.devices.cpu_level import LEVELS, architecture_flag, cpu_vector_bytes
from convbackprop.errors import DeviceUnusable, InvalidArgument

#: What a CPU has that has all of a level and nothing of the next.
FLAGS = {
    level: frozenset(flag for below in list(LEVELS)[: i + 1] for flag in LEVELS[below].adds)
    for i, level in enumerate(LEVELS)
}


@pytest.fixture
def named(monkeypatch):
    """Sets the variable, and what the CPU is said to be."""

    def name(level, flags=FLAGS["v4"], machine="x86_64"):
        monkeypatch.setenv("CONVBACKPROP_CPU_LEVEL", level)
        monkeypatch.setattr(cpu_level, "_flags", lambda: flags)
        monkeypatch.setattr(platform, "machine", lambda: machine)

    return name


@pytest.mark.parametrize(("level", "vector_bytes"), [("v2", 16), ("v3", 32), ("v4", 64)])
def test_levels(named, level, vector_bytes):
    named(level, FLAGS[level])
    assert cpu_level.cpu_level() == level and architecture_flag() == f"-march=x86-64-{level}"
    assert cpu_vector_bytes() == vector_bytes
    named("native", FLAGS[level])
    assert cpu_level.cpu_level() == "native" and architecture_flag() == "-march=native"
    assert cpu_vector_bytes() == vector_bytes
    named("", FLAGS[level])  # as where it is not set
    assert cpu_level.cpu_level() == "native"


@pytest.mark.parametrize("level", ["v1", "v5", "V3", "avx2", "x86-64-v3"])
def test_another_word_is_refused(named, level):
    named(level)
    sentence = f"CONVBACKPROP_CPU_LEVEL is {level!r}; it should be one of native, v2, v3, v4"
    for call in (cpu_level.cpu_level, architecture_flag, cpu_vector_bytes, CpuDevice, compiler.cxx_name):
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert str(caught.value) == sentence


def test_a_level_that_this_cpu_lacks(named):
    named("v4", FLAGS["v3"])
    with pytest.raises(DeviceUnusable) as caught:
        CpuDevice()
    assert str(caught.value) == (
        "CONVBACKPROP_CPU_LEVEL is 'v4', but this CPU lacks avx512bw, avx512cd, avx512dq, avx512f, avx512vl; "
        "it should be one of native, v2, v3"
    )
    named("v3", FLAGS["v4"] - {"movbe"})  # a higher level has all of the lower ones
    with pytest.raises(DeviceUnusable, match=r"lacks movbe; it should be one of native, v2$"):
        architecture_flag()
    named("v2", frozenset())
    with pytest.raises(DeviceUnusable, match=r"lacks cx16, .*; it should be native$"):
        architecture_flag()


def test_other_machines_have_no_levels(named):
    named("v3", frozenset(), "aarch64")
    with pytest.raises(
        DeviceUnusable, match="is 'v3', but x86-64's levels mean nothing on aarch64; it should be native"
    ):
        architecture_flag()
    named("native", frozenset(), "aarch64")
    assert architecture_flag() == "-mcpu=native" and cpu_vector_bytes() == 16


def test_kernels_are_compiled_for_the_level(level, tmp_path):
    """Each level's by a name of its own; the device refuses nothing that this CPU has."""
    path = tmp_path / "registers.cu"
    path.write_text(
        "#if defined(__AVX512F__)\n#define BYTES 64\n#elif defined(__AVX2__)\n#define BYTES 32\n#else\n"
        '#define BYTES 16\n#endif\nextern "C" __constant__ int bytes = BYTES;\n'
        'extern "C" __global__ void registers(int* y) { *y = bytes; }\n'
    )
    made = compiler.shared_object(Source.of(path, {}))
    assert (
        ctypes.c_int.in_dll(ctypes.CDLL(str(made)), "bytes").value == cpu_vector_bytes() == LEVELS[level].vector_bytes
    )
    assert made == compiler.shared_object(Source.of(path, {}))
    assert compiler.cxx_name().endswith(f" for x86-64-{level} (CONVBACKPROP_CPU_LEVEL)")
    checked = compiler.checked_object(Source.of(path, {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CONVBACKPROP_CPU_LEVEL")
        assert compiler.shared_object(Source.of(path, {})) != made
        assert compiler.checked_object(Source.of(path, {})) != checked
        assert "CONVBACKPROP_CPU_LEVEL" not in compiler.cxx_name()


def test_timings_name_the_level(level):
    facts = machine.environment(cpu_device(), ())
    assert f"for x86-64-{level}" in facts["compiler"] and f"for x86-64-{level}" in machine.one_line(facts)


def test_doctor_prints_the_level(level, run, monkeypatch):
    found = {each["item"]: each for each in json.loads(run("doctor", "--json")[1])["findings"]}
    words = f"level {level}, vectors of {LEVELS[level].vector_bytes} bytes (CONVBACKPROP_CPU_LEVEL)"
    assert found["cpu device"]["usable"] and words in found["cpu device"]["found"]
    monkeypatch.setenv("CONVBACKPROP_CPU_LEVEL", "v9")
    monkeypatch.setattr("convbackprop.cli.doctor.cpu_device", CpuDevice)  # as in a new process
    found = {each["item"]: each for each in json.loads(run("doctor", "--json")[1])["findings"]}
    assert not found["cpu device"]["usable"] and "CONVBACKPROP_CPU_LEVEL is 'v9'" in found["cpu device"]["found"]
    assert found["cpu device"]["todo"] == "it should be one of native, v2, v3, v4"


def test_it_means_nothing_to_other_devices(monkeypatch, stand_in):
    monkeypatch.setenv("CONVBACKPROP_CPU_LEVEL", "v9")
    assert get_device("cuda").kind == "cuda"
