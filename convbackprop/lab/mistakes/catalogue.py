"""The mistakes that are recognised, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """A mistake that a kernel may have.

    Attributes
    ----------
    kind : str
        An identifier: "filter_not_turned".
    title : str
        What is wrong, in a sentence.
    why : str
        What comes of it, or why it is wrong.
    look_at : str
        What to look at in one's own code.
    """

    kind: str
    title: str
    why: str
    look_at: str


_WRONG_RESULTS = (
    # -- the filter
    Mistake(
        "filter_turned",
        "The filter is turned by half a turn where it should not be.",
        "The forward pass and the kernel gradient meet tap (r, s) with pixel (p + r, q + s): a correlation. Only the "
        "input gradient goes the other way.",
        "the index of the tap: w[r][s], not w[R - 1 - r][S - 1 - s]; and the sign before r and s in the pixel's index",
    ),
    Mistake(
        "filter_not_turned",
        "The filter is not turned for the input gradient.",
        "Pixel h was read by output p through tap r where p + r - pad = h, so that p = h + pad - r: as r goes up, p "
        "goes down. With a filter that is its own mirror image this does not show.",
        "the output's index for each tap: h + pad - r, or h - (R - 1 - pad) + r together with w[R - 1 - r][S - 1 - s]",
    ),
    Mistake(
        "filter_mirrored",
        "The filter is turned along one of its two axes only.",
        "Rows and columns are both turned for the input gradient, and neither for the other passes.",
        "the indices of the tap's row and column: one of them runs the wrong way",
    ),
    Mistake(
        "filter_transposed",
        "Rows and columns of the filter are exchanged.",
        "A filter lies in memory row by row: tap (r, s) is element r * S + s.",
        "the index into w or dw (s * R + r?), and which loop runs to R and which to S",
    ),
    Mistake(
        "filter_of_another_channel",
        "All channels use the filter of the first one.",
        "Each pair of an output channel k and an input channel c has R * S taps of its own.",
        "the offset into w: (k * C + c) * R * S, of which k or c is missing",
    ),
    Mistake(
        "filter_channels_swapped",
        "Input and output channel are exchanged in the filter's index.",
        "Filters lie in memory by output channel first: tap (k, c, r, s) is ((k * C + c) * R + r) * S + s, for the "
        "input gradient as well.",
        "the offset into w: (c * K + k)?",
    ),
    # -- where a tap looks
    Mistake(
        "padding_off_by_one",
        "Taps look one pixel too far, or not far enough.",
        "With padding pad, tap 0 of output 0 looks at pixel -pad; with 'same' padding the middle tap looks at the "
        "output's own pixel.",
        "what is taken off: pad_top and pad_left, R / 2 and S / 2, not (R + 1) / 2; and loops that begin at 1",
    ),
    Mistake(
        "padding_ignored",
        "The padding is ignored.",
        "The whole result is shifted: output (0, 0) looks at the pixels from (-pad_top, -pad_left) on.",
        "the pixel's index: p * stride - pad + r * dilation",
    ),
    Mistake(
        "padding_sides_swapped",
        "The padding of the other side is taken: bottom for top, or right for left.",
        "Only the padding before the image shifts the taps; that behind it makes the result larger and nothing else. "
        "For the input gradient as a correlation it is R - 1 - pad_top.",
        "shape.pad_top and shape.pad_left, or where R - 1 - pad is formed, or is not",
    ),
    Mistake(
        "axes_swapped",
        "What is meant for columns is taken for rows: padding, stride or dilation.",
        "With square filters and equal strides this does not show.",
        "the endings _h and _w, top and left, in the index of the pixel",
    ),
    Mistake(
        "stride_ignored",
        "The stride is ignored.",
        "Neighbouring outputs look at pixels that lie a stride apart.",
        "the pixel's index: p * stride_h, q * stride_w; for the input gradient the division by them",
    ),
    Mistake(
        "dilation_ignored",
        "The dilation is ignored.",
        "Neighbouring taps look at pixels that lie a dilation apart.",
        "the pixel's index: r * dilation_h, s * dilation_w",
    ),
    Mistake(
        "stride_and_dilation_swapped",
        "Stride and dilation are exchanged.",
        "From output to output it is a stride, from tap to tap a dilation.",
        "the pixel's index: p * stride - pad + r * dilation",
    ),
    Mistake(
        "stride_remainder_ignored",
        "Pixels between two strides are given a gradient that is not theirs.",
        "Output p read pixel h through tap r only if h + pad - r * dilation is a multiple of the stride.",
        "the division by the stride: where it leaves a remainder, the tap does not count",
    ),
    Mistake(
        "row_pitch_of_result",
        "Rows of the input are taken to be as long as those of the result.",
        "Without 'same' padding W and Q differ: x[h][w] is element h * W + w.",
        "the index of what is read: its own width, W for x and Q for dy",
    ),
    # -- the border
    Mistake(
        "border_clamped",
        "Beyond the border the nearest pixel is read in place of zero.",
        "The padding is zero; clamping the index repeats the image's border.",
        "min and max around the pixel's index: leave the tap out instead",
    ),
    Mistake(
        "border_wrapped",
        "Beyond the border the image begins anew from its other side.",
        "The padding is zero; a remainder by the size makes the image a torus.",
        "% around the pixel's index: leave the tap out instead",
    ),
    Mistake(
        "border_not_checked",
        "Taps beyond the border are added up as well.",
        "There is no padding in memory: what lies there is the row above or below, or no image at all.",
        "the condition before the load: row and column both inside; a tap in the padding adds nothing",
    ),
    Mistake(
        "border_reads_neighbour_row",
        "Beyond the left and right border the row above or below is read.",
        "Rows lie one behind the other in memory: element -1 of a row is the last one of the row before.",
        "the condition on the column: 0 <= column and column < W, not only that the address lies in the image",
    ),
    Mistake(
        "first_pixels_missing",
        "The first row or column counts as padding.",
        "Pixel 0 belongs to the image.",
        "the condition on the border: >= 0, not > 0",
    ),
    Mistake(
        "last_pixels_missing",
        "The last row or column counts as padding.",
        "Pixels H - 1 and W - 1 belong to the image.",
        "the condition on the border: < H and < W, not < H - 1",
    ),
    # -- taps, channels, images
    Mistake(
        "first_tap_missing",
        "The first row or column of the filter is left out.",
        "Taps are numbered from 0.",
        "where the loops over r and s begin",
    ),
    Mistake(
        "last_tap_missing",
        "The last row or column of the filter is left out.",
        "There are R rows of taps, 0 to R - 1; from -R / 2 on they go to R / 2, which is included.",
        "where the loops over r and s end: r < R, or v <= V",
    ),
    Mistake(
        "channels_not_summed",
        "Only one channel is added up.",
        "A sum runs over all channels of the group: the sum must be set to zero before the loop over channels, and the "
        "result written after it.",
        "= in place of +=, and whether the sum is set to zero inside of the loop",
    ),
    Mistake(
        "image_channel_ignored",
        "Every channel looks at the first one.",
        "Channel c of image n begins at (n * C + c) * H * W.",
        "the offset of what the taps look at: c is missing",
    ),
    Mistake(
        "groups_ignored",
        "Every group uses the channels, or the filters, of the first.",
        "Output channel k belongs to group k / (K / groups), whose input channels begin at that group's first.",
        "the first channel of a group: k / group_filters() * group_channels(); for dx the other way round",
    ),
    Mistake(
        "image_number_ignored",
        "Every image's result is that of the first.",
        "Image n begins at n * C * H * W.",
        "the offset of what the taps look at: n is missing",
    ),
    Mistake(
        "batch_not_summed",
        "The gradient is that of one image, not of the batch.",
        "The filter and the bias are the same for all images: their gradients are sums over all of them.",
        "the loop over n, and = in place of += in what adds up the images",
    ),
    Mistake(
        "bias_grad_of_tap",
        "The bias's gradient leaves out outputs whose tap lies in the padding.",
        "The bias is a tap whose input is 1 everywhere, also where the image has ended: db is the sum of all of g.",
        "whether g is added to db behind the condition on the border",
    ),
    Mistake(
        "last_outputs_not_summed",
        "Outputs at the end are left out of the sum.",
        "The kernel gradient is a sum over all outputs, also those that fill no whole block, tile or slice.",
        "where the loop over p, q or slices ends: the number of slices is rounded up",
    ),
    # -- bias and activation
    Mistake("bias_missing", "The bias is left out.", "s = b[k] + the sum over taps.", "whether b is used"),
    Mistake(
        "bias_twice",
        "The bias is added twice.",
        "Once is enough: either the sum begins with it, or it is added at the end.",
        "what the sum begins with, and what is added after the loop",
    ),
    Mistake(
        "bias_for_each_term",
        "The bias is added once for each tap, row of taps or channel.",
        "It belongs to the output, not to a term of its sum.",
        "whether b is added inside of a loop",
    ),
    Mistake(
        "bias_of_another_channel",
        "The bias of another channel is added.",
        "Each output channel k has its own bias b[k].",
        "the index of b",
    ),
    Mistake(
        "phi_missing",
        "The activation is left out.",
        "y = phi(s): without it the layer is linear.",
        "whether activate(s) is applied to what is written",
    ),
    Mistake(
        "phi_before_bias",
        "The bias is added after the activation.",
        "y = phi(b + sum): the bias shifts where the activation bends.",
        "what activate() is applied to",
    ),
    Mistake(
        "phi_grad_missing",
        "phi' is left out of the gradient.",
        "The chain rule: what flows back through the activation is g = dy * phi'(s), for dx, dw and db alike.",
        "whether dy is used where g should be",
    ),
    Mistake(
        "phi_grad_sign", "The gradient has the wrong sign.", "g = + dy * phi'(s).", "a minus in phi' or in the sum"
    ),
    Mistake(
        "phi_grad_of_dy",
        "phi' is formed from dy in place of the saved output.",
        "phi' is taken where the forward pass was, at s, which the saved output tells.",
        "which array phi' is formed from",
    ),
    Mistake(
        "phi_grad_of_x",
        "phi' is formed from the layer's input in place of its saved output.",
        "phi' is taken at s, the pre-activation, which the saved output tells and the input x does not.",
        "which array phi' is formed from",
    ),
    Mistake(
        "phi_grad_closed_only_below_zero",
        "A ReLU lets the gradient through where its output is 0.",
        "Where s < 0 the saved output is 0, and phi' is 0 there.",
        "the comparison: y > 0, not y >= 0",
    ),
    Mistake(
        "y_in_place_of_phi_grad",
        "dy is multiplied by y itself in place of phi'.",
        "The chain rule has the derivative of the activation, not its value; of the logistic function it is y (1 - y).",
        "the factor beside dy",
    ),
    Mistake(
        "phi_grad_after_sum",
        "phi' is applied to the result in place of the terms.",
        "g = dy * phi'(s) is formed for each output before the sum over taps; afterwards it is too late.",
        "where phi' is applied: to what is read, not to what is written",
    ),
    Mistake(
        "phi_grad_factor_missing",
        "phi' lacks one of its two factors.",
        "Of the logistic function it is y (1 - y), of tanh (1 - y) (1 + y).",
        "the formula of phi'",
    ),
    Mistake(
        "phi_grad_twice",
        "phi' is applied twice.",
        "g = dy * phi'(s) has it once; with a ReLU, whose phi' is 0 or 1, this does not show.",
        "whether g is multiplied again where it is read",
    ),
    Mistake(
        "phi_grad_of_pre_activation",
        "phi' is formed from y as if it were the pre-activation.",
        "The forward pass saves y = phi(s), so that phi' is y (1 - y), not phi(y) (1 - phi(y)).",
        "whether the activation is applied to what was saved",
    ),
    # -- rounding
    Mistake(
        "sum_rounded_to_stored_type",
        "The sum is rounded to the arrays' type at each step.",
        "float16 has 11 bits: from 2048 on, adding 1 changes nothing. Sums are formed in Acc and rounded once.",
        "the type of the sum: Acc, not Scalar",
    ),
    Mistake(
        "long_running_sum",
        "A sum over all pixels is one running sum.",
        "When it has become large, each term loses its last digits, and equal ones all in the same way: of a million "
        "of them the third digit of the sum is wrong.",
        "the sum over images and pixels: add up rows first, then the rows' sums, or use LongSum",
    ),
    # -- how the result is written
    Mistake(
        "nothing_written",
        "Nothing is written.",
        "The result is what was there before.",
        "a condition before the store that is never true, or a result that stays in a register",
    ),
    Mistake(
        "end_not_written",
        "The elements at the end are not written: the grid is too small.",
        "Threads that do not exist write nothing: blocks that are not full need to be there, too.",
        "the grid in the //@ launch line: ceil_div(size, THREADS); and conditions before the store",
    ),
    Mistake(
        "added_to_what_was_there",
        "The result is added to what was in memory before.",
        "The memory of a result holds anything at all before a launch.",
        "+= or atomicAdd on a result that nothing has set to zero",
    ),
    Mistake(
        "result_transposed",
        "Rows and columns of the result are exchanged.",
        "Element (p, q) lies at p * Q + q.",
        "the index of what is written: q * P + p?",
    ),
    Mistake(
        "row_pitch_of_image",
        "The result is written as if its rows were as long as the image's.",
        "Element (p, q) lies at p * Q + q; Q is W only with 'same' padding.",
        "the index of what is written: p * W + q?",
    ),
    # -- tiles
    Mistake(
        "halo_missing",
        "The halo around the tile is zero.",
        "A tile of outputs reads R - 1 rows and S - 1 columns more than it has.",
        "what is loaded into shared memory: more elements than there are threads, so that some threads load several",
    ),
    Mistake(
        "halo_corners_missing",
        "The corners of the halo are zero.",
        "A tap may lie above and beside the tile at once.",
        "what is loaded: four sides and four corners, or simply a loop over the whole tile with its halo",
    ),
    Mistake(
        "halo_side_missing",
        "A side of the halo is zero.",
        "A tile of outputs reads R - 1 rows and S - 1 columns more than it has, on both sides.",
        "what is loaded: TILE + R - 1 rows and TILE + S - 1 columns, from first - pad on",
    ),
)

#: Those that come first explain those that come later.
_FINDINGS = (
    Mistake(
        "barrier_not_for_all",
        "Not all threads of a block reach a barrier.",
        "__syncthreads() waits for every thread of the block: behind a return or inside of an if it waits for threads "
        "that never come.",
        "returns before the barrier, and conditions around it: let all threads pass, and put the condition around what "
        "they do",
    ),
    Mistake(
        "threads_stuck",
        "Threads wait for one another at different places.",
        "A barrier or a warp's exchange goes on only when all that it names are there.",
        "what threads of one warp do in the two branches of an if, and loops that some of them leave earlier",
    ),
    Mistake(
        "barrier_missing",
        "A barrier is missing: threads use shared memory that others of the block are still writing.",
        "Threads of a block run in any order. After a tile is written, and before it is written anew, all of them have "
        "to wait for one another.",
        "__syncthreads() between the two lines: after a load and before the next one; within a warp __syncwarp()",
    ),
    Mistake(
        "not_atomic",
        "Threads add to one number in memory without an atomic: additions are lost.",
        "+= reads, adds and writes; between the read and the write another thread may have written.",
        "+= on a result: let each thread or block write a sum of its own and add these up afterwards, or use atomicAdd",
    ),
    Mistake(
        "written_twice",
        "Two threads write the same element.",
        "Which of the two stays there is chance.",
        "the index of what is written, and whether it depends on all of blockIdx and threadIdx",
    ),
    Mistake(
        "written_out_of_bounds",
        "Threads write beyond the end of an array.",
        "The last block has more threads than there are elements left.",
        "the condition before the store: if (i >= size) return, or p < P and q < Q",
    ),
    Mistake(
        "shared_memory_too_small",
        "Shared memory is smaller than what is kept there.",
        "A tile has TILE + (R - 1) * dilation rows, and so with columns.",
        "the array's extent, or shared=[bytes] in the //@ launch line: bytes, not elements",
    ),
    Mistake(
        "index_beyond_extent",
        "An index of a two-dimensional array is beyond its extent.",
        "The element that is meant lies in the next row, or behind the array.",
        "the order of the two indices, and the array's extents",
    ),
    Mistake(
        "read_out_of_bounds",
        "Threads read beyond an array.",
        "Taps look beyond the border of the image, and the last block has more threads than there are elements left.",
        "the condition before the load: row and column both inside; a tap in the padding adds nothing",
    ),
    Mistake(
        "no_array_there",
        "Memory is used that belongs to no array.",
        "An array that a problem does not have, such as b without a bias, is a null pointer.",
        "if (b) before b is used; and indices that are far too large or negative",
    ),
    Mistake(
        "vector_not_aligned",
        "A vector is read or written at an address that is not a multiple of its size.",
        "float4 needs an address that 16 divides; rows whose length 4 does not divide begin anywhere.",
        "casts to float2 and float4, and where a row begins",
    ),
    Mistake(
        "input_written",
        "An input is written.",
        "Who calls the kernel needs it again, and other blocks are reading it.",
        "casts that take const away; use shared memory, or scratch",
    ),
    Mistake(
        "lanes_missing",
        "A warp's exchange names lanes that are not there.",
        "The mask of __shfl_sync and its like names the lanes that take part, and all of them must get there.",
        "returns before the exchange, and blocks that are no multiple of 32 threads",
    ),
    Mistake(
        "not_written_before",
        "Shared memory is read that nobody has written.",
        "Some elements of the tile or its halo are left out by the load, or nobody has waited for it.",
        "the loop that fills the tile: it runs over all of it, in steps of the block's size; zeros are written, too",
    ),
    Mistake(
        "result_not_zeroed",
        "A result is read that nobody has written.",
        "The memory of a result holds anything at all before a launch.",
        "+= or atomicAdd on a result: something has to set it to zero first, in a launch of its own",
    ),
    Mistake(
        "partial_sums_missing",
        "Partial sums are read that nobody has written.",
        "The second launch adds up more of them than the first one has written.",
        "the number of slices and the index into scratch, in both kernels and in the //@ lines",
    ),
    Mistake(
        "order_of_threads",
        "The result depends on the order in which threads run.",
        "A GPU runs them in any order: what one thread reads has to be ordered behind what another one writes.",
        "what threads tell each other, by atomics or flags too, without a barrier between",
    ),
    Mistake(
        "atomics_in_any_order",
        "Floats are added up by atomics: the last bits change from run to run.",
        "Atomics lose nothing, but they come in any order, and (a + b) + c is rounded otherwise than a + (b + c).",
        "atomicAdd on a float: let each block write a sum of its own, and add these up in a fixed order",
    ),
)

#: All kinds, in the order of the catalogue.
KINDS: dict[str, Mistake] = {mistake.kind: mistake for mistake in (*_WRONG_RESULTS, *_FINDINGS)}
