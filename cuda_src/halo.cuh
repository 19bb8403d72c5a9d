// The images under a tile of pixels, with the halo that their windows reach, in shared memory: for all taps at once.
//
// A pixel's channels lie side by side in chunks of 16 bytes, and ldmatrix takes an address for each pixel: so a tap is a
// shift of these addresses, whatever the width of the image, and what is staged once serves all taps. By taps each
// element would be loaded for each of them. An odd number of chunks from one pixel to the next keeps 8 neighbours in all
// banks.
//
// A tile is TILE_IMAGES images of TILE_P x TILE_Q pixels; the halo has HALO_P x HALO_Q.
#pragma once
#include "filter_chunks.cuh"

static_assert(TILE_IMAGES * TILE_P * TILE_Q == TILE_N && TILE_Q % 8 == 0, "8 pixels at once lie in one row");
static_assert(ONE_TAP || !HALO, "a slice of the filter is one tap of the channels that are staged at once");

struct HaloTile {
    const PixelGrid grid;
    int n, p, q;

    static __device__ __forceinline__ int across(const PixelGrid& grid) { return (grid.Q + TILE_Q - 1) / TILE_Q; }
    static __device__ __forceinline__ int down(const PixelGrid& grid) { return (grid.P + TILE_P - 1) / TILE_P; }
    static __device__ __forceinline__ int count(const PixelGrid& grid) {
        return (grid.N + TILE_IMAGES - 1) / TILE_IMAGES * down(grid) * across(grid);
    }
    __device__ __forceinline__ HaloTile(int number, const PixelGrid& grid)
        : grid(grid), n(number / across(grid) / down(grid) * TILE_IMAGES), p(number / across(grid) % down(grid) * TILE_P),
          q(number % across(grid) * TILE_Q) {}
    // The pixel of a column; beyond the last row and column of an image there is none.
    __device__ __forceinline__ Pixel at(int column) const {
        const Pixel pixel(n + column / TILE_Q / TILE_P, p + column / TILE_Q % TILE_P, q + column % TILE_Q);
        return {pixel.p < grid.P && pixel.q < grid.Q ? pixel.n : grid.N, pixel.p, pixel.q};
    }
};

// The right factor of a tap: the pixels that the tile's see through it.
struct HaloRows {
    static constexpr int PITCH = CHUNKS + 1, PIXELS = TILE_IMAGES * HALO_P * HALO_Q;
    Chunk chunks[RIGHT_PARTS][PIXELS * PITCH];

    static __device__ __forceinline__ int pixel_of(int column) {
        return (column / TILE_Q / TILE_P * HALO_P + column / TILE_Q % TILE_P) * HALO_Q + column % TILE_Q;
    }
    struct Reader {
        int first[WARP_N / 16];
        __device__ __forceinline__ explicit Reader(int first_col) {
            const int lane = threadIdx.x % 32;
#pragma unroll
            for (int i = 0; i < WARP_N / 16; ++i)
                first[i] = pixel_of(first_col + i * 16 + lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2;
        }
        // A lane's words of 16 columns. shift: of the tap, in pixels.
        __device__ __forceinline__ void read(unsigned (&words)[4], const HaloRows& from, int part, int step, int i,
                                             int shift) const {
            load_matrices(words, &from.chunks[part][first[i] + shift * PITCH + step * 2]);
        }
    };
};

// A ring of slices of the packed filter, FILTER_STAGES - 1 of them under way, and then two halos.
struct HaloMemory {
    FilterSlice filter[FILTER_STAGES];
    HaloRows halos[2];
};

// Brings slices of a tile of the packed filter, past the registers.
struct FilterRing {
    static constexpr int OWN = FilterSlice::SIZE / 4 / THREADS;
    static_assert(FilterSlice::SIZE % (4 * THREADS) == 0, "the threads share a slice of the filter evenly");

    const Chunk* from;  // this thread's part of the next slice to be asked for
    int slices, stage = 0, next_stage = 0;

    __device__ __forceinline__ FilterRing(const Acc* packed, int slices)
        : from(reinterpret_cast<const Chunk*>(packed) + threadIdx.x), slices(slices) {}
    static __device__ __forceinline__ int after(int stage) { return stage + 1 < FILTER_STAGES ? stage + 1 : 0; }

    __device__ __forceinline__ void ask(HaloMemory& memory) {
        if (slices-- > 0) {
            Chunk* const to = reinterpret_cast<Chunk*>(&memory.filter[next_stage]) + threadIdx.x;
#pragma unroll
            for (int i = 0; i < OWN; ++i) __pipeline_memcpy_async(to + i * THREADS, from + i * THREADS, sizeof(Chunk));
        }
        __pipeline_commit();
        from += OWN * THREADS;
        next_stage = after(next_stage);
    }
};

// Brings the halo of a tile, the channels of a slice at a time, in units: a chunk's channels at VECTOR_PIXELS
// neighbouring pixels, which a thread turns as it writes them. One of its units is under way at a time.
template <class Reader, int VECTOR_PIXELS>
struct HaloLoader {
    static constexpr int ACROSS = HALO_Q / VECTOR_PIXELS, UNITS = TILE_IMAGES * HALO_P * ACROSS * CHUNKS;
    static constexpr int OWN = (UNITS + THREADS - 1) / THREADS;  // units of a thread
    static_assert(HALO_Q % VECTOR_PIXELS == 0, "units do not overlap");

    Reader reader;
    const HaloTile& tile;
    const int first_row, first_col;  // of the halo, in the image
    int first_plane = 0;             // of the slice that is being brought
    int unit = THREADS * OWN;        // the one under way, if there is one
    decltype(reader.template read<VECTOR_PIXELS>()) own[CHUNK_STEPS];

    __device__ __forceinline__ HaloLoader(const Reader& reader, const HaloTile& tile, int first_row, int first_col)
        : reader(reader), tile(tile), first_row(first_row), first_col(first_col) {}

    // Consecutive threads have neighbouring pixels.
    __device__ __forceinline__ void ask(int number) {
        unit = number;
        if (unit >= UNITS) return;
        const int col = unit % ACROSS * VECTOR_PIXELS, row = unit / ACROSS % HALO_P;
        const int chunk = unit / ACROSS / HALO_P % CHUNKS, image = unit / ACROSS / HALO_P / CHUNKS;
        const int plane = first_plane + chunk * CHUNK_STEPS;
        reader.set_corner(tile.n + image, first_row + row, first_col + col);
        reader.go_to({plane, 0, 0, plane * reader.plane_size()});
#pragma unroll
        for (int i = 0; i < CHUNK_STEPS; ++i) {
            if (i > 0) reader.skip_planes(1);
            own[i] = reader.template read<VECTOR_PIXELS>();
        }
    }
    __device__ __forceinline__ void put(HaloRows& halo) const {
        if (unit >= UNITS) return;
        const int col = unit % ACROSS * VECTOR_PIXELS, row = unit / ACROSS % HALO_P;
        const int chunk = unit / ACROSS / HALO_P % CHUNKS, image = unit / ACROSS / HALO_P / CHUNKS;
        const int pixel = (image * HALO_P + row) * HALO_Q + col;
#pragma unroll
        for (int e = 0; e < VECTOR_PIXELS; ++e) {
            Chunk parts[RIGHT_PARTS];
            make_chunk(parts, own, 0, e);
#pragma unroll
            for (int part = 0; part < RIGHT_PARTS; ++part)
                halo.chunks[part][(pixel + e) * HaloRows::PITCH + chunk] = parts[part];
        }
    }
    // All of a slice's, one after the other.
    __device__ __forceinline__ void bring(HaloRows& halo, int first_unit) {
#pragma unroll 1
        for (int number = first_unit; number < UNITS; number += THREADS) {
            ask(number);
            put(halo);
        }
    }
};

// How a tile of forward or input_grad is multiplied.
struct HaloWindows {
    using Product = TensorProduct<FilterSlice, HaloRows>;
    using Pixels = HaloTile;

    static __device__ __forceinline__ int count(const PixelGrid& grid) { return HaloTile::count(grid) * TILE_N; }
    static __device__ __forceinline__ Pixels pixels(const Tile& tile, const PixelGrid& grid) {
        return {tile.first_pixel / TILE_N, grid};
    }

    template <int VECTOR_PIXELS, class Reader, class Phase>
    static __device__ __forceinline__ void add(Product& product, const Acc* filter, const Offset*, const Reader& reader,
                                               const Phase& phase, const Tile& tile) {
        constexpr int RUN_SLICES = RUN_STEPS / DEPTH;
        const int taps = phase.down * phase.across, blocks = taps ? phase.depth / taps / DEPTH : 0;
        if (blocks == 0) return;

        // The halo begins where the first taps see the tile's first pixel, and with a whole vector. A tap's shift:
        const Pixels pixels = HaloWindows::pixels(tile, phase.grid);
        const SeenPixels rows = phase.seen_rows(), cols = phase.seen_cols();
        const int lead = (cols.lowest(phase.across) % VECTOR_PIXELS + VECTOR_PIXELS) % VECTOR_PIXELS;
        const int first_shift = rows.above(phase.down) * HALO_Q + cols.above(phase.across) + lead;

        HaloMemory& memory = *reinterpret_cast<HaloMemory*>(shared);
        FilterRing ring(filter, blocks * taps);
        HaloLoader<Reader, VECTOR_PIXELS> loader(reader, pixels, pixels.p + rows.lowest(phase.down),
                                                 pixels.q + cols.lowest(phase.across) - lead);
        for (int i = 0; i < FILTER_STAGES - 1; ++i) ring.ask(memory);
        loader.bring(memory.halos[0], threadIdx.x);
        int run = 0;
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) {
            const bool has_next = block + 1 < blocks;
            HaloRows &halo = memory.halos[block & 1], &next = memory.halos[block + 1 & 1];
            loader.first_plane = (block + 1) * DEPTH;
            int row_shift = first_shift, shift = row_shift, across = 0, unit = threadIdx.x;
#pragma unroll 1
            for (int tap = 0; tap < taps; ++tap) {
                __pipeline_wait_prior(FILTER_STAGES - 2);
                __syncthreads();  // this tap and the halo are there, and nobody reads those before them any more
                ring.ask(memory);
                if (has_next) loader.ask(unit);
                __syncwarp();  // or ptxas moves the loads to where they are wanted
                product.add(memory.filter[ring.stage], halo, shift);
                if (has_next) loader.put(next);
                unit += THREADS;
                ring.stage = FilterRing::after(ring.stage);
                shift += cols.step;
                if (++across == phase.across) across = 0, shift = row_shift += rows.step * HALO_Q;
                if (LONG_SUMS && ++run == RUN_SLICES) run = 0, product.end_run(nullptr, false, false);
            }
            if (has_next) loader.bring(next, unit);
        }
        product.end_run(nullptr, false, true);
        __pipeline_wait_prior(0);  // nothing is under way to shared memory that may soon be another block's
    }
};

using Windows = std::conditional_t<HALO, HaloWindows, TapWindows>;
