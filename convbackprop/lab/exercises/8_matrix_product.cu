// Exercise 8: many channels, as a matrix product (no groups)
//
//   y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//
// Given: one thread computes one output, right and slowly. With many channels a pixel takes part in K * R * S products,
// and it is loaded for each of them anew: two loads for every multiply-add, one of x and one of w. A GPU makes many
// more multiply-adds than loads, even from shared memory. Seen from afar this is a matrix product: y (K x pixels) = w
// (K x CRS) times x's windows (CRS x pixels), and in a matrix product a thread that computes a small tile of the
// result, say 4 filters by 4 pixels, loads 4 + 4 numbers for 16 products.
//
// Change: let a thread compute several filters at several pixels, with its sums in registers. (Unroll the loops over
// the tile, or the sums end up in memory.) Then let the block stage what its threads share.
//
// Done: convbackprop grade 8_matrix_product.cu
// says that all is right and that at most half a number is loaded for each multiply-add, from global and shared memory
// together.
//@ pass forward
//@ constant THREADS = 128
//@ launch forward(x, w, b, y) grid=[ceil_div(N * K * P * Q, THREADS)] block=[THREADS]
#include "activation.cuh"  // activate(s) = phi(s)
#include "conv2d.cuh"      // Conv2dShape: the sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at

extern "C" __global__ void __launch_bounds__(THREADS)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: output element (n,k,p,q), with q consecutive in threadIdx.x.
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= shape.y_size()) return;
    const int q = i % shape.Q;
    const int p = i / shape.Q % shape.P;
    const int k = i / shape.Q / shape.P % shape.K;
    const int n = i / shape.Q / shape.P / shape.K;

    Acc sum = b ? to_acc(b[k]) : Acc(0);
    for (int c = 0; c < shape.C; ++c)
        for (int r = 0; r < shape.R; ++r)
            for (int s = 0; s < shape.S; ++s) {
                const int h = shape.input_row(p, r);
                const int w_ = shape.input_col(q, s);
                if (shape.row_inside(h) && shape.col_inside(w_))
                    sum += to_acc(x[shape.x_at(n, c, h, w_)]) * to_acc(w[shape.w_at(k, c, r, s)]);
            }
    y[i] = from_acc(activate(sum));
}

// The ladder's rung that does it: forward/implicit_gemm, in CUDA_SRC/forward/implicit_gemm.cu
