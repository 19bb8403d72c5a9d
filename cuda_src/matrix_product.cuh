// The matrix product that the files named implicit_gemm are made of, on one tile of the result:
//     out[m][n] = sum_d a[d][m] * b[d][n]
//
// The matrices exist nowhere: a loader brings slices of DEPTH steps of the sum to shared memory, the next one to
// registers while the block works on the one before. Each thread keeps REG_M x REG_N sums in registers, so a step takes
// REG_M + REG_N numbers from shared memory for REG_M * REG_N multiply-adds. The sums of a run of steps are added to
// totals in shared memory, each thread's own, and start again: no term passes through more than RUN_STEPS additions
// and one for each run, where one long sum would lose digits.
//
// No bank conflicts: a thread reads pieces of 16 bytes that lie THREADS_X (or _Y) pieces apart, and a warp is 8 threads
// wide, so that at once it reads 8 neighbouring pieces of b and 4 of a, each for all threads that want it.
#pragma once
#include "lane.cuh"

static_assert(TILE_M % REG_M == 0, "a thread's rows divide the tile's");
static_assert(RUN_STEPS % DEPTH == 0, "a run is made of whole slices");

extern __shared__ __align__(64) unsigned char shared[];

// What a thread reads from shared memory at once: 16 bytes, or one Lane of a CPU.
template <class T>
constexpr int PIECE = sizeof(T) < 16 ? 16 / sizeof(T) : 1;
template <class T>
struct alignas(sizeof(T) * PIECE<T>) Piece {
    T elements[PIECE<T>];
};

// A and B are what the slices hold: numbers, or Lanes. COLUMNS and REG_COLUMNS count elements of B. PADDING pieces
// after each step's rows keep a loader that writes steps side by side free of bank conflicts.
template <class A, class B, int STEPS_, int COLUMNS, int REG_COLUMNS, int PADDING>
struct MatrixProduct {
    static constexpr int STEPS = STEPS_, PA = PIECE<A>, PB = PIECE<B>;
    static constexpr int THREADS_X = COLUMNS / REG_COLUMNS, THREADS_Y = TILE_M / REG_M;
    static constexpr int WARP_X = THREADS_X < 8 ? THREADS_X : 8, WARP_Y = 32 / WARP_X, WARPS_X = THREADS_X / WARP_X;
    static constexpr int RUN_SLICES = RUN_STEPS / DEPTH;
    static_assert(THREADS == THREADS_X * THREADS_Y, "the threads' sums make up the tile");
    static_assert(REG_M % PA == 0 && REG_COLUMNS % PB == 0, "a thread reads whole pieces");

    struct Slice {
        Piece<A> a[STEPS][TILE_M / PA + PADDING];
        Piece<B> b[STEPS][COLUMNS / PB + PADDING];
    };
    Slice* const slices = reinterpret_cast<Slice*>(settled(shared));
    Piece<B>* const totals = reinterpret_cast<Piece<B>*>(slices + 2) + threadIdx.x;

    // Where am I in the tile: x and y number the threads, as above.
    const int x = threadIdx.x % WARP_X + threadIdx.x / 32 % WARPS_X * WARP_X;
    const int y = threadIdx.x % 32 / WARP_X + threadIdx.x / 32 / WARPS_X * WARP_Y;

    B sums[REG_M][REG_COLUMNS];

    __device__ __forceinline__ int row(int i) const { return (i / PA * THREADS_Y + y) * PA + i % PA; }
    __device__ __forceinline__ int column(int j) const { return (j / PB * THREADS_X + x) * PB + j % PB; }

    __device__ __forceinline__ MatrixProduct() { clear(); }
    __device__ __forceinline__ void clear() {
        unroll<REG_M>([&](auto i) INLINED { unroll<REG_COLUMNS>([&](auto j) INLINED { sums[i][j] = B{}; }); });
    }

    __device__ __forceinline__ void add(const Slice& slice) {
#pragma unroll
        for (int d = 0; d < STEPS; ++d) {
            Piece<A> a[REG_M / PA];
            Piece<B> b[REG_COLUMNS / PB];
            unroll<REG_M / PA>([&](auto i) INLINED { a[i] = slice.a[d][i * THREADS_Y + y]; });
            unroll<REG_COLUMNS / PB>([&](auto j) INLINED { b[j] = slice.b[d][j * THREADS_X + x]; });
            unroll<REG_M>([&](auto i) INLINED {
                unroll<REG_COLUMNS>([&](auto j) INLINED {
                    sums[i][j] += a[i / PA].elements[i % PA] * b[j / PB].elements[j % PB];
                });
            });
        }
    }

    // f(a piece of the sums, the same piece of the totals)
    template <class F>
    __device__ __forceinline__ void for_each_piece(F&& f) {
        unroll<REG_M>([&](auto i) INLINED {
            unroll<REG_COLUMNS / PB>([&](auto j) INLINED {
                f(&sums[i][j * PB], totals[(i * (REG_COLUMNS / PB) + j) * THREADS]);
            });
        });
    }
    __device__ __forceinline__ void end_run() {
        for_each_piece([&](B* sum, Piece<B>& total) INLINED {
            Piece<B> added = total;
            unroll<PB>([&](auto e) INLINED { added.elements[e] += sum[e]; });
            total = added;
        });
        clear();
    }

    // Adds up slices first to end - 1. also(slice) is called with each.
    template <class Loader, class Also>
    __device__ __forceinline__ void run(Loader& loader, int first, int end, Also&& also) {
        if (first >= end) return;
        const bool has_totals = end - first > RUN_SLICES;
        if (has_totals) for_each_piece([&](B*, Piece<B>& total) INLINED { total = Piece<B>{}; });
        loader.fetch(first);
        loader.put(slices[first & 1]);
        __syncthreads();  // the first slice is there
        for (int slice = first; slice < end;) {
            for (const int run_end = min(slice + RUN_SLICES, end); slice < run_end; ++slice) {
                const bool is_last = slice + 1 == end;
                if (!is_last) loader.fetch(slice + 1);
                add(slices[slice & 1]);
                also(slices[slice & 1]);
                if (!is_last) loader.put(slices[slice + 1 & 1]);
                __syncthreads();  // the next slice is there, and nobody reads this one any more
            }
            if (has_totals) end_run();
        }
        if (has_totals)
            for_each_piece([&](B* sum, Piece<B>& total) INLINED {
                const Piece<B> added = total;
                unroll<PB>([&](auto e) INLINED { sum[e] = added.elements[e]; });
            });
    }
};
