// dx[n,c,h,w_] = sum_{r,s} g[n, c, h + pad - r, w_ + pad - s] * w[c,r,s]
// dw[c,r,s]    = sum_{n,h,w_} g[n, c, h + pad - r, w_ + pad - s] * x[n,c,h,w_]
// db[c]        = sum_{n,h,w_} g[n,c,h,w_]      with g = dy * phi'(s); one filter a channel, stride 1, 'same' padding
//
// All gradients in one pass over memory, as in the rung below: a thread owns a strip of COLS columns of x and dx, marches
// down a band of ROWS rows and keeps R rows of g in a ring of registers, which dx and dw both multiply. But the rows of
// dy, of what the forward pass saved and of x are brought to shared memory STAGES - 1 rows ahead (row_ring.cuh), and g is
// formed once for all strips that see it. What is not wanted (NEED_...) is not compiled. The order of all sums is fixed.
//
// What limits it: no GPU has run it. Expected is memory's bandwidth at 3x3, and the multiply-adds from 5x5 on.
#include "block_sum.cuh"
#include "grad_ring.cuh"
#include "kernel_grad_total.cuh"

static_assert(FILTER_R % 2 == 1 && FILTER_S % 2 == 1, "'same' padding lies evenly round an odd filter");
static_assert(COLS % X_VECTOR == 0, "a strip is stored as whole vectors");

constexpr int TAPS = FILTER_R * FILTER_S, TOP = FILTER_R / 2, LEFT = FILTER_S / 2;
// Columns of g in a strip's windows, from a column on where a vector may begin, LEAD before the first tap's; and a tile.
constexpr int WINDOW = LEAD + COLS + FILTER_S - 1, TILE_WIDTH = (TILE_LANES - 1) * COLS + round_up(WINDOW, COLS);
using GRing = GradRing<TILE_WIDTH, true>;
using XRing = std::conditional_t<NEED_DW, RowRing<Scalar, TILE_LANES * COLS, X_VECTOR>, NoRing>;
constexpr int TILE_BYTES = GRing::BYTES + XRing::BYTES;

// partial[block][tap]: block `block` of the `blocks` that share a channel's tiles; the biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
         const Scalar* __restrict__ w, Scalar* __restrict__ dx, Acc* __restrict__ partial, Conv2dShape shape,
         int blocks) {
    // Where am I: a strip of a tile of a band of channel c of image n, strips consecutive in threadIdx.x. Threads beyond
    // the last tile have no row.
    const int c = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const unsigned tiles = (shape.W + TILE_LANES * COLS - 1) / (TILE_LANES * COLS), bands = (shape.H + ROWS - 1) / ROWS;
    const unsigned unit = (block * THREADS + threadIdx.x) / TILE_LANES;
    const int n = unit / tiles / bands, tile_w = unit % tiles * TILE_LANES * COLS;
    const int first_w = tile_w + tile_lane() * COLS;
    const int band = rows_of_band(shape.H);
    const int first_h = unit / tiles % bands * band, end_h = n < shape.N ? min(first_h + band, shape.H) : first_h;
    const Index plane = Index(n) * shape.C + c;
    const Scalar* const x_plane = x + plane * shape.H * shape.W;

    Acc taps[TAPS];
    Acc sums[TAPS + 1] = {};  // of dw; the last is db's
#pragma unroll
    for (int t = 0; t < TAPS; ++t) taps[t] = NEED_DX ? to_acc(w[Index(c) * TAPS + t]) : Acc(0);

    // Row i of g, counted from first_h - TOP, and row h = first_h + i - 2 TOP of x are used together, and share a stage.
    // The lanes of a warp go through as many rows, whether their band has them or not.
    const int rows = end_h - first_h + FILTER_R - 1, all_rows = band + FILTER_R - 1;
    unsigned char* const mine = shared + threadIdx.x / TILE_LANES * TILE_BYTES;
    const int end_g = first_h < end_h ? min(end_h + TOP, shape.P) : 0;  // of the rows of g that are there
    GRing g_ring(mine, dy, saved, shape, plane, first_h - TOP, tile_w - LEFT - LEAD);
    XRing x_ring(mine + GRing::BYTES, x_plane + Index(first_h) * shape.W, tile_w, shape.W);
    const auto ask = [&](int i, int stage) {
        g_ring.ask(stage, unsigned(first_h - TOP + i) < unsigned(end_g), i < all_rows);
        if (i >= 2 * TOP)
            x_ring.ask(stage, first_h < end_h && i < rows, false);
        else
            x_ring.ask_nothing();
        __pipeline_commit();
    };
    for (int i = 0; i < STAGES - 1; ++i) ask(i, i);

    Acc window[FILTER_R][WINDOW] = {};  // rows of g: a ring
    bool is_nan = false;
    int stage = 0;  // where row i is
    for (int turn_i = 0; turn_i < all_rows; turn_i += FILTER_R)
#pragma unroll
        for (int turn = 0; turn < FILTER_R; ++turn) {  // unrolled: the ring's slots are then known registers
            const int i = turn_i + turn, h = first_h + i - 2 * TOP;
            if (i >= all_rows) continue;  // and no break, for whose sake all sums would be kept twice
            __pipeline_wait_prior(STAGES - 2);
            __syncwarp();  // the rows are there, and nobody reads those before them any more: their place is free
            ask(i + STAGES - 1, stage ? stage - 1 : STAGES - 1);

            const int here = stage;
            g_ring.form_row(here);
            g_ring.read(window[turn], here, tile_lane() * COLS);
            stage = next_stage(stage);
            if (i < FILTER_R - 1 || i >= rows) continue;  // the window is not whole yet, or there is no row any more
            Acc x_row[COLS] = {};
            if (NEED_DW) read_row(x_row, x_ring.row(here), tile_lane() * COLS);

            Acc dx_row[COLS] = {};
#pragma unroll
            for (int r = 0; r < FILTER_R; ++r)  // row h - TOP + r of g
#pragma unroll
                for (int s = 0; s < FILTER_S; ++s) {
                    const int tap = (FILTER_R - 1 - r) * FILTER_S + FILTER_S - 1 - s;  // turned
#pragma unroll
                    for (int j = 0; j < COLS; ++j) {
                        const Acc g = window[(turn + 1 + r) % FILTER_R][LEAD + j + s];
                        if (NEED_DX) dx_row[j] += taps[tap] * g;
                        if (NEED_DW) sums[tap] += x_row[j] * g;
                    }
                }
#pragma unroll
            for (int j = 0; j < COLS; ++j) {
                if (NEED_DB) sums[TAPS] += window[(turn + 1 + TOP) % FILTER_R][LEAD + LEFT + j];
                is_nan |= isnan(dx_row[j]);
            }
#pragma unroll
            for (int j = 0; j < COLS; j += X_VECTOR)
                if (NEED_DX && first_w + j < shape.W)
                    store_vector<X_VECTOR>(dx + (plane * shape.H + h) * shape.W + first_w + j, dx_row + j);
        }
    __pipeline_wait_prior(0);  // nothing is under way to shared memory that may soon be another block's

    // The padding is no pixel, but here it was multiplied as zeros; where a factor was infinite or NaN, that gave NaN.
    // Then the strip's results are formed anew, of pixels alone.
    const bool meets_padding =
        first_h < TOP || end_h + TOP > shape.H || first_w < LEFT || first_w + COLS + LEFT > shape.W;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) is_nan |= isnan(sums[t]);
    if (meets_padding && is_nan) {
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
        Acc* const slice = partial + block * (shape.w_size() + shape.K);
        for (int t = threadIdx.x; t <= TAPS; t += THREADS)
            slice[t < TAPS ? Index(c) * TAPS + t : shape.w_size() + c] = add_up(warp_sums, t);
    }
}
