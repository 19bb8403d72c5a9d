// Partial sums of dw formed anew, of pixels alone: a pixel of g adds nothing to a tap that lies over the padding of x.
//
// See forward_of_pixels.cuh.
#pragma once
#include "activation_grad.cuh"
#include "long_sum.cuh"

// Of tap (k,c,r,s), what rows first_p to end_p - 1 and columns first_q to end_q - 1 of g in image n give, as far as
// they exist: naive's sum.
__device__ __forceinline__ Acc dw_of_pixels(const Scalar* dy, const Saved* saved, const Scalar* x,
                                            const Conv2dShape& shape, int n, int k, int c, int r, int s, int first_p,
                                            int end_p, int first_q, int end_q) {
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;
    LongSum sum;
    for (int p = max(first_p, 0); p < min(end_p, shape.P); ++p)
        for (int q = max(first_q, 0); q < min(end_q, shape.Q); ++q) {
            const int h = shape.input_row(p, r), w_ = shape.input_col(q, s);
            if (isnan(sum.value())) return sum.value();
            if (!shape.row_inside(h) || !shape.col_inside(w_)) continue;
            sum.add(pre_activation_grad(dy, saved, shape, n, k, p, q) * to_acc(x[shape.x_at(n, x_c, h, w_)]));
        }
    return sum.value();
}

// Of bias k, what pixels first to end - 1 of g give, numbered in the order n p q.
__device__ __forceinline__ Acc db_of_pixels(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, int k,
                                            int first, int end) {
    LongSum sum;
    for (int i = first; i < end && !isnan(sum.value()); ++i)
        sum.add(pre_activation_grad(dy, saved, shape, i / shape.Q / shape.P, k, i / shape.Q % shape.P, i % shape.Q));
    return sum.value();
}

// The same of rows first_p to end_p - 1 and columns first_q to end_q - 1 of image n, as far as they exist.
__device__ __forceinline__ Acc db_of_pixels(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, int n,
                                            int k, int first_p, int end_p, int first_q, int end_q) {
    LongSum sum;
    for (int p = first_p; p < min(end_p, shape.P); ++p)
        for (int q = first_q; q < min(end_q, shape.Q); ++q) sum.add(pre_activation_grad(dy, saved, shape, n, k, p, q));
    return sum.value();
}
