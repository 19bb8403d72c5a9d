// SEEDED: the __syncwarp orders the lower half of each warp only
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    __shared__ Scalar numbers[64];
    const int i = threadIdx.x;
    numbers[i] = x[i];
    if (i % 32 < 16)
        __syncwarp(0x0000ffff);
    else
        __syncwarp(0xffff0000);
    y[i] = numbers[i ^ 1];   // its own half
    __syncwarp();
    numbers[i] = y[i];
    if (i % 32 < 16)
        __syncwarp(0x0000ffff);
    else
        __syncwarp(0xffff0000);
    y[i] = numbers[i ^ 16];  //! race
}
