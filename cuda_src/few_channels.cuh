// Sums over many planes of a source, each with its own taps, for the few channels of a result:
//
//     sums[i][c][j] += source[u][v] * taps[r][s][c]       where result (i, j) meets position (u, v) through tap (r, s)
//
// Rows and Cols say along one axis which results are a thread's OWN and which positions these meet: SEEN of them, which
// begin STEP beyond those of the thread before; tap(i, u) is the tap, or -1. A block's THREADS / LANES lines of LANES
// threads share a tile of the source in shared memory, and the taps of all channels, which all threads read at once.
#pragma once
#include "vector.cuh"

__device__ constexpr int round_up(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

constexpr int VECTOR = 16 / sizeof(Acc);  // numbers in shared memory that are moved at once
constexpr int READ = COLS < VECTOR ? COLS : VECTOR;
template <int N>
struct alignas(N * sizeof(Acc)) AccVector {
    Acc elements[N];
};

// values[i] = from[i] for i from FIRST on, N at a time where that is aligned.
template <int N, int FIRST = 0, int COUNT>
__device__ __forceinline__ void read_numbers(Acc (&values)[COUNT], const Acc* from) {
#pragma unroll
    for (int i = FIRST; i < COUNT; ++i) {
        if (i % N != 0 && i >= round_up(FIRST, N) && i / N * N + N <= COUNT) continue;  // is part of a vector
        if (i % N != 0 || i + N > COUNT) {
            values[i] = from[i];
            continue;
        }
        const AccVector<N> vector = *reinterpret_cast<const AccVector<N>*>(from + i);
#pragma unroll
        for (int e = 0; e < N; ++e) values[i + e] = vector.elements[e];
    }
}
template <int N>
__device__ __forceinline__ void write_vector(Acc* to, const Acc (&values)[N]) {
    AccVector<N> vector;
#pragma unroll
    for (int i = 0; i < N; ++i) vector.elements[i] = values[i];
    *reinterpret_cast<AccVector<N>*>(to) = vector;
}

// The taps of a chunk of planes, the channels side by side.
constexpr int TAP_ROW = FILTER_S * FEW;
struct alignas(16) PlaneTaps {
    Acc rows[FILTER_R][round_up(TAP_ROW, VECTOR)];
};

// PIECE: columns of the source that are brought at once.
template <class Rows, class Cols, int PIECE>
struct FewChannels {
    static constexpr int WINDOW = LEAD + Cols::SEEN;  // columns up to the last that a thread reads
    struct alignas(16) Tile {
        static constexpr int ROWS = (THREADS / LANES - 1) * Rows::STEP + Rows::SEEN;
        static constexpr int WIDTH = round_up((LANES - 1) * Cols::STEP + WINDOW, VECTOR);
        Acc rows[ROWS][WIDTH];
    };

    Acc sums[Rows::OWN][FEW][Cols::OWN] = {}, totals[Rows::OWN][FEW][Cols::OWN] = {};
    int terms = 0;  // of sums
    static constexpr int TURNS = UNROLLED ? Rows::SEEN : 1;

    // Adds the products of a plane. Taps that several rows of results meet stay in registers meanwhile.
    __device__ __forceinline__ void add(const Tile& tile, const PlaneTaps& plane_taps) {
        constexpr bool KEPT = UNROLLED && TILE_ROWS > 1;
        Acc taps[KEPT ? FILTER_R : 1][TAP_ROW];
        const int first_u = threadIdx.x / LANES * Rows::STEP, first_v = threadIdx.x % LANES * Cols::STEP;
#pragma unroll
        for (int r = 0; KEPT && r < FILTER_R; ++r) read_numbers<VECTOR>(taps[r], plane_taps.rows[r]);
#pragma unroll TURNS
        for (int u = 0; u < Rows::SEEN; ++u) {
            Acc source[WINDOW];
            read_numbers<READ, LEAD>(source, &tile.rows[first_u + u][first_v]);
#pragma unroll
            for (int i = 0; i < Rows::OWN; ++i) {
                const int r = Rows::tap(i, u), kept = KEPT ? r : 0;
                if (r < 0) continue;
                if (!KEPT) read_numbers<VECTOR>(taps[0], plane_taps.rows[r]);
#pragma unroll
                for (int v = 0; v < Cols::SEEN; ++v)
#pragma unroll
                    for (int j = 0; j < Cols::OWN; ++j)
#pragma unroll
                        for (int c = 0; c < FEW; ++c)
                            if (const int s = Cols::tap(j, v); s >= 0)
                                sums[i][c][j] += source[LEAD + v] * taps[kept][s * FEW + c];
            }
            if (!UNROLLED) count(FILTER_S);
        }
        if (UNROLLED) count(FILTER_R * FILTER_S);
    }

    // A sum of RUN_TERMS starts anew: no term passes through many more additions than these and one for each run.
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
    __device__ __forceinline__ Acc sum(int i, int c, int j) const {
        return totals[i][c][j] + sums[i][c][j];
    }
};
