// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p - pad + r, q - pad + s]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                       with g = dy * phi'(s), stride and dilation 1
//
// One thread takes a strip of COLS columns of g down a band of ROWS rows, and adds up TAP_ROWS x TAP_COLS taps of one
// filter (k,c) in registers. The rows of x that a row of g meets are a ring of registers: each row of g, y and x is
// loaded once, 16 bytes a thread at a time, and used for all taps. The rung below reads x_tile and g_tile from shared
// memory for every multiply-add; here both factors are registers. The next rows are asked for before these are used.
// Larger filters are dealt out to several blocks, a few filter rows each, and each (k,c) reads its channels anew. The
// threads' sums are added up in a fixed order, a block's first, then those of all blocks by kernel_grad_total.
//
// What limits it: the bytes on their way. On an H200, before rows were asked for ahead, 3x3, 5x5 and 7x7 at 4096 x 4096
// took 1.4, 2.3 and 3.0 times as long as a copy of as many bytes: the larger the filter, the fewer threads' registers
// fit a multiprocessor.
#include "block_sum.cuh"
#include "columns.cuh"
#include "kernel_grad_total.cuh"

constexpr int TAPS = TAP_ROWS * TAP_COLS;
// Columns of x that a strip meets, from a column on where a vector may begin, LEAD before the first tap's.
constexpr int WIDTH = (LEAD + COLS + TAP_COLS - 1 + X_VECTOR - 1) / X_VECTOR * X_VECTOR;

// partial[block][tap]: block `block` of the `blocks` that share the strips of all images; the biases are the last taps
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

    // ... and a strip of a band of an image, strips consecutive in threadIdx.x. Threads beyond the last have no row.
    const unsigned strips = (shape.Q + COLS - 1) / COLS, bands = (shape.P + ROWS - 1) / ROWS;
    const unsigned unit = block * THREADS + threadIdx.x;
    const int n = unit / strips / bands, first_q = unit % strips * COLS;
    const int first_p = unit / strips % bands * ROWS, end_p = n < shape.N ? min(first_p + ROWS, shape.P) : first_p;

    // The row and the column of x that the part's first tap meets at (first_p, first_q).
    const int first_h = first_p - shape.pad_top + first_r, first_w = first_q - shape.pad_left + first_s;
    const Scalar* const x_plane = x + shape.x_at(n, x_c, 0, 0);
    const Index g_plane = Index(n) * shape.K + k;

    Acc sums[TAPS + 1] = {};  // the last is the bias's
    Acc ring[TAP_ROWS][WIDTH];
    Columns<WIDTH, X_VECTOR> next_x;
    GradColumns<COLS, Y_VECTOR> next_g;
    next_g.ask(dy, saved, shape, g_plane, first_p < end_p ? first_p : shape.P, first_q);
#pragma unroll
    for (int r = 0; r < TAP_ROWS; ++r) {
        const int h = first_h + r;
        next_x.ask(x_plane + Index(h) * shape.W, first_p < end_p && shape.row_inside(h), first_w - LEAD, shape.W);
        if (r < TAP_ROWS - 1) next_x.take(ring[r]);
    }
    for (int turn_p = first_p; turn_p < end_p; turn_p += TAP_ROWS)
#pragma unroll
        for (int turn = 0; turn < TAP_ROWS; ++turn) {  // unrolled: the ring's slots are then known registers
            const int p = turn_p + turn, h = p - first_p + first_h + TAP_ROWS;  // the row of x after the ring's last
            if (p >= end_p) continue;  // and no break, for whose sake all sums would be kept twice
            Acc g[COLS];
            next_g.take(g);
            next_x.take(ring[(turn + TAP_ROWS - 1) % TAP_ROWS]);
            next_g.ask(dy, saved, shape, g_plane, p + 1 < end_p ? p + 1 : shape.P, first_q);
            next_x.ask(x_plane + Index(h) * shape.W, p + 1 < end_p && shape.row_inside(h), first_w - LEAD, shape.W);

#pragma unroll
            for (int r = 0; r < TAP_ROWS; ++r)
#pragma unroll
                for (int s = 0; s < TAP_COLS; ++s)
#pragma unroll
                    for (int j = 0; j < COLS; ++j)
                        sums[r * TAP_COLS + s] += g[j] * ring[(turn + r) % TAP_ROWS][LEAD + j + s];
#pragma unroll
            for (int j = 0; j < COLS; ++j) sums[TAPS] += g[j];
        }

    // The padding is no pixel, but here it was multiplied as zeros; where a factor was infinite or NaN, that gave NaN.
    // Then the strip's sums are formed anew, of pixels alone.
    const bool meets_padding = first_h < 0 || first_w < 0 || first_q + COLS > shape.Q ||
                               end_p - first_p + first_h + TAP_ROWS - 1 > shape.H ||
                               first_w + COLS + TAP_COLS - 1 > shape.W;
    bool is_finite = true;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) is_finite &= sums[t] - sums[t] == 0;
    if (meets_padding && !is_finite)
        for (int t = 0; t < TAPS; ++t) {
            Acc sum = 0;
            for (int p = first_p; p < end_p; ++p)
                for (int q = first_q; q < min(first_q + COLS, shape.Q); ++q) {
                    const int h = p - first_p + first_h + t / TAP_COLS, w_ = q - first_q + first_w + t % TAP_COLS;
                    if (!shape.row_inside(h) || !shape.col_inside(w_)) continue;
                    sum += pre_activation_grad(dy, saved, shape, n, k, p, q) * to_acc(x[shape.x_at(n, x_c, h, w_)]);
                }
#pragma unroll
            for (int i = 0; i < TAPS; ++i) sums[i] = i == t ? sum : sums[i];  // registers have no index at run time
        }

    __shared__ Acc warp_sums[WARPS][TAPS + 1];
    add_up_warps(sums, warp_sums);
    Acc* const mine = partial + block * (shape.w_size() + shape.K);
    for (int t = threadIdx.x; t <= TAPS; t += THREADS) {
        const int r = first_r + t / TAP_COLS, s = first_s + t % TAP_COLS;
        if (t == TAPS) {
            if (part == 0 && c == 0) mine[shape.w_size() + k] = add_up(warp_sums, t);
        } else if (r < shape.R && s < shape.S) {
            mine[shape.w_at(k, c, r, s)] = add_up(warp_sums, t);
        }
    }
}
