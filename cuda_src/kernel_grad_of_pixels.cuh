// Partial sums of dw formed anew, of pixels alone: a pixel of g adds nothing to a tap that lies over the padding of x.
//
// See forward_of_pixels.cuh.
#pragma once
#include "activation.cuh"
#include "long_sum.cuh"

// Of tap (k,c,r,s), what the pixels first to end - 1 of g give, counted in the order n p q.
__device__ __forceinline__ Acc dw_of_pixels(const Scalar* dy, const Saved* saved, const Scalar* x,
                                            const Conv2dShape& shape, int k, int c, int r, int s, Index first,
                                            Index end) {
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;
    LongSum sum;
    for (Index row = first / shape.Q; row * shape.Q < end; ++row) {
        const int n = row / shape.P, p = row % shape.P, h = shape.input_row(p, r);
        if (!shape.row_inside(h)) continue;
        const int end_q = min(end - row * shape.Q, Index(shape.Q));
        for (int q = max(first - row * shape.Q, Index(0)); q < end_q && !isnan(sum.value()); ++q) {
            const int w_ = shape.input_col(q, s);
            if (!shape.col_inside(w_)) continue;
            sum.add(pre_activation_grad(dy, saved, shape, n, k, p, q) * to_acc(x[shape.x_at(n, x_c, h, w_)]));
        }
    }
    return sum.value();
}
