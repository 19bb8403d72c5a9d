// The images under a tile of pixels, with the halo that their windows reach, on their way to shared memory, where they
// serve all taps.
//
// A pixel's channels lie side by side in chunks of 16 bytes, so that a tap is a shift of addresses, whatever the width
// of the image.
//
// A tile is TILE_IMAGES images of TILE_P x TILE_Q pixels; the halo has HALO_P x HALO_Q.
#pragma once
#include "tensor_product.cuh"
#include "window_reader.cuh"

static_assert(TILE_Q % 8 == 0, "8 pixels at once lie in one row");
constexpr int TILE_PIXELS = TILE_IMAGES * TILE_P * TILE_Q;

// Where a pixel lies in its tile.
struct TilePixel {
    unsigned image, row, col;

    __device__ __forceinline__ constexpr explicit TilePixel(unsigned number)
        : image(TILE_IMAGES == 1 ? 0 : number / TILE_Q / TILE_P),
          row(TILE_IMAGES == 1 ? number / TILE_Q : number / TILE_Q % TILE_P), col(number % TILE_Q) {}
};

struct HaloTile {
    const PixelGrid grid;
    int n, p, q;  // its first pixel

    static __device__ __forceinline__ int across(const PixelGrid& grid) { return (grid.Q + TILE_Q - 1) / TILE_Q; }
    static __device__ __forceinline__ int down(const PixelGrid& grid) { return (grid.P + TILE_P - 1) / TILE_P; }
    static __device__ __forceinline__ int count(const PixelGrid& grid) {
        return (grid.N + TILE_IMAGES - 1) / TILE_IMAGES * down(grid) * across(grid);
    }
    __device__ __forceinline__ HaloTile(int number, const PixelGrid& grid)
        : grid(grid), n(number / across(grid) / down(grid) * TILE_IMAGES),
          p(number / across(grid) % down(grid) * TILE_P), q(number % across(grid) * TILE_Q) {}
};

// Where in a halo the first tap sees a pixel of the tile.
__device__ __forceinline__ constexpr int pixel_of(int number) {
    const TilePixel pixel(number);
    return (pixel.image * HALO_P + pixel.row) * HALO_Q + pixel.col;
}

constexpr int HALO_PIXELS = TILE_IMAGES * HALO_P * HALO_Q;

// A halo: its pixels' chunks, and a gap of one from one pixel to the next.
struct HaloPixels {
    static constexpr int PITCH = CHUNKS + 1, PIXELS = HALO_PIXELS;
    static constexpr int PIXEL_BYTES = PITCH * sizeof(Chunk);
    Chunk chunks[RIGHT_PARTS][PIXELS * PITCH];
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
template <class Reader, int VECTOR_PIXELS, class Halo>
struct HaloLoader {
    static constexpr bool IS_COPIED = false;  // past the registers
    static_assert(Halo::PITCH % 2 == 1, "8 neighbours' chunks lie in other banks");
    static constexpr int ACROSS = HALO_Q / VECTOR_PIXELS, UNITS = TILE_IMAGES * HALO_P * ACROSS;
    static constexpr int AT_ONCE = THREADS / CHUNKS;
    static_assert(HALO_Q % VECTOR_PIXELS == 0 && THREADS % (8 * CHUNKS) == 0, "units do not overlap");

    Reader reader;
    int n, first_row, first_col;  // of the halo, in the images
    const int chunk = threadIdx.x / AT_ONCE;
    unsigned unit = 0;  // the next one, or the one that is under way
    decltype(reader.template read<VECTOR_PIXELS>()) own[CHUNK_STEPS];

    __device__ __forceinline__ HaloLoader(const Reader& reader, int n, int first_row, int first_col)
        : reader(reader) {
        move_to(n, first_row, first_col);
    }
    __device__ __forceinline__ void move_to(int n, int first_row, int first_col) {
        this->n = n, this->first_row = first_row, this->first_col = first_col;
        reader.set_corner(n, first_row, first_col);
    }
    static __device__ __forceinline__ unsigned first_unit() { return threadIdx.x % AT_ONCE; }
    __device__ __forceinline__ void begin() { unit = first_unit(); }
    __device__ __forceinline__ bool has_units() const { return unit < UNITS; }

    // IS_FREE: without a branch, though a unit `exists` only for some threads. Else all who come here have one.
    __device__ __forceinline__ void ask(Halo&, int first_plane, bool exists = true) {
        const unsigned row = unit / ACROSS;
        if constexpr (TILE_IMAGES > 1) reader.set_corner(n + row / HALO_P, first_row, first_col);
        reader.go_to(reader.offset(first_plane + chunk * CHUNK_STEPS, row % HALO_P, unit % ACROSS * VECTOR_PIXELS));
#pragma unroll
        for (int i = 0; i < CHUNK_STEPS; ++i) {
            if (i > 0) reader.skip_planes(1);
            own[i] = reader.template read<VECTOR_PIXELS>(exists);
        }
    }
    template <bool IS_FREE = false>
    __device__ __forceinline__ void put(Halo& halo, bool exists = true) {
        Chunk parts[VECTOR_PIXELS][RIGHT_PARTS];
#pragma unroll
        for (int e = 0; e < VECTOR_PIXELS; ++e) make_chunk(parts[e], own, 0, e);
        // Threads write their pixels in other orders, so that 8 of them are in all banks at once: pixel e ^ turned.
        static_assert(AT_ONCE % 8 == 0, "a thread has one order for all of its units");
        const unsigned turned = first_unit() * VECTOR_PIXELS / 8 % VECTOR_PIXELS;
#pragma unroll
        for (int bit = 1; bit < VECTOR_PIXELS; bit *= 2)
#pragma unroll
            for (int e = 0; e < VECTOR_PIXELS; ++e)
                if (!(e & bit)) exchange_if(turned & bit, parts[e], parts[e | bit]);
        const unsigned first = !IS_FREE || exists ? unit * VECTOR_PIXELS : 0;  // a place that there is
#pragma unroll
        for (int e = 0; e < VECTOR_PIXELS; ++e)
#pragma unroll
            for (int part = 0; part < RIGHT_PARTS; ++part) {
                Chunk& to = halo.chunks[part][(first + (e ^ turned)) * Halo::PITCH + chunk];
                if constexpr (IS_FREE)
                    store_if(exists, &to, parts[e][part].words);
                else
                    to = parts[e][part];
            }
        unit += AT_ONCE;
    }
    // All that are left.
    __device__ __forceinline__ void bring(Halo& halo, int first_plane) {
#pragma unroll 1
        while (has_units()) {
            ask(halo, first_plane);
            put(halo);
        }
    }
};
