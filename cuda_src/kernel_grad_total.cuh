// The second half of every kernel gradient: dw and db = sum over slices of partial[slice][tap].
//
// The K biases are the last taps. A block adds up blockDim.x taps at a time, TAPS_EACH times: its threads with one
// threadIdx.y take every blockDim.y-th slice, side by side in threadIdx.x, and then these groups' sums are added in their
// order. Which sum is added to which never depends on timing: the same bits every run.
#pragma once
#include "conv2d.cuh"
#include "long_sum.cuh"

static_assert(SLICE_GROUPS >= 1 && SLICE_GROUPS <= 32, "a block has at most 32 warps, and each is of one group");

#if SCALED  // which is a factor of dw, before that is rounded
#define SCALE_PARAMETER const Scalar *__restrict__ scale,
#else
#define SCALE_PARAMETER
#endif

// dw or db may be left out (null).
extern "C" __global__ void __launch_bounds__(32 * SLICE_GROUPS, 1)
kernel_grad_total(const Acc* __restrict__ partial, SCALE_PARAMETER Scalar* __restrict__ dw, Scalar* __restrict__ db,
                  Conv2dShape shape, int slices) {
    __shared__ Acc group_sums[SLICE_GROUPS * 32];

    // Where am I: taps, consecutive in threadIdx.x.
    const Index taps = shape.w_size() + shape.K;
    const int across = blockDim.x, groups = blockDim.y;
    const Index first = Index(blockIdx.x) * across * TAPS_EACH;
    for (Index tap = first + threadIdx.x; tap < first + across * TAPS_EACH; tap += across) {
        const bool is_wanted = tap < shape.w_size() ? dw != nullptr : tap < taps && db != nullptr;
        LongSum sum;
        if (is_wanted)
            for (int slice = threadIdx.y; slice < slices; slice += groups) sum.add(partial[slice * taps + tap]);
        if (groups > 1) {
            group_sums[threadIdx.y * across + threadIdx.x] = sum.value();
            __syncthreads();  // every group's sum is there
            sum = LongSum();
            for (int group = 0; group < groups; ++group) sum.add(group_sums[group * across + threadIdx.x]);
            __syncthreads();  // nobody reads the sums any more
        }
        if (!is_wanted || threadIdx.y != 0) continue;
        Scalar& result = tap < shape.w_size() ? dw[tap] : db[tap - shape.w_size()];
#if SCALED
        const bool is_of_filter = tap < shape.w_size();
        result = from_acc(is_of_filter ? sum.value() * to_acc(scale[tap / (shape.w_size() / shape.K)]) : sum.value());
#else
        result = from_acc(sum.value());
#endif
    }
}
