// The activation phi, chosen at compile time by the constant ACTIVATION. Its derivative is in activation_grad.cuh.
#pragma once
#include "activation_grad.cuh"

#ifdef OUTPUT_ACTIVATION  // input_grad is the forward pass of a transposed convolution
constexpr bool TRANSPOSED = true;
#else
#define OUTPUT_ACTIVATION IDENTITY
constexpr bool TRANSPOSED = false;
#endif

template <Activation PHI>
__device__ __forceinline__ Acc phi(Acc s) {
    if constexpr (PHI == RELU) return s <= 0 ? Acc(0) : s;  // NaN stays NaN
    if constexpr (PHI == LOGISTIC) return 1 / (1 + exp(-s));
    if constexpr (PHI == TANH) return tanh(s);
    if constexpr (PHI == RELU6) return s <= 0 ? Acc(0) : s >= 6 ? Acc(6) : s;
    if constexpr (PHI == LEAKY_RELU) return s > 0 ? s : Acc(SLOPE) * s;
    if constexpr (PHI == SOFTPLUS) return (s <= 0 ? Acc(0) : s) + log1p(exp(s <= 0 ? s : -s));  // log(1 + exp(s))
    if constexpr (PHI == SILU) return s / (1 + exp(-s));
    if constexpr (PHI == GELU) return s * (erfc(-s * ROOT_HALF) / 2);  // s * P(a standard normal number < s)
    if constexpr (PHI == GELU_TANH) return s / (1 + exp(-gelu_argument(s)));
    if constexpr (PHI == HARDSWISH) return s * (s <= -3 ? Acc(0) : s >= 3 ? Acc(6) : s + 3) / 6;
    return s;
}
__device__ __forceinline__ Acc activate(Acc s) { return phi<ACTIVATION>(s); }

// A tap of filter k as input_grad multiplies it: its scale is a factor of all that flows back through it.
__device__ __forceinline__ Acc scaled(Acc tap, const Scalar* scale, int k) {
    return SCALED ? tap * to_acc(scale[k]) : tap;
}

// What input_grad stores: its sum, or as a transposed convolution's forward pass phi(sum + b[c]).
__device__ __forceinline__ Acc dx_result(Acc sum, const Scalar* b, int c) {
    return TRANSPOSED ? phi<OUTPUT_ACTIVATION>(b ? sum + to_acc(b[c]) : sum) : sum;
}
