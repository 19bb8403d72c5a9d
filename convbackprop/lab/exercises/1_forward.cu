// Exercise 1: the forward pass, one thread a pixel
//
//   y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//
// Given: one thread computes one output pixel: it finds out which one, adds up its taps and stores the sum. The middle
// of an image is right. At the borders it is not: a tap that lies over the padding is no pixel, and adds nothing, but
// this kernel reads memory there all the same: the end of the row above, or what lies before the image.
//
// Change: let a tap add its product only where it lies inside the image. (shape.row_inside and shape.col_inside tell.)
//
// Done: convbackprop grade 1_forward.cu
// says that every pixel is right and that no access leaves an array.
//
// //@ lines say which pass this is and how it is launched: 'convbackprop new' explains them.
//@ pass forward
//@ constant THREADS = 128
//@ launch forward(x, w, b, y) grid=[ceil_div(N * K * P * Q, THREADS)] block=[THREADS]
#include "activation.cuh"  // activate(s) = phi(s)
#include "conv2d.cuh"      // Conv2dShape: the sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at

// Scalar is the type of the arrays, Acc the type to add up in; to_acc and from_acc convert. b is null without a bias.
extern "C" __global__ void __launch_bounds__(THREADS)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: output element (n,k,p,q), with q consecutive in threadIdx.x.
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= shape.y_size()) return;  // the last block has more threads than there are pixels left
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
                sum += to_acc(x[shape.x_at(n, first_c + c, h, w_)]) * to_acc(w[shape.w_at(k, c, r, s)]);
            }
    y[i] = from_acc(activate(sum));
}

// The ladder's rung that does it: forward/naive, in CUDA_SRC/forward/naive.cu
