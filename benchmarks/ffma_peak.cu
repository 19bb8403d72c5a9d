// v = v * a + b, over and over, in CHAINS independent chains a thread: nothing but FFMA, to find its peak rate.
//
// 2 * CHAINS * STEPS * rounds operations a thread. The factors come from memory, so that nothing is known at compile
// time, and every thread writes its sum, so that nothing is left out. Not a kernel of the package: gpu_report.py's.
#include "conv2d.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
ffma_peak(const float* __restrict__ factors, float* __restrict__ out, Conv2dShape, int rounds) {
    const float a = factors[0], b = factors[1];
    float v[CHAINS];
#pragma unroll
    for (int chain = 0; chain < CHAINS; ++chain) v[chain] = threadIdx.x + chain;
    for (int round = 0; round < rounds; ++round)
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
#pragma unroll
            for (int chain = 0; chain < CHAINS; ++chain) v[chain] = fmaf(v[chain], a, b);
    float sum = 0;
#pragma unroll
    for (int chain = 0; chain < CHAINS; ++chain) sum += v[chain];
    out[Index(blockIdx.x) * THREADS + threadIdx.x] = sum;
}
