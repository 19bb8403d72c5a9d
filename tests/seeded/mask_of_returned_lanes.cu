// SEEDED: a shuffle names lanes that have returned
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    if (threadIdx.x % 32 >= 20) return;
    y[threadIdx.x] = __shfl_down_sync(0xffffffff, x[threadIdx.x], 1);  //! mask of missing lanes
}
