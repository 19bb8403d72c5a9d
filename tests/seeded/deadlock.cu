// SEEDED: half of a warp waits at a barrier, half at a shuffle
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    if (threadIdx.x % 32 < 16)
        __syncthreads();
    else
        y[threadIdx.x] = __shfl_down_sync(0xffffffff, x[threadIdx.x], 1);  //! stopped
}
