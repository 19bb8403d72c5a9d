// The images under a tile of pixels, with the halo that their windows reach, in shared memory: for all taps at once.
//
// A pixel's channels lie side by side in chunks of 16 bytes, and ldmatrix takes an address for each pixel: so a tap is
// a shift of these addresses, whatever the width of the image, and what is staged once serves all taps. By taps each
// element would be loaded for each of them. An odd number of chunks from one pixel to the next keeps 8 neighbours in
// all banks.
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
        : grid(grid), n(number / across(grid) / down(grid) * TILE_IMAGES),
          p(number / across(grid) % down(grid) * TILE_P), q(number % across(grid) * TILE_Q) {}
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
    // Bytes from one pixel to the next.
    static constexpr int PIXEL_BYTES = PITCH * sizeof(Chunk);

    struct Reader {
        int first[WARP_N / 16];  // bytes
        __device__ __forceinline__ explicit Reader(int first_col) {
            const int lane = threadIdx.x % 32;
#pragma unroll
            for (int i = 0; i < WARP_N / 16; ++i)
                first[i] = pixel_of(first_col + i * 16 + lane / 16 * 8 + lane % 8) * PIXEL_BYTES +
                           lane / 8 % 2 * int(sizeof(Chunk));
        }
        // A lane's words of 16 columns. shift: of the tap, in bytes.
        __device__ __forceinline__ void read(unsigned (&words)[4], const HaloRows& from, int part, int step, int i,
                                             int shift) const {
            const Chunk* const at =
                reinterpret_cast<const Chunk*>(reinterpret_cast<const char*>(&from) + (first[i] + shift));
            load_matrices(words, at + part * PIXELS * PITCH + step * 2);
        }
    };
};

// Two groups of taps of the packed filter, one of them under way, and two halos.
struct HaloMemory {
    FilterSlice filter[2][TAPS_AT_ONCE];
    HaloRows halos[2];
};

template <int PARTS>
__device__ __forceinline__ void exchange_if(bool is_wanted, Chunk (&a)[PARTS], Chunk (&b)[PARTS]) {
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned word = a[part].words[i];
            a[part].words[i] = is_wanted ? b[part].words[i] : word;
            b[part].words[i] = is_wanted ? word : b[part].words[i];
        }
}

// Brings the halo of a tile, the channels of a slice at a time, in units: a chunk's channels at VECTOR_PIXELS
// neighbouring pixels, which a thread turns as it writes them. One of its units is under way at a time. Each chunk has
// threads of its own, whose units are consecutive in threadIdx.x.
template <class Reader, int VECTOR_PIXELS>
struct HaloLoader {
    static constexpr int ACROSS = HALO_Q / VECTOR_PIXELS, UNITS = TILE_IMAGES * HALO_P * ACROSS;
    static constexpr int AT_ONCE = THREADS / CHUNKS;
    static_assert(HALO_Q % VECTOR_PIXELS == 0 && THREADS % CHUNKS == 0, "units do not overlap");

    Reader reader;
    const int n, first_row, first_col;  // of the halo, in the images
    const int chunk = threadIdx.x / AT_ONCE;
    int unit = 0;  // the next one, or the one that is under way
    decltype(reader.template read<VECTOR_PIXELS>()) own[CHUNK_STEPS];

    __device__ __forceinline__ HaloLoader(const Reader& reader, int n, int first_row, int first_col)
        : reader(reader), n(n), first_row(first_row), first_col(first_col) {
        this->reader.set_corner(n, first_row, first_col);
    }
    __device__ __forceinline__ void begin() { unit = threadIdx.x % AT_ONCE; }
    __device__ __forceinline__ bool has_units() const { return unit < UNITS; }

    __device__ __forceinline__ void ask(int first_plane) {
        const int col = unit % ACROSS * VECTOR_PIXELS, row = unit / ACROSS % HALO_P, image = unit / ACROSS / HALO_P;
        if constexpr (TILE_IMAGES > 1) reader.set_corner(n + image, first_row, first_col);
        reader.go_to(reader.offset(first_plane + chunk * CHUNK_STEPS, row, col));
#pragma unroll
        for (int i = 0; i < CHUNK_STEPS; ++i) {
            if (i > 0) reader.skip_planes(1);
            own[i] = reader.template read<VECTOR_PIXELS>();
        }
    }
    __device__ __forceinline__ void put(HaloRows& halo) {
        Chunk parts[VECTOR_PIXELS][RIGHT_PARTS];
#pragma unroll
        for (int e = 0; e < VECTOR_PIXELS; ++e) make_chunk(parts[e], own, 0, e);
        // Threads write their pixels in other orders, so that 8 of them are in all banks at once: pixel e ^ turned.
        const int turned = unit * VECTOR_PIXELS / 8 % VECTOR_PIXELS;
#pragma unroll
        for (int bit = 1; bit < VECTOR_PIXELS; bit *= 2)
#pragma unroll
            for (int e = 0; e < VECTOR_PIXELS; ++e)
                if (!(e & bit)) exchange_if(turned & bit, parts[e], parts[e | bit]);
#pragma unroll
        for (int e = 0; e < VECTOR_PIXELS; ++e)
#pragma unroll
            for (int part = 0; part < RIGHT_PARTS; ++part)
                halo.chunks[part][(unit * VECTOR_PIXELS + (e ^ turned)) * HaloRows::PITCH + chunk] = parts[e][part];
        unit += AT_ONCE;
    }
    // All that are left.
    __device__ __forceinline__ void bring(HaloRows& halo, int first_plane) {
#pragma unroll 1
        while (has_units()) {
            ask(first_plane);
            put(halo);
        }
    }
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
            if (tap < taps)
#pragma unroll
                for (int i = tap * OWN; i < (tap + 1) * OWN; ++i)
                    __pipeline_memcpy_async(to + i * THREADS, from + i * THREADS, sizeof(Chunk));
        __pipeline_commit();
        from += taps * OWN * THREADS;
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
        FilterGroups groups(filter);
        HaloLoader<Reader, VECTOR_PIXELS> loader(reader, pixels.n, pixels.p + rows.lowest(phase.down),
                                                 pixels.q + cols.lowest(phase.across) - lead);
        groups.ask(memory.filter[0], min(taps, TAPS_AT_ONCE));
        loader.begin();
        loader.bring(memory.halos[0], 0);
        int run = 0, turn = 0;
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) {
            const bool has_next = block + 1 < blocks;
            HaloRows &halo = memory.halos[block & 1], &next = memory.halos[block + 1 & 1];
            const int next_plane = (block + 1) * DEPTH;
            int row_shift = first_shift * HaloRows::PIXEL_BYTES, shift = row_shift, across = 0;
            loader.begin();
#pragma unroll 1
            for (int tap = 0; tap < taps; tap += TAPS_AT_ONCE, turn ^= 1) {
                __pipeline_wait_prior(0);
                __syncthreads();  // these taps and the halo are there, and nobody reads those before them any more
                const int left = taps - tap;
                const int next_left = left > TAPS_AT_ONCE ? left - TAPS_AT_ONCE : has_next ? taps : 0;
                groups.ask(memory.filter[turn ^ 1], min(next_left, TAPS_AT_ONCE));
#pragma unroll 1
                for (int i = 0; i < min(left, TAPS_AT_ONCE); ++i) {
                    const bool brings = has_next && loader.has_units();
                    if (brings) loader.ask(next_plane);
                    __syncwarp();  // or ptxas moves the loads to where they are wanted
                    product.add(memory.filter[turn][i], halo, shift);
                    if (brings) loader.put(next);
                    shift += cols.step * HaloRows::PIXEL_BYTES;
                    if (++across == phase.across)
                        across = 0, shift = row_shift += rows.step * (HALO_Q * HaloRows::PIXEL_BYTES);
                    if (LONG_SUMS && ++run == RUN_SLICES) run = 0, product.end_run(nullptr, false, false);
                }
            }
            if (has_next) loader.bring(next, next_plane);
        }
        product.end_run(nullptr, false, true);
    }
};

using Windows = std::conditional_t<HALO, HaloWindows, TapWindows>;
