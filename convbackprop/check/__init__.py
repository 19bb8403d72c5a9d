"""Whether a variant is right: held against a float64 reference on curated problems, and each access looked at."""

from convbackprop.check.run import (
    BUDGET as BUDGET,
    DATA as DATA,
    GUARD as GUARD,
    Guarded as Guarded,
    Outcome as Outcome,
    check as check,
    compiled_alike as compiled_alike,
    fill as fill,
    inputs as inputs,
    judge as judge,
    launch as launch,
    stage as stage,
    within_budget as within_budget,
)
