// SEEDED: a column beyond the declared ones, which is the next row's first
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    __shared__ Scalar tile[8][8];
    const int i = threadIdx.x / 8, j = threadIdx.x % 8;
    tile[i][j] = x[threadIdx.x];
    __syncthreads();
    if (i < 7) y[threadIdx.x] = tile[i][j + shape.N];  //! array index
}
