// The bit mask of a ReLU, for forward passes whose blocks do not write whole bytes of it: a launch of its own.
//
// mask[n,k,p,j] = bits of y[n, k, p, 8j..8j+7] > 0 (or NaN). One thread packs one byte.
#pragma once
#include "activation_grad.cuh"
#include "conv2d.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
pack_mask(const Scalar* __restrict__ y, MaskByte* __restrict__ mask, Conv2dShape shape) {
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    const Index row = i / mask_row_bytes(shape);
    if (row >= Index(shape.N) * shape.K * shape.P) return;
    const int first_q = i % mask_row_bytes(shape) * 8;

    MaskByte bits = 0;
    for (int q = first_q; q < first_q + 8 && q < shape.Q; ++q) {
        const bool open = !(to_acc(y[row * shape.Q + q]) <= 0);
        bits |= open << (q - first_q);
    }
    mask[i] = bits;
}
