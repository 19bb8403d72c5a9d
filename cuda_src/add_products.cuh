// sum += a[0] * b[0] + a[a_step] * b[b_step] + ...: count products, such as those of one row of a filter.
//
// LongSum::add looks for the end of a run after every term. Here a call is a run of its own, or as many as it takes.
#pragma once
#include "long_sum.cuh"

__device__ __forceinline__ void add_products(LongSum& sum, const Acc* a, int a_step, const Acc* b, int b_step,
                                             int count) {
    for (int left = count; left > 0; left -= LongSum::RUN) {
#pragma unroll 1  // the rows of most filters are too short to gain from a longer loop
        for (int i = min(left, LongSum::RUN); i > 0; --i, a += a_step, b += b_step) sum.run += *a * *b;
        sum.end_run();
    }
}
