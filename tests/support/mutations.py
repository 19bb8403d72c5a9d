"""Wrong kernels: each is a variant of the registry with one text of its files replaced, in copies of them.

test_wrong.py has the curated problems reject every one of them, and test_fuzz.py has random cases find those of the
naive kernels. They run in the process of the tests: one that reads or writes far outside its arrays, or divides by
zero, ends it.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from convbackprop.devices.gpus import GPUS
from convbackprop.ladder.registry import select
from convbackprop.ladder.variant import Variant
from convbackprop.sources import text_with_includes


def copied(name: str, folder: Path) -> Variant:
    """Return a variant whose files, with all that they include, are copies that lie side by side in a folder."""
    (variant,) = select(name)
    for file, text in text_with_includes(variant.path).items():
        copy = folder / Path(file).name
        assert not copy.exists(), f"{name} includes two files named {copy.name}"
        copy.write_text(re.sub(r'(#include ")[^"]*/', r"\1", text))  # else the original would be included
    return dataclasses.replace(variant, file=folder / variant.path.name)


def replaced(name: str, file: str, old: str, new: str, folder: Path) -> Variant:
    """Return a copied variant with one text of one file replaced, which must stand in it exactly once."""
    variant = copied(name, folder)
    assert (folder / file).is_file(), f"{name} does not include {file}"
    text = (folder / file).read_text()
    assert text.count(old) == 1, f"{file} of {name} has {old!r} {text.count(old)} times; it should be there once"
    (folder / file).write_text(text.replace(old, new))
    return variant


class Mutation(NamedTuple):
    """One replacement that makes a variant wrong.

    Attributes
    ----------
    what : str
        What is wrong then, in a few words.
    old, new : str
        What is replaced, and by what.
    file : str
        A header in which that is done; the variant's own .cu file where nothing is said.
    shown_by : tuple of str
        Of what takes long to compile: the curated problem that shows the mistake.
    shown_in : str
        Of what: "tanh" (in most), "identity", "mask", where the mistake shows in the ReLU's bits only, "pairs", where
        it shows in a ReLU of 16 bits only, or "nonfinite", where it shows in what a NaN or an infinity spreads to only.
    variant : str
        As in "forward/tiled".
    multiprocessors : int
        Of the GPU that grids are made for: where there are many, sums are split among blocks.
    """

    what: str
    old: str
    new: str
    file: str = ""
    shown_by: tuple[str, ...] = ()
    shown_in: str = "tanh"
    variant: str = ""
    multiprocessors: int = GPUS[0].sms

    def applied(self, folder: Path) -> Variant:
        """Return the wrong variant, whose files are copies in a folder."""
        file = self.file or f"{self.variant.partition('/')[2]}.cu"
        return replaced(self.variant, file, self.old, self.new, folder)


_ANEW = "what the padding has made NaN is left as it is"

_STAGED = "__syncthreads();  // the tile is complete"
_READ = "__syncthreads();  // nobody reads the tile any more"

_LARGE_FILTER, _WIDE_FILTER = ("1,1,20,40,1,15,15,padding=same",), ("1,1,1,300,1,1,9,padding=same",)
_SCALED, _RESIDUAL = ("2,6,9,11,10,3,3,groups=2,padding=1,scale=1",), ("2,3,9,11,5,3,3,padding=1,residual=1",)
_SEVERAL_BLOCKS, _SPLIT = ("1,1,256,257,1,3,3,padding=same",), ("2,2,5,6,3,3,3,padding=4x5",)
_WHOLE_TILES, _POINTWISE = ("1,64,5,6,128,3,3,padding=1",), ("2,64,4,6,64,1,1",)
_EQUAL_TERMS = ("1,2,21,70,2,9,12,groups=2,padding=1:4x7:2",)
_UNEVEN_BANDS = ("2,1,33,65,1,5,5,padding=same",)
_STRIDED_DEPTHWISE = ("2,3,12,15,3,3,3,groups=3,padding=1,stride=2",)
_LONG_SUM = ("1,700,2,3,2,1,1",)
_LONG_STRIDED = ("1,20,5,6,300,3,3,stride=2,padding=1",)
_SEVERAL_TILES = ("2,130,7,7,10,3,3,groups=2,padding=1",)
_GROUPS, _SEVERAL_LINES = ("2,130,7,7,10,3,3,groups=2,padding=1",), ("2,3,16,17,4,3,3,padding=1",)
_STRIDED = ("1,33,13,13,66,3,3,stride=2,padding=1",)
_FEW_OF_GROUPS, _FEW_STRIDED = ("2,6,9,8,4,3,3,groups=2,padding=1",), ("2,3,11,13,4,3,3,stride=2,padding=1",)

_TABLE = {
    "forward/naive": (
        Mutation("does nothing at all", "y[i] = from_acc(activate(s));", "(void)s;"),
        Mutation("adds to what the output held before", "from_acc(activate(", "from_acc(to_acc(y[i]) + activate("),
        Mutation("one element past the output is written", "if (i >= shape.y_size()) return;",
                 "if (i > shape.y_size()) return;"),
        Mutation("the bias is added twice", "s_sum.add(to_acc(b[k]));", "s_sum.add(2 * to_acc(b[k]));"),
        Mutation("the elements that do not fill a block are skipped", "if (i >= shape.y_size()) return;",
                 "if (i >= shape.y_size() || blockIdx.x >= max(shape.y_size() / THREADS, Index(1))) return;"),
        Mutation("the last column of the image counts as padding", "!shape.col_inside(w_)",
                 "!shape.col_inside(w_) || w_ == shape.W - 1"),
        Mutation("a column outside the image is read from the row above or below", "!shape.col_inside(w_)",
                 "shape.x_at(n, first_c + c, h, w_) < 0 || shape.x_at(n, first_c + c, h, w_) >= shape.x_size()"),
        Mutation("stride and dilation are exchanged across the columns", "shape.input_col(q, s)",
                 "q * shape.dilation_w - shape.pad_left + s * shape.stride_w"),
        Mutation("the last tap of a row is dropped, unless it is the only one", "s < shape.S;",
                 "s == 0 || s < shape.S - 1;"),
        Mutation("the filter is flipped", "w_at(k, c, r, s)", "w_at(k, c, shape.R - 1 - r, shape.S - 1 - s)"),
        Mutation("the filter's rows and columns are exchanged", "w_at(k, c, r, s)",
                 "w_at(k, c, 0, 0) + s * shape.R + r"),
        Mutation("the bias is scaled, too", "* s + (b ? to_acc(b[k]) : Acc(0));",
                 "* (s + (b ? to_acc(b[k]) : Acc(0)));", shown_by=_SCALED),
        Mutation("the sums have the scale of the next channel", "scale[k]) * s", "scale[(k + 1) % shape.K]) * s",
                 shown_by=_SCALED),
        Mutation("the residual is added after the activation",
                 "s += to_acc(residual[i]);\n    y[i] = from_acc(activate(s));",
                 "s = activate(s) + to_acc(residual[i]);\n    y[i] = from_acc(RESIDUAL ? s : activate(s));",
                 shown_by=_RESIDUAL),
        Mutation("the sum is rounded to the stored type at each step",  # float16 has lost its float32 accumulator
                 "s_sum.add(to_acc(x[shape.x_at(n, first_c + c, h, w_)]) * to_acc(w[shape.w_at(k, c, r, s)]));",
                 "s_sum.run = to_acc(from_acc(s_sum.run +"
                 " to_acc(x[shape.x_at(n, first_c + c, h, w_)]) * to_acc(w[shape.w_at(k, c, r, s)])));"),
    ),
    "input_grad/naive": (
        Mutation("phi' is forgotten", "pre_activation_grad(dy, saved, shape, n, k, p, q)",
                 "to_acc(dy[shape.y_at(n, k, p, q)])"),
        Mutation("phi' has the wrong sign", "= pre_activation_grad", "= -pre_activation_grad"),
        Mutation("every group reads the filters of the first", "group * shape.group_filters() + j", "j + 0 * group"),
        Mutation("the filter is not turned", "w_at(k, group_c, r, s)",
                 "w_at(k, group_c, shape.R - 1 - r, shape.S - 1 - s)"),
        Mutation("every group has the scale of the first", "scale, k)", "scale, j)", shown_by=_SCALED),
        # Inputs between two strides get a gradient, too.
        Mutation("the remainder by the stride down the rows is ignored", "p_steps % shape.stride_h != 0 || ", ""),
        Mutation("the remainder by the stride across the columns is ignored", "q_steps % shape.stride_w != 0 || ", ""),
    ),
    "kernel_grad/naive": (
        Mutation("a row is one running sum", "RUN = 64;", "RUN = 1 << 30;", file="long_sum.cuh"),
        Mutation("the filter is flipped", "const int s = tap % shape.S;\n    const int r = tap / shape.S % shape.R;",
                 "const int s = shape.S - 1 - tap % shape.S;\n"
                 "    const int r = shape.R - 1 - tap / shape.S % shape.R;"),
        Mutation("only the first image is added up", "row < Index(shape.N) * shape.P", "row < shape.P"),
        Mutation("channels take turns at the scale", "tap / (shape.w_size() / shape.K)", "tap % shape.K",
                 file="kernel_grad_total.cuh"),
        Mutation("the bias's gradient is scaled, too", "is_of_filter ? sum.value() *",
                 "true ? sum.value() *", file="kernel_grad_total.cuh"),
        Mutation("the bias leaves out the rows that tap row 0 reads from the padding",
                 "!is_bias && !shape.row_inside(h)", "!shape.row_inside(is_bias ? shape.input_row(p, 0) : h)"),
        # Its round-offs cancel on normal data; on equal terms they add up.
        Mutation("one running sum over all pixels of all images",
                 "LongSum sum;\n    for (Index row = blockIdx.y; row < Index(shape.N) * shape.P; row += gridDim.y) {",
                 "struct {\n"
                 "        Acc all = 0;\n"
                 "        __device__ void add(Acc term) { all += term; }\n"
                 "        __device__ Acc value() const { return all; }\n"
                 "    } sum;\n"
                 "    for (Index row = 0; row < (blockIdx.y == 0 ? Index(shape.N) * shape.P : 0); ++row) {"),
    ),
    "forward/tiled": (
        Mutation("the tile is read before it is complete", _STAGED, ""),
        Mutation("the tile is overwritten while others still read it", _READ, ""),
        Mutation("the columns of the halo are not staged", "col < cols", "col < TILE_Q"),
        Mutation("the rows of the halo are not staged", "row < rows", "row < TILE_P"),
        Mutation("taps beyond the image are multiplied", "min(count, (size - 1 - start) / step + 1) : 0", "count : 0",
                 file="steps_inside.cuh"),
        Mutation("the last row of tiles is skipped where it is not full", "is_output = p < shape.P",
                 "is_output = p < shape.P / TILE_P * TILE_P"),
        Mutation("the mask's bits are reversed", "q - first_q)", "first_q + 7 - q)", file="pack_mask.cuh",
                 shown_in="mask"),
        Mutation("the last tap of a row is dropped", "i > 0", "i > 1", file="add_products.cuh"),
    ),
    "input_grad/tiled": (
        Mutation("the tile is read before it is complete", _STAGED, ""),
        Mutation("the tile is overwritten while others still read it", _READ, ""),
        Mutation("phi' is applied twice", "pre_activation_grad(dy, saved, shape, n, k, first_p + row, first_q + col);",
                 "times_derivative(pre_activation_grad(dy, saved, shape, n, k, first_p + row, first_q + col),"
                 " to_acc(Scalar(saved[shape.y_at(n, k, first_p + row, first_q + col)])));"),
        Mutation("taps that meet no output are taken", "shape.stride_w / gcd_w", "1"),
        Mutation("a step goes to the wrong output", "shape.dilation_h / gcd_h", "1"),
        Mutation("an output beyond the last one is taken", ">= outputs", "> outputs"),
        Mutation("the halo above and to the left is not staged", "position - (taps - 1) * dilation", "position"),
    ),
    "kernel_grad/tiled": (
        Mutation("the tile is read before it is complete", _STAGED, ""),
        Mutation("the tile is overwritten while others still read it", _READ, ""),
        Mutation("parts are not awaited", "__syncthreads();  // every part's sum is there", ""),
        Mutation("the rows of x_tile overlap", "(widest - shape.S + 31) / 32 * 32", "0"),
        Mutation("the rows of g_tile overlap", "G_PITCH = TILE_Q + 1;", "G_PITCH = TILE_Q - 2;"),
        Mutation("the columns of the halo are not staged", "col < cols", "col < TILE_Q"),
        Mutation("the last row of tiles is skipped where it is not full",
                 "const int tiles = ((shape.P - 1) / TILE_P + 1)", "const int tiles = max(1, shape.P / TILE_P)"),
        Mutation("a slice ends in no tile", "if (tile >= tiles) {", "if (tile > tiles) {"),
        Mutation("the last part is dropped", "i < parts;", "i < max(1, parts - 1);"),
        Mutation("the last slice is dropped", "slice < slices;", "slice < slices - (slices > 1);",
                 file="kernel_grad_total.cuh"),
        Mutation("the bias is a tap of another channel", "(c == 0)", "(c == 1)"),
        Mutation("rows of x beyond the image are multiplied", "q = across.first; has_pixels && ", "q = across.first; ",
                 shown_in="nonfinite"),
        Mutation("columns of x beyond the image are multiplied", "int q = across.first;", "int q = 0;",
                 shown_in="nonfinite"),
    ),
    "forward/coalesced": (
        Mutation("the halo's left columns are read from the row above", "exists && 0 <= column", "exists",
                 file="columns.cuh"),
        Mutation("a vector of a row begins where the strip does", "x_row[LEAD + j + s]", "x_row[j + s]"),
        Mutation("the last vector of a row is not written", "if (first_q + j < shape.Q) store_vector",
                 "if (first_q + j + Y_VECTOR < shape.Q) store_vector"),
        Mutation("the next row is the one in use", "next.ask(x_plane + Index(h + 1)", "next.ask(x_plane + Index(h)"),
        Mutation("below the image the next plane's first row is read", "h + 1 < end_h && shape.row_inside(h + 1)",
                 "h + 1 < end_h"),
        Mutation("the filter's rows are upside down", "taps[(FILTER_R - 1 - r) * FILTER_S + s]",
                 "taps[r * FILTER_S + s]"),
        Mutation("the last tap of a row is dropped", "s < FILTER_S;", "s == 0 || s < FILTER_S - 1;"),
        Mutation("the ring does not move on", "sums[r + 1][j] : start", "sums[r][j] : start"),
        Mutation("the first row of a band is not written", "if (p < first_p) continue;",
                 "if (p <= first_p) continue;"),
        Mutation("taps in shared memory are read before they are there",
                 "is_finite = __syncthreads_and(is_finite);  // all taps are there", "", shown_by=_LARGE_FILTER),
        Mutation("the mask has bits beyond the row's end", "unsigned(first_q + j < shape.Q && !", "unsigned(!",
                 shown_in="mask"),
        Mutation("the mask's bits are those of the next columns", "<= 0)) << j;", "<= 0)) << j >> 1;",
                 shown_in="mask"),
        Mutation(_ANEW, "if (!is_finite && (", "if (false && (", shown_in="nonfinite"),
        Mutation("the padding is multiplied by infinite taps of a large filter", "isfinite(shared_taps[t])", "true",
                 shown_by=_LARGE_FILTER, shown_in="nonfinite"),
    ),
    "input_grad/coalesced": (
        Mutation("the filter is not turned", "own_taps[t] = to_acc(filter[TAPS - 1 - t])",
                 "own_taps[t] = to_acc(filter[t])"),
        Mutation("a large filter is not turned", "shared_taps[t] = to_acc(filter[TAPS - 1 - t])",
                 "shared_taps[t] = to_acc(filter[t])", shown_by=_LARGE_FILTER),
        Mutation("taps in shared memory are read before they are there",
                 "is_finite = __syncthreads_and(is_finite);  // all taps are there", "", shown_by=_LARGE_FILTER),
        Mutation("left and right padding are exchanged", "left = FILTER_S - 1 - shape.pad_left",
                 "left = shape.pad_left", shown_by=("1,1,9,9,1,4,4,padding=1:2x0:3",)),
        Mutation("phi' is applied twice", "times_derivative(g[i], outputs[i])",
                 "times_derivative(times_derivative(g[i], outputs[i]), outputs[i])", file="columns.cuh"),
        Mutation("the next row is the one in use", "p + 1 < end_p ? p + 1 : shape.P", "p + 1 < end_p ? p : shape.P"),
        Mutation("the last vector of a row is not written", "if (first_w + j < shape.W)",
                 "if (first_w + j + X_VECTOR < shape.W)"),
        Mutation("the mask's bits are those of other columns", "bits >>= first & 7;", "", file="columns.cuh",
                 shown_in="mask"),
        Mutation("left of the image the mask's first byte is read", "(first >> 3) + i", "first / 8 + i",
                 file="columns.cuh", shown_in="mask"),
        Mutation(_ANEW, "if (!is_finite && (", "if (false && (", shown_in="nonfinite"),
    ),
    "kernel_grad/coalesced": (
        Mutation("the ring's index is off by one", "ring[(turn + r) % TAP_ROWS]", "ring[(turn + r + 1) % TAP_ROWS]"),
        Mutation("the taps are mirrored", "sums[r * TAP_COLS + s] +=", "sums[r * TAP_COLS + TAP_COLS - 1 - s] +="),
        Mutation("the next row of x is one too far down", "+ first_h + TAP_ROWS;", "+ first_h + TAP_ROWS + 1;"),
        Mutation("the next row of g is the one in use", "g_plane, p + 1 < end_p ? p + 1", "g_plane, p + 1 < end_p ? p"),
        Mutation("the last row is left out", "min(first_p + ROWS, shape.P)", "min(first_p + ROWS, shape.P - 1)"),
        Mutation("the last block's partial sums are dropped", "slice < slices;", "slice < max(1, slices - 1);",
                 file="kernel_grad_total.cuh", shown_by=_SEVERAL_BLOCKS),
        Mutation("the last warp's sums are dropped", "warp < WARPS;", "warp < WARPS - 1;", file="block_sum.cuh",
                 shown_by=_SEVERAL_BLOCKS),
        Mutation("every other lane's sums are dropped", "lanes > 0;", "lanes > 1;", file="block_sum.cuh"),
        Mutation("the warps' sums are read before they are there", "__syncthreads();  // every warp's sums are there",
                 "", file="block_sum.cuh"),
        Mutation(_ANEW, "if (meets_padding && !is_finite)", "if (false)", shown_in="nonfinite"),
    ),
    "backward/fused": (
        Mutation("the filter is not turned", "(FILTER_R - 1 - i) * FILTER_S + FILTER_S - 1 - s", "i * FILTER_S + s"),
        Mutation("the ring's index is off by one", "ring[(turn + i) % FILTER_R]", "ring[(turn + i + 1) % FILTER_R]"),
        Mutation("db adds up another row of g", "ring[(turn + TOP) % FILTER_R]", "ring[turn]"),
        Mutation("the next row of g is one too far up", "shape.P : h + 1 + TOP", "shape.P : h + TOP"),
        Mutation("the next row of x is the one in use", "x_plane + Index(h + 1)", "x_plane + Index(h)"),
        Mutation("the last vector of a row is not written", "if (NEED_DX && first_w + j < shape.W)",
                 "if (NEED_DX && first_w + j + X_VECTOR < shape.W)"),
        Mutation("the warps' sums are read before they are there", "__syncthreads();  // every warp's sums are there",
                 "", file="block_sum.cuh"),
        Mutation(_ANEW, "if (meets_padding && !is_finite)", "if (false)", shown_in="nonfinite"),
        Mutation("the padding is multiplied by infinite taps", " && taps[t] - taps[t] == 0", "", shown_in="nonfinite"),
    ),
    "forward/pipelined": (
        Mutation("the halo's left columns are read from the row above",
                 "unsigned(first + i * STEP) < unsigned(columns)", "first + i * STEP < columns", file="row_ring.cuh"),
        Mutation("the margin's zeros are overwritten by the next row's first columns",
                 "if (is_mine(i) && inside(i))\n                    __pipeline_memcpy",
                 "if (is_mine(i) && first + i * STEP >= 0)\n                    __pipeline_memcpy", file="row_ring.cuh",
                 shown_by=_SEVERAL_BLOCKS),
        Mutation("a row that is not there leaves the one before it", "*place(i, stage) = Elements();\n        }",
                 ";\n        }", file="row_ring.cuh"),
        Mutation("all bands are as tall as the tallest may be", "unit / tiles * band,", "unit / tiles * ROWS,",
                 shown_by=_UNEVEN_BANDS),
        Mutation("a vector of a row begins where the strip does", "x_row[LEAD + j * STRIDE_W + s]",
                 "x_row[j * STRIDE_W + s]"),
        Mutation("the last vector of a row is not written", "if (first_q + j < shape.Q) store_vector",
                 "if (first_q + j + Y_VECTOR < shape.Q) store_vector"),
        Mutation("the ring is a stage too short", "stage + 1 < STAGES ? stage + 1 : 0",
                 "stage + 2 < STAGES ? stage + 1 : 0", file="row_ring.cuh"),
        Mutation("a row is brought to the place of the one in use", "stage ? stage - 1 : STAGES - 1", "stage"),
        Mutation("below the image the next plane's first row is read", "min(end_of_band, shape.H)", "end_of_band"),
        Mutation("the last rows of a band are not asked for", "min(end_of_band, shape.H)",
                 "min(end_of_band - 1, shape.H)", shown_by=_SEVERAL_BLOCKS),
        Mutation("the last row of uneven bands is left out", "(rows + bands - 1) / bands", "rows / bands",
                 file="row_ring.cuh", shown_by=_UNEVEN_BANDS),
        Mutation("all strips read the window of the tile's first", "tile_lane() * COLS * STRIDE_W);", "0);"),
        Mutation("the filter's rows are upside down", "taps[r * FILTER_S + s]",
                 "taps[(FILTER_R - 1 - r) * FILTER_S + s]"),
        Mutation("columns are one apart, whatever the stride", "x_row[LEAD + j * STRIDE_W + s]", "x_row[LEAD + j + s]",
                 shown_by=_STRIDED_DEPTHWISE),
        Mutation("rows are complete a row late", "f != (FILTER_R - 1) % STRIDE_H", "f != FILTER_R % STRIDE_H",
                 shown_by=_STRIDED_DEPTHWISE),
        Mutation("what waits in registers is dropped", "if (waiting_stage >= 0)", "if (waiting_stage > 0)",
                 file="row_ring.cuh"),
        Mutation(_ANEW, "is_nan |=", "(void)", shown_in="nonfinite"),
    ),
    "input_grad/pipelined": (
        Mutation("the filter is not turned", "own_taps[t] = to_acc(filter[TAPS - 1 - t])",
                 "own_taps[t] = to_acc(filter[t])"),
        Mutation("left and right padding are exchanged", "(tile_w + shape.pad_left) / STRIDE_W",
                 "(tile_w + FILTER_S - 1 - shape.pad_left) / STRIDE_W", shown_by=("1,1,9,9,1,4,4,padding=1:2x0:3",)),
        Mutation("phi' is applied twice", "times_derivative(g[j], outputs[j])",
                 "times_derivative(times_derivative(g[j], outputs[j]), outputs[j])", file="grad_ring.cuh"),
        Mutation("phi' is forgotten where g is formed in pairs", "bits &= open_bits(y.pairs[j]);", "",
                 file="grad_ring.cuh", shown_in="pairs"),
        Mutation("the last columns of a row of g are not formed", "i < WIDTH; i += TILE_LANES * N",
                 "i < WIDTH - COLS; i += TILE_LANES * N", file="grad_ring.cuh", shown_by=_SEVERAL_BLOCKS),
        Mutation("the mask's bits are those of other columns", "bits >>= bit % 8;", "", file="grad_ring.cuh",
                 shown_in="mask"),
        Mutation("left of the image the mask's first byte is read", "SAVED_MASK ? first >> 3 : first",
                 "SAVED_MASK ? first / 8 : first", file="grad_ring.cuh", shown_in="mask"),
        Mutation("the last row of a band is not written", "if (h < first_h || h >= end_h) continue;",
                 "if (h < first_h || h >= end_h - 1) continue;"),
        Mutation("the columns' phases are exchanged", "steps = j + PHASE - s", "steps = j + 1 - PHASE - s",
                 shown_by=_STRIDED_DEPTHWISE),
        Mutation("rows of the second phase are not written", "i < STRIDE_H; ++i) {", "i < 1; ++i) {",
                 shown_by=_STRIDED_DEPTHWISE),
        Mutation(_ANEW, "is_nan |=", "(void)", shown_in="nonfinite"),
    ),
    "kernel_grad/pipelined": (
        Mutation("the ring's index is off by one", "window[(turn + 1 + r) % TAP_ROWS]",
                 "window[(turn + r) % TAP_ROWS]"),
        Mutation("the taps are mirrored", "sums[r * TAP_COLS + s] +=", "sums[r * TAP_COLS + TAP_COLS - 1 - s] +="),
        Mutation("g is brought a row late", "saved, shape, g_plane, first_p, tile_q);",
                 "saved, shape, g_plane, first_p - 1, tile_q);"),
        Mutation("g meets the rows of x between, too", "&& (i - (TAP_ROWS - 1)) % STRIDE_H == 0", "",
                 shown_by=_STRIDED_DEPTHWISE),
        Mutation("the last row is left out", "min(first_p + band, shape.P) : first_p",
                 "min(first_p + band, shape.P - 1) : first_p"),
        Mutation("the last block's partial sums are dropped", "slice < slices;", "slice < max(1, slices - 1);",
                 file="kernel_grad_total.cuh", shown_by=_SEVERAL_BLOCKS),
        Mutation(_ANEW, "if (meets_padding && !is_finite)", "if (false)", shown_in="nonfinite"),
    ),
    "backward/pipelined": (
        Mutation("the filter is not turned", "(FILTER_R - 1 - r) * FILTER_S + FILTER_S - 1 - s", "r * FILTER_S + s"),
        Mutation("the ring's index is off by one", "window[(turn + 1 + r) % FILTER_R]",
                 "window[(turn + r) % FILTER_R]"),
        Mutation("db adds up another row of g", "window[(turn + 1 + TOP) % FILTER_R]", "window[turn]"),
        Mutation("x is brought a row late", "x_plane + Index(first_h) * shape.W",
                 "x_plane + Index(first_h - 1) * shape.W"),
        Mutation("the last vector of a row is not written", "if (NEED_DX && first_w + j < shape.W)",
                 "if (NEED_DX && first_w + j + X_VECTOR < shape.W)"),
        Mutation(_ANEW, "if (meets_padding && is_nan)", "if (false)", shown_in="nonfinite"),
        Mutation("the padding is multiplied by infinite taps", "is_nan |= isnan(dx_row[j]);", "", shown_in="nonfinite"),
    ),
    "forward/banded": (
        Mutation("the band lies one column further", "padded(word - OUT_COLS)", "padded(word - OUT_COLS + 1)",
                 file="band.cuh"),
        Mutation("a left factor's rows are exchanged", "from + i % 2 * 8 * OUT_COLS + i / 2 * 4 * Factor::PER_WORD",
                 "from + i / 2 * 8 * OUT_COLS + i % 2 * 4 * Factor::PER_WORD", file="band.cuh"),
        Mutation("a group's rows of outputs are upside down", "(FIRST - a) * PITCH", "a * PITCH", file="band.cuh"),
        Mutation("the last columns of the filter are dropped", "BAND = round_up(FILTER_S + OUT_COLS - 1, Factor::K)",
                 "BAND = (FILTER_S + OUT_COLS - 1) / Factor::K * Factor::K", file="band.cuh", shown_by=_EQUAL_TERMS),
        Mutation("low parts of x are left out", "add(1, 0);", ";", file="band.cuh", shown_by=_EQUAL_TERMS),
        Mutation("low parts of the filter are left out", "add(0, 1);", ";", file="band.cuh", shown_by=_EQUAL_TERMS),
        Mutation("two 16-bit taps of an odd column lie in other words", "run = IS_TF32 ? 0 : b % 2;", "run = 0;",
                 file="band.cuh"),
        Mutation("a row's product takes the place of the sums", "sums[j][t][e] += own[t][e]",
                 "sums[j][t][e] = own[t][e]", file="band.cuh"),
        Mutation("the last group of rows is dropped", "newest - j >= groups ||", "newest - j >= groups - 1 ||",
                 file="band.cuh"),
        Mutation("groups begin a row apart", "const int i = f + j * OUT_ROWS;", "const int i = f + j;",
                 file="band.cuh"),
        Mutation("a new group goes on with the sums of the last one", "j > 0 ? sums[j - 1][t][e] : 0;",
                 "sums[j > 0 ? j - 1 : 0][t][e];", file="band.cuh"),
        Mutation("the last column of an odd number is not stored", "if (col < columns) row[col]",
                 "if (col + 1 < columns) row[col]", file="band.cuh"),
        Mutation("the rows of mma's sums are exchanged", "i / 2 + word / 4 * 2);", "1 - i / 2 + word / 4 * 2);",
                 file="mma.cuh"),
        Mutation("the second half of mma's products is dropped", "word < 8; ++word", "word < 4; ++word",
                 file="mma.cuh"),
        Mutation("a row is brought to the place of the one in use", "stage ? stage - 1 : STAGES - 1", "stage"),
        Mutation("the filter is flipped", "taps[r * FILTER_S + s]", "taps[(FILTER_R - r) * FILTER_S - 1 - s]"),
        Mutation("what zeros of the band have made NaN is left as it is", "is_finite &=", "is_finite |=",
                 shown_in="nonfinite"),
        Mutation("only what is beside the padding is formed anew", "form_y_anew<NOT_FINITE>", "form_y_anew",
                 shown_in="nonfinite"),
    ),
    "input_grad/banded": (
        Mutation("the filter is not turned", "taps[-(r * FILTER_S + s)]",
                 "taps[(r + 1 - FILTER_R) * FILTER_S + s + 1 - FILTER_S]"),
        Mutation("left and right padding are exchanged", "left = FILTER_S - 1 - shape.pad_left",
                 "left = shape.pad_left", shown_by=_EQUAL_TERMS),
        Mutation("phi' is forgotten", "times_derivative(g[j], outputs[j])", "g[j]", file="grad_ring.cuh"),
        Mutation("g is not formed", "ring.form_row(stage);", "if (stage) ring.form_row(stage);"),
        Mutation("the last row of a band is not written", "if (h >= first_h && h < end_h)",
                 "if (h >= first_h && h < end_h - 1)"),
        Mutation("low parts of g are left out", "add(1, 0);", ";", file="band.cuh", shown_by=_EQUAL_TERMS),
        Mutation("what zeros of the band have made NaN is left as it is", "is_finite &=", "is_finite |=",
                 shown_in="nonfinite"),
        Mutation("only what is beside the border is formed anew", "form_dx_anew<NOT_FINITE>", "form_dx_anew",
                 shown_in="nonfinite"),
    ),
    "forward/register_tiled": (
        Mutation("the last column of the filter is dropped", "first_s + s >= shape.S", "first_s + s >= shape.S - 1"),
        Mutation("all columns of a wide filter meet the first ones of x", "first_w + first_s - LEAD", "first_w - LEAD",
                 shown_by=_WIDE_FILTER),
        Mutation("the filter's rows are upside down", "r = i - row;", "r = shape.R - 1 - (i - row);"),
        Mutation("below the image the next plane's first row is read", "shape.row_inside(h)", "h >= 0"),
        Mutation("every group reads the channels of the first", "k / shape.group_filters() * shape.group_channels();",
                 "0;"),
        Mutation("the finished runs of a long sum are dropped", "sums[row][j].end_run();", "sums[row][j].run = 0;",
                 shown_by=("1,700,2,3,2,1,1",), shown_in="identity"),
        Mutation("the last row is not written", "if (first_p + row >= shape.P) continue;",
                 "if (first_p + row >= shape.P - 1) continue;"),
        Mutation("the bias is left out", "(b ? to_acc(b[k]) : Acc(0))", "0"),
        Mutation(_ANEW, "is_nan |=", "(void)", shown_in="nonfinite"),
    ),
    "input_grad/register_tiled": (
        Mutation("the filter's rows are not turned", "r = shape.R - 1 - (i - row);", "r = i - row;"),
        Mutation("the filter's columns are not turned", "shape.S - 1 - (first_s + s)", "first_s + s"),
        Mutation("every channel reads the taps of its group's first", "c % shape.group_channels();", "0;",
                 shown_by=("2,6,9,8,4,3,3,groups=2,padding=1",)),
        Mutation("the finished runs of a long sum are dropped", "sums[row][j].end_run();", "sums[row][j].run = 0;",
                 shown_by=("2,3,7,7,63,3,3,padding=1",)),
        Mutation("the last vector of a row is not written", "if (first_w + j < shape.W)",
                 "if (first_w + j + X_VECTOR < shape.W)"),
        Mutation("the mask's bits are those of other columns", "bits >>= first & 7;", "", file="columns.cuh",
                 shown_in="mask"),
        Mutation(_ANEW, "is_nan |=", "(void)", shown_in="nonfinite"),
    ),
    "forward/few_channels": (
        Mutation("the last channels of a chunk are left out", "c < chunk; ++c) sums.add",
                 "c < chunk - 1; ++c) sums.add"),
        Mutation("the last columns of the halo are not brought", "shape.row_inside(h), first_w + col,",
                 "shape.row_inside(h), col < LANES * Cols::STEP ? first_w + col : shape.W,"),
        Mutation("a tile is read before it is there", _STAGED, ""),
        Mutation("the filter's taps are turned", "? steps / DILATION : -1", "? TAPS - 1 - steps / DILATION : -1"),
        Mutation("filters have the taps of the one beside them", ".at(r, s, k)", ".at(r, s, (k + 1) % FEW)",
                 shown_by=_FEW_OF_GROUPS),
        Mutation("every group adds the biases of the first", "group * FEW + k, shortcut", "k, shortcut",
                 shown_by=_FEW_OF_GROUPS),
        Mutation("the finished runs of a long sum are dropped", "totals[i][c][j] += sums[i][c][j];", "",
                 file="few_channels.cuh", shown_by=_LONG_SUM, shown_in="identity"),
        Mutation("the last vector of a row is not written", "if (first_q + j < shape.Q)",
                 "if (first_q + j + Y_VECTOR < shape.Q)"),
        Mutation(_ANEW, "is_nan |=", "(void)", shown_in="nonfinite"),
    ),
    "input_grad/few_channels": (
        Mutation("the taps of a phase are shifted by one", "(u - BACK) * STRIDE;",
                 "(u - BACK) * STRIDE + (STRIDE > 1);", shown_by=_FEW_STRIDED),
        Mutation("the last filters of a chunk are left out", "k < chunk; ++k) sums.add",
                 "k < chunk - 1; ++k) sums.add"),
        Mutation("the last columns of the halo are not brought", "first_q + col);",
                 "col < LANES * Cols::STEP ? first_q + col : shape.Q);"),
        Mutation("the last rows of the halo are not brought", "first_p + row,",
                 "row < THREADS / LANES * Rows::STEP ? first_p + row : shape.P,"),
        Mutation("a tile is read before it is there", _STAGED, ""),
        Mutation("the next tile overwrites the one that is read", _READ, "",
                 shown_by=("2,3,7,7,63,3,3,padding=1",)),
        Mutation("gaps of a stride are multiplied, too", "steps % DILATION == 0 && steps / DILATION < TAPS",
                 "steps / DILATION < TAPS", shown_by=("2,2,12,11,3,3,3,dilation=2x3,padding=2x3",)),
        Mutation("channels have the taps of the one beside them", ".at(r, s, c)", ".at(r, s, (c + 1) % FEW)",
                 shown_by=_FEW_OF_GROUPS),
        Mutation("every group reads the filters of the first", "first_k = group * shape.group_filters() + first,",
                 "first_k = first,", shown_by=_FEW_OF_GROUPS),
        Mutation("every group adds the biases of the first", "b, group * FEW + c)", "b, c)",
                 shown_by=("2,6,9,8,6,3,3,groups=6,padding=1,transposed=1",)),
        Mutation("phi' is applied twice", "times_derivative(g[i], outputs[i])",
                 "times_derivative(times_derivative(g[i], outputs[i]), outputs[i])", file="columns.cuh"),
        Mutation("below g the next plane's first row is read", "0 <= p && p < shape.P;", "0 <= p;", file="columns.cuh"),
        Mutation("the mask's bits are those of other columns", "bits >>= first & 7;", "", file="columns.cuh",
                 shown_in="mask"),
        Mutation("the finished runs of a long sum are dropped", "totals[i][c][j] += sums[i][c][j];", "",
                 file="few_channels.cuh", shown_by=("2,3,7,7,63,3,3,padding=1",)),
        Mutation(_ANEW, "is_nan |=", "(void)", shown_in="nonfinite"),
    ),
    "forward/vectorised": (
        Mutation("the halo's left columns are read from the row above", "if (col >= 0 && col + LANES",
                 "if (col + LANES", file="strip.cuh"),
        Mutation("the tail of a row that a vector does not divide is skipped",
                 "store_partial(row + first, columns.lanes[i], cols - first);", ";", file="strip.cuh"),
        Mutation("the filter's rows are upside down", "taps(Constant<FILTER_R - 1 - r>{}, s)", "taps(r, s)",
                 file="correlate.cuh"),
        Mutation("the ring does not move on", "sum = acc[r + 1]", "sum = acc[r]", file="correlate.cuh"),
        Mutation("the first row of a band is not written", "done >= strip", "done > strip", file="correlate.cuh"),
        Mutation("taps in shared memory are read before they are there", "__syncthreads();  // all taps are there", "",
                 file="correlate.cuh", shown_by=_LARGE_FILTER),
        Mutation("the last run of a long sum is dropped", "        sums[p].end_run();\n        if", "        if",
                 file="register_tile.cuh", shown_by=("1,700,2,3,2,1,1",), shown_in="identity"),
        Mutation("the mask has bits beyond the row's end",
                 "if (Q - first_q < COLS) bits &= (1ull << (Q - first_q)) - 1;", "", shown_in="mask"),
        Mutation(_ANEW, "if (form_anew)", "if (false)", shown_in="nonfinite"),
        Mutation("a sum formed anew leaves out the bias",
                 "if (epilogue.b && !HAS_OPTIONS) sum.add(to_acc(epilogue.b[k]));", "",
                 file="forward_of_pixels.cuh", shown_in="nonfinite"),
    ),
    "input_grad/vectorised": (
        Mutation("the filter is not turned", "correlate<true>", "correlate<false>"),
        Mutation("phi' is applied twice", "lane = times_derivative(lane, y);",
                 "lane = times_derivative(times_derivative(lane, y), y);", file="planes.cuh"),
        Mutation("the mask's bits are those of other columns", "bits >> (i * LANES)", "bits >> i", file="planes.cuh",
                 shown_in="mask"),
        Mutation(_ANEW, "if (form_anew)", "if (false)", shown_in="nonfinite"),
    ),
    "kernel_grad/vectorised": (
        Mutation("the ring's index is off by one", "wrapped<TAP_ROWS>(phase + r)",
                 "wrapped<TAP_ROWS>(phase + (r + 1) % TAP_ROWS)"),
        Mutation("the taps are mirrored", "add_products(sums[r * TAP_COLS + s]",
                 "add_products(sums[r * TAP_COLS + TAP_COLS - 1 - s]"),
        Mutation("rows of x enter the ring one row late", "p - top + TAP_ROWS - 1, first", "p - top + TAP_ROWS, first"),
        Mutation("the last block's partial sums are dropped", "slice < slices;", "slice < max(1, slices - 1);",
                 file="kernel_grad_total.cuh", shown_by=_SEVERAL_BLOCKS),
        Mutation("the threads' sums are read before they are there",
                 "__syncthreads();  // every thread's column is there", "", file="partial_sums.cuh"),
        Mutation(_ANEW, "if (!isnan(total(all))) return;", "return;", file="partial_sums.cuh", shown_in="nonfinite"),
    ),
    "backward/vectorised": (
        Mutation("the filter is not turned", "(FILTER_R - 1 - i) * FILTER_S + FILTER_S - 1 - j", "i * FILTER_S + j"),
        Mutation("the ring's index is off by one", "wrapped<FILTER_R>(phase + i)",
                 "wrapped<FILTER_R>(phase + (i + 1) % FILTER_R)"),
        Mutation("two of three sums of dx are dropped", "unroll<CHAINS - 1>", "unroll<0>"),
        Mutation("db adds up another row of g", "(phase + TOP)", "(phase)"),
        Mutation(_ANEW, "if (!isnan(total(all))) return;", "return;", file="partial_sums.cuh", shown_in="nonfinite"),
        Mutation("the padding is multiplied by infinite taps", "NEED_DX && !all_finite(w + Index(c) * TAPS, TAPS)",
                 "false", shown_in="nonfinite"),
    ),
    "forward/implicit_gemm": (
        Mutation("the last slice of the sum is dropped", "windows, none, parts.slices,",
                 "windows, none, parts.slices - 1,"),
        Mutation("a split's first run is left out", "parts_of_block<Product>(filter, longest) +",
                 "parts_of_block<Product>(filter, longest) + THREAD_VECTORS<Product> * THREADS +",
                 file="run_parts.cuh", shown_by=_LONG_SUM),
        Mutation("each run goes through the activation", "first + i == 0 ? sum : total + sum;",
                 "first + i == 0 ? activate(sum) : total + activate(sum);", file="run_parts.cuh",
                 shown_by=_SEVERAL_TILES),
        Mutation("all splits form the first one's sums", "first_slice(CAN_SPLIT ? blockIdx.y * split_slices : 0)",
                 "first_slice(0)", file="run_parts.cuh", shown_by=_LONG_SUM),
        Mutation("a bias is added to each run", "product.leave_run(next);",
                 "for (auto& row : product.sums) for (Acc& sum : row) sum += 1;\n"
                 "        product.leave_run(next);", file="run_parts.cuh", shown_by=_LONG_SUM),
        Mutation("runs are those of the next tile, too", "Index(blockIdx.x) * runs *", "Index(blockIdx.x) *",
                 file="run_parts.cuh", shown_by=_SEVERAL_TILES),
        Mutation("slices are swapped without a barrier",
                 "__syncthreads();  // the next slice is there, and nobody reads this one any more", "",
                 file="slices.cuh"),
        Mutation("the next slice overwrites the one that is worked on", "b.fetch(next.b);",
                 "b.fetch(slices[slice & 1].b);", file="slices.cuh"),
        Mutation("all runs but the last are dropped", "is_first ? sum : total.elements[e] + sum", "sum",
                 file="slices.cuh", shown_by=_SEVERAL_TILES, multiprocessors=1),
        Mutation("a run's sums are added to the next run's", "is_last ? total.elements[e] : Acc(0)",
                 "is_last ? total.elements[e] : sum", file="slices.cuh", shown_by=_SEVERAL_TILES, multiprocessors=1),
        Mutation("the last run is left out", "sum = is_last ? total.elements[e] : Acc(0);", "sum = 0;",
                 file="slices.cuh", shown_by=_SEVERAL_TILES, multiprocessors=1),
        Mutation("every group reads the channels of the first", "reader(x, shape, tile.group)",
                 "reader(x, shape, 0)"),
        Mutation("the bias is scaled, too", "products *= to_acc(scale[k]);\n        if (b) products += to_acc(b[k]);",
                 "if (b) products += to_acc(b[k]);\n        if constexpr (SCALED) products *= to_acc(scale[k]);",
                 file="epilogue.cuh", shown_by=_SCALED),
        Mutation("the residual is that of the tile's first filter", "at + m * row_pitch", "at", file="outputs.cuh",
                 shown_by=_RESIDUAL),
        Mutation("every group adds the biases of the first", "(sum, first_k + m, shortcut)",
                 "(sum, m, shortcut)", file="outputs.cuh"),
        Mutation("below the image the next plane's first row is read", "unsigned(row + offset.row) < unsigned(rows)",
                 "unsigned(row + offset.row) <= unsigned(rows)", file="window_reader.cuh"),
        Mutation("a step's offset takes the width for the height", "(c * shape.H + row)", "(c * shape.W + row)",
                 file="windows.cuh", shown_by=_WHOLE_TILES),
        Mutation("all planes of a slice are the first one", "reader.skip_planes(step(i) - step(i - 1));", ";",
                 file="filter_product.cuh", shown_by=_WHOLE_TILES),
        Mutation("a vector of pixels is its first one", "own[i].value(e)", "own[i].value(0)",
                 file="filter_rows.cuh", shown_by=_POINTWISE),
        Mutation("results are taken for neighbours in memory", "Pixels::TOGETHER < ASIDE ? Pixels::TOGETHER : ASIDE",
                 "2", file="filter_product.cuh"),
        Mutation("the last image is not written", "pixel.n < grid.N ?", "pixel.n < grid.N - 1 ?",
                 file="filter_product.cuh"),
        Mutation(_ANEW, "is_nan |= values[e] != values[e];", "", file="filter_product.cuh", shown_in="nonfinite"),
    ),
    "input_grad/implicit_gemm": (
        Mutation("one phase of the stride is missing", "if (tile.first_pixel >= phase.grid.count()) return;",
                 "if (tile.first_pixel >= phase.grid.count() || tile.phase == 1) return;", shown_by=_STRIDED),
        Mutation("a part of a split sum is formed of the first slices", "filter.offsets_of(tile, parts.first_slice)",
                 "filter.offsets_of(tile)", shown_by=_LONG_STRIDED),
        Mutation("a phase's runs are those of the longest", "runs_of(phase.slices())", "runs_of(slices)",
                 shown_by=_LONG_STRIDED),
        Mutation("taps of other phases are taken", "return first + i * step;", "return first + i;",
                 file="input_grad_phase.cuh", shown_by=_STRIDED),
        Mutation("every group is multiplied by the filters of the first", "group * shape.group_filters() + tap.plane",
                 "tap.plane", file="input_grad_phase.cuh"),
        Mutation("every group reads the gradients of the first", "reader(dy, saved, shape, tile.group)",
                 "reader(dy, saved, shape, 0)"),
        Mutation("phi' is applied twice", "times_derivative(g, y.value(i))",
                 "times_derivative(times_derivative(g, y.value(i)), y.value(i))", file="window_reader.cuh"),
        Mutation("a pixel's bit is taken for the first of its byte", "found.bit = mask_col % 8;", "found.bit = 0;",
                 file="window_reader.cuh", shown_by=_POINTWISE, shown_in="mask"),
        Mutation("all planes of a slice have the bits of the first", "mask_row += count * Index(dy.rows * mask_bytes);",
                 "", file="window_reader.cuh", shown_by=_WHOLE_TILES, shown_in="mask"),
        Mutation(_ANEW, "is_nan |= values[e] != values[e];", "", file="filter_product.cuh", shown_in="nonfinite"),
    ),
    "kernel_grad/implicit_gemm": (
        Mutation("a vector's bits are all that of its first pixel", "mask >> (bit + i) & 1", "mask >> bit & 1",
                 file="window_reader.cuh", shown_by=("1,17,9,8,65,3,3,padding=1",), shown_in="mask"),
        Mutation("slices between two splits are added twice", "first_slice = blockIdx.y * split_slices;",
                 "first_slice = max(0, int(blockIdx.y * split_slices) - 1);", file="tap_tiles.cuh", shown_by=_SPLIT),
        Mutation("pixels that do not fill a slice are dropped", "(grid.count() + DEPTH - 1) / DEPTH",
                 "grid.count() / DEPTH", file="tap_tiles.cuh"),
        Mutation("pixels beyond the last image are taken", "reader.advance(way, left > 0);",
                 "reader.advance(way, true);", file="tap_product.cuh", shown_by=_SPLIT),
        Mutation("pixels of a new row are those beyond the old one", "row += way.line_rows;", "",
                 file="window_reader.cuh"),
        Mutation("all taps are the first of their window", "* window + number % window", "* window",
                 file="tap_tiles.cuh", shown_by=_WHOLE_TILES),
        Mutation("all planes of a slice are the first one", "reader.skip_planes(beyond(i) - beyond(i - 1));", ";",
                 file="tap_product.cuh", shown_by=_WHOLE_TILES),
        Mutation("db leaves out a step of each slice", "for (int d = 0; d < DEPTH; ++d)",
                 "for (int d = 1; d < DEPTH; ++d)"),
        Mutation(_ANEW, "is_nan |=", "(void)", file="tap_product.cuh", shown_in="nonfinite"),
        Mutation("a sum formed anew is that of all pixels", "min(first + slices * DEPTH, grid.count())",
                 "grid.count()", file="tap_tiles.cuh", shown_by=_SPLIT, shown_in="nonfinite"),
    ),
    "forward/tensor_core": (
        Mutation("a fragment's rows are exchanged", "in_step / 4 * 2 + row / 8 % 2",
                 "in_step / 4 * 2 + 1 - row / 8 % 2", file="tensor_product.cuh", shown_by=_LONG_SUM),
        Mutation("the second half of a slice is dropped", "int step = 0; step < K_STEPS; ++step",
                 "int step = 0; step < K_STEPS - 1; ++step", file="tensor_product.cuh", shown_by=_LONG_SUM),
        Mutation("a chunk is read where another row has it", "(i + step) % 2 * 2", "step % 2 * 2",
                 file="tensor_product.cuh", shown_by=_POINTWISE),
        Mutation("the low parts of the filter are left out", "add_products(left[1], right[0]);", ";",
                 file="tensor_product.cuh", shown_by=_LONG_SUM),
        Mutation("all runs but the last are dropped", "totals[i][j][e] += sums", "totals[i][j][e] = sums",
                 file="tensor_product.cuh", shown_by=_LONG_SUM),
        Mutation("a tap is its neighbour", "int row_shift = first_shift *", "int row_shift = (first_shift + 1) *",
                 file="halo.cuh", shown_by=_WHOLE_TILES),
        Mutation("a tap is read before it is there", "__syncthreads();  // these taps", "// these taps",
                 file="halo.cuh", shown_by=_WHOLE_TILES),
        Mutation("the next taps overwrite those that are multiplied", "memory.filter[turn ^ 1], min(next_left",
                 "memory.filter[turn], min(next_left", file="halo.cuh", shown_by=_WHOLE_TILES),
        Mutation("a tap's shift is that of its neighbour", "i * COL_STEP", "(i + 1) % ROW_TAPS * COL_STEP",
                 file="halo.cuh", shown_by=_WHOLE_TILES),
        Mutation("the halo begins a row too low", "pixels.p + rows.lowest(phase.down)",
                 "pixels.p + rows.lowest(phase.down) + 1", file="halo.cuh", shown_by=_WHOLE_TILES),
        Mutation("16 columns further on are 16 pixels of the halo", "pixel_of(i * 16) * PIXEL_BYTES",
                 "i * 16 * PIXEL_BYTES", file="halo.cuh", shown_by=_WHOLE_TILES),
        Mutation("pixels beyond the last column are written", "(pixel.p < grid.P && pixel.q < grid.Q) ?",
                 "pixel.p < grid.P ?", file="halo.cuh", shown_by=_WHOLE_TILES),
        Mutation("what scaled factors have made NaN is left as it is", "IS_TF32 ? NOT_FINITE : NAN_BESIDE_PADDING",
                 "NAN_BESIDE_PADDING", shown_by=_LONG_SUM, shown_in="nonfinite"),
    ),
    "input_grad/tensor_core": (
        Mutation("one phase of the stride is missing", "if (tile.first_pixel >= Windows::count(phase.grid)) return;",
                 "if (tile.first_pixel >= Windows::count(phase.grid) || tile.phase == 1) return;", shown_by=_STRIDED),
        Mutation("the filter is not turned", "-(step * dilation / stride)", "step * dilation / stride",
                 file="input_grad_phase.cuh", shown_by=_WHOLE_TILES),
        Mutation("low parts of g are left out", "add_products(left[0], right[1]);", ";", file="tensor_product.cuh",
                 shown_by=_WHOLE_TILES),
    ),
    "forward/winograd": (
        Mutation("a sign of the pixels' transform is wrong", "d[2 * pitch] - d[pitch];", "d[pitch] - d[2 * pitch];",
                 file="winograd_transforms.cuh"),
        Mutation("the channels that fill no step are left out", "tiles.fetch(plane < planes);",
                 "tiles.fetch(plane < planes / DEPTH * DEPTH);", file="winograd.cuh"),
        Mutation("the next step overwrites what is multiplied", "__syncthreads();  // nobody reads the slice any more",
                 "", file="winograd.cuh", shown_by=("1,17,9,8,65,3,3,padding=1",)),
        Mutation("a tile is its neighbour", "[e][step][column] = d[e]", "[e][step][column ^ 1] = d[e]",
                 file="winograd.cuh"),
        Mutation("a sign of the products' transform is wrong", "-m[3 * pitch]", "m[3 * pitch]",
                 file="winograd_transforms.cuh"),
        Mutation("the filter's middle row is half of what it should be", "outer + taps[pitch]",
                 "Acc(0.5) * (outer + taps[pitch])", file="winograd_transforms.cuh"),
        Mutation("the elements are read before all are there", "__syncthreads();  // the elements are there", "//",
                 file="winograd.cuh"),
        Mutation("odd images have a column more", "has_second(first.q + 1 < grid.Q)", "has_second(true)",
                 file="winograd.cuh"),
        Mutation("every group has the filters of the first", "(Index(group) * down + number)", "Index(number)",
                 file="winograd.cuh", shown_by=("2,6,9,8,4,3,3,groups=2,padding=1",)),
        Mutation("what transforms have made NaN is left as it is", "if (isnan(to_acc(element))) results",
                 "if (false) results", file="winograd.cuh", shown_in="nonfinite"),
    ),
    "input_grad/winograd": (
        Mutation("the filter is not turned", "phase.seen_rows().step > 0 ? r : 2 - r", "r", file="winograd.cuh"),
        Mutation("phi' is forgotten", "return times_derivative(g, to_acc(own[e]));", "return g;",
                 file="winograd_tiles.cuh"),
        Mutation("the mask's bits are those of the columns beside", "bit = first_col & 7;",
                 "bit = first_col + 1 & 7;", file="winograd_tiles.cuh", shown_in="mask"),
    ),
    "kernel_grad/tensor_core": (
        Mutation("the halves of a step are exchanged in one factor", "threadIdx.x % 16, threadIdx.x / 16 % 2)",
                 "threadIdx.x % 16, 1 - threadIdx.x / 16 % 2)", file="tensor_product.cuh", shown_by=_SPLIT),
        Mutation("low parts of g are left out", "add_products(left[1], right[0]);", ";", file="tensor_product.cuh",
                 shown_by=_SPLIT),
        Mutation("db leaves out the last chunk of each slice", "i < LEFT_PARTS * Rows::ACROSS; ++i",
                 "i < LEFT_PARTS * Rows::ACROSS - 1; ++i", shown_by=_SPLIT),
    ),
    "forward/vectorised_gemm": (
        Mutation("the last slice of the sum is dropped", "windows, none, slices);", "windows, none, slices - 1);"),
        Mutation("slices are swapped without a barrier",
                 "__syncthreads();  // the next slice is there, and nobody reads this one any more", "",
                 file="lane_product.cuh"),
        Mutation("the next slice overwrites the one that is worked on", "b.put(slices[slice + 1 & 1].b);",
                 "b.put(slices[slice & 1].b);", file="lane_product.cuh"),
        Mutation("all runs but the last are dropped", "total += sum;", "total = sum;", file="lane_product.cuh"),
        Mutation("every group reads the channels of the first", "image(x, shape, tile.group)",
                 "image(x, shape, 0)"),
        Mutation("below the image the next plane's first row is read", "is_index(row + offset.row, rows)",
                 "is_index(row + offset.row, rows + 1)", file="gather.cuh"),
        Mutation("pixels are taken for neighbours in memory", "adjacent = !any(at != at[0] + lane_indices());",
                 "adjacent = true;", file="gather.cuh"),
        Mutation("all planes of a slice are the first one", "ONE_TAP ? i * AT_ONCE : 0", "0",
                 file="filter_product.cuh", shown_by=_WHOLE_TILES),
        Mutation("the last image is not written", "pixels.n[i] < grid.N ?", "pixels.n[i] < grid.N - 1 ?",
                 file="filter_product.cuh"),
        Mutation(_ANEW, "if (!isnan(total(all))) return;", "return;", file="filter_product.cuh", shown_in="nonfinite"),
    ),
    "input_grad/vectorised_gemm": (
        Mutation("one phase of the stride is missing", "if (tile.first_pixel >= phase.grid.count()) return;",
                 "if (tile.first_pixel >= phase.grid.count() || tile.phase == 1) return;", shown_by=_STRIDED),
        Mutation("every group reads the gradients of the first", "image(dy, saved, shape, tile.group)",
                 "image(dy, saved, shape, 0)"),
        Mutation("phi' is taken of dy", "Image::read(offset, planes_on, inside, apart)", "lane", file="gather.cuh"),
        Mutation("a vector's bits are all taken from its first row", "line[int(i)] + (offset.plane",
                 "line[0] + (offset.plane", file="gather.cuh", shown_by=_POINTWISE, shown_in="mask"),
        Mutation(_ANEW, "if (!isnan(total(all))) return;", "return;", file="filter_product.cuh", shown_in="nonfinite"),
    ),
    "kernel_grad/vectorised_gemm": (
        Mutation("pixels that do not fill a slice are dropped", "(grid.count() + DEPTH - 1) / DEPTH",
                 "grid.count() / DEPTH", file="tap_tiles.cuh"),
        Mutation("pixels beyond the last image are taken", "row = pixels.n < N ? corner_row : Ints{} + NOWHERE;",
                 "row = corner_row;", file="gather.cuh", shown_by=_SPLIT),
        Mutation("all planes of a slice are the first one", "ONE_TAP ? i * AT_ONCE : 0", "0", shown_by=_WHOLE_TILES),
        Mutation("db leaves out a step of each slice", "for (int d = 0; d < STEPS; ++d)",
                 "for (int d = 1; d < STEPS; ++d)"),
        Mutation(_ANEW, "is_nan |=", "(void)", shown_in="nonfinite"),
    ),
    "forward/vectorised_direct": (
        Mutation("all chunks but the last are dropped", "first == 0 ? sums[i][j] : load_accs(to) + sums[i][j]",
                 "sums[i][j]", file="direct_product.cuh", shown_by=_WHOLE_TILES),
        Mutation("planes are read before they are laid out", "__syncthreads();  // the chunk is there", "",
                 file="direct_product.cuh", shown_by=_WHOLE_TILES),
        Mutation("a chunk is overwritten while it is read", "if (first > 0) __syncthreads();", "",
                 file="direct_product.cuh", shown_by=_WHOLE_TILES),
        Mutation("the padding between two lines is what lay there", "zero(to + cols, pitch - cols);", "",
                 file="signal.cuh", shown_by=_WHOLE_TILES),
        Mutation("the last image's last pixel is left out", "i < min(LANES, cols - col)",
                 "i < min(LANES, cols - col - 1)", file="signal.cuh", shown_by=_WHOLE_TILES),
        Mutation("every group reads the channels of the first", "* lines, group * channels,", "* lines, 0,",
                 shown_by=_GROUPS),
        Mutation("what does not fill a vector is not written", "store_partial(to + col, results, cols - col);", ";",
                 file="direct_product.cuh", shown_by=_WHOLE_TILES),
        Mutation(_ANEW, "return isnan(total(all));", "return false;", file="direct_product.cuh", shown_in="nonfinite"),
    ),
    "input_grad/vectorised_direct": (
        Mutation("the filter is not turned", "const RowTaps<true> taps", "const RowTaps<false> taps",
                 shown_by=_WHOLE_TILES),
        Mutation("the padding is the forward pass's", "reach_h - shape.pad_top,", "shape.pad_top,",
                 shown_by=_EQUAL_TERMS),
        Mutation("the mask's bits are those of other columns", "image.finish(lanes, row, col);",
                 "image.finish(lanes, row, 0);", file="signal.cuh", shown_by=_SEVERAL_LINES, shown_in="mask"),
    ),
    "kernel_grad/vectorised_direct": (
        Mutation("g's lines are not those of x", "0, images.height - shape.P, 0", "0, 0, 0", shown_by=_SEVERAL_LINES),
        Mutation("db leaves out all vectors but the last", "sum += load_accs(g_signals", "sum = load_accs(g_signals",
                 shown_by=_WHOLE_TILES),
        Mutation("all parts are the first one", "first_line = blockIdx.y * ranges * lines;", "first_line = 0;",
                 shown_by=_SEVERAL_LINES),
        Mutation(_ANEW, "if (!is_nan) return;", "return;", shown_in="nonfinite"),
    ),
}  # fmt: skip

#: By variant and what is wrong, as in "forward/naive: the bias is added twice".
MUTATIONS = {
    f"{variant}: {mutation.what}": mutation._replace(variant=variant)
    for variant, those in _TABLE.items()
    for mutation in those
}
assert len(MUTATIONS) == sum(map(len, _TABLE.values())), "two mutations of a variant have one name"

#: Those are tried on every device, those of the rungs above on the cpu device only.
NAIVE = [name for name, mutation in MUTATIONS.items() if mutation.variant.endswith("/naive")]


def find_all(mistakes, folder):
    """Find the text of each mistake (variant, file, old, new): also of those that only slow tests try."""
    for i, mistake in enumerate(mistakes):
        (own := folder / str(i)).mkdir()
        assert replaced(mistake.variant, mistake.file, mistake.old, mistake.new, own).path.is_file()
