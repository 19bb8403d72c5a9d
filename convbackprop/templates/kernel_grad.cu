// dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
// db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// One thread computes one element of dw or db. Describe here what yours does: who computes what, and why that is faster.
//
// Lines that begin with //@ say which pass this is and how it is launched: constants that both compilers get
// (-DTHREADS=128), then the launches with their arrays, grid and block. They know N C H W K R S P Q, stride_h, stride_w,
// pad_top, pad_left, dilation_h, dilation_w, groups, and ceil_div, min, max.
//@ pass kernel_grad
//@ constant THREADS = 128
//@ launch kernel_grad(dy, saved, x, dw, db) grid=[ceil_div(K * (C / groups * R * S + 1), THREADS)] block=[THREADS]
#include "activation_grad.cuh"  // pre_activation_grad(dy, saved, shape, n, k, p, q) = g[n,k,p,q]
#include "conv2d.cuh"           // Conv2dShape: sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at
#include "long_sum.cuh"         // LongSum: a plain float sum of a million terms would be wrong in its third digit

// Scalar is the type of the arrays (float, double, __half, __nv_bfloat16), Acc the type to add up in (float, double);
// to_acc and from_acc convert. saved is the forward pass's output y, or the bits y > 0: pre_activation_grad reads both.
// db is null where there is no bias.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Scalar* __restrict__ dw, Scalar* __restrict__ db, Conv2dShape shape) {
    // Where am I: tap (k,c,r,s); the last K threads compute the biases, whose input is 1 everywhere.
    const Index tap = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (tap >= shape.w_size() + shape.K) return;
    const bool is_bias = tap >= shape.w_size();
    const int s = tap % shape.S;
    const int r = tap / shape.S % shape.R;
    const int c = tap / shape.S / shape.R % shape.group_channels();
    const int k = is_bias ? tap - shape.w_size() : tap / shape.S / shape.R / shape.group_channels();
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;  // c without groups

    LongSum sum;
    for (int n = 0; n < shape.N; ++n)
        for (int p = 0; p < shape.P; ++p)
            for (int q = 0; q < shape.Q; ++q) {
                const Acc g = pre_activation_grad(dy, saved, shape, n, k, p, q);
                const int h = shape.input_row(p, r);
                const int w_ = shape.input_col(q, s);
                if (is_bias)
                    sum.add(g);
                else if (shape.row_inside(h) && shape.col_inside(w_))  // outside, in the padding, x is 0
                    sum.add(g * to_acc(x[shape.x_at(n, x_c, h, w_)]));
            }
    if (!is_bias)
        dw[tap] = from_acc(sum.value());
    else if (db)
        db[k] = from_acc(sum.value());
}

// Where to go from here, one step at a time:
//   - there are few taps and many pixels: one thread a tap leaves the GPU idle. Let each block add up a slice of the
//     rows for all taps, and a second launch add up the slices. Scratch memory for them is the array `scratch`:
//         //@ let slices = min(N * P, 256)
//         //@ scratch = slices * K * (C / groups * R * S + 1)
//         //@ launch kernel_grad(dy, saved, x, scratch) grid=[slices] block=[THREADS]
//         //@ launch total(scratch, dw, db; slices) grid=[...] block=[THREADS]
//     where total(const Acc* scratch, Scalar* dw, Scalar* db, Conv2dShape shape, int slices) is another CUDA kernel
//   - read g and x once for all taps: a thread that walks down a column keeps R rows of x in registers
