// A slice of a matrix product, by fused multiply-adds: sums[m][n] += sum_d a[d][m] * b[d][n]
//
// Each thread keeps REG_M x REG_N of the tile's sums in registers: a step takes REG_M + REG_N numbers from shared
// memory for REG_M * REG_N multiply-adds. It reads vectors of 16 bytes that lie THREAD_ROWS (or THREAD_COLS) vectors
// apart, and a warp is 4 threads high and 8 wide: so at once it reads 4 neighbouring vectors of a and 8 of b, each for
// all threads that want it, and meets no bank twice. Neighbouring lanes stand below each other, so that half a warp wants
// no more than the banks bring at once: 2 vectors of a, or 8 of b.
#pragma once
#include <stddef.h>

#include "slices.cuh"

constexpr int THREAD_ROWS = TILE_M / REG_M, THREAD_COLS = TILE_N / REG_N;
constexpr int WARP_ROWS = 4, WARP_COLS = 8;
constexpr int WARPS_ACROSS = THREAD_COLS / WARP_COLS;
static_assert(TILE_M % REG_M == 0 && TILE_N % REG_N == 0, "the threads share the tile evenly");
static_assert(THREADS == THREAD_ROWS * THREAD_COLS, "the threads' sums make up the tile");
static_assert(THREAD_ROWS % WARP_ROWS == 0 && THREAD_COLS % WARP_COLS == 0, "the tile is made of whole warps");
static_assert(REG_M % VECTOR == 0 && REG_N % VECTOR == 0, "a thread reads whole vectors");

// The blocks that a multiprocessor should hold: RESIDENT, where its shared memory holds so many, as of sm_90 and sm_100.
// Others have registers left then: as of so many threads.
constexpr int blocks_of(int threads) {
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1100)
    const int most = threads < THREADS ? 1 : threads / THREADS;
    return most < RESIDENT ? most : RESIDENT;
#else
    return RESIDENT;
#endif
}

// Where a thread's sums lie in the tile.
struct ThreadTile {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int thread_row = lane % 2 + lane / 16 * 2 + warp / WARPS_ACROSS * WARP_ROWS;
    const int thread_col = lane / 2 % WARP_COLS + warp % WARPS_ACROSS * WARP_COLS;

    // The row and column of the tile that sums[i][j] belongs to: ASIDE of them are side by side.
    __device__ __forceinline__ int row(int i) const {
        return (i / VECTOR * THREAD_ROWS + thread_row) * VECTOR + i % VECTOR;
    }
    __device__ __forceinline__ int col(int j) const {
        return (j / VECTOR * THREAD_COLS + thread_col) * VECTOR + j % VECTOR;
    }
};

template <int PADDING>
struct MatrixProduct : ThreadTile {
    using Slice = ::Slice<PADDING>;
    using Place = ThreadTile;
    static constexpr int ROWS = REG_M, COLS = REG_N, ASIDE = VECTOR, VECTOR_ROWS = 1;
    static constexpr int ROWS_APART = THREAD_ROWS * sizeof(AccVector), COLS_APART = THREAD_COLS * sizeof(AccVector);
    // Bytes from `shared` to this thread's first rows and columns of the slice that is next.
    int rows_at = row(0) * sizeof(Acc), cols_at = offsetof(Slice, b) + col(0) * sizeof(Acc);
    Acc sums[ROWS][COLS] = {};

    __device__ __forceinline__ Acc sum(int i, int j) const { return sums[i][j]; }
    static __device__ __forceinline__ Acc result(Acc sum) { return sum; }
    static __device__ __forceinline__ Part part_of(int i, int j) { return {(i * COLS + j) / VECTOR, j % VECTOR}; }
    __device__ __forceinline__ void leave_run(AccVector* to) { end_run(to, true, false); }

    __device__ __forceinline__ void end_run(AccVector* totals, bool is_first, bool is_last) {
        ::end_run(sums, totals, is_first, is_last);
    }
    // To the other slice, so many bytes on. Where a thread reads is kept, for ptxas forms anew for each slice what follows
    // from threadIdx alone.
    __device__ __forceinline__ void turn(int across) {
        rows_at += across;
        cols_at += across;
    }
    __device__ __forceinline__ void add(const Slice&) {
        const unsigned char *const rows = shared + rows_at, *const cols = shared + cols_at;
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            AccVector a[ROWS / VECTOR], b[COLS / VECTOR];
#pragma unroll
            for (int i = 0; i < ROWS / VECTOR; ++i)
                a[i] = *reinterpret_cast<const AccVector*>(rows + d * sizeof(Slice::a[0]) + i * ROWS_APART);
#pragma unroll
            for (int j = 0; j < COLS / VECTOR; ++j)
                b[j] = *reinterpret_cast<const AccVector*>(cols + d * sizeof(Slice::b[0]) + j * COLS_APART);
#pragma unroll
            for (int i = 0; i < ROWS; ++i)
#pragma unroll
                for (int j = 0; j < COLS; ++j)
                    sums[i][j] += a[i / VECTOR].elements[i % VECTOR] * b[j / VECTOR].elements[j % VECTOR];
        }
    }
};
