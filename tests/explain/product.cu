// sums[lane][4] = the product of the fragments left[lane][4] and right[lane][2], as mma.cuh computes it
#include "conv2d.cuh"
#include "mma.cuh"

extern "C" __global__ void product(const unsigned* left, const unsigned* right, float* sums, Conv2dShape shape) {
    unsigned a[4], b[2];
    float c[4] = {};
    for (int i = 0; i < 4; ++i) a[i] = left[threadIdx.x * 4 + i];
    for (int i = 0; i < 2; ++i) b[i] = right[threadIdx.x * 2 + i];
    multiply_add<FACTOR>(c, a, b);
    for (int i = 0; i < 4; ++i) sums[threadIdx.x * 4 + i] = c[i];
}
