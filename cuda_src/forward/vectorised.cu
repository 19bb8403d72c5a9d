// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p - pad + r, q - pad + s] * w[k,c,r,s])      stride and dilation 1
//              if wanted, the sum times scale[k], and plus residual[n,k,p,q] (epilogue.cuh)
//
// One CUDA thread computes a strip of COLS columns down a band of rows, with a CPU's vectors. It is the CPU's own rung,
// the march of `coalesced` in Lanes, each as wide as a vector register: a row is loaded once and used for all of its
// taps. With one channel a filter, and filters that are known at compile time, the unfinished rows of y are a ring of
// registers (cpu/correlate.cuh); with more channels or larger filters a tile of y is (cpu/register_tile.cuh). What
// limits it on a CPU: memory's bandwidth with 3 x 3, the arithmetic with larger filters. With many channels each filter
// reads all of them anew.
#include "cpu/correlate.cuh"
#include "forward_of_pixels.cuh"

static_assert(COLS % 8 == 0 && COLS <= 64, "a strip writes whole bytes of the mask, from one word");

// mask[n, k, p, first_q / 8 ...] = bits of y > 0 (or NaN), 0 beyond the row's end
__forceinline__ void write_mask(MaskByte* mask_row, int first_q, int Q, const Cols& y) {
    unsigned long long bits = 0;
    unroll<COLS / LANES>([&](auto i) INLINED {
        bits |= (unsigned long long)open_bits(rounded(y.lanes[i])) << (i * LANES);
    });
    if (Q - first_q < COLS) bits &= (1ull << (Q - first_q)) - 1;
    unroll<COLS / 8>([&](auto i) INLINED {
        if (first_q + 8 * i < Q) mask_row[first_q / 8 + i] = bits >> (8 * i) & 0xff;
    });
}

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ scale,
        const Scalar* __restrict__ b, const Scalar* __restrict__ residual, Scalar* __restrict__ y,
        MaskByte* __restrict__ mask, Conv2dShape shape) {
    // Where am I: see strip_of_thread. Threads beyond the last strip stay, for a barrier.
    const Strip strip = strip_of_thread(Index(shape.N) * shape.K, shape.P, shape.Q);
    const int k = strip.plane % shape.K;
    const Index first_c = strip.plane / shape.K * shape.C + k / shape.group_filters() * shape.group_channels();

    const Epilogue epilogue(b, scale, residual);
    const Acc start = b && !HAS_OPTIONS ? to_acc(b[k]) : Acc(0);
    const auto finish = [&](int p, Cols s) INLINED {
        if constexpr (HAS_OPTIONS) {
            const Plane plane(residual, strip.plane, shape.P, shape.Q);
            const Cols shortcut = RESIDUAL ? own_columns(plane, p, strip.first_col) : Cols::fill(0);
            unroll<COLS / LANES>([&](auto i) INLINED {
                s.lanes[i] = epilogue.pre_activation(s.lanes[i], k, shortcut.lanes[i]);
            });
        }
        unroll<COLS / LANES>([&](auto i) INLINED { s.lanes[i] = activate(s.lanes[i]); });
        const Index row = strip.plane * shape.P + p;
        write(y + row * shape.Q, strip.first_col, shape.Q, s);
        if (mask) write_mask(mask + row * mask_row_bytes(shape), strip.first_col, shape.Q, s);
    };
    const bool form_anew = correlate<false>(
        strip, shape.pad_top, shape.pad_left, shape.group_channels(),
        [&](int c) INLINED { return Plane(x, first_c + c, shape.H, shape.W); },
        [&](int c) INLINED { return w + shape.w_at(k, c, 0, 0); }, shape, start, finish);
    if (form_anew)
        form_y_anew(y, mask, x, w, epilogue, shape, strip.plane, strip.first_row, strip.end_row, strip.first_col,
                    min(strip.first_col + COLS, shape.Q));
}
