"""Wrong kernels, each a variant of the registry with one text of its files replaced: see test_wrong.py.

They run in the process of the tests: one that reads or writes far outside its arrays, or divides by zero, ends it.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One replacement that makes a variant wrong.

    Attributes
    ----------
    variant : str
        As in "forward/tiled".
    file : str
        Its .cu file, or a header that it includes, by the name that it is included by.
    old, new : str
        What is replaced, which stands in the file exactly once, and by what.
    what : str
        What is wrong then, in a few words.
    shown_by : tuple of str
        Of what takes long to compile: the curated problem that shows the mistake.
    shown_in : str
        Of what: "tanh" (in most), "identity", or "mask", where the mistake shows in the ReLU's bits only.
    """

    variant: str
    file: str
    old: str
    new: str
    what: str
    shown_by: tuple[str, ...] = ()
    shown_in: str = "tanh"


_STAGED = "__syncthreads();  // the tile is complete"
_READ = "__syncthreads();  // nobody reads the tile any more"

MUTATIONS = (
    # -- forward/tiled -----------------------------------------------------------------------------------------
    Mutation("forward/tiled", "tiled.cu", _STAGED, "", "the tile is read before it is complete"),
    Mutation("forward/tiled", "tiled.cu", _READ, "", "the tile is overwritten while others still read it"),
    Mutation("forward/tiled", "tiled.cu", "col < cols", "col < TILE_Q", "the columns of the halo are not staged"),
    Mutation("forward/tiled", "tiled.cu", "row < rows", "row < TILE_P", "the rows of the halo are not staged"),
    Mutation("forward/tiled", "tiled.cu", ": Acc(0)", ": Acc(1)", "the padding is ones"),
    Mutation(
        "forward/tiled",
        "tiled.cu",
        "is_output = p < shape.P",
        "is_output = p < shape.P / TILE_P * TILE_P",
        "the last row of tiles is skipped where it is not full",
    ),
    Mutation("forward/tiled", "pack_mask.cuh", "q - first_q)", "first_q + 7 - q)", "the mask's bits are reversed",
             shown_in="mask"),
    Mutation("forward/tiled", "add_products.cuh", "i > 0", "i > 1", "the last tap of a row is dropped"),
    # -- input_grad/tiled --------------------------------------------------------------------------------------
    Mutation("input_grad/tiled", "tiled.cu", _STAGED, "", "the tile is read before it is complete"),
    Mutation("input_grad/tiled", "tiled.cu", _READ, "", "the tile is overwritten while others still read it"),
    Mutation(
        "input_grad/tiled",
        "tiled.cu",
        "pre_activation_grad(dy, saved, shape, n, k, first_p + row, first_q + col);",
        "times_derivative(pre_activation_grad(dy, saved, shape, n, k, first_p + row, first_q + col),"
        " to_acc(Scalar(saved[shape.y_at(n, k, first_p + row, first_q + col)])));",
        "phi' is applied twice",
    ),
    Mutation("input_grad/tiled", "tiled.cu", "shape.stride_w / gcd_w", "1", "taps that meet no output are taken"),
    Mutation("input_grad/tiled", "tiled.cu", "shape.dilation_h / gcd_h", "1", "a step goes to the wrong output"),
    Mutation("input_grad/tiled", "tiled.cu", ">= outputs", "> outputs", "an output beyond the last one is taken"),
    Mutation(
        "input_grad/tiled",
        "tiled.cu",
        "position - (taps - 1) * dilation",
        "position",
        "the halo above and to the left is not staged",
    ),
    # -- kernel_grad/tiled -------------------------------------------------------------------------------------
    Mutation("kernel_grad/tiled", "tiled.cu", _STAGED, "", "the tile is read before it is complete"),
    Mutation("kernel_grad/tiled", "tiled.cu", _READ, "", "the tile is overwritten while others still read it"),
    Mutation(
        "kernel_grad/tiled", "tiled.cu", "__syncthreads();  // every part's sum is there", "", "parts are not awaited"
    ),
    Mutation("kernel_grad/tiled", "tiled.cu", "(widest - shape.S + 31) / 32 * 32", "0", "the rows of x_tile overlap"),
    Mutation(
        "kernel_grad/tiled", "tiled.cu", "G_PITCH = TILE_Q + 1;", "G_PITCH = TILE_Q - 2;", "the rows of g_tile overlap"
    ),
    Mutation("kernel_grad/tiled", "tiled.cu", "col < cols", "col < TILE_Q", "the columns of the halo are not staged"),
    Mutation(
        "kernel_grad/tiled",
        "tiled.cu",
        "const int tiles = ((shape.P - 1) / TILE_P + 1)",
        "const int tiles = max(1, shape.P / TILE_P)",
        "the last row of tiles is skipped where it is not full",
    ),
    Mutation("kernel_grad/tiled", "tiled.cu", "if (tile >= tiles) {", "if (tile > tiles) {", "a slice ends in no tile"),
    Mutation("kernel_grad/tiled", "tiled.cu", "i < parts;", "i < max(1, parts - 1);", "the last part is dropped"),
    Mutation(
        "kernel_grad/tiled",
        "kernel_grad_total.cuh",
        "slice < slices;",
        "slice < slices - (slices > 1);",
        "the last slice is dropped",
    ),
    Mutation("kernel_grad/tiled", "tiled.cu", "(c == 0)", "(c == 1)", "the bias is a tap of another channel"),
    # -- forward/coalesced ---------------------------------------------------------------------------------------
    Mutation(
        "forward/coalesced",
        "strip.cuh",
        "if (col >= 0 && col + Source::PIECE",
        "if (col + Source::PIECE",
        "the halo's left columns are read from the row above",
    ),
    Mutation(
        "forward/coalesced",
        "strip.cuh",
        "store_partial(row + first, *lanes, cols - first);",
        ";",
        "the tail of a row that a vector does not divide is skipped",
    ),
    Mutation(
        "forward/coalesced",
        "correlate.cuh",
        "taps(Constant<FILTER_R - 1 - r>{}, s)",
        "taps(r, s)",
        "the filter's rows are upside down",
    ),
    Mutation("forward/coalesced", "correlate.cuh", "sum = acc[r + 1]", "sum = acc[r]", "the ring does not move on"),
    Mutation("forward/coalesced", "correlate.cuh", "done >= strip", "done > strip", "the first row is not written"),
    Mutation(
        "forward/coalesced",
        "correlate.cuh",
        "__syncthreads();  // all taps are there",
        "",
        "taps in shared memory are read before they are there",
        ("1,1,20,40,1,15,15,padding=same",),
    ),
    Mutation(
        "forward/coalesced",
        "correlate.cuh",
        "        sums[p].end_run();\n        if",
        "        if",
        "the last run of a long sum is dropped",
        ("1,700,2,3,2,1,1",),
        "identity",
    ),
    Mutation(
        "forward/coalesced",
        "coalesced.cu",
        "if (Q - first_q < COLS) bits &= (1ull << (Q - first_q)) - 1;",
        "",
        "the mask has bits beyond the row's end",
        shown_in="mask",
    ),
    # -- input_grad/coalesced ------------------------------------------------------------------------------------
    Mutation("input_grad/coalesced", "coalesced.cu", "correlate<true>", "correlate<false>", "the filter is not turned"),
    Mutation(
        "input_grad/coalesced",
        "strip.cuh",
        "lanes[i] = times_derivative(lanes[i], y[i]);",
        "lanes[i] = times_derivative(times_derivative(lanes[i], y[i]), y[i]);",
        "phi' is applied twice",
    ),
    Mutation(
        "input_grad/coalesced",
        "strip.cuh",
        "return bits >> (first & 7);",
        "return bits;",
        "the mask's bits are those of other columns",
        shown_in="mask",
    ),
    # -- kernel_grad/coalesced -----------------------------------------------------------------------------------
    Mutation(
        "kernel_grad/coalesced",
        "coalesced.cu",
        "wrapped<TAP_ROWS>(phase + r)",
        "wrapped<TAP_ROWS>(phase + (r + 1) % TAP_ROWS)",
        "the ring's index is off by one",
    ),
    Mutation(
        "kernel_grad/coalesced",
        "coalesced.cu",
        "add_products(sums[r * TAP_COLS + s]",
        "add_products(sums[r * TAP_COLS + TAP_COLS - 1 - s]",
        "the taps are mirrored",
    ),
    Mutation(
        "kernel_grad/coalesced",
        "kernel_grad_total.cuh",
        "slice < slices;",
        "slice < max(1, slices - 1);",
        "the last block's partial sums are dropped",
        ("1,1,256,257,1,3,3,padding=same",),
    ),
    Mutation(
        "kernel_grad/coalesced",
        "partial_sums.cuh",
        "__syncthreads();  // every thread's column is there",
        "",
        "the threads' sums are read before they are there",
    ),
    Mutation(
        "kernel_grad/coalesced",
        "coalesced.cu",
        "p - top + TAP_ROWS - 1, first",
        "p - top + TAP_ROWS, first",
        "rows of x enter the ring one row late",
    ),
    # -- backward/fused ------------------------------------------------------------------------------------------
    Mutation(
        "backward/fused",
        "fused.cu",
        "(FILTER_R - 1 - i) * FILTER_S + FILTER_S - 1 - j",
        "i * FILTER_S + j",
        "the filter is not turned",
    ),
    Mutation(
        "backward/fused",
        "fused.cu",
        "wrapped<FILTER_R>(phase + i)",
        "wrapped<FILTER_R>(phase + (i + 1) % FILTER_R)",
        "the ring's index is off by one",
    ),
    Mutation("backward/fused", "fused.cu", "unroll<CHAINS - 1>", "unroll<0>", "two of three sums of dx are dropped"),
    Mutation("backward/fused", "fused.cu", "(phase + TOP)", "(phase)", "db adds up another row of g"),
    # -- implicit_gemm -----------------------------------------------------------------------------------------
    Mutation(
        "forward/implicit_gemm",
        "implicit_gemm.cu",
        "product.run(loader, 0, slices, ",
        "product.run(loader, 0, slices - 1, ",
        "the last slice of the sum is dropped",
    ),
    Mutation(
        "forward/implicit_gemm",
        "matrix_product.cuh",
        "__syncthreads();  // the next slice is there, and nobody reads this one any more",
        "",
        "slices are swapped without a barrier",
    ),
    Mutation("forward/implicit_gemm", "matrix_product.cuh", "if (has_totals) end_run();", "", "runs are dropped"),
    Mutation(
        "forward/implicit_gemm",
        "matrix_product.cuh",
        "if (!is_last) loader.put(slices[slice + 1 & 1]);",
        "if (!is_last) loader.put(slices[slice & 1]);",
        "the next slice overwrites the one that is worked on",
    ),
    Mutation(
        "forward/implicit_gemm",
        "implicit_gemm.cu",
        "first_c = place.group * shape.group_channels();",
        "first_c = 0;",
        "every group reads the channels of the first",
    ),
    Mutation(
        "forward/implicit_gemm",
        "gather.cuh",
        "is_index(row, source.rows)",
        "is_index(row, source.rows + 1)",
        "below the image the next plane's first row is read",
    ),
    Mutation(
        "forward/implicit_gemm",
        "gather.cuh",
        "corners.adjacent = !any_lane(corners.at != element(corners.at, 0) + lane_indices());",
        "corners.adjacent = true;",
        "pixels are taken for neighbours in memory",
    ),
    Mutation(
        "forward/implicit_gemm",
        "implicit_gemm.cu",
        "(c.plane * shape.H + row)",
        "(c.plane * shape.W + row)",
        "a step's offset takes the width for the height",
        ("1,64,5,6,128,3,3,padding=1",),
    ),
    Mutation(
        "forward/implicit_gemm",
        "filter_product.cuh",
        "n < grid.N ? position",
        "n < grid.N - 1 ? position",
        "the last image is not written",
    ),
    Mutation(
        "input_grad/implicit_gemm",
        "implicit_gemm.cu",
        "if (place.first_pixel >= phase.grid.count()) return;",
        "if (place.first_pixel >= phase.grid.count() || place.phase == 1) return;",
        "one phase of the stride is missing",
        ("1,33,13,13,66,3,3,stride=2,padding=1",),
    ),
    Mutation("input_grad/implicit_gemm", "implicit_gemm.cu", "return first + i * step;", "return first + i;",
             "taps of other phases are taken", shown_by=("1,33,13,13,66,3,3,stride=2,padding=1",)),
    Mutation("input_grad/implicit_gemm", "gather.cuh", "group * shape.group_filters()", "0",
             "every group reads the filters of the first"),
    Mutation(
        "input_grad/implicit_gemm",
        "gather.cuh",
        "lanes[i] = times_derivative(lanes[i], outputs[i]);",
        "lanes[i] = times_derivative(times_derivative(lanes[i], outputs[i]), outputs[i]);",
        "phi' is applied twice",
    ),
    Mutation("input_grad/implicit_gemm", "gather.cuh", "(line + col / cols)", "line",
             "a vector's bits are all taken from its first row", shown_by=("2,64,4,6,64,1,1",),
             shown_in="mask"),
    Mutation("forward/implicit_gemm", "filter_product.cuh", "ONE_TAP ? i * AT_ONCE : 0", "0",
             "all planes of a slice are the first one", shown_by=("1,64,5,6,128,3,3,padding=1",)),
    Mutation(
        "kernel_grad/implicit_gemm",
        "implicit_gemm.cu",
        "int(blockIdx.y * split_slices)};",
        "max(0, int(blockIdx.y * split_slices) - 1)};",
        "slices between two splits are added twice",
        ("2,2,5,6,3,3,3,padding=4x5",),
    ),
    Mutation(
        "kernel_grad/implicit_gemm",
        "implicit_gemm.cu",
        "min(place.first_slice + split_slices, slices)",
        "min(place.first_slice + split_slices, slices - 1)",
        "the last pixels are dropped",
    ),
    Mutation("kernel_grad/implicit_gemm", "implicit_gemm.cu", "for (int d = 0; d < STEPS; ++d)",
             "for (int d = 1; d < STEPS; ++d)", "db leaves out a step of each slice"),
    Mutation("kernel_grad/implicit_gemm", "implicit_gemm.cu", "* window + tile % window", "* window",
             "all taps are the first of their window", shown_by=("1,64,5,6,128,3,3,padding=1",)),
    Mutation("kernel_grad/implicit_gemm", "gather.cuh", "pixels.n < grid.N ? row : Ints{} + NOWHERE", "row",
             "pixels beyond the last image are taken"),
)  # fmt: skip
