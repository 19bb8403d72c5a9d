// y[n,k,p,q] = phi(b[k] + sum_{r,s} x[n, c, p - pad + r, q - pad + s] * w[k,r,s])
//              one channel c a filter, stride and dilation 1
//
// On tensor cores: one warp computes a tile of TILE_COLS columns down a band of ROWS rows, by products of rows of x
// with the filter as a banded matrix. band.cuh says what is multiplied. Rows are brought to shared memory STAGES - 1
// ahead, as in the rung below, and whole rows of 8 or more taps are one instruction of a warp, where that rung takes
// one for each tap.
//
// The band's zeros meet pixels beside an output's window, too. Where one of these is infinite or NaN, what is not
// finite then is formed anew, of the window's pixels alone.
//
// What limits it: no GPU has run it. Expected is the tensor cores' rate in float32, whose three products of 15x15 taps
// take about as long as the multiply-adds alone would on all other units, and of 31x31 taps less; in 16 bits up to
// 15x15 memory's bandwidth.
#include "activation.cuh"
#include "band.cuh"
#include "forward_of_pixels.cuh"
#include "pack_mask.cuh"

using Ring = RowRing<Scalar, WINDOW, X_VECTOR>;

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: my warp's tile of a band of plane (n,k). A block stays within one plane.
    const unsigned tiles = (shape.Q + TILE_COLS - 1) / TILE_COLS, bands = (shape.P + ROWS - 1) / ROWS;
    const unsigned plane_blocks = (tiles * bands + THREADS / 32 - 1) / (THREADS / 32);
    const unsigned plane = blockIdx.x / plane_blocks;
    const unsigned unit = blockIdx.x % plane_blocks * (THREADS / 32) + threadIdx.x / 32;
    const int k = plane % shape.K, n = plane / shape.K, c = k / shape.group_filters();
    const int first_p = unit / tiles * ROWS, end_p = min(first_p + ROWS, shape.P), tile_q = unit % tiles * TILE_COLS;

    const Scalar* const taps = w + Index(k) * FILTER_R * FILTER_S;
    const BandedFilter filter{reinterpret_cast<unsigned*>(shared)};
    filter.fill([&](int r, int s) { return taps[r * FILTER_S + s]; });
    __syncthreads();  // the filter is there
    if (unit >= tiles * bands) return;

    const Scalar* const x_plane = x + shape.x_at(n, c, 0, 0);
    const int first_h = shape.input_row(first_p, 0), end_h = shape.input_row(end_p - 1, FILTER_R - 1) + 1;
    const int tile_w = shape.input_col(tile_q, 0) - LEAD;
    Ring ring(shared + BandedFilter::BYTES + threadIdx.x / 32 * Ring::BYTES, x_plane + Index(first_h) * shape.W, tile_w,
              shape.W);
    const auto ask = [&](int h, int stage) {
        ring.ask(stage, h < end_h && shape.row_inside(h), false);
        __pipeline_commit();
    };
    for (int stage = 0; stage < STAGES - 1; ++stage) ask(first_h + stage, stage);

    const Acc bias = b ? to_acc(b[k]) : Acc(0);
    Sums sums[GROUPS] = {};
    const int groups = (end_p - first_p + OUT_ROWS - 1) / OUT_ROWS;  // of output rows
    bool is_finite = true;
    int h = first_h, stage = 0;  // where row h is
#pragma unroll 1
    for (int newest = 0; newest < groups + GROUPS - 1; ++newest) {
#pragma unroll 1
        for (int f = 0; f < OUT_ROWS; ++f, ++h) {
            __pipeline_wait_prior(STAGES - 2);
            __syncwarp();  // row h is there, and nobody reads the row before it any more: its place is free
            ask(h + STAGES - 1, stage ? stage - 1 : STAGES - 1);
            if (h < end_h && shape.row_inside(h)) add_row(sums, ring.row(stage), filter, f, newest, groups);
            stage = next_stage(stage);
        }

        const int p = first_p + (newest - (GROUPS - 1)) * OUT_ROWS + out_row();  // of the group that is complete
        if (p >= first_p && p < end_p)
#pragma unroll
            for (int i = 0; i < TILES * 2; ++i) {
                const float* const own = &sums[GROUPS - 1][i / 2][i % 2 * 2];
                const Acc pair[] = {activate(bias + own[0] * UNSCALE), activate(bias + own[1] * UNSCALE)};
                is_finite &= isfinite(pair[0]) && isfinite(pair[1]);
                store_pair<Y_VECTOR>(y + (Index(plane) * shape.P + p) * shape.Q,
                                     tile_q + (i * 8 + lane() / 4) * OUT_COLS + out_col(), shape.Q, pair);
            }
        next_group(sums);
    }
    __pipeline_wait_prior(0);  // nothing is under way to shared memory that may soon be another block's
    if (__all_sync(0xffffffffu, is_finite)) return;
    __syncwarp();  // what other lanes have stored is seen
    for (int q = tile_q + lane(); q < min(tile_q + TILE_COLS, shape.Q); q += 32)
        form_y_anew<NOT_FINITE>(y, nullptr, x, w, b, shape, plane, first_p, end_p, q, q + 1);
}
