// WRONG: one running sum over all pixels of all images, whose round-offs do not cancel.
//@ constant THREADS = 128
//@ let taps = K * (C / groups) * R * S + K
//@ partial = taps
//@ launch kernel_grad(dy, saved, x, partial) grid=[ceil_div(taps, THREADS), 1] block=[THREADS]
//@ launch kernel_grad_total(partial, dw, db; 1) grid=[ceil_div(taps, THREADS)] block=[THREADS]
#include "activation.cuh"
#include "conv2d.cuh"
#include "long_sum.cuh"

// partial[slice][tap], with gridDim.y slices; the K biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Acc* __restrict__ partial, Conv2dShape shape) {
    // Where am I: tap (k,c,r,s), with s consecutive in threadIdx.x, so that a warp shares its g and reads x side
    // by side.
    const Index tap = Index(blockIdx.x) * THREADS + threadIdx.x;
    const Index taps = shape.w_size() + shape.K;
    if (tap >= taps) return;
    const bool is_bias = tap >= shape.w_size();
    const int s = tap % shape.S;
    const int r = tap / shape.S % shape.R;
    const int c = tap / shape.S / shape.R % shape.group_channels();
    const int k = is_bias ? tap - shape.w_size() : tap / shape.S / shape.R / shape.group_channels();
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;

    Acc sum = 0;
    for (Index row = blockIdx.y; row < Index(shape.N) * shape.P; row += gridDim.y) {
        const int n = row / shape.P;
        const int p = row % shape.P;
        const int h = shape.input_row(p, r);
        if (!is_bias && !shape.row_inside(h)) continue;
        for (int q = 0; q < shape.Q; ++q) {
            const Acc g = pre_activation_grad(dy, saved, shape, n, k, p, q);
            const int w_ = shape.input_col(q, s);
            if (is_bias)
                sum += g;
            else if (shape.col_inside(w_))
                sum += g * to_acc(x[shape.x_at(n, x_c, h, w_)]);
        }
    }
    partial[blockIdx.y * taps + tap] = sum;
}

// dw and db = sum over slices of partial[slice][tap]; db may be left out (null)
extern "C" __global__ void __launch_bounds__(THREADS)
kernel_grad_total(const Acc* __restrict__ partial, Scalar* __restrict__ dw, Scalar* __restrict__ db,
                  Conv2dShape shape, int slices) {
    const Index tap = Index(blockIdx.x) * THREADS + threadIdx.x;
    const Index taps = shape.w_size() + shape.K;
    if (tap >= taps) return;

    LongSum sum;
    for (int slice = 0; slice < slices; ++slice) sum.add(partial[slice * taps + tap]);

    if (tap < shape.w_size())
        dw[tap] = from_acc(sum.value());
    else if (db)
        db[tap - shape.w_size()] = from_acc(sum.value());
}
