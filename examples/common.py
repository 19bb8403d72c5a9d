"""What the examples share: their options, how each of them ends, crops of photographs, and the peak of memory."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from convbackprop.bench import torch_calls
from convbackprop.bench.photograph import photograph
from convbackprop.bench.plots import (
    FORMATS,
    figure as figure,  # the examples draw with it, too
    rendered,
)
from convbackprop.cli import guarded
from convbackprop.cli.common import console, print_json, progress, say
from convbackprop.devices.cpu import get_num_threads, set_num_threads
from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.files import check_writable, write_whole

try:
    torch = torch_calls.import_torch()  # before anyone else: idle OpenMP threads are to sleep
except ImportError as error:
    sys.exit(f"the examples need PyTorch, which cannot be imported ({error}); pip install 'convbackprop[examples]'")

Tensor = Any

#: Okabe and Ito's colours, which the colour-blind tell apart; torch is grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
OURS, TORCH = COLOURS[0], "#888888"


# -- how an example begins and ends ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Claim:
    """What an example shows: a sentence, the figures found, and whether they bear it out."""

    what: str
    found: str
    ok: bool


@dataclass(frozen=True)
class Outcome:
    """What an example found.

    Attributes
    ----------
    numbers : dict
        For --json.
    tables : sequence of rich.table.Table
        The same for people.
    claims : sequence of Claim
        The example succeeded if all of them are borne out.
    drawing : matplotlib.figure.Figure
        The picture.
    """

    numbers: dict[str, Any]
    tables: Sequence[Table]
    claims: Sequence[Claim]
    drawing: Any


def options(description: str | None, name: str, threads: int = 1) -> argparse.ArgumentParser:
    """Return a parser with the options that all examples have."""
    parser = argparse.ArgumentParser(
        prog=f"{name}.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default=f"{name}.png", metavar="FILE", help="the picture, by its ending as PNG or "
                        "SVG; default: %(default)s in this directory")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random numbers; default: %(default)s")
    parser.add_argument("--threads", type=positive, default=threads, metavar="N",
                        help="of our kernels and of torch; default: %(default)s")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def positive(text: str) -> int:
    """Return a whole number of 1 or more, an option's value."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"it is {value}; it should be 1 or more")
    return value


def main(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, Progress], Outcome],
    argv: Sequence[str] | None = None,
) -> int:
    """Run an example: print what it finds, write its picture, and return 0 if all of its claims are borne out."""
    arguments = parser.parse_args(argv)
    return guarded(lambda: _carry_out(arguments, run))


def _carry_out(arguments: argparse.Namespace, run: Callable[[argparse.Namespace, Progress], Outcome]) -> int:
    path = Path(arguments.output)
    if path.suffix[1:] not in FORMATS:
        raise InvalidArgument(f"--output is {path}; its name should end in .png or .svg")
    check_writable(path)
    figure(1, 1)  # before minutes of work: matplotlib may be missing
    with _threads(arguments.threads), torch.random.fork_rng(devices=[]), progress() as bar:
        outcome = run(arguments, bar)
    write_whole(path, rendered(outcome.drawing, path.suffix[1:], dpi=100))
    ok = all(claim.ok for claim in outcome.claims)
    if arguments.json:
        given = {"seed": arguments.seed, "threads": arguments.threads, "torch": torch.__version__}
        claims = [vars(claim) for claim in outcome.claims]
        print_json({**given, **outcome.numbers, "claims": claims, "picture": str(path), "ok": ok})
        return 0 if ok else 1
    out = console()
    say(out, f"seed {arguments.seed}, {arguments.threads} thread{'s' * (arguments.threads > 1)}, "
        f"torch {torch.__version__}", "")  # fmt: skip
    for table in outcome.tables:
        out.print(table)
        say(out, "")
    for claim in outcome.claims:
        say(out, f"{'yes' if claim.ok else 'NO '}  {claim.what}: {claim.found}")
    say(out, f"wrote {path}")
    return 0 if ok else 1


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads(), get_num_threads()
    torch.set_num_threads(count)
    set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        set_num_threads(before[1])


def table(*columns: str) -> Table:
    """Return a table whose first column holds names, and the others figures."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", no_wrap=True)
    return made


def steps_of(bar: Progress, description: str, count: int) -> Iterator[int]:
    """Yield 0, 1, ... count - 1, and show in a progress bar how far it is."""
    task = bar.add_task(description, total=count)
    for step in range(count):
        yield step
        bar.update(task, advance=1, refresh=step % 20 == 19 or count < 100)
    bar.remove_task(task)


def plain_axes(ax: Any, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Give axes their title and labels, a faint grid and no frame at the top and the right."""
    ax.set_title(title, fontsize=10, loc="left", fontweight="bold")
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)


def picture(ax: Any, values: Tensor, title: str, **options: Any) -> None:
    """Show an image in grey, black 0 and white 1 unless the options say otherwise."""
    ax.imshow(values.numpy(), **{"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest", **options})
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xticks([])
    ax.set_yticks([])


# -- data ------------------------------------------------------------------------------------------------------------
def need(module: str, package: str) -> Any:
    """Return a module that an example cannot do without.

    Raises
    ------
    EnvironmentProblem
        It is missing; the message names what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentProblem(
            f"{package} is needed for this example and cannot be imported ({error}); "
            "pip install 'convbackprop[examples]'"
        ) from None


def grey(name: str) -> Tensor:
    """Return a photograph with values from 0 to 1, shape (H, W)."""
    return torch.from_numpy(photograph(name).grey).float()


def crops(images: Sequence[Tensor], count: int, size: int, generator: Any) -> Tensor:
    """Return squares cut out at random, shape (count, 1, size, size), from images of shape (H, W)."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    squares = []
    for _ in range(count):
        image = images[below(len(images))]
        row, col = (below(extent - size + 1) for extent in image.shape)
        squares.append(image[row : row + size, col : col + size])
    return torch.stack(squares)[:, None]


# -- memory ----------------------------------------------------------------------------------------------------------
def peak_growth(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Return by how many bytes a call's memory peaks above what the process held before it.

    The call is made in a fresh process of its own: what an earlier one freed would be used again, and not be seen.
    ``prepare(*arguments)`` returns the call, with its data ready and its kernels loaded. The peak is Linux's high-water
    mark of resident memory, which is set back just before the call (proc(5), clear_refs). malloc is told to give freed
    arrays back at once (mallopt(3)), so that the mark tells what was alive and not what was kept for later.

    Raises
    ------
    EnvironmentProblem
        The system tells no such mark.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_grow, prepare, arguments, torch.get_num_threads()).result()


_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def _grow(prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], threads: int) -> int:
    with _threads(threads):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 64 << 10)
        call = prepare(*arguments)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _resident("VmRSS")
            call()
            return _resident("VmHWM") - before
        except OSError as error:
            raise EnvironmentProblem(f"the peak of memory cannot be measured here: {error}") from None


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
