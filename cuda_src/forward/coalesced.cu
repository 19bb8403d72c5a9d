// y[n,k,p,q] = phi(b[k] + sum_{r,s} x[n, c, p - pad + r, q - pad + s] * w[k,r,s])
//              one channel c a filter, stride and dilation 1
//
// One thread computes a strip of COLS columns down a band of ROWS rows, in registers. It reads each row of x once,
// 16 bytes at a time, and adds it to the FILTER_R rows of y that need it; these unfinished rows are a ring of
// registers, which moves on for free: the first multiply-add of a row reads sums[r + 1] and writes sums[r]. The rung
// below stages tiles in shared memory and reads them from there once for every multiply-add. Here is no barrier and no
// second trip; what neighbouring strips share comes from the first-level cache. A row is asked for one step before it
// is used, so that computing and waiting overlap.
//
// What limits it: the bytes on their way. On an H200, before rows were asked for ahead, 3x3 and 5x5 at 4096 x 4096 took
// 1.25 and 1.33 times as long as a copy; 7x7 2.0 times, with its taps in shared memory.
#include "activation.cuh"
#include "columns.cuh"
#include "pack_mask.cuh"

constexpr int TAPS = FILTER_R * FILTER_S;
// Columns of x that a strip reads, from a column on where a vector may begin, LEAD before the first tap's.
constexpr int WIDTH = (LEAD + COLS + FILTER_S - 1 + X_VECTOR - 1) / X_VECTOR * X_VECTOR;
static_assert(COLS % Y_VECTOR == 0, "a strip is stored as whole vectors");

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, MaskByte* __restrict__ mask, Conv2dShape shape) {
    // Where am I: a strip of a band of plane (n,k); strips are consecutive in threadIdx.x. With taps in shared memory a
    // block stays within one plane.
    const unsigned strips = (shape.Q + COLS - 1) / COLS, bands = (shape.P + ROWS - 1) / ROWS;
    const unsigned plane_threads =
        TAPS_SHARED ? (strips * bands + THREADS - 1) / THREADS * THREADS : strips * bands;
    const unsigned thread = blockIdx.x * THREADS + threadIdx.x, unit = thread % plane_threads;
    const unsigned plane = thread / plane_threads;
    const bool exists = plane < unsigned(shape.N) * shape.K && unit < strips * bands;
    const int k = plane % shape.K, n = plane / shape.K, c = k / shape.group_filters();
    const int first_p = unit / strips * ROWS, end_p = min(first_p + ROWS, shape.P);
    const int first_q = unit % strips * COLS;

    // The filter: in registers, or, if it is large, in shared memory, where all threads read the same tap at once.
    const Scalar* const filter = w + Index(k) * TAPS;
    __shared__ Acc shared_taps[TAPS_SHARED ? TAPS : 1];
    Acc own_taps[TAPS_SHARED ? 1 : TAPS];
    const Acc* const taps = TAPS_SHARED ? shared_taps : own_taps;
    bool is_finite = true;
    if constexpr (TAPS_SHARED) {
        for (int t = threadIdx.x; t < TAPS; t += THREADS) {
            shared_taps[t] = to_acc(filter[t]);
            is_finite &= isfinite(shared_taps[t]);
        }
        is_finite = __syncthreads_and(is_finite);  // all taps are there
    }
    if (!exists) return;
    if constexpr (!TAPS_SHARED) {
#pragma unroll
        for (int t = 0; t < TAPS; ++t) own_taps[t] = to_acc(filter[t]);
    }

    const Scalar* const x_plane = x + shape.x_at(n, c, 0, 0);
    const int first_h = shape.input_row(first_p, 0), end_h = shape.input_row(end_p - 1, FILTER_R - 1) + 1;
    const int first_w = shape.input_col(first_q, 0) - LEAD;
    const Acc start = b ? to_acc(b[k]) : Acc(0);
    Acc sums[FILTER_R][COLS];  // of the rows of y that row h of x is part of, the oldest first
#pragma unroll
    for (int r = 0; r < FILTER_R; ++r)
#pragma unroll
        for (int j = 0; j < COLS; ++j) sums[r][j] = start;

    Columns<WIDTH, X_VECTOR> next;
    next.ask(x_plane + Index(first_h) * shape.W, shape.row_inside(first_h), first_w, shape.W);

    // The padding is no pixel, but below it is multiplied as zeros; of a tap that is infinite or NaN that makes NaN.
    // Then the strip is formed here, of pixels alone.
#pragma unroll
    for (int t = 0; t < TAPS && !TAPS_SHARED; ++t) is_finite &= isfinite(taps[t]);
    if (!is_finite && (first_h < 0 || end_h > shape.H || first_w + LEAD < 0 ||
                       first_w + LEAD + COLS + FILTER_S - 1 > shape.W)) {
        for (int p = first_p; p < end_p; ++p)
            for (int q = first_q; q < min(first_q + COLS, shape.Q); ++q) {
                Acc sum = start;
#pragma unroll 1
                for (int t = 0; t < TAPS && !isnan(sum); ++t) {
                    const int h = shape.input_row(p, t / FILTER_S), w_ = shape.input_col(q, t % FILTER_S);
                    if (shape.row_inside(h) && shape.col_inside(w_))
                        sum += to_acc(filter[t]) * to_acc(x_plane[Index(h) * shape.W + w_]);
                }
                const Index row = Index(plane) * shape.P + p;
                y[row * shape.Q + q] = from_acc(activate(sum));
                if (COLS % 8 != 0 || !mask) continue;
                MaskByte& byte = mask[row * mask_row_bytes(shape) + q / 8];
                byte = (q % 8 ? byte : 0) | !(to_acc(y[row * shape.Q + q]) <= 0) << q % 8;
            }
        return;
    }

    for (int h = first_h; h < end_h; ++h) {
        Acc x_row[WIDTH];
        next.take(x_row);
        // Read again for each row: kept from row to row, taps in shared memory would fill the registers.
        if constexpr (TAPS_SHARED) asm volatile("" ::: "memory");
        const bool next_exists = h + 1 < end_h && shape.row_inside(h + 1);
        next.ask(x_plane + Index(h + 1) * shape.W, next_exists, first_w, shape.W);

#pragma unroll
        for (int r = 0; r < FILTER_R; ++r)
#pragma unroll
            for (int j = 0; j < COLS; ++j) {
                Acc sum = r + 1 < FILTER_R ? sums[r + 1][j] : start;
#pragma unroll
                for (int s = 0; s < FILTER_S; ++s)
                    sum += taps[(FILTER_R - 1 - r) * FILTER_S + s] * x_row[LEAD + j + s];
                sums[r][j] = sum;
            }

        const int p = h - first_h + first_p - (FILTER_R - 1);  // whose sum is complete now
        if (p < first_p) continue;
        Acc y_row[COLS];
        unsigned bits = 0;
#pragma unroll
        for (int j = 0; j < COLS; ++j) {
            y_row[j] = activate(sums[0][j]);
            bits |= unsigned(first_q + j < shape.Q && !(to_acc(from_acc(y_row[j])) <= 0)) << j;  // as it is stored
        }
        const Index row = Index(plane) * shape.P + p;
#pragma unroll
        for (int j = 0; j < COLS; j += Y_VECTOR)
            if (first_q + j < shape.Q) store_vector<Y_VECTOR>(y + row * shape.Q + first_q + j, y_row + j);
        if (COLS % 8 == 0 && mask)  // else pack_mask packs it: its bytes belong to two threads
#pragma unroll
            for (int j = 0; j < COLS; j += 8)
                if (first_q + j < shape.Q) mask[row * mask_row_bytes(shape) + (first_q + j) / 8] = bits >> j & 0xff;
    }
}
