// dx[n,c,h,w_] = sum_{r,s} g[n, c, h + pad - r, w_ + pad - s] * w[c,r,s]
// dw[c,r,s]    = sum_{n,h,w_} g[n, c, h + pad - r, w_ + pad - s] * x[n,c,h,w_]
// db[c]        = sum_{n,h,w_} g[n,c,h,w_]      with g = dy * phi'(s); one filter a channel, stride 1, 'same' padding
//
// All gradients in one pass over memory. dx and dw multiply the same R x S window of g: dx by the filter, dw by the
// input pixel at the window's centre. So a thread owns a strip of COLS columns of x and dx, marches down a band of
// ROWS rows and keeps R rows of g, with what its window reaches beyond the strip, in a ring of registers. dy, y and x
// are read once and dx is written once: 16 bytes a pixel in float32, 12 with a bit mask in place of y, where separate
// passes form g twice and move 24. The next rows are asked for before these are used. What is not wanted (NEED_...) is
// not compiled. The order of all sums is fixed: a block's first, then those of all blocks by kernel_grad_total.
//
// What limits it: registers, whose number decides how many bytes are on their way. On an H200, before rows were asked
// for ahead, 3x3, 5x5 and 7x7 at 4096 x 4096 took 1.9, 3.2 and 4.5 times as long as a copy of as many bytes.
#include "block_sum.cuh"
#include "columns.cuh"
#include "kernel_grad_total.cuh"

static_assert(FILTER_R % 2 == 1 && FILTER_S % 2 == 1, "'same' padding lies evenly round an odd filter");
static_assert(COLS % X_VECTOR == 0, "a strip is loaded and stored as whole vectors");

constexpr int TAPS = FILTER_R * FILTER_S, TOP = FILTER_R / 2, LEFT = FILTER_S / 2;
// Columns of g in a strip's windows, from a column on where a vector may begin, LEAD before the first tap's.
constexpr int WIDTH = (LEAD + COLS + FILTER_S - 1 + Y_VECTOR - 1) / Y_VECTOR * Y_VECTOR;

// partial[block][tap]: block `block` of the `blocks` that share a channel's strips; the biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
         const Scalar* __restrict__ w, Scalar* __restrict__ dx, Acc* __restrict__ partial, Conv2dShape shape,
         int blocks) {
    // Where am I: a strip of a band of channel c of image n, strips consecutive in threadIdx.x. Threads beyond the last
    // have no row.
    const int c = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const unsigned strips = (shape.W + COLS - 1) / COLS, bands = (shape.H + ROWS - 1) / ROWS;
    const unsigned unit = block * THREADS + threadIdx.x;
    const int n = unit / strips / bands, first_w = unit % strips * COLS;
    const int first_h = unit / strips % bands * ROWS, end_h = n < shape.N ? min(first_h + ROWS, shape.H) : first_h;
    const Index plane = Index(n) * shape.C + c;
    const Scalar* const x_plane = x + plane * shape.H * shape.W;

    Acc taps[TAPS];
    Acc sums[TAPS + 1] = {};  // of dw; the last is db's
#pragma unroll
    for (int t = 0; t < TAPS; ++t) taps[t] = NEED_DX ? to_acc(w[Index(c) * TAPS + t]) : Acc(0);

    Acc ring[FILTER_R][WIDTH];
    GradColumns<WIDTH, Y_VECTOR> next_g;
    Columns<COLS, X_VECTOR> next_x;
    next_x.ask(x_plane + Index(first_h) * shape.W, NEED_DW && first_h < end_h, first_w, shape.W);
#pragma unroll
    for (int i = 0; i < FILTER_R; ++i) {
        const int p = first_h < end_h ? first_h - TOP + i : shape.P;
        next_g.ask(dy, saved, shape, plane, p, first_w - LEFT - LEAD);
        if (i < FILTER_R - 1) next_g.take(ring[i]);
    }
    for (int turn_h = first_h; turn_h < end_h; turn_h += FILTER_R)
#pragma unroll
        for (int turn = 0; turn < FILTER_R; ++turn) {  // unrolled: the ring's slots are then known registers
            const int h = turn_h + turn;
            const bool is_last = h + 1 >= end_h;
            if (h >= end_h) continue;  // and no break, for whose sake all sums would be kept twice
            Acc x_row[COLS];
            next_x.take(x_row);
            next_g.take(ring[(turn + FILTER_R - 1) % FILTER_R]);
            next_x.ask(x_plane + Index(h + 1) * shape.W, NEED_DW && !is_last, first_w, shape.W);
            next_g.ask(dy, saved, shape, plane, is_last ? shape.P : h + 1 + TOP, first_w - LEFT - LEAD);

            Acc dx_row[COLS] = {};
#pragma unroll
            for (int i = 0; i < FILTER_R; ++i)  // row h - TOP + i of g
#pragma unroll
                for (int s = 0; s < FILTER_S; ++s) {
                    const int tap = (FILTER_R - 1 - i) * FILTER_S + FILTER_S - 1 - s;  // turned
#pragma unroll
                    for (int j = 0; j < COLS; ++j) {
                        const Acc g = ring[(turn + i) % FILTER_R][LEAD + j + s];
                        if (NEED_DX) dx_row[j] += taps[tap] * g;
                        if (NEED_DW) sums[tap] += x_row[j] * g;
                    }
                }
#pragma unroll
            for (int j = 0; j < COLS; ++j)
                if (NEED_DB) sums[TAPS] += ring[(turn + TOP) % FILTER_R][LEAD + LEFT + j];
#pragma unroll
            for (int j = 0; j < COLS; j += X_VECTOR)
                if (NEED_DX && first_w + j < shape.W)
                    store_vector<X_VECTOR>(dx + (plane * shape.H + h) * shape.W + first_w + j, dx_row + j);
        }

    // The padding is no pixel, but here it was multiplied as zeros; where a factor was infinite or NaN, that gave NaN.
    // Then the strip's results are formed anew, of pixels alone.
    const bool meets_padding =
        first_h < TOP || end_h + TOP > shape.H || first_w < LEFT || first_w + COLS + LEFT > shape.W;
    bool is_finite = true;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) is_finite &= sums[t] - sums[t] == 0 && taps[t] - taps[t] == 0;
    if (meets_padding && !is_finite) {
#pragma unroll
        for (int t = 0; t < TAPS; ++t) sums[t] = 0;
        for (int h = first_h; h < end_h; ++h)
            for (int w_ = first_w; w_ < min(first_w + COLS, shape.W); ++w_) {
                const Index at = shape.x_at(n, c, h, w_);
                const Acc pixel = NEED_DW ? to_acc(x[at]) : Acc(0);
                Acc dx_sum = 0;
#pragma unroll
                for (int t = 0; t < TAPS; ++t) {  // unrolled: sums are registers, which have no index at run time
                    const int p = h + TOP - t / FILTER_S, q = w_ + LEFT - t % FILTER_S;
                    if (p < 0 || p >= shape.P || q < 0 || q >= shape.Q) continue;
                    const Acc g = pre_activation_grad(dy, saved, shape, n, c, p, q);
                    dx_sum += taps[t] * g;
                    sums[t] += pixel * g;
                }
                if (NEED_DX) dx[at] = from_acc(dx_sum);
            }
    }

    if (NEED_DW || NEED_DB) {
        __shared__ Acc warp_sums[WARPS][TAPS + 1];
        add_up_warps(sums, warp_sums);
        Acc* const mine = partial + block * (shape.w_size() + shape.K);
        for (int t = threadIdx.x; t <= TAPS; t += THREADS)
            mine[t < TAPS ? Index(c) * TAPS + t : shape.w_size() + c] = add_up(warp_sums, t);
    }
}
