// SEEDED: threads add to one sum in shared memory without an atomic
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    __shared__ Acc total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    total += to_acc(x[threadIdx.x]);  //! race
    __syncthreads();
    y[threadIdx.x] = from_acc(total);
}
