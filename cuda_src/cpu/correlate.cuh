// The sum that forward and input_grad share:
//     out[i,j] = start + sum_{a,r,s} source_a[i - top + r, j - left + s] * tap_a(r,s)
//
// For forward the sources are the input's channels. For input_grad they are those of g, and the filter is turned by
// 180 degrees: unit stride makes the gradient the same sum. Two ways to form it:
//
// march: one source, a filter known at compile time. A thread reads each row of its strip once and adds it to the
// FILTER_R output rows that need it. These unfinished rows are a ring of registers which moves on for free: the
// first multiply-add of a row reads slot r + 1 and writes slot r.
//
// register_tile: any filter, any number of sources; see register_tile.cuh.
#pragma once
#include "cpu/register_tile.cuh"
#include "cpu/strip.cuh"

constexpr int TAPS = FILTER_R * FILTER_S;

// Where am I: strips are consecutive in threadIdx.x. With taps in shared memory, a block stays within one plane.
__forceinline__ Strip strip_of_thread(Index planes, int rows, int cols) {
    constexpr int BAND = TILE_ROWS > 0 ? TILE_ROWS : ROWS;
    if constexpr (!TAPS_SHARED) return Strip(Index(blockIdx.x) * THREADS + threadIdx.x, planes, rows, cols, BAND);
    const int units = ((cols + COLS - 1) / COLS) * ((rows + BAND - 1) / BAND);
    const int blocks = (units + THREADS - 1) / THREADS;
    Strip strip(blockIdx.x % blocks * THREADS + threadIdx.x, 1, rows, cols, BAND);
    strip.plane = blockIdx.x / blocks;  // also of threads beyond the last strip, which load taps as well
    return strip;
}

template <class Source, class Taps, class Finish>
__forceinline__ void march(const Source& source, const Taps& taps, const Strip& strip, int top, int left,
                           Acc start, Finish&& finish) {
    using Row = Window<FILTER_S, LEAD>;
    const int first = strip.first_col - left;
    const bool inside = Row::inside(source, first);
    Cols acc[FILTER_R];
    unroll<FILTER_R>([&](auto r) INLINED { acc[r] = Cols::fill(start); });

    for (int row = strip.first_row; row < strip.end_row + FILTER_R - 1; ++row) {
        const auto x = Row::read(source, row - top, first, inside);
        unroll<FILTER_R>([&](auto r) INLINED {  // acc[r] is output row `row` - (FILTER_R - 1) + r
            Cols sum = Cols::fill(start);
            if constexpr (r < FILTER_R - 1) sum = acc[r + 1];
            unroll<FILTER_S>([&](auto s) INLINED {
                sum.add_product(taps(Constant<FILTER_R - 1 - r>{}, s), shifted(x, s));
            });
            acc[r] = sum;
        });
        const int done = row - (FILTER_R - 1);
        if (done >= strip.first_row) finish(done, acc[0]);
    }
}

// Forms the sum in the way that the constants ask for; finish(row, columns) is given each finished row. Returns whether
// there may be NaN for no other reason than that the padding, which is no pixel, was multiplied as zeros.
template <bool TURNED, class Sources, class Filters, class Finish>
__forceinline__ bool correlate(const Strip& strip, int top, int left, int sources, Sources&& source,
                               Filters&& filter, const Conv2dShape& shape, Acc start, Finish&& finish) {
    const auto tap_of = [&](int t) INLINED { return to_acc(filter(0)[TURNED ? TAPS - 1 - t : t]); };
    if constexpr (FILTER_R == 0) {
        return strip.exists() &&
               register_tile<TURNED>(sources, source, filter, shape.R, shape.S, strip, top, left, start, finish);
    } else if constexpr (TAPS_SHARED) {
        __shared__ Acc taps[TAPS];
        for (int t = threadIdx.x; t < TAPS; t += THREADS) taps[t] = tap_of(t);
        __syncthreads();  // all taps are there
        const Acc* shared_taps = settled(taps);
        const auto tap = [&](int r, int s) INLINED { return shared_taps[r * FILTER_S + s]; };
        if (strip.exists()) march(source(0), tap, strip, top, left, start, finish);
    } else if (strip.exists()) {
        Acc taps[TAPS];
        unroll<TAPS>([&](auto t) INLINED { taps[t] = tap_of(t); });
        const auto tap = [&](auto r, auto s) INLINED { return taps[r * FILTER_S + s]; };
        march(source(0), tap, strip, top, left, start, finish);
    }
    return strip.exists() && !all_finite(filter(0), TAPS);
}
