// Sums that are split among blocks: of forward and input_grad as matrix products, where tiles are fewer than a GPU has
// multiprocessors for them.
//
// gridDim.y blocks then have one tile, and each forms some of its runs (slices.cuh), whose sums it writes to scratch
// memory behind the packed filter. A launch of its own adds up the runs in the order in which one block would, and makes
// results of them: so the bits do not depend on how many blocks there are, nor on the GPU, nor on how many images.
//
// A Product knows where its sums lie in vectors of them: VECTOR_ROWS rows of a thread's have whole vectors (part_of).
#pragma once
#include "packed_filter.cuh"
#include "slices.cuh"

// Vectors of sums that a thread has, and those of VECTOR_ROWS rows of them.
template <class Product>
constexpr int THREAD_VECTORS = Product::ROWS * Product::COLS / VECTOR;
template <class Product>
constexpr int ROW_VECTORS = Product::VECTOR_ROWS * Product::COLS / VECTOR;

// Where the sums of all runs of this block's tile lie, of a run THREADS vectors side by side, as often as a thread has
// vectors of sums. runs: those of the longest phase.
template <class Product, class Filter>
__device__ __forceinline__ AccVector* parts_of_block(const Filter& filter, int runs) {
    return reinterpret_cast<AccVector*>(filter.end()) + Index(blockIdx.x) * runs * THREAD_VECTORS<Product> * THREADS +
           threadIdx.x;
}

// Which slices of a sum of `all` of them a block adds up, and where the sums of its runs go.
template <class Product, bool CAN_SPLIT = true>
struct RunParts {
    const bool is_split = CAN_SPLIT && gridDim.y > 1;
    const int first_slice, slices;
    AccVector* next;

    // runs: those of the longest phase. split_slices: whole runs, of so many slices each.
    template <class Filter>
    __device__ __forceinline__ RunParts(const Filter& filter, int runs, int all, int split_slices,
                                        int run_slices = RUN_SLICES)
        : first_slice(CAN_SPLIT ? blockIdx.y * split_slices : 0),
          slices(CAN_SPLIT ? min(split_slices, all - first_slice) : all),
          next(parts_of_block<Product>(filter, runs) + first_slice / run_slices * THREAD_VECTORS<Product> * THREADS) {}
    __device__ __forceinline__ bool take(Product& product) {
        if (!is_split) return false;
        product.leave_run(next);
        next += THREAD_VECTORS<Product> * THREADS;
        return true;
    }
};

// The sums of some rows of each thread's, the blockIdx.y-th VECTOR_ROWS of them, of a sum of so many runs: their parts,
// added up.
template <class Product>
struct RunTotals : Product::Place {
    static constexpr int ROWS = Product::VECTOR_ROWS, COLS = Product::COLS, ASIDE = Product::ASIDE;
    static constexpr int VECTORS = ROW_VECTORS<Product>;
    static constexpr int AHEAD = VECTORS <= 4 ? 8 : 4;  // runs whose sums are on their way at once
    AccVector sums[VECTORS] = {};

    template <class Filter>
    __device__ __forceinline__ RunTotals(const Filter& filter, int longest, int runs) {
        const AccVector* const parts = parts_of_block<Product>(filter, longest) + blockIdx.y * VECTORS * THREADS;
        for (int first = 0; first < runs; first += AHEAD) {
            AccVector own[AHEAD][VECTORS];
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
#pragma unroll
                for (int j = 0; j < VECTORS; ++j)
                    if (first + i < runs) own[i][j] = parts[((first + i) * THREAD_VECTORS<Product> + j) * THREADS];
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
#pragma unroll
                for (int j = 0; j < VECTORS; ++j)
#pragma unroll
                    for (int e = 0; e < VECTOR; ++e) {
                        const Acc sum = own[i][j].elements[e];
                        Acc& total = sums[j].elements[e];
                        if (first + i < runs) total = first + i == 0 ? sum : total + sum;
                    }
        }
    }
    __device__ __forceinline__ int row(int i) const { return Product::Place::row(blockIdx.y * ROWS + i); }
    __device__ __forceinline__ Acc sum(int i, int j) const {
        const Part part = Product::part_of(i, j);
        return Product::result(sums[part.vector].elements[part.element]);
    }
};
