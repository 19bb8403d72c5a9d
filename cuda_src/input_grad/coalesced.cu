// dx[n,c,h,w_] = sum_{r,s} g[n, k, h + pad - r, w_ + pad - s] * w[k,r,s]      with g = dy * phi'(s);
//                one filter k a channel, stride and dilation 1
//
// One thread computes a strip of COLS columns down a band of ROWS rows, in registers. Substituting r by R - 1 - r shows
// the forward pass's sum, over g in place of x and with the filter turned by 180 degrees, and it is formed as there:
// FILTER_R unfinished rows of dx are a ring of registers. g is formed as its row is used, once for all taps (and once
// more for each neighbour that shares a column), where the rung below stages it in shared memory. A row of dy and of
// what was saved is asked for one step before it is used, so that computing and waiting overlap.
//
// What limits it: the bytes on their way, of two arrays. On an H200, before rows were asked for ahead, 3x3, 5x5 and 7x7
// at 4096 x 4096 took 1.7, 1.8 and 2.3 times as long as a copy of as many bytes.
#include "activation.cuh"
#include "columns.cuh"

constexpr int TAPS = FILTER_R * FILTER_S;
// Columns of g that a strip reads, from a column on where a vector may begin, LEAD before the first tap's.
constexpr int WIDTH = (LEAD + COLS + FILTER_S - 1 + Y_VECTOR - 1) / Y_VECTOR * Y_VECTOR;
static_assert(COLS % X_VECTOR == 0, "a strip is stored as whole vectors");

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ b, Scalar* __restrict__ dx, Conv2dShape shape) {
    // Where am I: a strip of a band of plane (n,c); strips are consecutive in threadIdx.x. With taps in shared memory a
    // block stays within one plane.
    const unsigned strips = (shape.W + COLS - 1) / COLS, bands = (shape.H + ROWS - 1) / ROWS;
    const unsigned plane_threads =
        TAPS_SHARED ? (strips * bands + THREADS - 1) / THREADS * THREADS : strips * bands;
    const unsigned thread = blockIdx.x * THREADS + threadIdx.x, unit = thread % plane_threads;
    const unsigned plane = thread / plane_threads;
    const bool exists = plane < unsigned(shape.N) * shape.C && unit < strips * bands;
    const int c = plane % shape.C, n = plane / shape.C, k = c / shape.group_channels();
    const int first_h = unit / strips * ROWS, end_h = min(first_h + ROWS, shape.H);
    const int first_w = unit % strips * COLS;

    // The filter, turned: in registers, or, if it is large, in shared memory, where all threads read the same tap at
    // once.
    const Scalar* const filter = w + (Index(k) * shape.group_channels() + c % shape.group_channels()) * TAPS;
    __shared__ Acc shared_taps[TAPS_SHARED ? TAPS : 1];
    Acc own_taps[TAPS_SHARED ? 1 : TAPS];
    const Acc* const taps = TAPS_SHARED ? shared_taps : own_taps;
    bool is_finite = true;
    if constexpr (TAPS_SHARED) {
        for (int t = threadIdx.x; t < TAPS; t += THREADS) {
            shared_taps[t] = to_acc(filter[TAPS - 1 - t]);
            is_finite &= isfinite(shared_taps[t]);
        }
        is_finite = __syncthreads_and(is_finite);  // all taps are there
    }
    if (!exists) return;
    if constexpr (!TAPS_SHARED) {
#pragma unroll
        for (int t = 0; t < TAPS; ++t) own_taps[t] = to_acc(filter[TAPS - 1 - t]);
    }

    // Rows of g: tap (0,0) of the turned filter meets dx[h,w_] in g[h - top, w_ - left].
    const int top = FILTER_R - 1 - shape.pad_top, left = FILTER_S - 1 - shape.pad_left;
    const Index g_plane = Index(n) * shape.K + k;
    const int first_p = first_h - top, end_p = end_h - top + FILTER_R - 1, first_q = first_w - left - LEAD;
    Acc sums[FILTER_R][COLS] = {};  // of the rows of dx that row p of g is part of, the oldest first

    GradColumns<WIDTH, Y_VECTOR> next;
    next.ask(dy, saved, shape, g_plane, first_p, first_q);

    // Beyond g there is nothing, but below zeros are multiplied there; of a tap that is infinite or NaN they make NaN.
    // Then the strip is formed here, of pixels alone.
#pragma unroll
    for (int t = 0; t < TAPS && !TAPS_SHARED; ++t) is_finite &= isfinite(taps[t]);
    if (!is_finite && (first_p < 0 || end_p > shape.P || first_q + LEAD < 0 ||
                       first_q + LEAD + COLS + FILTER_S - 1 > shape.Q)) {
        for (int h = first_h; h < end_h; ++h)
            for (int w_ = first_w; w_ < min(first_w + COLS, shape.W); ++w_) {
                Acc sum = 0;
#pragma unroll 1
                for (int t = 0; t < TAPS && !isnan(sum); ++t) {
                    const int p = h + shape.pad_top - t / FILTER_S, q = w_ + shape.pad_left - t % FILTER_S;
                    if (0 <= p && p < shape.P && 0 <= q && q < shape.Q)
                        sum += pre_activation_grad(dy, saved, shape, n, k, p, q) * to_acc(filter[t]);
                }
                dx[(Index(plane) * shape.H + h) * shape.W + w_] = from_acc(dx_result(sum, b, c));
            }
        return;
    }

    for (int p = first_p; p < end_p; ++p) {
        Acc g_row[WIDTH];
        next.take(g_row);
        // Read again for each row: kept from row to row, taps in shared memory would fill the registers.
        if constexpr (TAPS_SHARED) asm volatile("" ::: "memory");
        next.ask(dy, saved, shape, g_plane, p + 1 < end_p ? p + 1 : shape.P, first_q);

#pragma unroll
        for (int r = 0; r < FILTER_R; ++r)
#pragma unroll
            for (int j = 0; j < COLS; ++j) {
                Acc sum = r + 1 < FILTER_R ? sums[r + 1][j] : Acc(0);
#pragma unroll
                for (int s = 0; s < FILTER_S; ++s)
                    sum += taps[(FILTER_R - 1 - r) * FILTER_S + s] * g_row[LEAD + j + s];
                sums[r][j] = sum;
            }

        const int h = p - first_p + first_h - (FILTER_R - 1);  // whose sum is complete now
        if (h < first_h) continue;
        Acc dx_row[COLS];
#pragma unroll
        for (int j = 0; j < COLS; ++j) dx_row[j] = dx_result(sums[0][j], b, c);
        const Index row = Index(plane) * shape.H + h;
#pragma unroll
        for (int j = 0; j < COLS; j += X_VECTOR)
            if (first_w + j < shape.W) store_vector<X_VECTOR>(dx + row * shape.W + first_w + j, dx_row + j);
    }
}
