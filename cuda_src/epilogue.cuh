// What becomes of a forward pass's sum of products: y = phi(scale[k] * sum + b[k] + residual[n,k,p,q]).
//
// Scale and residual are known at compile time, so that a layer without them has no code for them; a bias that is not
// there is a null pointer.
#pragma once
#include "activation.cuh"

constexpr bool HAS_OPTIONS = SCALED || RESIDUAL;  // without them a sum may begin with the bias

struct Epilogue {
    const Scalar *b, *scale, *residual;

    __device__ __forceinline__ Epilogue(const Scalar* b, const Scalar* scale = nullptr,
                                        const Scalar* residual = nullptr)
        : b(b), scale(scale), residual(residual) {}

    // What the activation is applied to; `shortcut` is the residual's element. A Sum is an Acc, or several side by side.
    template <class Sum>
    __device__ __forceinline__ Sum pre_activation(Sum products, int k, Sum shortcut) const {
        if constexpr (SCALED) products *= to_acc(scale[k]);
        if (b) products += to_acc(b[k]);
        if constexpr (RESIDUAL) products += shortcut;
        return products;
    }
};
