// phi', the derivative of the activation, chosen at compile time by the constant ACTIVATION; g = dy * phi'(s).
//
// phi' is a function of what the forward pass has left: of its output y = phi(s), or, where one y comes of two s (SiLU,
// GELU, hardswish), of the pre-activation s. Each is written so that it is right to a few units in the last place, also
// where 1 - y or 1 - sigmoid(s) cancels. A forward pass with ReLU may save a bit mask in place of y: bit q % 8 of byte
// q / 8 of a row is 1 where the ReLU is open, and each row starts a new byte.
#pragma once
#include "conv2d.cuh"

#ifndef SLOPE  // of LEAKY_RELU where s < 0
#define SLOPE 0
#endif

enum Activation { IDENTITY, RELU, LOGISTIC, TANH, RELU6, LEAKY_RELU, SOFTPLUS, SILU, GELU, GELU_TANH, HARDSWISH };

constexpr Acc ROOT_HALF = 0.70710678118654752;
// Of GELU_TANH: twice the argument of its tanh, 2 sqrt(2 / pi) (s + 0.044715 s^3), and the derivative of that.
constexpr Acc LINEAR = 1.5957691216057308, CUBIC = LINEAR * 0.044715;
__device__ __forceinline__ Acc gelu_argument(Acc s) { return s * (LINEAR + CUBIC * s * s); }
__device__ __forceinline__ Acc gelu_argument_slope(Acc s) { return LINEAR + 3 * CUBIC * s * s; }

// The derivative of s * sigmoid(u) by s, of which sigmoid(u) and 1 - sigmoid(u) are formed apart.
__device__ __forceinline__ Acc gated_slope(Acc s, Acc u, Acc slope_of_u) {
    const Acc small = exp(u <= 0 ? u : -u), near = 1 / (1 + small), far = small * near;
    return (u <= 0 ? far : near) * (1 + s * slope_of_u * (u <= 0 ? near : far));
}
__device__ __forceinline__ Acc gelu_slope(Acc s) {
    // Beyond 64 it is 0 or 1 in every type, and powers of s may overflow.
    s = s > 64 ? Acc(64) : s < -64 ? Acc(-64) : s;
    if constexpr (ACTIVATION == GELU_TANH) return gated_slope(s, gelu_argument(s), gelu_argument_slope(s));
    return erfc(-s * ROOT_HALF) / 2 + s * exp(-s * s / 2) * Acc(0.39894228040143268);  // / sqrt(2 pi): the density
}

// dy * phi'(s), given what the forward pass has left: y = phi(s), or in the last four s itself
__device__ __forceinline__ Acc times_derivative(Acc dy, Acc saved) {
    const Acc y = saved, s = saved;
    if constexpr (ACTIVATION == RELU) return y <= 0 ? Acc(0) : dy;  // a closed ReLU also stops a NaN
    if constexpr (ACTIVATION == LOGISTIC) return dy * fma(-y, y, y);
    if constexpr (ACTIVATION == TANH) return dy * fma(-y, y, Acc(1));
    if constexpr (ACTIVATION == RELU6) return y <= 0 || y >= 6 ? Acc(0) : dy;
    if constexpr (ACTIVATION == LEAKY_RELU) return y > 0 ? dy : Acc(SLOPE) * dy;
    if constexpr (ACTIVATION == SOFTPLUS) return dy * -expm1(-y);  // 1 - exp(-y)
    if constexpr (ACTIVATION == SILU) return dy * gated_slope(s, s, 1);
    if constexpr (ACTIVATION == GELU || ACTIVATION == GELU_TANH) return dy * gelu_slope(s);
    if constexpr (ACTIVATION == HARDSWISH) return s <= -3 ? Acc(0) : s >= 3 ? dy : dy * (s / 3 + Acc(0.5));
    return dy;
}

using MaskByte = unsigned char;
using Saved = SAVED;  // Scalar (the output y, or the pre-activation s) or MaskByte
constexpr bool SAVED_MASK = sizeof(Saved) == sizeof(MaskByte);

__device__ __forceinline__ Index mask_row_bytes(const Conv2dShape& shape) { return (shape.Q + 7) / 8; }

// g[n,k,p,q] = dy * phi'(s): what flows back through the activation. `saved` is the forward pass's y or s ...
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
