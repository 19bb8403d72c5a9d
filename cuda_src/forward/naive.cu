// y[n,k,p,q] = phi(b[k] + sum_{c,r,s} x[n, c, p*stride - pad + r*dilation, q*stride - pad + s*dilation] * w[k,c,r,s])
//              if wanted, the sum times scale[k], and plus residual[n,k,p,q]
//
// One thread computes one output element and reads all that it needs from global memory: the definition,
// written down. Neighbouring threads read almost the same inputs, and each asks memory for them again: of the
// R*S loads of an input element only the first is needed. What limits it: load instructions and index
// arithmetic, several for each multiply-add. On an H200, 5x5 at 4096 x 4096 took 18 times as long as a copy.
#include "activation.cuh"
#include "conv2d.cuh"
#include "long_sum.cuh"
#include "pack_mask.cuh"

static_assert(THREADS % 32 == 0 && THREADS <= 1024, "a block is made of whole warps, at most 32 of them");

// The 1 in __launch_bounds__: left to itself, ptxas spills registers to fit more blocks on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Scalar* __restrict__ x, const Scalar* __restrict__ w, const Scalar* __restrict__ scale,
        const Scalar* __restrict__ b, const Scalar* __restrict__ residual, Scalar* __restrict__ y, Conv2dShape shape) {
    // Where am I: output element (n,k,p,q), with q consecutive in threadIdx.x.
    const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= shape.y_size()) return;
    const int q = i % shape.Q;
    const int p = i / shape.Q % shape.P;
    const int k = i / shape.Q / shape.P % shape.K;
    const int n = i / shape.Q / shape.P / shape.K;
    const int first_c = k / shape.group_filters() * shape.group_channels();

    LongSum s_sum;
    if (b && !SCALED) s_sum.add(to_acc(b[k]));
    for (int c = 0; c < shape.group_channels(); ++c)
        for (int r = 0; r < shape.R; ++r) {
            const int h = shape.input_row(p, r);
            if (!shape.row_inside(h)) continue;
            for (int s = 0; s < shape.S; ++s) {
                const int w_ = shape.input_col(q, s);
                if (!shape.col_inside(w_)) continue;
                s_sum.add(to_acc(x[shape.x_at(n, first_c + c, h, w_)]) * to_acc(w[shape.w_at(k, c, r, s)]));
            }
        }
    Acc s = s_sum.value();
    if constexpr (SCALED) s = to_acc(scale[k]) * s + (b ? to_acc(b[k]) : Acc(0));  // the bias itself is not scaled
    if constexpr (RESIDUAL) s += to_acc(residual[i]);
    y[i] = from_acc(activate(s));
}
