// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s), of a group of few channels and many filters
//
// One block computes all channels of a group at a tile of pixels, a thread those of TILE_ROWS x TILE_COLS strides: so it
// has all of their phases, and no sum is over gaps. g is formed once for all channels and taps, in shared memory, for
// CHUNK filters at a time; a number of it in a register then serves every tap and channel that it meets, and a tap,
// which all threads read at once, every pixel of a thread. A matrix product would have to fill a tile of 64 rows with 1
// to 4 channels, and the rung below reads all filters' outputs anew for each of them.
//
// What limits it: no GPU has run it. Expected is memory's bandwidth, which brings dy and what was saved, up to 3x3, the
// multiply-adds for larger filters, and that a block waits for a chunk before it works on it; others are there meanwhile.
#include "activation.cuh"
#include "few_channels.cuh"
#include "input_grad_of_pixels.cuh"

// Results and the outputs that read them, along one axis. PHASE: the padding modulo the stride.
template <int TAPS, int STRIDE, int DILATION, int PHASE, int COUNT>
struct Axis {
    static constexpr int REACH = (TAPS - 1) * DILATION - PHASE;
    static constexpr int BACK = REACH > 0 ? REACH / STRIDE : 0;  // outputs before the strides' own
    static constexpr int OWN = COUNT * STRIDE, STEP = COUNT;
    static constexpr int SEEN = BACK + COUNT + (STRIDE - 1 + PHASE) / STRIDE;
    static __device__ constexpr int tap(int i, int u) {
        const int steps = i + PHASE - (u - BACK) * STRIDE;
        return steps >= 0 && steps % DILATION == 0 && steps / DILATION < TAPS ? steps / DILATION : -1;
    }
};
using Rows = Axis<FILTER_R, STRIDE_H, DILATION_H, PHASE_H, TILE_ROWS>;
using Cols = Axis<FILTER_S, STRIDE_W, DILATION_W, PHASE_W, TILE_COLS>;
using Tile = PlaneTile<Rows, Cols, Y_VECTOR>;
static_assert(Cols::OWN % X_VECTOR == 0, "a row of the thread's pixels is stored as whole vectors");

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ scale, const Scalar* __restrict__ b, Scalar* __restrict__ dx, Conv2dShape shape) {
    // Where am I: a tile of the planes of group (n, group); pixels side by side are consecutive in threadIdx.x.
    constexpr int TILE_H = THREADS / LANES * Rows::OWN, TILE_W = LANES * Cols::OWN;
    const int across = (shape.W + TILE_W - 1) / TILE_W, down = (shape.H + TILE_H - 1) / TILE_H;
    const int tile_h = blockIdx.x / across % down * TILE_H, tile_w = blockIdx.x % across * TILE_W;
    const int plane = blockIdx.x / across / down, n = plane / shape.groups, group = plane % shape.groups;
    const int first_h = tile_h + threadIdx.x / LANES * Rows::OWN, first_w = tile_w + threadIdx.x % LANES * Cols::OWN;

    // The outputs that read the tile, from a column on where a vector may begin.
    const int first_p = (tile_h + shape.pad_top) / STRIDE_H - Rows::BACK;
    const int first_q = (tile_w + shape.pad_left) / STRIDE_W - Cols::BACK - LEAD;
    const Index dy_plane = Index(shape.P) * shape.Q;
    const Index saved_plane = SAVED_MASK ? shape.P * mask_row_bytes(shape) : dy_plane;
    __shared__ Tile g_tiles[CHUNK];
    __shared__ PlaneTaps w_tiles[CHUNK];

    FewChannels<Rows, Cols> sums;
    for (int first = 0; first < shape.group_filters(); first += CHUNK) {
        const int first_k = group * shape.group_filters() + first, chunk = min(CHUNK, shape.group_filters() - first);
        const Index first_plane = Index(n) * shape.K + first_k;
        // Neighbouring threads load neighbouring columns; a thread the same ones of all planes.
        for (int i = threadIdx.x; i < Tile::ROWS * Tile::PIECES; i += THREADS) {
            const int col = i % Tile::PIECES * Y_VECTOR, row = i / Tile::PIECES;
#pragma unroll 1
            for (int first = 0; first < chunk; first += AT_ONCE) {
                GradColumns<Y_VECTOR, Y_VECTOR> columns[AT_ONCE];
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j) {
                    const int k = min(first + j, chunk - 1);  // beyond the last one, nobody looks
                    columns[j].ask(dy + k * dy_plane, saved + k * saved_plane, shape, first_plane, first_p + row,
                                   first_q + col);
                }
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j) {
                    Acc g[Y_VECTOR];
                    columns[j].take(g);
                    g_tiles[first + j].put(row, col, g);
                }
            }
        }
#pragma unroll 1
        for (int i = threadIdx.x; i < chunk * FEW * FILTER_R * FILTER_S; i += THREADS) {
            const int s = i % FILTER_S, r = i / FILTER_S % FILTER_R, c = i / FILTER_S / FILTER_R % FEW;
            const int k = i / FILTER_S / FILTER_R / FEW;
            w_tiles[k].at(r, s, c) = scaled(to_acc(w[shape.w_at(first_k, 0, 0, 0) + i]), scale, first_k + k);
        }
        __syncthreads();  // the tile is complete
        for (int k = 0; k < chunk; ++k) sums.add(g_tiles[k], w_tiles[k]);
        __syncthreads();  // nobody reads the tile any more
    }

    bool is_nan = false;
    const Index first_c = Index(n) * shape.C + group * FEW;  // among all planes of dx
#pragma unroll
    for (int i = 0; i < Rows::OWN; ++i) {
        if (first_h + i >= shape.H) continue;
#pragma unroll
        for (int c = 0; c < FEW; ++c) {
            Acc dx_row[Cols::OWN];
#pragma unroll
            for (int j = 0; j < Cols::OWN; ++j) {
                dx_row[j] = dx_result(sums.sum(i, c, j), b, group * FEW + c);
                is_nan |= isnan(dx_row[j]);
            }
            const Index row = (first_c + c) * shape.H + first_h + i;
#pragma unroll
            for (int j = 0; j < Cols::OWN; j += X_VECTOR)
                if (first_w + j < shape.W) store_vector<X_VECTOR>(dx + row * shape.W + first_w + j, dx_row + j);
        }
    }
    if (is_nan)
        for (int c = 0; c < FEW; ++c)
            form_dx_anew(dx, dy, saved, w, b, shape, first_c + c, first_h, min(first_h + Rows::OWN, shape.H), first_w,
                         min(first_w + Cols::OWN, shape.W), scale);
}
