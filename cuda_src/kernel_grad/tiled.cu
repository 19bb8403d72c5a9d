// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// One block takes one pair (k,c), at most THREADS of its taps, and a slice of the tiles of TILE_P x TILE_Q outputs of
// all images. Tile by tile it stages g, and the inputs under it with their halo, in shared memory. A thread is one
// (tap, part): it adds up its tap over every parts-th row of the tile. The bias is one tap more of the pair with
// c = 0, whose input is 1 everywhere. In the end the block adds up the parts of each tap, and kernel_grad_total the
// slices, both in a fixed order: the same bits every time. What changed from naive: a block reads dy and y, and forms
// g, once for all of its taps, not once a tap, and an input once for the up to R*S products that it is in. On a CPU
// the caches do half of that by themselves, and waits at barriers take back the rest where images are small.
//
// No bank conflicts at unit stride and dilation, up to 5 x 5: the tap is consecutive in threadIdx.x, and x_tile's
// pitch is S modulo 32. Tap (r,s) of row p reads x_tile at (p + r) * pitch + q + s, in bank tap + p*S + q, modulo 32:
// consecutive taps are in consecutive banks, and where those of row p and row p + 1 share a bank, they read the same
// number. Of g_tile all taps of a part read the same number, and its odd pitch keeps parts apart.
//
// What limits it: two reads of shared memory for every multiply-add; and every pair (k,c) stages its two planes
// again, K/groups times the inputs and C/groups times the outputs. On an H200, 5x5 at 4096 x 4096 took 7 times as long
// as a copy.
#include "activation_grad.cuh"
#include "conv2d.cuh"
#include "kernel_grad_total.cuh"
#include "long_sum.cuh"
#include "steps_inside.cuh"

static_assert(THREADS % 32 == 0 && THREADS <= 1024, "a block is made of whole warps, at most 32 of them");
static_assert(TILE_Q <= LongSum::RUN, "a row of the tile is one run of plain additions");
static_assert(TILE_Q % 2 == 0, "g_tile's pitch, one more, is odd");

constexpr int WARPS = THREADS / 32;
constexpr int G_PITCH = TILE_Q + 1;

extern __shared__ Acc shared[];

// partial[slice][tap], with gridDim.y slices; the K biases are the last taps
// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape) {
    // Where am I: in the block of a pair (k,c) and of its taps from first_tap on ...
    const int pair_taps = shape.R * shape.S;
    const int tap_blocks = pair_taps / THREADS + 1;  // with room for the bias
    const int pair = blockIdx.x / tap_blocks;
    const int k = pair / shape.group_channels();
    const int c = pair % shape.group_channels();
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;
    const int first_tap = blockIdx.x % tap_blocks * THREADS;
    const int block_taps = min(THREADS, pair_taps + (c == 0) - first_tap);
    if (block_taps <= 0) return;  // the whole block: it is there for a bias

    // ... a tap, consecutive in threadIdx.x, and a part. The threads that are left over help to load.
    const int parts = THREADS / block_taps;
    const int part = threadIdx.x / block_taps;
    const int tap = first_tap + threadIdx.x % block_taps;
    const bool is_bias = tap == pair_taps;
    const int r = min(tap, pair_taps - 1) / shape.S;  // the bias reads what the last tap reads, and takes it for 1
    const int s = min(tap, pair_taps - 1) % shape.S;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;

    const int widest = (TILE_Q - 1) * shape.stride_w + (shape.S - 1) * shape.dilation_w + 1;
    const int x_pitch = shape.S + (widest - shape.S + 31) / 32 * 32;
    Acc* const part_sums = shared;                  // [parts][block_taps]
    Acc* const g_tile = part_sums + THREADS;        // [TILE_P][G_PITCH]
    Acc* const x_tile = g_tile + TILE_P * G_PITCH;  // [rows][x_pitch]
    const Acc* const my_x = x_tile + r * shape.dilation_h * x_pitch + s * shape.dilation_w;

    // Slice i takes tiles i, i + slices, and so on, counted through all images.
    const int slices = gridDim.y;
    const int q_tiles = (shape.Q - 1) / TILE_Q + 1;
    const int tiles = ((shape.P - 1) / TILE_P + 1) * q_tiles;
    int tile = blockIdx.y % tiles;
    LongSum sum;
    for (Index n = blockIdx.y / tiles; n < shape.N; n += slices / tiles) {
        const int first_p = tile / q_tiles * TILE_P;
        const int first_q = tile % q_tiles * TILE_Q;
        const int tile_p = min(TILE_P, shape.P - first_p);  // the last tiles have fewer outputs
        const int tile_q = min(TILE_Q, shape.Q - first_q);
        const int first_h = shape.input_row(first_p, 0);
        const int first_w = shape.input_col(first_q, 0);
        const int rows = (tile_p - 1) * shape.stride_h + (shape.R - 1) * shape.dilation_h + 1;
        const int cols = (tile_q - 1) * shape.stride_w + (shape.S - 1) * shape.dilation_w + 1;

        // A warp loads a row, with the column consecutive in its lanes; the padding is zeros.
#pragma unroll 2  // more would take the registers that let other blocks compute meanwhile
        for (int row = warp; row < tile_p; row += WARPS)
            for (int col = lane; col < TILE_Q; col += 32)
                if (col < tile_q)
                    g_tile[row * G_PITCH + col] =
                        pre_activation_grad(dy, saved, shape, n, k, first_p + row, first_q + col);
        for (int row = warp; row < rows; row += WARPS)
            for (int col = lane; col < cols; col += 32) {
                const int h = first_h + row;
                const int w_ = first_w + col;
                const bool inside = shape.row_inside(h) && shape.col_inside(w_);
                x_tile[row * x_pitch + col] = inside ? to_acc(x[shape.x_at(n, x_c, h, w_)]) : Acc(0);
            }
        __syncthreads();  // the tile is complete

        if (part < parts)
            for (int p = part; p < tile_p; p += parts) {
                const Acc* const g_row = g_tile + p * G_PITCH;
                const Acc* const x_row = my_x + p * shape.stride_h * x_pitch;
                for (int q = 0; q < tile_q; ++q) sum.run += g_row[q] * (is_bias ? Acc(1) : x_row[q * shape.stride_w]);
                if (isnan(sum.run) && !is_bias) {  // the padding is no pixel, but was multiplied: without it, then
                    const StepsInside across(first_w + s * shape.dilation_w, shape.stride_w, tile_q, shape.W);
                    const bool has_pixels = shape.row_inside(shape.input_row(first_p + p, r));
                    sum.run = 0;
                    for (int q = across.first; has_pixels && q < across.end; ++q)
                        sum.run += g_row[q] * x_row[q * shape.stride_w];
                }
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
