// Elements of y formed anew, of pixels alone.
//
// The padding is no pixel: a tap over it adds nothing to a sum. Rungs that multiply it as zeros make NaN where the tap
// is infinite or NaN. A thread that may have met one looks through what it has written, and forms anew what is NaN and
// has padding in its window. That is rare, and short where the pixels alone give NaN, too: a sum ends as soon as it is.
// A rung that multiplies pixels beside the window by zeros too forms anew whatever is NOT_FINITE.
#pragma once
#include "epilogue.cuh"
#include "long_sum.cuh"

enum FormedAnew { NAN_BESIDE_PADDING, NOT_FINITE };

// Whether there is padding in the windows of rows first_p to end_p - 1 and columns first_q to end_q - 1 of y.
__device__ __forceinline__ bool meets_padding(const Conv2dShape& shape, int first_p, int end_p, int first_q,
                                              int end_q) {
    const int first_h = shape.input_row(first_p, 0), last_h = shape.input_row(end_p - 1, shape.R - 1);
    const int first_w = shape.input_col(first_q, 0), last_w = shape.input_col(end_q - 1, shape.S - 1);
    return first_h < 0 || last_h >= shape.H || first_w < 0 || last_w >= shape.W;
}

// y[n,k,p,q]: naive's sum.
__device__ __forceinline__ Scalar y_of_pixels(const Scalar* x, const Scalar* w, const Epilogue& epilogue,
                                              const Conv2dShape& shape, int n, int k, int p, int q) {
    const int first_c = k / shape.group_filters() * shape.group_channels();
    LongSum sum;
    if (epilogue.b && !HAS_OPTIONS) sum.add(to_acc(epilogue.b[k]));
    for (int c = 0; c < shape.group_channels(); ++c)
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S; ++s) {
                const int h = shape.input_row(p, r), w_ = shape.input_col(q, s);
                if (isnan(sum.value())) return from_acc(activate(sum.value()));
                if (!shape.row_inside(h) || !shape.col_inside(w_)) continue;
                sum.add(to_acc(x[shape.x_at(n, first_c + c, h, w_)]) * to_acc(w[shape.w_at(k, c, r, s)]));
            }
    if constexpr (!HAS_OPTIONS) return from_acc(activate(sum.value()));
    const Acc shortcut = RESIDUAL ? to_acc(epilogue.residual[shape.y_at(n, k, p, q)]) : Acc(0);
    return from_acc(activate(epilogue.pre_activation(sum.value(), k, shortcut)));
}

// What is NaN in some rows and columns of plane n * K + k; and its bits, where there is a mask whose bytes are the
// thread's own.
template <FormedAnew WHAT = NAN_BESIDE_PADDING>
__device__ __forceinline__ void form_y_anew(Scalar* y, MaskByte* mask, const Scalar* x, const Scalar* w,
                                            const Epilogue& epilogue, const Conv2dShape& shape, Index plane, int first_p,
                                            int end_p, int first_q, int end_q) {
    if (WHAT != NOT_FINITE && !meets_padding(shape, first_p, end_p, first_q, end_q)) return;
    for (int p = first_p; p < end_p; ++p)
        for (int q = first_q; q < end_q; ++q) {
            const Index row = plane * shape.P + p;
            Scalar& element = y[row * shape.Q + q];
            if (WHAT == NOT_FINITE ? isfinite(to_acc(element)) : !isnan(to_acc(element))) continue;
            if (WHAT != NOT_FINITE && !meets_padding(shape, p, p + 1, q, q + 1)) continue;
            element = y_of_pixels(x, w, epilogue, shape, plane / shape.K, plane % shape.K, p, q);
            if (mask && to_acc(element) <= 0) mask[row * mask_row_bytes(shape) + q / 8] &= ~(1 << q % 8);
        }
}
