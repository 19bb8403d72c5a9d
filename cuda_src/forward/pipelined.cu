// y[n,k,p,q] = phi(b[k] + sum_{r,s} x[n, c, p*stride - pad + r, q*stride - pad + s] * w[k,r,s])
//              one channel c a filter, stride 1 or 2, dilation 1
//
// One thread computes a strip of COLS columns down a band of ROWS rows, in registers, from rows of x that its warp has
// brought to shared memory STAGES - 1 rows ahead (row_ring.cuh). The rung below asks for one row ahead, in registers: what
// is under way then depends on how many threads fit, and each reads the columns at its sides from memory by itself. The
// sums are the same, in the same order. Bands are even: of an image that ROWS does not divide, all have a few rows less.
//
// What limits it: no GPU has run it. Expected is memory's bandwidth up to 5x5, and the multiply-adds from 7x7 on.
#include "activation.cuh"
#include "forward_of_pixels.cuh"
#include "pack_mask.cuh"
#include "row_ring.cuh"

constexpr int TAPS = FILTER_R * FILTER_S;
// Columns of x that a strip reads, from a column on where a vector may begin, LEAD before the first tap's; and a tile.
constexpr int WINDOW = LEAD + (COLS - 1) * STRIDE_W + FILTER_S;
constexpr int TILE_WIDTH = (TILE_LANES - 1) * COLS * STRIDE_W + round_up(WINDOW, COLS);
// Rows of y that a row of x is part of.
constexpr int Y_ROWS = (FILTER_R + STRIDE_H - 1) / STRIDE_H;
using Ring = RowRing<Scalar, TILE_WIDTH, X_VECTOR>;
static_assert(COLS % Y_VECTOR == 0, "a strip is stored as whole vectors");

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, MaskByte* __restrict__ mask, Conv2dShape shape) {
    // Where am I: a strip of a tile of a band of plane (n,k); strips are consecutive in threadIdx.x. With taps in shared
    // memory a block stays within one plane. Threads beyond the last tile have no row.
    const unsigned tiles = (shape.Q + TILE_LANES * COLS - 1) / (TILE_LANES * COLS), bands = (shape.P + ROWS - 1) / ROWS;
    const unsigned lanes = tiles * bands * TILE_LANES;
    const unsigned plane_threads = TAPS_SHARED ? (lanes + THREADS - 1) / THREADS * THREADS : lanes;
    const unsigned thread = blockIdx.x * THREADS + threadIdx.x, unit = thread % plane_threads / TILE_LANES;
    const unsigned plane = thread / plane_threads;
    const bool exists = plane < unsigned(shape.N) * shape.K && unit < tiles * bands;
    const int k = plane % shape.K, n = plane / shape.K, c = k / shape.group_filters();
    const int band = rows_of_band(shape.P);
    const int first_p = unit / tiles * band, end_p = exists ? min(first_p + band, shape.P) : first_p;
    const int tile_q = unit % tiles * TILE_LANES * COLS, first_q = tile_q + tile_lane() * COLS;

    // The filter: in registers, or, if it is large, in shared memory, where all threads read the same tap at once.
    const Scalar* const filter = w + Index(k) * TAPS;
    __shared__ Acc shared_taps[TAPS_SHARED ? TAPS : 1];
    Acc own_taps[TAPS_SHARED ? 1 : TAPS];
    const Acc* const taps = TAPS_SHARED ? shared_taps : own_taps;
    if constexpr (TAPS_SHARED) {
        for (int t = threadIdx.x; t < TAPS; t += THREADS) shared_taps[t] = to_acc(filter[t]);
        __syncthreads();  // all taps are there
    } else {
#pragma unroll
        for (int t = 0; t < TAPS; ++t) own_taps[t] = to_acc(filter[t]);
    }
    const Acc start = b ? to_acc(b[k]) : Acc(0);
    Acc sums[Y_ROWS][COLS];  // of the rows of y that row h of x is part of, the oldest first
#pragma unroll
    for (int i = 0; i < Y_ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLS; ++j) sums[i][j] = start;

    // The lanes of a warp go through as many rows, whether their band has them or not.
    const Scalar* const x_plane = x + shape.x_at(n, c, 0, 0);
    const int first_h = shape.input_row(first_p, 0), tile_w = shape.input_col(tile_q, 0) - LEAD;
    const int end_h = first_h + (band - 1) * STRIDE_H + FILTER_R;
    const int end_of_band = first_h + (end_p - first_p - 1) * STRIDE_H + FILTER_R;
    const int end_x = exists ? max(0, min(end_of_band, shape.H)) : 0;  // of the rows that are there
    Ring ring(shared + threadIdx.x / TILE_LANES * Ring::BYTES, x_plane + Index(first_h) * shape.W, tile_w, shape.W);
    const auto ask = [&](int h, int stage) {
        ring.ask(stage, unsigned(h) < unsigned(end_x), h < end_h);
        __pipeline_commit();
    };
    for (int stage = 0; stage < STAGES - 1; ++stage) ask(first_h + stage, stage);
    bool is_nan = false;
    int stage = 0;  // where row h is
    for (int h = first_h; h < end_h;)
#pragma unroll
        for (int f = 0; f < STRIDE_H; ++f, ++h) {  // unrolled: which taps row h meets is known
            if (STRIDE_H > 1 && h >= end_h) break;
            __pipeline_wait_prior(STAGES - 2);
            __syncwarp();  // row h is there, and nobody reads the row before it any more: its place is free
            ask(h + STAGES - 1, stage ? stage - 1 : STAGES - 1);

            Acc x_row[WINDOW];
            read_row(x_row, ring.row(stage), tile_lane() * COLS * STRIDE_W);
            stage = next_stage(stage);
            // Read again for each row: kept from row to row, taps in shared memory would fill the registers.
            if constexpr (TAPS_SHARED) asm volatile("" ::: "memory");
#pragma unroll
            for (int i = 0; i < Y_ROWS; ++i)
#pragma unroll
                for (int j = 0; j < COLS; ++j) {
                    // With the first row of a stride a row of y begins, and each of the others is older now.
                    Acc sum = f > 0 ? sums[i][j] : i + 1 < Y_ROWS ? sums[i + 1][j] : start;
                    const int r = f + (Y_ROWS - 1 - i) * STRIDE_H;
#pragma unroll
                    for (int s = 0; s < FILTER_S; ++s)
                        if (r < FILTER_R) sum += taps[r * FILTER_S + s] * x_row[LEAD + j * STRIDE_W + s];
                    sums[i][j] = sum;
                }

            if (f != (FILTER_R - 1) % STRIDE_H) continue;
            const int p = (h - first_h - (FILTER_R - 1)) / STRIDE_H + first_p;  // whose sum is complete now
            if (h - first_h < FILTER_R - 1 || p >= end_p) continue;
            Acc y_row[COLS];
            unsigned bits = 0;
#pragma unroll
            for (int j = 0; j < COLS; ++j) {
                y_row[j] = activate(sums[0][j]);
                is_nan |= isnan(y_row[j]);
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
    __pipeline_wait_prior(0);  // nothing is under way to shared memory that may soon be another block's
    if (is_nan)
        form_y_anew(y, COLS % 8 == 0 ? mask : nullptr, x, w, b, shape, plane, first_p, end_p, first_q,
                    min(first_q + COLS, shape.Q));
}
