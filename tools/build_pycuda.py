"""Build PyCUDA's wheel for the interpreter that runs this, with or without an NVIDIA driver on the machine.

PyCUDA is published as source only, and `pip install pycuda` fails where it guesses the CUDA toolkit's place
wrongly or where curand.h or libcuda.so is missing. The wheel that this builds needs a driver only when used.

build_pycuda.py            put the wheel, and those of what PyCUDA needs at run time, into build/wheels; for a
                           machine without a network: pip install --no-index --find-links build/wheels pycuda
build_pycuda.py --install  install it in this interpreter's environment too
build_pycuda.py --optional go on where it fails: the tests that need it are skipped with their reason

A wheel that is there is used again, or one that another checkout has left in the user's cache directory. Else it takes
some two minutes on two cores.
"""

import argparse
import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "build" / "wheels"
CONSTRAINTS = ROOT / "constraints.txt"
#: Wheels for other checkouts: what is left here is code, so only a directory that is the user's own is used.
KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convbackprop-wheels"


def pinned(name: str) -> str:
    """Return "name==version" as constraints.txt has it."""
    found = re.search(rf"(?m)^{re.escape(name)}==[^;\s]+", CONSTRAINTS.read_text())
    if not found:
        sys.exit(f"{CONSTRAINTS.name} does not pin {name}")
    return found.group()


def pip(*arguments: str, may_fail: bool = False, **environment: str) -> bool:
    """Run this interpreter's pip under the pins; say whether it succeeded, or end with its exit status."""
    pins = {"PIP_CONSTRAINT": CONSTRAINTS.as_uri(), "PIP_BUILD_CONSTRAINT": CONSTRAINTS.as_uri()}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    errors = subprocess.DEVNULL if may_fail else None
    status = subprocess.run(command, env={**os.environ, **pins, **environment}, stderr=errors).returncode
    if status and not may_fail:
        sys.exit(status)
    return status == 0


def toolkit(scratch: Path) -> Path:
    """Return the root of a CUDA toolkit: this machine's, else one made of the headers' wheel.

    The machine's own comes first because its headers choose the versions of the driver's entry points: a
    wheel built with newer ones than the driver knows cannot be loaded.
    """
    candidates = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if nvcc := shutil.which("nvcc"):
        # nvcc may be a script that calls the real one elsewhere, so ask it where it lives.
        dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
        candidates += [f"{here}/.." for here in re.findall(r"(?m)^#\$ _HERE_=(.+)$", dry.stderr)]
    candidates += ["/usr/local/cuda"]
    candidates += [str(found) for folder in sys.path for found in Path(folder).glob("nvidia/cu*")]
    for candidate in candidates:
        # PyTorch may have brought a part of a toolkit, with the first of these two headers only.
        if all(Path(candidate, "include", header).is_file() for header in ("cuda.h", "cudaProfiler.h")):
            return Path(candidate).resolve()
    print("PyCUDA: no CUDA toolkit on this machine; fetching its headers.", flush=True)
    headers = [pinned("nvidia-cuda-runtime"), pinned("nvidia-cuda-profiler-api")]
    pip("install", "-qq", "--no-deps", "--target", str(scratch / "headers"), *headers)
    return next((scratch / "headers").glob("nvidia/cu*"))


def build(scratch: Path) -> None:
    """Build the wheel into WHEELS."""
    root = toolkit(scratch)
    print(f"PyCUDA: building with the headers of {root} (some two minutes).", flush=True)

    # Linked instead of the driver's libcuda.so, which a machine without a driver lacks: all that the wheel
    # takes from it is the name libcuda.so.1.
    stubs = scratch / "stubs"
    stubs.mkdir()
    stub = ["-shared", "-fPIC", "-xc", "-", "-Wl,-soname,libcuda.so.1", "-o", str(stubs / "libcuda.so")]
    subprocess.run([os.environ.get("CC", "gcc"), *stub], input="int unused;", text=True, check=True)

    # PyCUDA's setup.py takes its settings from this file in the home directory, so it gets a home of its own.
    home = scratch / "home"
    home.mkdir()
    settings = {
        "CUDA_ROOT": str(root),
        "CUDA_ENABLE_CURAND": False,  # curand.h is not part of every toolkit
        "CUDADRV_LIB_DIR": [str(stubs)],
    }
    lines = [f"{key} = {value!r}\n" for key, value in settings.items()]
    (home / ".aksetup-defaults.py").write_text("".join(lines))
    environment = {
        "HOME": str(home),
        # These take the place of setuptools' own. -w: an old copy of Boost gives thousands of warnings.
        "CXXFLAGS": "-O2 -DNDEBUG -g0 -w",
        # No symbol comes from the stub, so a linker told --as-needed (Debian's) would not record it, and
        # on a GPU machine the symbols would be undefined. PyCUDA's own LDFLAGS setting splits at commas.
        "LDFLAGS": "-Wl,--no-as-needed -s",
    }
    # pip's own settings are found by the home directory too.
    for config in (Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf"):
        if config.is_file():
            environment.setdefault("PIP_CONFIG_FILE", os.environ.get("PIP_CONFIG_FILE", str(config)))

    finished = scratch / "wheel"
    pip("wheel", "-qq", "--no-deps", "--no-cache-dir", "-w", str(finished), pinned("pycuda"), **environment)
    (wheel,) = finished.glob("pycuda-*.whl")

    # The one thing that goes wrong without a word.
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(scratch / "unpacked")], check=True)
    (extension,) = (scratch / "unpacked").rglob("_driver*.so")
    if b"libcuda.so.1" not in extension.read_bytes():
        sys.exit("the wheel was built, but does not ask for libcuda.so.1")
    WHEELS.mkdir(parents=True, exist_ok=True)
    shutil.move(wheel, WHEELS / wheel.name)


def report() -> None:
    """Say what of PyCUDA works here."""
    code = (
        "import pycuda; print(f'PyCUDA: import pycuda works ({pycuda.VERSION_TEXT}).')\n"
        "try:\n"
        "    import pycuda.driver as driver\n"
        "    driver.init()\n"
        "    print(f'PyCUDA: the driver is there, with {driver.Device.count()} device(s).')\n"
        "except Exception as error:\n"
        "    print(f'PyCUDA: pycuda.driver cannot be used on this machine: {error}.')\n"
    )
    sys.exit(subprocess.run([sys.executable, "-c", code]).returncode)


def main() -> None:
    """Run the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--optional", action="store_true")
    options = parser.parse_args()
    if not options.optional:
        make(options.install)
    elif not built():
        try:
            make(install=False)
        except (SystemExit, OSError, subprocess.CalledProcessError) as failure:
            print(
                f"PyCUDA: cannot be built here ({failure}); the tests on a stand-in for a GPU are skipped.", flush=True
            )


def built(folder: Path = WHEELS) -> list[Path]:
    """Return the wheel for this interpreter, if it is there."""
    tag = "cp{}{}".format(*sys.version_info)
    return list(folder.glob(f"{pinned('pycuda').replace('==', '-')}-{tag}-*.whl"))


def trusted(folder: Path) -> bool:
    """Return whether nobody but this user can have written to a directory."""
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def fetch_kept() -> None:
    """Take the wheel that another checkout has built, if there is one."""
    if KEPT.is_dir() and trusted(KEPT):
        for wheel in built(KEPT):
            WHEELS.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, WHEELS)


def keep() -> None:
    """Leave the wheel to other checkouts."""
    with contextlib.suppress(OSError):  # it is here, and that is enough
        KEPT.mkdir(mode=0o700, parents=True, exist_ok=True)
        if trusted(KEPT):
            for wheel in built():
                unfinished = KEPT / f"{wheel.name}.{os.getpid()}"
                shutil.copy(wheel, unfinished)
                unfinished.replace(KEPT / wheel.name)


def make(install: bool) -> None:
    """Build the wheel where it is missing, and see to it that what it needs lies beside it."""
    if not built():
        fetch_kept()
    if not built():
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            build(Path(scratch))
        print(f"PyCUDA: built in {time.monotonic() - start:.0f} s.", flush=True)
        keep()
    (wheel,) = built()
    print(f"PyCUDA: {wheel.relative_to(ROOT)}", flush=True)

    links = ["-qq", "--find-links", WHEELS.as_uri(), "--only-binary", ":all:"]
    download = ["download", *links, "-d", str(WHEELS), pinned("pycuda")]
    if not pip(*download, "--no-index", may_fail=True):  # no network is needed once all is there
        pip(*download)
    if install:
        pip("install", *links, "--no-index", pinned("pycuda"))
        report()
    else:
        print("PyCUDA: elsewhere, pip install --no-index --find-links build/wheels pycuda", flush=True)


if __name__ == "__main__":
    main()
