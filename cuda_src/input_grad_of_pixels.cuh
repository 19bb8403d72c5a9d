// Elements of dx formed anew, of pixels alone: of those of g, beyond which there are none.
//
// See forward_of_pixels.cuh.
#pragma once
#include "activation.cuh"
#include "long_sum.cuh"

enum FormedAnew { NAN_BESIDE_BORDER, NOT_FINITE };

// Whether the taps reach beyond g from rows first_h to end_h - 1 and columns first_w to end_w - 1 of dx.
__device__ __forceinline__ bool reaches_beyond(const Conv2dShape& shape, int first_h, int end_h, int first_w,
                                               int end_w) {
    return first_h + shape.pad_top < (shape.R - 1) * shape.dilation_h ||
           first_w + shape.pad_left < (shape.S - 1) * shape.dilation_w ||
           (end_h - 1 + shape.pad_top) / shape.stride_h >= shape.P ||
           (end_w - 1 + shape.pad_left) / shape.stride_w >= shape.Q;
}

// dx[n,c,h,w_]: naive's sum.
__device__ __forceinline__ Scalar dx_of_pixels(const Scalar* dy, const Saved* saved, const Scalar* w,
                                               const Scalar* b, const Conv2dShape& shape, int n, int c, int h,
                                               int w_, const Scalar* scale = nullptr) {
    const int group = c / shape.group_channels(), group_c = c % shape.group_channels();
    LongSum sum;
    for (int j = 0; j < shape.group_filters(); ++j)
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S; ++s) {
                if (isnan(sum.value())) return from_acc(sum.value());
                const int k = group * shape.group_filters() + j;
                const int p_steps = h + shape.pad_top - r * shape.dilation_h, p = p_steps / shape.stride_h;
                const int q_steps = w_ + shape.pad_left - s * shape.dilation_w, q = q_steps / shape.stride_w;
                if (p_steps < 0 || p_steps % shape.stride_h != 0 || p >= shape.P) continue;
                if (q_steps < 0 || q_steps % shape.stride_w != 0 || q >= shape.Q) continue;
                const Acc g = pre_activation_grad(dy, saved, shape, n, k, p, q);
                sum.add(g * scaled(to_acc(w[shape.w_at(k, group_c, r, s)]), scale, k));
            }
    return from_acc(dx_result(sum.value(), b, c));
}

// What is NaN in some rows and columns of plane n * C + c.
template <FormedAnew WHAT = NAN_BESIDE_BORDER>
__device__ __forceinline__ void form_dx_anew(Scalar* dx, const Scalar* dy, const Saved* saved, const Scalar* w,
                                             const Scalar* b, const Conv2dShape& shape, Index plane, int first_h,
                                             int end_h, int first_w, int end_w, const Scalar* scale = nullptr) {
    if (WHAT != NOT_FINITE && !reaches_beyond(shape, first_h, end_h, first_w, end_w)) return;
    for (int h = first_h; h < end_h; ++h)
        for (int w_ = first_w; w_ < end_w; ++w_) {
            Scalar& element = dx[(plane * shape.H + h) * shape.W + w_];
            if (WHAT == NOT_FINITE ? isfinite(to_acc(element)) : !isnan(to_acc(element))) continue;
            if (WHAT == NOT_FINITE || reaches_beyond(shape, h, h + 1, w_, w_ + 1))
                element = dx_of_pixels(dy, saved, w, b, shape, plane / shape.C, plane % shape.C, h, w_, scale);
        }
}
