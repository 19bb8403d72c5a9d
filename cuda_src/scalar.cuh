// Scalar: the type that arrays are stored in.  Acc: the type that sums are formed in.
//
// The constant SCALAR names one of float32, float64, float16, bfloat16. A half-precision result is a float32
// sum that is rounded once, by from_acc, when it is stored.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace dtype {
template <typename Element, typename Sum>
struct Types {
    using Scalar = Element;
    using Acc = Sum;
};
using float32 = Types<float, float>;
using float64 = Types<double, double>;
using float16 = Types<__half, float>;
using bfloat16 = Types<__nv_bfloat16, float>;
}  // namespace dtype

using Scalar = dtype::SCALAR::Scalar;
using Acc = dtype::SCALAR::Acc;

__device__ __forceinline__ Acc to_acc(Scalar v) { return Acc(v); }
__device__ __forceinline__ Scalar from_acc(Acc v) { return Scalar(v); }  // to nearest, ties to even
