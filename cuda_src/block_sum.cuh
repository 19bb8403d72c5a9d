// From the sums that each thread of a block holds to those of its warps, which are few enough for anybody to add up.
//
// The order is fixed: the same bits every run. Sums pass from lane to lane of a warp by shuffles, half of the lanes
// adding what the other half holds, and so on.
#pragma once
#include "scalar.cuh"

constexpr int WARPS = THREADS / 32;

// All threads of the block come here, and may read warp_sums afterwards.
template <int COUNT>
__device__ __forceinline__ void add_up_warps(Acc (&sums)[COUNT], Acc (&warp_sums)[WARPS][COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) sums[i] += __shfl_down_sync(0xffffffffu, sums[i], lanes);
        if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32][i] = sums[i];
    }
    __syncthreads();  // every warp's sums are there
}

template <int COUNT>
__device__ __forceinline__ Acc add_up(const Acc (&warp_sums)[WARPS][COUNT], int i) {
    Acc sum = 0;
    for (int warp = 0; warp < WARPS; ++warp) sum += warp_sums[warp][i];
    return sum;
}
