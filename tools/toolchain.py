"""See to it that the package finds an nvcc that works: the machine's, else the wheels' in this environment.

toolchain.py             install the wheels where no nvcc works; fail where that fails
toolchain.py --optional  the same, but go on where it fails: what needs nvcc is skipped with its reason
toolchain.py --report    install nothing; fail where no nvcc works

With --optional, an nvcc that has passed is not tried again (the stamp lies in the environment).
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

from convbackprop.devices.compiler import find_nvcc
from convbackprop.errors import CompilerNotFound

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


def install(quiet: bool) -> tuple[Path | None, str]:
    """Install the wheels into this environment; return as find does."""
    print("Toolchain: fetching nvcc's wheels (a minute or so; 271 MB on disk).", flush=True)
    extra = [entry for entry in requires("convbackprop") or () if entry.endswith('extra == "toolchain"')]
    wheels = [entry.partition(";")[0].strip() for entry in extra]
    # Few attempts: it may be that there is no network.
    options = ["-qq", "--retries", "1", "--timeout", "20", "-c", CONSTRAINTS.as_uri()]
    pip = [sys.executable, "-m", "pip", "install", *options, *wheels]
    if subprocess.run(pip, stderr=subprocess.DEVNULL if quiet else None).returncode:
        return None, "nvcc's wheels could not be installed" + (" (make toolchain says why)" if quiet else "")
    nvcc, sentence = find("75", "90a", "120")
    from_wheels = next((f for folder in sys.path for f in Path(folder).glob("nvidia/cu*/bin/nvcc")), None)
    if nvcc is None and from_wheels and not fault(from_wheels, "75"):
        sentence += f"; CONVBACKPROP_NVCC={from_wheels} would put the one from the wheels before it"
    return nvcc, sentence


def main() -> int:
    """Run the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--optional", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()

    if options.optional and STAMP.is_file():
        try:
            if str(find_nvcc()) == STAMP.read_text():
                return 0
        except CompilerNotFound:
            pass
    nvcc, sentence = find("80")
    if nvcc is None and not options.report:
        print(f"Toolchain: {sentence}.", flush=True)
        nvcc, sentence = install(quiet=options.optional)
    if nvcc and not options.report:
        STAMP.write_text(str(nvcc))
    without = "; going on without nvcc" if options.optional and nvcc is None else ""
    print(f"Toolchain: {sentence}{without}.", flush=True)
    return 0 if nvcc or options.optional else 1


if __name__ == "__main__":
    sys.exit(main())
