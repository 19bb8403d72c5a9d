// Exercise 3: the kernel gradient: who adds, and where?
//
//   dw[k,c,r,s] = sum_{n,p,q} g[n,k,p,q] * x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation]
//   db[k]       = sum_{n,p,q} g[n,k,p,q]                                         with g = dy * phi'(s)
//
// Given: the results are few, and each is a sum over all pixels. One block computes one of them: its threads share the
// rows, each adds up its own, and then all of them add to one number in shared memory. On a GPU many of them read that
// number at once, add, and write it back: most of what was added is lost. On a CPU, where the threads of a block take
// turns, the result is right by luck. Ask for the cause, not for the result: the sanitizer names the line.
//
// Change: give each thread a place of its own in shared memory, wait until all are there, and let the sum be formed in
// an order that is always the same. (atomicAdd mends the race, too, but then the order changes from run to run, and
// with it the last digits of a float's sum: no two trainings are alike.)
//
// Done: convbackprop grade 3_kernel_grad.cu
// says that all is right, that nothing races and that nothing is added by atomics.
//@ pass kernel_grad
//@ constant THREADS = 128
//@ launch kernel_grad(dy, saved, x, dw, db) grid=[K * (C / groups * R * S + 1)] block=[THREADS]
#include "activation_grad.cuh"  // pre_activation_grad(dy, saved, shape, n, k, p, q) = g[n,k,p,q]
#include "conv2d.cuh"           // Conv2dShape: sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at
#include "long_sum.cuh"         // LongSum: a plain float sum of a million terms would be wrong in its third digit

// db is null where there is no bias.
extern "C" __global__ void __launch_bounds__(THREADS)
kernel_grad(const Scalar* __restrict__ dy, const Saved* __restrict__ saved, const Scalar* __restrict__ x,
            Scalar* __restrict__ dw, Scalar* __restrict__ db, Conv2dShape shape) {
    // Where am I: the block's tap (k,c,r,s); the last K blocks compute the biases, whose input is 1 everywhere.
    const Index tap = blockIdx.x;
    const bool is_bias = tap >= shape.w_size();
    const int s = tap % shape.S;
    const int r = tap / shape.S % shape.R;
    const int c = tap / shape.S / shape.R % shape.group_channels();
    const int k = is_bias ? tap - shape.w_size() : tap / shape.S / shape.R / shape.group_channels();
    const int x_c = k / shape.group_filters() * shape.group_channels() + c;  // c without groups

    // The thread's share: of each row every THREADS-th pixel, so that a warp reads side by side.
    LongSum sum;
    for (int n = 0; n < shape.N; ++n)
        for (int p = 0; p < shape.P; ++p)
            for (int q = threadIdx.x; q < shape.Q; q += THREADS) {
                const Acc g = pre_activation_grad(dy, saved, shape, n, k, p, q);
                const int h = shape.input_row(p, r);
                const int w_ = shape.input_col(q, s);
                if (is_bias)
                    sum.add(g);
                else if (shape.row_inside(h) && shape.col_inside(w_))  // outside, in the padding, x is 0
                    sum.add(g * to_acc(x[shape.x_at(n, x_c, h, w_)]));
            }

    __shared__ Acc total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();  // total is 0
    total += sum.value();
    __syncthreads();  // every thread has added its share
    if (threadIdx.x == 0) {
        if (!is_bias)
            dw[tap] = from_acc(total);
        else if (db)
            db[k] = from_acc(total);
    }
}

// The ladder's rung that does it: kernel_grad/tiled, in CUDA_SRC/kernel_grad/tiled.cu (from "part_sums" on)
