// dx[n,c,h,w_] = sum_{r,s} g[n, k, h + pad - r, w_ + pad - s] * w[k,c,r,s]     with g = dy * phi'(s)
//                one filter k a channel, stride and dilation 1
//
// The march of forward/banded.cu on tensor cores, with the filter turned: one warp computes a tile of TILE_COLS columns
// down a band of ROWS rows. The rows of dy and of what the forward pass saved are brought STAGES - 1 ahead, and g is
// formed once from them, in shared memory. Where it is dy or 0 it is of 16 bits as dy is; else it is of float32, also
// that of a 16-bit dy, and multiplied in two parts.
//
// What limits it: no GPU has run it. Expected is the tensor cores' rate, as in forward.
#include "activation.cuh"
#include "band.cuh"
#include "grad_ring.cuh"
#include "input_grad_of_pixels.cuh"

using Ring = GradRing<WINDOW, true, std::conditional_t<IS_TF32, Acc, Scalar>>;

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ b, Scalar* __restrict__ dx, Conv2dShape shape) {
    // Where am I: my warp's tile of a band of plane (n,c). A block stays within one plane.
    const unsigned tiles = (shape.W + TILE_COLS - 1) / TILE_COLS, bands = (shape.H + ROWS - 1) / ROWS;
    const unsigned plane_blocks = (tiles * bands + THREADS / 32 - 1) / (THREADS / 32);
    const unsigned plane = blockIdx.x / plane_blocks;
    const unsigned unit = blockIdx.x % plane_blocks * (THREADS / 32) + threadIdx.x / 32;
    const int c = plane % shape.C, n = plane / shape.C, k = c / shape.group_channels();
    const int first_h = unit / tiles * ROWS, end_h = min(first_h + ROWS, shape.H), tile_w = unit % tiles * TILE_COLS;

    const Scalar* const taps = w + shape.w_at(k, c % shape.group_channels(), FILTER_R - 1, FILTER_S - 1);
    const BandedFilter filter{reinterpret_cast<unsigned*>(shared)};
    filter.fill([&](int r, int s) { return taps[-(r * FILTER_S + s)]; });
    __syncthreads();  // the filter is there
    if (unit >= tiles * bands) return;

    // Rows of g: tap (0,0) of the turned filter meets dx[h,w_] in g[h - top, w_ - left].
    const int top = FILTER_R - 1 - shape.pad_top, left = FILTER_S - 1 - shape.pad_left;
    const Index g_plane = Index(n) * shape.K + k;
    const int first_p = first_h - top, end_p = end_h - top + FILTER_R - 1;
    const int end_g = max(0, min(end_p, shape.P));  // of the rows that are there
    Ring ring(shared + BandedFilter::BYTES + threadIdx.x / 32 * Ring::BYTES, dy, saved, shape, g_plane, first_p,
              tile_w - left - LEAD);
    const auto ask = [&](int p, int stage) {
        ring.ask(stage, unsigned(p) < unsigned(end_g), false);
        __pipeline_commit();
    };
    for (int stage = 0; stage < STAGES - 1; ++stage) ask(first_p + stage, stage);

    Sums sums[GROUPS] = {};
    const int groups = (end_h - first_h + OUT_ROWS - 1) / OUT_ROWS;  // of rows of dx
    bool is_finite = true;
    int p = first_p, stage = 0;  // where row p is
#pragma unroll 1
    for (int newest = 0; newest < groups + GROUPS - 1; ++newest) {
#pragma unroll 1
        for (int f = 0; f < OUT_ROWS; ++f, ++p) {
            __pipeline_wait_prior(STAGES - 2);
            __syncwarp();  // row p is there, and nobody reads the row before it any more: its place is free
            ask(p + STAGES - 1, stage ? stage - 1 : STAGES - 1);
            if (p < end_p && 0 <= p && p < shape.P) {
                ring.form_row(stage);
                add_row(sums, ring.formed_row(stage), filter, f, newest, groups);
            }
            stage = next_stage(stage);
        }

        const int h = first_h + (newest - (GROUPS - 1)) * OUT_ROWS + out_row();  // of the group that is complete
        if (h >= first_h && h < end_h)
#pragma unroll
            for (int i = 0; i < TILES * 2; ++i) {
                const float* const own = &sums[GROUPS - 1][i / 2][i % 2 * 2];
                const Acc pair[] = {dx_result(own[0] * UNSCALE, b, c), dx_result(own[1] * UNSCALE, b, c)};
                is_finite &= isfinite(pair[0]) && isfinite(pair[1]);
                store_pair<X_VECTOR>(dx + (Index(plane) * shape.H + h) * shape.W,
                                     tile_w + (i * 8 + lane() / 4) * OUT_COLS + out_col(), shape.W, pair);
            }
        next_group(sums);
    }
    __pipeline_wait_prior(0);  // nothing is under way to shared memory that may soon be another block's
    if (__all_sync(0xffffffffu, is_finite)) return;
    __syncwarp();  // what other lanes have stored is seen
    for (int w_ = tile_w + lane(); w_ < min(tile_w + TILE_COLS, shape.W); w_ += 32)
        form_dx_anew<NOT_FINITE>(dx, dy, saved, w, b, shape, plane, first_h, end_h, w_, w_ + 1);
}
