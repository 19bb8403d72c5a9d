// __nv_bfloat16 as a storage type: two bytes in memory, arithmetic in float. Stands in for the CUDA toolkit's
// header of this name when kernels are compiled for the CPU, and has the part of it that converts.
//
// A bfloat16 is the upper half of a float. Conversions round to the nearest value, ties to even; subnormals
// are kept, and every NaN becomes the one NaN that CUDA makes of it.
#pragma once

#include <string.h>

struct __nv_bfloat16 {
    unsigned short bits;

    __nv_bfloat16() = default;  // leaves it as it is, so that it can be in __shared__ memory
    __nv_bfloat16(float f) {
        unsigned u;
        memcpy(&u, &f, sizeof u);
        // Half of the last place that is kept, or just less where it is even: a tie then has no carry.
        const unsigned rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        bits = static_cast<unsigned short>((u & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded);
    }
    operator float() const {
        const unsigned u = static_cast<unsigned>(bits) << 16;
        float f;
        memcpy(&f, &u, sizeof f);
        return f;
    }
};
typedef __nv_bfloat16 nv_bfloat16;

static_assert(sizeof(__nv_bfloat16) == 2 && __is_trivially_copyable(__nv_bfloat16) &&
                  __has_trivial_constructor(__nv_bfloat16),
              "__nv_bfloat16 must be two bytes that can be copied and left uninitialised");

// CUDA's arithmetic on __nv_bfloat16 rounds after each operation; through operator float it would not.
__nv_bfloat16 operator+(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator-(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator*(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator/(__nv_bfloat16, __nv_bfloat16) = delete;

static inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
static inline float __bfloat162float(__nv_bfloat16 b) { return static_cast<float>(b); }

static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 b;
    b.bits = bits;
    return b;
}

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat162 nv_bfloat162;

static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 f) {
    return {__nv_bfloat16(f.x), __nv_bfloat16(f.y)};
}
static inline float2 __bfloat1622float2(__nv_bfloat162 b) {
    return {__bfloat162float(b.x), __bfloat162float(b.y)};
}

// All bits of each of both that is greater, or not comparable.
static inline unsigned __hgtu2_mask(__nv_bfloat162 a, __nv_bfloat162 b) {
    return (__bfloat162float(a.x) <= __bfloat162float(b.x) ? 0u : 0xffffu) |
           (__bfloat162float(a.y) <= __bfloat162float(b.y) ? 0u : 0xffff0000u);
}
