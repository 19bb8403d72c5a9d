// Exercise 2: the input gradient: which way is the filter turned?
//
//   dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                  with g = dy * phi'(s)
//
// Given: one thread gathers one element of dx. The forward pass reads x at h = p*stride - pad + r*dilation; solved for
// p, that is the output through which tap r has seen this pixel. As r grows, p falls: against the outputs the filter is
// turned by half a turn. Whoever wrote this knew that, and has turned the filter once more.
//
// Change: leave one of the two turns out. Which one can stay? Think of a filter with an even number of rows.
//
// Done: convbackprop grade 2_input_grad.cu
// says that every element is right. (A filter that is turned the wrong way passes every test with a symmetric filter.)
//@ pass input_grad
//@ constant THREADS = 128
//@ launch input_grad(dy, saved, w, dx) grid=[ceil_div(N * C * H * W, THREADS)] block=[THREADS]
#include "activation_grad.cuh"  // pre_activation_grad(dy, saved, shape, n, k, p, q) = g[n,k,p,q]
#include "conv2d.cuh"           // Conv2dShape: sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at

extern "C" __global__ void __launch_bounds__(THREADS)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           Scalar* __restrict__ dx, Conv2dShape shape) {
    // Where am I: input element (n,c,h,w_), with w_ consecutive in threadIdx.x.
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= shape.x_size()) return;
    const int w_ = i % shape.W;
    const int h = i / shape.W % shape.H;
    const int c = i / shape.W / shape.H % shape.C;
    const int n = i / shape.W / shape.H / shape.C;
    const int first_k = c / shape.group_channels() * shape.group_filters();  // 0 without groups

    Acc sum = 0;
    for (int k = first_k; k < first_k + shape.group_filters(); ++k)
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S; ++s) {
                // Which output has read x[h][w_] through tap (r,s)? p * stride - pad + r * dilation = h, solved for p.
                const int p_steps = h + shape.pad_top - r * shape.dilation_h;
                const int q_steps = w_ + shape.pad_left - s * shape.dilation_w;
                if (p_steps < 0 || p_steps % shape.stride_h != 0 || q_steps < 0 || q_steps % shape.stride_w != 0)
                    continue;
                const int p = p_steps / shape.stride_h;
                const int q = q_steps / shape.stride_w;
                if (p >= shape.P || q >= shape.Q) continue;
                const int turned_r = shape.R - 1 - r;
                const int turned_s = shape.S - 1 - s;
                sum += pre_activation_grad(dy, saved, shape, n, k, p, q) *
                       to_acc(w[shape.w_at(k, c % shape.group_channels(), turned_r, turned_s)]);
            }
    dx[i] = from_acc(sum);
}

// The ladder's rung that does it: input_grad/naive, in CUDA_SRC/input_grad/naive.cu
