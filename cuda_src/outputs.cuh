// What write_product (filter_product.cuh) makes of the sums of a forward pass: y of a group. Elements are formed anew,
// of pixels alone, that are NaN: all of them, or those whose windows have padding.
#pragma once
#include "forward_of_pixels.cuh"
#include "window_reader.cuh"

template <FormedAnew WHAT>
struct Outputs {
    const Scalar *x, *w;
    const Epilogue epilogue;
    const Conv2dShape& shape;
    const int rows, first_k;
    const Index row_pitch;

    __device__ __forceinline__ Outputs(const Scalar* x, const Scalar* w, const Epilogue& epilogue,
                                       const Conv2dShape& shape, int group)
        : x(x), w(w), epilogue(epilogue), shape(shape), rows(shape.group_filters()), first_k(group * rows),
          row_pitch(Index(shape.P) * shape.Q) {}

    __device__ __forceinline__ Index at(const Pixel& pixel) const {
        return shape.y_at(pixel.n, first_k, pixel.p, pixel.q);
    }
    // Of row m at the pixel whose row 0 lies at `at`; -1: beyond the last image.
    __device__ __forceinline__ Acc result(int m, Acc sum, Index at) const {
        const Acc shortcut = RESIDUAL && at >= 0 ? to_acc(epilogue.residual[at + m * row_pitch]) : Acc(0);
        return activate(epilogue.pre_activation(sum, first_k + m, shortcut));
    }
    __device__ __forceinline__ void form_anew(Scalar& element, int m, const Pixel& pixel) const {
        if (WHAT == NOT_FINITE || meets_padding(shape, pixel.p, pixel.p + 1, pixel.q, pixel.q + 1))
            element = y_of_pixels(x, w, epilogue, shape, pixel.n, first_k + m, pixel.p, pixel.q);
    }
};
