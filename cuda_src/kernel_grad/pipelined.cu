// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r, q*stride - pad + s]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                       with g = dy * phi'(s), stride 1 or 2, dilation 1
//
// One thread takes a strip of COLS columns of g down a band of ROWS rows, and adds up TAP_ROWS x TAP_COLS taps of one
// filter (k,c) in registers, as in the rung below. But the rows of dy, of what the forward pass saved and of x are brought
// to shared memory STAGES - 1 rows ahead (row_ring.cuh), each column once a tile, so that what is under way does not
// depend on how few threads the sums leave room for.
//
// What limits it: no GPU has run it. Expected is memory's bandwidth at 3x3, and the multiply-adds from 5x5 on.
#include "block_sum.cuh"
#include "grad_ring.cuh"
#include "kernel_grad_of_pixels.cuh"
#include "kernel_grad_total.cuh"

constexpr int TAPS = TAP_ROWS * TAP_COLS;
// Columns of x that a strip meets, from a column on where a vector may begin, LEAD before the first tap's; and a tile.
constexpr int WINDOW = LEAD + (COLS - 1) * STRIDE_W + TAP_COLS;
constexpr int TILE_WIDTH = (TILE_LANES - 1) * COLS * STRIDE_W + round_up(WINDOW, COLS);
using XRing = RowRing<Scalar, TILE_WIDTH, X_VECTOR>;
using GRing = GradRing<TILE_LANES * COLS, false>;

// partial[block][tap]: block `block` of the `blocks` that share the tiles of all images; the biases are the last taps
// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape, int blocks) {
    // Where am I: in a part of filter (k,c), its taps from (first_r, first_s) on ...
    const int row_parts = (shape.R + TAP_ROWS - 1) / TAP_ROWS, col_parts = (shape.S + TAP_COLS - 1) / TAP_COLS;
    const int parts = row_parts * col_parts, part = blockIdx.x % parts;
    const int block = blockIdx.x / parts % blocks, filter = blockIdx.x / parts / blocks;
    const int first_r = part % row_parts * TAP_ROWS, first_s = part / row_parts * TAP_COLS;
    const int k = filter / shape.group_channels(), c = filter % shape.group_channels();
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;

    // ... and a strip of a tile of a band of an image, strips consecutive in threadIdx.x. Threads beyond the last tile
    // have no row.
    const unsigned tiles = (shape.Q + TILE_LANES * COLS - 1) / (TILE_LANES * COLS), bands = (shape.P + ROWS - 1) / ROWS;
    const unsigned unit = (block * THREADS + threadIdx.x) / TILE_LANES;
    const int n = unit / tiles / bands, tile_q = unit % tiles * TILE_LANES * COLS;
    const int first_q = tile_q + tile_lane() * COLS;
    const int band = rows_of_band(shape.P);
    const int first_p = unit / tiles % bands * band, end_p = n < shape.N ? min(first_p + band, shape.P) : first_p;

    // The row and the column of x that the part's first tap meets at (first_p, first_q). Row i of x, counted from there,
    // and the row of g whose last tap meets it are used together, and share a stage. The lanes of a warp go through as
    // many rows, whether their band has them or not.
    const int first_h = shape.input_row(first_p, first_r), first_w = shape.input_col(first_q, first_s);
    const int tile_w = shape.input_col(tile_q, first_s) - LEAD;
    const int rows = (end_p - first_p - 1) * STRIDE_H + TAP_ROWS, all_rows = (band - 1) * STRIDE_H + TAP_ROWS;
    const auto meets_g = [](int i) { return i >= TAP_ROWS - 1 && (i - (TAP_ROWS - 1)) % STRIDE_H == 0; };
    const Scalar* const x_plane = x + shape.x_at(n, x_c, 0, 0);
    const Index g_plane = Index(n) * shape.K + k;
    unsigned char* const mine = shared + threadIdx.x / TILE_LANES * (XRing::BYTES + GRing::BYTES);
    const int end_x = first_p < end_p ? max(0, min(first_h + rows, shape.H)) : 0;  // of the rows that are there
    XRing x_ring(mine, x_plane + Index(first_h) * shape.W, tile_w, shape.W);
    GRing g_ring(mine + XRing::BYTES, dy, saved, shape, g_plane, first_p, tile_q);
    const auto ask = [&](int i, int stage) {
        x_ring.ask(stage, unsigned(first_h + i) < unsigned(end_x), i < all_rows);
        if (meets_g(i))
            g_ring.ask(stage, first_p < end_p && i < rows, false);
        else
            g_ring.ask_nothing();
        __pipeline_commit();
    };
    for (int i = 0; i < STAGES - 1; ++i) ask(i, i);

    Acc sums[TAPS + 1] = {};  // the last is the bias's
    Acc window[TAP_ROWS][WINDOW] = {};  // rows of x: a ring
    int stage = 0;                      // where row i is
    for (int turn_i = 0; turn_i < all_rows; turn_i += TAP_ROWS)
#pragma unroll
        for (int turn = 0; turn < TAP_ROWS; ++turn) {  // unrolled: the ring's slots are then known registers
            const int i = turn_i + turn;
            if (i >= all_rows) continue;  // and no break, for whose sake all sums would be kept twice
            __pipeline_wait_prior(STAGES - 2);
            __syncwarp();  // the rows are there, and nobody reads those before them any more: their place is free
            ask(i + STAGES - 1, stage ? stage - 1 : STAGES - 1);

            const int here = stage;
            read_row(window[turn], x_ring.row(here), tile_lane() * COLS * STRIDE_W);
            stage = next_stage(stage);
            if (!meets_g(i) || i >= rows) continue;  // there is no row of g here, yet, or any more
            Acc g[COLS];
            g_ring.read(g, here, tile_lane() * COLS);
#pragma unroll
            for (int r = 0; r < TAP_ROWS; ++r)
#pragma unroll
                for (int s = 0; s < TAP_COLS; ++s)
#pragma unroll
                    for (int j = 0; j < COLS; ++j)
                        sums[r * TAP_COLS + s] += g[j] * window[(turn + 1 + r) % TAP_ROWS][LEAD + j * STRIDE_W + s];
#pragma unroll
            for (int j = 0; j < COLS; ++j) sums[TAPS] += g[j];
        }
    __pipeline_wait_prior(0);  // nothing is under way to shared memory that may soon be another block's

    // The padding is no pixel, but here it was multiplied as zeros; where a factor was infinite or NaN, that gave NaN.
    // Then the strip's sums are formed anew, of pixels alone.
    const bool meets_padding = first_h < 0 || first_w < 0 || first_q + COLS > shape.Q || first_h + rows > shape.H ||
                               first_w + (COLS - 1) * STRIDE_W + TAP_COLS > shape.W;
    bool is_finite = true;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) is_finite &= sums[t] - sums[t] == 0;
    if (meets_padding && !is_finite)
        for (int t = 0; t < TAPS; ++t) {
            const Acc sum = dw_of_pixels(dy, saved, x, shape, n, k, c, first_r + t / TAP_COLS, first_s + t % TAP_COLS,
                                         first_p, end_p, first_q, first_q + COLS);
#pragma unroll
            for (int i = 0; i < TAPS; ++i) sums[i] = i == t ? sum : sums[i];  // registers have no index at run time
        }

    __shared__ Acc warp_sums[WARPS][TAPS + 1];
    add_up_warps(sums, warp_sums);
    Acc* const slice = partial + block * (shape.w_size() + shape.K);
    for (int t = threadIdx.x; t <= TAPS; t += THREADS) {
        const int r = first_r + t / TAP_COLS, s = first_s + t % TAP_COLS;
        if (t == TAPS) {
            if (part == 0 && c == 0) slice[shape.w_size() + k] = add_up(warp_sums, t);
        } else if (r < shape.R && s < shape.S) {
            slice[shape.w_at(k, c, r, s)] = add_up(warp_sums, t);
        }
    }
}
