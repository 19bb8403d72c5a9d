// SEEDED: the input is used as scratch memory
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    const_cast<Scalar*>(x)[threadIdx.x] += 1;  //! write to an input
    y[threadIdx.x] = x[threadIdx.x];
}
