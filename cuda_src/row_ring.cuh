// Rows of an image on their way to shared memory, several ahead of the one that is used.
//
// A tile is TILE_LANES strips of COLS columns side by side, and belongs to as many neighbouring lanes of a warp. They
// bring the rows that its strips see, each column once, to a ring of STAGES rows in shared memory, and read their windows
// from there. Nobody waits for a row but for the one that is used: a thread waits for its own copies (cuda_pipeline.h;
// cp.async from sm_80 on), and __syncwarp, behind that, makes those of all lanes visible. So what is under way does not
// depend on how many registers a thread has, and no warp waits for another one.
#pragma once
#include <cuda_pipeline.h>

#include "vector.cuh"

extern __shared__ __align__(16) unsigned char shared[];

__device__ __forceinline__ int tile_lane() { return threadIdx.x % TILE_LANES; }
__device__ __forceinline__ int next_stage(int stage) { return stage + 1 < STAGES ? stage + 1 : 0; }

constexpr int round_up(int number, int to) { return (number + to - 1) / to * to; }

// The rows of one array: WIDTH elements T each of a tile, brought VECTOR at a time.
template <class T, int WIDTH, int VECTOR>
struct RowRing {
    static constexpr int PITCH = round_up(WIDTH * sizeof(T), 16) / sizeof(T), BYTES = STAGES * PITCH * sizeof(T);
    static constexpr int VECTORS = round_up(WIDTH, VECTOR) / VECTOR, EACH = round_up(VECTORS, TILE_LANES) / TILE_LANES;
    static_assert(VECTORS * VECTOR <= PITCH, "a row holds its last vector");
    // Fewer bytes than 4 cannot be copied asynchronously: they wait in registers until the next row is asked for.
    static constexpr bool ASYNCHRONOUS = VECTOR * sizeof(T) >= 4;
    static_assert(ASYNCHRONOUS || VECTOR == 1, "then they are brought one by one");

    T* const rows;
    T waiting[ASYNCHRONOUS ? 1 : EACH];
    int waiting_stage = -1;

    __device__ __forceinline__ explicit RowRing(unsigned char* memory) : rows(reinterpret_cast<T*>(memory)) {}

    __device__ __forceinline__ const T* row(int stage) const { return rows + stage * PITCH; }

    // Columns first, a multiple of VECTOR, and on of a row of so many; zeros outside, or if there is no such row.
    __device__ __forceinline__ void ask(const T* from, bool exists, int first, int columns, int stage) {
        if constexpr (!ASYNCHRONOUS) arrive();
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int vector = tile_lane() + i * TILE_LANES, column = first + vector * VECTOR;
            if (VECTORS % TILE_LANES != 0 && i == EACH - 1 && vector >= VECTORS) break;
            const bool inside = exists && 0 <= column && column < columns;
            if constexpr (!ASYNCHRONOUS)
                waiting[i] = inside ? from[column] : T();
            else if (inside)
                __pipeline_memcpy_async(rows + stage * PITCH + vector * VECTOR, from + column, VECTOR * sizeof(T));
            else
                __pipeline_memcpy_async(rows + stage * PITCH + vector * VECTOR, from, VECTOR * sizeof(T),
                                        VECTOR * sizeof(T));
        }
        waiting_stage = stage;
    }

private:
    __device__ __forceinline__ void arrive() {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int element = tile_lane() + i * TILE_LANES;
            if (waiting_stage >= 0 && element < VECTORS) rows[waiting_stage * PITCH + element] = waiting[i];
        }
    }
};

// Elements of a row in shared memory that one instruction moves: at most a strip's, and at most 16 bytes.
template <class T>
struct alignas(COLS * sizeof(T) < 16 ? COLS * sizeof(T) : 16) Quad {
    static constexpr int N = COLS * sizeof(T) < 16 ? COLS : 16 / sizeof(T);
    T elements[N];
};

// COUNT elements of a row from `first` on, a multiple of COLS.
template <int COUNT, class T>
__device__ __forceinline__ void read_row(Acc (&values)[COUNT], const T* row, int first) {
    constexpr int N = Quad<T>::N;
#pragma unroll
    for (int i = 0; i < COUNT; i += N) {
        const auto loaded = *reinterpret_cast<const Quad<T>*>(row + first + i);
#pragma unroll
        for (int j = 0; j < N; ++j)
            if (i + j < COUNT) values[i + j] = Acc(loaded.elements[j]);
    }
}
template <int COUNT, class T>
__device__ __forceinline__ void write_row(T* row, int first, const Acc (&values)[COUNT]) {
    constexpr int N = Quad<T>::N;
    static_assert(COUNT % N == 0, "whole vectors");
#pragma unroll
    for (int i = 0; i < COUNT; i += N) {
        Quad<T> vector;
#pragma unroll
        for (int j = 0; j < N; ++j) vector.elements[j] = T(values[i + j]);
        *reinterpret_cast<Quad<T>*>(row + first + i) = vector;
    }
}
