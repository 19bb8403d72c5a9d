// SEEDED: threads of one block wait at two barriers
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    if (threadIdx.x < 32) {
        y[threadIdx.x] = 1;
        __syncthreads();  //! divergent barrier
    } else {
        __syncthreads();  //! divergent barrier
        y[threadIdx.x] = 2;
    }
}
