// The matrix of windows, which implicit_gemm and vectorised_gemm multiply and never store: a column for each pixel.
//
// A pixel's window begins at its corner, in the first plane of its group; which element of the window a row of the
// matrix means is an Offset from there. So all index arithmetic is done once for a pixel and once for a row.
#pragma once
#include "conv2d.cuh"

struct alignas(16) Offset {
    int plane, row, col;
    int elements;  // the same, in elements of memory
};

// The row of a corner or an offset that stands only where a tile is longer than the matrix: it lies outside whatever
// is added to it.
constexpr int NOWHERE = -(1 << 30);

// Of tap (r, s) of channel c of a group, in x.
__device__ __forceinline__ Offset tap_offset(const Conv2dShape& shape, int c, int r, int s) {
    const int row = r * shape.dilation_h, col = s * shape.dilation_w;
    return {c, row, col, (c * shape.H + row) * shape.W + col};
}

// The pixels of N images of P x Q are numbered in the order n p q.
struct PixelGrid {
    int N, P, Q;

    __device__ __forceinline__ int count() const { return N * P * Q; }
};

// This block's number, read anew: nvcc does not know that it is the same each time, and so nothing that follows from it
// waits in registers while slices are multiplied.
__device__ __forceinline__ int block_number() {
#ifdef __CUDA_ARCH__
    int number;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
    return number;
#else
    return blockIdx.x;
#endif
}
