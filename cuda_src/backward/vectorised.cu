// dx[n,c,h,w_] = sum_{r,s} g[n, c, h + pad - r, w_ + pad - s] * w[c,r,s]
// dw[c,r,s]    = sum_{n,h,w_} g[n, c, h + pad - r, w_ + pad - s] * x[n,c,h,w_]
// db[c]        = sum_{n,h,w_} g[n,c,h,w_]      with g = dy * phi'(s); one filter a channel, stride 1, 'same' padding
//
// All gradients in one pass over memory, with a CPU's vectors. It is the CPU's own rung, the march of `fused` in Lanes:
// dx and dw multiply the same window of g, whose rows are formed once and kept in a ring of registers. What is not
// wanted (NEED_...) is not compiled. The order of all sums is fixed: see cpu/partial_sums.cuh.
#include "cpu/partial_sums.cuh"
#include "input_grad_of_pixels.cuh"

static_assert(FILTER_R % 2 == 1 && FILTER_S % 2 == 1, "'same' padding lies evenly round an odd filter");

constexpr int TAPS = FILTER_R * FILTER_S, TOP = FILTER_R / 2, LEFT = FILTER_S / 2;
using GRow = Window<FILTER_S, LEAD>;

// Independent sums of dx: with fewer than three in all, a thread would wait for each multiply-add.
constexpr int CHAINS = COLS / LANES < 3 ? 3 : 1;

// Marches down one strip: writes dx, and adds to sums[t] tap t's products, to sums[TAPS] the bias's terms.
__forceinline__ void march(Lane (&sums)[TAPS + 1], const Acc (&taps)[TAPS], const Plane& x,
                           const GradPlane& g_plane, Scalar* dx_plane, const Strip& strip) {
    const int first = strip.first_col - LEFT;
    const bool inside = GRow::inside(g_plane, first);
    using Row = decltype(GRow::read(g_plane, 0, first, inside));
    Row ring[FILTER_R];
    unroll<FILTER_R - 1>([&](auto r) INLINED {
        ring[r] = GRow::read(g_plane, strip.first_row - TOP + r, first, inside);
    });

    for (int first_h = strip.first_row; first_h < strip.end_row; first_h += FILTER_R)
#pragma unroll
        for (int phase = 0; phase < FILTER_R; ++phase) {  // unrolled by nvcc: the ring's slots are then constants
            const int h = first_h + phase;
            if (h >= strip.end_row) break;
            const Cols x_row = NEED_DW ? own_columns(x, h, strip.first_col) : Cols::fill(0);
            // Slot phase + i, wrapped, holds row h - TOP + i of g.
            ring[wrapped<FILTER_R>(phase + FILTER_R - 1)] = GRow::read(g_plane, h + TOP, first, inside);
            if constexpr (NEED_DB) {
                const Cols g = shifted(ring[wrapped<FILTER_R>(phase + TOP)], Constant<LEFT>{});
                unroll<COLS / LANES>([&](auto i) INLINED { sums[TAPS] += g.lanes[i]; });
            }
            Cols dx[CHAINS];
            unroll<CHAINS>([&](auto chain) INLINED { dx[chain] = Cols::fill(0); });
            unroll<FILTER_R>([&](auto i) INLINED {
                const Row& row = ring[wrapped<FILTER_R>(phase + i)];
                unroll<FILTER_S>([&](auto j) INLINED {  // g's row and column in the window: the filter, turned
                    constexpr int tap = (FILTER_R - 1 - i) * FILTER_S + FILTER_S - 1 - j;
                    const Cols g = shifted(row, j);
                    if constexpr (NEED_DX) dx[(i * FILTER_S + j) % CHAINS].add_product(taps[tap], g);
                    if constexpr (NEED_DW) add_products(sums[tap], x_row, g);
                });
            });
            if constexpr (NEED_DX) {
                unroll<CHAINS - 1>([&](auto chain) INLINED { dx[0].add(dx[chain + 1]); });
                write(dx_plane + Index(h) * x.cols, strip.first_col, x.cols, dx[0]);
            }
        }
}

// partial[block][tap]: block `block` of the `blocks` that share a channel's strips; the biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
         const Scalar* __restrict__ w, Scalar* __restrict__ dx, Acc* __restrict__ partial, Conv2dShape shape,
         int blocks) {
    // Where am I: a strip of channel c, consecutive in threadIdx.x.
    const int c = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const Strip strip(Index(block) * THREADS + threadIdx.x, shape.N, shape.H, shape.W, ROWS);
    const Index plane = strip.plane * shape.C + c;

    Acc taps[TAPS];
    if constexpr (NEED_DX) unroll<TAPS>([&](auto t) INLINED { taps[t] = to_acc(w[Index(c) * TAPS + t]); });
    Lane sums[TAPS + 1];
    unroll<TAPS + 1>([&](auto t) INLINED { sums[t] = Lane{}; });
    if (strip.exists()) {
        const GradPlane g_plane(dy, saved, plane, shape);
        const Plane x_plane(x, plane, shape.H, shape.W);
        march(sums, taps, x_plane, g_plane, dx + plane * shape.H * shape.W, strip);
        const int end_col = min(strip.first_col + COLS, shape.W);
        if (NEED_DX && !all_finite(w + Index(c) * TAPS, TAPS))
            form_dx_anew(dx, dy, saved, w, nullptr, shape, plane, strip.first_row, strip.end_row, strip.first_col,
                         end_col);
        if (NEED_DW && (strip.first_row < TOP || strip.end_row + TOP > shape.H || strip.first_col < LEFT ||
                        strip.first_col + COLS + LEFT > shape.W))
            form_anew<TAPS>(sums, [&](int t) INLINED {
                const int r = t / FILTER_S, s = t % FILTER_S, down = TOP - r, across = LEFT - s;  // from x to g
                return dw_of_pixels(dy, saved, x, shape, strip.plane, c, 0, r, s, strip.first_row + down,
                                    strip.end_row + down, strip.first_col + across, end_col + across);
            });
    }

    if constexpr (NEED_DW || NEED_DB) {
        Acc* mine = partial + block * (shape.w_size() + shape.K);
        add_up_block(sums, [&](int t, Acc sum) INLINED {
            mine[t < TAPS ? Index(c) * TAPS + t : shape.w_size() + c] = sum;
        });
    }
}
