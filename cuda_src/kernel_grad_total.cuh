// The second half of every kernel gradient: dw and db = sum over slices of partial[slice][tap].
//
// The K biases are the last taps. A block adds up 32 taps: its threads with one threadIdx.y take every
// SLICE_GROUPS-th slice, side by side in threadIdx.x, and then the groups' sums are added in their order. Which
// sum is added to which never depends on timing: the same bits every run.
#pragma once
#include "conv2d.cuh"
#include "long_sum.cuh"

static_assert(SLICE_GROUPS >= 1 && SLICE_GROUPS <= 32, "a block has at most 32 warps, and each is a group");

// dw or db may be left out (null).
extern "C" __global__ void __launch_bounds__(32 * SLICE_GROUPS, 1)
kernel_grad_total(const Acc* __restrict__ partial, Scalar* __restrict__ dw, Scalar* __restrict__ db,
                  Conv2dShape shape, int slices) {
    __shared__ Acc group_sums[SLICE_GROUPS][32];

    // Where am I: a tap, consecutive in threadIdx.x.
    const Index taps = shape.w_size() + shape.K;
    const Index tap = Index(blockIdx.x) * 32 + threadIdx.x;

    LongSum sum;
    if (tap < taps)
        for (int slice = threadIdx.y; slice < slices; slice += SLICE_GROUPS) sum.add(partial[slice * taps + tap]);
    group_sums[threadIdx.y][threadIdx.x] = sum.value();
    __syncthreads();  // every group's sum is there
    if (threadIdx.y != 0 || tap >= taps) return;

    LongSum total;
    for (int group = 0; group < SLICE_GROUPS; ++group) total.add(group_sums[group][threadIdx.x]);
    if (tap >= shape.w_size()) {
        if (db) db[tap - shape.w_size()] = from_acc(total.value());
    } else if (dw) {
        dw[tap] = from_acc(total.value());
    }
}
