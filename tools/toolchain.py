"""See to it that the package finds an nvcc that works, and cuobjdump: the machine's, else wheels in this environment.

toolchain.py             install the wheels of what is missing; fail where no nvcc works then
toolchain.py --optional  the same, but go on where it fails: what needs nvcc is skipped with its reason
toolchain.py --report    install nothing; fail where no nvcc works

With --optional, nothing is tried again where what was found last is found again (the stamp lies in the environment).
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

from convbackprop.devices.compiler import find_nvcc
from convbackprop.errors import CompilerNotFound, EnvironmentProblem
from convbackprop.profile.sass import find_cuobjdump

STAMP = Path(sys.prefix) / ".toolchain"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

PROGRAM = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
extern "C" __global__ void narrow(__half* y, const __nv_bfloat16* x) {
    y[threadIdx.x] = __float2half(__bfloat162float(x[threadIdx.x]));
}
"""


def fault(nvcc: Path, *architectures: str) -> str | None:
    """Say why this nvcc cannot compile PROGRAM to a cubin, or None."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "narrow.cu")
        source.write_text(PROGRAM)
        for number in architectures:
            target = f"-gencode=arch=compute_{number},code=sm_{number}"
            command = [str(nvcc), target, "-cubin", "-o", f"{folder}/narrow.cubin", str(source)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            except OSError as error:
                return f"{nvcc} cannot be run: {error.strerror}"
            if done.returncode:
                said = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
                errors = [line for line in said if "error" in line or "fatal" in line]
                return f"{nvcc} fails: {(errors or said)[0]}"
    return None


def find(*architectures: str) -> tuple[Path | None, str]:
    """Return the nvcc that the package uses, or None where it does not work, and a sentence on it."""
    try:
        nvcc = find_nvcc()
    except CompilerNotFound:
        return None, "no nvcc was found"
    why_not = fault(nvcc, *architectures)
    return (None, why_not) if why_not else (nvcc, f"{nvcc} works")


def found(search: Callable[[], Path]) -> str:
    """Return what a search of the package finds, or nothing."""
    try:
        return str(search())
    except EnvironmentProblem:
        return ""


def pip_install(extra: str, quiet: bool) -> bool:
    """Install an extra's own wheels into this environment; return whether that worked."""
    entries = [entry for entry in requires("convbackprop") or () if entry.endswith(f'extra == "{extra}"')]
    wheels = [entry.partition(";")[0].strip() for entry in entries if not entry.startswith("convbackprop[")]
    # Few attempts: it may be that there is no network.
    options = ["-qq", "--retries", "1", "--timeout", "20", "-c", CONSTRAINTS.as_uri()]
    pip = [sys.executable, "-m", "pip", "install", *options, *wheels]
    return not subprocess.run(pip, stderr=subprocess.DEVNULL if quiet else None).returncode


def install_nvcc(quiet: bool) -> tuple[Path | None, str]:
    """Install nvcc's wheels; return as find does."""
    print("Toolchain: fetching nvcc's wheels (a minute or so; 271 MB on disk).", flush=True)
    if not pip_install("toolchain", quiet):
        return None, "nvcc's wheels could not be installed" + (" (make toolchain says why)" if quiet else "")
    nvcc, sentence = find("75", "90a", "120")
    from_wheels = next((f for folder in sys.path for f in Path(folder).glob("nvidia/cu*/bin/nvcc")), None)
    if nvcc is None and from_wheels and not fault(from_wheels, "75"):
        sentence += f"; CONVBACKPROP_NVCC={from_wheels} would put the one from the wheels before it"
    return nvcc, sentence


def state() -> str:
    """Return what is found, for the stamp."""
    return f"{found(find_nvcc)}\n{found(find_cuobjdump)}\n"


def main() -> int:
    """Run the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--optional", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()

    if options.optional and STAMP.is_file() and STAMP.read_text() == state():
        return 0
    nvcc, sentence = find("80")
    if nvcc is None and not options.report:
        print(f"Toolchain: {sentence}.", flush=True)
        nvcc, sentence = install_nvcc(quiet=options.optional)
    if not options.report:
        if not found(find_cuobjdump):
            pip_install("sass", quiet=options.optional)
        if nvcc:
            STAMP.write_text(state())
    without = "; going on without nvcc" if options.optional and nvcc is None else ""
    print(f"Toolchain: {sentence}{without}; {found(find_cuobjdump) or 'no cuobjdump'}.", flush=True)
    return 0 if nvcc or options.optional else 1


if __name__ == "__main__":
    sys.exit(main())
