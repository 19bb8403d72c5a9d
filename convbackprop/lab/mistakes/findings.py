"""From what sanitize has found, or the code says, to the mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable

from convbackprop.check.sanitize import Finding
from convbackprop.lab.mistakes.catalogue import KINDS, Mistake
from convbackprop.ladder.variant import Variant
from convbackprop.sources import code_of, parameters

#: By a finding's kind, where nothing else matters.
_ALWAYS = {
    "divergent barrier": "barrier_not_for_all",
    "barrier without all threads": "barrier_not_for_all",
    "stopped": "threads_stuck",
    "array index": "index_beyond_extent",
    "misaligned": "vector_not_aligned",
    "write to an input": "input_written",
    "mask of missing lanes": "lanes_missing",
}


def recognise_finding(finding: Finding) -> Mistake | None:
    """Return the mistake that a finding comes of, or None where it may be one of several."""
    kind = _kind(finding)
    return KINDS[kind] if kind else None


def recognise_findings(findings: Iterable[Finding]) -> Mistake | None:
    """Return the mistake that explains most: without a barrier, say, a tile is also read before it is written."""
    kinds = {_kind(finding) for finding in findings}
    return next((mistake for kind, mistake in KINDS.items() if kind in kinds), None)


#: Whose sums may come in any order: integers come out the same in each.
_FLOATS = ("Scalar", "Acc", "float", "double", "__half", "half", "__nv_bfloat16", "nv_bfloat16")


def recognise_code(variant: Variant) -> Mistake | None:
    """Return what a right result does not show: atomics that add up floats, whose last bits change from run to run."""
    arrays = {
        parameter.name
        for entry in parameters(variant.path).values()
        for parameter in entry
        if parameter.is_pointer and parameter.type in _FLOATS
    }
    targets = re.findall(r"\batomicAdd\s*\(\s*&?\s*(\w+)", code_of(variant.path))
    return KINDS["atomics_in_any_order"] if arrays.intersection(targets) else None


def _kind(finding: Finding) -> str | None:
    is_shared, on_one_line = finding.memory == "shared", finding.lines[:1] == finding.other_lines[:1]
    if finding.kind.startswith("race"):
        if is_shared and not (on_one_line and finding.both_write):
            return "barrier_missing"
        return "not_atomic" if finding.reads else "written_twice"  # += reads and writes
    if finding.kind == "out of bounds":
        if not finding.memory:
            return "no_array_there"
        return "shared_memory_too_small" if is_shared else f"{'written' if finding.is_write else 'read'}_out_of_bounds"
    if finding.kind == "uninitialised read":
        if is_shared:
            return "not_written_before"
        return (
            "partial_sums_missing" if finding.memory == "scratch" else "result_not_zeroed" if finding.memory else None
        )
    if finding.kind == "wrong result":
        return "order_of_threads" if "where a block's threads start" in finding.sentence else None
    return _ALWAYS.get(finding.kind)
