// dx[n,c,h,w_] = sum_{r,s} g[n, k, (h + pad - r)/stride, (w_ + pad - s)/stride] * w[k,c,r,s]     over whole numbers alone
//                with g = dy * phi'(s), one filter k a channel, stride 1 or 2, dilation 1
//
// The march of forward/pipelined.cu with the filter turned. The rows of dy and of what the forward pass saved are brought
// STAGES - 1 rows ahead, and g is formed once from them, in shared memory, for all strips of a tile that see it. A strip
// is COLS columns of g and as many times the stride of dx: so a thread has all of its phases, and no sum is over gaps.
//
// What limits it: no GPU has run it. Expected is memory's bandwidth up to 5x5, and the multiply-adds from 7x7 on.
#include "activation.cuh"
#include "grad_ring.cuh"
#include "input_grad_of_pixels.cuh"

constexpr int TAPS = FILTER_R * FILTER_S;
// Columns of g that a strip reads, from a column on where a vector may begin, LEAD before the first tap's; and a tile.
// BACK: columns of g before that of the strip's own, which its first taps meet. PHASE: pad_left modulo the stride.
constexpr int BACK = FILTER_S > PHASE ? (FILTER_S - 1 - PHASE) / STRIDE_W : 0;
constexpr int WINDOW = LEAD + BACK + COLS + (STRIDE_W - 1 + PHASE) / STRIDE_W;
constexpr int TILE_WIDTH = (TILE_LANES - 1) * COLS + round_up(WINDOW, COLS);
// A strip's columns of dx, and the rows of dx that a row of g is part of.
constexpr int DX_COLS = COLS * STRIDE_W, DX_ROWS = FILTER_R > STRIDE_H ? FILTER_R : STRIDE_H;
using Ring = GradRing<TILE_WIDTH, true>;
static_assert(COLS % X_VECTOR == 0, "a strip is stored as whole vectors");

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ b, Scalar* __restrict__ dx, Conv2dShape shape) {
    // Where am I: a strip of a tile of a band of plane (n,c); strips are consecutive in threadIdx.x. With taps in shared
    // memory a block stays within one plane. Threads beyond the last tile have no row.
    constexpr int TILE_COLS = TILE_LANES * DX_COLS;
    const unsigned tiles = (shape.W + TILE_COLS - 1) / TILE_COLS, bands = (shape.H + ROWS - 1) / ROWS;
    const unsigned lanes = tiles * bands * TILE_LANES;
    const unsigned plane_threads = TAPS_SHARED ? (lanes + THREADS - 1) / THREADS * THREADS : lanes;
    const unsigned thread = blockIdx.x * THREADS + threadIdx.x, unit = thread % plane_threads / TILE_LANES;
    const unsigned plane = thread / plane_threads;
    const bool exists = plane < unsigned(shape.N) * shape.C && unit < tiles * bands;
    const int c = plane % shape.C, n = plane / shape.C, k = c / shape.group_channels();
    const int band = rows_of_band(shape.H, STRIDE_H);  // a multiple of the stride: all bands see as many rows of g
    const int first_h = unit / tiles * band, end_h = exists ? min(first_h + band, shape.H) : first_h;
    const int tile_w = unit % tiles * TILE_COLS, first_w = tile_w + tile_lane() * DX_COLS;

    // The filter, turned: in registers, or, if it is large, in shared memory, where all threads read the same tap at
    // once.
    const Scalar* const filter = w + (Index(k) * shape.group_channels() + c % shape.group_channels()) * TAPS;
    __shared__ Acc shared_taps[TAPS_SHARED ? TAPS : 1];
    Acc own_taps[TAPS_SHARED ? 1 : TAPS];
    const Acc* const taps = TAPS_SHARED ? shared_taps : own_taps;
    if constexpr (TAPS_SHARED) {
        for (int t = threadIdx.x; t < TAPS; t += THREADS) shared_taps[t] = to_acc(filter[TAPS - 1 - t]);
        __syncthreads();  // all taps are there
    } else {
#pragma unroll
        for (int t = 0; t < TAPS; ++t) own_taps[t] = to_acc(filter[TAPS - 1 - t]);
    }
    Acc sums[DX_ROWS][DX_COLS] = {};  // of the rows of dx that row p of g is part of, the oldest first

    // Rows of g: row p is part of the rows of dx from p * stride - pad_top on. The lanes of a warp go through as many
    // rows, whether their band has them or not.
    const auto last_seen_by = [&](int h) { return (h + shape.pad_top) / STRIDE_H; };
    const auto first_seen_by = [&](int h) {  // rounded down
        return last_seen_by(h + STRIDE_H - DX_ROWS + DX_ROWS * STRIDE_H) - DX_ROWS;
    };
    const Index g_plane = Index(n) * shape.K + k;
    const int first_p = first_seen_by(first_h);
    const int end_p = first_p + last_seen_by(band - 1) + 1 - first_seen_by(0);
    const int end_g = exists ? min(last_seen_by(end_h - 1) + 1, shape.P) : 0;  // of the rows that are there
    Ring ring(shared + threadIdx.x / TILE_LANES * Ring::BYTES, dy, saved, shape, g_plane, first_p,
              (tile_w + shape.pad_left) / STRIDE_W - BACK - LEAD);
    const auto ask = [&](int p, int stage) {
        ring.ask(stage, unsigned(p) < unsigned(end_g), p < end_p);
        __pipeline_commit();
    };
    for (int stage = 0; stage < STAGES - 1; ++stage) ask(first_p + stage, stage);
    bool is_nan = false;
    int stage = 0;  // where row p is
    for (int p = first_p; p < end_p; ++p) {
        __pipeline_wait_prior(STAGES - 2);
        __syncwarp();  // row p is there, and nobody reads the row before it any more: its place is free
        ask(p + STAGES - 1, stage ? stage - 1 : STAGES - 1);

        Acc g_row[WINDOW];
        ring.form_row(stage);
        ring.read(g_row, stage, tile_lane() * COLS);
        stage = next_stage(stage);
        // Read again for each row: kept from row to row, taps in shared memory would fill the registers.
        if constexpr (TAPS_SHARED) asm volatile("" ::: "memory");
#pragma unroll
        for (int i = 0; i < DX_ROWS; ++i)
#pragma unroll
            for (int j = 0; j < DX_COLS; ++j) {
                Acc sum = i + STRIDE_H < DX_ROWS ? sums[i + STRIDE_H][j] : Acc(0);
#pragma unroll
                for (int t = 0; t < FILTER_S; ++t) {  // tap (i, s) of the filter, which is turned
                    const int s = FILTER_S - 1 - t, steps = j + PHASE - s;
                    if (i < FILTER_R && steps % STRIDE_W == 0)
                        sum += taps[(FILTER_R - 1 - i) * FILTER_S + t] * g_row[LEAD + BACK + steps / STRIDE_W];
                }
                sums[i][j] = sum;
            }

#pragma unroll
        for (int i = 0; i < STRIDE_H; ++i) {
            const int h = p * STRIDE_H - shape.pad_top + i;  // whose sum is complete now
            if (h < first_h || h >= end_h) continue;
            Acc dx_row[DX_COLS];
#pragma unroll
            for (int j = 0; j < DX_COLS; ++j) {
                dx_row[j] = dx_result(sums[i][j], b, c);
                is_nan |= isnan(dx_row[j]);
            }
            const Index row = Index(plane) * shape.H + h;
#pragma unroll
            for (int j = 0; j < DX_COLS; j += X_VECTOR)
                if (first_w + j < shape.W) store_vector<X_VECTOR>(dx + row * shape.W + first_w + j, dx_row + j);
        }
    }
    __pipeline_wait_prior(0);  // nothing is under way to shared memory that may soon be another block's
    if (is_nan)
        form_dx_anew(dx, dy, saved, w, b, shape, plane, first_h, end_h, first_w, min(first_w + DX_COLS, shape.W));
}
