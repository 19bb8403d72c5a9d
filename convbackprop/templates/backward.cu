// dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s)
// dw[k,c,r,s]  = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]        = sum_{n,p,q} g[n,k,p,q]                                        with g = dy * phi'(s)
//
// One thread computes one element of dx, dw or db. Describe here what yours does: who computes what, and why that is
// faster.
//
// Lines that begin with //@ say which pass this is and how it is launched: constants that both compilers get
// (-DTHREADS=128), then the launches with their arrays, grid and block. They know N C H W K R S P Q, stride_h, stride_w,
// pad_top, pad_left, dilation_h, dilation_w, groups, and ceil_div, min, max.
//@ pass backward
//@ constant THREADS = 128
//@ let results = N * C * H * W + K * (C / groups * R * S + 1)
//@ launch backward(dy, saved, x, w, dx, dw, db) grid=[ceil_div(results, THREADS)] block=[THREADS]
#include "activation_grad.cuh"  // pre_activation_grad(dy, saved, shape, n, k, p, q) = g[n,k,p,q]
#include "conv2d.cuh"           // Conv2dShape: sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at
#include "long_sum.cuh"         // LongSum: a plain float sum of a million terms would be wrong in its third digit

// Scalar is the type of the arrays (float, double, __half, __nv_bfloat16), Acc the type to add up in (float, double);
// to_acc and from_acc convert. saved is the forward pass's output y, or the bits y > 0: pre_activation_grad reads both.
__device__ Acc input_grad(const Scalar* dy, const Saved* saved, const Scalar* w, const Conv2dShape& shape, Index i) {
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
    return sum;
}

__device__ Acc kernel_grad(const Scalar* dy, const Saved* saved, const Scalar* x, const Conv2dShape& shape, Index tap) {
    const int s = tap % shape.S;
    const int r = tap / shape.S % shape.R;
    const int c = tap / shape.S / shape.R % shape.group_channels();
    const int k = tap / shape.S / shape.R / shape.group_channels();
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;  // c without groups

    LongSum sum;
    for (int n = 0; n < shape.N; ++n)
        for (int p = 0; p < shape.P; ++p)
            for (int q = 0; q < shape.Q; ++q) {
                const int h = shape.input_row(p, r);
                const int w_ = shape.input_col(q, s);
                if (shape.row_inside(h) && shape.col_inside(w_))  // outside, in the padding, x is 0
                    sum.add(pre_activation_grad(dy, saved, shape, n, k, p, q) * to_acc(x[shape.x_at(n, x_c, h, w_)]));
            }
    return sum.value();
}

__device__ Acc bias_grad(const Scalar* dy, const Saved* saved, const Conv2dShape& shape, int k) {
    LongSum sum;
    for (int n = 0; n < shape.N; ++n)
        for (int p = 0; p < shape.P; ++p)
            for (int q = 0; q < shape.Q; ++q) sum.add(pre_activation_grad(dy, saved, shape, n, k, p, q));
    return sum.value();
}

// dx, dw or db is null where it is not wanted; so is w without dx, and x without dw.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
         const Scalar* __restrict__ w, Scalar* __restrict__ dx, Scalar* __restrict__ dw, Scalar* __restrict__ db,
         Conv2dShape shape) {
    // Where am I: first come the elements of dx, with w_ consecutive in threadIdx.x, then those of dw, then those of db.
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    const Index tap = i - shape.x_size();
    const Index k = tap - shape.w_size();
    if (tap < 0) {
        if (dx) dx[i] = from_acc(input_grad(dy, saved, w, shape, i));
    } else if (k < 0) {
        if (dw) dw[tap] = from_acc(kernel_grad(dy, saved, x, shape, tap));
    } else if (k < shape.K) {
        if (db) db[k] = from_acc(bias_grad(dy, saved, shape, k));
    }
}

// Where to go from here, one step at a time:
//   - g = dy * phi'(s) is formed anew for each tap: let a block form a tile of it in __shared__ memory once, for dx and
//     dw alike; that is what a fused pass has over two passes
//   - there are few taps and many pixels: one thread a tap leaves the GPU idle. Let each block add up its tile for all
//     taps, and a second launch add up the blocks. Scratch memory for them is the array `scratch`:
//         //@ let tiles = ...
//         //@ scratch = tiles * K * (C / groups * R * S + 1)
//         //@ launch backward(dy, saved, x, w, dx, scratch) grid=[tiles] block=[THREADS]
//         //@ launch total(scratch, dw, db; tiles) grid=[...] block=[THREADS]
//     where total(const Acc* scratch, Scalar* dw, Scalar* db, Conv2dShape shape, int tiles) is another CUDA kernel
