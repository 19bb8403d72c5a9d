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
    """

    variant: str
    file: str
    old: str
    new: str
    what: str


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
    Mutation("forward/tiled", "pack_mask.cuh", "q - first_q)", "first_q + 7 - q)", "the mask's bits are reversed"),
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
)
