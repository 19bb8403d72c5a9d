// How forward's and input_grad's tensor_core bring both matrices to shared memory: the packed filter in the order in
// which lanes read it, windows as chunks of 16 bytes of a pixel's steps.
#pragma once
#include <cuda_pipeline.h>

#include "filter_product.cuh"
#include "run_parts.cuh"
#include "tensor_product.cuh"

using FilterSlice = LaneOrder<LEFT_PARTS>;
using WindowSlice = ChunkRows<RIGHT_PARTS, TILE_N, false, false>;
using TapProduct = TensorProduct<FilterSlice, WindowSlice>;

// Brings a slice of a tile of the packed filter, past the registers.
struct FilterLoader {
    static constexpr int OWN = FilterSlice::SIZE / 4 / THREADS;
    static_assert(FilterSlice::SIZE % (4 * THREADS) == 0, "the threads share a slice of the filter evenly");

    const Chunk* from;  // this thread's part of the next slice

    __device__ __forceinline__ explicit FilterLoader(const Acc* packed)
        : from(reinterpret_cast<const Chunk*>(packed) + threadIdx.x) {}
    __device__ __forceinline__ void fetch(FilterSlice& slice) {
        Chunk* const to = reinterpret_cast<Chunk*>(&slice) + threadIdx.x;
#pragma unroll
        for (int i = 0; i < OWN; ++i) __pipeline_memcpy_async(to + i * THREADS, from + i * THREADS, sizeof(Chunk));
        __pipeline_commit();
        from += OWN * THREADS;
    }
    __device__ __forceinline__ void put(FilterSlice&) const { __pipeline_wait_prior(0); }
};

// Brings a slice of windows, a chunk at a time.
template <class Reader, int PIXELS>
struct WindowLoader : WindowReads<Reader, PIXELS, CHUNK_STEPS> {
    using WindowReads<Reader, PIXELS, CHUNK_STEPS>::WindowReads;

    __device__ __forceinline__ void put(WindowSlice& slice) const {
#pragma unroll
        for (int i = 0; i < this->OWN; i += CHUNK_STEPS)
#pragma unroll
            for (int e = 0; e < PIXELS; ++e) {
                Chunk parts[RIGHT_PARTS];
                make_chunk(parts, this->own, i, e);
                const int chunk = (this->first_step + this->step(i)) / CHUNK_STEPS;
#pragma unroll
                for (int part = 0; part < RIGHT_PARTS; ++part)
                    slice.chunks[part][WindowSlice::at(this->first_pixel + e, chunk)] = parts[part];
            }
    }
};

// The pixels of a tile that are numbered one after the other, of which it is known whether all exist.
struct NumberedPixels : PixelRun {
    static constexpr bool ALL_EXIST = WHOLE_TILES;
};

// How a tile of forward or input_grad is multiplied whose windows are staged tap by tap, by all strides.
struct TapWindows {
    using Product = TapProduct;
    using Parts = RunParts<Product, MAY_SPLIT>;
    using Pixels = NumberedPixels;

    static __device__ __forceinline__ int count(const PixelGrid& grid) { return grid.count(); }
    static __device__ __forceinline__ Pixels pixels(const Tile& tile, const PixelGrid& grid) {
        return {{grid, tile.first_pixel}};
    }
    template <class Phase>
    static __device__ __forceinline__ int run_slices(const Phase&) {
        return RUN_SLICES;
    }
    template <int VECTOR_PIXELS, class Reader, class Phase>
    static __device__ __forceinline__ void add(Product& product, const Acc* filter, const Offset* offsets,
                                               const Reader& reader, const Phase& phase, const Tile& tile,
                                               const Parts& parts) {
        FilterLoader rows(filter);
        WindowLoader<Reader, VECTOR_PIXELS> windows(offsets, reader, phase.grid, tile.first_pixel);
        NoRowSums none;
        add_slices(product, rows, windows, none, parts.slices, parts);
    }
};
