"""The .cu files as text: where they lie, what they include, and what they say of themselves."""

from __future__ import annotations

import functools
import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from convbackprop.errors import InvalidArgument


@functools.cache
def source_root() -> Path:
    """Return the directory of the .cu files: package data, or the checkout's own cuda_src."""
    try:
        return Path(str(files("convbackprop.cuda_src")))
    except ModuleNotFoundError:
        return Path(__file__).parent.parent / "cuda_src"


@functools.lru_cache(maxsize=256)
def _included(text: str) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, flags=re.MULTILINE)


def _with_includes(path: Path) -> dict[str, tuple[Path, str]]:
    """Return a source file and all that it includes by "...", with their texts, by the names they are included by."""
    found: dict[str, tuple[Path, str]] = {}

    def follow(file: Path, name: str) -> None:
        if name in found:
            return
        text = file.read_text(encoding="utf-8")
        found[name] = file, text
        for included in _included(text):
            for folder in (file.parent, source_root()):
                if (folder / included).is_file():
                    follow(folder / included, included)
                    break

    follow(path, path.name)
    return found


def files_with_includes(path: Path) -> dict[str, Path]:
    """Return a source file and all that it includes by "...", each by the name by which it is included."""
    return {name: file for name, (file, _) in _with_includes(path).items()}


def text_with_includes(path: Path) -> dict[str, str]:
    """Return the text of a source file and of all that it includes by "...", each by its name."""
    return {name: text for name, (_, text) in _with_includes(path).items()}


def head_comment(path: Path) -> list[str]:
    """Return the paragraphs of the comment at the head of a .cu file, each as one line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("//"):
            break
        if not line.startswith("//@"):
            lines.append(line[2:].strip())
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(lines).strip()) if part]


_ENTRY = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(([^)]*)\)'
)


def _texts(path: Path) -> dict[str, str]:
    """Return `text_with_includes`, or raise InvalidArgument where a file cannot be read."""
    try:
        return text_with_includes(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}") from None


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def code_of(path: Path) -> str:
    """Return a .cu file and what it includes as one text without comments."""
    return _without_comments("\n".join(_texts(path).values()))


def code_digest(path: Path) -> str:
    """Return a digest of the code of a .cu file and of what it includes: comments and layout do not count."""
    return hashlib.sha256(" ".join(code_of(path).split()).encode()).hexdigest()[:16]


#: What every .cu file gets on the CPU, from the root of the package on; on a GPU CUDA has headers of these names.
_CPU_HEADERS = ("device_calls.h", "cuda_on_cpu.h", "include/cuda_bf16.h", "include/cuda_fp16.h")


def words_of_headers(path: Path) -> dict[str, str]:
    """Return every word in the code of the package's headers that a .cu file gets, each with a header that has it."""
    files = files_with_includes(path)
    headers = {name: text for name, text in _texts(path).items() if files[name].is_relative_to(source_root())}
    for name in _CPU_HEADERS:
        headers[name.rpartition("/")[2]] = (Path(__file__).parent / "cpu_runtime" / name).read_text(encoding="utf-8")
    return {
        word: name
        for name, text in reversed(headers.items())
        for word in re.findall(r"\b[A-Za-z_]\w*", _without_comments(text))
    }


def entry_points(path: Path, expected: str = "") -> tuple[str, ...]:
    """Return the names of the extern "C" __global__ functions of a .cu file and of what it includes.

    Raises
    ------
    InvalidArgument
        The file cannot be read, or has none; then the message says what is `expected`.
    """
    names = [match[1] for match in _ENTRY.finditer(code_of(path))]
    if not names:
        such_as = f", such as {expected}" if expected else ""
        raise InvalidArgument(
            f'{path} has no CUDA kernel: it should define an extern "C" __global__ void function{such_as}'
        )
    return tuple(names)


class Parameter(NamedTuple):
    """A parameter of a CUDA kernel: the type that it is or points to, without const, and its name."""

    type: str
    is_pointer: bool
    name: str

    def __str__(self) -> str:
        return f"{self.type}{'*' if self.is_pointer else ''} {self.name}".strip()


def parameters(path: Path) -> dict[str, tuple[Parameter, ...]]:
    """Return the parameters of each entry point of a .cu file, as they are written."""
    found = {}
    for match in _ENTRY.finditer(code_of(path)):
        found[match[1]] = tuple(_parameter(text) for text in match[2].split(",") if text.strip())
    return found


def _parameter(text: str) -> Parameter:
    plain = re.sub(r"\[[^\]]*\]|\b(const|volatile|__restrict__|__restrict|__grid_constant__)\b", " ", text)
    words = re.findall(r"\w+", plain)
    name = words.pop() if len(words) > 1 else ""
    return Parameter(" ".join(words), "*" in text or "[" in text, name)
