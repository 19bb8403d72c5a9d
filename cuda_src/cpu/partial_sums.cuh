// The first half of a kernel gradient's reduction: from the sums that each thread holds to one partial sum a block.
//
// A thread's sum runs over the columns and rows of one strip, the block's over its threads, and those of all blocks
// are added up by kernel_grad_total.cuh: three short sums in a fixed order, where one long sum would lose digits.
// At 4096 x 4096 pixels no term passes through more than about 500 additions (ROWS * COLS in a thread, THREADS in a
// block, then LongSum's 64 and 32 lanes), where the bound allows 8 * sqrt(2^24) = 32,768 round-offs. The sums go
// through shared memory, and not from lane to lane, because that is one barrier for all taps together.
#pragma once
#include "kernel_grad_of_pixels.cuh"
#include "kernel_grad_total.cuh"
#include "cpu/strip.cuh"

// Forms the sums of a strip's taps anew, sum_of_pixels(t), if there is a NaN among them: it may be there only because
// the padding, or what lies beyond the row's end, was multiplied as zeros.
template <int TAPS, class SumOfPixels>
__forceinline__ void form_anew(Lane (&sums)[TAPS + 1], SumOfPixels&& sum_of_pixels) {
    Lane all = {};
    unroll<TAPS>([&](auto t) INLINED { all += sums[t]; });
    if (!isnan(total(all))) return;
    for (int t = 0; t < TAPS; ++t) {
        const Lane sum = lane_with_total(sum_of_pixels(t));
        unroll<TAPS>([&](auto i) INLINED { sums[i] = i == t ? sum : sums[i]; });  // not in memory, but registers
    }
}

// give(i, sum of all threads' lanes[i]) for each i < COUNT, called by one thread each.
template <int COUNT, class Give>
__forceinline__ void add_up_block(const Lane (&lanes)[COUNT], Give&& give) {
    // A row for each of the sums that fit at once, a column a thread; the odd pitch lets threads read rows without
    // bank conflicts.
    constexpr int PITCH = THREADS + 1, FIT = 48 * 1024 / (PITCH * sizeof(Acc)), ROUND = COUNT < FIT ? COUNT : FIT;
    __shared__ Acc thread_sums[ROUND][PITCH];
    unroll<(COUNT + ROUND - 1) / ROUND>([&](auto round) INLINED {
        constexpr int first = round * ROUND, count = COUNT - first < ROUND ? COUNT - first : ROUND;
        if constexpr (round > 0) __syncthreads();  // the round before has been read
        unroll<count>([&](auto i) INLINED { thread_sums[i][threadIdx.x] = total(lanes[first + i]); });
        __syncthreads();  // every thread's column is there
        for (int i = threadIdx.x; i < count; i += THREADS) {
            Acc sum = 0;
            for (int thread = 0; thread < THREADS; ++thread) sum += thread_sums[i][thread];
            give(first + i, sum);
        }
    });
}
