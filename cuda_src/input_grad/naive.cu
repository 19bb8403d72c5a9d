// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s)
//
// One thread computes one element of dx: it gathers the outputs that its input element took part in, so no two
// threads write to one place. Going backwards through p*stride - pad + r*dilation = h, a tap counts only where
// the division by the stride has no remainder. What limits it: phi' is formed anew for each of the R*S taps,
// and with a stride most taps are looked at in vain. On an H200, 5x5 at 4096 x 4096 took 26 times as long as a copy.
#include "activation.cuh"
#include "conv2d.cuh"
#include "long_sum.cuh"

static_assert(THREADS % 32 == 0 && THREADS <= 1024, "a block is made of whole warps, at most 32 of them");

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           const Scalar* __restrict__ scale, const Scalar* __restrict__ b, Scalar* __restrict__ dx,
           Conv2dShape shape) {
    // Where am I: input element (n,c,h,w_), with w_ consecutive in threadIdx.x.
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= shape.x_size()) return;
    const int w_ = i % shape.W;
    const int h = i / shape.W % shape.H;
    const int c = i / shape.W / shape.H % shape.C;
    const int n = i / shape.W / shape.H / shape.C;
    const int group = c / shape.group_channels();
    const int group_c = c % shape.group_channels();

    LongSum dx_sum;
    for (int j = 0; j < shape.group_filters(); ++j) {
        const int k = group * shape.group_filters() + j;
        for (int r = 0; r < shape.R; ++r) {
            const int p_steps = h + shape.pad_top - r * shape.dilation_h;  // p * stride_h
            const int p = p_steps / shape.stride_h;
            if (p_steps < 0 || p_steps % shape.stride_h != 0 || p >= shape.P) continue;
            for (int s = 0; s < shape.S; ++s) {
                const int q_steps = w_ + shape.pad_left - s * shape.dilation_w;  // q * stride_w
                const int q = q_steps / shape.stride_w;
                if (q_steps < 0 || q_steps % shape.stride_w != 0 || q >= shape.Q) continue;
                const Acc g = pre_activation_grad(dy, saved, shape, n, k, p, q);
                dx_sum.add(g * scaled(to_acc(w[shape.w_at(k, group_c, r, s)]), scale, k));
            }
        }
    }
    dx[i] = from_acc(dx_result(dx_sum.value(), b, c));
}
