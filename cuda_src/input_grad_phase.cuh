// The input gradient as a product with the packed filter.
//
// A stride leaves gaps between the taps that meet a pixel, and where they are depends on the pixel's row and column
// modulo the stride. So the pixels of one remainder are a phase: they all meet the same taps, those pixels lie side by
// side in g, and their gradient is a convolution of unit stride with a part of the filter. No product with an inserted
// zero is formed.
#pragma once
#include "activation.cuh"
#include "packed_filter.cuh"

__device__ __forceinline__ int greatest_common_divisor(int a, int b) {
    while (b != 0) {
        const int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// Along one axis: the taps first, first + step ... that meet the pixels of a phase, and the output where pixel 0 of
// the phase meets tap r.
struct PhaseTaps {
    int position, stride, dilation;
    int first = 0, step = 1, count = 0;

    __device__ __forceinline__ PhaseTaps(int phase, int pad, int stride, int dilation, int taps)
        : position(phase + pad), stride(stride), dilation(dilation) {
        step = stride / greatest_common_divisor(stride, dilation);
        while (first < taps && (position - first * dilation) % stride != 0) ++first;
        if (first < taps) count = (taps - 1 - first) / step + 1;
    }
    __device__ __forceinline__ int tap(int i) const { return first + i * step; }
    __device__ __forceinline__ int output(int r) const { return (position - r * dilation) / stride; }
    __device__ __forceinline__ SeenPixels seen() const { return {output(first), -(step * dilation / stride)}; }
};

struct Phase {
    const Conv2dShape& shape;
    int first_h, first_w;  // its first pixel
    PhaseTaps rows_met, cols_met;
    PixelGrid grid;
    int down, across, depth;

    __device__ __forceinline__ Phase(const Conv2dShape& shape, int number)
        : shape(shape), first_h(number / count_across(shape)), first_w(number % count_across(shape)),
          rows_met(first_h, shape.pad_top, shape.stride_h, shape.dilation_h, shape.R),
          cols_met(first_w, shape.pad_left, shape.stride_w, shape.dilation_w, shape.S),
          grid{shape.N, (shape.H - first_h - 1) / shape.stride_h + 1, (shape.W - first_w - 1) / shape.stride_w + 1},
          down(rows_met.count), across(cols_met.count), depth(shape.group_filters() * down * across) {}
    // Beyond the image's rows and columns no phase has a pixel.
    static __device__ __forceinline__ int count_across(const Conv2dShape& shape) {
        return min(shape.stride_w, shape.W);
    }
    static __device__ __forceinline__ int count(const Conv2dShape& shape) {
        return min(shape.stride_h, shape.H) * count_across(shape);
    }
    static __device__ __forceinline__ int rows(const Conv2dShape& shape) { return shape.group_channels(); }
    __device__ __forceinline__ int slices() const { return (depth + DEPTH - 1) / DEPTH; }
    __device__ __forceinline__ SeenPixels seen_rows() const { return rows_met.seen(); }
    __device__ __forceinline__ SeenPixels seen_cols() const { return cols_met.seen(); }
    __device__ __forceinline__ Offset offset(const Tap& tap) const {
        const int row = rows_met.output(rows_met.tap(tap.i)), col = cols_met.output(cols_met.tap(tap.j));
        return {tap.plane, row, col, (tap.plane * shape.P + row) * shape.Q + col};
    }
    __device__ __forceinline__ Acc element(const Scalar* w, const Scalar* scale, int group, int m,
                                           const Tap& tap) const {
        const int k = group * shape.group_filters() + tap.plane;
        return scaled(to_acc(w[shape.w_at(k, m, rows_met.tap(tap.i), cols_met.tap(tap.j))]), scale, k);
    }
    // Where in dx pixel (i, j) of the phase lies.
    __device__ __forceinline__ int row(int i) const { return first_h + i * shape.stride_h; }
    __device__ __forceinline__ int col(int j) const { return first_w + j * shape.stride_w; }
    __device__ __forceinline__ Index result_at(int n, int c, int i, int j) const {
        return shape.x_at(n, c, row(i), col(j));
    }
};
