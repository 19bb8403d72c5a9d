// The sum of correlate.cuh for filters too large for registers, and for any number of sources.
//
// A thread keeps TILE_ROWS output rows of its strip and adds one filter row and FILTER_S filter columns at a time, of
// one source after the other. The sums are long: each is a LongSum.
#pragma once
#include "cpu/strip.cuh"
#include "long_sum.cuh"

// LongSum for COLS sums at once.
struct LongCols {
    Cols run, total, lost;

    __forceinline__ LongCols() : run(Cols::fill(0)), total(run), lost(run) {}
    __forceinline__ void end_run() {
        unroll<COLS / LANES>([&](auto i) INLINED {
            const Lane corrected = run.lanes[i] - lost.lanes[i];
            const Lane sum = total.lanes[i] + corrected;
            const Lane away = (sum - total.lanes[i]) - corrected;
            lost.lanes[i] = away - away == Lane{} ? away : Lane{};  // infinite or NaN: such a total has lost nothing
            total.lanes[i] = sum;
            run.lanes[i] = Lane{};
        });
    }
};

// source(a) is the a-th plane, filter(a) its R x S taps. Returns whether there may be a NaN among the sums.
template <bool TURNED, class Sources, class Filters, class Finish>
__forceinline__ bool register_tile(int sources, Sources&& source, Filters&& filter, int R, int S,
                                   const Strip& strip, int top, int left, Acc start, Finish&& finish) {
    using Row = Window<FILTER_S, LEAD>;
    LongCols sums[TILE_ROWS];
    unroll<TILE_ROWS>([&](auto p) INLINED { sums[p].total = Cols::fill(start); });
    int terms = 0;
    for (int a = 0; a < sources; ++a) {
        const auto plane = source(a);
        const Scalar* taps = filter(a);
        for (int first_s = 0; first_s < S; first_s += FILTER_S) {
            const int first = strip.first_col - left + first_s;
            const bool inside = Row::inside(plane, first);
            for (int i = 0; i < TILE_ROWS + R - 1; ++i) {
                const auto x = Row::read(plane, strip.first_row - top + i, first, inside);
                unroll<TILE_ROWS>([&](auto p) INLINED {
                    const int r = i - p;
                    if (r < 0 || r >= R) return;
                    unroll<FILTER_S>([&](auto s) INLINED {
                        const int tap = r * S + first_s + s;
                        if (first_s + s < S)
                            sums[p].run.add_product(to_acc(taps[TURNED ? R * S - 1 - tap : tap]), shifted(x, s));
                    });
                });
                terms += FILTER_S;
                if (terms < LongSum::RUN) continue;
                unroll<TILE_ROWS>([&](auto p) INLINED { sums[p].end_run(); });
                terms = 0;
            }
        }
    }
    Lane all = {};
    unroll<TILE_ROWS>([&](auto p) INLINED {
        sums[p].end_run();
        if (strip.first_row + p < strip.end_row) finish(strip.first_row + p, sums[p].total);
        unroll<COLS / LANES>([&](auto i) INLINED { all += sums[p].total.lanes[i]; });
    });
    return isnan(total(all));
}
