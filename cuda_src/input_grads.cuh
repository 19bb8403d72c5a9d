// What write_product (filter_product.cuh) makes of the sums of an input gradient: dx of a group, at the pixels of a
// phase. Elements are formed anew, of pixels alone, that are NaN: all of them, or those whose taps reach beyond g.
#pragma once
#include "input_grad_of_pixels.cuh"
#include "input_grad_phase.cuh"
#include "window_reader.cuh"

template <FormedAnew WHAT>
struct InputGrads {
    const Scalar* dy;
    const Saved* saved;
    const Scalar *w, *scale, *b;
    const Phase& phase;
    const int rows, first_c;
    const Index row_pitch;

    __device__ __forceinline__ InputGrads(const Scalar* dy, const Saved* saved, const Scalar* w,
                                          const Scalar* scale, const Scalar* b, const Phase& phase, int group)
        : dy(dy), saved(saved), w(w), scale(scale), b(b), phase(phase), rows(phase.shape.group_channels()),
          first_c(group * rows), row_pitch(Index(phase.shape.H) * phase.shape.W) {}

    __device__ __forceinline__ Index at(const Pixel& pixel) const {
        return phase.result_at(pixel.n, first_c, pixel.p, pixel.q);
    }
    __device__ __forceinline__ Acc result(int m, Acc sum, Index) const { return dx_result(sum, b, first_c + m); }
    __device__ __forceinline__ void form_anew(Scalar& element, int m, const Pixel& pixel) const {
        const int h = phase.row(pixel.p), w_ = phase.col(pixel.q);
        if (WHAT == NOT_FINITE || reaches_beyond(phase.shape, h, h + 1, w_, w_ + 1))
            element = dx_of_pixels(dy, saved, w, b, phase.shape, pixel.n, first_c + m, h, w_, scale);
    }
};
