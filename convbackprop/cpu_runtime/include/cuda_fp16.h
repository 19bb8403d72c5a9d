// __half as a storage type: two bytes in memory, arithmetic in float. Stands in for the CUDA toolkit's header
// of this name when kernels are compiled for the CPU, and has the part of it that converts.
//
// Conversions round to the nearest value, ties to even, and keep subnormals and NaN.
#pragma once

#include <string.h>

// The compiler's own 16-bit type, because it knows the instructions that convert it (vcvtps2ph, fcvt).
#if defined(__aarch64__)
typedef __fp16 convbackprop_float16;
#elif defined(__FLT16_MANT_DIG__)
typedef _Float16 convbackprop_float16;
#else
#error "float16 needs a compiler that has _Float16: g++ 12 or later on x86-64, any on aarch64."
#endif

struct __half {
    convbackprop_float16 value;

    __half() = default;  // leaves it as it is, so that it can be in __shared__ memory
    __half(float f) : value(static_cast<convbackprop_float16>(f)) {}
    operator float() const { return static_cast<float>(value); }
};
typedef __half half;

static_assert(sizeof(__half) == 2 && __is_trivially_copyable(__half) && __has_trivial_constructor(__half),
              "__half must be two bytes that can be copied and left uninitialised");

// CUDA's arithmetic on __half rounds after each operation; through operator float it would not.
__half operator+(__half, __half) = delete;
__half operator-(__half, __half) = delete;
__half operator*(__half, __half) = delete;
__half operator/(__half, __half) = delete;

static inline __half __float2half(float f) { return __half(f); }
static inline __half __float2half_rn(float f) { return __half(f); }
static inline float __half2float(__half h) { return static_cast<float>(h); }

static inline unsigned short __half_as_ushort(__half h) {
    unsigned short bits;
    memcpy(&bits, &h, sizeof bits);
    return bits;
}
static inline __half __ushort_as_half(unsigned short bits) {
    __half h;
    memcpy(&h, &bits, sizeof h);
    return h;
}

struct alignas(4) __half2 {
    __half x, y;
};
typedef __half2 half2;

static inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
static inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
static inline __half2 __float22half2_rn(float2 f) { return {__half(f.x), __half(f.y)}; }
static inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }

// All bits of each of both that is greater, or not comparable.
static inline unsigned __hgtu2_mask(__half2 a, __half2 b) {
    return (__half2float(a.x) <= __half2float(b.x) ? 0u : 0xffffu) | (__half2float(a.y) <= __half2float(b.y) ? 0u : 0xffff0000u);
}
