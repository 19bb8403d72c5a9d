"""What is known of one .cu file once it is graded, and where it stands in the ladder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from convbackprop.check import Outcome
from convbackprop.check.sanitize import Finding
from convbackprop.lab.counts import Counts
from convbackprop.lab.exercises import Exercise
from convbackprop.lab.mistakes import Mistake
from convbackprop.lab.verdict import first_wrong, line_of


@dataclass
class Times:
    """How long a variant takes, in microseconds; None: not known."""

    name: str
    cpu: float | None = None
    expected: float | None = None
    measured: float | None = None


@dataclass
class Grade:
    """What is known of a file; what was not looked at, since something before it is wrong, is None or empty.

    Attributes
    ----------
    error : str or None
        The compiler's first error, or that of a ``//@`` line.
    wrong : list of Outcome
        Checks whose results are wrong.
    mistake : Mistake or None
        What the wrong results come of, where it is recognised with certainty.
    counts : Counts or None
        What it asks of memory.
    times : list of Times
        Of the ladder's rungs, then of the file.
    limit : str or None
        What limits it, in a sentence.
    """

    file: str
    exercise: Exercise
    device: str
    pass_name: str | None = None
    variant: str | None = None
    compiled: bool = False
    error: str | None = None
    checks: int = 0
    wrong: list[Outcome] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    sanitized: int = 0
    mistake: Mistake | None = None
    crashed: str | None = None
    counts: Counts | None = None
    times: list[Times] = field(default_factory=list)
    limit: str | None = None

    @property
    def right(self) -> bool:
        """Whether every result that was looked at is right."""
        return bool(self.checks) and not self.wrong and not self.crashed

    @property
    def clean(self) -> bool:
        """Whether the sanitizer has run and found nothing."""
        return bool(self.sanitized) and not self.findings and not self.crashed

    @property
    def coalescing(self) -> float | None:
        """Sectors asked for over those needed."""
        return self.counts.coalescing if self.counts else None

    @property
    def done(self) -> bool:
        """Whether all that the exercise asks is done."""
        return all(task.done(self) for task in self.exercise.tasks)

    @property
    def rank(self) -> dict[str, Any] | None:
        """Where the file stands in the ladder: by a GPU's time, else by the expected one, else by the CPU's."""
        for by, key in (("gpu", "measured"), ("expected", "expected"), ("cpu", "cpu")):
            own = getattr(self.times[-1], key) if self.times else None
            if own is None:
                continue
            others = [(each.name, getattr(each, key)) for each in self.times[:-1] if getattr(each, key) is not None]
            return {
                "by": by,
                "faster_than": [name for name, time in others if own < time],
                "slower_than": [name for name, time in others if own >= time],
            }
        return None

    @property
    def said(self) -> str:
        """The first thing that is wrong, in plain words, or that nothing is."""
        return " ".join(first_wrong(self))

    def as_json(self) -> dict[str, Any]:
        """Return what `grade --json` prints."""
        own = self.times[-1] if self.times else Times("")
        return {
            "file": self.file,
            "exercise": self.exercise.number or None,
            "pass": self.pass_name,
            "variant": self.variant,
            "device": self.device,
            "compiled": self.compiled,
            "error": self.error,
            "right": self.right,
            "checks": self.checks,
            "wrong_checks": len(self.wrong),
            "clean": self.clean,
            "findings": [
                {"kind": each.kind, "line": line_of(each), "sentence": each.sentence} for each in self.findings
            ],
            "mistake": self.mistake and asdict(self.mistake),
            "said": self.said,
            "coalescing": self.coalescing,
            "bank_conflicts": self.counts.bank_conflicts if self.counts else None,
            "cpu_us": own.cpu,
            "expected_us": own.expected,
            "measured_us": own.measured,
            "rank": self.rank,
            "limit": self.limit,
            "tasks": [{"task": task.text, "done": task.done(self)} for task in self.exercise.tasks],
        }
