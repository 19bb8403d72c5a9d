"""The problems on which every variant is checked: each is there for a reason."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from convbackprop.problem import ConvProblem

_parsed = functools.cache(ConvProblem.parse)  # each variant is tried on the same problems


@dataclass(frozen=True)
class Curated:
    """A problem, why it is among the curated ones, and the data that shows it best."""

    text: str
    reason: str
    data: str = "normal"

    def problem(self, **changes: object) -> ConvProblem:
        """Return the problem, with a bias unless its text says otherwise."""
        if "transposed=1" in self.text:  # which has no mask
            changes.pop("mask", None)
        return _parsed(self.text, **{"bias": True, **changes})


CURATED = (
    Curated("1,1,1,1,1,1,1", "the smallest problem there is"),
    Curated("1,1,1,1,1,3,3,padding=same", "an image of one pixel: every other tap lies in the padding"),
    Curated("1,1,28,28,1,3,3,padding=same", "the lab's layer on a small image"),
    Curated("2,1,33,65,1,5,5,padding=same", "one more row and column than whole blocks of 32 hold"),
    Curated("2,1,31,63,1,7,7,padding=same", "one row and column less than whole blocks of 32 hold"),
    Curated("3,2,7,5,3,2,3", "no two sizes are the same: a swapped letter shows"),
    Curated("2,3,8,9,4,3,2,padding=same", "an even filter: 'same' pads more on the right"),
    Curated("2,3,8,9,4,4,1,padding=same", "an even filter: 'same' pads more at the bottom"),
    Curated("1,1,9,9,1,4,4,padding=1:2x0:3", "four different sides of padding"),
    Curated("2,2,5,6,3,3,3,padding=4x5", "padding larger than the filter: some outputs see no pixel at all"),
    Curated("2,2,2,3,3,5,5,padding=2", "a filter larger than the unpadded image"),
    Curated("2,3,11,13,4,3,3,stride=2,padding=1", "a stride that leaves a row and a column over"),
    Curated("2,3,12,14,4,3,3,stride=2,padding=1", "a stride with even sizes"),
    Curated("2,2,13,17,3,3,5,stride=3x2,padding=1x2", "different strides down and across"),
    Curated("1,2,9,10,2,2,2,stride=4x3", "a stride larger than the filter: some inputs are never read"),
    Curated("2,2,12,11,3,3,3,dilation=2x3,padding=2x3", "different dilations down and across"),
    Curated("1,2,14,15,2,3,2,stride=2x3,dilation=3x2,padding=3x1", "stride and dilation together"),
    Curated("2,6,9,8,4,3,3,groups=2,padding=1", "two groups of three input and two output channels"),
    Curated("2,5,9,8,5,3,3,groups=5,padding=1", "depthwise: each channel by itself"),
    Curated("2,3,9,8,6,3,3,groups=3,padding=1", "depthwise with two filters a channel"),
    Curated("2,3,12,15,3,3,3,groups=3,padding=1,stride=2", "depthwise with a stride"),
    Curated("0,3,6,5,4,3,3,padding=1", "an empty batch: no output, and gradients of zero"),
    Curated("2,17,6,5,9,1,1", "1 x 1: a matrix product of the channels"),
    Curated("2,3,6,5,4,3,3,padding=1,bias=0", "no bias"),
    Curated("4,20,1,1,11,1,1", "a dense layer: 1 x 1 on images of one pixel"),
    Curated("2,3,7,7,63,3,3,padding=1", "an image of 7 x 7; one filter less than a tile of 64"),
    Curated(
        "1,17,9,8,65,3,3,padding=1", "17 channels, whose 153 products no tile divides; one filter more than a tile"
    ),
    Curated("2,65,6,5,129,1,1", "one channel and one filter more than tiles of 64 and 128"),
    Curated("2,130,7,7,10,3,3,groups=2,padding=1", "two groups, of more channels and fewer filters than a tile"),
    Curated("1,64,5,6,128,3,3,padding=1", "channels and filters that whole tiles hold"),
    Curated("2,64,4,6,64,1,1", "the same, 1 x 1, with planes of whole vectors; a vector spans two rows"),
    Curated("1,33,13,13,66,3,3,stride=2,padding=1", "many channels, a stride of 2 and odd sizes"),
    Curated("1,63,14,12,34,3,2,stride=2,padding=1", "many channels, a stride of 2 and even sizes"),
    Curated("1,16,6,8,64,3,3,stride=2,padding=1", "whole blocks of filters, in phases of one, two and four taps"),
    Curated("1,1,1,300,1,1,9,padding=same", "a single row: 1-D convolution"),
    Curated("1,1,300,1,1,9,1,padding=same", "a single column"),
    Curated("1,1,20,40,1,15,15,padding=same", "a large filter"),
    Curated("1,2,21,70,2,9,12,groups=2,padding=1:4x7:2", "large filters, not square, of equal terms", "constant"),
    Curated("1,700,2,3,2,1,1", "a long sum over channels of equal terms", "constant"),
    Curated("1,20,5,6,300,3,3,stride=2,padding=1", "long sums over filters, of as many taps as a pixel meets"),
    Curated("1,1,256,257,1,3,3,padding=same", "a long sum over pixels of equal terms", "constant"),
    Curated("1,1,1,200000,1,1,3,padding=same", "one long row of equal terms: no part of its sum is short", "constant"),
    Curated("3,1,1,9000,1,1,3,padding=same", "long rows of positive terms", "positive"),
    Curated("2,3,16,17,4,3,3,padding=1", "small integers, whose sums are exact in any order", "integers"),
    Curated(
        "2,4,13,12,6,3,2,groups=2,stride=2x1,dilation=1x2,padding=2:0x1:3", "integers, everything at once", "integers"
    ),
    Curated("2,6,9,11,10,3,3,groups=2,padding=1,scale=1", "a scale, which no two channels share, and a bias"),
    Curated("2,3,9,11,5,3,3,padding=1,residual=1", "a residual, which is added before the activation"),
    Curated("2,5,12,13,6,3,2,stride=2,padding=1,scale=1,residual=1,bias=0", "scale and residual, with a stride"),
    Curated("1,34,7,9,66,3,3,padding=1,scale=1,residual=1", "scale and residual of more filters than a tile of 64"),
    Curated("2,3,8,7,4,3,3,padding=1,scale=1,residual=1", "integers with scale and residual", "integers"),
    Curated("2,6,9,8,6,3,3,groups=6,padding=1,transposed=1", "a transposed convolution of single channels"),
    Curated("1,2,11,30,2,5,9,groups=2,padding=2x4,transposed=1", "a transposed one with a large filter"),
    Curated("2,3,9,12,4,3,2,stride=2x3,padding=1,transposed=1", "a transposed one whose last pixels see the bias only"),
)
