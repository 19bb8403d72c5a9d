// What fma_peak.cu does, with a CPU's vectors: 2 * CHAINS * LANES * STEPS * rounds operations a thread.
#include "conv2d.cuh"
#include "cpu/lane.cuh"

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
