// The matrix product that the files named vectorised_gemm are made of, on one tile of the result:
//     out[m][n] = sum_d a[d][m] * b[d][n]
//
// The matrices exist nowhere: two loaders, one a matrix, bring slices of DEPTH steps of the sum to shared memory. Each
// thread keeps REG_M x REG_N sums, Lanes, in a CPU's vector registers. The sums of a run of steps are added to totals
// in shared memory, each thread's own, and start again: no term passes through more than RUN_STEPS additions and one
// for each run, where one long sum would lose digits.
#pragma once
#include "cpu/lane.cuh"

static_assert(TILE_M % REG_M == 0, "a thread's rows divide the tile's");
static_assert(RUN_STEPS % DEPTH == 0, "a run is made of whole slices");

extern __shared__ __align__(64) unsigned char shared[];

// Numbers that a thread reads side by side: 16 bytes of them.
constexpr int QUAD = 16 / sizeof(Acc);
struct alignas(16) Quad {
    Acc elements[QUAD];
};

// Rows: what a slice of a is made of, Quads of rows, or Lanes, one a row. WIDTH and REG_N count Lanes of b. PADDING
// after each step's rows and columns: if they fill whole pages, steps would share few lines of the cache.
template <class Rows, int STEPS, int WIDTH, int PADDING>
struct LaneProduct {
    static constexpr int ROWS = REG_M, COLS = REG_N, ASIDE = std::is_same_v<Rows, Lane> ? 1 : QUAD;
    static constexpr int THREAD_COLS = WIDTH / REG_N, THREAD_ROWS = TILE_M / REG_M;
    static constexpr int RUN_SLICES = RUN_STEPS / DEPTH;
    static_assert(THREADS == THREAD_COLS * THREAD_ROWS, "the threads' sums make up the tile");
    static_assert(REG_M % ASIDE == 0, "a thread reads whole Quads");

    struct Slice {
        Rows a[STEPS][TILE_M / ASIDE + PADDING];
        Lane b[STEPS][WIDTH + PADDING];
    };
    Slice* const slices = reinterpret_cast<Slice*>(settled(shared));
    Lane* const totals = reinterpret_cast<Lane*>(slices + 2) + threadIdx.x;

    // Where am I in the tile.
    const int thread_col = threadIdx.x % THREAD_COLS, thread_row = threadIdx.x / THREAD_COLS;
    Lane sums[REG_M][REG_N];

    __forceinline__ int row(int i) const { return (i / ASIDE * THREAD_ROWS + thread_row) * ASIDE + i % ASIDE; }
    __forceinline__ int col(int j) const { return j * THREAD_COLS + thread_col; }

    __forceinline__ LaneProduct() { clear(); }
    __forceinline__ void clear() {
        unroll<REG_M>([&](auto i) INLINED { unroll<REG_N>([&](auto j) INLINED { sums[i][j] = Lane{}; }); });
    }

    __forceinline__ void add(const Slice& slice) {
        for (int d = 0; d < STEPS; ++d) {
            // From one address each: formed anew for every number, addresses would take the registers of sums.
            const Rows* const first_a = &slice.a[d][thread_row];
            const Lane* const first_b = &slice.b[d][thread_col];
            Rows a[REG_M / ASIDE];
            Lane b[REG_N];
            unroll<REG_M / ASIDE>([&](auto i) INLINED { a[i] = first_a[i * THREAD_ROWS]; });
            unroll<REG_N>([&](auto j) INLINED { b[j] = first_b[j * THREAD_COLS]; });
            unroll<REG_M>([&](auto i) INLINED {
                unroll<REG_N>([&](auto j) INLINED {
                    if constexpr (ASIDE == 1)
                        sums[i][j] += a[i] * b[j];
                    else
                        sums[i][j] += a[i / ASIDE].elements[i % ASIDE] * b[j];
                });
            });
        }
    }

    // f(a sum, its total)
    template <class F>
    __forceinline__ void for_each_total(F&& f) {
        unroll<REG_M>([&](auto i) INLINED {
            unroll<REG_N>([&](auto j) INLINED { f(sums[i][j], totals[(i * REG_N + j) * THREADS]); });
        });
    }

    // Adds up so many slices, the next of those that the loaders bring. row_sums sees each of them, too.
    template <class LoaderA, class LoaderB, class RowSums>
    __forceinline__ void run(LoaderA& a, LoaderB& b, RowSums& row_sums, int count) {
        if (count <= 0) return;
        const bool has_totals = count > RUN_SLICES;
        if (has_totals) for_each_total([&](Lane&, Lane& total) INLINED { total = Lane{}; });
        a.fetch();
        b.fetch();
        a.put(slices[0].a);
        b.put(slices[0].b);
        __syncthreads();  // the first slice is there
        for (int slice = 0; slice < count;) {
            for (const int run_end = min(slice + RUN_SLICES, count); slice < run_end; ++slice) {
                const bool is_last = slice + 1 == count;
                if (!is_last) {
                    a.fetch();
                    b.fetch();
                }
                add(slices[slice & 1]);
                row_sums.add(slices[slice & 1]);
                if (!is_last) {
                    a.put(slices[slice + 1 & 1].a);
                    b.put(slices[slice + 1 & 1].b);
                }
                __syncthreads();  // the next slice is there, and nobody reads this one any more
            }
            if (has_totals) {
                for_each_total([&](Lane& sum, Lane& total) INLINED { total += sum; });
                clear();
            }
        }
        if (has_totals) for_each_total([&](Lane& sum, Lane& total) INLINED { sum = total; });
    }
};

// For sums of which nothing else is wanted.
struct NoRowSums {
    template <class Slice>
    __forceinline__ void add(const Slice&) {}
};
