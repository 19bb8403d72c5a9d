"""Which mistake a wrong kernel has: told by its results (`recognise`), or by what sanitize found."""

from convbackprop.lab.mistakes.catalogue import KINDS as KINDS, Mistake as Mistake
from convbackprop.lab.mistakes.findings import (
    recognise_code as recognise_code,
    recognise_finding as recognise_finding,
    recognise_findings as recognise_findings,
)
from convbackprop.lab.mistakes.recognition import recognise as recognise
