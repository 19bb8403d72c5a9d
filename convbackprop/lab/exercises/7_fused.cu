// Exercise 7: fuse it: all gradients in one pass over memory (one channel, stride 1, 'same' padding, an odd filter)
//
//   dx[n,h,w_] = sum_{r,s} g[n, h + pad - r, w_ + pad - s] * w[r,s]
//   dw[r,s]    = sum_{n,h,w_} g[n, h + pad - r, w_ + pad - s] * x[n,h,w_]
//   db         = sum_{n,h,w_} g[n,h,w_]                                     with g = dy * phi'(s)
//
// Given: two kernels that are right, and a third one that adds up what the blocks have left in scratch memory. Each of
// the two takes a tile of pixels and stages the g under it, with its halo, in shared memory: dy and y are read from
// memory twice. But dx and dw multiply the same window of g: dx by the filter, dw by the pixel of x at its centre.
//
// Change: let one kernel do both with one tile of g, and launch that one in place of the two. (Its launch must name all
// the arrays that it takes, in the order of its parameters.)
//
// Done: convbackprop grade 7_fused.cu
// says that all is right and that at most 1.45 times the bytes are moved that must be: dy, y and x in, dx out. (Whoever
// reads dy and y twice moves at least 1.5 times as much.)
//@ pass backward
//@ constant TILE = 32
//@ constant WARPS = 8
//@ let tiles = ceil_div(H, TILE) * ceil_div(W, TILE)
//@ let shared_bytes = 8 * (TILE + R - 1) * (TILE + S - 1)
//@ scratch = N * tiles * (R * S + 1)
//@ launch input_grad(dy, saved, w, dx) grid=[tiles, N] block=[32, WARPS] shared=[shared_bytes]
//@ launch kernel_grad(dy, saved, x, scratch) grid=[tiles, N] block=[32, WARPS] shared=[shared_bytes]
//@ launch total(scratch, dw, db; N * tiles) grid=[R * S + 1] block=[32]
#include "activation_grad.cuh"  // pre_activation_grad(dy, saved, shape, n, k, p, q) = g[n,k,p,q]
#include "conv2d.cuh"           // Conv2dShape: sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at
#include "long_sum.cuh"         // LongSum: a plain float sum of a million terms would be wrong in its third digit

// g_tile[row][col] = g[first_h + pad - (R - 1) + row][first_w + pad - (S - 1) + col]
extern __shared__ Acc g_tile[];  // [TILE + R - 1][cols]

struct Tile {
    int n, first_h, first_w, cols;
};

__device__ Tile my_tile(const Conv2dShape& shape) {
    const int across = (shape.W + TILE - 1) / TILE;
    const int first_h = blockIdx.x / across * TILE;
    const int first_w = blockIdx.x % across * TILE;
    return {int(blockIdx.y), first_h, first_w, TILE + shape.S - 1};
}

// A warp loads a row, with the column consecutive in its lanes; what lies outside the image is 0.
__device__ void load_g_tile(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, const Tile& tile) {
    for (int row = threadIdx.y; row < TILE + shape.R - 1; row += WARPS)
        for (int col = threadIdx.x; col < tile.cols; col += 32) {
            const int p = tile.first_h + shape.pad_top - (shape.R - 1) + row;
            const int q = tile.first_w + shape.pad_left - (shape.S - 1) + col;
            const bool inside = 0 <= p && p < shape.P && 0 <= q && q < shape.Q;
            g_tile[row * tile.cols + col] = inside ? pre_activation_grad(dy, saved, shape, tile.n, 0, p, q) : Acc(0);
        }
    __syncthreads();  // the tile is complete
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           Scalar* __restrict__ dx, Conv2dShape shape) {
    const Tile tile = my_tile(shape);
    load_g_tile(dy, saved, shape, tile);

    const int w_ = tile.first_w + threadIdx.x;
    for (int row = threadIdx.y; row < TILE && tile.first_h + row < shape.H; row += WARPS) {
        if (w_ >= shape.W) continue;
        Acc sum = 0;
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S; ++s)  // the filter is turned: the window's last g meets the first tap
                sum += g_tile[(row + shape.R - 1 - r) * tile.cols + threadIdx.x + shape.S - 1 - s] *
                       to_acc(w[r * shape.S + s]);
        dx[shape.x_at(tile.n, 0, tile.first_h + row, w_)] = from_acc(sum);
    }
}

// scratch[block][tap]: a block's sums; the last tap is the bias, whose pixel is 1
extern "C" __global__ void __launch_bounds__(32 * WARPS)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ scratch, Conv2dShape shape) {
    const Tile tile = my_tile(shape);
    load_g_tile(dy, saved, shape, tile);

    // A lane keeps its column of x in registers.
    const int w_ = tile.first_w + threadIdx.x;
    Acc pixels[TILE];
#pragma unroll
    for (int row = 0; row < TILE; ++row) {
        const int h = tile.first_h + row;
        pixels[row] = h < shape.H && w_ < shape.W ? to_acc(x[shape.x_at(tile.n, 0, h, w_)]) : Acc(0);
    }

    // A warp adds up a tap: each lane its column, then the lanes in an order that is always the same.
    const int taps = shape.R * shape.S;
    const Index block = Index(blockIdx.y) * gridDim.x + blockIdx.x;
    for (int tap = threadIdx.y; tap <= taps; tap += WARPS) {
        const bool is_bias = tap == taps;
        const int r = is_bias ? shape.R / 2 : tap / shape.S;  // the window's centre is the pixel's own g
        const int s = is_bias ? shape.S / 2 : tap % shape.S;
        Acc sum = 0;
#pragma unroll
        for (int row = 0; row < TILE; ++row)
            sum += g_tile[(row + shape.R - 1 - r) * tile.cols + threadIdx.x + shape.S - 1 - s] *
                   (is_bias ? Acc(tile.first_h + row < shape.H && w_ < shape.W) : pixels[row]);
        for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_down_sync(0xffffffff, sum, lanes);
        if (threadIdx.x == 0) scratch[block * (taps + 1) + tap] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(32)
total(const Acc* __restrict__ scratch, Scalar* __restrict__ dw, Scalar* __restrict__ db, Conv2dShape shape,
      int blocks) {
    const int taps = shape.R * shape.S;
    const int tap = blockIdx.x;
    LongSum sum;
    for (int block = threadIdx.x; block < blocks; block += 32) sum.add(scratch[Index(block) * (taps + 1) + tap]);
    Acc all = sum.value();
    for (int lanes = 16; lanes > 0; lanes /= 2) all += __shfl_down_sync(0xffffffff, all, lanes);
    if (threadIdx.x != 0) return;
    if (tap < taps)
        dw[tap] = from_acc(all);
    else if (db)
        db[0] = from_acc(all);
}

// The ladder's rung that goes on from here, with g in registers: backward/fused, in CUDA_SRC/backward/fused.cu
