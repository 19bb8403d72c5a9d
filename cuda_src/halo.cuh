// The images under a tile of pixels, with the halo that their windows reach, in shared memory: for all taps at once.
//
// A pixel's channels lie side by side in chunks of 16 bytes, and ldmatrix takes an address for each pixel: so a tap is
// a shift of these addresses, whatever the width of the image, and what is staged once serves all taps. By taps each
// element would be loaded for each of them. An odd number of chunks from one pixel to the next keeps 8 neighbours in
// all banks.
#pragma once
#include "filter_chunks.cuh"
#include "channel_loader.cuh"

static_assert(TILE_PIXELS == TILE_N, "a tile's pixels are the columns of the product");
static_assert(ONE_TAP || !HALO, "a slice of the filter is one tap of the channels that are staged at once");

struct HaloRun : HaloTile {
    static constexpr int TOGETHER = RESULTS_TOGETHER;
    static constexpr bool ALL_EXIST = WHOLE_TILES, ARE_NEAR = true;
    using HaloTile::HaloTile;

    // The pixel of a column; beyond the last row and column of an image there is none.
    __device__ __forceinline__ Pixel at(int column) const {
        const TilePixel in_tile(column);
        const Pixel pixel(n + in_tile.image, p + in_tile.row, q + in_tile.col);
        return {ALL_EXIST || (pixel.p < grid.P && pixel.q < grid.Q) ? pixel.n : grid.N, pixel.p, pixel.q};
    }
};

// The right factor of a tap: the pixels that the tile's see through it.
struct HaloRows : HaloPixels {
    static constexpr int COLUMNS = TILE_N;

    struct Reader {
        const int first;  // bytes
        __device__ __forceinline__ explicit Reader(int first_col)
            : first(pixel_of(first_col + threadIdx.x / 16 % 2 * 8 + threadIdx.x % 8) * PIXEL_BYTES +
                    threadIdx.x / 8 % 2 * int(sizeof(Chunk))) {}
        // A lane's words of 16 columns. shift: of the tap, in bytes. A number's bits say where its pixel lies, each by
        // itself: so 16 columns further on it is the same number of bytes for all lanes.
        __device__ __forceinline__ void read(unsigned (&words)[4], const HaloRows& from, int part, int step, int i,
                                             int shift) const {
            const char* const row = reinterpret_cast<const char*>(&from) + (first + shift);
            load_matrices(words, reinterpret_cast<const Chunk*>(row + pixel_of(i * 16) * PIXEL_BYTES) +
                                     part * PIXELS * PITCH + step * 2);
        }
    };
};

// Two groups of taps of the packed filter, one of them under way, and two halos.
struct HaloMemory {
    FilterSlice filter[2][TAPS_AT_ONCE];
    HaloRows halos[2];
};

// Brings groups of taps of a tile's packed filter, past the registers.
struct FilterGroups {
    static constexpr int OWN = FilterSlice::SIZE / 4 / THREADS;
    static_assert(FilterSlice::SIZE % (4 * THREADS) == 0, "the threads share a slice of the filter evenly");

    const Chunk* from;  // this thread's part of the next group

    __device__ __forceinline__ explicit FilterGroups(const Acc* packed)
        : from(reinterpret_cast<const Chunk*>(packed) + threadIdx.x) {}
    __device__ __forceinline__ void ask(FilterSlice (&group)[TAPS_AT_ONCE], int taps) {
        Chunk* const to = reinterpret_cast<Chunk*>(&group) + threadIdx.x;
#pragma unroll
        for (int tap = 0; tap < TAPS_AT_ONCE; ++tap)
            if (ROW_GROUPS ? taps > 0 : tap < taps)
#pragma unroll
                for (int i = tap * OWN; i < (tap + 1) * OWN; ++i)
                    __pipeline_memcpy_async(to + i * THREADS, from + i * THREADS, sizeof(Chunk));
        __pipeline_commit();
        from += taps * OWN * THREADS;
    }
};

static_assert(!ROW_GROUPS || (ROW_TAPS % TAPS_AT_ONCE == 0 && (MAY_SPLIT || !LONG_SUMS || RUN_SLICES % ROW_TAPS == 0)),
              "groups make a row of taps, and rows a run");

// How a tile of forward or input_grad is multiplied. ROW_GROUPS: a group is a row of taps, COL_STEP pixels apart; then
// a halo has UNITS_AT_ONCE of a thread's units under way one after another while a group is multiplied.
struct HaloWindows {
    using Product = TensorProduct<FilterSlice, HaloRows>;
    using Parts = RunParts<Product, MAY_SPLIT>;
    using Pixels = HaloRun;

    static __device__ __forceinline__ int count(const PixelGrid& grid) { return HaloTile::count(grid) * TILE_N; }
    static __device__ __forceinline__ Pixels pixels(const Tile& tile, const PixelGrid& grid) {
        return {tile.first_pixel / TILE_N, grid};
    }

    // All taps of as many blocks of channels as a run holds, where sums may be split: a block is staged once.
    template <class Phase>
    static __device__ __forceinline__ int run_slices(const Phase& phase) {
        const int taps = max(1, phase.down * phase.across);
        return max(1, RUN_SLICES / taps) * taps;
    }
    template <int VECTOR_PIXELS, class Reader, class Phase>
    static __device__ __forceinline__ void add(Product& product, const Acc* filter, const Offset*, const Reader& reader,
                                               const Phase& phase, const Tile& tile, Parts parts) {
        using Loader = LayoutLoader<Reader, VECTOR_PIXELS, HaloRows>;
        constexpr int UNROLLED = ROW_GROUPS ? ROW_TAPS : 1;
        // Without branches nvcc asks for all units of a row at once: where they take few registers.
        constexpr bool IS_FREE = ROW_GROUPS && (RIGHT_PARTS == 1 || sizeof(Loader::own) <= 32);
        const int taps = phase.down * phase.across;
        if (taps == 0 || parts.slices <= 0) return;
        const int first_block = parts.first_slice / taps, end_block = first_block + parts.slices / taps;
        const int run_blocks = run_slices(phase) / taps;

        // The halo begins where the first taps see the tile's first pixel, and with a whole vector. A tap's shift:
        const Pixels pixels = HaloWindows::pixels(tile, phase.grid);
        const SeenPixels rows = phase.seen_rows(), cols = phase.seen_cols();
        const int lead = (cols.lowest(phase.across) % VECTOR_PIXELS + VECTOR_PIXELS) % VECTOR_PIXELS;
        const int first_shift = rows.above(phase.down) * HALO_Q + cols.above(phase.across) + lead;

        HaloMemory& memory = *reinterpret_cast<HaloMemory*>(shared);
        FilterGroups groups(filter);
        Loader loader(reader, pixels.n, pixels.p + rows.lowest(phase.down),
                      pixels.q + cols.lowest(phase.across) - lead);
        groups.ask(memory.filter[0], min(taps, TAPS_AT_ONCE));
        loader.begin();
        loader.bring(memory.halos[first_block & 1], first_block * DEPTH);
        int run = 0, turn = 1;  // which group is multiplied: the one that was asked for before
#pragma unroll 1
        for (int block = first_block; block < end_block; ++block) {
            const bool has_next = block + 1 < end_block;
            HaloRows &halo = memory.halos[block & 1], &next = memory.halos[block + 1 & 1];
            const int next_plane = (block + 1) * DEPTH;
            int row_shift = first_shift * HaloRows::PIXEL_BYTES, across = 0;
            loader.begin();
#pragma unroll 1
            for (int tap = 0; tap < taps; tap += ROW_TAPS) {
#pragma unroll UNROLLED
                for (int i = 0; i < (ROW_GROUPS ? ROW_TAPS : min(taps - tap, ROW_TAPS)); ++i) {
                    if (i % TAPS_AT_ONCE == 0) {
                        if constexpr (Loader::IS_COPIED) __pipeline_commit();
                        __pipeline_wait_prior(0);
                        __syncthreads();  // these taps and the halo are there, and nobody reads those before any more
                        turn ^= 1;
                        const int left = taps - tap - i;
                        const int next_left = left > TAPS_AT_ONCE ? left - TAPS_AT_ONCE : has_next ? taps : 0;
                        groups.ask(memory.filter[turn ^ 1], min(next_left, TAPS_AT_ONCE));
                    }
                    const bool brings = (UNROLLED == 1 || i < UNITS_AT_ONCE) && has_next && loader.has_units();
                    if (IS_FREE ? i < UNITS_AT_ONCE : brings) loader.ask(next, next_plane, brings);
                    __syncwarp();  // or ptxas moves the loads to where they are wanted
                    product.add(memory.filter[turn][i % TAPS_AT_ONCE], halo,
                                row_shift + (ROW_GROUPS ? i * COL_STEP : across * cols.step) * HaloRows::PIXEL_BYTES);
                    if (IS_FREE ? i < UNITS_AT_ONCE : brings) loader.template put<IS_FREE>(next, brings);
                    if ((ROW_GROUPS ? i + 1 : ++across) == (ROW_GROUPS ? ROW_TAPS : phase.across))
                        across = 0, row_shift += rows.step * (HALO_Q * HaloRows::PIXEL_BYTES);
                    if (LONG_SUMS && !MAY_SPLIT && (!ROW_GROUPS || i == ROW_TAPS - 1) &&
                        (run += ROW_GROUPS ? ROW_TAPS : 1) == RUN_SLICES)
                        run = 0, product.end_run(nullptr, false, false);
                }
            }
            if (has_next) loader.bring(next, next_plane);
            if (MAY_SPLIT && (++run == run_blocks || !has_next)) {
                run = 0;
                if (!parts.take(product)) product.end_run(nullptr, false, !has_next);
            }
        }
        if (!MAY_SPLIT) product.end_run(nullptr, false, true);
    }
};

using Windows = std::conditional_t<HALO, HaloWindows, TapWindows>;
