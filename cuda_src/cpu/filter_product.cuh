// What the vectorised_gemm of forward and of input_grad share: the loaders of both matrices, and the way of a tile of
// results to memory.
#pragma once
#include "cpu/gather.cuh"
#include "cpu/lane_product.cuh"
#include "packed_filter.cuh"

constexpr int COLUMNS = TILE_N / LANES;  // in Lanes
using Product = LaneProduct<Quad, DEPTH, COLUMNS, 0>;

// Brings a slice of a tile of the packed filter.
struct FilterLoader {
    static constexpr int QUADS = DEPTH * TILE_M / QUAD, OWN = QUADS / THREADS;
    static_assert(QUADS % THREADS == 0, "the threads share a slice of the filter evenly");

    const Quad* from;  // this thread's part of the next slice
    Quad own[OWN];

    __forceinline__ explicit FilterLoader(const Acc* rows) : from(reinterpret_cast<const Quad*>(rows) + threadIdx.x) {}
    __forceinline__ void fetch() {
        for (int i = 0; i < OWN; ++i) own[i] = from[i * THREADS];
        from += QUADS;
    }
    template <class Slice>
    __forceinline__ void put(Slice& slice) const {
        for (int i = 0; i < OWN; ++i) reinterpret_cast<Quad*>(slice)[threadIdx.x + i * THREADS] = own[i];
    }
};

// Brings a slice of the windows of TILE_N pixels. A thread has one Lane of them and several steps.
template <class Source>
struct WindowLoader {
    static constexpr int AT_ONCE = THREADS / COLUMNS, OWN = DEPTH / AT_ONCE;
    static_assert(THREADS % COLUMNS == 0 && DEPTH % AT_ONCE == 0, "a thread has one column and several steps");

    const int first_step = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
    Source source;
    const Offset* offsets;  // this thread's first one in the next slice
    Lane own[OWN];

    __forceinline__ WindowLoader(const Offset* offsets, const Source& source, const PixelGrid& grid, int tile_pixel)
        : source(source), offsets(offsets + first_step) {
        this->source.move_to(Pixels(tile_pixel + column * LANES, grid));
    }
    __forceinline__ void fetch() {
        Offset offset;
        Ints inside;
        for (int i = 0; i < OWN; ++i) {
            if (i == 0 || !ONE_TAP) {
                offset = offsets[i * AT_ONCE];
                inside = source.go_to(offset);
            }
            own[i] = source.read(offset, ONE_TAP ? i * AT_ONCE : 0, inside);
        }
        offsets += DEPTH;
    }
    template <class Slice>
    __forceinline__ void put(Slice& slice) const {
        for (int i = 0; i < OWN; ++i) slice[first_step + i * AT_ONCE][column] = own[i];
    }
};

// Writes the product. position(n, p, q) is where a pixel's result for row 0 lies in out; the rows are row_pitch apart.
// finish(m, sums, read) makes results of sums, where read(array) is what lies there in another one; form_anew(element, m, n, p, q) forms one anew of pixels alone: the padding is
// none, but was multiplied as zeros.
template <class Position, class Finish, class FormAnew>
__forceinline__ void write_product(const Product& product, const Tile& tile, const PixelGrid& grid, Scalar* out,
                                   int rows, Index row_pitch, Position&& position, Finish&& finish,
                                   FormAnew&& form_anew) {
    Lane all = {};
    unroll<REG_N>([&](auto j) INLINED {
        const Pixels pixels(tile.first_pixel + product.col(j) * LANES, grid);
        Index at[LANES];
        for (int i = 0; i < LANES; ++i)
            at[i] = pixels.n[i] < grid.N ? position(pixels.n[i], pixels.p[i], pixels.q[i]) : -1;
        const bool adjacent = at[LANES - 1] - at[0] == LANES - 1;
        unroll<REG_M>([&](auto i) INLINED {
            const int m = tile.first_m + product.row(i);
            if (m >= rows) return;
            Scalar* const row = out + m * row_pitch;
            const auto read = [&](const Scalar* array) INLINED {
                Lane there = {};
                if (adjacent)
                    load(there, array + m * row_pitch + at[0]);
                else
                    for (int e = 0; e < LANES; ++e)
                        if (at[e] >= 0) there[e] = to_acc(array[m * row_pitch + at[e]]);
                return there;
            };
            const Lane results = finish(m, product.sums[i][j], read);
            all += results;
            if (adjacent)
                store(row + at[0], results);
            else
                for (int e = 0; e < LANES; ++e)
                    if (at[e] >= 0) row[at[e]] = from_acc(results[e]);
        });
    });
    if (!isnan(total(all))) return;
    for (int i = 0; i < REG_M * REG_N * LANES; ++i) {
        const int m = tile.first_m + product.row(i / LANES / REG_N);
        const Pixels pixels(tile.first_pixel + product.col(i / LANES % REG_N) * LANES + i % LANES, grid);
        if (m >= rows || pixels.n[0] >= grid.N) continue;
        const int n = pixels.n[0], p = pixels.p[0], q = pixels.q[0];
        Scalar& element = out[position(n, p, q) + m * row_pitch];
        if (isnan(to_acc(element))) form_anew(element, m, n, p, q);
    }
}
