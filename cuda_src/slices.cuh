// out[m][n] = sum_d a[d][m] * b[d][n], of matrices that exist nowhere: slice by slice of DEPTH steps of the sum.
//
// Two loaders, one a matrix, bring a slice to registers, or past them (fetch), while the block works on the one before,
// and then to shared memory (put). The sums of a run of steps are added to totals in shared memory, each thread's own, and start
// again: no term passes through more than RUN_STEPS additions and one for each run, where one long sum would lose
// digits. Where a block forms a part of the runs only, a launch of its own adds these up (run_parts.cuh).
#pragma once
#include "scalar.cuh"

static_assert(RUN_STEPS % DEPTH == 0, "a run is made of whole slices");
constexpr int RUN_SLICES = RUN_STEPS / DEPTH;
__device__ __forceinline__ int runs_of(int slices) { return (slices + RUN_SLICES - 1) / RUN_SLICES; }

constexpr int VECTOR = 16 / sizeof(Acc);  // numbers in shared memory that are moved at once
struct alignas(16) AccVector {
    Acc elements[VECTOR];
};

// Where one of a thread's sums lies among the vectors of them that it writes.
struct Part {
    int vector, element;
};

extern __shared__ __align__(16) unsigned char shared[];

// PADDING after each step's numbers keeps loaders that write steps side by side free of bank conflicts.
template <int PADDING>
struct alignas(16) Slice {
    Acc a[DEPTH][TILE_M + PADDING];
    Acc b[DEPTH][TILE_N + PADDING];
};

// The two slices in shared memory: while one is multiplied, the next is brought.
template <class Product>
__device__ __forceinline__ typename Product::Slice* slices_of() {
    return reinterpret_cast<typename Product::Slice*>(shared);
}

// For sums of which nothing else is wanted.
struct NoRowSums {
    template <class Slice>
    __device__ __forceinline__ void add(const Slice&) {}
};

// For a block that forms all of its sums.
struct AllRuns {
    template <class Product>
    __device__ __forceinline__ bool take(Product&) {
        return false;
    }
};

// Ends a run: its sums are added to the totals, which lie THREADS vectors apart. After the last, these are the sums.
template <int ROWS, int COLS>
__device__ __forceinline__ void end_run(Acc (&sums)[ROWS][COLS], AccVector* totals, bool is_first, bool is_last) {
#pragma unroll
    for (int i = 0; i < ROWS * COLS; i += VECTOR, totals += THREADS) {
        AccVector total = is_first ? AccVector{} : *totals;
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) {
            Acc& sum = sums[i / COLS][i % COLS + e];
            total.elements[e] = is_first ? sum : total.elements[e] + sum;
            sum = is_last ? total.elements[e] : Acc(0);
        }
        if (!is_last) *totals = total;
    }
}

// Adds up so many slices, the next of those that the loaders bring. RowSums sees each of them, too. Parts may take the
// sums of each run; else these are added up.
template <class Product, class LoaderA, class LoaderB, class RowSums, class Parts = AllRuns>
__device__ __forceinline__ void add_slices(Product& product, LoaderA& a, LoaderB& b, RowSums& row_sums, int count,
                                           Parts parts = Parts()) {
    typename Product::Slice* const slices = slices_of<Product>();
    AccVector* const totals = reinterpret_cast<AccVector*>(slices + 2) + threadIdx.x;

    if (count <= 0) return;
    a.fetch(slices[0].a);
    b.fetch(slices[0].b);
    a.put(slices[0].a);
    b.put(slices[0].b);
    __syncthreads();  // the first slice is there
    int across = sizeof(slices[0]);  // bytes from this slice to the next one: forth, then back
    for (int slice = 0; slice < count;) {
        const int run_end = min(slice + RUN_SLICES, count), is_first = slice == 0;
        for (; slice < run_end; ++slice) {
            const bool is_last = slice + 1 == count;
            typename Product::Slice& next = slices[slice + 1 & 1];
            if (!is_last) {
                a.fetch(next.a);
                b.fetch(next.b);
            }
            __syncwarp();  // or ptxas moves the loads to where they are wanted, and each slice waits for memory
            product.add(slices[slice & 1]);
            product.turn(across);
            across = -across;
            row_sums.add(slices[slice & 1]);
            if (!is_last) {
                a.put(next.a);
                b.put(next.b);
            }
            __syncthreads();  // the next slice is there, and nobody reads this one any more
        }
        if (!parts.take(product) && count > RUN_SLICES) product.end_run(totals, is_first, run_end == count);
    }
}
