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
__forceinline__ void add_strip(Lane (&sums)[TAPS + 1], const Plane& x, const GradPlane& g_plane,
                               const Strip& strip, int top, int left) {
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
        const Plane x_plane(x, strip.plane * shape.C + x_c, shape.H, shape.W);
        const GradPlane g_plane(dy, saved, strip.plane * shape.K + k, shape);
        add_strip(sums, x_plane, g_plane, strip, shape.pad_top - first_r, shape.pad_left - first_s);
        const int first_h = strip.first_row - shape.pad_top + first_r;
        const int end_h = first_h + strip.end_row - strip.first_row;
        const int first_w = strip.first_col - shape.pad_left + first_s, end_col = strip.first_col + COLS;
        if (first_h < 0 || end_h + TAP_ROWS - 1 > shape.H || first_w < 0 || end_col > shape.Q ||
            first_w + COLS + TAP_COLS - 1 > shape.W)
            form_anew<TAPS>(sums, [&](int t) INLINED {
                return dw_of_pixels(dy, saved, x, shape, strip.plane, k, c, first_r + t / TAP_COLS,
                                    first_s + t % TAP_COLS, strip.first_row, strip.end_row, strip.first_col, end_col);
            });
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
