// The activation phi and its derivative, chosen at compile time by the constant ACTIVATION.
//
// phi' is a function of the saved output y = phi(s), so the pre-activation s is never stored. Each derivative
// is written so that it is rounded once, also where 1 - y cancels. A forward pass with ReLU may save a bit mask
// in place of y: bit q % 8 of byte q / 8 of a row is 1 where the ReLU is open, and each row starts a new byte.
#pragma once
#include "conv2d.cuh"

enum Activation { IDENTITY, RELU, LOGISTIC, TANH };

__device__ __forceinline__ Acc activate(Acc s) {
    if constexpr (ACTIVATION == RELU)
        return s <= 0 ? Acc(0) : s;  // NaN stays NaN
    else if constexpr (ACTIVATION == LOGISTIC)
        return 1 / (1 + exp(-s));
    else if constexpr (ACTIVATION == TANH)
        return tanh(s);
    else
        return s;
}

// dy * phi'(s), given y = phi(s)
__device__ __forceinline__ Acc times_derivative(Acc dy, Acc y) {
    if constexpr (ACTIVATION == RELU)
        return y <= 0 ? Acc(0) : dy;  // a closed ReLU also stops a NaN
    else if constexpr (ACTIVATION == LOGISTIC)
        return dy * fma(-y, y, y);
    else if constexpr (ACTIVATION == TANH)
        return dy * fma(-y, y, Acc(1));
    else
        return dy;
}

using MaskByte = unsigned char;
using Saved = SAVED;  // Scalar (the output y) or MaskByte
constexpr bool SAVED_MASK = sizeof(Saved) == sizeof(MaskByte);

__device__ __forceinline__ Index mask_row_bytes(const Conv2dShape& shape) { return (shape.Q + 7) / 8; }

// g[n,k,p,q] = dy * phi'(s): what flows back through the activation. `saved` is the forward pass's y ...
__device__ __forceinline__ Acc pre_activation_grad(const Scalar* dy, const Scalar* saved, const Conv2dShape& shape,
                                                   int n, int k, int p, int q) {
    const Index at = shape.y_at(n, k, p, q);
    if constexpr (ACTIVATION == IDENTITY)
        return to_acc(dy[at]);
    else
        return times_derivative(to_acc(dy[at]), to_acc(saved[at]));
}

// ... or its mask.
__device__ __forceinline__ Acc pre_activation_grad(const Scalar* dy, const MaskByte* saved, const Conv2dShape& shape,
                                                   int n, int k, int p, int q) {
    const Index row = (Index(n) * shape.K + k) * shape.P + p;
    const bool open = saved[row * mask_row_bytes(shape) + q / 8] >> (q % 8) & 1;
    return open ? to_acc(dy[row * shape.Q + q]) : Acc(0);
}
