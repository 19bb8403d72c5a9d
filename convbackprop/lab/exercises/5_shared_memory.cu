// Exercise 5: shared memory, and the halo (one channel, stride 1)
//
//   y[n,p,q] = phi(b + sum_{r,s} x[n, p - pad + r, q - pad + s] * w[r,s])
//
// Given: neighbouring threads read almost the same pixels. So a block keeps those under its tile of TILE_P x TILE_Q
// outputs in shared memory, where all its threads find them: then each pixel is asked for once, not R * S times. The
// tile has a halo: the outermost outputs reach R - 1 rows and S - 1 columns further. There is room for it in shared
// memory, but here each thread loads one pixel, and nobody loads the halo.
//
// Change: let the block's threads load all rows x cols pixels of x_tile, several each. What lies in the padding is 0.
// Barriers: nobody may read before all is there. No thread may return before a barrier.
//
// Done: convbackprop grade 5_shared_memory.cu
// says that all is right, that nothing is read before it was written, and that global memory is asked for at most a
// quarter of a pixel for each multiply-add (one thread a pixel asks for a whole one).
//@ pass forward
//@ constant TILE_P = 8
//@ constant TILE_Q = 32
//@ let tiles = ceil_div(P, TILE_P) * ceil_div(Q, TILE_Q)
//@ launch forward(x, w, b, y) grid=[tiles, N] block=[TILE_Q, TILE_P] shared=[8 * (TILE_P + R - 1) * (TILE_Q + S - 1)]
#include "activation.cuh"  // activate(s) = phi(s)
#include "conv2d.cuh"      // Conv2dShape: the sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at

extern __shared__ Acc x_tile[];  // [rows][cols]

extern "C" __global__ void __launch_bounds__(TILE_P * TILE_Q)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: output (n,p,q) of the tile that begins at (first_p, first_q), with q consecutive in threadIdx.x.
    const int n = blockIdx.y;
    const int tiles_across = (shape.Q + TILE_Q - 1) / TILE_Q;
    const int first_p = blockIdx.x / tiles_across * TILE_P;
    const int first_q = blockIdx.x % tiles_across * TILE_Q;
    const int p = first_p + threadIdx.y;
    const int q = first_q + threadIdx.x;

    // The pixels under the tile begin at (first_h, first_w); those with a negative index lie in the padding.
    const int first_h = shape.input_row(first_p, 0);
    const int first_w = shape.input_col(first_q, 0);
    const int rows = TILE_P + shape.R - 1;
    const int cols = TILE_Q + shape.S - 1;
    const int row = threadIdx.y;
    const int col = threadIdx.x;
    if (row < rows && col < cols) {
        const int h = first_h + row;
        const int w_ = first_w + col;
        const bool inside = shape.row_inside(h) && shape.col_inside(w_);
        x_tile[row * cols + col] = inside ? to_acc(x[shape.x_at(n, 0, h, w_)]) : Acc(0);
    }
    __syncthreads();  // the tile is complete

    if (p >= shape.P || q >= shape.Q) return;
    Acc sum = b ? to_acc(b[0]) : Acc(0);
    for (int r = 0; r < shape.R; ++r)
        for (int s = 0; s < shape.S; ++s)
            sum += x_tile[(threadIdx.y + r) * cols + threadIdx.x + s] * to_acc(w[r * shape.S + s]);
    y[shape.y_at(n, 0, p, q)] = from_acc(activate(sum));
}

// The ladder's rung that does it: forward/tiled, in CUDA_SRC/forward/tiled.cu
