// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// One block takes one pair (k,c), at most THREADS of its taps, and a slice of the tiles of TILE_P x TILE_Q outputs of
// all images. Tile by tile it stages g and the inputs under it, with their halo, in shared memory. A thread is one
// (tap, part): it adds up its tap over every parts-th row of the tile. The bias is one tap more of the pair with c = 0,
// whose input is 1 everywhere. In the end the block adds up the parts of each tap, and then kernel_grad_total the
// slices, both in a fixed order: the same bits every time. What changed from naive: g is formed once an output and
// pair, not once a tap, and an input comes from memory once for all taps. On a CPU a cache does as much by
// itself, and the waits at a barrier are not free.
//
// No bank conflicts at unit stride and dilation, up to 5x5: the tap is consecutive in threadIdx.x. A tap reads x_tile
// in row p + r and column q + s, and the pitch of x_tile is S modulo 32: (p + r) * S + s + q, so consecutive taps (r,s) of
// a part hit consecutive banks; the next part, one row below, hits the same banks only where it reads the same number. All taps
// of a part read the same number of g_tile; its odd pitch keeps the parts of a warp apart.
//
// What limits it: two reads of shared memory for every multiply-add; and with many channels each pair stages its
// two planes again, K/groups times the inputs and C/groups times the outputs.
#include "activation.cuh"
#include "conv2d.cuh"
#include "kernel_grad_total.cuh"
#include "long_sum.cuh"

static_assert(THREADS % 32 == 0 && THREADS <= 1024, "a block is made of whole warps, at most 32 of them");
static_assert(TILE_Q <= LongSum::RUN, "a row of the tile is one run of plain additions");

constexpr int G_PITCH = TILE_Q + 1;
static_assert(G_PITCH % 2 == 1, "the rows of g_tile begin in different banks");

extern __shared__ Acc shared[];

// partial[slice][tap], with gridDim.y slices; the K biases are the last taps
// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape) {
    // Where am I: in the block of a pair (k,c) and of its taps from first_tap on ...
    const int pair_taps = shape.R * shape.S;
    const int tap_blocks = pair_taps / THREADS + 1;  // enough for the bias too
    const int pair = blockIdx.x / tap_blocks;
    const int k = pair / shape.group_channels();
    const int c = pair % shape.group_channels();
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;
    const int first_tap = blockIdx.x % tap_blocks * THREADS;
    const int block_taps = min(THREADS, pair_taps + (c == 0) - first_tap);
    if (block_taps <= 0) return;  // the whole block: it was there for a bias

    // ... a thread of a tap, consecutive in threadIdx.x, and a part. The threads left over only help to load.
    const int parts = THREADS / block_taps;
    const int part = threadIdx.x / block_taps;
    const int tap = first_tap + threadIdx.x % block_taps;
    const bool is_bias = tap == pair_taps;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;

    // Shared memory: 1, what the parts have added up, g of a tile, and the inputs under it.
    const int widest = (TILE_Q - 1) * shape.stride_w + (shape.S - 1) * shape.dilation_w + 1;
    const int x_pitch = shape.S + (widest - shape.S + 31) / 32 * 32;
    Acc* const one = shared;
    Acc* const part_sums = one + 1;                    // [parts][block_taps]
    Acc* const g_tile = part_sums + THREADS;           // [TILE_P][G_PITCH]
    Acc* const x_tile = g_tile + TILE_P * G_PITCH;     // [rows][x_pitch]
    if (threadIdx.x == 0) *one = 1;                    // seen after the first barrier

    // What my tap reads for the tile's first output, and the ways to the outputs below it and beside it.
    const int r = tap / shape.S;
    const int s = tap % shape.S;
    const Acc* const x_first = is_bias ? one : x_tile + r * shape.dilation_h * x_pitch + s * shape.dilation_w;
    const int x_down = is_bias ? 0 : shape.stride_h * x_pitch;
    const int x_across = is_bias ? 0 : shape.stride_w;

    // Slice i takes tiles i, i + slices, and so on, counted through all images.
    const int q_tiles = (shape.Q - 1) / TILE_Q + 1;
    const int tiles = ((shape.P - 1) / TILE_P + 1) * q_tiles;
    const int slices = gridDim.y;
    int tile = blockIdx.y % tiles;
    LongSum sum;
    for (Index n = blockIdx.y / tiles; n < shape.N; n += slices / tiles) {
        const int first_p = tile / q_tiles * TILE_P;
        const int first_q = tile % q_tiles * TILE_Q;
        const int tile_p = min(TILE_P, shape.P - first_p);  // the last tiles are cut off
        const int tile_q = min(TILE_Q, shape.Q - first_q);
        const int first_h = shape.input_row(first_p, 0);
        const int first_w = shape.input_col(first_q, 0);
        const int rows = (tile_p - 1) * shape.stride_h + (shape.R - 1) * shape.dilation_h + 1;
        const int cols = (tile_q - 1) * shape.stride_w + (shape.S - 1) * shape.dilation_w + 1;

        // A warp loads a row, its lanes neighbouring columns; the padding is zeros.
        for (int row = warp; row < tile_p; row += THREADS / 32)
            for (int col = lane; col < tile_q; col += 32)
                g_tile[row * G_PITCH + col] =
                    pre_activation_grad(dy, saved, shape, n, k, first_p + row, first_q + col);
        for (int row = warp; row < rows; row += THREADS / 32)
            for (int col = lane; col < cols; col += 32) {
                const int h = first_h + row;
                const int w_ = first_w + col;
                const bool inside = shape.row_inside(h) && shape.col_inside(w_);
                x_tile[row * x_pitch + col] = inside ? to_acc(x[shape.x_at(n, x_c, h, w_)]) : Acc(0);
            }
        __syncthreads();  // the tile is complete

        if (part < parts)
            for (int p = part; p < tile_p; p += parts) {
                for (int q = 0; q < tile_q; ++q) sum.run += g_tile[p * G_PITCH + q] * x_first[p * x_down + q * x_across];
                sum.end_run();
            }
        __syncthreads();  // nobody reads the tile any more

        tile += slices % tiles;
        if (tile >= tiles) {
            tile -= tiles;
            ++n;
        }
    }

    part_sums[threadIdx.x] = sum.value();
    __syncthreads();  // every part's sum is there
    if (part != 0) return;
    LongSum total;
    for (int i = 0; i < parts; ++i) total.add(part_sums[i * block_taps + threadIdx.x]);
    const Index taps = shape.w_size() + shape.K;
    partial[blockIdx.y * taps + (is_bias ? shape.w_size() + k : shape.w_at(k, c, 0, 0) + tap)] = total.value();
}
