// g of a tile of kernel_grad's tensor_core (tap_grads.cuh), where filters lie side by side in memory.
#pragma once
#include "channel_loader.cuh"
#include "tap_grads.cuh"

// GradLoader's: a unit is 8 filters at two neighbouring pixels, which a thread turns as it writes them.
struct ChannelGradLoader {
    static constexpr int PAIRS = TILE_PIXELS / 2, COUNT = PAIRS * (TILE_M / CHUNK_STEPS);
    static constexpr int OWN = (COUNT + THREADS - 1) / THREADS, UNITS = 1;

    GradChannels reader;
    const int filters;  // that exist, of this block's: whole chunks
    int n = 0, p = 0, q = 0, first_plane = 0, unit = COUNT;
    GradChannels::Read own[2];

    __device__ __forceinline__ ChannelGradLoader(const GradChannels& reader, int filters)
        : reader(reader), filters(filters) {}
    __device__ __forceinline__ void begin(const HaloTile& tile, int first_plane) {
        n = tile.n, p = tile.p, q = tile.q, this->first_plane = first_plane;
        reader.set_corner(n, p, q);
        unit = threadIdx.x;
    }
    __device__ __forceinline__ bool has_units() const { return unit < COUNT; }
    __device__ __forceinline__ void ask(bool exists = true) {
        const int filter = unit / PAIRS * CHUNK_STEPS;
        const TilePixel pixel(unit % PAIRS * 2);
        if constexpr (TILE_IMAGES > 1) reader.set_corner(n + pixel.image, p, q);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            reader.go_to(first_plane + filter, pixel.row, pixel.col + e);
            own[e] = reader.read(exists && filter < filters);
        }
    }
    __device__ __forceinline__ void put(GradRows& rows, bool exists = true) {
        const int pixel = unit % PAIRS * 2, filter = exists ? unit / PAIRS * CHUNK_STEPS : 0;
        const Chunk g[2] = {GradChannels::formed(own[0]), GradChannels::formed(own[1])};
#pragma unroll
        for (int i = 0; i < CHUNK_STEPS; ++i) {
            Chunk& to = rows.chunks[0][GradRows::at(filter + i, pixel / CHUNK_STEPS)];
            const unsigned pair[] = {g[0].words[i / 2] >> 16 * (i % 2) & 0xffff | g[1].words[i / 2] >> 16 * (i % 2) << 16};
            store_if(exists, &to.words[pixel % CHUNK_STEPS / 2], pair);
        }
        unit += THREADS;
    }
    __device__ __forceinline__ void bring(GradRows& rows) {
#pragma unroll 1
        while (has_units()) {
            ask();
            put(rows);
        }
    }
};
