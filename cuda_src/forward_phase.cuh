// The forward pass as a product with the packed filter: all output pixels are one phase.
#pragma once
#include "packed_filter.cuh"

struct Phase {
    const Conv2dShape& shape;
    PixelGrid grid;
    int down, across, depth;

    __device__ __forceinline__ explicit Phase(const Conv2dShape& shape, int = 0)
        : shape(shape), grid{shape.N, shape.P, shape.Q}, down(shape.R), across(shape.S),
          depth(shape.group_channels() * shape.R * shape.S) {}
    static __device__ __forceinline__ int count(const Conv2dShape&) { return 1; }
    static __device__ __forceinline__ int rows(const Conv2dShape& shape) { return shape.group_filters(); }
    // Of unit stride.
    __device__ __forceinline__ SeenPixels seen_rows() const { return {-shape.pad_top, shape.dilation_h}; }
    __device__ __forceinline__ SeenPixels seen_cols() const { return {-shape.pad_left, shape.dilation_w}; }
    __device__ __forceinline__ Offset offset(const Tap& tap) const {
        return tap_offset(shape, tap.plane, tap.i, tap.j);
    }
    // Of the filter; its scale is the epilogue's.
    __device__ __forceinline__ Acc element(const Scalar* w, const Scalar*, int group, int m, const Tap& tap) const {
        return to_acc(w[shape.w_at(group * shape.group_filters() + m, tap.plane, tap.i, tap.j)]);
    }
};
