"""The cache of compiled kernels: what its names depend on, damage, trust, many processes, and warm starts.

Each test has a cache directory of its own and processes of their own. A script in front of the C++ compiler logs how
often it compiles.
"""

from __future__ import annotations

import ast
import ctypes
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convbackprop import CompileError, InvalidArgument
from convbackprop.devices import cache, compiler
from convbackprop.devices.compiler import Source
from convbackprop.devices.cpu import load_from_memory
from convbackprop.errors import EnvironmentProblem
from convbackprop.ladder.registry import VARIANTS
from convbackprop.launch.plan import constants_of
from convbackprop.problem import ConvProblem

USE = """\
import numpy as np, convbackprop
y = convbackprop.conv2d(np.ones((4, 4), np.float32), np.ones((2, 2), np.float32), device="cpu")
assert (y == 4).all(), y
"""


class Place:
    """A cache directory, and a compiler that logs its calls, and optimises nothing: here little is computed."""

    def __init__(self, tmp_path):
        self.folder = tmp_path / "cache"
        self.log = tmp_path / "calls"
        self.log.touch()
        wrapper = tmp_path / "g++"
        wrapper.write_text(f'#!/bin/sh\necho "$*" >> "{self.log}"\nexec "{compiler.find_cxx()}" "$@" -O0\n')
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


def swap(path, other):
    """Put another entry, which is sound, in place of this one."""
    os.replace(other.path, path)
    os.replace(other.path.with_suffix(".json"), path.with_suffix(".json"))


DAMAGES = {
    "truncated": truncate,
    "a bit flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "no manifest": lambda path: path.with_suffix(".json").unlink(),
    "half a manifest": lambda path: truncate(path.with_suffix(".json")),
    "a manifest of another shape": lambda path: path.with_suffix(".json").write_text("[1]"),
    "a manifest without end": lambda path: path.with_suffix(".json").write_text("[" * 200_000),
    "another's name": lambda path: swap(path, cache.entry("other", ".thing", lambda made: made.write_text("b") and {})),
    "written by others": lambda path: path.chmod(0o666),
    "a manifest written by others": lambda path: path.with_suffix(".json").chmod(0o622),
}


def test_damaged_kernels_are_never_loaded(place):
    place.run()
    kernels = place.files(".so")
    for path, damage in zip(kernels, (truncate, flip), strict=True):  # the runtime and the kernel
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


@pytest.mark.parametrize("suffix", [".thing", ".json"])
def test_no_bit_and_no_byte_of_an_entry_can_change(here, suffix):
    """Of the manifest, too: what it tells of a kernel is shown to users."""
    known = {"log": "registers 7"}
    made = cache.entry("frail", ".thing", lambda path: path.write_text("a thing") and known)
    file = made.path.with_suffix(suffix)
    sound = file.read_bytes()
    damaged = [sound[:length] for length in range(len(sound))]
    for i in range(len(sound)):
        changed = bytearray(sound)
        changed[i] ^= 1 << i % 8
        damaged.append(bytes(changed))
    for data in damaged:
        file.write_bytes(data)
        kept = cache._kept(made.path)
        assert kept is None or (kept.known, kept.content) == (known, b"a thing")  # a JSON of the same meaning
    file.write_bytes(sound)
    assert cache._kept(made.path) == made


def test_a_file_that_is_damaged_each_time_is_an_error(here):
    made = cache.entry("frail", ".thing", lambda path: path.write_text("a thing") and {})
    assert cache.content(made.path, lambda: pytest.fail("built again")) == b"a thing"
    attempts = []
    flip(made.path)
    with pytest.raises(CompileError, match=r"does not keep what is written to it: .*frail.thing is damaged each time"):
        cache.content(made.path, lambda: attempts.append(1))
    assert len(attempts) > 1
    assert cache.content(made.path, lambda: flip(made.path)) == b"a thing"  # the same bit, flipped back


def library(folder, value):
    """Return a small shared object whose function answers with a number."""
    source, made = folder / "answer.c", folder / "answer.so"
    source.write_text(f"int answer(void) {{ return {value}; }}\n")
    subprocess.run([compiler.find_cxx(), "-x", "c", "-shared", "-fPIC", source, "-o", made], check=True)
    return made


def test_what_was_checked_is_what_runs(tmp_path):
    """Whatever becomes of a file after it was read; and one of the same name is not taken for it."""
    answers = []
    for value in (1, 2):
        path = library(tmp_path, value)
        content = path.read_bytes()
        path.write_bytes(b"")
        for _ in range(20):
            answers.append((value, load_from_memory(path, content, ctypes.DEFAULT_MODE)))
    assert [loaded.answer() for _, loaded in answers] == [value for value, _ in answers]


def test_where_nothing_can_be_loaded_from_memory(tmp_path, monkeypatch):
    path = library(tmp_path, 3)
    monkeypatch.setattr(os, "memfd_create", lambda name: (_ for _ in ()).throw(OSError("not permitted")))
    assert load_from_memory(path, path.read_bytes(), ctypes.DEFAULT_MODE).answer() == 3


# -- trust -------------------------------------------------------------------------------------------------------------
def planted(folder):
    """Make a cache with a sound entry in it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    return cache.entry("planted", ".txt", lambda path: path.write_text("planted") and {})


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o702])
def test_directory_that_others_can_write_to_is_not_used(here, mode):
    made = planted(here.with_name("cache"))
    made.path.parent.chmod(mode)
    cache._usable.cache_clear()
    with pytest.warns(UserWarning) as warned:
        assert cache.remembered("planted", lambda: "own") == "own"
        assert cache.remembered("planted", lambda: "again") == "own"
    assert [str(warning.message) for warning in warned] == [
        f"the kernel cache {made.path.parent} is not used: it can be written by others (mode {mode:o}), and what is in "
        "it is code; kernels are compiled again in each process. Set CONVBACKPROP_CACHE_DIR to a directory that only "
        "you can write to."
    ]
    substitute = cache.directory()
    assert stat.S_IMODE(substitute.stat().st_mode) == 0o700
    assert substitute.stat().st_uid == os.geteuid()
    assert made.path.read_text() == "planted"
    shutil.rmtree(substitute)


def test_directory_of_another_user_is_not_used(here, monkeypatch):
    made = planted(here.with_name("cache"))
    owner = os.geteuid()
    cache._usable.cache_clear()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.warns(UserWarning, match=f"it belongs to user {owner} and not to you, user {owner + 1}, and what"):
        substitute = cache.directory()
    assert substitute != made.path.parent
    shutil.rmtree(substitute)


def test_entry_of_another_user_is_built_again(here, monkeypatch):
    made = planted(here.with_name("cache"))
    assert cache._kept(made.path) == made
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert cache._kept(made.path) is None


def test_cache_is_private_whatever_the_umask(here):
    before = os.umask(0)
    try:
        made = cache.entry("open", ".thing", lambda path: path.write_text("a thing") and {})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (made.path, made.path.with_suffix(".json"))}
    assert (stat.S_IMODE(made.path.parent.stat().st_mode), modes) == (0o700, {0o600})


def test_cache_that_was_removed_is_made_again(here):
    cache.entry("first", ".thing", lambda path: path.write_text("a thing") and {})
    shutil.rmtree(cache.directory())
    assert cache.remembered("second", lambda: "found") == "found"
    assert cache.remembered("second", lambda: pytest.fail("not kept")) == "found"


# -- names that a shell would read -------------------------------------------------------------------------------------
EVIL = "a;b $(touch pwned) `touch pwned` 'c' & touch pwned"


@pytest.mark.parametrize("what", ["cpu", "cubin", "ptx"])
def test_no_name_reaches_a_shell(tmp_path, monkeypatch, what):
    """Of a file, of its folder, of the cache's folder. nvcc would give its arguments to a shell."""
    folder = tmp_path / EVIL
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVBACKPROP_CACHE_DIR", str(tmp_path / f"cache {EVIL}"))
    (folder / "value.cuh").write_text("#define VALUE 7\n")
    kernel = folder / f"{EVIL}.cu"
    kernel.write_text(
        '#include "value.cuh"\n#include "conv2d.cuh"\nextern "C" __global__ void k(int* x) { *x = VALUE; }\n'
    )
    source = Source.of(kernel, {"NAME": EVIL, "SCALAR": "float32"})
    if what == "cpu":
        made = compiler.shared_object(source)
    else:
        try:
            compiler.find_nvcc()
        except compiler.CompilerNotFound as error:
            pytest.skip(str(error))
        made = compiler.ptx(source, "sm_80") if what == "ptx" else compiler.cubin(source, "sm_80")[0]
    assert made.stat().st_size
    assert not list(tmp_path.rglob("pwned"))
    kernel.write_text(kernel.read_text() + "wrong\n")
    with pytest.raises(CompileError, match=r"(?s)touch pwned.*wrong"):
        compiler.shared_object(source) if what == "cpu" else compiler.cubin(source, "sm_80")
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("name", ['a"b', "a\nb"])
def test_name_that_cannot_be_included(tmp_path, name):
    kernel = tmp_path / f"{name}.cu"
    kernel.write_text('extern "C" __global__ void k(int* x) { *x = 1; }\n')
    with pytest.raises(InvalidArgument, match="with which no file can be included"):
        compiler.shared_object(Source.of(kernel, {}))


def test_the_package_runs_no_shell_and_no_data():
    """No call that starts a shell, or that runs what a file holds: pickles, YAML, archives unpacked unseen, eval."""
    forbidden = {"popen", "getoutput", "getstatusoutput", "create_subprocess_shell", "extractall", "unpack_archive",
                 "unsafe_load"}  # fmt: skip
    modules = {"pickle", "marshal", "shelve", "dill", "yaml", "joblib"}
    root = Path(__file__).parents[2]
    seen = 0
    for path in [file for folder in ("convbackprop", "tools", "benchmarks") for file in (root / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                seen += 1
                called = ast.unparse(node.func)
                # Not platform.system, and not the eval of a torch module.
                if called == "eval" and path.name == "arguments.py":
                    continue  # fuzz runs the calls that it has drawn itself, and prints, as text
                assert called not in ("os.system", "eval", "exec") and called.rpartition(".")[2] not in forbidden, where
                assert not any(k.arg in ("shell", "allow_pickle") for k in node.keywords), where
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {name.partition(".")[0] for name in names} & modules, where
    assert seen > 1000


# -- many processes ----------------------------------------------------------------------------------------------------
HOLD = """\
import sys, time
from convbackprop.devices import cache
def build(path):
    path.write_text("half"); print("building", flush=True); time.sleep(10**6)
cache.entry("wanted", ".thing", build)
"""


@pytest.fixture
def holder(place):
    """A process that is in the middle of building "wanted"."""
    process = place.start(HOLD)
    assert process.stdout.readline() == "building\n"
    yield process
    process.kill()
    process.communicate()


def wanted():
    """Have "wanted" built; return whether alone."""
    folders = []

    def build(path):
        folders.append(path.parent.name)
        path.write_text("whole")
        return {}

    made = cache.entry("wanted", ".thing", build)
    assert made.path.read_text() == "whole"
    (folder,) = folders
    return not folder.startswith("unlocked-")


def test_lock_of_a_process_that_was_killed(here, place, holder, monkeypatch):
    """It is free, and what that process had begun is removed."""
    assert len(list(place.folder.glob("building/*"))) == 1
    holder.kill()
    holder.wait()
    monkeypatch.setattr(cache, "_PATIENCE", 0)
    assert wanted()
    assert not list(place.folder.glob("building/*"))


def test_lock_of_a_process_that_is_stopped(here, place, holder, monkeypatch):
    holder.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(cache, "_PATIENCE", 0.3)
    begin = time.monotonic()
    assert not wanted()
    assert time.monotonic() - begin >= 0.3
    assert len(list(place.folder.glob("building/*"))) == 1  # what the stopped one has begun is left to it


def test_file_system_without_locks(here, monkeypatch):
    monkeypatch.setattr("filelock.FileLock.__enter__", lambda lock: (_ for _ in ()).throw(OSError("no locks")))
    assert not wanted()


@pytest.mark.slow
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
    assert not list(place.folder.glob("building/*"))


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
        patch.setattr("convbackprop.devices.compiler.__version__", "0.0.0")
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

    with pytest.raises(EnvironmentProblem, match=r"cannot be written now \(no more\)"):
        cache.entry("failing", ".thing", build)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.suffix != ".lock" and file.is_file()]
