// Elements of y formed anew, of pixels alone.
//
// The padding is no pixel: a tap over it adds nothing to a sum. Rungs that multiply it as zeros make NaN where the tap
// is infinite or NaN. A thread that may have met one looks through what it has written, and forms what is NaN anew.
// That is rare, and short where the pixels alone give NaN, too: a sum ends as soon as it is one.
#pragma once
#include "activation.cuh"
#include "long_sum.cuh"

// The sum of element i, before the activation: naive's.
__device__ __forceinline__ Acc s_of_pixels(const Scalar* x, const Scalar* w, const Scalar* b, const Conv2dShape& shape,
                                           Index i) {
    const int q = i % shape.Q;
    const int p = i / shape.Q % shape.P;
    const int k = i / shape.Q / shape.P % shape.K;
    const int n = i / shape.Q / shape.P / shape.K;
    const int first_c = k / shape.group_filters() * shape.group_channels();

    LongSum sum;
    if (b) sum.add(to_acc(b[k]));
    for (int c = 0; c < shape.group_channels(); ++c)
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S && !isnan(sum.value()); ++s) {
                const int h = shape.input_row(p, r), w_ = shape.input_col(q, s);
                if (!shape.row_inside(h) || !shape.col_inside(w_)) continue;
                sum.add(to_acc(x[shape.x_at(n, first_c + c, h, w_)]) * to_acc(w[shape.w_at(k, c, r, s)]));
            }
    return sum.value();
}

// What is NaN in some rows and columns of plane n * K + k; and its bits, where there is a mask whose bytes are the
// thread's own.
__device__ __forceinline__ void form_y_anew(Scalar* y, MaskByte* mask, const Scalar* x, const Scalar* w,
                                            const Scalar* b, const Conv2dShape& shape, Index plane, int first_p,
                                            int end_p, int first_q, int end_q) {
    for (int p = first_p; p < end_p; ++p)
        for (int q = first_q; q < end_q; ++q) {
            const Index row = plane * shape.P + p, i = row * shape.Q + q;
            if (!isnan(to_acc(y[i]))) continue;
            y[i] = from_acc(activate(s_of_pixels(x, w, b, shape, i)));
            if (mask && to_acc(y[i]) <= 0) mask[row * mask_row_bytes(shape) + q / 8] &= ~(1 << q % 8);
        }
}
