// SEEDED: lanes of a warp exchange numbers in shared memory without a __syncwarp
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    __shared__ Scalar numbers[64];
    const int i = threadIdx.x;
    numbers[i] = x[i];
    y[i] = numbers[i ^ 1];  //! race, uninitialised read
}
