// SEEDED: numbers on their way to shared memory are read before anybody has waited for them
//@ launch forward(x, w, b, y) grid=[1] block=[64]
#include <cuda_pipeline.h>

#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    __shared__ Scalar numbers[64];
    const int i = threadIdx.x;
    __pipeline_memcpy_async(numbers + i, x + i, sizeof(Scalar));
    __pipeline_commit();
    y[i] = numbers[i];  //! uninitialised read
}
