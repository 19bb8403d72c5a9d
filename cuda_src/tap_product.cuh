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

// Brings one of the two matrices, ROWS rows of it: what each of them means in the windows of DEPTH pixels. A thread has
// PIXELS neighbouring ones and several rows. ARE_PLANES: the rows are the same place in neighbouring planes.
template <class Reader, int ROWS, int PIXELS, bool ARE_PLANES>
struct PixelReads {
    static constexpr int STEP_THREADS = WARP_STEPS / PIXELS, ROW_THREADS = 32 / STEP_THREADS;  // of a warp
    static constexpr int AT_ONCE = THREADS / DEPTH * PIXELS, OWN = ROWS / AT_ONCE;
    static_assert(THREADS % (32 * STEP_WARPS) == 0 && ROWS % AT_ONCE == 0,
                  "all steps have as many threads, and a thread has several rows");

    // Neighbouring steps are neighbours in memory.
    const int first_step = threadIdx.x % STEP_THREADS * PIXELS + threadIdx.x / 32 % STEP_WARPS * WARP_STEPS;
    const int first_row = threadIdx.x % 32 / STEP_THREADS + threadIdx.x / 32 / STEP_WARPS * ROW_THREADS;
    Reader reader;
    const PixelGrid grid;
    Pixel pixel;                           // of the next slice
    Offset offsets[ARE_PLANES ? 1 : OWN];  // of this thread's rows
    int rows = ROWS;                       // that exist, counted from this thread's first one
    decltype(reader.template read<PIXELS>()) own[OWN];

    __device__ __forceinline__ PixelReads(const Reader& reader, const TapTile& tile)
        : reader(reader), grid(tile.grid), pixel(tile.first_slice * DEPTH + first_step, grid) {}
    __device__ __forceinline__ int row(int i) const { return first_row + i * AT_ONCE; }

    // One after the other.
    __device__ __forceinline__ void go_to_row(int i) {
        if (i == 0) reader.move_to(pixel);
        if (ARE_PLANES && i > 0)
            reader.skip_planes(AT_ONCE);
        else
            reader.go_to(offsets[i]);
    }
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            go_to_row(i);
            own[i] = reader.template read<PIXELS>(!ARE_PLANES || ONE_TAP || i * AT_ONCE < rows);
        }
        pixel.advance(DEPTH, grid);
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
