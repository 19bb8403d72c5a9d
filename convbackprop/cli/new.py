"""Write the skeleton of a CUDA kernel of your own: a file that compiles, is right, and says where to go from there."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from convbackprop.arguments import known
from convbackprop.cli.common import console, say
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.registry import of_pass
from convbackprop.problem import PASSES

HELP = "write the skeleton of a CUDA kernel of your own"
EPILOG = """\
examples:
  convbackprop new forward/mine
  convbackprop new kernel_grad/two_stage --output lab/kernel_grad.cu
"""


def _template(pass_name: str) -> Any:
    return files("convbackprop") / "templates" / f"{pass_name}.cu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "target",
        metavar="PASS/NAME",
        help=f"the pass ({', '.join(PASSES)}) and a name for the variant",
    )
    parser.add_argument("--output", metavar="FILE", help="where to write; default: NAME.cu in this directory")


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what to do with it."""
    pass_name, slash, name = arguments.target.partition("/")
    known(pass_name, tuple(PASSES), "pass")
    if not slash or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise InvalidArgument(f"name is {name!r}; it should be made of letters, digits and _, as in {pass_name}/mine")
    if name in (variant.name for variant in of_pass(pass_name)):
        raise InvalidArgument(f"{pass_name}/{name} is a variant of the package; choose another name")
    path = Path(arguments.output or f"{name}.cu")
    if path.suffix != ".cu":
        raise InvalidArgument(f"--output is {path}; its name should end in .cu")
    text = _template(pass_name).read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidArgument(f"{path} exists and is left as it is; choose another --output") from None
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror}") from None
    out = console()
    say(out, f"wrote {path}; it is right as it stands. Make it fast, and after each change:")
    say(out, f"  convbackprop check {path}")
    say(out, f"  convbackprop bench {path}")
    return 0
