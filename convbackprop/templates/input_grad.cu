// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                with g = dy * phi'(s)
//
// One thread computes one element of dx. Describe here what yours does: who computes what, and why that is faster.
//
// Lines that begin with //@ say which pass this is and how it is launched: constants that both compilers get
// (-DTHREADS=128), then the launches with their arrays, grid and block. They know N C H W K R S P Q, stride_h, stride_w,
// pad_top, pad_left, dilation_h, dilation_w, groups, and ceil_div, min, max.
//@ pass input_grad
//@ constant THREADS = 128
//@ launch input_grad(dy, saved, w, dx) grid=[ceil_div(N * C * H * W, THREADS)] block=[THREADS]
#include "activation_grad.cuh"  // pre_activation_grad(dy, saved, shape, n, k, p, q) = g[n,k,p,q]
#include "conv2d.cuh"           // Conv2dShape: sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at

// Scalar is the type of the arrays (float, double, __half, __nv_bfloat16), Acc the type to add up in (float, double);
// to_acc and from_acc convert. saved is the forward pass's output y, or the bits y > 0: pre_activation_grad reads both.
extern "C" __global__ void __launch_bounds__(THREADS)
input_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ w,
           Scalar* __restrict__ dx, Conv2dShape shape) {
    // Where am I: input element (n,c,h,w_), with w_ consecutive in threadIdx.x, so that a warp reads and writes side by
    // side.
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
                // Which output read x[h][w_] through tap (r,s)? p * stride - pad + r * dilation = h, solved for p.
                const int p_steps = h + shape.pad_top - r * shape.dilation_h;
                const int q_steps = w_ + shape.pad_left - s * shape.dilation_w;
                if (p_steps < 0 || p_steps % shape.stride_h != 0 || q_steps < 0 || q_steps % shape.stride_w != 0)
                    continue;
                const int p = p_steps / shape.stride_h;
                const int q = q_steps / shape.stride_w;
                if (p < shape.P && q < shape.Q)
                    sum += pre_activation_grad(dy, saved, shape, n, k, p, q) *
                           to_acc(w[shape.w_at(k, c % shape.group_channels(), r, s)]);
            }
    dx[i] = from_acc(sum);
}

// Where to go from here, one step at a time:
//   - g = dy * phi'(s) is formed anew for each tap: let a block form a tile of it in __shared__ memory once
//   - the filter is the same for all threads: keep it in registers or shared memory
//   - let a thread compute several neighbouring elements, and reuse in registers what it has read
