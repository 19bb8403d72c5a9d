// v = v * a + b, over and over, in CHAINS independent chains a thread: nothing but fused multiply-adds, to find how
// many of them a GPU's arithmetic units do at best.
//
// 2 * CHAINS * STEPS * rounds operations a thread. The factors come from memory, so that nothing is known at compile
// time, and every thread writes its sum, so that nothing is left out. No variant of a pass: the roof that `bench` and
// gpu_report.py measure them by. fma_peak_vectorised.cu is a CPU's.
#include "conv2d.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
fma_peak(const Acc* __restrict__ factors, Acc* __restrict__ out, Conv2dShape, int rounds) {
    const Acc a = factors[0], b = factors[1];
    Acc v[CHAINS];
#pragma unroll
    for (int chain = 0; chain < CHAINS; ++chain) v[chain] = threadIdx.x + chain;
    for (int round = 0; round < rounds; ++round)
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
#pragma unroll
            for (int chain = 0; chain < CHAINS; ++chain) v[chain] = v[chain] * a + b;
    Acc sum = 0;
#pragma unroll
    for (int chain = 0; chain < CHAINS; ++chain) sum += v[chain];
    out[Index(blockIdx.x) * THREADS + threadIdx.x] = sum;
}
