// What outputs.cuh makes of a forward pass's sums, where a pixel's channels may lie side by side: of a row of the product,
// a filter, the next element is the next row's.
#pragma once
#include "outputs.cuh"

template <FormedAnew WHAT>
struct RowOutputs : Outputs<WHAT> {
    using Outputs<WHAT>::Outputs;

    __device__ __forceinline__ Acc result(int m, Acc sum, Index at) const {
        if constexpr (!CHANNELS_LAST) return Outputs<WHAT>::result(m, sum, at);
        const Acc shortcut = RESIDUAL && at >= 0 ? to_acc(this->epilogue.residual[at + m]) : Acc(0);
        return activate(this->epilogue.pre_activation(sum, this->first_k + m, shortcut));
    }
};
