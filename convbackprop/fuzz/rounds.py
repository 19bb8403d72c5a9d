"""Rounds of random cases until the time is over.

A kernel takes seconds to compile and milliseconds to run. So what is known at compile time (dtype, activation, for some
variants the filter) is drawn once a round, and many sizes, data and alignments for it.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from convbackprop.check import DATA
from convbackprop.devices import Device
from convbackprop.errors import ConvBackpropError, ProblemTooLarge
from convbackprop.fuzz import arguments
from convbackprop.fuzz.cases import Called, Case, Compared, Lawful
from convbackprop.fuzz.laws import LAWS, Subject, applies
from convbackprop.fuzz.problems import hypothesis, of_round, some_kind, taken_by
from convbackprop.ladder.variant import Variant
from convbackprop.problem import OPTIONAL, ConvProblem

#: The rows of the closing table.
PARTS = ("reference", *LAWS, "arguments")

#: Cases of a round: with the reference and with laws, of each variant; of calls.
_COMPARED, _LAWFUL, _CALLED = 120, 60, 300

#: Every law that ever says something of a variant, says it of this one.
_PLAIN = ConvProblem.parse("2,1,9,9,1,3,3")

_Tell = Callable[[Case | None], None]
_Found = Callable[["Failure"], None]


@dataclass
class Part:
    """What is known of a row of the closing table."""

    cases: int = 0
    seconds: float = 0.0
    failures: int = 0


@dataclass(frozen=True)
class Failure:
    """The smallest case of those that failed in the same way of trying."""

    case: Case
    sentences: tuple[str, ...]


@dataclass
class Findings:
    """What the rounds have found."""

    parts: dict[str, Part] = field(default_factory=lambda: {part: Part() for part in PARTS})
    failures: list[Failure] = field(default_factory=list)
    rounds: int = 0

    @property
    def cases(self) -> int:
        """How many cases were tried."""
        return sum(part.cases for part in self.parts.values())


class TimeIsOver(Exception):
    """Ends a round in the middle; not a fault, so no smaller case is looked for."""


class Fuzzer:
    """Draws cases for some variants, and tries them.

    Parameters
    ----------
    variants : sequence of Variant
        What is tried.
    devices : sequence of Device
        Where; each round is of one of them.
    seed : int
        All cases follow from it, and from how many of them the time allows.
    parts : sequence of str
        Which of `PARTS` are tried.
    tell : callable
        Called with each case before it is tried, and with None after.
    found : callable
        Called with each failure as soon as its smallest case is known.
    """

    def __init__(
        self, variants: Sequence[Variant], devices: Sequence[Device], seed: int, parts: Sequence[str] = PARTS,
        tell: _Tell = lambda case: None, found: _Found = lambda failure: None,
    ) -> None:  # fmt: skip
        self.findings = Findings()
        self._variants, self._devices, self._parts = tuple(variants), tuple(devices), tuple(parts)
        self._tell, self._found = tell, found
        self._random = random.Random(seed)
        self._given_up: set[tuple[Variant | None, str]] = set()  # what has failed once is not tried again
        self._known: set[str] = set()  # ways in which calls fail
        self._deadline = float("inf")

    def run(self, seconds: float) -> Findings:
        """Go on for so many seconds; a failing case is then made smaller for a while."""
        self._deadline = time.monotonic() + seconds
        while time.monotonic() < self._deadline and self._something_is_left():
            self.round()
        return self.findings

    def round(self, scale: float = 1.0) -> None:
        """Try the cases of one round, or a share of them."""
        rng = self._random
        kind, order = some_kind(rng), rng.sample(self._variants, len(self._variants))
        device = self._devices[self.findings.rounds % len(self._devices)]
        laws = [part for part in self._parts if part in LAWS]
        try:
            if "arguments" in self._parts:
                self._hold(None, "arguments", hypothesis().strategies.builds(Called, arguments.calls()),
                           int(_CALLED * scale))  # fmt: skip
            for variant in (v for v in order if device.kind in v.runs_on):
                tunables = rng.choice(("cpu", "cuda")) if device.kind == "cpu" else None
                own = taken_by(variant, kind)
                if "reference" in self._parts:
                    found = {**own, "transposed": variant.takes_transposed and not own["mask"] and rng.random() < 0.3}
                    for name in OPTIONAL:
                        found[name] = variant.takes(name) and not found["transposed"] and rng.random() < 0.3
                    if len(variant.layouts) > 1 and not own["mask"]:
                        found["layout"] = rng.choice(variant.layouts)
                    self._hold(
                        variant, "reference", self._compared(variant, device, found, tunables), int(_COMPARED * scale)
                    )
                left = [law for law in laws if (variant, law) not in self._given_up]
                if left:
                    self._hold(variant, "", self._lawful(variant, device, own, tunables, left), int(_LAWFUL * scale))
        except TimeIsOver:
            pass
        self.findings.rounds += 1

    def _something_is_left(self) -> bool:
        wanted = {
            (None if part == "arguments" else v, part)
            for v in self._variants
            for part in self._parts
            if part not in LAWS or any(applies(part, v, _PLAIN, device) for device in self._devices)
        }
        return bool(wanted - self._given_up)

    # -- what is drawn -------------------------------------------------------------------------------------------
    def _compared(self, variant: Variant, device: Device, kind: Any, tunables: str | None) -> Any:
        st = hypothesis().strategies
        found = of_round(variant, kind, self._random)
        return st.builds(Compared, st.just(variant), found, st.just(device), st.sampled_from(DATA),
                         st.integers(0, 2**16), st.just(tunables), st.sampled_from((0, 0, 1, 2, 3)))  # fmt: skip

    def _lawful(self, variant: Variant, device: Device, kind: Any, tunables: str | None, laws: Sequence[str]) -> Any:
        st = hypothesis().strategies
        identity = {**kind, "activation": "identity", "mask": False}
        found = of_round(variant, self._random.choice((kind, identity)), self._random, large=True)
        subjects = st.builds(Subject, st.just(variant), found, st.just(device), st.just(tunables),
                             st.integers(0, 2**16))  # fmt: skip
        cases = st.builds(Lawful, st.sampled_from(laws), subjects)
        return cases.filter(lambda case: applies(case.law, variant, case.subject.problem, device))

    # -- trying --------------------------------------------------------------------------------------------------
    def _hold(self, variant: Variant | None, what: str, cases: Any, count: int) -> None:
        """Try cases that a strategy draws; of failing ones keep the smallest that hypothesis finds."""
        if (variant, what) in self._given_up or count < 1:
            return
        library = hypothesis()
        last: Failure | None = None

        def holds(case: Case) -> None:
            nonlocal last
            if last is None and time.monotonic() >= self._deadline:
                raise TimeIsOver
            sentences = self._try(case)
            if sentences and self._way_of_failing(case, sentences) not in self._known:
                last = Failure(case, tuple(sentences))
                raise AssertionError("; ".join(sentences))

        settings = library.settings(
            max_examples=count, deadline=None, database=None, report_multiple_bugs=False, print_blob=False,
            suppress_health_check=list(library.HealthCheck), phases=(library.Phase.generate, library.Phase.shrink),
            verbosity=library.Verbosity.quiet,
        )  # fmt: skip
        test = library.seed(self._random.getrandbits(64))(settings(library.given(cases)(holds)))
        try:
            test()
        except TimeIsOver:
            raise
        except library.errors.Unsatisfiable:  # none of the laws that are left says anything about a round's problems
            pass
        except (AssertionError, library.errors.FlakyFailure):
            if last is None:
                raise
            self.findings.failures.append(last)
            self._found(last)
            self.findings.parts[last.case.part].failures += 1
            if isinstance(last.case, Called):
                self._known.add(self._way_of_failing(last.case, last.sentences))
            else:
                self._given_up.add((variant, last.case.part))

    @staticmethod
    def _way_of_failing(case: Case, sentences: Sequence[str]) -> str:
        """Return how a call fails, so that another way is still found; all failures of a variant count as one."""
        return re.sub(r"[\d,]+", "N", sentences[0])[:60] if isinstance(case, Called) else ""

    def _try(self, case: Case) -> list[str]:
        part = self.findings.parts[case.part]
        self._tell(case)
        begin = time.monotonic()
        try:
            return case.faults()
        except ProblemTooLarge:
            return []
        except (ConvBackpropError, AssertionError, ValueError, TypeError, IndexError) as error:
            return [f"{type(error).__name__}: {error}"]
        finally:
            part.cases += 1
            part.seconds += time.monotonic() - begin
            self._tell(None)
