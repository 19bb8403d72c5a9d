// Winograd's F(2x2, 3x3): 2 x 2 results of a channel from 16 multiplications, where their sums of 3 x 3 taps have 36.
//
//     Y = A^T [ (G g G^T) * (B^T d B) ] A          * by elements; summed over channels before A is applied
//
// d is the 4 x 4 pixels that a tile of 2 x 2 results sees, g a filter (S. Winograd, "Arithmetic Complexity of
// Computations", 1980; A. Lavin and S. Gray, arXiv:1509.09308). Each function is one of the three along one axis, of
// numbers that lie `pitch` apart.
//
// G is here twice the usual one in its middle rows, and A half: the transform of taps is then sums alone, which lose
// nothing of subnormal numbers.
#pragma once
#include "scalar.cuh"

// B^T, in place: d0 - d2, d1 + d2, d2 - d1, d1 - d3.
__device__ __forceinline__ void transform_pixels(Acc* d, int pitch) {
    const Acc first = d[0] - d[2 * pitch], sum = d[pitch] + d[2 * pitch], difference = d[2 * pitch] - d[pitch];
    d[3 * pitch] = d[pitch] - d[3 * pitch];
    d[0] = first;
    d[pitch] = sum;
    d[2 * pitch] = difference;
}
// G: g0, g0 + g1 + g2, g0 - g1 + g2, g2.
__device__ __forceinline__ void transform_taps(const Acc* taps, int pitch, Acc* to, int to_pitch) {
    const Acc outer = taps[0] + taps[2 * pitch];
    to[0] = taps[0];
    to[to_pitch] = outer + taps[pitch];
    to[2 * to_pitch] = outer - taps[pitch];
    to[3 * to_pitch] = taps[2 * pitch];
}
// A^T: m0 + (m1 + m2) / 2, (m1 - m2) / 2 - m3.
__device__ __forceinline__ void transform_products(const Acc* m, int pitch, Acc* to, int to_pitch) {
    to[0] = fma(m[pitch] + m[2 * pitch], Acc(0.5), m[0]);
    to[to_pitch] = fma(m[pitch] - m[2 * pitch], Acc(0.5), -m[3 * pitch]);
}
