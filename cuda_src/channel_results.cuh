// The way of a tile of results to memory where channels lie side by side: rows of the product, filters of y or channels
// of dx, are neighbours there.
//
// Of 16 rows and 8 columns a thread has two neighbouring columns of two rows, 8 apart, as mma.sync and wgmma have them.
// Four 16-bit channels of a pixel are stored at once (CHANNELS_ASIDE), after threads have exchanged theirs.
#pragma once
#include "mma.cuh"
#include "scalar.cuh"

// values[i][e]: of row lane / 4 + 8 i at the thread's column e. at[e]: where row 0 lies there, or null where there is no
// such pixel; so many rows exist.
template <class Element = Scalar>
__device__ __forceinline__ void store_channels(const Acc (&values)[2][2], Scalar* const (&at)[2], int rows) {
    const int row = threadIdx.x % 32 / 4;
    if constexpr (CHANNELS_ASIDE == 4) {
        // Two rows that are neighbours: one thread takes both at the first column, the other at the second. Then two such
        // pairs: one thread takes both of the first 8 rows, the other of the last 8. So what is stored is whole sectors.
        const bool is_odd = row % 2, is_last = row / 2 % 2;
        unsigned pairs[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const unsigned own = pair_word(Element(values[i][0]), Element(values[i][1]));
            const unsigned theirs = __shfl_xor_sync(0xffffffff, own, 4);
            pairs[i] = is_odd ? theirs >> 16 | (own & 0xffff0000) : (own & 0xffff) | theirs << 16;
        }
        const unsigned theirs = __shfl_xor_sync(0xffffffff, is_last ? pairs[0] : pairs[1], 8);
        const int first = row / 4 * 4 + is_last * 8;
        Scalar* const to = is_odd ? at[1] : at[0];
        if (to && first < rows)
            *reinterpret_cast<uint2*>(to + first) = is_last ? make_uint2(theirs, pairs[1]) : make_uint2(pairs[0], theirs);
    } else {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (at[e] && row + i * 8 < rows) at[e][row + i * 8] = from_acc(values[i][e]);
    }
}
static_assert(CHANNELS_ASIDE == 1 || (CHANNELS_LAST && sizeof(Scalar) == 2), "pairs of 16-bit channels are exchanged");
