// Exercise 4: phi', and what the forward pass has saved
//
//   dx[n,c,h,w_] = sum_{k,r,s} g[n,k,p,q] * w[k,c,r,s]   over all (p,q) that read x[n,c,h,w_] through tap (r,s),
//                  with g[n,k,p,q] = dy[n,k,p,q] * phi'(s[n,k,p,q])
//
// Given: the input gradient, right but for phi'. Backpropagation needs phi'(s), but the forward pass has not kept the
// pre-activation s: it has kept its output y = phi(s), which the next layer reads anyway. For these activations that is
// enough, since phi' can be written as a function of y. The derivatives below are right as functions of s, and what
// they are given is y. With ReLU nobody sees the difference. (Why not?)
//
// Change: write phi' as a function of y for LOGISTIC and TANH. A product (1 - y) * (1 + y) keeps its digits where y is
// near 1; 1 - y * y loses them.
//
// Done: convbackprop grade 4_activation.cu
// says that every element is right, with each activation.
//@ pass input_grad
//@ constant THREADS = 128
//@ launch input_grad(dy, saved, w, dx) grid=[ceil_div(N * C * H * W, THREADS)] block=[THREADS]
#include "activation_grad.cuh"  // ACTIVATION, the activation's name, which is known when this is compiled
#include "conv2d.cuh"           // Conv2dShape: sizes, and where an element lies: x_at(n, c, h, w_), w_at, y_at

// dy * phi'(s)
__device__ Acc my_times_derivative(Acc dy, Acc y) {
    if constexpr (ACTIVATION == RELU) return y <= 0 ? Acc(0) : dy;
    if constexpr (ACTIVATION == LOGISTIC) {
        const Acc sigmoid = 1 / (1 + exp(-y));
        return dy * sigmoid * (1 - sigmoid);
    }
    if constexpr (ACTIVATION == TANH) return dy * (1 - tanh(y)) * (1 + tanh(y));
    return dy;
}

// saved is the forward pass's output y.
extern "C" __global__ void __launch_bounds__(THREADS)
input_grad(const Scalar* __restrict__ dy, const Scalar* __restrict__ saved, const Scalar* __restrict__ w,
           Scalar* __restrict__ dx, Conv2dShape shape) {
    // Where am I: input element (n,c,h,w_), with w_ consecutive in threadIdx.x.
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
                const int p_steps = h + shape.pad_top - r * shape.dilation_h;
                const int q_steps = w_ + shape.pad_left - s * shape.dilation_w;
                if (p_steps < 0 || p_steps % shape.stride_h != 0 || q_steps < 0 || q_steps % shape.stride_w != 0)
                    continue;
                const int p = p_steps / shape.stride_h;
                const int q = q_steps / shape.stride_w;
                if (p >= shape.P || q >= shape.Q) continue;
                const Index at = shape.y_at(n, k, p, q);
                const Acc y = ACTIVATION == IDENTITY ? Acc(0) : to_acc(saved[at]);  // identity has saved nothing
                sum += my_times_derivative(to_acc(dy[at]), y) *
                       to_acc(w[shape.w_at(k, c % shape.group_channels(), r, s)]);
            }
    dx[i] = from_acc(sum);
}

// What the ladder's rungs do: times_derivative, in CUDA_SRC/activation_grad.cuh
