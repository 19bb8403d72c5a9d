// Sums that are split among blocks: of forward and input_grad as matrix products, where tiles are fewer than a GPU has
// multiprocessors for them.
//
// gridDim.y blocks then have one tile, and each forms some of its runs (slices.cuh), whose sums it writes to scratch
// memory behind the packed filter. A launch of its own adds up the runs in the order in which one block would, and makes
// results of them: so the bits do not depend on how many blocks there are, nor on the GPU, nor on how many images.
#pragma once
#include "matrix_product.cuh"
#include "packed_filter.cuh"

constexpr int THREAD_VECTORS = REG_M * REG_N / VECTOR;

// Where the sums of all runs of this block's tile lie, of a run THREADS vectors side by side, as often as a thread has
// vectors of sums. slices: those of the longest phase.
template <class Filter>
__device__ __forceinline__ AccVector* parts_of_block(const Filter& filter) {
    const int runs = (filter.slices + RUN_SLICES - 1) / RUN_SLICES;
    return reinterpret_cast<AccVector*>(filter.end()) + Index(blockIdx.x) * runs * THREAD_VECTORS * THREADS +
           threadIdx.x;
}

// Which slices of a sum of `all` of them a block adds up, and where the sums of its runs go.
struct RunParts {
    const bool is_split = gridDim.y > 1;
    const int first_slice, slices;
    AccVector* next;

    template <class Filter>
    __device__ __forceinline__ RunParts(const Filter& filter, int all, int split_slices)
        : first_slice(blockIdx.y * split_slices), slices(min(split_slices, all - first_slice)),
          next(parts_of_block(filter) + first_slice / RUN_SLICES * THREAD_VECTORS * THREADS) {}

    template <class Product>
    __device__ __forceinline__ bool take(Product& product) {
        if (!is_split) return false;
        product.end_run(next, true, false);
        next += THREAD_VECTORS * THREADS;
        return true;
    }
};

// The sums of one row of each thread's, blockIdx.y, of a sum of so many slices: its runs' parts, added up.
struct RunTotals : ThreadTile {
    static constexpr int ROWS = 1, COLS = REG_N, ASIDE = VECTOR;
    static constexpr int AHEAD = 8;  // runs whose sums are on their way at once
    Acc sums[COLS] = {};

    template <class Filter>
    __device__ __forceinline__ RunTotals(const Filter& filter, int slices) {
        const AccVector* const parts = parts_of_block(filter) + blockIdx.y * (COLS / VECTOR) * THREADS;
        const int runs = (slices + RUN_SLICES - 1) / RUN_SLICES;
        for (int first = 0; first < runs; first += AHEAD) {
            AccVector own[AHEAD][COLS / VECTOR];
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
#pragma unroll
                for (int j = 0; j < COLS / VECTOR; ++j)
                    if (first + i < runs) own[i][j] = parts[((first + i) * THREAD_VECTORS + j) * THREADS];
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
#pragma unroll
                for (int j = 0; j < COLS; ++j) {
                    const Acc sum = own[i][j / VECTOR].elements[j % VECTOR];
                    if (first + i < runs) sums[j] = first + i == 0 ? sum : sums[j] + sum;
                }
        }
    }
    __device__ __forceinline__ int row(int) const { return ThreadTile::row(blockIdx.y); }
    __device__ __forceinline__ Acc sum(int, int j) const { return sums[j]; }
};
