// What the tensor cores of banded and tensor_core multiply: 16-bit elements as they are, or TF32 numbers (FACTOR_BITS).
//
// A float32 number is a sum of two TF32 numbers, high + low, to 23 bits. What three products leave out, low * low and
// the last bits of the lows, is at most 8 round-offs of a product. One TF32 number holds every 16-bit element.
//
// TF32 factors are multiplied by SCALE before, and the sums by UNSCALE after: so no part of a number is subnormal, down
// to float32's smallest one. What overflows thereby, from 2^80 on, comes out infinite or NaN, and is formed anew.
#pragma once
#include "mma.cuh"

constexpr bool IS_TF32 = FACTOR_BITS > 16;
using Element = std::conditional_t<std::is_same_v<Scalar, __half>, Float16, Bfloat16>;
using Factor = std::conditional_t<IS_TF32, Tf32, Element>;
static_assert(IS_TF32 || sizeof(Scalar) == 2, "16-bit factors are elements as they are");
constexpr float SCALE = IS_TF32 ? 16777216.0f : 1.0f, UNSCALE = 1 / SCALE / SCALE;  // 2^24
