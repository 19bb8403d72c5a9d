// Images whose channels lie side by side, for the rungs that take them (CHANNELS_LAST), before all other headers.
//
//     x  (N, H, W, C)      dx the same
//     y  (N, P, Q, K)      dy, what is saved of y, and the residual the same
//
// The names of indices, and the order in which they are given, stay those of conv2d.cuh, and so does the filter.
#pragma once
#if !CHANNELS_LAST
#undef CHANNELS_LAST
#define CHANNELS_LAST 0
#include "conv2d.cuh"
#else
#define Conv2dShape ContiguousShape
#include "conv2d.cuh"
#undef Conv2dShape

struct Conv2dShape : ContiguousShape {
    __device__ __forceinline__ Index x_at(int n, int c, int h, int w_) const {
        return ((Index(n) * H + h) * W + w_) * C + c;
    }
    __device__ __forceinline__ Index y_at(int n, int k, int p, int q) const {
        return ((Index(n) * P + p) * Q + q) * K + k;
    }
};
#endif
