"""From a .cu file and its constants to something that can be loaded: a cubin, or a shared object for the CPU."""

from __future__ import annotations

import errno
import functools
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbackprop._version import __version__
from convbackprop.devices import cache
from convbackprop.devices.cpu_level import NATIVE, VARIABLE as CPU_LEVEL, architecture_flag, cpu_level
from convbackprop.errors import CompileError, CompilerNotFound, DeviceNotFound, InvalidArgument
from convbackprop.sources import entry_points, source_root, text_with_includes

#: Where the CPU's meaning of CUDA's words stands, and the half types that a machine without CUDA lacks.
RUNTIME = Path(__file__).parents[1] / "cpu_runtime"

#: The GPU architectures that every kernel is compiled for in the tests: Turing to Blackwell.
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")

#: What a block may have of shared memory on the cpu device: as much as on an H100.
SHARED_BYTES = 227 * 1024

_CPU_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-strict-aliasing",
    "-ffp-contract=fast", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-ignored-qualifiers",
    # A shared array inside a template must not be merged with its namesake in another module.
    "-fno-gnu-unique",
    # A CUDA thread's stack is small here, as it is on a GPU: see block_runner.cpp.
    "-Werror=frame-larger-than=49152",
)  # fmt: skip
#: A kernel that calls a hook before each access to memory (cpu_runtime/checked/hooks.cpp). Little optimisation, so
#: that each access is still there, at the line where it is written.
_CHECKED_FLAGS = (
    "-O1", "-g", "-gdwarf-4", "-fno-reorder-blocks", "-fno-thread-jumps", "-fno-tree-sra", "-fsanitize=thread",
    "-fsanitize=bounds", "-DCONVBACKPROP_CHECKED",
)  # fmt: skip
_NVCC_FLAGS = ("-std=c++17", "-lineinfo", "-Xptxas=-v")


@dataclass(frozen=True)
class Source:
    """A .cu file and the constants it is compiled with.

    Attributes
    ----------
    path : Path
        The file.
    constants : tuple of (str, str)
        Given to the compiler as -DNAME=value, sorted by name.
    """

    path: Path
    constants: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, path: Path, constants: Mapping[str, object]) -> Source:
        """Return the source for these constants."""
        return cls(path, tuple(sorted((name, str(value)) for name, value in constants.items())))

    @property
    def defines(self) -> list[str]:
        """The constants as compiler arguments."""
        return [f"-D{name}={value}" for name, value in self.constants]


# -- finding the compilers -------------------------------------------------------------------------------------------
def find_cxx() -> Path:
    """Return the C++ compiler: CONVBACKPROP_CXX, else g++.

    Raises
    ------
    CompilerNotFound
        There is none; the message says what to install.
    """
    name = os.environ.get("CONVBACKPROP_CXX") or "g++"
    if found := shutil.which(name):
        return Path(found)
    raise CompilerNotFound(
        f"the C++ compiler {name} was not found for the cpu device; install g++ 12 or later (Debian: apt install g++) "
        "or name it in CONVBACKPROP_CXX"
    )


def cxx_flags() -> tuple[str, ...]:
    """Return the user's flags for the C++ compiler: the words of CONVBACKPROP_CXXFLAGS, quoted as in a shell.

    They come last, after the package's own, and so prevail.

    Raises
    ------
    InvalidArgument
        A quotation mark is not closed.
    """
    text = os.environ.get("CONVBACKPROP_CXXFLAGS", "")
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidArgument(
            f"CONVBACKPROP_CXXFLAGS is {text!r}: {str(error).lower()}; it should be a compiler's flags, as in '-O1 -g'"
        ) from None


def find_nvcc() -> Path:
    """Return nvcc: CONVBACKPROP_NVCC, $CUDA_HOME/bin, $CUDA_PATH/bin, PATH, the wheels' nvcc, /usr/local/cuda/bin.

    Raises
    ------
    CompilerNotFound
        There is none; the message says what to install.
    """
    candidates = [os.environ.get("CONVBACKPROP_NVCC")]
    candidates += [f"{os.environ[home]}/bin/nvcc" for home in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(home)]
    candidates += ["nvcc"]
    candidates += [str(nvcc) for folder in sys.path for nvcc in sorted(Path(folder).glob("nvidia/cu*/bin/nvcc"))]
    candidates += ["/usr/local/cuda/bin/nvcc"]
    for name in candidates:
        if name and (found := shutil.which(name)):
            return Path(found)
    raise CompilerNotFound(
        "nvcc was not found; install the CUDA toolkit, or its wheels (pip install 'convbackprop[toolchain]'), or name "
        "nvcc in CONVBACKPROP_NVCC"
    )


def compiler_version(compiler: Path) -> str:
    """Return what the compiler says of itself; asked once for each state of its file."""
    file = compiler.resolve()
    status = file.stat()
    return _version(compiler, cache.digest("compiler version", file, status.st_size, status.st_mtime_ns))


@functools.cache
def _version(compiler: Path, name: str) -> str:
    return cache.remembered(name, lambda: _run([str(compiler), "--version"]))


def cxx_name() -> str:
    """Return what the C++ compiler calls itself, and how the user has it compile: what CPU timings depend on."""
    level, added = cpu_level(), " ".join(cxx_flags())
    name = compiler_version(find_cxx()).splitlines()[0]
    name += f" for x86-64-{level} ({CPU_LEVEL})" if level != NATIVE else ""
    return name + (f" with {added} (CONVBACKPROP_CXXFLAGS)" if added else "")


@functools.cache
def _recipe() -> str:
    """Return how a result is made: this file, as it was when the process first asked."""
    return Path(__file__).read_text(encoding="utf-8")


@functools.cache
def cpu_features() -> str:
    """Return what code for this very CPU depends on: a home directory may be shared by unlike machines."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        raise DeviceNotFound(
            f"the cpu device runs on Linux on x86-64 and aarch64; this is {platform.system()} on {machine}"
        )
    info = Path("/proc/cpuinfo").read_text()
    lines = re.findall(r"^(model name|flags|Features|CPU part)\s*:\s*(.*)$", info, flags=re.MULTILINE)
    return cache.digest(machine, sorted(set(lines)))


def _key(compiler: Path, *made_from: object) -> str:
    """Return the name under which a result is cached; how it is made is a part of it."""
    return cache.digest(__version__, _recipe(), compiler_version(compiler), *made_from)


# -- compiling -------------------------------------------------------------------------------------------------------
def _run(command: list[str], **options: Any) -> str:
    """Return the output of a compiler; where it fails raise CompileError with its messages."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, **options
        )
    except (OSError, MemoryError) as error:
        if isinstance(error, MemoryError) or error.errno in (errno.ENOMEM, errno.EAGAIN):
            raise CompileError(f"{name} cannot be started: there is no memory left, or no process") from None
        raise CompilerNotFound(
            f"{command[0]} cannot be run: {error.strerror}; CONVBACKPROP_CXX and CONVBACKPROP_NVCC name other compilers"
        ) from None
    output = _UNPRINTABLE.sub("?", done.stdout + done.stderr).strip()
    shown = shlex.join(command)
    if done.returncode:
        ended = f"failed (exit {done.returncode})"
        if done.returncode < 0:
            ended = f"was ended from outside ({signal.strsignal(-done.returncode) or f'signal {-done.returncode}'})"
        if done.returncode < 0 or _OUT_OF_MEMORY.search(output):
            ended += "; the machine, or a limit such as ulimit -v, may leave it too little memory"
        if _FULL.search(output):
            ended += "; the disk may be full: make room, or name another one in CONVBACKPROP_CACHE_DIR and TMPDIR"
        users = cxx_flags()
        note = f"\nCONVBACKPROP_CXXFLAGS added: {' '.join(users)}" if users and set(users) <= set(command) else ""
        raise CompileError(f"{name} {ended}:\n{output}\ncommand: {shown}{note}")
    if "-o" in command and not Path(options.get("cwd", "."), command[command.index("-o") + 1]).is_file():
        raise CompileError(
            f"{name} said that all is well, but wrote nothing; it should be a compiler that works\n{output}\n"
            f"command: {shown}"
        )
    return output


#: What has no place in a message, or on a page.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

#: What g++, its parts and nvcc say when they get no memory, or when the system ends one of them for want of it.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|cannot allocate|memory exhausted|bad_alloc|[Kk]illed|failed to map segment", re.IGNORECASE
)

#: What they say when they cannot write; of a precompiled header g++ does not always say why.
_FULL = re.compile("No space left on device|Disk quota exceeded|cannot write PCH file")


def _include(path: Path) -> str:
    """Return the line of C++ that includes a file: how compilers get names that users chose.

    nvcc hands its arguments to a shell, so such a name is never one of them.

    Raises
    ------
    InvalidArgument
        The name cannot stand in such a line.
    """
    if bad := [character for character in ('"', "\n", "\r") if character in str(path)]:
        raise InvalidArgument(
            f"the path {str(path)!r} has the character {bad[0]!r}, with which no file can be included"
        )
    return f'#include "{path}"\n'


def _write(file: Path, text: str) -> None:
    """Write source text in which names of files may be no valid UTF-8."""
    file.write_bytes(os.fsencode(text))


def cubin(source: Source, architecture: str) -> tuple[Path, str]:
    """Compile a .cu file for a GPU architecture.

    Parameters
    ----------
    source : Source
        The file and its constants.
    architecture : str
        Such as "sm_90a".

    Returns
    -------
    path : Path
        The cubin, in the cache.
    log : str
        What ptxas said: registers, shared memory and spills of each entry point.

    Raises
    ------
    CompilerNotFound, CompileError
        Without nvcc; where nvcc rejects the file, with its messages.
    """
    path, known = _nvcc(source, architecture, architecture, "cubin")
    return path, known["log"]


def ptx(source: Source, architecture: str) -> Path:
    """Compile a .cu file to PTX, the assembler's language between C++ and machine code, in the cache.

    Raises
    ------
    CompilerNotFound, CompileError
        Without nvcc; where nvcc rejects the file, with its messages.
    """
    return _nvcc(source, architecture, architecture.replace("sm", "compute"), "ptx")[0]


def _nvcc(source: Source, architecture: str, code: str, kind: str) -> tuple[Path, dict[str, str]]:
    """Compile to a cubin or to PTX; return the file and what is known of it."""
    nvcc = find_nvcc()
    include = _include(source.path.absolute())
    flags = [*_NVCC_FLAGS, f"-gencode=arch={architecture.replace('sm', 'compute')},code={code}", *source.defines]
    name = _key(nvcc, kind, flags, text_with_includes(source.path), source.path.name)

    def build(path: Path) -> dict[str, str]:
        _write(path.with_name("wrapper.cu"), include)
        folders = os.pathsep.join(filter(None, [str(source_root()), os.environ.get("CPATH")]))
        command = [str(nvcc), *flags, f"-{kind}", "-o", path.name, "wrapper.cu"]
        log = _run(command, cwd=path.parent, env={**os.environ, "CPATH": folders})
        return {"source": str(source.path), "log": log}

    made = cache.entry(name, f".{kind}", build)
    return made.path, made.known


def cpu_runtime(flags: tuple[str, ...] = (), checked: bool = False) -> Path:
    """Compile the library that runs a grid on the CPU; see cpu_runtime/runtime.cpp. `checked`: with the checks."""
    compiler = find_cxx()
    sources = sorted(RUNTIME.glob("*.cpp"))
    texts = {file.name: file.read_text() for file in sorted(RUNTIME.rglob("*.[ch]*")) if file.suffix in (".h", ".cpp")}
    options = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-shared", "-pthread", "-Wall", *flags]
    if checked:
        sources += sorted(RUNTIME.glob("checked/*.cpp"))
        # Its names are those of the plain runtime, which may be in the same process.
        options += ["-DCONVBACKPROP_CHECKED", "-Wl,-Bsymbolic"]
    name = _key(compiler, options, texts, cpu_features())

    def build(path: Path) -> dict[str, str]:
        _run([str(compiler), *options, *map(str, sources), "-o", str(path)])
        return {}

    return cache.entry(name, ".so", build).path


def checked_object(source: Source, flags: tuple[str, ...] = ()) -> Path:
    """Compile a .cu file for the checked runtime, as `shared_object` does for the plain one."""
    return shared_object(source, (*_CHECKED_FLAGS, *flags), cpu_runtime(checked=True))


def shared_object(source: Source, flags: tuple[str, ...] = (), runtime: Path | None = None) -> Path:
    """Compile a .cu file for this machine's CPU, or the level that CONVBACKPROP_CPU_LEVEL names.

    Parameters
    ----------
    source : Source
        The file and its constants.
    flags : tuple of str
        More flags for the C++ compiler; those of CONVBACKPROP_CXXFLAGS come after them, if there is no `runtime`.
    runtime : Path, optional
        The library that it takes the runtime's names from; else these are looked up in the process.

    Returns
    -------
    path : Path
        A shared object, in the cache. For each entry point it exports ``NAME_entry`` (see cuda_on_cpu.h).

    Raises
    ------
    CompilerNotFound, CompileError
        Without a C++ compiler; where it rejects the file, with its messages.
    InvalidArgument
        CONVBACKPROP_CXXFLAGS or CONVBACKPROP_CPU_LEVEL cannot be read.
    DeviceUnusable
        This CPU lacks the level.
    """
    compiler = find_cxx()
    # The checks' flags are chosen so that no access is optimised away: the user's could undo that.
    options = [*_CPU_FLAGS, architecture_flag(), *flags, *(() if runtime else cxx_flags())]
    own = (RUNTIME / "cuda_on_cpu.h", RUNTIME / "device_calls.h", *sorted(RUNTIME.glob("include/*.h")))
    words = {file.name: file.read_text() for file in own}
    include = _include(source.path.absolute())
    texts = text_with_includes(source.path)
    libraries = [str(runtime)] if runtime else []
    place = str(RUNTIME) if runtime else ""  # what is checked tells where its lines stand
    name = _key(compiler, options, source.defines, libraries, words, texts, source.path.name, cpu_features(), place)

    def build(path: Path) -> dict[str, str]:
        header = _write_words(path.parent)
        if "Free Software Foundation" in compiler_version(compiler):
            _link(_precompiled(compiler, options, words, place), header.with_suffix(".h.gch"))
        wrapper = path.with_name("wrapper.cpp")
        exports = "".join(f"CONVBACKPROP_ENTRY({entry})\n" for entry in entry_points(source.path))
        _write(wrapper, include + exports)
        compiled = path.with_name("wrapper.o")
        _run([
            str(compiler), *options, *source.defines, "-include", str(header), "-I", str(RUNTIME / "include"),
            "-I", str(source_root()), "-c", str(wrapper), "-o", str(compiled),
        ])  # fmt: skip
        objects = [str(compiled)]
        if any(re.search(r"extern\s+__shared__", text) for text in texts.values()):
            objects.append(str(_dynamic_shared_memory(compiler, compiled)))
        _run([str(compiler), "-shared", "-Wl,-Bsymbolic", *objects, *libraries, "-o", str(path)])
        return {"source": str(source.path)}

    return cache.entry(name, ".so", build).path


def _precompiled(compiler: Path, options: list[str], words: Mapping[str, str], place: str) -> Path:
    """Return cuda_on_cpu.h as g++ reads it fastest, for these options: half of the time that a kernel takes.

    It is 17 MB, whose checksum takes as long as g++ with a small kernel: once a process is enough, unless it changes.
    """
    name = _key(compiler, options, words, cpu_features(), place)

    def build(path: Path) -> dict[str, str]:
        _run([str(compiler), *options, "-x", "c++-header", str(_write_words(path.parent)), "-o", str(path)])
        return {}

    return cache.checked_once(name, ".gch", build)


def _link(file: Path, name: Path) -> None:
    """Give a file a second name, or where the file system has no such names a copy."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def _write_words(folder: Path) -> Path:
    """Write a header that is cuda_on_cpu.h, which g++ looks for a precompiled one beside."""
    header = folder / "words.h"
    _write(header, _include(RUNTIME / "cuda_on_cpu.h"))
    return header


def _dynamic_shared_memory(compiler: Path, compiled: Path) -> Path:
    """Give every `extern __shared__ T name[]` of an object file the same storage, as CUDA does.

    Such a name arrives as an undefined thread-local symbol, whatever its type.
    """
    symbols = _run(["readelf", "--symbols", "--wide", str(compiled)]).splitlines()
    undefined = [line.split()[-1] for line in symbols if " TLS " in line and " UND " in line]
    aliases = "".join(
        f"extern __thread unsigned char {name}[{SHARED_BYTES}] "
        '__attribute__((alias("memory"), visibility("hidden")));\n'
        for name in undefined
        if not name.startswith("convbackprop_")  # the runtime's own
    )
    source = compiled.with_name("dynamic_shared_memory.c")
    source.write_text(
        f"static __thread unsigned char memory[{SHARED_BYTES}] __attribute__((aligned(1024)));\n{aliases}"
    )
    made = source.with_suffix(".o")
    _run([str(compiler), "-x", "c", "-fPIC", "-c", str(source), "-o", str(made)])
    return made
