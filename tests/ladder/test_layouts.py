"""Layouts of images in memory: of a problem, of arrays, and which rungs take which."""

from __future__ import annotations

import numpy as np
import pytest

from convbackprop import layouts
from convbackprop.errors import InvalidArgument
from convbackprop.ladder.registry import VARIANTS
from convbackprop.problem import ConvProblem
from convbackprop.tune.table import class_of

NHWC = ConvProblem.parse("2,6,5,7,4,3,2,groups=2,padding=1,layout=nhwc", bias=True, activation="relu")

#: The rungs that take images whose channels lie side by side.
TAKE_NHWC: set[str] = set()


# -- the problem ------------------------------------------------------------------------------------------------------
def test_a_problem_has_a_layout():
    assert NHWC.layout == "nhwc" and ConvProblem.parse(str(NHWC)) == NHWC
    assert "layout" not in str(NHWC.with_(layout="nchw"))
    assert class_of("forward", NHWC) != class_of("forward", NHWC.with_(layout="nchw"))
    with pytest.raises(InvalidArgument, match="layout is 'nwhc'; it should be one of nchw, nhwc"):
        ConvProblem.parse("1,1,9,9,1,3,3,layout=nwhc")
    with pytest.raises(InvalidArgument, match="mask is given, whose bytes are pieces of rows; layout 'nhwc' has none"):
        NHWC.with_(mask=True)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (4, 5), (2, 1, 4, 5), (1, 3, 1, 1)], ids=str)
def test_strides_are_those_of_memory(shape):
    for layout in layouts.LAYOUTS:
        array = layouts.as_named(np.empty(layouts.in_memory(shape, layout), np.float16), layout)
        assert array.shape == shape
        assert array.strides == tuple(2 * step for step in layouts.strides(shape, layout))
        assert layouts.lies(shape, array.strides, 2, layout)
        same = len(shape) < 3 or shape[-3] == 1 or shape[-2:] == (1, 1)
        assert layouts.layout_of(shape, array.strides, 2) == ("nchw" if same else layout)
    assert layouts.layout_of(shape, tuple(2 * step for step in array.strides), 2) is None


# -- the rungs --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_rung_takes_a_layout_or_refuses_it_in_a_sentence(variant):
    assert ("nhwc" in variant.layouts) == (str(variant) in TAKE_NHWC)
    if "nhwc" not in variant.layouts:
        assert variant.refusal(NHWC) == "the layout is nhwc; it reads and writes nchw"
