// SEEDED: 16 bytes are read at an address that is a multiple of 4
//@ launch forward(x, w, b, y) grid=[1] block=[8]
#include "conv2d.cuh"

extern "C" __global__ void forward(const Scalar* x, const Scalar* w, const Scalar* b, Scalar* y, Conv2dShape shape) {
    const float4 four = *reinterpret_cast<const float4*>(x + 1 + 4 * threadIdx.x);  //! misaligned
    y[threadIdx.x] = four.x + four.w;
}
