"""The problems that the tests run on: the curated ones, and more with their reasons. Others: convbackprop/fuzz."""

from __future__ import annotations

from convbackprop.curated import CURATED, Curated

#: What is known at compile time: (activation, mask).
ACTIVATION_KINDS = (("identity", False), ("relu", False), ("relu", True), ("logistic", False), ("tanh", False))

#: Too slow or too special for `convbackprop check`, but not for the tests.
MORE = (
    Curated("2,4,6,7,4,3,3,groups=4,padding=2,stride=2,dilation=2", "depthwise, strided and dilated at once"),
    Curated("1,1,3,1031,1,3,3,padding=1", "a row longer than a block of 1024 threads"),
    Curated("1,1,7,9,1,7,9", "one output pixel: the filter covers the image exactly"),
    Curated("1,1,7,9,1,1,1,stride=9", "one output pixel: the stride is larger than the image"),
    Curated("5,1,4,4,129,1,1", "more output channels than a block has threads"),
    Curated("1,130,4,4,1,3,3,padding=1", "sums of more than a thousand terms, with a remainder"),
    Curated("1,1,5,5,1,2,2,dilation=4", "a dilated filter as large as the image"),
    Curated("1,1,4,23,3,4,9,stride=1x2,padding=1:6x0:2,dilation=1x3", "g is narrower than a phase of the pixels"),
    Curated("1,2,4,5,2,3,3,padding=0:6x6:0", "padding on two sides only, twice the filter"),
    Curated("7,1,2,2,1,2,2", "many images of one output pixel: the batch is the only long axis"),
)

PROBLEMS = CURATED + MORE

#: What torch computes too: it refuses some empty batches.
WITH_IMAGES = tuple(entry for entry in CURATED if entry.problem().N)
