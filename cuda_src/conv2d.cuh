// The convolution problem as the kernels see it, and where its elements lie.
//
//     x  (N, C, H, W)      input            dx, the same
//     w  (K, C/groups, R, S)  filter        dw, the same
//     b  (K)               bias             db, the same
//     scale  (K)           factor of an output channel's sum
//     y  (N, K, P, Q)      output           dy, the same; and residual, which is added before the activation
//
// Indices are the lower-case letters n c h w_ k r s p q; inside a filter, c counts within its group. All arrays
// are contiguous in the order written. Every size fits an int; a product of sizes need not, so an offset into
// an array is always an Index.
#pragma once
#include "scalar.cuh"

using Index = long long;

#ifndef SCALED  // whether the layer has a scale
#define SCALED 0
#endif
#ifndef RESIDUAL  // whether a residual is added
#define RESIDUAL 0
#endif

// Passed by value. The launch code packs the fields in the order in which they stand here.
struct Conv2dShape {
    int N, C, H, W;
    int K, R, S;
    int P, Q;
    int stride_h, stride_w;
    int pad_top, pad_left;
    int dilation_h, dilation_w;
    int groups;

    __device__ __forceinline__ int group_channels() const { return C / groups; }  // input channels of a group
    __device__ __forceinline__ int group_filters() const { return K / groups; }   // output channels of a group

    // The input row and column that tap (r, s) of output (p, q) reads; they may lie in the padding.
    __device__ __forceinline__ int input_row(int p, int r) const { return p * stride_h - pad_top + r * dilation_h; }
    __device__ __forceinline__ int input_col(int q, int s) const { return q * stride_w - pad_left + s * dilation_w; }
    __device__ __forceinline__ bool row_inside(int h) const { return 0 <= h && h < H; }
    __device__ __forceinline__ bool col_inside(int w_) const { return 0 <= w_ && w_ < W; }

    __device__ __forceinline__ Index x_at(int n, int c, int h, int w_) const {
        return ((Index(n) * C + c) * H + h) * W + w_;
    }
    __device__ __forceinline__ Index w_at(int k, int c, int r, int s) const {
        return ((Index(k) * group_channels() + c) * R + r) * S + s;
    }
    __device__ __forceinline__ Index y_at(int n, int k, int p, int q) const {
        return ((Index(n) * K + k) * P + p) * Q + q;
    }

    __device__ __forceinline__ Index x_size() const { return Index(N) * C * H * W; }
    __device__ __forceinline__ Index w_size() const { return Index(K) * group_channels() * R * S; }
    __device__ __forceinline__ Index y_size() const { return Index(N) * K * P * Q; }
};
