"""What stands for nvcc with the stand-in driver: it compiles a .cu file for the CPU, with a GPU's constants.

`tests.driver.compiler_script` writes a script that calls this in place of nvcc. The "cubin" is a text that names shared
objects in the package's cache of kernels; see modules.cpp. Where CONVBACKPROP_STAND_IN_NVCC names a real nvcc, that one
compiles the file too: its errors are seen, and what it says of each kernel goes into the text.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

# As in tests/driver/__init__.py and tests/support/quick.py, which take long to import.
ISOLATED, QUICK = ("-Wl,-Bsymbolic",), "-Og"


def facts(cubin: bytes, log: str) -> list[str]:
    """Return what a real cubin and the log of its making say of each kernel, as lines for modules.cpp."""
    table, width, count, names_at = (struct.unpack_from("<Q", cubin, 0x28)[0], *struct.unpack_from("<3H", cubin, 0x3A))
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * width) for i in range(count)]
    strings = cubin[sections[names_at][4] :]
    lines = []
    for name_at, _, _, _, offset, size, *_ in sections:
        section = strings[name_at : strings.index(b"\0", name_at)].decode()
        if not section.startswith(".nv.info."):
            continue
        kernel = section.removeprefix(".nv.info.")
        info, at, parameters, threads = cubin[offset : offset + size], 0, {}, 1024
        while at < size:
            form, attribute, length = struct.unpack_from("<BBH", info, at)
            at += 4
            if form != 4:  # the value is in the length's place
                continue
            if attribute == 0x17:  # KPARAM_INFO: index, ordinal, offset, size
                _, ordinal, where = struct.unpack_from("<IHH", info, at)
                parameters[ordinal] = where
            elif attribute == 0x05:  # MAX_THREADS
                x, y, z = struct.unpack_from("<3I", info, at)
                threads = x * y * z
            at += length
        used = re.search(rf"entry function '{kernel}'.*?Used (\d+) registers([^\n]*)", log, re.DOTALL)
        shared = re.search(r"(\d+) bytes smem", used[2]) if used else None
        where = " ".join(str(parameters[i]) for i in sorted(parameters))
        lines.append(f"kernel {kernel} threads {threads} registers {used[1] if used else 32} "
                     f"shared {shared[1] if shared else 0} offsets {where}")  # fmt: skip
    return lines


def main() -> int:
    """Do as nvcc would."""
    digest, *arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"stand-in for nvcc, release 0.0, {digest}")
        return 0
    from convbackprop.devices import compiler
    from convbackprop.devices.compiler import Source
    from convbackprop.errors import ConvBackpropError

    if "-cubin" not in arguments:
        print("the stand-in for nvcc makes nothing but cubins", file=sys.stderr)
        return 1
    try:
        output = Path(arguments[arguments.index("-o") + 1]).absolute()
        # The package has a file included whose name nvcc is not given.
        (source,) = re.findall(r'#include "(.+)"', Path(arguments[-1]).read_text())
    except OSError as error:
        print(f"{arguments[-1]} cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    constants = dict(argument[2:].split("=", 1) for argument in arguments if argument.startswith("-D"))
    lines, log = [], ""
    if real := os.environ.get("CONVBACKPROP_STAND_IN_NVCC"):
        done = subprocess.run([real, *arguments], capture_output=True, text=True)
        log = done.stdout + done.stderr
        print(log)
        if done.returncode:
            return done.returncode
        lines = facts(output.read_bytes(), log)
    os.environ["CONVBACKPROP_CACHE_DIR"] = str(output.parent.parent)  # where the package wants the cubin
    try:
        runtime = compiler.cpu_runtime(ISOLATED)
        kernels = compiler.shared_object(Source.of(Path(source), constants), (QUICK,), runtime)
    except ConvBackpropError as error:
        print(error, file=sys.stderr)
        return 1
    text = ["convbackprop stand-in cubin", f"runtime {runtime}", f"object {kernels}", *lines]
    try:
        output.write_text("\n".join(text) + "\n")
    except OSError as error:
        print(f"{output} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
