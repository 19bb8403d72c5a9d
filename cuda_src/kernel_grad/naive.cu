// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// One thread takes one filter tap (or one bias, which is a tap whose input is 1 everywhere) and adds up a slice
// of the output rows (n,p). The results are few and each is a sum over all pixels of all images, so the rows are
// dealt out to slices: slice i takes rows i, i + slices, and so on. Then kernel_grad_total adds up the slices of
// each tap, always in the same order: the same bits every time. What limits it: every tap reads all of dy and
// y again. On an H200, 5x5 at 4096 x 4096 took 31 times as long as a copy.
#include "activation_grad.cuh"
#include "conv2d.cuh"
#include "kernel_grad_total.cuh"
#include "long_sum.cuh"

static_assert(THREADS % 32 == 0 && THREADS <= 1024, "a block is made of whole warps, at most 32 of them");

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
// partial[slice][tap], with gridDim.y slices; the K biases are the last taps
extern "C" __global__ void __launch_bounds__(THREADS, 1)
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

    LongSum sum;
    for (Index row = blockIdx.y; row < Index(shape.N) * shape.P; row += gridDim.y) {
        const int n = row / shape.P;
        const int p = row % shape.P;
        const int h = shape.input_row(p, r);
        if (!is_bias && !shape.row_inside(h)) continue;
        for (int q = 0; q < shape.Q; ++q) {
            const Acc g = pre_activation_grad(dy, saved, shape, n, k, p, q);
            const int w_ = shape.input_col(q, s);
            if (is_bias)
                sum.add(g);
            else if (shape.col_inside(w_))
                sum.add(g * to_acc(x[shape.x_at(n, x_c, h, w_)]));
        }
    }
    partial[blockIdx.y * taps + tap] = sum.value();
}
