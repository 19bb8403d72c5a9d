// Sums over many planes of a source, each with its own taps, for the few channels of a result:
//
//     sums[i][c][j] += source[u][v] * taps[r][s][c]       where result (i, j) meets position (u, v) through tap (r, s)
//
// Rows and Cols say along one axis which results are a thread's OWN and which positions these meet: SEEN of them, which
// begin STEP beyond those of the thread before; tap(i, u) is the tap, or -1. The lanes of a warp lie side by side, the
// warps of a block one below the other. Their part of a plane is in shared memory, column v of it in place v / STEP of
// phase v % STEP: so the lanes read neighbouring numbers, and no two meet in a bank. A tap they all read at once.
#pragma once
#include "columns.cuh"

__device__ constexpr int round_up(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

constexpr int LANES = 32;
static_assert(THREADS % LANES == 0, "a block is made of whole warps");

constexpr int VECTOR = 16 / sizeof(Acc);  // taps that are read at once
struct alignas(16) AccVector {
    Acc elements[VECTOR];
};

// The taps of a plane: those of a row for all channels side by side.
constexpr int TAP_ROW = FILTER_S * FEW;
struct alignas(16) PlaneTaps {
    Acc rows[FILTER_R][round_up(TAP_ROW, VECTOR)];

    __device__ __forceinline__ Acc& at(int r, int s, int c) { return rows[r][s * FEW + c]; }
    __device__ __forceinline__ void read(Acc (&taps)[TAP_ROW], int r) const {
#pragma unroll
        for (int i = 0; i + VECTOR <= TAP_ROW; i += VECTOR) {
            const AccVector vector = *reinterpret_cast<const AccVector*>(rows[r] + i);
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) taps[i + e] = vector.elements[e];
        }
#pragma unroll
        for (int i = TAP_ROW / VECTOR * VECTOR; i < TAP_ROW; ++i) taps[i] = rows[r][i];
    }
};

// A tile's part of a plane. PIECE: columns that are brought at once.
template <class Rows, class Cols, int PIECE>
struct PlaneTile {
    static constexpr int STEP = Cols::STEP, ROWS = (THREADS / LANES - 1) * Rows::STEP + Rows::SEEN;
    static constexpr int PLACES = LANES + (LEAD + Cols::SEEN - 1) / STEP, PIECES = PLACES * STEP / PIECE;
    static_assert(STEP % PIECE == 0, "what is brought at once is in one place of each phase");
    Acc phases[STEP][round_up(ROWS * PLACES, 32) + 32 / STEP];  // threads that bring one column each write all phases

    __device__ __forceinline__ void put(int row, int col, const Acc (&values)[PIECE]) {
#pragma unroll
        for (int e = 0; e < PIECE; ++e) phases[col % STEP + e][row * PLACES + col / STEP] = values[e];
    }
    // The position v of row u of those that a thread's results meet.
    __device__ __forceinline__ Acc seen(int u, int v) const {
        const int row = threadIdx.x / LANES * Rows::STEP + u;
        return phases[(LEAD + v) % STEP][row * PLACES + threadIdx.x % LANES + (LEAD + v) / STEP];
    }
};

template <class Rows, class Cols>
struct FewChannels {
    static constexpr bool RUNS_OF_ROWS = FILTER_R * FILTER_S > RUN_TERMS;  // where a thread has one row of strides
    static constexpr int TURNS = UNROLLED ? Rows::SEEN : 1;
    static constexpr bool KEPT = UNROLLED && TILE_ROWS > 1;  // taps that several rows of results meet stay in registers
    Acc sums[Rows::OWN][FEW][Cols::OWN] = {}, totals[Rows::OWN][FEW][Cols::OWN] = {};
    int terms = 0;  // of sums

    // Adds the products of a plane. By fma: of a product and a sum a C++ compiler makes one in some tiles only.
    template <class Tile>
    __device__ __forceinline__ void add(const Tile& tile, const PlaneTaps& plane_taps) {
        Acc taps[KEPT ? FILTER_R : 1][TAP_ROW];
#pragma unroll
        for (int r = 0; KEPT && r < FILTER_R; ++r) plane_taps.read(taps[r], r);
#pragma unroll TURNS
        for (int u = 0; u < Rows::SEEN; ++u) {
            Acc source[Cols::SEEN];
#pragma unroll
            for (int v = 0; v < Cols::SEEN; ++v) source[v] = tile.seen(u, v);
#pragma unroll
            for (int i = 0; i < Rows::OWN; ++i) {
                const int r = Rows::tap(i, u), kept = KEPT ? r : 0;
                if (r < 0) continue;
                if (!KEPT) plane_taps.read(taps[0], r);
#pragma unroll
                for (int v = 0; v < Cols::SEEN; ++v)
#pragma unroll
                    for (int j = 0; j < Cols::OWN; ++j)
#pragma unroll
                        for (int c = 0; c < FEW; ++c)
                            if (const int s = Cols::tap(j, v); s >= 0)
                                sums[i][c][j] = fma(source[v], taps[kept][s * FEW + c], sums[i][c][j]);
            }
            if (RUNS_OF_ROWS) count(FILTER_S);
        }
        if (!RUNS_OF_ROWS) count(FILTER_R * FILTER_S);
    }

    // A sum of RUN_TERMS starts anew: no term passes through many more additions than these and one for each run. Which
    // terms are a run must not depend on the tile, or a batch of one image would have other bits than one of many.
    __device__ __forceinline__ void count(int more) {
        terms += more;
        if (terms < RUN_TERMS) return;
        terms = 0;
#pragma unroll
        for (int i = 0; i < Rows::OWN; ++i)
#pragma unroll
            for (int c = 0; c < FEW; ++c)
#pragma unroll
                for (int j = 0; j < Cols::OWN; ++j) {
                    totals[i][c][j] += sums[i][c][j];
                    sums[i][c][j] = 0;
                }
    }
    __device__ __forceinline__ Acc sum(int i, int c, int j) const { return totals[i][c][j] + sums[i][c][j]; }
};
