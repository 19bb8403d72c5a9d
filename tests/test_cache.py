"""The cache of compiled kernels: what its names depend on, damage, many processes, and warm starts.

Each test has a cache directory of its own and processes of their own. A script in front of the C++ compiler logs how
often it compiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from convbackprop import cache, compiler
from convbackprop.compiler import Source
from convbackprop.plan import constants_of
from convbackprop.problem import ConvProblem
from convbackprop.variants import VARIANTS

USE = """\
import numpy as np, convbackprop
y = convbackprop.conv2d(np.ones((4, 4), np.float32), np.ones((2, 2), np.float32), device="cpu")
assert (y == 4).all(), y
"""


class Place:
    """A cache directory, and a compiler that logs its calls."""

    def __init__(self, tmp_path):
        self.folder = tmp_path / "cache"
        self.log = tmp_path / "calls"
        self.log.touch()
        wrapper = tmp_path / "g++"
        wrapper.write_text(f'#!/bin/sh\necho "$*" >> "{self.log}"\nexec "{compiler.find_cxx()}" "$@"\n')
        wrapper.chmod(0o755)
        self.environment = {
            **os.environ,
            "CONVBACKPROP_CACHE_DIR": str(self.folder),
            "CONVBACKPROP_CXX": str(wrapper),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONWARNINGS": "default",
        }

    def start(self, code=USE):
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code=USE):
        """Run Python code; return what it printed and how often the compiler was called."""
        before = len(self.calls())
        process = self.start(code)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        self.errors = errors
        return output.strip(), len(self.calls()) - before

    def calls(self):
        return self.log.read_text().splitlines()

    def files(self, suffix):
        return sorted(self.folder.glob(f"*{suffix}"))


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_a_warm_start_calls_no_compiler(place):
    _, cold = place.run()
    assert cold > 0
    assert place.run()[1] == 0
    assert place.run()[1] == 0
    assert place.errors == ""


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


DAMAGES = {
    "truncated": truncate,
    "a bit flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "no manifest": lambda path: path.with_suffix(".json").unlink(),
    "half a manifest": lambda path: truncate(path.with_suffix(".json")),
    "a manifest of another shape": lambda path: path.with_suffix(".json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damaged_kernels_are_never_loaded(place, damage):
    place.run()
    kernels = place.files(".so")
    assert len(kernels) == 2  # the runtime and the kernel
    for path in kernels:
        damage(path)
    assert place.run()[1] >= 2
    assert place.run()[1] == 0
    assert place.files(".so") == kernels


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_entries_are_built_again(here, damage):
    path, *_ = cache.entry("damaged", ".thing", lambda path: path.write_text("a thing") and {"log": "said"})
    damage(path)
    built = []
    again, known, _ = cache.entry(
        "damaged", ".thing", lambda path: built.append(path.write_text("a thing")) or {"log": "new"}
    )
    assert built
    assert (again, again.read_text(), known) == (path, "a thing", {"log": "new"})


def test_eight_processes_on_an_empty_cache(place):
    """All succeed, and each thing is built once."""
    processes = [place.start() for _ in range(8)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert errors == ""
    together = sorted(line.split(" -o ")[0] for line in place.calls())
    alone = type(place)(_sibling(place))
    alone.run()
    assert len(together) == len(alone.calls())
    assert not list(place.folder.glob("building-*"))


def _sibling(place):
    folder = place.folder.parent / "alone"
    folder.mkdir()
    return folder


def test_unwritable_directory_warns_once_and_works(place, tmp_path):
    """Below a regular file nothing can be written, not even by root."""
    (tmp_path / "file").touch()
    place.environment["CONVBACKPROP_CACHE_DIR"] = str(tmp_path / "file" / "cache")
    place.run(USE + USE)
    assert place.errors.count("UserWarning") == 1
    assert f"the kernel cache {tmp_path}/file/cache cannot be written (Not a directory); " in place.errors
    assert "Set CONVBACKPROP_CACHE_DIR to a directory that can." in place.errors
    assert (tmp_path / "file").read_bytes() == b""


def test_temporary_substitute_is_removed(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    place.environment |= {"CONVBACKPROP_CACHE_DIR": str(tmp_path / "file" / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    place.run()
    assert list((tmp_path / "tmp").iterdir()) == []


# -- what a name depends on ------------------------------------------------------------------------------------------
@pytest.fixture
def here(tmp_path, monkeypatch):
    """This process's cache, moved; a .cu file that includes a header that includes another."""
    monkeypatch.setenv("CONVBACKPROP_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "inner.cuh").write_text("#define VALUE 1\n")
    (tmp_path / "outer.cuh").write_text('  #  include "inner.cuh"\n')
    kernel = tmp_path / "kernel.cu"
    kernel.write_text('#include "outer.cuh"\nextern "C" __global__ void kernel(int* x) { *x = VALUE; }\n')
    return kernel


def test_name_follows_every_included_file(here):
    first = compiler.shared_object(Source.of(here, {}))
    assert compiler.shared_object(Source.of(here, {})) == first
    for name in ("inner.cuh", "outer.cuh", "kernel.cu"):
        file = here.with_name(name)
        text = file.read_text()
        file.write_text(text + "// changed\n")
        assert compiler.shared_object(Source.of(here, {})) != first, name
        file.write_text(text)
        assert compiler.shared_object(Source.of(here, {})) == first, name


def test_name_follows_constants_flags_version_and_machine(here, monkeypatch):
    made = [
        compiler.shared_object(Source.of(here, {})),
        compiler.shared_object(Source.of(here, {"A": 1})),
        compiler.shared_object(Source.of(here, {"A": 2})),
        compiler.shared_object(Source.of(here, {}), ("-DUNUSED",)),
    ]
    with monkeypatch.context() as patch:
        patch.setattr("convbackprop.__version__", "0.0.0")
        made.append(compiler.shared_object(Source.of(here, {})))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "cpu_features", lambda: "another CPU")
        made.append(compiler.shared_object(Source.of(here, {})))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "compiler_version", lambda path: "another compiler")
        made.append(compiler.shared_object(Source.of(here, {})))
    assert len(set(made)) == len(made)


def test_name_of_a_cubin_follows_its_architecture(here):
    try:
        compiler.find_nvcc()
    except compiler.CompilerNotFound as error:
        pytest.skip(str(error))
    first, _ = compiler.cubin(Source.of(here, {}), "sm_80")
    assert compiler.cubin(Source.of(here, {}), "sm_90a")[0] != first
    assert compiler.cubin(Source.of(here, {"A": 1}), "sm_80")[0] != first
    assert compiler.cubin(Source.of(here, {}), "sm_80")[0] == first
    here.with_name("inner.cuh").write_text("#define VALUE 2\n")
    assert compiler.cubin(Source.of(here, {}), "sm_80")[0] != first


def test_includes_of_every_kernel_are_seen():
    for variant in VARIANTS:
        texts = compiler.text_with_includes(variant.path)
        assert {variant.path.name, "conv2d.cuh", "scalar.cuh"} <= texts.keys()
        assert constants_of(variant, ConvProblem.parse("1,1,1,1,1,1,1"), "cpu")["SCALAR"] == "float32"


# -- entries -----------------------------------------------------------------------------------------------------------
def test_entry(here, tmp_path):
    def build(path):
        path.write_text("made")
        return {"log": "said"}

    name = cache.digest("a test", 1)
    path, known, content = cache.entry(name, ".thing", build)
    assert (path.read_text(), known, content) == ("made", {"log": "said"}, b"made")
    assert cache.entry(name, ".thing", lambda path: pytest.fail("built twice")) == (path, known, content)
    assert json.loads(path.with_suffix(".json").read_text())["known"] == known
    assert cache.digest("a test", 2) != name


def test_a_build_that_fails_leaves_nothing(here, tmp_path):
    def build(path):
        path.write_text("half")
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        cache.entry("failing", ".thing", build)
    assert not [file for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"]
