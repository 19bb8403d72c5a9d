// Elements of dx formed anew, of pixels alone: of those of g, beyond which there are none.
//
// See forward_of_pixels.cuh.
#pragma once
#include "activation.cuh"
#include "long_sum.cuh"

// Element i: naive's sum.
__device__ __forceinline__ Acc dx_of_pixels(const Scalar* dy, const Saved* saved, const Scalar* w,
                                            const Scalar* b, const Conv2dShape& shape, Index i) {
    const int w_ = i % shape.W;
    const int h = i / shape.W % shape.H;
    const int c = i / shape.W / shape.H % shape.C;
    const int n = i / shape.W / shape.H / shape.C;
    const int group = c / shape.group_channels(), group_c = c % shape.group_channels();

    LongSum sum;
    for (int j = 0; j < shape.group_filters(); ++j)
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S && !isnan(sum.value()); ++s) {
                const int k = group * shape.group_filters() + j;
                const int p_steps = h + shape.pad_top - r * shape.dilation_h, p = p_steps / shape.stride_h;
                const int q_steps = w_ + shape.pad_left - s * shape.dilation_w, q = q_steps / shape.stride_w;
                if (p_steps < 0 || p_steps % shape.stride_h != 0 || p >= shape.P) continue;
                if (q_steps < 0 || q_steps % shape.stride_w != 0 || q >= shape.Q) continue;
                sum.add(pre_activation_grad(dy, saved, shape, n, k, p, q) * to_acc(w[shape.w_at(k, group_c, r, s)]));
            }
    return dx_result(sum.value(), b, c);
}

// What is NaN in some rows and columns of plane n * C + c.
__device__ __forceinline__ void form_dx_anew(Scalar* dx, const Scalar* dy, const Saved* saved, const Scalar* w,
                                             const Scalar* b, const Conv2dShape& shape, Index plane, int first_h,
                                             int end_h, int first_w, int end_w) {
    for (int h = first_h; h < end_h; ++h)
        for (int w_ = first_w; w_ < end_w; ++w_) {
            const Index i = (plane * shape.H + h) * shape.W + w_;
            if (isnan(to_acc(dx[i]))) dx[i] = from_acc(dx_of_pixels(dy, saved, w, b, shape, i));
        }
}
