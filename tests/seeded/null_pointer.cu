// SEEDED: the bias is read where there is none
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    y[threadIdx.x] = x[threadIdx.x] + b[threadIdx.x];  //! out of bounds
}
