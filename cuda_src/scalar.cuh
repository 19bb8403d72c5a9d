// Scalar: the type that arrays are stored in.  Acc: the type that sums are formed in.
//
// The constant SCALAR names one of float32, float64, float16, bfloat16. A half-precision result is a float32
// sum that is rounded once, by from_acc, when it is stored.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T>
struct ScalarTraits;

template <>
struct ScalarTraits<float> {
    using Acc = float;
    static __device__ __forceinline__ float to_acc(float v) { return v; }
    static __device__ __forceinline__ float from_acc(float v) { return v; }
};

template <>
struct ScalarTraits<double> {
    using Acc = double;
    static __device__ __forceinline__ double to_acc(double v) { return v; }
    static __device__ __forceinline__ double from_acc(double v) { return v; }
};

template <>
struct ScalarTraits<__half> {
    using Acc = float;
    static __device__ __forceinline__ float to_acc(__half v) { return __half2float(v); }
    static __device__ __forceinline__ __half from_acc(float v) { return __float2half_rn(v); }
};

template <>
struct ScalarTraits<__nv_bfloat16> {
    using Acc = float;
    static __device__ __forceinline__ float to_acc(__nv_bfloat16 v) { return __bfloat162float(v); }
    static __device__ __forceinline__ __nv_bfloat16 from_acc(float v) { return __float2bfloat16_rn(v); }
};

namespace dtype {
using float32 = float;
using float64 = double;
using float16 = __half;
using bfloat16 = __nv_bfloat16;
}  // namespace dtype

using Scalar = dtype::SCALAR;
using Acc = ScalarTraits<Scalar>::Acc;

__device__ __forceinline__ Acc to_acc(Scalar v) { return ScalarTraits<Scalar>::to_acc(v); }
__device__ __forceinline__ Scalar from_acc(Acc v) { return ScalarTraits<Scalar>::from_acc(v); }
