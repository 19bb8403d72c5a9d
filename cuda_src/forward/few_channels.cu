// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//                of a group of few filters and many channels
//              if wanted, the sum times scale[k], and plus residual[n,k,p,q] (epilogue.cuh)
//
// One block computes all filters of a group at a tile of outputs, a thread those of TILE_ROWS x TILE_COLS pixels. It
// brings x to shared memory, for CHUNK channels at a time; a number of it in a register then serves every tap and filter
// that it meets, and a tap, which all threads read at once, every pixel of a thread. A matrix product would have to fill
// a tile of 64 rows with 1 to 4 filters, and the rung below reads all channels anew for each of them.
//
// What limits it: no GPU has run it. Expected are the multiply-adds, and that a block waits for a chunk before it works
// on it; others are there meanwhile.
#include "few_channels.cuh"
#include "forward_of_pixels.cuh"
#include "pack_mask.cuh"

// Outputs and the pixels that they read, along one axis.
template <int TAPS, int STRIDE, int DILATION, int COUNT>
struct Axis {
    static constexpr int OWN = COUNT, STEP = COUNT * STRIDE;
    static constexpr int SEEN = (COUNT - 1) * STRIDE + (TAPS - 1) * DILATION + 1;
    static __device__ constexpr int tap(int i, int u) {
        const int steps = u - i * STRIDE;
        return steps >= 0 && steps % DILATION == 0 && steps / DILATION < TAPS ? steps / DILATION : -1;
    }
};
using Rows = Axis<FILTER_R, STRIDE_H, DILATION_H, TILE_ROWS>;
using Cols = Axis<FILTER_S, STRIDE_W, DILATION_W, TILE_COLS>;
using Tile = PlaneTile<Rows, Cols, X_VECTOR>;
static_assert(Cols::OWN % Y_VECTOR == 0, "a row of the thread's pixels is stored as whole vectors");

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ scale,
        const Scalar* __restrict__ b, const Scalar* __restrict__ residual, Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: a tile of the planes of group (n, group); pixels side by side are consecutive in threadIdx.x.
    constexpr int TILE_P = THREADS / LANES * Rows::OWN, TILE_Q = LANES * Cols::OWN;
    const int across = (shape.Q + TILE_Q - 1) / TILE_Q, down = (shape.P + TILE_P - 1) / TILE_P;
    const int tile_p = blockIdx.x / across % down * TILE_P, tile_q = blockIdx.x % across * TILE_Q;
    const int plane = blockIdx.x / across / down, n = plane / shape.groups, group = plane % shape.groups;
    const int first_p = tile_p + threadIdx.x / LANES * Rows::OWN, first_q = tile_q + threadIdx.x % LANES * Cols::OWN;

    // The pixels that the tile reads, from a column on where a vector may begin.
    const int first_h = shape.input_row(tile_p, 0), first_w = shape.input_col(tile_q, 0) - LEAD;
    const Index x_plane = Index(shape.H) * shape.W;
    __shared__ Tile x_tiles[CHUNK];
    __shared__ PlaneTaps w_tiles[CHUNK];

    FewChannels<Rows, Cols> sums;
    for (int first_c = 0; first_c < shape.group_channels(); first_c += CHUNK) {
        const int chunk = min(CHUNK, shape.group_channels() - first_c);
        const Scalar* const planes = x + shape.x_at(n, group * shape.group_channels() + first_c, 0, 0);
        // Neighbouring threads load neighbouring columns; a thread the same ones of all planes.
        for (int i = threadIdx.x; i < Tile::ROWS * Tile::PIECES; i += THREADS) {
            const int col = i % Tile::PIECES * X_VECTOR, row = i / Tile::PIECES, h = first_h + row;
#pragma unroll 1
            for (int first = 0; first < chunk; first += AT_ONCE) {
                Columns<X_VECTOR, X_VECTOR> columns[AT_ONCE];
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j) {
                    const int c = min(first + j, chunk - 1);  // beyond the last one, nobody looks
                    columns[j].ask(planes + c * x_plane + Index(h) * shape.W, shape.row_inside(h), first_w + col,
                                   shape.W);
                }
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j) {
                    Acc values[X_VECTOR];
                    columns[j].take(values);
                    x_tiles[first + j].put(row, col, values);
                }
            }
        }
#pragma unroll 1
        for (int i = threadIdx.x; i < FEW * chunk * FILTER_R * FILTER_S; i += THREADS) {
            const int s = i % FILTER_S, r = i / FILTER_S % FILTER_R, c = i / FILTER_S / FILTER_R % chunk;
            const int k = i / FILTER_S / FILTER_R / chunk;
            w_tiles[c].at(r, s, k) = to_acc(w[shape.w_at(group * FEW + k, first_c + c, r, s)]);
        }
        __syncthreads();  // the tile is complete
        for (int c = 0; c < chunk; ++c) sums.add(x_tiles[c], w_tiles[c]);
        __syncthreads();  // nobody reads the tile any more
    }

    const Epilogue epilogue(b, scale, residual);
    bool is_nan = false;
    const Index first_k = Index(n) * shape.K + group * FEW;  // among all planes of y
#pragma unroll
    for (int i = 0; i < Rows::OWN; ++i) {
        if (first_p + i >= shape.P) continue;
#pragma unroll
        for (int k = 0; k < FEW; ++k) {
            const Index row = (first_k + k) * shape.P + first_p + i;
            Acc y_row[Cols::OWN];
#pragma unroll
            for (int j = 0; j < Cols::OWN; ++j) {
                const bool is_output = first_q + j < shape.Q;
                const Acc shortcut = RESIDUAL && is_output ? to_acc(residual[row * shape.Q + first_q + j]) : Acc(0);
                y_row[j] = activate(epilogue.pre_activation(sums.sum(i, k, j), group * FEW + k, shortcut));
                is_nan |= isnan(y_row[j]);
            }
#pragma unroll
            for (int j = 0; j < Cols::OWN; j += Y_VECTOR)
                if (first_q + j < shape.Q) store_vector<Y_VECTOR>(y + row * shape.Q + first_q + j, y_row + j);
        }
    }
    if (is_nan)
        for (int k = 0; k < FEW; ++k)
            form_y_anew(y, nullptr, x, w, epilogue, shape, first_k + k, first_p, min(first_p + Rows::OWN, shape.P),
                        first_q, min(first_q + Cols::OWN, shape.Q));
}
