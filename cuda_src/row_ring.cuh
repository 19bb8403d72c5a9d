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

// Rows of a band, where so many are divided evenly among bands of at most ROWS: a multiple of `step`, which divides ROWS.
__device__ __forceinline__ int rows_of_band(int rows, int step = 1) {
    const int bands = (rows + ROWS - 1) / ROWS;
    return ((rows + bands - 1) / bands + step - 1) / step * step;
}

// The rows of one array: WIDTH elements T each of a tile, brought VECTOR at a time. Columns outside the array, of the
// margins of a tile at its sides, are zeros: written once, since no row brings anything there.
template <class T, int WIDTH, int VECTOR>
struct RowRing {
    static constexpr int PITCH = round_up(WIDTH * sizeof(T), 16) / sizeof(T), BYTES = STAGES * PITCH * sizeof(T);
    static constexpr int VECTORS = round_up(WIDTH, VECTOR) / VECTOR, EACH = round_up(VECTORS, TILE_LANES) / TILE_LANES;
    static_assert(VECTORS * VECTOR <= PITCH, "a row holds its last vector");
    // Fewer bytes than 4 cannot be copied asynchronously: they wait in registers until the next row is asked for.
    static constexpr bool ASYNCHRONOUS = VECTOR * sizeof(T) >= 4;
    static_assert(ASYNCHRONOUS || VECTOR == 1, "then they are brought one by one");
    static constexpr int STEP = TILE_LANES * VECTOR;  // from one of a lane's vectors to its next
    struct alignas(VECTOR * sizeof(T)) Elements {
        T elements[VECTOR];
    };

    T* const rows;
    const T* next;             // the lane's first vector in the row of the array that is asked for next
    const int first, columns;  // its column there, a multiple of VECTOR, and how many there are
    T waiting[ASYNCHRONOUS ? 1 : EACH];
    int waiting_stage = -1;

    // row: the one that is asked for first, which need not be there; first: the tile's first column.
    __device__ __forceinline__ RowRing(unsigned char* memory, const T* row, int first, int columns)
        : rows(reinterpret_cast<T*>(memory)), next(row + first + tile_lane() * VECTOR),
          first(first + tile_lane() * VECTOR), columns(columns) {
        if constexpr (ASYNCHRONOUS)
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                if (is_mine(i) && !inside(i))
                    for (int stage = 0; stage < STAGES; ++stage) *place(i, stage) = Elements();
    }

    __device__ __forceinline__ const T* row(int stage) const { return rows + stage * PITCH; }

    // Asks for the next row: zeros where there is no such, if they are wanted.
    __device__ __forceinline__ void ask(int stage, bool exists, bool wanted = true) {
        if constexpr (!ASYNCHRONOUS) {
            arrive();
#pragma unroll
            for (int i = 0; i < EACH; ++i) waiting[i] = exists && inside(i) ? next[i * STEP] : T();
            waiting_stage = stage;
        } else if (exists) {
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                if (is_mine(i) && inside(i))
                    __pipeline_memcpy_async(place(i, stage), next + i * STEP, VECTOR * sizeof(T));
        } else if (wanted) {
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                if (is_mine(i)) *place(i, stage) = Elements();
        }
        next += columns;
    }
    // A turn without a row, whose stage nobody reads.
    __device__ __forceinline__ void ask_nothing() {
        if constexpr (!ASYNCHRONOUS) arrive();
        waiting_stage = -1;
    }

private:
    __device__ __forceinline__ static bool is_mine(int i) {
        return VECTORS % TILE_LANES == 0 || i < EACH - 1 || tile_lane() + i * TILE_LANES < VECTORS;
    }
    __device__ __forceinline__ bool inside(int i) const { return unsigned(first + i * STEP) < unsigned(columns); }
    __device__ __forceinline__ Elements* place(int i, int stage) const {
        return reinterpret_cast<Elements*>(rows + stage * PITCH + tile_lane() * VECTOR + i * STEP);
    }
    __device__ __forceinline__ void arrive() {
        if (waiting_stage >= 0)
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                if (is_mine(i)) place(i, waiting_stage)->elements[0] = waiting[i];
    }
};

// The rows of an array that there is none of.
struct NoRing {
    static constexpr int BYTES = 0;
    template <class... Any>
    __device__ __forceinline__ explicit NoRing(Any...) {}
    __device__ __forceinline__ const Scalar* row(int) const { return nullptr; }
    __device__ __forceinline__ void ask(int, bool, bool = true) {}
    __device__ __forceinline__ void ask_nothing() {}
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
