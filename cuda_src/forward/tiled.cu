// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//
// One block computes a tile of TILE_P x TILE_Q outputs of one (n,k), a thread each, from inputs that it stages in
// shared memory. Channel by channel it loads the inputs under its tile, with their halo, and the channel's filter;
// then every thread takes its R*S products from there. What changed from naive: a block asks memory for an input
// once, not once for each of the R*S taps that read it, and what comes with an input (its 64-bit address, whether it
// lies in the padding, its conversion to Acc) is done once too. On a CPU the first-level cache does as much by
// itself, and two waits at a barrier for each channel cost a thread more than that saves.
//
// No bank conflicts at unit stride: q is consecutive in threadIdx.x and a warp lies in one row of the tile, so at a
// tap its 32 lanes read 32 consecutive numbers of x_tile, and all of them the same number of w_tile.
//
// What limits it: two reads of shared memory for every multiply-add; and each of a group's filters stages the same
// inputs again. On an H200, 5x5 at 4096 x 4096 took 12 times as long as a copy.
#include "activation.cuh"
#include "add_products.cuh"
#include "conv2d.cuh"
#include "pack_mask.cuh"
#include "steps_inside.cuh"

static_assert(TILE_Q % 32 == 0, "a warp lies in one row of the tile, or two rows of it would meet in a bank");
static_assert(THREADS == TILE_P * TILE_Q && THREADS <= 1024, "a thread an output, and a block has at most 1024");

extern __shared__ Acc shared[];

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: output element (n,k,p,q), with q consecutive in threadIdx.x. A thread beyond the last output helps
    // to load.
    const Index plane = Index(blockIdx.z) * gridDim.y + blockIdx.y;  // (n,k)
    if (plane >= Index(shape.N) * shape.K) return;                   // the whole block
    const int n = plane / shape.K;
    const int k = plane % shape.K;
    const int q_tiles = (shape.Q - 1) / TILE_Q + 1;
    const int first_p = blockIdx.x / q_tiles * TILE_P;
    const int first_q = blockIdx.x % q_tiles * TILE_Q;
    const int p = first_p + threadIdx.y;
    const int q = first_q + threadIdx.x;
    const bool is_output = p < shape.P && q < shape.Q;
    const int first_c = k / shape.group_filters() * shape.group_channels();

    // The inputs under the tile: from the first tap of its first output to the last tap of its last one.
    const int first_h = shape.input_row(first_p, 0);
    const int first_w = shape.input_col(first_q, 0);
    const int rows = shape.input_row(min(first_p + TILE_P - 1, shape.P - 1), shape.R - 1) - first_h + 1;
    const int cols = shape.input_col(min(first_q + TILE_Q - 1, shape.Q - 1), shape.S - 1) - first_w + 1;
    Acc* const w_tile = shared;                      // [R][S]
    Acc* const x_tile = shared + shape.R * shape.S;  // [rows][cols]
    const Acc* const my_x = x_tile + threadIdx.y * shape.stride_h * cols + threadIdx.x * shape.stride_w;
    const StepsInside down(shape.input_row(p, 0), shape.dilation_h, shape.R, shape.H);
    const StepsInside across(shape.input_col(q, 0), shape.dilation_w, shape.S, shape.W);

    LongSum s_sum;
    if (b) s_sum.add(to_acc(b[k]));
    for (int c = 0; c < shape.group_channels(); ++c) {
        // Neighbouring threads load neighbouring columns; nobody reads the padding.
        for (int row = threadIdx.y; row < rows; row += TILE_P)
            for (int col = threadIdx.x; col < cols; col += TILE_Q) {
                const int h = first_h + row;
                const int w_ = first_w + col;
                if (shape.row_inside(h) && shape.col_inside(w_))
                    x_tile[row * cols + col] = to_acc(x[shape.x_at(n, first_c + c, h, w_)]);
            }
        for (int tap = threadIdx.y * TILE_Q + threadIdx.x; tap < shape.R * shape.S; tap += THREADS)
            w_tile[tap] = to_acc(w[shape.w_at(k, c, 0, 0) + tap]);
        __syncthreads();  // the tile is complete

        if (is_output)
            for (int r = down.first; r < down.end; ++r)
                add_products(s_sum, my_x + r * shape.dilation_h * cols + across.first * shape.dilation_w,
                             shape.dilation_w, w_tile + r * shape.S + across.first, 1, across.end - across.first);
        __syncthreads();  // nobody reads the tile any more
    }
    if (is_output) y[shape.y_at(n, k, p, q)] = from_acc(activate(s_sum.value()));
}
