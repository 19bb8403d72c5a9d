"""The .cu files as text: where they lie, what they include, and what they say of themselves."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from pathlib import Path

from convbackprop.errors import InvalidArgument


@functools.cache
def source_root() -> Path:
    """Return the directory of the .cu files: package data, or the checkout's own cuda_src."""
    try:
        return Path(str(files("convbackprop.cuda_src")))
    except ModuleNotFoundError:
        return Path(__file__).parent.parent / "cuda_src"


def files_with_includes(path: Path) -> dict[str, Path]:
    """Return a source file and all that it includes by "...", each by its name."""
    files: dict[str, Path] = {}

    def find(file: Path, name: str) -> None:
        if name in files:
            return
        files[name] = file
        for included in re.findall(r'^\s*#\s*include\s*"([^"]+)"', file.read_text("utf-8"), flags=re.MULTILINE):
            for folder in (file.parent, source_root()):
                if (folder / included).is_file():
                    find(folder / included, included)
                    break

    find(path, path.name)
    return files


def text_with_includes(path: Path) -> dict[str, str]:
    """Return the text of a source file and of all that it includes by "...", each by its name."""
    return {name: file.read_text(encoding="utf-8") for name, file in files_with_includes(path).items()}


def head_comment(path: Path) -> list[str]:
    """Return the paragraphs of the comment at the head of a .cu file, each as one line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("//"):
            break
        if not line.startswith("//@"):
            lines.append(line[2:].strip())
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(lines).strip()) if part]


def entry_points(path: Path) -> tuple[str, ...]:
    """Return the names of the extern "C" __global__ functions of a .cu file and of what it includes.

    Raises
    ------
    InvalidArgument
        The file cannot be read, or has none.
    """
    try:
        text = "\n".join(text_with_includes(path).values())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}") from None
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    names = re.findall(
        r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(', code
    )
    if not names:
        raise InvalidArgument(f'{path} has no CUDA kernel: it should define an extern "C" __global__ void function')
    return tuple(names)
