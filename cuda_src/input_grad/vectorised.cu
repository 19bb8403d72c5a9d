// dx[n,c,h,w_] = sum_{k,r,s} g[n, k, h + pad - r, w_ + pad - s] * w[k,c,r,s]
//                with g = dy * phi'(s), stride and dilation 1
//
// One CUDA thread computes a strip of COLS columns down a band of rows, with a CPU's vectors. It is the CPU's own rung:
// substituting r by R - 1 - r shows the forward pass's sum, over g in place of x and with the filter turned by 180
// degrees, and it is formed by the same code: cpu/correlate.cuh. g is formed as its row is loaded, once for all taps
// (and once more for each neighbour that shares a column), and never stored.
#include "cpu/correlate.cuh"
#include "input_grad_of_pixels.cuh"

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ b, Scalar* __restrict__ dx, Conv2dShape shape) {
    // Where am I: see strip_of_thread. Threads beyond the last strip stay, for a barrier.
    const Strip strip = strip_of_thread(Index(shape.N) * shape.C, shape.H, shape.W);
    const int c = strip.plane % shape.C;
    const int first_filter = c / shape.group_channels() * shape.group_filters();
    const Index first_k = strip.plane / shape.C * shape.K + first_filter;

    const auto finish = [&](int h, Cols sum) INLINED {
        unroll<COLS / LANES>([&](auto i) INLINED { sum.lanes[i] = dx_result(sum.lanes[i], b, c); });
        write(dx + (strip.plane * shape.H + h) * shape.W, strip.first_col, shape.W, sum);
    };
    const bool form_anew = correlate<true>(
        strip, shape.R - 1 - shape.pad_top, shape.S - 1 - shape.pad_left, shape.group_filters(),
        [&](int k) INLINED { return GradPlane(dy, saved, first_k + k, shape); },
        [&](int k) INLINED { return w + shape.w_at(first_filter + k, c % shape.group_channels(), 0, 0); }, shape,
        Acc(0), finish);
    if (form_anew)
        form_dx_anew(dx, dy, saved, w, b, shape, strip.plane, strip.first_row, strip.end_row, strip.first_col,
                     min(strip.first_col + COLS, shape.W));
}
