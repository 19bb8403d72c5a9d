// What the kernel gradients as matrix products share, implicit_gemm and tensor_core: how both matrices are read, g and
// the windows of x, and the way of a tile of partial sums to memory.
#pragma once
#include "slices.cuh"
#include "tap_tiles.cuh"
#include "vector.cuh"
#include "window_reader.cuh"

// A step of the sum is a pixel. A warp brings 8 of them side by side, a sector of memory, of several rows: writing them
// meets no bank twice. If a slice has more steps, its warps share them.
constexpr int WARP_STEPS = 8, STEP_WARPS = DEPTH / WARP_STEPS;
static_assert(DEPTH % WARP_STEPS == 0, "a slice is whole sectors");

// g's reader. The pixels of an image are a line of them, but for a bit mask, whose rows begin in a byte of their own.
__device__ __forceinline__ GradReader grad_reader(const Scalar* dy, const Saved* saved, const TapTile& tile) {
    return {dy, saved, tile.shape, tile.group, !SAVED_MASK};
}

// Brings one of the two matrices, ROWS rows of it: what each of them means in the windows of DEPTH pixels. A thread has
// PIXELS neighbouring ones and several rows, ASIDE of them side by side. ARE_PLANES: the rows are the same place in
// neighbouring planes.
template <class Reader, int ROWS, int PIXELS, bool ARE_PLANES, int ASIDE = 1>
struct PixelReads {
    static constexpr int STEP_THREADS = WARP_STEPS / PIXELS, ROW_THREADS = 32 / STEP_THREADS;  // of a warp
    static constexpr int AT_ONCE = THREADS / DEPTH * PIXELS, OWN = ROWS / AT_ONCE;
    static_assert(THREADS % (32 * STEP_WARPS) == 0 && ROWS % AT_ONCE == 0 && OWN % ASIDE == 0,
                  "all steps have as many threads, and a thread has several rows");

    // Neighbouring steps are neighbours in memory.
    const int first_step = threadIdx.x % STEP_THREADS * PIXELS + threadIdx.x / 32 % STEP_WARPS * WARP_STEPS;
    const int first_row =
        (threadIdx.x % 32 / STEP_THREADS + threadIdx.x / 32 / STEP_WARPS * ROW_THREADS) * ASIDE;
    Reader reader;  // at the pixel of the next slice; of planes at the first one
    int left;       // how many pixels there are from there on
    const Way way;  // from slice to slice
    Offset offsets[ARE_PLANES ? 1 : OWN];  // of this thread's rows
    int rows;                              // that exist, counted from this thread's first one
    decltype(reader.template read<PIXELS>()) own[OWN];

    // offset_of(row) is what a row means.
    template <class OffsetOf>
    __device__ __forceinline__ PixelReads(const Reader& reader, const PixelGrid& grid, int first_slice, int rows,
                                          OffsetOf&& offset_of)
        : reader(reader), left(grid.count() - first_slice * DEPTH - first_step),
          way(reader.way(DEPTH, grid, ARE_PLANES ? offset_of(first_row) : Offset{})), rows(rows - first_row) {
        this->reader.move_to(Pixel(first_slice * DEPTH + first_step, grid));
        if (ARE_PLANES) this->reader.shift(offset_of(first_row));
#pragma unroll
        for (int i = 0; !ARE_PLANES && i < OWN; ++i) offsets[i] = offset_of(row(i));
    }
    // Which row own[i] is, counted from first_row.
    static __device__ __forceinline__ constexpr int beyond(int i) { return i / ASIDE * ASIDE * AT_ONCE + i % ASIDE; }
    __device__ __forceinline__ int row(int i) const { return first_row + beyond(i); }

    // One after the other.
    __device__ __forceinline__ void go_to_row(int i) {
        if (!ARE_PLANES)
            reader.go_to(offsets[i]);
        else if (i == 0)
            reader.go_to_corner();
        else
            reader.skip_planes(beyond(i) - beyond(i - 1));
    }
    __device__ __forceinline__ void advance() {
        left -= DEPTH;
        reader.advance(way, left > 0);
    }
    template <class Slice>
    __device__ __forceinline__ void fetch(const Slice&) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            go_to_row(i);
            own[i] = reader.template read<PIXELS>(!ARE_PLANES || ONE_TAP || beyond(i) < rows);
        }
        advance();
    }
};

// Writes the sums of a tile to a split's part.
template <class Product>
__device__ __forceinline__ void write_partial(Acc* split, const Product& product, const TapTile& tile, const Scalar* dy,
                                              const Saved* saved, const Scalar* x) {
    bool is_nan = false;
#pragma unroll
    for (int i = 0; i < Product::ROWS; ++i)
#pragma unroll
        for (int j = 0; j < Product::COLS; ++j) {
            const int m = product.row(i), column = product.col(j);
            const Acc sum = product.sum(i, j);
            if (tile.has_result(m, column)) split[tile.result_at(m, column)] = sum;
            is_nan |= isnan(sum);
        }
    if (is_nan) tile.form_anew(split, product, dy, saved, x);
}
