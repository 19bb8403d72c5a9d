// A matrix product for each of the 16 elements of winograd_transforms.cuh: filters times tiles, over channels.
//
// A block has TILE_M rows (filters) and TILE_N tiles of 2 x 2 results, of all 16 elements; each warp multiplies two of
// them. DEPTH channels are staged at a time, while those before are multiplied in registers: the transformed filter,
// which a launch of its own has left in scratch memory, and one tile a thread, which is transformed on its way. At the
// end the elements of a tile meet in shared memory. (Fused as by D. Yan, W. Wang and X. Chu, "Optimizing batched
// Winograd convolution on GPUs", PPoPP 2020.)
#pragma once
#include "packed_filter.cuh"
#include "vector.cuh"
#include "window_reader.cuh"
#include "winograd_tiles.cuh"
#include "winograd_transforms.cuh"

extern __shared__ __align__(16) unsigned char shared[];

constexpr int VECTOR = 4;  // numbers in shared memory that are moved at once
struct alignas(16) AccVector {
    Acc elements[VECTOR];
};

constexpr int ROWS = 8, COLS = 8;  // of a thread's sums, in two elements each
static_assert(sizeof(AccVector) == 16, "sums are float32: of more a thread's registers hold too few");
static_assert(TILE_M == 8 * ROWS && TILE_N == 4 * COLS, "a warp is 8 threads by 4");
static_assert(THREADS == ELEMENTS / 2 * 32, "each warp has two elements");
static_assert(THREADS == DEPTH * TILE_N, "each thread stages a tile");

struct alignas(16) WinogradSlice {
    Acc filter[ELEMENTS][DEPTH][TILE_M];
    Acc tiles[ELEMENTS][DEPTH][TILE_N];
};
constexpr int FILTER_SIZE = ELEMENTS * DEPTH * TILE_M;  // of a slice, as pack leaves it in scratch memory, too

// The tiles of all images, numbered as pixels are.
__device__ __forceinline__ PixelGrid tiles_of(const PixelGrid& grid) {
    return {grid.N, (grid.P + 1) / 2, (grid.Q + 1) / 2};
}

// A thread transforms one filter of one channel, of an input gradient with its scale: scratch[group][tile of rows] is
// slices.
template <class Phase>
__device__ __forceinline__ void pack_transformed(const Scalar* w, Acc* scratch, const Conv2dShape& shape, int slices,
                                                 const Scalar* scale = nullptr) {
    // Where am I: row m of a tile, consecutive in threadIdx.x, and the channel.
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x, slice_number = i / (DEPTH * TILE_M);
    const int rows = Phase::rows(shape), tiles = (rows + TILE_M - 1) / TILE_M;
    const int group = slice_number / slices / tiles, m = slice_number / slices % tiles * TILE_M + i % TILE_M;
    if (group >= shape.groups) return;
    const Phase phase(shape, 0);
    Tap tap(0, 1, 1);
    tap.plane = slice_number % slices * DEPTH + i / TILE_M % DEPTH;

    Acc g[3][3] = {}, down[4][3], both[4][4];
    if (m < rows && tap.plane < phase.depth / 9)
        for (int r = 0; r < 3; ++r)
            for (int s = 0; s < 3; ++s) {
                // In the order of the pixels that are seen.
                tap.i = phase.seen_rows().step > 0 ? r : 2 - r;
                tap.j = phase.seen_cols().step > 0 ? s : 2 - s;
                g[r][s] = phase.element(w, scale, group, m, tap);
            }
    for (int s = 0; s < 3; ++s) transform_taps(&g[0][s], 3, &down[0][s], 3);
    for (int r = 0; r < 4; ++r) transform_taps(down[r], 1, both[r], 1);
    Acc* const to = scratch + slice_number * FILTER_SIZE + i % (DEPTH * TILE_M);
    for (int e = 0; e < ELEMENTS; ++e) to[e * DEPTH * TILE_M] = both[e / 4][e % 4];
}

// Brings a slice of the transformed filter, 16 bytes at a time.
struct TransformedFilter {
    static constexpr int OWN = FILTER_SIZE / VECTOR / THREADS;

    const AccVector* from;  // this thread's part of the next slice
    AccVector own[OWN];

    __device__ __forceinline__ explicit TransformedFilter(const Acc* slices)
        : from(reinterpret_cast<const AccVector*>(slices) + threadIdx.x) {}
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < OWN; ++i) own[i] = from[i * THREADS];
        from += OWN * THREADS;
    }
    __device__ __forceinline__ void put(WinogradSlice& slice) const {
#pragma unroll
        for (int i = 0; i < OWN; ++i) reinterpret_cast<AccVector*>(slice.filter)[threadIdx.x + i * THREADS] = own[i];
    }
};

// Brings a tile of a channel, transformed, to shared memory. Tiles are consecutive in threadIdx.x.
template <class Tiles>
struct TileLoader {
    const int column = threadIdx.x % TILE_N, step = threadIdx.x / TILE_N, planes;
    int plane = step;  // the next one
    Tiles tiles;

    __device__ __forceinline__ TileLoader(const Tiles& tiles, int planes, int n, int row, int col, bool exists)
        : planes(planes), tiles(tiles) {
        this->tiles.begin(n, plane, row, col, exists);
    }
    __device__ __forceinline__ void fetch() {
        tiles.fetch(plane < planes);
        plane += DEPTH;
    }
    __device__ __forceinline__ void put(WinogradSlice& slice) const {
        Acc d[ELEMENTS];
#pragma unroll
        for (int e = 0; e < ELEMENTS; ++e) d[e] = tiles.value(e);
#pragma unroll
        for (int i = 0; i < 4; ++i) transform_pixels(d + i, 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) transform_pixels(d + 4 * i, 1);
#pragma unroll
        for (int e = 0; e < ELEMENTS; ++e) slice.tiles[e][step][column] = d[e];
    }
};

// A thread's sums, of two elements: products of ROWS filters and COLS tiles, four neighbours of each at once. Of 8
// threads that are served together 4 lie below each other, and no bank is met twice.
struct WinogradProduct {
    const int first_element = threadIdx.x / 32 * 2, thread_row = threadIdx.x / 2 % 8,
              thread_col = threadIdx.x % 2 + threadIdx.x / 16 % 2 * 2;
    Acc sums[2][ROWS][COLS] = {};

    __device__ __forceinline__ void add(const WinogradSlice& slice) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                AccVector a[ROWS / VECTOR], b[COLS / VECTOR];
                const Acc* const rows = slice.filter[first_element + e][d] + thread_row * VECTOR;
                const Acc* const cols = slice.tiles[first_element + e][d] + thread_col * VECTOR;
#pragma unroll
                for (int i = 0; i < ROWS / VECTOR; ++i)
                    a[i] = *reinterpret_cast<const AccVector*>(rows + i * TILE_M / 2);
#pragma unroll
                for (int j = 0; j < COLS / VECTOR; ++j)
                    b[j] = *reinterpret_cast<const AccVector*>(cols + j * TILE_N / 2);
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
#pragma unroll
                    for (int j = 0; j < COLS; ++j)
                        sums[e][i][j] += a[i / VECTOR].elements[i % VECTOR] * b[j / VECTOR].elements[j % VECTOR];
            }
    }
    // Row i of each thread goes to shared memory, where all elements of a tile meet.
    using Meeting = Acc[ELEMENTS][8][TILE_N + 8];  // 8 more: rows that are written together are in all banks
    __device__ __forceinline__ void put(Meeting& to, int i) const {
#pragma unroll
        for (int e = 0; e < 2; ++e)
#pragma unroll
            for (int j = 0; j < COLS; j += VECTOR) {
                AccVector values;
#pragma unroll
                for (int k = 0; k < VECTOR; ++k) values.elements[k] = sums[e][i][j + k];
                *reinterpret_cast<AccVector*>(&to[first_element + e][thread_row][j * 4 + thread_col * VECTOR]) = values;
            }
    }
    // Of thread_row r the row in the tile.
    static __device__ __forceinline__ int row(int r, int i) { return (i / VECTOR * 8 + r) * VECTOR + i % VECTOR; }
};

// The way of a thread's tile of 2 x 2 results to memory, in each row of filters that it writes.
template <class Results>
struct TileWriter {
    const Results& results;
    Scalar* const out;
    const int column = threadIdx.x % TILE_N;
    Index at[2];  // of its two rows; -1: there is none
    bool has_second, is_nan = false;

    __device__ __forceinline__ TileWriter(const Results& results, Scalar* out, const PixelGrid& grid,
                                          const Pixel& first)
        : results(results), out(out), has_second(first.q + 1 < grid.Q) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            at[i] = first.n < grid.N && first.p + i < grid.P ? results.at({first.n, first.p + i, first.q}) : -1;
    }
    // What is not finite counts as NaN: an infinite pixel comes in several elements with both signs, a tap over the
    // padding in all of them, and a transform may overflow.
    __device__ __forceinline__ void write(const WinogradProduct::Meeting& from, int r, int m) {
        Acc products[ELEMENTS], down[2][4], both[2][2];
#pragma unroll
        for (int e = 0; e < ELEMENTS; ++e) products[e] = from[e][r][column];
#pragma unroll
        for (int j = 0; j < 4; ++j) transform_products(products + j, 4, &down[0][j], 4);
        if (m >= results.rows) return;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            transform_products(down[i], 1, both[i], 1);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const bool exists = at[i] >= 0 && (j == 0 || has_second);
                both[i][j] = results.result(m, fma(both[i][j], Acc(0), both[i][j]), exists ? at[i] + j : -1);
                is_nan |= isnan(both[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (at[i] < 0) continue;
            Scalar* const to = out + at[i] + m * results.row_pitch;
            if (has_second && reinterpret_cast<size_t>(to) % sizeof(Vector<2>) == 0)
                store_vector<2>(to, both[i]);
            else {
                to[0] = from_acc(both[i][0]);
                if (has_second) to[1] = from_acc(both[i][1]);
            }
        }
    }
};

// What a block computes: rows first_m on of a group, of tiles first_tile on. Consecutive blocks share their tiles.
struct Place {
    int group, first_m, first_tile;
    const Acc* filter;  // slices

    template <class Phase>
    __device__ __forceinline__ Place(const Acc* scratch, const Phase& phase, int slices) {
        const int down = (Phase::rows(phase.shape) + TILE_M - 1) / TILE_M, number = blockIdx.x % down;
        const int across = (tiles_of(phase.grid).count() + TILE_N - 1) / TILE_N, rest = blockIdx.x / down;
        group = rest / across;
        first_m = number * TILE_M;
        first_tile = rest % across * TILE_N;
        filter = scratch + (Index(group) * down + number) * slices * FILTER_SIZE;
    }
};

template <class Tiles, class Phase, class Results>
__device__ __forceinline__ void compute_tiles(const Place& place, const Tiles& seen, const Phase& phase, int slices,
                                              Scalar* out, const Results& results) {
    WinogradSlice& staged = *reinterpret_cast<WinogradSlice*>(shared);
    const PixelGrid grid = tiles_of(phase.grid);
    const Pixel tile(place.first_tile + threadIdx.x % TILE_N, grid), first(tile.n, 2 * tile.p, 2 * tile.q);
    TransformedFilter filter(place.filter);
    TileLoader<Tiles> loader(seen, phase.depth / 9, first.n, first.p + phase.seen_rows().lowest(3),
                             first.q + phase.seen_cols().lowest(3), first.n < grid.N);
    WinogradProduct product;
    filter.fetch();
    loader.fetch();
    filter.put(staged);
    loader.put(staged);
    __syncthreads();  // the first slice is there
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        const bool has_next = slice + 1 < slices;
        if (has_next) {
            if (!Tiles::CROWDED) filter.fetch();
            loader.fetch();
        }
        __syncwarp();  // or ptxas moves the loads to where they are wanted
        product.add(staged);
        __syncthreads();  // nobody reads the slice any more
        if (has_next) {
            if (Tiles::CROWDED) filter.fetch();
            filter.put(staged);
            loader.put(staged);
        }
        __syncthreads();  // the next one is there
    }

    // Eight rows at a time: a warp writes one of them, its tiles consecutive in threadIdx.x.
    WinogradProduct::Meeting* const meetings = reinterpret_cast<WinogradProduct::Meeting*>(shared);
    const int row = threadIdx.x / TILE_N;
    TileWriter<Results> writer(results, out, phase.grid, first);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        product.put(meetings[i & 1], i);
        __syncthreads();  // the elements are there, and nobody reads those of two turns before any more
        writer.write(meetings[i & 1], row, place.first_m + WinogradProduct::row(row, i));
    }
#pragma unroll 1
    for (int i = 0; writer.is_nan && i < 4 * ROWS; ++i) {
        const int m = place.first_m + WinogradProduct::row(row, i / 4);
        const Pixel pixel(first.n, first.p + i / 2 % 2, first.q + i % 2);
        if (m >= results.rows || pixel.n >= grid.N || pixel.p >= phase.grid.P || pixel.q >= phase.grid.Q) continue;
        Scalar& element = out[results.at(pixel) + m * results.row_pitch];
        if (isnan(to_acc(element))) results.form_anew(element, m, pixel);
    }
}
