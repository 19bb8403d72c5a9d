"""A variant's source with its figures beside each line, and its lines by what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convbackprop.profile.report import Report
from convbackprop.profile.roofline import line_clocks
from convbackprop.sources import files_with_includes

#: Lines of a header that are shown before and behind one with figures.
_CONTEXT = 2


@dataclass(frozen=True)
class Access:
    """What a line asks of memory in one way, over the whole grid.

    Attributes
    ----------
    space, kind : str
        "global" or "shared"; "load", "store" or "atomic".
    bytes : int
        Of one thread's access.
    requests : float
        Of warps.
    asked : float
        Bytes that the threads ask for.
    each, least : float
        Sectors (global) or wavefronts (shared) a request: what there are, and what would do.
    clocks : float
        That the loads and stores of a multiprocessor take, of all multiprocessors together.
    """

    space: str
    kind: str
    bytes: int
    requests: float
    asked: float
    each: float
    least: float
    clocks: float

    @property
    def unit(self) -> str:
        """What requests are made of."""
        return "sectors" if self.space == "global" else "wavefronts"


@dataclass
class Line:
    """A line of source.

    Attributes
    ----------
    instructions, multiply_adds : int
        Of the hot loop, that it became.
    accesses : list of Access
        The costliest first.
    """

    number: int
    text: str
    instructions: int = 0
    multiply_adds: int = 0
    accesses: list[Access] = field(default_factory=list)

    @property
    def has_figures(self) -> bool:
        """Whether anything is known of it."""
        return bool(self.instructions or self.accesses)

    @property
    def clocks(self) -> float:
        """Of all its accesses."""
        return sum(access.clocks for access in self.accesses)


@dataclass(frozen=True)
class Source:
    """A file of a variant's source; `name`: as it is included."""

    name: str
    path: Path
    lines: tuple[Line, ...]

    def excerpts(self, whole: bool) -> list[Sequence[Line]]:
        """Return its lines, or those about lines with figures."""
        if whole:
            return [self.lines]
        shown = [
            any(line.has_figures for line in self.lines[max(0, i - _CONTEXT) : i + _CONTEXT + 1])
            for i in range(len(self.lines))
        ]
        found: list[list[Line]] = []
        for i, line in enumerate(self.lines):
            if shown[i]:
                if not i or not shown[i - 1]:
                    found.append([])
                found[-1].append(line)
        return list(found)


def sources(report: Report) -> tuple[Source, ...]:
    """Return the variant's file, and the headers that have figures.

    Instructions are those of the main launch's hot loop; accesses those of all launches.
    """
    files = files_with_includes(report.variant.path)
    lines = {
        name: {number: Line(number, text) for number, text in enumerate(_read(path), 1)} for name, path in files.items()
    }
    by_path = {path.resolve(): name for name, path in files.items()}
    by_file_name = {path.name: name for name, path in files.items()}
    for code in report.main.hot.lines if report.main.hot else ():
        line = lines.get(by_file_name.get(code.file, ""), {}).get(code.line)
        if line is not None:
            line.instructions += code.instructions
            line.multiply_adds += code.multiply_adds
    for launch in report.launches:
        for each in launch.traffic.lines if launch.traffic else ():
            line = lines.get(by_path.get(each.file.resolve(), ""), {}).get(each.line)
            if line is None or not each.requests:
                continue
            is_global = each.space == "global"
            units, least = (each.sectors, each.least_sectors) if is_global else (each.wavefronts, each.least_wavefronts)
            line.accesses.append(
                Access(
                    each.space, each.kind, each.bytes, each.requests * launch.scale, each.lanes * each.bytes
                    * launch.scale, units / each.requests, least / each.requests,
                    line_clocks(report.gpu, each) * launch.scale,
                )
            )  # fmt: skip
    for of_file in lines.values():
        for line in of_file.values():
            line.accesses.sort(key=lambda access: -access.clocks)
    found = [Source(name, files[name], tuple(of_file.values())) for name, of_file in lines.items()]
    return tuple(each for i, each in enumerate(found) if i == 0 or any(line.has_figures for line in each.lines))


def _read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def costliest(files: Sequence[Source], most: int) -> list[tuple[Source, Line, Access]]:
    """Return the accesses that take the most time, at most so many."""
    found = [(source, line, access) for source in files for line in source.lines for access in line.accesses]
    return sorted(found, key=lambda row: -row[2].clocks)[:most]


#: The heading of the margin that `margin` fills.
HEADING = f"{'loop':>5} {'FMA':>5}  {'access':<18} {'each':>5} {'least':>5} {'cost':>5}"


def margin(line: Line, total: float) -> list[str]:
    """Return what stands beside a line of source, in a row for each access and at least one.

    Parameters
    ----------
    line : Line
        Of a file of `sources`.
    total : float
        The clocks of all lines.
    """
    code = f"{line.instructions or '':>5} {line.multiply_adds or '':>5}"
    if not line.accesses:
        return [code.ljust(len(HEADING))]
    rows = []
    for i, access in enumerate(line.accesses):
        what = f"{access.space} {access.kind} {access.bytes} B"
        cost = f"{100 * access.clocks / total:.0f} %" if total else ""
        start = code if i == 0 else " " * len(code)
        rows.append(f"{start}  {what:<18} {access.each:>5.1f} {access.least:>5.1f} {cost:>5}")
    return rows


def text(report: Report) -> list[str]:
    """Return the lines of the annotated source: the variant's file whole, of headers what has figures."""
    files = sources(report)
    total = sum(line.clocks for source in files for line in source.lines)
    written: list[str] = []
    for i, source in enumerate(files):
        written += ["", f"{source.name}", f"{HEADING} | line"]
        for n, excerpt in enumerate(source.excerpts(whole=i == 0)):
            if n or (i and excerpt[0].number > 1):
                written.append(f"{'':{len(HEADING)}} |  ...")
            for line in excerpt:
                first, *more = margin(line, total)
                written.append(f"{first} | {line.number:>4} {line.text}".rstrip())
                written += [f"{row} |" for row in more]
    return written
