// v = v * a + b, over and over, in CHAINS independent chains a thread: nothing but fused multiply-adds, to find how
// many of them the arithmetic units do at best.
//
// 2 * CHAINS * LANES * STEPS * rounds operations a thread. The factors come from memory, so that nothing is known at
// compile time, and every thread writes its sum, so that nothing is left out. No variant of a pass: the roof that
// `bench` and gpu_report.py measure them by.
#include "conv2d.cuh"
#include "lane.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
fma_peak(const Acc* __restrict__ factors, Acc* __restrict__ out, Conv2dShape, int rounds) {
    const Lane a = Lane{} + factors[0], b = Lane{} + factors[1];
    Lane v[CHAINS];
    unroll<CHAINS>([&](auto chain) INLINED { v[chain] = Lane{} + Acc(threadIdx.x + chain); });
    for (int round = 0; round < rounds; ++round)
        unroll<STEPS>([&](auto) INLINED { unroll<CHAINS>([&](auto chain) INLINED { v[chain] = v[chain] * a + b; }); });
    Lane sum{};
    unroll<CHAINS>([&](auto chain) INLINED { sum = sum + v[chain]; });
    out[Index(blockIdx.x) * THREADS + threadIdx.x] = total(sum);
}
