// What the products of a packed filter share, implicit_gemm and tensor_core in forward and input_grad: how windows are
// brought, and the way of a tile of results to memory.
#pragma once
#include "packed_filter.cuh"
#include "slices.cuh"
#include "vector.cuh"
#include "window_reader.cuh"

// Brings a slice of the windows of TILE_N pixels. A thread has PIXELS neighbouring ones, consecutive in threadIdx.x,
// and several steps, STEPS of them side by side.
template <class Reader, int PIXELS, int STEPS>
struct WindowReads {
    static constexpr int ACROSS = TILE_N / PIXELS, AT_ONCE = THREADS / ACROSS, OWN = DEPTH / AT_ONCE;
    static_assert(THREADS % ACROSS == 0 && DEPTH % (AT_ONCE * STEPS) == 0,
                  "the threads share a slice of the windows evenly");

    const int first_step = threadIdx.x / ACROSS * STEPS, first_pixel = threadIdx.x % ACROSS * PIXELS;
    Reader reader;
    const int4* offsets;  // this thread's first one in the next slice; an Offset is one load
    decltype(reader.template read<PIXELS>()) own[OWN];

    __device__ __forceinline__ WindowReads(const Offset* offsets, const Reader& reader, const PixelGrid& grid,
                                           int tile_pixel)
        : reader(reader), offsets(reinterpret_cast<const int4*>(offsets) + first_step) {
        this->reader.move_to(Pixel(tile_pixel + first_pixel, grid));
    }
    // Which of the slice's steps own[i] is, counted from first_step.
    static __device__ __forceinline__ constexpr int step(int i) { return i / STEPS * AT_ONCE * STEPS + i % STEPS; }

    // One after the other.
    __device__ __forceinline__ void go_to_step(int i) {
        if (ONE_TAP && i > 0)
            reader.skip_planes(step(i) - step(i - 1));
        else {
            const int4 words = offsets[step(i)];
            reader.go_to({words.x, words.y, words.z, words.w});
        }
    }
    template <class Slice>
    __device__ __forceinline__ void fetch(const Slice&) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            go_to_step(i);
            own[i] = reader.template read<PIXELS>();
        }
        offsets += DEPTH;
    }
};

// The pixels of a tile: they are numbered one after the other. TOGETHER: how many neighbours' results lie side by side in
// memory, at addresses where one instruction moves them.
struct PixelRun {
    static constexpr int TOGETHER = RESULTS_TOGETHER;
    static constexpr bool ALL_EXIST = false, ARE_NEAR = false;
    const PixelGrid grid;
    const int first;

    __device__ __forceinline__ Pixel at(int column) const { return {first + column, grid}; }
};

// Writes the sums of a tile, whose pixels may lie beyond the last image, unless ALL_EXIST, and all rows do. Results
// know where a pixel's result for row 0 lies (at), how many rows there are and how far apart (rows, row_pitch), what
// becomes of a sum at such a place (result), and how a result is formed anew of pixels alone: the padding is none, but
// was multiplied as zeros.
template <class Product, class Pixels, class Results>
__device__ __forceinline__ void write_product(const Product& product, const Tile& tile, const Pixels& pixels,
                                              Scalar* out, const Results& results) {
    const PixelGrid& grid = pixels.grid;
    constexpr int ASIDE = Product::ASIDE;  // pixels that a thread has side by side
    constexpr int TOGETHER = Pixels::TOGETHER < ASIDE ? Pixels::TOGETHER : ASIDE;
    // Where results lie, counted from the row and the tile's first pixel.
    const Index origin = Pixels::ARE_NEAR ? results.at(pixels.at(0)) : 0;
    std::conditional_t<Pixels::ARE_NEAR, int, Index> at[Product::COLS / TOGETHER];
#pragma unroll
    for (int j = 0; j < Product::COLS; j += TOGETHER) {
        const Pixel pixel = pixels.at(product.col(j));
        at[j / TOGETHER] = Pixels::ALL_EXIST || pixel.n < grid.N ? results.at(pixel) - origin : -1;
    }
    bool is_nan = false;
    Scalar* row = out + origin + (tile.first_m + product.row(0)) * results.row_pitch;
#pragma unroll
    for (int i = 0; i < Product::ROWS; ++i) {
        const int m = tile.first_m + product.row(i);
        if (i % 4 == 0) __syncwarp();  // or ptxas asks for what all rows want before the first is written
        if (i > 0) row += (product.row(i) - product.row(i - 1)) * results.row_pitch;
        if (!Pixels::ALL_EXIST && m >= results.rows) continue;
#pragma unroll
        for (int j = 0; j < Product::COLS; j += TOGETHER) {
            const auto here = at[j / TOGETHER];
            Acc values[TOGETHER];
#pragma unroll
            for (int e = 0; e < TOGETHER; ++e) {
                values[e] = results.result(m, product.sum(i, j + e), here < 0 ? Index(-1) : origin + here + e);
                is_nan |= values[e] != values[e];  // where isnan takes an instruction for each
            }
            if (Pixels::ALL_EXIST || here >= 0) store_vector<TOGETHER>(row + here, values);
        }
    }
#pragma unroll 1
    for (int i = 0; is_nan && i < Product::ROWS * Product::COLS; ++i) {
        const int m = tile.first_m + product.row(i / Product::COLS);
        const Pixel pixel = pixels.at(product.col(i % Product::COLS));
        if (m >= results.rows || pixel.n >= grid.N) continue;
        Scalar& element = out[results.at(pixel) + m * results.row_pitch];
        if (isnan(to_acc(element))) results.form_anew(element, m, pixel);
    }
}
