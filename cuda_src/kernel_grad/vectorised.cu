// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p - pad + r, q - pad + s]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                       with g = dy * phi'(s), stride and dilation 1
//
// One CUDA thread takes a strip of COLS columns of g down a band of rows, and adds up TAP_ROWS x TAP_COLS taps of one
// filter (k,c) with a CPU's vectors. It is the CPU's own rung, the march of `coalesced` in Lanes: a sum over columns
// stays one vector to the end. Larger filters are dealt out to several blocks, a few filter rows each, and each (k,c)
// reads its channels anew. The order of all sums is fixed: see cpu/partial_sums.cuh.
#include "cpu/partial_sums.cuh"

constexpr int TAPS = TAP_ROWS * TAP_COLS;
using XRow = Window<TAP_COLS, LEAD>;

// sums[t] += tap t's products over the strip, sums[TAPS] += g.
__forceinline__ void add_strip(Lane (&sums)[TAPS + 1], FinitePlane& x,
                               const GradPlane& g_plane, const Strip& strip, int top, int left) {
    const int first = strip.first_col - left;
    const bool inside = XRow::inside(x, first);
    using Row = decltype(XRow::read(x, 0, first, inside));
    Row ring[TAP_ROWS];
    unroll<TAP_ROWS - 1>([&](auto r) INLINED { ring[r] = XRow::read(x, strip.first_row - top + r, first, inside); });

    for (int first_p = strip.first_row; first_p < strip.end_row; first_p += TAP_ROWS)
#pragma unroll
        for (int phase = 0; phase < TAP_ROWS; ++phase) {  // unrolled by nvcc: the ring's slots are then constants
            const int p = first_p + phase;
            if (p >= strip.end_row) break;
            // Slot phase + r, wrapped, is the row of x that filter row r meets.
            ring[wrapped<TAP_ROWS>(phase + TAP_ROWS - 1)] = XRow::read(x, p - top + TAP_ROWS - 1, first, inside);
            const Cols g = own_columns(g_plane, p, strip.first_col);
            unroll<TAP_ROWS>([&](auto r) INLINED {
                const Row& row = ring[wrapped<TAP_ROWS>(phase + r)];
                unroll<TAP_COLS>([&](auto s) INLINED { add_products(sums[r * TAP_COLS + s], g, shifted(row, s)); });
            });
            unroll<COLS / LANES>([&](auto i) INLINED { sums[TAPS] += g.lanes[i]; });
        }
}

// Adds the products that add_strip left out. Where the strip reaches beyond the row's end, g is 0, and 0 times an
// infinite x would be NaN: there, x is taken without its NaN and infinities, and the true products are added here.
__forceinline__ void add_left_out(Lane (&sums)[TAPS + 1], const FinitePlane& x,
                                  const GradPlane& g_plane, const Strip& strip, int top,
                                  int left) {
    for (int p = strip.first_row; p < strip.end_row; ++p)
        for (int q = strip.first_col; q < g_plane.cols; ++q)
            unroll<TAPS>([&](auto t) INLINED {
                const int h = p - top + t / TAP_COLS, w_ = q - left + t % TAP_COLS;
                if (h < 0 || h >= x.rows || w_ < 0 || w_ >= x.cols) return;
                const Acc value = x.at(h, w_);
                if (value - value != 0) sums[t] += lane_with_total(g_plane.at(p, q) * value);
            });
}

// partial[block][tap]: block `block` of the `blocks` that share the strips of all images; the biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS, 1)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape, int blocks) {
    // Where am I: a strip, consecutive in threadIdx.x, of the filter (k,c) and its taps from (first_r, first_s) on.
    const int row_parts = (shape.R + TAP_ROWS - 1) / TAP_ROWS, col_parts = (shape.S + TAP_COLS - 1) / TAP_COLS;
    const int block = blockIdx.x / (row_parts * col_parts) % blocks;
    const int filter = blockIdx.x / (row_parts * col_parts) / blocks;
    const int first_r = blockIdx.x % row_parts * TAP_ROWS;
    const int first_s = blockIdx.x / row_parts % col_parts * TAP_COLS;
    const int k = filter / shape.group_channels();
    const int c = filter % shape.group_channels();
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;
    const Strip strip(Index(block) * THREADS + threadIdx.x, shape.N, shape.P, shape.Q, ROWS);

    Lane sums[TAPS + 1];
    unroll<TAPS + 1>([&](auto t) INLINED { sums[t] = Lane{}; });
    if (strip.exists()) {
        const bool partial_strip = strip.first_col + COLS > shape.Q;
        FinitePlane x_plane(x, strip.plane * shape.C + x_c, shape.H, shape.W, partial_strip);
        const GradPlane g_plane(dy, saved, strip.plane * shape.K + k, shape);
        const int top = shape.pad_top - first_r, left = shape.pad_left - first_s;
        add_strip(sums, x_plane, g_plane, strip, top, left);
        if (x_plane.left_out) add_left_out(sums, x_plane, g_plane, strip, top, left);
    }

    Acc* mine = partial + block * (shape.w_size() + shape.K);
    add_up_block(sums, [&](int t, Acc sum) INLINED {
        const int r = first_r + t / TAP_COLS, s = first_s + t % TAP_COLS;
        if (t < TAPS) {
            if (r < shape.R && s < shape.S) mine[shape.w_at(k, c, r, s)] = sum;
        } else if (first_r == 0 && first_s == 0 && c == 0) {
            mine[shape.w_size() + k] = sum;
        }
    });
}
