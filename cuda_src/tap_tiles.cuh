// The tiles of a kernel gradient's matrix product: g's rows are filters, the rows of the windows of x are taps (c,r,s).
#pragma once
#include "kernel_grad_of_pixels.cuh"
#include "windows.cuh"

// What a block computes: filters first_m on of a group (consecutive blocks share their windows) at a tile of taps, from
// `slices` slices of DEPTH pixels. What lies beyond the last filter or tap has the offset of the last one, and is not
// written.
struct TapTile {
    const Conv2dShape& shape;
    const PixelGrid grid;
    const int filters, taps;  // of the group
    int group, first_m, number, first_slice, slices;

    __device__ __forceinline__ TapTile(const Conv2dShape& shape, int split_slices)
        : shape(shape), grid{shape.N, shape.P, shape.Q}, filters(shape.group_filters()),
          taps(shape.group_channels() * shape.R * shape.S) {
        const int m_tiles = (filters + TILE_M - 1) / TILE_M, tap_tiles = (taps + TILE_N - 1) / TILE_N;
        const int block = block_number();
        first_m = block % m_tiles * TILE_M;
        number = block / m_tiles % tap_tiles;
        group = block / m_tiles / tap_tiles;
        first_slice = blockIdx.y * split_slices;
        slices = min(split_slices, (grid.count() + DEPTH - 1) / DEPTH - first_slice);
    }
    // The number in its filter of the tap that a column stands for. With ONE_TAP a tile is TILE_N channels at one tap;
    // else the taps follow each other as in w.
    __device__ __forceinline__ int tap(int column) const {
        const int window = shape.R * shape.S;
        return ONE_TAP ? (number / window * TILE_N + column) * window + number % window : number * TILE_N + column;
    }
    // Of g's pixels, whose images are lines or not: they are numbered the same.
    __device__ __forceinline__ PixelGrid grads(bool in_lines) const {
        return in_lines ? PixelGrid{grid.N, 1, grid.P * grid.Q} : grid;
    }
    __device__ __forceinline__ Offset row_offset(int row) const {
        const int k = min(first_m + row, filters - 1);
        return {k, 0, 0, k * shape.P * shape.Q};
    }
    __device__ __forceinline__ Offset column_offset(int column) const {
        const int t = min(tap(column), taps - 1);
        return tap_offset(shape, t / shape.S / shape.R, t / shape.S % shape.R, t % shape.S);
    }
    // Which results exist, and where they lie among all taps of all filters; the K biases are the last ones.
    __device__ __forceinline__ bool has_row(int row) const { return first_m + row < filters; }
    __device__ __forceinline__ bool has_result(int row, int column) const { return has_row(row) && tap(column) < taps; }
    __device__ __forceinline__ Index result_at(int row, int column) const {
        return Index(group * filters + first_m + row) * taps + tap(column);
    }
    __device__ __forceinline__ Index bias_at(int row) const {
        return shape.w_size() + group * filters + first_m + row;
    }
    // Forms anew, of pixels alone, what is NaN of what a thread has written: the padding was multiplied as zeros.
    template <class Product>
    __device__ __forceinline__ void form_anew(Acc* split, const Product& product, const Scalar* dy, const Saved* saved,
                                              const Scalar* x) const {
        const int first = first_slice * DEPTH, end = min(first + slices * DEPTH, grid.count());
#pragma unroll 1
        for (int i = 0; i < Product::ROWS * Product::COLS; ++i) {
            const int m = product.row(i / Product::COLS), column = product.col(i % Product::COLS), t = tap(column);
            if (!has_result(m, column) || !isnan(split[result_at(m, column)])) continue;
            const int k = group * filters + first_m + m, c = t / shape.S / shape.R, r = t / shape.S % shape.R;
            LongSum sum;
            for (int row = first / grid.Q; row * grid.Q < end && !isnan(sum.value()); ++row) {
                const int n = row / grid.P, p = row % grid.P, before = row * grid.Q;
                sum.add(dw_of_pixels(dy, saved, x, shape, n, k, c, r, t % shape.S, p, p + 1, first - before,
                                     end - before));
            }
            split[result_at(m, column)] = sum.value();
        }
    }
};
