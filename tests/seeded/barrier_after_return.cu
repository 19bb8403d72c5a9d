// SEEDED: some threads return before a barrier
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    if (threadIdx.x >= 40) return;
    y[threadIdx.x] = x[threadIdx.x];
    __syncthreads();  //! barrier without all threads
}
