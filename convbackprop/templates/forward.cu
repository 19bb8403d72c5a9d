// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//
// One thread computes one output element. Describe here what yours does: who computes what, and why that is faster.
//
// Lines that begin with //@ say which pass this is and how it is launched: constants that both compilers get
// (-DTHREADS=128), then the launches with their arrays, grid and block. They know N C H W K R S P Q, stride_h, stride_w,
// pad_top, pad_left, dilation_h, dilation_w, groups, and ceil_div, min, max.
//@ pass forward
//@ constant THREADS = 128
//@ launch forward(x, w, b, y) grid=[ceil_div(N * K * P * Q, THREADS)] block=[THREADS]
#include "activation.cuh"  // activate(s) = phi(s)
#include "conv2d.cuh"      // Conv2dShape: the sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at

// Scalar is the type of the arrays (float, double, __half, __nv_bfloat16), Acc the type to add up in (float, double);
// to_acc and from_acc convert. b is null where there is no bias.
extern "C" __global__ void __launch_bounds__(THREADS)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: output element (n,k,p,q), with q consecutive in threadIdx.x, so that a warp reads and writes side by
    // side.
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= shape.y_size()) return;
    const int q = i % shape.Q;
    const int p = i / shape.Q % shape.P;
    const int k = i / shape.Q / shape.P % shape.K;
    const int n = i / shape.Q / shape.P / shape.K;
    const int first_c = k / shape.group_filters() * shape.group_channels();  // 0 without groups

    Acc sum = b ? to_acc(b[k]) : Acc(0);
    for (int c = 0; c < shape.group_channels(); ++c)
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S; ++s) {
                const int h = shape.input_row(p, r);
                const int w_ = shape.input_col(q, s);
                if (shape.row_inside(h) && shape.col_inside(w_))  // outside, in the padding, x is 0
                    sum += to_acc(x[shape.x_at(n, first_c + c, h, w_)]) * to_acc(w[shape.w_at(k, c, r, s)]);
            }
    y[i] = from_acc(activate(sum));
}

// Where to go from here, one step at a time:
//   - neighbouring threads read almost the same pixels: let a block load a tile of x into __shared__ memory once
//   - the filter is the same for all threads: keep it in registers or shared memory
//   - let a thread compute several neighbouring outputs, and reuse in registers what it has read
