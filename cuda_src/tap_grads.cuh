// g of a tile of kernel_grad's tensor_core on its way to shared memory, where it lies as in memory, pixels side by side: it
// is formed as it is written, dy * phi'(y), once for all taps.
#pragma once
#include "halo_loader.cuh"
#include "tap_steps.cuh"
#include "vector.cuh"

// g of a tile: of each filter its pixels, in chunks, and a gap that keeps 8 filters' chunks of one number in all banks.
struct GradRows {
    static constexpr int ACROSS = TILE_PIXELS / CHUNK_STEPS, PITCH = ACROSS + 1;
    static_assert(!HALO || PITCH % 2 == 1, "filters lie an odd number of chunks apart");
    Chunk chunks[LEFT_PARTS][TILE_M * PITCH];

    static __device__ __forceinline__ int at(int row, int chunk) { return row * PITCH + chunk; }
};

// Brings g of a tile, G_PIXELS pixels of a few filters at a time. Neighbouring pixels are consecutive in threadIdx.x.
struct GradLoader {
    static constexpr int ACROSS = TILE_PIXELS / G_PIXELS, AT_ONCE = ACROSS < THREADS ? THREADS / ACROSS : 1;
    static constexpr int OWN = (TILE_M + AT_ONCE - 1) / AT_ONCE, EACH = (OWN + STEP_GROUPS - 1) / STEP_GROUPS;
    static constexpr int MOST = G_PIXELS == 4 ? GRADS_AT_ONCE : 1;  // unaligned ones take more addresses
    static constexpr int UNITS = EACH < MOST ? EACH : MOST;         // under way at a time
    static_assert(!HALO || ACROSS <= THREADS, "a thread has one place in all rows");

    GradReader reader;
    const int filters;  // that exist, of this block's
    const int first_row = threadIdx.x / ACROSS, step = threadIdx.x % ACROSS * G_PIXELS;
    int row = TILE_M;  // the next one, or the first of those that are under way
    decltype(reader.template read<G_PIXELS>()) own[UNITS];

    __device__ __forceinline__ GradLoader(const GradReader& reader, int filters) : reader(reader), filters(filters) {}
    __device__ __forceinline__ void begin(const HaloTile& tile, int first_plane) {
        const TilePixel pixel(step);
        reader.set_corner(tile.n + pixel.image, tile.p + pixel.row, tile.q + pixel.col);
        reader.go_to(reader.offset(first_plane + first_row, 0, 0));
        row = first_row < AT_ONCE ? first_row : TILE_M;
    }
    __device__ __forceinline__ bool has_units() const { return row < TILE_M; }
    __device__ __forceinline__ void ask(bool exists = true) {
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
            own[i] = reader.template read<G_PIXELS>(exists && row + i * AT_ONCE < filters);
            reader.skip_planes(AT_ONCE);
        }
    }
    __device__ __forceinline__ void put(GradRows& rows, bool exists = true) {
#pragma unroll
        for (int i = 0; i < UNITS; ++i, row += AT_ONCE) {
            const bool is_row = exists && row < TILE_M;
            const int at = GradRows::at(IS_TF32 && !is_row ? 0 : row, step / CHUNK_STEPS), in_chunk = step % CHUNK_STEPS;
            if constexpr (IS_TF32) {
                unsigned words[LEFT_PARTS][G_PIXELS];
#pragma unroll
                for (int e = 0; e < G_PIXELS; ++e) {
                    const LeftParts both(own[i].value(e));
#pragma unroll
                    for (int part = 0; part < LEFT_PARTS; ++part) words[part][e] = both.words[part];
                }
#pragma unroll
                for (int part = 0; part < LEFT_PARTS; ++part)
                    store_if(is_row, &rows.chunks[part][at].words[in_chunk], words[part]);
            } else if (is_row) {
                Vector<G_PIXELS> vector;
#pragma unroll
                for (int e = 0; e < G_PIXELS; ++e) vector.elements[e] = own[i].exact(e);
                *reinterpret_cast<Vector<G_PIXELS>*>(reinterpret_cast<Scalar*>(&rows.chunks[0][at]) + in_chunk) =
                    vector;
            }
        }
    }
    // All that are left.
    __device__ __forceinline__ void bring(GradRows& rows) {
#pragma unroll 1
        while (has_units()) {
            ask();
            put(rows);
        }
    }
};
