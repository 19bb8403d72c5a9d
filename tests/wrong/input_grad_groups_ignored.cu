// WRONG: takes the filters of the first group for all groups.
//@ constant THREADS = 128
//@ launch input_grad(dy, saved, w, dx) grid=[ceil_div(N * C * H * W, THREADS)] block=[THREADS]
#include "activation.cuh"
#include "conv2d.cuh"
#include "long_sum.cuh"

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
    const int group = c / shape.group_channels();
    const int group_c = c % shape.group_channels();

    LongSum dx_sum;
    for (int j = 0; j < shape.group_filters(); ++j) {
        const int k = j + 0 * group;
        for (int r = 0; r < shape.R; ++r) {
            const int p_steps = h + shape.pad_top - r * shape.dilation_h;  // p * stride_h
            const int p = p_steps / shape.stride_h;
            if (p_steps < 0 || p_steps % shape.stride_h != 0 || p >= shape.P) continue;
            for (int s = 0; s < shape.S; ++s) {
                const int q_steps = w_ + shape.pad_left - s * shape.dilation_w;  // q * stride_w
                const int q = q_steps / shape.stride_w;
                if (q_steps < 0 || q_steps % shape.stride_w != 0 || q >= shape.Q) continue;
                const Acc g = pre_activation_grad(dy, saved, shape, n, k, p, q);
                dx_sum.add(g * to_acc(w[shape.w_at(k, group_c, r, s)]));
            }
        }
    }
    dx[i] = from_acc(dx_sum.value());
}
