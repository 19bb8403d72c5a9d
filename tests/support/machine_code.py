"""Machine code as cuobjdump prints it, and marks of tests that need a program of the CUDA toolkit."""

from __future__ import annotations

import pytest

from convbackprop.devices import compiler
from convbackprop.errors import EnvironmentProblem
from convbackprop.profile import sass


def why_missing(find):
    try:
        find()
    except EnvironmentProblem as error:
        return str(error)
    return None


def needs(find):
    return pytest.mark.skipif(why_missing(find) is not None, reason=str(why_missing(find)))


needs_nvcc, needs_cuobjdump = needs(compiler.find_nvcc), needs(sass.find_cuobjdump)


def listing(*lines):
    """Return code as cuobjdump prints it, each instruction 16 bytes long."""
    text = '\n\tcode for sm_90a\n\t\tFunction : kernel\n\t.headerflags\t@"EF_CUDA_SM90"\n'
    for i, line in enumerate(lines):
        guard, _, rest = line.rpartition("| ")
        text += f"        /*{16 * i:04x}*/ {guard:>17} {rest} ;   /* 0x000000ff00ff7624 */\n"
        text += " " * 60 + "/* 0x000fe400078e00ff */\n"
    return text + "\t\t..........\n"
