// Exercise 6: coalesced loads (one channel, stride 1)
//
//   y[n,p,q] = phi(b + sum_{r,s} x[n, p - pad + r, q - pad + s] * w[r,s])
//
// Given: a kernel that is right, and slow for one reason. The 32 threads of a warp have consecutive threadIdx.x and
// make their loads together. Memory hands out sectors of 32 bytes: 8 floats side by side. Here a warp's threads stand
// below one another, each in a row of its own: a warp asks for 32 sectors and uses 4 bytes of each.
//
// Change: let the threads of a warp stand side by side in a row. Both the kernel and its launch line say who stands
// where.
//
// Done: convbackprop grade 6_coalesced.cu
// says that all is right and that at most 1.25 times as many sectors are asked for as the numbers would fill. (Not 1: a
// warp whose taps begin in the middle of a sector needs five sectors for the bytes of four.)
//@ pass forward
//@ constant DOWN = 32
//@ constant ACROSS = 8
//@ launch forward(x, w, b, y) grid=[ceil_div(P, DOWN), ceil_div(Q, ACROSS), N] block=[DOWN, ACROSS]
#include "activation.cuh"  // activate(s) = phi(s)
#include "conv2d.cuh"      // Conv2dShape: the sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at

extern "C" __global__ void __launch_bounds__(DOWN * ACROSS)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ b,
        Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: output (n,p,q).
    const int p = blockIdx.x * DOWN + threadIdx.x;
    const int q = blockIdx.y * ACROSS + threadIdx.y;
    const int n = blockIdx.z;
    if (p >= shape.P || q >= shape.Q) return;

    Acc sum = b ? to_acc(b[0]) : Acc(0);
    for (int r = 0; r < shape.R; ++r)
        for (int s = 0; s < shape.S; ++s) {
            const int h = shape.input_row(p, r);
            const int w_ = shape.input_col(q, s);
            if (shape.row_inside(h) && shape.col_inside(w_))
                sum += to_acc(x[shape.x_at(n, 0, h, w_)]) * to_acc(w[r * shape.S + s]);
        }
    y[shape.y_at(n, 0, p, q)] = from_acc(activate(sum));
}

// The ladder's rung that does it: forward/naive, in CUDA_SRC/forward/naive.cu
// (forward/coalesced goes on from there, with 16 bytes a thread: it asks for many sectors twice, and for a tenth of the
// numbers.)
