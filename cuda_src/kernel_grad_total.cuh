// The second half of every kernel gradient: dw and db = sum over slices of partial[slice][tap].
//
// The K biases are the last taps. A block adds up 32 taps at a time, TAPS_EACH times: its threads with one threadIdx.y
// take every SLICE_GROUPS-th slice, side by side in threadIdx.x, and then the groups' sums are added in their order.
// Which sum is added to which never depends on timing: the same bits every run.
#pragma once
#include "conv2d.cuh"
#include "long_sum.cuh"

static_assert(SLICE_GROUPS >= 1 && SLICE_GROUPS <= 32, "a block has at most 32 warps, and each is a group");

// dw or db may be left out (null).
extern "C" __global__ void __launch_bounds__(32 * SLICE_GROUPS, 1)
kernel_grad_total(const Acc* __restrict__ partial, Scalar* __restrict__ dw, Scalar* __restrict__ db,
                  Conv2dShape shape, int slices) {
    __shared__ Acc group_sums[SLICE_GROUPS][32];

    // Where am I: taps, consecutive in threadIdx.x.
    const Index taps = shape.w_size() + shape.K;
    const Index first = Index(blockIdx.x) * 32 * TAPS_EACH;
    for (Index tap = first + threadIdx.x; tap < first + 32 * TAPS_EACH; tap += 32) {
        const bool is_wanted = tap < shape.w_size() ? dw != nullptr : tap < taps && db != nullptr;
        LongSum sum;
        if (is_wanted)
            for (int slice = threadIdx.y; slice < slices; slice += SLICE_GROUPS) sum.add(partial[slice * taps + tap]);
        if constexpr (SLICE_GROUPS > 1) {
            group_sums[threadIdx.y][threadIdx.x] = sum.value();
            __syncthreads();  // every group's sum is there
            sum = LongSum();
            for (int group = 0; group < SLICE_GROUPS; ++group) sum.add(group_sums[group][threadIdx.x]);
            __syncthreads();  // nobody reads the sums any more
        }
        if (!is_wanted || threadIdx.y != 0) continue;
        Scalar& result = tap < shape.w_size() ? dw[tap] : db[tap - shape.w_size()];
        result = from_acc(sum.value());
    }
}
