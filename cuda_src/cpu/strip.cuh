// A strip: COLS neighbouring columns, the share of one CUDA thread, which marches down ROWS rows of them.
//
// A row is read a Lane at a time, at any address.
#pragma once
#include "cpu/planes.cuh"

static_assert(COLS % LANES == 0, "a strip is made of whole lanes");
static_assert(ROWS >= 1, "a band has a row");

struct Cols {
    Lane lanes[COLS / LANES];

    __forceinline__ static Cols fill(Acc value) {
        Cols made;
        unroll<COLS / LANES>([&](auto i) INLINED { made.lanes[i] = Lane{} + value; });
        return made;
    }
    __forceinline__ void add_product(Acc factor, const Cols& other) {
        unroll<COLS / LANES>([&](auto i) INLINED { lanes[i] += factor * other.lanes[i]; });
    }
    __forceinline__ void add(const Cols& other) {
        unroll<COLS / LANES>([&](auto i) INLINED { lanes[i] += other.lanes[i]; });
    }
};

// sum += a * b, column by column; a sum over columns stays one Lane until total()
__forceinline__ void add_products(Lane& sum, const Cols& a, const Cols& b) {
    unroll<COLS / LANES>([&](auto i) INLINED { sum += a.lanes[i] * b.lanes[i]; });
}

// ------------------------------------------------------------------------------------------------ a row's window
// COLUMNS neighbouring columns, from any of TAPS neighbouring ones on. Each shift is formed once, from registers:
// reading again, off its alignment, what was just stored would stall.
template <int TAPS, int BEFORE, int COLUMNS, int N>
struct Shifts {
    Lane shifted[TAPS][COLUMNS / LANES];
    Shifts() {}
    __forceinline__ explicit Shifts(const Lane (&lanes)[N]) {
        unroll<TAPS>([&](auto s) INLINED {
            unroll<COLUMNS / LANES>([&](auto i) INLINED {
                constexpr int first = i + (BEFORE + s) / LANES, offset = (BEFORE + s) % LANES;
                if constexpr (offset == 0)
                    shifted[s][i] = lanes[first];
                else
                    shifted[s][i] = across<offset>(lanes[first], lanes[first + 1]);
            });
        });
    }
    __forceinline__ Lane lane(int s, int i) const { return shifted[s][i]; }
};

// Columns first to first + COLS + TAPS - 2 of one row, zero outside the image. The first Lane begins BEFORE columns
// earlier, where those of the strip's rows are aligned as the strip is.
template <int TAPS, int BEFORE>
struct Window {
    static constexpr int N = (BEFORE + COLS + TAPS - 1 + LANES - 1) / LANES;

    // Whether all that is loaded lies inside the image's columns: the same for every row of a strip.
    template <class Source>
    __forceinline__ static bool inside(const Source& source, int first) {
        return first - BEFORE >= 0 && first - BEFORE + N * LANES <= source.cols;
    }

    template <class Source>
    __forceinline__ static auto read(Source& source, int row, int first, bool inside) {
        Lane lanes[N];
        unroll<N>([&](auto i) INLINED { lanes[i] = Lane{}; });
        if (0 <= row && row < source.rows) {
            if (inside)
                unroll<N>([&](auto i) INLINED { source.read(lanes[i], row, first - BEFORE + i * LANES); });
            else
                unroll<N>([&](auto i) INLINED { read_at_edge(source, lanes[i], row, first - BEFORE + i * LANES); });
            source.finish(lanes, row, first - BEFORE);
        }
        unroll<N>([&](auto i) INLINED { settle(lanes[i]); });
        return Shifts<TAPS, BEFORE, COLS, N>(lanes);
    }

    template <class Source>
    __forceinline__ static void read_at_edge(Source& source, Lane& lane, int row, int col) {
        if (col >= 0 && col + LANES <= source.cols)
            source.read(lane, row, col);
        else if (col + LANES > 0 && col < source.cols)
            lane = partial_lane(source, row, col);
    }
};

template <class Shifted, class S>
__forceinline__ Cols shifted(const Shifted& window, S s) {
    Cols columns;
    unroll<COLS / LANES>([&](auto i) INLINED { columns.lanes[i] = window.lane(s, i); });
    return columns;
}

// The strip's own columns of a row, zero outside the image.
template <class Source>
__forceinline__ Cols own_columns(Source& source, int row, int first) {
    using Own = Window<1, 0>;
    return shifted(Own::read(source, row, first, Own::inside(source, first)), Constant<0>{});
}

// Slot number of a ring of SLOTS, for 0 <= slot < 2 SLOTS.
template <int SLOTS>
__forceinline__ int wrapped(int slot) {
    return slot < SLOTS ? slot : slot - SLOTS;
}

// ------------------------------------------------------------------------------------------------ what is written
__forceinline__ void write(Scalar* row, int col, int cols, Cols columns) {
    unroll<COLS / LANES>([&](auto i) INLINED { settle(columns.lanes[i]); });
    unroll<COLS / LANES>([&](auto i) INLINED {
        const int first = col + i * LANES;
        if (first + LANES <= cols)
            store(row + first, columns.lanes[i]);
        else if (first < cols)
            store_partial(row + first, columns.lanes[i], cols - first);
    });
}

__forceinline__ bool all_finite(const Scalar* numbers, int count) {
    bool are_finite = true;
    for (int i = 0; i < count; ++i) are_finite &= bool(isfinite(to_acc(numbers[i])));
    return are_finite;
}

// ------------------------------------------------------------------------------------------------ where am I
// Unit number `unit` of all strips of all planes: strips are consecutive, then bands of `band` rows, then planes.
struct Strip {
    Index plane;
    int first_row, end_row, first_col;

    __forceinline__ Strip(Index unit, Index planes, int rows, int cols, int band) {
        const int strips = (cols + COLS - 1) / COLS, bands = (rows + band - 1) / band;
        const Index band_number = unit / strips;
        first_col = int(unit % strips) * COLS;
        plane = band_number / bands;
        first_row = int(band_number % bands) * band;
        end_row = plane < planes ? min(first_row + band, rows) : first_row;  // beyond the last plane: no row
    }
    __forceinline__ bool exists() const { return first_row < end_row; }
};
